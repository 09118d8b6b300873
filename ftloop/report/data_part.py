"""The data of a task as a page shows it: classes, lengths or sizes, some rows, and what the checks find. For `explore`
before training, and for the report after it.

Rows are counted all; lengths, sizes and examples are of no more rows than a page can bear, chosen at random by a seed.
"""

import io
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from ftloop.data import checks
from ftloop.errors import UserError, root_cause
from ftloop.report import figures, page
from ftloop.report.page import Column, Html, Page

logger = logging.getLogger("ftloop")

LONG = 5  # seconds: what takes longer is said
MEASURED = 5000  # rows whose texts are tokenised whole, or whose images are opened, at most
COMPARED = 20_000  # images that are searched for duplicates, at most: each file is read whole
BOXES = 24  # classes whose lengths are drawn
EXAMPLES = 20  # rows that are shown
CHARACTERS = 400  # of a text that is shown
THUMBNAIL = 96  # pixels of the longer side


@dataclass
class Rows:
    """The splits of a task as the source has them, with their labels encoded. Raises UserError where it cannot be
    read."""

    task: Any  # a Classification
    seed: int

    @cached_property
    def splits(self) -> dict[str, Any]:
        """A split that is a stream is there with its first rows."""
        return {
            split: rows if hasattr(rows, "features") else rows.head(self.task.data.shuffle_buffer)
            for split, rows in self.task.rows.items()
        }

    @cached_property
    def encoded(self) -> dict[str, numpy.ndarray]:
        """int [rows], 0/1 [rows, labels] or float [rows], by split."""
        return {split: numpy.asarray(self.task.encoded(rows, split)) for split, rows in self.splits.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.task.labels.names)

    def counts(self) -> dict[str, numpy.ndarray]:
        """The rows of each class, by split."""
        multi, names = self.task.labels.multi, self.names
        return {
            split: (values.sum(axis=0) if multi else numpy.bincount(values, minlength=len(names))).astype(int)
            for split, values in self.encoded.items()
        }

    def largest(self, most: int) -> list[int]:
        """The ids of the classes with the most rows in train, the largest first."""
        counts = next(iter(self.counts().values()))
        return [int(number) for number in numpy.argsort(-counts, kind="stable")[:most]]

    def having(self, split: str, label: int) -> numpy.ndarray:
        """bool [rows]: which rows of a split have this class or label."""
        values = self.encoded[split]
        return values[:, label] > 0 if self.task.labels.multi else values == label

    def chosen(self, split: str, most: int) -> numpy.ndarray:
        """Ids of so many rows at most, at random, ascending."""
        rows = len(self.splits[split])
        if rows <= most:
            return numpy.arange(rows)
        return numpy.sort(numpy.random.default_rng([self.seed, rows]).choice(rows, most, replace=False))

    def label(self, split: str, row: int) -> str:
        """In words."""
        value = self.encoded[split][row]
        return checks.in_words(value, self.task.labels) if self.names else f"{value:.4g}"


def is_classification(task: Any) -> bool:
    """Whether rows and labels are known, as those of a Classification are. Asked of the class: both are read when they
    are asked for."""
    return hasattr(type(task), "rows") and hasattr(type(task), "labels")


def is_image(task: Any) -> bool:
    return hasattr(task, "image_column")


def text_of(cells: Iterable[Any]) -> str:
    """The texts of a row, each on a line of its own, not longer than a page bears."""
    text = "\n".join(" ".join(str(value).split()) for value in cells)
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def texts(rows: Any, columns: Sequence[str], ids: Iterable[int]) -> list[str]:
    """The texts of some rows."""
    found = rows.select_columns(list(columns)).select([int(row) for row in ids])
    return [text_of(row.values()) for row in found]


def thumbnails(rows: Any, column: str, ids: Iterable[int]) -> list[bytes]:
    """The images of some rows as small JPEGs; an unreadable one, which training would refuse, as a grey square."""
    from PIL import Image

    from ftloop.data.images import UnreadableImage, decode_image

    found = []
    for row in checks.undecoded(rows.select_columns([column])).select([int(row) for row in ids]):
        try:
            image = Image.fromarray(decode_image(row[column]).permute(1, 2, 0).numpy())
        except UnreadableImage:
            image = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "grey")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        if max(image.size) < THUMBNAIL // 2:  # of 8 x 8 pixels: larger, or JPEG blurs what there is
            factor = THUMBNAIL // max(image.size)
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=70, optimize=True)
        found.append(stream.getvalue())
    return found


def show_rows(rows: Rows, split: str, ids: Sequence[int], columns: Sequence[Column], caption: str = "") -> Html:
    """Some rows with what `columns` say of them: a table of texts, or thumbnails with the words below."""
    task, source = rows.task, rows.splits[split]
    if is_image(task):
        said = [
            Html("<br>".join(page.escaped(f"{column.head} {shown(column, value)}") for column, value in pairs))
            for pairs in (list(zip(columns, row, strict=True)) for row in zip(*(c.cells for c in columns), strict=True))
        ]
        images = thumbnails(source, task.image_column, ids)
        described = [f"{split} {row}" for row in ids]
        shown_images = [page.picture(image, words) for image, words in zip(images, described, strict=True)]
        below = [Html(f"<b>{name}</b><br>{words}") for name, words in zip(described, said, strict=True)]
        title = page.words(caption, "soft") if caption else ""
        return Html(title + page.pictures(zip(shown_images, below, strict=True)))
    text = Column("text", texts(source, task.input_columns, ids), "text")
    columns = [Column("row", [str(int(row)) for row in ids], "number"), text, *columns]
    return Html((page.words(caption, "soft") if caption else "") + page.table(columns, tall=len(ids) > 10))


def shown(column: Column, value: Any) -> str:
    return page.number(value, column.digits) if column.kind == "number" else str(value)


# ---- the parts


def add_data(page_: Page, rows: Rows) -> None:
    """Sections: classes, lengths or sizes, examples, checks."""
    page_.section("Data")
    sizes = {split: page.number(len(found)) for split, found in rows.splits.items()}
    page_.add(page.facts({f"rows of {split}": count for split, count in sizes.items()}))
    if rows.task.data.streaming:
        page_.add(page.words("Train is a stream: what is said of it here is of its first rows.", "soft"))
    drawn = [classes(page_, rows), *measures(page_, rows)]
    page_.grid(*drawn)
    page_.section("Checks of the data")
    add_checks(page_, rows)
    page_.section("Some rows")
    add_examples(page_, rows)


def classes(page_: Page, rows: Rows) -> Html:
    """How many rows each class has."""
    if not rows.names:
        edges, shares = histogram(rows.encoded)
        columns = {"from": edges[:-1].tolist(), "to": edges[1:].tolist(), **shares}
        svg = figures.histogram(shares, edges, "value")
        return page_.figure("values", svg, "The values to predict, by split, as shares of its rows.", columns)
    counts = rows.counts()
    order = rows.largest(len(rows.names))
    columns = {"class": [rows.names[number] for number in order]}
    columns |= {f"rows of {split}": of[order].tolist() for split, of in counts.items()}
    groups = {split: of[order] for split, of in counts.items()}
    caption = "Rows of each class, by split."
    if rows.task.labels.multi:
        spread = [f"{split}: {values.sum(axis=1).mean():.2f}" for split, values in rows.encoded.items()]
        caption = f"Rows with each label, by split. Labels a row, in the mean: {', '.join(spread)}."
    if len(order) <= figures.NAMED:
        return page_.figure("classes", figures.bars(columns["class"], groups, "rows"), caption, columns)
    least, most = (counts["train"][order[end]] for end in (-1, 0))
    caption = (
        f"Rows of each of {len(order)} classes, by split, the largest first in each. Largest in train: "
        f"{rows.names[order[0]]} ({most}), smallest: {rows.names[order[-1]]} ({least}). All are in the CSV."
    )
    return page_.figure("classes", figures.ranked(groups, "rows"), caption, columns)


def histogram(groups: dict[str, numpy.ndarray], bins: int = 30) -> tuple[numpy.ndarray, dict[str, numpy.ndarray]]:
    """Common edges, and the share of each group's values between them."""
    edges = numpy.histogram_bin_edges(numpy.concatenate(list(groups.values())), bins)
    return edges, {name: numpy.histogram(values, edges)[0] / max(len(values), 1) for name, values in groups.items()}


def measures(page_: Page, rows: Rows) -> list[Html]:
    """Lengths of texts in tokens, or sizes of images, by class."""
    split = "train"
    ids = rows.chosen(split, MEASURED)
    task = rows.task
    of = f"{len(ids)} of {len(rows.splits[split])} rows" if len(ids) < len(rows.splits[split]) else f"{len(ids)} rows"
    if is_image(task):
        wide, high = sizes_of(rows.splits[split], task.image_column, ids)
        values, unit, name = numpy.minimum(wide, high), "pixels of the shorter side", "sizes"
        mark = (f"model sees {task.size}", float(task.size))
        extra = {"width": wide.tolist(), "height": high.tolist()}
        what = f"Sizes of the images of train, by class ({of})"
        tail = f"The dashed line is the side of what the model sees, {task.size} pixels: others are resized."
    elif hasattr(task, "text_columns"):
        values = token_lengths(task, rows.splits[split], ids)
        unit, name, extra = "tokens", "lengths", {}
        mark = (f"max length {task.max_length}", float(task.max_length))
        cut = int((values > task.max_length).sum())
        what = f"Lengths of the texts of train in tokens, by class ({of})"
        tail = f"Longer than the dashed line, --task.max-length {task.max_length}: {cut} ({cut / len(values):.1%})."
    else:
        return []
    names, groups = ["all rows"], [values]
    limit = ""
    if rows.names:
        held = {label: rows.having(split, label)[ids] for label in rows.largest(BOXES)}
        names += [rows.names[label] for label, found in held.items() if found.any()]
        groups += [values[found] for found in held.values() if found.any()]
        limit = f" The {BOXES} largest classes of {len(rows.names)}." if len(rows.names) > BOXES else ""
    columns = {"row": ids.tolist(), "label": [rows.label(split, row) for row in ids], name: values.tolist(), **extra}
    caption = f"{what}: the box holds the middle half, the line 90 %, the point is the greatest.{limit} {tail}"
    return [page_.figure(name, figures.boxes(names, groups, unit, mark), caption, columns)]


def token_lengths(task: Any, rows: Any, ids: numpy.ndarray) -> numpy.ndarray:
    """How many tokens whole texts are, before anything is cut."""
    found = rows.select_columns(list(task.text_columns)).select(ids)
    tokenizer, lengths = task.processor, []
    for begin in range(0, len(found), 1000):
        part = found[begin : begin + 1000]
        encoded = tokenizer(*(part[column] for column in task.text_columns), truncation=False, verbose=False)
        lengths += [len(tokens) for tokens in encoded["input_ids"]]
    return numpy.array(lengths)


def sizes_of(rows: Any, column: str, ids: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Width and height of images, from their heads alone; 0 of what cannot be read."""
    import warnings

    from PIL import Image

    found = []
    for row in checks.undecoded(rows.select_columns([column])).select(ids):
        value = row[column]
        value = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        encoded = value.get("bytes")
        try:
            with warnings.catch_warnings():  # of damaged EXIF blocks, of very large images
                warnings.simplefilter("ignore")
                with Image.open(value["path"] if encoded is None else io.BytesIO(encoded)) as image:
                    found.append(image.size)
        except Exception:  # each of PIL's readers has its own; training names the file and refuses it
            found.append((0, 0))
    wide, high = numpy.array(found).T
    return wide, high


def add_checks(page_: Page, rows: Rows) -> None:
    """What ftloop/data/checks.py finds: leaks, duplicates, contradictions, odd names."""
    full = sum(map(len, rows.splits.values())) <= (COMPARED if is_image(rows.task) else checks.QUICK_ROWS)
    found = [
        finding for finding in checks.findings(rows.task, full=full) if finding.mistake or "\n" not in finding.text
    ]
    mistakes = [finding.text for finding in found if finding.mistake]
    others = [finding.text for finding in found if not finding.mistake]
    if mistakes:
        page_.add(page.words("These usually are mistakes:"), page.listed(mistakes, "finding"))
    else:
        page_.add(page.words("Nothing looks like a mistake."))
    if others:
        page_.add(page.words("For information:", "soft"), page.listed(others, "finding"))


def add_examples(page_: Page, rows: Rows) -> None:
    """Rows of train at random: from the largest classes one each, then others."""
    split, most = "train", min(EXAMPLES, len(rows.splits["train"]))
    draw = numpy.random.default_rng([rows.seed, 1])
    ids: list[int] = []
    for label in rows.largest(most) if rows.names else ():
        having = numpy.flatnonzero(rows.having(split, label))
        having = having[~numpy.isin(having, ids)]
        if len(having):
            ids.append(int(draw.choice(having)))
    left = numpy.setdiff1d(numpy.arange(len(rows.splits[split])), ids)
    ids += [int(row) for row in draw.choice(left, most - len(ids), replace=False)]
    columns = [Column("label", [rows.label(split, row) for row in ids])]
    page_.add(show_rows(rows, split, ids, columns, "Rows of train, chosen at random: at first one of each class."))


def attempt(made: Page, title: str, add: Callable[[], None]) -> None:
    """Let `add` add a section. What goes wrong is said there and on the terminal; the rest of the page is written. So
    is what takes long."""
    before, began = len(made.sections), time.monotonic()
    try:
        add()
    except Exception as error:  # whatever a fork's task or an odd data set makes of it: the other sections still tell
        reason = str(error) if isinstance(error, UserError) else root_cause(error)
        if len(made.sections) == before:
            made.section(title)
        made.add(page.words(f"This part could not be made: {reason}", "bad"))
        logger.warning("%s: %s could not be made: %s", made.kind, title, reason)
    seconds = time.monotonic() - began
    if seconds > LONG:
        logger.info("%s: %s: %.0f s", made.kind, title, seconds)


def versions() -> dict[str, str]:
    """Of what a page was made with."""
    from importlib.metadata import PackageNotFoundError, version

    from ftloop import __version__

    found = {"ftloop": __version__}
    for name in (
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "scikit-learn",
        "numpy",
        "matplotlib",
        "umap-learn",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def written_by() -> str:
    """The last line of a page: by which command, and when."""
    script = Path(sys.argv[0])
    command = ["python", *(["-m", "ftloop"] if script.name == "__main__.py" else [script.name]), *sys.argv[1:]]
    return f"Written by ftloop at {time.strftime('%Y-%m-%d %H:%M:%S %z')}: {shlex.join(command)}"


def relative(folder: Path) -> str:
    """As it is shown: relative to the working folder where it lies in it."""
    try:
        return str(folder.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
