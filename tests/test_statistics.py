"""The statistics of a split agree with scikit-learn and with plain loops."""

from dataclasses import replace

import numpy
import pytest
from scored_splits import random_split
from sklearn.metrics import average_precision_score, f1_score, multilabel_confusion_matrix

from ftloop.errors import UserError
from ftloop.report import statistics
from ftloop.report.thresholds import (
    apply_thresholds,
    best_threshold,
    choose_thresholds,
    f1_by_threshold,
)
from ftloop.tasks import metrics


def test_the_confusion_matrix_counts_rows():
    scored = random_split(metrics.SINGLE)
    counts = statistics.confusion_matrix(scored)
    for true in range(4):
        for predicted in range(4):
            is_counted = (scored.references == true) & (scored.predictions == predicted)
            assert counts[true, predicted] == is_counted.sum()


def test_co_occurrences_count_rows_with_both_labels():
    scored = random_split(metrics.MULTI)
    true, predicted = statistics.count_co_occurrences(scored)
    for one in range(4):
        for other in range(4):
            for counts, labels in ((true, scored.references), (predicted, scored.predictions)):
                assert counts[one, other] == (labels[:, one] & labels[:, other]).sum()


@pytest.mark.parametrize("problem_type", [metrics.SINGLE, metrics.MULTI])
def test_scores_per_class_are_those_of_scikit_learn(problem_type):
    scored = random_split(problem_type)
    result = statistics.scores_per_class(scored)
    labels = range(4)
    expected = f1_score(
        scored.references, scored.predictions, average=None, labels=labels, zero_division=0
    )
    assert result.f1 == pytest.approx(expected)
    counts = multilabel_confusion_matrix(scored.references, scored.predictions, labels=labels)
    assert result.true_positives.tolist() == counts[:, 1, 1].tolist()
    assert result.false_negatives.tolist() == counts[:, 1, 0].tolist()
    assert result.false_positives.tolist() == counts[:, 0, 1].tolist()
    assert result.support.tolist() == counts[:, 1].sum(axis=1).tolist()
    assert result.support[-1] == result.precision[-1] == 0


# ---- probabilities


@pytest.mark.parametrize("problem_type", [metrics.SINGLE, metrics.MULTI])
def test_calibration_is_that_of_a_plain_loop(problem_type):
    scored = random_split(problem_type)
    # No probability is on the edge of a bin.
    scored = replace(scored, probabilities=scored.probabilities * 0.999)
    if scored.is_multi_label:
        probabilities, is_right = scored.probabilities.ravel(), scored.references.ravel()
    else:
        probabilities, is_right = scored.probabilities.max(axis=1), ~scored.wrong
    result = statistics.calibration(scored)
    ece = 0.0
    for index in range(15):
        in_bin = (probabilities > index / 15) & (probabilities <= (index + 1) / 15)
        if index == 0:
            in_bin |= probabilities == 0
        assert result.counts[index] == in_bin.sum()
        if in_bin.any():
            confidence, accuracy = probabilities[in_bin].mean(), is_right[in_bin].mean()
            assert result.confidence[index] == pytest.approx(confidence)
            assert result.accuracy[index] == pytest.approx(accuracy)
            ece += in_bin.mean() * abs(confidence - accuracy)
        else:
            assert numpy.isnan([result.confidence[index], result.accuracy[index]]).all()
    assert result.ece == pytest.approx(ece)


def test_a_model_that_is_always_certain_is_as_far_off_as_it_is_wrong():
    scored = random_split(metrics.SINGLE)
    certain = replace(scored, probabilities=numpy.eye(4)[scored.predictions])
    assert statistics.calibration(certain).ece == pytest.approx(scored.wrong.mean())
    with pytest.raises(UserError, match="returns no probabilities for the rows of test"):
        statistics.calibration(replace(scored, probabilities=None))


@pytest.mark.parametrize("problem_type", [metrics.SINGLE, metrics.MULTI])
def test_precision_recall_curves_are_those_of_scikit_learn_with_fewer_points(problem_type):
    scored = random_split(problem_type, rows=400)
    curves = statistics.precision_recall_curves(scored, max_points=30)
    labels = [label for label in range(4) if scored.has_label(label).any()]
    assert [curve.name for curve in curves] == [scored.names[label] for label in labels]
    for label, curve in zip(labels, curves, strict=True):
        truth, probabilities = scored.has_label(label), scored.probabilities[:, label]
        average_precision = average_precision_score(truth, probabilities)
        assert curve.average_precision == pytest.approx(average_precision)
        assert len(curve.recall) <= 30
        assert (curve.recall[0], curve.precision[0], curve.recall[-1]) == (0, 1, 1)
        for index, threshold in enumerate(curve.thresholds):
            is_predicted = probabilities >= threshold
            true_positives = (is_predicted & truth).sum()
            precision = true_positives / is_predicted.sum() if is_predicted.any() else 1
            assert curve.recall[index] == pytest.approx(true_positives / truth.sum())
            assert curve.precision[index] == pytest.approx(precision)


# ---- thresholds


def test_thresholds_have_the_best_f1_on_validation():
    validation = random_split(metrics.MULTI, rows=300)
    truth, probabilities = validation.references, validation.probabilities
    chosen = choose_thresholds(validation)
    tried = numpy.unique(probabilities)

    for label in range(3):

        def f1(threshold, label=label):
            return f1_score(truth[:, label], probabilities[:, label] >= threshold)

        best = max(f1(threshold) for threshold in tried)
        assert f1(chosen.per_label[label]) == pytest.approx(best)

    def f1_micro(predictions):
        return f1_score(truth, predictions, average="micro")

    best = max(f1_micro(probabilities >= threshold) for threshold in tried)
    applied = apply_thresholds(validation, chosen.common)
    assert f1_micro(applied.predictions) == pytest.approx(best)
    assert chosen.uses_common.tolist() == [False, False, False, True]
    assert chosen.per_label[3] == chosen.common

    grid = numpy.linspace(0.1, 0.9, 9)
    by_threshold = f1_by_threshold(validation, grid)
    expected = [f1_micro(probabilities >= threshold) for threshold in grid]
    assert by_threshold["f1_micro"] == pytest.approx(expected)
    assert max(expected) <= best + 1e-9


def test_a_threshold_lies_halfway_between_two_probabilities():
    probabilities = numpy.array([0.1, 0.2, 0.6, 0.9], dtype="float32")
    assert best_threshold(probabilities, numpy.array([0, 0, 1, 1])) == pytest.approx(0.4)
    assert best_threshold(probabilities, numpy.array([1, 1, 1, 1])) == pytest.approx(0.05)
    assert best_threshold(probabilities, numpy.array([0, 0, 0, 0])) == 0.5


def test_thresholds_change_the_predictions_and_nothing_else():
    scored = random_split(metrics.MULTI, rows=200, seed=1)
    thresholds = numpy.array([0.2, 0.3, 0.4, 0.5])
    applied = apply_thresholds(scored, thresholds)
    assert (applied.predictions == (scored.probabilities >= thresholds)).all()
    for name in ("references", "probabilities", "losses", "row_ids"):
        assert getattr(applied, name) is getattr(scored, name)
    with pytest.raises(UserError, match="several labels"):
        choose_thresholds(random_split(metrics.SINGLE))


# ---- rows


def test_rows_are_ranked_by_loss():
    losses = numpy.array([1.0, numpy.nan, 3.0, 1.0])
    scored = replace(random_split(metrics.SINGLE, rows=4), losses=losses)
    assert statistics.rank_by_loss(scored, 3).tolist() == [1, 2, 0]
    assert statistics.rank_by_loss(scored, 2, highest=False).tolist() == [0, 3]
