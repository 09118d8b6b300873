"""Check the values of a config that was read from the record of a run."""

import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ftloop.config import Config, validate
from ftloop.errors import UserError


def check_config(config: Config, file: Path) -> None:
    """Raise UserError for a value that does not have the type of its field, or that cannot work.

    `file`: the record, config.json. What training refuses is refused here as well: with an
    eval_batch_size of 0, for example, an evaluation would never end.
    """
    check_fields(config, file)
    try:
        validate(config)
    except UserError as error:
        place = f"{error.field}: " if error.field else ""
        raise UserError(f"{file} cannot be used: {place}{error.message}") from error


def check_fields(value: Any, file: Path, prefix: str = "") -> None:
    """Raise UserError for a field of a dataclass, or of one within it, that has another type."""
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    try:
        types = typing.get_type_hints(type(value))
    except NameError:  # a fork may import the names of its types for type checkers only
        types = {}
    for field in fields(value):
        item, place = getattr(value, field.name), f"{prefix}{field.name}"
        try:
            every_item = CollectionCheckStrategy.ALL_ITEMS
            check_type(item, types.get(field.name, Any), collection_check_strategy=every_item)
        except TypeCheckError as error:
            raise UserError(f"{file} cannot be used: {place}: {error}.") from error
        parts = item if isinstance(item, tuple) else (item,)
        for part in parts:
            if is_dataclass(part) and not isinstance(part, type):
                check_fields(part, file, f"{place}.")
