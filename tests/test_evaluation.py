"""Law 4: the scores of a split do not depend on the batch size, nor on the number of processes."""

import json
import math

import pytest
import torch
from conftest import ranks, run_script, sentences, write_csv

from ftloop import Data, TextClassification, UserError, evaluation, load_run
from ftloop.sampler import EvaluationOrder
from ftloop.distributed import start_accelerator


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A short run with 11 validation rows and a test split of one row."""
    folder = tmp_path_factory.mktemp("evaluation")
    files = [
        word
        for seed, (split, count) in enumerate({"train": 43, "validation": 11, "test": 1}.items())
        for word in (split, write_csv(folder / f"{split}.csv", sentences(count, seed)))
    ]
    words = (
        "--task.data.files",
        *files,
        "--task.label-column",
        "colour",
        "--task.max-length",
        "32",
        "--batch-size",
        "8",
    )
    words = (*words, "--learning-rate", "5e-3", "--task.metrics", "accuracy", "f1_macro", "f1_per_class", "roc_auc")
    trained = run_script(
        "train.py", "configs/text.py", "--task.model", tiny("bert"), *words, "--run-dir", folder / "run"
    )
    assert trained.code == 0, trained.err
    return folder / "run"


def read(text: str) -> dict:
    """Scores from JSON, where null stands for NaN: roc_auc has no value on one row."""
    return json.loads(
        text, object_hook=lambda pairs: {name: math.nan if value is None else value for name, value in pairs.items()}
    )


def test_training_and_evaluation_print_the_same_numbers(run):
    recorded = read((run / "scores.json").read_text())
    for split in ("validation", "test"):
        result = run_script("evaluate.py", run, "--split", split, "--json")
        assert result.code == 0, result.err
        assert read(result.out) == pytest.approx(recorded[split], rel=1e-6, nan_ok=True)
    assert read(run_script("evaluate.py", run, "--json").out) == pytest.approx(recorded["test"], nan_ok=True)
    shown = run_script("evaluate.py", run, "--split", "validation").out
    assert f"loss {recorded['validation']['loss']:.4f}" in shown


@pytest.mark.parametrize("batch_size", range(1, 17))
def test_scores_do_not_depend_on_the_batch_size(run, batch_size):
    recorded = read((run / "scores.json").read_text())["validation"]
    assert evaluation.evaluate(run, "validation", batch_size) == pytest.approx(recorded, rel=1e-6)


# Eleven rows in twos: over three processes, some have none in the last round; over four, one has three rows in all.
# One row: all processes but one have none.
@pytest.mark.parametrize(("processes", "split"), [(2, "test"), (3, "validation"), (4, "validation"), (4, "test")])
def test_scores_do_not_depend_on_the_number_of_processes(run, processes, split):
    recorded = read((run / "scores.json").read_text())
    result = ranks(processes, "evaluate.py", run, "--split", split, "--batch-size", "2", "--json")
    assert result.code == 0, result.err
    assert read(result.out) == pytest.approx(recorded[split], rel=1e-6, nan_ok=True)


def test_the_loss_is_the_mean_over_rows_of_a_plain_forward_pass(run):
    task, model = load_run(run)
    rows = task.load()["validation"]
    model.eval()
    with torch.no_grad():
        losses = [
            task.losses(
                model(**{name: value for name, value in batch.items() if name != "labels"}), batch["labels"]
            ).item()
            for batch in (task.collate([row]) for row in rows)
        ]
    recorded = read((run / "scores.json").read_text())["validation"]["loss"]
    assert sum(losses) / len(losses) == pytest.approx(recorded, rel=1e-6)


def test_in_float64_the_loss_is_equal_to_twelve_digits(tiny, tmp_path):
    data = Data(files={"train": write_csv(tmp_path / "train.csv", sentences(40))}, validation=13)
    task = TextClassification(model=tiny("bert"), data=data, label_column="colour", max_length=32, dropout=0.0)
    rows, accelerator = task.load()["validation"], start_accelerator()
    model = task.build_model().double()
    losses = []
    for batch_size in (1, 2, 5, 13):
        loader = evaluation.evaluation_loader(rows, task, accelerator, batch_size)
        losses.append(evaluation.evaluate_split(model, loader, task, accelerator)["loss"])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)


def test_a_stream_is_not_scored(tiny, tmp_path):
    for split, count in (("train", 40), ("test", 5)):
        lines = [json.dumps(row) for row in sentences(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    words = ["--task.data.path", tmp_path, "--task.data.streaming", "--task.data.validation", "8", "--max-steps", "1"]
    words += ["--task.label-column", "colour", "--task.max-length", "32", "--run-dir", tmp_path / "run"]
    trained = run_script("train.py", "configs/text.py", "--task.model", tiny("bert"), *words)
    assert trained.code == 0, trained.err
    with pytest.raises(UserError, match="--split train: a stream has no end; what can be scored: test, validation"):
        evaluation.evaluate(tmp_path / "run", "train")


def test_a_row_that_is_not_served_is_an_error(run, monkeypatch):
    whole = EvaluationOrder.__iter__
    monkeypatch.setattr(EvaluationOrder, "__iter__", lambda order: iter(list(whole(order))[1:]))
    with pytest.raises(RuntimeError, match="3 of 11 rows were not evaluated exactly once"):
        evaluation.evaluate(run, "validation", 3)


def test_evaluation_leaves_the_model_in_training_mode_and_draws_nothing(run):
    task, model = load_run(run)
    accelerator = start_accelerator()
    loader = evaluation.evaluation_loader(task.load()["validation"], task, accelerator, 4)
    model.train()
    state = torch.get_rng_state()
    evaluation.evaluate_split(model, loader, task, accelerator)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_two_processes_train_and_one_says_so(run, tiny, tmp_path):
    train = write_csv(tmp_path / "train.csv", sentences(43))
    words = (
        "--task.model",
        tiny("bert"),
        "--task.data.path",
        train,
        "--task.label-column",
        "colour",
        "--max-steps",
        "2",
    )
    result = ranks(2, "train.py", "configs/text.py", *words, "--task.max-length", "32", "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert "2 process(es) x 1 micro-batch(es) of at most 16" in result.err
    assert result.err.count("kept        step 2") == 1


def test_one_process_where_several_were_started_is_an_error(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # in this process, accelerate is set up for one already
    with pytest.raises(UserError, match=r"2 processes were started \(WORLD_SIZE\), but accelerate sees 1"):
        evaluation.evaluate(run)
