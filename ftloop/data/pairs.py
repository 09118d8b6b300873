"""Words of the command line that become dictionaries: `train a.csv test b.csv` or `sep=; quoting=3`."""

import ast
import json
from typing import Annotated, Any

import tyro


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
