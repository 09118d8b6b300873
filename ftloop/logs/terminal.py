"""Log lines on the terminal: above a progress bar, colored by level, from the main process only."""

import logging
import os
import sys
from typing import TextIO

from tqdm.auto import tqdm

from ftloop.extensions import Setup

logger = logging.getLogger("ftloop")


class TerminalSetup(Setup):
    """Shows the log lines of a run on the terminal, from a level on: debug, info, warning or error."""

    def __init__(self, level: str = "info"):
        configure_logging(level)


def terminal_stream() -> TextIO:
    """Return standard error or, in a notebook, which shows that in red, standard output."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    in_notebook = shell is not None and "IPKernelApp" in shell.config
    return sys.stdout if in_notebook else sys.stderr


def colored(text: str, color: str, stream: TextIO) -> str:
    """Return `text` in red, yellow or green if `stream` is a terminal with colors (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    code = {"red": 31, "green": 32, "yellow": 33}[color]
    return f"\033[{code}m{text}\033[0m"


class TerminalHandler(logging.Handler):
    """Prints log records above a progress bar. Those that are not information start with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        stream, text = terminal_stream(), self.format(record)
        if record.levelno != logging.INFO:
            color = "red" if record.levelno > logging.WARNING else "yellow"
            text = f"{colored(record.levelname.lower() + ':', color, stream)} {text}"
        if stream.isatty():
            tqdm.write(text, file=stream)
        else:  # tqdm.write would draw the bar again, and a file would keep each drawing
            print(text, file=stream)


def configure_logging(level: str | None = None, is_main_process: bool | None = None) -> None:
    """Show the records of the logger "ftloop" on the main process, from a level on.

    level: debug, info, warning or error; None keeps the level, which is info at first. A program that
    has configured the logger itself keeps its configuration. is_main_process: None asks RANK.
    """
    if not logger.handlers:
        logger.addHandler(TerminalHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    if level is not None and any(isinstance(item, TerminalHandler) for item in logger.handlers):
        logger.setLevel(level.upper())
    if is_main_process is None:
        is_main_process = os.environ.get("RANK", "0") == "0"
    if not is_main_process:
        logger.setLevel(logging.CRITICAL)
    import datasets
    import transformers

    transformers.logging.disable_progress_bar()  # it would show one second of reading weights
    if not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO):
        datasets.disable_progress_bars()  # in a pipe, those of tokenizing would fill the log
