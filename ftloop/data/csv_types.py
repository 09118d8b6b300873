"""Correct what pandas and `datasets` would make of the columns of CSV and TSV files.

Codes such as 007 stay texts, and empty cells among numbers become missing values.
"""

import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from ftloop.data.csv_structure import STREAMED_ROWS, check_csv, pandas_warnings
from ftloop.data.reader_errors import describe_other_columns
from ftloop.data.shape import TEXT_TYPES, map_tables
from ftloop.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

logger = logging.getLogger("ftloop")

# A column of texts becomes a column of another type if all of its cells match. These are the cells
# that pandas converts in a column without empty cells; a code such as 007 is not among them.
CELL_PATTERNS = {
    "bool": "True|TRUE|true|False|FALSE|false",
    "int64": r"[-+]?(0|[1-9]\d*)",
    "float64": r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?",
}


def split_names(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of pandas.read_csv with `names` and `usecols` as lists.

    On the command line they are texts with commas: names=text,label.
    """
    lists = {
        option: options[option].split(",")
        for option in ("names", "usecols")
        if isinstance(options.get(option), str)
    }
    return {**options, **lists}


def examine_csv_files(
    paths: dict[str, list[str]], options: dict[str, dict[str, Any]], streaming: bool
) -> tuple[set[Any], set[str]]:
    """Look at the CSV files of each split before they are read, by their options of pandas.

    Returns the columns to read as texts in all splits, because they hold codes such as 007 in one,
    and the splits with a file that `check_csv` could not check. Raises UserError.
    """
    code_columns: set[Any] = set()
    unchecked = set()
    for split, reader_options in options.items():
        reader_options = split_names(reader_options)
        headers = {
            name: check_csv(split, name, reader_options, STREAMED_ROWS if streaming else None)
            for name in paths[split]
        }
        if None in headers.values():
            unchecked.add(split)
        else:
            require_equal_headers(split, headers)
        code_columns |= find_zero_padded_columns(paths[split][0], reader_options)
    if code_columns:
        names = ", ".join(sorted(map(str, code_columns)))
        logger.info("data: numbers with leading zeros are kept as texts: %s", names)
    return code_columns, unchecked


def require_equal_headers(split: str, headers: dict[str, Any]) -> None:
    """Raise UserError unless the CSV files of a split have the same columns in the same order."""
    first = next(iter(headers))
    for name, columns in headers.items():
        if columns != headers[first]:
            difference = describe_other_columns(columns, headers[first]) or "has another order"
            raise UserError(
                f"--data: the {split} files must have the same columns, but compared with "
                f"{first!r}, {name!r} {difference}."
            )


def find_zero_padded_columns(name: str, options: dict[str, Any]) -> set[Any]:
    """Return the columns that hold whole numbers with leading zeros in their first thousand rows.

    pandas would read 007 as 7. `options` are those of pandas.read_csv. Reading the beginning of the
    file takes some milliseconds; a URL is not read, because it would be downloaded twice.
    """
    import pandas

    if "://" in name or {"converters", "features"} & set(options):
        return set()
    options = {**split_names(options), "chunksize": 1000}
    try:
        with (
            pandas_warnings(is_checked=True),
            pandas.read_csv(name, dtype=str, **options) as reader,
        ):
            head = next(reader).fillna("")
    except Exception:  # reading the whole file raises the same error, which is then reported
        return set()
    columns = set()
    for column in head:
        cells = head[column].str
        if cells.match(r"[-+]?0\d").any() and cells.fullmatch(r"[-+]?\d+|").all():
            columns.add(column)
    return columns


def restore_numeric_columns(
    splits: "dict[str, Dataset]", decimal: str = "."
) -> "dict[str, Dataset]":
    """Convert columns of numbers or booleans with empty cells, which pandas reads as texts.

    pandas does so because it is asked to keep the texts "NA" and "null". The empty cells become
    missing values. A column that holds texts in one split stays a column of texts in all of them.
    A column of texts is usually recognized by its first rows; a column of numbers is read to its
    end, which takes 0.2 s per million rows. `decimal` is the option of pandas.
    """
    from datasets import Features, Value

    dtypes: dict[str, dict[str, str | None]] = {}  # by column and split; None for texts
    for split, rows in splits.items():
        for name, feature in rows.features.items():
            is_text = feature.dtype in TEXT_TYPES and feature.dtype != "null"
            dtype = infer_cell_type(rows.data.column(name), decimal) if is_text else feature.dtype
            dtypes.setdefault(name, {})[split] = dtype
    restored = {}
    for split, rows in splits.items():
        new = {}
        for name, feature in rows.features.items():
            has_texts = None in dtypes[name].values()
            if not has_texts and feature.dtype != dtypes[name][split]:
                new[name] = Value(dtypes[name][split])
        if new:
            logger.info(
                "data: %s: empty cells of the number columns %s are missing values",
                split,
                ", ".join(new),
            )
            features = Features({**rows.features, **new})
            cast = partial(_cast_columns, schema=features.arrow_schema, decimal=decimal)
            rows = map_tables(rows, cast, features)
        restored[split] = rows
    return restored


def infer_cell_type(column: "pyarrow.ChunkedArray", decimal: str = ".") -> str | None:
    """Return the type that all filled cells of a text column match, if some cells are empty.

    None: the column holds texts, or has no empty cells, or nothing else.
    """
    import pyarrow.compute

    point = re.escape(decimal)
    patterns = {dtype: cell.replace(r"\.", point) for dtype, cell in CELL_PATTERNS.items()}
    candidates, has_blank, has_filled = list(patterns), False, False
    for chunk in column.chunks:
        cells = pyarrow.compute.utf8_trim_whitespace(chunk.drop_null())
        filled = cells.filter(pyarrow.compute.not_equal(cells, ""))
        has_blank |= len(filled) < len(chunk)
        has_filled |= len(filled) > 0
        candidates = [dtype for dtype in candidates if _all_match(filled, patterns[dtype])]
        if not candidates:
            return None
    return candidates[0] if has_blank and has_filled else None


def _all_match(cells: "pyarrow.Array", pattern: str) -> bool:
    import pyarrow.compute

    matches = pyarrow.compute.match_substring_regex(cells, f"^({pattern})$")
    return pyarrow.compute.all(matches, min_count=0).as_py()


def _cast_columns(
    table: "pyarrow.Table", schema: "pyarrow.Schema", decimal: str
) -> "pyarrow.Table":
    """Cast columns of texts to the types of a schema. Blank cells become missing values."""
    import pyarrow.compute

    for index, (old, new) in enumerate(zip(table.schema, schema, strict=True)):
        if old.type != new.type:
            cells = pyarrow.compute.utf8_trim_whitespace(table.column(index))
            is_blank = pyarrow.compute.equal(cells, "")
            cells = pyarrow.compute.if_else(is_blank, pyarrow.scalar(None, cells.type), cells)
            cells = pyarrow.compute.replace_substring(cells, decimal, ".")
            table = table.set_column(index, new, cells.cast(new.type))
    return table
