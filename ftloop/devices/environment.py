"""What may change the bits of a result besides the config: versions, device, threads, processes."""

import logging
import os
from typing import Any

import torch
import transformers

from ftloop.config import __version__
from ftloop.extensions import Setup

logger = logging.getLogger("ftloop")


class RecordEnvironment(Setup):
    """Records the environment in each checkpoint, and warns if a run resumes in another one."""

    def environment(self) -> dict[str, Any]:
        """Return the values that checkpoints record."""
        has_gpu = torch.cuda.is_available()
        return {
            "ftloop": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if has_gpu else "cpu",
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
        }

    def resume(self, environment: dict[str, Any]) -> None:
        """Warn about the values that differ from those of the checkpoint."""
        changes = [
            f"{name} {environment.get(name)} -> {value}"
            for name, value in self.environment().items()
            if environment.get(name) != value
        ]
        if changes:
            logger.warning(
                "resume: the environment has changed (%s). Each step uses the same rows; without "
                "dropout, results are equal up to rounding.",
                ", ".join(changes),
            )
