"""What a run says: a table of scores, one bar, levels, colours; in a pipe, a terminal, and several processes."""

import io
import json
import logging
import re
import sys

import pytest
from conftest import ranks, run_script, sentences, write_csv

from ftloop.logs import terminal as tracking
from ftloop.errors import coloured


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny):
    """12 steps, evaluated after 5, 10 and 12 of them; an epoch is 5 steps of 8 rows and one of 3."""
    folder = tmp_path_factory.mktemp("rows")
    files = {
        split: write_csv(folder / f"{split}.csv", sentences(43, seed))
        for seed, split in enumerate(["train", "validation"])
    }
    source = ["--task.data.files", *(word for pair in files.items() for word in pair), "--task.label-column", "colour"]
    sizes = ["--task.max-length", "32", "--batch-size", "8", "--max-steps", "12", "--eval-every", "5"]
    return ["configs/text.py", "--task.model", tiny("bert"), *source, *sizes, "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    result = run_script("train.py", *words, "--run-dir", run, "--log-level", "debug")
    assert result.code == 0, result.err
    return run, result.err


def table_of(text: str) -> list[list[str]]:
    """The header and the lines of a table, in columns."""
    lines = text.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["Step", "Epoch"]]
    rows = [line for line in lines[place + 1 :] if re.match(r" +\d+ +\d+\.\d\d +", line)]
    assert {len(line.removesuffix("  best")) for line in (lines[place], *rows)} == {len(lines[place])}, "not aligned"
    return [re.split("  +", line.strip()) for line in (lines[place], *rows)]


def logged(run, split):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], line["name"]): line["value"] for line in lines if line["split"] == split}


def test_the_table_has_the_losses_over_the_rows_between_evaluations(trained):
    run, said = trained
    header, *rows = table_of(said)
    assert header == ["Step", "Epoch", "Training Loss", "Validation Loss", "Accuracy", "F1 Macro"]
    assert [row[0] for row in rows] == ["5", "10", "12"]
    train, validation = logged(run, "train"), logged(run, "validation")
    sizes = {step: 3 if step % 6 == 0 else 8 for step in range(1, 13)}
    best, lowest = [], float("inf")
    for row, before in zip(rows, (0, 5, 10), strict=True):
        step = int(row[0])
        steps = range(before + 1, step + 1)
        mean = sum(sizes[n] * train[n, "loss"] for n in steps) / sum(sizes[n] for n in steps)
        expected = [mean, *(validation[step, name] for name in ("loss", "accuracy", "f1_macro"))]
        assert row[2:6] == [f"{value:.4f}" for value in expected]
        if validation[step, "loss"] < lowest:
            best, lowest = [*best, row[0]], validation[step, "loss"]
    assert [row[0] for row in rows if row[-1] == "best"] == best


def test_debug_tells_of_steps_and_checkpoints(trained):
    run, said = trained
    assert re.search(r"debug: step 5: loss \d\.\d{4}, gradient norm", said)
    assert f"debug: saved {run / 'checkpoints' / 'step-000012'}" in said


def test_a_resumed_run_knows_the_losses_before_it_was_cut(words, trained, tmp_path):
    """Stopped after step 8: the line of step 10 has the rows of steps 6 to 10."""
    from ftloop.stopping import Stop

    asked, run = Stop.asked, tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        steps = iter(range(1, 100))
        patch.setattr(Stop, "asked", lambda self, accelerator, may_wait=True: may_wait_for(self, next(steps)))
        cut = run_script("train.py", *words, "--run-dir", run, "--save-every", "1")
    assert cut.code != 0
    assert Stop.asked is asked
    resumed = run_script("train.py", *words, "--run-dir", run, "--save-every", "1")
    lines = [row for text in (cut.err, resumed.err) for row in table_of(text)[1:]]
    assert lines == table_of(trained[1])[1:]


def may_wait_for(stop, calls):
    """Asked after each step, and after the one batch of each evaluation: the ninth time is after step 8."""
    stop.reason = "a test" if calls == 9 else None
    return stop.reason is not None


def test_quiet_says_nothing_of_a_run_that_goes_well(words, tmp_path):
    result = run_script("train.py", *words, "--run-dir", tmp_path / "run", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    evaluated = run_script("evaluate.py", tmp_path / "run", "--quiet")
    assert evaluated.err == ""
    assert evaluated.out.startswith("loss ")
    predicted = run_script("predict.py", tmp_path / "run", "the sky is blue", "--log-level", "error")
    assert predicted.err == ""
    assert json.loads(predicted.out)["label"] in ("red", "green", "blue")
    again = run_script("train.py", *words, "--run-dir", tmp_path / "run", "--log-level", "warning")
    assert again.err == ""
    assert "is finished already" in run_script("train.py", *words, "--run-dir", tmp_path / "run").err


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_quiet_and_debug_contradict_each_other(script, words, tmp_path):
    given = words if script == "train.py" else [tmp_path]
    result = run_script(script, *given, "--quiet", "--log-level", "debug")
    assert result.code == 2
    assert "--quiet and --log-level debug contradict each other" in result.err


def test_two_processes_print_one_table_and_keep_one_record(words, tmp_path):
    result = ranks(2, "train.py", *words, "--run-dir", tmp_path / "run", "--track", "tensorboard")
    assert result.code == 0, result.err
    assert [row[0] for row in table_of(result.err)] == ["Step", "5", "10", "12"]
    assert result.err.count("12/12") == 1
    assert result.err.count("tracked     tensorboard: ") == 1
    assert len(list((tmp_path / "run" / "trackers" / "tensorboard").glob("events.*"))) == 1


def test_in_a_pipe_the_bar_is_a_line_in_ten_seconds_and_the_last(monkeypatch):
    monkeypatch.setattr(tracking.logger, "level", logging.INFO)
    tracking.logger.manager._clear_cache()
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    bar = tracking.progress_bar(100, 3, is_main_process=True)
    seconds = [bar.start_t]
    bar._time = lambda: seconds[0]
    for _ in range(97):
        seconds[0] += 0.25
        bar.update(1)
    bar.close()
    assert "\r" not in pipe.getvalue()
    drawn = [re.search(r"(\d+)/100 ", line)[1] for line in pipe.getvalue().splitlines()]
    assert drawn == ["43", "83", "100"]


def test_on_a_terminal_the_bar_moves_and_levels_have_colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    record = logging.LogRecord("ftloop", logging.WARNING, "", 0, "watch %s", ("out",), None)
    tracking._Terminal().handle(record)
    assert screen.getvalue() == "\033[33mwarning:\033[0m watch out\n"
    assert coloured("best", "green", screen) == "\033[32mbest\033[0m"
    assert coloured("best", "green", io.StringIO()) == "best"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("best", "green", screen) == "best"


def test_the_table_shows_some_of_many_metrics_and_the_best(capsys):
    tracking.set_up_logging(is_main_process=True, level="info")
    recalls = {f"recall[c_{number}]": number / 100 for number in range(20)}
    scores = {"loss": 1.0, **recalls, "f1_macro": float("nan")}
    tracking.ScoreTable("f1_macro").add(3, 0.5, float("nan"), scores, is_best=False)
    header, row = capsys.readouterr().err.splitlines()
    assert header.endswith("Recall[c_6]  Recall[c_7]  F1 Macro  (12 more in metrics.jsonl)")
    assert row.split()[:4] == ["3", "0.50", "nan", "1.0000"]
    assert row.endswith("0.0700       nan")


def test_a_notebook_hears_it_on_standard_output(monkeypatch):
    """Which it shows without the red of standard error."""

    class Shell:
        config = {"IPKernelApp": {}}  # noqa: RUF012

    fake = type(sys)("IPython")
    fake.get_ipython = Shell
    monkeypatch.setitem(sys.modules, "IPython", fake)
    assert tracking.terminal() is sys.stdout
    monkeypatch.setattr(Shell, "config", {})
    assert tracking.terminal() is sys.stderr
