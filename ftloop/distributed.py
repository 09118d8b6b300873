"""The Accelerator of training, evaluation and prediction, with the flags under which the laws of the loop hold."""

import importlib.util
import os
import sys
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, InitProcessGroupKwargs

from ftloop.distributed import sharding
from ftloop.errors import UserError

PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}  # accelerate's names, and ours
PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "XLA")  # each process has the whole model


def precision_of(accelerator: Accelerator) -> str:
    """fp32, bf16 or fp16: what was asked for, or what the launcher was told."""
    return PRECISIONS[accelerator.mixed_precision]


def start_accelerator(
    precision: Literal["fp32", "bf16", "fp16"] | None = None, timeout: float = 600, deterministic: bool = False
) -> Accelerator:
    """Devices, processes and precision; left out, the precision that `accelerate launch` was told, else fp32. A process
    that waits for another longer than `timeout` seconds ends with an error.

    Raises UserError for a precision that the device lacks, for shards that are not FSDP2 on GPUs, and when one process
    came of several that were started.
    """
    if importlib.util.find_spec("lomo_optim") is None:
        # accelerate looks for this package twice a step, a third of a millisecond in all: so it finds at once that it
        # is not there.
        sys.modules["lomo_optim"] = None  # type: ignore[assignment]
    shards = sharding.asked_for()
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix is multiplied
        torch.use_deterministic_algorithms(True)  # also turns cuDNN's benchmarks off
    try:
        accelerator = Accelerator(
            # torchrun without a GPU: unless told so, accelerate starts separate runs instead of one.
            cpu=asked > 1 and not torch.accelerator.is_available(),
            mixed_precision="no" if precision == "fp32" else precision,
            # Micro-batches are dealt out as the sampler yields them; with even_batches, rows would be repeated.
            dataloader_config=DataLoaderConfiguration(even_batches=False, non_blocking=True),
            # The schedule steps where the loop says so; accelerate would step it once per process.
            step_scheduler_with_optimizer=False,
            # The loop divides the loss; a number of steps from the launcher would divide it again.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            fsdp_plugin=shards,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
    except (ValueError, RuntimeError) as error:  # a precision or sharding that the device lacks, no address, ..
        asked_for = f"--precision {precision}: " if precision else ""
        raise UserError(f"{asked_for}accelerate cannot start: {error}") from error
    if accelerator.mixed_precision not in PRECISIONS or (
        accelerator.mixed_precision == "fp16" and not accelerator.scaler
    ):
        raise UserError(f"--precision {accelerator.mixed_precision}: not on this device ({accelerator.device.type})")
    if shards:
        sharding.check(accelerator)
    elif accelerator.distributed_type not in PLAIN:
        raise UserError(
            f"accelerate was configured for {accelerator.distributed_type}: ftloop runs whole copies of the model, one "
            "to a process (accelerate launch --multi_gpu, torchrun), or shards by FSDP2 (--use_fsdp --fsdp_version 2)"
        )
    if accelerator.num_processes < asked:
        raise UserError(f"{asked} processes were started (WORLD_SIZE), but accelerate sees {accelerator.num_processes}")
    return accelerator
