"""How much a process computes at once: what fits into its memory. The batch of an optimizer step stays what it is."""

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from ftloop.checkpoint import TrainState
from ftloop.config import Config
from ftloop.loader import TOKENS, batch_of
from ftloop.sampler import TrainOrder
from ftloop.errors import TrainingError, UserError

logger = logging.getLogger("ftloop")

ADVICE = "a shorter --task.max-length, a smaller model, --precision bf16 or --gradient-checkpointing need less"


class Memory:
    """Enter it around the micro-batches of a window: if they run out of memory, `ran_out` is true, and less is computed
    at once from then on. The gradient of a window is a sum over its rows, and the same however they are cut.

    What fits is part of the state, so that a run that goes on cuts its windows as it did before.
    """

    def __init__(self, config: Config, order: TrainOrder, state: TrainState, accelerator: Accelerator):
        """`state` as it was restored: what fitted before fits."""
        self.config, self.order, self.state, self.accelerator = config, order, state, accelerator
        self.ran_out = False
        if config.micro_batch_size == "auto" and accelerator.is_fsdp2:
            raise UserError("--micro-batch-size auto: not in shards, where no process computes alone; give a number")

    def divide(self, model: Any, rows: Any) -> None:
        """Decide what a process computes at once: as asked, or for --micro-batch-size auto by trying the prepared
        `model` on the longest of the `rows` of train."""
        tries = self.config.micro_batch_size == "auto" and not self.state.at_once
        self.order.at_once = min(self.order.at_once, self.state.at_once or self.order.at_once)
        if tries:
            bare = self.accelerator.unwrap_model(model)  # alone: no process waits for another
            found = gather_object([self._most_that_fits(bare, rows)])
            if min(found) == 0:
                raise UserError(f"--micro-batch-size auto: not even the longest row alone fits into memory; {ADVICE}")
            self.order.at_once = min(found)
            logger.info("memory: %d row(s) at once fit, by trying the longest", self.order.at_once)
        self.state.at_once = self.order.at_once

    def __enter__(self) -> "Memory":
        self.ran_out = False
        return self

    def __exit__(self, kind: Any, error: BaseException | None, where: TracebackType | None) -> bool:
        if error is None or not isinstance(error, Exception) or not should_reduce_batch_size(error):
            return False
        before = self.order.computed_at_once()
        at_once = before // 2
        what = "tokens" if self.order.by_tokens else "row(s)"
        if self.order.processes > 1:  # the others wait for gradients that will not come
            raise TrainingError(
                f"out of memory with {before} {what} at once in a process: give a smaller --micro-batch-size (or "
                f"--max-tokens), and go on by --resume PATH --allow-changes; {ADVICE}"
            ) from error
        if at_once < 1 or (self.order.by_tokens and at_once < int(self.order.lengths.max())):
            raise TrainingError(f"out of memory with {before} {what} at once, and less cannot be: {ADVICE}") from error
        message = "step %d ran out of memory with %d %s at once, and is done again with %d at most, as all after it"
        logger.warning(message, self.state.step + 1, before, what, at_once)
        self.order.at_once = self.state.at_once = at_once
        self.ran_out = True
        return True

    def release(self) -> None:
        """Give back to the device what the failed pass held. To be called when nothing refers to it any more."""
        clear_device_cache(garbage_collection=True)

    def _most_that_fits(self, model: Any, rows: Any) -> int:
        """By bisection: some log2(most) forward and backward passes, without a step. 0: not even one row."""
        most, lengths = self.order.at_once, self.order.lengths
        longest = (
            range(min(most, self.order.rows))
            if lengths is None
            else lengths.argsort(kind="stable")[::-1][:most].tolist()
        )
        fits, too_many = 0, len(longest) + 1
        while too_many - fits > 1:
            tried = len(longest) if too_many > len(longest) else (fits + too_many) // 2  # all of them first
            fits, too_many = (tried, too_many) if self._fits(model, rows, longest[:tried]) else (fits, tried)
        return most if fits == len(longest) else fits

    def _fits(self, model: Any, rows: Any, tried: Sequence[int]) -> bool:
        """Whether one pass over some rows does. Leaves the model as it was: running means would see these rows."""
        kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            self._try(model, rows, tried)
            return True
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return False
        finally:
            model.zero_grad()
            self.release()
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])

    def _try(self, model: Any, rows: Any, tried: Sequence[int]) -> None:
        """One forward and backward pass, with what AdamW will keep beside them: two numbers to a weight."""
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        reserved = [torch.empty_like(parameter) for parameter in weights for _ in range(2)]
        batch = batch_of(rows, [(0, row) for row in tried], self.config.task.collate, self.config.seed)
        batch = {
            name: value.to(self.accelerator.device) for name, value in batch.items() if name not in ("rows", TOKENS)
        }
        targets = batch.pop("labels")
        model.train()
        self.accelerator.backward(self.config.task.losses(model(**batch), targets).sum() * 0)
        del reserved


def save_memory(model: Any) -> None:
    """Gradient checkpointing. Raises UserError for a model that cannot."""
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        raise UserError(f"--gradient-checkpointing: this model cannot: {error}") from error
