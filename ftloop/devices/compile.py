"""Compile the model: --compile."""

import logging
from typing import TYPE_CHECKING

from ftloop.extensions import Setup

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

logger = logging.getLogger("ftloop")

RECOMPILE_LIMIT = 64


class Compile(Setup):
    """Compile the model in place, by `model.compile`, so that its parameters keep their names.

    Each shape of a batch is compiled once: a number of rows (the last batch of an epoch has fewer),
    a length, and training or evaluation. The task should therefore pad to few lengths.
    """

    def __init__(self) -> None:
        self._recompile_limit: int | None = None  # of torch, before this setup changed it

    def prepare_model(self, model: "torch.nn.Module", accelerator: "Accelerator") -> None:
        """Let the first forward pass compile the model, and raise torch's limit of 8 shapes."""
        import torch._dynamo

        if accelerator.device.type == "cpu":
            logger.warning(
                "--compile is slow on a CPU: a training step of MiniLM took 1.2 times as long, and "
                "compiling took 84 seconds."
            )
        self._recompile_limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        model.compile(dynamic=False)

    def undo(self) -> None:
        """Restore torch's limit. The model stays compiled."""
        import torch._dynamo

        if self._recompile_limit is not None:
            torch._dynamo.config.recompile_limit = self._recompile_limit
            self._recompile_limit = None
