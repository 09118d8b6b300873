"""A page for a browser in one file: nothing is fetched, so that it opens from a disk, a mail or a tracker, for years.

The style sheet is inline, light or dark as the reader's system is, and prints. Figures are inline SVG (or small images
in data: URIs), each with a caption and a link that saves its numbers as CSV. A content security policy forbids every
request, and every script but the one below, which sorts tables when their heads are clicked: without it the page is
whole. All words are escaped here, for texts of a data set may hold HTML.
"""

import base64
import csv
import hashlib
import html
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --fore: #1c2024; --soft: #60666c; --line: #d9dce0; --tint: #f4f5f7;
  --link: #0b62b8; --bad: #b4231f; --good: #1a7f37 }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --fore: #e3e6e8; --soft: #9aa1a8; --line: #32373c;
  --tint: #1d2125; --link: #74b3f2; --bad: #ff8a80; --good: #6fcf87 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 1100px; padding: 1rem; background: var(--back); color: var(--fore);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Helvetica, Arial, sans-serif }
a { color: var(--link) }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0 .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem }
p { margin: .5rem 0; max-width: 75ch; overflow-wrap: anywhere }
.soft, figcaption, .hint { color: var(--soft); font-size: .87rem }
.bad { color: var(--bad) } .good { color: var(--good) }
nav { margin: 1rem 0; padding: .6rem .9rem; background: var(--tint); border-radius: 6px; font-size: .93rem }
nav a { display: inline-block; margin: .15rem .9rem .15rem 0 }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .6rem; margin: 1rem 0 }
.facts div { background: var(--tint); border-radius: 6px; padding: .5rem .7rem; overflow-wrap: anywhere }
.facts b { display: block; font-size: 1.1rem; line-height: 1.3 }
.facts span { color: var(--soft); font-size: .82rem }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1rem 1.6rem;
  align-items: start }
figure { margin: .8rem 0; min-width: 0 }
figure > svg { display: block; width: 100%; height: auto; max-width: 620px }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif !important }
figcaption { margin-top: .3rem; max-width: 75ch }
.scroll { overflow-x: auto; margin: .6rem 0; max-width: 100% }
.tall { max-height: 34rem; overflow-y: auto } .tall th { position: sticky; top: 0; background: var(--back) }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem }
th, td { padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600; vertical-align: bottom }
td.number, th.number { text-align: right } td.number { white-space: nowrap }
td.word { min-width: 6rem; max-width: 14rem; overflow-wrap: anywhere }
td.text { min-width: 15rem; overflow-wrap: anywhere; white-space: pre-line }
td small { display: block; color: var(--soft) }
th button { all: unset; cursor: pointer } th button:focus-visible { outline: 2px solid var(--link) }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
pre { background: var(--tint); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: .7rem; margin: .6rem 0 }
.pictures div { font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere }
.pictures img { display: block; width: 96px; height: 96px; object-fit: contain; background: var(--tint);
  image-rendering: auto; margin-bottom: .2rem }
li { overflow-wrap: anywhere; max-width: 75ch } li.finding { white-space: pre-line; margin: .3rem 0 }
@media (max-width: 480px) { body { padding: .7rem; font-size: 14px } h1 { font-size: 1.35rem } }
@media print { :root { --back: #fff; --fore: #000; --soft: #444; --line: #bbb; --tint: #f4f4f4; color-scheme: light }
  body { max-width: none; padding: 0; font-size: 10pt } nav, .hint, a.data { display: none }
  figure, tr, .facts div, .pictures div { break-inside: avoid } h2, h3 { break-after: avoid }
  .scroll, .tall { overflow: visible; max-height: none } .grid { grid-template-columns: 1fr 1fr } }
"""

# Sorts a table by the column whose head is clicked: as numbers where they are numbers, else as words.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => (a - b) || String(a).localeCompare(String(b), undefined, {numeric: true});
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => down * compare(value(a), value(b))));
    });
  });
}
"""


class Html(str):
    """Text that is HTML already, and not escaped again."""


def escaped(value: Any) -> str:
    """Any value as HTML. Control characters, which would make the page invalid, are replaced by a sign for them."""
    if isinstance(value, Html):
        return value
    return html.escape(
        re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(value))
    )


def number(value: Any, digits: int = 3) -> str:
    """A number for a table: whole ones with thin spaces, others with so many significant decimals; none: a dash."""
    if value is None or value != value:
        return "\N{EN DASH}"
    if isinstance(value, str):
        return value
    if float(value).is_integer() and abs(value) < 1e15 and not isinstance(value, float):
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.{digits}f}" if abs(value) < 1000 and (abs(value) >= 10**-digits or value == 0) else f"{value:.3g}"


def slug(text: str) -> str:
    """A name for an id or a file: lower case, words joined by hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "part"


def csv_of(columns: Mapping[str, Iterable[Any]]) -> str:
    """Columns of one length as CSV. Numbers keep all their digits; what is missing is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return stream.getvalue()


def download(columns: Mapping[str, Iterable[Any]], name: str) -> Html:
    """A link that saves columns as NAME.csv, from the page itself."""
    data = base64.b64encode(csv_of(columns).encode("utf-8", "replace")).decode()
    return Html(f'<a class="data" download="{slug(name)}.csv" href="data:text/csv;charset=utf-8;base64,{data}">CSV</a>')


@dataclass
class Column:
    """A column of a table: its cells, and how they are shown. `kind`: number, text (long) or word."""

    head: str
    cells: Sequence[Any]
    kind: str = "word"
    digits: int = 3


def cell(column: Column, value: Any) -> str:
    if isinstance(value, Html):
        return f'<td class="{column.kind}">{value}</td>'
    if column.kind != "number":
        return f'<td class="{column.kind}">{escaped(value)}</td>'
    raw = "" if value is None or isinstance(value, str) else f' data-value="{float(value):.10g}"'
    return f'<td class="number"{raw}>{escaped(number(value, column.digits))}</td>'


def table(columns: Sequence[Column], caption: str = "", sortable: bool = False, tall: bool = False) -> Html:
    """Columns as a table, in a box of its own that scrolls sideways where the page is narrow."""
    heads = "".join(f'<th scope="col" class="{column.kind}">{escaped(column.head)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(cell(column, value) for column, value in zip(columns, row, strict=True)) + "</tr>\n"
        for row in zip(*(column.cells for column in columns), strict=True)
    )
    caption = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return Html(
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0"><table{" class=sortable" if sortable else ""}>'
        f"{caption}<thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )


def facts(pairs: Mapping[str, Any]) -> Html:
    """A few numbers or words to be seen at once, each with what it is."""
    boxes = "".join(
        f"<div><b>{escaped(value)}</b><span>{escaped(name)}</span></div>\n" for name, value in pairs.items()
    )
    return Html(f'<div class="facts">{boxes}</div>\n')


def words(text: Any, kind: str = "") -> Html:
    """A paragraph."""
    return Html(f"<p{f' class={kind}' if kind else ''}>{escaped(text)}</p>\n")


def listed(items: Iterable[Any], kind: str = "") -> Html:
    """A list of points."""
    return Html("<ul>" + "".join(f'<li class="{kind}">{escaped(item)}</li>\n' for item in items) + "</ul>\n")


def code(text: str) -> Html:
    """Text as it was typed or stored."""
    return Html(f"<pre>{escaped(text)}</pre>\n")


def picture(jpeg: bytes, described: str) -> Html:
    """A small image that is part of the page. `described`: for those who do not see it."""
    return Html(f'<img alt="{escaped(described)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">')


def pictures(items: Iterable[tuple[Html, Any]]) -> Html:
    """Images side by side, each with words below."""
    return Html(
        '<div class="pictures">' + "".join(f"<div>{image}{escaped(below)}</div>\n" for image, below in items) + "</div>"
    )


@dataclass
class Page:
    """Sections under a title, with a table of contents."""

    title: str
    kind: str  # what is before the title in the browser's tab: report, data, comparison
    sections: list[tuple[str, list[str]]] = field(default_factory=list)  # title, and parts
    ids: set[str] = field(default_factory=set)

    def section(self, title: str) -> None:
        """Begin a section: what is added goes there."""
        self.sections.append((title, []))

    def add(self, *parts: str) -> None:
        """Parts as the functions of this module make them; anything else is a mistake of the caller."""
        for part in parts:
            if not isinstance(part, Html):
                raise TypeError(f"not HTML: {part!r:.60}")
            self.sections[-1][1].append(part)

    def heading(self, title: str) -> None:
        self.add(Html(f"<h3>{escaped(title)}</h3>\n"))

    def figure(self, name: str, svg: str, caption: str, data: Mapping[str, Iterable[Any]]) -> Html:
        """A drawing with its caption and its numbers. `name` is the figure's id, and the name of its CSV. Returned, so
        that the caller puts it into a grid; `add` it otherwise."""
        if slug(name) in self.ids:
            raise ValueError(f"two figures are named {name!r}")
        self.ids.add(slug(name))
        return Html(
            f'<figure id="{slug(name)}">\n{svg}\n'
            f"<figcaption>{escaped(caption)} {download(data, name)}</figcaption></figure>\n"
        )

    def grid(self, *figures: str) -> None:
        """Figures beside each other where the page is wide, else below each other."""
        self.add(Html(f'<div class="grid">{"".join(figures)}</div>\n'))

    def html(self, written: str) -> str:
        """The whole page; `written` is its last line: by what and when, the only thing that differs between two pages
        of the same run."""
        ids = [f"s-{slug(title)}" for title, _ in self.sections]
        contents = "".join(
            f'<a href="#{name}">{escaped(title)}</a>\n' for name, (title, _) in zip(ids, self.sections, strict=True)
        )
        body = "".join(
            f'<section id="{name}"><h2>{escaped(title)}</h2>\n{"".join(parts)}</section>\n'
            for name, (title, parts) in zip(ids, self.sections, strict=True)
        )
        allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'"
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>{escaped(self.kind)}: {escaped(self.title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
            f"<header><h1>{escaped(self.title)}</h1></header>\n<nav>{contents}</nav>\n<main>{body}</main>\n"
            f'<footer><p class="soft">{escaped(written)}</p></footer>\n<script>{SCRIPT}</script>\n</body></html>\n'
        )


def write(file: Path, text: str) -> int:
    """Write a page, aside and then renamed: whoever looks meanwhile sees the one before. The size in bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    encoded = text.encode("utf-8", "replace")
    aside.write_bytes(encoded)
    aside.replace(file)
    return len(encoded)
