"""Compare several runs on a page: their options, scores and curves, and their rows one by one.

Rows are compared, also by the paired bootstrap, only for runs that were scored on the same rows. If
inputs or labels differ, the page says so.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from ftloop.config import differences, read_record
from ftloop.data.shape import row_digests
from ftloop.errors import UserError, read_json
from ftloop.report import bootstrap, curves, figures
from ftloop.report.config_section import option_name
from ftloop.report.finished_run import FinishedRun
from ftloop.report.history import History
from ftloop.report.page import (
    Column,
    Html,
    Page,
    bullet_list,
    csv_paragraph,
    format_number,
    key_figures,
    paragraph,
    table,
    write_page,
)
from ftloop.report.rows_section import format_labels
from ftloop.report.scored import ScoredSplit
from ftloop.report.sections import (
    format_duration,
    has_interval,
    interval_columns,
    page_footer,
    try_section,
    value_with_interval,
)
from ftloop.report.task_rows import TaskRows, is_classification, show_rows
from ftloop.runs.record import load_config

logger = logging.getLogger("ftloop")

MAX_CHANGED_ROWS = 30  # rows of each pair of runs that are shown
MAX_CSV_ROWS = 5000

Runs = dict[str, FinishedRun]
"""Finished runs by name."""


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write the comparison of finished runs, and return where it is.

    Raises UserError for fewer than two runs, and for a run that is not finished or whose task is no
    Classification.
    """
    if len(run_dirs) < 2:
        raise UserError(
            "compare needs at least two runs: python -m ftloop.cli compare runs/one runs/other"
        )
    names = name_runs(run_dirs)
    if len(set(names)) < len(names):
        raise UserError(f"a run is named twice: {', '.join(map(str, run_dirs))}")
    runs = {
        name: load_finished(Path(run_dir)) for name, run_dir in zip(names, run_dirs, strict=True)
    }
    size = write_page(out, build_page(runs).render(page_footer()))
    logger.info("The comparison is %s (%.1f MB).", out, size / 1e6)
    return out


def name_runs(run_dirs: Sequence[Path]) -> list[str]:
    """Return the names of the folders; equal names get the names of the folders above them."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    names: list[str] = []
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def load_finished(run_dir: Path) -> FinishedRun:
    """Return a run that can be compared. Raises UserError."""
    config, scores_file = load_config(run_dir), run_dir / "scores.json"
    if not scores_file.is_file():
        raise UserError(f"{str(run_dir)!r} is not finished: run its command again to resume it.")
    if not is_classification(config.task):
        raise UserError(
            f"{str(run_dir)!r} cannot be compared: its task, {type(config.task).__name__}, is no "
            "Classification."
        )
    scores = read_json(scores_file, dict[str, dict[str, float | None]])
    return FinishedRun(run_dir, config, scores)


def build_page(runs: Runs) -> Page:
    """Build the page: each run is compared with the first one."""
    page = Page(" and ".join(runs) if len(runs) < 4 else f"{len(runs)} runs", "compare")
    histories = {name: History.read(run.run_dir) for name, run in runs.items()}
    try_section(page, "Options", lambda: add_options(page, runs))
    try_section(page, "Scores", lambda: add_scores(page, runs, histories))
    try_section(page, "Curves", lambda: curves.add_curves(page, histories))
    first, *others = runs
    for other in others:
        pair = Pair(page, runs, first, other)
        try_section(page, pair.title, pair.add)
    return page


def add_options(page: Page, runs: Runs) -> None:
    """Add the options in which each run differs from the first one."""
    page.add_section("Options")
    first, *others = runs
    options = read_record(runs[first].run_dir)["config"]
    for other in others:
        run = runs[other]
        changes = differences(options, read_record(run.run_dir)["config"], run.config.may_change)
        page.add_heading(f"{first} -> {other}")
        if not changes:
            page.add(paragraph("No option that can change the result differs.", "soft"))
            continue
        lines = []
        for change in changes:
            field, _, values = change.partition(": ")
            lines.append(f"{option_name(field)}: {values}")
        page.add(bullet_list(lines))


# ---- scores


def add_scores(page: Page, runs: Runs, histories: dict[str, History]) -> None:
    """Add the scores of each run with their intervals, and what the training cost."""
    page.add_section("Scores")
    for split in ("test", "validation"):
        scored_runs = {name: run for name, run in runs.items() if split in run.scores}
        if not scored_runs:
            continue
        intervals = {
            name: bootstrap.intervals(run.score(split), run.task.metric_names)
            for name, run in scored_runs.items()
        }
        all_scores = (score for run in scored_runs.values() for score in run.scores[split])
        scores = list(dict.fromkeys(score for score in all_scores if "[" not in score))

        columns = [Column("run", list(scored_runs))]
        for score in scores:
            cells = [
                value_with_interval(run.scores[split].get(score), intervals[name].get(score))
                for name, run in scored_runs.items()
            ]
            columns.append(Column(score, cells, "number", 4))
        of_runs = [histories[name] for name in scored_runs]
        columns.append(Column("steps", [history.steps for history in of_runs], "number"))
        times = [format_duration(history.seconds) for history in of_runs]
        columns.append(Column("training time", times, "number"))
        page.add_heading(split)
        page.add(table(columns))
        page.add_grid(
            *(score_figure(page, scored_runs, split, score, intervals) for score in scores)
        )


def score_figure(
    page: Page, runs: Runs, split: str, score: str, intervals: dict[str, dict[str, Any]]
) -> Html:
    """Draw a score of each run with its interval."""
    values = {
        name: run.scores[split][score]
        for name, run in runs.items()
        if run.scores[split].get(score) is not None
    }
    if not values:
        return Html("")
    of_score = [intervals[name].get(score) for name in values]
    ends = [(one.low, one.high) if has_interval(one) else None for one in of_score]
    data = {"run": list(values), score: list(values.values()), **interval_columns(of_score)}
    svg = figures.intervals(list(values), list(values.values()), ends, score)
    caption = f"{score} on {split}, with 95 % intervals."
    return page.figure(f"{split}-{score}", svg, caption, data)


# ---- row by row


class Pair:
    """Two runs that are compared row by row: the first run, and another."""

    def __init__(self, page: Page, runs: Runs, first: str, other: str):
        self.page = page
        self.first, self.other = first, other
        self.first_run, self.other_run = runs[first], runs[other]
        self.title = f"{other} and {first}, row by row"

    def add(self) -> None:
        """Add the differences of the scores on the same rows, and the rows that changed."""
        self.page.add_section(self.title)
        split = self.common_split()
        if split is None:
            note = "The rows are not compared: no split was scored by both runs."
            self.page.add(paragraph(note))
            return
        before, after = self.first_run.score(split), self.other_run.score(split)
        try:
            bootstrap.check_same_rows(before, after)
            if digest_inputs(self.first_run, split) != digest_inputs(self.other_run, split):
                raise UserError(f"the inputs of the rows of {split} differ")
        except UserError as reason:
            self.page.add(paragraph(f"The rows are not compared: {reason}.", "bad"))
            return
        self.add_differences(before, after)
        if not before.is_regression:
            self.add_agreement(before, after)
        self.add_changed_rows(before, after)

    def common_split(self) -> str | None:
        """Return the split that both runs were scored on: test, else validation."""
        for split in ("test", "validation"):
            if split in self.first_run.scores and split in self.other_run.scores:
                return split
        return None

    def add_differences(self, before: ScoredSplit, after: ScoredSplit) -> None:
        """Add the difference of each score with its paired bootstrap interval and p-value."""
        names = [
            name
            for name in self.first_run.task.metric_names
            if name in self.other_run.task.metric_names
        ]
        # Metrics of the Hub cannot be resampled; those per class are too many.
        names = [name for name in names if not name.startswith("hub:") and "per_class" not in name]
        found = bootstrap.paired_differences(after, before, names)
        differences_ = list(found.values())
        with_intervals = [value_with_interval(one.value, one) for one in differences_]
        columns = [
            Column("score", list(found)),
            Column(self.first, [one.b for one in differences_], "number", 4),
            Column(self.other, [one.a for one in differences_], "number", 4),
            Column("difference", with_intervals, "number", 4),
            Column("p", [one.p_value for one in differences_], "number", 4),
        ]
        self.page.add(table(columns))
        resamples = min(one.resamples for one in differences_)
        self.page.add(
            paragraph(
                f"Differences are {self.other} minus {self.first} on the same "
                f"{format_number(before.rows)} rows of {before.split}, with 95 % intervals and "
                f"two-sided p-values of the paired bootstrap ({resamples} resamples).",
                "soft",
            )
        )

    def add_agreement(self, before: ScoredSplit, after: ScoredSplit) -> None:
        """Add how many rows both runs, one of them, or none predicted correctly."""
        counts = {
            "both correct": ~before.wrong & ~after.wrong,
            f"only {self.first} correct": ~before.wrong & after.wrong,
            f"only {self.other} correct": before.wrong & ~after.wrong,
            "both wrong": before.wrong & after.wrong,
        }
        sums = {name: format_number(int(rows.sum())) for name, rows in counts.items()}
        self.page.add(key_figures(sums))

    def add_changed_rows(self, before: ScoredSplit, after: ScoredSplit) -> None:
        """Add the rows with another prediction, those with the largest change of loss first."""
        is_changed = before.predictions != after.predictions
        is_changed = is_changed.reshape(before.rows, -1).any(axis=1)
        loss_change = numpy.nan_to_num(numpy.abs(after.losses - before.losses))
        order = numpy.argsort(-loss_change, kind="stable")
        places = order[is_changed[order]]
        title = "Rows with the largest change of loss"
        self.page.add_heading(title if before.is_regression else "Rows with another prediction")
        if not len(places):
            self.page.add(paragraph("None."))
            return
        shown, saved = places[:MAX_CHANGED_ROWS], places[:MAX_CSV_ROWS]
        if not before.is_regression:
            note = f"{is_changed.sum()} of {before.rows} rows have another prediction."
            if len(shown) < len(places):
                note += f" The {len(shown)} rows whose loss changed most are shown."
                note += " The CSV lists more."
            self.page.add(paragraph(note))
        rows = TaskRows(self.first_run.task, self.first_run.config.seed)
        row_ids = [int(row) for row in before.row_ids[shown]]
        columns = self.row_columns(before, after, shown)
        self.page.add(show_rows(rows, before.split, row_ids, columns))
        data: dict[str, Any] = {"row": before.row_ids[saved].tolist()}
        for column in self.row_columns(before, after, saved):
            data[column.header] = column.cells
        self.page.add(csv_paragraph(data, f"changed-{self.first}-{self.other}"))

    def row_columns(
        self, before: ScoredSplit, after: ScoredSplit, places: numpy.ndarray
    ) -> list[Column]:
        """Return the label, and the prediction and the loss of both runs."""
        kind = "number" if before.is_regression else "word"

        def cells(labels: numpy.ndarray) -> list[Any]:
            return labels.tolist() if before.is_regression else format_labels(before, labels)

        return [
            Column("label", cells(before.references[places]), kind),
            Column(self.first, cells(before.predictions[places]), kind),
            Column(self.other, cells(after.predictions[places]), kind),
            Column(f"loss, {self.first}", before.losses[places].tolist(), "number"),
            Column(f"loss, {self.other}", after.losses[places].tolist(), "number"),
        ]


def digest_inputs(run: FinishedRun, split: str) -> str:
    """Return a digest of the inputs of a split before they are prepared."""
    digest = hashlib.sha256()
    for row in row_digests(run.task.rows[split], run.task.input_columns):
        digest.update(b"".join(row))
    return digest.hexdigest()
