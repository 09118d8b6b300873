"""Laws 3 and 5: a run that was cut anywhere and started again ends with the same bits as one that was not."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import run_script

from ftloop import checkpoint, loop, tracking

CUTS = ("a step", "an evaluation", "a save", "pruning")


class Cut(BaseException):
    """Stands for the end of the process: nothing in ftloop catches it."""


def digest(run: Path) -> dict[str, str]:
    """sha256 of the final weights and of the training state in the last checkpoint, and the log without its clock."""
    last = checkpoint.find(run / "checkpoints")[-1]
    found = {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in ("weights.pt", "training.pt")}
    found["model"] = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "items_per_second")
    found["log"] = json.dumps([{name: value for name, value in line.items() if name not in clock} for line in lines])
    found["scores"] = (run / "scores.json").read_text()
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
        "an evaluation": (loop, "evaluate_split"),
        "a save": (checkpoint, "_sync"),
        "pruning": (checkpoint, "prune"),
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
