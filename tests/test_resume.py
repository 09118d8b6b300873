"""Laws 3 and 5: a run that was cut anywhere and started again ends with the same bits as one that was not."""

import hashlib
import itertools
import json
import os
import signal
from pathlib import Path

import pytest
from conftest import ranks, run_command, run_script

from ftloop import checkpoint
from ftloop.logs import terminal as tracking
from ftloop import run as run_module
from ftloop.optim import adamw


class Cut(BaseException):
    """Stands for the end of the process: nothing in ftloop catches it."""


def digest(run: Path) -> dict[str, str]:
    """sha256 of the final weights and of the training state in the last checkpoint, and the log without its clock."""
    last = checkpoint.find(run / "checkpoints")[-1]
    found = {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in ("weights.pt", "training.pt")}
    found["model"] = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "items_per_second", "speed")
    found["log"] = json.dumps([{name: value for name, value in line.items() if name not in clock} for line in lines])
    found["scores"] = (run / "scores.json").read_text()
    found["ledger"] = (run / "ledger.jsonl").read_text()
    return found


@pytest.fixture
def words(tiny, colours):
    # Dropout stays at the model's 0.1; 3 micro-batches of 3 rows a step; an epoch of 6 steps, the last with 3 rows.
    return [
        *("configs/text.py", "--task.model", tiny("bert"), *colours, "--micro-batch-size", "3", "--epochs", "3"),
        *("--save-every", "4", "--log-every", "5", "--keep", "last=2,best=1", "--task.metrics", "accuracy"),
    ]


def cut_at(monkeypatch: pytest.MonkeyPatch, what: str, count: int) -> None:
    """Raise Cut in the count-th step, evaluation, save or pruning."""
    owner, name = {
        "a step": (tracking.StepLog, "add"),
        "an evaluation": (run_module, "evaluate_split"),
        "a save": (checkpoint, "_sync"),
        "pruning": (checkpoint.shutil, "rmtree"),  # between the rename and the end of a deletion, too
    }[what]
    original, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            raise Cut
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("what", "count"), [("a step", 3), ("a step", 11), ("an evaluation", 2), ("a save", 9), ("pruning", 3)]
)
def test_a_run_cut_anywhere_and_resumed_is_the_uninterrupted_run(words, tmp_path, monkeypatch, what, count):
    whole, cut = ["--run-dir", str(tmp_path / "whole")], ["--run-dir", str(tmp_path / "cut")]
    assert run_script("train.py", *words, *whole).code == 0
    with monkeypatch.context() as patched:
        cut_at(patched, what, count)
        with pytest.raises(Cut):
            run_script("train.py", *words, *cut)
    assert not (tmp_path / "cut" / "scores.json").exists()
    resumed = run_script("train.py", *words, *cut, "--workers", "2" if what == "a step" else "0")
    assert resumed.code == 0, resumed.err
    assert ("resume: from" in resumed.err) == (what != "a step" or count > 4)
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(words, tmp_path):
    assert run_script("train.py", *words).code == 0
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in (tmp_path / "run").rglob("*")}
    again = run_script("train.py", *words)
    assert again.code == 0
    assert "is finished already" in again.err
    assert before == {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in (tmp_path / "run").rglob("*")}


def test_resume_by_path_goes_on_in_another_folder(words, tmp_path):
    assert run_script("train.py", *words).code == 0
    kept = checkpoint.find(tmp_path / "run" / "checkpoints")
    assert len(kept) >= 2
    earlier = run_script("train.py", *words, "--run-dir", str(tmp_path / "other"), "--resume", str(kept[0]))
    assert earlier.code == 0, earlier.err
    assert f"resume: from {kept[0]}" in earlier.err
    assert digest(tmp_path / "other")["weights.pt"] == digest(tmp_path / "run")["weights.pt"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(words, tmp_path, monkeypatch):
    assert run_script("train.py", *words, "--run-dir", str(tmp_path / "whole")).code == 0
    with monkeypatch.context() as patched:
        cut_at(patched, "a step", 14)
        with pytest.raises(Cut):
            run_script("train.py", *words)
    newest, before = checkpoint.find(tmp_path / "run" / "checkpoints")[:-3:-1]
    content = bytearray((newest / "weights.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "weights.pt").write_bytes(content)
    resumed = run_script("train.py", *words)
    assert f"{newest} is damaged: weights.pt is not what was written" in resumed.err
    assert f"resume: from {before}" in resumed.err
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


@pytest.mark.parametrize("keep", ["last=1,best=1", "last=3,best=2"])
def test_retention_keeps_the_newest_and_the_best(words, tmp_path, keep):
    assert run_script("train.py", *words, "--keep", keep, "--best-metric", "accuracy").code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {
        line["step"]: line["value"] for line in lines if line["split"] == "validation" and line["name"] == "accuracy"
    }
    last, best = (int(part[-1]) for part in keep.split(","))
    expected = set(sorted({4, 6, 8, 12, 16, 18})[-last:]) | set(
        sorted(scores, key=lambda step: (-scores[step], step))[:best]
    )
    kept = checkpoint.find(tmp_path / "run" / "checkpoints")
    assert [int(path.name.removeprefix("step-")) for path in kept] == sorted(expected)


def test_early_stopping_counts_evaluations_without_a_better_score(words, tmp_path):
    words = [
        *words,
        "--learning-rate",
        "0",
        "--patience",
        "2",
        "--epochs",
        "5",
    ]  # no step helps: the first evaluation stays the best
    stopped = run_script("train.py", *words)
    assert stopped.code == 0, stopped.err
    assert "stopped early: 2 evaluations without a better loss" in stopped.err
    assert checkpoint.find(tmp_path / "run" / "checkpoints")[-1].name == "step-000018"


# With patience, the run stops after step 18 of 30; it is cut after one of the two evaluations that count.
@pytest.mark.parametrize(
    ("option", "step"), [(("--precision", "bf16"), 11), (("--patience", "2", "--learning-rate", "0"), 14)]
)
def test_in_bf16_and_with_patience_a_cut_run_is_the_uninterrupted_run(words, tmp_path, monkeypatch, option, step):
    words = [*words, *option, "--epochs", "5"]
    whole = run_script("train.py", *words, "--run-dir", str(tmp_path / "whole"))
    assert whole.code == 0, whole.err
    assert ("stopped early" in whole.err) == ("--patience" in option)
    cut_after(words, monkeypatch, step)
    resumed = run_script("train.py", *words)
    assert resumed.code == 0, resumed.err
    assert "resume: from" in resumed.err
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def cut_after(words: list[str], monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    with monkeypatch.context() as patched:
        cut_at(patched, "a step", step + 1)
        with pytest.raises(Cut):
            run_script("train.py", *words)


def test_a_damaged_checkpoint_is_never_what_retention_keeps(words, tmp_path, monkeypatch):
    words = [*words, "--task.data.validation", "0", "--keep", "last=1,best=1"]
    words = [word for word in words if word != str(tmp_path / "validation.csv")]
    words.remove("validation")
    cut_after(words, monkeypatch, 8)
    (newest,) = checkpoint.find(tmp_path / "run" / "checkpoints")
    (newest.parent / "step-000999").mkdir()
    (newest.parent / "step-000999" / "state.json").write_text("{")
    cut_after(words, monkeypatch, 2)
    assert checkpoint.newest_intact(newest.parent) == newest
    assert run_script("train.py", *words).code == 0
    (last,) = checkpoint.find(newest.parent)
    assert last.name == "step-000018"
    assert checkpoint.damage(last) is None


@pytest.mark.parametrize("change", ["a row less", "another label", "another text"])
def test_a_run_does_not_go_on_with_other_rows(words, tmp_path, monkeypatch, change):
    cut_after(words, monkeypatch, 6)
    lines = (tmp_path / "train.csv").read_text().splitlines(keepends=True)
    if change == "another label":
        label = lines[5].split(",")[1]
        lines[5] = lines[5].replace(f",{label},", ",green," if label == "blue" else ",blue,")
    if change == "another text":
        lines[5] = lines[5].replace(",", " grass,", 1)
    (tmp_path / "train.csv").write_text("".join(lines[:-1] if change == "a row less" else lines))
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    resumed = run_script("train.py", *words)
    assert resumed.code == 2
    assert "the rows of train or their labels are not those" in resumed.err
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


def test_going_back_in_the_same_folder_is_refused(words, tmp_path):
    assert run_script("train.py", *words, "--max-steps", "12").code == 0
    (tmp_path / "run" / "scores.json").unlink()  # as if it were not finished
    older, newest = checkpoint.find(tmp_path / "run" / "checkpoints")
    refused = run_script("train.py", *words, "--max-steps", "12", "--resume", str(older))
    assert refused.code == 2
    assert f"{newest} is newer in the same folder" in refused.err


def adamw_until_killed(model, config):
    """AdamW in a process that dies, as if by SIGKILL, in the step that KILLED_AT names."""
    optimizer = adamw(model, config)
    if "KILLED_AT" in os.environ:
        calls = itertools.count(1)
        optimizer.register_step_pre_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == int(os.environ["KILLED_AT"]) else None
        )
    return optimizer


def test_two_processes_that_were_killed_go_on_as_if_they_were_not(words, tmp_path):
    words = [*words, "--micro-batch-size", "2", "--optimizer", "test_resume:adamw_until_killed", "--save-every", "3"]
    whole, cut = ["--run-dir", str(tmp_path / "whole")], ["--run-dir", str(tmp_path / "cut")]
    environment = {"PYTHONPATH": "tests"}
    result = ranks(2, "train.py", *words, *whole, **environment)
    assert result.code == 0, result.err
    assert ranks(2, "train.py", *words, *cut, KILLED_AT="11", **environment).code != 0
    resumed = ranks(2, "train.py", *words, *cut, **environment)
    assert resumed.code == 0, resumed.err
    assert "resume: from" in resumed.err
    assert "2 process(es) x 2 micro-batch(es)" in resumed.err
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_three_processes_that_were_killed_go_on_as_if_they_were_not(words, tmp_path):
    """From three on, the order in which gradients are summed depends on what DistributedDataParallel has seen."""
    words = [*words, "--micro-batch-size", "2", "--optimizer", "test_resume:adamw_until_killed", "--save-every", "3"]
    whole, cut = ["--run-dir", str(tmp_path / "whole")], ["--run-dir", str(tmp_path / "cut")]
    environment = {"PYTHONPATH": "tests"}
    result = ranks(3, "train.py", *words, *whole, **environment)
    assert result.code == 0, result.err
    assert ranks(3, "train.py", *words, *cut, KILLED_AT="8", **environment).code != 0
    resumed = ranks(3, "train.py", *words, *cut, **environment)
    assert resumed.code == 0, resumed.err
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_a_run_of_two_processes_goes_on_with_one(words, tmp_path):
    words = [*words, "--task.dropout", "0", "--log-every", "1", "--save-every", "3"]
    kill = ["--optimizer", "test_resume:adamw_until_killed"]
    environment = {"PYTHONPATH": "tests"}
    whole = ranks(2, "train.py", *words, *kill, "--run-dir", str(tmp_path / "whole"), **environment)
    assert whole.code == 0, whole.err
    cut = ["--run-dir", str(tmp_path / "cut")]
    assert ranks(2, "train.py", *words, *kill, *cut, KILLED_AT="8", **environment).code != 0
    resumed = run_command("python", "train.py", *words, *kill, *cut, **environment)
    assert resumed.code == 0, resumed.err
    assert "processes 2 -> 1" in resumed.err
    logs = [json.loads(digest(tmp_path / run)["log"]) for run in ("whole", "cut")]
    for name in ("loss", "accuracy"):
        values = [[line["value"] for line in log if line["name"] == name] for log in logs]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
