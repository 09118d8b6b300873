"""ftloop: a hand-written PyTorch training loop for fine-tuning transformers, to read and to fork.

Read ftloop/loop.py first. These are the names of the core; parts such as `ftloop.tasks`,
`ftloop.data` and `ftloop.cli` are imported from their own packages.
"""

from typing import TYPE_CHECKING, Any

from ftloop.config import Config, __version__
from ftloop.errors import Stopped, TrainingError, UserError
from ftloop.extensions import Observer, Setup
from ftloop.task import Losses, Task, model_inputs

if TYPE_CHECKING:
    from ftloop.evaluation import evaluate
    from ftloop.loop import train

__all__ = [
    "Config",
    "Losses",
    "Observer",
    "Setup",
    "Stopped",
    "Task",
    "TrainingError",
    "UserError",
    "__version__",
    "evaluate",
    "model_inputs",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, so that `--help` answers at once."""
    if name == "train":
        from ftloop.loop import train

        return train
    if name == "evaluate":
        from ftloop.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module 'ftloop' has no attribute {name!r}")
