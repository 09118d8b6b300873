"""The rarer commands, on runs that were made by train.py.

python -m ftloop verify runs/mrpc                 each row was used once an epoch, over all interruptions
python -m ftloop verify runs/mrpc runs/again      the first step in which two runs differ, and what differed first
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ftloop.errors import exit_code_of

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
OtherRun = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OTHER]")]


def verify(run: RunFolder, other: OtherRun = None) -> int:
    """Prove from its ledger what a run did, or find the first step in which two runs differ.

    One run: each step used the rows of the plan, and so each row was used once an epoch. Two runs: did the data, the
    loss or the weights differ first? (The weights are known where both runs had --digest-every.) Exits with 1 if
    anything is wrong, or differs.

    Args:
        run: folder of the run
        other: folder of another run, to compare
    """
    from ftloop.verify import Wrong, compare, prove

    try:
        fine, lines = (True, prove(run)) if other is None else compare(run, other)
    except Wrong as wrong:
        fine, lines = False, [f"wrong     {wrong}"]
    print("\n".join(lines))
    return 0 if fine else 1


COMMANDS = {"verify": verify}


def main() -> None:
    description = "The rarer commands, on runs that were made by train.py."
    sys.exit(tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m ftloop", description=description))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
