"""Label new rows or images with a finished run.

python predict.py runs/quickstart "Return the mean of an array along an axis."
python predict.py runs/mrpc "He left." "He went away."                          a pair task takes two texts a row
python predict.py runs/digits a.png scans/*.jpg                                 an image run takes images, and folders
python predict.py runs/quickstart --file new.csv --out labelled.csv             any format that training reads
python predict.py runs/quickstart --file new.jsonl.gz --out labelled.parquet
python predict.py runs/quickstart - < lines.txt                                 standard input: a text a line, or
zcat new.jsonl.gz | python predict.py runs/quickstart - --format jsonl --out labelled.jsonl.gz
python predict.py runs/digits scans --plot bars.png                             a picture of the probabilities too

Rows are read, labelled and written block by block, so that any number of them takes the memory of one block.
"""

import contextlib
import csv
import gzip
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import tyro

from ftloop.errors import Stopped, UserError, exit_code_of, root_cause, signals_to
from ftloop.cli.options import LogLevel, Pairs, least_said, no_pairs

if TYPE_CHECKING:
    from datasets import Dataset

    from ftloop.tasks.classification import Task

RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Inputs = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT|IMAGE|FOLDER|- ...]")]
Write = Callable[[list[dict[str, Any]]], None]

logger = logging.getLogger("ftloop")
OUT = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
PLOT = (".png", ".svg", ".pdf")
LINES = ("text", "jsonl", "csv", "tsv")  # what standard input may be


@dataclass(frozen=True)
class Options:
    """Label new rows with a finished run: those of the command line to the terminal, or a file to a file."""

    run: RunFolder  # folder of the run
    inputs: Inputs = ()  # texts, one per row, two for sentence pairs; or image files and folders; - for standard input
    file: str | None = None  # rows in any format that training reads, with the columns of the task; - as above
    format: str | None = None  # left out: by the ending of the file; of -, text (a line each), or jsonl, csv, tsv
    options: Pairs = no_pairs()  # for the reader of the file: sep ; quoting 3
    field: tuple[str, ...] = ()  # as --task.data.field, of nested JSON and pickled dictionaries
    query: str | None = None  # of an SQLite file
    trust_pickle: bool = False  # read a pickled file, which runs code of whoever wrote it
    out: str | None = None  # .csv, .jsonl, either with .gz, or .parquet; left out: the terminal, as JSON lines
    plot: str | None = None  # .png, .svg or .pdf: bars of the probabilities of the first rows, at most 12
    batch_size: int = 64  # rows per forward pass (CPUs: 4096 tokens at most)
    block_size: int = 4096  # rows that are read, sorted by length and written together; 1 answers each as it comes
    device: str = "auto"  # cpu, cuda, cuda:1, mps, ..; auto: the first that is there
    precision: Literal["fp32", "bf16", "fp16"] | None = None  # left out: that of the run
    log_level: LogLevel = "info"  # the least that is said besides the predictions
    quiet: bool = False  # only the predictions, warnings and errors: --log-level warning


def main() -> None:
    options = tyro.cli(Options, prog="predict.py")
    if options.inputs == ("-",) and options.file is None:
        options = replace(options, inputs=(), file="-")
    check(options)

    import datasets
    from accelerate.utils import patch_environment
    from tqdm.auto import tqdm

    from ftloop.config import read_record
    from ftloop.evaluation import predict_blocks
    from ftloop.logs.terminal import set_up_logging

    environment = environment_of(options.device)
    plots = load_plots() if options.plot else None
    level = least_said(options.log_level, options.quiet)
    set_up_logging(is_main_process=True, level=level)
    task = read_record(Path(options.run)).task
    done, drawn = 0, []
    hidden = not sys.stderr.isatty() or (options.out is None and sys.stdout.isatty()) or level != "info"
    try:
        with signals_to(interrupt), patch_environment(**environment):
            blocks, total = blocks_to_label(options, task)
            datasets.disable_progress_bars()  # of what is done to each block: there is one for all of them
            with output(options.out) as write, tqdm(total=total, unit="row", disable=hidden) as bar:
                for block, predictions in predict_blocks(options.run, blocks, options.batch_size, options.precision):
                    rows = [row | answer for row, answer in zip(block.to_list(), predictions, strict=True)]
                    replaced = sorted(set(block.column_names) & predictions[0].keys())
                    if replaced and not done:
                        names = ", ".join(map(repr, replaced))
                        print(f"of the file, {names} gave way to the prediction", file=sys.stderr)
                    if plots:
                        drawn += rows[: plots.MOST_PANELS - len(drawn)]
                    write([{name: shown(cell) for name, cell in row.items()} for row in rows])
                    done += len(rows)
                    bar.update(len(rows))
                if not done:
                    raise UserError("standard input has no rows")
    except KeyboardInterrupt as stop:
        name = str(stop) or "SIGINT"
        left = "" if options.out is None else f"; {options.out} is as it was before"
        raise Stopped(f"{name}: stopped after {done} rows{left}", 130 if name == "SIGINT" else 143) from None
    if options.out is not None:
        logger.info("%d rows labelled in %s", done, options.out)
    if plots:
        with aside(options.plot) as file:
            plots.save(drawn, task, file, Path(options.plot).suffix[1:])
        logger.info("%d of %d rows drawn in %s", len(drawn), done, options.plot)


def check(options: Options) -> None:
    """Raise UserError for options that cannot work."""
    if bool(options.inputs) == bool(options.file):
        raise UserError("give texts, or a file by --file, one of the two (of an image run: images)")
    if "-" in options.inputs:
        raise UserError("- stands for standard input, and for it alone: give no texts or images beside it")
    if options.out is not None and not options.out.endswith(OUT):
        raise UserError(f"--out {options.out!r}: its ending must be one of {', '.join(OUT)}")
    if options.plot is not None and not options.plot.endswith(PLOT):
        raise UserError(f"--plot {options.plot!r}: its ending must be one of {', '.join(PLOT)}")
    for option, name in (("--out", options.out), ("--plot", options.plot)):
        if name is not None and not Path(name).absolute().parent.is_dir():
            raise UserError(f"{option} {name!r}: there is no folder {str(Path(name).parent)!r}")
        if name is not None and Path(name).is_dir():
            raise UserError(f"{option} {name!r} is a folder: give the name of a file")
    for option, number in (("--batch-size", options.batch_size), ("--block-size", options.block_size)):
        if number < 1:
            raise UserError(f"{option} {number}: at least 1 is needed")
    if options.file == "-":
        if (options.format or "text") not in LINES:
            raise UserError(f"--format {options.format!r}: standard input is one of {', '.join(LINES)}")
        reading = {"--field": options.field, "--query": options.query, "--trust-pickle": options.trust_pickle}
        if options.format not in ("csv", "tsv"):
            reading["--options"] = options.options
        for option, given in reading.items():
            if given:
                raise UserError(f"{option} has no effect on standard input as {options.format or 'text'}")


def environment_of(device: str) -> dict[str, str]:
    """The variables by which accelerate takes the device. Raises UserError for one that torch does not see here."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = ["auto", "cpu"]
    if found is not None:
        here += [found.type, *(f"{found.type}:{index}" for index in range(torch.accelerator.device_count()))]
    if device not in here:
        raise UserError(f"--device {device!r}: there is no such device here; the choices are {', '.join(here)}")
    if ":" in device:  # what names no device goes there too
        torch.accelerator.set_device_index(torch.device(device).index)
    if device == "cpu":
        return {"ACCELERATE_USE_CPU": "1"}
    return {} if device == "auto" else {"ACCELERATE_TORCH_DEVICE": device}


def load_plots() -> Any:
    """ftloop/report/plots.py, which a fork may have deleted."""
    try:
        import ftloop.report.plots
    except ModuleNotFoundError as error:
        lost = "this copy of ftloop has no plots.py" if error.name == "ftloop.report.plots" else str(error)
        raise UserError(f"--plot: {lost}") from error
    return ftloop.report.plots


def interrupt(number: int, _: Any) -> None:
    """SIGTERM and SIGUSR1 interrupt as Ctrl-C does, wherever the process is; what they interrupt tidies up."""
    raise KeyboardInterrupt(signal.Signals(number).name)


# ---- rows in


def blocks_to_label(options: Options, task: "Task") -> tuple[Iterable["Dataset"], int | None]:
    """The rows in blocks, and how many there are, where that is known. Raises UserError."""
    from datasets import Dataset

    from ftloop.evaluation import blocks_of

    if options.file == "-":
        return placed(standard_input(options, task.input_columns), task, Path()), None
    if options.file:
        rows = read_rows(options)
        return placed(blocks_of(rows, options.block_size), task, Path(options.file).expanduser().parent), len(rows)
    given, columns = task.given(options.inputs), task.input_columns  # what the model sees, as it is
    if len(given) % len(columns):
        raise UserError(f"{len(given)} text(s), but the run reads {len(columns)} a row: {', '.join(columns)}")
    rows = Dataset.from_dict({name: list(given[place :: len(columns)]) for place, name in enumerate(columns)})
    return blocks_of(rows, options.block_size), len(rows)


def placed(blocks: Iterable["Dataset"], task: "Task", folder: Path) -> Iterator["Dataset"]:
    """The blocks in the shape that training gave its rows; what is to be said of their columns is said of the first."""
    for number, block in enumerate(blocks):
        level = logger.level
        logger.setLevel(logging.WARNING if number else level)
        try:
            rows = task.place(block, folder)
        finally:
            logger.setLevel(level)
        yield rows


def read_rows(options: Options) -> "Dataset":
    """The rows of the file. Raises UserError."""
    from ftloop.data.formats import read_files

    with names_of_options():
        how = {"field": options.field, "query": options.query, "trust_pickle": options.trust_pickle}
        rows = read_files({"new": options.file}, options.format, options.options, **how)["new"]
    if len(rows) == 0:
        raise UserError(f"--file {options.file!r} has no rows")
    return rows


@contextlib.contextmanager
def names_of_options() -> Iterator[None]:
    """The readers name the options of training."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("--data.files", "--file").replace("--data:", "--file:")
        raise UserError(text.replace("--data.", "--")) from error


def standard_input(options: Options, columns: tuple[str, ...]) -> Iterator["Dataset"]:
    """The rows of standard input in blocks, each read when it is asked for. Raises UserError."""
    from datasets import Dataset

    from ftloop.data.tables import to_dataset

    size, format = options.block_size, options.format or "text"
    if format in ("csv", "tsv"):
        yield from csv_blocks(size, {"sep": "\t" if format == "tsv" else ",", **options.options})
        return
    if format == "text" and len(columns) > 1:
        raise UserError(f"a line is one text, but the run reads {', '.join(columns)}: --format jsonl, csv or tsv")
    read = json_rows(text_lines()) if format == "jsonl" else ({columns[0]: line} for line in text_lines())
    while rows := list(islice(read, size)):
        with names_of_options():
            yield to_dataset(rows) if format == "jsonl" else Dataset.from_list(rows)


def text_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer):
        try:
            yield line.decode("utf-8" if number else "utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: row {number}, counted from 0, is not in UTF-8: {error}") from error


def json_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"standard input: line {number}, counted from 0, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"standard input: line {number}, counted from 0, is no object: {line[:80]}")
        yield row


def csv_blocks(size: int, options: dict[str, Any]) -> Iterator["Dataset"]:
    """All cells are texts: what a column holds cannot be decided from some of its rows."""
    import pandas
    from datasets import Dataset

    for name in ("names", "usecols"):  # as words with commas
        if isinstance(options.get(name), str):
            options[name] = options[name].split(",")
    try:
        for chunk in pandas.read_csv(sys.stdin.buffer, dtype=str, keep_default_na=False, chunksize=size, **options):
            yield Dataset.from_pandas(chunk, preserve_index=False)
    except pandas.errors.EmptyDataError:
        return
    except (ValueError, TypeError) as error:  # also ParserError and UnicodeDecodeError
        raise UserError(f"standard input cannot be read as CSV: {root_cause(error)}") from error


# ---- rows out


def shown(cell: Any) -> Any:
    """Of a file within a cell, its name or size, not its bytes."""
    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:
        return cell["path"] or shown(cell["bytes"])
    return f"{len(cell)} bytes" if isinstance(cell, bytes) else cell


@contextlib.contextmanager
def aside(name: str) -> Iterator[Path]:
    """A file to write, which gets its name when it is whole, and is deleted if it does not become so."""
    target = Path(name).resolve()
    if target.exists() and not target.is_file():  # a pipe has nobody to rename it for
        yield target
        return
    file = target.with_name(target.name + ".tmp")
    try:
        yield file
        with file.open("rb+") as written:
            os.fsync(written.fileno())
        file.replace(target)
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def output(name: str | None) -> Iterator[Write]:
    """A function that writes some rows, by the ending of the file; None: JSON lines to the terminal."""
    if name is None:
        yield jsonl_writer(sys.stdout)
        return
    with aside(name) as file:
        if name.endswith(".parquet"):
            with parquet_writer(file) as write:
                yield write
            return
        opened = gzip.open if name.endswith(".gz") else open
        with opened(file, "wt", encoding="utf-8", newline="") as stream:
            yield (csv_writer if ".csv" in name[-7:] else jsonl_writer)(stream)


def jsonl_writer(stream: TextIO) -> Write:
    def write(rows: list[dict[str, Any]]) -> None:
        stream.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        stream.flush()

    return write


def csv_writer(stream: TextIO) -> Write:
    """One column per probability ("probability_joy"); several labels of a row are joined by a comma."""
    writer = csv.DictWriter(stream, fieldnames=[])

    def write(rows: list[dict[str, Any]]) -> None:
        flat = []
        for row in rows:
            probabilities = {f"probability_{name}": value for name, value in row.get("probabilities", {}).items()}
            kept = {name: value for name, value in row.items() if name != "probabilities"}
            flat.append(
                {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in kept.items()}
                | probabilities
            )
        if not writer.fieldnames:
            writer.fieldnames = list(flat[0])
            writer.writeheader()
        require_same_columns(writer.fieldnames, flat[0])
        writer.writerows(flat)
        stream.flush()

    return write


@contextlib.contextmanager
def parquet_writer(file: Path) -> Iterator[Write]:
    """A row group a block; probabilities and labels are a struct and a list."""
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        made: list[Any] = []

        def write(rows: list[dict[str, Any]]) -> None:
            if not made:
                schema = pyarrow.Table.from_pylist(rows).schema
                for place, column in enumerate(schema):  # nothing in it so far: a later row may hold a text
                    if pyarrow.types.is_null(column.type):
                        schema = schema.set(place, column.with_type(pyarrow.string()))
                made.append(stack.enter_context(pyarrow.parquet.ParquetWriter(file, schema)))
            (writer,) = made
            require_same_columns(writer.schema.names, rows[0])
            try:
                writer.write_table(pyarrow.Table.from_pylist(rows, writer.schema))
            except (pyarrow.ArrowException, OverflowError) as error:
                raise UserError(f"--out: rows do not have the types of those before: {root_cause(error)}") from error

        yield write


def require_same_columns(names: Iterable[str], row: dict[str, Any]) -> None:
    """Raise UserError for a block whose columns are not those of the first: a table has one head."""
    odd = sorted(set(names) ^ row.keys())
    if odd:
        raise UserError(f"--out: some rows have the column(s) {', '.join(odd)}, and others not: write them as .jsonl")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
