"""What looks like a mistake in the data, said before training: quickly at every start, in full by `--check`.

Nothing is changed here: a finding names the option that would. Rows are the same if the texts of their input columns
are, letter for letter, or the bytes of their images. They are numbered within their split, from 0, as in training.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.data import labels
from ftloop.data.labels import Labels
from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from ftloop.tasks.classification import Classification

logger = logging.getLogger("ftloop")

QUICK_ROWS = 200_000  # texts that are compared at every start, in about half a second
SHOWN, CHARACTERS = 3, 60  # examples of a finding, and the length of a text there

Splits = dict[str, "Dataset"]
Row = tuple[str, int]  # a split, and the number of a row


@dataclass(frozen=True)
class Finding:
    """A line, or a table, for the terminal. `mistake`: it usually is one, so that --check exits with 1."""

    text: str
    mistake: bool = True


def report(found: Iterable[Finding]) -> int:
    """Log findings as they come; how many of them are mistakes."""
    mistakes = 0
    for finding in found:
        logger.log(logging.WARNING if finding.mistake else logging.INFO, "data: %s", finding.text)
        mistakes += finding.mistake
    return mistakes


def all_findings(task: "Classification") -> Iterator[Finding]:
    """All there is to say of a task's data, with what would stop training. Raises UserError if it is unreadable."""
    source = task.source
    try:
        _ = task.rows
    except UserError as error:
        task = replace(task, data=replace(task.data, drop_empty=True, drop_unreadable=True))
        vars(task)["source"] = source  # a cached property
        _ = task.rows  # raises what no dropped row mends
        yield Finding(f"training would stop (this goes on without such rows): {error}")
    try:
        yield from findings(task, full=True)
    except UserError as error:
        yield Finding(f"training would stop (and so does this): {error}")


def findings(task: "Classification", full: bool = False) -> Iterator[Finding]:
    """What is suspicious in a task's rows and found at once; with `full`, all that there is to say of them."""
    from datasets import Dataset

    data = {split: undecoded(rows) for split, rows in task.rows.items() if isinstance(rows, Dataset)}
    for split in task.rows.keys() - data.keys():
        yield Finding(f"{split} is a stream: its rows are not compared, nor counted", mistake=False)
    inputs, cells = task.input_columns, (task.label_columns, task.label_separator)
    texts = all(str(rows.features[column].dtype).endswith("string") for rows in data.values() for column in inputs)
    repeated = []
    if full or (texts and sum(map(len, data.values())) <= QUICK_ROWS):
        repeated = repeated_rows(data, inputs)
    else:
        yield Finding("rows are not searched for duplicates, which takes a while: --check does it", mistake=False)
    yield from in_two_splits(data, inputs, repeated)
    yield from alike_names(name for rows in data.values() for name in label_names(labels.cells(rows, *cells)))
    numbers = defaultdict(list)
    for split, number in (row for rows in repeated for row in rows):
        numbers[split].append(number)
    targets = {}
    for split, chosen in numbers.items():
        encoded = labels.encode(data[split].select(chosen), *cells, task.labels, split)
        targets |= {(split, row): in_words(target, task.labels) for row, target in zip(chosen, encoded, strict=True)}
    yield from contradictions(data, inputs, repeated, targets)
    if full:
        yield class_sizes(
            {split: labels.encode(data[split], *cells, task.labels, split) for split in data}, task.labels
        )
        yield from (lengths(split, task.prepare(task.rows[split])) for split in data)


# ---- rows


def undecoded(rows: "Dataset") -> "Dataset":
    """Images as {"bytes", "path"}, so that looking at a row decodes none."""
    from datasets import Image

    for column, feature in rows.features.items():
        if isinstance(feature, Image) and feature.decode:
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def keys(rows: "Dataset", column: str) -> Iterator[Any]:
    """For each row what is equal if two cells are the same: the text itself, or the hash of an image's bytes."""
    text = str(rows.features[column].dtype).endswith("string")
    for cell in rows[column][:] if text else rows[column]:  # images pass through memory one by one
        if isinstance(cell, dict):
            yield hashlib.sha256(cell["bytes"] or Path(cell["path"]).read_bytes()).digest()
        else:
            yield cell if text else repr(cell)


def repeated_rows(data: Splits, columns: tuple[str, ...]) -> list[list[Row]]:
    """The rows with the same inputs, together, where there are several; in the order of splits and rows."""
    of_rows = {
        split: list(zip(*(keys(rows, column) for column in columns), strict=True)) for split, rows in data.items()
    }
    counts = Counter(chain.from_iterable(of_rows.values()))
    found = defaultdict(list)
    for split, of_split in of_rows.items():
        for number, key in enumerate(of_split):
            if counts[key] > 1:
                found[key].append((split, number))
    return list(found.values())


def in_two_splits(data: Splits, columns: tuple[str, ...], repeated: list[list[Row]]) -> Iterator[Finding]:
    """Rows that an earlier split has too: what was learned by heart there would pass for skill here."""
    shared, counts = [], Counter()
    for rows in repeated:
        splits = list(dict.fromkeys(split for split, _ in rows))
        counts.update((split, other) for split, _ in rows for other in splits[: splits.index(split)])
        if len(splits) > 1:
            shared.append([next(row for row in rows if row[0] == split) for split in splits])
    if shared:
        pairs = (
            f"{count} of the {len(data[split])} rows of {split} in {other} too"
            for (split, other), count in counts.items()
        )
        yield Finding(
            f"rows in two splits (--task.data.drop-duplicates drops them): {', '.join(pairs)}, "
            f"as {examples(data, columns, shared)}"
        )


def contradictions(
    data: Splits, columns: tuple[str, ...], repeated: list[list[Row]], targets: dict[Row, str]
) -> Iterator[Finding]:
    """Inputs that have different labels where they occur again. `targets`: the labels of repeated rows, in words."""
    found = [rows for rows in repeated if len({targets[row] for row in rows}) > 1]
    if found:
        yield Finding(
            f"the same input with different labels: {len(found)} input(s), {sum(map(len, found))} rows, "
            f"as {examples(data, columns, found, targets)}"
        )


def examples(
    data: Splits, columns: tuple[str, ...], groups: list[list[Row]], targets: dict[Row, str] | None = None
) -> str:
    """The first of some groups of rows: 'so bad' (train 3 joy, test 7 anger), 'so good' (...)."""
    found = []
    for rows in groups[:SHOWN]:
        split, number = rows[0]
        cells = data[split].select_columns(list(columns))[number].values()
        texts = [shortened(str(cell)) if not isinstance(cell, dict) else cell["path"] or "image" for cell in cells]
        places = [f"{row[0]} {row[1]}{' ' + targets[row] if targets else ''}" for row in rows]
        places = places if len(places) <= SHOWN + 1 else [*places[:SHOWN], f"{len(places) - SHOWN} more"]
        found.append(f"{' | '.join(map(repr, texts))} ({', '.join(places)})")
    return ", ".join(found) + (", ..." if len(groups) > SHOWN else "")


def shortened(text: str) -> str:
    """The beginning of a text, on one line of the terminal."""
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 3] + "..."


# ---- labels and lengths


def label_names(cells: list[Any]) -> set[str]:
    """The label names as they are written in the cells of the label column."""
    parts = (part for cell in cells for part in (cell if isinstance(cell, list) else [cell]))
    return {part for part in parts if isinstance(part, str)}


def alike_names(names: Iterable[str]) -> Iterator[Finding]:
    """Names that differ only in case or space: "Joy", "joy " and "joy". Space around a name is ignored in training."""
    alike = defaultdict(set)
    for name in names:
        alike["".join(name.split()).casefold()].add(name)
    found = [sorted(same) for same in alike.values() if len(same) > 1]
    if found:
        shown = ", ".join(" and ".join(map(repr, same)) for same in found[:SHOWN])
        yield Finding(
            f"label names that differ only in case or space (--task.label-lower or --task.label-merge makes one of "
            f"them): {len(found)}, as {shown}{', ...' if len(found) > SHOWN else ''}",
            mistake=any(len({name.strip() for name in same}) > 1 for same in found),
        )


def in_words(target: Any, known: Labels) -> str:
    """An encoded label as a person reads it: a name, names joined by +, or a number."""
    if known.multi:
        return "+".join(name for name, present in zip(known.names, target, strict=True) if present) or "(none)"
    return known.names[target] if known.names else str(target)


def class_sizes(encoded: dict[str, list[Any]], known: Labels) -> Finding:
    """The rows of each class in each split, the largest first; the least, middle and greatest value in regression."""
    import numpy

    if not known.names:
        quantiles = {split: numpy.quantile(values, (0, 0.5, 1)) for split, values in encoded.items()}
        lines = [f"{split}: least {a:g}, median {b:g}, greatest {c:g}" for split, (a, b, c) in quantiles.items()]
        return Finding("\n    ".join(["values", *lines]), mistake=False)
    counts = {
        split: numpy.sum(values, axis=0) if known.multi else numpy.bincount(values, minlength=len(known.names))
        for split, values in encoded.items()
    }
    sizes = sorted(zip(*counts.values(), known.names, strict=True), key=lambda size: (-size[0], size[-1]))
    lines = [f"{name}: {', '.join(f'{number:.0f}' for number in numbers)}" for *numbers, name in sizes]
    return Finding("\n    ".join([f"rows of each class in {', '.join(counts)}", *lines]), mistake=False)


def lengths(split: str, prepared: "Dataset") -> Finding:
    """The rows of a split, and how long they are as the model sees them: cut at --task.max-length."""
    import numpy

    text = f"{split}: {len(prepared)} rows"
    if "length" in prepared.column_names:
        middle, most, nearly_all, longest = numpy.quantile(prepared["length"][:], (0.5, 0.9, 0.99, 1)).round()
        text += (
            f", of length {middle:.0f} (median), {most:.0f} (90 %), {nearly_all:.0f} (99 %), {longest:.0f} (longest)"
        )
    return Finding(text, mistake=False)
