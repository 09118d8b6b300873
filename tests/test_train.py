"""train.py, evaluate.py and predict.py from end to end, by the commands a user types."""

import json
from pathlib import Path

import pytest
from conftest import run_script


def values(run: Path, split: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a score in metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["value"]) for line in lines if (line["split"], line["name"]) == (split, name)]


def test_train_evaluate_predict(tiny, colours, tmp_path):
    trained = run_script("train.py", "configs/text.py", "--task.model", tiny("bert"), *colours, "--epochs", "12")
    assert trained.code == 0, trained.err
    run = tmp_path / "run"
    losses = values(run, "train", "loss")
    assert [step for step, _ in losses] == list(range(1, 73))
    assert losses[-1][1] < losses[0][1] / 2
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores) == {"validation", "test"}
    for split in scores:
        evaluated = run_script("evaluate.py", run, "--split", split, "--json")
        assert evaluated.code == 0, evaluated.err
        assert json.loads(evaluated.out) == pytest.approx(scores[split], rel=1e-6)
