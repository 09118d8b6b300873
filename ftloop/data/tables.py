"""Read what `datasets` has no reader for: SQLite, pickles, XML, nested JSON, and rows in memory.

The rows are stored in the cache of `datasets` under a digest of their content, so that whatever is
computed from them is cached as well.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ftloop.data.encodings import open_decompressed
from ftloop.data.splits import SPLIT_ALIASES, SPLITS
from ftloop.errors import UserError, did_you_mean, root_cause
from ftloop.files import temporary_folder

if TYPE_CHECKING:
    from datasets import Dataset


# The cache, and rows in memory


def store_splits(splits: "dict[str, Dataset]") -> Path:
    """Save splits in the cache of `datasets`, unless it has them already, and return their folder.

    The folder is named by a digest of the content. It is written under a temporary name and then
    renamed, so that several processes may do this at the same time. Raises UserError for a split
    without rows.
    """
    import datasets

    for split, rows in splits.items():
        if len(rows) == 0:
            raise UserError(f"--data: the split {split!r} is empty.")
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "ftloop"
    with temporary_folder(cache, "partial") as temporary:
        new = temporary / "rows"
        datasets.DatasetDict(splits).save_to_disk(new)
        digest = hashlib.sha256()
        for file in sorted(new.rglob("*.arrow")):  # the other files hold random ids and dates
            digest.update(str(file.relative_to(new)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        folder = cache / f"rows-{digest.hexdigest()[:24]}"
        try:
            os.rename(new, folder)
        except OSError:
            if not folder.is_dir():  # else the same content has been stored before
                raise
    return folder


def to_dataset(value: Any, name: str = "column") -> "Dataset":
    """Convert a Dataset, DataFrame, Series, array or list to a Dataset.

    A column without a name of its own is called `name`. Raises UserError for other types.
    """
    import datasets
    import numpy
    import pandas

    if isinstance(value, datasets.Dataset):
        if value.format["type"] == "custom":
            raise UserError(
                "data: rows with a transform cannot be stored; pass the function as Data(map=...)."
            )
        return value.with_format(None)
    if isinstance(value, pandas.Series):
        value = value.to_frame(name if value.name is None else value.name)
    if isinstance(value, pandas.DataFrame):
        # By position, because two columns may have the same name, which is an error below.
        columns = [(str(key), value.iloc[:, index]) for index, key in enumerate(value.columns)]
    elif isinstance(value, numpy.ndarray) and value.ndim == 2:
        columns = [(f"{name}_{index}", value[:, index]) for index in range(value.shape[1])]
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        keys = dict.fromkeys(key for row in value for key in row)
        columns = [(str(key), [row.get(key) for row in value]) for key in keys]
    elif isinstance(value, list | tuple) or (isinstance(value, numpy.ndarray) and value.ndim == 1):
        columns = [(name, value)]
    else:
        raise UserError(f"--data: {name!r} is {type(value).__name__}, which holds no rows.")
    return columns_to_dataset(columns)


def columns_to_dataset(columns: list[tuple[str, Any]]) -> "Dataset":
    """Make a Dataset from (name, values) pairs. None and NaN are missing values.

    Raises UserError if two columns have the same name, or if the values of one cannot be stored as
    one type.
    """
    import datasets
    import pyarrow

    counts = Counter(name for name, _ in columns)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"--data: two columns are named {repeated[0]!r}.")
    arrays = {}
    for name, values in columns:
        try:
            array = pyarrow.array(values, from_pandas=True)
        except (pyarrow.ArrowException, OverflowError, TypeError) as error:
            cause = root_cause(error)
            raise UserError(
                f"--data: the values of column {name!r} cannot be stored as one type: {cause}."
            ) from error
        if pyarrow.types.is_dictionary(array.type):  # a Categorical of pandas
            array = array.dictionary_decode()
        if pyarrow.types.is_large_string(array.type):
            array = array.cast(pyarrow.string())
        arrays[name] = array
    return datasets.Dataset(pyarrow.table(arrays))


# Files


def read_tables(
    reader: str, split: str, names: list[str], field: tuple[str, ...], query: str | None
) -> "Dataset | dict[str, Dataset]":
    """Read files of one format as one Dataset, stored in the cache.

    `reader` is "save_to_disk", "json", "xml", "sqlite" or "pickle". A pickled dictionary of splits
    gives all its splits.
    """
    from datasets import Dataset, concatenate_datasets, load_from_disk

    if reader == "save_to_disk":
        return concatenate_datasets([load_from_disk(name) for name in names])
    tables = []
    for name in names:
        if reader == "json":
            tables.append(read_json(name, field[0]))
        elif reader == "xml":
            tables.append(read_xml(name))
        elif reader == "sqlite":
            tables.append(read_sqlite(name, query))
        else:
            tables.append(read_pickle(name, field))
    if len(tables) == 1 and isinstance(tables[0], dict):
        return load_from_disk(store_splits(tables[0]))
    if not all(isinstance(rows, Dataset) for rows in tables):
        raise UserError(
            f"--data.files: {names[0]!r} holds several splits, so it cannot be one of the files of "
            f"{split}."
        )
    return load_from_disk(store_splits({split: concatenate_datasets(tables)}))[split]


def read_sqlite(name: str, query: str | None) -> "Dataset":
    """Read the result of a query, which may read this database and write nothing.

    Raises UserError that lists the tables if `query` is None.
    """
    uri = f"file:{quote(os.path.abspath(name))}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        connection.set_authorizer(_refuse_other_files)
        if query is None:
            tables = connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
            )
            names = ", ".join(table for (table,) in tables)
            raise UserError(
                f"--data.query is missing: {name!r} needs a query, SELECT ... FROM one of its "
                f"tables: {names}."
            )
        cursor = connection.execute(query)
        rows = cursor.fetchall()
    columns = [column[0] for column in cursor.description or ()]
    return columns_to_dataset(
        [(column, [row[index] for row in rows]) for index, column in enumerate(columns)]
    )


def _refuse_other_files(action: int, *details: str | None) -> int:
    """Keep a query from opening, and thereby creating, another database."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


def read_xml(name: str) -> "Dataset":
    """Read one row per element below the root: its attributes, and the texts of its children.

    All values are strings. The builder of `datasets` 5.2 reads one row per file, and fails on files
    that are not streamed.
    """
    from xml.etree import ElementTree

    with open_decompressed(name) as stream:
        root = ElementTree.parse(stream).getroot()
    rows = []
    for number, element in enumerate(root):
        children = [(child.tag, "".join(child.itertext())) for child in element]
        cells = [*element.attrib.items(), *children]
        if len(dict(cells)) < len(cells):
            raise UserError(
                f"--data: {name!r}: row {number} (counted from 0) has two elements of the same "
                f"name: {cells[:5]}."
            )
        rows.append(dict(cells))
    if not rows:
        raise UserError(f"--data: {name!r} has no rows: there are no elements below its root.")
    return to_dataset(rows)


def read_json(name: str, key: str) -> "Dataset":
    """Read the list of rows that is stored under a dotted key."""
    with open_decompressed(name) as stream:
        return to_dataset(_look_up(json.load(stream), key, name), key)


def read_pickle(name: str, field: tuple[str, ...]) -> "Dataset | dict[str, Dataset]":
    """Read a pickled table, or tables of a pickled dictionary. This runs code from the file.

    Of a dictionary, the tables under the dotted keys in `field` are put side by side. Without
    `field`, its keys must be the names of splits.
    """
    import pandas
    from datasets import concatenate_datasets

    with open_decompressed(name) as stream:
        value = pandas.read_pickle(stream, compression=None)
    if not field and isinstance(value, dict):
        if value and set(value) <= {*SPLITS, *SPLIT_ALIASES}:
            return {split: to_dataset(rows, split) for split, rows in value.items()}
        _look_up(value, "", name)  # raises an error that lists the keys
    if not field:
        return to_dataset(value)
    tables = {
        key: to_dataset(_look_up(value, key, name), name=key.rpartition(".")[2]) for key in field
    }
    if len({len(rows) for rows in tables.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(rows)} rows" for key, rows in tables.items())
        raise UserError(f"--data.field: tables side by side need equally many rows: {lengths}.")
    return concatenate_datasets(
        list(tables.values()), axis=1
    )  # raises for columns of the same name


def _look_up(value: Any, key: str, name: str) -> Any:
    """Return what nested dictionaries hold under a dotted key.

    Raises UserError that lists the keys if there is no such key, or if it is empty.
    """
    leaves = _flatten(value)
    if key and key in leaves:
        return leaves[key]
    sizes = [
        f"{path or 'no dictionary, but'} {getattr(leaf, 'shape', type(leaf).__name__)}"
        for path, leaf in leaves.items()
    ]
    content = ", ".join(sizes[:10]) + (", ..." if len(sizes) > 10 else "")
    if not key:
        raise UserError(f"--data.field is missing: {name!r} holds {content}.")
    raise UserError(
        f"--data.field {key!r}: {name!r} has no such key{did_you_mean(key, leaves)}; it holds "
        f"{content}."
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to dotted keys: {"total.X": ..., "y": ...}."""
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    leaves = {}
    for key, item in value.items():
        leaves |= _flatten(item, f"{prefix}{key}.")
    return leaves
