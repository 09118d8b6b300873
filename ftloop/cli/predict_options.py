"""The options of predict.py, and their validation."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ftloop.cli.options import LogLevel, effective_log_level
from ftloop.errors import UserError

RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Inputs = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT|IMAGE|FOLDER|- ...]")
]
OUTPUT_FORMATS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
PLOT_FORMATS = (".png", ".svg", ".pdf")
STDIN_FORMATS = ("text", "jsonl", "csv", "tsv")


@dataclass(frozen=True)
class PredictOptions:
    """Label new rows with a finished run: inputs on the command line, a file, or standard input."""

    run: RunFolder  # Folder of the run.
    inputs: Inputs = ()
    """Texts, one per row (two per row for sentence pairs), or image files and folders of images. A
    single - stands for standard input."""
    file: str | None = None
    """File of rows, in any format that training reads, with the columns of the task. - stands for
    standard input."""
    format: str | None = None
    """Format of the file. Default: by its ending. For standard input: text (a row per line, which
    is the default), jsonl, csv or tsv."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options for the reader of the file, for example: sep ; quoting 3"""
    field: tuple[str, ...] = ()
    """Key of the rows in nested JSON or in a pickled dictionary, as --data.field in training."""
    query: str | None = None  # SQL query for an SQLite file.
    trust_pickle: bool = False
    """Read a pickled file. This runs code that the author of the file chose."""
    trust_code: bool = False
    """Run code outside of ftloop that the record of the run names, such as a task of your own."""
    out: str | None = None
    """File to write: .csv or .jsonl, either with .gz, or .parquet. In CSV, texts that a spreadsheet
    takes for a formula get an apostrophe. Default: JSON lines on the terminal."""
    plot: str | None = None
    """File for a plot of the probabilities of the first rows: .png, .svg or .pdf. Default: none."""
    batch_size: int = 64  # Rows per forward pass (texts on a CPU: at most 4096 tokens).
    block_size: int = 4096
    """Rows that are read, sorted by length and written together. 1 answers each row at once."""
    device: str = "auto"  # Device: cpu, cuda, cuda:1, mps, .... Default: the first accelerator.
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the forward pass. Default: that of the run."""
    log_level: LogLevel = "info"  # Lowest level of the messages besides the predictions.
    quiet: bool = False  # Print only predictions, warnings and errors.


def validate_options(options: PredictOptions) -> None:
    """Raise UserError for options that cannot work."""
    effective_log_level(options.log_level, options.quiet)
    if bool(options.inputs) == bool(options.file):
        raise UserError(
            "give either inputs (texts, or images for an image run) or a file by --file."
        )
    if "-" in options.inputs:
        raise UserError("- stands for standard input and cannot be combined with other inputs.")
    validate_file_name("--out", options.out, OUTPUT_FORMATS)
    validate_file_name("--plot", options.plot, PLOT_FORMATS)
    for name in ("batch_size", "block_size"):
        if getattr(options, name) < 1:
            raise UserError(f"must be at least 1, but is {getattr(options, name)}.", field=name)
    if options.file == "-":
        validate_stdin_options(options)
    elif options.file is None:
        for option, value in {"--format": options.format, **reader_options(options)}.items():
            if value and option != "--trust-pickle":
                raise UserError(f"{option} has no effect without --file.")


def validate_file_name(option: str, name: str | None, endings: tuple[str, ...]) -> None:
    """Raise UserError for a file that cannot be written."""
    if name is None:
        return
    if not name.endswith(endings):
        raise UserError(f"{option} {name!r}: the ending must be one of {', '.join(endings)}.")
    if not Path(name).absolute().parent.is_dir():
        raise UserError(f"{option} {name!r}: the folder {str(Path(name).parent)!r} does not exist.")
    if Path(name).is_dir():
        raise UserError(f"{option} {name!r} is a folder: give the name of a file.")


def validate_stdin_options(options: PredictOptions) -> None:
    """Raise UserError for options that have no effect on standard input."""
    format = options.format or "text"
    if format not in STDIN_FORMATS:
        raise UserError(
            f"--format {format!r}: standard input must be one of {', '.join(STDIN_FORMATS)}."
        )
    file_options = reader_options(options)
    if format in ("csv", "tsv"):
        del file_options["--options"]
    for option, value in file_options.items():
        if value:
            raise UserError(f"{option} has no effect on standard input in the format {format}.")


def reader_options(options: PredictOptions) -> dict[str, Any]:
    """Return the options that only reading a file uses, as they are spelled."""
    return {
        "--options": options.options,
        "--field": options.field,
        "--query": options.query,
        "--trust-pickle": options.trust_pickle,
    }
