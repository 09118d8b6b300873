"""The probabilities of a classifier: calibration, precision against recall, and thresholds."""

import numpy

from ftloop.report import figures, statistics
from ftloop.report.figures import Curve
from ftloop.report.finished_run import FinishedRun
from ftloop.report.page import Column, Html, Page, paragraph, table
from ftloop.report.scored import ScoredSplit
from ftloop.report.svg import COLORS, GREY
from ftloop.report.thresholds import apply_thresholds, choose_thresholds, f1_by_threshold
from ftloop.report.weighted_scores import compute_scores

MAX_CURVE_POINTS = 100  # of a precision-recall curve
MAX_TOTAL_POINTS = 4000  # of all curves of a figure
COLORED_PER_END = 3  # best and worst classes to color if there are more classes than colors
THRESHOLDS = numpy.linspace(0.01, 0.99, 99)  # those of the figure of F1 by threshold


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


def calibration_figure(page: Page, scored: ScoredSplit) -> Html:
    """Draw how often a prediction was right against its probability."""
    bins = statistics.calibration(scored)
    is_filled = bins.counts > 0
    data = {
        "from": bins.edges[:-1].tolist(),
        "to": bins.edges[1:].tolist(),
        "items": bins.counts.tolist(),
        "mean probability": empty_for_nan(bins.confidence),
        "share right": empty_for_nan(bins.accuracy),
    }
    curve = Curve("", bins.confidence[is_filled], bins.accuracy[is_filled], COLORS[0], markers=True)
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


def precision_recall_figure(page: Page, scored: ScoredSplit) -> Html:
    """Draw precision against recall for each class.

    If there are more classes than colors, only the `COLORED_PER_END` best and worst are colored.
    """
    points = MAX_TOTAL_POINTS // max(len(scored.names), 1)
    points = max(10, min(MAX_CURVE_POINTS, points))
    curves = statistics.precision_recall_curves(scored, points)
    by_average_precision = sorted(curves, key=lambda curve: curve.average_precision)
    if len(by_average_precision) <= len(COLORS):
        colored, grey, note = by_average_precision, [], ""
    else:
        worst = by_average_precision[:COLORED_PER_END]
        best = by_average_precision[-COLORED_PER_END:]
        colored, grey = worst + best, by_average_precision[COLORED_PER_END:-COLORED_PER_END]
        note = (
            f" The {COLORED_PER_END} worst and the {COLORED_PER_END} best are colored, with their "
            "average precision."
        )
    drawn = [Curve("", curve.recall, curve.precision, GREY, faint=True) for curve in grey]
    for curve, color in zip(colored, COLORS, strict=False):
        name = f"{curve.name} {curve.average_precision:.2f}"
        drawn.append(Curve(name, curve.recall, curve.precision, color))

    data = {
        "class": [curve.name for curve in curves for _ in curve.recall],
        "recall": [float(value) for curve in curves for value in curve.recall],
        "precision": [float(value) for curve in curves for value in curve.precision],
        "probability from": [float(value) for curve in curves for value in curve.thresholds],
    }
    mean = numpy.mean([curve.average_precision for curve in curves])
    caption = (
        f"Precision against recall on {scored.split}. Mean average precision: {mean:.4f}.{note}"
    )
    svg = figures.unit_lines(drawn, "recall", "precision")
    return page.figure("precision-recall", svg, caption, data)


# ---- thresholds of several labels


def add_thresholds(page: Page, run: FinishedRun) -> None:
    """Add thresholds that are chosen on validation, and the scores that they give."""
    scored, validation = run.score(run.main_split), run.score("validation")
    own_threshold, chosen = run.task.threshold, choose_thresholds(validation)
    page.add_heading("Thresholds: the probability from which a label is predicted")
    metric_names = [name for name in run.task.metric_names if not name.endswith("_per_class")]
    by_choice = {
        f"the run's own, {own_threshold:g}": scored,
        f"one for all labels, {chosen.common:.3f}": apply_thresholds(scored, chosen.common),
        "one for each label": apply_thresholds(scored, chosen.per_label),
    }
    all_scores = [compute_scores(changed, metric_names) for changed in by_choice.values()]
    columns = [Column("threshold", list(by_choice))]
    for name in all_scores[0]:
        if name != "loss":  # it does not depend on a threshold
            cells = [of_choice[name] for of_choice in all_scores]
            columns.append(Column(name, cells, "number", 4))
    note = (
        "The thresholds are chosen on validation only. The table shows their scores on "
        f"{scored.split}."
    )
    if scored.split != "test":
        note += " The data has no test split: these are the rows on which they were chosen."
    reasons = ["shared: too few rows on validation" if few else "" for few in chosen.uses_common]
    per_label = [
        Column("label", scored.names),
        Column("threshold", chosen.per_label.tolist(), "number"),
        Column("", reasons),
    ]
    tables = (
        table(columns) + paragraph(note, "soft") + table(per_label, "One for each label", tall=True)
    )
    page.add_grid(threshold_figure(page, validation, own_threshold), f"<div>{tables}</div>")


def threshold_figure(page: Page, validation: ScoredSplit, own_threshold: float) -> Html:
    """Draw F1 on validation by a threshold that all labels share."""
    by_threshold = f1_by_threshold(validation, THRESHOLDS)
    curves = [
        Curve(name, THRESHOLDS, values, color)
        for (name, values), color in zip(by_threshold.items(), COLORS, strict=False)
    ]
    data = {"threshold": THRESHOLDS.tolist()}
    data |= {name: values.tolist() for name, values in by_threshold.items()}
    caption = (
        "F1 on validation by one threshold for all labels. The dashed line is the run's own "
        f"threshold, {own_threshold:g}."
    )
    svg = figures.unit_lines(curves, "threshold", "F1 on validation", mark=own_threshold)
    return page.figure("thresholds", svg, caption, data)
