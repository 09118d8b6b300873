"""Classes, labels or values of a report: confusion, precision, recall and F1, regression errors."""

import numpy

from ftloop.report import figures, statistics
from ftloop.report.data_section import histogram
from ftloop.report.finished_run import FinishedRun
from ftloop.report.page import Column, Html, Page, csv_paragraph, paragraph, table
from ftloop.report.scored import ScoredSplit
from ftloop.report.sections import format_row_count

MAX_POINTS = 5000  # rows that a scatter plot shows
MAX_CONFUSED_PAIRS = 20  # in the table of the most confused classes
MAX_CSV_ENTRIES = 10_000  # of a table of classes by classes


def add_classes(page: Page, run: FinishedRun) -> None:
    """Add the section "Classes", "Labels" or, for regression, "Predicted and true values"."""
    scored = run.score(run.main_split)
    if scored.is_regression:
        page.add_section("Predicted and true values")
        page.add_grid(scatter_figure(page, scored), error_figure(page, scored))
        return
    page.add_section("Labels" if scored.is_multi_label else "Classes")
    if scored.is_multi_label:
        page.add_grid(*co_occurrence_figures(page, scored))
    else:
        page.add_grid(*confusion_figures(page, scored))
        add_confused_pairs(page, scored)
    add_class_table(page, scored)


def add_class_table(page: Page, scored: ScoredSplit) -> None:
    """Add precision, recall, F1 and support of each class or label."""
    of_class = statistics.scores_per_class(scored)
    kind = "label" if scored.is_multi_label else "class"
    columns = [
        Column("id", list(range(len(of_class.names))), "number"),
        Column(kind, of_class.names),
        Column("precision", of_class.precision.tolist(), "number"),
        Column("recall", of_class.recall.tolist(), "number"),
        Column("f1", of_class.f1.tolist(), "number"),
        Column("support", of_class.support.tolist(), "number"),
    ]
    if scored.is_multi_label:
        columns += [
            Column("true positives", of_class.true_positives.tolist(), "number"),
            Column("false negatives", of_class.false_negatives.tolist(), "number"),
            Column("false positives", of_class.false_positives.tolist(), "number"),
        ]
    page.add_heading(f"Scores by {kind} on {scored.split}")
    page.add(
        paragraph(f"Support: rows with this {kind}. Click a header to sort the table.", "hint"),
        table(columns, sortable=True, tall=len(of_class.names) > 20),
        csv_paragraph({column.header: column.cells for column in columns}, "per-class"),
    )


# ---- one label per row


def confusion_figures(page: Page, scored: ScoredSplit) -> list[Html]:
    """Draw the confusion matrix as shares of the true class and, if it is small, in rows."""
    counts, names = statistics.confusion_matrix(scored), scored.names
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    is_large = len(names) > figures.MAX_NAMED
    cells = nonzero_cells(counts) if is_large else list(numpy.ndindex(counts.shape))
    data = {
        "true": [names[row] for row, _ in cells],
        "predicted": [names[column] for _, column in cells],
        "rows": [int(counts[cell]) for cell in cells],
        "share of true": [float(shares[cell]) for cell in cells],
    }
    caption = (
        f"Confusion matrix on {scored.split}: for each true class, the share of its rows that was "
        "predicted as each class."
    )
    if len(names) > figures.MAX_NUMBERED:
        caption += (
            " The tint grows with the square root of the share, so that rare ones are visible."
        )
    if is_large:
        caption += (
            " Classes are numbered by their ids, as in the table below. The CSV lists the nonzero "
            f"cells, at most {MAX_CSV_ENTRIES}."
        )
    svg = figures.heat_map(shares, shares, names, "predicted", "true")
    drawn = [page.figure("confusion", svg, caption, data)]
    if len(names) <= figures.MAX_NUMBERED:
        svg = figures.heat_map(counts / counts.max().clip(1), counts, names, "predicted", "true")
        caption = f"The same confusion matrix in numbers of rows of {scored.split}."
        drawn.append(page.figure("confusion-rows", svg, caption, data))
    return drawn


def nonzero_cells(counts: numpy.ndarray) -> list[tuple[int, int]]:
    """Return the nonzero cells of a table in order; of very many, those with the most rows."""
    cells = numpy.flatnonzero(counts)
    if len(cells) > MAX_CSV_ENTRIES:
        by_count = numpy.argsort(-counts.ravel()[cells], kind="stable")
        cells = numpy.sort(cells[by_count[:MAX_CSV_ENTRIES]])
    return [divmod(int(cell), counts.shape[1]) for cell in cells]


def add_confused_pairs(page: Page, scored: ScoredSplit) -> None:
    """Add a table of the pairs of classes that are confused most often."""
    counts, names = statistics.confusion_matrix(scored), scored.names
    support = counts.sum(axis=1)
    errors = counts - numpy.diag(numpy.diag(counts))
    most_frequent = numpy.argsort(-errors, axis=None, kind="stable")[:MAX_CONFUSED_PAIRS]
    pairs = [divmod(int(cell), len(names)) for cell in most_frequent if errors.flat[cell]]
    if not pairs:
        page.add(paragraph(f"Every row of {scored.split} was predicted correctly."))
        return
    shares = [f"{errors[pair] / support[pair[0]]:.0%}" for pair in pairs]
    columns = [
        Column("true", [names[true] for true, _ in pairs]),
        Column("predicted as", [names[predicted] for _, predicted in pairs]),
        Column("rows", [int(errors[pair]) for pair in pairs], "number"),
        Column("share of the true class", shares, "number"),
        Column("rows in reverse", [int(errors[pair[::-1]]) for pair in pairs], "number"),
    ]
    page.add_heading("Most confused classes")
    page.add(table(columns))
    page.add(csv_paragraph({column.header: column.cells for column in columns}, "most-confused"))


# ---- several labels per row


def co_occurrence_figures(page: Page, scored: ScoredSplit) -> list[Html]:
    """Draw which labels occur together: in the data, and as predicted."""
    drawn = []
    names = scored.names
    true_counts, predicted_counts = statistics.count_co_occurrences(scored)
    for title, counts in (("true", true_counts), ("predicted", predicted_counts)):
        shares = counts / numpy.diag(counts)[:, None].clip(1)
        numpy.fill_diagonal(shares, 0)
        cells = nonzero_cells(counts)
        data = {
            "label": [names[row] for row, _ in cells],
            "other": [names[column] for _, column in cells],
            "rows": [int(counts[cell]) for cell in cells],
        }
        caption = (
            f"Labels that occur together on {scored.split} ({title}): of the rows with one label, "
            "the share that also has another. The CSV lists the nonzero counts; a label paired "
            "with itself counts its rows."
        )
        svg = figures.heat_map(shares, shares, names, "also has", f"rows with ({title})")
        drawn.append(page.figure(f"together-{title}", svg, caption, data))
    return drawn


# ---- regression


def scatter_figure(page: Page, scored: ScoredSplit) -> Html:
    """Draw predicted against true values."""
    places = numpy.arange(scored.rows)
    if scored.rows > MAX_POINTS:
        generator = numpy.random.default_rng(0)
        places = numpy.sort(generator.choice(scored.rows, MAX_POINTS, replace=False))
    true, predicted = scored.references[places], scored.predictions[places]
    data = {
        "row": scored.row_ids[places].tolist(),
        "true": true.tolist(),
        "predicted": predicted.tolist(),
    }
    caption = (
        f"Predicted against true values on {scored.split} "
        f"({format_row_count(len(places), scored.rows)}). On the line, both are equal."
    )
    svg = figures.scatter(true, predicted, "true", "predicted")
    return page.figure("predicted-true", svg, caption, data)


def error_figure(page: Page, scored: ScoredSplit) -> Html:
    """Draw a histogram of the errors."""
    errors = scored.predictions - scored.references
    edges, shares = histogram({"error": errors})
    moments = f"mean {errors.mean():.4g}, standard deviation {errors.std():.4g}"
    caption = f"Errors on {scored.split}: {moments}."
    data = {"from": edges[:-1], "to": edges[1:], **shares}
    svg = figures.histogram(shares, edges, "predicted minus true")
    return page.figure("errors", svg, caption, data)
