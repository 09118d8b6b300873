"""Outputs of each row: they equal those of evaluation, and are stored for the same model only."""

import json
import shutil

import numpy
import pytest
from conftest import run_script, sentences, write_csv

from ftloop.errors import UserError
from ftloop.report import scored
from ftloop.report.scored import ScoredSplit, score_split
from ftloop.runs.finished import load_run


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of four steps on three labels, with 43 + 23 + 11 rows."""
    folder = tmp_path_factory.mktemp("scored")
    command = ["train.py", "configs/text.py", "--model", tiny("bert"), "--run-dir", folder / "run"]
    command += ["--label-column", "colour", "--max-length", "32", "--batch-size", "16"]
    command += ["--learning-rate", "5e-3", "--max-steps", "4", "--data.files"]
    for seed, (split, count) in enumerate({"train": 43, "validation": 23, "test": 11}.items()):
        command += [split, write_csv(folder / f"{split}.csv", sentences(count, seed))]
    result = run_script(*command)
    assert result.code == 0, result.err
    return folder / "run"


def assert_equal(one, other):
    for name, value in vars(one).items():
        assert numpy.array_equal(value, vars(other)[name]), name


def test_rows_have_the_scores_of_training(run):
    expected = json.loads((run / "scores.json").read_text())["validation"]
    outputs = score_split(run, "validation")
    assert (outputs.rows, outputs.total, outputs.names) == (23, 23, ("blue", "green", "red"))
    assert outputs.losses.mean() == pytest.approx(expected["loss"], rel=1e-6)
    assert (~outputs.wrong).mean() == pytest.approx(expected["accuracy"])
    assert outputs.probabilities.argmax(axis=1).tolist() == outputs.predictions.tolist()
    references = load_run(run)[1].rows["validation"]["colour"]
    assert [outputs.names[number] for number in outputs.references] == list(references)


def test_outputs_are_computed_once_for_each_model(run, monkeypatch, tmp_path):
    first = score_split(run, "test")

    def fail(*arguments):
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(scored, "compute_outputs", fail)
        assert_equal(score_split(run, "test"), first)
        some = score_split(run, "test", max_rows=4)  # a part of the stored rows
        assert some.rows == 4
        assert some.losses.tolist() == first.losses[some.row_ids].tolist()
        with pytest.raises(AssertionError, match="computed again"):
            score_split(run, "test", use_stored=False)
        other = tmp_path / "other"
        shutil.copytree(run, other)
        (other / "model" / "config.json").touch()
        with pytest.raises(AssertionError, match="computed again"):
            score_split(other, "test")
    (run / "outputs" / "test.npz").write_bytes(b"PK\3\4 not a file of arrays")
    assert_equal(score_split(run, "test"), first)


def test_the_seed_chooses_some_rows_of_a_large_split(run):
    some, every = score_split(run, "train", max_rows=10), score_split(run, "train")
    assert (some.rows, some.total, every.rows) == (10, 43, 43)
    assert_equal(ScoredSplit.load(run / "outputs" / "train-10.npz"), some)
    assert some.losses == pytest.approx(every.losses[some.row_ids], rel=1e-4)
    assert some.references.tolist() == every.references[some.row_ids].tolist()


def test_a_split_that_does_not_exist_is_an_error(run):
    with pytest.raises(
        UserError, match=r"'validaton' is not in the data.*did you mean 'validation'"
    ):
        score_split(run, "validaton")
    with pytest.raises(UserError, match="at least 1"):
        score_split(run, "test", max_rows=0)


def test_multi_label_and_regression_outputs_are_stored(tmp_path):
    generator = numpy.random.default_rng(0)
    multi_label = ScoredSplit(
        split="test",
        problem_type="multi_label_classification",
        names=("a", "b"),
        references=generator.random((5, 2)) > 0.5,
        predictions=generator.random((5, 2)) > 0.5,
        probabilities=generator.random((5, 2)).astype("float32"),
        losses=generator.random(5),
    )
    regression = ScoredSplit(
        split="test",
        problem_type="regression",
        names=(),
        references=generator.random(5),
        predictions=generator.random(5),
        probabilities=None,
        losses=generator.random(5),
    )
    for outputs in (multi_label, regression):
        outputs.save(tmp_path / "outputs.npz")
        assert_equal(ScoredSplit.load(tmp_path / "outputs.npz"), outputs)
    is_wrong = (multi_label.references != multi_label.predictions).any(axis=1)
    assert multi_label.wrong.tolist() == is_wrong.tolist()
    assert regression.probabilities is None
    assert regression.is_regression
