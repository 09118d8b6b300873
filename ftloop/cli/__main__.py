"""The rarer commands, before and after train.py.

python -m ftloop explore configs/text.py --task.data.path my.csv    a page about the data, before training
python -m ftloop report runs/mrpc                 runs/mrpc/report.html, written anew; also while it trains
python -m ftloop compare runs/mrpc runs/other     a page about what differs between runs
python -m ftloop features configs/mrpc.py --out features.parquet --probe        before training, with a linear probe
python -m ftloop features runs/mrpc --split test --out features.parquet         of the kept weights
python -m ftloop verify runs/mrpc                 each row was used once an epoch, over all interruptions
python -m ftloop verify runs/mrpc runs/again      the first step in which two runs differ, and what differed first
python -m ftloop card runs/mrpc                   the model card anew, with intervals and the confusion matrix
python -m ftloop push runs/mrpc me/mrpc           model/ and the report to a repository of the Hub, made if need be
"""

import functools
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ftloop.errors import exit_code_of

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
RunFolders = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")]
ConfigFile = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
ConfigOrRun = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG|RUN")]
Rest = Annotated[tuple[str, ...], tyro.conf.Suppress]  # options that the command does not know
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
    from ftloop.provenance.verify import Wrong, compare, prove

    try:
        fine, lines = (True, prove(run)) if other is None else compare(run, other)
    except Wrong as wrong:
        fine, lines = False, [f"wrong     {wrong}"]
    print("\n".join(lines))
    return 0 if fine else 1


def report(run: RunFolder, out: Path | None = None, search: int | None = None) -> int:
    """Write the report of a run: one page with its scores, curves, mistakes, data and config, for any browser.

    Of a run that still trains, its curves, data and config.

    Args:
        run: folder of the run
        out: the file to write; left out: report.html in the folder of the run
        search: rows of train that are searched for wrong labels; left out: what takes some seconds
    """
    from ftloop.report.run_report import forget_launcher, write

    forget_launcher()
    set_up_logging()
    print(write(run, out, search))
    return 0


def explore(config: ConfigFile, out: Path | None = None, words: Rest = ()) -> int:
    """Write a page about the data of a config, before training: classes, lengths or sizes, rows, and what looks wrong.

    Words after the config that are none of the options below are options of the config, as for train.py.

    Args:
        config: a config file
        out: the file to write; left out: NAME-explore.html beside the folder of the run
    """
    from ftloop.config import from_command_line
    from ftloop.report.explore import write

    found = from_command_line([config, *words])
    set_up_logging()
    print(write(found, out))
    return 0


def compare(runs: RunFolders, out: Path = Path("compare.html")) -> int:
    """Write a page about several runs: what differs in their configs, curves, scores, and row by row.

    Args:
        runs: folders of the runs; each is compared with the first
        out: the file to write
    """
    from ftloop.report.compare import write

    set_up_logging()
    print(write(runs, out))
    return 0


def set_up_logging() -> None:
    """Lines of the libraries and ours, as in training; importing torch for it takes a second."""
    from ftloop.logs.terminal import set_up_logging

    set_up_logging(is_main_process=True)


def features(
    source: ConfigOrRun,
    out: str,
    split: tuple[str, ...] = ("train", "validation"),
    pooling: Literal["first", "mean"] = "mean",
    at_most: int | None = None,
    pretrained: bool = False,
    probe: bool = False,
    words: Rest = (),
) -> int:
    """Write what the body of a model makes of each row to a Parquet file: split, row, label, features.

    Of a config, the pretrained model, before training; words after the config that are none of the options below are
    options of the config, as for train.py. Of a finished run, its kept weights.

    Args:
        source: a config file, or the folder of a finished run
        out: the file to write, NAME.parquet
        split: the splits to write
        pooling: of the last hidden states: of the first token (or class token), or their mean without padding
        at_most: rows of a split, chosen at random by the seed of the config
        pretrained: of a run, the model that its training began with
        probe: fit a logistic regression, and a dummy that knows the majority alone, on train; print their scores
    """
    from ftloop.report.features import extract

    print("\n".join(extract(source, words, split, out, pooling, at_most, pretrained, probe)))
    return 0


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


COMMANDS = {
    **{"explore": explore, "report": report, "compare": compare, "features": features, "verify": verify},
    **{"card": card, "push": push},
}
OF_A_CONFIG = ("explore", "features")  # they leave the options that they do not know to the config


def main() -> None:
    description = "The rarer commands, before and after train.py."
    name = sys.argv[1] if sys.argv[1:] else ""
    if name in OF_A_CONFIG:
        command = COMMANDS[name]
        later = functools.wraps(command)(lambda *given, **named: functools.partial(command, *given, **named))
        call, words = tyro.cli(later, prog=f"python -m ftloop {name}", args=sys.argv[2:], return_unknown_args=True)
        sys.exit(call(words=tuple(words)))
    sys.exit(tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m ftloop", description=description))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
