"""Commands before and after training.

python -m ftloop.cli explore configs/text.py --data my.csv   a page about the data
python -m ftloop.cli report runs/mrpc                        write report.html again
python -m ftloop.cli compare runs/mrpc runs/other            a page about the differences of runs
python -m ftloop.cli features configs/mrpc.py --out f.parquet --probe     pretrained features
python -m ftloop.cli features runs/mrpc --split test --out f.parquet      fine-tuned features
python -m ftloop.cli verify runs/mrpc                        every row was used once per epoch
python -m ftloop.cli verify runs/mrpc runs/again             the first step where two runs differ
python -m ftloop.cli card runs/mrpc                          write the model card again
python -m ftloop.cli push runs/mrpc me/mrpc                  upload model/ and report.html
"""

import functools
import sys
from typing import Any

import tyro

from ftloop.cli import commands
from ftloop.cli.exit_codes import run_main
from ftloop.errors import UserError

PROGRAM = "python -m ftloop.cli"
COMMANDS = {
    "explore": commands.explore,
    "report": commands.report,
    "compare": commands.compare,
    "features": commands.features,
    "verify": commands.verify,
    "card": commands.card,
    "push": commands.push,
}
TAKES_JOB_OPTIONS = ("explore", "features")


def main() -> None:
    name, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    try:
        if name in TAKES_JOB_OPTIONS:
            sys.exit(call_with_job_options(name, words))
        description = "Commands before and after training."
        sys.exit(
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=PROGRAM, description=description)
        )
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ftloop."):  # a folder that a fork has deleted
            raise UserError(f"{name}: this copy of ftloop has no {error.name}.") from error
        raise


def call_with_job_options(name: str, words: list[str]) -> int:
    """Call a command; words that are not its options become its argument `job_options`."""
    command = COMMANDS[name]

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Any:
        return functools.partial(command, *args, **kwargs)

    call, job_options = tyro.cli(
        bind, prog=f"{PROGRAM} {name}", args=words, return_unknown_args=True
    )
    return call(job_options=tuple(job_options))


if __name__ == "__main__":
    sys.exit(run_main(main))
