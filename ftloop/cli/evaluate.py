"""The command evaluate.py: the scores of a finished run on a split of its data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ftloop.cli.options import LogLevel, effective_log_level
from ftloop.errors import TrainingError, UserError
from ftloop.escape import for_terminal


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a finished run on a split of its data."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # Folder of the run.
    split: Literal["train", "validation", "test"] | None = None
    """Split to evaluate. Default: test if the data has it, else validation."""
    batch_size: int | None = None
    """Rows per forward pass on each process (texts on a CPU: at most 4096 tokens). Default: as in
    training."""
    json: bool = False  # Print the scores as one line of JSON.
    trust_code: bool = False
    """Run code outside of ftloop that the record of the run names, such as a task of your own."""
    trust_pickle: bool = False
    """Read pickled data. This runs code that the author of the file chose."""
    report: bool = False  # Write report.html in the folder of the run again.
    log_level: LogLevel = "info"  # Lowest level of the messages besides the scores.
    quiet: bool = False  # Print only the scores, warnings and errors.


def main() -> None:
    options = tyro.cli(EvaluateOptions, prog="evaluate.py")
    level = effective_log_level(options.log_level, options.quiet)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"must be at least 1, but is {options.batch_size}.", field="batch_size")

    from accelerate import PartialState

    from ftloop.logs.summary import format_scores
    from ftloop.logs.terminal import configure_logging
    from ftloop.metric_log import json_scores
    from ftloop.runs.finished import evaluate_run
    from ftloop.runs.trust import allow

    configure_logging(level)
    with allow(code=options.trust_code, pickle=options.trust_pickle):
        scores = evaluate_run(options.run, options.split, options.batch_size)
        if PartialState().is_main_process:
            text = json.dumps(json_scores(scores)) if options.json else format_scores(scores)
            print(for_terminal(text))
            if options.report:
                write_report(Path(options.run))


def write_report(run_dir: Path) -> None:
    """Write report.html in a process of its own. Raises TrainingError if that fails."""
    try:
        from ftloop.report.reporter import write_report_and_wait
    except ModuleNotFoundError as error:
        raise UserError(f"cannot be used: {error}.", field="report") from error
    from ftloop.runs.record import load_config

    if not write_report_and_wait(load_config(run_dir)):
        raise TrainingError("the scores above are valid, but the report could not be written.")
