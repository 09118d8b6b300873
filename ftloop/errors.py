"""The exceptions whose text is all that a person needs: the entry points print it alone, without a traceback."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake in an option, a file or the data. The text names the option, the value and the choices."""


class TrainingError(Exception):
    """A run that cannot go on: a loss that is not a number, say. The text names the step and the rows."""


def exit_code_of(main: Callable[[], None]) -> int:
    """Run the main function of a script: 0; 2 after a UserError, 1 after a TrainingError, whose texts are printed."""
    try:
        main()
    except (UserError, TrainingError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine speaks
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # `... --help | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def nearest(word: str, choices: Iterable[str]) -> str:
    """`" (did you mean 'f1_macro'?)"`, or nothing when no choice is near: for the end of an error's first sentence."""
    found = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def root_cause(error: BaseException) -> str:
    """The innermost cause in one line: `datasets` wraps what went wrong in errors that do not say it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
