"""Check that the rows of a CSV or TSV file fit its header, before pandas reads it.

pandas says nothing about most rows that do not: if the first row has one cell more than the header,
it takes the first column as an index, so that all columns move by one; it fills up short rows; and
what is between two stray quotes becomes one cell, with all rows between them.
"""

import contextlib
import csv
import io
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftloop.data.encodings import advise_encoding, open_decompressed
from ftloop.data.findings import shorten, warn_while_reading
from ftloop.errors import UserError

LINE_BREAK = re.compile("\r\n|\r|\n")
STREAMED_ROWS = 1000  # rows of each file of a stream that are checked
# Options of pandas.read_csv that change which lines are rows. A file that is read with one of them
# is not checked.
UNKNOWN_STRUCTURE = ("comment", "dialect", "lineterminator", "skipfooter")


@dataclass
class Structure:
    """What was found in a file. Lines are counted from 1, as editors do."""

    names: list[str]
    width: int = 0  # cells of the header
    num_rows: int = 0
    widths_of_longer: Counter[int] = field(default_factory=Counter)
    first_longer: tuple[int, list[str]] | None = None  # line and cells
    num_shorter: int = 0
    first_shorter: tuple[int, int] | None = None  # line and number of cells
    num_line_breaks: int = 0  # within quotes
    num_like_rows: int = 0  # of these, those before which the line looks like the rest of a row
    first_line_break: int = 0


def check_csv(
    split: str, name: str, options: dict[str, Any], max_rows: int | None = None
) -> list[str] | None:
    """Check one file; return the names of its columns, or None if only pandas can read it.

    Warns about short rows, repeated names and joined rows. Raises UserError for a row with more
    cells than the header, and for a file that is not in its encoding.
    """
    dialect = _csv_dialect(options)
    if dialect is None or "://" in name:
        return None
    place = f"the {split} file {name!r}"
    try:
        structure = _scan(name, options, dialect, max_rows)
    except UnicodeDecodeError as error:
        encoding = options.get("encoding", "utf-8")
        advice = "Choose another one." if "encoding" in options else advise_encoding([name])
        raise UserError(
            f"--data: cannot read {place}: it is not {encoding}: {error.reason} "
            f"(byte 0x{error.object[error.start]:02x}). {advice}"
        ) from error
    except Exception:  # pandas raises an error of its own, which is then reported
        return None
    if structure.first_longer is not None:
        _report_longer_rows(structure, place, options)
    if structure.first_shorter is not None:
        line, cells = structure.first_shorter
        warn_while_reading(
            f"{place}: {structure.num_shorter} row(s) have fewer cells than the header, which has "
            f"{structure.width}: the first is in line {line} and has {cells}. The missing cells "
            "are read as empty"
        )
    repeated = [repr(name) for name, count in Counter(structure.names).items() if count > 1]
    if repeated:
        warn_while_reading(
            f"{place}: several columns are named {', '.join(repeated)}. The first keeps its name, "
            "the others get .1, .2 and so on"
        )
    if structure.num_like_rows > 0.6 * structure.num_line_breaks:
        warn_while_reading(
            f"{place}: {structure.num_line_breaks} line break(s) are inside quotes, the first in "
            f"line {structure.first_line_break}, and what is around them looks like rows. If "
            "quotes are ordinary characters in this file, rows were joined: add --data.options "
            "quoting=3"
        )
    return structure.names


@contextlib.contextmanager
def pandas_warnings(is_checked: bool) -> Iterator[None]:
    """Ignore pandas' warnings about rows with too many cells, which `check_csv` has reported.

    If the files were not checked, the warning that pandas drops cells is an error.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping line")
        warnings.filterwarnings("ignore" if is_checked else "error", "Length of header or names")
        yield


def _csv_dialect(options: dict[str, Any]) -> dict[str, Any] | None:
    """Return options of pandas.read_csv as those of csv.reader; None if that is not possible."""
    separator = options.get("sep", options.get("delimiter", ","))
    if not isinstance(separator, str) or len(separator) != 1:
        return None
    if any(option in options for option in UNKNOWN_STRUCTURE):
        return None
    if not isinstance(options.get("skiprows", 0), int):
        return None
    if not isinstance(options.get("header"), int | None) and options["header"] != "infer":
        return None
    names = ("quotechar", "quoting", "escapechar", "doublequote", "skipinitialspace")
    given = {name: options[name] for name in names if name in options}
    return {"delimiter": separator, **given}


def _scan(
    name: str, options: dict[str, Any], dialect: dict[str, Any], max_rows: int | None
) -> Structure:
    """Read the cells of a file: 5 ms per megabyte."""
    given_names = options.get("names")
    header = options.get("header", "infer")
    if header == "infer":
        header = None if given_names else 0
    encoding = options.get("encoding", "utf-8-sig")
    with open_decompressed(name) as binary, _any_field_size():
        stream = io.TextIOWrapper(
            binary, encoding, errors=options.get("encoding_errors"), newline=""
        )
        for _ in range(options.get("skiprows", 0)):
            next(stream)
        rows = _number_rows(csv.reader(stream, **dialect))
        for _ in range(0 if header is None else header):
            next(rows)
        names = [] if header is None else next(rows, (1, 1, []))[2]
        structure = Structure(names=list(given_names or names))
        structure.width = len(structure.names)
        skipped = options.get("skiprows", 0)
        for first_line, last_line, cells in rows:
            structure.width = structure.width or len(cells)  # neither a header nor names
            structure.num_rows += 1
            if len(cells) != structure.width:
                _note_width(structure, first_line + skipped, cells)
            if last_line > first_line:
                _note_line_breaks(structure, first_line + skipped, cells, dialect["delimiter"])
            if structure.num_rows == max_rows:
                break
    return structure


@contextlib.contextmanager
def _any_field_size() -> Iterator[None]:
    """Let the csv module read cells of any size within the block: its limit is 128 KB."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _number_rows(reader: Any) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (first line, last line, cells) of each row that is not blank; pandas skips these."""
    last_line = 0
    for cells in reader:
        first_line, last_line = last_line + 1, reader.line_num
        if len(cells) > 1 or (cells and cells[0].strip()):
            yield first_line, last_line, cells


def _note_width(structure: Structure, line: int, cells: list[str]) -> None:
    """Note a row with another number of cells than the header. Separators may end a row."""
    if len(cells) < structure.width:
        structure.num_shorter += 1
        structure.first_shorter = structure.first_shorter or (line, len(cells))
    elif any(cells[structure.width :]):
        structure.widths_of_longer[len(cells)] += 1
        structure.first_longer = structure.first_longer or (line, cells)


def _note_line_breaks(structure: Structure, line: int, cells: list[str], separator: str) -> None:
    """Note line breaks within the cells of a row.

    Cells joined by stray quotes have as many separators in each line as a row has: those that
    follow its column in the first line, and all of them in the lines after it.
    """
    for column, cell in enumerate(cells):
        *lines, _ = LINE_BREAK.split(cell)
        structure.num_line_breaks += len(lines)
        for number, text in enumerate(lines):
            expected = structure.width - 1 - (0 if number else column)
            structure.num_like_rows += text.count(separator) == expected
        if lines and not structure.first_line_break:
            structure.first_line_break = line


def _report_longer_rows(structure: Structure, place: str, options: dict[str, Any]) -> None:
    """Raise UserError for rows with more cells than the header, unless they are to be skipped."""
    line, cells = structure.first_longer or (0, [])
    count = structure.widths_of_longer.total()
    if options.get("on_bad_lines", "error") != "error":
        warn_while_reading(
            f"{place}: {count} of {structure.num_rows} rows have more cells than the header and "
            f"are skipped (on_bad_lines={options['on_bad_lines']}); the first is in line {line}"
        )
        return
    shown = ", ".join(repr(shorten(cell)) for cell in cells[:5]) + (", ..." if cells[5:] else "")
    raise UserError(
        f"--data: cannot read {place}: the row in line {line} has {len(cells)} cells, but the "
        f"header has {structure.width}: {shown}. {count} of {structure.num_rows} rows have more "
        f"cells than the header.{_advise_longer_rows(structure, options)}"
    )


def _advise_longer_rows(structure: Structure, options: dict[str, Any]) -> str:
    """Return what helps if rows have more cells than the header."""
    if "names" in options:
        return " --data.options names=a,b,c names all columns."
    advice = advise_reader(structure.names)
    if advice:
        return advice
    if structure.widths_of_longer == {structure.width + 1: structure.num_rows}:
        # So do tables that R writes: the names of the rows have no header.
        names = ",".join(["row", *structure.names])
        return (
            " If cells contain the separator, they must be in quotes. If the first column has no "
            f"name, name it: --data.options header=0 names={names}."
        )
    return (
        " Cells that contain the separator must be in quotes. Another separator is set by "
        "--data.options sep=';', and quoting=3 reads quotes as ordinary characters."
    )


def advise_reader(columns: Sequence[str]) -> str:
    """Return what helps if the names of columns show that a CSV file was read in a wrong way."""
    if len(columns) == 1:
        marks = {";": ";", "\t": r"\t", "|": "|", ",": ","}  # and as they are typed
        for separator, typed in marks.items():
            if separator in columns[0]:
                return f" Another separator of CSV files is set by --data.options 'sep={typed}'."
    if any(name.count(" ") > 2 or name.replace(".", "").isdigit() for name in columns):
        return (
            " If the first row of a CSV file is no header, name the columns: --data.options "
            "names=text,label."
        )
    return ""
