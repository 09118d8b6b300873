"""What a fine-tuned model is compared with: the majority class; words and bigrams; the frozen pretrained model.

Each takes seconds, not the best that its kind can do: of a large split, a random part is used, and said. A run that is
not clearly better than these has learned little, or had little to learn.
"""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy

from ftloop.errors import UserError
from ftloop.report.linear import dummy, linear, scored_by
from ftloop.report.scored import Scored, some_rows, source_rows

if TYPE_CHECKING:
    from ftloop.config import Config

WORD_ROWS = 10_000  # of train, for TF-IDF
WORD_FEATURES = 20_000  # the most frequent words and bigrams
WORD_INVERSE_PENALTY = (
    10.0  # TF-IDF rows have length 1: scikit-learn's 1 is far too strong for them
)
FROZEN_ROWS = 1_000  # of train, and of each split that is scored: each is a forward pass


@dataclass(frozen=True)
class Baseline:
    name: str
    how: str  # in words: what was fitted, on how many rows
    scored: dict[str, Scored]  # by split; empty where it is absent
    absent: str | None = None  # why
    seconds: float = 0.0


def baselines(
    config: "Config", task: Any = None, splits: tuple[str, ...] = ("validation", "test")
) -> list[Baseline]:
    """The three baselines of a run on those of `splits` that its data has; for images, two.

    `task`: the run's task, if it is at hand: its rows and labels are used. Scores follow by `statistics.intervals`
    or `statistics.scores`, as those of the run do. What cannot be had (the pretrained model is gone, or was random;
    train is a stream) is absent, with the reason.
    """
    from ftloop.report.features import initial_task

    start = initial_task(config, task)
    try:
        source_rows(start, "train")
    except UserError as error:
        return [Baseline("majority class", "", {}, str(error))]
    splits = tuple(split for split in splits if split in start.rows)
    references = {split: references_of(start, split) for split in ("train", *splits)}
    return [
        majority(start, splits, references),
        *(
            [words(start, splits, references, config.seed)]
            if hasattr(start, "text_columns")
            else []
        ),
        frozen(config, start, splits, references),
    ]


def references_of(task: Any, split: str) -> numpy.ndarray:
    """int64 [rows], bool [rows, labels] or float64 [rows]: of all rows of a split."""
    column = numpy.array(task.encode_labels(task.rows[split], split))
    return column.astype(bool) if task.labels.is_multi_label else column


def majority(task: Any, splits: tuple[str, ...], references: dict[str, numpy.ndarray]) -> Baseline:
    """The most frequent class of train, the labels that most of its rows have, or their mean."""
    regression = task.labels.problem_type == "regression"
    name = (
        "mean"
        if regression
        else "majority labels"
        if task.labels.is_multi_label
        else "majority class"
    )
    model = dummy(numpy.zeros((len(references["train"]), 1)), references["train"], task.labels)
    scored = {
        split: scored_by(
            model, numpy.zeros((len(references[split]), 1)), references[split], split, task
        )
        for split in splits
    }
    return Baseline(name, f"of {len(references['train'])} rows of train", scored)


def words(
    task: Any, splits: tuple[str, ...], references: dict[str, numpy.ndarray], seed: int
) -> Baseline:
    """TF-IDF of words and bigrams, of each text column by itself, and logistic or ridge regression. How the two texts
    of a pair go together, it cannot see."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    began, (chosen, said) = time.perf_counter(), part(len(references["train"]), WORD_ROWS, seed)
    columns = task.text_columns
    makers = [
        TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, max_features=WORD_FEATURES, token_pattern=r"\w+"
        )
        for _ in columns
    ]

    def features(split: str, rows: Any, first: bool = False) -> Any:
        texts = [rows[column][:] for column in columns]
        return hstack(
            [
                (make.fit_transform if first else make.transform)(of)
                for make, of in zip(makers, texts, strict=True)
            ]
        ).tocsr()

    name = "TF-IDF of words and bigrams"
    try:
        known = features("train", task.rows["train"].select(chosen), first=True)
    except ValueError as error:  # "empty vocabulary": texts without a word
        return Baseline(name, said, {}, str(error))
    model = linear(known, references["train"][chosen], task.labels, False, WORD_INVERSE_PENALTY)
    scored = {
        split: scored_by(model, features(split, task.rows[split]), references[split], split, task)
        for split in splits
    }
    return Baseline(
        name, f"{regression_of(task)}, {said}", scored, seconds=time.perf_counter() - began
    )


def frozen(
    config: "Config", task: Any, splits: tuple[str, ...], references: dict[str, numpy.ndarray]
) -> Baseline:
    """Logistic or ridge regression on the mean of the pretrained model's last hidden states."""
    from ftloop.report.features import extract_features

    began, name = time.perf_counter(), "frozen features"
    if task.init == "random":
        return Baseline(
            name, "", {}, "the model began with random weights: its features know nothing"
        )
    try:
        model = task.build_model()
        found = {
            split: extract_features(config, task, model, split, "mean", FROZEN_ROWS)
            for split in ("train", *splits)
        }
    except UserError as error:  # it was moved since, or is on the Hub, which is not in reach
        return Baseline(name, "", {}, str(error))
    ids, features = found["train"]
    model = linear(features, references["train"][ids], task.labels)
    scored = {}
    for split in splits:
        ids, features = found[split]
        total = len(references[split])
        scored[split] = replace(
            scored_by(model, features, references[split][ids], split, task),
            row_ids=ids,
            total=total,
        )
    _, said = part(len(references["train"]), FROZEN_ROWS, config.seed)
    most = max((one.total for one in scored.values()), default=0)
    asked = f"; scored on at most {FROZEN_ROWS} rows of a split" if most > FROZEN_ROWS else ""
    how_made = f"{regression_of(task)} on those of {task.model}, {said}{asked}"
    return Baseline(name, how_made, scored, seconds=time.perf_counter() - began)


def part(rows: int, at_most: int, seed: int) -> tuple[numpy.ndarray, str]:
    """The rows to fit on, and in words how many they are."""
    chosen = some_rows(rows, at_most, seed)
    if chosen is None:
        return numpy.arange(rows), f"of {rows} rows of train"
    return chosen, f"of {at_most} of {rows} rows of train, chosen at random"


def regression_of(task: Any) -> str:
    return "ridge regression" if task.labels.problem_type == "regression" else "logistic regression"
