"""Score a finished run on any split of its data.

python evaluate.py runs/quickstart                       test, or validation where there is no test
python evaluate.py runs/quickstart --split validation    the same numbers as training printed
python evaluate.py runs/quickstart --json                one line for machines
python evaluate.py runs/quickstart --report              its report.html too, written anew
accelerate launch evaluate.py runs/quickstart            on many devices: the same numbers
"""

import sys


def step_aside() -> None:
    """Make `import evaluate` mean the library of that name, which this script hides by standing at the root.

    Python finds this file for `import evaluate` in train.py, pytest, accelerate and torchrun. It then finds the library
    on the path without this folder, and executes that in its own place.
    """
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    here = Path(__file__).resolve().parent
    spec = PathFinder.find_spec("evaluate", [entry for entry in sys.path if Path(entry).resolve() != here])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("the library `evaluate` is not installed: pip install evaluate", name="evaluate")
    library = sys.modules["evaluate"] = module_from_spec(spec)
    spec.loader.exec_module(library)


def main() -> None:
    import json
    import os
    from typing import Annotated, Literal

    import tyro

    from ftloop.cli.options import LogLevel, least_said

    def options(
        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        split: Literal["train", "validation", "test"] | None = None,
        batch_size: int | None = None,
        json: bool = False,
        report: bool = False,
        log_level: LogLevel = "info",
        quiet: bool = False,
    ) -> tuple[str, str | None, int | None, bool, bool, str]:
        """Score a finished run on a split of its data.

        Args:
            run: folder of the run
            split: left out: test where the data has it, else validation
            batch_size: rows per process and forward pass (CPUs: 4096 tokens at most); left out: as in training
            json: print the scores as one line of JSON
            report: write report.html in the folder of the run anew
            log_level: the least that is said besides the scores
            quiet: only the scores, warnings and errors: --log-level warning
        """
        return run, split, batch_size, json, report, least_said(log_level, quiet)

    run, split, batch_size, as_json, with_report, level = tyro.cli(options, prog="evaluate.py")
    from accelerate import PartialState

    from ftloop import evaluate
    from ftloop.errors import UserError
    from ftloop.logs.terminal import finite, set_up_logging, shown

    set_up_logging(os.environ.get("RANK", "0") == "0", level)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least 1 is needed")
    scores = evaluate(run, split, batch_size)
    if PartialState().is_main_process:
        print(json.dumps(finite(scores)) if as_json else shown(scores))
        if with_report:
            write_report(run)


def write_report(run: str) -> None:
    """On the main process, after the scores are out; what a launcher told it is of no use to the report."""
    from pathlib import Path

    from ftloop.errors import TrainingError, UserError

    try:
        from ftloop.report.reporter import Reporter
    except ModuleNotFoundError as error:
        raise UserError(f"--report: {error}") from error
    if Reporter(Path(run)).at_the_end():
        raise TrainingError("the scores are right, but there is no new report")


# Not `!= "__main__"`: spawned workers run a script again as "__mp_main__".
if __name__ == "evaluate":
    step_aside()
elif __name__ == "__main__":
    from ftloop.errors import exit_code_of

    sys.exit(exit_code_of(main))
