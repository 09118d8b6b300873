"""The baselines of a run are the models of scikit-learn."""

import numpy
import pytest
from conftest import sentences, write_csv
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftloop.config import Config
from ftloop.data import Data
from ftloop.report import baselines
from ftloop.report.baselines import fit_baselines
from ftloop.report.bootstrap import intervals
from ftloop.report.features import extract_features
from ftloop.report.linear import fit_dummy, fit_linear, score_model
from ftloop.report.scored import ScoredSplit
from ftloop.report.weighted_scores import compute_scores
from ftloop.tasks import TextClassification, metrics


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("baselines")
    counts = {"train": 60, "validation": 23, "test": 21}
    return {
        split: write_csv(folder / f"{split}.csv", sentences(count, seed))
        for seed, (split, count) in enumerate(counts.items())
    }


def make_config(model, files, column="colour", **options) -> Config:
    data = Data(files=files, streaming=options.pop("streaming", False))
    task = TextClassification(model=model, data=data, label_column=column, max_length=32, **options)
    return Config(task=task, run_dir="runs/none")


def test_the_baselines_are_those_of_scikit_learn(tiny, files):
    config = make_config(tiny("bert"), files)
    task = config.task
    majority, tfidf, frozen = fit_baselines(config)
    texts, labels = {}, {}
    for split in files:
        texts[split] = task.rows[split]["text"][:]
        colours = task.rows[split]["colour"]
        labels[split] = numpy.array([task.labels.names.index(colour) for colour in colours])
    counts = numpy.bincount(labels["train"])

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    bag_of_words = make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=1000))
    bag_of_words.fit(texts["train"], labels["train"])

    model = task.build_model()
    features = {split: extract_features(config, task, model, split)[1] for split in files}
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features["train"], labels["train"])

    for split in ("validation", "test"):
        assert (majority.scored[split].predictions == counts.argmax()).all()
        assert majority.scored[split].probabilities[0] == pytest.approx(counts / 60)
        expected = bag_of_words.predict_proba(texts[split])
        assert tfidf.scored[split].probabilities == pytest.approx(expected, abs=1e-2)
        expected = probe.predict_proba(features[split])
        assert frozen.scored[split].probabilities == pytest.approx(expected, abs=1e-2)
        for baseline in (majority, tfidf, frozen):
            outputs = baseline.scored[split]
            assert outputs.references.tolist() == labels[split].tolist()
            result = intervals(outputs, task.metric_names, resamples=10)
            assert 0 <= result["accuracy"].value <= 1
    assert tfidf.description == "logistic regression, fitted on 60 rows of train"


def test_each_column_of_a_pair_has_its_own_words(tiny, tmp_path):
    # The label depends on the second text, and both texts have the same words.
    rows = sentences(40, 0)
    pairs = []
    for first, second in zip(rows, reversed(rows), strict=True):
        pairs.append({"one": first["text"], "two": second["text"], "colour": second["colour"]})
    files = {split: write_csv(tmp_path / f"{split}.csv", pairs) for split in ("train", "test")}
    config = make_config(tiny("bert"), files, text_columns=("one", "two"))
    _, tfidf, _ = fit_baselines(config)
    assert not tfidf.scored["test"].wrong.any()


def test_large_splits_are_sampled_and_the_description_says_so(tiny, files, monkeypatch):
    monkeypatch.setattr(baselines, "FROZEN_ROWS", 20)
    monkeypatch.setattr(baselines, "TFIDF_ROWS", 30)
    _, tfidf, frozen = fit_baselines(make_config(tiny("bert"), files), splits=("test",))
    assert tfidf.description.endswith("fitted on 30 of 60 rows of train, chosen at random")
    assert frozen.description.endswith(
        "fitted on 20 of 60 rows of train, chosen at random; scored on at most 20 rows of a split"
    )
    assert (frozen.scored["test"].rows, frozen.scored["test"].total) == (20, 21)
    assert tfidf.scored["test"].rows == 21


@pytest.mark.parametrize(("column", "separator"), [("tone", None), ("colour", "e")])
def test_regression_and_several_labels_have_baselines_too(column, separator, tiny, files):
    config = make_config(tiny("bert"), files, column, label_separator=separator)
    scores = {
        baseline.name: compute_scores(baseline.scored["test"], config.task.metric_names)
        for baseline in fit_baselines(config)
    }
    name = "majority labels" if separator else "mean"
    assert list(scores) == [name, "TF-IDF of words and bigrams", "frozen features"]
    assert scores["TF-IDF of words and bigrams"]["loss"] < scores[name]["loss"]
    if not separator:
        mean = numpy.mean([row["tone"] for row in sentences(60, 0)])
        expected = numpy.mean([(row["tone"] - mean) ** 2 for row in sentences(21, 2)])
        assert scores["mean"]["mse"] == pytest.approx(expected)


def test_a_baseline_that_cannot_be_fitted_says_why(tiny, files, tmp_path):
    config = make_config(tiny("bert"), files)
    # The task of a finished run has its rows, so the missing model is not needed for them.
    missing = make_config(str(tmp_path / "missing"), files)
    finished_task = config.task
    assert len(finished_task.rows) == 3
    assert finished_task.labels.names == ("blue", "green", "red")
    majority, tfidf, frozen = fit_baselines(missing, finished_task)
    assert len(tfidf.scored) == len(majority.scored) == 2
    assert frozen.scored == {}
    assert "cannot be loaded" in frozen.description

    random = make_config(tiny("bert"), files, init="random")
    frozen = fit_baselines(random, splits=("test",))[-1]
    assert frozen.scored == {}
    assert "random weights" in frozen.description

    (majority,) = fit_baselines(make_config(tiny("bert"), files, streaming=True))
    assert majority.scored == {}
    assert "is a stream" in majority.description


def test_texts_without_words_have_no_tfidf_baseline(tiny, tmp_path):
    rows = [{"text": "!?", "colour": colour} for colour in ("red", "blue") * 5]
    files = {split: write_csv(tmp_path / f"{split}.csv", rows) for split in ("train", "validation")}
    _, tfidf, _ = fit_baselines(make_config(tiny("bert"), files))
    assert tfidf.scored == {}
    assert "empty vocabulary" in tfidf.description


def test_a_class_without_training_rows_has_probability_0():
    train = ScoredSplit(
        split="train",
        problem_type=metrics.SINGLE,
        names=("a", "b", "c"),
        references=numpy.array([0, 2, 0, 2]),
        predictions=numpy.array([0, 2, 0, 2]),
        probabilities=None,
        losses=numpy.zeros(4),
    )
    features = numpy.array([[0.0], [1], [0.1], [0.9]])
    task = type("Task", (), {"labels": train, "threshold": 0.5})
    for model in (
        fit_linear(features, train.references, train),
        fit_dummy(train.references, train),
    ):
        scored = score_model(model, features, numpy.array([0, 1, 2, 2]), "test", task)
        assert scored.probabilities[:, 1].tolist() == [0] * 4
        assert scored.losses[1] == pytest.approx(-numpy.log(numpy.finfo(numpy.float32).tiny))


def test_a_linear_model_of_numbers_is_ridge_regression_on_scaled_features():
    features = numpy.array([[0.0], [1], [0.1], [0.9]])
    labels = type("Labels", (), {"problem_type": metrics.REGRESSION, "is_multi_label": False})
    expected = make_pipeline(StandardScaler(), Ridge()).fit(features, features[:, 0])
    model = fit_linear(features, features[:, 0], labels)
    assert model.predict(features) == pytest.approx(expected.predict(features))
