"""The rarer commands, on runs that were made by train.py.

python -m ftloop features configs/mrpc.py --out features.parquet --probe        before training, with a linear probe
python -m ftloop features runs/mrpc --split test --out features.parquet         of the kept weights
python -m ftloop verify runs/mrpc                 each row was used once an epoch, over all interruptions
python -m ftloop verify runs/mrpc runs/again      the first step in which two runs differ, and what differed first
"""

import functools
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ftloop.errors import exit_code_of

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
ConfigOrRun = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG|RUN")]
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


def features(
    source: ConfigOrRun,
    out: str,
    split: tuple[str, ...] = ("train", "validation"),
    pooling: Literal["first", "mean"] = "mean",
    at_most: int | None = None,
    pretrained: bool = False,
    probe: bool = False,
    words: Annotated[tuple[str, ...], tyro.conf.Suppress] = (),
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
    from ftloop.features import extract

    print("\n".join(extract(source, words, split, out, pooling, at_most, pretrained, probe)))
    return 0


COMMANDS = {"verify": verify, "features": features}


def main() -> None:
    description = "The rarer commands, on runs that were made by train.py."
    if sys.argv[1:2] == ["features"]:  # it leaves options that it does not know to the config
        later = functools.wraps(features)(lambda *given, **named: functools.partial(features, *given, **named))
        call, words = tyro.cli(later, prog="python -m ftloop features", args=sys.argv[2:], return_unknown_args=True)
        sys.exit(call(words=tuple(words)))
    sys.exit(tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m ftloop", description=description))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
