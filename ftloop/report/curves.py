"""The curves of one run, or of several in the same figures: loss, scores, learning rate, speed."""

from collections.abc import Mapping, Sequence

from ftloop.report import figures
from ftloop.report.figures import COLORS, Curve
from ftloop.report.history import History, Series
from ftloop.report.page import Html, Page, paragraph

MAX_SCORE_FIGURES = 6  # scores with a figure of their own

Histories = Mapping[str, History]
"""Histories by the name of the run; the name of a run that is shown alone is ""."""


def add_curves(page: Page, histories: Histories) -> None:
    """Add the section "Curves"."""
    page.add_section("Curves")
    if not any(history.scores for history in histories.values()):
        page.add(paragraph("Nothing is logged yet."))
        return
    of_train = {run: history.of_split("train") for run, history in histories.items()}
    of_speed = {run: history.speed for run, history in histories.items()}
    drawn = [
        loss_figure(page, histories),
        *score_figures(page, histories),
        series_figure(
            page,
            "learning-rate",
            select_series(of_train, "learning_rate"),
            unit="learning rate",
            caption="Learning rate by optimizer step.",
        ),
        series_figure(
            page,
            "grad-norm",
            select_series(of_train, "grad_norm"),
            unit="gradient norm",
            caption="Norm of the gradient before clipping, by optimizer step.",
            log=True,
        ),
        series_figure(
            page,
            "throughput",
            select_series(of_speed, "rows_per_second"),
            unit="rows per second",
            caption="Training speed between two log lines, without evaluations and checkpoints.",
        ),
        series_figure(
            page,
            "data-wait",
            select_series(of_speed, "data_wait"),
            unit="share of the time",
            caption="Share of the training time in which the loop waited for batches.",
        ),
    ]
    page.add_grid(*drawn)


def select_series(by_run: Mapping[str, Mapping[str, Series]], name: str) -> dict[str, Series]:
    """Return the series of a name by run, for the runs that have it."""
    return {run: of_run[name] for run, of_run in by_run.items() if name in of_run}


def loss_figure(page: Page, histories: Histories) -> Html:
    """Draw the training loss, smoothed, and the validation loss."""
    is_single = len(histories) == 1
    curves: list[Curve] = []
    data: dict[str, Series] = {}
    for index, (run, history) in enumerate(histories.items()):
        prefix = f"{run}: " if run else ""
        color = color_of(index)
        train = history.of_split("train").get("loss")
        validation = history.of_split("validation").get("loss")
        if train is not None:
            train = train.downsample()
            smooth = train.smooth()
            if is_single:
                curves.append(Curve("", train.steps, train.values, color, faint=True))
            curves.append(Curve(f"{prefix}train", smooth.steps, smooth.values, color))
            data[f"{prefix}train"] = train
            data[f"{prefix}train, running mean"] = smooth
        if validation is not None:
            curves.append(
                Curve(
                    f"{prefix}validation",
                    validation.steps,
                    validation.values,
                    COLORS[1] if is_single else color,
                    markers=True,
                    dashed=not is_single,
                )
            )
            data[f"{prefix}validation"] = validation
    background = ", with the logged values behind it" if is_single else ""
    caption = (
        "Loss by optimizer step. The training loss is a running mean over 4 % of the curve"
        f"{background}. It is measured with dropout, unlike the validation loss."
    )
    svg = figures.lines(curves, "step", "loss")
    return page.figure("loss", svg, caption, series_columns(data))


def score_figures(page: Page, histories: Histories) -> list[Html]:
    """Draw the validation scores by optimizer step.

    One run has a figure with all scores between -1 and 1, and one for each of the others. Several
    runs have a figure for each score.
    """
    by_score: dict[str, dict[str, Series]] = {}
    for run, history in histories.items():
        for name, series in history.of_split("validation").items():
            if name != "loss":
                by_score.setdefault(name, {})[run] = series

    drawn = []
    if len(histories) == 1:
        (run,) = histories
        together = {
            name: of_run[run] for name, of_run in by_score.items() if is_within_one(of_run[run])
        }
        if together:
            curves = [
                Curve(name, series.steps, series.values, color_of(index), markers=True)
                for index, (name, series) in enumerate(together.items())
            ]
            svg = figures.lines(curves, "step", "score")
            caption = "Scores on validation, by optimizer step."
            drawn.append(page.figure("scores", svg, caption, series_columns(together)))
        by_score = {name: of_run for name, of_run in by_score.items() if name not in together}
    for name in list(by_score)[:MAX_SCORE_FIGURES]:
        caption = f"{name} on validation, by optimizer step."
        drawn.append(
            series_figure(page, f"curve-{name}", by_score[name], name, caption, markers=True)
        )
    return drawn


def series_figure(
    page: Page,
    name: str,
    by_run: Mapping[str, Series],
    unit: str,
    caption: str,
    log: bool = False,
    markers: bool = False,
) -> Html:
    """Draw a series of each run; return no figure if no run has it.

    With `log`, the axis is logarithmic if all values are positive.
    """
    if not by_run:
        return Html("")
    by_run = {run: series.downsample() for run, series in by_run.items()}
    curves = [
        Curve(run, series.steps, series.values, color_of(index), markers)
        for index, (run, series) in enumerate(by_run.items())
    ]
    values = [value for series in by_run.values() for value in known_values(series)]
    is_log = log and min(values, default=0) > 0
    svg = figures.lines(curves, "step", unit, is_log, height=2.1)
    data = series_columns({run or unit: series for run, series in by_run.items()})
    return page.figure(name, svg, caption, data)


def series_columns(series_by_name: Mapping[str, Series]) -> dict[str, Sequence]:
    """Return series below each other as the columns of a CSV file; missing values are empty."""
    columns: dict[str, list] = {"curve": [], "step": [], "value": []}
    for name, series in series_by_name.items():
        columns["curve"] += [name] * len(series.steps)
        columns["step"] += series.steps
        columns["value"] += ["" if value is None else value for value in series.values]
    return columns


def is_within_one(series: Series) -> bool:
    """Tell whether all values lie between -1 and 1, as those of most scores do."""
    values = known_values(series)
    return bool(values) and min(values) >= -1 and max(values) <= 1


def known_values(series: Series) -> list[float]:
    return [value for value in series.values if value is not None]


def color_of(index: int) -> str:
    return COLORS[index % len(COLORS)]
