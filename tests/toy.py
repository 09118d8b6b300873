"""Tasks that need the core alone and train in a fraction of a second: plain modules in float64.

`train_toy` trains one in this process, `train_toys_in_ranks` several in a new group of processes.
"""

import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import ranks
from torch import nn

from ftloop import Config, Task, TrainingError, UserError
from ftloop.checkpoint import find_checkpoints
from ftloop.loader import make_batch
from ftloop.sampler import TrainSampler
from ftloop.state import fold_in, set_seed

OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 0.05,
    "seed": 7,
    "eval_batch_size": 4,
    "log_every": 1,
    "max_grad_norm": 0.5,
}


class Rows(torch.utils.data.Dataset):
    """Examples in memory. `noise` is drawn anew for the numbers of a row when it is read."""

    def __init__(self, examples: list[dict[str, Any]], noise: float = 0.0):
        self.examples, self.noise = examples, noise
        self.fingerprint = hashlib.sha256(repr(examples).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        example = dict(self.examples[row])
        if self.noise:
            numbers = torch.tensor(example["input"], dtype=torch.float64)
            example["input"] = (numbers + self.noise * torch.randn(len(numbers))).tolist()
        return example


@dataclass(frozen=True)
class Points(Task):
    """Four numbers belong to one of three classes."""

    sizes: Sequence[int] = (43, 11)  # rows of train, validation and test
    data_seed: int = 0
    noise: float = 0.0
    dropout: float = 0.0
    is_weighted: bool = False  # rows weigh 0.5 to 1.5, every fifth one weighs 0

    def load_datasets(self):
        draw, datasets = random.Random(self.data_seed), {}
        for split, size in zip(("train", "validation", "test"), self.sizes, strict=False):
            examples = [self.draw_example(draw, row) for row in range(size)]
            datasets[split] = Rows(examples, self.noise)
        return datasets

    def draw_example(self, draw, row):
        label = draw.randrange(3)
        example = {"input": [draw.gauss(label, 1) for _ in range(4)], "labels": label}
        if self.is_weighted:
            example["weights"] = 0.0 if row % 5 == 0 else draw.uniform(0.5, 1.5)
        return example

    def build_model(self):
        layers = nn.Linear(4, 16), nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(16, 3)
        return nn.Sequential(*layers).double()

    def collate(self, examples):
        batch = {name: torch.tensor([row[name] for row in examples]) for name in examples[0]}
        return {**batch, "input": batch["input"].double()}

    def losses(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def predict(self, outputs, batch):
        return {"predictions": outputs.argmax(dim=-1)}


class TokenModel(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(20, 8), nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, input):
        return self.head(self.dropout(self.embedding(input)))


@dataclass(frozen=True)
class Tokens(Points):
    """Each of 1 to 9 tokens belongs to one of three classes; a third of the tokens is ignored."""

    def draw_example(self, draw, row):
        tokens = [draw.randrange(1, 20) for _ in range(draw.randint(1, 9))]
        labels = [-100 if draw.random() < 1 / 3 else token % 3 for token in tokens]
        return {"input": tokens, "labels": labels}

    def build_model(self):
        return TokenModel(self.dropout).double()

    def collate(self, examples):
        width = max(len(example["input"]) for example in examples)
        labels = torch.tensor([pad(example["labels"], width, -100) for example in examples])
        tokens = torch.tensor([pad(example["input"], width, 0) for example in examples])
        return {"input": tokens, "labels": labels, "weights": labels != -100}

    def losses(self, outputs, batch):
        return nn.functional.cross_entropy(outputs.mT, batch["labels"], reduction="none")


def pad(values: list[int], width: int, padding: int) -> list[int]:
    return values + [padding] * (width - len(values))


def toy_config(task: Task, run_dir: Path | str, **options: Any) -> Config:
    return Config(task=task, run_dir=str(run_dir), **{**OPTIONS, **options})


def train_toy(task: Task, run_dir: Path | str, **options: Any) -> dict[str, dict[str, float]]:
    """Train in this process, which saves the seconds of starting a new one."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from ftloop import train

    for state in (AcceleratorState, GradientState, PartialState):  # they outlive an Accelerator
        state._reset_state()
    return train(toy_config(task, run_dir, **options))


def first_step_by_hand(task: Task, **options: Any) -> dict[str, float]:
    """Compute the loss and the gradient norm of the first step with a few lines of torch."""
    config = toy_config(task, "unused", **options)
    dataset = task.load_datasets()["train"]
    row_ids = TrainSampler(dataset, config).plan(0).row_ids
    batch = make_batch(dataset, [(0, row) for row in row_ids], task.collate, config.seed)
    set_seed(fold_in(config.seed, "init"))
    model = task.build_model()
    losses, weights = task.compute_losses(model, batch).losses, batch["weights"]
    loss = (losses * weights).nansum() / weights.double().sum()
    loss.backward()
    squares = [parameter.grad.square().sum() for parameter in model.parameters()]
    return {"loss": loss.item(), "grad_norm": sum(squares).sqrt().item()}


def read_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "items_per_second", "speed")
    return [{name: line[name] for name in line if name not in clock} for line in lines]


def read_steps(run: Path, name: str, split: str = "train") -> list[tuple[int, float]]:
    """Return the logged values of one name with their steps, in order."""
    return [
        (line["step"], line["value"])
        for line in read_lines(run)
        if (line["name"], line["split"]) == (name, split)
    ]


def read_values(run: Path, name: str, split: str = "train") -> list[float]:
    """Return the logged values of one name, in order."""
    return [value for _, value in read_steps(run, name, split)]


def digest(run: Path) -> dict[str, Any]:
    """Return all that a finished run leaves and that must be the same, to the bit.

    These are the files of the newest checkpoint, the exported model, the log and the scores.
    """
    newest = find_checkpoints(run / "checkpoints")[-1]
    files = [newest / "weights.pt", newest / "training.pt", run / "model" / "model.safetensors"]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    checkpoints = [path.name for path in find_checkpoints(run / "checkpoints")]
    scores = (run / "scores.json").read_text()
    return {**digests, "checkpoints": checkpoints, "scores": scores, "log": read_lines(run)}


# Other processes


def train_toys_in_ranks(processes: int, *runs: dict[str, Any], is_killed: bool = False) -> None:
    """Train runs one after the other in a new group of processes, perhaps of one process.

    A run is described by its options. Functions and classes are written "module:name", and the
    fields of the task are "task_options". An expected error (UserError, TrainingError) is written
    to RUN_DIR.error, by other ranks than 0 to RUN_DIR.error-of-rank-1 and so on. "kill_in":
    [name, count] kills the process, by SIGKILL, in that call of a function or method. With one
    process, the others runs follow; with several, it is the last.
    """
    result = ranks(processes, "tests/toy.py", json.dumps(runs), PYTHONPATH="tests")
    assert (result.code != 0) == is_killed, result.err
    assert "FutureWarning" not in result.err  # of DistributedDataParallel


def import_name(name: str) -> tuple[Any, str]:
    """Return the owner of a function or method "module:name", and its name there."""
    module, _, path = name.partition(":")
    *owners, attribute = path.split(".")
    owner = importlib.import_module(module)
    for name in owners:
        owner = getattr(owner, name)
    return owner, attribute


def kill_in_call(name: str, count: int) -> None:
    """Kill this process, as if by the system, in the count-th call of a function."""
    owner, attribute = import_name(name)
    function, calls = getattr(owner, attribute), itertools.count(1)

    def call_or_die(*arguments, **options):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, attribute, call_or_die)


def train_described_run(options: dict[str, Any]) -> None:
    from accelerate import PartialState

    from ftloop import train

    for name in {"task", "row_order", "schedule", "optimizer"} & set(options):
        if ":" in options[name]:
            options[name] = getattr(*import_name(options[name]))
    task = options.pop("task")(**options.pop("task_options", {}))
    try:
        train(toy_config(task, **options))
    except (UserError, TrainingError) as error:
        rank = PartialState().process_index
        name = ".error" if rank == 0 else f".error-of-rank-{rank}"
        Path(options["run_dir"] + name).write_text(f"{type(error).__name__}: {error}")


def main() -> None:
    # `ranks` starts this process from a server. Data workers are forked, as in python train.py.
    multiprocessing.set_start_method("fork", force=True)
    if os.environ["WORLD_SIZE"] == "1":  # one process is no group
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
    for options in json.loads(sys.argv[1]):
        call = options.pop("kill_in", None)
        if call is not None and "WORLD_SIZE" not in os.environ and os.fork() > 0:
            _, status = os.wait()
            assert os.WTERMSIG(status) == signal.SIGKILL, f"{call}: was not called so often"
            continue
        if call is not None:
            kill_in_call(*call)
        train_described_run(options)
        if call is not None:
            os._exit(1)


if __name__ == "__main__":
    main()
