"""ftloop: a hand-written PyTorch training loop for fine-tuning transformers, to read and to fork.

Read ftloop/loop.py first. These are the names of the core; parts such as `ftloop.tasks`,
`ftloop.data` and `ftloop.cli` are imported from their own packages.
"""

from ftloop.config import Config as Config, __version__ as __version__
from ftloop.errors import Stopped as Stopped, TrainingError as TrainingError, UserError as UserError
from ftloop.extensions import Observer as Observer, Setup as Setup
from ftloop.task import Losses as Losses, Task as Task, model_inputs as model_inputs


def train(config: Config) -> dict[str, dict[str, float]]:
    """See `ftloop.loop.train`, which is imported when it is called: `--help` does without torch."""
    from ftloop.loop import train as train_in_loop

    return train_in_loop(config)
