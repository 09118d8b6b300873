"""What the rows of a split say beyond their scores: intervals, differences, calibration, curves, thresholds, and which
labels are likely wrong. Pure functions of arrays; those of scikit-learn and SciPy where they have them.

Intervals are bootstrap intervals (Efron, 1979) over the rows of the split: they tell what another split of this size
might have shown of the same model, not what another training would. Of 1 000 resamples, the bias-corrected percentiles
are taken. `python -m benchmarks.coverage` prints how often such intervals hold the true value.

A resample is a weight for each row, how often it was drawn, and all scores are computed from the weights of many
resamples at once: 1 000 of 10 000 rows in a second or two, where scikit-learn would take minutes. The definitions are
those of ftloop/tasks/metrics.py, and a test compares them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy
from scipy import sparse

from ftloop.errors import UserError, did_you_mean
from ftloop.report.scored import Scored
from ftloop.tasks import metrics

Array = numpy.ndarray

RESAMPLES, LEVEL = 1000, 0.95
MOST_SHIFT = (
    1.0  # of the percentiles, in standard deviations: beyond it, too few resamples lie to one side
)
LEAST_RESAMPLES = 200  # of a split with so many rows that 1 000 would take minutes
DRAWS = 300_000_000  # rows that are drawn in all, at most, before resamples become fewer: some 5 s
CHUNK = 200_000  # weights that are held at once: few enough for the cache of a core, which makes it 2 to 5 times quicker


# ---- scores of weighted rows


def weighted_scores(scored: Scored, names: Sequence[str], weights: Array) -> dict[str, Array]:
    """The "loss" and the scores `names` (of ftloop/tasks/metrics.py) for each row of `weights`, float [resamples, rows]:
    {name: float [resamples]}, and one entry a label for those per class, "recall[benign]".

    A weight says how often a row counts. Where a score has no value (one class only, a constant), it is NaN. Metrics of
    the Hub (`hub:NAME`) are left out: they are scripts that know no weights.
    """
    rows = weights.sum(axis=1)
    found = {"loss": weights @ scored.losses / rows}
    wanted = [name for name in names if not name.startswith(metrics.HUB)]
    with numpy.errstate(invalid="ignore", divide="ignore"):
        if scored.is_regression:
            return found | {name: REGRESSION[name](scored, weights) for name in wanted}
        counts = Counts.of(scored, weights)
        for name in wanted:
            if name in WHOLE:
                found[name] = WHOLE[name](scored, weights, counts)
                continue
            ratio, _, average = name.partition("_")
            values = counts.ratio(ratio)
            if average == "per_class":
                found |= {
                    f"{ratio}[{label}]": values[:, number]
                    for number, label in enumerate(scored.names)
                }
            elif average == "micro":
                found[name] = counts.summed().ratio(ratio)[:, 0]
            elif average == "weighted":
                found[name] = over((values * counts.actual).sum(axis=1), counts.actual.sum(axis=1))
            else:  # macro: all classes of the task, also those that are absent; none: the positive one of two
                found[name] = values.mean(axis=1) if average == "macro" else values[:, 1]
    return found


@dataclass(frozen=True)
class Counts:
    """Per label: rows of it that were found, rows that were said to be of it, and rows of it; [resamples, labels]."""

    found: Array
    predicted: Array
    actual: Array
    rows: Array  # [resamples]

    @classmethod
    def of(cls, scored: Scored, weights: Array) -> "Counts":
        actual, predicted = (
            indicators(scored, column) for column in (scored.references, scored.predictions)
        )
        both = actual.multiply(predicted).tocsr()
        return cls(
            *(numpy.asarray(weights @ one) for one in (both, predicted, actual)),
            weights.sum(axis=1),
        )

    def summed(self) -> "Counts":
        return Counts(
            *(one.sum(axis=1, keepdims=True) for one in (self.found, self.predicted, self.actual)),
            self.rows,
        )

    def ratio(self, name: str) -> Array:
        """precision, recall or f1 per label; a ratio of nothing is 0."""
        if name == "f1":
            return over(2 * self.found, self.predicted + self.actual)
        return over(self.found, self.predicted if name == "precision" else self.actual)


def over(above: Array, below: Array) -> Array:
    return numpy.divide(above, below, out=numpy.zeros(numpy.shape(above)), where=below != 0)


def indicators(scored: Scored, column: Array) -> sparse.csr_matrix:
    """[rows, labels], 1 where a row has the label."""
    if scored.is_multi_label:
        return sparse.csr_matrix(column.astype(float))
    rows = len(column)
    return sparse.csr_matrix(
        (numpy.ones(rows), (numpy.arange(rows), column)), (rows, len(scored.names))
    )


def _matthews(scored: Scored, weights: Array, counts: Counts) -> Array:
    """For any number of classes (Gorodkin, 2004); 0 where one side is constant."""
    rows = counts.rows
    covariance = counts.found.sum(axis=1) * rows - (counts.predicted * counts.actual).sum(axis=1)
    spreads = [rows**2 - (side**2).sum(axis=1) for side in (counts.predicted, counts.actual)]
    return over(covariance, numpy.sqrt(spreads[0] * spreads[1]))


def _f1_samples(scored: Scored, weights: Array, counts: Counts) -> Array:
    both = (scored.references & scored.predictions).sum(axis=1)
    of_rows = over(2.0 * both, scored.references.sum(axis=1) + scored.predictions.sum(axis=1))
    return weights @ of_rows / counts.rows


def _roc_auc(scored: Scored, weights: Array, counts: Counts) -> Array:
    """One class or label against the rest, the mean over them; NaN where one of them has no rows, or all."""
    if scored.probabilities is None:
        return numpy.full(len(weights), numpy.nan)
    if not scored.is_multi_label and len(scored.names) == 2:
        return _auc(scored.references == 1, scored.probabilities[:, 1], weights)
    labels = range(len(scored.names))
    truth = (
        scored.references
        if scored.is_multi_label
        else scored.references[:, None] == numpy.arange(len(scored.names))
    )
    return numpy.mean(
        [_auc(truth[:, label], scored.probabilities[:, label], weights) for label in labels], axis=0
    )


def _auc(truth: Array, scores: Array, weights: Array) -> Array:
    """The share of pairs of a positive and a negative row in which the positive one has the higher score; a tie is
    half."""
    order = numpy.argsort(scores)
    begins = _begins(scores[order])
    positive = numpy.add.reduceat(weights[:, order] * truth[order], begins, axis=1)
    negative = numpy.add.reduceat(weights[:, order] * ~truth[order], begins, axis=1)
    below = numpy.cumsum(negative, axis=1) - negative / 2
    return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _begins(ordered: Array) -> Array:
    """Where each group of equal values begins."""
    return numpy.flatnonzero(numpy.append(True, ordered[1:] != ordered[:-1]))


def _ranks(values: Array, weights: Array) -> Array:
    """The ranks of values in each resample, those of equal ones averaged: [resamples, rows]."""
    order = numpy.argsort(values)
    begins = _begins(values[order])
    sizes = numpy.add.reduceat(weights[:, order], begins, axis=1)
    middle = numpy.cumsum(sizes, axis=1) - (sizes - 1) / 2
    ranks = numpy.empty(weights.shape)
    ranks[:, order] = numpy.repeat(middle, numpy.diff(numpy.append(begins, len(values))), axis=1)
    return ranks


def _correlation(one: Array, other: Array, weights: Array) -> Array:
    """Pearson's; of a constant, NaN."""
    rows = weights.sum(axis=1, keepdims=True)
    one, other = (
        side - (weights * side).sum(axis=1, keepdims=True) / rows for side in (one, other)
    )
    together, spreads = (
        (weights * one * other).sum(axis=1),
        [(weights * side**2).sum(axis=1) for side in (one, other)],
    )
    return numpy.where(
        numpy.minimum(*spreads) > 0, together / numpy.sqrt(spreads[0] * spreads[1]), numpy.nan
    )


def _mean_of(function: Callable[[Array], Array]) -> Callable[..., Array]:
    def score(scored: Scored, weights: Array) -> Array:
        return weights @ function(scored.predictions - scored.references) / weights.sum(axis=1)

    return score


def _r2(scored: Scored, weights: Array) -> Array:
    rows, truth = weights.sum(axis=1, keepdims=True), scored.references
    around = (weights * (truth - (weights @ truth)[:, None] / rows) ** 2).sum(axis=1)
    missed = weights @ (scored.predictions - truth) ** 2
    of_constants = numpy.where(missed > 0, 0.0, 1.0)  # as scikit-learn has it
    return numpy.where(around > 0, 1 - missed / around, of_constants)


WHOLE: dict[str, Callable[[Scored, Array, Counts], Array]] = {
    "accuracy": lambda scored, weights, counts: counts.found.sum(axis=1) / counts.rows,
    "matthews_correlation": _matthews,
    "f1_samples": _f1_samples,
    "roc_auc": _roc_auc,
    "subset_accuracy": lambda scored, weights, counts: weights @ ~scored.wrong / counts.rows,
    "hamming_loss": lambda scored, weights, counts: (
        weights @ (scored.references != scored.predictions).mean(axis=1) / counts.rows
    ),
}
REGRESSION: dict[str, Callable[[Scored, Array], Array]] = {
    "pearson": lambda scored, weights: _correlation(scored.references, scored.predictions, weights),
    "spearman": lambda scored, weights: _correlation(
        _ranks(scored.references, weights), _ranks(scored.predictions, weights), weights
    ),
    "mse": _mean_of(numpy.square),
    "rmse": lambda scored, weights: numpy.sqrt(REGRESSION["mse"](scored, weights)),
    "mae": _mean_of(numpy.abs),
    "r2": _r2,
}


def scores(scored: Scored, names: Sequence[str]) -> dict[str, float]:
    """The "loss" and the scores `names` of these rows: what evaluation prints, without those of the Hub."""
    return {
        name: float(value[0])
        for name, value in weighted_scores(scored, names, numpy.ones((1, scored.rows))).items()
    }


# ---- intervals


@dataclass(frozen=True)
class Interval:
    value: float  # of the rows as they are
    low: float  # NaN where fewer than half of the resamples have a value
    high: float
    resamples: int


@dataclass(frozen=True)
class Difference:
    value: float  # that of a less that of b
    low: float
    high: float
    p: float  # of so great a difference, to either side, if the two were equally good; at least 2 / (resamples + 1)
    resamples: int
    a: float
    b: float
    rows: int


def draws(rows: int, resamples: int, seed: int) -> Iterator[Array]:
    """Resamples of so many rows, as weights, float [some, rows]; of very many rows fewer than asked for."""
    draw = numpy.random.default_rng(seed)
    resamples = min(resamples, max(LEAST_RESAMPLES, DRAWS // rows))
    at_once = max(1, CHUNK // rows)
    for begin in range(0, resamples, at_once):
        weights = numpy.empty((min(at_once, resamples - begin), rows))
        for one in weights:
            one[:] = numpy.bincount(draw.integers(0, rows, rows), minlength=rows)
        yield weights


def intervals(
    scored: Scored,
    names: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Bootstrap intervals of the "loss" and the scores `names` (`task.metric_names`), by score.

    Where classes are rare, those of macro averages hold the true value less often than they say: a class of two rows is
    in six of seven resamples only, and counts as 0 in the others. Of ten skewed classes in 100 rows, 95 % intervals of
    macro F1 hold it in 92 % of cases, plain percentiles in 84 % (see benchmarks/coverage.py); of 400, in 95 %.
    Rows are drawn one by one: of rows that belong together (sentences of a document, images of a patient), the true
    intervals are wider.
    """
    values = scores(scored, names)
    parts = [
        weighted_scores(scored, names, weights) for weights in draws(scored.rows, resamples, seed)
    ]
    drawn = {name: numpy.concatenate([part[name] for part in parts]) for name in values}
    return {
        name: Interval(value, *_between(drawn[name], level, value), len(drawn[name]))
        for name, value in values.items()
    }


def paired_differences(
    a: Scored,
    b: Scored,
    names: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """How much better or worse (in the score's own unit and direction) `a` is than `b` on the same rows: of the "loss"
    and the scores `names` (`task.metric_names`), the bootstrap of the difference, both scored on the same draws.

    Raises UserError unless both have the same rows with the same references.
    """
    check_same_rows(a, b)
    sides = [scores(side, names) for side in (a, b)]
    parts = []
    for weights in draws(a.rows, resamples, seed):
        one, other = (weighted_scores(side, names, weights) for side in (a, b))
        parts.append({name: one[name] - other[name] for name in one})
    found = {}
    for name in sides[0]:
        drawn = numpy.concatenate([part[name] for part in parts])
        value, known = sides[0][name] - sides[1][name], drawn[numpy.isfinite(drawn)]
        tail = min((known <= 0).sum(), (known >= 0).sum())
        p = min(1.0, 2 * (1 + tail) / (1 + len(known))) if numpy.isfinite(value) else numpy.nan
        both = (sides[0][name], sides[1][name], a.rows)
        found[name] = Difference(value, *_between(drawn, level, value), float(p), len(drawn), *both)
    return found


def paired_difference(
    a: Scored, b: Scored, name: str, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Difference:
    """That of one score: "loss", one of ftloop/tasks/metrics.py, or that of a label, "recall[benign]". Raises UserError also
    where there is no such score."""
    ratio, bracket, _ = name.partition("[")
    asked = [f"{ratio}_per_class"] if bracket else [name] if name != "loss" else []
    metrics.validate(asked, a.problem_type, a.names)
    found = paired_differences(a, b, asked, resamples, seed, level)
    if name not in found:
        raise UserError(
            f"no score {name!r}{did_you_mean(name, found)}; there are {', '.join(found)}"
        )
    return found[name]


def check_same_rows(a: Scored, b: Scored) -> None:
    """Raise UserError unless two runs saw the same rows with the same labels."""
    if (a.split, a.problem_type, a.names) != (b.split, b.problem_type, b.names):
        raise UserError("two runs are compared on the same split and labels: theirs differ")
    if a.rows != b.rows or not numpy.array_equal(a.row_ids, b.row_ids):
        raise UserError(
            f"two runs are compared on the same rows of {a.split}: one has {a.rows}, the other {b.rows}"
        )
    differ = a.references != b.references
    if differ.any():
        count = int(differ.reshape(a.rows, -1).any(axis=1).sum())
        raise UserError(
            f"two runs are compared on the same rows of {a.split}: the labels of {count} differ"
        )


def _between(drawn: Array, level: float, value: float) -> tuple[float, float]:
    """The bias-corrected percentiles (Efron, 1981): where resamples tend to lie below the value, as those of macro F1
    do, higher ones are taken. `value` lies within them."""
    from scipy.special import ndtr, ndtri

    known = drawn[numpy.isfinite(drawn)]
    if 2 * len(known) < len(drawn) or not numpy.isfinite(value):
        return numpy.nan, numpy.nan
    shift = numpy.clip(
        ndtri((known < value).mean() + (known == value).mean() / 2), -MOST_SHIFT, MOST_SHIFT
    )
    reach = ndtri((1 + level) / 2)
    low, high = numpy.quantile(known, ndtr([2 * shift - reach, 2 * shift + reach]))
    return float(min(low, value)), float(max(high, value))


# ---- classes


@dataclass(frozen=True)
class PerClass:
    """[labels] each; a ratio of nothing is 0."""

    names: tuple[str, ...]
    precision: Array
    recall: Array
    f1: Array
    support: Array  # rows of the label


def confusion(scored: Scored) -> Array:
    """int [classes, classes], rows the truth, columns what was predicted; for single-label."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(scored.references, scored.predictions, labels=range(len(scored.names)))


def label_confusions(scored: Scored) -> Array:
    """int [labels, 2, 2] for multi-label: [[true negative, false positive], [false negative, true positive]]."""
    from sklearn.metrics import multilabel_confusion_matrix

    return multilabel_confusion_matrix(scored.references, scored.predictions)


def co_occurrence(scored: Scored) -> tuple[Array, Array]:
    """How many rows have both of two labels, int [labels, labels]: in truth, and as predicted. On the diagonal: have
    the label."""
    truth, predicted = (
        column.astype(numpy.int64) for column in (scored.references, scored.predictions)
    )
    return truth.T @ truth, predicted.T @ predicted


def per_class(scored: Scored) -> PerClass:
    counts = Counts.of(scored, numpy.ones((1, scored.rows)))
    ratios = (counts.ratio(name)[0] for name in ("precision", "recall", "f1"))
    return PerClass(scored.names, *ratios, counts.actual[0].astype(int))


# ---- probabilities


@dataclass(frozen=True)
class Calibration:
    """By bins of equal width; of an empty one, `confidence` and `correct` are NaN."""

    edges: Array  # [bins + 1], from 0 to 1
    counts: Array  # int [bins]
    confidence: Array  # [bins], the mean of the probabilities
    correct: Array  # [bins], the share that was right
    ece: float  # the expected calibration error: mean of |confidence - correct|, weighted by the counts


def calibration(scored: Scored, bins: int = 15, label: int | None = None) -> Calibration:
    """Reliability and expected calibration error (Guo et al., 2017, arXiv:1706.04599), who use 15 bins.

    Single-label: of the predicted class, its probability against how often it was right. Multi-label: of each row and
    label, the probability against how often the label was there. With `label`, of this class or label alone, likewise
    its probability against whether a row has it. Raises UserError where there are no probabilities.
    """
    probabilities, names = _probabilities(scored), len(scored.names)
    if scored.is_multi_label or label is not None:
        truth = (
            scored.references
            if scored.is_multi_label
            else scored.references[:, None] == numpy.arange(names)
        )
        chosen = slice(None) if label is None else [label]
        confidence, right = probabilities[:, chosen].ravel(), truth[:, chosen].ravel()
    else:
        confidence, right = (
            probabilities[numpy.arange(scored.rows), scored.predictions],
            ~scored.wrong,
        )
    edges = numpy.linspace(0, 1, bins + 1)
    places = numpy.clip(
        numpy.digitize(confidence, edges, right=True) - 1, 0, bins - 1
    )  # a bin holds its upper edge
    counts = numpy.bincount(places, minlength=bins)
    sums = [
        numpy.bincount(places, of, minlength=bins)
        for of in (confidence.astype(float), right.astype(float))
    ]
    with numpy.errstate(invalid="ignore"):
        means = [one / counts for one in sums]
    ece = float(numpy.abs(sums[0] - sums[1]).sum() / counts.sum())
    return Calibration(edges, counts, *means, ece)


@dataclass(frozen=True)
class Curve:
    """Precision over recall, from recall 0 on, at no more than the points asked for."""

    name: str
    recall: Array
    precision: Array
    thresholds: Array  # the probability from which a row counts as positive; at recall 0, above all
    average_precision: float  # of the whole curve; NaN where the split has no row of the label
    positives: int


def precision_recall_curves(scored: Scored, points: int = 100) -> list[Curve]:
    """One for each class or label, against the rest. Raises UserError where there are no probabilities."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    probabilities = _probabilities(scored)
    curves = []
    for label, name in enumerate(scored.names):
        truth = scored.references[:, label] if scored.is_multi_label else scored.references == label
        if not truth.any():  # it has no recall
            curves.append(Curve(name, *(numpy.empty(0) for _ in range(3)), numpy.nan, 0))
            continue
        precision, recall, thresholds = precision_recall_curve(truth, probabilities[:, label])
        columns = (recall[::-1], precision[::-1], numpy.append(thresholds, numpy.inf)[::-1])
        # Evenly over recall: most thresholds are of rows that are clearly something else.
        kept = numpy.unique(
            numpy.searchsorted(columns[0], numpy.linspace(0, 1, points)).clip(max=len(recall) - 1)
        )
        average = float(average_precision_score(truth, probabilities[:, label]))
        curves.append(Curve(name, *(column[kept] for column in columns), average, int(truth.sum())))
    return curves


def _probabilities(scored: Scored) -> Array:
    if scored.probabilities is None:
        raise UserError(
            f"the run gives no probabilities for {scored.split}: it has no curves of them"
        )
    return scored.probabilities


# ---- thresholds of several labels


@dataclass(frozen=True)
class Thresholds:
    """From which probability a label is predicted, as chosen on validation."""

    whole: float  # one for all labels: the best micro F1
    by_label: Array  # [labels]; the best F1 of each
    shared: Array  # bool [labels]: too rare on validation for one of its own: it has `whole`
    grid: Array = field(
        repr=False
    )  # [points] thresholds for all labels, and what they give on validation
    f1_micro: Array = field(repr=False)
    f1_macro: Array = field(repr=False)

    def apply(self, scored: Scored, how: str) -> Scored:
        """The rows with other predictions: by "whole" or "by_label"."""
        return replace(scored, predictions=_probabilities(scored) >= getattr(self, how))

    def effects(self, scored: Scored, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """The scores `names` of a split with the run's own threshold ("run"), and with those chosen."""
        changed = {how: self.apply(scored, how) for how in ("whole", "by_label")}
        return {how: scores(one, names) for how, one in {"run": scored, **changed}.items()}


LEAST_POSITIVES = 10  # rows on validation that a label needs for a threshold of its own


def choose_thresholds(validation: Scored, points: int = 99) -> Thresholds:
    """Thresholds that are the best on `validation`, and on nothing else: whatever is said of test with them is honest.

    The F1 of a label changes at its rows' probabilities alone, so the best threshold is found among these exactly; it
    is put halfway to the next lower one (Lipton et al., 2014, arXiv:1402.1892, on why it lies below 1/2). A label with
    fewer than LEAST_POSITIVES rows takes the common one, for the best of so few is mostly chance.

    Raises UserError for rows that have one label, or no probabilities.
    """
    if not validation.is_multi_label:
        raise UserError(
            "thresholds are chosen where rows have several labels: of one label, the likeliest is taken"
        )
    probabilities, truth = _probabilities(validation), validation.references
    whole, positives = best_threshold(probabilities.ravel(), truth.ravel()), truth.sum(axis=0)
    shared = positives < LEAST_POSITIVES
    by_label = numpy.array(
        [
            whole if few else best_threshold(probabilities[:, label], truth[:, label])
            for label, few in enumerate(shared)
        ]
    )
    grid = numpy.linspace(0, 1, points + 2)[1:-1]
    chosen = Thresholds(whole, by_label, shared, grid, *numpy.empty((2, 0)))
    tried = [
        scores(
            replace(validation, predictions=probabilities >= threshold), ("f1_micro", "f1_macro")
        )
        for threshold in grid
    ]
    return replace(
        chosen,
        **{name: numpy.array([one[name] for one in tried]) for name in ("f1_micro", "f1_macro")},
    )


def best_threshold(probabilities: Array, truth: Array) -> float:
    """The threshold with the best F1 of some probabilities; 1/2 where nothing is true."""
    if not truth.any():
        return 0.5
    order = numpy.argsort(-probabilities, kind="stable")
    ordered = probabilities[order].astype(float)
    found, taken = numpy.cumsum(truth[order]), numpy.arange(1, len(order) + 1)
    ends = numpy.append(ordered[1:] != ordered[:-1], True)  # equal probabilities are taken together
    f1 = numpy.where(ends, 2 * found / (taken + truth.sum()), -1)
    best = int(f1.argmax())
    below = ordered[best + 1] if best + 1 < len(ordered) else 0.0
    return float((ordered[best] + below) / 2)


# ---- rows


def by_loss(scored: Scored, count: int, highest: bool = True) -> Array:
    """The places (0 to rows - 1) of the `count` rows with the highest loss, the highest first; or with the lowest.

    Of equal losses, the earlier row comes first. `scored.row_ids` has the ids."""
    losses = numpy.nan_to_num(scored.losses, nan=numpy.inf)
    return numpy.argsort(-losses if highest else losses, kind="stable")[:count]
