"""Read metrics.jsonl, whose lines are checked: the file may come from anywhere."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ftloop.errors import UserError, read_json

logger = logging.getLogger("ftloop")

NUMBER = (int, float)
FIELDS: dict[str, Any] = {
    "step": int,
    "epoch": NUMBER,
    "split": str,
    "name": str,
    "value": (*NUMBER, type(None)),  # None: not finite
    "time": NUMBER,
    "items_per_second": NUMBER,
}


def read_metric_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; none if the file is missing.

    A run that is training may have written half of the last line, which has no line break yet.
    """
    if not file.is_file():
        return []
    with file.open("rb") as stream:
        return list(parse_metric_lines(stream, file))


def parse_metric_lines(lines: Iterable[bytes | str], file: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines. Damaged ones are left out, and counted in the log.

    Some lines have `speed` as well: what was measured since the speed before.
    """
    num_damaged = 0
    for line in lines:
        text = line.encode() if isinstance(line, str) else line
        if not text.endswith(b"\n"):
            break
        try:
            value = read_json(file, Any, text)
        except UserError:
            value = None
        is_line = has_fields(value, FIELDS, {"speed": dict})
        if is_line and all(isinstance(item, NUMBER) for item in value.get("speed", {}).values()):
            yield value
        else:
            num_damaged += 1
    if num_damaged:
        logger.warning("%s: %d lines are damaged and were left out", file, num_damaged)


def has_fields(value: Any, required: dict[str, Any], optional: dict[str, Any]) -> bool:
    """Tell whether a value is a dictionary with fields of these types, and no others.

    It does for the lines of logs and ledgers what `ftloop.errors.read_json` does for whole files,
    in a hundredth of the time.
    """
    if not isinstance(value, dict) or not required.keys() <= value.keys():
        return False
    types = {**required, **optional}
    return all(name in types and isinstance(item, types[name]) for name, item in value.items())
