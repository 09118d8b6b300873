"""Evaluate a finished run on a split of its data.

python evaluate.py runs/quickstart                     the test split; without one, validation
python evaluate.py runs/quickstart --split validation  the scores that training printed
python evaluate.py runs/quickstart --json              one line of JSON
python evaluate.py runs/quickstart --report            also write its report.html again
accelerate launch evaluate.py runs/quickstart          on several devices, with the same scores
"""

import sys


def replace_by_library() -> None:
    """Make `import evaluate` import the library of that name, which this file hides.

    Python finds this file for `import evaluate` in train.py, pytest, accelerate and torchrun. This
    function then finds the library on sys.path without this folder and executes it in place of
    this module.
    """
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    here = Path(__file__).resolve().parent
    path = [entry for entry in sys.path if Path(entry).resolve() != here]
    spec = PathFinder.find_spec("evaluate", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(
            "the library `evaluate` is not installed: pip install evaluate", name="evaluate"
        )
    library = sys.modules["evaluate"] = module_from_spec(spec)
    spec.loader.exec_module(library)


# Not `!= "__main__"`, because spawned workers run a script again as "__mp_main__".
if __name__ == "evaluate":
    replace_by_library()
elif __name__ == "__main__":
    from ftloop.cli.evaluate import main
    from ftloop.cli.exit_codes import run_main

    sys.exit(run_main(main))
