"""Stopping on purpose: signals and the time limit, in training, evaluation and saving, by one rank
of several; and the lock of the run folder.

A run that is stopped saves a checkpoint, says so, and resumes to the same bits.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, quick, ranks, run_script
from processes import TWO_RANKS, Background, wait_until
from toy import Points, digest, import_name, toy_config, train_toy

from ftloop import Stopped, UserError, checkpoint, loop
from ftloop.checkpoint import find_checkpoints, load_state, step_of
from ftloop.cli.exit_codes import run_main
from ftloop.cli.standard_error import StandardError
from ftloop.distributed import StopSignals
from ftloop.tasks import TextClassification

TASK = {"sizes": [43, 11, 7], "noise": 0.3, "dropout": 0.2}
OPTIONS = {"epochs": 4, "eval_every": 3, "save_every": 2, "log_every": 5, "keep_last": 2}
"""12 steps. An evaluation on validation has 3 batches, or 2 with two ranks."""

TRAIN_STEP = "ftloop.loop:train_step"
EVALUATE = "ftloop.evaluation:predict_batch"
CALLS = {
    "the third step": (TRAIN_STEP, 3, signal.SIGTERM, 3),
    "a step before an evaluation": (TRAIN_STEP, 6, signal.SIGINT, 6),
    "the last step": (TRAIN_STEP, 12, signal.SIGUSR1, 12),
    "the first evaluation": (EVALUATE, 2, signal.SIGTERM, 3),
    "the last batch of an evaluation": (EVALUATE, 6, signal.SIGINT, 6),
    "the evaluation after the last step": (EVALUATE, 11, signal.SIGTERM, 12),
    "the evaluation on test": (EVALUATE, 14, signal.SIGTERM, 12),
    "saving": ("ftloop.checkpoint:_fsync", 9, signal.SIGTERM, 3),
    "a step when the terminal is gone": (TRAIN_STEP, 5, signal.SIGHUP, 5),
}
"""Where a signal arrives: in which call of a function, which signal, and the step of the stop."""


def send_signal_in_call(
    name: str, count: int, number: int, replace: Callable[..., None] = setattr
) -> None:
    """Send a signal to this process in the count-th call of a function "module:name"."""
    owner, attribute = import_name(name)
    function, calls = getattr(owner, attribute), []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    replace(owner, attribute, call)


def train(run_dir: Path, **options: Any) -> None:
    train_toy(Points(**TASK), run_dir, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run leaves that was never interrupted."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(run)
    return digest(run)


def newest_step(run: Path) -> int:
    return step_of(find_checkpoints(run / "checkpoints")[-1])


@pytest.fixture(autouse=True)
def handled_hangup():
    """SIGHUP as in a terminal: the tests may run under nohup, where it is ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


# Signals and the time limit, in one process


@pytest.mark.parametrize("name", CALLS)
def test_a_signal_stops_the_run_which_resumes_to_the_same_bits(
    uninterrupted, tmp_path, monkeypatch, name
):
    function, count, number, step = CALLS[name]
    handler, run = signal.getsignal(number), tmp_path / "run"
    with monkeypatch.context() as patches:
        send_signal_in_call(function, count, number, patches.setattr)
        with pytest.raises(Stopped) as stopped:
            train(run)
    message = f"{number.name}: stopped after step {step}; the checkpoint is saved. Run the same"
    assert str(stopped.value).startswith(message)
    assert stopped.value.exit_code == (130 if number == signal.SIGINT else 143)
    assert newest_step(run) == step
    assert not (run / "scores.json").exists()
    assert signal.getsignal(number) == handler
    train(run)
    assert digest(run) == uninterrupted


def test_a_run_that_is_stopped_at_every_step_resumes_to_the_same_bits(tmp_path):
    train(tmp_path / "straight", save_every=1)
    for step in range(1, 13):
        with pytest.MonkeyPatch.context() as patches:
            send_signal_in_call(TRAIN_STEP, 1, signal.SIGTERM, patches.setattr)
            with pytest.raises(Stopped, match=f"stopped after step {step};"):
                train(tmp_path / "run", save_every=1)
    train(tmp_path / "run", save_every=1)
    assert digest(tmp_path / "run") == digest(tmp_path / "straight")


def test_a_time_limit_stops_the_run_likewise(uninterrupted, tmp_path, monkeypatch):
    run, train_step = tmp_path / "run", loop.train_step

    def take_an_hour(*arguments):
        now = time.monotonic()
        patches.setattr(time, "monotonic", lambda: now + 3600)
        return train_step(*arguments)

    with monkeypatch.context() as patches:
        patches.setattr(loop, "train_step", take_an_hour)
        with pytest.raises(Stopped) as stopped:
            train(run, max_minutes=30)
    assert str(stopped.value).startswith("max_minutes: stopped after step 1; the checkpoint is")
    assert stopped.value.exit_code == 143
    train(run)  # without a limit: it changes no result
    assert digest(run) == uninterrupted


# Several ranks


def described(run_dir: Path, **options: Any) -> str:
    """Describe a run for `main`, which other processes run."""
    return json.dumps({**OPTIONS, "micro_batch_size": 4, "run_dir": str(run_dir), **options})


@pytest.fixture(scope="module")
def uninterrupted_by_two_ranks(tmp_path_factory):
    run = tmp_path_factory.mktemp("two_ranks") / "run"
    result = ranks(2, "tests/test_stopping.py", described(run), PYTHONPATH="tests")
    assert result.code == 0, result.err
    return digest(run)


@pytest.mark.parametrize(
    ("function", "count", "number", "step"),
    [
        (TRAIN_STEP, 7, signal.SIGUSR1, 7),
        (TRAIN_STEP, 12, signal.SIGINT, 12),
        (EVALUATE, 3, signal.SIGTERM, 6),
    ],
)
def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_step(
    uninterrupted_by_two_ranks, tmp_path, function, count, number, step
):
    run, script = tmp_path / "run", "tests/test_stopping.py"
    options = described(run, signal_in=[function, count, number], rank=1)
    stopped = ranks(2, script, options, PYTHONPATH="tests")
    assert stopped.code == 0, stopped.err
    exit_code = 130 if number == signal.SIGINT else 143
    reasons = ("another rank", number.name)
    for rank, reason in enumerate(reasons):
        message = (tmp_path / f"run.rank{rank}").read_text()
        assert message.startswith(f"{exit_code} {reason}: stopped after step {step}; ")
    assert newest_step(run) == step
    resumed = ranks(2, script, described(run), PYTHONPATH="tests")
    assert resumed.code == 0, resumed.err
    assert digest(run) == uninterrupted_by_two_ranks


def test_a_signal_to_one_rank_of_torchrun_stops_the_run(command, tmp_path):
    with Background([*command, "--epochs", "300"], tmp_path / "log", *TWO_RANKS) as run:
        run.wait_until_it_trains(tmp_path / "run")
        os.kill(run.rank_pids()["1"], signal.SIGUSR1)
        assert run.wait() != 0
        (step,) = re.findall(r"another rank: stopped after step (\d+); the checkpoint is", run.err)
    assert newest_step(tmp_path / "run") == int(step)


# Commands


@pytest.fixture
def command(tiny, colours):
    """Options for train.py. An epoch has 6 steps."""
    options = ["--metrics", "accuracy", "--save-every", "4", "--log-every", "2"]
    return ["configs/text.py", "--model", tiny("bert"), *colours, *options]


@pytest.mark.parametrize(
    ("function", "count", "number", "code", "step"),
    [
        (TRAIN_STEP, 3, signal.SIGTERM, 143, 3),
        (TRAIN_STEP, 12, signal.SIGUSR1, 143, 12),
        (EVALUATE, 1, signal.SIGINT, 130, 6),
    ],
)
def test_a_command_says_how_to_resume_it(
    command, tmp_path, monkeypatch, function, count, number, code, step
):
    with monkeypatch.context() as patches:
        send_signal_in_call(function, count, number, patches.setattr)
        stopped = run_script("train.py", *command)
    assert stopped.code == code, stopped.err
    assert f"{number.name}: stopped after step {step}; the checkpoint is saved." in stopped.err
    assert "Run the same command again to resume: python" in stopped.err
    assert "Traceback" not in stopped.err
    resumed = run_script("train.py", *command)
    assert resumed.code == 0, resumed.err
    assert run_script("train.py", *command, "--run-dir", tmp_path / "straight").code == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "straight")


def test_the_time_limit_of_a_command_may_change(command):
    stopped = run_script("train.py", *command, "--max-minutes", "0.0001")
    assert stopped.code == 143
    assert re.search(r"max_minutes: stopped after step \d+; the checkpoint is saved", stopped.err)
    assert run_script("train.py", *command).code == 0


def test_an_ignored_hangup_stays_ignored(uninterrupted, tmp_path, monkeypatch):
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    send_signal_in_call(TRAIN_STEP, 5, signal.SIGHUP, monkeypatch.setattr)
    train(tmp_path / "run")
    assert digest(tmp_path / "run") == uninterrupted


def test_only_a_signal_that_comes_later_ends_the_process_at_once(monkeypatch):
    """torchrun passes on a signal that the whole group of processes got already."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    signals = StopSignals()
    signals._handle(signal.SIGTERM, None)
    signals._handle(signal.SIGTERM, None)
    assert ended == []
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.5)
    signals._handle(signal.SIGTERM, None)
    assert ended == [143]


def test_a_signal_to_all_processes_and_a_closed_pipe_leave_a_saved_run(command, tmp_path):
    """Data workers get the signal as well, as in a terminal or under SLURM. `2>&1 | head -1` does
    not end the run.
    """
    words = quick(("train.py", *command, "--epochs", "3000", "--workers", "2"))
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    ) as run:
        run.stderr.readline()
        run.stderr.close()
        try:
            wait_until(lambda: find_checkpoints(tmp_path / "run" / "checkpoints"))
            os.killpg(run.pid, signal.SIGTERM)
            assert run.wait(60) == 143
        finally:
            run.kill()
    newest = find_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == step_of(newest)


def test_a_second_signal_ends_the_process_at_once(command, tmp_path):
    with Background([*command, "--epochs", "3000"], tmp_path / "log") as run:
        run.wait_until_it_trains(tmp_path / "run")
        os.kill(run.pid, signal.SIGTERM)
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(20) == 143
    checkpoints = find_checkpoints(tmp_path / "run" / "checkpoints")
    assert all(checkpoint.damage(path) is None for path in checkpoints)


def test_an_interrupt_that_a_library_takes_for_a_damaged_file_is_an_interrupt(capsys):
    def read():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise UserError("the file cannot be read") from None

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_main(read) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err.startswith("Interrupted before the first step")


def test_messages_that_nobody_reads_are_dropped():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        error = StandardError(stream)
        for _ in range(3):
            print("a message", file=error)
            error.flush()
        assert not error.isatty()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_while_rows_are_prepared_ends_the_command_without_a_traceback(
    command, monkeypatch, number
):
    prepare, handler = TextClassification.prepare, signal.getsignal(number)

    def prepare_and_receive(task, rows):
        signal.raise_signal(number)
        return prepare(task, rows)

    with monkeypatch.context() as patches:
        patches.setattr(TextClassification, "prepare", prepare_and_receive)
        result = run_script("train.py", *command)
    assert result.code == 143
    assert f"{number.name}: stopped outside of the training loop" in result.err
    assert "Traceback" not in result.err
    assert signal.getsignal(number) == handler
    assert run_script("train.py", *command).code == 0


# The lock of the run folder


def test_a_folder_is_locked_until_its_process_ends_however_it_ends(command, tmp_path):
    command = [*command, "--epochs", "300", "--workers", "2"]
    with Background(command, tmp_path / "first") as first:
        first.wait_until_it_trains(tmp_path / "run")
        with Background(command, tmp_path / "second") as second:
            assert second.wait() == 2
            message = f"error: --run-dir: another process is training in '{tmp_path / 'run'}'."
            assert message in second.err
        workers = first.children()
        first.process.kill()
        first.wait()
        # At once, although the data workers of the first process may still be there.
        limit = ("--max-minutes", "0.0001")
        with Background([*command, *limit], tmp_path / "third") as third:
            assert third.wait() == 143, third.err
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_run_that_was_killed_while_it_opened_its_folder_starts_there(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").touch()
    (run / "config.json.tmp").write_text("{")
    train(run, max_steps=2)
    assert load_state(find_checkpoints(run / "checkpoints")[-1]).step == 2


def main() -> None:
    """Train the run of `described` as one rank, and write how it was stopped to RUN_DIR.rankN."""
    options, rank = json.loads(sys.argv[1]), int(os.environ["RANK"])
    call, signalled_rank = options.pop("signal_in", None), options.pop("rank", None)
    if rank == signalled_rank:
        send_signal_in_call(*call)
    from ftloop import train

    try:
        train(toy_config(Points(**TASK), **options))
    except Stopped as stopped:
        text = f"{stopped.exit_code} {stopped}"
        Path(f"{options['run_dir']}.rank{rank}").write_text(text)


if __name__ == "__main__":
    main()
