"""A split row by row: the same numbers as evaluation, read again for nothing, and never for another model."""

import json
import shutil

import numpy
import pytest
from conftest import run_script, sentences, write_csv

from ftloop.errors import UserError
from ftloop.report import scored
from ftloop.report.scored import Scored, score
from ftloop.runs.finished import load_run


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A short run on three colours, with 43 + 23 + 11 rows."""
    folder = tmp_path_factory.mktemp("scored")
    counts = {"train": 43, "validation": 23, "test": 11}
    files = [
        word
        for seed, (split, count) in enumerate(counts.items())
        for word in (split, write_csv(folder / f"{split}.csv", sentences(count, seed)))
    ]
    words = ["--model", tiny("bert"), "--label-column", "colour", "--max-length", "32"]
    words += ["--batch-size", "16", "--learning-rate", "5e-3", "--max-steps", "4"]
    result = run_script("train.py", "configs/text.py", *words, "--data.files", *files, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    return folder / "run"


def same(one, other):
    for name, value in vars(one).items():
        assert numpy.array_equal(value, vars(other)[name]), name


def test_the_rows_give_the_scores_that_training_printed(run):
    printed = json.loads((run / "scores.json").read_text())["validation"]
    found = score(run, "validation")
    assert (found.rows, found.total, found.names) == (23, 23, ("blue", "green", "red"))
    assert found.losses.mean() == pytest.approx(printed["loss"], rel=1e-6)
    assert (~found.wrong).mean() == pytest.approx(printed["accuracy"])
    assert found.probabilities.argmax(axis=1).tolist() == found.predictions.tolist()
    truth = load_run(run)[1].rows["validation"]["colour"]
    assert [found.names[number] for number in found.references] == list(truth)


def test_it_is_computed_once_and_again_for_another_model(run, monkeypatch, tmp_path):
    first = score(run, "test")

    def refuse(*arguments):
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(scored, "compute", refuse)
        same(score(run, "test"), first)
        again = score(run, "test", at_most=4)  # of what is there already
        assert again.rows == 4
        assert again.losses.tolist() == first.losses[again.row_ids].tolist()
        with pytest.raises(AssertionError, match="computed again"):
            score(run, "test", cached=False)
        other = tmp_path / "other"
        shutil.copytree(run, other)
        (other / "model" / "config.json").touch()
        with pytest.raises(AssertionError, match="computed again"):
            score(other, "test")
    (run / "outputs" / "test.npz").write_bytes(b"PK\3\4 not a file of arrays")
    same(score(run, "test"), first)


def test_some_rows_of_a_large_split_are_chosen_by_the_seed(run):
    some, every = score(run, "train", at_most=10), score(run, "train")
    assert (some.rows, some.total, every.rows) == (10, 43, 43)
    assert some.losses == pytest.approx(every.losses[some.row_ids], rel=1e-4)
    assert some.references.tolist() == every.references[some.row_ids].tolist()


def test_splits_that_are_not_there_are_named(run):
    with pytest.raises(UserError, match=r"'validaton' is not in the data.*did you mean 'validation'"):
        score(run, "validaton")
    with pytest.raises(UserError, match="at least 1"):
        score(run, "test", at_most=0)


def test_several_labels_and_numbers_are_kept_too(tmp_path):
    draw = numpy.random.default_rng(0)
    several = Scored(
        *("test", "multi_label_classification", ("a", "b")),
        references=draw.random((5, 2)) > 0.5,
        predictions=draw.random((5, 2)) > 0.5,
        probabilities=draw.random((5, 2)).astype("float32"),
        losses=draw.random(5),
    )
    number = Scored("test", "regression", (), draw.random(5), draw.random(5), None, draw.random(5))
    for kept in (several, number):
        kept.save(tmp_path / "kept.npz")
        same(Scored.load(tmp_path / "kept.npz"), kept)
    assert several.wrong.tolist() == [*map(any, several.references != several.predictions)]
    assert number.probabilities is None
    assert number.is_regression
