"""Leaving in good order: signals, time limits, full disks, locks, gradients that are not finite, lost processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, quick, run_script

from ftloop import checkpoint
from ftloop.logs import terminal as tracking
from ftloop import run as run_module
from ftloop.errors import TrainingError, UserError


@pytest.fixture
def words(tiny, colours):
    return [
        *("configs/text.py", "--task.model", tiny("bert"), *colours, "--epochs", "3", "--save-every", "4"),
        *("--log-every", "2", "--task.metrics", "accuracy", "--keep", "last=3,best=1"),
    ]


def result_of(run: Path) -> tuple[bytes, list[dict], dict]:
    """The kept weights, the log without its clock, and the scores."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    log = [
        {name: value for name, value in line.items() if name not in ("time", "items_per_second", "speed")}
        for line in lines
    ]
    return (run / "model" / "model.safetensors").read_bytes(), log, json.loads((run / "scores.json").read_text())


def signal_at(monkeypatch, owner, name: str, count: int, number: signal.Signals) -> None:
    """Send this process a signal in the count-th call of a function."""
    original, calls = getattr(owner, name), []

    def signalled(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, signalled)


@pytest.mark.parametrize(
    ("owner", "name", "count", "number", "code", "step"),
    [
        (tracking.StepLog, "add", 3, signal.SIGTERM, 143, 3),
        (tracking.StepLog, "add", 6, signal.SIGINT, 130, 6),  # where an evaluation is due
        (tracking.StepLog, "add", 18, signal.SIGUSR1, 143, 18),  # the last step
        (run_module, "evaluate_split", 2, signal.SIGTERM, 143, 12),  # within an evaluation
        (run_module, "evaluate_split", 4, signal.SIGTERM, 143, 18),  # within that of test, after the last step
        (checkpoint, "_sync", 9, signal.SIGTERM, 143, None),  # while a checkpoint is written
    ],
)
def test_a_signal_ends_the_run_saved_and_it_goes_on_to_the_same_end(
    words, tmp_path, monkeypatch, owner, name, count, number, code, step
):
    before = signal.getsignal(number)
    assert run_script("train.py", *words, "--run-dir", tmp_path / "whole").code == 0
    with monkeypatch.context() as patched:
        signal_at(patched, owner, name, count, number)
        stopped = run_script("train.py", *words, "--run-dir", tmp_path / "cut")
    assert stopped.code == code, stopped.err
    assert f"{number.name}: stopped after step {step or ''}" in stopped.err
    assert "run the same command again: python" in stopped.err
    newest = checkpoint.find(tmp_path / "cut" / "checkpoints")[-1]
    assert step is None or checkpoint.step_of(newest) == step
    assert not (tmp_path / "cut" / "scores.json").exists()
    assert signal.getsignal(number) == before
    resumed = run_script("train.py", *words, "--run-dir", tmp_path / "cut")
    assert resumed.code == 0, resumed.err
    assert result_of(tmp_path / "cut") == result_of(tmp_path / "whole")


def test_a_time_limit_stops_likewise(words, tmp_path):
    stopped = run_script("train.py", *words, "--max-minutes", "0.0001")
    assert stopped.code == 143
    assert "--max-minutes: stopped after step 1, and saved" in stopped.err
    assert run_script("train.py", *words).code == 0  # the limit is free to change
    assert run_script("train.py", *words, "--run-dir", tmp_path / "whole").code == 0
    assert result_of(tmp_path / "run") == result_of(tmp_path / "whole")


def start(words: list[str], *launcher: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, *launcher, *quick(("train.py", *words))]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def has_logged(run: Path) -> bool:
    """Whether the training has come so far that it hears signals."""
    log = run / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_a_second_run_in_the_folder_is_refused_and_a_killed_one_leaves_no_lock(words, tmp_path):
    words = [*words, "--epochs", "300", "--workers", "2"]
    first = start(words)
    wait_for(lambda: has_logged(tmp_path / "run"))
    second = start(words)
    assert second.wait(60) == 2
    assert "another process is training in this folder" in second.stderr.read()
    first.kill()
    first.wait()
    third = start([*words, "--max-minutes", "0.0001"])  # at once, though the workers of the first may still be there
    assert third.wait(60) == 143, third.stderr.read()
    for process in (first, second, third):
        process.stderr.close()


def test_two_signals_leave_at_once(words, tmp_path):
    process = start([*words, "--epochs", "3000"])
    wait_for(lambda: has_logged(tmp_path / "run"))
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 143
    process.stderr.close()
    checkpoints = checkpoint.find(tmp_path / "run" / "checkpoints")
    assert all(checkpoint.damage(found) is None for found in checkpoints)


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(words, tmp_path):
    long = [*words, "--epochs", "300"]
    process = start(long, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    wait_for(lambda: has_logged(tmp_path / "run"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGUSR1)
    assert process.wait(60) != 0
    assert "stopped after step" in process.stderr.read()
    process.stderr.close()
    state = checkpoint.load_state(checkpoint.find(tmp_path / "run" / "checkpoints")[-1])
    assert state.step > 0


def test_a_full_disk_is_one_error_or_is_passed_over(words, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 1000})

    def usage(folder):
        return full

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "disk_usage", usage)
        stopped = run_script("train.py", *words)
        assert stopped.code == 1
        assert "cannot save the checkpoint" in stopped.err
        assert "0.0 MB are free" in stopped.err
        assert "step-000004: [Errno 28] No space left on device. It needs" in stopped.err
        assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert run_script("train.py", *words).code == 0
    calls = []

    def full_once(folder):
        calls.append(1)
        return full if len(calls) < 3 else os.statvfs and type("Usage", (), {"free": 1 << 40})

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "disk_usage", full_once)
        goes_on = run_script("train.py", *words, "--on-save-error", "continue", "--run-dir", tmp_path / "goes_on")
    assert goes_on.code == 0, goes_on.err
    assert "training goes on" in goes_on.err
    assert result_of(tmp_path / "goes_on") == result_of(tmp_path / "run")


def test_steps_without_finite_gradients_are_skipped_and_counted(words, tmp_path, monkeypatch):
    from ftloop.tasks.text import TextClassification

    original, calls = TextClassification.losses, []

    def losses(self, outputs, targets):
        calls.append(1)
        found = original(self, outputs, targets)
        return found * float("nan") if len(calls) == 5 else found

    with monkeypatch.context() as patched:
        patched.setattr(TextClassification, "losses", losses)
        stopped = run_script("train.py", *words)
        assert stopped.code == 1
        assert "step 5: the loss is nan" in stopped.err
        calls.clear()
        skipped = run_script("train.py", *words, "--on-nan", "skip", "--run-dir", tmp_path / "skips")
    assert skipped.code == 0, skipped.err
    assert "step 5 is skipped: its gradient norm is nan (1 step(s) skipped so far)" in skipped.err
    last = checkpoint.find(tmp_path / "skips" / "checkpoints")[-1]
    assert checkpoint.load_state(last).skipped_steps == 1
    assert json.loads((tmp_path / "skips" / "scores.json").read_text())["validation"]["loss"] < 2


def test_changes_are_refused_unless_they_are_allowed(words, tmp_path):
    assert run_script("train.py", *words, "--max-steps", "8").code == 0
    kept = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    other = [*words, "--run-dir", str(tmp_path / "other"), "--resume", str(kept), "--learning-rate", "1e-4"]
    refused = run_script("train.py", *other)
    assert refused.code == 2
    assert "--learning-rate 0.005 -> 0.0001" in refused.err
    allowed = run_script("train.py", *other, "--allow-changes")
    assert allowed.code == 0, allowed.err
    assert "with other options than before: --learning-rate 0.005 -> 0.0001" in allowed.err
    needs = run_script("train.py", *words, "--allow-changes", "--run-dir", str(tmp_path / "third"))
    assert needs.code == 2
    assert "--allow-changes needs --resume PATH" in needs.err


def test_a_lost_worker_and_a_lost_process_are_named(words, tmp_path):
    from ftloop.errors import what_was_lost

    assert "--workers 0" in what_was_lost(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert what_was_lost(RuntimeError("shapes do not fit")) is None
    process = start([*words, "--epochs", "300"], "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    wait_for(lambda: has_logged(tmp_path / "run"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(60) != 0
    assert time.monotonic() - began < 60
    process.stderr.close()


@pytest.mark.parametrize("name", ["weights.pt", "training.pt", "state.json", "manifest.json"])
def test_every_file_of_a_checkpoint_is_watched(tmp_path, name):
    import torch

    state = checkpoint.TrainState(step=3)
    tensors = {"weight": torch.arange(1000.0)}
    for kind in ("flipped", "cut", "missing"):
        saved = checkpoint.save(tmp_path / kind, state, tensors, {"optimizer": tensors}, {"threads": 1})
        assert checkpoint.damage(saved) is None
        content = (saved / name).read_bytes()
        if kind == "missing":
            (saved / name).unlink()
        elif kind == "cut":
            (saved / name).write_bytes(content[: len(content) // 2])
        else:
            middle = content.index(b'"') + 1 if name.endswith("json") else len(content) // 2
            (saved / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert checkpoint.damage(saved) is not None, kind
        assert checkpoint.newest_intact(tmp_path / kind) is None


def test_a_malicious_checkpoint_runs_no_code(tmp_path):
    import torch

    class Malicious:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    saved = checkpoint.save(tmp_path, checkpoint.TrainState(step=1), {}, {}, {})
    torch.save({"weight": Malicious()}, saved / "weights.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        checkpoint.load_weights(saved)
    assert not (tmp_path / "ran").exists()


def test_an_error_of_saving_names_what_it_needs(tmp_path):
    import torch

    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(TrainingError, match=r"cannot save the checkpoint .*It needs 0\.4 MB"):
        checkpoint.save(
            tmp_path / "checkpoints", checkpoint.TrainState(step=1), {"weight": torch.ones(100_000)}, {}, {}
        )


def test_a_run_killed_while_it_opened_its_folder_begins_there(words, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "config.json.tmp").write_text("{")
    assert run_script("train.py", *words, "--max-steps", "2").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_rows_are_prepared_ends_the_run_in_words(words, tmp_path, monkeypatch, number):
    from ftloop import TextClassification

    prepare = TextClassification.prepare
    before = signal.getsignal(number)

    def prepare_and_hear(task, rows):
        signal.raise_signal(number)
        return prepare(task, rows)

    with monkeypatch.context() as patched:
        patched.setattr(TextClassification, "prepare", prepare_and_hear)
        result = run_script("train.py", *words)
    assert result.code == 143
    assert f"{number.name}: stopped outside of training" in result.err
    assert "Traceback" not in result.err
    assert signal.getsignal(number) == before
    assert run_script("train.py", *words).code == 0
