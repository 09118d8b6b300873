"""Config, and how a file and the command line become one; the record of it in the run folder.

Precedence: default of the dataclass < config file < command line. A config file is a Python module with a variable
`config`; it may hold losses, heads, optimizers of its own. The record (config.json) is data: values, and functions and
classes by their qualified name, which are imported again to rebuild a run. No file of a run folder is ever executed.
"""

import dataclasses
import functools
import importlib
import json
import math
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ftloop import __version__, optim
from ftloop.tasks import metrics
from ftloop.errors import UserError, nearest
from ftloop.cli.options import Function, LogLevel, Pairs, function_option, import_name, least_said, name_of
from ftloop.tasks.classification import Task

Schedule = Annotated[str | Callable[..., Any], function_option("NAME|MODULE:NAME", names=True)]


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. A fork adds fields in a subclass; its optimizer can read them."""

    task: Task  # what is learned, and from which data
    run_dir: str  # the run's folder: record, metric log, checkpoints, model

    epochs: int = 3  # passes over the train split
    max_steps: int | None = None  # optimizer steps; given, it decides instead of epochs
    batch_size: int = 32  # rows per optimizer step, over all processes
    micro_batch_size: int | Literal["auto"] | None = None  # rows at once; else all (CPUs 4096 tokens); auto: what fits
    batching: Literal["random", "length", "tokens"] | None = None  # of like rows; left out: length, where they differ
    max_tokens: int | None = None  # per process and forward pass, padded to the longest row; for --batching tokens
    seed: int = 42  # of the order of rows, the new weights, dropout, random collators

    learning_rate: float = 5e-5  # after warmup
    weight_decay: float = 0.01  # of matrices; biases and norms have none
    optimizer: Function = optim.adamw  # f(model, config), see ftloop/optim.py
    warmup: float = 0.0  # optimizer steps (from 1) or share of all steps (below 1)
    schedule: Schedule = "linear"  # a name of transformers.get_scheduler, or f(step, total_steps, warmup_steps)
    schedule_options: Pairs = field(default_factory=dict)  # of a named schedule: num_cycles 2
    max_grad_norm: float = 1.0  # gradients of a greater norm are scaled down to it; 0: no clipping

    precision: Literal["fp32", "bf16", "fp16"] | None = None  # left out: as accelerate launch was told, else fp32
    matmul: Literal["auto", "default", "onednn", "tf32"] = "auto"  # of fp32: auto, the quickest true fp32; tf32: GPUs
    compile: bool = False  # torch.compile, for GPUs; texts are padded to few lengths then; on CPUs it is slower
    cheaper_dropout: bool = False  # on a CPU, 16 bits a draw, in all of this process: same distribution, other draws
    keep_memory: bool = True  # on a CPU, what a step frees, for the next one: quicker, but up to half more memory
    gradient_checkpointing: bool = False  # compute activations twice, not store them: a third slower, less memory
    workers: int | Literal["auto"] = "auto"  # processes that load and collate; 0: the training process does

    eval_every: int | Literal["epoch"] = "epoch"  # optimizer steps between evaluations on validation; always at the end
    eval_batch_size: int = 64  # rows per process and forward pass in evaluation (CPUs: 4096 tokens at most)
    best_metric: str = "loss"  # score on validation that decides which weights are kept: loss, or one of task.metrics
    best_direction: Literal["min", "max"] | None = None  # of best_metric; left out: as known for it
    patience: int | None = None  # evaluations without a better score before stopping early; left out: never
    log_every: int = 10  # optimizer steps between looks at the loss: only then is the device waited for
    profile: int = 0  # optimizer steps that torch's profiler records, into profile.json; the top ten are printed
    track: tuple[str, ...] = ()  # besides metrics.jsonl: tensorboard, wandb, trackio, mlflow, others of accelerate's
    log_level: LogLevel = "info"  # the least that is said; from info on, also a table of scores and a progress bar
    quiet: bool = False  # only warnings and errors: --log-level warning
    digest_every: int | None = None  # optimizer steps between digests of the weights in ledger.jsonl; each waits, too

    max_minutes: float | None = None  # stop, saved, before a time limit; the same command goes on
    on_nan: Literal["stop", "skip"] = "stop"  # at a loss or gradient that is not finite; skip waits for each step
    timeout: float = 600  # seconds a process waits for others, also while one prepares rows, before the run ends
    deterministic: bool = False  # only algorithms that give the same bits again, also on GPUs; slower there

    save_every: int | None = None  # optimizer steps between checkpoints, besides one at every evaluation
    on_save_error: Literal["stop", "continue"] = "stop"  # when a checkpoint cannot be written: disk full, read-only
    keep: str = "last=1,best=1"  # how many of the newest and of the best checkpoints stay
    report: bool = True  # at the end, write report.html into the run's folder
    report_every: int | None = None  # optimizer steps between live reports, written aside while training goes on
    push_to_hub: str | None = None  # a repository of the Hub, NAME or NAMESPACE/NAME, that gets model/ at the end
    push_private: Annotated[bool, tyro.conf.arg(aliases=["--private"])] = False  # seen by you alone, if it is made
    push_revision: Annotated[str | None, tyro.conf.arg(aliases=["--revision"])] = None  # a branch of it; left out: main
    push_every: Literal["end", "save"] = "end"  # save: the weights of each save too, while training goes on
    check: bool = False  # of train.py: look at the data, say all that is found, and stop before training
    resume: str = "auto"  # auto: go on with an unfinished run of this folder; none: never; or the path of a checkpoint
    allow_changes: bool = False  # with the path of a checkpoint in resume: go on with other options than it had

    @property
    def direction(self) -> Literal["min", "max"]:
        """Whether a smaller or a greater `best_metric` is better."""
        return self.best_direction or metrics.direction(self.best_metric) or "max"

    @property
    def least_said(self) -> str:
        """The level of the log, as logging names it in small letters."""
        return least_said(self.log_level, self.quiet)

    @property
    def kept(self) -> dict[str, int]:
        """How many checkpoints stay: {"last": 1, "best": 1}."""
        return parse_keep(self.keep)

    def at_once(self, processes: int) -> int:
        """What a process computes in one forward pass at most: rows, or with `batching` tokens, tokens."""
        whole = math.ceil(self.batch_size / processes)
        return self.max_tokens or (whole if self.micro_batch_size in (None, "auto") else self.micro_batch_size)

    def evaluates_after(self, step: int, ends_epoch: bool) -> bool:
        """Whether validation is scored after an optimizer step."""
        return ends_epoch if self.eval_every == "epoch" else step % self.eval_every == 0

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after an optimizer step, besides those at evaluations."""
        return self.save_every is not None and step % self.save_every == 0


# What may differ when a run goes on: these change its speed or what it leaves behind, not its result.
FREE_TO_CHANGE = (
    "run_dir",
    "check",
    "resume",
    "workers",
    "keep_memory",
    "log_every",
    "profile",
    "digest_every",
    "track",
    "log_level",
    "quiet",
    "keep",
    "max_minutes",
    "timeout",
    "on_save_error",
    "report",
    "report_every",
    "push_to_hub",
    "push_private",
    "push_revision",
    "push_every",
    "allow_changes",
)


def parse_keep(text: str) -> dict[str, int]:
    """ "last=2,best=1" -> {"last": 2, "best": 1}. At least one of each is kept: resuming needs it, and the result."""
    kept = {"last": 1, "best": 1}
    for part in text.split(","):
        name, _, count = part.strip().partition("=")
        if name not in kept or not count.isdecimal() or int(count) < 1:
            raise UserError(f"--keep {text!r}: write last=N,best=N with numbers from 1")
        kept[name] = int(count)
    return kept


def validate(config: Config) -> None:
    """Raise UserError for options that cannot work: before anything is read, written or trained."""
    positive = ("epochs", "max_steps", "batch_size", "micro_batch_size", "eval_batch_size", "patience", "log_every")
    for name in (*positive, "save_every", "digest_every", "report_every", "max_tokens"):
        value = getattr(config, name)
        if value not in (None, "auto") and value < 1:
            raise UserError(f"{option(name)} {value}: at least 1 is needed")
    for name in ("learning_rate", "weight_decay", "warmup", "max_grad_norm", "workers", "profile"):
        value = getattr(config, name)
        if value != "auto" and not (math.isfinite(value) and value >= 0):
            raise UserError(f"{option(name)} {value}: a finite number from 0 on is needed")
    if config.compile:
        config.task.in_few_shapes()  # which says what cannot be compiled
    if config.warmup >= 1 and config.warmup != int(config.warmup):
        raise UserError(f"--warmup {config.warmup}: whole steps, or a share below 1")
    for name in ("max_minutes", "timeout"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{option(name)} {value}: a number above 0 is needed")
    if config.allow_changes and config.resume in ("auto", "none"):
        raise UserError("--allow-changes needs --resume PATH: the checkpoint to go on from, with other options")
    for name in ("push_private", "push_revision", "push_every"):
        if config.push_to_hub is None and getattr(config, name) != getattr(type(config), name):
            raise UserError(f"{option(name)} {getattr(config, name)} has no effect without --push-to-hub REPOSITORY")
    if config.eval_every != "epoch" and config.eval_every < 1:
        raise UserError(f"--eval-every {config.eval_every}: steps from 1 on, or 'epoch'")
    if (config.batching == "tokens") != (config.max_tokens is not None):
        raise UserError("--batching tokens and --max-tokens N belong together: N tokens per process and forward pass")
    if config.max_tokens is not None and config.micro_batch_size is not None:
        raise UserError("--micro-batch-size and --max-tokens both say how much is computed at once: give one of them")
    if config.micro_batch_size not in (None, "auto") and config.micro_batch_size > config.batch_size:
        raise UserError(
            f"--micro-batch-size {config.micro_batch_size} is more than --batch-size {config.batch_size}: "
            "the batch of an optimizer step is divided into micro-batches, not the other way round"
        )
    least_said(config.log_level, config.quiet)
    if config.track:
        try:
            check_trackers = import_name("ftloop.logs.trackers:check")
        except UserError as error:  # its file was deleted, as those of the periphery may be
            raise UserError(f"--track {' '.join(config.track)}: {error}") from error
        check_trackers(config.track)
    if not config.run_dir:
        raise UserError("--run-dir is missing")
    parse_keep(config.keep)
    optim.check_schedule(config.schedule, config.schedule_options)
    config.task.check()


def validate_with_data(config: Config, splits: Mapping[str, Any]) -> None:
    """Raise UserError for what does not fit the data, or for a `best_metric` that the evaluation will not give."""
    from ftloop.sampler import UNBOUNDED  # imports torch, which --help does without

    if len(splits["train"]) == UNBOUNDED and config.max_steps is None:
        raise UserError("--task.data.streaming needs --max-steps: how many rows a stream has is not known")
    if config.patience is not None and "validation" not in splits:
        raise UserError("--patience counts evaluations on validation, and the data has no such split")
    grouped = config.batching in ("length", "tokens")
    if grouped and "length" not in getattr(splits["train"], "column_names", ()):
        raise UserError(f"--batching {config.batching}: the rows of this task do not differ in length, or are a stream")
    if config.max_tokens is not None:
        longest = max(splits["train"]["length"][:])
        if config.max_tokens < longest:
            raise UserError(f"--max-tokens {config.max_tokens}: the longest row of train has {longest} tokens")
    names = config.task.score_names()
    known = ("loss", *names)
    # What a metric of the Hub reports shows when it is computed: with one, any name may be right.
    if config.best_metric not in known and not any(name.startswith(metrics.HUB) for name in names):
        raise UserError(
            f"--best-metric {config.best_metric!r} is not computed{nearest(config.best_metric, known)}; "
            f"the scores are {', '.join(known)} (--task.metrics adds others)"
        )
    if config.best_direction is None and metrics.direction(config.best_metric) is None:
        raise UserError(f"--best-metric {config.best_metric!r}: say by --best-direction whether min or max is better")


def option(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


# ---- the record: config.json


RESERVED = {"class", "function", "pairs"}  # the keys that tell what a dictionary of the record stands for


def encode(value: Any) -> Any:
    """A config as JSON: dataclasses as {"class": ..., fields}, functions as {"function": ...}, tuples as lists.
    A dictionary with such a key (a column named "class") is {"pairs": [[key, value], ...]}, others are themselves."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {item.name: encode(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"class": name_of(type(value)), **values}
    if isinstance(value, functools.partial):
        return {"function": name_of(value.func), "arguments": encode(value.args), "options": encode(value.keywords)}
    if callable(value):
        return {"function": name_of(value)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        pairs = {str(key): encode(item) for key, item in value.items()}
        return {"pairs": [list(pair) for pair in pairs.items()]} if RESERVED & pairs.keys() else pairs
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"a config cannot hold {value!r} ({type(value).__name__}): the record keeps values and named functions"
    )


def decode(value: Any) -> Any:
    """What `encode` wrote. Lists become tuples: the fields of configs and tasks are immutable."""
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" in value:
        made = import_name(value["class"])
        values = {name: decode(item) for name, item in value.items() if name != "class"}
        unknown = values.keys() - {item.name for item in dataclasses.fields(made)}
        if unknown:
            raise UserError(f"the record has fields that {value['class']} lacks: {', '.join(sorted(unknown))}")
        return made(**values)
    if "function" in value:
        function = import_name(value["function"])
        if "arguments" in value:
            return functools.partial(function, *decode(value["arguments"]), **decode(value["options"]))
        return function
    if "pairs" in value:
        return {key: decode(item) for key, item in value["pairs"]}
    return {key: decode(item) for key, item in value.items()}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The options in which two encoded configs differ: "--task.max-length 64 -> 128"."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after or (not prefix and name in FREE_TO_CHANGE):
            continue
        if isinstance(before, dict) and isinstance(after, dict) and "class" in before:
            found += differences(before, after, f"{prefix}{name}.")
        else:
            found.append(f"{option(prefix + name)} {json.dumps(before)} -> {json.dumps(after)}")
    return found


def record_of(config: Config) -> str:
    """The text of config.json: the config, the folders from which its own modules were imported, and what was typed."""
    encoded, command = encode(config), shlex.join(["python", *sys.argv])
    record = {"ftloop": __version__, "command": command, "import_from": import_folders(encoded), "config": encoded}
    return json.dumps(record, indent=1) + "\n"


def modules_of(encoded: Any) -> set[str]:
    """The modules of the classes and functions that an encoded config names, those of ftloop aside."""
    if isinstance(encoded, list):
        return {module for item in encoded for module in modules_of(item)}
    if not isinstance(encoded, dict):
        return set()
    found = {module for item in encoded.values() for module in modules_of(item)}
    module = (encoded.get("class") or encoded.get("function") or "ftloop").partition(":")[0]
    return found if module.partition(".")[0] == "ftloop" else {*found, module}


def import_folders(encoded: Any) -> list[str]:
    """The folders that must be on sys.path for the names in an encoded config, those of ftloop aside."""
    folders = set()
    for module in modules_of(encoded):
        file = getattr(sys.modules.get(module) or sys.modules["__main__"], "__file__", None)
        if file is not None:
            place = Path(file).resolve()
            folders.add(str(place.parents[module.count(".") + (place.stem == "__init__")]))
    return sorted(folders)


def executes_file_of(folder: Path, module: str) -> bool:
    """Whether importing a module would execute a file in a folder: `runs.mrpc.task` would one of runs/mrpc."""
    places = None  # first sys.path, then the folders of each package
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places)  # finds, and imports nothing
        if spec is None:
            return False
        if spec.origin is not None and Path(spec.origin).resolve().is_relative_to(folder.resolve()):
            return True
        places = spec.submodule_search_locations
    return False


def read_encoded(run_dir: Path) -> tuple[list[str], dict[str, Any]]:
    """The folders to import from and the encoded config of a run. Raises UserError if the folder holds none."""
    file = run_dir / "config.json"
    if not file.is_file():
        near = [path.parent.name for path in run_dir.parent.glob("*/config.json")]
        raise UserError(f"{str(run_dir)!r} holds no run (no config.json){nearest(run_dir.name, near)}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return record["import_from"], record["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a record of a run: {error!r}") from error


def read_record(run_dir: Path) -> Config:
    """The config of a run. Raises UserError if the folder holds none or its code cannot be imported."""
    folders, encoded = read_encoded(run_dir)
    for folder in map(Path, folders):
        if not folder.resolve().is_relative_to(run_dir.resolve()):  # nothing is imported from a run folder
            add_to_path(folder)
    for module in modules_of(encoded):
        if executes_file_of(run_dir, module):
            raise UserError(f"{run_dir}: its record names {module}, a file of the run folder: none is executed")
    return dataclasses.replace(decode(encoded), run_dir=str(run_dir))


# ---- from the command line


def load_config_file(name: str) -> Config:
    """Import a config file as a module and return its `config`. Raises UserError."""
    file = Path(name)
    if not file.is_file():
        choices = sorted(str(path) for path in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(
            f"config file {name!r} does not exist{nearest(name, choices)}; found: {', '.join(choices) or 'none'}"
        )
    file = file.resolve()
    # As `configs.mrpc` where the folder above is on the path (the root of the project), else as `mrpc`.
    package = file.parent.name.isidentifier() and any(file.parent.parent == Path(entry).resolve() for entry in sys.path)
    module = f"{file.parent.name}.{file.stem}" if package else file.stem
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UserError(
            f"config file {name!r}: a Python identifier with the ending .py is needed, or no run is rebuilt from it"
        )
    add_to_path(file.parent.parent if package else file.parent)
    try:
        loaded = importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever a config file does wrong: its line says more than our traceback
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
        line = lines[-1] if lines else getattr(error, "lineno", None)  # none of its lines runs if its syntax is wrong
        raise UserError(f"config file {name!r}, line {line}: {type(error).__name__}: {error}") from error
    if Path(loaded.__file__ or "").resolve() != file:
        raise UserError(
            f"config file {name!r}: a module named {module} exists already ({loaded.__file__}): rename the file"
        )
    config = getattr(loaded, "config", None)
    if not isinstance(config, Config):
        raise UserError(f"config file {name!r} sets no variable `config` that is an ftloop.Config")
    return config


def add_to_path(folder: Path) -> None:
    """Make modules of a folder importable, also in worker processes, which inherit sys.path."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def from_command_line(words: list[str]) -> Config:
    """`configs/mrpc.py --learning-rate 3e-5` -> Config. Exits with 2 and tyro's explanation for an unknown option."""
    config = load_config_file(words[0])
    return tyro.cli(type(config), default=config, args=words[1:], prog=f"train.py {words[0]}")
