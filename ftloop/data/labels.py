"""Infer from train what the labels of a classification are, and encode them as numbers.

The problem type and the label names, in the order of their ids, are inferred once. They are saved
in the model's configuration as id2label; a finished run takes them from there and infers nothing.

A "label cell" is what the label columns hold for a row: a value, a list of values or, of several
columns, a list of 0/1 cells.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from ftloop.data.encodings import normalize_column, normalize_name
from ftloop.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("ftloop")

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
# The cells of several 0/1 columns, as lower-case text.
BITS = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}


@dataclass(frozen=True)
class Labels:
    """A problem type, by its name in transformers, and the label names in the order of their ids.

    A regression has no names.
    """

    problem_type: ProblemType
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise UserError(f"--label-names: {repeated[0]!r} occurs twice.")

    @property
    def num_outputs(self) -> int:
        """The number of logits of the head."""
        return len(self.names) or 1

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == "multi_label_classification"


# Label columns and cells


def resolve_columns(
    patterns: Sequence[str], columns: Sequence[str], excluded: Sequence[str | None]
) -> tuple[str, ...]:
    """Return the label columns, with patterns such as `code_*` replaced by what they match.

    A pattern does not match the columns `excluded`. A name without a wildcard is returned as it is.
    """
    resolved: list[str] = []
    for pattern in map(normalize_column, patterns):
        if pattern in columns or not any(wildcard in pattern for wildcard in "*?["):
            resolved.append(pattern)
            continue
        taken = {*excluded, *resolved}
        matches = [name for name in columns if name not in taken and fnmatchcase(name, pattern)]
        if not matches:
            raise UserError(
                f"--label-column {pattern!r} matches none of the columns "
                f"{', '.join(map(repr, columns))}."
            )
        resolved += matches
    return tuple(resolved)


def read_label_cells(rows: "Dataset", columns: Sequence[str], separator: str | None) -> list[Any]:
    """Return the label cell of each row, with the names of ClassLabels instead of their ids.

    `separator` splits texts into lists. A missing label is None.
    """
    from datasets import ClassLabel

    if len(columns) > 1:
        return [list(row) for row in zip(*(rows[column][:] for column in columns), strict=True)]
    cells = rows[columns[0]][:]
    feature = rows.features[columns[0]]
    if isinstance(feature, ClassLabel):  # the Hub's data sets mark unlabelled rows with -1
        return [feature.names[cell] if cell is not None and cell >= 0 else None for cell in cells]
    if isinstance(getattr(feature, "feature", None), ClassLabel):
        names = feature.feature.names
        return [
            None if cell is None else [None if part is None else names[part] for part in cell]
            for cell in cells
        ]
    if separator is not None:
        return [None if cell is None else split_labels(str(cell), separator) for cell in cells]
    return cells


def split_labels(text: str, separator: str) -> list[str]:
    """Split a text into labels; blank parts are no labels."""
    return [part.strip() for part in text.split(separator) if normalize_name(part)]


def is_missing(cell: Any) -> bool:
    """Tell whether a label cell is missing: null, NaN, a blank text, or a list with a null."""
    if isinstance(cell, list):
        return any(part is None or part == "" for part in cell)
    return cell is None or cell != cell or (isinstance(cell, str) and not normalize_name(cell))


def label_name(value: Any) -> str:
    """Return a label as its name: 3, 3.0 and "3" are the same label, True is "True".

    Spaces and invisible characters around a name do not count, nor does its Unicode form.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return normalize_name(str(value))


# Infer what the labels are


def infer_labels(
    rows: "Dataset",
    columns: Sequence[str],
    separator: str | None,
    problem_type: ProblemType | None,
    names: Sequence[str],
) -> Labels:
    """Infer the problem type and the label names from the rows of train.

    `problem_type` and `names` are the options; if given, they are not inferred. Raises UserError.
    """
    cells = [cell for cell in read_label_cells(rows, columns, separator) if not is_missing(cell)]
    if not cells:
        raise UserError(f"--label-column: no row of train has a label in {', '.join(columns)}.")
    holds_lists = isinstance(cells[0], list)
    values = [part for cell in cells for part in cell] if holds_lists else cells
    invalid = next((value for value in values if not isinstance(value, str | int | float)), None)
    if invalid is not None:
        raise UserError(
            f"--label-column {columns[0]!r} holds {invalid!r}, which is not a name, an id or a "
            "number."
        )
    if problem_type is None:
        problem_type = _infer_problem_type(cells, columns[0])
    require_matching_cells(cells[0], columns, problem_type)
    if problem_type == "regression":
        if isinstance(cells[0], str):
            raise UserError(
                f"--label-column {columns[0]!r} holds texts ({cells[0]!r}); regression needs "
                f"numbers.{advise_numbers(cells)}"
            )
        return Labels("regression", ())

    values_as_names = {label_name(value) for value in values}
    if not holds_lists and len(values_as_names) == 1:
        raise UserError(
            f"--label-column {columns[0]!r}: train has only one class, {label_name(values[0])!r}. "
            "A classification needs at least two."
        )
    if len(columns) == 1 and holds_lists:
        _refuse_indicator_lists(cells, values_as_names, columns[0])
    names = names or _infer_names(rows, columns, values_as_names)
    if len(columns) > 1 and len(names) != len(columns):
        raise UserError(
            f"--label-names has {len(names)} names for the {len(columns)} columns of "
            "--label-column."
        )
    return Labels(problem_type, tuple(map(label_name, names)))


def _infer_problem_type(cells: list[Any], column: str) -> ProblemType:
    """Multi-label for lists, regression for decimals, single-label for everything else."""
    if isinstance(cells[0], list):
        return "multi_label_classification"
    if not any(isinstance(cell, float) for cell in cells):
        return "single_label_classification"
    if all(float(cell).is_integer() for cell in cells):
        raise UserError(
            f"--label-column {column!r} holds whole numbers written as decimals. Choose what they "
            "are: --problem-type regression or single_label_classification."
        )
    return "regression"


def _infer_names(
    rows: "Dataset", columns: Sequence[str], values_as_names: set[str]
) -> Sequence[str]:
    """Return the names of several columns or of a ClassLabel, else the values in sorted order."""
    from datasets import ClassLabel

    if len(columns) > 1:
        return columns
    feature = rows.features[columns[0]]
    feature = getattr(feature, "feature", feature)  # of a list, the type of its elements
    if isinstance(feature, ClassLabel):
        return list(dict.fromkeys(map(label_name, feature.names)))
    if all(map(_is_whole_number, values_as_names)):
        return sorted(values_as_names, key=int)
    return sorted(values_as_names)


def _refuse_indicator_lists(cells: list[Any], values_as_names: set[str], column: str) -> None:
    """Raise UserError for lists such as [0, 1, 1], a 0/1 cell per label.

    They would be read as the ids 0 and 1.
    """
    if values_as_names <= {"0", "1"} and any(len(set(cell)) < len(cell) for cell in cells):
        raise UserError(
            f"--label-column {column!r} holds lists of 0 and 1 ({cells[0]}). Use lists of names or "
            "ids, or one column of 0 and 1 for each label."
        )


def require_matching_cells(cell: Any, columns: Sequence[str], problem_type: ProblemType) -> None:
    """Raise UserError unless the problem is multi-label if and only if a label cell is a list."""
    holds_lists = isinstance(cell, list)
    if holds_lists != (problem_type == "multi_label_classification"):
        content = (
            "lists" if holds_lists else "single values (--label-separator splits texts into lists)"
        )
        raise UserError(
            f"--problem-type {problem_type} does not fit the label column {', '.join(columns)}, "
            f"which holds {content}."
        )


def advise_numbers(values: Sequence[Any]) -> str:
    """Return the option that reads most of these labels as numbers, if they are texts now."""
    texts = [str(value).strip() for value in values]
    for pattern, option in (
        (r"[-+]?\d*,\d+", "decimal=,"),
        (r"[-+]?\d{1,3}(\.\d{3})*,\d+", "decimal=, thousands=."),
        (r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", "thousands=,"),
    ):
        if sum(re.fullmatch(pattern, text) is not None for text in texts) > len(texts) / 2:
            return f" If these are numbers of a CSV file, add --data.options {option}"
    return ""


def _is_whole_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


# Encode labels as numbers


def encode_labels(
    rows: "Dataset", columns: Sequence[str], separator: str | None, labels: Labels, split: str
) -> list[Any]:
    """Encode the labels of rows: an id, a list of 0.0 and 1.0, or a float, by problem type.

    `split` is for messages. Values are names if all values of the split are; otherwise they may be
    ids. Raises UserError for values that are neither.
    """
    cells = read_label_cells(rows, columns, separator)
    require_matching_cells(cells[0], columns, labels.problem_type)
    if labels.problem_type == "regression":
        return _encode_numbers(cells, split)
    if len(columns) > 1:
        encoded = _encode_indicators(cells, columns, split)
        if sorted(columns) != sorted(labels.names):  # the names are given, in the order of columns
            return encoded
        places = [columns.index(name) for name in labels.names]
        return [[row[place] for place in places] for row in encoded]
    values = [value for cell in cells for value in (cell if labels.is_multi_label else [cell])]
    ids = _match_ids(set(map(label_name, values)), labels, columns[0], split)
    if not labels.is_multi_label:
        return [ids[label_name(cell)] for cell in cells]
    encoded = []
    for cell in cells:
        present = {ids[label_name(value)] for value in cell}
        encoded.append([float(number in present) for number in range(len(labels.names))])
    return encoded


def _encode_numbers(cells: list[Any], split: str) -> list[float]:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError as error:
        raise UserError(
            f"--label-column: {split} holds a label that is not a number: {error}."
            f"{advise_numbers(cells)}"
        ) from error
    for row, number in enumerate(numbers):
        if not math.isfinite(number):
            raise UserError(f"--label-column: {split} holds {number} in row {row} (from 0).")
    return numbers


def _encode_indicators(
    cells: list[list[Any]], columns: Sequence[str], split: str
) -> list[list[float]]:
    """Encode several 0/1 columns."""
    texts = [[str(value).lower() for value in cell] for cell in cells]
    for place, column in enumerate(columns):
        invalid = sorted({text[place] for text in texts} - BITS.keys())
        if invalid:
            raise UserError(
                f"--label-column {column!r}: {split} holds {', '.join(map(repr, invalid[:3]))}. "
                "With several label columns, each must hold 0 or 1."
            )
    return [[BITS[value] for value in text] for text in texts]


def _match_ids(names: set[str], labels: Labels, column: str, split: str) -> dict[str, int]:
    """Return the id of each name that occurs, where the names may be ids themselves."""
    ids = {label_name(name): number for number, name in enumerate(labels.names)}
    unknown = sorted(names - ids.keys())
    if not unknown:
        return ids
    # Where label names are numbers, such as 1, 2 and 3, a 0 is an unknown label and not an id.
    may_be_ids = labels.names == ("0", "1") or not any(map(_is_whole_number, ids))
    numbers = {str(number): number for number in range(len(ids))}
    if len(ids) == 2:
        numbers |= {"False": 0, "True": 1}
    if may_be_ids and names <= numbers.keys():
        return numbers
    source = "--label-names does not have" if split == "train" else "train does not have"
    more = ", ..." if len(labels.names) > 10 else ""
    raise UserError(
        f"--label-column {column!r}: {split} has {len(unknown)} label(s) that {source}: "
        f"{', '.join(map(repr, unknown[:5]))}{did_you_mean(unknown[0], ids)}. The labels are "
        f"{', '.join(map(repr, labels.names[:10]))}{more}.{advise_numbers(unknown)}"
    )


def log_labels(labels: Labels, encoded: list[Any]) -> None:
    """Log how many training rows the labels have, and warn about labels that have none.

    For regression, log the range of the values.
    """
    if labels.problem_type == "regression":
        logger.info(
            "labels: regression, %d values from %g to %g in train",
            len(encoded),
            min(encoded),
            max(encoded),
        )
        return
    if labels.is_multi_label:
        counts = [int(sum(column)) for column in zip(*encoded, strict=True)]
    else:
        count_of = Counter(encoded)
        counts = [count_of[number] for number in range(len(labels.names))]
    sizes = sorted(zip(counts, labels.names, strict=True), reverse=True)
    kind = "labels, any number per row" if labels.is_multi_label else "classes"
    is_long = len(sizes) > 6
    logger.info(
        "labels: %d %s; rows of train: %s%s",
        len(sizes),
        kind,
        ", ".join(
            f"{name} {count}" for count, name in (sizes[:3] + sizes[-2:] if is_long else sizes)
        ),
        " (three largest, two smallest)" if is_long else "",
    )
    absent = [name for count, name in sizes if count == 0]
    if absent:
        logger.warning("labels: train has no row with %s", ", ".join(map(repr, absent)))
