"""The Accelerator of training, evaluation and prediction, with the flags under which the laws of the loop hold."""

import os
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from ftloop.errors import UserError


def start_accelerator(precision: Literal["fp32", "bf16", "fp16"] | None = None) -> Accelerator:
    """Devices, processes and precision; left out, the precision that `accelerate launch` was told, else fp32.

    Raises UserError for a precision that the device lacks, and when one process came of several that were started.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        accelerator = Accelerator(
            # torchrun without a GPU: unless told so, accelerate starts separate runs instead of one.
            cpu=asked > 1 and not torch.accelerator.is_available(),
            mixed_precision="no" if precision == "fp32" else precision,
            # Micro-batches are dealt out as the sampler yields them; with even_batches, rows would be repeated.
            dataloader_config=DataLoaderConfiguration(even_batches=False, non_blocking=True),
            # The schedule steps where the loop says so; accelerate would step it once per process.
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:  # a precision that the device lacks, or a launch without an address
        asked_for = f"--precision {precision}: " if precision else ""
        raise UserError(f"{asked_for}accelerate cannot start: {error}") from error
    if accelerator.num_processes != asked:
        raise UserError(f"{asked} processes were started (WORLD_SIZE), but accelerate sees {accelerator.num_processes}")
    return accelerator
