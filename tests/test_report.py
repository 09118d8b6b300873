"""The pages: their sections and numbers are those of the run, and no data breaks out of them."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from conftest import run_script
from reported import (
    EVIL,
    LABELS,
    ParsedPage,
    run_ftloop,
    train_on_images,
    train_on_texts,
    train_run,
)

from ftloop.config import Config
from ftloop.errors import Stopped
from ftloop.report import bootstrap, page, reporter, run_report, statistics
from ftloop.report.config_section import split_options
from ftloop.report.history import History, Series
from ftloop.report.reporter import Reporter, ReportProcess, write_report_and_wait
from ftloop.report.run_report import write_report
from ftloop.report.scored import score_split
from ftloop.runs.record import load_config
from ftloop.task import Task

FIGURES = {
    *("loss", "scores", "learning-rate", "grad-norm", "throughput", "data-wait"),
    *("classes", "lengths"),
    *("confusion", "confusion-rows", "calibration", "precision-recall", "map", "map-by-class"),
    *("test-accuracy", "validation-accuracy"),
}
DATA_SECTIONS = ["Data", "Data checks", "Example rows"]
SECTIONS = [
    *("Result", "Curves", "Classes", "Probabilities", "Highest and lowest losses"),
    *("Likely label errors", "Feature map", *DATA_SECTIONS, "Options and versions"),
]
BROKEN = "This section could not be written"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny) -> Path:
    return train_on_texts(tmp_path_factory.mktemp("texts"), tiny)


@pytest.fixture(scope="module")
def report(run) -> ParsedPage:
    result = run_ftloop("report", run)
    assert result.code == 0, result.err
    assert result.out == f"{run / 'report.html'}\n"
    return ParsedPage(run / "report.html")


def data_options(run: Path) -> list[str]:
    """Options for the rows and the model of a run."""
    task = load_config(run).task
    files = [str(word) for pair in task.data.files.items() for word in pair]
    return ["--model", task.model, "--data.files", *files, "--max-length", "12"]


# ---- the report of a run


def test_it_has_all_sections_and_figures_each_with_a_caption_and_its_numbers(report):
    assert report.sections == SECTIONS
    assert BROKEN not in report.html
    assert set(report.figures) == FIGURES
    assert set(report.figures) <= set(report.csv)
    assert report.html.count("<figcaption>") == len(report.figures)
    links = [
        attributes["href"]
        for tag, attributes in report.tags
        if tag == "a" and "download" not in attributes
    ]
    ids = {attributes.get("id") for _, attributes in report.tags}
    assert {link.removeprefix("#") for link in links} <= ids
    assert len(report.html.encode()) < 1_000_000


def test_its_numbers_are_those_of_the_run(run, report):
    scores = json.loads((run / "scores.json").read_text())
    for split, values in scores.items():
        for name, value in values.items():
            assert report.shows(page.format_number(value, 4)), (split, name)
    record = json.loads((run / "config.json").read_text())
    assert report.shows(record["command"])
    ledger = (run / "ledger.jsonl").read_text().splitlines()
    assert report.shows(json.loads(ledger[-1])["chain"])
    assert report.shows("--max-length")
    assert not report.shows("--task.")


def test_the_csv_of_a_figure_is_what_is_drawn(run, report):
    scored = score_split(run, "test")
    counts = statistics.confusion_matrix(scored)
    cells = {(row["true"], row["predicted"]): int(row["rows"]) for row in report.csv["confusion"]}
    assert cells == {
        (true, predicted): counts[i, j]
        for i, true in enumerate(scored.names)
        for j, predicted in enumerate(scored.names)
    }
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    is_train_loss = [(line["split"], line["name"]) == ("train", "loss") for line in logged]
    losses = [line["value"] for line, chosen in zip(logged, is_train_loss, strict=True) if chosen]
    drawn = [float(row["value"]) for row in report.csv["loss"] if row["curve"] == "train"]
    assert drawn == losses
    hardest = report.csv["highest-loss-test"]
    assert [int(row["row"]) for row in hardest] == statistics.rank_by_loss(scored, 25).tolist()
    highest = sorted(scored.losses, reverse=True)[: len(hardest)]
    assert [float(row["loss"]) for row in hardest] == highest
    labels = [scored.names[scored.references[int(row["row"])]] for row in hardest]
    assert [row["label"] for row in hardest] == labels
    classes = {row["class"]: int(row["rows of test"]) for row in report.csv["classes"]}
    expected = numpy.bincount(scored.references, minlength=3).tolist()
    assert classes == dict(zip(scored.names, expected, strict=True))
    assert len(report.csv["map"]) == 20
    assert all(row["true"] in LABELS.values() for row in report.csv["confusion"])


def test_nothing_in_the_data_is_taken_for_html_and_nothing_is_fetched(report):
    assert report.shows(EVIL[:40])  # as text
    assert [tag for tag, _ in report.tags].count("script") == 1
    for tag, attributes in report.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    assert not re.search(r"url\((?!#)|@import", report.html)
    policies = [tag["content"] for _, tag in report.tags if "http-equiv" in tag]
    assert policies[0].startswith("default-src 'none'")
    assert all(ord(character) >= 32 or character == "\n" for character in report.html)


def test_a_leak_and_the_truncation_are_reported(report):
    assert report.shows("1 of the 20 rows of test")
    assert report.shows("--max-length 12 (dashed line):")


def test_the_same_run_gives_the_same_bytes(run, report):
    def without_footer(html: str) -> str:
        return re.sub(r"<footer>.*?</footer>", "", html, flags=re.DOTALL)

    again = run_report.build_page(run, load_config(run)).render("")
    assert without_footer(again) == without_footer(report.html)


def test_an_unfinished_run_has_curves_and_data(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "scores.json").unlink()
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 13, "epoch')  # half of a line
    live = ParsedPage(write_report(copy, tmp_path / "live.html"))
    assert live.sections == ["Result", "Curves", *DATA_SECTIONS, "Options and versions"]
    assert BROKEN not in live.html
    assert live.shows("This run is not finished")


def test_the_search_for_label_errors_takes_a_number_of_rows(run, tmp_path):
    result = run_ftloop("report", run, "--out", tmp_path / "few.html", "--search", "30")
    assert result.code == 0, result.err
    assert ParsedPage(tmp_path / "few.html").shows("the 30 of 43 rows of train")
    assert run_ftloop("report", run, "--search", "0").code == 2


def test_a_task_that_is_no_classification_has_scores_and_curves(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "is_classification", lambda task: False)
    found = ParsedPage(write_report(run, tmp_path / "own.html"))
    assert found.sections == ["Result", "Curves", "Options and versions"]
    assert BROKEN not in found.html
    scores = json.loads((run / "scores.json").read_text())
    assert found.shows(page.format_number(scores["test"]["accuracy"], 4))


def test_a_section_that_fails_says_why_and_the_others_are_written(run, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no <i>wrong</i> turn")

    monkeypatch.setattr(run_report.map_section, "add_feature_map", fail)
    monkeypatch.setattr(run_report.rows_section, "add_label_errors", fail)
    found = ParsedPage(write_report(run, tmp_path / "part.html"))
    reason = f"{BROKEN}: RuntimeError: no &lt;i&gt;wrong&lt;/i&gt; turn"
    assert found.html.count(reason) == 2
    assert found.sections == SECTIONS


def test_a_run_in_bf16_has_a_complete_report(run, tmp_path):
    options = [*data_options(run), "--label", "colour", "--max-steps", "1"]
    half = train_run("configs/text.py", tmp_path / "half", *options, "--precision", "bf16")
    result = run_ftloop("report", half)
    assert result.code == 0, result.err
    found = ParsedPage(half / "report.html")
    assert found.sections == SECTIONS
    assert BROKEN not in found.html


def test_several_labels_per_row(run, tmp_path):
    options = [*data_options(run), "--label", "tags", "--label-separator", ";"]
    training = ["--max-steps", "2", "--batch-size", "16"]
    several = train_run("configs/text.py", tmp_path / "several", *options, *training)
    found = ParsedPage(write_report(several))
    assert BROKEN not in found.html
    assert {"together-true", "together-predicted", "thresholds", "calibration"} <= set(
        found.figures
    )
    scored = score_split(several, "test")
    counts, _ = statistics.count_co_occurrences(scored)
    expected = {
        (label, other): counts[i, j]
        for i, label in enumerate(scored.names)
        for j, other in enumerate(scored.names)
        if counts[i, j]
    }
    rows = found.csv["together-true"]
    assert {(row["label"], row["other"]): int(row["rows"]) for row in rows} == expected
    assert found.shows("The thresholds are chosen on validation only")


def test_regression(run, tmp_path):
    options = [*data_options(run), "--label", "tone", "--max-steps", "2", "--batch-size", "16"]
    numbers = train_run("configs/text.py", tmp_path / "numbers", *options)
    found = ParsedPage(write_report(numbers))
    assert BROKEN not in found.html
    assert {"predicted-true", "errors", "values", "map", "lengths"} <= set(found.figures)
    assert not {"Likely label errors", "Probabilities"} & set(found.sections)
    predictions = [float(row["predicted"]) for row in found.csv["predicted-true"]]
    assert predictions == score_split(numbers, "test").predictions.tolist()


def test_images_and_their_data_before_training(tmp_path):
    run = train_on_images(tmp_path)
    found = ParsedPage(write_report(run))
    assert BROKEN not in found.html
    assert {"sizes", "confusion"} <= set(found.figures)
    assert {(row["width"], row["height"]) for row in found.csv["sizes"]} == {("20", "12")}
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(images) > 10
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)

    new = tmp_path / "new"
    options = ["configs/image.py", "--data", str(tmp_path / "photos"), "--run-dir", str(new)]
    options += ["--init", "random", "--model", "vit", "--image-size", "8"]
    result = run_ftloop("explore", *options, "--data.validation", "0.3")
    assert result.code == 0, result.err
    assert result.out == f"{tmp_path / 'new-explore.html'}\n"
    assert ParsedPage(tmp_path / "new-explore.html").sections == DATA_SECTIONS
    assert not new.exists()  # training begins in an empty folder


def test_explore_takes_options_of_the_config_and_a_file(run, tmp_path):
    out = tmp_path / "data.html"
    options = [*data_options(run), "--label", "colour", "--quiet", "--out", out]
    result = run_ftloop("explore", "configs/text.py", *options)
    assert result.code == 0, result.err
    assert not [line for line in result.err.splitlines() if line.startswith("data:")]
    found = ParsedPage(out)
    assert set(found.figures) == {"classes", "lengths"}
    assert found.shows("1 of the 20 rows of test")
    assert run_ftloop("explore", "configs/text.py", "--max-lenth", "3").code == 2
    assert "CONFIG" in run_ftloop("explore", "--help").out


# ---- several runs


@pytest.fixture(scope="module")
def other(run, tmp_path_factory) -> Path:
    """A run that learns the task. The predictions of `run`, which is too short for it, differ."""
    options = [*data_options(run), "--label", "colour", "--batch-size", "8"]
    training = ["--learning-rate", "1e-3", "--max-steps", "200"]
    folder = tmp_path_factory.mktemp("other") / "other"
    return train_run("configs/text.py", folder, *options, *training)


def test_runs_are_compared_on_the_same_rows(run, other, tmp_path):
    result = run_ftloop("compare", run, other, "--out", tmp_path / "compare.html")
    assert result.code == 0, result.err
    found = ParsedPage(tmp_path / "compare.html")
    assert BROKEN not in found.html
    assert found.sections == ["Options", "Scores", "Curves", "other and run, row by row"]
    assert found.shows("--learning-rate: 0.005 -> 0.001")
    before, after = score_split(run, "test"), score_split(other, "test")
    changed = [int(row["row"]) for row in found.csv["changed-run-other"]]
    assert sorted(changed) == numpy.flatnonzero(before.predictions != after.predictions).tolist()
    difference = bootstrap.paired_differences(after, before, ["accuracy"])["accuracy"].value
    assert found.shows(page.format_number(difference, 4))
    assert {row["curve"].partition(":")[0] for row in found.csv["loss"]} == {"run", "other"}
    figures = {"test-loss", "test-accuracy", "validation-f1-macro", "curve-f1-macro"}
    assert figures <= set(found.figures)


def test_runs_on_other_rows_are_not_compared_row_by_row(run, other, tmp_path):
    test_file = Path(load_config(run).task.data.files["test"])
    changed = test_file.read_text().replace("sky", "sea").replace("grass", "sky")
    (tmp_path / "test.csv").write_text(changed)
    copy = tmp_path / "copy"
    shutil.copytree(other, copy)
    shutil.rmtree(copy / "outputs", ignore_errors=True)
    record = (copy / "config.json").read_text()
    (copy / "config.json").write_text(record.replace(str(test_file), str(tmp_path / "test.csv")))
    assert run_ftloop("compare", run, copy, "--out", tmp_path / "compare.html").code == 0
    found = ParsedPage(tmp_path / "compare.html")
    assert found.shows("The rows are not compared: the inputs of the rows of test differ.")
    assert "changed-run-copy" not in found.csv


def test_runs_that_cannot_be_compared_are_an_error(run, tmp_path):
    for runs, message in (
        ([run], "at least two runs"),
        ([run, run], "named twice"),
        ([run, tmp_path], "holds no run"),
    ):
        result = run_ftloop("compare", *runs, "--out", tmp_path / "no.html")
        assert result.code == 2
        assert message in result.err
    assert not (tmp_path / "no.html").exists()


# ---- the reporter


def test_training_ends_with_a_report_and_evaluate_writes_it_again(run, tmp_path):
    options = [*data_options(run), "--label", "colour", "--batch-size", "16", "--max-steps", "2"]
    options += ["--run-dir", tmp_path / "run", "--report", "--report-every", "1"]
    result = run_script("train.py", "configs/text.py", *options)
    assert result.code == 0, result.err
    file = tmp_path / "run" / "report.html"
    assert f"The report is {file} (" in result.err
    assert "Likely label errors" in ParsedPage(file).sections
    file.unlink()
    result = run_script("evaluate.py", tmp_path / "run", "--report", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["accuracy"] >= 0
    assert file.is_file()


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(task=Task(), run_dir=str(tmp_path / "run"))


def test_a_signal_while_the_report_is_written_ends_its_process(config, monkeypatch):
    process = SimpleNamespace(is_running=True, kills=0, command="python -m ftloop.cli report run")
    process.kill = lambda: setattr(process, "kills", process.kills + 1)
    monkeypatch.setattr(reporter, "ReportProcess", lambda run_dir: process)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Stopped) as stopped:
        write_report_and_wait(config)
    timer.join()
    assert stopped.value.exit_code == 143
    message = "SIGTERM: the run is finished, but its report is not written. To write it: "
    assert str(stopped.value) == message + process.command
    assert process.kills == 1


def test_a_live_report_is_started_when_it_is_due_and_one_at_a_time(config, tmp_path, monkeypatch):
    started = []

    class Process:
        is_running = False

        def __init__(self, config):
            started.append(config)

        def kill(self):
            pass

    monkeypatch.setattr(reporter, "ReportProcess", Process)

    def save_at(observer: Reporter, *steps: int) -> None:
        for step in steps:
            state = SimpleNamespace(step=step)
            observer.on_save(
                SimpleNamespace(is_main_process=True, config=config, state=state), tmp_path
            )

    observer = Reporter(every=10)
    save_at(observer, 5, 9, 10, 15, 20, 21)
    assert len(started) == 2
    observer.live_report.is_running = True
    save_at(observer, 30, 40)
    assert len(started) == 2
    save_at(Reporter(), 100)
    assert len(started) == 2


def test_a_report_that_fails_is_logged_in_one_line(config, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('a file of the working folder ran')")
    monkeypatch.setattr(logging.getLogger("ftloop"), "propagate", True)
    assert write_report_and_wait(config) is False
    errors = {record.message for record in caplog.records if record.levelname == "ERROR"}
    (message,) = errors
    assert "holds no run" in message
    assert "To try again: " in message
    assert f"-m ftloop.cli report {config.run_dir}" in message


def test_the_process_of_a_report_is_ended_when_the_run_ends(config):
    observer = Reporter(every=1)
    observer.live_report = process = ReportProcess(config)
    start = time.monotonic()
    observer.close(SimpleNamespace())
    assert time.monotonic() - start < 5
    assert process.exit_code is not None


def test_the_process_does_not_see_the_variables_of_a_launcher():
    launcher = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere"}
    launcher["ACCELERATE_MIXED_PRECISION"] = "bf16"
    kept = {"ACCELERATE_USE_CPU": "1", "HOME": "/home/me", "PYTHONPATH": "/my/modules"}
    environment = reporter.report_environment({**launcher, **kept})
    assert environment.keys() == kept.keys()
    root = str(Path(sys.modules["ftloop"].__file__).parents[1])
    assert environment["PYTHONPATH"] == f"{root}{os.pathsep}/my/modules"


# ---- small parts


def test_series_are_downsampled_and_smoothed():
    series = Series(list(range(1, 2501)), [float(step) for step in range(1, 2501)])
    short = series.downsample(1000)
    assert short.steps[-1] == 2500
    assert short.values[:2] == [2.0, 5.0]
    assert len(short.steps) <= 1000
    smooth = Series([1, 2, 3, 4], [1.0, None, 3.0, 5.0]).smooth(0.5)
    assert smooth.values == [1.0, 2.0, 4.0, 4.0]
    assert Series([1], [None]).smooth().values == [None]


def test_the_history_of_an_empty_folder_is_empty(tmp_path):
    history = History.read(tmp_path)
    assert (history.steps, history.seconds, history.scores) == (0, 0.0, {})


def test_numbers_and_cells_are_formatted():
    thin_space = "\N{NARROW NO-BREAK SPACE}"
    assert page.format_number(1234567) == f"1{thin_space}234{thin_space}567"
    assert page.format_number(0.12345, 4) == "0.1235"
    assert page.format_number(0.00001234) == "1.23e-05"
    assert page.format_number(float("nan")) == "\N{EN DASH}"
    assert page.format_number(2.0, 2) == "2.00"
    escaped = "&lt;a href=&quot;x&quot;&gt;\N{REPLACEMENT CHARACTER}"
    assert page.escape('<a href="x">\x00') == escaped
    columns = {"a": ["x,y", '"'], "b": [1.5, numpy.float32(0.1)]}
    assert page.to_csv(columns) == 'a,b\n"x,y",1.5\n"""",0.1\n'
    new_page = page.Page("x", "report")
    new_page.add_section("s")
    with pytest.raises(TypeError, match="not HTML"):
        new_page.add("<b>")


def test_options_are_divided_into_changed_ones_and_defaults(run):
    config = load_config(run)
    changed, defaults = split_options(config)
    assert changed["--learning-rate"] == "0.005"
    assert changed["--max-length"] == "12"
    assert changed["--data.files"].startswith("train=")
    assert defaults["--weight-decay"] == "0.01"
    assert defaults["--optimizer"] == "ftloop.optim:adamw"
    names = {field.name.replace("_", "-") for field in dataclasses.fields(config)}
    assert names <= {name.removeprefix("--") for name in changed | defaults}
