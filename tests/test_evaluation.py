"""Every row is evaluated once: scores depend neither on the batch size nor on the processes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import ranks, run_script, sentences, write_csv
from toy import Points, Tokens, read_values, train_toy, train_toys_in_ranks

from ftloop import Stopped, TrainingError, UserError, model_inputs
from ftloop.data import Data
from ftloop.distributed import StopSignals, build_accelerator
from ftloop.evaluation import build_eval_loader, evaluate, iterate_predictions
from ftloop.loader import make_batch
from ftloop.runs.finished import evaluate_run, load_run
from ftloop.sampler import EvalSampler
from ftloop.tasks import TextClassification


@pytest.fixture
def accelerator():
    return build_accelerator()


# The toy tasks of tests/toy.py, whose models compute in float64


class Counter:
    """A metric of its own: which rows it got, and how many tokens were predicted right."""

    def __init__(self):
        self.rows: list[int] = []
        self.correct = self.total = 0

    def add_batch(self, predictions, references):
        assert len(predictions) == len(references)
        self.rows += predictions[:, 0].tolist()
        is_item = references != -100  # also what fills up the batches of different ranks
        right = predictions[:, 1:].reshape(references.shape) == references
        self.correct += int((right & is_item).sum())
        self.total += int(is_item.sum())

    def compute(self):
        rows = {"rows": len(self.rows), "distinct_rows": len(set(self.rows))}
        return {**rows, "accuracy": self.correct / self.total, "names": ["not", "a", "number"]}


def predict_with_row_ids(outputs, batch):
    predictions = outputs.argmax(dim=-1).reshape(len(outputs), -1)
    return {"predictions": torch.cat([batch["row_ids"][:, None], predictions], dim=1)}


@dataclass(frozen=True)
class CountedPoints(Points):
    sizes: tuple[int, ...] = (16, 23, 1)
    is_weighted: bool = True

    def draw_example(self, draw, row):
        return super().draw_example(draw, row + 1)  # the only row of test counts

    def predict(self, outputs, batch):
        return predict_with_row_ids(outputs, batch)

    def build_metrics(self):
        return [Counter()]


@dataclass(frozen=True)
class CountedTokens(Tokens):
    """Rows have lengths, so that the longest come first; batches have different widths."""

    sizes: tuple[int, ...] = (16, 23, 1)

    def load_datasets(self):
        datasets = super().load_datasets()
        for rows in datasets.values():
            rows.lengths = [len(example["input"]) for example in rows.examples]
        return datasets

    def predict(self, outputs, batch):
        return predict_with_row_ids(outputs, batch)

    def build_metrics(self):
        return [Counter()]


TASKS = {"points": CountedPoints, "tokens": CountedTokens}


def untrained(task: Points) -> torch.nn.Module:
    torch.manual_seed(0)
    return task.build_model()


def evaluate_split(task: Points, split: str, batch_size: int, accelerator) -> dict[str, float]:
    dataset = task.load_datasets()[split]
    loader = build_eval_loader(dataset, task, accelerator, batch_size)
    return evaluate(untrained(task), loader, task, accelerator)


def loss_by_hand(task: Points, split: str) -> float:
    """Return the weighted mean of the losses of all rows, each computed alone."""
    dataset, model, sums = task.load_datasets()[split], untrained(task), torch.zeros(2).double()
    for row in range(len(dataset)):
        batch = make_batch(dataset, [(0, row)], task.collate, seed=0)
        losses = task.losses(model(**model_inputs(batch)), batch)
        is_counted = batch["weights"] != 0
        weighted = (losses * batch["weights"])[is_counted].sum()
        sums += torch.stack([weighted.detach(), batch["weights"].sum().double()])
    return (sums[0] / sums[1]).item()


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_weighted_mean_over_rows_or_tokens(task, accelerator):
    task = TASKS[task]()
    scores = evaluate_split(task, "validation", 7, accelerator)
    assert scores["loss"] == pytest.approx(loss_by_hand(task, "validation"), rel=1e-6)
    assert scores["rows"] == scores["distinct_rows"] == 23
    assert set(scores) == {"loss", "rows", "distinct_rows", "accuracy"}


@pytest.mark.parametrize("task", TASKS)
def test_the_batch_size_changes_no_score(task, accelerator):
    scores = [
        evaluate_split(TASKS[task](), "validation", size, accelerator) for size in range(1, 25)
    ]
    assert scores == [pytest.approx(scores[0], rel=1e-12)] * 24


@pytest.fixture(scope="module", params=[2, 3, 4])
def in_ranks(request, tmp_path_factory) -> Path:
    """Runs of one step without change, in some processes, evaluated in batches of 5 rows."""
    folder = tmp_path_factory.mktemp("in_ranks")
    options = {"learning_rate": 0.0, "max_steps": 1, "eval_batch_size": 5}
    runs = [
        {"task": f"test_evaluation:{cls.__name__}", "run_dir": str(folder / name), **options}
        for name, cls in TASKS.items()
    ]
    train_toys_in_ranks(request.param, *runs)
    return folder


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("task", TASKS)
def test_the_number_of_processes_changes_no_score(in_ranks, tmp_path, task, split):
    """The only row of test has to be padded for all ranks but one."""
    train_toy(TASKS[task](), tmp_path / "run", learning_rate=0.0, max_steps=1)
    for name in ("loss", "rows", "distinct_rows", "accuracy"):
        expected = read_values(tmp_path / "run", name, split)
        assert len(expected) == 1
        assert read_values(in_ranks / task, name, split) == pytest.approx(expected, rel=1e-12)


def test_evaluation_leaves_the_model_in_training_mode_and_draws_nothing(accelerator):
    task = CountedPoints(dropout=0.5)
    loader = build_eval_loader(task.load_datasets()["validation"], task, accelerator, 4)
    model = untrained(task).train()
    before = torch.get_rng_state()
    scores = [evaluate(model, loader, task, accelerator) for _ in range(2)]
    assert scores[0] == scores[1]
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_row_that_is_left_out_or_repeated_is_an_error(accelerator, monkeypatch):
    original = EvalSampler.__iter__
    changes = {
        "3 rows were not": lambda batches: batches[1:],
        "4 rows were not": lambda batches: [*batches, [(0, 0), (0, 1), (0, 2), (0, 3)]],
    }
    for message, change in changes.items():
        monkeypatch.setattr(
            EvalSampler,
            "__iter__",
            lambda sampler, change=change: iter(change([*original(sampler)])),
        )
        with pytest.raises(RuntimeError, match=message):
            evaluate_split(CountedPoints(), "validation", 3, accelerator)


def test_an_evaluation_that_is_stopped_has_no_scores(accelerator):
    task, calls = CountedPoints(), []
    loader = build_eval_loader(task.load_datasets()["validation"], task, accelerator, 4)
    model = untrained(task)

    def stop_at_third_batch():
        calls.append(1)
        return len(calls) == 3

    assert evaluate(model, loader, task, accelerator, stop_at_third_batch) is None
    assert len(calls) == 3
    assert model.training


def test_predictions_come_with_the_ids_of_their_rows(accelerator):
    task = CountedTokens()
    dataset = task.load_datasets()["validation"]
    loader = build_eval_loader(dataset, task, accelerator, 4)
    values = list(iterate_predictions(untrained(task), loader, task, accelerator))
    rows = [row for batch in values for row in batch["row_ids"].tolist()]
    assert sorted(rows) == list(range(23))
    lengths = [dataset.lengths[row] for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    for batch in values:
        assert set(batch) == {
            *("row_ids", "predictions", "references", "losses", "loss_sums", "weight_sums")
        }
        assert {len(value) for value in batch.values()} == {len(batch["row_ids"])}


@dataclass(frozen=True)
class WithoutLabels(CountedPoints):
    def collate(self, examples):
        return {name: value for name, value in super().collate(examples).items() if name == "input"}


def test_rows_without_labels_are_predicted(accelerator):
    task = WithoutLabels()
    loader = build_eval_loader(task.load_datasets()["validation"], task, accelerator, 4)
    values = list(iterate_predictions(untrained(task), loader, task, accelerator))
    assert {name for batch in values for name in batch} == {"row_ids", "predictions"}


class MeanOfWords:
    """A metric like those of the library `evaluate`: its features name its inputs."""

    features: ClassVar = {"predictions": None, "words": None}

    def add_batch(self, predictions, words):
        raise AssertionError


@dataclass(frozen=True)
class MissingValues(CountedPoints):
    def build_metrics(self):
        return [MeanOfWords()]


def test_a_metric_that_needs_more_than_the_task_returns_is_an_error(accelerator):
    with pytest.raises(UserError, match="'MeanOfWords' needs words, but the task gives row_ids"):
        evaluate_split(MissingValues(), "validation", 4, accelerator)


@dataclass(frozen=True)
class WeightlessValidation(CountedPoints):
    def draw_example(self, draw, row):
        return {**super().draw_example(draw, row), "weights": 0.0}


def test_without_a_row_that_counts_the_loss_is_nan(accelerator):
    assert math.isnan(evaluate_split(WeightlessValidation(), "validation", 4, accelerator)["loss"])


@dataclass(frozen=True)
class MeanLoss(CountedPoints):
    def losses(self, outputs, batch):
        return super().losses(outputs, batch).mean()


def test_losses_of_another_shape_than_the_weights_are_an_error(accelerator):
    with pytest.raises(TrainingError, match=r"the losses have shape \(\), but .* \(4,\)"):
        evaluate_split(MeanLoss(), "validation", 4, accelerator)


def test_validation_rows_are_the_same_in_every_evaluation(tmp_path):
    """A random change of a validation row is drawn once; the weights stay as they are."""
    train_toy(Points(noise=0.5), tmp_path / "run", learning_rate=0.0)
    losses = read_values(tmp_path / "run", "loss", "validation")
    assert len(losses) == 3
    assert len(set(losses)) == 1


def test_a_run_that_is_stopped_in_an_evaluation_evaluates_again(tmp_path, monkeypatch):
    """The state is saved without scores. The resumed run begins with the evaluation."""
    train_toy(CountedPoints(), tmp_path / "straight", epochs=2)
    original, calls = StopSignals.agree, []

    def agree(signals, *arguments):
        calls.append(1)
        if len(calls) == 3:  # the first question is before the first step
            signals.reason = "SIGTERM"
        return original(signals, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(StopSignals, "agree", agree)
        with pytest.raises(Stopped, match="stopped after step 1"):
            train_toy(CountedPoints(), tmp_path / "run", epochs=2)
    assert read_values(tmp_path / "run", "loss", "validation") == []
    train_toy(CountedPoints(), tmp_path / "run", epochs=2)
    for split in ("train", "validation"):
        expected = read_values(tmp_path / "straight", "loss", split)
        assert read_values(tmp_path / "run", "loss", split) == expected


# A finished run on texts, through train.py and evaluate.py


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A short run with 11 validation rows and a test split of one row."""
    folder = tmp_path_factory.mktemp("evaluation")
    files = []
    for seed, (split, count) in enumerate({"train": 43, "validation": 11, "test": 1}.items()):
        files += [split, write_csv(folder / f"{split}.csv", sentences(count, seed))]
    options = ["--model", tiny("bert"), "--data.files", *files, "--label", "colour"]
    options += ["--max-length", "32", "--batch-size", "8", "--learning-rate", "5e-3"]
    options += ["--metrics", "accuracy", "f1_macro", "f1_per_class", "roc_auc"]
    trained = run_script("train.py", "configs/text.py", *options, "--run-dir", folder / "run")
    assert trained.code == 0, trained.err
    return folder / "run"


def read_scores(text: str) -> dict[str, Any]:
    """Read scores from JSON, where null stands for NaN: one row has no roc_auc."""

    def with_nan(pairs: dict[str, Any]) -> dict[str, Any]:
        return {name: math.nan if value is None else value for name, value in pairs.items()}

    return json.loads(text, object_hook=with_nan)


def recorded_scores(run: Path) -> dict[str, dict[str, float]]:
    return read_scores((run / "scores.json").read_text())


def test_training_and_evaluate_print_the_same_scores(run):
    recorded = recorded_scores(run)
    for split in ("validation", "test"):
        result = run_script("evaluate.py", run, "--split", split, "--json")
        assert result.code == 0, result.err
        assert read_scores(result.out) == pytest.approx(recorded[split], rel=1e-6, nan_ok=True)
    default = read_scores(run_script("evaluate.py", run, "--json").out)
    assert default == pytest.approx(recorded["test"], nan_ok=True)
    shown = run_script("evaluate.py", run, "--split", "validation").out
    assert f"loss {recorded['validation']['loss']:.4f}" in shown


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 11, 16])
def test_scores_do_not_depend_on_the_batch_size(run, batch_size):
    recorded = recorded_scores(run)["validation"]
    assert evaluate_run(run, "validation", batch_size) == pytest.approx(recorded, rel=1e-6)


# Eleven rows in pieces of two per rank. Four ranks: the last piece has three rows. One row: all
# ranks but one have none.
@pytest.mark.parametrize(("num_processes", "split"), [(2, "test"), (4, "validation")])
def test_scores_do_not_depend_on_the_number_of_processes(run, num_processes, split):
    words = ["evaluate.py", run, "--split", split, "--batch-size", "2", "--json"]
    result = ranks(num_processes, *words)
    assert result.code == 0, result.err
    recorded = recorded_scores(run)[split]
    assert read_scores(result.out) == pytest.approx(recorded, rel=1e-6, nan_ok=True)


def test_the_loss_is_the_mean_over_rows_of_a_plain_forward_pass(run):
    _, task, model = load_run(run)
    rows = task.load_datasets()["validation"]
    model.eval()
    losses = []
    with torch.no_grad():
        for row in range(len(rows)):
            batch = task.collate([rows[row]])
            losses.append(task.losses(model(**model_inputs(batch)), batch).item())
    recorded = recorded_scores(run)["validation"]["loss"]
    assert sum(losses) / len(losses) == pytest.approx(recorded, rel=1e-6)


def test_in_float64_the_loss_is_equal_to_twelve_digits(tiny, tmp_path, accelerator):
    data = Data(files={"train": write_csv(tmp_path / "train.csv", sentences(40))}, validation=13)
    options = {"label_column": "colour", "max_length": 32, "dropout": 0.0}
    task = TextClassification(model=tiny("bert"), data=data, **options)
    rows, model, losses = task.load_datasets()["validation"], task.build_model().double(), []
    for batch_size in (1, 2, 5, 13):
        loader = build_eval_loader(rows, task, accelerator, batch_size)
        losses.append(evaluate(model, loader, task, accelerator)["loss"])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)


def test_a_stream_has_no_scores(tiny, tmp_path):
    for split, count in (("train", 40), ("test", 5)):
        lines = [json.dumps(row) for row in sentences(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    options = ["--data", tmp_path, "--data.streaming", "--data.validation", "8"]
    options += ["--label", "colour", "--max-length", "32", "--max-steps", "1"]
    options += ["--run-dir", tmp_path / "run"]
    trained = run_script("train.py", "configs/text.py", "--model", tiny("bert"), *options)
    assert trained.code == 0, trained.err
    message = "split: 'train' is a stream, which has no end.* can be evaluated: test, validation"
    with pytest.raises(UserError, match=message):
        evaluate_run(tmp_path / "run", "train")


def test_one_process_where_several_were_started_is_an_error(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # in this process, accelerate is set up for one already
    with pytest.raises(UserError, match="accelerate sees 1 of 2 processes"):
        evaluate_run(run)
