"""The rows of a classification task as its data has them, and how a page shows some of them.

All rows are counted. Lengths, sizes and examples are taken from a random sample of a size that a
page can show.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy

from ftloop.data import checks
from ftloop.report import page
from ftloop.report.page import Column, Html
from ftloop.report.subset import sample_rows

MAX_CHARACTERS = 400  # of a text that is shown
THUMBNAIL = 96  # pixels of the longer side


@dataclass
class TaskRows:
    """The rows of a task by split, with their labels. Raises UserError if they cannot be read."""

    task: Any  # a Classification
    seed: int

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The rows by split; of a stream, the first ones."""
        return {
            split: rows if hasattr(rows, "features") else rows.head(self.task.data.shuffle_buffer)
            for split, rows in self.task.rows.items()
        }

    @cached_property
    def labels(self) -> dict[str, numpy.ndarray]:
        """The encoded labels by split: int [rows], 0 or 1 [rows, labels], or float [rows]."""
        return {
            split: numpy.asarray(self.task.encode_labels(rows, split))
            for split, rows in self.splits.items()
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes or labels by id; empty for regression."""
        return tuple(self.task.labels.names)

    @cached_property
    def class_counts(self) -> dict[str, numpy.ndarray]:
        """The number of rows of each class by split."""
        counts = {}
        for split, labels in self.labels.items():
            if self.task.labels.is_multi_label:
                counts[split] = labels.sum(axis=0).astype(int)
            else:
                counts[split] = numpy.bincount(labels, minlength=len(self.class_names))
        return counts

    def largest_classes(self, max_classes: int) -> list[int]:
        """Return the ids of the classes with the most training rows, the largest first."""
        counts = next(iter(self.class_counts.values()))
        order = numpy.argsort(-counts, kind="stable")
        return [int(label) for label in order[:max_classes]]

    def has_label(self, split: str, label: int) -> numpy.ndarray:
        """Return which rows of a split have a class or label: bool [rows]."""
        labels = self.labels[split]
        return labels[:, label] > 0 if self.task.labels.is_multi_label else labels == label

    def sample(self, split: str, max_rows: int) -> numpy.ndarray:
        """Return the ids of at most `max_rows` random rows in ascending order."""
        return sample_rows(len(self.splits[split]), max_rows, self.seed)

    def format_label(self, split: str, row: int) -> str:
        """Return the label of a row as text."""
        label = self.labels[split][row]
        return checks.format_label(label, self.task.labels) if self.class_names else f"{label:.4g}"


def is_classification(task: Any) -> bool:
    """Tell whether a task has rows and labels that a report can show.

    The class is asked, because the properties `rows` and `labels` read the data.
    """
    return hasattr(type(task), "rows") and hasattr(type(task), "labels")


def is_image_task(task: Any) -> bool:
    """Tell whether the rows of a task are images."""
    return hasattr(task, "image_column")


# ---- rows on a page


def show_rows(
    rows: TaskRows, split: str, row_ids: Sequence[int], columns: Sequence[Column], caption: str = ""
) -> Html:
    """Return a table of texts, or a grid of thumbnails, with `columns` beside or below them."""
    title = page.paragraph(caption, "soft") if caption else ""
    show = show_images if is_image_task(rows.task) else show_texts
    return Html(title + show(rows, split, row_ids, columns))


def show_texts(
    rows: TaskRows, split: str, row_ids: Sequence[int], columns: Sequence[Column]
) -> Html:
    """Return a table with the row id, the text and `columns`."""
    texts = read_texts(rows.splits[split], rows.task.input_columns, row_ids)
    ids = Column("row", [str(int(row)) for row in row_ids], "number")
    return page.table([ids, Column("text", texts, "text"), *columns], tall=len(row_ids) > 10)


def show_images(
    rows: TaskRows, split: str, row_ids: Sequence[int], columns: Sequence[Column]
) -> Html:
    """Return thumbnails, each with its split and row id and the values of `columns` below."""
    thumbnails = make_thumbnails(rows.splits[split], rows.task.image_column, row_ids)
    items = []
    for index, (row, jpeg) in enumerate(zip(row_ids, thumbnails, strict=True)):
        name = f"{split} {row}"
        lines = [f"<b>{page.escape(name)}</b>"]
        for column in columns:
            lines.append(page.escape(f"{column.header} {format_cell(column, index)}"))
        items.append((page.image(jpeg, name), Html("<br>".join(lines))))
    return page.image_grid(items)


def format_cell(column: Column, index: int) -> str:
    """Return a cell of a column as text."""
    value = column.cells[index]
    return page.format_number(value, column.digits) if column.kind == "number" else str(value)


def read_texts(rows: Any, columns: Sequence[str], row_ids: Iterable[int]) -> list[str]:
    """Return the texts of some rows, shortened, each input column on a line of its own."""
    selected = rows.select_columns(list(columns)).select([int(row) for row in row_ids])
    texts = []
    for row in selected:
        text = "\n".join(" ".join(str(cell).split()) for cell in row.values())
        if len(text) > MAX_CHARACTERS:
            text = text[: MAX_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
        texts.append(text)
    return texts


def make_thumbnails(rows: Any, column: str, row_ids: Iterable[int]) -> list[bytes]:
    """Return the images of some rows as small JPEGs; unreadable ones are grey squares."""
    from PIL import Image

    from ftloop.data.images import UnreadableImage, decode_image

    thumbnails = []
    encoded = checks.disable_decoding(rows.select_columns([column]))
    for row in encoded.select([int(row) for row in row_ids]):
        try:
            image = Image.fromarray(decode_image(row[column]).permute(1, 2, 0).numpy())
        except UnreadableImage:
            image = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        if max(image.size) < THUMBNAIL // 2:  # enlarge it, or JPEG blurs the few pixels it has
            factor = THUMBNAIL // max(image.size)
            size = (image.width * factor, image.height * factor)
            image = image.resize(size, Image.Resampling.NEAREST)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=70, optimize=True)
        thumbnails.append(stream.getvalue())
    return thumbnails
