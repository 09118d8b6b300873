"""The rarer commands, on runs that were made by train.py.

python -m ftloop verify runs/mrpc                 each row was used once an epoch, over all interruptions
python -m ftloop verify runs/mrpc runs/again      the first step in which two runs differ, and what differed first
python -m ftloop card runs/mrpc                   the model card anew, with intervals and the confusion matrix
python -m ftloop push runs/mrpc me/mrpc           model/ and the report to a repository of the Hub, made if need be
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


def card(run: RunFolder, overwrite: bool = False) -> int:
    """Write the model card of a finished run, RUN/model/README.md, with 95 % intervals and the confusion matrix.

    A training writes it too. What only a person knows is marked: [to be filled: ...]. A card that was edited stays.

    Args:
        run: folder of the run
        overwrite: also a card that somebody has edited
    """
    from ftloop.hub.card import write

    print(write(run, compute=True, overwrite=overwrite))
    return 0


def push(
    run: RunFolder,
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")],
    private: bool = False,
    revision: str | None = None,
    report: bool = True,
    overwrite_card: bool = False,
) -> int:
    """Upload model/ of a finished run to the Hub, with report.html if there is one, in one commit.

    The token is that of HF_TOKEN, or of `hf auth login`; it is kept nowhere and printed never. A push that was
    interrupted is given again: it sends only what is missing.

    Args:
        run: folder of the run
        repository: NAME or NAMESPACE/NAME; made if it does not exist
        private: a repository that is made is seen by you alone; one that exists must be private
        revision: branch, made if it does not exist; left out, main
        report: report.html too, which shows rows of the data
        overwrite_card: also a model card that somebody has edited on the Hub
    """
    from ftloop.hub.push import push

    print("\n".join(push(run, repository, private, revision, report, overwrite_card)))
    return 0


COMMANDS = {"verify": verify, "card": card, "push": push}


def main() -> None:
    description = "The rarer commands, on runs that were made by train.py."
    sys.exit(tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m ftloop", description=description))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
