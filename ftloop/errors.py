"""The one exception for a mistake that a user can mend. Every entry point prints its text alone and exits with 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in an option, a file or the data. The text names the option, the value and the choices."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`" (did you mean 'f1_macro'?)"`, or nothing when no choice is near: for the end of an error's first sentence."""
    found = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
