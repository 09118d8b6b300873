"""ftloop: a hand-written PyTorch training loop for fine-tuning transformers, to read and to fork."""

import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ftloop.config import Config
    from ftloop.data import Data
    from ftloop.errors import UserError
    from ftloop.evaluation import evaluate, load_run, predict
    from ftloop.tasks.image import ImageClassification
    from ftloop.loop import train
    from ftloop.tasks.classification import Classification, Task
    from ftloop.tasks.text import TextClassification

if "IPython" in sys.modules:  # in a notebook without ipywidgets, tqdm's bar is a plain one: that needs no warning
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tqdm.auto  # noqa: F401 - it warns when it is imported

_HOME = {
    "Config": "config",
    "Data": "data",
    "UserError": "errors",
    "evaluate": "evaluation",
    "load_run": "evaluation",
    "predict": "evaluation",
    "train": "loop",
    "Classification": "task",
    "ImageClassification": "image",
    "Task": "task",
    "TextClassification": "text",
}
__all__ = [
    "Classification",
    "Config",
    "Data",
    "ImageClassification",
    "Task",
    "TextClassification",
    "UserError",
    "evaluate",
    "load_run",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a config file needs no torch, so that --help answers at once."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'ftloop' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ftloop.{_HOME[name]}"), name)
