"""Ways to start training other than `python train.py`; and no waiting between log steps."""

from pathlib import Path

import pytest
import torch
from conftest import run_command, run_script, torchrun
from toy import read_values

from ftloop.checkpoint import load_environment, newest_intact
from ftloop.loader import Collate
from ftloop.metric_log import MetricLog

STEPS = 6  # an epoch


@pytest.fixture
def options(tiny, colours):
    model = ["--model", tiny("bert"), "--dropout", "0"]
    return ["configs/text.py", *model, *colours, "--max-steps", str(STEPS)]


def num_processes(run: Path) -> int:
    return load_environment(newest_intact(run / "checkpoints"))["num_processes"]


NOTEBOOK = """
import sys
from accelerate import notebook_launcher
from ftloop import train
from ftloop.cli.config_file import from_command_line

if __name__ == "__main__":
    notebook_launcher(train, (from_command_line(sys.argv[1:]),), num_processes=2)
"""


def test_a_notebook_starts_two_processes(options, tmp_path):
    """With the lines of the Hugging Face course."""
    (tmp_path / "cell.py").write_text(NOTEBOOK)
    options = [*options, "--no-report"]
    result = run_command("python", str(tmp_path / "cell.py"), *options, PYTHONPATH=".")
    assert result.code == 0, result.err
    assert num_processes(tmp_path / "run") == 2
    assert run_script("train.py", *options, "--run-dir", tmp_path / "one").code == 0
    assert num_processes(tmp_path / "one") == 1
    losses = read_values(tmp_path / "run", "loss")
    assert len(losses) == STEPS
    assert losses == pytest.approx(read_values(tmp_path / "one", "loss"), rel=1e-5)


def test_torchrun_without_a_gpu_starts_one_run_of_two_processes(options, tmp_path):
    result = torchrun(2, "train.py", *options)
    assert result.code == 0, result.err
    assert num_processes(tmp_path / "run") == 2
    losses = read_values(tmp_path / "run", "loss")
    assert len(losses) == len(set(losses)) == STEPS


def test_fsdp_without_gpus_is_an_error(options):
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/fsdp2.yaml"]
    result = run_command("python", *launch, "--num_processes", "2", "train.py", *options)
    assert result.code != 0
    assert "error: accelerate launch --use_fsdp needs GPUs, but the device is 'cpu'" in result.err


def test_the_loop_does_not_wait_for_the_device_between_log_steps(options, monkeypatch):
    """On a GPU, each of these methods would wait until all work that was started is done."""
    waits, num_steps, is_watched = [], [], [False]
    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "numpy", "cpu"):
        method = getattr(torch.Tensor, name)

        def record(tensor, *arguments, method=method, name=name):
            if is_watched[0] and tensor.is_floating_point():
                waits.append(name)
            return method(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, record)

    add_step, flush, collate = MetricLog.add_step, MetricLog.flush, Collate.__call__

    def watch_after_step(log, *values):
        num_steps.append(values[0])
        is_watched[0] = True
        add_step(log, *values)

    def ignore_until_next_step(log):
        is_watched[0] = False
        return flush(log)

    def ignore_collate(self, keys_and_examples):
        """A batch is made on the CPU before it is copied to the device."""
        was_watched, is_watched[0] = is_watched[0], False
        batch = collate(self, keys_and_examples)
        is_watched[0] = was_watched
        return batch

    monkeypatch.setattr(MetricLog, "add_step", watch_after_step)
    monkeypatch.setattr(MetricLog, "flush", ignore_until_next_step)
    monkeypatch.setattr(Collate, "__call__", ignore_collate)
    result = run_script("train.py", *options, "--log-every", "100", "--data.validation", "0")
    assert result.code == 0, result.err
    assert num_steps == list(range(1, STEPS + 1))
    assert waits == []
