"""The data of a task on a page: classes, lengths or sizes, checks, and example rows.

`explore` writes it before training, and the report shows it after training.
"""

import io
import warnings
from typing import Any

import numpy

from ftloop.data import checks
from ftloop.report import figures
from ftloop.report.page import (
    Column,
    Html,
    Page,
    bullet_list,
    format_number,
    key_figures,
    paragraph,
)
from ftloop.report.sections import format_row_count
from ftloop.report.task_rows import TaskRows, is_image_task, show_rows

MAX_MEASURED = 5000  # rows whose texts are tokenized, or whose images are opened
MAX_COMPARED_IMAGES = 20_000  # images that are searched for duplicates: every file is read
MAX_CLASSES = 24  # classes whose lengths are drawn
MAX_EXAMPLES = 20  # rows that are shown


def add_data_sections(page: Page, rows: TaskRows) -> None:
    """Add the sections "Data", "Data checks" and "Example rows"."""
    page.add_section("Data")
    counts = {
        f"rows of {split}": format_number(len(of_split)) for split, of_split in rows.splits.items()
    }
    page.add(key_figures(counts))
    if rows.task.data.streaming:
        note = "The training split is a stream: this section describes its first rows."
        page.add(paragraph(note, "soft"))
    figures_ = [class_figure(page, rows) if rows.class_names else value_figure(page, rows)]
    if is_image_task(rows.task):
        figures_.append(size_figure(page, rows))
    elif hasattr(rows.task, "text_columns"):
        figures_.append(length_figure(page, rows))
    page.add_grid(*figures_)

    page.add_section("Data checks")
    add_checks(page, rows)

    page.add_section("Example rows")
    add_examples(page, rows)


# ---- classes and values


def class_figure(page: Page, rows: TaskRows) -> Html:
    """Draw the number of rows of each class, as bars or, for many classes, as a curve."""
    order = rows.largest_classes(len(rows.class_names))
    names = [rows.class_names[label] for label in order]
    counts = {split: of_split[order] for split, of_split in rows.class_counts.items()}
    data = {"class": names}
    data |= {f"rows of {split}": of_split.tolist() for split, of_split in counts.items()}
    caption = "Rows of each class, by split."
    if rows.task.labels.is_multi_label:
        means = [
            f"{split}: {labels.sum(axis=1).mean():.2f}" for split, labels in rows.labels.items()
        ]
        caption = f"Rows with each label, by split. Mean labels per row: {', '.join(means)}."
    if len(names) <= figures.MAX_NAMED:
        return page.figure("classes", figures.bars(names, counts, "rows"), caption, data)
    caption = (
        f"Rows of each of {len(names)} classes, by split; each split is sorted by size. The "
        f"largest in train is {names[0]} ({counts['train'][0]}), the smallest is {names[-1]} "
        f"({counts['train'][-1]}). The CSV lists all classes."
    )
    return page.figure("classes", figures.ranked(counts, "rows"), caption, data)


def value_figure(page: Page, rows: TaskRows) -> Html:
    """Draw a histogram of the values to predict."""
    edges, shares = histogram(rows.labels)
    data = {"from": edges[:-1].tolist(), "to": edges[1:].tolist(), **shares}
    caption = "The values to predict, by split, as shares of its rows."
    return page.figure("values", figures.histogram(shares, edges, "value"), caption, data)


def histogram(
    groups: dict[str, numpy.ndarray], bins: int = 30
) -> tuple[numpy.ndarray, dict[str, numpy.ndarray]]:
    """Return common edges, and the share of each group's values between them."""
    edges = numpy.histogram_bin_edges(numpy.concatenate(list(groups.values())), bins)
    shares = {
        name: numpy.histogram(values, edges)[0] / max(len(values), 1)
        for name, values in groups.items()
    }
    return edges, shares


# ---- lengths and sizes


def length_figure(page: Page, rows: TaskRows) -> Html:
    """Draw the lengths of the training texts in tokens, by class."""
    row_ids = rows.sample("train", MAX_MEASURED)
    lengths = count_tokens(rows.task, rows.splits["train"], row_ids)
    max_length = rows.task.max_length
    longer = int((lengths > max_length).sum())
    return box_figure(
        page,
        rows,
        row_ids,
        name="lengths",
        values=lengths,
        unit="tokens",
        mark=(f"max length {max_length}", float(max_length)),
        title="Lengths of the training texts in tokens, by class",
        note=f"Longer than --max-length {max_length} (dashed line): {longer} "
        f"({longer / len(lengths):.1%}).",
    )


def size_figure(page: Page, rows: TaskRows) -> Html:
    """Draw the shorter sides of the training images, by class."""
    task = rows.task
    row_ids = rows.sample("train", MAX_MEASURED)
    widths, heights = read_image_sizes(rows.splits["train"], task.image_column, row_ids)
    return box_figure(
        page,
        rows,
        row_ids,
        name="sizes",
        values=numpy.minimum(widths, heights),
        unit="pixels of the shorter side",
        mark=(f"model input {task.size}", float(task.size)),
        title="Sizes of the training images, by class",
        note=f"Images are resized to the model input, {task.size} pixels (dashed line).",
        more_data={"width": widths.tolist(), "height": heights.tolist()},
    )


def box_figure(
    page: Page,
    rows: TaskRows,
    row_ids: numpy.ndarray,
    *,
    name: str,
    values: numpy.ndarray,
    unit: str,
    mark: tuple[str, float],
    title: str,
    note: str,
    more_data: dict[str, list[Any]] | None = None,
) -> Html:
    """Draw the distribution of a value over some training rows, for all rows and for each class."""
    groups = {"all rows": values}
    limit = ""
    if rows.class_names:
        for label in rows.largest_classes(MAX_CLASSES):
            has_label = rows.has_label("train", label)[row_ids]
            if has_label.any():
                groups[rows.class_names[label]] = values[has_label]
        if len(rows.class_names) > MAX_CLASSES:
            limit = f" The {MAX_CLASSES} largest of {len(rows.class_names)} classes are shown."
    data = {
        "row": row_ids.tolist(),
        "label": [rows.format_label("train", row) for row in row_ids],
        name: values.tolist(),
        **(more_data or {}),
    }
    count = format_row_count(len(row_ids), len(rows.splits["train"]))
    caption = (
        f"{title} ({count}). Boxes hold the middle half of the rows, lines 90 %; points are the "
        f"maxima.{limit} {note}"
    )
    svg = figures.boxes(list(groups), list(groups.values()), unit, mark)
    return page.figure(name, svg, caption, data)


def count_tokens(task: Any, rows: Any, row_ids: numpy.ndarray) -> numpy.ndarray:
    """Return the number of tokens of whole texts, before they are truncated."""
    selected = rows.select_columns(list(task.text_columns)).select(row_ids)
    lengths = []
    for start in range(0, len(selected), 1000):
        batch = selected[start : start + 1000]
        texts = [batch[column] for column in task.text_columns]
        encoded = task.processor(*texts, truncation=False, verbose=False)
        lengths += [len(tokens) for tokens in encoded["input_ids"]]
    return numpy.array(lengths)


def read_image_sizes(
    rows: Any, column: str, row_ids: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the widths and heights of images from their headers; 0 for unreadable ones."""
    from PIL import Image

    sizes = []
    for row in checks.disable_decoding(rows.select_columns([column])).select(row_ids):
        cell = row[column]
        if not isinstance(cell, dict):
            cell = {"bytes" if isinstance(cell, bytes) else "path": cell}
        content = cell.get("bytes")
        try:
            with warnings.catch_warnings():  # about damaged EXIF blocks and very large images
                warnings.simplefilter("ignore")
                file = cell["path"] if content is None else io.BytesIO(content)
                with Image.open(file) as image:
                    sizes.append(image.size)
        except Exception:  # PIL's readers raise many kinds; training names the file and refuses it
            sizes.append((0, 0))
    widths, heights = numpy.array(sizes).T
    return widths, heights


# ---- checks and examples


def add_checks(page: Page, rows: TaskRows) -> None:
    """Add the findings of ftloop/data/checks.py: leaks, duplicates, contradictions, odd names."""
    row_count = sum(map(len, rows.splits.values()))
    limit = MAX_COMPARED_IMAGES if is_image_task(rows.task) else checks.QUICK_ROWS
    mistakes, information = [], []
    for finding in checks.check_rows(rows.task, full=row_count <= limit):
        if finding.is_mistake:
            mistakes.append(finding.text)
        elif "\n" not in finding.text:  # not the tables of classes, which are drawn above
            information.append(finding.text)
    if mistakes:
        page.add(paragraph("These findings are usually mistakes:"))
        page.add(bullet_list(mistakes, "finding"))
    else:
        page.add(paragraph("No finding looks like a mistake."))
    if information:
        page.add(paragraph("For information:", "soft"))
        page.add(bullet_list(information, "finding"))


def add_examples(page: Page, rows: TaskRows) -> None:
    """Add random training rows: first one of each of the largest classes, then others."""
    split, count = "train", min(MAX_EXAMPLES, len(rows.splits["train"]))
    generator = numpy.random.default_rng([rows.seed, 1])
    row_ids: list[int] = []
    for label in rows.largest_classes(count) if rows.class_names else ():
        candidates = numpy.flatnonzero(rows.has_label(split, label))
        candidates = candidates[~numpy.isin(candidates, row_ids)]
        if len(candidates):
            row_ids.append(int(generator.choice(candidates)))
    others = numpy.setdiff1d(numpy.arange(len(rows.splits[split])), row_ids)
    row_ids += [int(row) for row in generator.choice(others, count - len(row_ids), replace=False)]
    labels = Column("label", [rows.format_label(split, row) for row in row_ids])
    caption = "Random training rows: first one of each class, then others."
    page.add(show_rows(rows, split, row_ids, [labels], caption))
