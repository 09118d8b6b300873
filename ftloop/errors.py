"""Exceptions whose message is all that a user needs: they are printed without a traceback."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake in an option, a file or the data. Raised before training starts.

    `field` is the name of the config field that is wrong. It stands before the message:
    UserError("must be at least 1, but is 0.", field="batch_size"). The command line spells it as
    an option, --batch-size.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message if field is None else f"{field}: {message}")
        self.message, self.field = message, field


class TrainingError(Exception):
    """A run that cannot continue, for example because its loss is NaN."""


class Stopped(Exception):
    """A run that saved its state and ended because of a signal or its time limit."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'f1_macro'?)" for the nearest choice, or "" if none is near."""
    nearest = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def root_cause(error: BaseException) -> str:
    """Return the innermost cause in one line: some libraries wrap it in less specific errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def read_json(file: Path, expected: Any, text: bytes | None = None) -> Any:
    """Return the content of a JSON file, or of one line of it. Everything of a run is read so.

    expected: its type, also a TypedDict. Raises UserError if the content has another one.
    """
    from typeguard import CollectionCheckStrategy as Items, TypeCheckError, check_type

    try:
        text = file.read_bytes() if text is None else text
        # An integer of 20 digits, which nothing of a run has, would overflow somewhere later.
        value = json.loads(text, parse_int=lambda word: (int if len(word) < 20 else float)(word))
        return check_type(value, expected, collection_check_strategy=Items.ALL_ITEMS)
    except (OSError, ValueError, RecursionError, TypeCheckError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
