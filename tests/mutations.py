"""Random changes of files and of command lines, for hypothesis."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

TEXTS = st.one_of(
    st.sampled_from(
        ["", "0", "None", "nan", "red", "../x", "\0", "\x1b[31m", "x" * 300, "é", "[", "{}"]
    ),
    st.text(max_size=6),
)
NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**31, 2**63, -(2**63), 10**25, 0.0, -1.0, 0.5, 1e-300, 1e300]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
NESTED = 100_000  # deeper than any parser follows


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside a JSON value."""
    items = list(value.items()) if isinstance(value, dict) else []
    items = list(enumerate(value)) if isinstance(value, list) else items
    found = [(value, key) for key, _ in items]
    for _, item in items:
        found += places(item)
    return found


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """Draw a JSON value with one to three changes: other values, and keys that are gone or new."""
    root = {"root": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 3))):
        found = places(root)
        container, key = found[draw(st.integers(0, len(found) - 1))]
        kind = draw(st.sampled_from(["replace", "replace", "delete", "add", "move"]))
        if kind == "replace" or container is root:
            container[key] = draw(VALUES)
        elif kind == "delete":
            del container[key]
        elif kind == "add" and isinstance(container, dict):
            container[draw(TEXTS)] = draw(VALUES)
        else:
            other, place = found[draw(st.integers(0, len(found) - 1))]
            container[key] = copy.deepcopy(other[place])
    return root["root"]


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes, inserted: tuple[bytes, ...] = ()) -> bytes:
    """Draw a file with one or two changes: parts that are gone, new, repeated or of other bytes."""
    parts = [
        b"",
        b"\0",
        b"\xff",
        b"\n",
        b"\r",
        b'"',
        b"{",
        b"\xef\xbb\xbf",
        b"[" * NESTED,
        *inserted,
    ]
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from([0, 0, 1, 2, 5, 30, len(content)])))
        new = draw(st.sampled_from([*parts, *inserted]) | st.binary(max_size=4))
        new = draw(st.sampled_from([new, content[start:stop] * 2]))
        content = content[:start] + new + content[stop:]
    return content


@st.composite
def changed_json_file(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw the content of a JSON file that is changed as JSON or, less often, as bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(changed_bytes(content))
    text = json.dumps(draw(changed_json(json.loads(content))))
    return text.replace('"nested"', "[" * NESTED).encode(errors="surrogatepass")


@st.composite
def changed_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a JSON Lines file of which a line is changed, gone, repeated or somewhere else."""
    lines = content.splitlines(keepends=True)
    place, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(["change", "change", "delete", "insert", "bytes", "cut"]))
    if kind == "change":
        lines[place] = draw(changed_json_file(lines[place].strip())) + b"\n"
    elif kind == "delete":
        del lines[place]
    elif kind == "insert":
        lines.insert(place, lines[other])
    elif kind == "cut":
        lines = lines[:place]
    else:
        return draw(changed_bytes(content))
    return b"".join(lines)


@st.composite
def changed_options(draw: st.DrawFn, names: list[str]) -> list[str]:
    """Draw words of a command line: options with fitting, wrong, missing and too many values."""
    words = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        name = draw(st.sampled_from([name, name, name, name[:-1], name + "=", name.upper()]))
        values = draw(st.lists(st.one_of(NUMBERS.map(str), TEXTS), max_size=2))
        words += [name, *values]
    return words
