"""Single rows in a report: those with the highest and lowest losses, and likely label errors."""

from collections.abc import Sequence

import numpy

from ftloop.report import statistics
from ftloop.report.finished_run import FinishedRun
from ftloop.report.history import History
from ftloop.report.label_errors import find_label_errors
from ftloop.report.page import Column, Page, csv_paragraph, paragraph
from ftloop.report.scored import ScoredSplit
from ftloop.report.sections import format_row_count, shorten_path
from ftloop.report.task_rows import TaskRows, show_rows

MAX_HARD_ROWS = 25  # rows with the highest losses, and likely label errors
MAX_EASY_ROWS = 8  # rows with the lowest losses
SEARCH_SECONDS = 20  # time of the search for label errors, estimated from the speed of training
MIN_SEARCH_ROWS, MAX_SEARCH_ROWS = 500, 5000


def add_extreme_losses(page: Page, run: FinishedRun, rows: TaskRows) -> None:
    """Add the rows that the model finds hardest and easiest, of the held-out splits."""
    page.add_section("Highest and lowest losses")
    for split in run.held_out_splits or ["train"]:
        scored = run.score(split)
        for rank, count in (("highest", MAX_HARD_ROWS), ("lowest", MAX_EASY_ROWS)):
            places = statistics.rank_by_loss(scored, count, rank == "highest")
            page.add_heading(f"{split}: the {rank} losses")
            add_row_table(page, rows, scored, places, f"{rank}-loss-{split}")


def add_label_errors(
    page: Page, run: FinishedRun, rows: TaskRows, history: History, search_rows: int | None
) -> None:
    """Add the training rows whose labels are likely wrong. Regression has no such section."""
    if not rows.class_names:
        return
    page.add_section("Likely label errors")
    max_rows = search_rows or default_search_rows(history)
    scored, errors, opinions = find_label_errors(run.run_dir, "train", run.task, max_rows=max_rows)
    model = str(getattr(run.config.task, "model", ""))
    count = format_row_count(scored.rows, scored.total)
    page.add(
        paragraph(
            "Training rows whose labels are doubtful, the most doubtful first, according to "
            f"{opinions.replace(model, shorten_path(model))}. Confident learning estimates that "
            f"about {errors.estimate} labels are wrong in the {count} of train that were searched. "
            "Check each row before you change its label."
        )
    )
    places = errors.places[:MAX_HARD_ROWS]
    more_columns = [
        Column("suggested", errors.suggestions[:MAX_HARD_ROWS]),
        Column("confidence in the label", errors.confidence[:MAX_HARD_ROWS].tolist(), "number"),
    ]
    add_row_table(page, rows, scored, places, "likely-label-errors", more_columns)


def default_search_rows(history: History) -> int:
    """Return how many rows to search for label errors. The search is faster than training."""
    speed = history.speed.get("rows_per_second")
    rates = [rate for rate in speed.values if rate] if speed is not None else []
    rows = SEARCH_SECONDS * float(numpy.median(rates)) if rates else 0.0
    return int(numpy.clip(rows, MIN_SEARCH_ROWS, MAX_SEARCH_ROWS))


# ---- tables of rows


def add_row_table(
    page: Page,
    rows: TaskRows,
    scored: ScoredSplit,
    places: numpy.ndarray,
    name: str,
    more_columns: Sequence[Column] = (),
) -> None:
    """Add rows, chosen by their places in `scored`, with label, prediction and loss."""
    columns = [*output_columns(scored, places), *more_columns]
    row_ids = [int(row) for row in scored.row_ids[places]]
    page.add(show_rows(rows, scored.split, row_ids, columns))
    data = {"row": row_ids, **{column.header: column.cells for column in columns}}
    page.add(csv_paragraph(data, name))


def output_columns(scored: ScoredSplit, places: numpy.ndarray) -> list[Column]:
    """Return the label, the prediction, the probabilities and the loss of some rows."""
    chosen = scored.take(numpy.asarray(places, int))
    loss = Column("loss", chosen.losses.tolist(), "number")
    if scored.is_regression:
        return [
            Column("true", chosen.references.tolist(), "number"),
            Column("predicted", chosen.predictions.tolist(), "number"),
            loss,
        ]
    columns = [
        Column("label", format_labels(scored, chosen.references)),
        Column("predicted", format_labels(scored, chosen.predictions)),
    ]
    if chosen.probabilities is None:
        return [*columns, loss]
    index = numpy.arange(chosen.rows)
    if scored.is_multi_label:
        worst_labels = numpy.abs(chosen.probabilities - chosen.references).argmax(axis=1)
        worst = [
            f"{scored.names[label]} {chosen.probabilities[row, label]:.3f}"
            for row, label in zip(index, worst_labels, strict=True)
        ]
        return [*columns, Column("largest error", worst), loss]
    of_prediction = chosen.probabilities[index, chosen.predictions]
    of_label = chosen.probabilities[index, chosen.references]
    return [
        *columns,
        Column("probability", of_prediction.tolist(), "number"),
        Column("label's probability", of_label.tolist(), "number"),
        loss,
    ]


def format_labels(scored: ScoredSplit, labels: numpy.ndarray) -> list[str]:
    """Return encoded labels as names; several labels of a row are joined by +."""
    if not scored.is_multi_label:
        return [scored.names[label] for label in labels]
    formatted = []
    for row in labels:
        names = [name for name, is_present in zip(scored.names, row, strict=True) if is_present]
        formatted.append(" + ".join(names) or "(none)")
    return formatted
