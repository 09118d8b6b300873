"""What looks like a mistake in the texts of a split: a wrong encoding, column or length."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ftloop.data.encodings import CONTROL_CHARACTERS
from ftloop.data.findings import Finding, shorten
from ftloop.data.prepared import read_column

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE = 1000  # texts whose whole length is measured
MIN_TRUNCATED = 0.1  # share of truncated texts that is a finding
MOSTLY = 0.9  # share of texts that is most of them
NUMBERS_AND_DATES = r"^\s*[-+]?\d[-+\d.,:/ TZ%]*$"
# UTF-8 that was read as cp1252 or latin-1: a-umlaut is two characters, a typographic quote three.
MISREAD_UTF8 = r"Ã[\x{80}-\x{bf}]|â(€|\x{80})[\x{80}-\x{2122}]"


def find_control_characters(
    split: str, rows: "Dataset", columns: tuple[str, ...]
) -> Iterator[Finding]:
    """Find characters that a wrong encoding leaves behind; this takes 2 s per gigabyte."""
    for column in columns:
        cells = read_column(rows, column)
        numbers = _matching_rows(cells, CONTROL_CHARACTERS)
        if not numbers:
            continue
        characters = set(filter(_is_control, cells[numbers[0]].as_py()))
        if any("\x80" <= character <= "\x9f" for character in characters):
            advice = "Bytes of cp1252 read as latin-1 look so: --data.options encoding=cp1252"
        elif "\ufffd" in characters:
            advice = "It stands for bytes that could not be decoded: --data.options encoding=NAME"
        else:
            advice = "Binary files and UTF-16 look so: --data.options encoding=utf-16-le"
        yield Finding(
            f"{len(numbers)} of {len(rows)} texts of {split} in {column!r} have control "
            f"characters, such as {min(characters)!a} in row {numbers[0]}. {advice}"
        )


def _is_control(character: str) -> bool:
    return character == "\ufffd" or (not character.isprintable() and character < "\xa0")


def _matching_rows(cells: Any, pattern: str) -> list[int]:
    import pyarrow.compute

    matches = pyarrow.compute.match_substring_regex(cells, pattern).fill_null(False)
    return pyarrow.compute.indices_nonzero(matches).to_pylist()


def check_texts(split: str, rows: "Dataset", column: str) -> Iterator[Finding]:
    """Find texts that are hardly what a model should read."""
    import pyarrow.compute

    cells = read_column(rows, column).drop_null()
    if len(cells) < 2:
        return
    place = f"texts of {split} in {column!r}"
    first = shorten(cells[0].as_py())
    numbers = _matching_rows(cells, NUMBERS_AND_DATES)
    misread = _matching_rows(cells, MISREAD_UTF8)
    median = pyarrow.compute.quantile(pyarrow.compute.utf8_length(cells))[0].as_py()
    if len(cells.unique()) == 1:
        yield Finding(
            f"all {len(cells)} {place} are {first!r}. --text-columns chooses another column"
        )
    elif len(numbers) >= MOSTLY * len(cells):
        yield Finding(
            f"{len(numbers)} of {len(cells)} {place} are numbers or dates, such as {first!r}. "
            "--text-columns chooses another column"
        )
    elif median <= 2:
        yield Finding(
            f"half of the {len(cells)} {place} have at most {median:.0f} characters, as {first!r}. "
            "--text-columns chooses another column"
        )
    if misread:
        yield Finding(
            f"{len(misread)} of {len(cells)} {place} look like UTF-8 that was read as cp1252 or "
            f"latin-1, the first in row {misread[0]}: --data.options encoding=utf-8"
        )


def find_truncation(task: Any, split: str, rows: "Dataset") -> Iterator[Finding]:
    """Find out whether many texts lose tokens, and which option would keep them."""
    import numpy

    _, counts = task.tokenize(rows)
    if counts.truncated < MIN_TRUNCATED * counts.texts:
        return
    text = f"{counts.truncated} of {counts.texts} texts of {split} are truncated"
    if getattr(task, "long_text", "truncate") == "windows":
        yield Finding(f"{text} by --max-windows {task.max_windows}: give a larger number")
        return
    sample = [rows[:SAMPLE][column] for column in task.text_columns]
    tokenizer = task.processor
    lengths = [len(ids) for ids in tokenizer(*sample, verbose=False)["input_ids"]]
    wanted = int(numpy.ceil(numpy.quantile(lengths, 0.95) / 8)) * 8
    limit = min(wanted, tokenizer.model_max_length)
    share = numpy.mean(numpy.array(lengths) <= limit)
    advice = f"--max-length {limit} reads {share:.0%} of them whole"
    windows = "--long-text windows reads all of them in pieces" if len(sample) == 1 else ""
    if limit <= task.max_length:
        advice = windows or "the model takes no longer ones"
    elif windows:
        advice += f", and {windows}"
    yield Finding(f"{text} at --max-length {task.max_length}: {advice}")


def find_label_names_in_texts(
    rows: "Dataset", columns: tuple[str, ...], names: list[str]
) -> Iterator[Finding]:
    """Tell whether nearly all texts contain the name of their label: it may have leaked into them.

    `names` are the labels of the rows. Short names, such as 0 and 1, occur by chance.
    """
    texts = [" ".join(map(str, cells)) for cells in zip(*(rows[c] for c in columns), strict=True)]
    pairs = [
        (text.casefold(), name.casefold())
        for text, name in zip(texts, names, strict=True)
        if len(name) > 2
    ]
    found = sum(re.search(rf"\b{re.escape(name)}\b", text) is not None for text, name in pairs)
    if pairs and found >= MOSTLY * len(texts):
        yield Finding(
            f"{found} of {len(texts)} texts of train contain the name of their label. Make sure "
            "that the texts to predict do so too, and that the label has not leaked into them",
            is_mistake=False,
        )
