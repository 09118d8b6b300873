"""Long texts: truncated, or read in windows that are trained and evaluated as one text."""

import json
import logging

import pytest
import torch
from conftest import ARCHITECTURES, ranks, run_script, sentences, write_csv
from documents import documents, text_task
from interrupt import Interrupted, interrupt_at_step, read_log, read_results
from test_data import list_cached_files

from ftloop import UserError, model_inputs
from ftloop.data import Data
from ftloop.runs.finished import evaluate_run, load_run
from ftloop.tasks import TextClassification, build_predictor

WINDOWS = ("--long-text", "windows", "--max-length", "12")


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, "ftloop")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def words(tiny, tmp_path):
    """Words for train.py: 22 + 9 + 9 texts, read in windows of 12 tokens."""
    files = {
        split: write_csv(tmp_path / f"{split}.csv", documents(count, seed))
        for seed, (split, count) in enumerate({"train": 22, "validation": 9, "test": 9}.items())
    }
    sizes = ("--batch-size", "16", "--max-steps", "4", "--learning-rate", "5e-3")
    data = ("--data.files", *(word for pair in files.items() for word in pair))
    labels = ("--label-column", "colour", "--log-every", "1")
    return ["configs/text.py", "--model", tiny("bert"), *data, *labels, *sizes, *WINDOWS]


# Rows


@pytest.mark.parametrize(("overlap", "shared"), [(None, 3), (0, 0), (9, 9)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_windows_of_a_text_are_its_tokens_in_order_each_with_special_ones(
    tiny, tmp_path, architecture, overlap, shared
):
    rows = documents(12)
    options = {"window_overlap": overlap, "max_length": 12, "max_windows": 100}
    file = tmp_path / "rows.csv"
    task = text_task(tiny(architecture), file, rows, long_text="windows", **options)
    dataset, tokenizer = task.load_datasets()["train"], task.processor
    assert len(dataset) == 12  # a row is a text
    for number, row in enumerate(rows):
        example = dataset[number]
        text = tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
        joined = []
        for index, ids in enumerate(example["input_ids"]):
            is_last = index == len(example["input_ids"]) - 1
            assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert len(ids) == 12 or (len(ids) < 12 and is_last)
            assert not index or joined[len(joined) - shared :] == ids[1 : 1 + shared]
            joined += ids[1 + shared if index else 1 : -1]
        assert joined == text
        assert dataset.lengths[number] == sum(map(len, example["input_ids"]))
        for name in tokenizer.model_input_names:
            lengths = [len(ids) for ids in example["input_ids"]]
            assert [len(part) for part in example[name]] == lengths


def test_head_and_tail_are_half_and_half(tiny, tmp_path, messages):
    rows = documents(12)
    task = text_task(
        tiny("bert"), tmp_path / "rows.csv", rows, long_text="head-tail", max_length=13
    )
    texts = task.processor([row["text"] for row in rows], verbose=False)["input_ids"]
    dataset = task.load_datasets()["train"]
    expected = [ids if len(ids) <= 13 else ids[:6] + ids[-7:] for ids in texts]
    assert dataset.table["input_ids"][:] == expected
    assert dataset.lengths.tolist() == [min(len(ids), 13) for ids in texts]
    longer = sum(len(ids) > 13 for ids in texts)
    assert 0 < longer < 12
    message = f"data: {longer} of 12 texts are longer than --max-length 13 and lost their middle; "
    assert message + "--long-text windows reads them whole" in messages()


def test_truncated_windows_are_counted(tiny, tmp_path, messages):
    counts = (5, 10, 11, 20, 35)
    rows = [{"text": "sky " * count, "colour": "ab"[count % 2]} for count in counts]
    options = {"max_length": 12, "window_overlap": 5, "max_windows": 3}
    file = tmp_path / "rows.csv"
    for _ in range(2):  # the second time from the cache
        task = text_task(tiny("bert"), file, rows, long_text="windows", **options)
        dataset = task.load_datasets()["train"]
        assert [len(ids) for ids in dataset.table["input_ids"]] == [1, 1, 2, 3, 3]
    expected = "data: 5 texts in 10 windows of at most 12 tokens, at most 3 windows per text"
    assert messages().count(expected) == 2
    expected = "data: 1 of 5 texts have more than --max-windows 3 windows and were truncated"
    assert messages().count(expected) == 2


PAIR = ("a", "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_overlap": 4}, "--window-overlap 4 has no effect with --long-text truncate"),
        (
            {"max_windows": 4, "long_text": "head-tail"},
            "--max-windows 4 has no effect with --long-text head-tail",
        ),
        ({"max_windows": 0, "long_text": "windows"}, "--max-windows 0 is not at least 1"),
        ({"window_overlap": -1, "long_text": "windows"}, "--window-overlap -1 is negative"),
        ({"text_columns": PAIR, "long_text": "windows"}, "--long-text windows takes one text"),
        ({"text_columns": PAIR, "long_text": "head-tail"}, "--long-text head-tail takes one text"),
    ],
)
def test_options_without_effect_are_errors(tiny, options, message):
    data = Data(path="rows.csv")
    task = TextClassification(model=tiny("bert"), data=data, label_column="colour", **options)
    with pytest.raises(UserError, match=message):
        task.validate()


def test_an_overlap_as_wide_as_a_window_is_an_error(words, tmp_path):
    run = ("--run-dir", tmp_path / "run")
    result = run_script("train.py", *words, "--window-overlap", "10", *run)
    assert result.code == 2
    assert "--window-overlap 10: a window of --max-length 12 holds 10 tokens" in result.err


# The model


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_of_a_text_are_the_mean_of_its_windows(
    tiny, tmp_path, architecture, problem_type
):
    rows = documents(12)
    if problem_type == "regression":
        rows = [{**row, "colour": number / 7} for number, row in enumerate(rows)]
    options = {"long_text": "windows", "max_length": 12, "problem_type": problem_type}
    task = text_task(tiny(architecture), tmp_path / "rows.csv", rows, **options)
    examples, model = list(task.load_datasets()["train"].table), task.build_model().eval()
    bare = type(model)(model.config).eval()
    bare.load_state_dict(model.state_dict())
    batch = task.collate(examples)
    outputs = model(**model_inputs(batch))
    expected = []
    for example in examples:
        logits = [bare(input_ids=torch.tensor([ids])).logits for ids in example["input_ids"]]
        expected.append(torch.cat(logits).mean(dim=0))
    assert len(batch["input_ids"]) > len(examples)
    torch.testing.assert_close(outputs.logits, torch.stack(expected), rtol=0, atol=1e-6)
    losses = task.losses(outputs, batch)
    assert losses.shape == (12,)
    # No gradient leaks to the windows of another text.
    losses[3].backward()
    parameters = list(model.parameters())
    found = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    model.zero_grad()
    alone = task.collate(examples[3:4])
    task.losses(model(**model_inputs(alone)), alone).sum().backward()
    again = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch.testing.assert_close(found, again, rtol=0, atol=1e-6)


def test_the_weight_of_a_text_is_that_of_all_its_windows(tiny, tmp_path):
    options = {"long_text": "windows", "max_length": 12}
    task = text_task(tiny("bert"), tmp_path / "rows.csv", documents(5), **options)
    examples = list(task.load_datasets()["train"].table)
    weights = [0.5, 1.0, 0.0, 2.0, 1.5]
    weighted = [
        {**example, "weights": weight} for example, weight in zip(examples, weights, strict=True)
    ]
    batch, plain = task.collate(weighted), task.collate(examples)
    assert batch["weights"].tolist() == weights
    assert "weights" not in plain
    assert len(batch["input_ids"]) > 5
    for name, tensor in plain.items():
        assert torch.equal(tensor, batch[name]), name


def test_a_step_does_not_depend_on_its_division(words, tmp_path):
    words = [*words, "--dropout", "0", "--max-steps", "2", "--max-grad-norm", "0"]
    divisions = {"16x1": ("16",), "4x4": ("4",), "5x4": ("5",)}
    divisions["less memory"] = ("4", "--gradient-checkpointing")
    for name, sizes in divisions.items():
        run = ("--run-dir", tmp_path / name)
        result = run_script("train.py", *words, "--micro-batch-size", *sizes, *run)
        assert result.code == 0, result.err
    run = ("--run-dir", tmp_path / "two processes")
    result = ranks(2, "train.py", *words, "--micro-batch-size", "3", *run)
    assert result.code == 0, result.err
    expected = read_log(tmp_path / "16x1")
    for name in (*divisions, "two processes"):
        found = read_log(tmp_path / name)
        loss, norm = ("train", "loss"), ("train", "grad_norm")
        # The second step has 6 rows; key biases, whose gradient is 0, make it agree a little less
        # (FACTS.md).
        assert found[loss] == pytest.approx(expected[loss], rel=1e-4), name
        assert found[loss][0] == pytest.approx(expected[loss][0], rel=1e-6), name
        assert found[norm][0] == pytest.approx(expected[norm][0], rel=1e-5), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_short_texts_windows_equal_truncation(words, tmp_path, precision):
    words = [*words, "--max-length", "64", "--precision", precision, "--max-steps", "2"]
    for row in ("train", "validation", "test"):
        write_csv(tmp_path / f"{row}.csv", sentences(20))
    logs = []
    for name in ("windows", "truncate"):
        run = ("--long-text", name, "--run-dir", tmp_path / name)
        result = run_script("train.py", *words, *run)
        assert result.code == 0, result.err
        logs.append(read_log(tmp_path / name))
    names = [("train", "loss"), ("train", "grad_norm")]
    names += [("validation", "loss"), ("validation", "accuracy")]
    for name in names:
        assert logs[0][name] == logs[1][name], name


# A run


def test_a_finished_run_is_evaluated_and_predicts_by_text(words, tmp_path):
    run = tmp_path / "run"
    options = ("--eval-batch-size", "4", "--dropout", "0.1")
    trained = run_script("train.py", *words, "--run-dir", run, *options)
    assert trained.code == 0, trained.err
    recorded, files = json.loads((run / "scores.json").read_text()), list_cached_files()
    for split in ("validation", "test"):
        result = run_script("evaluate.py", run, "--split", split, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out) == pytest.approx(recorded[split], rel=1e-6)
        assert evaluate_run(run, split, 2) == pytest.approx(recorded[split], rel=1e-6)
    assert (
        list_cached_files() == files
    )  # the rows are found, though the tokenizer is now that of model/

    _, task, model = load_run(run)
    model.eval()
    predictor, dataset = build_predictor(task), task.load_datasets()["test"]
    losses, predictions = [], []
    with torch.no_grad():
        for row in range(len(dataset)):
            batch = task.collate([dataset[row]])
            outputs = model(**model_inputs(batch))
            losses.append(task.losses(outputs, batch).item())
            predictions += predictor.format_predictions(task.predict(outputs, batch))
    assert sum(losses) / len(losses) == pytest.approx(recorded["test"]["loss"], rel=1e-6)

    texts = [row["text"] for row in documents(9, seed=2)]
    assert max(len(text.split()) for text in texts) > 24  # at least four windows
    result = run_script("predict.py", run, *texts, "--batch-size", "4")
    assert result.code == 0, result.err
    for line, prediction in zip(result.out.splitlines(), predictions, strict=True):
        expected = pytest.approx(prediction["probabilities"], rel=1e-5)
        assert json.loads(line)["probabilities"] == expected


def test_an_interrupted_run_resumes_to_the_same_bits(words, tmp_path, monkeypatch):
    words = [*words, "--micro-batch-size", "3", "--save-every", "2", "--max-steps", "5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_script("train.py", *words, "--run-dir", whole).code == 0
    with monkeypatch.context() as patched:
        interrupt_at_step(patched, 3)
        with pytest.raises(Interrupted):
            run_script("train.py", *words, "--run-dir", parts)
    resumed = run_script("train.py", *words, "--run-dir", parts, "--workers", "2")
    assert resumed.code == 0, resumed.err
    assert read_results(parts) == read_results(whole)


def test_another_tokenizer_or_option_is_another_result_in_the_cache(tiny, tmp_path):
    rows, keys = documents(12), set()
    variants = [
        {},
        {"max_length": 12},
        {"long_text": "head-tail"},
        {"long_text": "windows"},
        {"long_text": "windows", "window_overlap": 2},
        {"long_text": "windows", "max_windows": 2},
    ]
    for model in (tiny("bert"), tiny("roberta")):  # roberta takes no token_type_ids
        for options in variants:
            task = text_task(model, tmp_path / "rows.csv", rows, **options)
            keys.add(task.cache_key(task.rows["train"]))
    assert len(keys) == 2 * len(variants)
