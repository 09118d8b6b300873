"""What a run is compared with, and which labels are doubted: against scikit-learn, and planted mistakes are found."""

import dataclasses

import numpy
import pytest
from conftest import COLOURS, run_script, sentences, write_csv
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftloop.config import Config
from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.report import baselines, label_errors
from ftloop.report.features import extract_features
from ftloop.report.linear import dummy, linear, scored_by
from ftloop.report.scored import Scored
from ftloop.report.statistics import intervals, scores
from ftloop.runs.finished import load_run
from ftloop.tasks import TextClassification, metrics


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    counts = {"train": 60, "validation": 23, "test": 21}
    return {
        split: write_csv(folder / f"{split}.csv", sentences(count, seed))
        for seed, (split, count) in enumerate(counts.items())
    }


@pytest.fixture(scope="module")
def run(files, tiny, tmp_path_factory):
    """A run that has learned most of the colours, with five wrong labels in train."""
    folder = tmp_path_factory.mktemp("planted")
    rows = sentences(60, 0)
    for row in rows[::12]:
        row["colour"] = COLOURS[(row["number"] + 1) % 3]
    named = [word for pair in {**files, "train": write_csv(folder / "train.csv", rows)}.items() for word in pair]
    words = ("--model", tiny("bert"), "--max-length", "32", "--data.files", *named)
    sizes = ("--epochs", "8", "--batch-size", "8", "--learning-rate", "5e-3", "--run-dir", folder / "run")
    result = run_script("train.py", "configs/text.py", *words, "--label-column", "colour", *sizes)
    assert result.code == 0, result.err
    return folder / "run"


def config_of(model, files, column="colour", **options):
    task = TextClassification(model=model, data=Data(files=files), label_column=column, max_length=32, **options)
    return Config(task=task, run_dir="runs/none")


def test_the_baselines_are_scikit_learns(tiny, files):
    config = config_of(tiny("bert"), files)
    task = config.task
    majority, words, frozen = baselines.baselines(config)
    texts = {split: task.rows[split]["text"][:] for split in files}
    labels = {
        split: numpy.array([task.labels.names.index(one) for one in task.rows[split]["colour"]]) for split in files
    }
    most = numpy.bincount(labels["train"]).argmax()
    counted = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")  # words of a letter, too
    bag = make_pipeline(counted, LogisticRegression(C=10, max_iter=1000))
    bag.fit(texts["train"], labels["train"])
    model = task.build_model()
    features = {split: extract_features(config, task, model, split)[1] for split in files}
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features["train"], labels["train"])
    for split in ("validation", "test"):
        assert (majority.scored[split].predictions == most).all()
        assert majority.scored[split].probabilities[0] == pytest.approx(numpy.bincount(labels["train"]) / 60)
        assert words.scored[split].probabilities == pytest.approx(bag.predict_proba(texts[split]), abs=1e-2)
        assert frozen.scored[split].probabilities == pytest.approx(probe.predict_proba(features[split]), abs=1e-2)
        for one in (majority, words, frozen):
            assert one.scored[split].references.tolist() == labels[split].tolist()
            assert 0 <= intervals(one.scored[split], task.metric_names, resamples=10)["accuracy"].value <= 1
    assert words.how == "logistic regression, of 60 rows of train"


def test_of_large_splits_some_rows_are_used_and_said(tiny, files, monkeypatch):
    monkeypatch.setattr(baselines, "FROZEN_ROWS", 20)
    monkeypatch.setattr(baselines, "WORD_ROWS", 30)
    _, words, frozen = baselines.baselines(config_of(tiny("bert"), files), splits=("test",))
    assert "of 30 of 60 rows of train, chosen at random" in words.how
    assert "of 20 of 60 rows of train, chosen at random; scored on at most 20 rows of a split" in frozen.how
    assert (frozen.scored["test"].rows, frozen.scored["test"].total, words.scored["test"].rows) == (20, 21, 21)


@pytest.mark.parametrize(("column", "separator"), [("tone", None), ("colour", "e")])
def test_numbers_and_several_labels_have_baselines_too(column, separator, tiny, files):
    config = config_of(tiny("bert"), files, column, label_separator=separator)
    found = {one.name: scores(one.scored["test"], config.task.metric_names) for one in baselines.baselines(config)}
    name = "majority labels" if separator else "mean"
    assert list(found) == [name, "TF-IDF of words and bigrams", "frozen features"]
    assert found["TF-IDF of words and bigrams"]["loss"] < found[name]["loss"]
    if not separator:
        mean = numpy.mean([row["tone"] for row in sentences(60, 0)])
        assert found["mean"]["mse"] == pytest.approx(
            numpy.mean([(row["tone"] - mean) ** 2 for row in sentences(21, 2)])
        )


def test_a_baseline_that_cannot_be_had_is_absent_with_the_reason(tiny, files, run, tmp_path):
    task = load_run(run)[1]
    gone = config_of(str(tmp_path / "gone"), files)
    majority, words, frozen = baselines.baselines(gone, task)  # the rows of the run, which needs no such model
    assert len(words.scored) == len(majority.scored) == 2
    assert (frozen.scored, "cannot be loaded" in frozen.absent) == ({}, True)
    random = baselines.baselines(config_of(tiny("bert"), files, init="random"), splits=("test",))
    assert "random weights" in random[-1].absent
    streamed = config_of(tiny("bert"), files)
    streamed = dataclasses.replace(
        streamed, task=dataclasses.replace(streamed.task, data=Data(files=files, streaming=True))
    )
    (only,) = baselines.baselines(streamed)
    assert "is a stream" in only.absent


def test_classes_that_some_rows_lack_have_probability_0():
    labels = Scored("train", metrics.SINGLE, ("a", "b", "c"), numpy.array([0, 2, 0, 2]), *[None] * 2, numpy.zeros(4))
    features = numpy.array([[0.0], [1], [0.1], [0.9]])
    task = type("Task", (), {"labels": labels, "threshold": 0.5})
    for model in (linear(features, labels.references, labels), dummy(features, labels.references, labels)):
        found = scored_by(model, features, numpy.array([0, 1, 2, 2]), "test", task)
        assert found.probabilities[:, 1].tolist() == [0] * 4
        assert found.losses[1] == pytest.approx(-numpy.log(numpy.finfo(numpy.float32).tiny))
    ridge = dataclasses.replace(labels, problem_type=metrics.REGRESSION, names=())
    values = linear(features, features[:, 0], ridge).predict(features)
    assert values == pytest.approx(
        make_pipeline(StandardScaler(), Ridge()).fit(features, features[:, 0]).predict(features)
    )


# ---- labels that are likely wrong


def planted(multi: bool, rows: int = 300, seed: int = 0) -> tuple[Scored, numpy.ndarray, numpy.ndarray]:
    """Rows around three centres with every twentieth label wrong, a model that knows most of the labels by heart, and
    features that tell the classes."""
    random = numpy.random.default_rng(seed)
    truth = numpy.arange(rows) % 3
    features = numpy.eye(3)[truth] * 4 + random.normal(size=(rows, 3))
    wrong = numpy.zeros(rows, bool)
    wrong[::20] = True
    given = numpy.where(wrong, (truth + 1) % 3, truth)
    references = given
    probabilities = 0.2 + 0.5 * numpy.eye(3)[given] + 0.3 * numpy.eye(3)[truth] - 0.2 / 3
    if multi:
        references = numpy.eye(3, dtype=bool)[truth] | (numpy.arange(3) == 0)  # the first label is everywhere
        references[wrong, truth[wrong]] = ~references[wrong, truth[wrong]]
        probabilities = 0.2 + 0.3 * references + 0.3 * (numpy.eye(3)[truth] + (numpy.arange(3) == 0) > 0)
    else:
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    kind = metrics.MULTI if multi else metrics.SINGLE
    predictions = probabilities >= 0.5 if multi else probabilities.argmax(axis=1)
    scored = Scored("train", kind, ("a", "b", "c"), references, predictions, probabilities, random.random(rows))
    return scored, features, wrong


@pytest.mark.parametrize("multi", [False, True])
def test_planted_labels_are_the_first(multi):
    scored, features, wrong = planted(multi)
    second = label_errors.out_of_fold(features, scored)
    found = label_errors.label_errors(scored, second)
    assert wrong[found.places[:15]].mean() >= 0.9
    assert sorted(found.places.tolist()) == [*range(300)]
    assert 10 <= found.likely <= 25
    assert (numpy.diff(found.confidence) >= 0).all()
    first = next(number for number, place in enumerate(found.places) if place == 20)
    assert found.suggestion(first) == ("+ c" if multi else "a -> c")


def test_the_second_opinion_has_not_seen_the_row_and_of_rare_classes_there_is_none():
    scored, features, _ = planted(False, rows=40)
    rare = dataclasses.replace(scored, references=numpy.where(numpy.arange(40) < 3, 2, scored.references % 2))
    second = label_errors.out_of_fold(features, rare, folds=5)
    assert numpy.isnan(second[:3]).all()
    assert second[3:].sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert label_errors.together(rare.probabilities, second)[:3] == pytest.approx(rare.probabilities[:3])
    # Features that name the row tell nothing of a row that was held out: no label is known by heart.
    names = numpy.eye(40)
    own = label_errors.out_of_fold(names, scored)[numpy.arange(40), scored.references]
    assert own.max() < 0.5


def test_how_many_are_wrong_is_the_confident_joint():
    truth = numpy.array([0, 0, 0, 0, 1, 1])
    probabilities = numpy.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6]])
    # Thresholds 0.7 and 0.75. Rows 0 to 4 reach one; of class 0, row 3 is counted to class 1: 1 of 4.
    assert label_errors.expected(probabilities, truth) == 1
    assert label_errors.expected(numpy.eye(2)[truth], truth) == 0


def test_of_a_run_its_planted_rows(run):
    scored, found, said = label_errors.of_run(run)
    assert scored.rows == 60
    assert found.opinions == 2
    assert "in 5 folds" in said
    assert len({*range(0, 60, 12)} & {*scored.row_ids[found.places[:10]].tolist()}) >= 4
    with pytest.raises(UserError, match="doubted by probabilities"):
        label_errors.label_errors(dataclasses.replace(scored, probabilities=None))
