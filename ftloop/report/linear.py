"""Linear and dummy models on fixed features, by scikit-learn.

The baselines of a report, the probe of features and the search for label errors use them.
"""

import warnings
from typing import Any

import numpy

from ftloop.report.scored import ScoredSplit
from ftloop.tasks import metrics

MAX_ITERATIONS = 200  # of L-BFGS: on scaled features, scores settle long before it converges


def fit_linear(
    features: Any,
    references: numpy.ndarray,
    labels: Any,
    *,
    scale: bool = True,
    inverse_penalty: float = 1.0,
) -> Any:
    """Fit ridge regression, or logistic regression, one for each label if rows have several.

    `features` is [rows, width], dense or sparse. `labels` has `problem_type` and `is_multi_label`:
    the Labels of a task, or a ScoredSplit. `scale` gives features mean 0 and deviation 1, which the
    hidden states of a model need to converge. `inverse_penalty` is scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if labels.problem_type == metrics.REGRESSION:
        model = Ridge()
    else:
        model = one_per_label(
            LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS), labels
        )
    return fit(make_pipeline(StandardScaler(), model) if scale else model, features, references)


def fit_dummy(references: numpy.ndarray, labels: Any) -> Any:
    """Fit a model that ignores features: the most frequent class, the frequent labels, the mean.

    Its probabilities are the shares of the classes or labels in `references`.
    """
    from sklearn.dummy import DummyClassifier, DummyRegressor

    if labels.problem_type == metrics.REGRESSION:
        model = DummyRegressor()
    else:
        model = one_per_label(DummyClassifier(strategy="prior"), labels)
    return fit(model, numpy.zeros((len(references), 1)), references)


def one_per_label(model: Any, labels: Any) -> Any:
    """Return a classifier that fits a copy of `model` for each label, if rows have several."""
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(model) if labels.is_multi_label else model


def fit(model: Any, features: Any, references: numpy.ndarray) -> Any:
    """Fit a model without warnings about convergence and about labels that all or no rows have."""
    from sklearn.exceptions import ConvergenceWarning

    is_multi_label = references.ndim == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if is_multi_label:
            warnings.filterwarnings("ignore", ".* is present in all training examples")
        return model.fit(features, references.astype(int) if is_multi_label else references)


def predict_probabilities(model: Any, features: Any, labels: Any) -> numpy.ndarray:
    """Return probabilities, float32 [rows, labels]; 0 for classes that were not in training."""
    predicted = model.predict_proba(features)
    if labels.is_multi_label:
        return predicted.astype(numpy.float32)
    probabilities = numpy.zeros((len(predicted), len(labels.names)), numpy.float32)
    probabilities[:, model.classes_] = predicted
    return probabilities


def score_model(
    model: Any, features: Any, references: numpy.ndarray, split: str, task: Any
) -> ScoredSplit:
    """Return the rows of a split with the outputs and losses of a fitted model.

    Losses are those of the task: cross-entropy, its mean over labels, or the squared error. A
    probability of 0 counts as the smallest float32, so that losses are finite.
    """
    labels = task.labels
    if labels.problem_type == metrics.REGRESSION:
        probabilities = None
        predictions = model.predict(features).astype(numpy.float64)
        losses = (predictions - references) ** 2
    elif labels.is_multi_label:
        probabilities = predict_probabilities(model, features, labels)
        predictions = probabilities >= task.threshold
        losses = cross_entropy(numpy.where(references, probabilities, 1 - probabilities))
        losses = losses.mean(axis=1)
    else:
        probabilities = predict_probabilities(model, features, labels)
        predictions = probabilities.argmax(axis=1)
        losses = cross_entropy(probabilities[numpy.arange(len(references)), references])
    return ScoredSplit(
        split=split,
        problem_type=labels.problem_type,
        names=tuple(labels.names),
        references=references,
        predictions=predictions,
        probabilities=probabilities,
        losses=losses,
    )


def cross_entropy(probabilities: numpy.ndarray) -> numpy.ndarray:
    """Return the losses of probabilities that a model gives to the truth."""
    smallest = numpy.finfo(numpy.float32).tiny
    return -numpy.log(numpy.maximum(probabilities.astype(numpy.float64), smallest))
