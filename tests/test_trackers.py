"""--track: what a tracker gets, once, whatever interrupts the run; one that is missing or fails says so."""

import json
import sys
from types import SimpleNamespace

import accelerate.tracking
import pytest
from conftest import run_script, sentences, write_csv

from ftloop.logs import trackers
from ftloop.run import Run


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny):
    """12 steps, evaluated after 5, 10 and 12 of them."""
    folder = tmp_path_factory.mktemp("rows")
    files = {
        split: write_csv(folder / f"{split}.csv", sentences(43, seed))
        for seed, split in enumerate(["train", "validation", "test"])
    }
    source = ["--task.data.files", *(word for pair in files.items() for word in pair), "--task.label-column", "colour"]
    sizes = ["--task.max-length", "32", "--batch-size", "8", "--max-steps", "12", "--eval-every", "5"]
    return ["configs/text.py", "--task.model", tiny("bert"), *source, *sizes, "--learning-rate", "5e-3"]


class Memory(accelerate.tracking.GeneralTracker):
    """A tracker of a fork, as accelerate wants it."""

    name, requires_logging_directory = "memory", False
    got: list = []  # noqa: RUF012
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
        self.got.append((step, values))


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "memory", Memory)
    monkeypatch.setattr(Memory, "got", [])
    monkeypatch.setattr(Memory, "settings", {})
    return Memory


def steps_of(got, name):
    return [step for step, values in got if name in values]


def test_a_cut_run_is_one_curve_and_a_tracker_named_later_gets_all_of_it(words, memory, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, evaluate = tmp_path / "run", Run.evaluate

    def cut(self, split, epoch):
        if self.state.step == 10:  # steps 6 to 10 were sent, and no checkpoint has them
            raise RuntimeError("cut")
        return evaluate(self, split, epoch)

    monkeypatch.setattr(Run, "evaluate", cut)
    with pytest.raises(RuntimeError, match="cut"):
        run_script("train.py", *words, "--run-dir", run, "--track", "tensorboard")
    monkeypatch.setattr(Run, "evaluate", evaluate)
    (run / "report.html").write_text("<p>a report</p>")
    resumed = run_script("train.py", *words, "--run-dir", run, "--track", "tensorboard", "memory")
    assert resumed.code == 0, resumed.err
    assert "resume: from" in resumed.err
    assert f"tracked     tensorboard: tensorboard --logdir {run / 'trackers' / 'tensorboard'}" in resumed.err

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(run / "trackers" / "tensorboard")).Reload()
    for split, name in {(line["split"], line["name"]) for line in lines}:
        logged = [(line["step"], line["value"]) for line in lines if (line["split"], line["name"]) == (split, name)]
        shown = [(event.step, event.value) for event in board.Scalars(f"{split}/{name}")]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged]
        kept = [(step, values[f"{split}/{name}"]) for step, values in memory.got if f"{split}/{name}" in values]
        assert kept == logged
    assert steps_of(memory.got, "validation/accuracy") == [5, 10, 12]
    assert steps_of(memory.got, "test/accuracy") == [12]
    assert steps_of(memory.got, "train/data_wait") == [5, 10, 12]  # at each look

    assert sorted(board.Tags()["images"]) == ["test/confusion", "validation/confusion"]
    assert len(list((run / "trackers").glob("confusion-*.png"))) == 2
    assert memory.settings["batch_size"] == 8
    assert memory.settings["task.max_length"] == 32
    assert len(list((run / "trackers" / "tensorboard").glob("*/hparams.yml"))) == 1, "the settings, once"


def test_a_tracker_that_fails_costs_no_training(words, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "fails_at", 7)
    result = run_script("train.py", *words, "--run-dir", tmp_path / "run", "--track", "memory")
    assert result.code == 0, result.err
    assert steps_of(memory.got, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert "error: track: memory failed and gets nothing more (OSError: the server is gone); metrics" in result.err
    assert result.err.count("track: memory failed") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"test"') == 3


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["tensorbord"],
            "--track 'tensorbord' is not a tracker (did you mean 'tensorboard'?); choose from aim",
        ),
        (["comet_ml"], "--track comet_ml: not installed: pip install comet-ml"),
        (["tensorboard", "tensorboard"], "each tracker once"),
        (["memory"], "--track memory cannot start: OSError: no such server, or none\n"),
    ],
)
def test_what_cannot_work_is_said_before_training(names, said, words, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["tensorboard"])
    monkeypatch.setattr(memory, "fails_at", "start")
    result = run_script("train.py", *words, "--run-dir", tmp_path / "run", "--track", *names)
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "run" / "checkpoints").exists() or not list((tmp_path / "run" / "checkpoints").iterdir())


def test_without_its_file_the_option_says_so(words, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ftloop.logs.trackers", None)
    result = run_script("train.py", *words, "--run-dir", tmp_path / "run", "--track", "tensorboard")
    assert result.code == 2
    assert "--track tensorboard: 'ftloop.logs.trackers:check' cannot be imported" in result.err


class Wandb(SimpleNamespace):
    """As much of the library as ftloop and accelerate use."""

    class CommError(Exception):
        pass

    def __init__(self, logged_in, answers):
        def init(**options):
            self.started.append(options)
            if options["mode"] != "offline" and not answers:
                raise self.CommError("timed out\nafter 20 s")
            url = None if options["mode"] == "offline" else "https://tracker.example/run"
            return SimpleNamespace(url=url, dir="runs/x/files", log=self.log, finish=lambda: None)

        super().__init__(
            started=[],
            got=[],
            config=SimpleNamespace(update=lambda *_, **__: None),
            init=init,
            login=lambda **options: logged_in,
            teardown=lambda: self.started.append({"mode": "teardown"}),
            Settings=lambda **options: options,
            errors=SimpleNamespace(CommError=self.CommError),
            Image=lambda image: image.size,
            Html=lambda text, inject: text,
        )

    def log(self, values, step):
        self.got.append((step, values))


@pytest.mark.parametrize(
    ("logged_in", "answers", "mode", "modes"),
    [
        (False, False, None, ["offline"]),
        (True, True, None, [None]),
        (True, False, None, [None, "teardown", "offline"]),
        (True, True, "offline", ["offline"]),
    ],
)
def test_wandb_never_waits_for_a_login_or_a_server(logged_in, answers, mode, modes, monkeypatch, tmp_path, caplog):
    fake = Wandb(logged_in, answers)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    accelerate.PartialState()
    service = trackers.WeightsAndBiases("wandb", tmp_path, "mrpc")
    service.start({"seed": 1})
    assert [options["mode"] for options in fake.started] == modes
    assert fake.started[-1]["id"] == service.id == (tmp_path / "wandb.id").read_text()
    assert service.place == ("offline: wandb sync runs/x" if modes[-1] else "https://tracker.example/run")
    service.log(1, {"train/loss": 1.0}, step=1)
    service.finish()

    again = trackers.WeightsAndBiases("wandb", tmp_path, "mrpc")
    again.start({"seed": 1})
    assert fake.started[-1]["id"] == service.id
    again.log(1, {"train/loss": 1.0}, step=1)
    again.log(2, {"train/loss": 2.0}, step=2)
    (tmp_path / "report.html").write_text("<p>a report</p>")
    again.report(tmp_path / "report.html", step=2)
    again.finish()
    assert fake.got == [(1, {"train/loss": 1.0}), (2, {"train/loss": 2.0}), (2, {"report": "<p>a report</p>"})]


def test_the_confusion_matrix_is_a_picture_for_any_number_of_classes(tmp_path):
    import numpy

    for classes in (2, 77):
        counts = numpy.eye(classes, dtype=int) * 3
        counts[0] = 0  # no row of this class
        trackers.draw_confusion(counts, list(map(str, range(classes))), "test", tmp_path / f"{classes}.png")
        height, width, _ = trackers.pixels(tmp_path / f"{classes}.png").shape
        assert height == width == min(400 + 30 * classes, 2000)
