"""Baselines of a fine-tuned model: the majority class, TF-IDF, the frozen pretrained model.

A run that is not clearly better than these has learned little, or there was little to learn. Each
takes seconds, so they are not the best of their kind: for a large split a random sample is used,
and the description says so.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy

from ftloop.config import Config
from ftloop.errors import UserError
from ftloop.report.features import extract_features, initial_task
from ftloop.report.linear import fit_dummy, fit_linear, score_model
from ftloop.report.scored import ScoredSplit, find_rows
from ftloop.report.subset import sample_rows

TFIDF_ROWS = 10_000  # of train
TFIDF_FEATURES = 20_000  # of each text column: the most frequent words and bigrams
# scikit-learn's C. Its default of 1 is far too strong a penalty for TF-IDF rows, which have norm 1.
TFIDF_INVERSE_PENALTY = 10.0
FROZEN_ROWS = 1000  # of each split, because each row is a forward pass

References = dict[str, numpy.ndarray]
"""The encoded labels of all rows of a split, by split."""


@dataclass(frozen=True)
class Baseline:
    """A model that a run is compared with, and its outputs."""

    name: str
    description: str  # what was fitted on how many rows; or why it could not be
    scored: dict[str, ScoredSplit]  # by split; empty if the baseline could not be fitted


def fit_baselines(
    config: Config, task: Any = None, splits: tuple[str, ...] = ("validation", "test")
) -> list[Baseline]:
    """Fit the baselines of a run and score them on those of `splits` that the data has.

    Images have no TF-IDF baseline. `task` is the task of the finished run, if the caller has it:
    its rows and labels are then not read again. A baseline that cannot be fitted (train is a
    stream, the pretrained model is missing or was random) has no outputs, and a description that
    says why.
    """
    task = initial_task(config, task)
    try:
        find_rows(task, "train")
    except UserError as error:
        return [Baseline("majority class", str(error), {})]
    splits = tuple(split for split in splits if split in task.rows)
    references = {split: encode_references(task, split) for split in ("train", *splits)}
    baselines = [fit_majority(task, splits, references)]
    if hasattr(task, "text_columns"):
        baselines.append(fit_tfidf(task, splits, references, config.seed))
    baselines.append(fit_frozen(config, task, splits, references))
    return baselines


def encode_references(task: Any, split: str) -> numpy.ndarray:
    """Return the labels of a split: int64 [rows], bool [rows, labels] or float64 [rows]."""
    labels = numpy.array(task.encode_labels(task.rows[split], split))
    return labels.astype(bool) if task.labels.is_multi_label else labels


# ---- the labels alone


def fit_majority(task: Any, splits: tuple[str, ...], references: References) -> Baseline:
    """Predict the most frequent class, the labels that most rows have, or the mean of train."""
    if task.labels.is_multi_label:
        name = "majority labels"
    else:
        name = "majority class" if task.labels.names else "mean"
    model = fit_dummy(references["train"], task.labels)
    scored = {}
    for split in splits:
        no_features = numpy.zeros((len(references[split]), 1))
        scored[split] = score_model(model, no_features, references[split], split, task)
    return Baseline(name, f"of {len(references['train'])} rows of train", scored)


# ---- words


def fit_tfidf(task: Any, splits: tuple[str, ...], references: References, seed: int) -> Baseline:
    """Fit a linear model on the TF-IDF of words and bigrams of each text column.

    It cannot see how the two texts of a pair fit together.
    """
    from sklearn.compose import make_column_transformer
    from sklearn.feature_extraction.text import TfidfVectorizer

    name = "TF-IDF of words and bigrams"
    columns = list(task.text_columns)

    def read_texts(rows: Any) -> Any:
        return rows.select_columns(columns).to_pandas()

    row_ids = sample_rows(len(references["train"]), TFIDF_ROWS, seed)
    description = describe_fit(task, len(row_ids), len(references["train"]))
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=TFIDF_FEATURES,
        token_pattern=r"\w+",  # also words of one letter
    )
    vectorizers = make_column_transformer(*((vectorizer, column) for column in columns))
    try:
        features = vectorizers.fit_transform(read_texts(task.rows["train"].select(row_ids)))
    except ValueError as error:  # "empty vocabulary": there are no words in the texts
        return Baseline(name, f"{description}: {error}", {})
    model = fit_linear(
        features,
        references["train"][row_ids],
        task.labels,
        scale=False,
        inverse_penalty=TFIDF_INVERSE_PENALTY,
    )
    scored = {}
    for split in splits:
        features = vectorizers.transform(read_texts(task.rows[split]))
        scored[split] = score_model(model, features, references[split], split, task)
    return Baseline(name, description, scored)


# ---- the pretrained model


def fit_frozen(
    config: Config, task: Any, splits: tuple[str, ...], references: References
) -> Baseline:
    """Fit a linear model on the mean of the last hidden states of the pretrained model."""
    name = "frozen features"
    if task.init == "random":
        return Baseline(name, "training began with random weights, which have no features", {})
    try:
        model = task.build_model()
        row_ids, features = {}, {}
        for split in ("train", *splits):
            row_ids[split], features[split] = extract_features(
                config, task, model, split, "mean", FROZEN_ROWS
            )
    except UserError as error:  # its folder was moved, or the Hub cannot be reached
        return Baseline(name, str(error), {})
    linear_model = fit_linear(features["train"], references["train"][row_ids["train"]], task.labels)
    scored = {}
    for split in splits:
        of_sample = references[split][row_ids[split]]
        outputs = score_model(linear_model, features[split], of_sample, split, task)
        total = len(references[split])
        scored[split] = replace(outputs, row_ids=row_ids[split], total=total)

    description = describe_fit(task, len(row_ids["train"]), len(references["train"]), task.model)
    if any(outputs.rows < outputs.total for outputs in scored.values()):
        description += f"; scored on at most {FROZEN_ROWS} rows of a split"
    return Baseline(name, description, scored)


def describe_fit(task: Any, num_rows: int, total: int, model: str = "") -> str:
    """Return a line such as "logistic regression, fitted on 900 rows of train"."""
    kind = "logistic regression" if task.labels.names else "ridge regression"
    if model:
        kind += f" on the features of {model}"
    if num_rows == total:
        return f"{kind}, fitted on {total} rows of train"
    return f"{kind}, fitted on {num_rows} of {total} rows of train, chosen at random"
