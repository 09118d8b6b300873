"""The rows that predict.py labels: from the command line, a file, or standard input."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from ftloop.cli.predict_options import PredictOptions
    from ftloop.tasks.predictor import Predictor

logger = logging.getLogger("ftloop")


def read_blocks(options: "PredictOptions", task: Any) -> tuple[Iterable["Dataset"], int | None]:
    """Return the rows in blocks, and their number where it is known. Raises UserError."""
    blocks, num_rows = read_and_shape_blocks(options, task)
    return warn_about_empty_cells(blocks, task.input_columns), num_rows


def read_and_shape_blocks(
    options: "PredictOptions", task: Any
) -> tuple[Iterable["Dataset"], int | None]:
    """Read the rows as those of training were read, and bring them into the same shape."""
    from datasets import Dataset

    from ftloop.cli.predict_reader import add_options_of_run
    from ftloop.runs.finished import split_into_blocks
    from ftloop.tasks.predictor import build_predictor

    predictor, columns = build_predictor(task), task.input_columns
    if options.file:
        options = add_options_of_run(options, getattr(task, "data", None))
    if options.file == "-":
        return shape_blocks(read_standard_input(options, columns), predictor, Path()), None
    if options.file:
        rows = read_file(options)
        blocks = split_into_blocks(rows, options.block_size)
        folder = Path(options.file).expanduser().parent
        return shape_blocks(blocks, predictor, folder), len(rows)
    # Inputs on the command line are what the model sees: they are not mapped or joined.
    inputs = predictor.expand_inputs(options.inputs)
    if len(inputs) % len(columns):
        raise UserError(
            f"{len(inputs)} texts were given, but each row of this run has {len(columns)}: "
            f"{', '.join(columns)}."
        )
    rows = Dataset.from_dict(
        {name: list(inputs[index :: len(columns)]) for index, name in enumerate(columns)}
    )
    return split_into_blocks(rows, options.block_size), len(rows)


def shape_blocks(
    blocks: Iterable["Dataset"], predictor: "Predictor", folder: Path
) -> Iterator["Dataset"]:
    """Bring each block into the shape of the training rows; log only for the first block."""
    for index, block in enumerate(blocks):
        level = logger.level
        if index > 0:
            logger.setLevel(logging.WARNING)
        try:
            rows = predictor.shape_rows(block, folder)
        finally:
            logger.setLevel(level)
        yield rows


def warn_about_empty_cells(
    blocks: Iterable["Dataset"], columns: Sequence[str]
) -> Iterator["Dataset"]:
    """Yield the blocks; after the last one, warn about rows in which there is nothing to read."""
    from ftloop.data.encodings import normalize_name
    from ftloop.data.shape import TEXT_TYPES

    empty: list[int] = []
    first_row = 0
    for block in blocks:
        numbers: set[int] = set()
        for column in set(columns) & set(block.column_names):
            feature = block.features[column]
            if not (hasattr(feature, "feature") or getattr(feature, "dtype", None) in TEXT_TYPES):
                continue
            for number, cell in enumerate(block[column], first_row):
                if cell == [] or (isinstance(cell, str) and not normalize_name(cell)):
                    numbers.add(number)
        empty += sorted(numbers)
        first_row += len(block)
        yield block
    if empty:
        logger.warning(
            "%d of %d rows have an empty %s, counted from 0: %s%s. Their predictions mean nothing.",
            len(empty),
            first_row,
            " or ".join(columns),
            ", ".join(map(str, empty[:10])),
            ", ..." if len(empty) > 10 else "",
        )


def read_file(options: "PredictOptions") -> "Dataset":
    """Return the rows of --file. Raises UserError."""
    from ftloop.data.formats import read_files

    with option_names_of_predict():
        rows = read_files(
            {"new": options.file},
            options.format,
            options.options,
            field=options.field,
            query=options.query,
            trust_pickle=options.trust_pickle,
        )["new"]
    if len(rows) == 0:
        raise UserError(f"--file {options.file!r} has no rows.")
    return rows


@contextlib.contextmanager
def option_names_of_predict() -> Iterator[None]:
    """Within the block, spell the options of training in errors as predict.py spells them."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("--data.files", "--file").replace("--data:", "--file:")
        text = text.replace("--data.", "--")
        raise UserError(text) from error


def read_standard_input(options: "PredictOptions", columns: Sequence[str]) -> Iterator["Dataset"]:
    """Yield the rows of standard input in blocks; a block is read when it is needed.

    Raises UserError for a row that cannot be read.
    """
    from datasets import Dataset

    from ftloop.data.tables import to_dataset

    size, format = options.block_size, options.format or "text"
    if format in ("csv", "tsv"):
        separator = "\t" if format == "tsv" else ","
        default = {} if "delimiter" in options.options else {"sep": separator}
        yield from read_csv_blocks(size, {**default, **options.options})
        return
    if format == "text" and len(columns) > 1:
        raise UserError(
            f"a line is one text, but each row of this run has {', '.join(columns)}. Use --format "
            "jsonl, csv or tsv."
        )
    if format == "jsonl":
        rows = read_json_rows(read_lines())
    else:
        rows = ({columns[0]: line} for line in read_lines())
    while block := list(islice(rows, size)):
        with option_names_of_predict():
            yield to_dataset(block) if format == "jsonl" else Dataset.from_list(block)


def read_lines() -> Iterator[str]:
    """Yield the lines of standard input. Raises UserError for invalid UTF-8."""
    for number, line in enumerate(sys.stdin.buffer):
        try:  # the first line may begin with a byte-order mark
            yield line.decode("utf-8" if number else "utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input: line {number} (counted from 0) is not valid UTF-8: {error}. "
                "Convert the input to UTF-8."
            ) from error


def read_json_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line."""
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"standard input: line {number} (counted from 0) is not valid JSON: {error}."
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"standard input: line {number} (counted from 0) is not a JSON object: {line[:80]}"
            )
        yield row


def read_csv_blocks(size: int, options: dict[str, Any]) -> Iterator["Dataset"]:
    """Yield blocks of CSV rows. All cells are texts: the type of a column needs all of its rows."""
    import pandas
    from datasets import Dataset

    from ftloop.data.csv_structure import pandas_warnings
    from ftloop.data.csv_types import split_names
    from ftloop.data.formats import CSV_OPTIONS
    from ftloop.data.reader_errors import explain_error

    options = {**CSV_OPTIONS, **split_names(options), "dtype": str, "chunksize": size}
    try:
        chunks = iter(pandas.read_csv(sys.stdin.buffer, **options))
        while True:
            with pandas_warnings(is_checked=False):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield Dataset.from_pandas(chunk, preserve_index=False)
    except pandas.errors.EmptyDataError:
        return
    # Also ParserError and UnicodeDecodeError; the warning is that a row has too many cells.
    except (ValueError, TypeError, pandas.errors.ParserWarning) as error:
        cause = explain_error(error).replace("--data.", "--")
        raise UserError(f"standard input cannot be read as CSV: {cause}") from error
