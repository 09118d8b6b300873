"""What the labels of a classification are: decided once, from train, and then only applied.

The decision (problem type and names, in the order of their ids) is saved in the model's config as id2label; a finished
run is evaluated with the names of its model, never with a second decision.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
BITS = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}  # cells of several 0/1 columns, as text


@dataclass(frozen=True)
class Labels:
    """A problem type (by transformers' names) and the label names in the order of their ids; () for regression."""

    problem_type: ProblemType
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise UserError(f"--task.label-names: {twice[0]!r} occurs twice")

    @property
    def outputs(self) -> int:
        """How many logits the head has."""
        return len(self.names) or 1

    @property
    def multi(self) -> bool:
        return self.problem_type == "multi_label_classification"


def cells(rows: "Dataset", columns: tuple[str, ...], separator: str | None) -> list[Any]:
    """The label of each row: a value, a list of values, a list of 0/1 cells (several columns); a ClassLabel's name."""
    from datasets import ClassLabel

    if len(columns) > 1:
        return [list(row) for row in zip(*(rows[column][:] for column in columns), strict=True)]
    values = rows[columns[0]][:]
    feature = rows.features[columns[0]]
    if isinstance(feature, ClassLabel):  # -1 is the Hub's sign for "not labelled"
        return [feature.names[value] if value is not None and value >= 0 else None for value in values]
    if isinstance(getattr(feature, "feature", None), ClassLabel):
        names = feature.feature.names
        return [
            None if value is None else [None if part is None else names[part] for part in value] for value in values
        ]
    if separator is not None:
        return [
            None if text is None else [part.strip() for part in str(text).split(separator) if part.strip()]
            for text in values
        ]
    return values


def matching(patterns: tuple[str, ...], columns: list[str], aside: tuple[str | None, ...]) -> tuple[str, ...]:
    """The label columns, patterns such as `code_*` resolved; a pattern takes none of the columns `aside`."""
    found: list[str] = []
    for pattern in patterns:
        if pattern in columns or not any(sign in pattern for sign in "*?["):
            found.append(pattern)
            continue
        matches = [name for name in columns if fnmatchcase(name, pattern) and name not in (*aside, *found)]
        if not matches:
            raise UserError(f"--task.label-column {pattern!r} matches no column of {', '.join(map(repr, columns))}")
        found += matches
    return tuple(found)


def shape_labels(
    data: "DatasetDict",
    columns: tuple[str, ...],
    separator: str | None,
    lower: bool,
    merge: dict[str, Any],
    min_rows: int,
    rare: str | None,
) -> "DatasetDict":
    """The rows with labels in lower case, merged, and without rare classes, each as asked, counted and logged.

    A class is rare with fewer than `min_rows` rows in train. Its label becomes `rare`; without `rare` its rows are
    dropped, and lists of labels lose it. Raises UserError.
    """
    if rare and not min_rows:
        raise UserError(f"--task.label-rare {rare}: --task.label-min-rows says below how many rows a class is rare")
    if not (lower or merge or min_rows):
        return data
    if len(columns) > 1:
        raise UserError(
            "--task.label-lower, --task.label-merge and --task.label-min-rows need one column of names, and "
            f"--task.label-column has {len(columns)}"
        )
    found = {split: _names_of(rows, columns, separator) for split, rows in data.items()}
    own = [name for rows in data.values() for name in _own_names(rows.features[columns[0]])]
    names = [name for cells_of_split in found.values() for cell in cells_of_split for name in cell]
    becomes: dict[str, str | None] = {name: name for name in own + names}  # None: dropped

    def rename(what: str, targets: dict[str, str | None]) -> None:
        changed = {name: now for name, now in becomes.items() if targets.get(now, now) != now}
        becomes.update({name: targets[now] for name, now in changed.items()})
        counts = {split: sum(not changed.keys().isdisjoint(cell) for cell in rows) for split, rows in found.items()}
        if any(counts.values()):
            pairs = sorted({now if targets[now] is None else f"{now} -> {targets[now]}" for now in changed.values()})
            more = f" and {len(pairs) - 20} more" if len(pairs) > 20 else ""
            sizes = ", ".join(f"{count} row(s) of {split}" for split, count in counts.items())
            logger.warning("data: labels %s: %s%s (%s)", what, ", ".join(pairs[:20]), more, sizes)

    def cased(name: Any) -> str:
        return _text(name).lower() if lower else _text(name)

    rename("in lower case", {name: cased(name) for name in becomes})
    merge = {cased(name): cased(target) for name, target in merge.items()}
    unknown = sorted(merge.keys() - set(becomes.values()))
    if unknown:
        choices = sorted(set(becomes.values()))
        raise UserError(
            f"--task.label-merge {unknown[0]}: no row has this label{nearest(unknown[0], choices)}; the labels are "
            f"{', '.join(map(repr, choices[:10]))}{', ...' if len(choices) > 10 else ''}"
        )
    rename("merged", merge)
    if min_rows:
        sizes = Counter(label for cell in found["train"] for label in {becomes[name] for name in cell})
        common = {label for label, size in sizes.items() if size >= min_rows}
        if not common:
            raise UserError(f"--task.label-min-rows {min_rows}: no class of train has as many rows")
        target = cased(rare) if rare else None
        seldom = set(becomes.values()) - common - {target}
        rename("of rare classes" if rare else "of rare classes, dropped", dict.fromkeys(seldom, target))
    if all(name == now for name, now in becomes.items()):
        return data
    return type(data)({split: _renamed(split, rows, columns[0], separator, becomes) for split, rows in data.items()})


def _names_of(rows: "Dataset", columns: tuple[str, ...], separator: str | None) -> list[list[str]]:
    """The names in the label cell of each row; none if it is missing."""
    found = [[] if missing(cell) else cell for cell in cells(rows, columns, separator)]
    found = [cell if isinstance(cell, list) else [cell] for cell in found]
    odd = next((part for cell in found for part in cell if isinstance(part, float) and not part.is_integer()), None)
    if odd is not None:
        raise UserError(
            "--task.label-lower, --task.label-merge and --task.label-min-rows need one column of names, and "
            f"{columns[0]!r} holds {odd}"
        )
    return [[_text(part) for part in cell] for cell in found]


def _own_names(feature: Any) -> list[str]:
    """The names of a ClassLabel, or of a list of them, in its order."""
    return [_text(name) for name in getattr(getattr(feature, "feature", feature), "names", ())]


def _renamed(
    split: str, rows: "Dataset", column: str, separator: str | None, becomes: dict[str, str | None]
) -> "Dataset":
    """The rows with other names in the label column, which keeps its kind; without rows that lost their only label."""
    from datasets import ClassLabel, List, Value

    own = [becomes[name] for name in _own_names(rows.features[column])]
    order = list(dict.fromkeys(name for name in own if name is not None))
    kind = ClassLabel(names=order) if own else Value("string")
    several = hasattr(rows.features[column], "feature")
    written, stay = [], []
    for row, (cell, names) in enumerate(
        zip(cells(rows, (column,), separator), _names_of(rows, (column,), separator), strict=True)
    ):
        left = [becomes[name] for name in names if becomes[name] is not None]
        if names and not left and not isinstance(cell, list):
            continue
        stay.append(row)
        if missing(cell):
            written.append(None)
        elif isinstance(cell, list) and not several:
            written.append(separator.join(left))
        else:
            left = kind.str2int(left) if own else left
            written.append(left if several else left[0])
    if not stay:
        raise UserError(f"--task.label-min-rows: the split {split!r} is empty without its rare classes")
    rows = rows.select(stay) if len(stay) < len(rows) else rows
    return rows.remove_columns(column).add_column(column, written, feature=List(kind) if several else kind)


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
    parts = [part for cell in found for part in cell] if lists else found
    odd = next((part for part in parts if not isinstance(part, str | int | float)), None)
    if odd is not None:
        raise UserError(f"--task.label-column {columns[0]!r} holds {odd!r}, which is no name, id or number")
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
    check_lists(lists, columns, problem_type)
    if problem_type == "regression":
        if isinstance(found[0], str):
            raise UserError(f"--task.label-column {columns[0]!r} holds texts ({found[0]!r}): regression needs numbers")
        return Labels("regression", ())
    texts = {_text(part) for part in parts}
    if not lists and len(texts) == 1:
        raise UserError(
            f"--task.label-column {columns[0]!r}: train has one class only, {_text(parts[0])!r}; nothing to tell apart"
        )
    # One cell a label, as in [0, 1, 1], would pass for the ids 0 and 1.
    if lists and len(columns) == 1 and texts <= {"0", "1"} and any(len(set(cell)) < len(cell) for cell in found):
        raise UserError(
            f"--task.label-column {columns[0]!r} holds lists of 0 and 1 ({found[0]}): "
            "give lists of names or ids, or one column of 0 and 1 for each label"
        )
    if not names:
        feature = rows.features[columns[0]]
        feature = getattr(feature, "feature", feature)
        if len(columns) > 1:
            names = columns
        elif isinstance(feature, ClassLabel):
            names = feature.names
        else:
            names = _sorted_names(texts)
    if len(columns) > 1 and len(names) != len(columns):
        raise UserError(f"--task.label-names: {len(names)} names for the {len(columns)} columns of --task.label-column")
    return Labels(problem_type, tuple(name.strip() for name in names))


def check_lists(lists: bool, columns: tuple[str, ...], problem_type: ProblemType) -> None:
    """Raise UserError unless label cells that are lists, or none, fit the problem type."""
    if lists != (problem_type == "multi_label_classification"):
        raise UserError(
            f"--task.problem-type {problem_type} does not fit the label column {', '.join(columns)}, "
            + ("which holds lists" if lists else "which holds single values (--task.label-separator splits texts)")
        )


def encode(rows: "Dataset", columns: tuple[str, ...], separator: str | None, labels: Labels, split: str) -> list[Any]:
    """The labels as numbers: an id per row; for multi-label a list of 0.0 / 1.0 per label; for regression a float.

    A value is a name if all values of the split are names; else, if they are whole numbers in range (of two labels also
    False and True), and no name is a number, it is an id. Raises UserError for a label that `labels` does not have.
    """
    values = cells(rows, columns, separator)
    check_lists(isinstance(values[0], list), columns, labels.problem_type)
    if labels.problem_type == "regression":
        try:
            numbers = [float(value) for value in values]
        except ValueError as error:
            raise UserError(f"--task.label-column: {split} holds a label that is not a number: {error}") from error
        odd = [row for row, number in enumerate(numbers) if not math.isfinite(number)]
        if odd:
            raise UserError(f"--task.label-column: {split} holds {numbers[odd[0]]} in row {odd[0]}, counted from 0")
        return numbers
    if len(columns) > 1:
        for column, cells_of_column in zip(columns, zip(*values, strict=True), strict=True):
            odd = {str(cell) for cell in cells_of_column if str(cell).lower() not in BITS}
            if odd:
                raise UserError(f"--task.label-column {column!r}: {split} holds {sorted(odd)[:3]}; 0 or 1 is needed")
        return [[BITS[str(cell).lower()] for cell in row] for row in values]
    ids = {name: number for number, name in enumerate(labels.names)}
    found = {_text(part) for value in values for part in (value if labels.multi else [value])}
    unknown = sorted(found - ids.keys())
    numbers = {str(number): number for number in range(len(ids))} | ({"False": 0, "True": 1} if len(ids) == 2 else {})
    # Where names are numbers, such as 1, 2, 3, a 0 is a label that train lacks, and no id.
    named_otherwise = labels.names == ("0", "1") or not any(map(_is_number, ids))
    if unknown and named_otherwise and found <= numbers.keys():
        ids, unknown = numbers, []
    if unknown:
        lacking = "--task.label-names lacks" if split == "train" else "train lacks"
        raise UserError(
            f"--task.label-column {columns[0]!r}: {split} has {len(unknown)} label(s) that {lacking}: "
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
    """A label as its name: 3, 3.0 and "3" are the same label; truth values are "False" and "True"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _sorted_names(names: set[str]) -> list[str]:
    """By number if all are whole numbers, else by name."""
    return sorted(names, key=int) if all(map(_is_number, names)) else sorted(names)


def _is_number(name: str) -> bool:
    """Whether a label's name is a whole number, as ids are."""
    return name.removeprefix("-").isdecimal()
