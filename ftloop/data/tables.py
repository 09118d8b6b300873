"""Tables that `datasets` has no reader for: SQLite, pickles, XML, JSON under a key, and what is in memory.

What is read here is stored in the cache of `datasets` by its content, so that what is made of it is cached as well.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ftloop.data.splits import SPLIT_NAMES, SPLITS
from ftloop.errors import UserError, nearest, root_cause

if TYPE_CHECKING:
    from datasets import Dataset


def stored(data: "dict[str, Dataset]") -> Path:
    """A folder in the cache of `datasets` with these splits, named by their content; written if it is not there.

    It is written aside and renamed: of several processes at once, each finds it whole.
    """
    import datasets

    for split, rows in data.items():
        if len(rows) == 0:
            raise UserError(f"--task.data: the split {split!r} is empty")
    home = Path(datasets.config.HF_DATASETS_CACHE) / "ftloop"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="aside-") as aside:
        whole = Path(aside) / "whole"
        datasets.DatasetDict(data).save_to_disk(whole)
        content = hashlib.sha256()
        for file in sorted(whole.rglob("*.arrow")):  # the other files hold fingerprints and dates
            content.update(str(file.relative_to(whole)).encode())
            with file.open("rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
        folder = home / f"rows-{content.hexdigest()[:24]}"
        try:
            os.rename(whole, folder)
        except OSError:  # it is there already
            if not folder.is_dir():
                raise
    return folder


def rows_of(value: Any, name: str = "column") -> "Dataset":
    """A Dataset, DataFrame, Series, array or list as a Dataset. A column without a name of its own gets `name`."""
    import datasets
    import numpy
    import pandas

    if isinstance(value, datasets.Dataset):
        if value.format["type"] == "custom":
            raise UserError("data: rows with a transform cannot be stored: give the function as Data(map=...)")
        return value.with_format(None)
    if isinstance(value, pandas.Series):
        value = value.to_frame(name if value.name is None else value.name)
    if isinstance(value, pandas.DataFrame):
        return table_of([(str(column), value.iloc[:, place]) for place, column in enumerate(value.columns)])
    if isinstance(value, numpy.ndarray) and value.ndim == 2:
        return table_of([(f"{name}_{place}", value[:, place]) for place in range(value.shape[1])])
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        columns = dict.fromkeys(key for row in value for key in row)
        return table_of([(str(column), [row.get(column) for row in value]) for column in columns])
    if isinstance(value, list | tuple) or (isinstance(value, numpy.ndarray) and value.ndim == 1):
        return table_of([(name, value)])
    raise UserError(f"--task.data: {name!r} holds no rows, but {type(value).__name__}")


def table_of(columns: list[tuple[str, Any]]) -> "Dataset":
    """Named columns as a Dataset; None and NaN are missing values. Raises UserError for one of mixed types."""
    import datasets
    import pyarrow

    twice = [name for name, count in Counter(name for name, _ in columns).items() if count > 1]
    if twice:
        raise UserError(f"--task.data: two columns are named {twice[0]!r}")
    arrays = {}
    for name, values in columns:
        try:
            array = pyarrow.array(values, from_pandas=True)
        except (pyarrow.ArrowException, OverflowError, TypeError) as error:
            raise UserError(f"--task.data: the column {name!r} is not of one type: {root_cause(error)}") from error
        if pyarrow.types.is_dictionary(array.type):  # a Categorical of pandas
            array = array.dictionary_decode()
        arrays[name] = array.cast(pyarrow.string()) if pyarrow.types.is_large_string(array.type) else array
    return datasets.Dataset(pyarrow.table(arrays))


def read_table(
    reader: str, split: str, names: list[str], field: tuple[str, ...], query: str | None
) -> "Dataset | dict[str, Dataset]":
    """The rows of files that a reader of this file reads, from the cache; of a pickled dictionary of splits, all."""
    from datasets import Dataset, concatenate_datasets, load_from_disk

    if reader == "save_to_disk":
        return concatenate_datasets([load_from_disk(name) for name in names])
    read = {
        "json": lambda name: read_json(name, field[0]),
        "xml": read_xml,
        "sqlite": lambda name: read_sqlite(name, query),
        "pickle": lambda name: read_pickle(name, field),
    }[reader]
    found = [read(name) for name in names]
    if len(found) == 1 and isinstance(found[0], dict):
        return load_from_disk(stored(found[0]))
    if not all(isinstance(rows, Dataset) for rows in found):
        raise UserError(f"--task.data.files: {names[0]!r} holds several splits: it cannot be one of several files")
    return load_from_disk(stored({split: concatenate_datasets(found)}))[split]


def read_sqlite(name: str, query: str | None) -> "Dataset":
    """What a query answers; the file is opened for reading alone."""
    with contextlib.closing(sqlite3.connect(f"file:{quote(os.path.abspath(name))}?mode=ro", uri=True)) as connection:
        if query is None:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
            held = ", ".join(table for (table,) in tables)
            raise UserError(f"--task.data.query is missing: SELECT ... FROM one of the tables of {name!r}: {held}")
        cursor = connection.execute(query)
        rows = cursor.fetchall()
    return table_of([(column[0], [row[at] for row in rows]) for at, column in enumerate(cursor.description or ())])


def read_xml(name: str) -> "Dataset":
    """A row for each element below the root: its attributes, and the texts of the elements in it. All are texts.

    The builder of `datasets` 5.2 gives one row a file, and fails on files that are not streamed.
    """
    from xml.etree import ElementTree

    with _opened(name) as stream:
        root = ElementTree.parse(stream).getroot()
    rows = [[*row.attrib.items(), *((cell.tag, "".join(cell.itertext())) for cell in row)] for row in root]
    if not rows:
        raise UserError(f"--task.data: {name!r} has no elements below its root: no rows")
    for number, cells in enumerate(rows):
        if len(dict(cells)) < len(cells):
            raise UserError(f"--task.data: {name!r}: row {number}, from 0, has two elements of one name: {cells[:5]}")
    return rows_of(list(map(dict, rows)))


def read_json(name: str, key: str) -> "Dataset":
    """The list of rows under a dotted key."""
    with _opened(name) as stream:
        return rows_of(_behind(json.load(stream), key, name), key)


def read_pickle(name: str, field: tuple[str, ...]) -> "Dataset | dict[str, Dataset]":
    """A pickled table; of a dictionary, the tables under dotted keys, side by side, or its splits. Runs its code."""
    import pandas
    from datasets import concatenate_datasets

    with _opened(name) as stream:
        value = pandas.read_pickle(stream, compression=None)
    if not field and isinstance(value, dict) and value and set(value) <= {*SPLITS, *SPLIT_NAMES}:
        return {split: rows_of(rows, split) for split, rows in value.items()}
    if not field and isinstance(value, dict):
        _behind(value, "", name)  # says what there is to choose from
    if not field:
        return rows_of(value)
    parts = {key: rows_of(_behind(value, key, name), key.rpartition(".")[2]) for key in field}
    if len({len(rows) for rows in parts.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(rows)} rows" for key, rows in parts.items())
        raise UserError(f"--task.data.field: what is joined side by side differs in length: {lengths}")
    return concatenate_datasets(list(parts.values()), axis=1)  # which refuses two columns of the same name


def _opened(name: str) -> Any:
    """A file or URL to read bytes from, uncompressed by its ending."""
    import fsspec

    return fsspec.open(name, "rb", compression="infer")


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """What nested dictionaries hold, by dotted keys: {"total.X": ..., "y": ...}."""
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {path: leaf for key, item in value.items() for path, leaf in _leaves(item, f"{prefix}{key}.").items()}


def _behind(value: Any, key: str, name: str) -> Any:
    """What a nested dictionary holds under a dotted key. Raises UserError that shows the keys and their sizes."""
    leaves = _leaves(value)
    if key in leaves and key:
        return leaves[key]
    sizes = {path: getattr(leaf, "shape", type(leaf).__name__) for path, leaf in leaves.items()}
    held = ", ".join(f"{path or 'no dictionary'} {size}" for path, size in list(sizes.items())[:10])
    wrong = f"{key!r}: {name!r} has no such key{nearest(key, leaves)}; it" if key else f"is missing: {name!r}"
    raise UserError(f"--task.data.field {wrong} holds {held}{', ...' if len(leaves) > 10 else ''}")
