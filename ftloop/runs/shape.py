"""Check the values of a config that was read from the record of a run."""

import typing
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ftloop.config import Config, validate
from ftloop.errors import UserError
from ftloop.task import Task

LARGEST = 2**31  # of the numbers of tasks and data: lengths, sizes, counts
LARGEST_SEED = 2**62


def check_numbers(value: Any, prefix: str = "task.") -> None:
    """Raise UserError for a number in a task or its data that is absurdly large.

    No option could mean such a number, and each would fail in a way of its own. Options with
    decimals have ranges, which the task checks.
    """
    for field in fields(value) if is_dataclass(value) else ():
        item, place = getattr(value, field.name), f"{prefix}{field.name}"
        largest = LARGEST_SEED if field.name.endswith("seed") else LARGEST
        for part in item if isinstance(item, tuple) else (item,):
            if isinstance(part, int | float) and abs(part) > largest:
                message = f"must be at least -{largest} and at most {largest}, but is {part}."
                raise UserError(message, field=place)
            if is_dataclass(part) and not isinstance(part, type):
                check_numbers(part, f"{place}.")


def check_config(config: Config, file: Path) -> None:
    """Raise UserError for a value that does not have the type of its field, or that cannot work.

    `file`: the record, config.json. What training refuses is refused here as well: with an
    eval_batch_size of 0, for example, an evaluation would never end.
    """
    check_fields(config, file)
    try:
        check_numbers(config.task)
        # The task would look for what only training needs, such as the pretrained model.
        validate(replace(config, task=Task()))
    except UserError as error:
        place = f"{error.field}: " if error.field else ""
        raise UserError(f"{file} cannot be used: {place}{error.message}") from error


def check_fields(value: Any, file: Path, prefix: str = "") -> None:
    """Raise UserError for a field of a dataclass, or of one within it, that has another type."""
    try:
        types = typing.get_type_hints(type(value))
    except NameError:  # a fork may import the names of its types for type checkers only
        types = {}
    for field in fields(value):
        item, place = getattr(value, field.name), f"{prefix}{field.name}"
        expected = types.get(field.name, Any)
        # The lists of a record became tuples.
        problem = type_problem(item, expected)
        if problem is not None and type_problem(as_lists(item), expected) is not None:
            raise UserError(f"{file} cannot be used: {place}: {problem}.")
        for part in item if isinstance(item, tuple) else (item,):
            if is_dataclass(part) and not isinstance(part, type):
                check_fields(part, file, f"{place}.")


def type_problem(value: Any, expected: Any) -> str | None:
    """Describe how a value differs from a type; None if it has it."""
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    try:
        check_type(value, expected, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        return str(error)
    return None


def as_lists(value: Any) -> Any:
    """Return a value with lists instead of tuples, also within dictionaries."""
    if isinstance(value, tuple):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value
