"""Setups and observers: when each method is called, and that what was changed is undone."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy import Points, train_toy

from ftloop import Config, Observer, Setup, Stopped, UserError
from ftloop.checkpoint import find_checkpoints, load_environment


class RecordingSetup(Setup):
    """Records the calls of its methods, with its name."""

    def __init__(self, name: str, calls: list[str], size: int | None = None):
        self.name, self.calls, self.size = name, calls, size
        self.environments: list[dict] = []

    def accelerator_options(self):
        self.calls.append(f"{self.name}.accelerator_options")
        return {}

    def resume(self, environment):
        self.calls.append(f"{self.name}.resume")
        self.environments.append(environment)

    def prepare_model(self, model, accelerator):
        assert next(model.parameters()).device == accelerator.device
        self.calls.append(f"{self.name}.prepare_model")

    def choose_micro_batch_size(self, model, sampler, task, accelerator):
        self.calls.append(f"{self.name}.choose_micro_batch_size")
        return self.size

    def environment(self):
        return {self.name: "recorded"}

    def undo(self):
        self.calls.append(f"{self.name}.undo")


class RecordingObserver(Observer):
    """Records the calls of its methods, with the step."""

    def __init__(self, calls: list[str]):
        self.calls = calls

    def on_start(self, run):
        self.calls.append(f"on_start {run.state.step}")

    def on_log(self, run, steps, speed):
        assert set(speed) == {"rows_per_second", "data_wait"}
        assert all(0 < record.loss < 10 and record.grad_norm > 0 for record in steps)
        self.calls.append(f"on_log {[record.step for record in steps]}")

    def on_scores(self, run, split, scores, epoch):
        assert set(scores) == {"loss"}
        self.calls.append(f"on_scores {split} {epoch:g}")

    def sync(self):
        self.calls.append("sync")

    def on_save(self, run, checkpoint):
        assert (checkpoint / "manifest.json").is_file()
        self.calls.append(f"on_save {checkpoint.name}")

    def on_export(self, run, scores):
        assert set(scores) == {"validation", "test"}
        names = {path.name for path in run.folder.iterdir()}
        assert "model" in names
        assert "scores.json" not in names
        self.calls.append("on_export")

    def on_finish(self, run, scores):
        assert set(scores) == {"validation", "test"}
        assert {path.name for path in run.folder.iterdir()} >= {"model", "scores.json"}
        self.calls.append("on_finish")

    def close(self, run):
        self.calls.append("close")


@pytest.fixture
def calls(monkeypatch):
    """The calls of two setups and an observer, in order. The second setup chooses the size 4."""
    calls: list[str] = []

    def setups(config):
        return [RecordingSetup("first", calls), RecordingSetup("second", calls, size=4)]

    monkeypatch.setattr(Config, "setups", setups)
    monkeypatch.setattr(Config, "observers", lambda config: [RecordingObserver(calls)])
    return calls


ACCELERATOR = ["first.accelerator_options", "second.accelerator_options"]
MODEL = [
    *("first.prepare_model", "second.prepare_model"),
    *("first.choose_micro_batch_size", "second.choose_micro_batch_size"),
]
UNDONE = ["close", "second.undo", "first.undo"]


def test_setups_and_observers_are_called_in_order(calls, tmp_path):
    """A run of three steps, which are evaluated after the second and the third one."""
    options = {"epochs": 1, "eval_every": 2, "log_every": 10}
    train_toy(Points(sizes=(43, 11, 7)), tmp_path / "run", **options)
    assert calls == [
        *(*ACCELERATOR, *MODEL),
        "on_start 0",
        "on_log [1, 2]",
        f"on_scores validation {32 / 43:g}",
        *("sync", "on_save step-000002"),
        "on_log [3]",
        "on_scores validation 1",
        *("sync", "on_save step-000003"),
        "on_scores test 1",
        "on_export",
        "on_finish",
        *UNDONE,
    ]


def test_a_resumed_run_tells_its_setups_the_environment_of_the_checkpoint(
    calls, tmp_path, monkeypatch
):
    task = Points(sizes=(43, 11, 7))
    with pytest.raises(Stopped):
        train_toy(task, tmp_path / "run", max_minutes=1e-9)
    step = ["on_start 0", "on_log [1]", "sync", "on_save step-000001"]
    assert calls == [*ACCELERATOR, *MODEL, *step, *UNDONE]
    (saved,) = find_checkpoints(tmp_path / "run" / "checkpoints")
    environment = load_environment(saved)
    assert environment == {"first": "recorded", "second": "recorded"}

    calls.clear()
    setup = RecordingSetup("third", calls)
    monkeypatch.setattr(Config, "setups", lambda config: [setup])
    train_toy(task, tmp_path / "run")
    assert calls[:3] == ["third.accelerator_options", "third.resume", "third.prepare_model"]
    assert setup.environments == [environment]
    assert calls[-2:] == ["close", "third.undo"]


class RecordSizes(Observer):
    """Records the rows of each micro-batch."""

    def __init__(self):
        self.sizes: list[int] = []

    def on_log(self, run, steps, speed):
        self.sizes += [len(rows) for record in steps for rows in record.row_ids]


@pytest.mark.parametrize(
    ("configured", "chosen", "sizes"),
    [
        ("auto", (None, 4), [4, 4, 4, 4]),
        ("auto", (9, 6), [6, 6, 4]),
        (5, (None, None), [5, 5, 5, 1]),
        (5, (8, None), [5, 5, 5, 1]),  # never more than configured
        (None, (8, None), [8, 8]),
    ],
)
def test_the_smallest_micro_batch_size_is_used(tmp_path, monkeypatch, configured, chosen, sizes):
    recorder = RecordSizes()
    setups = [RecordingSetup(f"setup {size}", [], size) for size in chosen]
    monkeypatch.setattr(Config, "setups", lambda config: setups)
    monkeypatch.setattr(Config, "observers", lambda config: [recorder])
    train_toy(Points(), tmp_path / "run", micro_batch_size=configured, max_steps=1)
    assert recorder.sizes == sizes


def test_a_size_that_nobody_measures_is_refused(tmp_path):
    with pytest.raises(UserError, match="micro_batch_size: 'auto' needs a setup"):
        train_toy(Points(), tmp_path / "run", micro_batch_size="auto")


@dataclass(frozen=True)
class Failing(Points):
    """Raises an error in the method of this name."""

    fails_in: str = "build_model"
    error: str = "UserError"

    def fail(self, name):
        if self.fails_in == name:
            raise {"UserError": UserError, "OSError": OSError}[self.error]("on purpose")

    def load_datasets(self):
        self.fail("load_datasets")
        return super().load_datasets()

    def build_model(self):
        self.fail("build_model")
        return super().build_model()

    def compute_losses(self, model, batch):
        self.fail("compute_losses")
        return super().compute_losses(model, batch)

    def export(self, model, state_dict, folder):
        self.fail("export")
        super().export(model, state_dict, folder)


@pytest.mark.parametrize("error", ["UserError", "OSError"])
@pytest.mark.parametrize("name", ["load_datasets", "build_model", "compute_losses", "export"])
def test_setups_are_undone_wherever_a_run_fails(calls, tmp_path, name, error):
    with pytest.raises((UserError, OSError), match="on purpose"):
        train_toy(Failing(fails_in=name, error=error), tmp_path / "run")
    assert calls[-3:] == UNDONE


def test_setups_are_undone_when_the_run_folder_is_refused(calls, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(UserError, match="holds no run"):
        train_toy(Points(), tmp_path / "run")
    assert calls[-2:] == ["second.undo", "first.undo"]


def test_setups_are_undone_when_the_accelerator_is_refused(calls, tmp_path):
    with pytest.raises(UserError, match="fp16 is not available on this device"):
        train_toy(Points(), tmp_path / "run", precision="fp16")
    assert calls == [*ACCELERATOR, "second.undo", "first.undo"]
    assert not (tmp_path / "run").exists()


class Stopping(Observer):
    """Sends a signal to this process when a step is logged."""

    def on_log(self, run, steps, speed):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_closes_its_observers_and_restores_the_signals(calls, tmp_path, monkeypatch):
    observers = [Stopping(), RecordingObserver(calls)]
    monkeypatch.setattr(Config, "observers", lambda config: observers)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        train_toy(Points(), tmp_path / "run")
    assert stopped.value.exit_code == 143
    assert calls[6:] == ["on_start 0", "on_log [1]", "sync", "on_save step-000001", *UNDONE]
    assert signal.getsignal(signal.SIGTERM) == before


class Breaking(Observer):
    def close(self, run):
        raise ValueError("on purpose")


def test_an_observer_that_cannot_be_closed_does_not_keep_setups_and_lock(
    calls, tmp_path, monkeypatch
):
    monkeypatch.setattr(Config, "observers", lambda config: [Breaking(), RecordingObserver(calls)])
    with pytest.raises(ValueError, match="on purpose"):
        train_toy(Points(sizes=(43, 11, 7)), tmp_path / "run")
    assert {"first.undo", "second.undo"} <= {*calls}


def test_a_finished_run_tells_its_observers_nothing(calls, tmp_path):
    task = Points(sizes=(43, 11, 7))
    scores = train_toy(task, tmp_path / "run")
    calls.clear()
    assert train_toy(task, tmp_path / "run") == scores
    assert calls == [*ACCELERATOR, *UNDONE]


class Peeking(Observer):
    """Looks at what a run offers to observers."""

    def on_start(self, run):
        self.seen = (run.config.seed, run.task, run.folder, run.total_steps, run.is_main_process)
        self.plan = run.sampler.plan(0)

    def on_log(self, run, steps, speed):
        self.rows = [len(record.plan.row_ids) for record in steps]
        self.epochs = [record.epoch for record in steps]


def test_what_a_run_offers_to_observers(tmp_path, monkeypatch):
    observer, task, run_dir = Peeking(), Points(), tmp_path / "run"
    monkeypatch.setattr(Config, "observers", lambda config: [observer])
    train_toy(task, run_dir, epochs=1, log_every=10)
    assert observer.seen == (7, task, Path(run_dir), 3, True)
    assert len(observer.plan.row_ids) == 16
    assert observer.rows == [16, 16, 11]
    assert observer.epochs == [16 / 43, 32 / 43, 1]
