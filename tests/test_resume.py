"""A run that is killed anywhere, and started again, ends as if it had never been interrupted.

Equal means equal to the bit. Most runs here train the tasks of tests/toy.py, with dropout and with
random changes of the rows; those on texts go through train.py.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import COLOURS, run_script, sentences
from interrupt import Interrupted, interrupt_at_step, train_until_step
from safetensors.torch import load_file
from toy import Points, Rows, digest, read_lines, read_values, train_toy, train_toys_in_ranks

from ftloop import Stopped, Task, TrainingError, UserError, checkpoint
from ftloop.checkpoint import find_checkpoints, load_state, load_weights, newest_intact
from ftloop.run import Run
from ftloop.state import TrainState

TASK = {"sizes": [43, 11, 7], "noise": 0.3, "dropout": 0.2, "is_weighted": True}
OPTIONS = {
    "epochs": 4,
    "micro_batch_size": 5,
    "eval_every": 3,
    "save_every": 2,
    "log_every": 5,
    "keep_last": 2,
    "learning_rate": 0.02,
    "warmup": 2,
}
"""12 steps, evaluated after 3, 6, 9 and 12 and saved after those and 2, 4, 8 and 10."""


def described(run_dir: Path, **options) -> dict:
    """Describe a run for another process; see `train_toys_in_ranks`."""
    return {
        "task": "toy:Points",
        "task_options": TASK,
        **OPTIONS,
        "run_dir": str(run_dir),
        **options,
    }


def train(run_dir: Path, task: Task | None = None, **options) -> None:
    train_toy(task or Points(**TASK), run_dir, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run leaves that was never interrupted."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(run)
    return digest(run)


# Killed by SIGKILL, in one process

# A step has 4 micro-batches of at most 5 rows, or 3 in the last one of an epoch: 11 in an epoch.
# An evaluation has 3 batches.
KILLED_IN = {
    "the first step": ("toy:Points.compute_losses", 1),
    "the first epoch": ("toy:Points.compute_losses", 10),
    "the middle of a step": ("toy:Points.compute_losses", 24),
    "the last step": ("toy:Points.compute_losses", 44),
    "clipping": ("accelerate:Accelerator.clip_grad_norm_", 7),
    "the step of the optimizer": ("torch.optim:AdamW.step", 9),
    "writing the log": ("ftloop.metric_log:MetricLog.write", 9),
    "the first evaluation": ("ftloop.evaluation:predict_batch", 2),
    "the third evaluation": ("ftloop.evaluation:predict_batch", 8),
    "recording the scores": ("ftloop.state:TrainState.update_best", 3),
    "opening the run folder": ("ftloop.config:encode", 1),
    "writing config.json": ("os:fsync", 1),
    "opening the log": ("ftloop.metric_log:MetricLog.open", 1),
    # Of a checkpoint, 3 files and 2 folders are synced, and its manifest once more.
    **{f"call {call} of fsync": ("ftloop.checkpoint:_fsync", call) for call in range(2, 15)},
    "writing weights": ("torch:save", 5),
    "writing the training state": ("torch:save", 6),
    "renaming a checkpoint": ("pathlib:Path.rename", 4),
    "pruning": ("ftloop.checkpoint:remove_checkpoint", 2),
    "deleting what was renamed": ("shutil:rmtree", 8),
    "loading the best weights": ("ftloop.run:Run.finish", 1),
    "the evaluation on test": ("ftloop.evaluation:predict_batch", 14),
    "exporting": ("ftloop.run:Run.export", 1),
    "renaming model.tmp": ("ftloop.task:Task.export", 1),
    "writing scores.json": ("ftloop.metric_log:json_scores", 1),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a killed run for each entry of KILLED_IN."""
    folder = tmp_path_factory.mktemp("killed")
    runs = [described(folder / name, kill_in=call) for name, call in KILLED_IN.items()]
    train_toys_in_ranks(1, *runs)
    return folder


@pytest.mark.parametrize("name", KILLED_IN)
def test_a_run_killed_anywhere_resumes_to_the_same_bits(uninterrupted, killed, name, caplog):
    run = killed / name
    assert not (run / "scores.json").exists()
    checkpoints = find_checkpoints(run / "checkpoints")
    assert all(checkpoint.damage(path) is None for path in checkpoints)
    with caplog.at_level(logging.INFO, "ftloop"):
        train(run)
    assert ("resuming from" in caplog.text) == bool(checkpoints)
    assert digest(run) == uninterrupted
    assert not list(run.rglob("*.tmp"))


def test_a_run_with_workers_resumes_to_the_same_bits(uninterrupted, tmp_path):
    """Data workers are started in the killed process, in the resumed one, or in both."""
    for before, after in ((2, 2), (0, 2), (2, 0)):
        run = tmp_path / f"{before} and {after}"
        call = ("accelerate:Accelerator.clip_grad_norm_", 8)
        train_toys_in_ranks(1, described(run, workers=before, kill_in=call))
        train(run, workers=after)
        assert digest(run) == uninterrupted


def test_a_run_killed_again_and_again_resumes_to_the_same_bits(uninterrupted, tmp_path):
    run = tmp_path / "run"
    call = ("accelerate:Accelerator.clip_grad_norm_", 4)  # each process does three steps
    train_toys_in_ranks(1, *[described(run, kill_in=call) for _ in range(3)])
    train(run)
    assert digest(run) == uninterrupted


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"precision": "bf16"}, 7),
        # The first evaluation stays the best; the run stops after the third one.
        ({"learning_rate": 0.0, "patience": 2}, 8),
        ({"best_metric": "loss", "best_direction": "max"}, 10),
        ({"max_steps": 8}, 7),
        ({"schedule": "cosine", "warmup": 0.5}, 5),
        ({"batch_size": 43, "micro_batch_size": None}, 3),
    ],
)
def test_a_killed_run_with_other_options_resumes_to_the_same_bits(tmp_path, options, step):
    train(tmp_path / "straight", **options)
    call = ("accelerate:Accelerator.clip_grad_norm_", step)
    train_toys_in_ranks(1, described(tmp_path / "killed", kill_in=call, **options))
    train(tmp_path / "killed", **options)
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")


# Several processes


@pytest.mark.parametrize("num_processes", [2, 3])
def test_killed_processes_resume_to_the_same_bits(tmp_path, num_processes):
    """With three, the order of summation depends on what DistributedDataParallel has seen."""
    options = {"micro_batch_size": 2, "keep_last": 3}
    call = ("accelerate:Accelerator.clip_grad_norm_", 8)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train_toys_in_ranks(num_processes, described(straight, **options))
    kill = described(killed, **options, kill_in=call)
    train_toys_in_ranks(num_processes, kill, is_killed=True)
    assert load_state(newest_intact(killed / "checkpoints")).step == 6
    train_toys_in_ranks(num_processes, described(killed, **options))
    assert digest(killed) == digest(straight)


def test_a_run_of_two_processes_resumes_in_one_up_to_rounding(tmp_path):
    """Without dropout. Each step has the same rows."""
    options = {"task_options": {**TASK, "dropout": 0.0}, "log_every": 1}
    call = ("accelerate:Accelerator.clip_grad_norm_", 8)
    killed = described(tmp_path / "killed", **options, kill_in=call)
    train_toys_in_ranks(2, killed, is_killed=True)
    task = Points(**options.pop("task_options"))
    for name in ("killed", "straight"):
        train(tmp_path / name, task, **options)
    for split in ("train", "validation", "test"):
        expected = read_values(tmp_path / "straight", "loss", split)
        assert read_values(tmp_path / "killed", "loss", split) == pytest.approx(expected, rel=1e-9)


class SeededRows(Rows):
    """Rows in an order of their own, which a seed decides, as those of a stream."""

    def set_seed(self, seed):
        self.seed = seed

    def row_order(self, seed, epoch):
        return range(len(self))

    def __getitem__(self, row):
        return super().__getitem__((row + self.seed) % len(self))


@dataclass(frozen=True)
class SeededPoints(Points):
    def load_datasets(self):
        datasets = super().load_datasets()
        return {**datasets, "train": SeededRows(datasets["train"].examples)}


def test_three_processes_leave_the_seed_of_a_stream_alone(tmp_path):
    options = {"task": "test_resume:SeededPoints", "task_options": {}, "epochs": 1, "log_every": 1}
    train_toys_in_ranks(3, described(tmp_path / "three", micro_batch_size=2, **options))
    del options["task"], options["task_options"]
    train(tmp_path / "one", SeededPoints(), **options)
    expected = read_values(tmp_path / "one", "loss")
    assert read_values(tmp_path / "three", "loss") == pytest.approx(expected, rel=1e-9)


# Damaged checkpoints


def train_until_killed(run: Path, step: int, task: Task | None = None, **options) -> None:
    """Train in this process until an optimizer step (from 0) is about to be computed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at_step(monkeypatch, step)
        with pytest.raises(Interrupted):
            train(run, task, **options)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.pt", "training.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_used(uninterrupted, tmp_path, name, caplog):
    run = tmp_path / "run"
    train_until_killed(run, step=9, keep_last=3)
    newest, before = find_checkpoints(run / "checkpoints")[:-3:-1]
    flip_a_bit(newest / name)
    with caplog.at_level(logging.INFO, "ftloop"):
        train(run)
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert f"resuming from {before}" in caplog.text
    assert digest(run) == uninterrupted


@pytest.mark.parametrize("name", ["weights.pt", "training.pt", "manifest.json"])
@pytest.mark.parametrize("kind", ["flipped", "truncated", "missing"])
def test_damage_of_every_file_is_noticed(tmp_path, name, kind):
    state_dicts = {"model": {"weight": torch.arange(1000.0)}, "optimizer": {"lr": 0.1}}
    state = TrainState(step=3)
    saved = checkpoint.save_checkpoint(tmp_path, state, state_dicts, {"threads": 1})
    assert checkpoint.damage(saved) is None
    if kind == "missing":
        (saved / name).unlink()
    elif kind == "truncated":
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[: len(content) // 2])
    else:
        flip_a_bit(saved / name)
    assert checkpoint.damage(saved) is not None
    assert newest_intact(tmp_path) is None


def test_an_older_damaged_checkpoint_is_neither_used_nor_in_the_way(tmp_path):
    """It could have been the best one; its manifest cannot tell."""
    run = tmp_path / "run"
    train_until_killed(run, step=9, keep_last=3)
    oldest = find_checkpoints(run / "checkpoints")[0]
    (oldest / "manifest.json").write_text("{")
    train(run)
    kept = find_checkpoints(run / "checkpoints")
    assert oldest not in kept
    assert all(checkpoint.damage(path) is None for path in kept)


def test_best_weights_that_were_damaged_are_not_exported(tmp_path):
    run, options = tmp_path / "run", {"learning_rate": 0.0}  # the first evaluation is the best
    train_until_killed(run, step=9, **options)
    best = load_state(newest_intact(run / "checkpoints")).best_step
    assert best == 3
    flip_a_bit(run / "checkpoints" / f"step-{best:06d}" / "weights.pt")
    with pytest.raises(TrainingError, match=r"step-000003 is damaged \(weights\.pt has changed"):
        train(run, **options)
    assert not (run / "scores.json").exists()


# Which checkpoints are kept


@pytest.mark.parametrize(("keep_last", "keep_best"), [(1, 1), (3, 2), (1, 4)])
def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path, keep_last, keep_best):
    train(tmp_path / "run", keep_last=keep_last, keep_best=keep_best)
    losses = dict(
        zip((3, 6, 9, 12), read_values(tmp_path / "run", "loss", "validation"), strict=True)
    )
    newest = [2, 3, 4, 6, 8, 9, 10, 12][-keep_last:]
    best = sorted(losses, key=losses.__getitem__)[:keep_best]
    kept = [checkpoint.step_of(path) for path in find_checkpoints(tmp_path / "run" / "checkpoints")]
    assert kept == sorted({*newest, *best})


def test_the_best_weights_are_exported_and_scored_on_test(tmp_path):
    run = tmp_path / "run"
    train(run, best_direction="max", keep_best=4)
    losses = read_values(run, "loss", "validation")
    best = 3 * (losses.index(max(losses)) + 1)
    assert best < 12
    scores = json.loads((run / "scores.json").read_text())
    assert scores["validation"]["loss"] == max(losses)
    expected = load_weights(run / "checkpoints" / f"step-{best:06d}")
    exported = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in expected.items())


def test_early_stopping_counts_evaluations_without_a_better_score(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ftloop"):
        train(tmp_path / "run", learning_rate=0.0, patience=2)  # no step helps
    assert "stopped early: no better score in 2 evaluations" in caplog.text
    assert len(read_values(tmp_path / "run", "loss", "validation")) == 3
    assert find_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000009"


# What belongs to the state of a run


class Average:
    """An exponential moving average of the weights, as a fork adds it to the loop."""

    def __init__(self, model):
        self.values = {name: value.clone() for name, value in model.state_dict().items()}

    def update(self, model):
        for name, value in model.state_dict().items():
            self.values[name].lerp_(value, 0.1)

    def state_dict(self):
        return self.values

    def load_state_dict(self, values):
        self.values = {name: value.clone() for name, value in values.items()}


@pytest.fixture
def averages(monkeypatch):
    """The averages of the runs in this process, which are kept by two lines in the loop."""
    averages = []

    def register(run, **objects):
        averages.append(Average(objects["model"]))
        register_for_checkpointing(run, **objects, average=averages[-1])

    def log_step(run, *arguments):
        averages[-1].update(run.model)
        log(run, *arguments)

    register_for_checkpointing, log = Run.register_for_checkpointing, Run.log_step
    monkeypatch.setattr(Run, "register_for_checkpointing", register)
    monkeypatch.setattr(Run, "log_step", log_step)
    return averages


def test_an_average_of_the_weights_resumes_to_the_same_bits(averages, tmp_path):
    train(tmp_path / "straight")
    train_until_killed(tmp_path / "killed", step=7)
    train(tmp_path / "killed")
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")
    straight, killed, resumed = averages
    for name, value in straight.values.items():
        assert torch.equal(resumed.values[name], value)
        assert not torch.equal(killed.values[name], value)


def test_at_the_end_an_average_is_that_of_the_best_step(averages, tmp_path):
    run = tmp_path / "run"
    train(run, best_direction="max", keep_best=4)
    best = load_state(find_checkpoints(run / "checkpoints")[-1]).best_step
    assert best < 12
    saved = checkpoint.load_state_dicts(run / "checkpoints" / f"step-{best:06d}")["average"]
    (average,) = averages
    assert all(torch.equal(average.values[name], value) for name, value in saved.items())


@dataclass(frozen=True)
class Normalized(Points):
    """A model with running statistics, which belong to its state."""

    def build_model(self):
        layers = torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 3)
        return torch.nn.Sequential(*layers).double()


def test_running_statistics_resume_to_the_same_bits(tmp_path):
    options = {"epochs": 3, "save_every": 2}
    train_toy(Normalized(), tmp_path / "straight", **options)
    call = ("accelerate:Accelerator.clip_grad_norm_", 6)
    task = {"task": "test_resume:Normalized", "run_dir": str(tmp_path / "killed")}
    train_toys_in_ranks(1, {**options, **task, "kill_in": call})
    train_toy(Normalized(), tmp_path / "killed", **options)
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")


# What a run does not resume with


def files_of(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


@pytest.mark.parametrize("changes", [{"data_seed": 1}, {"sizes": [42, 11, 7]}])
def test_changed_rows_are_refused_unless_they_are_allowed(tmp_path, changes, monkeypatch, caplog):
    run = tmp_path / "run"
    train_until_killed(run, step=5)
    before = files_of(run)
    changed = Points(**{**TASK, **changes}).load_datasets()
    monkeypatch.setattr(Points, "load_datasets", lambda task: changed)
    message = "the rows of train and validation and test are not those with which the run began"
    with pytest.raises(UserError, match=message):
        train(run)
    assert files_of(run) == before
    train(run, allow_changes=True)
    assert f"resume: {message}" in caplog.text


def test_changed_options_are_refused_unless_they_are_allowed(tmp_path, caplog):
    run = tmp_path / "run"
    train_until_killed(run, step=5)
    before = files_of(run)
    changes = {"learning_rate": 0.01, "epochs": 3}
    message = r"other options: epochs: 4 -> 3; learning_rate: 0\.02 -> 0\.01\. Choose another"
    with pytest.raises(UserError, match=message):
        train(run, **changes)
    assert files_of(run) == before
    train(run, **changes, allow_changes=True)
    assert "resume: with other options than before: epochs: 4 -> 3; learning_rate" in caplog.text
    assert len(read_values(run, "loss")) == 9
    with pytest.raises(UserError, match="allow_changes: has no effect on a finished run"):
        train(run, **changes, allow_changes=True)


def test_options_that_change_no_result_may_change(uninterrupted, tmp_path):
    run = tmp_path / "run"
    train_until_killed(run, step=5)
    train(run, workers=1, timeout=100, log_every=5, max_minutes=50)
    assert digest(run) == uninterrupted


def test_another_division_is_logged_and_changes_only_rounding(tmp_path, caplog):
    task = Points(**{**TASK, "dropout": 0.0})
    train(tmp_path / "straight", task, micro_batch_size=16, log_every=1)
    train_until_killed(tmp_path / "run", 6, task, micro_batch_size=16, log_every=1)
    train(tmp_path / "run", task, micro_batch_size=3, log_every=1)
    assert "resume: micro_batch_size 16 -> 3" in caplog.text
    expected = read_values(tmp_path / "straight", "loss")
    assert read_values(tmp_path / "run", "loss") == pytest.approx(expected, rel=1e-9)


def test_a_finished_run_is_left_as_it_is(tmp_path, caplog):
    train(tmp_path / "run")
    before = files_of(tmp_path / "run")
    with caplog.at_level(logging.INFO, "ftloop"):
        train(tmp_path / "run")
    assert "is finished already" in caplog.text
    assert files_of(tmp_path / "run") == before
    with pytest.raises(UserError, match="holds a run with other options"):
        train(tmp_path / "run", epochs=5)


def test_a_new_run_is_refused_where_there_is_one(tmp_path):
    train_until_killed(tmp_path / "run", step=5)
    with pytest.raises(UserError, match=r"run_dir: .* holds a run already"):
        train(tmp_path / "run", resume="none")
    train(tmp_path / "other", resume="none")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    for run in (tmp_path / "run", tmp_path / "run" / "thesis.txt"):
        with pytest.raises(
            UserError, match=r"run_dir: .* (is not empty and holds no run|cannot be used)"
        ):
            train(run)
    assert files_of(tmp_path / "run") == {tmp_path / "run" / "thesis.txt": b"mine"}


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_of_version_0_1_is_refused_in_one_sentence(tmp_path, is_finished):
    record = {"ftloop": "0.1.0", "command": "python", "config": {"class": "ftloop.config:Config"}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    if is_finished:
        (tmp_path / "run" / "scores.json").write_text("{}")
    message = (
        "was written by ftloop 0.1.0, whose runs this version cannot read; its model/ still loads "
        r"in transformers\.$"
    )
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run")


def test_a_log_that_is_longer_than_at_the_checkpoint_is_cut(uninterrupted, tmp_path):
    """Lines may follow from steps after the checkpoint, also before any checkpoint."""
    run = tmp_path / "run"
    for step in (1, 8):
        train_until_killed(run, step=step)
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 99, "name": "loss"')  # not even a complete line
    train(run)
    assert digest(run) == uninterrupted


def test_a_run_that_is_stopped_at_once_keeps_no_lines_of_an_earlier_process(tmp_path):
    """It resumes at step 0, saves step 0 again, and is killed before the next checkpoint."""
    run, options = tmp_path / "run", {"save_every": 100, "eval_every": 100, "log_every": 1}
    train(tmp_path / "straight", **options)
    train_until_killed(run, step=4, **options)
    assert len(read_values(run, "loss")) == 4
    with pytest.raises(Stopped):
        train(run, **options, max_minutes=1e-9)
    train_until_killed(run, step=3, **options)
    train(run, **options)
    assert read_lines(run) == read_lines(tmp_path / "straight")


# Texts, through train.py


@pytest.fixture
def command(tiny, colours):
    """Options for train.py; dropout is that of the model, 0.1. An epoch has 6 steps."""
    options = ["--micro-batch-size", "3", "--epochs", "3", "--metrics", "accuracy"]
    options += ["--save-every", "4", "--log-every", "5", "--keep-last", "2"]
    return ["configs/text.py", "--model", tiny("bert"), *colours, *options]


def text_digest(run: Path) -> dict:
    return {**digest(run), "ledger": (run / "ledger.jsonl").read_text()}


def test_a_run_on_texts_resumes_to_the_same_bits(command, tmp_path):
    assert run_script("train.py", *command, "--run-dir", tmp_path / "straight").code == 0
    train_until_step(10, *command)
    resumed = run_script("train.py", *command, "--workers", "2")
    assert resumed.code == 0, resumed.err
    assert "resuming from" in resumed.err
    assert text_digest(tmp_path / "run") == text_digest(tmp_path / "straight")


@pytest.mark.parametrize("change", ["a row less", "another label", "another text"])
def test_a_run_on_texts_does_not_resume_on_other_rows(command, tmp_path, change):
    train_until_step(6, *command)
    lines = (tmp_path / "train.csv").read_text().splitlines(keepends=True)
    if change == "another label":
        label = lines[5].split(",")[1]
        lines[5] = lines[5].replace(f",{label},", ",green," if label == "blue" else ",blue,")
    if change == "another text":
        lines[5] = lines[5].replace(",", " grass,", 1)
    (tmp_path / "train.csv").write_text("".join(lines[:-1] if change == "a row less" else lines))
    before = files_of(tmp_path / "run")
    resumed = run_script("train.py", *command)
    assert resumed.code == 2
    assert "the rows of train are not those with which the run began" in resumed.err
    assert files_of(tmp_path / "run") == before


TAGS = """
from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TokenClassification

task = TokenClassification(data=Data(validation=4), max_length=32)
config = Job(task=task, run_dir="runs/tags", batch_size=4)
"""


def write_tagged(file: Path, last_tag: str | None = None) -> None:
    """Write 24 sentences of different lengths with a tag for each word."""
    lines = []
    for example in sentences(24):
        words = example["text"].split()
        tags = [word.upper() if word in COLOURS else "O" for word in words]
        lines.append(json.dumps({"tokens": words, "tags": [*tags[:-1], last_tag or tags[-1]]}))
    file.write_text("\n".join(lines) + "\n")


def test_a_run_on_tokens_does_not_resume_on_other_labels(tiny, tmp_path):
    """The labels of a row are a list, and lists have different lengths: their content counts."""
    (tmp_path / "resumed_tags.py").write_text(TAGS)
    file = tmp_path / "train.jsonl"
    write_tagged(file)
    command = [str(tmp_path / "resumed_tags.py"), "--model", tiny("bert"), "--data", str(file)]
    command += ["--save-every", "2", "--run-dir", str(tmp_path / "run")]
    train_until_step(3, *command)
    write_tagged(file, last_tag="RED")
    refused = run_script("train.py", *command)
    assert refused.code == 2, refused.err
    assert "are not those with which the run began" in refused.err
    write_tagged(file)
    resumed = run_script("train.py", *command)
    assert resumed.code == 0, resumed.err


def test_a_copied_run_folder_resumes_elsewhere(uninterrupted, tmp_path):
    train_until_killed(tmp_path / "run", step=7)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    train(tmp_path / "moved")
    assert digest(tmp_path / "moved") == uninterrupted
