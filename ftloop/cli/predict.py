"""The command predict.py: label new rows with a finished run, block by block."""

import dataclasses
import logging
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ftloop.cli.exit_codes import signals_to
from ftloop.cli.options import REGISTRY, LogLevel, effective_log_level
from ftloop.errors import Stopped, UserError

RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Inputs = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT|IMAGE|FOLDER|- ...]")
]
OUTPUT_FORMATS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
PLOT_FORMATS = (".png", ".svg", ".pdf")
STDIN_FORMATS = ("text", "jsonl", "csv", "tsv")

logger = logging.getLogger("ftloop")


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
    out: str | None = None
    """File to write: .csv or .jsonl, either with .gz, or .parquet. Default: JSON lines on the
    terminal."""
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


def main() -> None:
    options = tyro.cli(PredictOptions, prog="predict.py", registry=REGISTRY)
    if options.inputs == ("-",) and options.file is None:
        options = replace(options, inputs=(), file="-")
    validate_options(options)

    from accelerate.utils import patch_environment

    from ftloop.logs.terminal import configure_logging

    environment = device_environment(options.device)
    plots = import_plots() if options.plot else None
    configure_logging(effective_log_level(options.log_level, options.quiet))
    with patch_environment(**environment):
        predict(options, plots)


def predict(options: PredictOptions, plots: Any) -> None:
    """Read, predict and write the rows block by block; the memory needed is that of one block.

    Raises Stopped after a signal. A file that was being written is then discarded.
    """
    import datasets
    from tqdm.auto import tqdm

    from ftloop.cli.predict_input import read_blocks
    from ftloop.cli.predict_output import complete_file, make_printable, open_writer
    from ftloop.runs.finished import predict_blocks
    from ftloop.runs.record import load_config

    task = load_config(Path(options.run)).task
    num_rows, plotted_rows = 0, []
    try:
        with signals_to(raise_keyboard_interrupt):
            blocks, total = read_blocks(options, task)
            datasets.disable_progress_bars()  # one bar for all blocks, instead of several per block
            hidden = not shows_progress_bar(options)
            with (
                open_writer(options.out) as write,
                tqdm(total=total, unit="row", disable=hidden) as bar,
            ):
                for block, predictions in predict_blocks(
                    options.run, blocks, options.batch_size, options.precision
                ):
                    if num_rows == 0:
                        log_replaced_columns(block.column_names, predictions[0])
                    rows = [
                        row | prediction
                        for row, prediction in zip(block.to_list(), predictions, strict=True)
                    ]
                    if plots:
                        plotted_rows += rows[: plots.MAX_PANELS - len(plotted_rows)]
                    write([make_printable(row) for row in rows])
                    num_rows += len(rows)
                    bar.update(len(rows))
                if num_rows == 0:
                    raise UserError("standard input has no rows.")
    except KeyboardInterrupt as interrupt:
        signal_name = str(interrupt) or "SIGINT"
        unchanged = "" if options.out is None else f" {options.out} is unchanged."
        raise Stopped(
            f"{signal_name}: stopped after {num_rows} rows.{unchanged}",
            exit_code=130 if signal_name == "SIGINT" else 143,
        ) from None
    if options.out is not None:
        logger.info("%d rows were written to %s.", num_rows, options.out)
    if plots:
        with complete_file(options.plot) as file:
            plots.save_predictions(plotted_rows, task, file, Path(options.plot).suffix[1:])
        logger.info("%d of %d rows are plotted in %s.", len(plotted_rows), num_rows, options.plot)


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
    file_options = {
        "--field": options.field,
        "--query": options.query,
        "--trust-pickle": options.trust_pickle,
    }
    if format not in ("csv", "tsv"):
        file_options["--options"] = options.options
    for option, value in file_options.items():
        if value:
            raise UserError(f"{option} has no effect on standard input in the format {format}.")


def device_environment(device: str) -> dict[str, str]:
    """Return the environment variables that make accelerate use a device.

    Raises UserError for a device that torch does not find on this machine.
    """
    import torch

    accelerator = None
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
    choices = ["auto", "cpu"]
    if accelerator is not None:
        count = torch.accelerator.device_count()
        choices += [accelerator.type, *(f"{accelerator.type}:{index}" for index in range(count))]
    if device not in choices:
        raise UserError(f"--device {device!r} does not exist here. Choices: {', '.join(choices)}.")
    if ":" in device:  # tensors without an explicit device index go there too
        torch.accelerator.set_device_index(torch.device(device).index)
    if device == "cpu":
        return {"ACCELERATE_USE_CPU": "1"}
    return {} if device == "auto" else {"ACCELERATE_TORCH_DEVICE": device}


def import_plots() -> Any:
    """Import ftloop/report/plots.py, which may have been deleted. Raises UserError."""
    try:
        import ftloop.report.plots
    except ModuleNotFoundError as error:
        raise UserError(f"--plot cannot be used: {error}.") from error
    return ftloop.report.plots


def shows_progress_bar(options: PredictOptions) -> bool:
    """Tell whether there is a terminal for a bar, which no predictions are printed on."""
    prints_predictions = options.out is None and sys.stdout.isatty()
    is_verbose = effective_log_level(options.log_level, options.quiet) == "info"
    return sys.stderr.isatty() and not prints_predictions and is_verbose


def log_replaced_columns(columns: list[str], prediction: dict[str, Any]) -> None:
    """Print a line if predictions replace columns of the file."""
    replaced = sorted(set(columns) & prediction.keys())
    if replaced:
        names = ", ".join(map(repr, replaced))
        print(f"The predictions replace these columns of the file: {names}.", file=sys.stderr)


def raise_keyboard_interrupt(number: int, frame: Any) -> None:
    """Let SIGTERM and SIGUSR1 interrupt like Ctrl-C, so that temporary files are removed."""
    raise KeyboardInterrupt(signal.Signals(number).name)
