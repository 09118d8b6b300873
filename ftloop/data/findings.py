"""What looks like a mistake in the data, and how it reaches the log."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

logger = logging.getLogger("ftloop")

MAX_EXAMPLES = 3  # of a finding
MAX_CHARACTERS = 60  # of a text in an example


@dataclass(frozen=True)
class Finding:
    """A line, or a table, for the log."""

    text: str
    is_mistake: bool = True  # it usually is one, so that --check exits with 1


def log_findings(findings: Iterable[Finding]) -> int:
    """Log findings as they come and return how many of them are mistakes."""
    num_mistakes = 0
    for finding in findings:
        level = logging.WARNING if finding.is_mistake else logging.INFO
        logger.log(level, "data: %s", finding.text)
        num_mistakes += finding.is_mistake
    return num_mistakes


def warn_while_reading(text: str) -> None:
    """Warn about a file that is being read. `--check` counts these warnings as mistakes too."""
    logger.warning("data: %s", text, extra={"is_mistake": True})


class ReadingMistakes(logging.Handler):
    """Counts the warnings of `warn_while_reading`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += getattr(record, "is_mistake", False)


def shorten(text: str) -> str:
    """Return the beginning of a text, short enough for a line of the terminal."""
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."
