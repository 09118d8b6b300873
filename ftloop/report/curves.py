"""The curves of one run, or of several over each other: loss, scores, learning rate, gradient norm, throughput."""

from collections.abc import Mapping

from ftloop.report import figures, page
from ftloop.report.figures import COLOURS, Curve
from ftloop.report.history import History, Series
from ftloop.report.page import Html, Page

MOST_SCORES = 6  # figures of single scores, for those that are not between 0 and 1


def add(made: Page, histories: Mapping[str, History]) -> None:
    """A section of them. `histories`: by the name of the run; of one run alone, "" does."""
    made.add_section("Curves")
    if not any(history.scores for history in histories.values()):
        made.add(page.paragraph("Nothing is logged yet."))
        return
    drawn = [losses(made, histories), *scores(made, histories)]
    for name, title, unit, log in (
        ("learning_rate", "Learning rate", "learning rate", False),
        ("grad_norm", "Norm of the gradient before clipping", "gradient norm", True),
    ):
        found = {run: history.of_split("train").get(name) for run, history in histories.items()}
        drawn.append(of_series(made, name, f"{title}, by optimizer step.", unit, found, log))
    drawn += speeds(made, histories)
    made.add_grid(*(figure for figure in drawn if figure))


def named(run: str, what: str) -> str:
    return f"{run}: {what}" if run else what


def rows_of(found: Mapping[str, Series | None]) -> dict[str, list]:
    """Series below each other, as columns of a CSV."""
    known = {name: series for name, series in found.items() if series is not None}
    return {
        "curve": [name for name, series in known.items() for _ in series.steps],
        "step": [step for series in known.values() for step in series.steps],
        "value": [
            "" if value is None else value for series in known.values() for value in series.values
        ],
    }


def losses(made: Page, histories: Mapping[str, History]) -> Html:
    """Train, each step and its running mean, and validation where it was scored."""
    drawn, data = [], {}
    for at, (run, history) in enumerate(histories.items()):
        colour = COLOURS[at % len(COLOURS)]
        train, validation = (
            history.of_split(split).get("loss") for split in ("train", "validation")
        )
        if train is not None:
            train = train.downsample()
            if len(histories) == 1:
                drawn.append(Curve("", train.steps, train.values, colour, faint=True))
            smooth = train.smooth()
            drawn.append(Curve(named(run, "train"), smooth.steps, smooth.values, colour))
            data[named(run, "train")], data[named(run, "train, running mean")] = train, smooth
        if validation is not None:
            other = COLOURS[1] if len(histories) == 1 else colour
            drawn.append(
                Curve(
                    named(run, "validation"),
                    validation.steps,
                    validation.values,
                    other,
                    True,
                    dashed=bool(run),
                )
            )
            data[named(run, "validation")] = validation
    what = "Loss by optimizer step. Of train, the running mean over 4 % of the curve"
    caption = f"{what}{', and behind it the steps' if len(histories) == 1 else ''}; its loss is with dropout."
    return made.figure("loss", figures.lines(drawn, "step", "loss"), caption, rows_of(data))


def scores(made: Page, histories: Mapping[str, History]) -> list[Html]:
    """The scores on validation: those between 0 and 1 of one run in one figure, each in one of its own for several."""
    found: dict[str, dict[str, Series]] = {}
    for run, history in histories.items():
        for name, series in history.of_split("validation").items():
            if name != "loss":
                found.setdefault(name, {})[run] = series
    if len(histories) == 1:
        (run,) = histories
        inside = {name: of[run] for name, of in found.items() if fits(of[run])}
        together = []
        if inside:
            curves = [
                Curve(name, series.steps, series.values, COLOURS[at % len(COLOURS)], points=True)
                for at, (name, series) in enumerate(inside.items())
            ]
            svg = figures.lines(curves, "step", "score")
            together = [
                made.figure(
                    "scores", svg, "Scores on validation, by optimizer step.", rows_of(inside)
                )
            ]
        found = {name: of for name, of in found.items() if name not in inside}
    else:
        together = []
    return together + [
        of_series(made, f"curve-{name}", f"{name} on validation.", name, of, points=True)
        for name, of in list(found.items())[:MOST_SCORES]
    ]


def fits(series: Series) -> bool:
    known = [value for value in series.values if value is not None]
    return bool(known) and min(known) >= -1 and max(known) <= 1


def of_series(
    made: Page,
    name: str,
    caption: str,
    unit: str,
    found: Mapping[str, Series | None],
    log: bool = False,
    points: bool = False,
) -> Html | None:
    """One series a run; nothing where no run has it."""
    known = {
        run or unit: series.downsample() for run, series in found.items() if series is not None
    }
    if not known:
        return None
    curves = [
        Curve(run, series.steps, series.values, COLOURS[at % len(COLOURS)], points)
        for at, (run, series) in enumerate(known.items())
    ]
    unit = (
        next(iter(known)) if len(found) > 1 and len(known) == 1 else unit
    )  # without a legend, the axis says which
    log = log and all(
        value is None or value > 0 for series in known.values() for value in series.values
    )
    return made.figure(
        name, figures.lines(curves, "step", unit, log, height=2.1), caption, rows_of(known)
    )


def speeds(made: Page, histories: Mapping[str, History]) -> list[Html | None]:
    """Rows a second; and the shares of padding and of waiting for data, in one figure for one run."""
    rows = {run: history.speed.get("rows_per_second") for run, history in histories.items()}
    caption = (
        "Throughput of training between two looks at the loss, without evaluations and checkpoints."
    )
    drawn = [of_series(made, "throughput", caption, "rows per second", rows)]
    if len(histories) == 1:
        (history,) = histories.values()
        titles = {"padding": "tokens that are padding", "data_wait": "time spent waiting for data"}
        shares = {title: history.speed.get(name) for name, title in titles.items()}
        if any(shares.values()):
            drawn.append(of_series(made, "shares", "Shares of what is lost.", "share", shares))
    return drawn
