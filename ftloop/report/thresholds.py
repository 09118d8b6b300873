"""Choose the probabilities from which labels are predicted, for rows with several labels."""

from dataclasses import dataclass, replace

import numpy

from ftloop.errors import UserError
from ftloop.report.scored import ScoredSplit
from ftloop.report.statistics import require_probabilities
from ftloop.report.weighted_scores import compute_scores

Array = numpy.ndarray

MIN_POSITIVES = 10  # rows with a label on validation that it needs for a threshold of its own


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that were chosen on a validation split."""

    common: float  # one for all labels, with the best micro F1
    per_label: Array  # [labels], with the best F1 of each label
    uses_common: Array  # bool [labels]: too rare on validation for a threshold of its own


def choose_thresholds(validation: ScoredSplit) -> Thresholds:
    """Return the thresholds with the best F1 on `validation`.

    No other rows are used, so the scores that they give on test are not too optimistic. A label
    with fewer than 10 rows gets the common threshold, because the best one of so few rows is mostly
    chance. Raises UserError for tasks with one label per row, and if there are no probabilities.
    """
    if not validation.is_multi_label:
        raise UserError("thresholds need several labels per row; of one, the most likely is taken.")
    probabilities, truth = require_probabilities(validation), validation.references
    common = best_threshold(probabilities.ravel(), truth.ravel())
    uses_common = truth.sum(axis=0) < MIN_POSITIVES
    per_label = numpy.full(len(validation.names), common)
    for label in numpy.flatnonzero(~uses_common):
        per_label[label] = best_threshold(probabilities[:, label], truth[:, label])
    return Thresholds(common, per_label, uses_common)


def best_threshold(probabilities: Array, truth: Array) -> float:
    """Return the threshold with the best F1, or 1/2 if nothing is true.

    F1 changes at the probabilities only. The threshold is put halfway between the lowest that
    counts as predicted and the next one below (Lipton et al., 2014, arXiv:1402.1892, explain why it
    is lower than 1/2).
    """
    from sklearn.metrics import precision_recall_curve

    if not truth.any():
        return 0.5
    precision, recall, thresholds = precision_recall_curve(truth, probabilities.astype(float))
    with numpy.errstate(invalid="ignore"):  # no precision and no recall: NaN
        f1 = 2 * precision * recall / (precision + recall)
    best = int(numpy.nanargmax(f1[:-1]))  # the last point predicts nothing
    next_below = thresholds[best - 1] if best > 0 else 0.0
    return float((thresholds[best] + next_below) / 2)


def apply_thresholds(scored: ScoredSplit, thresholds: float | Array) -> ScoredSplit:
    """Return the rows with the predictions that other thresholds give."""
    return replace(scored, predictions=require_probabilities(scored) >= numpy.asarray(thresholds))


def f1_by_threshold(scored: ScoredSplit, thresholds: Array) -> dict[str, Array]:
    """Return micro and macro F1, float [thresholds], for one threshold for all labels."""
    names = ("f1_micro", "f1_macro")
    by_threshold = [
        compute_scores(apply_thresholds(scored, threshold), names) for threshold in thresholds
    ]
    return {
        name: numpy.array([of_threshold[name] for of_threshold in by_threshold]) for name in names
    }
