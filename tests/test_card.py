"""The model card: it has the numbers of the run, its code runs, and edits of a person are kept."""

import contextlib
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import run_command, run_script, run_script_of_ftloop, sentences, write_csv
from PIL import Image

from ftloop.data import Data
from ftloop.hub import card, sections, usage
from ftloop.hub.markdown import table
from ftloop.hub.metadata import hub_id, pipeline_task
from ftloop.runs.finished import load_run
from ftloop.tasks.text_classification import TextClassification


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[str]:
    """Options for 40 + 10 + 12 rows in files."""
    folder = tmp_path_factory.mktemp("rows")
    options = ["--data.files"]
    for seed, (split, count) in enumerate({"train": 40, "validation": 10, "test": 12}.items()):
        options += [split, write_csv(folder / f"{split}.csv", sentences(count, seed))]
    return options


@pytest.fixture(scope="module")
def train(tiny, rows, tmp_path_factory):
    """`train(*options)` returns the folder of a finished run of a few steps on texts."""

    def train(*options: str) -> Path:
        run = tmp_path_factory.mktemp("runs") / "colours"
        command = ["train.py", "configs/text.py", "--model", tiny("bert"), *rows, "--run-dir", run]
        command += ["--batch-size", "8", "--epochs", "2", "--learning-rate", "5e-3"]
        result = run_script(*command, *options)
        assert result.code == 0, result.err
        return run

    return train


@pytest.fixture(scope="module")
def run(train):
    return train("--label-column", "colour", "--max-length", "16", "--data.limit", "30")


@pytest.fixture(scope="module")
def first_card(run) -> str:
    """The card that training wrote."""
    return (run / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def full_card(run, first_card) -> str:
    """The card that `python -m ftloop.cli card` wrote."""
    result = run_script_of_ftloop("card", run)
    assert result.code == 0, result.err
    assert result.out == f"{run}/model/README.md\n"
    return (run / "model" / "README.md").read_text()


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def execute(folder: Path, monkeypatch) -> list:
    """Run the example of a card in its folder, unchanged, and return what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return eval(printed.getvalue())


def cells(text: str, heading: str) -> list[list[str]]:
    """Return the first tables under a heading, row by row."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_metadata_and_text_have_the_scores_of_the_run(run, full_card):
    scores = json.loads((run / "scores.json").read_text())
    (model,) = metadata(full_card)["model-index"]
    results, expected = {}, {}
    for result in model["results"]:
        for metric in result["metrics"]:
            key = (result["dataset"]["split"], metric["name"])
            results[key] = (metric["value"], metric["args"])
    for split, values in scores.items():
        expected |= {(split, name): value for name, value in values.items()}
    assert {key: value for key, (value, _) in results.items()} == expected
    for (_, name), (value, arguments) in results.items():
        low, high = arguments["bootstrap_95"]
        assert low - 1e-6 <= value <= high + 1e-6
        assert (arguments.get("average") == "macro") == (name == "f1_macro")
    rows = cells(full_card, "Evaluation")[2:]
    assert {(split, name) for split, name, *_ in rows} == set(results)
    for split, name, value, interval in rows:
        expected_value, arguments = results[split, name]
        low, high = arguments["bootstrap_95"]
        assert float(value) == pytest.approx(expected_value, abs=5e-5)
        assert interval == f"{low:.4f} to {high:.4f}"


def test_metadata_that_is_not_known_is_left_to_a_person(full_card):
    known = metadata(full_card)
    assert known["library_name"] == "transformers"
    assert known["pipeline_tag"] == "text-classification"
    assert known["metrics"] == ["accuracy", "f1"]
    # The model and the rows are local.
    assert not known.keys() & {"license", "language", "base_model", "datasets"}
    assert "# license: [to be filled" in full_card
    assert full_card.count("[to be filled") >= 7


def test_a_card_without_outputs_lacks_only_intervals_and_confusion_matrix(first_card):
    assert "95 %" not in first_card
    assert "confusion_matrix" not in first_card
    assert not card.is_edited(first_card)
    assert [line[:2] for line in cells(first_card, "Evaluation")[2:4]] == [
        ["validation", "loss"],
        ["validation", "accuracy"],
    ]


def test_the_training_table_does_without_lines_that_are_damaged():
    place = {"step": 2, "epoch": 1.0, "split": "validation"}
    log = [place | {"name": "accuracy", "value": 0.5}, place | {"name": "f1", "value": 0.25}]
    assert (
        sections.training_table(log, None).splitlines()[-1]
        == "|  | 1.00 | 2 | 0.5000 | 0.2500 |  |"
    )


def test_the_training_table_is_like_that_of_the_course(run, full_card):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    part = full_card.partition("| Training Loss |")[2].partition("\n\n")[0].splitlines()
    header = [cell.strip() for cell in part[0].split("|")]
    assert header[:5] == ["Epoch", "Step", "Validation Loss", "accuracy", "f1_macro"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part[2:]]
    assert [row[1:3] for row in rows] == [["1.00", "4"], ["2.00", "8"]]
    train_losses, validation_scores = [], {4: [], 8: []}
    for line in lines:
        if line["split"] == "train" and line["name"] == "loss":
            train_losses.append(line["value"])
        elif line["split"] == "validation":
            validation_scores[line["step"]].append(line["value"])
    for row, last_step in zip(rows, (4, 8), strict=True):
        losses = train_losses[last_step - 4 : last_step]
        assert float(row[0]) == pytest.approx(sum(losses) / 4, abs=5e-5)
        scores = [float(cell) for cell in row[3:6]]
        assert scores == pytest.approx(validation_scores[last_step], abs=5e-5)
    assert [row[6] for row in rows].count("this model") == 1


def test_rows_labels_and_options_are_those_of_training(run, full_card, tmp_path):
    assert cells(full_card, "Data")[2:5] == [
        ["train", "30", "40"],
        ["validation", "10", "10"],
        ["test", "12", "12"],
    ]
    labels = cells(full_card, "Data")[5:]
    assert sum(int(line[1]) for line in labels[2:]) == 30
    assert "`limit 30`" in full_card
    assert ["max_length", "16"] in cells(full_card, "Preprocessing")
    assert ["learning_rate", "0.005"] in cells(full_card, "Training")
    assert "train.csv" in full_card
    assert str(run.parent) not in full_card  # paths of this machine are private
    assert str(tmp_path.parent) not in full_card


def test_labels_are_counted_block_by_block(run, monkeypatch):
    task = load_run(run)[1]
    rows = task.rows["train"]
    monkeypatch.setattr(sections, "BLOCK_SIZE", 7)
    counts = sections.count_labels(task, rows, "train")
    assert counts == Counter(task.encode_labels(rows, "train"))


def test_the_picture_is_the_confusion_matrix(run, full_card):
    assert "![Confusion matrix on test](confusion_matrix.png)" in full_card
    with Image.open(run / "model" / "confusion_matrix.png") as picture:
        assert min(picture.size) > 300
        assert picture.convert("L").getextrema()[0] < 50  # it is not blank


def test_the_code_of_the_card_runs(run, full_card, monkeypatch):
    (answer,) = execute(run / "model", monkeypatch)
    assert answer["label"] in ("red", "green", "blue")


def test_an_edited_card_is_kept(run, full_card):
    file = run / "model" / "README.md"
    assert not card.is_edited(full_card)
    assert not card.is_edited(full_card.replace("\n", "\r\n"))  # some editors, git on Windows
    edited = re.sub(r"\[to be filled: who[^]]*\]", "everybody", full_card)
    assert card.is_edited(edited)
    file.write_text(edited)
    try:
        assert "was edited and is not changed" in card.write_card(run, compute=True)
        assert file.read_text() == edited
        assert run_script_of_ftloop("card", run, "--overwrite").code == 0
        assert file.read_text() == full_card
    finally:
        file.write_text(full_card)


def test_several_labels_in_windows(train, tmp_path, monkeypatch):
    lines = []
    for number, row in enumerate(sentences(30)):
        tags = [row["colour"], "any"] if number % 2 else [row["colour"]]
        lines.append(json.dumps({"text": row["text"], "tags": tags}) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    options = ["--data.files", "train", str(tmp_path / "rows.jsonl"), "--label-column", "tags"]
    options += ["--long-text", "windows", "--max-length", "8", "--threshold", "0.4"]
    run = train(*options, "--max-steps", "1")
    text = (run / "model" / "README.md").read_text()
    assert {answer["label"] for answer in execute(run / "model", monkeypatch)} == {
        "any",
        "red",
        "green",
        "blue",
    }
    assert "A label is predicted if its score is at least 0.4" in text
    assert "overlapping windows" in text
    assert cells(text, "Data")[-4] == ["any", "12", "3"]
    assert metadata(text)["tags"] == ["ftloop", "multi-label-classification"]
    monkeypatch.setattr(sections, "BLOCK_SIZE", 7)
    card.write_card(run, compute=True)
    text = (run / "model" / "README.md").read_text()
    assert cells(text, "Data")[-4] == ["any", "12", "3"]
    assert "95 % interval" in text
    assert "confusion" not in text


def test_a_number_for_a_pair(train, rows, monkeypatch):
    options = ["--label-column", "tone", "--text-columns", "text", "colour", "--max-steps", "1"]
    run = train(*options, "--best-metric", "mse", "--max-length", "32")
    text = (run / "model" / "README.md").read_text()
    answer = execute(run / "model", monkeypatch)
    assert isinstance(answer["score"], float)
    assert "It predicts a number for a pair of texts" in text
    assert cells(text, "Data")[5:7] == [["split", "minimum", "mean", "maximum"], ["---"] * 4]


def test_an_image(tmp_path, monkeypatch):
    for split, count in (("train", 8), ("test", 4)):
        for number in range(count):
            colour = ("red", "green")[number % 2]
            file = tmp_path / "photos" / split / colour / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mode = "RGBA" if split == "test" and number == 3 else "RGB"
            Image.new(mode, (40, 32), colour).save(file)
    command = ["train.py", "configs/image.py", "--run-dir", tmp_path / "run"]
    command += ["--data.path", tmp_path / "photos", "--data.validation", "2"]
    command += ["--model", "vit", "--init", "random", "--model-options", "hidden_size=16"]
    command += ["num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16"]
    command += ["image_size=32", "--batch-size", "4", "--max-steps", "1"]
    result = run_script(*command)
    assert result.code == 0, result.err
    note = "1 of 4 images are transparent or have more than 8 bits per channel: a pipeline"
    assert f"data: test: {note}" in result.err
    assert result.err.count("are transparent") == 1
    folder = tmp_path / "run" / "model"
    Image.new("RGB", (50, 40), "red").save(folder / "photo.jpg")
    assert {answer["label"] for answer in execute(folder, monkeypatch)} == {"red", "green"}
    text = (folder / "README.md").read_text()
    assert metadata(text)["pipeline_tag"] == "image-classification"
    assert "trained from random weights (vit)" in text
    assert "It drops the transparency of an image" in text
    # In a new process, without ftloop
    code = (
        "import sys\nfrom transformers import pipeline\n"
        "print(pipeline('image-classification', sys.argv[1])(sys.argv[2]))"
    )
    result = run_command("python", "-c", code, folder, folder / "photo.jpg")
    assert result.code == 0, result.err
    assert {answer["label"] for answer in eval(result.out)} == {"red", "green"}


def test_a_class_that_transformers_lacks_has_no_pipeline():
    model_config = {"architectures": ["MeanPooled"], "problem_type": "regression"}
    assert pipeline_task(model_config) is None
    assert "`MeanPooled.from_pretrained`" in usage.usage_example(None, model_config)
    bert = {"architectures": ["BertForSequenceClassification"]}
    assert pipeline_task(bert) == "text-classification"


def test_a_class_without_a_pipeline_is_loaded_by_its_name():
    text = usage.usage_example(None, {"architectures": ["BertForMaskedLM"]})
    assert text.startswith("`BertForMaskedLM.from_pretrained` of transformers loads the model")


def test_a_card_says_that_a_pipeline_does_not_load_an_adapter(run, tmp_path, caplog):
    config, task, _ = load_run(run)
    (tmp_path / "adapter_config.json").write_text("{}")
    shutil.copy(run / "model" / "config.json", tmp_path)  # some exports write it as well
    text = card.build_card(tmp_path, config, task, {})
    assert "This folder holds only an adapter" in text
    assert "pipeline(" not in text
    assert metadata(text)["library_name"] == "peft"
    assert "pipeline_tag" not in metadata(text)
    assert "holds only an adapter" in caplog.text


def test_a_card_says_where_a_pipeline_differs_from_training():
    class MaskedInputs(TextClassification):
        def collate(self, examples):
            return super().collate(examples)

    bert = {"architectures": ["BertForSequenceClassification"]}
    task = MaskedInputs(model="bert")
    assert "`MaskedInputs` has methods of its own (`collate`)" in usage.usage_example(task, bert)
    assert "of its own" not in usage.usage_example(TextClassification(model="bert"), bert)
    joined = TextClassification(model="bert", data=Data(join={"text": ("title", "body")}))
    assert "options of the data (`join`) changed the rows" in usage.usage_example(joined, bert)
    tags = {"architectures": ["BertForTokenClassification"]}
    text = usage.usage_example(TextClassification(model="bert"), tags)
    assert 'pipeline("token-classification", model=model, aggregation_strategy="first")' in text
    assert "may separate punctuation" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("gpt2", "gpt2"),
        ("../models/mine", None),
        ("~/models", None),
        ("models/of/mine", None),
        ("tests", None),  # a folder here
    ],
)
def test_only_names_of_the_hub_are_shown_as_such(name, expected):
    assert hub_id(name) == expected


def test_the_text_of_a_cell_does_not_end_the_table():
    markdown = "| `a\\|b` | - |\n| --- | --- |\n| `x\\ny<z>` | 0.2500 |"
    assert table([["a|b", None], ["x\ny<z>", 0.25]]) == markdown


@pytest.mark.parametrize("place", ["nowhere", "unfinished"])
def test_a_folder_without_a_finished_run_is_an_error(place, tmp_path):
    (tmp_path / "unfinished").mkdir()
    result = run_script_of_ftloop("card", tmp_path / place)
    assert result.code == 2
    assert "its training is not finished, or it is no run" in result.err
