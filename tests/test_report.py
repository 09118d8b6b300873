"""The pages: what they hold, that it is what the run has, that nothing in the data breaks out of them."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy
import pytest
from conftest import run_script
from reported import EVIL, NAMES, Parsed, command, images, texts, trained

from ftloop.config import read_record
from ftloop.report import page, run_report, statistics
from ftloop.report.history import History, Series
from ftloop.report.reporter import Reporter
from ftloop.report.scored import score

FIGURES = {
    *("loss", "scores", "learning-rate", "gradient-norm", "throughput", "shares", "classes", "lengths"),
    *("confusion", "confusion-rows", "calibration", "precision-recall", "map", "map-by-class"),
    *("test-accuracy", "validation-accuracy"),
}
BROKEN = "This part could not be made"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny) -> Path:
    return texts(tmp_path_factory.mktemp("texts"), tiny)


@pytest.fixture(scope="module")
def parsed(run) -> Parsed:
    result = command("report", run)
    assert result.code == 0, result.err
    assert result.out == f"{run / 'report.html'}\n"
    return Parsed(run / "report.html")


def test_it_has_all_sections_and_figures_each_with_a_caption_and_its_numbers(parsed):
    assert parsed.sections == [
        *("Result", "Curves", "Classes", "Probabilities", "Rows with the highest and the lowest loss"),
        *("Likely label errors", "Map of the features", "Data", "Checks of the data", "Some rows", "How it was made"),
    ]
    assert BROKEN not in parsed.text
    assert set(parsed.figures) == FIGURES
    assert set(parsed.figures) <= set(parsed.csv)
    assert parsed.text.count("<figcaption>") == len(parsed.figures)
    contents = [attributes["href"] for tag, attributes in parsed.tags if tag == "a" and "download" not in attributes]
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    assert {link.removeprefix("#") for link in contents} <= ids
    assert len(parsed.text.encode()) < 1_000_000


def test_its_numbers_are_those_of_the_run(run, parsed):
    scores = json.loads((run / "scores.json").read_text())
    for split, values in scores.items():
        for name, value in values.items():
            assert parsed.holds(page.number(value, 4)), (split, name)
    record = json.loads((run / "config.json").read_text())
    assert parsed.holds(record["command"])
    assert parsed.holds(json.loads((run / "ledger.jsonl").read_text().splitlines()[-1])["chain"])
    assert parsed.holds("--task.max-length")


def test_the_csv_of_a_figure_is_what_is_drawn(run, parsed):
    scored = score(run, "test")
    counts = statistics.confusion(scored)
    found = {(row["true"], row["predicted"]): int(row["rows"]) for row in parsed.csv["confusion"]}
    assert found == {(a, b): counts[i, j] for i, a in enumerate(scored.names) for j, b in enumerate(scored.names)}
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["value"] for line in logged if (line["split"], line["name"]) == ("train", "loss")]
    assert [float(row["value"]) for row in parsed.csv["loss"] if row["curve"] == "train"] == losses
    hardest = parsed.csv["highest-loss-test"]
    assert [int(row["row"]) for row in hardest] == statistics.by_loss(scored, 25).tolist()
    assert [float(row["loss"]) for row in hardest] == sorted(scored.losses, reverse=True)[: len(hardest)]
    assert [row["label"] for row in hardest] == [scored.names[scored.references[int(row["row"])]] for row in hardest]
    classes = {row["class"]: int(row["rows of test"]) for row in parsed.csv["classes"]}
    assert classes == dict(zip(scored.names, numpy.bincount(scored.references, minlength=3).tolist(), strict=True))
    assert len(parsed.csv["map"]) == 20
    assert all(row["true"] in NAMES.values() for row in parsed.csv["confusion"])


def test_nothing_in_the_data_is_taken_for_html_and_nothing_is_fetched(parsed):
    assert parsed.holds(EVIL[:40])  # as words
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    assert not re.search(r"url\((?!#)|@import", parsed.text)
    policy = next(attributes["content"] for _, attributes in parsed.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert all(ord(sign) >= 32 or sign == "\n" for sign in parsed.text)


def test_a_leak_and_the_truncation_are_said(parsed):
    assert parsed.holds("1 of the 20 rows of test in train too")
    assert parsed.holds("--task.max-length 12:")


def test_the_same_run_gives_the_same_bytes(run, parsed):
    config = read_record(run)
    again = run_report.build(run, config).html("")
    assert re.sub(r"<footer>.*?</footer>", "", again, flags=re.DOTALL) == re.sub(
        r"<footer>.*?</footer>", "", parsed.text, flags=re.DOTALL
    )


def test_of_an_unfinished_run_it_has_curves_and_data(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "scores.json").unlink()
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 13, "epoch')  # being written
    found = Parsed(run_report.write(copy, tmp_path / "live.html"))
    assert found.sections == ["Result", "Curves", "Data", "Checks of the data", "Some rows", "How it was made"]
    assert BROKEN not in found.text
    assert found.holds("This run is not finished")


def test_so_many_rows_are_searched_for_wrong_labels(run, tmp_path):
    result = command("report", run, "--out", tmp_path / "few.html", "--search", "30")
    assert result.code == 0, result.err
    found = Parsed(tmp_path / "few.html")
    assert found.holds("Of 30 of the 43 rows of train")
    assert command("report", run, "--search", "0").code == 2


def test_of_a_task_of_its_own_it_has_scores_and_curves(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ftloop.report.data_part.is_classification", lambda task: False)
    found = Parsed(run_report.write(run, tmp_path / "own.html"))
    assert found.sections == ["Result", "Curves", "How it was made"]
    assert BROKEN not in found.text
    assert found.holds(page.number(json.loads((run / "scores.json").read_text())["test"]["accuracy"], 4))


def test_a_part_that_fails_is_said_and_the_others_are_there(run, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no <i>wrong</i> turn")

    monkeypatch.setattr(run_report, "add_map", broken)
    monkeypatch.setattr(run_report, "add_label_errors", broken)
    found = Parsed(run_report.write(run, tmp_path / "part.html"))
    assert found.text.count(f"{BROKEN}: RuntimeError: no &lt;i&gt;wrong&lt;/i&gt; turn") == 2
    assert "Map of the features" in found.sections
    assert "How it was made" in found.sections


def test_of_several_labels(run, tmp_path):
    words = record_words(run)
    several = trained(
        *("configs/text.py", tmp_path / "several", *words, "--task.label-column", "tags"),
        *("--task.label-separator", ";", "--max-steps", "2", "--batch-size", "16"),
    )
    found = Parsed(run_report.write(several))
    assert BROKEN not in found.text
    assert {"together-true", "together-predicted", "thresholds", "calibration"} <= set(found.figures)
    scored = score(several, "test")
    true, _ = statistics.co_occurrence(scored)
    assert {(row["label"], row["other"]): int(row["rows"]) for row in found.csv["together-true"]} == {
        (a, b): true[i, j] for i, a in enumerate(scored.names) for j, b in enumerate(scored.names) if true[i, j]
    }
    assert found.holds("All are chosen on validation alone")


def test_of_numbers(run, tmp_path):
    numbers = trained(
        *("configs/text.py", tmp_path / "numbers", *record_words(run), "--task.label-column", "tone"),
        *("--max-steps", "2", "--batch-size", "16"),
    )
    found = Parsed(run_report.write(numbers))
    assert BROKEN not in found.text
    assert {"predicted-true", "errors", "values", "map", "lengths"} <= set(found.figures)
    assert "Likely label errors" not in found.sections
    scored = score(numbers, "test")
    assert [float(row["predicted"]) for row in found.csv["predicted-true"]] == scored.predictions.tolist()


def test_of_images_and_their_data_before_training(tmp_path):
    run = images(tmp_path)
    found = Parsed(run_report.write(run))
    assert BROKEN not in found.text
    assert {"sizes", "confusion"} <= set(found.figures)
    assert {(row["width"], row["height"]) for row in found.csv["sizes"]} == {("20", "12")}
    pictures = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(pictures) > 10
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in pictures)
    new = tmp_path / "new"
    words = ["configs/image.py", "--task.data.path", str(tmp_path / "photos"), "--run-dir", str(new)]
    model = ["--task.init", "random", "--task.model", "vit", "--task.image-size", "8"]
    result = command("explore", *words, *model, "--task.data.validation", "0.3")
    assert result.code == 0, result.err
    assert result.out == f"{tmp_path / 'new-explore.html'}\n"
    assert Parsed(tmp_path / "new-explore.html").sections == ["Data", "Checks of the data", "Some rows"]
    assert not new.exists()  # training begins in an empty folder


def test_explore_takes_options_of_the_config_and_a_file(run, tmp_path):
    out = tmp_path / "data.html"
    result = command("explore", "configs/text.py", *record_words(run), "--task.label-column", "colour", "--out", out)
    assert result.code == 0, result.err
    found = Parsed(out)
    assert {"classes", "lengths"} == set(found.figures)
    assert found.holds("1 of the 20 rows of test in train too")
    assert command("explore", "configs/text.py", "--task.max-lenth", "3").code == 2
    assert "CONFIG" in command("explore", "--help").out


def record_words(run: Path) -> list[str]:
    """Options for the rows and the model of a run."""
    task = read_record(run).task
    files = [str(word) for pair in task.data.files.items() for word in pair]
    return ["--task.model", task.model, "--task.data.files", *files, "--task.max-length", "12"]


# ---- several runs


@pytest.fixture(scope="module")
def other(run, tmp_path_factory) -> Path:
    words = [*record_words(run), "--task.label-column", "colour", "--batch-size", "8", "--learning-rate", "1e-3"]
    return trained("configs/text.py", tmp_path_factory.mktemp("other") / "other", *words, "--max-steps", "12")


def test_runs_are_compared_on_the_same_rows(run, other, tmp_path):
    result = command("compare", run, other, "--out", tmp_path / "compare.html")
    assert result.code == 0, result.err
    found = Parsed(tmp_path / "compare.html")
    assert BROKEN not in found.text
    assert found.sections == ["Configs", "Scores", "Curves", "other and run, row by row"]
    assert found.holds("--learning-rate 0.005 -> 0.001")
    a, b = score(run, "test"), score(other, "test")
    changed = [int(row["row"]) for row in found.csv["changed-run-other"]]
    assert sorted(changed) == numpy.flatnonzero(a.predictions != b.predictions).tolist()
    assert found.holds(page.number(statistics.paired_difference(b, a, "accuracy").value, 4))
    assert {row["curve"].partition(":")[0] for row in found.csv["loss"]} == {"run", "other"}
    assert {"test-loss", "test-accuracy", "validation-f1-macro", "curve-f1-macro"} <= set(found.figures)


def test_runs_on_other_rows_are_not_compared_row_by_row(run, other, tmp_path):
    task = read_record(run).task
    rows = Path(task.data.files["test"]).read_text().replace("sky", "sea").replace("grass", "sky")
    (tmp_path / "test.csv").write_text(rows)
    copy = tmp_path / "copy"
    shutil.copytree(other, copy)
    shutil.rmtree(copy / "outputs", ignore_errors=True)
    text = (copy / "config.json").read_text().replace(str(task.data.files["test"]), str(tmp_path / "test.csv"))
    (copy / "config.json").write_text(text)
    assert command("compare", run, copy, "--out", tmp_path / "compare.html").code == 0
    found = Parsed(tmp_path / "compare.html")
    assert found.holds("Not compared row by row: the inputs of the rows of test differ.")
    assert "changed-run-copy" not in found.csv


def test_what_cannot_be_compared_is_an_error(run, tmp_path):
    for words, answer in (
        ([run], "two runs or more"),
        ([run, run], "named twice"),
        ([run, tmp_path], "holds no run"),
    ):
        result = command("compare", *words, "--out", tmp_path / "no.html")
        assert result.code == 2
        assert answer in result.err
    assert not (tmp_path / "no.html").exists()


# ---- written at the end, and while training


def test_training_ends_with_a_report_and_evaluate_writes_it_anew(run, tmp_path):
    words = [*record_words(run), "--task.label-column", "colour", "--batch-size", "16", "--run-dir", tmp_path / "run"]
    result = run_script("train.py", "configs/text.py", *words, "--max-steps", "2", "--report", "--report-every", "1")
    assert result.code == 0, result.err
    file = tmp_path / "run" / "report.html"
    assert f"report      {file} (" in result.err.splitlines()[-1]
    assert "Likely label errors" in Parsed(file).sections
    file.unlink()
    result = run_script("evaluate.py", tmp_path / "run", "--report", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["accuracy"] >= 0
    assert file.is_file()


def test_a_signal_while_the_report_is_written_ends_the_run_in_words(run, tmp_path, monkeypatch):
    def signalled(self, stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        return None if stopped() else 0

    monkeypatch.setattr(Reporter, "at_the_end", signalled)
    words = [*record_words(run), "--task.label-column", "colour", "--max-steps", "1", "--run-dir", tmp_path / "run"]
    result = run_script("train.py", "configs/text.py", *words, "--report")
    assert result.code == 143
    assert "SIGTERM: the run is finished, its report is not written. To write it: " in result.err
    assert (tmp_path / "run" / "scores.json").is_file()


def test_a_live_report_is_started_when_it_is_due_and_one_at_a_time(tmp_path, monkeypatch):
    reporter, started = Reporter(tmp_path, every=10), []
    monkeypatch.setattr(Reporter, "start", lambda self: started.append(1))
    for step in (5, 9, 10, 15, 20, 21):
        reporter.while_training(step)
    assert len(started) == 2
    Reporter(tmp_path).while_training(100)
    assert len(started) == 2


def test_a_report_that_fails_is_one_line_and_one_that_takes_long_is_given_up(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ftloop"), "propagate", True)
    reporter = Reporter(tmp_path / "nothing")
    assert reporter.at_the_end() == 2
    record, *again = [record for record in caplog.records if record.levelname == "ERROR"]
    assert {*again} <= {record}  # heard twice, where a test before this one has set up the logger
    assert "holds no run (no config.json)" in record.message
    assert f"To try again: {reporter.command}" in record.message
    began = time.monotonic()
    assert reporter.at_the_end(lambda: time.monotonic() - began > 0.2) is None
    assert reporter.running.returncode is not None


def test_what_a_launcher_told_is_forgotten(monkeypatch):
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere", "ACCELERATE_MIXED_PRECISION": "bf16"}
    for name, value in {**told, "ACCELERATE_USE_CPU": "1"}.items():
        monkeypatch.setenv(name, value)
    run_report.forget_launcher()
    assert not set(told) & set(os.environ)
    assert os.environ["ACCELERATE_USE_CPU"] == "1"


# ---- small parts


def test_series_are_thinned_and_smoothed():
    series = Series(list(range(1, 2501)), [float(step) for step in range(1, 2501)])
    thin = series.thinned(1000)
    assert thin.steps[-1] == 2500
    assert thin.values[:2] == [2.0, 5.0]
    assert len(thin.steps) <= 1000
    smooth = Series([1, 2, 3, 4], [1.0, None, 3.0, 5.0]).smooth(0.5)
    assert smooth.values == [1.0, 2.0, 4.0, 4.0]
    assert Series([1], [None]).smooth().values == [None]


def test_a_history_of_nothing_is_empty(tmp_path):
    history = History.read(tmp_path)
    assert (history.steps, history.seconds, history.scores) == (0, 0.0, {})


def test_numbers_and_cells_are_shown_as_meant():
    assert page.number(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
    assert page.number(0.12345, 4) == "0.1235"
    assert page.number(0.00001234) == "1.23e-05"
    assert page.number(float("nan")) == "\N{EN DASH}"
    assert page.number(2.0, 2) == "2.00"
    assert page.escaped('<a href="x">\x00') == "&lt;a href=&quot;x&quot;&gt;\N{REPLACEMENT CHARACTER}"
    assert page.csv_of({"a": ["x,y", '"'], "b": [1.5, numpy.float32(0.1)]}) == 'a,b\n"x,y",1.5\n"""",0.1\n'
    made = page.Page("x", "report")
    made.section("s")
    with pytest.raises(TypeError, match="not HTML"):
        made.add("<b>")


def test_options_are_split_into_those_that_were_set_and_the_others(run):
    config = read_record(run)
    changed, others = run_report.options_of(config)
    assert changed["--learning-rate"] == "0.005"
    assert changed["--task.max-length"] == "12"
    assert others["--weight-decay"] == "0.01"
    names = {field.name for field in dataclasses.fields(config)}
    assert {name.replace("_", "-") for name in names} <= {name.removeprefix("--") for name in changed | others}
