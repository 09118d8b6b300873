"""The command predict.py: label new rows with a finished run, block by block."""

import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from ftloop.cli.exit_codes import signals_to
from ftloop.cli.options import REGISTRY, effective_log_level
from ftloop.cli.predict_options import PredictOptions, validate_options
from ftloop.errors import Stopped, UserError
from ftloop.escape import for_terminal

logger = logging.getLogger("ftloop")


def main() -> None:
    options = tyro.cli(PredictOptions, prog="predict.py", registry=REGISTRY)
    if options.inputs == ("-",) and options.file is None:
        options = replace(options, inputs=(), file="-")
    validate_options(options)

    from accelerate.utils import patch_environment

    from ftloop.logs.terminal import configure_logging
    from ftloop.runs.trust import allow

    environment = device_environment(options.device)
    plots = import_plots() if options.plot else None
    configure_logging(effective_log_level(options.log_level, options.quiet))
    with patch_environment(**environment), allow(code=options.trust_code):
        predict(options, plots)


def predict(options: PredictOptions, plots: Any) -> None:
    """Predict and write the rows block by block; the memory needed is that of one block.

    Raises Stopped after a signal. A file that was being written is then discarded.
    """
    from ftloop.cli.predict_output import make_printable, open_writer
    from ftloop.runs.record import load_config

    # Inputs on the command line are what the model sees; rows of a file are shaped as in training.
    has_file = options.file is not None
    task = load_config(options.run, needs_data=False, shapes_rows=has_file).task
    if plots and not plots.can_draw(task):
        raise UserError(f"--plot shows a prediction per row, which {type(task).__name__} has not.")
    num_rows, plotted_rows = 0, []
    try:
        with signals_to(raise_keyboard_interrupt), open_writer(options.out) as write:
            for rows in iterate_labelled_rows(options, task):
                if plots:
                    plotted_rows += rows[: plots.MAX_PANELS - len(plotted_rows)]
                write([make_printable(row) for row in rows])
                num_rows += len(rows)
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
        save_plot(options.plot, plotted_rows, task, plots)
        logger.info("%d of %d rows are plotted in %s.", len(plotted_rows), num_rows, options.plot)


def iterate_labelled_rows(options: PredictOptions, task: Any) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each block, joined with their predictions, and show a progress bar."""
    import datasets
    from tqdm.auto import tqdm

    from ftloop.cli.predict_input import read_blocks
    from ftloop.runs.finished import predict_blocks

    blocks, total = read_blocks(options, task)
    datasets.disable_progress_bars()  # one bar for all blocks, instead of several per block
    predicted = predict_blocks(options.run, blocks, options.batch_size, options.precision)
    with tqdm(total=total, unit="row", disable=not shows_progress_bar(options)) as bar:
        for index, (block, predictions) in enumerate(predicted):
            if index == 0:
                print_replaced_columns(block.column_names, predictions[0])
            pairs = zip(block.to_list(), predictions, strict=True)
            yield [row | prediction for row, prediction in pairs]
            bar.update(len(block))


def save_plot(name: str, rows: list[dict[str, Any]], task: Any, plots: Any) -> None:
    """Write the plot of some labelled rows."""
    from ftloop.cli.predict_output import complete_file

    with complete_file(name) as stream:
        plots.save_predictions(rows, task, stream, Path(name).suffix[1:])


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


def print_replaced_columns(columns: list[str], prediction: dict[str, Any]) -> None:
    """Print a line if predictions replace columns of the file."""
    replaced = sorted(set(columns) & prediction.keys())
    if replaced:
        names = ", ".join(map(repr, replaced))
        text = f"The predictions replace these columns of the file: {names}."
        print(for_terminal(text), file=sys.stderr)


def raise_keyboard_interrupt(number: int, frame: Any) -> None:
    """Let SIGTERM and SIGUSR1 interrupt like Ctrl-C, so that temporary files are removed."""
    raise KeyboardInterrupt(signal.Signals(number).name)
