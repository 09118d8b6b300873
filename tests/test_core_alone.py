"""The core works alone: ftloop/*.py without any folder, and a task that uses nothing else.

Every test here runs on a copy of ftloop/*.py in an empty directory, to which tests/alone/ adds

    points.py       a task of 60 lines: a torch Dataset, a plain module, a metric of its own
    driver.py       starts runs, as train.py does for the whole project
    randomness.py   checks that what is drawn for a row depends on nothing but its counters
"""

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from ftloop.sampler import shard, split_rows

OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 0.05,
    "warmup": 2,
    "seed": 7,
    "eval_batch_size": 6,
    "eval_every": 4,
    "save_every": 2,
    "keep_last": 2,
    "log_every": 1,
}
NUM_TRAIN, NUM_VALIDATION, STEPS = 43, 23, 9  # the last step of an epoch has 11 rows
DIVISIONS = {"one": 16, "four": 4, "ragged": 5}  # rows per micro-batch
WITHOUT_DROPOUT = {"task": {"dropout": 0.0}}


class Alone:
    """The directory with the core, the task and the driver."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "ftloop").mkdir(parents=True)
        for file in (ROOT / "ftloop").glob("*.py"):
            shutil.copy(file, folder / "ftloop")
        for file in (ROOT / "tests" / "alone").glob("*.py"):
            shutil.copy(file, folder)
        self.write_data(seed=0)

    def write_data(self, seed: int) -> None:
        """Write points of three classes. Every fifth row has weight 0, the others 0.5 to 1.5."""
        generator = torch.Generator().manual_seed(seed)
        splits = {}
        for split, rows in {"train": NUM_TRAIN, "validation": NUM_VALIDATION}.items():
            labels = torch.arange(rows) % 3
            points = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
            points[:, 0] += labels
            weights = torch.rand(rows, generator=generator) + 0.5
            weights[::5] = 0
            splits[split] = (points, labels, weights)
        torch.save(splits, self.folder / "points.pt")

    def train(
        self, *runs: dict[str, Any], processes: int = 1, script: str = "driver.py"
    ) -> "subprocess.CompletedProcess[str]":
        """Train runs, described by their options, in one new process or under torchrun."""
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc_per_node", str(processes)]
        command += [script, json.dumps([OPTIONS | run for run in runs])]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def log(self, run: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl without what depends on the clock."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        timing = ("time", "items_per_second", "speed")
        return [
            {name: value for name, value in json.loads(line).items() if name not in timing}
            for line in lines
        ]

    def values(self, run: str, name: str, split: str = "train") -> list[float]:
        """Return the logged values of one name, in order."""
        lines = self.log(run)
        return [line["value"] for line in lines if (line["name"], line["split"]) == (name, split)]

    def scores(self, run: str) -> dict[str, Any]:
        return json.loads((self.folder / run / "scores.json").read_text())

    def digest(self, run: str) -> str:
        """Return the sha256 of what a run leaves: exported and last weights, scores and log."""
        digest = hashlib.sha256((self.folder / run / "model" / "model.safetensors").read_bytes())
        (newest,) = sorted((self.folder / run / "checkpoints").iterdir())[-1:]
        assert newest.name == f"step-{STEPS:06d}"
        for file in ("weights.pt", "training.pt"):
            for name, value in flatten(torch.load(newest / file, weights_only=True)):
                content = value.numpy().tobytes() if torch.is_tensor(value) else repr(value)
                digest.update(repr((name, content)).encode())
        digest.update(json.dumps([self.log(run), self.scores(run)]).encode())
        return digest.hexdigest()


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and leaves of nested dictionaries and lists."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from flatten(item, f"{name}.{key}")
    else:
        yield name, value


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Runs in one process: one without interruption, one with data workers, three divisions."""
    alone = Alone(tmp_path_factory.mktemp("alone") / "project")
    divided = [
        {"run_dir": name, "micro_batch_size": size, **WITHOUT_DROPOUT}
        for name, size in DIVISIONS.items()
    ]
    interrupted = {"run_dir": "straight", "micro_batch_size": 4}
    workers = {"run_dir": "workers", "micro_batch_size": 4, "workers": 2}
    result = alone.train(interrupted, workers, *divided)
    assert result.returncode == 0, result.stderr
    return alone


@pytest.fixture(scope="module")
def killed(alone: Alone) -> str:
    """A run that was killed in the second micro-batch of its eighth step."""
    # Steps of an epoch have 4, 4 and 3 micro-batches: 22 in two epochs, then 4 of the seventh step.
    run = {"run_dir": "killed", "micro_batch_size": 4, "kill_in": 22 + 4 + 2}
    result = alone.train(run)
    assert result.returncode == -signal.SIGKILL, result.stderr
    checkpoints = sorted(path.name for path in (alone.folder / "killed/checkpoints").iterdir())
    assert checkpoints[-1] == "step-000006"
    return "killed"


@pytest.fixture(scope="module")
def two_ranks(alone: Alone) -> str:
    """A run in two processes, whose last micro-batch of an epoch needs a padding row."""
    result = alone.train(
        {"run_dir": "two_ranks", "micro_batch_size": 2, **WITHOUT_DROPOUT}, processes=2
    )
    assert result.returncode == 0, result.stderr
    return "two_ranks"


def test_the_core_imports_no_part():
    """Neither by a statement, nor by a name in a string, nor by a function that imports."""
    files = sorted((ROOT / "ftloop").glob("*.py"))
    core = {"ftloop"} | {f"ftloop.{file.stem}" for file in files}
    parts = {path.name for path in (ROOT / "ftloop").iterdir() if path.is_dir()}
    importing = {"import_module", "__import__", "exec", "run_path", "run_module"}
    for file in files:
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                names.add(node.module or "")
                if node.module == "ftloop":
                    imported = {alias.name for alias in node.names}
                    assert not imported & parts, f"{file}: imports {imported & parts}"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.split(".")
                if words[0] == "ftloop" and len(words) > 1 and all(map(str.isidentifier, words)):
                    names.add(node.value)
            elif isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                assert name not in importing, f"{file}:{node.lineno}: {name}"
        of_ftloop = {name for name in names if name.partition(".")[0] == "ftloop"}
        assert of_ftloop <= core, f"{file}: imports {of_ftloop - core}"


def test_it_trains(alone):
    losses = alone.values("straight", "loss")
    assert len(losses) == STEPS
    assert sum(losses[-3:]) < sum(losses[:3])
    assert set(alone.scores("straight")) == {"validation"}


def test_a_killed_run_resumes_to_the_same_bits(alone, killed):
    shutil.copytree(alone.folder / killed, alone.folder / "resumed")
    result = alone.train({"run_dir": "resumed", "micro_batch_size": 4})
    assert result.returncode == 0, result.stderr
    assert "resuming from resumed/checkpoints/step-000006" in result.stderr
    assert alone.digest("resumed") == alone.digest("straight")


def test_a_damaged_newest_checkpoint_is_passed_over(alone, killed):
    shutil.copytree(alone.folder / killed, alone.folder / "damaged")
    checkpoints = alone.folder / "damaged" / "checkpoints"
    newest = checkpoints / "step-000006"
    weights = bytearray((newest / "weights.pt").read_bytes())
    weights[len(weights) // 2] ^= 1
    (newest / "weights.pt").write_bytes(weights)
    # An unfinished checkpoint, as a process that was killed while it saved leaves it.
    shutil.copytree(newest, checkpoints / "step-000008.tmp")
    result = alone.train({"run_dir": "damaged", "micro_batch_size": 4})
    assert result.returncode == 0, result.stderr
    assert "step-000006 is damaged" in result.stderr
    assert alone.digest("damaged") == alone.digest("straight")


def test_a_run_does_not_resume_on_changed_data(alone, killed):
    shutil.copytree(alone.folder / killed, alone.folder / "changed")
    try:
        alone.write_data(seed=1)
        result = alone.train({"run_dir": "changed", "micro_batch_size": 4})
    finally:
        alone.write_data(seed=0)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "UserError: the rows of train and validation are not those" in result.stderr
    assert len(alone.log("changed")) == len(alone.log(killed))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("division", ["four", "ragged", "two_ranks"])
def test_the_division_does_not_change_the_gradient(alone, two_ranks, division, name):
    expected = alone.values("one", name)
    assert len(expected) == STEPS
    assert alone.values(division, name) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("run", [*DIVISIONS, "two_ranks"])
def test_every_row_is_evaluated_once(alone, two_ranks, run):
    """Also rows of weight 0, and for batches and ranks that do not divide the rows."""
    steps = [4, 8, STEPS]
    for name in ("rows", "distinct"):
        assert alone.values(run, name, "validation") == [NUM_VALIDATION] * len(steps)
    for name in ("loss", "accuracy"):
        expected = alone.values("one", name, "validation")
        assert alone.values(run, name, "validation") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("run", [*DIVISIONS, "two_ranks"])
def test_the_schedule_counts_optimizer_steps(alone, two_ranks, run):
    warmup = [0.0, 0.025]
    decay = [0.05 * (STEPS - step) / (STEPS - 2) for step in range(2, STEPS)]
    assert alone.values(run, "learning_rate") == pytest.approx(warmup + decay)


def test_data_workers_change_nothing(alone):
    assert alone.digest("workers") == alone.digest("straight")


def test_randomness_is_a_function_of_seed_epoch_and_row(alone):
    result = alone.train(script="randomness.py")
    assert result.returncode == 0, result.stderr


def test_the_last_micro_batch_of_two_ranks_needs_a_padding_row():
    """As the fixture `two_ranks` says: 11 rows in pieces of 2 x 2 leave 3 for two ranks."""
    pieces = split_rows(list(range(NUM_TRAIN % 16)), size=2, num_processes=2)
    assert shard(pieces[-1], 2) == [[8, 10], [9, ~10]]
