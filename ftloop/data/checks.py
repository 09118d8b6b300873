"""Report what looks like a mistake in the data: quickly at every start, in full by `--check`.

Nothing is changed here; a finding names the option that would change something. Two rows are the
same if the texts of their input columns, or the bytes of their images, are identical. Rows are
numbered within their split from 0, as in training.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from ftloop.data.labels import Labels, encode_labels, read_label_cells
from ftloop.data.shape import row_digests
from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("ftloop")

QUICK_ROWS = 200_000  # rows of texts that are compared at every start, in about half a second
MAX_EXAMPLES = 3  # of a finding
MAX_CHARACTERS = 60  # of a text in an example

Splits = dict[str, "Dataset"]
Row = tuple[str, int]  # a split and the number of a row


class CheckedTask(Protocol):
    """What the checks need from a task: a dataclass such as `ftloop.tasks.Classification`."""

    data: Any  # the options of the source
    source: dict[str, Any]  # its rows before unusable ones are dropped
    rows: dict[str, Any]  # its rows as the run uses them, by split
    input_columns: tuple[str, ...]
    label_columns: tuple[str, ...]
    label_separator: str | None
    labels: Labels

    def prepare(self, rows: "Dataset") -> "Dataset": ...


@dataclass(frozen=True)
class Finding:
    """A line, or a table, for the log."""

    text: str
    is_mistake: bool = True  # it usually is one, so that --check exits with 1


def log_findings(findings: Iterable[Finding]) -> int:
    """Log findings as they come and return how many of them are mistakes."""
    num_mistakes = 0
    for finding in findings:
        level = logging.WARNING if finding.is_mistake else logging.INFO
        logger.log(level, "data: %s", finding.text)
        num_mistakes += finding.is_mistake
    return num_mistakes


def check_everything(task: CheckedTask) -> Iterator[Finding]:
    """Yield all findings, including what would stop training.

    Raises UserError if the data cannot be read at all.
    """
    source = task.source
    try:
        _ = task.rows
    except UserError as error:
        task = replace(task, data=replace(task.data, drop_empty=True, drop_unreadable=True))
        vars(task)["source"] = source  # a cached property: the source is not read again
        _ = task.rows  # raises what dropping rows does not solve
        yield Finding(f"training would stop (this check continues without such rows): {error}")
    try:
        yield from check_rows(task, full=True)
    except UserError as error:
        yield Finding(f"training would stop, and this check stops too: {error}")


def check_rows(task: CheckedTask, full: bool = False) -> Iterator[Finding]:
    """Yield what is suspicious in the rows of a task and quick to find.

    `full` compares any number of rows and adds the size of each class and the lengths of the rows.
    """
    from datasets import Dataset

    data = {split: rows for split, rows in task.rows.items() if isinstance(rows, Dataset)}
    for split in task.rows.keys() - data.keys():
        yield Finding(
            f"{split} is a stream: its rows are neither compared nor counted", is_mistake=False
        )

    # Repeated rows and similar label names
    inputs = task.input_columns
    is_text = all(
        str(rows.features[column].dtype).endswith("string")
        for rows in data.values()
        for column in inputs
    )
    repeated = []
    if full or (is_text and sum(map(len, data.values())) <= QUICK_ROWS):
        repeated = find_repeated_rows(data, inputs)
    else:
        yield Finding(
            "rows are not searched for duplicates, which takes a while; --check does it",
            is_mistake=False,
        )
    yield from find_overlaps(data, inputs, repeated)
    cells = [
        cell
        for rows in data.values()
        for cell in read_label_cells(rows, task.label_columns, task.label_separator)
    ]
    yield from find_similar_names(label_names(cells))

    # Repeated rows whose labels differ: only these rows are encoded
    def encode(split: str, rows: "Dataset") -> list[Any]:
        return encode_labels(rows, task.label_columns, task.label_separator, task.labels, split)

    numbers = defaultdict(list)
    for split, number in chain.from_iterable(repeated):
        numbers[split].append(number)
    row_labels = {}
    for split, chosen in numbers.items():
        encoded = encode(split, data[split].select(chosen))
        for number, label in zip(chosen, encoded, strict=True):
            row_labels[split, number] = format_label(label, task.labels)
    yield from find_contradictions(data, inputs, repeated, row_labels)

    if full:
        encoded_splits = {split: encode(split, rows) for split, rows in data.items()}
        yield summarize_labels(encoded_splits, task.labels)
        for split in data:
            yield summarize_lengths(split, task.prepare(task.rows[split]))


# Rows


def disable_decoding(rows: "Dataset") -> "Dataset":
    """Return the rows with images as {"bytes", "path"}, so that reading a row decodes none."""
    from datasets import Image

    for column, feature in rows.features.items():
        if isinstance(feature, Image) and feature.decode:
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def find_repeated_rows(data: Splits, columns: tuple[str, ...]) -> list[list[Row]]:
    """Return groups of two or more rows with the same inputs, in the order of splits and rows."""
    digests = {split: list(row_digests(rows, columns)) for split, rows in data.items()}
    counts = Counter(chain.from_iterable(digests.values()))
    groups = defaultdict(list)
    for split, split_digests in digests.items():
        for number, digest in enumerate(split_digests):
            if counts[digest] > 1:
                groups[digest].append((split, number))
    return list(groups.values())


def find_overlaps(
    data: Splits, columns: tuple[str, ...], repeated: list[list[Row]]
) -> Iterator[Finding]:
    """Find rows that are in an earlier split too.

    A model that has memorized such rows of train would score too well on them.
    """
    shared, counts = [], Counter()
    for group in repeated:
        splits = list(dict.fromkeys(split for split, _ in group))
        for split, _ in group:
            counts.update((split, earlier) for earlier in splits[: splits.index(split)])
        if len(splits) > 1:
            shared.append([next(row for row in group if row[0] == split) for split in splits])
    if shared:
        overlaps = ", ".join(
            f"{count} of the {len(data[split])} rows of {split} are in {earlier} too"
            for (split, earlier), count in counts.items()
        )
        yield Finding(
            f"rows are in two splits (--data.drop-duplicates drops them): {overlaps}; for example "
            f"{format_examples(data, columns, shared)}"
        )


def find_contradictions(
    data: Splits, columns: tuple[str, ...], repeated: list[list[Row]], row_labels: dict[Row, str]
) -> Iterator[Finding]:
    """Find inputs that occur several times with different labels.

    `row_labels`: the label of each repeated row, formatted.
    """
    contradictory = [group for group in repeated if len({row_labels[row] for row in group}) > 1]
    if contradictory:
        yield Finding(
            f"the same input has different labels: {len(contradictory)} input(s), "
            f"{sum(map(len, contradictory))} rows; for example "
            f"{format_examples(data, columns, contradictory, row_labels)}"
        )


def format_examples(
    data: Splits,
    columns: tuple[str, ...],
    groups: list[list[Row]],
    row_labels: dict[Row, str] | None = None,
) -> str:
    """Format the first groups of rows: 'so bad' (train 3 joy, test 7 anger), 'so good' (...)."""
    examples = []
    for group in groups[:MAX_EXAMPLES]:
        split, number = group[0]
        row = disable_decoding(data[split].select_columns(list(columns)))[number]
        cells = [
            cell["path"] or "image" if isinstance(cell, dict) else shorten(str(cell))
            for cell in row.values()
        ]
        places = [
            f"{split} {number} {row_labels[split, number]}" if row_labels else f"{split} {number}"
            for split, number in group
        ]
        if len(places) > MAX_EXAMPLES + 1:
            places = [*places[:MAX_EXAMPLES], f"{len(places) - MAX_EXAMPLES} more"]
        examples.append(f"{' | '.join(map(repr, cells))} ({', '.join(places)})")
    return ", ".join(examples) + (", ..." if len(groups) > MAX_EXAMPLES else "")


def shorten(text: str) -> str:
    """Return the beginning of a text, short enough for a line of the terminal."""
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."


# Labels and lengths


def label_names(cells: list[Any]) -> set[str]:
    """Return the label names as they are written in label cells."""
    values = chain.from_iterable(cell if isinstance(cell, list) else [cell] for cell in cells)
    return {value for value in values if isinstance(value, str)}


def find_similar_names(names: Iterable[str]) -> Iterator[Finding]:
    """Find names that differ only in case or space, such as "Joy", "joy " and "joy".

    It is not a mistake if they only differ in the space around them, which training ignores.
    """
    variants = defaultdict(set)
    for name in names:
        variants["".join(name.split()).casefold()].add(name)
    groups = [sorted(group) for group in variants.values() if len(group) > 1]
    if groups:
        examples = ", ".join(" and ".join(map(repr, group)) for group in groups[:MAX_EXAMPLES])
        yield Finding(
            "label names differ only in case or space (--label-lower or --label-merge unites "
            f"them): {len(groups)}, for example {examples}"
            f"{', ...' if len(groups) > MAX_EXAMPLES else ''}",
            is_mistake=any(len({name.strip() for name in group}) > 1 for group in groups),
        )


def format_label(label: Any, labels: Labels) -> str:
    """Format an encoded label: a name, names joined by +, or a number."""
    if labels.is_multi_label:
        pairs = zip(labels.names, label, strict=True)
        return "+".join(name for name, present in pairs if present) or "(none)"
    return labels.names[label] if labels.names else str(label)


def summarize_labels(encoded: dict[str, list[Any]], labels: Labels) -> Finding:
    """Count the rows of each class in each split; of numbers, give minimum, median and maximum."""
    import numpy

    if not labels.names:
        lines = ["values"]
        for split, values in encoded.items():
            least, median, most = numpy.quantile(values, (0, 0.5, 1))
            lines.append(f"{split}: minimum {least:g}, median {median:g}, maximum {most:g}")
        return Finding("\n    ".join(lines), is_mistake=False)
    counts = []
    for values in encoded.values():
        if labels.is_multi_label:
            counts.append(numpy.sum(values, axis=0).astype(int))
        else:
            counts.append(numpy.bincount(values, minlength=len(labels.names)))
    sizes = sorted(zip(*counts, labels.names, strict=True), key=lambda row: (-row[0], row[-1]))
    lines = [f"rows of each class in {', '.join(encoded)}"]
    lines += [f"{name}: {', '.join(map(str, numbers))}" for *numbers, name in sizes]
    return Finding("\n    ".join(lines), is_mistake=False)


def summarize_lengths(split: str, prepared: "Dataset") -> Finding:
    """Count the rows of a split, and describe how long the model's inputs are."""
    import numpy

    text = f"{split}: {len(prepared)} rows"
    if "length" in prepared.column_names:
        quantiles = numpy.quantile(prepared["length"][:], (0.5, 0.9, 0.99, 1)).round()
        median, most, nearly_all, longest = quantiles
        text += (
            f" of length {median:.0f} (median), {most:.0f} (90 %), {nearly_all:.0f} (99 %), "
            f"{longest:.0f} (longest)"
        )
    return Finding(text, is_mistake=False)
