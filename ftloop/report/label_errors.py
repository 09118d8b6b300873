"""Which labels are likely wrong: rows that neither the run nor a second opinion gives much probability to.

A fine-tuned model has seen the rows of train and may have learned their wrong labels by heart; its losses alone then
say little. The second opinion has not: logistic regression on the *pretrained* model's features, each row judged by one
that was fitted on the other folds (features of the fine-tuned model have moved towards the labels as they are, and were
the worse ones). Their logarithms are averaged, the second counting twice: with equal shares as many were found where
nothing was learned by heart, and fewer where it was. Rows are ranked by the probability of their own label, the
"self-confidence" of confident learning (Northcutt et al., 2021, arXiv:1911.00068), whose estimate of the joint of given
and true labels, from the second opinion, says how many are wrong. `python -m benchmarks.label_noise` measures it all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ftloop.errors import UserError
from ftloop.report.scored import Scored
from ftloop.runs.record import load_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = numpy.ndarray

FOLDS = 5
# Of the logistic regression, the inverse of its penalty. On scaled features, this strong a penalty is better than
# scikit-learn's 1 with wrong labels among the rows, and some times quicker.
INVERSE_PENALTY = 0.01
SHARE = 2 / 3  # of the second opinion
LEAST = 1e-4  # added to probabilities before their logarithms: one opinion that is quite sure does not decide alone


@dataclass(frozen=True)
class LabelErrors:
    """Rows by their places in a `Scored`, the most doubtful first; [rows] each."""

    places: Array  # int
    confidence: Array  # of both opinions in the label as it is; for several labels, in the most doubtful one
    label: Array  # int: the label that is doubted: the row's class; for several labels, one that it has, or lacks
    suggested: (
        Array  # int: the likeliest other class; for several labels, 1: add `label`, 0: take it away
    )
    likely: (
        int  # how many are wrong, by confident learning's estimate: the first so many of the rows
    )
    names: tuple[str, ...]
    multi: bool
    opinions: int  # 2, or 1 where there was no second one

    def suggestion(self, number: int) -> str:
        """In words, of the row at `places[number]`: "joy -> love"; for several labels "+ joy" or "- joy"."""
        label, other = self.names[self.label[number]], self.suggested[number]
        return (
            f"{'+' if other else '-'} {label}" if self.multi else f"{label} -> {self.names[other]}"
        )


def label_errors(scored: Scored, second: Array | None = None) -> LabelErrors:
    """Rank rows by how doubtful their labels are.

    `second`: probabilities [rows, labels] of a second opinion, NaN in the rows where it has none (`out_of_fold`).
    Raises UserError for regression, and where there are no probabilities.
    """
    if scored.is_regression or scored.probabilities is None:
        raise UserError(
            f"the labels of {scored.split} are doubted by probabilities, which this run does not give"
        )
    own, truth = scored.probabilities.astype(float), scored.references
    if (
        scored.is_multi_label
    ):  # each label is a question of its own, with two answers: [rows, labels, 2]
        both = together(
            *(one if one is None else numpy.stack([1 - one, one], axis=-1) for one in (own, second))
        )
        given = numpy.take_along_axis(both, truth[..., None].astype(int), axis=-1)[..., 0]
        label, places = given.argmin(axis=1), numpy.arange(scored.rows)
        confidence, suggested = given[places, label], (~truth)[places, label].astype(int)
        doubted = confidence < 0.5
        judges = own if second is None else second
        count = sum(
            expected(numpy.stack([1 - of, of], axis=1), there.astype(int))
            for of, there in zip(judges.T, truth.T, strict=True)
        )
    else:
        both, places = together(own, second), numpy.arange(scored.rows)
        label, confidence = truth, both[places, truth]
        count = expected(own if second is None else second, truth)
        others = both.copy()
        others[places, truth] = -1
        suggested = others.argmax(axis=1)
        doubted = others.max(axis=1) > confidence
    order = numpy.argsort(confidence, kind="stable")
    columns = (column[order] for column in (places, confidence, label, suggested))
    count = min(
        count, int(doubted.sum())
    )  # no more than have a suggestion that is likelier than the label
    return LabelErrors(
        *columns, count, scored.names, scored.is_multi_label, opinions=1 if second is None else 2
    )


def together(one: Array, other: Array | None) -> Array:
    """The normalised geometric mean of two probabilities over their last axis, the other with its SHARE; where it is
    NaN, the one."""
    if other is None:
        return one
    mean = (one + LEAST) ** (1 - SHARE) * (other + LEAST) ** SHARE
    return numpy.where(numpy.isnan(other), one, mean / mean.sum(axis=-1, keepdims=True))


def expected(probabilities: Array, truth: Array) -> int:
    """How many of some rows have a wrong label, by the calibrated confident joint. A class's threshold is the mean
    probability that its own rows give it; a row is counted to the likeliest class whose threshold it reaches, if any;
    and the counts of each class are scaled to all of its rows. Rows without probabilities (NaN) are not counted."""
    judged = ~numpy.isnan(probabilities).any(axis=1)
    probabilities, truth = probabilities[judged], truth[judged]
    rows, classes = numpy.bincount(truth, minlength=probabilities.shape[1]), probabilities.shape[1]
    own = numpy.bincount(truth, probabilities[numpy.arange(len(truth)), truth], minlength=classes)
    thresholds = numpy.divide(own, rows, out=numpy.full(classes, numpy.inf), where=rows > 0)
    reached = numpy.where(probabilities >= thresholds, probabilities, -1)
    counted = reached.max(axis=1) >= 0
    off = numpy.bincount(truth[counted & (reached.argmax(axis=1) != truth)], minlength=classes)
    of = numpy.bincount(truth[counted], minlength=classes)
    return round(float((off * rows / numpy.maximum(of, 1)).sum()))


def out_of_fold(features: Array, scored: Scored, folds: int = FOLDS, seed: int = 0) -> Array:
    """Probabilities, float [rows, labels], of logistic regressions that have not seen the row that they judge.

    Each class is dealt over the folds evenly. Classes (of several labels: labels) with fewer rows than folds cannot be
    judged like this: their rows (columns) are NaN.
    """
    from ftloop.report.linear import linear, probabilities_of

    draw, truth = numpy.random.default_rng(seed), scored.references
    fold = numpy.empty(scored.rows, int)
    keys = (
        truth
        if not scored.is_multi_label
        else numpy.unique(truth, axis=0, return_inverse=True)[1].ravel()
    )
    mixed = draw.permutation(scored.rows)
    fold[mixed[numpy.argsort(keys[mixed], kind="stable")]] = numpy.arange(scored.rows) % folds
    found = numpy.full((scored.rows, len(scored.names)), numpy.nan)
    for number in range(folds):
        held = fold == number
        if held.any():
            model = linear(features[~held], truth[~held], scored, inverse_penalty=INVERSE_PENALTY)
            found[held] = probabilities_of(model, features[held], scored)
    if scored.is_multi_label:
        positives = truth.sum(axis=0)
        found[:, numpy.minimum(positives, scored.rows - positives) < folds] = numpy.nan
    else:
        found[numpy.bincount(truth, minlength=len(scored.names))[truth] < folds] = numpy.nan
    return found


def of_run(
    run_dir: str | Path,
    split: str = "train",
    task: Any = None,
    model: "PreTrainedModel | None" = None,
    *,
    at_most: int = 10_000,
) -> tuple[Scored, LabelErrors, str]:
    """The rows of a split, their labels by doubt, and in words what the doubt is made from.

    Of more than `at_most` rows, so many are chosen at random. It costs a pass of the run's model and one of the
    pretrained model over them, and 5 logistic regressions. Where the pretrained model is gone, or was random, only the
    run's own opinion counts. Raises UserError as `score` and `label_errors` do.
    """
    from ftloop.report.features import extract_features, initial_task
    from ftloop.report.scored import score

    config = load_config(run_dir)
    scored = score(run_dir, split, task, model, at_most=at_most)
    if scored.is_regression:
        raise UserError(f"{run_dir}: numbers have no wrong labels, only large errors")
    if config.task.init == "random":
        return (
            scored,
            label_errors(scored),
            "the run's own probabilities alone: its model began with random weights",
        )
    try:
        start = initial_task(config, task)
        model = start.build_model()
        _, features = extract_features(config, start, model, split, max_rows=at_most)
    except UserError as error:
        return scored, label_errors(scored), f"the run's own probabilities alone: {error}"
    said = f"the run's probabilities, and logistic regression on features of {config.task.model} in {FOLDS} folds"
    return scored, label_errors(scored, out_of_fold(features, scored, seed=config.seed)), said
