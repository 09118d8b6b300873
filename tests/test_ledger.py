"""The ledger: equal for interrupted runs, and what its verification and comparison find."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from conftest import Result, ranks, run_command, run_script, run_script_of_ftloop, sentences
from interrupt import train_until_step

from ftloop import checkpoint as checkpoints
from ftloop.config import Config
from ftloop.provenance.ledger import Ledger, chain_digest
from ftloop.provenance.row_digest import digest_rows, format_digest
from ftloop.sampler import TrainSampler
from ftloop.task import Task

NUM_ROWS = 43  # of the training split of the fixture `colours`
repeated_row = 0


@pytest.fixture
def options(tiny, colours) -> list[str]:
    """2 epochs of 6 steps; up to three micro-batches per step, and 3 rows in the last step."""
    sizes = ["--micro-batch-size", "3", "--save-every", "4", "--log-every", "3"]
    return ["configs/text.py", "--model", tiny("bert"), *colours, *sizes]


def train(*options: Any) -> None:
    result = run_script("train.py", *options)
    assert result.code == 0, result.err


def verify(*words: Path | str) -> Result:
    return run_script_of_ftloop("verify", *words)


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


def write_ledger(run: Path, entries: list[dict[str, Any]]) -> None:
    """Write a ledger of other entries with a correct chain, as a deceiver would."""
    line = content = b""
    for entry in entries:
        entry.pop("chain", None)
        line = json.dumps({**entry, "chain": chain_digest(line, entry)}).encode() + b"\n"
        content += line
    (run / "ledger.jsonl").write_bytes(content)


def adamw_with_noise(
    model: torch.nn.Module, config: Config, noise: float = 0.0
) -> torch.optim.Optimizer:
    """Change the initial weights in a way that no option records."""
    *_, bias_of_head = model.parameters()
    with torch.no_grad():
        bias_of_head[0] += noise
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate)


adamw_from_other_weights = functools.partial(adamw_with_noise, noise=0.01)


def own_order_with_a_repeated_row(dataset: Any, seed: int, epoch: int) -> Sequence[int]:
    """Return every row but the first, and one row three times more."""
    return [*range(1, len(dataset)), *[repeated_row] * 3]


# Recording


def test_interrupted_runs_leave_the_ledger_of_an_uninterrupted_run(options, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = [*options, "--digest-every", "6"]
    train(*options, "--run-dir", whole)
    for step in (3, 7, 11):  # before any checkpoint, and after those of the steps 6 and 8
        train_until_step(step, *options, "--run-dir", cut)
    train(*options, "--run-dir", cut, "--workers", "2", "--log-every", "2")
    assert (cut / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
    verified = verify(cut)
    assert verified.code == 0, verified.out
    assert verified.out.splitlines() == [
        "chain     13 lines, each of which continues the one before it",
        "steps     1 to 12, each once, in order",
        "plan      from step 1: 43 rows, 8 per step, grouped by length, seed 42",
        "rows      steps 1 to 12 used the 86 rows of the plan",
        "epochs    2 complete, in each of which each of the 43 rows was used once",
        "weights   3 digests (--digest-every)",
    ]
    compared = verify(whole, cut)
    assert compared.code == 0
    assert compared.out.splitlines()[0] == "equal     in all 12 steps"


def test_the_digest_of_the_weights_is_that_of_the_checkpoint(options, tmp_path):
    train(*options, "--digest-every", "4", "--log-every", "2", "--max-steps", "8")
    run = tmp_path / "run"
    digests = {line["step"]: line["weights"] for line in read_lines(run) if "weights" in line}
    assert list(digests) == [0, 4, 8]
    newest = checkpoints.find_checkpoints(run / "checkpoints")[-1]
    weights = checkpoints.load_weights(newest)
    content = b"".join(tensor.numpy().tobytes() for tensor in weights.values())
    assert digests[8] == hashlib.sha256(content).hexdigest()


def test_weights_of_any_shape_and_type_have_a_digest_that_each_bit_changes():
    model = torch.nn.BatchNorm1d(3)  # one of its buffers has no dimensions
    model.register_buffer("transposed", torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T)
    run = SimpleNamespace(registered={"model": model})
    ledger = Ledger(digest_every=2)
    assert ledger._digest_weights(run, step=1) is None
    before = ledger._digest_weights(run, step=2)
    assert before == ledger._digest_weights(run, step=4)
    model.transposed[2, 1] += 1
    assert before != ledger._digest_weights(run, step=4)


@pytest.mark.parametrize(
    ("every", "message"),
    [
        ("0", "--digest-every: must be at least 1, but is 0."),
        ("4", "--digest-every: 4 must be a multiple of log_every, which is 3."),
    ],
)
def test_digests_are_due_at_log_steps(options, every, message):
    result = run_script("train.py", *options, "--digest-every", every)
    assert result.code == 2
    assert message in result.err


def test_two_processes_use_the_rows_that_one_uses(options, tmp_path):
    options = [*options, "--dropout", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    train(*options, "--run-dir", one)
    result = ranks(2, "train.py", *options, "--run-dir", str(two))
    assert result.code == 0, result.err
    names = ("step", "epoch", "index", "rows", "row_digest")
    rows = [[[line.get(name) for name in names] for line in read_lines(run)] for run in (one, two)]
    assert len(rows[0]) == 13
    assert rows[0] == rows[1]
    assert verify(two).code == 0
    compared = verify(one, two)
    if compared.code:  # a sum over ranks is rounded differently
        assert "in the rows" not in compared.out
    assert "machine   num_processes: 1 -> 2" in compared.out


def test_a_sum_of_digests_does_not_depend_on_the_order_and_the_sign_of_its_parts():
    row_ids = list(range(1000))
    parts = [digest_rows(row_ids[start::7]) for start in range(7)]
    signed = [numpy.array([part], numpy.uint64).view(numpy.int64).item() for part in parts]
    assert any(part < 0 for part in signed)
    assert format_digest(sum(signed)) == format_digest(digest_rows(row_ids))
    assert format_digest(digest_rows(row_ids[::-1])) == format_digest(digest_rows(row_ids))
    assert digest_rows([0]) != digest_rows([])


# Verification


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A run of 15 steps, which ends in the middle of its third epoch."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(54)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", folder / "rows.jsonl", "--data.validation", "11", "--max-length", "32"]
    sizes = ["--batch-size", "8", "--max-steps", "15", "--run-dir", folder / "run"]
    train("configs/text.py", "--model", tiny("bert"), *data, *sizes)
    return folder / "run"


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_an_incomplete_epoch_is_reported(finished):
    verified = verify(finished)
    assert verified.code == 0, verified.out
    epochs = "2 complete, in each of which each of the 43 rows was used once"
    assert f"epochs    {epochs}; 24 rows of the next, none twice" in verified.out
    assert "weights   no digests" in verified.out


def test_verification_of_the_default_order_needs_neither_data_nor_code(copy):
    record = json.loads((copy / "config.json").read_text())
    record["config"]["task"]["class"] = "deleted_module:Task"
    (copy / "config.json").write_text(json.dumps(record))
    assert verify(copy).code == 0


def test_a_record_without_the_seed_is_reported(copy):
    record = json.loads((copy / "config.json").read_text())
    del record["config"]["seed"]
    (copy / "config.json").write_text(json.dumps(record))
    verified = verify(copy)
    assert verified.code == 1
    assert "but config.json has None" in verified.out


def test_the_ledger_records_the_rows_that_were_computed(finished, monkeypatch):
    lengths = numpy.load(finished / "lengths.npy")

    class Rows(list):
        pass

    rows = Rows(range(NUM_ROWS))
    rows.lengths = lengths
    sampler = TrainSampler(rows, Config(Task(), "run", batch_size=8, seed=42))
    expected = format_digest(digest_rows(sampler.plan(0).row_ids))
    assert read_lines(finished)[1]["row_digest"] == expected

    def permute_otherwise(count, seed, epoch):
        return numpy.random.RandomState(epoch).permutation(count)

    monkeypatch.setattr("ftloop.sampler.random_permutation", permute_otherwise)
    verified = verify(finished)
    assert verified.code == 1
    assert "wrong     step 1 used other rows than those of the plan\n" in verified.out


def replace_values(line: int, **values: Any) -> Callable[[list], list]:
    def replaced(lines):
        return [
            {**entry, **(values if number == line else {})} for number, entry in enumerate(lines)
        ]

    return replaced


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda lines: lines[:6] + lines[7:], "step 6 is missing"),
        (lambda lines: lines[:7] + lines[6:], "step 6 appears again after step 6"),
        (lambda lines: lines[:-1], "the ledger ends with step 14, before "),
        (lambda lines: lines[:7] + lines[:0:-1], "step 7 is missing"),
        (replace_values(5, row_digest="0" * 16), "step 5 used other rows than those of the plan"),
        (replace_values(5, rows=7), "step 5 used 7 rows instead of 8"),
        (
            replace_values(8, epoch=2),
            "step 8 is recorded at index 1 of epoch 2, but its place is index 1 of epoch 1",
        ),
        (replace_values(0, seed=43), "step 1 used other rows than those of the plan"),
        (replace_values(0, num_rows=44), "lengths.npy has 43 rows, but the plan has 44"),
        (replace_values(0, grouped=False), "step 1 used other rows than those of the plan"),
        (lambda lines: lines[1:], "has no plan that is followed by steps"),
        (lambda lines: [], "has no plan that is followed by steps"),
        (lambda lines: [*lines[:5], {"step": 5}, *lines[6:]], "line 6 is not a line of a ledger"),
    ],
)
def test_what_is_wrong_is_named_even_if_the_chain_is_correct(copy, tamper, message):
    write_ledger(copy, tamper(read_lines(copy)))
    verified = verify(copy)
    assert verified.code == 1
    assert message in verified.out
    assert "Traceback" not in verified.err


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda lines: lines[:6] + lines[7:], "line 7 (step 7) breaks the chain"),
        (lambda lines: lines[:7] + lines[6:], "line 8 (step 6) breaks the chain"),
        (
            lambda lines: [*lines[:6], lines[6].replace(b'"rows": 3', b'"rows": 4'), *lines[7:]],
            "line 7 (step 6)",
        ),
        (lambda lines: [*lines[:6], b"[]\n", *lines[7:]], "line 7 is not a line of a ledger"),
    ],
)
def test_the_chain_names_the_line_that_was_changed(copy, tamper, message):
    file = copy / "ledger.jsonl"
    file.write_bytes(b"".join(tamper(file.read_bytes().splitlines(keepends=True))))
    verified = verify(copy)
    assert verified.code == 1
    assert message in verified.out
    assert verify(copy, copy).code == 1


def test_an_incomplete_last_line_is_what_a_killed_run_leaves(copy):
    with (copy / "ledger.jsonl").open("ab") as stream:
        stream.write(b'{"step": 16, "epo')
    assert verify(copy).code == 0


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"\x93NUMPY")])
def test_missing_or_damaged_lengths_are_named(copy, damage):
    damage(copy / "lengths.npy")
    verified = verify(copy)
    assert verified.code == 1
    assert "lengths.npy is " in verified.out


def test_a_run_that_resumes_with_another_seed_has_two_plans(options, tmp_path):
    whole, branch, middle = tmp_path / "whole", tmp_path / "branch", tmp_path / "middle"
    train(*options, "--digest-every", "3", "--run-dir", whole)
    for run, step in ((branch, 7), (middle, 5)):  # resumed at 6, the end of an epoch, and at 4
        train_until_step(step, *options, "--digest-every", "3", "--run-dir", run)
        changes = ["--allow-changes", "--seed", "7"]
        train(*options, "--digest-every", "3", "--run-dir", run, *changes)
    verified = verify(branch)
    assert verified.code == 0, verified.out
    assert "from step 7: 43 rows, 8 per step, grouped by length, seed 7" in verified.out
    assert "2 complete, in each of which each of the 43 rows was used once" in verified.out
    compared = verify(whole, branch)
    assert compared.code == 1
    equal = "the weights before this step were equal"
    assert f"first at step 7, in the rows; {equal}" in compared.out
    assert "config    seed: 42 -> 7" in compared.out
    verified = verify(middle)
    assert verified.code == 1
    assert "in epoch 0 (from 0), " in verified.out


def test_a_row_order_of_ones_own_is_verified_by_its_function(options, tmp_path, monkeypatch):
    run, name = tmp_path / "run", "test_ledger:own_order_with_a_repeated_row"
    options = [*options, "--row-order", name]
    train_until_step(7, *options)
    train(*options)
    assert len(read_lines(run)) == 13
    refused = verify(run)
    assert refused.code == 2
    assert f"this run names code outside of ftloop: {name}. Use --trust-code" in refused.err
    verified = verify(run, "--trust-code")
    assert verified.code == 0, verified.out
    assert f"from step 1: 45 rows, 8 per step, in the order of {name}, seed 42" in verified.out
    assert "rows      steps 1 to 12 used the 90 rows of the plan\n" in verified.out
    assert "epochs" not in verified.out

    monkeypatch.setattr("test_ledger.repeated_row", 5)
    verified = verify(run, "--trust-code")
    assert verified.code == 1
    message = f"step 6 used other rows than those of the plan, or {name} has changed since the run"
    assert message in verified.out

    table = tmp_path / "train.csv"
    table.write_text(table.read_text().replace("rose", "sea"))
    verified = verify(run, "--trust-code")
    assert verified.code == 2
    assert "the training rows have changed since the run" in verified.err


def test_a_row_order_that_is_no_longer_recorded_is_reported(options, tmp_path):
    own = ["--row-order", "test_ledger:own_order_with_a_repeated_row"]
    train_until_step(7, *options, *own)
    train(*options, "--allow-changes")
    verified = verify(tmp_path / "run")
    assert verified.code == 0, verified.out
    message = "rows      steps 1 to 6 are not verified: config.json has another row order\n"
    assert message in verified.out
    assert "rows      steps 7 to 12 used the 43 rows of the plan\n" in verified.out
    assert "epochs" not in verified.out


def test_a_stream_is_verified_by_its_positions(tiny, tmp_path):
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", tmp_path / "rows.jsonl", "--data.streaming", "--data.validation", "5"]
    sizes = ["--max-length", "32", "--batch-size", "12", "--micro-batch-size", "5"]
    sizes += ["--max-steps", "6", "--run-dir", tmp_path / "run"]
    train("configs/text.py", "--model", tiny("bert"), *data, *sizes)
    verified = verify(tmp_path / "run")
    assert verified.code == 0, verified.out
    assert "plan      from step 1: a stream, 12 per step, seed 42" in verified.out
    assert "steps 1 to 6 used the 72 rows of the plan, by their positions" in verified.out


# Comparison


UNKNOWN = "whether the weights before this step were equal is not known"
OTHER_WEIGHTS = ["--optimizer", "test_ledger:adamw_from_other_weights"]


@pytest.mark.parametrize(
    ("changed", "has_digests", "expected"),
    [
        (["--seed", "7"], False, f"first at step 1, in the rows; {UNKNOWN}"),
        (["--learning-rate", "1e-3"], False, "first at step 2, in the loss of the same rows ("),
        (
            ["--learning-rate", "1e-3"],
            True,
            "first at step 1, in the weights after equal rows and loss; the weights before",
        ),
        (OTHER_WEIGHTS, False, "first at step 1, in the loss"),
        (OTHER_WEIGHTS, True, "before the first step, in the weights"),
        (["--dropout", "0.3"], True, "; the weights before this step were equal"),
        (["--max-steps", "6"], False, "in length: equal up to step 3, then only one continues"),
    ],
)
def test_the_first_difference_of_two_runs_is_found(
    options, tmp_path, changed, has_digests, expected
):
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*options, "--max-steps", "3", "--schedule", "constant"]
    options += ["--optimizer", "test_ledger:adamw_with_noise"]
    digests = ["--digest-every", "1", "--log-every", "1"] if has_digests else []
    train(*options, *digests, "--run-dir", one)
    train(*options, *changed, *digests, "--run-dir", two)
    compared = verify(one, two)
    assert compared.code == 1
    difference, *changes = compared.out.splitlines()
    assert difference.startswith("differ    ")
    assert expected in difference
    field = changed[0].removeprefix("--").replace("-", "_").replace("dropout", "task.dropout")
    assert any(line.startswith(f"config    {field}: ") for line in changes)


def test_verify_is_a_command(finished):
    verified = run_command("python", "-m", "ftloop.cli", "verify", str(finished))
    assert verified.code == 0, verified.err
    assert "each of the 43 rows was used once" in verified.out


def test_a_folder_without_a_run_is_an_error(finished):
    result = verify(finished.parent / "rum")
    assert result.code == 2
    assert "holds no run: it has no config.json (did you mean 'run'?)" in result.err
