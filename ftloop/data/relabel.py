"""Change label names before they are encoded: lower case, merging, rare classes."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftloop.data.labels import is_missing, label_name, read_label_cells
from ftloop.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")

RELABEL_OPTIONS = "--label-lower, --label-merge and --label-min-rows"  # in messages


def relabel_rows(
    data: "DatasetDict",
    columns: Sequence[str],
    separator: str | None,
    *,
    lower: bool,
    merge: dict[str, Any],
    min_rows: int,
    rare: str | None,
) -> "DatasetDict":
    """Lower-case, merge and drop labels, in this order, and log how many rows that changes.

    lower: write all names in lower case. merge: {name: new name}. min_rows: a class with fewer rows
    in train is rare; it is renamed to `rare` or, without `rare`, its rows are dropped and lists of
    labels lose it. Raises UserError.
    """
    if len(columns) == 1:
        log_normalized_names(data, columns[0])
    if not (lower or merge or min_rows):
        return data
    if len(columns) > 1:
        raise UserError(
            f"{RELABEL_OPTIONS} need one column of names, but --label-column has {len(columns)}."
        )
    renaming = Renaming(data, columns[0], separator)

    def clean(name: Any) -> str:
        return label_name(name).lower() if lower else label_name(name)

    renaming.apply("written in lower case", {name: clean(name) for name in renaming.names()})
    merge = {clean(name): clean(target) for name, target in merge.items()}
    unknown = sorted(merge.keys() - renaming.names())
    if unknown:
        names = sorted(renaming.names())
        shown = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"--label-merge {unknown[0]}: no row has this label{did_you_mean(unknown[0], names)}. "
            f"The labels are {shown}."
        )
    renaming.apply("merged", merge)
    if min_rows:
        sizes = renaming.train_sizes()
        common = {name for name, size in sizes.items() if size >= min_rows}
        if not common:
            raise UserError(f"--label-min-rows {min_rows}: no class of train has that many rows.")
        target = clean(rare) if rare else None
        rare_names = renaming.names() - common - {target}
        change = "of rare classes renamed" if rare else "of rare classes dropped"
        renaming.apply(change, dict.fromkeys(rare_names, target))
    return renaming.relabelled()


def log_normalized_names(data: "DatasetDict", column: str) -> None:
    """Log which label names are written otherwise in the data than `label_name` returns them."""
    spellings: set[str] = set()
    for rows in data.values():
        spellings |= _read_spellings(rows, column)
    changed = {name: label_name(name) for name in spellings if name != label_name(name)}
    if not changed:
        return
    pairs = [f"{old!a} is {new!a}" for old, new in sorted(changed.items())]
    logger.info(
        "labels: spaces and invisible characters around a name do not count, nor does the Unicode "
        "form (NFC is used): %s%s (%d name(s))",
        ", ".join(pairs[:5]),
        ", ..." if len(pairs) > 5 else "",
        len(pairs),
    )


def _read_spellings(rows: "Dataset", column: str) -> set[str]:
    """Return the different texts of a label column, or the names of its ClassLabel."""
    import pyarrow.compute

    feature = rows.features[column]
    feature = getattr(feature, "feature", feature)
    if hasattr(feature, "names"):
        return set(feature.names)
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        return set()
    cells = rows.data.column(column)
    if not (pyarrow.types.is_string(cells.type) or pyarrow.types.is_large_string(cells.type)):
        cells = pyarrow.compute.list_flatten(cells)
    return {name for name in cells.unique().to_pylist() if name is not None}


class Renaming:
    """What each label name of a data set becomes. None: it is dropped."""

    def __init__(self, data: "DatasetDict", column: str, separator: str | None):
        self.data, self.column, self.separator = data, column, separator
        self.cells = {split: _read_names(rows, column, separator) for split, rows in data.items()}
        names = [name for rows in data.values() for name in _class_names(rows.features[column])]
        names += [name for rows in self.cells.values() for cell in rows for name in cell]
        self.new_names: dict[str, str | None] = {name: name for name in names}

    def names(self) -> set[str]:
        """The label names as they are now."""
        return {name for name in self.new_names.values() if name is not None}

    def train_sizes(self) -> Counter[str | None]:
        """The rows of train with each of the names as they are now."""
        return Counter(
            name for cell in self.cells["train"] for name in {self.new_names[old] for old in cell}
        )

    def apply(self, change: str, targets: dict[str, str | None]) -> None:
        """Rename the names as they are now, and log which and in how many rows of each split."""
        renamed = {
            old: name for old, name in self.new_names.items() if targets.get(name, name) != name
        }
        self.new_names.update({old: targets[name] for old, name in renamed.items()})
        counts = {
            split: sum(not renamed.keys().isdisjoint(cell) for cell in cells)
            for split, cells in self.cells.items()
        }
        if not any(counts.values()):
            return
        pairs = sorted(
            {
                name if targets[name] is None else f"{name} -> {targets[name]}"
                for name in renamed.values()
            }
        )
        logger.warning(
            "data: labels %s: %s%s (%s)",
            change,
            ", ".join(pairs[:20]),
            f" and {len(pairs) - 20} more" if len(pairs) > 20 else "",
            ", ".join(f"{count} row(s) of {split}" for split, count in counts.items()),
        )

    def relabelled(self) -> "DatasetDict":
        """Return the data with the new names; the same object if no name changed."""
        if all(old == new for old, new in self.new_names.items()):
            return self.data
        return type(self.data)(
            {split: self._relabel_split(split, rows) for split, rows in self.data.items()}
        )

    def _relabel_split(self, split: str, rows: "Dataset") -> "Dataset":
        """Write the new names in the label column, which keeps its kind: lists, ClassLabels, texts.

        Rows whose only label was dropped are dropped.
        """
        from datasets import ClassLabel, List, Value

        feature = rows.features[self.column]
        holds_lists = hasattr(feature, "feature")
        class_names = [self.new_names[name] for name in _class_names(feature)]
        class_names = list(dict.fromkeys(name for name in class_names if name is not None))
        kind = ClassLabel(names=class_names) if _class_names(feature) else Value("string")

        new_cells, kept_rows = [], []
        cells = read_label_cells(rows, (self.column,), self.separator)
        for row, (cell, old_names) in enumerate(zip(cells, self.cells[split], strict=True)):
            names = [self.new_names[name] for name in old_names]
            names = [name for name in names if name is not None]
            if old_names and not names and not isinstance(cell, list):
                continue
            kept_rows.append(row)
            if is_missing(cell):
                new_cells.append(None)
            elif isinstance(cell, list) and not holds_lists:  # a text with separators
                new_cells.append(self.separator.join(names))
            else:
                encoded = kind.str2int(names) if _class_names(feature) else names
                new_cells.append(encoded if holds_lists else encoded[0])
        if not kept_rows:
            raise UserError(
                f"--label-min-rows: the split {split!r} has only rows of rare classes; none is "
                "left."
            )
        rows = rows.select(kept_rows) if len(kept_rows) < len(rows) else rows
        new_feature = List(kind) if holds_lists else kind
        rows = rows.remove_columns(self.column)
        return rows.add_column(self.column, new_cells, feature=new_feature)


def _read_names(rows: "Dataset", column: str, separator: str | None) -> list[list[str]]:
    """Return the label names of each row, an empty list for a row without a label."""
    names = []
    for cell in read_label_cells(rows, (column,), separator):
        values = cell if isinstance(cell, list) else [cell]
        values = [] if is_missing(cell) else values
        for value in values:
            # 3.0 may be class 3: readers store integers as floats if some are missing.
            if isinstance(value, float) and not value.is_integer():
                raise UserError(
                    f"{RELABEL_OPTIONS} need class names, but column {column!r} holds the number "
                    f"{value}."
                )
        names.append([label_name(value) for value in values])
    return names


def _class_names(feature: Any) -> list[str]:
    """Return the names of a ClassLabel, or of a list of ClassLabels, in their order."""
    feature = getattr(feature, "feature", feature)
    return [label_name(name) for name in getattr(feature, "names", ())]
