"""The ledger: the same bytes for an interrupted run, the same rows for two processes; what verify proves, and finds."""

import functools
import hashlib
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from accelerate import Accelerator
from conftest import Result, ranks, run_command, run_script, sentences

from ftloop import checkpoint
from ftloop.logs import terminal as tracking
from ftloop.sampler import mix
from ftloop.provenance.ledger import Ledger, chained, digest_of, shown


class Cut(BaseException):
    """Stands for the end of the process: nothing in ftloop catches it."""


@pytest.fixture
def words(tiny, colours):
    # Three micro-batches of at most 3 rows a step; an epoch of 6 steps, the last with 3 rows; not a round of log_every.
    return [
        *("configs/text.py", "--task.model", tiny("bert"), *colours, "--micro-batch-size", "3"),
        *("--save-every", "4", "--log-every", "5", "--digest-every", "3"),
    ]


@pytest.fixture
def verify(monkeypatch, capsys) -> Callable[..., Result]:
    """`verify(RUN, OTHER)`, as `python -m ftloop verify RUN OTHER` in this process."""

    def run(*folders: Path) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ftloop", "verify", *map(str, folders)])
        sys.modules.pop("ftloop.cli.__main__", None)  # or runpy warns where a test has imported it
        with pytest.raises(SystemExit) as leaving:
            runpy.run_module("ftloop", run_name="__main__")
        return Result(leaving.value.code, *capsys.readouterr())

    return run


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


def write_chained(run: Path, entries: list[dict[str, Any]]) -> None:
    """A ledger of other entries, with a chain that is right: what somebody would do who wants to deceive."""
    before = written = b""
    for entry in entries:
        entry.pop("chain", None)
        before = json.dumps({**entry, "chain": chained(before, entry)}).encode() + b"\n"
        written += before
    (run / "ledger.jsonl").write_bytes(written)


def adamw_from_noise(model: torch.nn.Module, config: Any, noise: float = 0.0) -> torch.optim.Optimizer:
    """Stands for a change of the weights that no option tells."""
    *_, bias_of_head = model.parameters()
    with torch.no_grad():
        bias_of_head[0] += noise
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate)


adamw_from_other_weights = functools.partial(adamw_from_noise, noise=0.01)


def test_an_interrupted_run_leaves_the_ledger_of_one_that_was_not(words, tmp_path, monkeypatch, verify):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_script("train.py", *words, "--run-dir", whole).code == 0
    for count in (7, 5):  # of the 12 steps: before any checkpoint but one, then behind another
        original, calls = tracking.StepLog.add, []

        def add(self, step, original=original, calls=calls, count=count):
            calls.append(step)
            if len(calls) == count:
                raise Cut
            original(self, step)

        with monkeypatch.context() as patched:
            patched.setattr(tracking.StepLog, "add", add)
            with pytest.raises(Cut):
                run_script("train.py", *words, "--run-dir", cut)
    assert run_script("train.py", *words, "--run-dir", cut, "--workers", "2", "--log-every", "2").code == 0
    assert (cut / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
    proved = verify(cut)
    assert proved.code == 0, proved.out
    for line in (
        "chain     13 lines, each follows the one before it",
        "plan      from step 1: 43 rows, 8 in a step, grouped by length in the order of seed 42",
        "steps     1 to 12, each once, in order",
        "rows      86 used, in each step those of the plan",
        "epochs    2 complete, in each of them each of the 43 rows once\n",
        "weights   5 digest(s)",
    ):
        assert line in proved.out
    equal = verify(whole, cut)
    assert (equal.code, equal.out) == (0, "equal     in all 12 steps\n")


def test_the_digest_of_the_weights_is_that_of_the_checkpoint(words, tmp_path):
    run = tmp_path / "run"
    assert run_script("train.py", *words, "--digest-every", "4", "--max-steps", "8").code == 0
    digests = {line["step"]: line["weights"] for line in lines_of(run) if "weights" in line}
    assert list(digests) == [0, 4, 8]
    weights = checkpoint.load_weights(checkpoint.find(run / "checkpoints")[-1])
    content = b"".join(tensor.numpy().tobytes() for tensor in weights.values())
    assert digests[8] == hashlib.sha256(content).hexdigest()


def test_weights_of_any_shape_and_kind_have_a_digest_that_each_bit_changes():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.BatchNorm1d(3)  # a buffer is a number without dimensions
    model.register_buffer("turned", torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T)
    ledger = Ledger(accelerator, model, digest_every=2)
    assert ledger.weights_after(1) is None
    before = ledger.weights_after(2)
    assert before == ledger.weights_after(4)
    model.turned[2, 1] += 1
    assert before != ledger.weights_after(4)


def test_digests_are_taken_after_whole_steps(words):
    result = run_script("train.py", *words, "--digest-every", "0")
    assert result.code == 2
    assert "--digest-every 0: at least 1 is needed" in result.err


def test_two_processes_see_the_rows_that_one_sees(words, tmp_path, verify):
    words = [*words, "--task.dropout", "0"]
    assert run_script("train.py", *words, "--run-dir", tmp_path / "one").code == 0
    result = ranks(2, "train.py", *words, "--run-dir", str(tmp_path / "two"))
    assert result.code == 0, result.err
    seen = [
        [[line.get(name) for name in ("step", "epoch", "window", "rows", "ids")] for line in lines_of(tmp_path / run)]
        for run in ("one", "two")
    ]
    assert len(seen[0]) == 13
    assert seen[0] == seen[1]
    assert verify(tmp_path / "two").code == 0
    compared = verify(tmp_path / "one", tmp_path / "two")
    if compared.code:  # sums over processes are rounded otherwise
        assert "the data" not in compared.out
    assert "made by   processes 1 -> 2" in compared.out


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run of 15 steps, in the middle of its third epoch."""
    place = tmp_path_factory.mktemp("finished")
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": row["text"], "label": row["colour"]}) + "\n" for row in sentences(54)))
    words = ["configs/text.py", "--task.model", tiny("bert"), "--task.data.path", rows, "--task.data.validation", "11"]
    words += ["--task.max-length", "32", "--batch-size", "8", "--max-steps", "15", "--run-dir", place / "run"]
    result = run_script("train.py", *words)
    assert result.code == 0, result.err
    return place / "run"


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_an_epoch_that_was_not_finished_is_told(finished, verify):
    proved = verify(finished)
    assert proved.code == 0, proved.out
    assert (
        "epochs    2 complete, in each of them each of the 43 rows once; 24 rows of the next, none twice" in proved.out
    )
    assert "no digests" in proved.out


def test_the_ledger_says_what_was_seen_and_not_what_was_planned(finished, copy, verify, monkeypatch):
    from ftloop import sampler as order

    lengths = numpy.load(finished / "lengths.npy")
    state = checkpoint.TrainState()
    plan = next(order.TrainOrder(43, 8, 8, 1, 15, 42, state, lengths, grouped=True).windows()).rows
    assert lines_of(finished)[1]["ids"] == shown(digest_of(plan))
    assert shown(digest_of(plan[:3]) + digest_of(plan[3:])) == shown(digest_of(plan[::-1]))
    assert digest_of([0]) != digest_of([])
    # As if the run had served another epoch's rows.
    monkeypatch.setattr(order, "mix", lambda *counters: mix("another", *counters))
    order._order_of_block.cache_clear()
    other = verify(copy)
    order._order_of_block.cache_clear()
    assert other.code == 1
    assert " saw other rows than those of the plan" in other.out


def change(place: int, **values: Any) -> Callable[[list], list]:
    def changed(lines):
        return [{**line, **values} if number == place else line for number, line in enumerate(lines)]

    return changed


@pytest.mark.parametrize(
    ("tamper", "words_of_error"),
    [
        (lambda lines: lines[:6] + lines[7:], "step 6 is missing"),
        (lambda lines: lines[:7] + lines[6:], "step 6 comes again after 6"),
        (lambda lines: lines[:-1], "the ledger ends with step 14, and a checkpoint of step 15 is there"),
        (lambda lines: lines[:7] + lines[:0:-1], "step 7 is missing"),
        (change(5, ids="0" * 16), "step 5 saw other rows than those of the plan"),
        (change(5, rows=7), "step 5 saw 7 rows, and not 8"),
        (change(8, epoch=2), "step 8 is at window 1 of epoch 2 (from 0), and not at window 1 of epoch 1"),
        (change(0, seed=43), " saw other rows than those of the plan"),
        (change(0, train_rows=44), "lengths.npy has 43 rows, and the plan 44"),
        (change(0, grouped=False), "step 1 saw other rows than those of the plan"),
        (lambda lines: lines[1:], "holds no plan with steps after it"),
        (lambda lines: [], "holds no plan with steps after it"),
    ],
)
def test_what_is_wrong_is_named_also_where_the_chain_was_made_anew(copy, verify, tamper, words_of_error):
    write_chained(copy, tamper(lines_of(copy)))
    result = verify(copy)
    assert result.code == 1
    assert words_of_error in result.out
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("tamper", "words_of_error"),
    [
        (lambda lines: lines[:6] + lines[7:], "line 7 (step 7) breaks the chain"),
        (lambda lines: lines[:7] + lines[6:], "line 8 (step 6) breaks the chain"),
        (lambda lines: [*lines[:6], lines[6].replace(b'"rows": 3', b'"rows": 4'), *lines[7:]], "line 7 (step 6)"),
        (lambda lines: [*lines[:6], b"[]\n", *lines[7:]], "line 7 is not a line of a ledger"),
    ],
)
def test_the_chain_names_the_line_that_was_changed(copy, verify, tamper, words_of_error):
    file = copy / "ledger.jsonl"
    changed = tamper(file.read_bytes().splitlines(keepends=True))
    file.write_bytes(b"".join(changed))
    result = verify(copy)
    assert result.code == 1
    assert words_of_error in result.out


def test_half_a_line_at_the_end_is_what_a_killed_run_leaves(copy, verify):
    with (copy / "ledger.jsonl").open("ab") as stream:
        stream.write(b'{"step": 16, "epo')
    assert verify(copy).code == 0


def test_a_run_that_goes_on_with_another_seed_says_so(words, tmp_path, verify):
    whole, branch = tmp_path / "whole", tmp_path / "branch"
    assert run_script("train.py", *words, "--run-dir", whole, "--keep", "last=9").code == 0
    begun = whole / "checkpoints" / "step-000006"  # the end of an epoch
    changes = ["--resume", begun, "--allow-changes", "--seed", "7"]
    assert run_script("train.py", *words, "--run-dir", branch, *changes).code == 0
    proved = verify(branch)
    assert proved.code == 0, proved.out
    assert "plan      from step 7: 43 rows, 8 in a step, grouped by length in the order of seed 7" in proved.out
    assert "2 complete, in each of them each of the 43 rows once" in proved.out
    found = verify(whole, branch)
    assert found.code == 1
    assert "first in step 7: the data; the weights before it were the same" in found.out
    assert "option    --seed 42 -> 7" in found.out
    middle = ["--resume", whole / "checkpoints" / "step-000004", *changes[2:]]
    assert run_script("train.py", *words, "--run-dir", tmp_path / "middle", *middle).code == 0
    found = verify(tmp_path / "middle")
    assert found.code == 1
    assert "in epoch 0 (from 0)" in found.out


@pytest.mark.parametrize(
    ("options", "digest_every", "expected"),
    [
        (["--seed", "7"], None, "first in step 1: the data; of the weights before it nothing is known"),
        (["--learning-rate", "1e-3"], None, "first in step 2: the loss, "),
        (["--learning-rate", "1e-3"], "1", "first in step 1: the weights, after the same rows and loss; the weights"),
        (["--optimizer", "test_ledger:adamw_from_other_weights"], None, "first in step 1: the loss, "),
        (["--optimizer", "test_ledger:adamw_from_other_weights"], "1", "before the first step: the weights"),
        (["--task.dropout", "0.3"], "1", "from the same rows; the weights before it were the same"),
        (["--max-steps", "6"], None, "after step 3: equal so far, but only one goes on, to step 6"),
    ],
)
def test_the_first_difference_of_two_runs_is_found(words, tmp_path, verify, options, digest_every, expected):
    digests = ["--digest-every", digest_every or "100"]
    words = [*words[:-2], "--max-steps", "3", "--schedule", "constant", "--optimizer", "test_ledger:adamw_from_noise"]
    one, two = tmp_path / "one", tmp_path / "two"
    for run, more in ((one, []), (two, options)):
        result = run_script("train.py", *words, *more, *(digests if digest_every else []), "--run-dir", run)
        assert result.code == 0, result.err
    found = verify(one, two)
    assert found.code == 1
    assert found.out.startswith("differ    ")
    assert expected in found.out
    name, *_ = options
    assert f"option    {name} " in found.out


def test_a_stream_is_known_by_its_positions(tiny, tmp_path, verify):
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["configs/text.py", "--task.model", tiny("bert"), "--task.data.path", tmp_path / "rows.jsonl"]
    words += ["--task.data.streaming", "--task.data.validation", "5", "--task.max-length", "32", "--batch-size", "12"]
    result = run_script(
        "train.py", *words, "--micro-batch-size", "5", "--max-steps", "6", "--run-dir", tmp_path / "run"
    )
    assert result.code == 0, result.err
    proved = verify(tmp_path / "run")
    assert proved.code == 0, proved.out
    assert "a stream: its positions 0 to 71, each once" in proved.out


def test_the_command_as_it_is_typed(finished):
    proved = run_command("python", "-m", "ftloop", "verify", str(finished))
    assert proved.code == 0, proved.err
    assert "each of the 43 rows once" in proved.out


def test_a_folder_without_a_run_is_named(finished, verify):
    nothing = verify(finished.parent / "rum")
    assert nothing.code == 2
    assert "holds no run (no config.json) (did you mean 'run'?)" in nothing.err


def test_the_sum_of_digests_does_not_depend_on_signs():
    ids = list(range(1000))
    parts = [numpy.array([digest_of(ids[start::7])], numpy.uint64).view(numpy.int64).item() for start in range(7)]
    assert any(part < 0 for part in parts)
    assert shown(sum(parts)) == shown(digest_of(ids))
