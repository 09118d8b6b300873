"""Log lines of --log-level debug: the steps and the checkpoints."""

import logging
from pathlib import Path
from typing import Any

from ftloop.extensions import Observer

logger = logging.getLogger("ftloop")


class DebugLog(Observer):
    """Logs loss, gradient norm and learning rate of each step, and each saved checkpoint."""

    def on_log(self, run: Any, steps: list[Any], speed: dict[str, float]) -> None:
        message = "step %d: loss %.4f, gradient norm %.4f, learning rate %.3g"
        for record in steps:
            logger.debug(message, record.step, record.loss, record.grad_norm, record.learning_rate)

    def on_save(self, run: Any, checkpoint: Path) -> None:
        logger.debug("saved %s", checkpoint)
