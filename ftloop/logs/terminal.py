"""Log lines on the terminal: above a progress bar, colored by level, from the main process only."""

import logging
import os
import sys
from typing import TextIO

from tqdm.auto import tqdm

from ftloop.escape import for_terminal
from ftloop.extensions import Setup

logger = logging.getLogger("ftloop")


class TerminalSetup(Setup):
    """Shows the log lines of a run on the terminal. While it runs, the libraries draw no bars."""

    def __init__(self, level: str = "info"):
        """`level`: the lowest level that is shown: debug, info, warning or error."""
        import datasets
        import transformers

        self.transformers_had_bars = transformers.utils.logging.is_progress_bar_enabled()
        self.datasets_had_bars = not datasets.are_progress_bars_disabled()
        configure_logging(level)

    def undo(self) -> None:
        """Let transformers and datasets draw progress bars again, if they did before."""
        import datasets
        import transformers

        if self.transformers_had_bars:
            transformers.utils.logging.enable_progress_bar()
        if self.datasets_had_bars:
            datasets.enable_progress_bars()


def terminal_stream() -> TextIO:
    """Return standard error or, in a notebook, which shows that in red, standard output."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    in_notebook = shell is not None and "IPKernelApp" in shell.config
    return sys.stdout if in_notebook else sys.stderr


def colored(text: str, color: str, stream: TextIO) -> str:
    """Return `text` in red, yellow or green, if the stream shows colors (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    code = {"red": 31, "green": 32, "yellow": 33}[color]
    return f"\033[{code}m{text}\033[0m"


class TerminalHandler(logging.Handler):
    """Prints log records above a progress bar, with their level unless it is info.

    Texts of the data may be part of a record, so all of it is escaped. A record with the attribute
    `highlighted` ends with this word, which is shown in green.
    """

    def emit(self, record: logging.LogRecord) -> None:
        stream, text = terminal_stream(), for_terminal(self.format(record))
        highlighted = getattr(record, "highlighted", "")  # the last word of the message
        if highlighted:
            text = text.removesuffix(highlighted) + colored(highlighted, "green", stream)
        if record.levelno != logging.INFO:
            color = "red" if record.levelno > logging.WARNING else "yellow"
            text = f"{colored(record.levelname.lower() + ':', color, stream)} {text}"
        if stream.isatty():
            tqdm.write(text, file=stream)
        else:  # tqdm.write would draw the bar again, and a file would keep each drawing
            print(text, file=stream)


def configure_logging(level: str | None = None, is_main_process: bool | None = None) -> None:
    """Show the records of the logger "ftloop" on the main process, from a level on.

    A program that has configured the logger itself keeps its configuration. Progress bars of
    transformers and, in a pipe or below the level info, of datasets are switched off.

    level: debug, info, warning or error; None keeps the level, which is info at first.
    is_main_process: None means that RANK decides.
    """
    import datasets
    import transformers

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

    transformers.utils.logging.disable_progress_bar()  # of reading weights, which takes a second
    if not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO):
        datasets.disable_progress_bars()  # in a pipe, those of tokenizing would fill the log
