"""The report of a run: one page, made from what the run folder holds.

The report of a finished run has all sections. While a run trains (--report-every, or the command by
hand), its report has the curves, the data and the options. The work is bounded for data of any
size; the page says where a sample was used.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftloop.config import Config
from ftloop.errors import UserError, read_json
from ftloop.files import refuse_links
from ftloop.report import (
    classes_section,
    config_section,
    curves,
    map_section,
    probabilities_section,
    result_section,
    rows_section,
)
from ftloop.report.data_section import add_data_sections
from ftloop.report.finished_run import FinishedRun
from ftloop.report.history import History
from ftloop.report.page import Page, write_page
from ftloop.report.sections import page_footer, try_section
from ftloop.report.task_rows import TaskRows, is_classification
from ftloop.runs.record import load_config

logger = logging.getLogger("ftloop")


def write_report(
    run_dir: str | Path, out: Path | None = None, search_rows: int | None = None
) -> Path:
    """Write the report of a run, by default RUN/report.html, and return where it is.

    `search_rows`: training rows that are searched for label errors; by default as many as take some
    seconds. Raises UserError for a folder without a run. Errors in a section are reported there.
    """
    if search_rows is not None and search_rows < 1:
        raise UserError(f"--search must be at least 1, but is {search_rows}.")
    run_dir = Path(run_dir)
    config = load_config(run_dir)
    refuse_links(run_dir)
    out = out or run_dir / "report.html"
    import sklearn.linear_model  # noqa: F401 - loads the libraries whose threads are limited here
    from threadpoolctl import threadpool_limits

    # Small regressions gain nothing from several BLAS threads. On busy cores, these threads wait
    # for each other for minutes, and their number changes the last digits. torch has threads of
    # its own.
    with threadpool_limits(1, user_api="blas"):
        text = build_page(run_dir, config, search_rows).render(page_footer())
    size = write_page(out, text)
    logger.info("The report is %s (%.1f MB).", out, size / 1e6)
    return out


def build_page(run_dir: Path, config: Config, search_rows: int | None = None) -> Page:
    """Build the report with the sections that the state of the run and its task allow."""
    scores_file = run_dir / "scores.json"
    is_finished = scores_file.is_file()
    scores_type = dict[str, dict[str, float | None]]
    scores = read_json(scores_file, scores_type) if is_finished else None
    history = History.read(run_dir)
    name = run_dir.resolve().name
    page = Page(name if is_finished else f"Still training: {name}", "report")

    def add(title: str, add_section: Callable[..., None], *arguments: Any) -> None:
        try_section(page, title, lambda: add_section(page, *arguments))

    has_rows = is_classification(config.task)
    if has_rows and scores is not None:
        run = FinishedRun(run_dir, config, scores)
        rows = TaskRows(run.task, config.seed)
        add("Result", result_section.add_result, run, history)
        add("Curves", curves.add_curves, {"": history})
        add("Classes", classes_section.add_classes, run)
        add("Probabilities", probabilities_section.add_probabilities, run)
        add("Highest and lowest losses", rows_section.add_extreme_losses, run, rows)
        add("Likely label errors", rows_section.add_label_errors, run, rows, history, search_rows)
        add("Feature map", map_section.add_feature_map, run)
    else:
        rows = TaskRows(config.task, config.seed)
        add("Result", result_section.add_result_without_rows, config, history, scores)
        add("Curves", curves.add_curves, {"": history})
    if has_rows:
        add("Data", add_data_sections, rows)
    add("Options and versions", config_section.add_config, run_dir, config)
    return page
