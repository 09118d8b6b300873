"""Markdown for a model card: tables, option values, and long passages that are folded away.

Texts of the data, of options and of records are escaped by `ftloop.escape.for_markdown`.
"""

from pathlib import Path
from typing import Any

from ftloop.config import encode
from ftloop.escape import for_markdown

MAX_OPEN_LINES = 15  # longer lists are folded away


def table(rows: list[list[Any]]) -> str:
    """Return a Markdown table. The first row is its header."""
    lines = [" | ".join(format_cell(cell) for cell in row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in rows[0]))
    return "\n".join(f"| {line} |" for line in lines)


def format_cell(cell: Any) -> str:
    """Format a cell: floats with four decimals, and text that cannot end the cell or the line."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4f}"
    # In a table, also in code, \| is a pipe. A backslash before a pipe is written as its code.
    return for_markdown(cell).replace("\\|", "\\x5c|").replace("|", "\\|")


def format_option(value: Any) -> str:
    """Format the value of an option: functions by their name, absolute paths by their last part."""
    encoded = encode(value)
    if isinstance(encoded, dict) and "function" in encoded:
        return encoded["function"].partition(":")[2]
    if isinstance(encoded, list):
        return " ".join(format_option(item) for item in value) or "-"
    if isinstance(encoded, dict):
        return ", ".join(f"{key} {format_option(item)}" for key, item in value.items()) or "-"
    if isinstance(encoded, str) and "/" in encoded and Path(encoded).expanduser().is_absolute():
        return Path(encoded).name  # the folders of this machine are private
    if isinstance(encoded, float):
        return f"{encoded:g}"
    return "-" if encoded is None else str(encoded)


def option_rows(options: dict[str, Any]) -> list[list[str]]:
    """Return [name, value] for options that are set: not None, not False and not empty."""
    rows = []
    for name, value in options.items():
        is_empty = value is None or value is False or value in ((), [], {}, "")
        if not is_empty:
            rows.append([name, format_option(value)])
    return rows


def fold(title: str, text: str, num_lines: int) -> str:
    """Return a text, hidden behind a title to click on if it is long."""
    if num_lines <= MAX_OPEN_LINES:
        return text
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
