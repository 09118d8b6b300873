"""train.py and evaluate.py end to end, by the commands that a user types."""

import json

import pytest
from conftest import run_script
from toy import read_lines, read_values


def test_training_learns_and_evaluate_gives_the_same_scores(tiny, colours, tmp_path):
    model = ["--model", tiny("bert")]
    trained = run_script("train.py", "configs/text.py", *model, *colours, "--epochs", "12")
    assert trained.code == 0, trained.err
    run = tmp_path / "run"
    is_loss = {"split": "train", "name": "loss"}.items()
    steps = [line["step"] for line in read_lines(run) if is_loss <= line.items()]
    assert steps == list(range(1, 73))
    losses = read_values(run, "loss")
    assert losses[-1] < losses[0] / 2
    scores = json.loads((run / "scores.json").read_text())
    assert set(scores) == {"validation", "test"}
    for split in scores:
        evaluated = run_script("evaluate.py", run, "--split", split, "--json")
        assert evaluated.code == 0, evaluated.err
        assert json.loads(evaluated.out) == pytest.approx(scores[split], rel=1e-6)
