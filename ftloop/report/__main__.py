"""`python -m ftloop.report RUN` writes the report of a run: what the reporter starts as a process.

On the command line, `python -m ftloop.cli report RUN` does the same and has options.
"""

import logging
import sys

from ftloop.errors import UserError
from ftloop.report.run_report import write_report


def main() -> int:
    """Write the report of the run named by the first argument. Return 2 for a UserError."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        print(write_report(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
