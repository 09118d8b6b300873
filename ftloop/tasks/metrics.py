"""Metrics as `evaluate.Metric` objects that need no network, and metrics of the Hub as `hub:NAME`.

`validate` refuses the names that do not fit a task, and `build` makes the objects, to which the
evaluation adds batches of rows. A new score is one entry of `SCORES` with a function of whole NumPy
columns:

    single-label   references int [rows]; predictions int [rows], or scores float, [rows] (of class
                   1) with two classes and [rows, classes] with more
    multi-label    references bool [rows, labels]; predictions bool or scores float, [rows, labels]
    regression     references and predictions float [rows]

scikit-learn and SciPy compute them over all classes of the task, also those that a split does not
have; 0 divided by 0 is 0. A score that is not defined (one class only, a constant, a NaN) is NaN,
with a line in the log, and training continues.
"""

import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftloop.errors import UserError, did_you_mean
from ftloop.escape import printable

if TYPE_CHECKING:
    import evaluate

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
DEFAULTS = {
    SINGLE: ("accuracy", "f1_macro"),
    MULTI: ("f1_micro", "f1_macro", "subset_accuracy"),
    REGRESSION: ("pearson", "spearman", "mse"),
}
HUB = "hub:"
IGNORED = -100  # the label of tokens that do not count
logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class Score:
    """A function f(references, predictions or scores, number of labels), and where it fits."""

    function: Callable[[np.ndarray, np.ndarray, int], Any]
    problem_types: tuple[str, ...]  # by their names in `config.problem_type` of transformers
    better: str = "max"  # or "min"
    column: str = "predictions"  # what the references are compared with; or "prediction_scores"
    binary: bool = False  # for exactly two classes, of which id 1 is the positive one


def _sklearn(name: str, **options: Any) -> Callable[..., Any]:
    """Return a function of sklearn.metrics; scikit-learn is imported for the first score."""

    def score(references: np.ndarray, compared: np.ndarray, num_labels: int) -> Any:
        import sklearn.metrics

        return getattr(sklearn.metrics, name)(references, compared, **options)

    return score


def _averaged(name: str, average: str | None) -> Callable[..., Any]:
    """Return precision, recall or F1. Naming all labels keeps absent classes in the mean."""

    def score(references: np.ndarray, predictions: np.ndarray, num_labels: int) -> Any:
        labels = [1] if average == "binary" else list(range(num_labels))
        if references.ndim == 2 and num_labels == 1:
            # scikit-learn takes a single column for two classes, and would score its zeros too.
            references, predictions, labels = references[:, 0], predictions[:, 0], [1]
        options: dict[str, Any] = {"average": average, "zero_division": 0}
        if average not in ("binary", "samples"):
            options["labels"] = labels
        return _sklearn(name, **options)(references, predictions, num_labels)

    return score


def _roc_auc(references: np.ndarray, scores: np.ndarray, num_labels: int) -> float:
    """Return the mean over classes or labels, each against the rest."""
    if references.ndim < scores.ndim:
        references = references[:, None] == np.arange(num_labels)
    return _sklearn("roc_auc_score", average="macro")(references, scores, num_labels)


def _correlation(name: str) -> Callable[..., float]:
    def score(references: np.ndarray, predictions: np.ndarray, num_labels: int) -> float:
        from scipy import stats

        if len(references) < 2:
            return np.nan
        return getattr(stats, name)(references, predictions).statistic

    return score


def _build_scores() -> dict[str, Score]:
    accuracy = _sklearn("accuracy_score")
    scores = {"accuracy": Score(accuracy, (SINGLE,))}
    ratios = {"precision": "precision_score", "recall": "recall_score", "f1": "f1_score"}
    for name, function in ratios.items():
        scores[name] = Score(_averaged(function, "binary"), (SINGLE,), binary=True)
    for name, function in ratios.items():
        for average in ("macro", "weighted", "micro"):
            scores[f"{name}_{average}"] = Score(_averaged(function, average), (SINGLE, MULTI))
        scores[f"{name}_per_class"] = Score(_averaged(function, None), (SINGLE, MULTI))
    scores["f1_samples"] = Score(_averaged("f1_score", "samples"), (MULTI,))
    scores["matthews_correlation"] = Score(_sklearn("matthews_corrcoef"), (SINGLE,))
    scores["roc_auc"] = Score(_roc_auc, (SINGLE, MULTI), column="prediction_scores")
    scores["subset_accuracy"] = Score(accuracy, (MULTI,))
    scores["hamming_loss"] = Score(_sklearn("hamming_loss"), (MULTI,), "min")
    scores["pearson"] = Score(_correlation("pearsonr"), (REGRESSION,))
    scores["spearman"] = Score(_correlation("spearmanr"), (REGRESSION,))
    scores["mse"] = Score(_sklearn("mean_squared_error"), (REGRESSION,), "min")
    scores["rmse"] = Score(_sklearn("root_mean_squared_error"), (REGRESSION,), "min")
    scores["mae"] = Score(_sklearn("mean_absolute_error"), (REGRESSION,), "min")
    scores["r2"] = Score(_sklearn("r2_score"), (REGRESSION,))
    return scores


SCORES = _build_scores()


# Names


def validate(names: Sequence[str], problem_type: str, labels: Sequence[str]) -> None:
    """Raise UserError for the first of `names` that this task cannot compute. Imports nothing.

    `labels` are the label names by id, none for regression. Of `hub:NAME` only the form is checked.
    """
    fitting = [
        name
        for name, score in SCORES.items()
        if problem_type in score.problem_types and (len(labels) == 2 or not score.binary)
    ]
    for name in names:
        if name in fitting or (name.startswith(HUB) and name.removeprefix(HUB).partition(":")[0]):
            continue
        problem = "does not fit" if name in SCORES else "is not a metric for"
        task = problem_type
        if problem_type != REGRESSION:
            task = f"{problem_type} with {len(labels)} labels"
        variants = " or ".join(choice for choice in fitting if choice.startswith(f"{name}_"))
        hint = f" (use {variants})" if variants else did_you_mean(name, fitting)
        raise UserError(
            f"--metrics: {name!r} {problem} {task}{hint}. "
            f"Choose from {', '.join(fitting)}, or {HUB}NAME for a metric of the Hub."
        )


def validate_token_metrics(names: Sequence[str], labels: Sequence[str]) -> None:
    """Raise UserError for the first of `names` that cannot be computed from the tags of tokens."""
    validate([name for name in names if not name.startswith(HUB)], SINGLE, labels)
    for name in names:
        if name.startswith(HUB) or SCORES[name].column != "predictions":
            raise UserError(f"--metrics: {name!r} cannot be computed for tokens.")


def score_names(names: Sequence[str], labels: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of the scores that metrics report: "recall[benign]" of recall_per_class.

    None with a metric of the Hub, which reports names that are known when it is computed.
    """
    scores: list[str] = []
    for name in names:
        if name.startswith(HUB):
            return None
        ratio, per_class, _ = name.partition("_per_class")
        scores += [class_score(ratio, label) for label in labels] if per_class else [name]
    return tuple(scores)


def class_score(ratio: str, label: str) -> str:
    """Return the name of the score of one class: "recall[benign]"."""
    return f"{ratio}[{printable(label)}]"


# Metrics


@functools.cache
def _local_metric_class() -> type:
    """Return the class of all local metrics. Importing its base class takes 2 to 3 seconds."""
    import evaluate
    from datasets import Features, Sequence as Row, Value

    class LocalMetric(evaluate.Metric):
        def __init__(self, name: str, problem_type: str, labels: Sequence[str]):
            # The base class asks for the features, so this comes first.
            self.score, self.problem_type, self.labels = SCORES[name], problem_type, labels
            super().__init__(keep_in_memory=True)  # ten times as fast as on disk, without locks
            self.info.module_name = name

        def _info(self) -> Any:
            # Ids are float64 too: an integer feature would silently truncate 1.7 to class 1.
            value, row = Value("float64"), Row(Value("float64"))
            references = row if self.problem_type == MULTI else value
            compared = references
            if self.score.column == "prediction_scores" and len(self.labels) != 2:
                compared = row  # a score of each class
            features = Features({self.score.column: compared, "references": references})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _check_ids(self, column: np.ndarray) -> np.ndarray:
            is_multi = self.problem_type == MULTI
            limit = 2 if is_multi else len(self.labels)
            if not np.isin(column, np.arange(limit)).all():
                values = np.unique(column)
                raise ValueError(f"{self.name} takes ids from 0 to {limit - 1}, not {values}")
            return column.astype(bool if is_multi else np.int64)

        def _compute(self, references: Any, **compared: Any) -> dict[str, float]:
            references, compared = np.asarray(references), np.asarray(compared[self.score.column])
            if self.problem_type != REGRESSION:
                references = self._check_ids(references)
                if self.score.column == "predictions":
                    compared = self._check_ids(compared)
            value = np.nan
            if np.isfinite(compared).all():  # scikit-learn refuses those of a model that diverged
                with warnings.catch_warnings():  # a score that is not defined is logged below
                    warnings.simplefilter("ignore")
                    value = self.score.function(references, compared, len(self.labels))
            if np.ndim(value):
                ratio = self.name.removesuffix("_per_class")
                scores = zip(self.labels, value, strict=True)
                return {class_score(ratio, label): float(score) for label, score in scores}
            if np.isnan(value):
                logger.warning(
                    "%s is not defined on these %d rows (one class only, a constant or a NaN)",
                    self.name,
                    len(references),
                )
            return {self.name: float(value)}

    return LocalMetric


def build(name: str, problem_type: str, labels: Sequence[str]) -> "evaluate.Metric":
    """Return the metric `name`: one of `SCORES`, or one of the Hub.

    `hub:NAME` or `hub:NAME:CONFIG` (`hub:glue:mrpc`) is `evaluate.load(NAME, CONFIG)`, which *runs*
    the script that it finds on the Hub, in the cache of the library, or at a local path
    (`hub:./my_metric` for `my_metric/my_metric.py`).

    Raises UserError for a metric that does not fit the task or cannot be loaded.
    """
    validate([name], problem_type, labels)
    if not name.startswith(HUB):
        return _local_metric_class()(name, problem_type, labels)

    import evaluate
    from huggingface_hub import constants

    # The library has its own variable for being offline, and otherwise waits for each time-out.
    evaluate.config.HF_EVALUATE_OFFLINE |= constants.HF_HUB_OFFLINE
    path, _, config_name = name.removeprefix(HUB).partition(":")
    if not path.startswith((".", "/")) and Path(path).exists():  # the library would prefer it
        raise UserError(
            f"--metrics: {name!r} is a metric of the Hub, but {path!r} also exists in this folder. "
            f"Write {HUB}./{path} to run the script that is here."
        )
    try:
        return evaluate.load(path, config_name or None, keep_in_memory=True)
    except (OSError, ImportError) as error:
        # Offline, the library says that the Hub has no such metric.
        raise UserError(
            f"--metrics: {name!r} cannot be loaded (can the Hub be reached?): {error}"
        ) from error


class TokenMetric:
    """A score of single-label classification over tokens: all that have a label count the same."""

    def __init__(self, name: str, labels: Sequence[str]):
        self.name = name
        self.metric = build(name, SINGLE, labels)

    def add_batch(self, predictions: Any, references: Any) -> None:
        """Add the tokens of some rows, ids (rows, tokens). A token labelled -100 does not count."""
        predictions, references = np.asarray(predictions), np.asarray(references)
        counts = references != IGNORED
        if counts.any():
            self.metric.add_batch(predictions=predictions[counts], references=references[counts])

    def compute(self) -> dict[str, float]:
        """Return the score of all tokens since the last call, NaN if there were none."""
        return self.metric.compute() if len(self.metric) else {self.name: float("nan")}
