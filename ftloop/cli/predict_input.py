"""The rows that predict.py labels: from the command line, a file, or standard input."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError, root_cause

if TYPE_CHECKING:
    from datasets import Dataset

    from ftloop.cli.predict_options import PredictOptions
    from ftloop.tasks.predictor import Predictor

logger = logging.getLogger("ftloop")


def read_blocks(options: "PredictOptions", task: Any) -> tuple[Iterable["Dataset"], int | None]:
    """Return the rows in blocks, and their number where it is known. Raises UserError."""
    from datasets import Dataset

    from ftloop.runs.finished import split_into_blocks
    from ftloop.tasks.predictor import build_predictor

    predictor, columns = build_predictor(task), task.input_columns
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
        yield from read_csv_blocks(size, {"sep": separator, **options.options})
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
    """Yield the lines of standard input."""
    for number, line in enumerate(sys.stdin.buffer):
        try:
            yield line.decode("utf-8" if number else "utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input: row {number} (counted from 0) is not valid UTF-8: {error}."
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

    for name in ("names", "usecols"):  # on the command line, words with commas
        if isinstance(options.get(name), str):
            options[name] = options[name].split(",")
    try:
        for chunk in pandas.read_csv(
            sys.stdin.buffer, dtype=str, keep_default_na=False, chunksize=size, **options
        ):
            yield Dataset.from_pandas(chunk, preserve_index=False)
    except pandas.errors.EmptyDataError:
        return
    except (ValueError, TypeError) as error:  # also ParserError and UnicodeDecodeError
        raise UserError(f"standard input cannot be read as CSV: {root_cause(error)}.") from error
