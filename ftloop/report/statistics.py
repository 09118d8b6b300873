"""Statistics of a scored split: per class, confusion, calibration, precision over recall, ranks.

The functions take a ScoredSplit and return arrays. bootstrap.py has the intervals of scores, and
thresholds.py chooses the thresholds of several labels.
"""

from dataclasses import dataclass

import numpy

from ftloop.errors import UserError
from ftloop.report.scored import ScoredSplit
from ftloop.report.weighted_scores import LabelCounts

Array = numpy.ndarray


# ---- classes and labels


@dataclass(frozen=True)
class ScoresPerClass:
    """Arrays over classes or labels; 0 divided by 0 is 0."""

    names: tuple[str, ...]
    precision: Array
    recall: Array
    f1: Array
    support: Array  # int: rows with the label
    true_positives: Array  # int: rows with the label that were predicted to have it
    false_negatives: Array
    false_positives: Array


def scores_per_class(scored: ScoredSplit) -> ScoresPerClass:
    """Return the scores and the numbers of rows of each class or label."""
    counts = LabelCounts.count(scored, numpy.ones((1, scored.rows)))
    return ScoresPerClass(
        names=scored.names,
        precision=counts.ratio("precision")[0],
        recall=counts.ratio("recall")[0],
        f1=counts.ratio("f1")[0],
        support=counts.actual[0].astype(int),
        true_positives=counts.true_positives[0].astype(int),
        false_negatives=(counts.actual - counts.true_positives)[0].astype(int),
        false_positives=(counts.predicted - counts.true_positives)[0].astype(int),
    )


def confusion_matrix(scored: ScoredSplit) -> Array:
    """Return numbers of rows, int [true class, predicted class], for one label per row."""
    import sklearn.metrics

    return sklearn.metrics.confusion_matrix(
        scored.references, scored.predictions, labels=range(len(scored.names))
    )


def count_co_occurrences(scored: ScoredSplit) -> tuple[Array, Array]:
    """Return how many rows have both of two labels, int [labels, labels]: true and predicted.

    On the diagonal are the rows that have a label.
    """
    true, predicted = scored.references.astype(int), scored.predictions.astype(int)
    return true.T @ true, predicted.T @ predicted


# ---- probabilities


@dataclass(frozen=True)
class Calibration:
    """Arrays over bins of equal width; NaN for the means of an empty bin."""

    edges: Array  # [bins + 1], from 0 to 1; a bin includes its upper edge
    counts: Array  # int [bins]
    confidence: Array  # [bins], the mean probability
    accuracy: Array  # [bins], the share that is right
    ece: float  # expected calibration error: mean of |confidence - accuracy|, weighted by counts


def calibration(scored: ScoredSplit, bins: int = 15) -> Calibration:
    """Compare probabilities with how often they are right (Guo et al., 2017, arXiv:1706.04599).

    With one label per row, these are the probability of the predicted class, and whether it is
    correct. With several, they are the probability of each row and label, and whether the row has
    the label. Raises UserError if there are no probabilities.
    """
    probabilities = require_probabilities(scored)
    if scored.is_multi_label:
        confidence, is_right = probabilities.ravel(), scored.references.ravel()
    else:
        confidence = probabilities[numpy.arange(scored.rows), scored.predictions]
        is_right = ~scored.wrong
    edges = numpy.linspace(0, 1, bins + 1)
    bin_ids = numpy.searchsorted(edges[1:-1], confidence)
    counts = numpy.bincount(bin_ids, minlength=bins)
    confidence_sums = numpy.bincount(bin_ids, confidence.astype(float), minlength=bins)
    right_sums = numpy.bincount(bin_ids, is_right.astype(float), minlength=bins)
    with numpy.errstate(invalid="ignore"):
        return Calibration(
            edges=edges,
            counts=counts,
            confidence=confidence_sums / counts,
            accuracy=right_sums / counts,
            ece=float(numpy.abs(confidence_sums - right_sums).sum() / counts.sum()),
        )


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision over recall for a class or label against the rest, in order of recall."""

    name: str
    recall: Array
    precision: Array
    thresholds: Array  # the lowest probability of rows that count as predicted
    average_precision: float  # of the curve with all its points


def precision_recall_curves(
    scored: ScoredSplit, max_points: int = 100
) -> list[PrecisionRecallCurve]:
    """Return the curve of each class or label that some row has, with at most `max_points` points.

    The points are spread evenly over recall. Raises UserError if there are no probabilities.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    probabilities = require_probabilities(scored)
    curves = []
    for label, name in enumerate(scored.names):
        has_label = scored.has_label(label)
        if not has_label.any():  # recall is not defined
            continue
        values = probabilities[:, label]
        precision, recall, thresholds = precision_recall_curve(has_label, values)
        thresholds = numpy.append(thresholds, numpy.inf)  # at recall 0, no row is predicted
        recall, precision, thresholds = recall[::-1], precision[::-1], thresholds[::-1]
        points = numpy.searchsorted(recall, numpy.linspace(0, 1, max_points))
        points = numpy.unique(points.clip(max=len(recall) - 1))
        curves.append(
            PrecisionRecallCurve(
                name=name,
                recall=recall[points],
                precision=precision[points],
                thresholds=thresholds[points],
                average_precision=float(average_precision_score(has_label, values)),
            )
        )
    return curves


def require_probabilities(scored: ScoredSplit) -> Array:
    """Return the probabilities. Raises UserError if there are none."""
    if scored.probabilities is None:
        raise UserError(f"the task returns no probabilities for the rows of {scored.split}.")
    return scored.probabilities


# ---- rows


def rank_by_loss(scored: ScoredSplit, count: int, highest: bool = True) -> Array:
    """Return the places of the rows with the highest losses, the highest first; or the lowest.

    A loss that is NaN counts as the highest. Of equal losses, the earlier row comes first.
    """
    losses = numpy.nan_to_num(scored.losses, nan=numpy.inf)
    return numpy.argsort(-losses if highest else losses, kind="stable")[:count]
