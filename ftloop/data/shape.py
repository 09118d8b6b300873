"""Shape the rows of a source: select and rename columns, map, join and filter; drop duplicates.

Everything except dropping duplicates also works on streams, whose rows cannot be counted.
"""

import hashlib
import logging
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ftloop.data.csv_structure import advise_reader
from ftloop.data.encodings import normalize_column
from ftloop.errors import UserError, did_you_mean, root_cause

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, DatasetDict, Features, IterableDataset

logger = logging.getLogger("ftloop")

TEXT_TYPES = ("string", "large_string", "null")  # a column without any value may be one of texts


class ShapeOptions(Protocol):
    """The options of `ftloop.data.Data` that this file reads."""

    columns: dict[str, Any]
    map: Callable[..., Any] | None
    join: dict[str, Any]
    filter: Callable[..., Any] | None
    split_group: str | None
    split_hash: tuple[str, ...]


def shape_rows(data: "DatasetDict", options: ShapeOptions) -> "DatasetDict":
    """Select columns, then map, join and filter the rows of all splits. Raises UserError."""
    data = type(data)({split: resolve_features(rows) for split, rows in data.items()})
    data = normalize_columns(data)
    if options.columns:
        data = select_columns(data, options.columns)
    if options.map is not None:
        function = RowFunction(options.map, "map", code_digest(options.map))
        data = type(data)({split: map_rows(rows, function, split) for split, rows in data.items()})
    if options.join:
        data = join_columns(data, options)
    if options.filter is not None:
        function = RowFunction(options.filter, "filter", code_digest(options.filter))
        data = type(data)(
            {split: filter_rows(rows, function, split) for split, rows in data.items()}
        )
    return data


# Columns


def normalize_columns(data: "DatasetDict") -> "DatasetDict":
    """Rename columns with a byte-order mark, or in another Unicode form than NFC, and log it."""
    normalized, changed = {}, {}
    for split, rows in data.items():
        names = {name: normalize_column(str(name)) for name in rows.column_names}
        if len(set(names.values())) == len(names) and any(old != new for old, new in names.items()):
            changed |= {old: new for old, new in names.items() if old != new}
            rows = _rename_columns(rows, names)
        normalized[split] = rows
    if changed:
        pairs = ", ".join(f"{old!a} is {new!a}" for old, new in changed.items())
        logger.info("data: names of columns without invisible characters, in NFC: %s", pairs)
    return type(data)(normalized)


def _rename_columns(rows: "Dataset | IterableDataset", names: dict[str, str]) -> Any:
    """Select and rename columns: `names` is {name: new name}."""
    from datasets import Dataset, Features

    if isinstance(rows, Dataset):
        return rows.select_columns(list(names)).rename_columns(names)
    # IterableDataset.rename_columns refuses a name that any column already has.
    features = Features({new: rows.features[name] for name, new in names.items()})
    return map_tables(rows, partial(_rename_table, names=names), features)


def select_columns(data: "DatasetDict", columns: dict[str, Any]) -> "DatasetDict":
    """Keep the columns `{new name: name in the source}` only, under their new names.

    Train must have all of them; another split may lack some, such as the labels of a test split.
    """
    new_names = {
        normalize_column(str(name)): new for new, name in columns.items()
    }  # a name may be a number, as in 5
    if len(new_names) < len(columns):
        (repeated, _), *_ = Counter(map(str, columns.values())).most_common(1)
        raise UserError(
            f"--data.columns: the column {repeated!r} of the source has two names; choose one."
        )
    require_columns({"train": data["train"]}, tuple(new_names), "--data.columns")
    selected = {}
    for split, rows in data.items():
        names = {name: new for name, new in new_names.items() if name in rows.column_names}
        selected[split] = _rename_columns(rows, names)
    return type(data)(selected)


def join_columns(data: "DatasetDict", options: ShapeOptions) -> "DatasetDict":
    """Join columns into one text with a line "name: cell" for each of them.

    Missing and blank cells are left out; a row without any other has the text "".
    """
    from datasets import Features, Value

    data = type(data)({split: resolve_features(rows) for split, rows in data.items()})
    columns = data["train"].features
    joins = _resolve_joins(columns, options)
    joined_columns = list(dict.fromkeys(part for parts in joins.values() for part in parts))
    require_columns(data, tuple(joined_columns), "--data.join")
    conflicts = sorted(joins.keys() & (columns.keys() - set(joined_columns)))
    if conflicts:
        raise UserError(
            f"--data.join {conflicts[0]}: the source has a column of this name, which is not one "
            "of those that are joined. Choose another name."
        )
    joined = {}
    for split, rows in data.items():
        unchanged = {
            name: feature for name, feature in rows.features.items() if name not in joined_columns
        }
        features = Features({**unchanged, **dict.fromkeys(joins, Value("string"))})
        joined[split] = map_tables(rows, partial(_join_table, joins=joins), features)
    return type(data)(joined)


def parse_join(parts: Any) -> list[str]:
    """Return the columns of one entry of `--data.join`: a list, or a text with commas."""
    names = parts if isinstance(parts, list | tuple) else str(parts).split(",")
    return [str(name).strip() for name in names]


def _resolve_joins(columns: "Features", options: ShapeOptions) -> dict[str, list[str]]:
    """Return {new column: columns that it joins}; "*" becomes the remaining columns of texts."""
    joins = {name: parse_join(parts) for name, parts in options.join.items()}
    named = {options.split_group, *options.split_hash}
    named.update(part for parts in joins.values() for part in parts)
    remaining = [
        name
        for name, feature in columns.items()
        if _dtype(feature) in TEXT_TYPES and name not in named
    ]
    for name, parts in joins.items():
        joins[name] = [
            column for part in parts for column in (remaining if part == "*" else [part])
        ]
        if not joins[name]:
            raise UserError(
                f"--data.join {name} *: train has no remaining column of texts. Its columns are "
                f"{', '.join(columns)}."
            )
        logger.info("data: the column %s joins %s", name, ", ".join(joins[name]))
    return joins


def require_columns(data: "DatasetDict", columns: Sequence[str], option: str) -> None:
    """Raise UserError, which names the option, unless every split has the columns."""
    for split, rows in data.items():
        for column in columns:
            if column not in rows.column_names:
                raise UserError(
                    f"{option}: the split {split!r} has no column {column!r}"
                    f"{did_you_mean(column, rows.column_names)}. Its columns are "
                    f"{', '.join(map(repr, rows.column_names))}.{advise_reader(rows.column_names)}"
                )


# Map and filter


@dataclass(frozen=True)
class RowFunction:
    """A function for `--data.map` or `--data.filter` whose errors become one UserError.

    `code` is a digest of the function's file. It takes part in the cache key of `datasets`, which
    knows an imported function by its name only.
    """

    function: Callable[[dict[str, Any]], Any]
    option: str  # "map" or "filter"
    code: str

    @property
    def name(self) -> str:
        function = getattr(self.function, "func", self.function)  # the function of a partial
        return getattr(function, "__qualname__", type(function).__name__)

    def __call__(self, row: dict[str, Any], index: int | None = None) -> Any:
        place = f"--data.{self.option} {self.name}: "
        if index is not None:
            place += f"row {index} (counted from 0): "
        try:
            result = self.function(row)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            file = Path(frame.filename).name
            raise UserError(f"{place}{root_cause(error)} ({file}, line {frame.lineno})") from error
        if self.option == "filter":
            return bool(result)
        if not isinstance(result, Mapping):
            raise UserError(f"{place}the function must return a dictionary, not {result!r}.")
        return result


def code_digest(function: Callable[..., Any] | None) -> str:
    """Return a digest of the file that defines a function, "" if there is none.

    Changes in what that file imports are not noticed.
    """
    module = sys.modules.get(getattr(getattr(function, "func", function), "__module__", ""))
    file = getattr(module, "__file__", None)
    if not file or not Path(file).is_file():
        return ""
    return hashlib.blake2b(Path(file).read_bytes()).hexdigest()


def map_rows(rows: "Dataset | IterableDataset", function: RowFunction, split: str) -> Any:
    """Add or replace the columns that a function of a row returns."""
    from datasets import Dataset, Features

    if isinstance(rows, Dataset):
        return rows.map(function, with_indices=True, desc=f"mapping {split}")
    rows = resolve_features(rows)
    head = Dataset.from_list([{**row, **function(row)} for row in rows.take(1000)]).features
    # Columns that the function leaves alone keep their type, which the values of the first rows may
    # not show: a ClassLabel, or texts that are all missing.
    unchanged = {
        name: feature
        for name, feature in rows.features.items()
        if _dtype(head[name]) in ("null", _dtype(feature))
    }
    features = Features({**head, **unchanged})
    mapper = partial(_map_table, function=function, schema=features.arrow_schema)
    return map_tables(rows, mapper, features)


def filter_rows(rows: "Dataset | IterableDataset", function: RowFunction, split: str) -> Any:
    """Keep the rows for which a function returns True. Raises UserError if there are none."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        rows = resolve_features(rows)
        return map_tables(rows, partial(_filter_table, function=function), rows.features)
    remaining = rows.filter(function, with_indices=True, desc=f"filtering {split}")
    if len(remaining) == 0:
        raise UserError(f"--data.filter {function.name} removes every row of the split {split!r}.")
    if len(remaining) < len(rows):
        count = len(rows) - len(remaining)
        logger.warning(
            "data: %s: --data.filter %s removed %d of %d rows",
            split,
            function.name,
            count,
            len(rows),
        )
    return remaining


# Rows of tables and of streams alike, as Arrow tables of a thousand rows


def map_tables(
    rows: "Dataset | IterableDataset",
    function: Callable[["pyarrow.Table"], "pyarrow.Table"],
    features: "Features",
) -> Any:
    """Apply a function to Arrow tables of a thousand rows.

    A stream that is mapped row by row would infer the types of every row from its cells.
    """
    return (
        rows.with_format("arrow").map(function, batched=True, features=features).with_format(None)
    )


def _rename_table(table: "pyarrow.Table", names: dict[str, str]) -> "pyarrow.Table":
    return table.select(list(names)).rename_columns(list(names.values()))


def _map_table(
    table: "pyarrow.Table", function: RowFunction, schema: "pyarrow.Schema"
) -> "pyarrow.Table":
    return type(table).from_pylist([{**row, **function(row)} for row in table.to_pylist()], schema)


def _filter_table(table: "pyarrow.Table", function: RowFunction) -> "pyarrow.Table":
    return table.filter([function(row) for row in table.to_pylist()])


def _join_table(table: "pyarrow.Table", joins: dict[str, list[str]]) -> "pyarrow.Table":
    import pyarrow

    joined_columns = sorted({part for parts in joins.values() for part in parts})
    result = table.drop_columns(joined_columns)
    for name, parts in joins.items():
        texts = []
        for cells in zip(*(table[part].to_pylist() for part in parts), strict=True):
            lines = [
                f"{part}: {cell}"
                for part, cell in zip(parts, cells, strict=True)
                if not _is_blank(cell)
            ]
            texts.append("\n".join(lines))
        result = result.append_column(name, pyarrow.array(texts, pyarrow.string()))
    return result


def _is_blank(cell: Any) -> bool:
    return cell is None or not str(cell).strip()


def resolve_features(rows: "Dataset | IterableDataset") -> Any:
    """Return rows whose column types are known. Those of a stream are read from its first rows."""
    return rows._resolve_features() if rows.features is None else rows


def _dtype(feature: Any) -> Any:
    return getattr(feature, "dtype", feature)


# Duplicates


def drop_duplicates(
    data: "DatasetDict", columns: tuple[str, ...], label_columns: tuple[str, ...]
) -> "DatasetDict":
    """Drop the rows whose cells in `columns` all equal those of another row.

    The first row of a split is kept; a row of test is kept rather than one of validation, and one
    of validation rather than one of train. `label_columns` only serve to count the dropped rows
    whose label differs from that of the kept row.
    """
    first_rows: dict[tuple[bytes, ...], tuple[str, tuple[bytes, ...]]] = {}  # split and labels
    unique = {}
    for split in [split for split in ("test", "validation", "train") if split in data]:
        rows = data[split]
        numbers = []  # of the rows that are kept
        of_another_split = with_another_label = 0
        digests = zip(row_digests(rows, columns), row_digests(rows, label_columns), strict=True)
        for number, (inputs, labels) in enumerate(digests):
            if inputs not in first_rows:
                first_rows[inputs] = (split, labels)
                numbers.append(number)
            else:
                first_split, first_labels = first_rows[inputs]
                of_another_split += first_split != split
                with_another_label += first_labels != labels
        if not numbers:
            raise UserError(
                f"--data.drop-duplicates: every row of the split {split!r} is in validation or "
                "test too, so none is left."
            )
        if len(numbers) < len(rows):
            logger.warning(
                "data: %s: dropped %d of %d rows as duplicates (%d of a row in another split, %d "
                "with a different label)",
                split,
                len(rows) - len(numbers),
                len(rows),
                of_another_split,
                with_another_label,
            )
        unique[split] = rows.select(numbers) if len(numbers) < len(rows) else rows
    return type(data)({split: unique[split] for split in data})


def row_digests(rows: "Dataset", columns: Sequence[str]) -> Iterator[tuple[bytes, ...]]:
    """Yield the digests of the cells in `columns`, row by row. Images are not decoded."""
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(1000):
        cells = [map(cell_digest, table[column].to_pylist()) for column in columns]
        yield from zip(*cells, strict=True)


def cell_digest(cell: Any) -> bytes:
    """Return a digest that equal cells share: of a text, or of the bytes of an image."""
    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:
        content = cell["bytes"] or Path(cell["path"]).read_bytes()
    else:
        content = str(cell).encode()
    return hashlib.blake2b(content, digest_size=16).digest()
