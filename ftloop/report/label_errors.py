"""Find training rows whose labels are likely wrong.

A fine-tuned model was trained on these rows and may have memorized their wrong labels, so its own
probabilities say little. A second opinion has not seen the labels that it judges: logistic
regression on the features of the pretrained model, fitted on the other folds of the rows. (The
features of the fine-tuned model have moved towards the given labels, and found fewer errors.)

The opinions are combined by a geometric mean in which the second one counts twice; equal weights
found as many errors if nothing was memorized, and fewer if something was. Rows are ranked by the
combined probability of their own label, and confident learning (Northcutt et al., 2021,
arXiv:1911.00068) estimates how many labels are wrong. `python -m benchmarks.label_noise` measures
all of this on planted errors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from ftloop.errors import UserError
from ftloop.report.features import extract_features, initial_task
from ftloop.report.linear import fit_linear, predict_probabilities
from ftloop.report.scored import ScoredSplit, score_split
from ftloop.report.statistics import require_probabilities
from ftloop.runs.record import load_config

Array = numpy.ndarray

FOLDS = 5
# scikit-learn's C of the logistic regression. If some labels are wrong, so strong a penalty finds
# more of them than the default of 1, and it converges several times faster.
INVERSE_PENALTY = 0.01
SECOND_OPINION_WEIGHT = 2 / 3
# Added to probabilities, so that one opinion that is certain does not decide alone.
SMOOTHING = 1e-4


@dataclass(frozen=True)
class LabelErrors:
    """The rows of a ScoredSplit, the most doubtful label first."""

    places: Array  # int [rows]
    confidence: Array  # float [rows], in the label; with several labels, in the most doubtful one
    suggestions: list[str]  # another class; with several labels "+ joy" or "- joy"
    estimate: int  # how many labels are wrong: those of this many of the first rows


def find_label_errors(
    run_dir: str | Path, split: str = "train", task: Any = None, *, max_rows: int = 10_000
) -> tuple[ScoredSplit, LabelErrors, str]:
    """Score a split of a finished run and rank its rows by how doubtful their labels are.

    The third result describes the opinions that were used. Without the pretrained model (its folder
    is missing, or training began with random weights), it is that of the run alone. Of a split with
    more than `max_rows` rows, so many are chosen at random. `task` is the task of the finished run,
    if the caller has it. Raises UserError as `score_split` does, and if there are no probabilities,
    as in regression.
    """
    config = load_config(run_dir)
    scored = score_split(run_dir, split, task, max_rows=max_rows)
    require_probabilities(scored)
    own_opinion = "the probabilities of the run alone"
    if config.task.init == "random":
        reason = "training began with random weights"
        return scored, rank_by_doubt(scored), f"{own_opinion} ({reason})"
    try:
        start = initial_task(config, task)
        _, features = extract_features(config, start, start.build_model(), split, max_rows=max_rows)
    except UserError as error:
        return scored, rank_by_doubt(scored), f"{own_opinion} ({error})"
    second_opinion = predict_out_of_fold(features, scored, seed=config.seed)
    opinions = (
        f"the probabilities of the run and a logistic regression, in {FOLDS} folds, on the "
        f"features of {config.task.model}"
    )
    return scored, rank_by_doubt(scored, second_opinion), opinions


# ---- ranking


def rank_by_doubt(scored: ScoredSplit, second_opinion: Array | None = None) -> LabelErrors:
    """Rank rows by the probability of their label, the lowest first.

    `second_opinion` is probabilities, float [rows, labels], of another model; NaN if it has none
    for a row or label. Raises UserError if the run has no probabilities, as in regression.
    """
    own_opinion = require_probabilities(scored).astype(float)
    if scored.is_multi_label:
        return rank_multi_label(scored, own_opinion, second_opinion)
    return rank_single_label(scored, own_opinion, second_opinion)


def rank_single_label(
    scored: ScoredSplit, own_opinion: Array, second_opinion: Array | None
) -> LabelErrors:
    labels, rows = scored.references, numpy.arange(scored.rows)
    combined = combine_opinions(own_opinion, second_opinion)
    confidence = combined[rows, labels]
    combined[rows, labels] = -1
    suggested, is_more_likely = combined.argmax(axis=1), combined.max(axis=1) > confidence
    order = numpy.argsort(confidence, kind="stable")
    judge = own_opinion if second_opinion is None else second_opinion
    return LabelErrors(
        places=order,
        confidence=confidence[order],
        suggestions=[scored.names[label] for label in suggested[order]],
        estimate=min(estimate_label_errors(judge, labels), int(is_more_likely.sum())),
    )


def rank_multi_label(
    scored: ScoredSplit, own_opinion: Array, second_opinion: Array | None
) -> LabelErrors:
    """Rank rows by their most doubtful label: each label is a question with two answers."""
    labels, rows = scored.references.astype(int), numpy.arange(scored.rows)
    judge = own_opinion if second_opinion is None else second_opinion
    estimate = 0
    confidences = numpy.empty(labels.shape)
    for label in range(len(scored.names)):
        answers = as_two_classes(own_opinion[:, label])
        second = None if second_opinion is None else as_two_classes(second_opinion[:, label])
        confidences[:, label] = combine_opinions(answers, second)[rows, labels[:, label]]
        estimate += estimate_label_errors(as_two_classes(judge[:, label]), labels[:, label])
    most_doubtful = confidences.argmin(axis=1)
    confidence = confidences[rows, most_doubtful]
    order = numpy.argsort(confidence, kind="stable")
    suggestions = []
    for row in order:
        label = most_doubtful[row]
        suggestions.append(f"{'-' if labels[row, label] else '+'} {scored.names[label]}")
    return LabelErrors(
        places=order,
        confidence=confidence[order],
        suggestions=suggestions,
        estimate=min(estimate, int((confidence < 0.5).sum())),
    )


def as_two_classes(probabilities: Array) -> Array:
    """Return the probabilities that a label is absent and present: [rows] to [rows, 2]."""
    return numpy.stack([1 - probabilities, probabilities], axis=1)


def combine_opinions(own: Array, second: Array | None) -> Array:
    """Return the normalized geometric mean of two probabilities, [rows, classes].

    In rows for which the second opinion is NaN, the own one counts alone.
    """
    if second is None:
        return own.copy()
    weight = SECOND_OPINION_WEIGHT
    mean = (own + SMOOTHING) ** (1 - weight) * (second + SMOOTHING) ** weight
    return numpy.where(numpy.isnan(second), own, mean / mean.sum(axis=1, keepdims=True))


def estimate_label_errors(probabilities: Array, labels: Array) -> int:
    """Estimate how many labels are wrong by the calibrated confident joint of confident learning.

    The threshold of a class is the mean probability that its own rows give it. A row is counted for
    the most likely class whose threshold it reaches, if there is one, and the counts of the rows
    with one label are scaled to all of these rows. Rows without probabilities (NaN) are ignored.
    """
    is_judged = ~numpy.isnan(probabilities).any(axis=1)
    probabilities, labels = probabilities[is_judged], labels[is_judged]
    num_classes = probabilities.shape[1]
    rows_of_class = numpy.bincount(labels, minlength=num_classes)
    own_probabilities = probabilities[numpy.arange(len(labels)), labels]
    sums = numpy.bincount(labels, own_probabilities, minlength=num_classes)
    thresholds = numpy.full(num_classes, numpy.inf)
    numpy.divide(sums, rows_of_class, out=thresholds, where=rows_of_class > 0)

    confident = numpy.where(probabilities >= thresholds, probabilities, -1)
    is_counted, likely_class = confident.max(axis=1) >= 0, confident.argmax(axis=1)
    is_error = is_counted & (likely_class != labels)
    counted = numpy.bincount(labels[is_counted], minlength=num_classes)
    errors = numpy.bincount(labels[is_error], minlength=num_classes)
    return round(float((errors * rows_of_class / counted.clip(1)).sum()))


# ---- the second opinion


def predict_out_of_fold(
    features: Array, scored: ScoredSplit, folds: int = FOLDS, seed: int = 0
) -> Array:
    """Return probabilities, float [rows, labels], of models that were not fitted on their row.

    Classes or labels with fewer rows than folds cannot be judged: their rows, or columns, are NaN.
    """
    labels = scored.references
    fold_of_row = assign_folds(labels, folds, seed)
    probabilities = numpy.full((scored.rows, len(scored.names)), numpy.nan)
    for fold in range(min(folds, scored.rows)):
        is_held_out = fold_of_row == fold
        model = fit_linear(
            features[~is_held_out], labels[~is_held_out], scored, inverse_penalty=INVERSE_PENALTY
        )
        probabilities[is_held_out] = predict_probabilities(model, features[is_held_out], scored)
    if scored.is_multi_label:
        positives = labels.sum(axis=0)
        rarer_answer = numpy.minimum(positives, scored.rows - positives)
        probabilities[:, rarer_answer < folds] = numpy.nan
    else:
        rows_of_class = numpy.bincount(labels, minlength=len(scored.names))
        probabilities[rows_of_class[labels] < folds] = numpy.nan
    return probabilities


def assign_folds(labels: Array, folds: int, seed: int) -> Array:
    """Return a random fold for each row, int [rows], with equal shares of each class.

    Several labels are divided by their combinations. scikit-learn's StratifiedKFold refuses data
    in which every class or combination is rarer than the folds.
    """
    _, classes = numpy.unique(labels, axis=0, return_inverse=True)
    shuffled = numpy.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[numpy.argsort(classes.ravel()[shuffled], kind="stable")]
    fold_of_row = numpy.empty(len(labels), int)
    fold_of_row[by_class] = numpy.arange(len(labels)) % folds
    return fold_of_row
