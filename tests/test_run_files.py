"""What is read from a run folder: files of another shape, files that are gone, and the lock.

A checkpoint that does not fit is damaged, and the one before it is used. Every other file of
another shape is one error, or a warning with a count. Two commands never share a folder.
"""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest
import torch
from conftest import ROOT
from interrupt import Interrupted, interrupt_at_step
from toy import Points, digest, read_lines, read_steps, toy_config, train_toy

from ftloop import Stopped, UserError, checkpoint
from ftloop.checkpoint import find_checkpoints, load_state, newest_intact
from ftloop.cli.config_file import from_command_line
from ftloop.cli.job import Job
from ftloop.cli.options import option_name
from ftloop.config import Config, validate
from ftloop.data import Data
from ftloop.errors import read_json
from ftloop.files.metric_lines import read_metric_lines
from ftloop.provenance.ledger import kept_lines
from ftloop.provenance.reading import parse_line
from ftloop.report.history import History, ledger_digest
from ftloop.report.scored import ScoredSplit
from ftloop.runs.shape import check_config
from ftloop.sampler import TrainSampler
from ftloop.state import TrainState
from ftloop.tasks import TextClassification

OPTIONS = {"epochs": 2, "save_every": 2, "keep_last": 3, "learning_rate": 0.02}
"""6 steps, saved after 2, 3, 4 and 6."""
DEEP = "[" * 100_000


def train(run_dir: Path, **options) -> dict:
    return train_toy(Points(), run_dir, **{**OPTIONS, **options})


def train_until_killed(run: Path, step: int, **options) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at_step(monkeypatch, step)
        with pytest.raises(Interrupted):
            train(run, **options)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run with the checkpoints 2, 3 and 4."""
    run = tmp_path_factory.mktemp("killed") / "run"
    train_until_killed(run, step=5)
    return run


@pytest.fixture
def run(killed, tmp_path):
    return Path(shutil.copytree(killed, tmp_path / "run"))


# Checkpoints


def rewrite_manifest(saved: Path, change) -> None:
    """Change a manifest as somebody does who knows how to compute its digest."""
    content = checkpoint.read_manifest(saved)
    content = change(content) or content
    text = json.dumps({**content, "sha256": checkpoint._sha256(content)})
    (saved / "manifest.json").write_text(text)


def set_state(**values):
    return lambda content: content["state"].update(values)


MANIFESTS = {
    "a step that is a text": set_state(step="4"),
    "another step": set_state(step=3),
    "no step": lambda content: content["state"].pop("step") and None,
    "an unknown field": set_state(extra=1),
    "scores that are texts": set_state(scores={"loss": "x"}),
    "best scores that are a list": set_state(best_scores=[1.0]),
    "a huge number of bytes": set_state(log_bytes=10**30),
    "a fraction of a step": set_state(last_eval_step=0.5),
    "no state": lambda content: content.pop("state") and None,
    "a state that is a list": lambda content: {**content, "state": []},
    "an environment that is a text": lambda content: {**content, "environment": "torch"},
    "a deep environment": lambda content: {**content, "environment": {"torch": [[]]}},
    "no files": lambda content: {**content, "files": {}},
    "files that are a list": lambda content: {**content, "files": ["weights.pt"]},
    "another file": lambda content: {**content, "files": {"../../lock": {"bytes": 0}}},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_checkpoint_of_another_shape_is_damaged(run, name, caplog):
    newest = find_checkpoints(run / "checkpoints")[-1]
    rewrite_manifest(newest, MANIFESTS[name])
    assert checkpoint.damage(newest) is not None
    assert newest_intact(run / "checkpoints") == newest.with_name("step-000003")
    assert f"checkpoint {newest} is damaged" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "null", DEEP, '{"sha256": 1}', "1" * 5000, "\x00"])
def test_a_manifest_that_is_something_else_is_damaged(run, text):
    newest = find_checkpoints(run / "checkpoints")[-1]
    (newest / "manifest.json").write_text(text)
    assert checkpoint.damage(newest) is not None


def test_a_run_resumes_from_the_checkpoint_before_one_of_another_shape(run, tmp_path, caplog):
    newest = find_checkpoints(run / "checkpoints")[-1]
    rewrite_manifest(newest, set_state(scores={"loss": "x"}))
    with caplog.at_level(logging.INFO, "ftloop"):
        train(run)
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert f"resuming from {newest.with_name('step-000003')}" in caplog.text
    train(tmp_path / "straight")
    assert digest(run) == digest(tmp_path / "straight")


@pytest.mark.parametrize("weights", [{"0.weight": torch.zeros(2)}, {}, [1, 2], torch.zeros(3)])
def test_weights_that_do_not_fit_are_one_error(run, weights):
    newest = find_checkpoints(run / "checkpoints")[-1]
    torch.save(weights, newest / "weights.pt")
    manifest = checkpoint.read_manifest(newest)
    checkpoint.write_manifest(newest, TrainState(**manifest["state"]), manifest["environment"])
    with pytest.raises(UserError, match=r"step-000004 does not fit this run .*code changed\?"):
        train(run)


# Logs, scores and ledgers


def test_a_log_that_was_shortened_or_deleted_is_named(run, tmp_path, caplog):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    saved = load_state(newest_intact(run / "checkpoints")).log_bytes - 7
    message = f"{run / 'metrics.jsonl'} has changed since step 4 was saved"
    for content in (None, b"", b"".join(lines[:5]), b"".join(lines)[:saved], b"".join(lines[1:])):
        if content is None:
            (run / "metrics.jsonl").unlink()
        else:
            (run / "metrics.jsonl").write_bytes(content)
        caplog.clear()
        train_until_killed(run, step=4)
        assert message in caplog.text
        read_lines(run)  # each is complete
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    caplog.clear()
    train(run)
    assert "has changed since" not in caplog.text
    train(tmp_path / "straight")
    assert read_lines(run) == read_lines(tmp_path / "straight")


@pytest.mark.parametrize(
    "text", ["", "[]", DEEP, '{"test": 1}', '{"test": {"loss": "0.5"}}', '{"test": []}']
)
def test_scores_of_another_shape_are_one_error(run, text):
    (run / "scores.json").write_text(text)
    with pytest.raises(UserError, match=r"scores\.json cannot be read"):
        train(run)


def test_numbers_that_are_too_large_become_infinite(tmp_path):
    (tmp_path / "scores.json").write_text(f'{{"loss": {10**400}, "step": {2**63 - 1}}}')
    assert read_json(tmp_path / "scores.json", dict[str, float]) == {
        "loss": float("inf"),
        "step": 2**63 - 1,
    }


def test_damaged_lines_of_a_log_are_left_out_and_counted(run, caplog):
    file = run / "metrics.jsonl"
    whole, line = History.read(run), json.loads(file.read_text().splitlines()[0])
    with file.open("a") as stream:
        for bad in ({**line, "step": "1"}, {**line, "extra": 1}, {**line, "value": []}, [], None):
            stream.write(json.dumps(bad) + "\n")
        stream.write(json.dumps({**line, "speed": {"rows_per_second": "x"}}) + "\n")
        stream.write(json.dumps({"step": 1}) + "\n" + DEEP + "\n" + "{" + "\n")
        stream.write(json.dumps(line))  # not complete yet
    assert History.read(run) == whole
    assert f"{file}: 9 lines are damaged and were left out" in caplog.text
    assert read_metric_lines(run / "missing.jsonl") == []


STEP = {"step": 1, "epoch": 0, "index": 0, "rows": 8, "row_digest": "00", "loss": "0x1p-1"}
PLAN = {"step": 0, "num_rows": 43, "batch_size": 8, "seed": 1, "grouped": False}
PLAN |= {"row_order": {"function": "a:b"}, "fingerprints": {"train": "x"}}


@pytest.mark.parametrize("entry", [STEP, PLAN])
def test_lines_of_a_ledger_are_checked(entry):
    def parse(**changes) -> bool:
        line = json.dumps({**entry, "chain": "c", **changes}).encode() + b"\n"
        return parse_line(line)[0] is not None

    assert parse()
    for name, value in entry.items():
        for bad in ("text", 1, 1.5, None, [], {}, 10**30):
            if not isinstance(bad, type(value)) and not isinstance(value, bool):
                assert not parse(**{name: bad}), (name, bad)
    assert not parse(extra=1)
    assert not parse(chain=1)
    if entry is STEP:
        assert not parse(loss="zz")
    else:
        assert not parse(batch_size=0)
        assert not parse(num_rows=2**60)
        assert not parse(row_order={})
    assert parse_line(DEEP.encode()) == (None, "")


def test_a_ledger_that_was_shortened_ends_before_the_step_that_is_resumed(tmp_path):
    file = tmp_path / "ledger.jsonl"
    assert kept_lines(file, 4) == ([], 0)
    entries = [PLAN, *({**STEP, "step": step} for step in range(1, 7))]
    lines = [json.dumps({**entry, "chain": "c"}).encode() + b"\n" for entry in entries]
    file.write_bytes(b"".join(lines))
    assert kept_lines(file, 4) == (lines[:5], 4)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:-9])
    assert kept_lines(file, 4) == (lines[:3], 2)
    # A line of another shape is not cut off: `verify` will name it.
    for bad in (b"[]\n", b'{"step": "3"}\n', DEEP.encode() + b"\n"):
        file.write_bytes(b"".join([*lines[:3], bad, *lines[4:]]))
        assert kept_lines(file, 4) == ([*lines[:3], bad, lines[4]], 4)


def test_the_digest_of_a_ledger_of_another_shape_is_unknown(tmp_path):
    for content in (b"", b"[]\n", b"{}\n", DEEP.encode() + b"\n"):
        (tmp_path / "ledger.jsonl").write_bytes(content)
        assert ledger_digest(tmp_path) in (None, "None")


@pytest.mark.parametrize("about", ["[]", "{}", DEEP, '{"key": "k", "names": 3}', '{"key": "k"}'])
def test_stored_outputs_of_another_shape_are_computed_again(tmp_path, about):
    with (tmp_path / "test.npz").open("wb") as stream:
        numpy.savez_compressed(stream, about=numpy.array(about))
    with pytest.raises(ValueError, match=r"test\.npz"):
        ScoredSplit.load(tmp_path / "test.npz", "k")


# The lock


def train_and_report(run: Path, barrier, results) -> None:
    barrier.wait()
    try:
        results.put(("scores", train(run, seed=os.getpid() % 2 and 7)))
    except UserError as error:
        results.put(("error", str(error)))


def test_of_two_commands_that_start_at_once_one_trains(tmp_path):
    """The other one is refused, or finds the finished run; in no case is the run damaged."""
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    for number in range(4):
        run, barrier, results = tmp_path / str(number), context.Barrier(2), context.Queue()
        arguments = (run, barrier, results)
        both = [context.Process(target=train_and_report, args=arguments) for _ in range(2)]
        for process in both:
            process.start()
        outcomes = [results.get(timeout=60) for _ in both]
        for process in both:
            process.join()
        scores = json.loads((run / "scores.json").read_text())
        trained = [value for kind, value in outcomes if kind == "scores"]
        refused = [value for kind, value in outcomes if kind == "error"]
        assert trained, outcomes
        assert all(value == scores for value in trained)
        expected = ("another process is training in", "holds a run with other options")
        assert all(any(text in value for text in expected) for value in refused)
        assert len(read_steps(run, "loss")) == 6


def test_a_run_that_finishes_between_look_and_lock_is_left_alone(tmp_path, monkeypatch):
    run, lock = tmp_path / "run", checkpoint.lock_run_folder

    def finish_another_run_first(folder):
        monkeypatch.setattr(checkpoint, "lock_run_folder", lock)
        train(run)
        before.update({file: file.read_bytes() for file in run.rglob("*") if file.is_file()})
        return lock(folder)

    before: dict[Path, bytes] = {}
    monkeypatch.setattr(checkpoint, "lock_run_folder", finish_another_run_first)
    scores = train(run)
    assert scores == json.loads((run / "scores.json").read_text())
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog, number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    train(tmp_path / "run", max_steps=1)
    assert "this file system has no locks; start one command at a time" in caplog.text


def test_the_lock_and_the_record_are_not_written_through_links(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json.tmp").symlink_to(mine)
    train(run, max_steps=1)
    assert mine.read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lock").symlink_to(mine)
    with pytest.raises(UserError, match="cannot be written or locked"):
        train(tmp_path / "other")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_run_folder_with_an_impossible_name_is_one_error(tmp_path, name):
    with pytest.raises(UserError, match=r"run_dir: .* cannot be (used|written)"):
        train(tmp_path / name)


def test_a_run_folder_may_have_a_name_that_is_not_unicode(tmp_path):
    train(tmp_path / "\udcff", max_steps=1)
    assert (tmp_path / "\udcff" / "scores.json").exists()


# Options that change when a run resumes


def test_a_changed_learning_rate_takes_effect(run, tmp_path):
    options = {"learning_rate": 0.5, "weight_decay": 0.2, "warmup": 2}
    train(run, allow_changes=True, **options)
    train(tmp_path / "new", **options)
    rates = dict(read_steps(tmp_path / "new", "learning_rate"))
    resumed = dict(read_steps(run, "learning_rate"))
    assert [resumed[step] for step in (5, 6)] == [rates[step] for step in (5, 6)]
    saved = checkpoint.load_state_dicts(find_checkpoints(run / "checkpoints")[-1])
    assert saved["optimizer"]["param_groups"][0]["weight_decay"] == 0.2


def test_allow_changes_without_changes_changes_no_bit(run, tmp_path):
    train(run, allow_changes=True)
    train(tmp_path / "straight")
    resumed, straight = digest(run), digest(tmp_path / "straight")
    # In training.pt, the groups of the optimizer then share their tuples, in other bytes.
    assert resumed | {"training.pt": ""} == straight | {"training.pt": ""}


def test_another_limit_of_tokens_is_logged(run, caplog, monkeypatch):
    build = TrainSampler.__init__

    def build_limited(sampler, *arguments):
        build(sampler, *arguments)
        sampler.max_tokens = 512

    monkeypatch.setattr(TrainSampler, "__init__", build_limited)
    train(run)
    assert "resume: max_tokens 4096 -> 512. Without dropout, only rounding differs." in caplog.text


def no_rows(dataset, seed, epoch):
    return []


def test_an_order_without_rows_is_an_error(tmp_path):
    with pytest.raises(UserError, match="row_order: returned no rows for epoch 0"):
        train(tmp_path / "run", row_order=no_rows)


def test_a_time_limit_below_the_time_of_the_start_still_makes_progress(tmp_path):
    for step in (1, 2, 3):
        with pytest.raises(Stopped, match=f"stopped after step {step};"):
            train(tmp_path / "run", max_minutes=1e-9, max_steps=3)
        assert load_state(find_checkpoints(tmp_path / "run" / "checkpoints")[-1]).step == step
    assert train(tmp_path / "run", max_minutes=1e-9, max_steps=3)  # evaluates and exports


# Values of a config, wherever it comes from

NUMBERS = [
    name
    for name, hint in Config.__annotations__.items()
    if hint is not bool and name != "row_order" and ("int" in str(hint) or "float" in str(hint))
]


@pytest.mark.parametrize("name", NUMBERS)
def test_absurd_numbers_are_refused(name):
    for value in (float("nan"), float("inf"), 1e300, 2**70, -(2**70)):
        options = {"batch_size": 2**20, name: value}
        with pytest.raises(UserError, match=f"^{name}: must be at (least|most)"):
            validate(Config(task=Points(), run_dir="r", **options))


TASK = TextClassification(model="m", data=Data(path="a.csv"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_batch_size": 0}, "eval_batch_size: must be at least 1, but is 0"),
        ({"eval_batch_size": "64"}, "eval_batch_size: str is not an instance of int"),
        ({"run_dir": 3}, "run_dir: int is not an instance of str"),
        ({"task": 3}, "task: int is not an instance of"),
        ({"best_direction": "up"}, "best_direction: str did not match any element"),
        ({"schedule_options": []}, "schedule_options: list is not a dict"),
        ({"task": TextClassification(model=["m"])}, "task.model: list did not match|task.model: "),
        ({"task": TextClassification(model="m", data=Data(path=3))}, "task.data.path: "),
        ({"track": ("a", 3)}, "track: item 1 of tuple is not an instance of str"),
    ],
)
def test_a_record_with_values_of_another_type_is_one_error(changes, message):
    job = Job(**{"task": TASK, "run_dir": "r", **changes})
    with pytest.raises(UserError, match=message) as error:
        check_config(job, Path("run/config.json"))
    assert str(error.value).startswith("run/config.json cannot be used: ")


@pytest.mark.parametrize(
    "option", ["--max-length", "--label-min-rows", "--data.limit", "--data.split-seed"]
)
def test_absurd_numbers_on_the_command_line_are_refused(option, tmp_path, capsys):
    words = [str(ROOT / "configs" / "text.py"), "--run-dir", str(tmp_path / "run")]
    for number in (2**70, -(2**70)):
        with pytest.raises(UserError, match=rf"at most \d+, but is {number}\.") as error:
            from_command_line([*words, f"{option}={number}"])
        assert option_name(error.value.field) == option
    assert from_command_line([*words, "--max-length=64"]).task.max_length == 64


@dataclass(frozen=True)
class ListTask(Points):
    names: list[str] = field(default_factory=list)
    groups: dict[str, list[int]] = field(default_factory=dict)


def test_a_record_of_a_valid_config_is_accepted():
    task = ListTask(names=("a",), groups={"a": (1, 2)})  # as `decode` returns lists
    check_config(toy_config(task, "r"), Path("c.json"))
    check_config(Job(task=TASK, run_dir="r", track=("wandb",), schedule="cosine"), Path("c.json"))
    check_config(toy_config(Points(), "r"), Path("c.json"))
