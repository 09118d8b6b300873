"""Planted label errors are found, also if the model has memorized them."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy
import pytest
from conftest import COLOURS, run_script, write_csv
from scored_splits import random_split

from ftloop.errors import UserError
from ftloop.report.label_errors import (
    combine_opinions,
    estimate_label_errors,
    find_label_errors,
    predict_out_of_fold,
    rank_by_doubt,
)
from ftloop.report.scored import ScoredSplit
from ftloop.tasks import metrics


def plant_errors(
    is_multi_label: bool, rows: int = 300
) -> tuple[ScoredSplit, numpy.ndarray, numpy.ndarray]:
    """Return a scored split, features that separate the classes, and which labels are wrong.

    Every twentieth label is wrong, and the model has memorized most of the labels.
    """
    generator = numpy.random.default_rng(0)
    truth = numpy.arange(rows) % 3
    features = 4 * numpy.eye(3)[truth] + generator.normal(size=(rows, 3))
    is_wrong = numpy.arange(rows) % 20 == 0
    if is_multi_label:
        # Every row has the label a, and the rows of b and c have their own label too.
        true_labels = numpy.eye(3, dtype=bool)[truth]
        true_labels[:, 0] = True
        references = true_labels.copy()
        references[is_wrong, truth[is_wrong]] ^= True
        probabilities = 0.2 + 0.3 * references + 0.3 * true_labels
        predictions = probabilities >= 0.5
    else:
        references = numpy.where(is_wrong, (truth + 1) % 3, truth)
        probabilities = 0.2 + 0.5 * numpy.eye(3)[references] + 0.3 * numpy.eye(3)[truth]
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        predictions = probabilities.argmax(axis=1)
    scored = ScoredSplit(
        split="train",
        problem_type=metrics.MULTI if is_multi_label else metrics.SINGLE,
        names=("a", "b", "c"),
        references=references,
        predictions=predictions,
        probabilities=probabilities,
        losses=generator.random(rows),
    )
    return scored, features, is_wrong


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_planted_errors_are_ranked_first(is_multi_label):
    scored, features, is_wrong = plant_errors(is_multi_label)
    errors = rank_by_doubt(scored, predict_out_of_fold(features, scored))
    assert is_wrong[errors.places[:15]].mean() >= 0.9
    assert sorted(errors.places.tolist()) == list(range(300))
    assert 10 <= errors.estimate <= 25
    assert (numpy.diff(errors.confidence) >= 0).all()
    rank = errors.places.tolist().index(20)  # a row of c, which was given the label a
    assert errors.suggestions[rank] == ("+ c" if is_multi_label else "c")


def test_the_second_opinion_has_not_seen_the_label_that_it_judges():
    scored, _, _ = plant_errors(False, rows=40)
    # Features that identify the row say nothing about a row that was held out.
    identity = numpy.eye(40)
    probabilities = predict_out_of_fold(identity, scored)
    assert probabilities[numpy.arange(40), scored.references].max() < 0.5


def test_there_is_no_second_opinion_on_rare_classes():
    scored, features, _ = plant_errors(False, rows=40)
    labels = numpy.where(numpy.arange(40) < 3, 2, scored.references % 2)
    rare = replace(scored, references=labels)
    second_opinion = predict_out_of_fold(features, rare, folds=5)
    assert numpy.isnan(second_opinion[:3]).all()
    assert second_opinion[3:].sum(axis=1) == pytest.approx(1, abs=1e-5)
    combined = combine_opinions(rare.probabilities, second_opinion)
    assert combined[:3] == pytest.approx(rare.probabilities[:3])


def test_the_estimate_is_that_of_the_confident_joint():
    labels = numpy.array([0, 0, 0, 0, 1, 1])
    of_class_1 = numpy.array([0.1, 0.2, 0.1, 0.8, 0.9, 0.6])
    probabilities = numpy.stack([1 - of_class_1, of_class_1], axis=1)
    # The thresholds are 0.7 and 0.75. Rows 0 to 4 reach one of them, and row 3, one of four rows
    # of class 0, reaches that of class 1.
    assert estimate_label_errors(probabilities, labels) == 1
    assert estimate_label_errors(numpy.eye(2)[labels], labels) == 0


def test_errors_need_probabilities():
    scored, _, _ = plant_errors(False)
    for without in (replace(scored, probabilities=None), random_split(metrics.REGRESSION)):
        with pytest.raises(UserError, match="returns no probabilities for the rows of"):
            rank_by_doubt(without)


# ---- a run

TRUE_COLOURS = [
    (f"{article} {noun} {verb} {colour}", colour)
    for article, noun, verb, colour in itertools.product(
        ("the", "a", "this", "that"),
        ("sky", "grass", "sea", "rose"),
        ("is", "was", "looks", "seems"),
        COLOURS,
    )
]
PLANTED = range(0, len(TRUE_COLOURS), 13)  # 15 of 192 rows, of all colours


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run on short sentences whose label is the colour in them, except for the planted rows.

    The signal is so clear that any seed finds the planted rows: the method must find all of them.
    """
    folder = tmp_path_factory.mktemp("planted")
    rows = [{"text": text, "colour": colour} for text, colour in TRUE_COLOURS]
    correct_rows = [row for index, row in enumerate(rows) if index not in PLANTED]
    validation = write_csv(folder / "validation.csv", correct_rows[:30])
    for index in PLANTED:
        wrong = COLOURS[(COLOURS.index(rows[index]["colour"]) + 1) % 3]
        rows[index] = {**rows[index], "colour": wrong}
    train = write_csv(folder / "train.csv", rows)
    command = ["train.py", "configs/text.py", "--model", tiny("bert"), "--run-dir", folder / "run"]
    command += ["--label-column", "colour", "--max-length", "16", "--epochs", "3"]
    command += ["--batch-size", "16", "--learning-rate", "5e-3", "--data.files", "train", train]
    result = run_script(*command, "validation", validation)
    assert result.code == 0, result.err
    return folder / "run"


def test_the_planted_rows_of_a_run_are_found(run):
    scored, errors, opinions = find_label_errors(run)
    assert scored.rows == len(TRUE_COLOURS)
    assert "in 5 folds" in opinions
    first_rows = scored.row_ids[errors.places[: len(PLANTED)]].tolist()
    assert sorted(first_rows) == list(PLANTED)
    true_colours = [TRUE_COLOURS[row][1] for row in first_rows]
    assert errors.suggestions[: len(PLANTED)] == true_colours
    assert errors.estimate == len(PLANTED)


def test_without_the_pretrained_model_the_run_alone_judges(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    record["config"]["task"]["model"] = str(tmp_path / "missing")
    (copy / "config.json").write_text(json.dumps(record))
    scored, errors, opinions = find_label_errors(copy, max_rows=100)
    assert (scored.rows, len(errors.places)) == (100, 100)
    assert opinions.startswith("the probabilities of the run alone (")
    of_labels = scored.probabilities[numpy.arange(100), scored.references]
    assert errors.confidence == pytest.approx(numpy.sort(of_labels))
