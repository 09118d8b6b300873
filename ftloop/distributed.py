"""Ranks: the Accelerator, full state dicts, agreement between ranks, stopping on signals."""

import logging
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, utils

from ftloop.errors import Stopped, UserError
from ftloop.extensions import Setup
from ftloop.loader import STOP_SIGNALS, make_batch
from ftloop.state import TrainState
from ftloop.task import Task

logger = logging.getLogger("ftloop")

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}  # accelerate's names and ours


class DDPOptions(utils.DistributedDataParallelKwargs):
    """Turns off the broadcast of buffers in each step, by the name that torch 2.15 has for it."""

    def to_kwargs(self) -> dict[str, Any]:
        return {**super().to_kwargs(), "forward_sync_buffers": False}


def build_accelerator(
    precision: str | None = None,
    timeout: float = 600,
    setups: Sequence[Setup] = (),
    find_unused_parameters: bool = False,
) -> Accelerator:
    """Build the Accelerator with the settings that the laws of the loop need.

    precision: fp32, bf16 or fp16; None: what `accelerate launch` was configured with, else fp32.
    timeout: seconds that a process waits for another before it ends with an error. Raises UserError
    for a precision or a kind of parallelism that this device or ftloop does not support.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    options: dict[str, Any] = {}
    init_options = utils.InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    for setup in setups:
        options |= setup.accelerator_options()
    try:
        accelerator = Accelerator(
            # Under torchrun without a GPU, accelerate would start separate runs unless told to use
            # the CPU.
            cpu=world_size > 1 and not torch.accelerator.is_available(),
            mixed_precision="no" if precision == "fp32" else precision,
            # Micro-batches go to the ranks as the sampler yields them; even_batches would repeat
            # rows.
            dataloader_config=utils.DataLoaderConfiguration(even_batches=False, non_blocking=True),
            # The loop steps the schedule; accelerate would step it once per process.
            step_scheduler_with_optimizer=False,
            # The loop divides the loss; steps configured in the launcher would divide it again.
            gradient_accumulation_plugin=utils.GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[init_options, *options.pop("kwargs_handlers", [])],
            **options,
        )
    except (ValueError, RuntimeError) as error:  # the device lacks the precision, no address, ...
        field = "precision" if "precision" in str(error) else None
        raise UserError(f"accelerate cannot start: {error}", field=field) from error
    accelerator.ddp_handler = DDPOptions(find_unused_parameters=find_unused_parameters)
    name, device = accelerator.mixed_precision, accelerator.device.type
    if name not in PRECISIONS or (name == "fp16" and not accelerator.scaler):
        raise UserError(f"{name} is not available on this device ({device}).", field="precision")
    if accelerator.num_processes < world_size:
        raise UserError(f"accelerate sees {accelerator.num_processes} of {world_size} processes.")
    return accelerator


def check_rows(datasets: dict[str, Any], state: TrainState, allow_changes: bool) -> None:
    """Compare the rows of every split over the ranks, and with those of the checkpoint.

    Raises UserError, on every rank, if they differ. The loop does this before it builds the model:
    ranks with other labels would build other models, and ranks with other rows would wait for ever.
    """
    fingerprints = {}
    for split, dataset in datasets.items():
        fingerprints[split] = getattr(dataset, "fingerprint", None) or f"{len(dataset)} rows"
        if not getattr(dataset, "fingerprint", None):
            logger.warning("%s has no fingerprint: only its number of rows is compared", split)
    by_rank = utils.gather_object([{**fingerprints, "run_dir": state.step}])
    for rank, seen in enumerate(by_rank):
        if changed := changed_names(by_rank[0], seen):
            message = f"rank {rank} differs from rank 0 in {' and '.join(changed)}. "
            raise UserError(f"{message}All ranks must read the same rows and the same run_dir.")
    changed = changed_names(state.fingerprints or fingerprints, fingerprints)
    message = f"the rows of {' and '.join(changed)} are not those with which the run began"
    if changed and not allow_changes:
        raise UserError(f"{message}. Restore them, or start a new run in another run_dir.")
    if changed:
        logger.warning("resume: %s", message)
    state.fingerprints = fingerprints


def changed_names(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the names whose values differ; a missing one differs from any value."""
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def full_tensor(tensor: Any) -> Any:
    """Gather a sharded tensor on its device. All ranks must call it; others are returned as is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def warm_up_ddp_buckets(model: Any, task: Task, sampler: Any, accelerator: Accelerator) -> None:
    """Run one backward pass with a zero loss, with three ranks or more.

    DistributedDataParallel rebuilds its buckets after the first backward pass, which changes the
    order of summation between three ranks or more. After this pass, a resumed run sums in the same
    order.
    """
    if accelerator.num_processes < 3 or accelerator.is_fsdp2:
        return
    batch = make_batch(sampler.dataset, [(0, 0)], task.collate, sampler.seed)
    del batch["weight_sum"]
    tensors = {name: value.to(accelerator.device) for name, value in batch.items()}
    model.eval()  # no dropout; running statistics stay as they are
    accelerator.backward(task.compute_losses(model, tensors).losses.sum() * 0)
    model.zero_grad()


class StopSignals:
    """Turns signals and a time limit into a request to stop, on which all ranks agree.

    After `install`, SIGTERM, SIGINT, SIGUSR1 (which SLURM sends before its time limit) and SIGHUP
    (the terminal is gone) do not interrupt a step. Another signal ends the process at once, unless
    it comes in the same second: torchrun passes on a signal that its whole group got already. What
    is on disk stays intact.
    """

    def __init__(self, max_minutes: float | None = None):
        self.deadline = time.monotonic() + 60 * (max_minutes or math.inf)
        self.reason: str | None = None
        self.exit_code, self.received_at = 143, math.inf
        self._previous_handlers: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on. In another thread than the main one, nothing changes."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._previous_handlers[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back to their previous handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        exit_code = 130 if number == signal.SIGINT else 143
        if time.monotonic() > self.received_at + 1:
            os._exit(exit_code)
        self.reason, self.exit_code = signal.Signals(number).name, exit_code
        self.received_at = min(self.received_at, time.monotonic())

    def agree(self, accelerator: Accelerator, may_wait: bool, may_time_out: bool = True) -> bool:
        """Tell whether any rank should stop: the same answer on all.

        Asking several GPUs waits for them. Unless the caller `may_wait`, the answer is no.
        """
        if self.reason is None and may_time_out and time.monotonic() > self.deadline:
            self.reason = "max_minutes"
        if accelerator.num_processes == 1:
            return self.reason is not None
        if not may_wait and accelerator.device.type != "cpu":
            return False
        exit_code = 0 if self.reason is None else self.exit_code
        codes = accelerator.gather(torch.tensor([exit_code], device=accelerator.device))
        agreed = int(codes.max())
        if agreed and self.reason is None:
            self.reason, self.exit_code = "another rank", agreed
        return agreed > 0

    def exception(self, step: int) -> Stopped:
        """Return the exception that ends a run which was asked to stop and is saved."""
        message = f"{self.reason}: stopped after step {step}; the checkpoint is saved. "
        message += f"Run the same command again to resume: python {shlex.join(sys.argv)}"
        return Stopped(message, self.exit_code)
