"""The stress harness: a small one end to end, and what it compares."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from conftest import run_command

from benchmarks.stress import digest, half_saved


def commands() -> list[str]:
    """The command lines of all processes that run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has just ended
            continue
    return found


def test_killed_runs_end_as_the_undisturbed_one_and_nothing_stays_behind(tmp_path):
    out = tmp_path / "out.json"
    cell = ["--modalities", "text", "--workers", "0", "--processes", "2", "--accumulation", "3"]
    size = ["--kills", "2", "--jobs", "1", "--typed", "0", "--epochs", "3", "--out", str(out)]
    with tempfile.TemporaryDirectory() as folder:  # a short path: it becomes a part of those of sockets
        result = run_command("python", "-m", "benchmarks.stress", *cell, *size, TMPDIR=folder)
        left = os.listdir(folder)
    assert result.code == 0, result.out + result.err
    found = json.loads(out.read_text())
    (row,) = found["cells"]
    assert row["kills"] == row["two processes"] >= 2
    assert row["equal"] == row["trials"] >= 1
    assert found["failures"] == []
    assert sum(kill["hit"] == "kills" for kill in found["every kill"]) == row["kills"]
    assert "| text, workers 0, processes 2, accumulation 3 | " in result.out
    assert left == []
    assert not [command for command in commands() if str(tmp_path) in command]


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves, in bytes that mean nothing."""
    files = {
        "checkpoints/step-000002/weights.pt": "older",
        "checkpoints/step-000004/weights.pt": "weights",
        "checkpoints/step-000004/training.pt": "training",
        "model/model.safetensors": "model",
        "metrics.jsonl": '{"step": 4, "value": 0.5, "time": 1.0, "items_per_second": 9}\n',
        "scores.json": "{}",
        "ledger.jsonl": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "differing"),
    [
        ("metrics.jsonl", '{"step": 4, "value": 0.5, "time": 2.0, "items_per_second": 3}\n', []),
        ("metrics.jsonl", '{"step": 4, "value": 0.25, "time": 1.0, "items_per_second": 9}\n', ["metrics.jsonl"]),
        ("checkpoints/step-000004/training.pt", "trainung", ["training.pt"]),
        ("checkpoints/step-000004/weights.pt", "weight", ["weights.pt"]),
        ("model/model.safetensors", "modem", ["model.safetensors"]),
        ("scores.json", "{ }", ["scores.json"]),
        ("model.tmp", "left over", ["names of files"]),
    ],
)
def test_what_differs_is_named(run, name, text, differing):
    before = digest(run)
    (run / name).write_text(text)
    after = digest(run)
    assert [name for name in before if before[name] != after[name]] == differing


def test_a_checkpoint_that_is_written_is_told_from_one_that_is_deleted(run):
    assert not half_saved(run)
    (run / "checkpoints" / "step-000002").rename(run / "checkpoints" / "step-000002.tmp")
    assert not half_saved(run)
    (run / "checkpoints" / "step-000006.tmp").mkdir()
    assert half_saved(run)
