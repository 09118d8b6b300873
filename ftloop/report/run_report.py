"""The report of a run: one page from which a person understands it, made from what the run folder holds.

Of a finished run everything; of one that still trains (`--report-every`, or by hand) its curves, data and config.
The work is bounded, whatever the size of the data: each cap is said where it shows.
"""

import dataclasses
import json
import logging
import math
import os
import shlex
from pathlib import Path
from typing import Any

import numpy

from ftloop import checkpoint
from ftloop.config import Config, encode, option, read_record
from ftloop.errors import UserError, root_cause
from ftloop.cli.options import write_pairs
from ftloop.report import curves, data_part, figures, page, statistics
from ftloop.report.data_part import Rows, attempt
from ftloop.report.figures import COLOURS, Curve
from ftloop.report.history import History, ledger_digest
from ftloop.report.page import Column, Html, Page
from ftloop.report.scored import Scored

logger = logging.getLogger("ftloop")

LISTED = 25  # rows with the highest losses, and likely label errors
EASY = 8  # rows with the lowest losses
SEARCHED = (500, 5000)  # rows of train that are searched for label errors: at least, where that is slow; at most
SEARCH = 20  # seconds of that search at the speed of training, which it is some times quicker than
MAPPED = 2000  # rows in the map of features
PANELS = 12  # of classes in it
PAIRS = 20  # most confused classes
MOST_ENTRIES = 10_000  # of a table of classes, in its CSV


def write(run_dir: str | Path, out: Path | None = None, search: int | None = None) -> Path:
    """Write the report of a run, by default RUN/report.html, and return where it is. `search`: rows of train that are
    searched for label errors; left out, what takes some seconds. Raises UserError for a folder without a run; what
    goes wrong in a section is said in that section."""
    if search is not None and search < 1:
        raise UserError(f"--search {search}: at least 1 row is needed")
    run_dir = Path(run_dir)
    config = read_record(run_dir)
    out = out or run_dir / "report.html"
    import sklearn.linear_model  # noqa: F401 - loads the libraries that are limited here
    from threadpoolctl import threadpool_limits

    # Small regressions gain nothing by more threads of BLAS. On cores that others use too, these wait for each other:
    # minutes were lost. And their number changes the last digits. torch has threads of its own.
    with threadpool_limits(1, user_api="blas"):
        text = build(run_dir, config, search).html(data_part.written_by())
    size = page.write(out, text)
    logger.info("report: %s, %.1f MB", out, size / 1e6)
    return out


def forget_launcher() -> None:
    """Without what a launcher told the run that started this process: else accelerate would wait for others."""
    of_several = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
    for name in list(os.environ):
        launchers = name.startswith(("MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "OMPI_", "PMI_"))
        if name in of_several or (launchers and name != "ACCELERATE_USE_CPU"):  # that one: on which device
            del os.environ[name]


def build(run_dir: Path, config: Config, search: int | None = None) -> Page:
    """The page, of what there is."""
    file = run_dir / "scores.json"
    scores = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    history = History.read(run_dir)
    made = Page(f"{'Still training: ' if scores is None else ''}{config_name(run_dir)}", "report")
    known = data_part.is_classification(config.task)
    run = Finished(run_dir, config, scores) if known and scores is not None else None
    task = run.task if run is not None else config.task
    rows = Rows(task, config.seed) if known else None
    attempt(made, "Result", lambda: add_result(made, run_dir, config, history, run, scores))
    attempt(made, "Curves", lambda: curves.add(made, {"": history}))
    if run is not None and rows is not None:
        attempt(made, "Classes", lambda: add_classes(made, run))
        if not run.main.regression:
            attempt(made, "Probabilities", lambda: add_probabilities(made, run))
        attempt(made, "Rows with the highest and the lowest loss", lambda: add_rows(made, run, rows))
        if not run.main.regression:
            attempt(made, "Likely label errors", lambda: add_label_errors(made, run, rows, history, search))
        attempt(made, "Map of the features", lambda: add_map(made, run))
    if rows is not None:
        attempt(made, "Data", lambda: data_part.add_data(made, rows))
    attempt(made, "How it was made", lambda: add_record(made, run_dir, config))
    return made


def config_name(run_dir: Path) -> str:
    return run_dir.resolve().name


class Finished:
    """A finished run: its task with its labels, and its splits row by row, each computed when it is asked for."""

    def __init__(self, run_dir: Path, config: Config, scores: dict[str, dict[str, float | None]]):
        self.run_dir, self.config, self.scores = run_dir, config, scores
        self.task: Any = config.task.of_run(str(run_dir / "model"))
        self._scored: dict[str, Scored] = {}

    def scored(self, split: str) -> Scored:
        """The rows of a split and what the model says of them; of train, some."""
        from ftloop.report.scored import score

        if split not in self._scored:
            at_most = data_part.MEASURED if split == "train" else None
            self._scored[split] = score(self.run_dir, split, self.task, at_most=at_most)
        return self._scored[split]

    @property
    def splits(self) -> list[str]:
        """Those that were held out: test first."""
        return [split for split in ("test", "validation") if split in self.scores]

    @property
    def main(self) -> Scored:
        """What most figures are of: test, where there is one; of a run without any other split, train."""
        return self.scored((self.splits or ["train"])[0])


# ---- the headline


def add_result(
    made: Page,
    run_dir: Path,
    config: Config,
    history: History,
    run: Finished | None,
    scores: dict[str, dict[str, float | None]] | None,
) -> None:
    """Scores beside the baselines, and what they cost; of a task that is no Classification, `scores` alone."""
    made.section("Result")
    task = run.task if run is not None else config.task
    made.add(page.words(in_short(config, task)))
    memory = [value for value in history.speed["peak_memory_mb"].values if value] if history.speed else []
    told: dict[str, Any] = {}
    if run is not None and run.splits:
        name = headline(run)
        told |= {f"{name} on {split}": page.number(run.scores[split].get(name), 4) for split in run.splits}
    told |= {
        "optimizer steps": page.number(history.steps),
        "epochs": page.number(float(history.epochs), 2),
        "training took": duration(history.seconds),
    }
    if history.speed:
        seen = [value for value in history.speed["rows_per_second"].values if value]
        told["rows per second, in the median"] = page.number(float(numpy.median(seen)), 1)
    if memory:
        told["peak memory"] = f"{max(memory) / 1000:.1f} GB"
    if run is not None:
        told["parameters"] = f"{parameters_of(run_dir / 'model') / 1e6:.1f} million"
    made.add(page.facts(told))
    if run is None and scores is not None:
        for split, values in scores.items():
            made.heading(split)
            made.add(page.table([Column(name, [value], "number", 4) for name, value in values.items()]))
        return
    if run is None:
        made.add(page.words("This run is not finished: scores with intervals, mistakes and more come when it is."))
        return
    from ftloop.report.baselines import baselines

    found = baselines(config, run.task, tuple(run.splits))
    made.grid(*(scores_of(made, run, split, found) for split in run.splits))
    model = getattr(config.task, "model", "")
    told = [f"{one.name}: {(one.absent or one.how).replace(model, short(model))}." for one in found]
    made.add(
        page.words(
            "In brackets: 95 % intervals by the bootstrap over the rows of the split: what another split of this size "
            "might have shown of this model, not what another training would.",
            "soft",
        ),
        page.listed(told, "soft"),
    )


def in_short(config: Config, task: Any) -> str:
    """What was learned, from what, by which model."""
    kind = type(task).__name__
    if data_part.is_classification(task):
        found = task.labels
        many = len(found.names)
        kind += ": " + (
            "a number" if not many else f"some of {many} labels" if found.multi else f"one of {many} classes"
        )
    data = config.task.data if hasattr(config.task, "data") else None
    source = (
        getattr(data, "path", None) or ", ".join(map(str, getattr(data, "files", {}).values())) or type(data).__name__
    )
    model = getattr(config.task, "model", "")
    how = " with random weights" if getattr(config.task, "init", "") == "random" else ""
    return f"{kind}. Model: {short(model)}{how}. Data: {short(source)}."


def short(place: str) -> str:
    """The last two parts of a path or a Hub id."""
    return "/".join(str(place).rstrip("/").split("/")[-2:])


def headline(run: Finished) -> str:
    """The score that is shown first: what the best weights were chosen by; where that is the loss, the first metric."""
    chosen = run.config.best_metric
    names = [name for name in run.scores[run.splits[0]] if name != "loss"]
    return chosen if chosen in names or not names else names[0]


def duration(seconds: float) -> str:
    """Seconds as hours, minutes, or seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parameters_of(folder: Path) -> int:
    """How many there are in the weights of a model, from the heads of its files."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 - no dict
    return total


def scores_of(made: Page, run: Finished, split: str, baselines: list[Any]) -> Html:
    """The scores of a split with their intervals, beside the baselines; the first score as a figure too."""
    scored, scores, metrics = run.scored(split), run.scores[split], run.task.metric_names
    names = [name for name in scores if "[" not in name]
    spans = {"this run": statistics.intervals(scored, metrics)}
    values: dict[str, dict[str, Any]] = {"this run": scores}
    for baseline in baselines:
        if split in baseline.scored:
            spans[baseline.name] = statistics.intervals(baseline.scored[split], metrics)
            values[baseline.name] = {name: span.value for name, span in spans[baseline.name].items()}
    columns = [Column("", list(values))]
    columns += [
        Column(name, [with_span(of.get(name), spans[line].get(name)) for line, of in values.items()], "number", 4)
        for name in names
    ]
    first = headline(run)
    drawn = {line: of[first] for line, of in values.items() if of.get(first) is not None}
    ends = [spans[line].get(first) for line in drawn]
    lines = [None if end is None or not numpy.isfinite(end.low) else (end.low, end.high) for end in ends]
    data = {
        "": list(drawn),
        first: list(drawn.values()),
        "low": ["" if line is None else line[0] for line in lines],
        "high": ["" if line is None else line[1] for line in lines],
    }
    svg = figures.intervals(list(drawn), list(drawn.values()), lines, first, ours=1) if drawn else ""
    figure = made.figure(f"{split}-{first}", svg, f"{first} on {split}, with 95 % intervals.", data) if drawn else ""
    heading = f"<h3>{split}, {page.number(scored.rows)} rows</h3>\n"
    return Html(f"<div>{heading}{page.table(columns)}{figure}</div>\n")


def with_span(value: Any, span: Any) -> Any:
    """A value with its interval below it."""
    if span is None or not numpy.isfinite(span.low):
        return value
    low, high = page.number(span.low, 4), page.number(span.high, 4)
    return Html(f"{page.escaped(page.number(value, 4))}<small>[{low}, {high}]</small>")


# ---- classes


def add_classes(made: Page, run: Finished) -> None:
    """Confusion, or what takes its place; precision, recall and F1 of each class."""
    scored = run.main
    if scored.regression:
        made.section("Predicted and true")
        add_regression(made, scored)
        return
    made.section("Labels" if scored.multi else "Classes")
    found = statistics.per_class(scored)
    columns = [
        Column("id", list(range(len(found.names))), "number"),
        Column("label" if scored.multi else "class", found.names),
        *(Column(name, getattr(found, name).tolist(), "number") for name in ("precision", "recall", "f1")),
        Column("support", found.support.tolist(), "number"),
    ]
    if scored.multi:
        counts = statistics.label_confusions(scored)
        for head, (truth, predicted) in {"found": (1, 1), "missed": (1, 0), "false alarms": (0, 1)}.items():
            columns.append(Column(head, counts[:, truth, predicted].tolist(), "number"))
        made.grid(*co_occurrences(made, scored))
    else:
        made.grid(*confusions(made, scored))
        add_confused(made, scored)
    made.heading(f"Each {'label' if scored.multi else 'class'} on {scored.split}")
    made.add(
        page.words("Support: rows that have it. Click a head to sort.", "hint"),
        page.table(columns, sortable=True, tall=len(found.names) > 20),
        saved({column.head: column.cells for column in columns}, "per-class"),
    )


def saved(columns: dict[str, Any], name: str) -> Html:
    """A line with a link to the table above."""
    return Html(f"<p>{page.download(columns, name)}</p>\n")


def confusions(made: Page, scored: Scored) -> list[Html]:
    """The confusion matrix by share of the true class and, where it is small, by rows."""
    counts, names = statistics.confusion(scored), scored.names
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    places = entries(counts) if len(names) > figures.NAMED else list(numpy.ndindex(counts.shape))
    data = {
        "true": [names[a] for a, _ in places],
        "predicted": [names[b] for _, b in places],
        "rows": [int(counts[place]) for place in places],
        "share of true": [float(shares[place]) for place in places],
    }
    caption = f"Confusion on {scored.split}: of the rows of each class, the share that was predicted as each."
    if len(names) > 12:
        caption += " Tints grow with the root of the share, so that rare confusions show."
    if len(names) > figures.NAMED:
        caption += " Classes by their ids, as in the table below; the CSV has what is not 0, the largest if it is much."
    svg = figures.heat_map(shares, shares, names, "predicted", "true")
    drawn = [made.figure("confusion", svg, caption, data)]
    if len(names) <= 12:
        svg = figures.heat_map(counts / counts.max().clip(1), counts, names, "predicted", "true")
        drawn.append(made.figure("confusion-rows", svg, f"The same in numbers of rows of {scored.split}.", data))
    return drawn


def entries(counts: numpy.ndarray) -> list[tuple[int, int]]:
    """The places of a table that are not 0, in order; of very many, those with the most rows."""
    found = numpy.flatnonzero(counts)
    if len(found) > MOST_ENTRIES:
        found = numpy.sort(found[numpy.argsort(-counts.ravel()[found], kind="stable")[:MOST_ENTRIES]])
    return [divmod(int(place), counts.shape[1]) for place in found]


def add_confused(made: Page, scored: Scored) -> None:
    """The pairs of classes that are confused most."""
    counts = statistics.confusion(scored)
    support = counts.sum(axis=1)
    off = counts - numpy.diag(numpy.diag(counts))
    order = [divmod(int(place), len(off)) for place in numpy.argsort(-off, axis=None, kind="stable")[:PAIRS]]
    order = [pair for pair in order if off[pair]]
    if not order:
        made.add(page.words(f"No row of {scored.split} was predicted wrong."))
        return
    columns = [
        Column("true", [scored.names[a] for a, _ in order]),
        Column("predicted as", [scored.names[b] for _, b in order]),
        Column("rows", [int(off[pair]) for pair in order], "number"),
        Column("of those of the class", [f"{off[a, b] / support[a]:.0%}" for a, b in order], "number"),
        Column("the other way round", [int(off[b, a]) for a, b in order], "number"),
    ]
    made.heading("Most confused")
    made.add(page.table(columns), saved({column.head: column.cells for column in columns}, "most-confused"))


def co_occurrences(made: Page, scored: Scored) -> list[Html]:
    """Of the rows with one label, the share that has another too: in truth, and as predicted."""
    drawn = []
    for title, counts in zip(("true", "predicted"), statistics.co_occurrence(scored), strict=True):
        having = numpy.diag(counts)
        shares = counts / having[:, None].clip(1)
        numpy.fill_diagonal(shares, 0)
        places = entries(counts)
        data = {
            "label": [scored.names[a] for a, _ in places],
            "other": [scored.names[b] for _, b in places],
            "rows": [int(counts[place]) for place in places],
        }
        svg = figures.heat_map(shares, shares, scored.names, "has too", f"rows with ({title})")
        caption = (
            f"Labels together on {scored.split}, {title}: of the rows with one label, the share with another. "
            "In the CSV, what is not 0; a label with itself: its rows."
        )
        drawn.append(made.figure(f"together-{title}", svg, caption, data))
    return drawn


def add_regression(made: Page, scored: Scored) -> None:
    """Predicted against true values, and the errors."""
    chosen = numpy.arange(scored.rows)
    if scored.rows > data_part.MEASURED:
        chosen = numpy.sort(numpy.random.default_rng(0).choice(scored.rows, data_part.MEASURED, replace=False))
    true, predicted = scored.references[chosen], scored.predictions[chosen]
    data = {"row": scored.row_ids[chosen].tolist(), "true": true.tolist(), "predicted": predicted.tolist()}
    of = f"{len(chosen)} of {scored.rows} rows" if len(chosen) < scored.rows else f"{scored.rows} rows"
    errors = scored.predictions - scored.references
    edges, counts = data_part.histogram({"error": errors})
    made.grid(
        made.figure(
            "predicted-true",
            figures.scatter(true, predicted, ("true", "predicted")),
            f"Predicted against true values of {scored.split} ({of}); on the line both are the same.",
            data,
        ),
        made.figure(
            "errors",
            figures.histogram(counts, edges, "predicted less true"),
            f"Errors on {scored.split}. Mean {errors.mean():.4g}, standard deviation {errors.std():.4g}.",
            {"from": edges[:-1], "to": edges[1:], **counts},
        ),
    )


# ---- probabilities


def add_probabilities(made: Page, run: Finished) -> None:
    """Are they what they say, what could be had by other thresholds."""
    scored = run.main
    made.section("Probabilities")
    if scored.probabilities is None:
        made.add(page.words("The task gives no probabilities."))
        return
    made.grid(calibration(made, scored), precision_recall(made, scored))
    if scored.multi and "validation" in run.splits:
        add_thresholds(made, run)


def calibration(made: Page, scored: Scored) -> Html:
    found = statistics.calibration(scored)
    full = found.counts > 0
    data = {
        "from": found.edges[:-1].tolist(),
        "to": found.edges[1:].tolist(),
        "items": found.counts.tolist(),
        "mean probability": ["" if numpy.isnan(value) else float(value) for value in found.confidence],
        "share right": ["" if numpy.isnan(value) else float(value) for value in found.correct],
    }
    curve = Curve("", found.confidence[full], found.correct[full], COLOURS[0], points=True)
    of = "of each row and label, against how often the label was there" if scored.multi else "of what was predicted"
    svg = figures.unit_lines([curve], "probability", "share right", diagonal=True)
    caption = (
        f"Calibration on {scored.split}: probability {of}, in {len(found.counts)} bins. On the dotted line it is what "
        f"it says. Expected calibration error: {found.ece:.4f}."
    )
    return made.figure("calibration", svg, caption, data)


def precision_recall(made: Page, scored: Scored) -> Html:
    points = max(10, min(100, 4000 // max(len(scored.names), 1)))
    found = [curve for curve in statistics.precision_recall_curves(scored, points) if curve.positives]
    order = sorted(found, key=lambda curve: curve.average_precision)
    coloured = order if len(order) <= len(COLOURS) else [*order[:3], *order[-3:]]
    drawn = [Curve("", c.recall, c.precision, figures.GREY, faint=True) for c in order if c not in coloured]
    drawn += [
        Curve(f"{curve.name} {curve.average_precision:.2f}", curve.recall, curve.precision, colour)
        for curve, colour in zip(coloured, COLOURS, strict=False)
    ]
    data = {
        "class": [curve.name for curve in found for _ in curve.recall],
        "recall": [float(value) for curve in found for value in curve.recall],
        "precision": [float(value) for curve in found for value in curve.precision],
        "probability from": [float(value) for curve in found for value in curve.thresholds],
    }
    mean = numpy.mean([curve.average_precision for curve in found])
    which = "" if coloured is order else " Coloured: the three worst and the three best, with their average precision."
    caption = f"Precision over recall on {scored.split}. Mean average precision {mean:.4f}.{which}"
    return made.figure("precision-recall", figures.unit_lines(drawn, "recall", "precision"), caption, data)


def add_thresholds(made: Page, run: Finished) -> None:
    """Thresholds of several labels: chosen on validation, judged on test."""
    validation, scored, own = run.scored("validation"), run.main, run.task.threshold
    found = statistics.choose_thresholds(validation)
    made.heading("From which probability a label is predicted")
    curves = [
        Curve(name, found.grid, getattr(found, name), colour)
        for name, colour in (("f1_micro", COLOURS[0]), ("f1_macro", COLOURS[1]))
    ]
    data = {"threshold": found.grid.tolist(), "f1_micro": found.f1_micro.tolist(), "f1_macro": found.f1_macro.tolist()}
    caption = f"F1 on validation by one threshold for all labels. Dashed: the run's own, {own:g}."
    svg = figures.unit_lines(curves, "threshold", "F1 on validation", mark=own)
    names = [name for name in run.task.metric_names if not name.endswith("_per_class")]
    effects = found.effects(scored, names)
    title = {
        "run": f"the run's own, {own:g}",
        "whole": f"one for all, {found.whole:.3f}",
        "by_label": "one for each label",
    }
    columns = [Column("threshold", [title[how] for how in effects])]
    shown = [name for name in next(iter(effects.values())) if name != "loss"]
    columns += [Column(name, [effects[how].get(name) for how in effects], "number", 4) for name in shown]
    judged = "" if scored.split == "test" else " There is no test: these rows are those it was chosen on."
    effect = page.words(f"All are chosen on validation alone; here their scores on {scored.split}.{judged}", "soft")
    by_label = [
        Column("label", scored.names),
        Column("threshold", found.by_label.tolist(), "number"),
        Column("", ["shared: too few rows on validation" if few else "" for few in found.shared]),
    ]
    made.grid(
        made.figure("thresholds", svg, caption, data),
        Html("<div>" + page.table(columns) + effect + page.table(by_label, "One for each label", tall=True) + "</div>"),
    )


# ---- rows


def add_rows(made: Page, run: Finished, rows: Rows) -> None:
    """What the model finds hardest and easiest, of the splits that it has not learned from."""
    made.section("Rows with the highest and the lowest loss")
    for split in run.splits or ["train"]:
        scored = run.scored(split)
        for title, count, highest in (("highest", LISTED, True), ("lowest", EASY, False)):
            places = statistics.by_loss(scored, count, highest)
            made.heading(f"{split}: the {title} loss")
            add_listed(made, rows, scored, places, f"{title}-loss-{split}")


def add_listed(made: Page, rows: Rows, scored: Scored, places: Any, name: str, more: tuple[Column, ...] = ()) -> None:
    """Rows by their places in `scored`, with label, prediction, probability and loss."""
    columns = [*said_of(scored, places), *more]
    ids = [int(row) for row in scored.row_ids[places]]
    made.add(data_part.show_rows(rows, scored.split, ids, columns))
    made.add(saved({"row": ids, **{column.head: column.cells for column in columns}}, name))


def said_of(scored: Scored, places: Any) -> list[Column]:
    """Label, prediction and probability of some rows, in words."""
    chosen = scored.take(numpy.asarray(places, int))
    loss = Column("loss", chosen.losses.tolist(), "number")
    if scored.regression:
        true, predicted = chosen.references.tolist(), chosen.predictions.tolist()
        return [Column("true", true, "number"), Column("predicted", predicted, "number"), loss]
    said = [
        Column(head, worded(scored, of))
        for head, of in (("label", chosen.references), ("predicted", chosen.predictions))
    ]
    if chosen.probabilities is None:
        return [*said, loss]
    at = numpy.arange(chosen.rows)
    if scored.multi:
        worst = numpy.abs(chosen.probabilities - chosen.references).argmax(axis=1)
        told = [
            f"{scored.names[label]} {chosen.probabilities[row, label]:.3f}"
            for row, label in zip(at, worst, strict=True)
        ]
        return [*said, Column("most wrong", told), loss]
    predicted, own = chosen.probabilities[at, chosen.predictions], chosen.probabilities[at, chosen.references]
    return [
        *said,
        Column("probability", predicted.tolist(), "number"),
        Column("label's probability", own.tolist(), "number"),
        loss,
    ]


def worded(scored: Scored, values: numpy.ndarray) -> list[str]:
    """Encoded labels as a person reads them."""
    if not scored.multi:
        return [scored.names[value] for value in values]
    return [" + ".join(name for name, has in zip(scored.names, row, strict=True) if has) or "(none)" for row in values]


def add_label_errors(made: Page, run: Finished, rows: Rows, history: History, search: int | None) -> None:
    """Rows of train whose labels are likely wrong; `search` of them are looked at."""
    from ftloop.report import label_errors

    made.section("Likely label errors")
    rates = [value for value in history.speed["rows_per_second"].values if value] if history.speed else []
    at_most = search or int(numpy.clip(SEARCH * (numpy.median(rates) if rates else 0), *SEARCHED))
    scored, found, said = label_errors.of_run(run.run_dir, "train", run.task, at_most=at_most)
    of = f"{scored.rows} of the {scored.total} rows" if scored.rows < scored.total else f"the {scored.rows} rows"
    made.add(
        page.words(
            f"Rows of train whose labels are doubtful, the most doubtful first, by "
            f"{said.replace(str(run.config.task.model), short(run.config.task.model))}. Of {of} of train, about "
            f"{found.likely} are wrong by the estimate of confident learning; look before you believe it."
        )
    )
    places = found.places[:LISTED]
    suggested = [
        found.suggestion(number) if found.multi else found.names[found.suggested[number]]
        for number in range(len(places))
    ]
    more = (
        Column("suggested", suggested),
        Column("confidence in the label", found.confidence[: len(places)].tolist(), "number"),
    )
    add_listed(made, rows, scored, places, "likely-label-errors", more)


# ---- the map


def add_map(made: Page, run: Finished) -> None:
    """What the model makes of the rows, on a plane."""
    from ftloop.report.features import features_of

    made.section("Map of the features")
    split, seed = run.main.split, run.config.seed
    ids, features = features_of(run.task, run.task.build_model(), split, at_most=MAPPED, seed=seed)
    points, how, names = on_a_plane(features, seed)
    scored = run.scored(split)
    place = {int(row): at for at, row in enumerate(scored.row_ids)}
    scored = scored.take(numpy.array([place[int(row)] for row in ids if int(row) in place], int))
    points = points[numpy.isin(ids, scored.row_ids)]
    groups = groups_of(scored)
    of = f"{scored.rows} of {scored.total} rows" if scored.rows < scored.total else f"{scored.rows} rows"
    data = {"row": scored.row_ids.tolist(), "x": points[:, 0].tolist(), "y": points[:, 1].tolist()}
    if scored.regression:
        data |= {"true": scored.references.tolist(), "predicted": scored.predictions.tolist()}
    else:
        data |= {"label": worded(scored, scored.references), "predicted": worded(scored, scored.predictions)}
    first = dict(list(groups.items())[: len(COLOURS)])
    told = (
        f" Coloured: the {len(first)} largest of {len(groups)}, the others are grey."
        if len(first) < len(groups)
        else ""
    )
    panels = dict(list(groups.items())[:PANELS])
    some = f" The {len(panels)} largest of {len(groups)}." if len(panels) < len(groups) else ""
    made.grid(
        made.figure(
            "map",
            figures.cloud(points, first, names),
            f"Features of the trained model, the mean over each row of {split} ({of}), by {how}.{told}",
            data,
        ),
        made.figure(
            "map-by-class",
            figures.hexagons(points, panels),
            f"The same, where the rows of each {'value' if scored.regression else 'class'} lie.{some}",
            {
                "group": [name for name, chosen in panels.items() for _ in range(int(chosen.sum()))],
                "x": [float(x) for chosen in panels.values() for x in points[chosen, 0]],
                "y": [float(y) for chosen in panels.values() for y in points[chosen, 1]],
            },
        ),
    )


def on_a_plane(features: numpy.ndarray, seed: int) -> tuple[numpy.ndarray, str, tuple[str, str]]:
    """Points [rows, 2] of features [rows, width] by UMAP where it is installed (McInnes et al., 2018,
    arXiv:1802.03426), else by their first two principal components; by which, and the names of the axes."""
    import importlib.util

    if importlib.util.find_spec("umap") is not None and len(features) > 15:
        import umap

        points = umap.UMAP(n_components=2, random_state=seed, n_jobs=1).fit_transform(features)
        return numpy.round(points.astype(float), 4), "UMAP", ("", "")
    from sklearn.decomposition import PCA

    made = PCA(min(2, *features.shape), svd_solver="full").fit(features.astype(float))
    points = numpy.zeros((len(features), 2))
    found = made.transform(features.astype(float))
    points[:, : found.shape[1]] = found
    shares = [f"component {number + 1} ({share:.0%})" for number, share in enumerate(made.explained_variance_ratio_)]
    names = [*shares, "", ""][:2]
    how = "their two principal components (with umap-learn installed, UMAP)"
    return numpy.round(points, 4), how, (names[0], names[1])


def groups_of(scored: Scored) -> dict[str, numpy.ndarray]:
    """Which rows have a class or label, the largest first; numbers in four parts of equal size."""
    if scored.regression:
        edges = numpy.quantile(scored.references, (0.25, 0.5, 0.75))
        part = numpy.searchsorted(edges, scored.references)
        ends = [scored.references.min(), *edges, scored.references.max()]
        found = {f"{ends[at]:.3g} to {ends[at + 1]:.3g}": part == at for at in range(4)}
    elif scored.multi:
        found = {name: scored.references[:, label] for label, name in enumerate(scored.names)}
    else:
        found = {name: scored.references == label for label, name in enumerate(scored.names)}
    found = {name: chosen for name, chosen in found.items() if chosen.any()}
    return found if scored.regression else dict(sorted(found.items(), key=lambda item: -item[1].sum()))


# ---- the record


def add_record(made: Page, run_dir: Path, config: Config) -> None:
    """Config, versions, command, seed and the digest that stands for all of the run's steps."""
    made.section("How it was made")
    record = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    chain = ledger_digest(run_dir)
    made.add(page.facts({"seed": config.seed, "folder": config_name(run_dir)}))
    if record.get("command"):
        made.add(page.words("Started, last, as:", "soft"), page.code(record["command"]))
    if chain:
        made.add(
            page.words(
                "Ledger digest, the last link of the chain over the rows, the loss and the weights of each step "
                "(two runs with the same one did the same; python -m ftloop verify checks it):",
                "soft",
            ),
            page.code(chain),
        )
    set_, left = options_of(config)
    made.heading("Options that were set")
    made.add(page.table([Column("option", list(set_)), Column("value", list(set_.values()), "text")]))
    rows = page.table([Column("option", list(left)), Column("value", list(left.values()), "text")])
    made.add(Html(f"<details><summary>The others, with their defaults</summary>{rows}</details>\n"))
    made.heading("Made by")
    trained = made_by(run_dir)
    now = data_part.versions()
    names = list(dict.fromkeys([*trained, *now]))
    made.add(
        page.table(
            [
                Column("", names),
                Column("trained with", [str(trained.get(name, "")) for name in names]),
                Column("this page with", [now.get(name, "") for name in names]),
            ]
        )
    )


def made_by(run_dir: Path) -> dict[str, Any]:
    """Versions and devices that trained, as the newest checkpoint has them; {} where none is left."""
    found = checkpoint.find(run_dir / "checkpoints") if (run_dir / "checkpoints").is_dir() else []
    try:
        return checkpoint.load_made_by(found[-1]) if found else {}
    except (OSError, ValueError, KeyError) as error:
        logger.info("report: versions of training are not known: %s", root_cause(error))
        return {}


def options_of(config: Any, prefix: str = "") -> tuple[dict[str, str], dict[str, str]]:
    """The options of a config by their names on the command line: those that are not the default, and the others."""
    changed: dict[str, str] = {}
    others: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            changed[option(name)] = type(value).__name__
            for into, found in zip((changed, others), options_of(value, f"{name}."), strict=True):
                into |= found
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        encoded = encode(value)
        if isinstance(encoded, dict) and not {"function", "pairs", "class"} & encoded.keys():
            encoded = write_pairs(encoded)
        listed = isinstance(encoded, list) and encoded and all(isinstance(item, str) for item in encoded)
        text = shlex.join(encoded) if listed else encoded
        text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        (others if value == default else changed)[option(name)] = text
    return changed, others
