"""A linear probe: how well a linear model on fixed features solves a task."""

import logging
from pathlib import Path
from typing import Any

import numpy

from ftloop.report.feature_file import read_features
from ftloop.report.linear import fit_dummy, fit_linear, score_model
from ftloop.report.subset import sample_rows
from ftloop.report.weighted_scores import compute_scores

logger = logging.getLogger("ftloop")

MAX_ROWS = 20_000  # training rows: more rarely help, and they are held in memory


def probe_features(
    file: Path, task: Any, references: dict[str, numpy.ndarray], seed: int
) -> list[str]:
    """Fit a probe on the features of train; return the lines of a table with its scores.

    Beside it stands a dummy, which knows only the labels of train. `references`: the encoded labels
    of the rows in the file by split, "train" and those to score.
    """
    references = {split: numpy.asarray(labels) for split, labels in references.items()}
    if task.labels.is_multi_label:
        references = {split: labels.astype(bool) for split, labels in references.items()}
    _, features = read_features(file, "train")
    train_labels = references["train"]
    chosen = sample_rows(len(train_labels), MAX_ROWS, seed)
    if len(chosen) < len(train_labels):
        logger.info(
            "probe: %d of %d training rows, chosen at random", len(chosen), len(train_labels)
        )
        features, train_labels = features[chosen], train_labels[chosen]
    models = {
        "probe": fit_linear(features, train_labels, task.labels),
        "dummy": fit_dummy(train_labels, task.labels),
    }
    lines: list[str] = []
    for split in references:
        if split == "train":
            continue
        _, features = read_features(file, split)
        for name, model in models.items():
            scored = score_model(model, features, references[split], split, task)
            found = compute_scores(scored, task.metric_names)
            if not lines:
                headers = [f"{score:>12}" for score in found]
                lines.append("  ".join([f"{'split':<12}{'':<8}", *headers]))
            cells = [f"{value:12.4f}" for value in found.values()]
            lines.append("  ".join([f"{split:<12}{name:<8}", *cells]))
    return lines
