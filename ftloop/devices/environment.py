"""What may change the bits of a result besides the config: versions, device, threads, processes."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ftloop.config import __version__
from ftloop.distributed import PRECISIONS
from ftloop.extensions import Setup

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("ftloop")


class RecordEnvironment(Setup):
    """Record the environment in each checkpoint, and warn if a run resumes in another one.

    It is the last setup of a run: it also compares what the `others` record, for example the matrix
    backend.
    """

    def __init__(self, others: Sequence[Setup] = ()):
        self.others = others
        self.recorded: dict[str, Any] = {}  # by the checkpoint from which the run resumes
        self.values: dict[str, Any] = {}

    def resume(self, environment: dict[str, Any]) -> None:
        """Remember the environment in which the run was trained so far."""
        self.recorded = environment

    def prepare_model(self, model: torch.nn.Module, accelerator: "Accelerator") -> None:
        """Warn about the values that differ from those of the checkpoint."""
        device = accelerator.device
        self.values = {
            "ftloop": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "num_processes": accelerator.num_processes,
            "precision": PRECISIONS[accelerator.mixed_precision],
        }
        now = dict(self.values)
        for setup in self.others:
            now |= setup.environment()
        changes = [
            f"{name} {old} -> {now.get(name)}"
            for name, old in self.recorded.items()
            if now.get(name) != old
        ]
        if changes:
            logger.warning(
                "resume: the environment has changed (%s). Each step uses the same rows; without "
                "dropout, results are equal up to rounding.",
                ", ".join(changes),
            )

    def environment(self) -> dict[str, Any]:
        """Return the values that checkpoints record."""
        return self.values
