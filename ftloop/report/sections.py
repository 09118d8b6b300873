"""What several sections and pages share: failing gracefully, versions, and small formats."""

import logging
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy

from ftloop import __version__
from ftloop.errors import UserError, root_cause
from ftloop.report.page import Html, Page, escape, format_number, paragraph

logger = logging.getLogger("ftloop")

SLOW_SECTION = 5  # seconds: sections that take longer are logged
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "scikit-learn",
    "numpy",
    "matplotlib",
    "umap-learn",
)


def try_section(page: Page, title: str, add_section: Callable[[], None]) -> None:
    """Call a function that adds a section. If it fails, the page and the log say why.

    The other sections are written all the same. A slow section is logged with its time.
    """
    sections_before, start = len(page.sections), time.monotonic()
    try:
        add_section()
    except Exception as error:  # a task of a fork or an unusual data set can raise anything
        reason = str(error) if isinstance(error, UserError) else root_cause(error)
        if len(page.sections) == sections_before:
            page.add_section(title)
        page.add(paragraph(f"This section could not be written: {reason}", "bad"))
        logger.warning("%s: the section %r could not be written: %s", page.kind, title, reason)
    seconds = time.monotonic() - start
    if seconds > SLOW_SECTION:
        logger.info("%s: the section %r took %.0f s", page.kind, title, seconds)


def installed_versions() -> dict[str, str]:
    """Return the versions of ftloop and of the libraries that are installed here."""
    versions = {"ftloop": __version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def page_footer() -> str:
    """Return the last line of a page: when it was written, and by which command."""
    script = Path(sys.argv[0])
    # `python -m package` runs the file package/__main__.py.
    program = f"-m ftloop.{script.parent.name}" if script.stem == "__main__" else script.name
    command = f"python {program} {shlex.join(sys.argv[1:])}"
    return f"Written by ftloop at {time.strftime('%Y-%m-%d %H:%M:%S %z')}: {command}"


def format_duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_row_count(count: int, total: int) -> str:
    """Return "2000 of 9000 rows", or "9000 rows" if these are all."""
    return f"{count} of {total} rows" if count < total else f"{total} rows"


def shorten_path(path: Any) -> str:
    """Return the last two parts of a path or of a Hub id."""
    return "/".join(str(path).rstrip("/").split("/")[-2:])


def has_interval(interval: Any) -> bool:
    """Tell whether a score has a bootstrap interval (a `bootstrap.Interval`)."""
    return interval is not None and bool(numpy.isfinite(interval.low))


def interval_columns(intervals: list[Any]) -> dict[str, list[Any]]:
    """Return the ends of intervals as the CSV columns "low" and "high"; missing ends are empty."""
    return {
        "low": [interval.low if has_interval(interval) else "" for interval in intervals],
        "high": [interval.high if has_interval(interval) else "" for interval in intervals],
    }


def value_with_interval(value: Any, interval: Any) -> Any:
    """Return a table cell with a value and, if it has one, its interval below."""
    if not has_interval(interval):
        return value
    low, high = format_number(interval.low, 4), format_number(interval.high, 4)
    return Html(f"{escape(format_number(value, 4))}<small>[{low}, {high}]</small>")
