"""Read options of types that tyro does not know: dictionaries, and functions by their names.

The core and the parts declare plain types and do not import this module:

    options: dict[str, Any] = field(default_factory=dict)     --options sep=; quoting=3
    map: Callable[..., Any] | None = None                     --map my_module:my_function
    schedule: str | Callable[..., Any] = "linear"             --schedule cosine

`REGISTRY` tells `tyro.cli(..., registry=REGISTRY)` how to read them.
"""

import ast
import collections.abc
import json
import os
import sys
import types
import typing
from typing import Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from ftloop.errors import UserError

LogLevel = Literal["debug", "info", "warning", "error"]
REGISTRY = tyro.constructors.ConstructorRegistry()


def effective_log_level(log_level: LogLevel, quiet: bool) -> LogLevel:
    """Combine --log-level and --quiet, which is short for --log-level warning. Raises UserError."""
    if quiet and log_level == "debug":
        raise UserError("--quiet and --log-level debug contradict each other: use one of them.")
    return "warning" if quiet and log_level == "info" else log_level


def option_name(field: str) -> str:
    """Spell the path of a field as an option: "data.drop_empty" becomes "--data.drop-empty"."""
    return "--" + field.removeprefix("task.").replace("_", "-")


# Dictionaries


def parse_pairs(words: list[str]) -> dict[str, Any]:
    """Read `KEY VALUE` and `KEY=VALUE`, repeated and mixed, as a dictionary."""
    pairs, remaining = {}, list(words)
    while remaining:
        key, equals, value = remaining.pop(0).partition("=")
        if not equals:
            if not remaining:
                raise ValueError(f"{key!r} has no value: write KEY VALUE or KEY=VALUE.")
            value = remaining.pop(0)
        if key in pairs:
            raise ValueError(f"{key!r} is given twice.")
        pairs[key] = parse_value(value)
    return pairs


def parse_value(text: str) -> Any:
    """Read a JSON value or a Python literal; anything else is a string, in which \\t is a tab."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError):
            continue
    return text.replace("\\t", "\t")


def format_pairs(pairs: dict[str, Any]) -> list[str]:
    """Write a dictionary as the words that `parse_pairs` reads."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in pairs.items()
    ]


PAIRS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="[KEY VALUE ...]",
    instance_from_str=parse_pairs,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=format_pairs,
)


# Functions


def import_function(name: str) -> Any:
    """Import MODULE:NAME, which the command line names, also from the working directory.

    The working directory then stays at the end of sys.path, so that data workers find it too. (The
    names in the record of a run are imported without it.) Raises ValueError, to which tyro adds the
    option.
    """
    from ftloop.runs.record import import_name

    try:
        try:
            return import_name(name)
        except UserError as error:
            is_missing = isinstance(error.__cause__, ModuleNotFoundError)
            if not is_missing or os.getcwd() in sys.path:
                raise
            sys.path.append(os.getcwd())
            return import_name(name)
    except UserError as error:
        raise ValueError(str(error)) from error


def format_function(value: Any) -> str:
    """Write a function as MODULE:NAME; of a partial function, the function that it calls."""
    if value is None or isinstance(value, str):
        return str(value)
    function = getattr(value, "func", value)
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"


def function_spec(accepts_names: bool, is_optional: bool) -> PrimitiveConstructorSpec:
    """Describe an option that holds a function, given as MODULE:NAME.

    With `accepts_names`, a word without a colon stays a string: the name of a schedule, for
    example. With `is_optional`, the word None stands for None.
    """

    def parse(words: list[str]) -> Any:
        if is_optional and words[0] == "None":
            return None
        if accepts_names and ":" not in words[0]:
            return words[0]
        return import_function(words[0])

    def is_instance(value: Any) -> bool:
        if isinstance(value, str):
            return accepts_names
        return callable(value) or (is_optional and value is None)

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME|MODULE:NAME" if accepts_names else "MODULE:NAME",
        instance_from_str=parse,
        is_instance=is_instance,
        str_from_instance=lambda value: [format_function(value)],
    )


# The rules for tyro


@REGISTRY.primitive_rule
def read_dictionary(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Apply to fields of the type dict[str, Any]."""
    return PAIRS if typing.get_origin(info.type) is dict else None


@REGISTRY.primitive_rule
def read_function(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Apply to fields of the types Callable, Callable | None and str | Callable."""
    is_union = typing.get_origin(info.type) in (typing.Union, types.UnionType)
    members = typing.get_args(info.type) if is_union else (info.type,)
    origins = {typing.get_origin(member) or member for member in members}
    if collections.abc.Callable not in origins:
        return None
    return function_spec(accepts_names=str in origins, is_optional=type(None) in origins)
