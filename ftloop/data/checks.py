"""Report what looks like a mistake in the data: quickly at every start, in full by `--check`.

Nothing is changed here; a finding names the option that would change something. Two rows are the
same if the texts of their input columns, or the bytes of their images, are identical. Rows are
numbered within their split from 0, as in training.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from ftloop.data.findings import MAX_EXAMPLES, Finding, shorten
from ftloop.data.label_checks import check_classes, count_classes, find_similar_names
from ftloop.data.labels import Labels, encode_labels, read_label_cells
from ftloop.data.shape import row_digests
from ftloop.data.text_checks import (
    check_texts,
    find_control_characters,
    find_label_names_in_texts,
    find_truncation,
)
from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

QUICK_ROWS = 200_000  # rows of texts that are compared at every start, in about half a second
MAX_IMAGES = 1000  # images of a split that are decoded to look for blank ones
MIN_REPEATED = 0.1  # share of repeated rows in a split that is a finding

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
        for split, rows in data.items() if is_text else ():
            yield from find_control_characters(split, rows, inputs)
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
        yield from find_repetitions(data, repeated)
        yield from check_classes(encoded_splits, task.labels, task.data)
        yield from check_inputs(task, data, encoded_splits, is_text)


def check_inputs(
    task: CheckedTask, data: Splits, encoded: dict[str, list[Any]], is_text: bool
) -> Iterator[Finding]:
    """Yield what is unusual in the texts or images of each split. `encoded`: their labels."""
    for split, rows in data.items():
        if not is_text:
            yield from find_blank_images(split, rows, task.input_columns)
            continue
        for column in task.input_columns:
            yield from check_texts(split, rows, column)
        if hasattr(task, "tokenize"):
            yield from find_truncation(task, split, rows)
        if split == "train" and task.labels.names and not task.labels.is_multi_label:
            names = [task.labels.names[label] for label in encoded[split]]
            yield from find_label_names_in_texts(rows, task.input_columns, names)


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


def find_repetitions(data: Splits, repeated: list[list[Row]]) -> Iterator[Finding]:
    """Find splits with many rows that repeat an earlier row of the same split."""
    counts: Counter[str] = Counter()
    for group in repeated:
        for split, rows in Counter(split for split, _ in group).items():
            counts[split] += rows - 1
    for split, count in counts.items():
        if count > MIN_REPEATED * len(data[split]):
            yield Finding(
                f"{count} of the {len(data[split])} rows of {split} repeat an earlier row of it "
                "(--data.drop-duplicates drops them)"
            )


def find_blank_images(split: str, rows: "Dataset", columns: tuple[str, ...]) -> Iterator[Finding]:
    """Find images in which all pixels have the same colour, among the first rows of a split."""
    from datasets import Image

    from ftloop.data.images import UnreadableImage, decode_image

    for column in columns:
        if not isinstance(rows.features[column], Image):
            continue
        blank = []
        cells = disable_decoding(rows.select_columns([column]))[:MAX_IMAGES][column]
        for number, cell in enumerate(cells):
            with contextlib.suppress(UnreadableImage):  # which has been reported
                pixels = decode_image(cell).flatten(1)
                if bool((pixels == pixels[:, :1]).all()):
                    blank.append(number)
        if blank:
            yield Finding(
                f"{len(blank)} of the first {len(cells)} images of {split} have one colour only, "
                f"the first in row {blank[0]} (--data.filter leaves out rows)"
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


# Labels and lengths


def label_names(cells: list[Any]) -> set[str]:
    """Return the label names as they are written in label cells."""
    values = chain.from_iterable(cell if isinstance(cell, list) else [cell] for cell in cells)
    return {value for value in values if isinstance(value, str)}


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
    counts = count_classes(encoded, labels).values()
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
