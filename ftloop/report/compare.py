"""Several runs beside each other: what differs in their configs, their curves, their scores, and row by row.

Row by row, and by the paired bootstrap, only runs that were scored on the same rows are compared: where the inputs or
the labels differ, that is said.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from ftloop.config import differences, read_encoded, read_record
from ftloop.data import checks
from ftloop.errors import UserError
from ftloop.report import curves, data_part, figures, page, statistics
from ftloop.report.data_part import Rows, attempt
from ftloop.report.history import History
from ftloop.report.page import Column, Page
from ftloop.report.run_report import Finished, duration, saved, with_span, worded
from ftloop.report.scored import Scored

logger = logging.getLogger("ftloop")

CHANGED = 30  # rows that changed, to be shown of each pair


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write the page. Raises UserError for fewer than two runs, and for folders without a finished one."""
    if len(runs) < 2:
        raise UserError("compare needs two runs or more: python -m ftloop compare runs/one runs/other")
    names = names_of(runs)
    if len(set(names)) < len(names):
        raise UserError(f"a run is named twice: {', '.join(map(str, runs))}")
    found = {}
    for name, folder in zip(names, runs, strict=True):
        config, file = read_record(folder), folder / "scores.json"
        if not file.is_file():
            raise UserError(f"{str(folder)!r} is not finished: its training ends by the same command")
        if not data_part.is_classification(config.task):
            raise UserError(
                f"{str(folder)!r}: {type(config.task).__name__} is no Classification: its rows are not known"
            )
        found[name] = Finished(folder, config, json.loads(file.read_text(encoding="utf-8")))
    text = build(found).html(data_part.written_by())
    size = page.write(out, text)
    logger.info("compare: %s, %.1f MB", out, size / 1e6)
    return out


def names_of(runs: Sequence[Path]) -> list[str]:
    """The names of the folders; where two are the same, with the folders above."""
    parts = [folder.resolve().parts for folder in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def build(runs: dict[str, Finished]) -> Page:
    made = Page(" and ".join(runs) if len(runs) < 4 else f"{len(runs)} runs", "compare")
    attempt(made, "Configs", lambda: add_configs(made, runs))
    attempt(made, "Scores", lambda: add_scores(made, runs))
    attempt(made, "Curves", lambda: curves.add(made, {name: History.read(run.run_dir) for name, run in runs.items()}))
    first, *others = runs
    for other in others:
        title = f"{other} and {first}, row by row"
        attempt(made, title, lambda other=other, title=title: add_pair(made, title, runs, first, other))
    return made


def add_configs(made: Page, runs: dict[str, Finished]) -> None:
    """What differs from the first run."""
    made.section("Configs")
    first, *others = runs
    before = read_encoded(runs[first].run_dir)[1]
    for other in others:
        found = differences(before, read_encoded(runs[other].run_dir)[1])
        made.heading(f"{first} -> {other}")
        made.add(page.listed(found) if found else page.words("No option differs that changes a result.", "soft"))


def split_of(runs: dict[str, Finished]) -> str | None:
    """A split that all of them were scored on: test, else validation."""
    for split in ("test", "validation"):
        if all(split in run.scores for run in runs.values()):
            return split
    return None


def add_scores(made: Page, runs: dict[str, Finished]) -> None:
    """The scores of each run with their intervals, and what it cost."""
    made.section("Scores")
    for split in ("test", "validation"):
        having = {name: run for name, run in runs.items() if split in run.scores}
        if not having:
            continue
        spans = {name: statistics.intervals(run.scored(split), run.task.metric_names) for name, run in having.items()}
        scores = list(dict.fromkeys(name for run in having.values() for name in run.scores[split] if "[" not in name))
        columns = [Column("run", list(having))]
        columns += [
            Column(
                score,
                [with_span(run.scores[split].get(score), spans[name].get(score)) for name, run in having.items()],
                "number",
                4,
            )
            for score in scores
        ]
        histories = [History.read(run.run_dir) for run in having.values()]
        columns.append(Column("steps", [history.steps for history in histories], "number"))
        columns.append(Column("training took", [duration(history.seconds) for history in histories], "number"))
        made.heading(split)
        made.add(page.table(columns))
        drawn = []
        for score in scores:
            values = {name: run.scores[split].get(score) for name, run in having.items()}
            known = {name: value for name, value in values.items() if value is not None}
            ends = {name: spans[name].get(score) for name in known}
            lines = [
                None if end is None or not numpy.isfinite(end.low) else (end.low, end.high) for end in ends.values()
            ]
            data = {
                "run": list(known),
                score: list(known.values()),
                "low": ["" if line is None else line[0] for line in lines],
                "high": ["" if line is None else line[1] for line in lines],
            }
            if known:
                svg = figures.intervals(list(known), list(known.values()), lines, score)
                drawn.append(made.figure(f"{split}-{score}", svg, f"{score} on {split}, with 95 % intervals.", data))
        made.grid(*drawn)


def add_pair(made: Page, title: str, runs: dict[str, Finished], first: str, other: str) -> None:
    """The difference of two runs on the same rows, and which rows changed."""
    made.section(title)
    one, two = runs[first], runs[other]
    split = split_of({first: one, other: two})
    if split is None:
        made.add(page.words("They were not scored on a split of the same name: their rows are not compared."))
        return
    a, b = one.scored(split), two.scored(split)
    try:
        statistics.check_same_rows(a, b)
        if inputs_of(one, split) != inputs_of(two, split):
            raise UserError(f"the inputs of the rows of {split} differ")
    except UserError as different:
        made.add(page.words(f"Not compared row by row: {different}.", "bad"))
        return
    names = [name for name in one.task.metric_names if name in two.task.metric_names and "per_class" not in name]
    found = statistics.paired_differences(b, a, [name for name in names if not name.startswith("hub:")])
    columns = [
        Column("score", list(found)),
        Column(first, [value.b for value in found.values()], "number", 4),
        Column(other, [value.a for value in found.values()], "number", 4),
        Column("difference", [with_span(value.value, value) for value in found.values()], "number", 4),
        Column("p", [value.p for value in found.values()], "number", 4),
    ]
    made.add(page.table(columns))
    resamples = min(value.resamples for value in found.values())
    made.add(
        page.words(
            f"{other} less {first} on the same {page.number(a.rows)} rows of {split}: 95 % intervals and two-sided p "
            f"by the paired bootstrap, {resamples} resamples.",
            "soft",
        )
    )
    if not a.regression:
        add_agreement(made, a, b, first, other)
    add_changed(made, Rows(one.task, one.config.seed), a, b, first, other)


def add_agreement(made: Page, a: Scored, b: Scored, first: str, other: str) -> None:
    """How many rows both have right, one, or none."""
    wrong = (a.wrong, b.wrong)
    counts = {
        "both right": ~wrong[0] & ~wrong[1],
        f"only {first} right": ~wrong[0] & wrong[1],
        f"only {other} right": wrong[0] & ~wrong[1],
        "both wrong": wrong[0] & wrong[1],
    }
    made.add(page.facts({name: page.number(int(found.sum())) for name, found in counts.items()}))


def add_changed(made: Page, rows: Rows, a: Scored, b: Scored, first: str, other: str) -> None:
    """The rows with another prediction, those with the greatest change of loss first; of numbers, by the loss alone."""
    differs = (a.predictions != b.predictions).reshape(a.rows, -1).any(axis=1)
    change = numpy.nan_to_num(numpy.abs(b.losses - a.losses))
    order = numpy.argsort(-change, kind="stable")
    places = order[differs[order]]
    made.heading("Rows with another prediction" if not a.regression else "Rows whose loss changed most")
    if not len(places):
        made.add(page.words("None."))
        return
    shown = places[:CHANGED]
    places = places[: data_part.MEASURED]
    left = f" Shown are the {len(shown)} whose loss changed most; the CSV has more." if len(shown) < len(places) else ""
    if not a.regression:
        made.add(page.words(f"{differs.sum()} of {a.rows} rows have another prediction.{left}"))
    ids = [int(row) for row in a.row_ids[shown]]
    made.add(data_part.show_rows(rows, a.split, ids, columns_of(a, b, shown, first, other)))
    every = columns_of(a, b, places, first, other)
    data: dict[str, Any] = {"row": a.row_ids[places].tolist(), **{column.head: column.cells for column in every}}
    made.add(saved(data, f"changed-{first}-{other}"))


def columns_of(a: Scored, b: Scored, places: numpy.ndarray, first: str, other: str) -> list[Column]:
    """Label, and prediction and loss of both."""
    kind = "number" if a.regression else "word"

    def said(values: numpy.ndarray) -> list[Any]:
        return values.tolist() if a.regression else worded(a, values)

    return [
        Column("label", said(a.references[places]), kind),
        Column(first, said(a.predictions[places]), kind),
        Column(other, said(b.predictions[places]), kind),
        Column(f"loss, {first}", a.losses[places].tolist(), "number"),
        Column(f"loss, {other}", b.losses[places].tolist(), "number"),
    ]


def inputs_of(run: Finished, split: str) -> str:
    """A digest of what the model is given of each row, before it is prepared."""
    rows, found = checks.undecoded(run.task.rows[split]), hashlib.sha256()
    for column in run.task.input_columns:
        for key in checks.keys(rows, column):
            found.update(repr(key).encode())
    return found.hexdigest()
