"""How a training is started besides `python train.py`, and that its loop does not wait between log points."""

import json
from pathlib import Path

import pytest
import torch
from conftest import run_command, run_script, torchrun


@pytest.fixture
def words(tiny, colours):
    return ["configs/text.py", "--task.model", tiny("bert"), *colours, "--task.dropout", "0", "--max-steps", "6"]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["name"] == "loss"]


NOTEBOOK = """
import sys
from accelerate import notebook_launcher
from ftloop import train
from ftloop.cli.config_file import from_command_line

if __name__ == "__main__":
    notebook_launcher(train, (from_command_line(sys.argv[1:]),), num_processes=2)
"""


def test_a_notebook_starts_two_processes_as_in_the_course(words, tmp_path):
    (tmp_path / "cell.py").write_text(NOTEBOOK)
    result = run_command("python", str(tmp_path / "cell.py"), *words, PYTHONPATH=".")
    assert result.code == 0, result.err
    assert "2 process(es)" in result.err
    assert run_script("train.py", *words, "--run-dir", tmp_path / "one").code == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_accelerate_launch_in_shards_without_gpus_is_an_error_in_words(words):
    result = run_command(
        *("python", "-m", "accelerate.commands.launch", "--config_file", "configs/fsdp2.yaml"),
        *("--num_processes", "2", "train.py"),
        *words,
    )
    assert result.code != 0
    assert "error: accelerate launch --use_fsdp: shards need GPUs, and accelerate sees cpu" in result.err


def test_between_log_points_nobody_waits_for_the_device(words, tmp_path, monkeypatch):
    """On a GPU, each of these would wait until all that was started is done."""
    from ftloop.logs import terminal as tracking

    waits, within = [], [False]
    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "numpy", "cpu"):
        original = getattr(torch.Tensor, name)

        def counted(tensor, *arguments, original=original, name=name):
            if within[0] and tensor.is_floating_point():
                waits.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    add, flush = tracking.StepLog.add, tracking.StepLog.flush

    def added(self, step):
        within[0] = True
        add(self, step)

    def flushed(self):
        within[0] = False  # until the next step ends
        flush(self)

    monkeypatch.setattr(tracking.StepLog, "add", added)
    monkeypatch.setattr(tracking.StepLog, "flush", flushed)
    result = run_script("train.py", *words, "--log-every", "100", "--task.data.validation", "0")
    assert result.code == 0, result.err
    assert waits == []


def test_torchrun_without_a_gpu_is_one_run_of_two_processes(words, tmp_path):
    result = torchrun(2, "train.py", *words)
    assert result.code == 0, result.err
    assert "2 process(es) x 1 micro-batch(es)" in result.err
    assert len(losses(tmp_path / "run")) == len({*losses(tmp_path / "run")})
