"""What the labels of a classification are: decided once, from train, and then only applied.

The decision (problem type and names, in the order of their ids) is saved in the model's config as id2label; a finished
run is evaluated with the names of its model, never with a second decision.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("ftloop")

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class Labels:
    """A problem type (by transformers' names) and the label names in the order of their ids; () for regression."""

    problem_type: ProblemType
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """How many logits the head has."""
        return len(self.names) or 1

    @property
    def multi(self) -> bool:
        return self.problem_type == "multi_label_classification"


def cells(rows: "Dataset", columns: tuple[str, ...], separator: str | None) -> list[Any]:
    """The label of each row: a value, a list of values, or a list of 0/1 cells (several columns). ClassLabels are named."""
    from datasets import ClassLabel

    if len(columns) > 1:
        return [list(row) for row in zip(*(rows[column][:] for column in columns), strict=True)]
    values = rows[columns[0]][:]
    feature = rows.features[columns[0]]
    if isinstance(feature, ClassLabel):  # -1 is the Hub's sign for "not labelled"
        return [feature.names[value] if value is not None and value >= 0 else None for value in values]
    if isinstance(getattr(feature, "feature", None), ClassLabel):
        return [None if value is None else [feature.feature.names[part] for part in value] for value in values]
    if separator is not None:
        return [
            None if text is None else [part.strip() for part in str(text).split(separator) if part.strip()]
            for text in values
        ]
    return values


def missing(cell: Any) -> bool:
    """No label: null, an empty text, or nulls within a list."""
    if isinstance(cell, list):
        return any(part is None or part == "" for part in cell)
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def decide(
    rows: "Dataset",
    columns: tuple[str, ...],
    separator: str | None,
    problem_type: ProblemType | None,
    names: Sequence[str],
) -> Labels:
    """Decide what the labels are, from the rows of train and the options; options win. Raises UserError."""
    from datasets import ClassLabel

    found = [cell for cell in cells(rows, columns, separator) if not missing(cell)]
    if not found:
        raise UserError(f"--task.label-column: no row of train has a label in {', '.join(columns)}")
    lists = isinstance(found[0], list)
    floats = any(isinstance(cell, float) for cell in found)
    if problem_type is None:
        if lists:
            problem_type = "multi_label_classification"
        elif floats and all(float(cell).is_integer() for cell in found):
            raise UserError(
                f"--task.label-column {columns[0]!r} holds whole numbers written as decimals: say which is meant by "
                "--task.problem-type regression or single_label_classification"
            )
        else:
            problem_type = "regression" if floats else "single_label_classification"
    if lists != (problem_type == "multi_label_classification"):
        holds = "lists" if lists else "single values"
        raise UserError(
            f"--task.problem-type {problem_type} does not fit the label column {', '.join(columns)}, which holds {holds}"
            + ("" if lists else " (--task.label-separator splits a text into labels)")
        )
    if problem_type == "regression":
        if isinstance(found[0], str):
            raise UserError(f"--task.label-column {columns[0]!r} holds texts ({found[0]!r}): regression needs numbers")
        return Labels("regression", ())
    if not names:
        feature = rows.features[columns[0]]
        feature = getattr(feature, "feature", feature)
        if len(columns) > 1:
            names = columns
        elif isinstance(feature, ClassLabel):
            names = feature.names
        else:
            names = _sorted_names({_text(part) for cell in found for part in (cell if lists else [cell])})
    if len(names) < 2 and problem_type == "single_label_classification":
        raise UserError(
            f"--task.label-column {columns[0]!r}: train has one class only, {names[0]!r}; nothing to tell apart"
        )
    if len(set(names)) < len(names):
        raise UserError("--task.label-names: a name occurs twice")
    return Labels(problem_type, tuple(names))


def encode(rows: "Dataset", columns: tuple[str, ...], separator: str | None, labels: Labels, split: str) -> list[Any]:
    """The labels as numbers: an id per row; for multi-label a list of 0.0 / 1.0 per label; for regression a float.

    A value is a name if all values of the split are names; else, if they are whole numbers in range, it is an id.
    Raises UserError for a label that `labels` does not have.
    """
    values = cells(rows, columns, separator)
    if labels.problem_type == "regression":
        try:
            return [float(value) for value in values]
        except ValueError as error:
            raise UserError(f"--task.label-column: {split} holds a label that is not a number: {error}") from error
    if len(columns) > 1:
        for column, cells_of_column in zip(columns, zip(*values, strict=True), strict=True):
            odd = {cell for cell in cells_of_column if str(cell) not in ("0", "1", "0.0", "1.0", "False", "True")}
            if odd:
                raise UserError(
                    f"--task.label-column {column!r}: {split} holds {sorted(map(str, odd))[:3]}; 0 or 1 is needed"
                )
        return [[float(cell) for cell in row] for row in values]
    ids = {name: number for number, name in enumerate(labels.names)}
    found = {part for value in values for part in (value if labels.multi else [value])}
    unknown = sorted({_text(value) for value in found} - ids.keys())
    if unknown and all(_text(value).isdecimal() and int(_text(value)) < len(ids) for value in found):
        ids, unknown = {str(number): number for number in range(len(labels.names))}, []
    if unknown:
        raise UserError(
            f"--task.label-column {columns[0]!r}: {split} has {len(unknown)} label(s) that train lacks: "
            f"{', '.join(map(repr, unknown[:5]))}{nearest(unknown[0], ids)}; the labels are "
            f"{', '.join(map(repr, labels.names[:10]))}{', ...' if len(labels.names) > 10 else ''}"
        )
    if not labels.multi:
        return [ids[_text(value)] for value in values]
    encoded = []
    for value in values:
        present = {ids[_text(part)] for part in value}
        encoded.append([float(number in present) for number in range(len(labels.names))])
    return encoded


def log_labels(labels: Labels, encoded: dict[str, list[Any]]) -> None:
    """Say what the labels are and how many rows each class has; name the classes that train lacks."""
    if labels.problem_type == "regression":
        values = encoded["train"]
        logger.info("labels: regression, %d values from %g to %g in train", len(values), min(values), max(values))
        return
    train = encoded["train"]
    counts = [int(sum(column)) for column in zip(*train, strict=True)] if labels.multi else [0] * len(labels.names)
    if not labels.multi:
        for number in train:
            counts[number] += 1
    sizes = sorted(zip(counts, labels.names, strict=True), reverse=True)
    kind = "labels, several a row" if labels.multi else "classes"
    shown = ", ".join(f"{name} {count}" for count, name in (sizes if len(sizes) <= 6 else sizes[:3] + sizes[-2:]))
    logger.info(
        "labels: %d %s; rows of train: %s%s", len(sizes), kind, shown, "" if len(sizes) <= 6 else " (largest, smallest)"
    )
    absent = [name for count, name in sizes if count == 0]
    if absent:
        logger.warning("labels: train has no row of %s", ", ".join(map(repr, absent)))


def _text(value: Any) -> str:
    """A label as its name: 3, 3.0 and "3" are the same label, and so are True and 1."""
    if isinstance(value, bool):
        return str(int(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _sorted_names(names: set[str]) -> list[str]:
    """By number if all are whole numbers, else by name."""
    return sorted(names, key=int) if all(name.lstrip("-").isdecimal() for name in names) else sorted(names)
