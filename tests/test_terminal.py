"""What a run prints: the score table, the progress bar, levels and colors."""

import io
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import ranks, run_script, sentences, write_csv
from interrupt import train_until_step

from ftloop.logs import terminal
from ftloop.logs.progress_bar import ProgressBar
from ftloop.logs.score_table import ScoreTable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny) -> list[str]:
    """12 steps, evaluated after 5, 10 and 12. An epoch has 5 steps of 8 rows and one of 3."""
    folder, files = tmp_path_factory.mktemp("rows"), []
    for seed, split in enumerate(["train", "validation"]):
        files += [split, write_csv(folder / f"{split}.csv", sentences(43, seed))]
    data = ["--data.files", *files, "--label", "colour", "--max-length", "32"]
    training = ["--batch-size", "8", "--max-steps", "12", "--eval-every", "5"]
    return ["configs/text.py", "--model", tiny("bert"), *data, *training, "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    result = run_script("train.py", *options, "--run-dir", run, "--log-level", "debug")
    assert result.code == 0, result.err
    return run, result.err


def read_table(text: str) -> list[list[str]]:
    """Return the header and the lines of a score table, in columns, which must be aligned."""
    lines = text.splitlines()
    (start,) = [index for index, line in enumerate(lines) if line.split()[:2] == ["Step", "Epoch"]]
    rows = [line for line in lines[start + 1 :] if re.match(r" +\d+ +\d+\.\d\d +", line)]
    table = [lines[start], *rows]
    assert {len(line.removesuffix("  best")) for line in table} == {len(lines[start])}
    return [re.split("  +", line.strip()) for line in table]


def read_values(run, split):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], line["name"]): line["value"] for line in lines if line["split"] == split}


# The score table


def test_the_table_has_the_mean_loss_of_the_rows_between_evaluations(trained):
    run, output = trained
    header, *rows = read_table(output)
    assert header == ["Step", "Epoch", "Training Loss", "Validation Loss", "Accuracy", "F1 Macro"]
    assert [row[0] for row in rows] == ["5", "10", "12"]
    train, validation = read_values(run, "train"), read_values(run, "validation")
    sizes = {step: 3 if step % 6 == 0 else 8 for step in range(1, 13)}
    best_steps, lowest = [], float("inf")
    for row, previous in zip(rows, (0, 5, 10), strict=True):
        step = int(row[0])
        steps = range(previous + 1, step + 1)
        mean = sum(sizes[n] * train[n, "loss"] for n in steps) / sum(sizes[n] for n in steps)
        expected = [mean, *(validation[step, name] for name in ("loss", "accuracy", "f1_macro"))]
        assert row[2:6] == [f"{value:.4f}" for value in expected]
        if validation[step, "loss"] < lowest:
            best_steps, lowest = [*best_steps, row[0]], validation[step, "loss"]
    assert [row[0] for row in rows if row[-1] == "best"] == best_steps


def test_a_resumed_run_knows_the_losses_from_before_the_interruption(options, trained, tmp_path):
    """Resumed at step 8: the line of step 10 has the loss of the steps 6 to 10."""
    options = [*options, "--run-dir", tmp_path / "run", "--save-every", "1"]
    train_until_step(8, *options)
    resumed = run_script("train.py", *options)
    assert "step-000008" in resumed.err
    assert read_table(resumed.err)[1:] == read_table(trained[1])[2:]


def test_the_table_shows_some_of_many_metrics_and_the_best_metric(capsys):
    terminal.configure_logging("info", is_main_process=True)
    recalls = {f"recall[c_{number}]": number / 100 for number in range(20)}
    scores = {"loss": 1.0, **recalls, "f1_macro": float("nan")}
    state = SimpleNamespace(step=3, best_step=None)
    run = SimpleNamespace(state=state, config=SimpleNamespace(best_metric="f1_macro"))
    ScoreTable().on_scores(run, "validation", scores, 0.5)
    header, row = capsys.readouterr().err.splitlines()
    assert header.endswith("Recall[c_6]  Recall[c_7]  F1 Macro  (12 more in metrics.jsonl)")
    assert row.split()[:4] == ["3", "0.50", "nan", "1.0000"]
    assert row.endswith("0.0700       nan")


def test_two_processes_print_one_table_and_keep_one_record(options, tmp_path):
    run = tmp_path / "run"
    result = ranks(2, "train.py", *options, "--run-dir", run, "--track", "tensorboard")
    assert result.code == 0, result.err
    assert [row[0] for row in read_table(result.err)] == ["Step", "5", "10", "12"]
    assert result.err.count("12/12") == 1
    assert result.err.count("tracked     tensorboard: ") == 1
    assert len(list((run / "trackers" / "tensorboard").glob("events.*"))) == 1


# Levels


def test_debug_logs_steps_and_checkpoints(trained):
    run, output = trained
    assert re.search(r"debug: step 5: loss \d\.\d{4}, gradient norm \d", output)
    assert f"debug: saved {run / 'checkpoints' / 'step-000012'}" in output


def test_quiet_prints_nothing_about_a_run_without_problems(options, tmp_path):
    run = tmp_path / "run"
    result = run_script("train.py", *options, "--run-dir", run, "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    evaluated = run_script("evaluate.py", run, "--quiet")
    assert evaluated.err == ""
    assert evaluated.out.startswith("loss ")
    predicted = run_script("predict.py", run, "the sky is blue", "--log-level", "error")
    assert predicted.err == ""
    assert json.loads(predicted.out)["label"] in ("red", "green", "blue")
    again = run_script("train.py", *options, "--run-dir", run, "--log-level", "warning")
    assert again.err == ""
    again = run_script("train.py", *options, "--run-dir", run)
    assert "is finished already" in again.err


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_quiet_and_debug_contradict_each_other(script, options, tmp_path):
    words = options if script == "train.py" else [tmp_path]
    result = run_script(script, *words, "--quiet", "--log-level", "debug")
    assert result.code == 2
    assert "--quiet and --log-level debug contradict each other" in result.err


def test_a_setup_hides_the_bars_of_the_libraries_until_the_run_ends():
    import datasets
    import transformers

    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()
    setup = terminal.TerminalSetup("warning")
    assert not transformers.utils.logging.is_progress_bar_enabled()
    assert datasets.are_progress_bars_disabled()
    setup.undo()
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert not datasets.are_progress_bars_disabled()


# The progress bar, colors and notebooks


def test_in_a_pipe_the_bar_is_a_line_every_ten_seconds_and_at_the_end(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    state = SimpleNamespace(step=3)
    run = SimpleNamespace(is_main_process=True, total_steps=100, state=state)
    progress = ProgressBar()
    progress.on_start(run)
    seconds = [progress.bar.start_t]
    progress.bar._time = lambda: seconds[0]
    for step in range(4, 101):
        seconds[0] += 0.25
        record = SimpleNamespace(step=step, epoch=step / 50, loss=1.0)
        progress.on_log(run, [record], {"rows_per_second": 32.0, "data_wait": 0.2})
    progress.close(run)
    assert "\r" not in pipe.getvalue()
    lines = pipe.getvalue().splitlines()
    assert [re.search(r"(\d+)/100 ", line)[1] for line in lines] == ["43", "83", "100"]
    assert "epoch=2.00, loss=1.0000, rows/s=32, data_wait=20%" in lines[-1]


def test_levels_have_colors_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    record = logging.LogRecord("ftloop", logging.WARNING, "", 0, "watch %s", ("out",), None)
    terminal.TerminalHandler().handle(record)
    assert screen.getvalue() == "\033[33mwarning:\033[0m watch out\n"
    screen.seek(screen.truncate(0))
    record = logging.LogRecord("ftloop", logging.INFO, "", 0, "%s  best", ("\033[2J",), None)
    record.highlighted = "best"
    terminal.TerminalHandler().handle(record)
    assert screen.getvalue() == "\\x1b[2J  \033[32mbest\033[0m\n"
    assert terminal.colored("best", "green", screen) == "\033[32mbest\033[0m"
    assert terminal.colored("best", "green", io.StringIO()) == "best"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.colored("best", "green", screen) == "best"


def test_a_notebook_gets_the_log_on_standard_output(monkeypatch):
    """Because it shows standard error in red."""

    class Shell:
        config = {"IPKernelApp": {}}  # noqa: RUF012

    ipython = type(sys)("IPython")
    ipython.get_ipython = Shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert terminal.terminal_stream() is sys.stdout
    monkeypatch.setattr(Shell, "config", {})
    assert terminal.terminal_stream() is sys.stderr
