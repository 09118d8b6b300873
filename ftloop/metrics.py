"""Scores as `evaluate.Metric` objects that need no network, and metrics of the Hub beside them, as `hub:NAME`.

`check` refuses the names that do not fit a task, `build` makes the objects, and on the main process the evaluation pass
streams rows into them with `add` and reads them with `compute`. A new score is one row of `SCORES` and a function of
whole NumPy columns:

    single-label   references int [rows]; predictions int [rows], or scores float [rows] (of class 1) for two classes
                   and [rows, classes] for more
    multi-label    references bool [rows, labels]; predictions bool or scores float, of the same shape
    regression     references and predictions float [rows]

The scores are those of scikit-learn and SciPy, to 1e-12 in the tests, but counted here: scikit-learn infers the problem
from the values it is given, so that an absent class changes the mean and a single column of labels is scored for its
zeros. A ratio of nothing is 0 (its `zero_division=0`). A score that has no value (one class only, a constant, a NaN) is
NaN with one logged line: training goes on.
"""

import functools
import logging
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    import evaluate

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
DEFAULTS = {
    SINGLE: ("accuracy", "f1_macro"),
    MULTI: ("f1_micro", "f1_macro", "subset_accuracy"),
    REGRESSION: ("pearson", "spearman", "mse"),
}
HUB = "hub:"
logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class Score:
    function: Callable[[np.ndarray, np.ndarray, int], Any]  # (references, predictions or scores, number of labels)
    problem_types: tuple[str, ...]  # the names that transformers gives them in `config.problem_type`
    better: str = "max"  # or "min"
    column: str = "predictions"  # what the references are compared with; or "prediction_scores"
    binary: bool = False  # for exactly two classes, of which id 1 is the positive one


def _ratio(part, whole):
    return part / np.maximum(whole, 1)  # of counts, where a part is 0 whenever its whole is


RATIOS = {
    "precision": lambda hits, predicted, actual: _ratio(hits, predicted),
    "recall": lambda hits, predicted, actual: _ratio(hits, actual),
    "f1": lambda hits, predicted, actual: _ratio(2 * hits, predicted + actual),
}


def _counts(references, predictions, labels):
    """How often each label is rightly predicted, predicted, and true: three int arrays [labels]."""
    if references.ndim == 1:
        hits = references[references == predictions]
        return [np.bincount(ids, minlength=labels) for ids in (hits, predictions, references)]
    return [cells.sum(axis=0) for cells in (references & predictions, predictions, references)]


def _averaged(ratio, average):
    def score(references, predictions, labels):
        if average == "samples":
            references, predictions = references.T, predictions.T
        counts = _counts(references, predictions, labels)
        if average == "micro":
            counts = [count.sum() for count in counts]
        values, support = ratio(*counts), counts[-1]
        if average == "binary":
            return values[1]
        if average == "weighted":
            return _ratio(values @ support, support.sum())
        return values if average == "per_class" else np.mean(values)

    return score


def _matthews(references, predictions, labels):
    """The correlation of two partitions, of any number of classes (Gorodkin 2004); 0 when one is constant."""
    hits, predicted, actual = (count.astype(float) for count in _counts(references, predictions, labels))
    rows = float(len(references))
    spread = (rows**2 - predicted @ predicted) * (rows**2 - actual @ actual)
    return (hits.sum() * rows - predicted @ actual) / np.sqrt(spread) if spread else 0.0


def _roc_auc(references, scores, labels):
    """The chance that a positive row outranks a negative one (Hanley and McNeil 1982); the mean over classes."""
    from scipy.stats import rankdata

    if references.ndim < scores.ndim:
        references = references[:, None] == np.arange(labels)
    positives = references.sum(axis=0)
    wins = (rankdata(scores, axis=0) * references).sum(axis=0) - positives * (positives + 1) / 2
    return np.mean(wins / (positives * (len(references) - positives)))


def _pearson(references, predictions, labels):
    if np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return np.nan  # rounding in the mean would make a constant correlate with anything
    references, predictions = references - references.mean(), predictions - predictions.mean()
    return (references / np.linalg.norm(references)) @ (predictions / np.linalg.norm(predictions))


def _spearman(references, predictions, labels):
    from scipy.stats import rankdata

    return _pearson(rankdata(references), rankdata(predictions), labels)


def _r2(references, predictions, labels):
    spread = np.sum((references - references.mean()) ** 2) if np.ptp(references) else np.nan
    return 1 - np.sum((references - predictions) ** 2) / spread


SCORES = {
    "accuracy": Score(lambda truth, guess, labels: np.mean(truth == guess), (SINGLE,)),
    **{name: Score(_averaged(ratio, "binary"), (SINGLE,), binary=True) for name, ratio in RATIOS.items()},
    **{
        f"{name}_{average}": Score(_averaged(ratio, average), (SINGLE, MULTI))
        for name, ratio in RATIOS.items()
        for average in ("macro", "weighted", "micro", "per_class")
    },
    "f1_samples": Score(_averaged(RATIOS["f1"], "samples"), (MULTI,)),
    "matthews_correlation": Score(_matthews, (SINGLE,)),
    "roc_auc": Score(_roc_auc, (SINGLE, MULTI), column="prediction_scores"),
    "subset_accuracy": Score(lambda truth, guess, labels: np.mean((truth == guess).all(axis=1)), (MULTI,)),
    "hamming_loss": Score(lambda truth, guess, labels: np.mean(truth != guess), (MULTI,), "min"),
    "pearson": Score(_pearson, (REGRESSION,)),
    "spearman": Score(_spearman, (REGRESSION,)),
    "mse": Score(lambda truth, guess, labels: np.mean((truth - guess) ** 2), (REGRESSION,), "min"),
    "rmse": Score(lambda truth, guess, labels: np.sqrt(np.mean((truth - guess) ** 2)), (REGRESSION,), "min"),
    "mae": Score(lambda truth, guess, labels: np.mean(np.abs(truth - guess)), (REGRESSION,), "min"),
    "r2": Score(_r2, (REGRESSION,)),
}


def check(names: Sequence[str], problem_type: str, labels: Sequence[str]) -> None:
    """Raise `UserError` for the first of `names` that this task cannot compute. Imports nothing.

    `labels` are the label names by id, none for regression. Of `hub:NAME` only the form is checked.
    """
    fits = [name for name, score in SCORES.items() if problem_type in score.problem_types]
    fits = [name for name in fits if len(labels) == 2 or not SCORES[name].binary]
    for name in names:
        if name in fits or (name.startswith(HUB) and name.removeprefix(HUB).partition(":")[0]):
            continue
        fault = "does not fit" if name in SCORES else "is not a metric for"
        task = problem_type if problem_type == REGRESSION else f"{problem_type} with {len(labels)} labels"
        variants = " or ".join(fit for fit in fits if fit.startswith(f"{name}_"))
        hint = f" (use {variants})" if variants else nearest(name, fits)
        raise UserError(
            f"--task.metrics: {name!r} {fault} {task}{hint}. "
            f"Choose from {', '.join(fits)}, or {HUB}NAME for a metric of the Hub."
        )


def direction(name: str) -> str | None:
    """Whether a better value of the reported score `name` is the larger ("max") or the smaller ("min") one.

    Knows "loss" and the per-class names such as "recall[benign]"; None for what a metric of the Hub reports.
    """
    score = SCORES.get(name.partition("[")[0])
    return score.better if score else {"loss": "min"}.get(name)


@functools.cache
def _metric_class():
    """The one class of all local metrics, defined on first use: to import its base class costs two to three seconds."""
    import evaluate
    from datasets import Features, Value
    from datasets import Sequence as Row

    class LocalMetric(evaluate.Metric):
        def __init__(self, name: str, problem_type: str, labels: Sequence[str]):
            # Before the base class starts: it asks for the features.
            self.score, self.problem_type, self.labels = SCORES[name], problem_type, labels
            super().__init__(keep_in_memory=True)  # on disk it takes ten times as long, and file locks
            self.info.module_name = name

        def _info(self):
            # Ids too are float64: an integer feature would cut a regression's 1.7 to class 1 without a word.
            value, row = Value("float64"), Row(Value("float64"))
            references = row if self.problem_type == MULTI else value
            of_each_class = self.score.column == "prediction_scores" and len(self.labels) != 2
            columns = {self.score.column: row if of_each_class else references, "references": references}
            return evaluate.MetricInfo(description="", citation="", features=Features(columns))

        def _ids(self, column: np.ndarray) -> np.ndarray:
            limit, kind = (2, bool) if self.problem_type == MULTI else (len(self.labels), np.int64)
            if not np.isin(column, np.arange(limit)).all():
                raise ValueError(f"{self.name} compares the ids 0 to {limit - 1}; it was given {np.unique(column)}")
            return column.astype(kind)

        def _compute(self, references, **compared):
            references, compared = np.asarray(references), np.asarray(compared[self.score.column])
            if self.problem_type != REGRESSION:
                references = self._ids(references)
                compared = self._ids(compared) if self.score.column == "predictions" else compared
            with np.errstate(all="ignore"):  # 0 / 0 and a diverged model's inf become the NaN that is logged below
                value = self.score.function(references, compared, len(self.labels))
            if np.ndim(value):
                ratio = self.name.removesuffix("_per_class")
                return {f"{ratio}[{label}]": float(one) for label, one in zip(self.labels, value, strict=True)}
            if np.isnan(value):
                reason = "one class only, a constant or a NaN"
                logger.warning("%s has no value on these %d rows (%s)", self.name, len(references), reason)
            return {self.name: float(value)}

    return LocalMetric


def build(name: str, problem_type: str, labels: Sequence[str]) -> "evaluate.Metric":
    """The metric `name`, on which `add` and `compute` work; one of `SCORES`, or of the Hub.

    `hub:NAME` or `hub:NAME:CONFIG` (`hub:glue:mrpc`) is `evaluate.load(NAME, CONFIG)`, which *runs* the script that it
    finds on the Hub, in the library's cache, or at a local path (`hub:./my_metric` for `my_metric/my_metric.py`).

    Raises `UserError` for a metric that does not fit the task or cannot be loaded.
    """
    check([name], problem_type, labels)
    if not name.startswith(HUB):
        return _metric_class()(name, problem_type, labels)

    import evaluate
    from huggingface_hub import constants

    # The library knows its own HF_EVALUATE_OFFLINE only, and elsewhere waits for each of its requests to time out.
    evaluate.config.HF_EVALUATE_OFFLINE |= constants.HF_HUB_OFFLINE
    path, _, config_name = name.removeprefix(HUB).partition(":")
    try:
        return evaluate.load(path, config_name or None, keep_in_memory=True)
    except (OSError, ImportError) as error:
        # Offline, the library too says that the Hub has no such metric.
        raise UserError(f"--task.metrics: {name!r} could not be loaded (is the Hub in reach?): {error}") from error


def feature_names(metric: "evaluate.Metric") -> list[str]:
    """The columns that `metric` takes, such as ["predictions", "references"]."""
    return list(metric.features[0] if isinstance(metric.features, list) else metric.features)


def add(metric: "evaluate.Metric", columns: Mapping[str, Any]) -> None:
    """Give `metric` a batch of rows: of `columns` (CPU tensors, arrays or lists, each [rows, ...]) those it takes."""
    names = feature_names(metric)
    if not set(names) <= set(columns):
        raise UserError(f"--task.metrics: {metric.name!r} needs {names}, this task gives {list(columns)}")
    metric.add_batch(**{name: columns[name] for name in names})


def compute(metric: "evaluate.Metric") -> dict[str, float]:
    """The scores of all rows added since the last time, which are then forgotten: `{name: value}`.

    A per-class metric gives one score for each label, "recall[benign]". What a Hub metric returns beside numbers is
    left out.
    """
    if not len(metric):  # the library would fail with an AttributeError
        raise ValueError(f"{metric.name}: no row was added before compute")
    scores = metric.compute()
    return {name: float(value) for name, value in scores.items() if isinstance(value, numbers.Real)}
