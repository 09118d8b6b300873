"""ftloop: a hand-written PyTorch training loop for fine-tuning transformers, to read and to fork.

Read ftloop/loop.py first. These are the names of the core; parts such as `ftloop.tasks`,
`ftloop.data` and `ftloop.cli` are imported from their own packages.
"""

from typing import Any

from ftloop.config import Config as Config, __version__ as __version__
from ftloop.errors import Stopped as Stopped, TrainingError as TrainingError, UserError as UserError
from ftloop.extensions import Observer as Observer, Setup as Setup
from ftloop.task import Losses as Losses, Task as Task, model_inputs as model_inputs


def __getattr__(name: str) -> Any:
    """Import `train`, which needs torch, only when it is used: `--help` then answers at once."""
    if name != "train":
        raise AttributeError(f"module 'ftloop' has no attribute {name!r}")
    from ftloop.loop import train

    return train
