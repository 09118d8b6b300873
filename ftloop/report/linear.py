"""Linear models on fixed features, and what knows nothing but the labels of train: what a fine-tuned model is compared
with. By scikit-learn; the same few functions for the probe of features, the baselines, and likely label errors."""

import logging
import warnings
from typing import Any

import numpy

from ftloop.report.scored import Scored
from ftloop.tasks import metrics

logger = logging.getLogger("ftloop")

ITERATIONS = 200  # of L-BFGS: on scaled features, scores have settled long before it has converged


def linear(
    features: Any,
    references: numpy.ndarray,
    labels: Any,
    scale: bool = True,
    inverse_penalty: float = 1.0,
) -> Any:
    """Logistic regression, one for each label where there are several, or ridge regression, fitted on [rows, width].

    `labels` has `problem_type`, `names` and `multi`: a task's Labels, or a Scored. `scale`: features to mean 0 and
    deviation 1 first, which those of a model need to converge (not sparse ones). `inverse_penalty`: scikit-learn's C.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if labels.problem_type == metrics.REGRESSION:
        model = Ridge()
    else:
        model = LogisticRegression(C=inverse_penalty, max_iter=ITERATIONS)
        model = OneVsRestClassifier(model) if labels.is_multi_label else model
    return fitted(
        make_pipeline(StandardScaler(), model) if scale else model,
        features,
        references,
        ConvergenceWarning,
    )


def dummy(features: Any, references: numpy.ndarray, labels: Any) -> Any:
    """The most frequent class, the labels that most rows have, or the mean: of train, for any row."""
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.multiclass import OneVsRestClassifier

    if labels.problem_type == metrics.REGRESSION:
        model = DummyRegressor()
    else:  # "prior" predicts the most frequent one too, and its probabilities are the shares of the classes
        model = DummyClassifier(strategy="prior")
        model = OneVsRestClassifier(model) if labels.is_multi_label else model
    return fitted(model, features, references)


def fitted(
    model: Any, features: Any, references: numpy.ndarray, ignored: type[Warning] = Warning
) -> Any:
    """The model, fitted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ignored)
        if references.ndim == 2:  # a label that all rows of train have, or none
            warnings.filterwarnings(
                "ignore", "Label .* is present in all training examples|.*not .*is present in all"
            )
        return model.fit(features, references.astype(int) if references.ndim == 2 else references)


def probabilities_of(model: Any, features: Any, labels: Any) -> numpy.ndarray:
    """float32 [rows, labels]: of classes that the rows it was fitted on lack, 0."""
    found = model.predict_proba(features)
    if labels.is_multi_label:
        return found.astype(numpy.float32)
    whole = numpy.zeros((len(found), len(labels.names)), numpy.float32)
    whole[:, model.classes_] = found
    return whole


def scored_by(
    model: Any, features: Any, references: numpy.ndarray, split: str, task: Any
) -> Scored:
    """Rows as such a model sees them, with the losses of the task's kind: cross-entropy, its mean over the labels, or
    the squared error. A probability of 0 counts as the smallest float32."""
    labels = task.labels
    if labels.problem_type == metrics.REGRESSION:
        predictions = model.predict(features).astype(numpy.float64)
        return Scored(
            split,
            labels.problem_type,
            (),
            references,
            predictions,
            None,
            (predictions - references) ** 2,
        )
    probabilities = probabilities_of(model, features, labels)
    least = numpy.finfo(numpy.float32).tiny
    if labels.is_multi_label:
        predictions = probabilities >= task.threshold
        chances = numpy.where(references, probabilities, 1 - probabilities).astype(float)
        losses = -numpy.log(numpy.maximum(chances, least)).mean(axis=1)
    else:
        predictions = probabilities.argmax(axis=1)
        chances = probabilities[numpy.arange(len(references)), references].astype(float)
        losses = -numpy.log(numpy.maximum(chances, least))
    return Scored(
        split,
        labels.problem_type,
        tuple(labels.names),
        references,
        predictions,
        probabilities,
        losses,
    )
