"""Config: everything that decides a run. Its validation, and its record in config.json."""

import functools
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftloop.errors import UserError, did_you_mean
from ftloop.optim import adamw, validate_schedule
from ftloop.task import Task

if TYPE_CHECKING:
    from ftloop.extensions import Observer, Setup

__version__ = "0.2.0"

# Fields that may differ when a run resumes: they change its result up to rounding at most.
MAY_CHANGE = (
    "run_dir resume allow_changes workers timeout log_every max_minutes keep_last keep_best "
    "micro_batch_size max_tokens"
)
# The smallest and the largest value of fields that hold a number
LIMITS = {
    "epochs max_steps batch_size micro_batch_size max_tokens save_every eval_every": (1, 2**31),
    "eval_batch_size patience log_every keep_last keep_best": (1, 2**31),
    "learning_rate weight_decay warmup max_grad_norm": (0, 1e20),
    "max_minutes timeout": (1e-9, 1e7),  # a `timedelta` in C++ overflows far above
    "workers": (0, 1000),
    "seed": (-(2**62), 2**62),
}
SMALLER_IS_BETTER = ("loss", "mse", "mae", "rmse", "hamming_loss", "perplexity")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. A fork adds fields in a subclass."""

    task: Task  # what to train, and on which data
    run_dir: str  # folder of the run: config.json, metrics.jsonl, checkpoints/, model/, scores.json

    # Steps and batches
    epochs: int = 3  # passes over the training rows
    max_steps: int | None = None  # optimizer steps. If given, it decides instead of epochs
    batch_size: int = 32  # rows per optimizer step, over all processes and micro-batches
    micro_batch_size: int | Literal["auto"] | None = None
    """Rows per forward pass on each process. Default: the whole batch (on a CPU, at most 4096
    tokens). 'auto' uses the largest size that fits in memory."""
    max_tokens: int | None = None  # padded tokens per forward pass; needs rows grouped by length
    group_by_length: bool | None = None
    """Form batches of rows of similar length, which saves most of the padding. Default: yes if rows
    have lengths and no row_order is given."""
    row_order: Callable[..., Sequence[int]] | None = None
    """Function f(dataset, seed, epoch) that returns the row ids of an epoch. Default: a random
    permutation. A row may appear more than once; every epoch must have the same number of rows."""
    seed: int = 42  # of new weights, the order of rows, random changes of rows, and dropout

    # Optimization
    learning_rate: float = 5e-5  # the highest rate, reached after warmup
    weight_decay: float = 0.01  # of weight matrices; biases and norms are not decayed
    optimizer: Callable[..., Any] = adamw  # function f(model, config) that returns an optimizer
    warmup: float = 0.0  # optimizer steps (1 or more), or a fraction of all steps (below 1)
    schedule: str | Callable[..., Any] = "linear"
    """Learning-rate schedule: a name of transformers.get_scheduler, or a function
    f(step, total_steps, warmup_steps) that returns a factor, or one factor per parameter group."""
    schedule_options: dict[str, Any] = field(default_factory=dict)
    """Options of a named schedule: num_cycles 2."""
    max_grad_norm: float = 1.0  # gradients with a larger norm are scaled down to it. 0: no clipping

    # Devices and processes
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the forward pass. Default: as accelerate launch was configured, else fp32."""
    find_unused_parameters: bool = False  # of DDP, for models that do not use all parameters
    timeout: float = 600  # seconds that a process waits for the others before the run ends
    workers: int | Literal["auto"] = "auto"
    """Processes that load data. 0: the training process does. Default: some if rows are not
    deterministic (images) and a GPU trains, else 0."""

    # Evaluation and logging
    eval_every: int | Literal["epoch"] = "epoch"
    """Optimizer steps between evaluations on validation. There is also one after the last step."""
    eval_batch_size: int = 64  # rows per forward pass in evaluation (on a CPU, at most 4096 tokens)
    best_metric: str = "loss"  # score on validation that decides which checkpoint is the best
    best_direction: Literal["min", "max"] | None = None
    """Whether a smaller or a larger best_metric is better. Default: min for losses and errors."""
    patience: int | None = None
    """Evaluations without a better best_metric before training stops early. Default: never."""
    log_every: int = 10  # optimizer steps between log lines; only then does the loop wait for a GPU

    # Checkpoints
    save_every: int | None = None  # optimizer steps between checkpoints, besides one per evaluation
    keep_last: int = 1  # number of newest checkpoints to keep
    keep_best: int = 1  # number of best checkpoints to keep
    max_minutes: float | None = None  # save and stop before a time limit; the same command resumes
    resume: Literal["auto", "none"] = "auto"
    """auto: resume the unfinished run in run_dir. none: a run in run_dir is an error."""
    allow_changes: bool = False  # resume a run although its options or its rows have changed

    may_change: ClassVar[frozenset[str]] = frozenset(MAY_CHANGE.split())

    def setups(self) -> "list[Setup]":
        """Return what changes how training is computed. Parts and forks override this method."""
        return []

    def observers(self) -> "list[Observer]":
        """Return what is told how training proceeds. Parts and forks override this method."""
        return []

    @property
    def direction(self) -> Literal["min", "max"]:
        """Whether a smaller or a larger `best_metric` is better."""
        return self.best_direction or ("min" if self.best_metric in SMALLER_IS_BETTER else "max")


def validate(config: Config) -> None:
    """Raise UserError for values that cannot work, before anything is read, written or trained."""
    for names, (smallest, largest) in LIMITS.items():
        for name in names.split():
            value = getattr(config, name)
            if isinstance(value, int | float):  # not None, "auto" or "epoch"
                require(value >= smallest, name, f"must be at least {smallest}, but is {value}.")
                require(value <= largest, name, f"must be at most {largest}, but is {value}.")
    size, warmup = config.micro_batch_size, config.warmup
    message = f"must be a whole number of steps or a fraction below 1, but is {warmup}."
    require(warmup <= 1 or warmup == int(warmup), "warmup", message)
    require(bool(config.run_dir), "run_dir", "is missing: give the folder for the run.")
    is_valid = not isinstance(size, int) or size <= config.batch_size
    message = f"{size} is larger than batch_size {config.batch_size}, of which it is a part."
    require(is_valid, "micro_batch_size", message)
    message = "cannot be combined with micro_batch_size: both limit a forward pass."
    require(config.max_tokens is None or size is None, "max_tokens", message)
    validate_schedule(config.schedule, config.schedule_options)
    config.task.validate()


def validate_with_datasets(config: Config, datasets: Mapping[str, Any]) -> None:
    """Raise UserError for what does not fit the data, before training."""
    train, limit = datasets["train"], config.max_tokens
    lengths: Any = getattr(train, "lengths", None)
    message = "is needed for a stream, whose length is not known."
    require(len(train) < sys.maxsize or config.max_steps is not None, "max_steps", message)
    message = "counts evaluations on validation, but the data has no such split."
    require(config.patience is None or "validation" in datasets, "patience", message)
    has_lengths = lengths is not None or not config.group_by_length
    require(has_lengths, "group_by_length", "the training rows have no lengths.")
    if limit is not None:
        is_random = config.row_order is None
        is_grouped = is_random if config.group_by_length is None else config.group_by_length
        message = "needs rows that are grouped by length."
        require(is_grouped and lengths is not None, "max_tokens", message)
        message = f"is {limit}, but the longest training row has {max(lengths)} tokens."
        require(limit >= max(lengths), "max_tokens", message)
    names, best = config.task.score_names(), config.best_metric
    choices = ("loss", *(names or ()))
    message = f"{best!r} is not computed{did_you_mean(best, choices)}."
    message += f" The scores are {', '.join(choices)}."
    require(names is None or best in choices, "best_metric", message)


def require(condition: bool, field: str, message: str) -> None:
    """Raise UserError about a field unless a condition holds."""
    if not condition:
        raise UserError(message, field=field)


# The record of a run: config.json


def encode(value: Any) -> Any:
    """Turn a config into JSON values, for the record and for comparing two runs.

    Dataclasses become {"class": name, fields...}, functions {"function": name}, tuples lists. A
    dictionary with one of these keys becomes {"pairs": [[key, value], ...]}. Any other object
    becomes the name of its class. Raises UserError for a function without a name, such as a lambda.
    """
    if is_dataclass(value) and not isinstance(value, type):
        values = {item.name: encode(getattr(value, item.name)) for item in fields(value)}
        return {"class": qualified_name(type(value)), **values}
    if isinstance(value, functools.partial):
        values = {"arguments": encode(value.args), "options": encode(value.keywords)}
        return {"function": qualified_name(value.func), **values}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        pairs = {str(key): encode(item) for key, item in value.items()}
        is_ambiguous = not {"class", "function", "pairs"}.isdisjoint(pairs)
        return {"pairs": [list(pair) for pair in pairs.items()]} if is_ambiguous else pairs
    if value is None or isinstance(value, bool | int | float | str | Path):
        return str(value) if isinstance(value, Path) else value
    if isinstance(value, Task) or not callable(value):
        return {"class": qualified_name(type(value))}
    return {"function": qualified_name(value)}


def qualified_name(value: Any) -> str:
    """Return "module:name" of a function or class that another process can import."""
    module, path = value.__module__, getattr(value, "__qualname__", "<object>")
    if "<" in path or hasattr(value, "__self__"):  # a lambda, a local function, a bound method
        message = "has no name by which it can be recorded: define it at the top level of a module."
        raise UserError(f"{value!r} {message}")
    main = sys.modules["__main__"]
    if module == "__main__" and hasattr(main, "__file__"):  # other processes import it by this name
        module = main.__spec__.name if main.__spec__ else Path(str(main.__file__)).stem
    return f"{module}:{path}"


def record_text(config: Config) -> str:
    """Return the text of config.json: version, command, and the encoded config."""
    command = shlex.join(["python", *sys.argv])
    record = {"ftloop": __version__, "command": command, "config": encode(config)}
    return json.dumps(record, indent=1) + "\n"


def read_record(run_dir: Path) -> dict[str, Any]:
    """Read the config.json of a run: {"ftloop": version, "command": ..., "config": {...}}.

    Raises UserError if the folder holds no run, or a run of version 0.1.
    """
    file = run_dir / "config.json"
    if not file.is_file():
        neighbors = [item.parent.name for item in run_dir.parent.glob("*/config.json")]
        nearest = did_you_mean(run_dir.name, neighbors)
        raise UserError(f"{str(run_dir)!r} holds no run: it has no config.json{nearest}.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        version, _ = str(record["ftloop"]), record["config"]["class"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not the record of a run: {error!r}.") from error
    if version.startswith("0.1."):
        message = f"{str(run_dir)!r} was written by ftloop {version}, whose runs this version "
        raise UserError(f"{message}cannot read; its model/ still loads in transformers.")
    return record


def differences(old: Any, new: Any, may_change: frozenset[str], prefix: str = "") -> list[str]:
    """List the fields in which two encoded configs differ: "task.max_length: 64 -> 128"."""
    changes = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after or (not prefix and name in may_change):
            continue
        if isinstance(before, dict) and isinstance(after, dict) and "class" in before:
            changes += differences(before, after, may_change, f"{prefix}{name}.")
        else:
            changes.append(f"{prefix}{name}: {json.dumps(before)} -> {json.dumps(after)}")
    return changes
