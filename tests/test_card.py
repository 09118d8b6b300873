"""The model card: its numbers are those of the run, its code runs, and what a person wrote in it stays."""

import contextlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import run_command, run_script, run_script_of_ftloop, sentences, write_csv
from PIL import Image

from ftloop.evaluation import load_run
from ftloop.hub import card


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[str]:
    """Options for 40 + 10 + 12 rows in files."""
    folder = tmp_path_factory.mktemp("rows")
    files = [
        word
        for seed, (split, count) in enumerate({"train": 40, "validation": 10, "test": 12}.items())
        for word in (split, write_csv(folder / f"{split}.csv", sentences(count, seed)))
    ]
    return ["--task.data.files", *files]


@pytest.fixture(scope="module")
def train(tiny, rows, tmp_path_factory):
    """`train(*options)`: the folder of a finished run of a few steps on texts."""

    def train(*options: str) -> Path:
        run = tmp_path_factory.mktemp("runs") / "colours"
        sizes = ["--batch-size", "8", "--epochs", "2", "--learning-rate", "5e-3", "--run-dir", run]
        result = run_script("train.py", "configs/text.py", "--task.model", tiny("bert"), *rows, *sizes, *options)
        assert result.code == 0, result.err
        return run

    return train


@pytest.fixture(scope="module")
def run(train):
    return train("--task.label-column", "colour", "--task.max-length", "16", "--task.data.limit", "30")


@pytest.fixture(scope="module")
def first_card(run) -> str:
    """The card as the training left it."""
    return (run / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def whole_card(run, first_card) -> str:
    """The card after `python -m ftloop card`."""
    result = run_script_of_ftloop("card", run)
    assert result.code == 0, result.err
    assert result.out == f"{run}/model/README.md\n"
    return (run / "model" / "README.md").read_text()


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def execute(folder: Path, monkeypatch) -> list:
    """What the card's example prints, run in its folder as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return eval(printed.getvalue())


def cells(text: str, heading: str) -> list[list[str]]:
    """The first table under a heading."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_scores_are_those_of_the_run_in_the_metadata_and_in_the_text(run, whole_card):
    scores = json.loads((run / "scores.json").read_text())
    (model,) = metadata(whole_card)["model-index"]
    results = {
        (of["dataset"]["split"], one["name"]): (one["value"], one["args"])
        for of in model["results"]
        for one in of["metrics"]
    }
    assert {key: value for key, (value, _) in results.items()} == {
        (split, name): value for split, values in scores.items() for name, value in values.items()
    }
    for (_, name), (value, arguments) in results.items():
        low, high = arguments["bootstrap_95"]
        assert low - 1e-6 <= value <= high + 1e-6
        assert (arguments.get("average") == "macro") == (name == "f1_macro")
    lines = {
        (split, name): (float(value), interval) for split, name, value, interval in cells(whole_card, "Evaluation")[2:]
    }
    assert set(lines) == set(results)
    for key, (value, interval) in lines.items():
        assert value == pytest.approx(results[key][0], abs=5e-5)
        assert interval == "{:.4f} to {:.4f}".format(*results[key][1]["bootstrap_95"])


def test_the_metadata_names_what_is_known_and_leaves_the_rest_to_a_person(whole_card):
    found = metadata(whole_card)
    assert found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "text-classification"
    assert found["metrics"] == ["accuracy", "f1"]
    assert not found.keys() & {"license", "language", "base_model", "datasets"}  # the model and the rows are local
    assert "# license: [to be filled" in whole_card
    assert whole_card.count("[to be filled") >= 7


def test_a_card_without_outputs_has_all_but_intervals_and_picture(first_card):
    assert "95 %" not in first_card
    assert "confusion_matrix" not in first_card
    assert not card.is_edited(first_card)
    assert [line[:2] for line in cells(first_card, "Evaluation")[2:4]] == [
        ["validation", "loss"],
        ["validation", "accuracy"],
    ]


def test_the_table_of_evaluations_is_that_of_the_course(run, whole_card):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    part = whole_card.partition("| Training Loss |")[2].partition("\n\n")[0].splitlines()
    header = [cell.strip() for cell in part[0].split("|")]
    assert header[:5] == ["Epoch", "Step", "Validation Loss", "accuracy", "f1_macro"]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part[2:]]
    assert [line[1:3] for line in shown] == [["1.00", "4"], ["2.00", "8"]]
    for first, last, line in ((1, 4, shown[0]), (5, 8, shown[1])):
        losses = [of["value"] for of in lines if of["split"] == "train" and of["name"] == "loss"][first - 1 : last]
        assert float(line[0]) == pytest.approx(sum(losses) / 4, abs=5e-5)
        validated = {of["name"]: of["value"] for of in lines if of["split"] == "validation" and of["step"] == last}
        assert [float(cell) for cell in line[3:6]] == pytest.approx(list(validated.values()), abs=5e-5)
    assert [line[6] for line in shown].count("kept") == 1


def test_rows_classes_and_options_are_those_of_the_training(run, whole_card, tmp_path):
    assert cells(whole_card, "Data")[2:5] == [["train", "30", "40"], ["validation", "10", "10"], ["test", "12", "12"]]
    labels = cells(whole_card, "Data")[5:]
    assert sum(int(line[1]) for line in labels[2:]) == 30
    assert "`limit 30`" in whole_card
    assert ["max_length", "16"] in cells(whole_card, "Preprocessing")
    assert ["learning_rate", "0.005"] in cells(whole_card, "Training")
    assert "train.csv" in whole_card
    assert str(run.parent) not in whole_card  # paths of this machine are nobody else's business
    assert str(tmp_path.parent) not in whole_card


def test_labels_are_counted_block_by_block(run, monkeypatch):
    task, _ = load_run(run)
    rows = task.rows["train"]
    monkeypatch.setattr(card, "BLOCK", 7)
    assert card.label_counts(task, rows, "train") == Counter(task.encoded(rows, "train"))


def test_the_picture_is_the_confusion_matrix(run, whole_card):
    assert "![Confusion matrix on test](confusion_matrix.png)" in whole_card
    with Image.open(run / "model" / "confusion_matrix.png") as picture:
        assert min(picture.size) > 300
        assert picture.convert("L").getextrema()[0] < 50  # something is drawn


def test_the_code_of_the_card_runs(run, whole_card, monkeypatch):
    (answer,) = execute(run / "model", monkeypatch)
    assert answer["label"] in ("red", "green", "blue")


def test_a_card_that_was_edited_stays(run, whole_card):
    file = run / "model" / "README.md"
    assert not card.is_edited(whole_card)
    assert not card.is_edited(whole_card.replace("\n", "\r\n"))  # as some editors and git on Windows have it
    mine = re.sub(r"\[to be filled: who[^]]*\]", "everybody", whole_card)
    assert card.is_edited(mine)
    file.write_text(mine)
    try:
        assert "was edited, and stays" in card.write(run, compute=True)
        assert file.read_text() == mine
        assert run_script_of_ftloop("card", run, "--overwrite").code == 0
        assert file.read_text() == whole_card
    finally:
        file.write_text(whole_card)


def test_several_labels_in_windows(train, tmp_path, monkeypatch):
    lines = [{"text": row["text"], "tags": [row["colour"], "any"][: 1 + n % 2]} for n, row in enumerate(sentences(30))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["--task.data.files", "train", str(tmp_path / "rows.jsonl"), "--task.label-column", "tags"]
    run = train(
        *data, "--max-steps", "1", "--task.long-text", "windows", "--task.max-length", "8", "--task.threshold", "0.4"
    )
    text = (run / "model" / "README.md").read_text()
    assert {one["label"] for one in execute(run / "model", monkeypatch)} == {"any", "red", "green", "blue"}
    assert "A label is predicted from a score of 0.4 on" in text
    assert "overlapping windows" in text
    assert cells(text, "Data")[-4] == ["any", "12", "3"]
    assert metadata(text)["tags"] == ["ftloop", "multi-label-classification"]
    monkeypatch.setattr(card, "BLOCK", 7)
    card.write(run, compute=True)
    text = (run / "model" / "README.md").read_text()
    assert cells(text, "Data")[-4] == ["any", "12", "3"]
    assert "95 % interval" in text
    assert "confusion" not in text


def test_a_number_for_a_pair(train, rows, monkeypatch):
    options = ["--task.label-column", "tone", "--task.text-columns", "text", "colour", "--max-steps", "1"]
    run = train(*options, "--best-metric", "mse", "--task.max-length", "32")
    text = (run / "model" / "README.md").read_text()
    answer = execute(run / "model", monkeypatch)
    assert isinstance(answer["score"], float)
    assert "It gives a pair of texts a number" in text
    assert cells(text, "Data")[5:7] == [["split", "least", "mean", "greatest"], ["---"] * 4]


def test_an_image(tmp_path, monkeypatch):
    for split, count in (("train", 8), ("test", 4)):
        for number in range(count):
            colour = ("red", "green")[number % 2]
            file = tmp_path / "photos" / split / colour / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 32), colour).save(file)
    sizes = ["hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16", "image_size=32"]
    source = ["--task.data.path", tmp_path / "photos", "--task.data.validation", "2", "--run-dir", tmp_path / "run"]
    model = ["--task.model", "vit", "--task.init", "random", "--task.model-options", *sizes]
    result = run_script("train.py", "configs/image.py", *source, *model, "--batch-size", "4", "--max-steps", "1")
    assert result.code == 0, result.err
    folder = tmp_path / "run" / "model"
    Image.new("RGB", (50, 40), "red").save(folder / "photo.jpg")
    assert {one["label"] for one in execute(folder, monkeypatch)} == {"red", "green"}
    text = (folder / "README.md").read_text()
    assert metadata(text)["pipeline_tag"] == "image-classification"
    assert "trained from random weights (vit)" in text
    # A fresh process, as somebody else has it: nothing of ftloop.
    code = "import sys, transformers as of; print(of.pipeline('image-classification', sys.argv[1])(sys.argv[2]))"
    fresh = run_command("python", "-c", code, folder, folder / "photo.jpg")
    assert fresh.code == 0, fresh.err
    assert {one["label"] for one in eval(fresh.out)} == {"red", "green"}


def test_a_model_that_transformers_lacks_is_not_promised_to_a_pipeline():
    model = {"architectures": ["MeanPooled"], "problem_type": "regression"}
    assert card.pipeline_of(model) is None
    assert "`MeanPooled.from_pretrained`" in card.how_to_use(None, model)
    assert card.pipeline_of({"architectures": ["BertForSequenceClassification"]}) == "text-classification"


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("gpt2", "gpt2"),
        ("../models/mine", None),
        ("~/models", None),
        ("models/of/mine", None),
        ("tests", None),  # a folder here
    ],
)
def test_only_names_of_the_hub_are_given_as_such(name, theirs):
    assert card.hub_id(name) == theirs


def test_cells_of_a_table_do_not_end_it():
    assert card.table([["a|b", None], ["x\ny<z>", 0.25]]) == "| a\\|b | - |\n| --- | --- |\n| x y&lt;z> | 0.2500 |"


@pytest.mark.parametrize("place", ["nowhere", "unfinished"])
def test_what_is_no_finished_run_is_refused_in_words(place, tmp_path):
    (tmp_path / "unfinished").mkdir()
    result = run_script_of_ftloop("card", tmp_path / place)
    assert result.code == 2
    assert "its training is not finished, or it is no run" in result.err
