"""Files and options that were changed at random: every outcome is right, or is one clear error.

hypothesis draws the changes. The suite draws the same few each time; for others and more of them,

    RANDOM_INPUT_TIMES=25 python -m pytest tests/test_random_input.py --hypothesis-show-statistics
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Result, run_script, sentences, write_csv
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from mutations import changed_bytes, changed_json, changed_json_file, changed_lines, changed_options
from toy import Points, train_toy

from ftloop import TrainingError, UserError
from ftloop.config import Config, encode
from ftloop.data import Data
from ftloop.errors import Stopped
from ftloop.provenance.compare import compare_runs
from ftloop.provenance.verify import verify_run
from ftloop.report.history import History, ledger_digest
from ftloop.runs.record import load_config

TIMES = int(os.environ.get("RANDOM_INPUT_TIMES", "1"))
SECONDS = 60  # that a case may take
# A reader of `datasets` that raises an error leaves its file to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def random_cases(count: int) -> Callable[..., Any]:
    """Run a test on this many random cases, and on TIMES as many others if that is asked for."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Fail if the block does not end."""

    def fail(*_: Any) -> None:
        raise AssertionError(f"it does not end within {SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcome(function: Callable[[], Any]) -> Any:
    """Return what a function returns, or None after one clear error; others are not caught."""
    try:
        with time_limit():
            return function()
    except (UserError, TrainingError) as error:
        return None if str(error).strip() else pytest.fail("an error without a message")


def command_outcome(script: str, *words: Any) -> Result:
    """Run a command, which must succeed, find something, or end with one clear error."""
    with time_limit():
        result = run_script(script, *map(str, words))
    assert result.code in (0, 1, 2), result.err
    assert "Traceback" not in result.err
    if result.code == 2:
        errors = re.findall(r"^error:", result.err, re.MULTILINE)
        is_of_tyro = not errors and "For full helptext" in result.err
        assert len(errors) == 1 or is_of_tyro, result.err
    return result


@contextlib.contextmanager
def copied(run: Path) -> Iterator[Path]:
    """Copy a run folder for one case."""
    with tempfile.TemporaryDirectory(dir=run.parent) as folder:
        yield shutil.copytree(run, Path(folder) / "run")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A finished run of two steps on ten rows."""
    folder = tmp_path_factory.mktemp("random")
    rows = write_csv(folder / "rows.csv", sentences(10))
    command = ["train.py", "configs/text.py", "--model", tiny("bert"), "--data", rows]
    command += ["--label", "colour", "--data.validation", "2", "--max-length", "32"]
    command += [
        "--batch-size",
        "4",
        "--max-steps",
        "2",
        "--log-every",
        "1",
        "--metrics",
        "accuracy",
    ]
    result = run_script(*command, "--data.no-stratify", "--run-dir", str(folder / "run"))
    assert result.code == 0, result.err
    return folder / "run"


# Records


@given(data=st.data())
@random_cases(40)
def test_records_are_read(run, data):
    original = (run / "config.json").read_bytes()
    content = data.draw(changed_json_file(original))
    with copied(run) as copy:
        (copy / "config.json").write_bytes(content)
        config = outcome(lambda: load_config(copy))
        if config is not None:
            assert isinstance(config, Config)
            recorded = json.loads(content)["config"]
            assert encode(config).keys() >= recorded.keys()


COMMANDS = [
    ("evaluate.py",),
    ("predict.py", "red sky"),
    ("ftloop/cli/__main__.py", "verify"),
    ("ftloop/cli/__main__.py", "card"),
    ("ftloop/cli/__main__.py", "report"),
]


@given(data=st.data())
@random_cases(10)
def test_commands_on_changed_records(run, data):
    original = json.loads((run / "config.json").read_text())
    changed = original | {"config": data.draw(changed_json(original["config"]))}
    script, *words = data.draw(st.sampled_from(COMMANDS))
    with copied(run) as copy:
        (copy / "config.json").write_text(json.dumps(changed))
        place = 1 if script.startswith("ftloop") else 0
        result = command_outcome(script, *words[:place], copy, *words[place:])
        if script == "evaluate.py" and result.code == 0:
            assert math.isfinite(float(re.search(r"loss (\S+)", result.out)[1]))


# Checkpoints


def resume(folder: Path) -> dict[str, str]:
    """Train a small run, or resume it, and return the digests of what it leaves but its log."""
    options = {"save_every": 1, "keep_last": 9, "epochs": 3, "batch_size": 4}
    train_toy(Points(sizes=(8, 2)), folder, **options)
    files = [*folder.glob("checkpoints/*/*.pt"), *folder.glob("model/*"), folder / "scores.json"]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def expected_files(folder: Path) -> dict[str, str]:
    return json.loads((folder.parent / "expected.json").read_text())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A run that stopped after step 4 of 6; what it leaves when it resumes is in expected.json."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    expected = resume(folder)
    (folder.parent / "expected.json").write_text(json.dumps(expected))
    (folder / "scores.json").unlink()
    shutil.rmtree(folder / "model")
    for step in (5, 6):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:06d}")
    return folder


def sign(manifest: Any) -> Any:
    """Give a changed manifest the checksum of its content, as a person could."""
    if isinstance(manifest, dict):
        content = {name: value for name, value in manifest.items() if name != "sha256"}
        text = json.dumps(content, sort_keys=True)
        manifest["sha256"] = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return manifest


@given(data=st.data())
@random_cases(14)
def test_a_changed_checkpoint_is_passed_over(interrupted, data):
    with copied(interrupted) as copy:
        newest = copy / "checkpoints" / "step-000004"
        name = data.draw(st.sampled_from(["manifest.json", "weights.pt", "training.pt"]))
        changed = changed_json_file if name == "manifest.json" else changed_bytes
        original = (newest / name).read_bytes()
        content = data.draw(changed(original))
        (newest / name).write_bytes(content)
        resumed = outcome(lambda: resume(copy))
        assert resumed in (None, expected_files(interrupted))


@given(data=st.data())
@random_cases(14)
def test_a_changed_checkpoint_with_a_new_checksum(interrupted, data):
    with copied(interrupted) as copy:
        manifest = copy / "checkpoints" / "step-000004" / "manifest.json"
        changed = data.draw(changed_json(json.loads(manifest.read_bytes())))
        manifest.write_text(json.dumps(sign(changed)), errors="surrogatepass")
        outcome(lambda: resume(copy))


@given(data=st.data())
@random_cases(6)
def test_a_run_resumes_with_changed_logs(interrupted, data):
    with copied(interrupted) as copy:
        log = copy / "metrics.jsonl"
        log.write_bytes(data.draw(changed_lines(log.read_bytes())))
        resumed = outcome(lambda: resume(copy))
        assert resumed in (None, expected_files(interrupted))


# Logs


def parse_lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


@given(data=st.data())
@random_cases(50)
def test_a_changed_ledger_is_found(run, data):
    original = (run / "ledger.jsonl").read_bytes()
    content = data.draw(changed_lines(original))
    with copied(run) as copy:
        (copy / "ledger.jsonl").write_bytes(content)
        verified = outcome(lambda: verify_run(copy))
        if verified is not None and verified[0]:
            assert parse_lines(content) == parse_lines(original)
        compared = outcome(lambda: compare_runs(copy, run))
        if compared is not None and compared[0]:
            assert parse_lines(content) == parse_lines(original)
        outcome(lambda: ledger_digest(copy))


@given(data=st.data())
@random_cases(50)
def test_a_changed_log_is_read(run, data):
    with copied(run) as copy:
        log = copy / "metrics.jsonl"
        log.write_bytes(data.draw(changed_lines(log.read_bytes())))
        outcome(lambda: History.read(copy))


@given(data=st.data())
@random_cases(4)
def test_commands_on_changed_logs_and_scores(run, data):
    with copied(run) as copy:
        for name, change in {
            "scores.json": changed_json_file,
            "metrics.jsonl": changed_lines,
        }.items():
            (copy / name).write_bytes(data.draw(change((copy / name).read_bytes())))
        command = data.draw(st.sampled_from(["report", "card", "compare"]))
        words = [copy]
        if command == "compare":
            words += [run, "--out", copy / "compare.html"]
        command_outcome("ftloop/cli/__main__.py", command, *words)


# Data

ROWS = b'text,label\n"red, deep",a\nthe sea,b\n"a ""quoted"" sky",a\ngrass,b\nrose,a\nsky,b\n'


def cells_of_csv(content: bytes) -> list[list[str]] | None:
    """Return the cells as the module csv reads them; None if readers may differ."""
    try:
        text = content.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (ValueError, csv.Error):
        return None
    rows = [row for row in rows if len(row) > 1 or "".join(row).strip()]  # no blank lines
    is_usual = rows and len({*rows[0]}) == len(rows[0]) > 1 and all(map(str.strip, rows[0]))
    # After a blank line that ends in a carriage return, pandas 3.1 drops an empty first cell.
    return rows if is_usual and "\0" not in text and "\r," not in text else None


@given(data=st.data())
@random_cases(40)
def test_a_changed_csv_is_read_as_it_is(data):
    content = data.draw(
        changed_bytes(ROWS, inserted=(b",", b'"', b'""', b"\r\n", b",x,y", b"\n\n"))
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        file.write_bytes(content)
        read = outcome(lambda: Data(path=str(file)).read())
        rows = cells_of_csv(content)
        if read is None or rows is None:
            return
        header, *rows = rows
        assert all(len(row) <= len(header) for row in rows)
        table = read["train"]
        assert table.column_names == header
        expected = [row + [""] * (len(header) - len(row)) for row in rows]
        got = [["" if cell is None else str(cell) for cell in row.values()] for row in table]
        assert got == expected


@given(data=st.data())
@random_cases(10)
def test_checking_a_changed_csv(run, data):
    rows = data.draw(changed_bytes((run.parent / "rows.csv").read_bytes(), inserted=(b",", b'"')))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        file.write_bytes(rows)
        command = ["train.py", "configs/text.py", "--model", run / "model", "--data", file]
        command_outcome(*command, "--label", "colour", "--check", "--run-dir", f"{folder}/run")


# Options


def list_options(*command: Any) -> list[str]:
    """Return the options in the help of a command, without those that print help or a report."""
    text = run_script(*map(str, command)).out
    names = set(re.findall(r"--[a-z][\w.-]+", text)) - {"--help", "--help-all", "--report"}
    assert len(names) > 5
    return sorted(names)


@pytest.fixture(scope="module")
def option_names() -> list[str]:
    names = list_options("train.py", "configs/text.py", "--help-all")
    return [name for name in names if name != "--workers"]  # any number of processes is allowed


@pytest.fixture(scope="module")
def other_option_names() -> dict[str, list[str]]:
    return {script: list_options(script, "--help") for script in ("evaluate.py", "predict.py")}


@given(data=st.data())
@random_cases(8)
def test_changed_options_of_other_commands(run, other_option_names, data):
    script = data.draw(st.sampled_from(sorted(other_option_names)))
    words = data.draw(changed_options(other_option_names[script]))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where an option may write
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red sky\n")))
        command_outcome(script, run, *(["red sky"] if script == "predict.py" else []), *words)


@given(data=st.data())
@random_cases(10)
def test_changed_options(run, option_names, data):
    def stop(*_: Any) -> None:
        raise Stopped("the first step was reached", exit_code=0)

    words = data.draw(changed_options(option_names))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where an option may write
        patch.setattr("ftloop.loop.train_step", stop)
        command = ["train.py", ROOT / "configs/text.py", "--model", run / "model", "--data"]
        command += [run.parent / "rows.csv", "--label", "colour", "--data.validation", "2"]
        command += ["--data.no-stratify", "--run-dir", f"{folder}/run", *words]
        command_outcome(*command)
