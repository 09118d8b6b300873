"""Trackers get each point once, whatever interrupts a run, and their failures do not end it."""

import json
import sys
from types import SimpleNamespace

import accelerate.tracking
import pytest
from conftest import run_script, sentences, write_csv
from interrupt import train_until_step

from ftloop.logs.tracker_types import WeightsAndBiases


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny) -> list[str]:
    """12 steps, evaluated after 5, 10 and 12 of them."""
    folder, files = tmp_path_factory.mktemp("rows"), []
    for seed, split in enumerate(["train", "validation", "test"]):
        files += [split, write_csv(folder / f"{split}.csv", sentences(43, seed))]
    data = ["--data.files", *files, "--label", "colour", "--max-length", "32"]
    training = ["--batch-size", "8", "--max-steps", "12", "--eval-every", "5"]
    return ["configs/text.py", "--model", tiny("bert"), *data, *training, "--learning-rate", "5e-3"]


class Memory(accelerate.tracking.GeneralTracker):
    """A tracker that a fork registers with accelerate."""

    name, requires_logging_directory = "memory", False
    points: list = []  # noqa: RUF012
    settings: dict = {}  # noqa: RUF012
    fails_at = None

    def __init__(self, run_name):
        super().__init__()

    @property
    def tracker(self):
        return self

    def start(self):
        if self.fails_at == "start":
            raise OSError("no such server,\nor none")

    def store_init_configuration(self, values):
        self.settings.update(values)

    def log(self, values, step=None):
        if step == self.fails_at:
            raise OSError("the server is gone")
        self.points.append((step, values))


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "memory", Memory)
    monkeypatch.setattr(Memory, "points", [])
    monkeypatch.setattr(Memory, "settings", {})
    return Memory


def curve(points, name) -> list[tuple[int, float]]:
    return [(step, values[name]) for step, values in points if name in values]


def steps(points, name) -> list[int]:
    return [step for step, _ in curve(points, name)]


def test_an_interrupted_run_is_one_curve_and_a_tracker_added_later_gets_all_of_it(
    options, memory, tmp_path
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    options = [*options, "--run-dir", run, "--log-every", "2", "--track", "tensorboard"]
    train_until_step(9, *options)  # the steps 6 to 8 were sent, and no checkpoint has them
    assert json.loads((run / "trackers" / "tensorboard.sent").read_text()) == [8, ["train"]]
    resumed = run_script("train.py", *options, "memory")
    assert resumed.code == 0, resumed.err
    assert f"resuming from {run / 'checkpoints' / 'step-000005'}" in resumed.err
    folder = run / "trackers" / "tensorboard"
    assert f"tracked     tensorboard: tensorboard --logdir {folder}" in resumed.err

    board = EventAccumulator(str(folder)).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {}
    for line in lines:
        key = f"{line['split']}/{line['name']}"
        logged.setdefault(key, []).append((line["step"], line["value"]))
    assert {"train/loss", "train/grad_norm", "validation/loss", "test/accuracy"} <= logged.keys()
    for name, values in logged.items():
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in values]
        assert curve(memory.points, name) == values
    assert steps(memory.points, "validation/accuracy") == [5, 10, 12]
    assert steps(memory.points, "test/accuracy") == [12]
    assert steps(memory.points, "train/data_wait") == [2, 4, 5, 6, 8, 10, 12]  # at each log step
    assert steps(memory.points, "train/rows_per_second") == list(range(1, 13))

    assert memory.settings["batch_size"] == 8
    assert memory.settings["task.max_length"] == 32
    assert len(list(folder.glob("*/hparams.yml"))) == 1, "the settings were sent twice"


def test_a_tracker_that_fails_does_not_end_the_training(options, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "fails_at", 7)
    run = tmp_path / "run"
    result = run_script("train.py", *options, "--run-dir", run, "--track", "memory")
    assert result.code == 0, result.err
    assert steps(memory.points, "train/loss") == [1, 2, 3, 4, 5, 6]
    message = "error: track: memory failed and gets no more values (OSError: the server is gone)"
    assert result.err.count(message) == 1
    assert result.err.count("track: memory failed") == 1
    assert (run / "metrics.jsonl").read_text().count('"test"') == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["tensorbord"],
            "--track: 'tensorbord' is not a tracker (did you mean 'tensorboard'?). Choose from aim",
        ),
        (["comet_ml"], "--track: comet_ml is not installed: pip install comet-ml"),
        (["tensorboard", "tensorboard"], "names a tracker twice"),
        (["memory"], "--track: memory cannot start: OSError: no such server, or none\n"),
    ],
)
def test_a_tracker_that_cannot_work_is_an_error_before_training(
    names, message, options, memory, tmp_path, monkeypatch
):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["tensorboard"])
    monkeypatch.setattr(memory, "fails_at", "start")
    run = tmp_path / "run"
    result = run_script("train.py", *options, "--run-dir", run, "--track", *names)
    assert result.code == 2
    assert message in result.err
    assert not list(run.glob("checkpoints/*"))


def test_a_point_is_sent_once_even_if_the_evaluations_change(options, memory, tmp_path):
    options = [*options, "--run-dir", tmp_path / "run", "--track", "memory"]
    train_until_step(11, *options, "--log-every", "1")
    assert steps(memory.points, "train/loss") == list(range(1, 12))
    resumed = run_script("train.py", *options, "--eval-every", "3", "--allow-changes")
    assert resumed.code == 0, resumed.err
    assert steps(memory.points, "train/loss") == list(range(1, 13))
    assert steps(memory.points, "validation/loss") == [5, 10, 12]


def test_without_its_file_the_option_is_an_error(options, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ftloop.logs.trackers", None)
    result = run_script("train.py", *options, "--run-dir", tmp_path / "run", "--track", "wandb")
    assert result.code == 2
    assert "--track: cannot be used: this copy of ftloop has no ftloop.logs.trackers" in result.err


class Wandb(SimpleNamespace):
    """As much of the library as ftloop and accelerate use."""

    class CommError(Exception):
        pass

    def __init__(self, is_logged_in, answers):
        def init(**options):
            self.started.append(options)
            if options["mode"] != "offline" and not answers:
                raise self.CommError("timed out\nafter 20 s")
            url = None if options["mode"] == "offline" else "https://tracker.example/run"
            return SimpleNamespace(
                url=url, dir="runs/offline-run-x/files", log=self.log, finish=lambda: None
            )

        super().__init__(
            started=[],
            points=[],
            config=SimpleNamespace(update=lambda *_, **__: None),
            init=init,
            login=lambda **options: is_logged_in,
            teardown=lambda: self.started.append({"mode": "teardown"}),
            Settings=lambda **options: options,
            errors=SimpleNamespace(CommError=self.CommError),
            Html=lambda text, inject: text,
        )

    def log(self, values, step):
        self.points.append((step, values))


@pytest.mark.parametrize(
    ("is_logged_in", "answers", "mode", "modes"),
    [
        (False, False, None, ["offline"]),
        (True, True, None, [None]),
        (True, False, None, [None, "teardown", "offline"]),
        (True, True, "offline", ["offline"]),
    ],
)
def test_wandb_never_waits_for_a_login_or_a_server(
    is_logged_in, answers, mode, modes, monkeypatch, tmp_path
):
    wandb = Wandb(is_logged_in, answers)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    accelerate.PartialState()
    tracker = WeightsAndBiases("wandb", tmp_path, "mrpc")
    tracker.start({"seed": 1})
    assert [options["mode"] for options in wandb.started] == modes
    assert wandb.started[-1]["id"] == tracker.id == (tmp_path / "wandb.id").read_text()
    is_offline = modes[-1] == "offline"
    expected = (
        "offline: wandb sync runs/offline-run-*" if is_offline else "https://tracker.example/run"
    )
    assert tracker.location == expected
    tracker.send(1, "train", {"train/loss": 1.0})
    tracker.finish()

    resumed = WeightsAndBiases("wandb", tmp_path, "mrpc")
    resumed.start({"seed": 1})
    assert wandb.started[-1]["id"] == tracker.id
    resumed.send(1, "train", {"train/loss": 1.0})
    resumed.send(1, "validation", {"validation/loss": 3.0})
    resumed.send(2, "train", {"train/loss": 2.0})
    (tmp_path / "report.html").write_text("<p>a report</p>")
    resumed.send_report(tmp_path / "report.html", step=2)
    resumed.finish()
    assert wandb.points == [
        (1, {"train/loss": 1.0}),
        (1, {"validation/loss": 3.0}),
        (2, {"train/loss": 2.0}),
        (2, {"report": "<p>a report</p>"}),
    ]
