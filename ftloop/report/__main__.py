"""`python -m ftloop.report RUN` writes the report of a run: what the reporter starts as a process.

It takes --trust-code and --trust-pickle. `python -m ftloop.cli report RUN` does the same for a
person, and has more options.
"""

import logging
import sys

from ftloop.errors import UserError
from ftloop.escape import for_terminal
from ftloop.report.run_report import write_report
from ftloop.runs.trust import allow


class TerminalFormatter(logging.Formatter):
    """Formats log records for a terminal: they may quote texts of the data."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


def main() -> int:
    """Write the report of the run named by the first argument. Return 2 for a UserError."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(TerminalFormatter())
    try:
        run_dir, *options = sys.argv[1:]
        with allow(code="--trust-code" in options, pickle="--trust-pickle" in options):
            print(for_terminal(write_report(run_dir)))
    except UserError as error:
        print(for_terminal(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
