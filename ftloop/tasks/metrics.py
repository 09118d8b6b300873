"""Scores as `evaluate.Metric` objects that need no network, and metrics of the Hub beside them, as `hub:NAME`.

`check` refuses the names that do not fit a task, `build` makes the objects, and on the main process the evaluation pass
streams rows into them with `add` and reads them with `compute`. A new score is one row of `SCORES` and a function of
whole NumPy columns:

    single-label   references int [rows]; predictions int [rows], or scores float [rows] (of class 1) for two classes
                   and [rows, classes] for more
    multi-label    references bool [rows, labels]; predictions bool or scores float, of the same shape
    regression     references and predictions float [rows]

scikit-learn and SciPy compute them, over all classes of the task, whether a split holds them or not; a ratio of nothing
is 0. A score that has no value (one class only, a constant, a NaN) is NaN with one logged line: training goes on.
"""

import functools
import logging
import numbers
import warnings
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


def _sklearn(name: str, **options: Any) -> Callable[..., Any]:
    """A function of sklearn.metrics by its name: scikit-learn is imported when the first score is computed."""

    def score(references: np.ndarray, compared: np.ndarray, labels: int) -> Any:
        import sklearn.metrics

        return getattr(sklearn.metrics, name)(references, compared, **options)

    return score


def _averaged(name: str, average: str | None) -> Callable[..., Any]:
    """Precision, recall or F1. Naming all labels keeps absent classes in the mean."""

    def score(references: np.ndarray, predictions: np.ndarray, labels: int) -> Any:
        counted: list[int] = [1] if average == "binary" else list(range(labels))
        if references.ndim == 2 and labels == 1:  # scikit-learn takes one column for two classes, and scores its zeros
            references, predictions, counted = references[:, 0], predictions[:, 0], [1]
        how = {"average": average, "zero_division": 0} | (
            {} if average in ("binary", "samples") else {"labels": counted}
        )
        return _sklearn(name, **how)(references, predictions, labels)

    return score


def _roc_auc(references: np.ndarray, scores: np.ndarray, labels: int) -> float:
    """One class (or label) against the rest; the mean over them."""
    if references.ndim < scores.ndim:
        references = references[:, None] == np.arange(labels)
    return _sklearn("roc_auc_score", average="macro")(references, scores, labels)


def _correlation(name: str) -> Callable[..., float]:
    def score(references: np.ndarray, predictions: np.ndarray, labels: int) -> float:
        from scipy import stats

        return getattr(stats, name)(references, predictions).statistic if len(references) > 1 else np.nan

    return score


RATIOS = {"precision": "precision_score", "recall": "recall_score", "f1": "f1_score"}
SCORES = {
    "accuracy": Score(_sklearn("accuracy_score"), (SINGLE,)),
    **{name: Score(_averaged(function, "binary"), (SINGLE,), binary=True) for name, function in RATIOS.items()},
    **{
        f"{name}_{average}": Score(_averaged(function, None if average == "per_class" else average), (SINGLE, MULTI))
        for name, function in RATIOS.items()
        for average in ("macro", "weighted", "micro", "per_class")
    },
    "f1_samples": Score(_averaged("f1_score", "samples"), (MULTI,)),
    "matthews_correlation": Score(_sklearn("matthews_corrcoef"), (SINGLE,)),
    "roc_auc": Score(_roc_auc, (SINGLE, MULTI), column="prediction_scores"),
    "subset_accuracy": Score(_sklearn("accuracy_score"), (MULTI,)),
    "hamming_loss": Score(_sklearn("hamming_loss"), (MULTI,), "min"),
    "pearson": Score(_correlation("pearsonr"), (REGRESSION,)),
    "spearman": Score(_correlation("spearmanr"), (REGRESSION,)),
    "mse": Score(_sklearn("mean_squared_error"), (REGRESSION,), "min"),
    "rmse": Score(_sklearn("root_mean_squared_error"), (REGRESSION,), "min"),
    "mae": Score(_sklearn("mean_absolute_error"), (REGRESSION,), "min"),
    "r2": Score(_sklearn("r2_score"), (REGRESSION,)),
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
            if not np.isfinite(compared).all():  # of a model that diverged; scikit-learn would refuse it
                value = np.nan
            else:
                with warnings.catch_warnings():  # an undefined score becomes the NaN that is logged below
                    warnings.simplefilter("ignore")
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
