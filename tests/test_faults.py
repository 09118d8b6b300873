"""Faults from outside, provoked for real: full and read-only disks, processes that hang, die or are missing."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Result, quick, run_command, run_script
from test_resume import digest

from ftloop import checkpoint
from ftloop.logs import terminal as tracking
from ftloop.optim import adamw


@pytest.fixture
def words(tiny, colours):
    return [
        *("configs/text.py", "--task.model", tiny("bert"), *colours, "--epochs", "3", "--save-every", "4"),
        *("--log-every", "2", "--task.metrics", "accuracy", "--keep", "last=3,best=1"),
    ]


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Started:
    """train.py in a process of its own, with what it says in a file, and what it has started; ended with the test."""

    def __init__(self, words: list[str], log: Path, *launcher: str, **environment: str):
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *quick(("train.py", *words))],
                cwd=ROOT,
                env={**os.environ, **environment},
                stderr=stream,
            )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (*self.children(), self.process.pid):
            if self.process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def children(self) -> list[int]:
        try:
            return [*map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())]
        except FileNotFoundError:
            return []

    def trains(self, run: Path) -> None:
        """Wait until it has saved a checkpoint."""
        wait_for(lambda: self.process.poll() is not None or checkpoint.find(run / "checkpoints"))
        assert self.process.poll() is None, self.said

    @property
    def said(self) -> str:
        return self.log.read_text()


def test_a_killed_process_leaves_whole_checkpoints_and_the_command_goes_on(words, tmp_path):
    words = [*words, "--optimizer", "test_resume:adamw_until_killed"]
    killed = run_command("python", "train.py", *words, PYTHONPATH="tests", KILLED_AT="7")
    assert killed.code == -signal.SIGKILL  # 137 in a shell
    assert "error:" not in killed.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] != []
    assert all(checkpoint.damage(path) is None for path in checkpoint.find(tmp_path / "run" / "checkpoints"))
    again = run_command("python", "train.py", *words, PYTHONPATH="tests")
    assert again.code == 0, again.err
    assert "checkpoints/step-000006" in again.err


def test_a_dead_data_worker_is_named(words, tmp_path):
    with Started([*words, "--epochs", "3000", "--workers", "1"], tmp_path / "log") as run:
        run.trains(tmp_path / "run")
        wait_for(run.children)  # those of an epoch end with it
        os.kill(run.children()[-1], signal.SIGKILL)
        assert run.process.wait(60) == 1, run.said
        assert "error: a process that loads data died: " in run.said  # and how, which depends on what it was doing
        assert "--workers 0 loads in the training process" in run.said
        assert "Traceback" not in run.said
    assert checkpoint.newest_intact(tmp_path / "run" / "checkpoints") is not None


def test_a_dead_process_ends_the_other_one_with_an_error(words, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    words = [*words, "--epochs", "3000"]
    ranks = [{**place, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]  # as srun starts them: no torchrun to help
    with Started(words, tmp_path / "0", **ranks[0]) as first, Started(words, tmp_path / "1", **ranks[1]) as second:
        first.trains(tmp_path / "run")
        second.process.kill()
        assert first.process.wait(60) == 1, first.said
        assert "error: another process of this run is dead, or did not answer within --timeout seconds" in first.said
        assert "(process 0)" in first.said
        assert "Traceback" not in first.said
    assert checkpoint.newest_intact(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.parametrize("rank", ["1"])
def test_a_process_that_hangs_ends_the_other_one_after_the_timeout(words, tmp_path, rank):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    with Started([*words, "--epochs", "3000", "--timeout", "15"], tmp_path / "log", *launcher) as run:
        run.trains(tmp_path / "run")
        ranks = {rank_of(pid): pid for pid in run.children()}
        hung = ranks.pop(rank)
        os.kill(hung, signal.SIGSTOP)
        ((other, pid),) = ranks.items()
        wait_for(lambda: not alive(pid), 60)
        os.kill(hung, signal.SIGKILL)  # as torchrun itself does, 30 seconds later
        assert run.process.wait(60) == 1
        assert "error: another process of this run is dead, or did not answer within --timeout seconds" in run.said
        assert f"(process {other})" in run.said
    assert checkpoint.newest_intact(tmp_path / "run" / "checkpoints") is not None


def rank_of(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(word[5:].decode() for word in environment if word.startswith(b"RANK="))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_process_that_was_started_alone_of_two_is_an_error(words, tmp_path):
    """As by a launcher that says WORLD_SIZE, and nothing of how to meet."""
    result = run_command("python", "train.py", *words, WORLD_SIZE="2")
    assert result.code == 2
    assert "error: " in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_from_a_stranger_runs_no_code(words, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    assert run_script("train.py", *words, "--max-minutes", "0.0001").code == 143
    (saved,) = checkpoint.find(tmp_path / "run" / "checkpoints")
    torch.save({"weight": Malicious()}, saved / "weights.pt")
    content = (saved / "weights.pt").read_bytes()
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["weights.pt"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.damage(saved) is None  # who writes the one can write the other
    result = run_script("train.py", *words)
    assert result.code == 2
    assert "weights.pt holds more than tensors: none of its code was run" in result.err
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def deterministic(monkeypatch):
    """What --deterministic turns on outlives a run: off again after the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_are_on_in_training_and_give_the_same_bits(
    words, tmp_path, monkeypatch, deterministic
):
    add, seen = tracking.StepLog.add, []

    def added(self, step):
        seen.append(torch.are_deterministic_algorithms_enabled())
        add(self, step)

    monkeypatch.setattr(tracking.StepLog, "add", added)
    assert run_script("train.py", *words, "--max-steps", "1", "--run-dir", tmp_path / "without").code == 0
    assert seen == [False]
    for name in ("first", "second"):
        result = run_script("train.py", *words, "--deterministic", "--run-dir", tmp_path / name)
        assert result.code == 0, result.err
    assert seen[1:] == [True] * 36
    assert digest(tmp_path / "first") == digest(tmp_path / "second")


# ---- disks that are full, or read-only: real ones, mounted where only the command sees them


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True).returncode
        == 0
    )


mounts = pytest.mark.skipif(not can_mount(), reason="this system lets nobody mount a file system of his own")


def with_mounts(script: str, words: list[str], folder: Path) -> Result:
    """Run a script of the shell that may mount; `train` is `python train.py WORDS`, and $FOLDER the folder."""
    train = f'train() {{ "{sys.executable}" train.py {" ".join(map(str, words))} --no-report "$@"; }}\n'
    return run_command("unshare", "-Urm", "sh", "-c", train + script, FOLDER=str(folder), PYTHONPATH="tests")


@mounts
def test_a_disk_that_runs_full_leaves_the_checkpoint_before_and_the_run_goes_on(words, tmp_path):
    (tmp_path / "disk").mkdir()
    result = with_mounts(
        """
        mount -t tmpfs -o size=700k tmpfs $FOLDER/disk
        train --run-dir $FOLDER/disk/run; echo exit $?; ls $FOLDER/disk/run/checkpoints
        mount -o remount,size=20m $FOLDER/disk
        train --run-dir $FOLDER/disk/run; echo exit $?; cp -r $FOLDER/disk/run $FOLDER/kept
        """,
        words,
        tmp_path,
    )
    first, second = result.out.split("exit ")[1:]
    assert first.split()[0] == "1", result.err
    assert "step-" in first
    assert ".tmp" not in first
    assert "error: cannot save the checkpoint" in result.err
    assert "It needs 0.3 MB, and 0.1 MB are free there" in result.err
    assert "Traceback" not in result.err
    assert second.split() == ["0"], result.err
    assert "resume: from" in result.err
    assert run_script("train.py", *words, "--run-dir", tmp_path / "whole").code == 0
    assert digest(tmp_path / "kept") == digest(tmp_path / "whole")


def adamw_on_a_disk_that_fills(model, config):
    """AdamW that, in its seventh step, fills the disk of the run to the last byte."""
    optimizer, steps = adamw(model, config), []

    def fill(*_):
        steps.append(1)
        if len(steps) == 7:
            with (Path(config.run_dir).parent / "fill").open("wb", buffering=0) as stream:
                try:
                    while stream.write(bytes(4096)):
                        pass
                except OSError:
                    pass

    optimizer.register_step_pre_hook(fill)
    return optimizer


@mounts
def test_a_log_that_finds_no_space_is_an_error_in_words(words, tmp_path):
    (tmp_path / "disk").mkdir()
    fills = ["--optimizer", "test_faults:adamw_on_a_disk_that_fills", "--eval-every", "5000", "--save-every", "4"]
    result = with_mounts(
        """
        mount -t tmpfs -o size=20m tmpfs $FOLDER/disk
        train --run-dir $FOLDER/disk/run --save-every 5000 --log-every 1; echo exit $?
        """,
        [*words, "--epochs", "3000", *fills],
        tmp_path,
    )
    assert result.out.split() == ["exit", "1"], result.err
    assert "No space left on device" in result.err
    assert "jsonl" in result.err
    assert "Traceback" not in result.err


@mounts
@pytest.mark.parametrize("run", ["run", "new"])
def test_a_read_only_folder_is_an_error_before_training(words, tmp_path, run):
    assert run_script("train.py", *words, "--max-minutes", "0.0001").code == 143
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    result = with_mounts(
        "mount --bind $FOLDER $FOLDER && mount -o remount,ro,bind $FOLDER; train --run-dir $FOLDER/" + run,
        words,
        tmp_path,
    )
    assert result.code == 2, result.err
    assert f"--run-dir '{tmp_path / run}' cannot be written: [Errno 30] Read-only file system" in result.err
    assert "Traceback" not in result.err
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert run_script("train.py", *words).code == 0
