"""Rows brought into shape: columns chosen and renamed, mapped, joined, filtered; duplicates dropped.

Columns, map, join and filter take streams too, of which nothing can be counted.
"""

import hashlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError, nearest, root_cause

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, DatasetDict, Features, IterableDataset

    from ftloop.data.source import Data

logger = logging.getLogger("ftloop")

TEXTS = ("string", "large_string", "null")  # a column with nothing in it passes for one of texts


def shape(data: "DatasetDict", source: "Data") -> "DatasetDict":
    """The rows as the options of `source` want them: columns, then map, join, filter. Raises UserError."""
    data = type(data)({split: with_features(rows) for split, rows in data.items()})
    if source.columns:
        data = choose_columns(data, source.columns)
    if source.map is not None:
        function = RowFunction(source.map, "map", code_of(source.map))
        data = type(data)({split: mapped(rows, function, split) for split, rows in data.items()})
    if source.join:
        data = join_columns(data, source)
    if source.filter is not None:
        function = RowFunction(source.filter, "filter", code_of(source.filter))
        data = type(data)({split: filtered(rows, function, split) for split, rows in data.items()})
    return data


def choose_columns(data: "DatasetDict", columns: dict[str, Any]) -> "DatasetDict":
    """Only the columns that are chosen, under our names. What train has may be lacking elsewhere: labels in test."""
    from datasets import Dataset, Features

    ours = {str(theirs): our for our, theirs in columns.items()}  # the command line reads 5 as a number
    if len(ours) < len(columns):
        raise UserError(f"--task.data.columns: a column of the source has two names in {columns}")
    require_columns({"train": data["train"]}, tuple(ours), "--task.data.columns")
    chosen = {}
    for split, rows in data.items():
        names = {name: our for name, our in ours.items() if name in rows.column_names}
        if isinstance(rows, Dataset):
            chosen[split] = rows.select_columns(list(names)).rename_columns(names)
        else:  # a stream cannot give a column the name that another, or itself, has had
            features = Features({our: rows.features[name] for name, our in names.items()})
            chosen[split] = by_table(rows, partial(_rename, names=names), features)
    return type(data)(chosen)


@dataclass(frozen=True)
class RowFunction:
    """A function of a row, as the option `map` or `filter` wants it called: what goes wrong in it is one UserError."""

    function: Callable[[dict[str, Any]], Any]
    option: str
    code: str  # of the function: with it, the cache of `datasets` knows a changed function from the earlier one

    @property
    def name(self) -> str:
        function = getattr(self.function, "func", self.function)  # of a partial, what it calls
        return getattr(function, "__qualname__", type(function).__name__)

    def __call__(self, row: dict[str, Any], index: int | None = None) -> Any:
        place = f"--task.data.{self.option} {self.name}: " + ("" if index is None else f"row {index}, counted from 0: ")
        try:
            answer = self.function(row)
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(line.filename).name}, line {line.lineno}"
            raise UserError(f"{place}{root_cause(error)} ({where})") from error
        if self.option == "map" and not isinstance(answer, Mapping):
            raise UserError(f"{place}a dictionary is needed, not {answer!r}")
        return answer if self.option == "map" else bool(answer)


def code_of(function: Callable[..., Any]) -> str:
    """A digest of the file of a function, which `datasets` itself knows by its name alone if it was imported. What the
    file imports is not looked at."""
    module = sys.modules.get(getattr(getattr(function, "func", function), "__module__", ""))
    file = getattr(module, "__file__", None)
    return hashlib.blake2b(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


def mapped(rows: "Dataset | IterableDataset", function: RowFunction, split: str) -> Any:
    """The rows with the columns that a function of a row returns, the others as they were."""
    from datasets import Dataset, Features

    if isinstance(rows, Dataset):
        return rows.map(function, with_indices=True, desc=f"mapping {split}")
    rows = with_features(rows)
    first = Dataset.from_list([{**row, **function(row)} for row in rows.take(1000)]).features
    # What the function leaves as it is keeps its type: a ClassLabel, or texts that the first rows lack.
    same = {name: kind for name, kind in rows.features.items() if _dtype(first[name]) in ("null", _dtype(kind))}
    features = Features({**first, **same})
    return by_table(rows, partial(_map, function=function, schema=features.arrow_schema), features)


def join_columns(data: "DatasetDict", source: "Data") -> "DatasetDict":
    """Columns as one text, a line for each with its name ("title: ..."), missing ones left out; "" if all are."""
    from datasets import Features, Value

    data = type(data)({split: with_features(rows) for split, rows in data.items()})
    known = data["train"].features
    joins = {
        name: parts if isinstance(parts, list | tuple) else str(parts).split(",") for name, parts in source.join.items()
    }
    joins = {name: [str(part).strip() for part in parts] for name, parts in joins.items()}
    named = {source.split_group, *source.split_hash, *(part for parts in joins.values() for part in parts)}
    rest = [name for name, kind in known.items() if _dtype(kind) in TEXTS and name not in named]
    for name, parts in joins.items():
        joins[name] = [column for part in parts for column in (rest if part == "*" else [part])]
        if not joins[name]:
            raise UserError(f"--task.data.join {name} *: train has no column of texts among {', '.join(known)}")
        logger.info("data: %s joins the columns %s", name, ", ".join(joins[name]))
    used = list(dict.fromkeys(part for parts in joins.values() for part in parts))
    require_columns(data, tuple(used), "--task.data.join")
    taken = sorted(joins.keys() & (known.keys() - set(used)))
    if taken:
        raise UserError(f"--task.data.join {taken[0]}: there is a column of this name already, and it is not joined")
    joined = {}
    for split, rows in data.items():
        kept = {name: kind for name, kind in rows.features.items() if name not in used}
        features = Features({**kept, **dict.fromkeys(joins, Value("string"))})
        joined[split] = by_table(rows, partial(_join, joins=joins), features)
    return type(data)(joined)


def filtered(rows: "Dataset | IterableDataset", function: RowFunction, split: str) -> Any:
    """The rows for which a function of a row says True. Raises UserError if there are none."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        rows = with_features(rows)
        return by_table(rows, partial(_filter, function=function), rows.features)
    kept = rows.filter(function, with_indices=True, desc=f"filtering {split}")
    if len(kept) == 0:
        raise UserError(f"--task.data.filter {function.name} leaves no row of the split {split!r}")
    if len(kept) < len(rows):
        count = len(rows) - len(kept)
        logger.warning("data: %s: %s left out %d of %d rows", split, function.name, count, len(rows))
    return kept


def by_table(
    rows: "Dataset | IterableDataset", change: Callable[["pyarrow.Table"], "pyarrow.Table"], features: "Features"
) -> Any:
    """The rows changed a thousand at a time. Row by row, a stream would guess the types of each from its cells."""
    return rows.with_format("arrow").map(change, batched=True, features=features).with_format(None)


def _rename(table: "pyarrow.Table", names: dict[str, str]) -> "pyarrow.Table":
    return table.select(list(names)).rename_columns(list(names.values()))


def _map(table: "pyarrow.Table", function: RowFunction, schema: "pyarrow.Schema") -> "pyarrow.Table":
    return type(table).from_pylist([{**row, **function(row)} for row in table.to_pylist()], schema)


def _filter(table: "pyarrow.Table", function: RowFunction) -> "pyarrow.Table":
    return table.filter([function(row) for row in table.to_pylist()])


def _join(table: "pyarrow.Table", joins: dict[str, list[str]]) -> "pyarrow.Table":
    import pyarrow

    joined = table.drop_columns(sorted({part for parts in joins.values() for part in parts}))
    for name, parts in joins.items():
        rows = zip(*(table[part].to_pylist() for part in parts), strict=True)
        named = ([(part, cell) for part, cell in zip(parts, row, strict=True) if cell is not None] for row in rows)
        texts = ["\n".join(f"{part}: {cell}" for part, cell in row if str(cell).strip()) for row in named]
        joined = joined.append_column(name, pyarrow.array(texts, pyarrow.string()))
    return joined


def with_features(rows: "Dataset | IterableDataset") -> Any:
    """The rows, with the types of the columns known: of a stream, by reading its first rows."""
    return rows._resolve_features() if rows.features is None else rows


def _dtype(feature: Any) -> Any:
    return getattr(feature, "dtype", feature)


def drop_duplicates(data: "DatasetDict", columns: tuple[str, ...], labels: tuple[str, ...]) -> "DatasetDict":
    """Without the rows whose cells in `columns` another row has: the first of a split stays, and test goes before
    validation, validation before train. `labels` only tell how many of these rows are labelled otherwise."""
    seen: dict[tuple[bytes, ...], tuple[str, tuple[bytes, ...]]] = {}  # cells; the split and the label of their row
    kept = {}
    for split in [split for split in ("test", "validation", "train") if split in data]:
        stay, outside, differ = [], 0, 0
        for row, (cells, label) in enumerate(zip(_keys(data[split], columns), _keys(data[split], labels), strict=True)):
            if cells not in seen:
                seen[cells] = (split, label)
                stay.append(row)
            else:
                outside += seen[cells][0] != split
                differ += seen[cells][1] != label
        kept[split] = data[split].select(stay) if len(stay) < len(data[split]) else data[split]
        if not stay:
            raise UserError(f"--task.data.drop-duplicates: all rows of the split {split!r} are in validation or test")
        if len(stay) < len(data[split]):
            logger.warning(
                "data: %s: dropped %d of %d rows as duplicates (%d of another split's row, %d with another label)",
                *(split, len(data[split]) - len(stay), len(data[split]), outside, differ),
            )
    return type(data)({split: kept[split] for split in data})


def _keys(rows: "Dataset", columns: tuple[str, ...]) -> Iterator[tuple[bytes, ...]]:
    """The keys of some cells of each row; images are not decoded."""
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(1000):
        for row in table.to_pylist():
            yield tuple(key(row[column]) for column in columns)


def key(cell: Any) -> bytes:
    """A digest that equal cells share: of a text; of the bytes of an image, wherever they are."""
    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:
        content = cell["bytes"] or Path(cell["path"]).read_bytes()
    else:
        content = str(cell).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def require_columns(data: "DatasetDict", columns: tuple[str, ...], option: str) -> None:
    """Raise UserError unless every split has the columns."""
    for split, rows in data.items():
        for column in columns:
            if column not in rows.column_names:
                raise UserError(
                    f"{option}: the split {split!r} has no column {column!r}{nearest(column, rows.column_names)}; "
                    f"it has {', '.join(map(repr, rows.column_names))}"
                )
