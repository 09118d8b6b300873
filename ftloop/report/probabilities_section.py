"""The probabilities of a classifier: calibration, precision over recall, and thresholds."""

import numpy

from ftloop.report import figures, statistics
from ftloop.report.figures import COLOURS, GREY, Curve
from ftloop.report.finished_run import FinishedRun
from ftloop.report.page import Column, Html, Page, paragraph, table
from ftloop.report.scored import Scored

MAX_CURVE_POINTS = 100  # of a precision-recall curve
MAX_TOTAL_POINTS = 4000  # of all curves of a figure


def add_probabilities(page: Page, run: FinishedRun) -> None:
    """Add the section "Probabilities"; regression has none."""
    scored = run.score(run.main_split)
    if scored.is_regression:
        return
    page.add_section("Probabilities")
    if scored.probabilities is None:
        page.add(paragraph("The task does not return probabilities."))
        return
    page.add_grid(calibration_figure(page, scored), precision_recall_figure(page, scored))
    if scored.is_multi_label and "validation" in run.held_out_splits:
        add_thresholds(page, run)


def calibration_figure(page: Page, scored: Scored) -> Html:
    """Draw how often a prediction was right against its probability."""
    bins = statistics.calibration(scored)
    is_filled = bins.counts > 0
    data = {
        "from": bins.edges[:-1].tolist(),
        "to": bins.edges[1:].tolist(),
        "items": bins.counts.tolist(),
        "mean probability": empty_for_nan(bins.confidence),
        "share right": empty_for_nan(bins.correct),
    }
    curve = Curve("", bins.confidence[is_filled], bins.correct[is_filled], COLOURS[0], points=True)
    what = (
        "the probability of each row and label against the share of rows with the label"
        if scored.is_multi_label
        else "the probability of the predicted class against the share of correct predictions"
    )
    caption = (
        f"Calibration on {scored.split}: {what}, in {len(bins.counts)} bins. Calibrated "
        f"probabilities lie on the dotted line. Expected calibration error: {bins.ece:.4f}."
    )
    svg = figures.unit_lines([curve], "probability", "share right", diagonal=True)
    return page.figure("calibration", svg, caption, data)


def empty_for_nan(values: numpy.ndarray) -> list[float | str]:
    """Return values for a CSV, where NaN is an empty cell."""
    return ["" if numpy.isnan(value) else float(value) for value in values]


def precision_recall_figure(page: Page, scored: Scored) -> Html:
    """Draw precision over recall for each class; of many, the best and the worst are coloured."""
    points = MAX_TOTAL_POINTS // max(len(scored.names), 1)
    points = max(10, min(MAX_CURVE_POINTS, points))
    curves = statistics.precision_recall_curves(scored, points)
    curves = [curve for curve in curves if curve.positives]  # others have no recall
    by_precision = sorted(curves, key=lambda curve: curve.average_precision)
    if len(by_precision) <= len(COLOURS):
        coloured, grey, note = by_precision, [], ""
    else:
        coloured, grey = [*by_precision[:3], *by_precision[-3:]], by_precision[3:-3]
        note = " The three worst and the three best are coloured, with their average precision."
    drawn = [Curve("", curve.recall, curve.precision, GREY, faint=True) for curve in grey]
    for curve, colour in zip(coloured, COLOURS, strict=False):
        name = f"{curve.name} {curve.average_precision:.2f}"
        drawn.append(Curve(name, curve.recall, curve.precision, colour))

    data = {
        "class": [curve.name for curve in curves for _ in curve.recall],
        "recall": [float(value) for curve in curves for value in curve.recall],
        "precision": [float(value) for curve in curves for value in curve.precision],
        "probability from": [float(value) for curve in curves for value in curve.thresholds],
    }
    mean = numpy.mean([curve.average_precision for curve in curves])
    caption = f"Precision over recall on {scored.split}. Mean average precision: {mean:.4f}.{note}"
    svg = figures.unit_lines(drawn, "recall", "precision")
    return page.figure("precision-recall", svg, caption, data)


# ---- thresholds of several labels


def add_thresholds(page: Page, run: FinishedRun) -> None:
    """Add thresholds that are chosen on validation, and the scores that they give."""
    scored = run.score(run.main_split)
    thresholds = statistics.choose_thresholds(run.score("validation"))
    page.add_heading("Thresholds: the probability from which a label is predicted")
    metric_names = [name for name in run.task.metric_names if not name.endswith("_per_class")]
    effects = thresholds.effects(scored, metric_names)
    titles = {
        "run": f"the run's own, {run.task.threshold:g}",
        "whole": f"one for all labels, {thresholds.whole:.3f}",
        "by_label": "one for each label",
    }
    columns = [Column("threshold", [titles[choice] for choice in effects])]
    for name in next(iter(effects.values())):
        if name != "loss":  # it does not depend on a threshold
            cells = [scores.get(name) for scores in effects.values()]
            columns.append(Column(name, cells, "number", 4))
    note = (
        "The thresholds are chosen on validation only. The table shows their scores on "
        f"{scored.split}."
    )
    if scored.split != "test":
        note += " The data has no test split: these are the rows on which they were chosen."
    is_shared = ["shared: too few rows on validation" if few else "" for few in thresholds.shared]
    by_label = [
        Column("label", scored.names),
        Column("threshold", thresholds.by_label.tolist(), "number"),
        Column("", is_shared),
    ]
    tables = (
        table(columns) + paragraph(note, "soft") + table(by_label, "One for each label", tall=True)
    )
    page.add_grid(threshold_figure(page, thresholds, run.task.threshold), f"<div>{tables}</div>")


def threshold_figure(page: Page, thresholds: statistics.Thresholds, own_threshold: float) -> Html:
    """Draw F1 on validation by a threshold that all labels share."""
    curves = [
        Curve("f1_micro", thresholds.grid, thresholds.f1_micro, COLOURS[0]),
        Curve("f1_macro", thresholds.grid, thresholds.f1_macro, COLOURS[1]),
    ]
    data = {
        "threshold": thresholds.grid.tolist(),
        "f1_micro": thresholds.f1_micro.tolist(),
        "f1_macro": thresholds.f1_macro.tolist(),
    }
    caption = (
        "F1 on validation by one threshold for all labels. The dashed line is the run's own "
        f"threshold, {own_threshold:g}."
    )
    svg = figures.unit_lines(curves, "threshold", "F1 on validation", mark=own_threshold)
    return page.figure("thresholds", svg, caption, data)
