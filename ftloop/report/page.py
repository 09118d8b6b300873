"""Build a page for a browser: one file that fetches nothing, so it opens from a disk or a mail.

The style sheet is inline, follows the reader's light or dark mode, and prints. Figures are inline
SVG or small images in data: URIs, each with a caption and a link that saves its numbers as CSV. A
content security policy forbids every request, and every script except the one that sorts tables;
without that script the page is complete. All text is escaped here, because the texts of a data set
may contain HTML.
"""

import base64
import csv
import hashlib
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftloop.escape import for_csv
from ftloop.files import replace_file
from ftloop.report.page_assets import SCRIPT, STYLE

Columns = Mapping[str, Iterable[Any]]
"""Columns of equal length by name, for a CSV file."""

# Control characters and surrogates, and marks that reverse the order of the text around them
NOT_ALLOWED_IN_HTML = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Html(str):
    """Text that is HTML already and is not escaped again."""


# ---- text and numbers


def escape(value: Any) -> str:
    """Return any value as HTML. Invisible control characters become replacement characters."""
    if isinstance(value, Html):
        return value
    return html.escape(NOT_ALLOWED_IN_HTML.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def format_number(value: Any, digits: int = 3) -> str:
    """Format a number for a table: `digits` decimals, integers with thin spaces, NaN as a dash."""
    if value is None or value != value:
        return "\N{EN DASH}"
    if isinstance(value, str):
        return value
    if not isinstance(value, float) and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    is_tiny = value != 0 and abs(value) < 10**-digits
    if is_tiny or abs(value) >= 1000:
        return f"{value:.3g}"
    return f"{value:.{digits}f}"


def slug(text: str) -> str:
    """Return a name for an id or a file: lower-case words joined by hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-") or "part"


# ---- CSV


def to_csv(columns: Columns) -> str:
    """Return columns of equal length as CSV. Numbers keep all their digits; see `for_csv`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(for_csv, columns))
    for row in zip(*columns.values(), strict=True):
        writer.writerow(map(for_csv, row))
    return stream.getvalue()


def csv_link(columns: Columns, name: str) -> Html:
    """Return a link that saves columns as NAME.csv from the page itself."""
    data = base64.b64encode(to_csv(columns).encode("utf-8", "replace")).decode()
    href = f"data:text/csv;charset=utf-8;base64,{data}"
    return Html(f'<a class="data" download="{slug(name)}.csv" href="{href}">CSV</a>')


def csv_paragraph(columns: Columns, name: str) -> Html:
    """Return a paragraph with a link that saves the columns of a table as NAME.csv."""
    return Html(f"<p>{csv_link(columns, name)}</p>\n")


# ---- elements


@dataclass
class Column:
    """A column of a table. `kind` is "number", "text" (long) or "word" (short)."""

    header: str
    cells: Sequence[Any]
    kind: str = "word"
    digits: int = 3


def table(
    columns: Sequence[Column], caption: str = "", sortable: bool = False, tall: bool = False
) -> Html:
    """Return a table in a box that scrolls sideways on a narrow page; `tall` limits its height."""
    headers = "".join(
        f'<th scope="col" class="{column.kind}">{escape(column.header)}</th>' for column in columns
    )
    rows = []
    for values in zip(*(column.cells for column in columns), strict=True):
        cells = [table_cell(column, value) for column, value in zip(columns, values, strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    box = "scroll tall" if tall else "scroll"
    return Html(
        f'<div class="{box}" tabindex="0"><table{" class=sortable" if sortable else ""}>'
        f"{f'<caption>{escape(caption)}</caption>' if caption else ''}"
        f"<thead><tr>{headers}</tr></thead><tbody>\n{''.join(rows)}</tbody></table></div>\n"
    )


def table_cell(column: Column, value: Any) -> str:
    """Return the <td> of a value. Numbers carry their exact value, by which the script sorts."""
    if column.kind != "number" or isinstance(value, Html):
        return f'<td class="{column.kind}">{escape(value)}</td>'
    is_number = value is not None and not isinstance(value, str)
    exact = f' data-value="{float(value):.10g}"' if is_number else ""
    return f'<td class="number"{exact}>{escape(format_number(value, column.digits))}</td>'


def key_figures(values: Mapping[str, Any]) -> Html:
    """Return boxes with a value each and its name below."""
    boxes = [
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>\n"
        for name, value in values.items()
    ]
    return Html(f'<div class="facts">{"".join(boxes)}</div>\n')


def paragraph(text: Any, kind: str = "") -> Html:
    """Return a paragraph. `kind` is a class of the style sheet: "soft", "bad" or "hint"."""
    return Html(f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>\n")


def bullet_list(items: Iterable[Any], kind: str = "") -> Html:
    """Return a list with a bullet for each item."""
    return Html(
        "<ul>" + "".join(f'<li class="{kind}">{escape(item)}</li>\n' for item in items) + "</ul>\n"
    )


def preformatted(text: str) -> Html:
    """Return text as it was typed or stored, in a fixed-width font."""
    return Html(f"<pre>{escape(text)}</pre>\n")


def image(jpeg: bytes, description: str) -> Html:
    """Return a small image that is part of the page. `description` is its alternative text."""
    data = base64.b64encode(jpeg).decode()
    return Html(f'<img alt="{escape(description)}" src="data:image/jpeg;base64,{data}">')


def image_grid(items: Iterable[tuple[Html, Any]]) -> Html:
    """Return images side by side, each with its text below."""
    boxes = [f"<div>{picture}{escape(text)}</div>\n" for picture, text in items]
    return Html(f'<div class="pictures">{"".join(boxes)}</div>')


# ---- the page


@dataclass
class Page:
    """Sections under a title, with a table of contents."""

    title: str
    kind: str  # "report", "explore" or "compare": stands before the title in the browser's tab
    sections: list[tuple[str, list[str]]] = field(default_factory=list)  # title, elements
    figure_ids: set[str] = field(default_factory=set)

    def add_section(self, title: str) -> None:
        """Begin a section. Elements that are added from now on belong to it."""
        self.sections.append((title, []))

    def add(self, *elements: Html) -> None:
        """Add elements to the current section. Raises TypeError for text that is not HTML."""
        for element in elements:
            if not isinstance(element, Html):
                raise TypeError(f"not HTML: {element!r:.60}")
            self.sections[-1][1].append(element)

    def add_heading(self, title: str) -> None:
        """Add a heading within the section."""
        self.add(Html(f"<h3>{escape(title)}</h3>\n"))

    def add_grid(self, *elements: str) -> None:
        """Add elements side by side; on a narrow page they stand below each other."""
        self.add(Html(f'<div class="grid">{"".join(elements)}</div>\n'))

    def figure(self, name: str, svg: str, caption: str, data: Columns) -> Html:
        """Return a drawing with its caption and its numbers as NAME.csv; the caller adds it.

        `name` is also the id of the figure. Raises ValueError if the page has such a figure.
        """
        figure_id = slug(name)
        if figure_id in self.figure_ids:
            raise ValueError(f"two figures are named {name!r}")
        self.figure_ids.add(figure_id)
        return Html(
            f'<figure id="{figure_id}">\n{svg}\n'
            f"<figcaption>{escape(caption)} {csv_link(data, name)}</figcaption></figure>\n"
        )

    def render(self, footer: str) -> str:
        """Return the complete page. Two pages of the same run differ in their footer only."""
        links, sections = [], []
        for title, elements in self.sections:
            section_id = f"s-{slug(title)}"
            links.append(f'<a href="#{section_id}">{escape(title)}</a>\n')
            heading = f"<h2>{escape(title)}</h2>\n"
            sections.append(f'<section id="{section_id}">{heading}{"".join(elements)}</section>\n')
        script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
            f"script-src 'sha256-{script_hash}'"
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.kind)}: {escape(self.title)}</title>\n"
            f"<style>{STYLE}</style></head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1></header>\n<nav>{''.join(links)}</nav>\n"
            f"<main>{''.join(sections)}</main>\n"
            f'<footer><p class="soft">{escape(footer)}</p></footer>\n'
            f"<script>{SCRIPT}</script>\n</body></html>\n"
        )


def write_page(file: Path, text: str) -> int:
    """Write a page atomically: a reader sees the old one or the new one. Return its size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    encoded = text.encode("utf-8", "replace")
    with replace_file(file) as stream:
        stream.write(encoded)
    return len(encoded)
