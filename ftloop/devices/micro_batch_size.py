"""Find the most rows per forward pass that fit into memory: --micro-batch-size auto."""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from accelerate.utils import gather_object, send_to_device
from accelerate.utils.memory import clear_device_cache

from ftloop.errors import UserError
from ftloop.extensions import Setup
from ftloop.loader import make_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ftloop.sampler import TrainSampler
    from ftloop.task import Task

logger = logging.getLogger("ftloop")


class AutoMicroBatchSize(Setup):
    """Try the longest rows before the first step, by bisection. The global batch stays as it is."""

    def __init__(self) -> None:
        self.size: int | None = None  # once it is measured, or known from the checkpoint

    def resume(self, environment: dict[str, Any]) -> None:
        """Keep the size with which the run was started."""
        self.size = environment.get("auto_micro_batch_size")

    def environment(self) -> dict[str, Any]:
        """Return the size, for resumed runs."""
        return {"auto_micro_batch_size": self.size}

    def choose_micro_batch_size(
        self,
        model: torch.nn.Module,
        sampler: "TrainSampler",
        task: "Task",
        accelerator: "Accelerator",
    ) -> int:
        """Return the most rows that fit on every rank, at most `sampler.micro_batch_size`.

        Raises UserError if not even one row fits, with FSDP2, whose ranks cannot compute alone, and
        for a task whose batches must not be divided.
        """
        if self.size is not None:
            return self.size
        if accelerator.is_fsdp2:
            raise UserError(
                "--micro-batch-size auto does not work with FSDP2, where no rank can compute "
                "alone. Give a number."
            )
        if not task.independent_rows:
            raise UserError(
                f"--micro-batch-size auto: the losses of {type(task).__name__} depend on other "
                "rows of the batch, which is therefore never divided. Leave the option out."
            )
        trial = Trial(model, sampler.dataset, task, accelerator, sampler.seed)
        rows = longest_rows(sampler.lengths, len(sampler.dataset), sampler.micro_batch_size)
        # With fewer rows in the dataset than in a batch, the whole batch fits if all of them do.
        fits = largest_that_fits(lambda count: trial.fits(rows[:count]), len(rows))
        size = min(gather_object([sampler.micro_batch_size if fits == len(rows) else fits]))
        if size == 0:
            raise UserError(
                "--micro-batch-size auto: not even the longest row fits into memory by itself. A "
                "shorter --max-length, a smaller model, --precision bf16 or "
                "--gradient-checkpointing needs less."
            )
        logger.info(
            "--micro-batch-size auto: at most %d row(s) per forward pass fit into memory (tried "
            "with the longest rows).",
            size,
        )
        self.size = size
        return size


def longest_rows(lengths: Sequence[int] | None, num_rows: int, count: int) -> list[int]:
    """Return the ids of the longest rows; without lengths, of the first rows."""
    if lengths is None:
        return list(range(min(count, num_rows)))
    return numpy.argsort(numpy.asarray(lengths), kind="stable")[::-1][:count].tolist()


def largest_that_fits(fits: Callable[[int], bool], maximum: int) -> int:
    """Return the largest count up to `maximum` for which `fits(count)` is true, by bisection.

    The maximum is tried first, since it usually fits. 0 means that not even one fits.
    """
    if fits(maximum):
        return maximum
    largest, too_many = 0, maximum
    while too_many - largest > 1:
        count = (largest + too_many) // 2
        if fits(count):
            largest = count
        else:
            too_many = count
    return largest


@dataclass
class Trial:
    """Forward and backward passes of training, without an optimizer step."""

    model: torch.nn.Module
    dataset: Any
    task: "Task"
    accelerator: "Accelerator"
    seed: int

    def fits(self, rows: Sequence[int]) -> bool:
        """Tell whether one pass over these rows fits into memory. The model stays as it is."""
        try:
            with self._restored_state():
                self._compute(rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.model.zero_grad()
            clear_device_cache(garbage_collection=True)
        return True

    def _compute(self, rows: Sequence[int]) -> None:
        """Compute a gradient, with memory reserved for AdamW and, on several ranks, for DDP."""
        # AdamW keeps two numbers per weight; DDP copies the gradients into its buckets.
        copies = 2 if self.accelerator.num_processes == 1 else 3
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        reserved = [torch.empty_like(weight) for weight in weights for _ in range(copies)]
        keys = [(0, row) for row in rows]
        batch = make_batch(self.dataset, keys, self.task.collate, self.seed)
        del batch["weight_sum"]  # the loop takes it out, too
        batch = send_to_device(batch, self.accelerator.device)
        self.model.train()
        with self.accelerator.autocast():
            losses = self.task.compute_losses(self.model, batch).losses
        self.accelerator.backward(losses.sum() * 0)
        del reserved

    @contextlib.contextmanager
    def _restored_state(self) -> Iterator[None]:
        """Restore what a forward pass may change: buffers of the model, state of the task."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        has_state = hasattr(self.task, "state_dict") and hasattr(self.task, "load_state_dict")
        state = copy.deepcopy(self.task.state_dict()) if has_state else None
        try:
            yield
        finally:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
            if has_state:
                self.task.load_state_dict(state)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that a device, or the CPU, has no memory left."""
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text
