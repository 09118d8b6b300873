"""What does not fit into memory is divided: the batch of a step stays, and its result."""

import gc
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import Result, ranks, run_script

from ftloop import TextClassification, loop
from ftloop.devices.memory import Memory


def with_room(model: torch.nn.Module, room: int) -> torch.nn.Module:
    """A model on a device that has room for so many tokens at once in training, padding included."""

    def check(model, inputs, options):
        if model.training and options["input_ids"].numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    model.register_forward_pre_hook(check, with_kwargs=True)
    return model


def words_of(tiny, colours, *more: str) -> list[str]:
    """Options for six steps of 8 rows in an epoch of 43."""
    words = ["configs/text.py", "--task.model", tiny("bert"), *colours, "--task.dropout", "0", "--batching", "random"]
    return [*words, "--max-steps", "6", "--log-every", "1", *more]


@pytest.fixture
def train(tiny, colours, tmp_path, monkeypatch):
    """`train(name, room, *words)`: a run of a model that finds so much room."""

    def run(name: str, room: int, *words: str) -> Result:
        build = TextClassification.build_model
        with monkeypatch.context() as patched:
            patched.setattr(TextClassification, "build_model", lambda task: with_room(build(task), room))
            return run_script("train.py", *words_of(tiny, colours), "--run-dir", tmp_path / name, *words)

    return run


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["split"] == "train" and line["name"] == "loss"]


def test_the_largest_micro_batch_that_fits_is_found_on_the_longest_rows(train, tmp_path):
    assert train("whole", 10**9).code == 0
    found = train("found", 50, "--micro-batch-size", "auto")
    assert found.code == 0, found.err
    # The longest rows have 14 tokens: three of them fit into 50, four do not.
    assert "memory: 3 row(s) at once fit, by trying the longest" in found.err
    assert "1 process(es) x 3 micro-batch(es) of at most 3" in found.err
    assert losses(tmp_path / "found") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert "--micro-batch-size auto" not in found.err


def test_all_rows_of_a_step_at_once_where_they_fit(train):
    found = train("found", 10**9, "--micro-batch-size", "auto")
    assert "1 process(es) x 1 micro-batch(es) of at most 8" in found.err


def test_fewer_rows_than_a_batch_without_lengths_are_all_tried(train):
    found = train("found", 10**9, "--micro-batch-size", "auto", "--batch-size", "64", "--task.pad-to", "max")
    assert found.code == 0, found.err
    assert "1 process(es) x 1 micro-batch(es) of at most 64" in found.err


def test_a_branch_remembers_what_fitted_once_its_options_are_its_own(train, tmp_path):
    """--allow-changes stands in the command that goes on with it, too."""
    whole = tmp_path / "whole"
    assert train("whole", 10**9, "--save-every", "1", "--keep", "last=9").code == 0
    changes = ("--resume", str(whole / "checkpoints" / "step-000001"), "--allow-changes", "--learning-rate", "1e-3")
    assert train("branch", 60, *changes, "--max-minutes", "0.00001").code == 143
    assert "ran out of memory" not in train("branch", 60, *changes).err


@pytest.mark.parametrize("at_once", [(), ("--micro-batch-size", "5"), ("--workers", "2")])
def test_a_step_that_runs_out_of_memory_is_divided_and_done_again(train, tmp_path, at_once):
    assert train("whole", 10**9, *at_once).code == 0
    divided = train("divided", 60, *at_once)
    assert divided.code == 0, divided.err
    said = re.findall(
        r"warning: step (\d) ran out of memory with (\d) row\(s\) at once, and is done again with (\d)", divided.err
    )
    assert said, divided.err
    assert int(said[0][1]) // 2 == int(said[0][2])
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert len(losses(tmp_path / "divided")) == 6


def test_half_of_what_was_computed_is_tried_next(train, tmp_path, monkeypatch):
    """Not half of what was asked for, where the tokens of a forward pass are bounded already."""
    assert train("whole", 10**9, "--batching", "length").code == 0
    monkeypatch.setattr(loop, "TOKENS_ON_CPU", 60)  # four of the longest rows, which have 14
    divided = train("divided", 40, "--batching", "length")
    assert divided.code == 0, divided.err
    assert "step 1 ran out of memory with 4 row(s) at once, and is done again with 2 at most" in divided.err
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_what_did_not_fit_is_let_go_of(train, monkeypatch):
    """Or the smaller micro-batch would not fit either."""
    held, release = [], Memory.release

    def released(memory):
        release(memory)
        # Tensors alone, not what is derived from them: the compiler of a test before this one keeps its FakeTensors.
        held.append([found for found in gc.get_objects() if type(found) is torch.Tensor and found.grad_fn])

    monkeypatch.setattr(Memory, "release", released)
    assert train("divided", 60).code == 0
    assert held
    assert not any(held)


def test_a_run_that_goes_on_divides_as_it_did(train, tmp_path):
    """Killed after it had divided, a run does not try the whole again: it ends with the same bits, dropout too."""
    words = ("--task.dropout", "0.1", "--save-every", "1")
    assert train("whole", 60, *words).code == 0
    for _ in range(3):  # after each step
        assert train("cut", 60, *words, "--max-minutes", "0.00001").code == 143
    assert "ran out of memory" not in train("cut", 60, *words).err
    whole, cut = (
        torch.load(tmp_path / run / "checkpoints" / "step-000006" / "weights.pt", weights_only=True)
        for run in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_one_row_that_does_not_fit_is_an_error_in_words(train):
    result = train("none", 2)
    assert result.code == 1
    assert "error: out of memory with 1 row(s) at once, and less cannot be: a shorter --task.max-length" in result.err
    result = train("auto", 2, "--micro-batch-size", "auto")
    assert result.code == 2
    assert "--micro-batch-size auto: not even the longest row alone fits into memory" in result.err


CONFIG = """
from test_memory import with_room
from ftloop import Config, TextClassification

class Small(TextClassification):
    def build_model(self):
        return with_room(super().build_model(), 50)

config = Config(task=Small(), run_dir="unused")
"""


def test_of_several_processes_the_error_names_the_option(tiny, colours, tmp_path):
    config = tmp_path / "small.py"
    config.write_text(CONFIG)
    words = [*words_of(tiny, colours)[1:], "--timeout", "20"]
    path = f"tests:{tmp_path}"
    result = ranks(2, "train.py", str(config), *words, "--batch-size", "16", PYTHONPATH=path)
    assert result.code != 0
    assert "out of memory with 8 row(s) at once in a process: give a smaller --micro-batch-size" in result.err
    words += ["--micro-batch-size", "auto", "--batch-size", "16", "--run-dir", str(tmp_path / "auto")]
    auto = ranks(2, "train.py", str(config), *words, PYTHONPATH=path)
    assert auto.code == 0, auto.err
    assert "2 process(es) x 3 micro-batch(es) of at most 3" in auto.err
