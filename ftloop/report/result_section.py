"""The headline of a report: scores beside the baselines, and what they cost."""

import math
from pathlib import Path
from typing import Any

import numpy

from ftloop.config import Config
from ftloop.report import bootstrap, figures
from ftloop.report.baselines import Baseline, fit_baselines
from ftloop.report.finished_run import FinishedRun
from ftloop.report.history import History
from ftloop.report.page import (
    Column,
    Html,
    Page,
    bullet_list,
    escape,
    format_number,
    key_figures,
    paragraph,
    table,
)
from ftloop.report.sections import (
    format_duration,
    has_interval,
    interval_columns,
    shorten_path,
    value_with_interval,
)
from ftloop.report.task_rows import is_classification

THIS_RUN = "this run"


def add_result(page: Page, run: FinishedRun, history: History) -> None:
    """Add the scores of a finished run with their intervals, beside the baselines."""
    page.add_section("Result")
    page.add(paragraph(describe_run(run.config, run.task)))
    metric = run.main_metric
    values = {
        f"{metric} on {split}": format_number(run.scores[split].get(metric), 4)
        for split in run.held_out_splits
    }
    values |= describe_training(history)
    parameters = count_parameters(run.run_dir / "model")
    values["parameters"] = f"{parameters / 1e6:.1f} million"
    page.add(key_figures(values))

    fitted = fit_baselines(run.config, run.task, tuple(run.held_out_splits))
    page.add_grid(*(scores_on_split(page, run, split, fitted) for split in run.held_out_splits))
    page.add(
        paragraph(
            "The numbers in brackets are 95 % bootstrap intervals over the rows of the split. They "
            "show how the score of this model would vary over other splits of this size, not how "
            "it would vary over other trainings.",
            "soft",
        )
    )
    model = getattr(run.config.task, "model", "")
    notes = []
    for baseline in fitted:
        note = baseline.description.replace(model, shorten_path(model))
        notes.append(f"{baseline.name}: {note}.")
    page.add(bullet_list(notes, "soft"))


def add_result_without_rows(
    page: Page, config: Config, history: History, scores: dict[str, dict[str, float | None]] | None
) -> None:
    """Add the result of a run whose rows cannot be scored: one that is not finished (`scores` is
    None), or one whose task is no Classification."""
    page.add_section("Result")
    page.add(paragraph(describe_run(config, config.task)))
    page.add(key_figures(describe_training(history)))
    if scores is None:
        page.add(
            paragraph(
                "This run is not finished. The report of the finished run will also show scores "
                "with intervals, its mistakes and more."
            )
        )
        return
    for split, values in scores.items():
        page.add_heading(split)
        page.add(table([Column(name, [value], "number", 4) for name, value in values.items()]))


def describe_run(config: Config, task: Any) -> str:
    """Return one line with the kind of task, the model and the data."""
    kind = type(task).__name__
    if is_classification(task):
        count = len(task.labels.names)
        if not count:
            kind += ": a number"
        elif task.labels.is_multi_label:
            kind += f": any of {count} labels"
        else:
            kind += f": one of {count} classes"
    parts = [kind]
    model = getattr(config.task, "model", None)
    if isinstance(model, str):
        has_random_weights = getattr(config.task, "init", "") == "random"
        suffix = " with random weights" if has_random_weights else ""
        parts.append(f"Model: {shorten_path(model)}{suffix}")
    data = getattr(config.task, "data", None)
    if data is not None:
        files = ", ".join(map(str, getattr(data, "files", {}).values()))
        source = getattr(data, "path", None) or files or type(data).__name__
        parts.append(f"Data: {shorten_path(source)}")
    return ". ".join(parts) + "."


def describe_training(history: History) -> dict[str, str]:
    """Return what a training cost: steps, epochs, time and speed."""
    values = {
        "optimizer steps": format_number(history.steps),
        "epochs": format_number(float(history.epochs), 2),
        "training time": format_duration(history.seconds),
    }
    if speeds := measured(history, "rows_per_second"):
        values["rows per second (median)"] = format_number(float(numpy.median(speeds)), 1)
    return values


def measured(history: History, name: str) -> list[float]:
    """Return the values of a measurement that are neither missing nor 0."""
    return [value for value in history.speed[name].values if value] if name in history.speed else []


def count_parameters(folder: Path) -> int:
    """Return the number of parameters of a model from the headers of its weight files."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as weights:
            names = weights.keys()  # the object itself cannot be iterated
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def scores_on_split(page: Page, run: FinishedRun, split: str, fitted: list[Baseline]) -> Html:
    """Return a table of all scores on a split, and a figure of the main one."""
    scored, metric_names = run.score(split), run.task.metric_names
    intervals = {THIS_RUN: bootstrap.intervals(scored, metric_names)}
    values: dict[str, dict[str, Any]] = {THIS_RUN: run.scores[split]}
    for baseline in fitted:
        if split in baseline.scored:
            name = baseline.name
            intervals[name] = bootstrap.intervals(baseline.scored[split], metric_names)
            values[name] = {score: found.value for score, found in intervals[name].items()}

    columns = [Column("", list(values))]
    for score in run.scores[split]:
        if "[" in score:  # of one class; the section "Classes" shows these
            continue
        cells = [
            value_with_interval(of_model.get(score), intervals[model].get(score))
            for model, of_model in values.items()
        ]
        columns.append(Column(score, cells, "number", 4))
    heading = f"<h3>{escape(split)}, {format_number(scored.rows)} rows</h3>\n"
    figure = main_score_figure(page, run, split, values, intervals)
    return Html(f"<div>{heading}{table(columns)}{figure}</div>\n")


def main_score_figure(
    page: Page,
    run: FinishedRun,
    split: str,
    values: dict[str, dict[str, Any]],
    intervals: dict[str, dict[str, Any]],
) -> Html:
    """Draw the main score of the run and of the baselines with their intervals."""
    score = run.main_metric
    drawn = {
        model: scores[score] for model, scores in values.items() if scores.get(score) is not None
    }
    if not drawn:
        return Html("")
    of_score = [intervals[model].get(score) for model in drawn]
    ends = [(one.low, one.high) if has_interval(one) else None for one in of_score]
    data = {"": list(drawn), score: list(drawn.values()), **interval_columns(of_score)}
    svg = figures.intervals(list(drawn), list(drawn.values()), ends, score, highlighted=1)
    caption = f"{score} on {split}, with 95 % intervals."
    return page.figure(f"{split}-{score}", svg, caption, data)
