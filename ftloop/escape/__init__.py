"""Escape text of a data set, a record or a user for the place where it is shown.

Label names, texts and records may come from anybody. Each medium has one function, which everything
that writes to it uses:

    for_terminal(text)    log lines, errors and tables on a terminal
    for_csv(cell)         cells of a CSV file that a spreadsheet may open
    for_markdown(text)    the model card; its YAML block is written by a library

HTML is escaped by `ftloop.report.page`, which builds all pages.
"""

import re
import unicodedata
from typing import Any

JOINERS = "\u200c\u200d"  # between letters of Persian and Hindi, and within emoji
FORMULA = re.compile(r"'*(\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r])")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?%?")
# A word that begins or ends with an underscore would be emphasized, and www. would become a link.
PLAIN_MARKDOWN = re.compile(r"(?!.*(?:www\.|\b_|_\b))[\w ,;.+/%-]*", re.IGNORECASE)


def printable(text: Any) -> str:
    r"""Return a text on one line: characters that cannot be seen become \n, \x1b or \u202e.

    These are control characters, which move the cursor or change colors, and marks that reverse the
    order in which other characters are shown.
    """
    return "".join(map(_printable_character, str(text)))


def for_terminal(text: Any) -> str:
    """Return a message for a terminal. Its second and later lines are indented.

    So a text within a message can neither control the terminal nor look like another message.
    """
    first, *others = map(printable, str(text).split("\n"))
    indented = (line if line.startswith("  ") else f"    {line}" for line in others)
    return "\n".join([first, *indented])


def for_csv(cell: Any) -> Any:
    """Return a cell for a CSV file: texts that a spreadsheet takes for a formula get an apostrophe.

    Numbers are left as they are, also as texts. To undo it, remove one apostrophe from each cell in
    which `FORMULA` matches a text that begins with one.
    """
    if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def for_markdown(text: Any) -> str:
    """Return a text for Markdown, on one line: as it is if it is plain, else as a code span."""
    text = printable(text)
    return text if PLAIN_MARKDOWN.fullmatch(text) else code_span(text)


def code_span(text: Any) -> str:
    """Return a text as code in Markdown, in which nothing is a link, HTML or emphasis."""
    text = printable(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    needs_space = text.startswith(("`", " ")) or text.endswith(("`", " ")) or not text
    return f"{fence} {text} {fence}" if needs_space else f"{fence}{text}{fence}"


def _printable_character(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    if unicodedata.category(character) == "Zs":  # spaces of other widths
        return character
    return character.encode("unicode_escape").decode()
