"""The stress benchmark: a small one from end to end, and what it compares."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from conftest import run_command

from benchmarks.stress import digest_run, is_saving


def running_commands() -> list[str]:
    """Return the command lines of all processes of this machine."""
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(file.read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has just ended
            continue
    return commands


def test_killed_runs_end_like_the_reference_and_leave_nothing_behind(tmp_path):
    out = tmp_path / "out.json"
    cell = ["--modalities", "text", "--workers", "0", "--processes", "2", "--accumulation", "3"]
    size = ["--kills", "2", "--jobs", "1", "--launched", "0", "--epochs", "3", "--out", str(out)]
    # A short path, since it becomes part of the paths of sockets.
    with tempfile.TemporaryDirectory() as folder:
        command = ["python", "-m", "benchmarks.stress", *cell, *size]
        result = run_command(*command, TMPDIR=folder)
        left_behind = os.listdir(folder)
    assert result.code == 0, result.out + result.err
    results = json.loads(out.read_text())
    (counts,) = results["cells"]
    assert counts["kills"] == counts["two processes"] >= 2
    assert counts["equal"] == counts["trials"] >= 1
    assert results["failures"] == []
    assert sum(kill["hit"] == "kills" for kill in results["kills"]) == counts["kills"]
    assert "| text, workers 0, processes 2, accumulation 3 | " in result.out
    assert left_behind == []
    assert not [command for command in running_commands() if str(tmp_path) in command]


@pytest.fixture
def run(tmp_path):
    """The files of a finished run, with other content."""
    manifest = '{"state": {"step": 4, "log_bytes": 80}}'
    line = '{"step": 4, "value": 0.5, "time": 1.0, "items_per_second": 9}\n'
    files = {
        "checkpoints/step-000002/weights.pt": "older",
        "checkpoints/step-000004/weights.pt": "weights",
        "checkpoints/step-000004/training.pt": "training",
        "checkpoints/step-000004/manifest.json": manifest,
        "model/model.safetensors": "model",
        "metrics.jsonl": line,
        "scores.json": "{}",
        "ledger.jsonl": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


LINE = '{{"step": 4, "value": {}, "time": 2.0, "items_per_second": 3}}\n'
MANIFEST = '{{"state": {{"step": {}, "log_bytes": 81}}}}'


@pytest.mark.parametrize(
    ("name", "text", "differing"),
    [
        ("metrics.jsonl", LINE.format(0.5), []),
        ("metrics.jsonl", LINE.format(0.25), ["metrics.jsonl"]),
        ("checkpoints/step-000004/manifest.json", MANIFEST.format(4), []),
        ("checkpoints/step-000004/manifest.json", MANIFEST.format(5), ["manifest.json"]),
        ("checkpoints/step-000004/training.pt", "trainung", ["training.pt"]),
        ("checkpoints/step-000004/weights.pt", "weight", ["weights.pt"]),
        ("model/model.safetensors", "modem", ["model.safetensors"]),
        ("scores.json", "{ }", ["scores.json"]),
        ("model.tmp", "left over", ["file names"]),
    ],
)
def test_the_files_that_differ_are_named(run, name, text, differing):
    before = digest_run(run)
    (run / name).write_text(text)
    after = digest_run(run)
    assert [name for name in before if before[name] != after[name]] == differing


def test_a_checkpoint_that_is_written_is_told_from_one_that_is_deleted(run):
    assert not is_saving(run)
    (run / "checkpoints" / "step-000002").rename(run / "checkpoints" / "step-000002.tmp")
    assert not is_saving(run)
    (run / "checkpoints" / "step-000006.tmp").mkdir()
    assert is_saving(run)
