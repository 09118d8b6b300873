"""Bootstrap intervals of scores, and of the differences of two models on the same rows.

The rows of a split are drawn with replacement (Efron, 1979), so an interval shows how the score of
this model would vary over other splits of this size, not how it would vary over other trainings.
Rows are drawn independently: if rows belong together (sentences of a document, images of a
patient), the true intervals are wider.

`python -m benchmarks.coverage` measures how often the intervals contain the true value. If classes
are rare, it is less often than 95 %: a class with two rows is missing in one of seven resamples,
where it counts as 0. For macro F1 of ten skewed classes it is 92 % with 100 rows, where plain
percentiles reach 84 %, and 95 % with 400.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

from ftloop.errors import UserError
from ftloop.report.scored import ScoredSplit
from ftloop.report.weighted_scores import compute_scores, compute_weighted_scores

Array = numpy.ndarray

RESAMPLES = 1000
MIN_RESAMPLES = 200  # for a split with so many rows that 1000 resamples would take minutes
MAX_DRAWS = 300_000_000  # rows that are drawn in all, about 5 s; beyond it, resamples become fewer
CHUNK_SIZE = 200_000  # weights in memory at once; 2 to 5 times faster if they fit into the cache
LEVEL = 0.95
MAX_BIAS = 1.0  # in standard deviations: beyond it, too few resamples lie on one side of the value


@dataclass(frozen=True)
class Interval:
    value: float  # the score on the rows as they are
    low: float  # NaN if the score is not defined on more than half of the resamples
    high: float
    resamples: int


@dataclass(frozen=True)
class Difference:
    """The score of model a minus that of model b."""

    a: float
    b: float
    value: float
    low: float
    high: float
    p_value: float  # two-sided, for equally good models; at least 2 / (resamples + 1)
    resamples: int


def intervals(
    scored: ScoredSplit, metric_names: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Return 95 % intervals of "loss" and of the scores of `metric_names`, by score."""
    values = compute_scores(scored, metric_names)
    (resampled,) = resample_scores([scored], metric_names, resamples, seed)
    result = {}
    for name, value in values.items():
        low, high = bias_corrected_percentiles(resampled[name], value)
        result[name] = Interval(value, low, high, len(resampled[name]))
    return result


def paired_differences(
    a: ScoredSplit,
    b: ScoredSplit,
    metric_names: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return how the scores of `a` differ from those of `b` on the same rows, by score.

    Each resample is scored with both models. Raises UserError if rows or references differ.
    """
    check_same_rows(a, b)
    a_scores, b_scores = compute_scores(a, metric_names), compute_scores(b, metric_names)
    a_resampled, b_resampled = resample_scores([a, b], metric_names, resamples, seed)
    result = {}
    for name in a_scores:
        differences = a_resampled[name] - b_resampled[name]
        value = a_scores[name] - b_scores[name]
        low, high = bias_corrected_percentiles(differences, value)
        result[name] = Difference(
            a=a_scores[name],
            b=b_scores[name],
            value=value,
            low=low,
            high=high,
            p_value=two_sided_p_value(differences, value),
            resamples=len(differences),
        )
    return result


def check_same_rows(a: ScoredSplit, b: ScoredSplit) -> None:
    """Raise UserError unless two models were scored on the same rows with the same labels."""
    if (a.split, a.problem_type, a.names) != (b.split, b.problem_type, b.names):
        raise UserError("the splits or the labels of the tasks differ")
    if a.rows != b.rows:
        raise UserError(f"one run has {a.rows} rows of {a.split}, the other has {b.rows}")
    if not numpy.array_equal(a.row_ids, b.row_ids):
        raise UserError(f"the runs were scored on different rows of {a.split}")
    is_different = a.references != b.references
    if is_different.any():
        count = is_different.reshape(a.rows, -1).any(axis=1).sum()
        raise UserError(f"the labels of {count} rows of {a.split} differ")


def resample_scores(
    models: Sequence[ScoredSplit], metric_names: Sequence[str], resamples: int, seed: int
) -> list[dict[str, Array]]:
    """Score all models on the same resamples; return float [resamples] by score, for each model."""
    chunks: list[list[dict[str, Array]]] = [[] for _ in models]
    for weights in draw_weights(models[0].rows, resamples, seed):
        for model, of_model in zip(models, chunks, strict=True):
            of_model.append(compute_weighted_scores(model, metric_names, weights))
    return [
        {name: numpy.concatenate([chunk[name] for chunk in of_model]) for name in of_model[0]}
        for of_model in chunks
    ]


def draw_weights(num_rows: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield resamples in chunks, float [resamples, rows]: how often each row was drawn."""
    generator = numpy.random.default_rng(seed)
    resamples = min(resamples, max(MIN_RESAMPLES, MAX_DRAWS // num_rows))
    chunk_size = max(1, CHUNK_SIZE // num_rows)
    for start in range(0, resamples, chunk_size):
        weights = numpy.empty((min(chunk_size, resamples - start), num_rows))
        for resample in weights:
            drawn_rows = generator.integers(0, num_rows, num_rows)
            resample[:] = numpy.bincount(drawn_rows, minlength=num_rows)
        yield weights


def bias_corrected_percentiles(resampled: Array, value: float) -> tuple[float, float]:
    """Return the ends of the interval that resampled scores give for `value`, which lies in it.

    If resamples tend to be lower than the value, as those of macro F1 are, higher percentiles are
    taken (Efron, 1981). `scipy.stats.bootstrap` has the interval that also corrects for
    acceleration, but it scores each row's removal: 10 000 rows would take 10 000 more resamples.
    """
    from scipy.special import ndtr, ndtri

    defined = resampled[numpy.isfinite(resampled)]
    if 2 * len(defined) < len(resampled) or not numpy.isfinite(value):
        return numpy.nan, numpy.nan
    share_below = (defined < value).mean() + (defined == value).mean() / 2
    bias = numpy.clip(ndtri(share_below), -MAX_BIAS, MAX_BIAS)
    half_width = ndtri((1 + LEVEL) / 2)
    percentiles = ndtr([2 * bias - half_width, 2 * bias + half_width])
    low, high = numpy.quantile(defined, percentiles)
    return float(min(low, value)), float(max(high, value))


def two_sided_p_value(differences: Array, value: float) -> float:
    """Return the p-value of a difference from the differences of its resamples."""
    if not numpy.isfinite(value):
        return numpy.nan
    defined = differences[numpy.isfinite(differences)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (1 + tail) / (1 + len(defined))))
