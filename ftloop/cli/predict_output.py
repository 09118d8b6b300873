"""What predict.py writes: JSON lines, CSV or Parquet, each file only when it is complete."""

import contextlib
import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ftloop.errors import UserError, root_cause
from ftloop.escape import for_csv
from ftloop.files import replace_file

Row = dict[str, Any]
Writer = Callable[[list[Row]], None]

# Control characters that JSON may hold as they are, and marks that reverse the order of text: a
# terminal would obey them.
INVISIBLE = re.compile("[\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def make_printable(row: Row) -> Row:
    """Return a row with the name or the size of each encoded image instead of its bytes."""
    return {name: printable_cell(cell) for name, cell in row.items()}


def printable_cell(cell: Any) -> Any:
    """Return a cell, or the name or size of an encoded image."""
    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:
        return cell["path"] or printable_cell(cell["bytes"])
    return f"{len(cell)} bytes" if isinstance(cell, bytes) else cell


@contextlib.contextmanager
def complete_file(name: str) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `name` after the block, and is deleted after an error.

    If `name` is a link, the file that it points to is replaced.
    """
    target = Path(name).resolve()
    is_special = target.exists() and not target.is_file()  # a pipe or device cannot be replaced
    with target.open("wb") if is_special else replace_file(target) as stream:
        yield stream


@contextlib.contextmanager
def open_writer(name: str | None) -> Iterator[Writer]:
    """Yield a function that writes rows to a file, in the format of its ending, or to stdout."""
    if name is None:
        yield jsonl_writer(sys.stdout)
        return
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(complete_file(name))
        if name.endswith(".parquet"):
            yield stack.enter_context(parquet_writer(stream))
            return
        if name.endswith(".gz"):
            stream = stack.enter_context(gzip.open(stream, "wb"))
        make_writer = csv_writer if name.endswith((".csv", ".csv.gz")) else jsonl_writer
        text_stream = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        stack.callback(text_stream.detach)  # flushes it and leaves the file open
        yield make_writer(text_stream)


def jsonl_writer(stream: TextIO) -> Writer:
    """Return a function that writes a JSON object per row."""

    def write(rows: list[Row]) -> None:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, default=str)
            stream.write(INVISIBLE.sub(escape_character, line) + "\n")
        stream.flush()

    return write


def escape_character(match: re.Match[str]) -> str:
    """Return a character as JSON spells it in ASCII: readers of JSON get the same text."""
    return json.dumps(match.group())[1:-1]


def csv_writer(stream: TextIO) -> Writer:
    """Return a function that writes CSV rows.

    There is a column for each probability ("probability_joy"); lists are joined by commas. Texts
    that a spreadsheet would take for a formula get an apostrophe; see `for_csv`.
    """
    writer = csv.DictWriter(stream, fieldnames=[])

    def write(rows: list[Row]) -> None:
        flat_rows = [flatten(row) for row in rows]
        if not writer.fieldnames:
            writer.fieldnames = list(flat_rows[0])
            writer.writerow({name: for_csv(name) for name in writer.fieldnames})
        require_same_columns(writer.fieldnames, flat_rows[0])
        for row in flat_rows:
            writer.writerow({name: for_csv(cell) for name, cell in row.items()})
        stream.flush()

    return write


def flatten(row: Row) -> Row:
    """Return a row whose cells are values that CSV can hold."""
    flat = {
        name: ",".join(map(str, cell)) if isinstance(cell, list) else cell
        for name, cell in row.items()
    }
    if not isinstance(row.get("probabilities"), dict):
        return flat
    probabilities = flat.pop("probabilities")
    return flat | {f"probability_{name}": value for name, value in probabilities.items()}


@contextlib.contextmanager
def parquet_writer(file: BinaryIO) -> Iterator[Writer]:
    """Yield a function that writes a row group per block.

    Probabilities are a struct and labels a list.
    """
    import pyarrow
    import pyarrow.parquet

    writer: Any = None

    def write(rows: list[Row]) -> None:
        nonlocal writer
        if writer is None:
            schema = pyarrow.Table.from_pylist(rows).schema
            for index, column in enumerate(schema):
                if pyarrow.types.is_null(
                    column.type
                ):  # no value so far: a later row may have a text
                    schema = schema.set(index, column.with_type(pyarrow.string()))
            writer = stack.enter_context(pyarrow.parquet.ParquetWriter(file, schema))
        require_same_columns(writer.schema.names, rows[0])
        try:
            writer.write_table(pyarrow.Table.from_pylist(rows, writer.schema))
        except (pyarrow.ArrowException, OverflowError) as error:
            raise UserError(
                f"--out: the types of some rows differ from those before: {root_cause(error)}."
            ) from error

    with contextlib.ExitStack() as stack:
        yield write


def require_same_columns(names: Iterable[str], row: Row) -> None:
    """Raise UserError if the columns of a block differ from those of the first block."""
    different = sorted(set(names) ^ row.keys())
    if different:
        raise UserError(
            f"--out: only some rows have the column(s) {', '.join(different)}, which a table "
            "cannot hold. Write a .jsonl file instead."
        )
