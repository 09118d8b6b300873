"""Long texts: cut, or read in windows that are trained, scored and counted as one text."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, ranks, run_script, sentences, write_csv
from test_data import list_cached_files
from test_resume import Cut, cut_at, digest

from ftloop import Data, TextClassification, UserError, evaluation, load_run

WINDOWS = ("--task.long-text", "windows", "--task.max-length", "12")


def documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one to six sentences, so of up to 72 words, with the colour of the last one."""
    rows = sentences(6 * count, seed)
    found = [rows[6 * number : 6 * number + 1 + number % 6] for number in range(count)]
    return [{"text": " ".join(row["text"] for row in part), "colour": part[-1]["colour"]} for part in found]


def text_task(model: str, file: Path, rows: list[dict[str, Any]], **options: Any) -> TextClassification:
    data = Data(files={"train": write_csv(file, rows)}, validation=0)
    return TextClassification(model=model, data=data, label_column="colour", **options)


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
    sizes = ("--batch-size", "16", "--max-steps", "4", "--learning-rate", "5e-3", "--log-every", "1")
    data = ("--task.data.files", *(word for pair in files.items() for word in pair), "--task.label-column", "colour")
    return ["configs/text.py", "--task.model", tiny("bert"), *data, *sizes, *WINDOWS]


def log_of(run: Path, split: str = "train") -> dict[str, list[float]]:
    """The values of each name in the metric log of a run."""
    found: dict[str, list[float]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["split"] == split:
            found.setdefault(line["name"], []).append(line["value"])
    return found


# ---- rows


@pytest.mark.parametrize(("overlap", "shared"), [(None, 3), (0, 0), (9, 9)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_windows_of_a_text_are_its_tokens_in_order_each_with_special_ones(
    tiny, tmp_path, architecture, overlap, shared
):
    rows = documents(12)
    options = {"long_text": "windows", "max_length": 12, "window_overlap": overlap, "max_windows": 100}
    task = text_task(tiny(architecture), tmp_path / "rows.csv", rows, **options)
    loaded, tokenizer = task.load()["train"], task.processor
    assert len(loaded) == 12  # a row stays a text
    for row, example in zip(rows, loaded, strict=True):
        whole = tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
        joined = []
        for number, ids in enumerate(example["input_ids"]):
            assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert len(ids) == 12 or (len(ids) < 12 and number == len(example["input_ids"]) - 1)
            assert not number or joined[len(joined) - shared :] == ids[1 : 1 + shared]
            joined += ids[1 + shared if number else 1 : -1]
        assert joined == whole
        assert example["length"] == sum(map(len, example["input_ids"]))
        for name in tokenizer.model_input_names:
            assert [len(part) for part in example[name]] == [len(ids) for ids in example["input_ids"]]


def test_head_and_tail_are_half_and_half(tiny, tmp_path, messages):
    rows = documents(12)
    task = text_task(tiny("bert"), tmp_path / "rows.csv", rows, long_text="head-tail", max_length=13)
    whole = task.processor([row["text"] for row in rows], verbose=False)["input_ids"]
    kept = task.load()["train"]
    assert kept["input_ids"][:] == [ids if len(ids) <= 13 else ids[:6] + ids[-7:] for ids in whole]
    assert kept["length"][:] == [min(len(ids), 13) for ids in whole]
    longer = sum(len(ids) > 13 for ids in whole)
    assert 0 < longer < 12
    assert f"data: {longer} of 12 texts are longer than --task.max-length 13 and lost their middle; " in messages()
    assert "middle; --task.long-text windows reads them whole" in messages()


def test_what_windows_leave_out_is_counted(tiny, tmp_path, messages):
    rows = [{"text": "sky " * count, "colour": "ab"[count % 2]} for count in (5, 10, 11, 20, 35)]
    options = {"long_text": "windows", "max_length": 12, "window_overlap": 5, "max_windows": 3}
    for _ in range(2):  # the second time from the cache
        loaded = text_task(tiny("bert"), tmp_path / "rows.csv", rows, **options).load()["train"]
        assert [len(ids) for ids in loaded["input_ids"]] == [1, 1, 2, 3, 3]
    assert messages().count("data: 5 texts in 10 windows of at most 12 tokens, at most 3 windows a text") == 2
    assert messages().count("data: 1 of 5 texts have more than --task.max-windows 3 windows, and what is beyond") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_overlap": 4}, "--task.window-overlap 4 has no effect with --task.long-text truncate"),
        ({"max_windows": 4, "long_text": "head-tail"}, "--task.max-windows 4 has no effect with --task.long-text head"),
        ({"max_windows": 0, "long_text": "windows"}, "--task.max-windows 0: at least 1 is needed"),
        ({"window_overlap": -1, "long_text": "windows"}, "--task.window-overlap -1: 0 tokens or more are needed"),
        ({"text_columns": ("a", "b"), "long_text": "windows"}, "--task.long-text windows takes one text column"),
        ({"text_columns": ("a", "b"), "long_text": "head-tail"}, "--task.long-text head-tail takes one text column"),
    ],
)
def test_options_without_effect_are_errors(tiny, options, message):
    task = TextClassification(model=tiny("bert"), data=Data(path="rows.csv"), label_column="colour", **options)
    with pytest.raises(UserError, match=message):
        task.check()


def test_an_overlap_as_wide_as_a_window_is_an_error(words, tmp_path):
    result = run_script("train.py", *words, "--task.window-overlap", "10", "--run-dir", tmp_path / "run")
    assert result.code == 2
    assert "--task.window-overlap 10: --task.max-length 12 leaves a window room for 10 tokens" in result.err


# ---- the model


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_of_a_text_are_the_mean_of_its_windows(tiny, tmp_path, architecture, problem_type):
    rows = [
        {**row, "colour": number / 7} if problem_type == "regression" else row
        for number, row in enumerate(documents(12))
    ]
    options = {"long_text": "windows", "max_length": 12, "problem_type": problem_type}
    task = text_task(tiny(architecture), tmp_path / "rows.csv", rows, **options)
    examples, model = task.load()["train"].to_list(), task.build_model().eval()
    bare = type(model)(model.config).eval()
    bare.load_state_dict(model.state_dict())
    batch = task.collate(examples)
    targets = batch.pop("labels")
    outputs = model(**batch)
    expected = torch.stack(
        [
            torch.cat([bare(input_ids=torch.tensor([ids])).logits for ids in example["input_ids"]]).mean(dim=0)
            for example in examples
        ]
    )
    assert len(batch["input_ids"]) > len(examples)
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-6)
    assert task.losses(outputs, targets).shape == (12,)
    # The gradient, too: nothing of it leaks to another text's windows.
    task.losses(outputs, targets)[3].backward()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    alone = task.collate(examples[3:4])
    task.losses(model(**{name: value for name, value in alone.items() if name != "labels"}), targets[3:4]).backward()
    again = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(found, again, rtol=0, atol=1e-6)


def test_a_step_does_not_depend_on_its_division(words, tmp_path):
    words = [*words, "--task.dropout", "0", "--max-steps", "2", "--max-grad-norm", "0"]
    divisions = {"16x1": ("16",), "4x4": ("4",), "5x4": ("5",), "less memory": ("4", "--gradient-checkpointing")}
    for name, sizes in divisions.items():
        result = run_script("train.py", *words, "--micro-batch-size", *sizes, "--run-dir", tmp_path / name)
        assert result.code == 0, result.err
    result = ranks(2, "train.py", *words, "--micro-batch-size", "3", "--run-dir", tmp_path / "two processes")
    assert result.code == 0, result.err
    assert "2 process(es) x 3 micro-batch(es) of at most 3" in result.err
    expected = log_of(tmp_path / "16x1")
    for name in (*divisions, "two processes"):
        found = log_of(tmp_path / name)
        # The second step is one of 6 rows; key biases, whose gradient is 0, make it agree a little less (FACTS.md).
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4), name
        assert found["loss"][0] == pytest.approx(expected["loss"][0], rel=1e-6), name
        assert found["gradient_norm"][0] == pytest.approx(expected["gradient_norm"][0], rel=1e-5), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_short_texts_windows_are_truncation(words, tmp_path, precision):
    words = [*words, "--task.max-length", "64", "--precision", precision, "--max-steps", "2"]
    for row in ("train", "validation", "test"):
        write_csv(tmp_path / f"{row}.csv", sentences(20))
    for name in ("windows", "truncate"):
        run = ("--task.long-text", name, "--run-dir", tmp_path / name)
        result = run_script("train.py", *words, *run)
        assert result.code == 0, result.err
    for split, names in (("train", ("loss", "gradient_norm")), ("validation", ("loss", "accuracy"))):
        windows, truncate = (log_of(tmp_path / name, split) for name in ("windows", "truncate"))
        assert {name: windows[name] for name in names} == {name: truncate[name] for name in names}


# ---- a run


def test_a_finished_run_scores_and_predicts_texts_and_not_windows(words, tmp_path):
    run = tmp_path / "run"
    trained = run_script("train.py", *words, "--run-dir", run, "--eval-batch-size", "4", "--task.dropout", "0.1")
    assert trained.code == 0, trained.err
    recorded, files = json.loads((run / "scores.json").read_text()), list_cached_files()
    for split in ("validation", "test"):
        result = run_script("evaluate.py", run, "--split", split, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out) == pytest.approx(recorded[split], rel=1e-6)
        assert evaluation.evaluate(run, split, 2) == pytest.approx(recorded[split], rel=1e-6)
    assert list_cached_files() == files  # what training tokenised is found, though the tokenizer now lies in model/

    task, model = load_run(run)
    rows = task.load()["test"]
    model.eval()
    losses, answers = [], []
    with torch.no_grad():
        for row in rows:
            batch = task.collate([row])
            labels = batch.pop("labels")
            outputs = model(**batch)
            losses.append(task.losses(outputs, labels).item())
            answers += task.describe(task.predict(outputs))
    assert sum(losses) / len(losses) == pytest.approx(recorded["test"]["loss"], rel=1e-6)

    texts = [row["text"] for row in documents(9, seed=2)]
    assert max(len(text.split()) for text in texts) > 24  # at least four windows
    result = run_script("predict.py", run, *texts, "--batch-size", "4")
    assert result.code == 0, result.err
    for line, answer in zip(result.out.splitlines(), answers, strict=True):
        assert json.loads(line)["probabilities"] == pytest.approx(answer["probabilities"], rel=1e-5)


def test_a_run_that_was_cut_goes_on_to_the_same_bits(words, tmp_path, monkeypatch):
    words = [*words, "--micro-batch-size", "3", "--save-every", "2", "--max-steps", "5"]
    whole, cut = ["--run-dir", str(tmp_path / "whole")], ["--run-dir", str(tmp_path / "cut")]
    assert run_script("train.py", *words, *whole).code == 0
    with monkeypatch.context() as patched:
        cut_at(patched, "a step", 4)
        with pytest.raises(Cut):
            run_script("train.py", *words, *cut)
    resumed = run_script("train.py", *words, *cut, "--workers", "2")
    assert resumed.code == 0, resumed.err
    assert "resume: from" in resumed.err
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_another_tokenizer_or_option_is_another_result_in_the_cache(tiny, tmp_path):
    rows, prints = documents(12), set()
    variants = ({}, {"max_length": 12}, {"long_text": "head-tail"}, {"long_text": "windows"})
    variants = (*variants, {"long_text": "windows", "window_overlap": 2}, {"long_text": "windows", "max_windows": 2})
    for model in (tiny("bert"), tiny("roberta")):  # roberta takes no token_type_ids
        for options in variants:
            task = text_task(model, tmp_path / "rows.csv", rows, **options)
            prints.add(task.fingerprint(task.rows["train"]))
    assert len(prints) == 2 * len(variants)
