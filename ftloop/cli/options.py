"""Options of other kinds than tyro knows: dictionaries (`train a.csv test b.csv`, `sep=; quoting=3`), and functions by
their qualified names (`configs.drug_reviews:long_enough`), by which the record of a run keeps them too."""

import ast
import dataclasses
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ftloop.errors import UserError

LogLevel = Literal["debug", "info", "warning", "error"]


def least_said(log_level: LogLevel, quiet: bool) -> LogLevel:
    """The level of the log from --log-level and --quiet, which is another word for warning. Raises UserError."""
    if quiet and log_level == "debug":
        raise UserError("--quiet and --log-level debug contradict each other: give one of them")
    return "warning" if quiet and log_level == "info" else log_level


def parse_pairs(words: list[str]) -> dict[str, Any]:
    """Read `key value key value` and `key=value`, also mixed. Values are JSON or Python literals, else text."""
    pairs, words = {}, list(words)
    while words:
        key, equals, value = words.pop(0).partition("=")
        if not equals:
            if not words:
                raise ValueError(f"{key!r} has no value: give KEY VALUE pairs or KEY=VALUE")
            value = words.pop(0)
        if key in pairs:
            raise ValueError(f"{key!r} is given twice")
        pairs[key] = parse_value(value)
    return pairs


def parse_value(text: str) -> Any:
    """3 -> int, true -> bool, [1,2] and 'a' -> as in JSON or Python, \\t -> a tab, anything else -> the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError):
            continue
    return text.replace("\\t", "\t")


def write_pairs(pairs: dict[str, Any]) -> list[str]:
    """The words for a dictionary: what --help shows as the default."""
    return [
        f"{key}={value}" if isinstance(value, str) else f"{key}={json.dumps(value)}" for key, value in pairs.items()
    ]


Pairs = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY VALUE ...]",
        instance_from_str=parse_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=write_pairs,
    ),
]


def no_pairs() -> Any:
    """The default of a field of Pairs: an empty dictionary."""
    return dataclasses.field(default_factory=dict)


def name_of(value: Any) -> str:
    """The qualified name of a function or class, "package.module:name"; a schedule's name is itself."""
    if isinstance(value, str):
        return value
    module, path, main = value.__module__, getattr(value, "__qualname__", ""), sys.modules["__main__"]
    try:
        found = functools.reduce(getattr, path.split("."), sys.modules[module])
    except (KeyError, AttributeError):  # a lambda, a function in a function, an object
        found = None
    if found != value:  # the name of a method finds no instance
        raise UserError(
            f"{value!r} has no name to record it by: define it at the top of the config's module "
            "(functools.partial of such a function works too)"
        )
    if module == "__main__" and hasattr(main, "__file__"):  # a script, or `python -m`: the next process imports it
        module = main.__spec__.name if main.__spec__ else Path(main.__file__).stem
    return f"{module}:{path}"


def import_name(name: str) -> Any:
    """The function or class with a qualified name. Raises UserError."""
    module, colon, path = name.partition(":")
    if not colon:
        raise UserError(f"{name!r} is no qualified name: MODULE:NAME is needed")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except Exception as error:  # whatever a module does wrong when it is imported
        raise UserError(f"{name!r} cannot be imported: {error}") from error


def import_typed(name: str) -> Any:
    """What a person names on the command line: also of a module in the working folder, which then stays the last place
    where modules are searched, in worker processes too. (For the names of a record, it is none.) Raises ValueError,
    to which tyro adds the option."""
    try:
        try:
            return import_name(name)
        except UserError as error:
            if not isinstance(error.__cause__, ModuleNotFoundError) or os.getcwd() in sys.path:
                raise
            sys.path.append(os.getcwd())
            return import_name(name)
    except UserError as error:
        raise ValueError(str(error)) from error


def function_option(metavar: str, *, names: bool = False, optional: bool = False) -> Any:
    """How tyro reads an option that holds a function: by its qualified name (with `names`, or by a known name)."""

    def read(words: list[str]) -> Any:
        if optional and words[0] == "None":
            return None
        return words[0] if names and ":" not in words[0] else import_typed(words[0])

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: callable(value) or (names and isinstance(value, str)) or (optional and value is None),
        # Of a partial, the function that it calls.
        str_from_instance=lambda value: [str(value) if value is None else name_of(getattr(value, "func", value))],
    )


Function = Annotated[Callable[..., Any], function_option("MODULE:NAME")]
OptionalFunction = Annotated[Callable[..., Any] | None, function_option("MODULE:NAME", optional=True)]
