"""Faults from outside, provoked for real: full and read-only disks, ranks and data workers that
hang, die or are missing, damaged and hostile checkpoints.

Whatever happens, the error is one sentence, the last checkpoint is intact, and the same command
resumes the run.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Result, run_command, run_script
from processes import TWO_RANKS, Background, is_running, wait_until
from toy import Points, digest, train_toy

from ftloop import TrainingError, UserError, checkpoint
from ftloop.checkpoint import find_checkpoints, newest_intact, read_manifest
from ftloop.metric_log import MetricLog
from ftloop.optim import adamw
from ftloop.state import TrainState


@pytest.fixture
def command(tiny, colours):
    """Options for train.py. An epoch has 6 steps; checkpoints are saved after steps 4, 6, 8, ..."""
    options = ["--epochs", "3", "--metrics", "accuracy", "--save-every", "4", "--log-every", "2"]
    return ["configs/text.py", "--model", tiny("bert"), *colours, *options, "--keep-last", "3"]


LONG = ("--epochs", "3000")  # longer than any test waits


def files_of(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def all_checkpoints_are_intact(run: Path) -> bool:
    checkpoints = find_checkpoints(run / "checkpoints")
    return checkpoints != [] and all(checkpoint.damage(path) is None for path in checkpoints)


# Processes that die, hang or are missing


def test_a_killed_process_leaves_intact_checkpoints_and_the_same_command_resumes(command, tmp_path):
    killed = run_command("python", "tests/kill.py", "7", "train.py", *command)
    assert killed.code == -signal.SIGKILL  # 137 in a shell
    assert "error:" not in killed.err
    assert all_checkpoints_are_intact(tmp_path / "run")
    resumed = run_command("python", "train.py", *command)
    assert resumed.code == 0, resumed.err
    assert f"resuming from {tmp_path}/run/checkpoints/step-000006" in resumed.err


def test_a_dead_data_worker_is_named(command, tmp_path):
    options = [*command, *LONG, "--workers", "1"]
    with Background(options, tmp_path / "log") as run:
        run.wait_until_it_trains(tmp_path / "run")
        os.kill(run.children()[-1], signal.SIGKILL)
        assert run.wait() == 1, run.err
        assert "error: a data loading worker died: " in run.err
        assert "If memory is short, use --workers 0." in run.err
        assert "Traceback" not in run.err
    assert newest_intact(tmp_path / "run" / "checkpoints") is not None


DEAD_RANK = (
    "error: another rank of this run died, or did not answer within the seconds of --timeout"
)


def test_a_dead_rank_ends_the_other_one_with_an_error(command, tmp_path):
    """The ranks are started as by srun: there is no torchrun that ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    options = [*command, *LONG]
    with (
        Background(options, tmp_path / "0", **shared, RANK="0", LOCAL_RANK="0") as first,
        Background(options, tmp_path / "1", **shared, RANK="1", LOCAL_RANK="1") as second,
    ):
        first.wait_until_it_trains(tmp_path / "run")
        second.process.kill()
        assert first.wait() == 1, first.err
        assert DEAD_RANK in first.err
        assert "(rank 0)" in first.err
        assert "Traceback" not in first.err
    assert newest_intact(tmp_path / "run" / "checkpoints") is not None


def test_a_rank_that_hangs_ends_the_other_one_after_the_timeout(command, tmp_path):
    options = [*command, *LONG, "--timeout", "15"]
    with Background(options, tmp_path / "log", *TWO_RANKS) as run:
        run.wait_until_it_trains(tmp_path / "run")
        pids = run.rank_pids()
        os.kill(pids["1"], signal.SIGSTOP)
        wait_until(lambda: not is_running(pids["0"]), seconds=60)
        os.kill(pids["1"], signal.SIGKILL)  # as torchrun itself does, 30 seconds later
        assert run.wait() == 1
        assert DEAD_RANK in run.err
        assert "(rank 0)" in run.err
    assert newest_intact(tmp_path / "run" / "checkpoints") is not None


def test_torchrun_ends_a_run_with_a_dead_rank(command, tmp_path):
    with Background([*command, *LONG], tmp_path / "log", *TWO_RANKS) as run:
        run.wait_until_it_trains(tmp_path / "run")
        os.kill(run.rank_pids()["1"], signal.SIGKILL)
        assert run.wait() == 1
    assert newest_intact(tmp_path / "run" / "checkpoints") is not None


def test_one_of_two_processes_that_was_started_alone_is_an_error(command, tmp_path):
    """As by a launcher that sets WORLD_SIZE, and not where the processes meet."""
    result = run_command("python", "train.py", *command, WORLD_SIZE="2")
    assert result.code == 2
    assert "error: accelerate cannot start: " in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_other_errors_keep_their_traceback():
    from ftloop.cli.exit_codes import explain_failure

    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert "--workers 0" in explain_failure(killed)
    assert explain_failure(RuntimeError("shapes do not match")) is None


# Checkpoints that cannot be trusted, or not be saved


class Malicious:
    """An object whose unpickling creates a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (self.file.touch, ())


def test_a_checkpoint_from_a_stranger_runs_no_code(command, tmp_path):
    assert run_script("train.py", *command, "--max-minutes", "0.0001").code == 143
    (saved,) = find_checkpoints(tmp_path / "run" / "checkpoints")
    torch.save({"weight": Malicious(tmp_path / "ran")}, saved / "weights.pt")
    manifest = read_manifest(saved)
    state = TrainState(**manifest["state"])
    checkpoint.write_manifest(saved, state, manifest["environment"])
    assert checkpoint.damage(saved) is None  # whoever writes the weights can write the manifest
    result = run_script("train.py", *command)
    assert result.code == 2
    assert "weights.pt holds Python objects besides tensors; none was run" in result.err
    assert not (tmp_path / "ran").exists()


def test_malicious_weights_run_no_code(tmp_path):
    saved = checkpoint.save_checkpoint(tmp_path, TrainState(step=1), {"model": {}}, {})
    for name in checkpoint.FILES:
        torch.save({"weight": Malicious(tmp_path / "ran")}, saved / name)
        with pytest.raises(UserError, match=f"{name} holds Python objects besides tensors"):
            checkpoint.load_state_dicts(saved)
        torch.save({}, saved / name)
    assert not (tmp_path / "ran").exists()


def test_an_error_of_saving_names_the_checkpoint_and_what_to_do(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.write_text("a file in the way")
    message = r"cannot save the checkpoint .*checkpoints/step-000001: .* run the same command again"
    with pytest.raises(TrainingError, match=message):
        checkpoint.save_checkpoint(folder, TrainState(step=1), {"model": {}}, {})


@pytest.mark.parametrize("name", ["save", "fsync"])
def test_a_disk_without_space_leaves_no_incomplete_checkpoint(tmp_path, monkeypatch, name):
    def fail(*arguments):
        if name == "save":  # as torch reports it
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        raise OSError(28, "No space left on device")

    run, options = tmp_path / "run", {"epochs": 2, "save_every": 2}
    with monkeypatch.context() as full_disk:
        if name == "save":
            full_disk.setattr(torch, "save", fail)
        else:
            full_disk.setattr(checkpoint, "_fsync", lambda path: "step" in str(path) and fail())
        with pytest.raises(TrainingError, match=r"cannot save the checkpoint .*step-000002: "):
            train_toy(Points(), run, **options)
    assert list((run / "checkpoints").iterdir()) == []
    train_toy(Points(), run, **options)
    train_toy(Points(), tmp_path / "straight", **options)
    assert digest(run) == digest(tmp_path / "straight")


# Disks that are full or read-only: real ones, mounted where only the command sees them


def can_mount() -> bool:
    mount = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return shutil.which("unshare") is not None and (
        subprocess.run(mount, capture_output=True).returncode == 0
    )


needs_mounts = pytest.mark.skipif(
    not can_mount(), reason="users of this system may not mount file systems"
)


def run_with_mounts(script: str, options: list[str], folder: Path) -> Result:
    """Run a shell script that may mount. `train` is train.py with the options, $FOLDER a folder."""
    command = [sys.executable, "train.py", *options, "--no-report"]
    train = f'train() {{ {" ".join(command)} "$@"; }}\n'
    shell = ("unshare", "-Urm", "sh", "-c", train + script)
    return run_command(*shell, FOLDER=str(folder), PYTHONPATH=f"{ROOT}/tests")


@needs_mounts
def test_a_full_disk_leaves_the_checkpoint_before_and_the_same_command_resumes(command, tmp_path):
    (tmp_path / "disk").mkdir()
    result = run_with_mounts(
        """
        mount -t tmpfs -o size=700k tmpfs $FOLDER/disk
        train --run-dir $FOLDER/disk/run; echo exit $?; ls $FOLDER/disk/run/checkpoints
        mount -o remount,size=20m $FOLDER/disk
        train --run-dir $FOLDER/disk/run; echo exit $?; cp -r $FOLDER/disk/run $FOLDER/copy
        """,
        command,
        tmp_path,
    )
    first, second = result.out.split("exit ")[1:]
    assert first.split()[0] == "1", result.err
    assert "step-" in first
    assert ".tmp" not in first
    assert "error: cannot save the checkpoint" in result.err
    assert "The previous one is intact: free some space and run the same command" in result.err
    assert "Traceback" not in result.err
    assert second.split() == ["0"], result.err
    assert "resuming from" in result.err
    assert run_script("train.py", *command, "--run-dir", tmp_path / "straight").code == 0
    assert digest(tmp_path / "copy") == digest(tmp_path / "straight")


def adamw_that_fills_the_disk(model, config):
    """AdamW that fills the disk of the run to the last byte in its seventh step."""
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


@needs_mounts
def test_a_log_that_finds_no_space_ends_the_run_with_an_error(command, tmp_path):
    (tmp_path / "disk").mkdir()
    options = ["--optimizer", "test_faults:adamw_that_fills_the_disk", "--eval-every", "5000"]
    result = run_with_mounts(
        """
        mount -t tmpfs -o size=20m tmpfs $FOLDER/disk
        train --run-dir $FOLDER/disk/run --save-every 5000 --log-every 1; echo exit $?
        """,
        [*command, *LONG, *options],
        tmp_path,
    )
    assert result.out.split() == ["exit", "1"], result.err
    assert "No space left on device" in result.err
    assert "jsonl" in result.err
    assert "run the same command again" in result.err
    assert "Traceback" not in result.err


@needs_mounts
@pytest.mark.parametrize("name", ["run", "new"])
def test_a_read_only_folder_is_an_error_before_training(command, tmp_path, name):
    assert run_script("train.py", *command, "--max-minutes", "0.0001").code == 143
    before = files_of(tmp_path / "run")
    result = run_with_mounts(
        "mount --bind $FOLDER $FOLDER && mount -o remount,ro,bind $FOLDER && "
        f"train --run-dir $FOLDER/{name}",
        command,
        tmp_path,
    )
    assert result.code == 2, result.err
    message = f"--run-dir: '{tmp_path / name}' cannot be written or locked: [Errno 30] Read-only"
    assert message in result.err
    assert "Traceback" not in result.err
    assert files_of(tmp_path / "run") == before
    assert run_script("train.py", *command).code == 0


# Algorithms that depend on timing


def test_deterministic_algorithms_are_used_in_training_and_give_the_same_bits(
    command, tmp_path, monkeypatch
):
    add_step, modes = MetricLog.add_step, []

    def record_mode(*arguments):
        modes.append(torch.are_deterministic_algorithms_enabled())
        add_step(*arguments)

    monkeypatch.setattr(MetricLog, "add_step", record_mode)
    for name in ("first", "second"):
        options = ["--deterministic", "--run-dir", tmp_path / name]
        result = run_script("train.py", *command, *options)
        assert result.code == 0, result.err
    assert modes == [True] * 36
    assert digest(tmp_path / "first") == digest(tmp_path / "second")
    modes.clear()
    one_step = ["--max-steps", "1", "--run-dir", tmp_path / "without"]
    assert run_script("train.py", *command, *one_step).code == 0
    assert modes == [False]
