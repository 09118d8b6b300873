"""--micro-batch-size auto finds what fits into memory, and the result of a step stays the same."""

import gc
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import Result, ranks, run_script
from torch import nn

from ftloop.devices.micro_batch_size import (
    AutoMicroBatchSize,
    Trial,
    largest_that_fits,
    longest_rows,
)
from ftloop.errors import UserError
from ftloop.task import Losses, Task
from ftloop.tasks.text_classification import TextClassification

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB."


def with_room(model: nn.Module, tokens: int) -> nn.Module:
    """Let a model run out of memory in training on more tokens than these, padding included."""

    def check(model, args, kwargs):
        if model.training and kwargs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    model.register_forward_pre_hook(check, with_kwargs=True)
    return model


# The setup by itself


class Regression(Task):
    """A task that runs out of memory on more rows than `max_rows`, and has a state of its own."""

    def __init__(self, max_rows: int = 10**9, error: str = OUT_OF_MEMORY):
        self.max_rows, self.error = max_rows, error
        self.tried: list[list[int]] = []
        self.queue = [0]

    def collate(self, examples):
        rows = [row for row, _ in examples]
        self.tried.append(rows)
        values = torch.tensor([value for _, value in examples])
        return {"values": values[:, None], "labels": values}

    def compute_losses(self, model, batch):
        self.queue.append(1)
        outputs = model(batch["values"])
        if len(outputs) > self.max_rows:
            raise RuntimeError(self.error)
        return Losses(outputs.squeeze(1).square())

    def state_dict(self):
        return {"queue": self.queue}

    def load_state_dict(self, state):
        self.queue = state["queue"]


DATASET = [(row, float(row)) for row in range(20)]


@dataclass
class FakeSampler:
    micro_batch_size: int
    lengths: Any = None
    dataset: Any = field(default_factory=lambda: DATASET)
    seed: int = 0


LENGTHS = torch.arange(20).numpy() * 7 % 20  # row 17 is the longest, then row 14, ..


def choose(task: Regression, size: int = 8, lengths: Any = LENGTHS, model: Any = None) -> int:
    return AutoMicroBatchSize().choose_micro_batch_size(
        model=model or nn.Linear(1, 1),
        sampler=FakeSampler(size, lengths),
        task=task,
        accelerator=Accelerator(cpu=True),
    )


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 7, 8, 100])
def test_the_most_rows_that_fit_are_found_on_the_longest(max_rows):
    task = Regression(max_rows)
    assert choose(task) == min(max_rows, 8)
    assert task.tried[0] == longest_rows(LENGTHS, 20, 8)  # all of them first
    assert all(rows == task.tried[0][: len(rows)] for rows in task.tried)
    assert len(task.tried) <= 5


def test_the_longest_rows_come_first_and_without_lengths_the_first_rows():
    assert longest_rows([3, 9, 4, 9], 4, 3) == [3, 1, 2]
    assert longest_rows(None, 4, 3) == [0, 1, 2]
    assert longest_rows(None, 4, 9) == [0, 1, 2, 3]
    assert longest_rows([3, 9], 2, 9) == [1, 0]


def test_bisection():
    for largest in range(20):
        for maximum in range(max(1, largest), 20):
            assert largest_that_fits(lambda count, most=largest: count <= most, maximum) == largest


def test_the_whole_batch_fits_if_all_rows_of_a_small_dataset_do():
    assert choose(Regression(), size=64) == 64
    assert choose(Regression(), size=64, lengths=None) == 64
    assert choose(Regression(19), size=64) == 19


def test_a_row_that_does_not_fit_by_itself_is_an_error():
    message = "--micro-batch-size auto: not even the longest row fits into memory by itself"
    with pytest.raises(UserError, match=message):
        choose(Regression(0))


def test_another_error_passes_through():
    with pytest.raises(RuntimeError, match="shapes do not match"):
        choose(Regression(3, "shapes do not match"))


def test_a_batch_that_must_not_be_divided_is_refused():
    task = Regression()
    task.independent_rows = False
    message = "the losses of Regression depend on other rows of the batch, .* Leave the option out"
    with pytest.raises(UserError, match=message):
        choose(task)


def test_fsdp_is_refused():
    class Sharded:
        is_fsdp2 = True

    with pytest.raises(UserError, match="--micro-batch-size auto does not work with FSDP2"):
        AutoMicroBatchSize().choose_micro_batch_size(
            nn.Linear(1, 1), FakeSampler(8), Regression(), Sharded()
        )


def test_trying_changes_neither_the_model_nor_the_task():
    task, model = Regression(3), nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert choose(task, model=model) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert task.queue == [0]


def test_memory_of_a_failed_trial_is_released():
    """Otherwise the smaller micro-batch would not fit either."""
    trial = Trial(nn.Linear(1, 1), DATASET, Regression(3), Accelerator(cpu=True), seed=0)
    assert not trial.fits(range(8))
    graphs = [obj for obj in gc.get_objects() if type(obj) is torch.Tensor and obj.grad_fn]
    assert graphs == []


# Whole runs


def options(tiny, colours, *more: Any) -> list[Any]:
    """Options for six steps of 8 rows; an epoch has 43."""
    fixed = ["configs/text.py", "--model", tiny("bert"), *colours, "--dropout", "0"]
    steps = ["--no-group-by-length", "--max-steps", "6", "--log-every", "1"]
    return [*fixed, *steps, *more]


@pytest.fixture
def train(tiny, colours, tmp_path, monkeypatch):
    """`train(name, room, *options)`: a run whose model has room for so many tokens."""

    def run(name: str, room: int, *more: Any) -> Result:
        build_model = TextClassification.build_model
        with monkeypatch.context() as patched:
            patched.setattr(
                TextClassification, "build_model", lambda task: with_room(build_model(task), room)
            )
            folder = ["--run-dir", tmp_path / name]
            return run_script("train.py", *options(tiny, colours, *folder, *more))

    return run


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")]
    assert values
    return values


FITS = "--micro-batch-size auto: at most %d row(s) per forward pass fit into memory"


def test_a_divided_run_has_the_losses_of_an_undivided_one(train, tmp_path):
    assert train("undivided", 10**9).code == 0
    divided = train("divided", 50, "--micro-batch-size", "auto")
    assert divided.code == 0, divided.err
    # The longest rows have 14 tokens: three of them fit into 50, four do not.
    assert FITS % 3 in divided.err
    expected = pytest.approx(losses(tmp_path / "undivided"), rel=1e-5)
    assert losses(tmp_path / "divided") == expected


def test_all_rows_of_a_step_are_computed_together_where_they_fit(train):
    result = train("run", 10**9, "--micro-batch-size", "auto")
    assert FITS % 8 in result.err
    result = train("more", 10**9, "--micro-batch-size", "auto", "--batch-size", "64")
    assert FITS % 64 in result.err


def test_a_resumed_run_is_divided_as_before(train, tmp_path):
    """What fits is measured once; an interrupted run has the bits of an uninterrupted one."""
    more = ("--micro-batch-size", "auto", "--dropout", "0.1", "--save-every", "1")
    assert train("uninterrupted", 50, *more).code == 0
    for _ in range(3):  # after each step
        assert train("resumed", 50, *more, "--max-minutes", "0.00001").code == 143
    result = train("resumed", 10**9, *more)
    assert result.code == 0, result.err
    assert "fit into memory" not in result.err
    checkpoint = Path("checkpoints") / "step-000006" / "weights.pt"
    weights = [
        torch.load(tmp_path / run / checkpoint, weights_only=True)
        for run in ("uninterrupted", "resumed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_is_out_of_memory_resumes_with_a_smaller_size(train, tmp_path):
    """The error names the option, and the losses are the same in the end."""
    assert train("undivided", 10**9).code == 0
    result = train("run", 60)
    assert result.code == 1
    assert "error: out of memory: " in result.err
    assert "smaller --micro-batch-size" in result.err
    result = train("run", 60, "--micro-batch-size", "4")
    assert result.code == 0, result.err
    expected = pytest.approx(losses(tmp_path / "undivided"), rel=1e-5)
    assert losses(tmp_path / "run") == expected


def test_a_longest_row_that_does_not_fit_is_an_error_before_training(train):
    result = train("auto", 2, "--micro-batch-size", "auto")
    assert result.code == 2
    assert "--micro-batch-size auto: not even the longest row fits into memory" in result.err


CONFIG = """
from test_micro_batch_size import with_room
from ftloop.cli.job import Job
from ftloop.tasks.text_classification import TextClassification

class Small(TextClassification):
    def build_model(self):
        return with_room(super().build_model(), 50)

config = Job(task=Small(), run_dir="unused")
"""


def test_all_ranks_take_the_smallest_size_and_an_error_names_the_option(tiny, colours, tmp_path):
    config = tmp_path / "small.py"
    config.write_text(CONFIG)
    words = [*options(tiny, colours)[1:], "--timeout", "20", "--batch-size", "16"]
    path = f"tests:{tmp_path}"
    result = ranks(2, "train.py", str(config), *words, PYTHONPATH=path)
    assert result.code != 0
    assert "smaller --micro-batch-size" in result.err
    words += ["--micro-batch-size", "auto", "--run-dir", str(tmp_path / "auto")]
    result = ranks(2, "train.py", str(config), *words, PYTHONPATH=path)
    assert result.code == 0, result.err
    assert FITS % 3 in result.err
