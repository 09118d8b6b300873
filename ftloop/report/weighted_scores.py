"""Compute the scores of a split for many weightings of its rows at once, for the bootstrap.

A bootstrap resample is a weight for each row: how often it was drawn. The scores of 1000 resamples
of 10 000 rows are a few matrix products, which take a second or two; with scikit-learn, which
takes one weighting at a time, they take minutes. The definitions are those of
ftloop/tasks/metrics.py, and tests/test_statistics.py compares the two.

Weights are float [resamples, rows], and a score is float [resamples].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from scipy import sparse

from ftloop.report.scored import ScoredSplit
from ftloop.tasks import metrics

Array = numpy.ndarray


def compute_scores(scored: ScoredSplit, metric_names: Sequence[str]) -> dict[str, float]:
    """Return "loss" and the scores of `metric_names`, as evaluation prints them.

    Metrics of the Hub are left out.
    """
    weights = numpy.ones((1, scored.rows))
    return {
        name: float(values[0])
        for name, values in compute_weighted_scores(scored, metric_names, weights).items()
    }


def compute_weighted_scores(
    scored: ScoredSplit, metric_names: Sequence[str], weights: Array
) -> dict[str, Array]:
    """Return "loss" and the scores of `metric_names` for each weighting of the rows.

    Metrics per class give a score for each label, such as "recall[benign]". A score that is not
    defined (one class only, a constant) is NaN. Metrics of the Hub (hub:NAME) are left out, because
    they know no weights. Raises UserError for metrics that do not fit the task.
    """
    metrics.validate(metric_names, scored.problem_type, scored.names)
    local_names = [name for name in metric_names if not name.startswith(metrics.HUB)]
    result = {"loss": weights @ scored.losses / weights.sum(axis=1)}
    with numpy.errstate(invalid="ignore", divide="ignore"):
        if scored.is_regression:
            return result | {name: REGRESSION[name](scored, weights) for name in local_names}
        counts = LabelCounts.count(scored, weights)
        for name in local_names:
            if name in CLASSIFICATION:
                result[name] = CLASSIFICATION[name](scored, weights, counts)
            else:
                result |= ratio_scores(name, counts, scored.names)
    return result


# ---- classification


@dataclass(frozen=True)
class LabelCounts:
    """Rows by label, [resamples, labels], and all rows, [resamples]; rows count by their weight."""

    true_positives: Array
    predicted: Array
    actual: Array
    rows: Array

    @classmethod
    def count(cls, scored: ScoredSplit, weights: Array) -> "LabelCounts":
        actual = label_indicators(scored, scored.references)
        predicted = label_indicators(scored, scored.predictions)
        return cls(
            true_positives=numpy.asarray(weights @ actual.multiply(predicted).tocsr()),
            predicted=numpy.asarray(weights @ predicted),
            actual=numpy.asarray(weights @ actual),
            rows=weights.sum(axis=1),
        )

    def pool_labels(self) -> "LabelCounts":
        """Add the counts of all labels, as micro averages do."""
        return LabelCounts(
            true_positives=self.true_positives.sum(axis=1, keepdims=True),
            predicted=self.predicted.sum(axis=1, keepdims=True),
            actual=self.actual.sum(axis=1, keepdims=True),
            rows=self.rows,
        )

    def ratio(self, name: str) -> Array:
        """Return precision, recall or f1 of each label; 0 divided by 0 is 0."""
        if name == "precision":
            return divide(self.true_positives, self.predicted)
        if name == "recall":
            return divide(self.true_positives, self.actual)
        return divide(2 * self.true_positives, self.predicted + self.actual)


def label_indicators(scored: ScoredSplit, labels: Array) -> sparse.csr_matrix:
    """Return a sparse matrix [rows, labels] with 1 where a row has a label."""
    if scored.is_multi_label:
        return sparse.csr_matrix(labels.astype(float))
    places = (numpy.arange(scored.rows), labels)
    return sparse.csr_matrix(
        (numpy.ones(scored.rows), places), shape=(scored.rows, len(scored.names))
    )


def divide(numerator: Array, denominator: Array) -> Array:
    """Divide element by element; the result is 0 where the denominator is 0."""
    zeros = numpy.zeros(numpy.shape(numerator))
    return numpy.divide(numerator, denominator, out=zeros, where=denominator != 0)


def ratio_scores(name: str, counts: LabelCounts, labels: Sequence[str]) -> dict[str, Array]:
    """Return precision, recall or F1 with the average that `name` ends with: "f1_macro"."""
    ratio, _, average = name.partition("_")
    values = counts.ratio(ratio)
    if average == "per_class":
        return {
            metrics.class_score(ratio, label): values[:, index]
            for index, label in enumerate(labels)
        }
    if average == "micro":
        return {name: counts.pool_labels().ratio(ratio)[:, 0]}
    if average == "weighted":
        return {name: divide((values * counts.actual).sum(axis=1), counts.actual.sum(axis=1))}
    if average == "macro":  # over all labels of the task, also those that the split lacks
        return {name: values.mean(axis=1)}
    return {name: values[:, 1]}  # binary: of the positive class


def matthews_correlation(scored: ScoredSplit, weights: Array, counts: LabelCounts) -> Array:
    """Compute it for any number of classes (Gorodkin, 2004); 0 if one side is constant."""
    covariance = counts.true_positives.sum(axis=1) * counts.rows
    covariance -= (counts.predicted * counts.actual).sum(axis=1)
    predicted_variance = counts.rows**2 - (counts.predicted**2).sum(axis=1)
    actual_variance = counts.rows**2 - (counts.actual**2).sum(axis=1)
    return divide(covariance, numpy.sqrt(predicted_variance * actual_variance))


def f1_samples(scored: ScoredSplit, weights: Array, counts: LabelCounts) -> Array:
    """Compute F1 over the labels of each row, and average it over rows."""
    true_positives = (scored.references & scored.predictions).sum(axis=1)
    sizes = scored.references.sum(axis=1) + scored.predictions.sum(axis=1)
    return weights @ divide(2.0 * true_positives, sizes) / counts.rows


def hamming_loss(scored: ScoredSplit, weights: Array, counts: LabelCounts) -> Array:
    return weights @ (scored.references != scored.predictions).mean(axis=1) / counts.rows


def roc_auc(scored: ScoredSplit, weights: Array, counts: LabelCounts) -> Array:
    """Average the area under the curve over labels, each against the rest; of two classes, take
    that of class 1. NaN if all rows or none have one of the labels."""
    if scored.probabilities is None:
        return numpy.full(len(weights), numpy.nan)
    labels = range(len(scored.names))
    if not scored.is_multi_label and len(labels) == 2:
        labels = range(1, 2)
    areas = [
        area_under_curve(scored.has_label(label), scored.probabilities[:, label], weights)
        for label in labels
    ]
    return numpy.mean(areas, axis=0)


def area_under_curve(is_positive: Array, values: Array, weights: Array) -> Array:
    """Return the share of pairs of a positive and a negative row in which the positive row has the
    higher value; a tie counts half."""
    order = numpy.argsort(values)
    starts = starts_of_ties(values[order])
    positives = numpy.add.reduceat(weights[:, order] * is_positive[order], starts, axis=1)
    negatives = numpy.add.reduceat(weights[:, order] * ~is_positive[order], starts, axis=1)
    negatives_below = numpy.cumsum(negatives, axis=1) - negatives / 2
    num_pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return (positives * negatives_below).sum(axis=1) / num_pairs


def starts_of_ties(ordered: Array) -> Array:
    """Return where each group of equal values begins in sorted values."""
    return numpy.flatnonzero(numpy.append(True, ordered[1:] != ordered[:-1]))


CLASSIFICATION: dict[str, Callable[[ScoredSplit, Array, LabelCounts], Array]] = {
    "accuracy": lambda scored, weights, counts: counts.true_positives.sum(axis=1) / counts.rows,
    "subset_accuracy": lambda scored, weights, counts: weights @ ~scored.wrong / counts.rows,
    "matthews_correlation": matthews_correlation,
    "f1_samples": f1_samples,
    "hamming_loss": hamming_loss,
    "roc_auc": roc_auc,
}
"""Scores of classification that are not precision, recall or F1."""


# ---- regression


def pearson(references: Array, predictions: Array, weights: Array) -> Array:
    """Compute the correlation of values, [rows] or [resamples, rows]; NaN for a constant."""
    rows = weights.sum(axis=1, keepdims=True)
    references = references - (weights * references).sum(axis=1, keepdims=True) / rows
    predictions = predictions - (weights * predictions).sum(axis=1, keepdims=True) / rows
    covariance = (weights * references * predictions).sum(axis=1)
    reference_variance = (weights * references**2).sum(axis=1)
    prediction_variance = (weights * predictions**2).sum(axis=1)
    correlation = covariance / numpy.sqrt(reference_variance * prediction_variance)
    is_defined = (reference_variance > 0) & (prediction_variance > 0)
    return numpy.where(is_defined, correlation, numpy.nan)


def weighted_ranks(values: Array, weights: Array) -> Array:
    """Return the ranks of values in each resample, [resamples, rows]; ties share their mean."""
    order = numpy.argsort(values)
    starts = starts_of_ties(values[order])
    group_weights = numpy.add.reduceat(weights[:, order], starts, axis=1)
    mean_ranks = numpy.cumsum(group_weights, axis=1) - (group_weights - 1) / 2
    group_sizes = numpy.diff(numpy.append(starts, len(values)))
    ranks = numpy.empty(weights.shape)
    ranks[:, order] = numpy.repeat(mean_ranks, group_sizes, axis=1)
    return ranks


def spearman(references: Array, predictions: Array, weights: Array) -> Array:
    return pearson(
        weighted_ranks(references, weights), weighted_ranks(predictions, weights), weights
    )


def mean_squared_error(scored: ScoredSplit, weights: Array) -> Array:
    return weights @ (scored.predictions - scored.references) ** 2 / weights.sum(axis=1)


def mean_absolute_error(scored: ScoredSplit, weights: Array) -> Array:
    return weights @ numpy.abs(scored.predictions - scored.references) / weights.sum(axis=1)


def r2(scored: ScoredSplit, weights: Array) -> Array:
    """Compute the share of variance that is explained; of constants, as scikit-learn does."""
    means = (weights @ scored.references / weights.sum(axis=1))[:, None]
    total_squares = (weights * (scored.references - means) ** 2).sum(axis=1)
    residual_squares = weights @ (scored.predictions - scored.references) ** 2
    if_constant = numpy.where(residual_squares > 0, 0.0, 1.0)
    return numpy.where(total_squares > 0, 1 - residual_squares / total_squares, if_constant)


REGRESSION: dict[str, Callable[[ScoredSplit, Array], Array]] = {
    "pearson": lambda scored, weights: pearson(scored.references, scored.predictions, weights),
    "spearman": lambda scored, weights: spearman(scored.references, scored.predictions, weights),
    "mse": mean_squared_error,
    "rmse": lambda scored, weights: numpy.sqrt(mean_squared_error(scored, weights)),
    "mae": mean_absolute_error,
    "r2": r2,
}
