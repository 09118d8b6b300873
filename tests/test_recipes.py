"""The files in configs/: each is a command that works, and the fork does what its file says."""

import ast
import csv
import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import COLOURS, ROOT, run_command, run_script, sentences
from transformers import AutoConfig, AutoTokenizer

from configs import fork_example
from ftloop.cli.config_file import from_command_line, load_config_file
from ftloop.config import validate
from ftloop.state import fold_in, set_seed

CONFIGS = sorted(ROOT.glob("configs/*.py"))
FORK = ROOT / "configs" / "fork_example.py"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_recipe_is_accepted_and_names_its_command(file):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert f"python train.py configs/{file.name}" in docstring
    assert docstring.partition("\n")[0].endswith((".", "?"))
    consent = ["--data.trust-pickle"] if "--data.trust-pickle" in docstring else []
    validate(from_command_line([str(file), *consent]))


def test_each_recipe_has_a_run_folder_of_its_own():
    folders = [load_config_file(str(file)).run_dir for file in CONFIGS]
    assert len(set(folders)) == len(folders)
    assert all(folder.startswith("runs/") for folder in folders)


def test_a_recipe_that_needs_the_hub_says_so():
    for file in CONFIGS:
        source = load_config_file(str(file)).task.data.path
        on_hub = source is not None and source.count("/") == 1 and "." not in source
        assert not on_hub or "Needs the Hub" in file.read_text(encoding="utf-8"), file.name


def test_the_commands_in_the_docstrings_are_understood():
    for file in CONFIGS:
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        commands = [line.split() for line in docstring.splitlines() if "python train.py" in line]
        for _, _, config, *options in commands:
            from_command_line([str(ROOT / config), *options])


@pytest.fixture
def fork(tiny, colours):
    """The command line of the fork on a tiny model and table; a step takes all 43 rows of train."""
    return [
        *(str(FORK), "--model", tiny("bert"), "--dropout", "0", "--gamma", "1.5", *colours),
        *("--batch-size", "43", "--learning-rate", "0.1", "--epochs", "2"),
    ]


def focal_loss_by_hand(
    model: torch.nn.Module, folder: str | Path, table: Path, gamma: float
) -> float:
    """Row by row, without padding: the mean of the tokens, and the loss of Lin et al. (2017)."""
    tokenizer, losses = AutoTokenizer.from_pretrained(folder), []
    with table.open() as stream, torch.no_grad():
        for row in csv.DictReader(stream):
            hidden = model.bert(**tokenizer(row["text"], return_tensors="pt")).last_hidden_state
            chances = model.classifier(hidden.mean(1)).softmax(-1)[0]
            chance = chances[model.config.label2id[row["colour"]]]
            losses.append(-((1 - chance) ** gamma) * chance.log())
    return torch.stack(losses).mean().item()


def test_the_fork_trains_its_loss_its_head_and_its_optimizer(fork, tmp_path):
    trained = run_script("train.py", *fork)
    assert trained.code == 0, trained.err
    run = tmp_path / "run"

    record = json.loads((run / "config.json").read_text())["config"]
    assert record["optimizer"] == {"function": "configs.fork_example:sgd"}
    assert record["task"]["class"] == "configs.fork_example:FocalTask"
    assert record["task"]["gamma"] == 1.5
    training = torch.load(run / "checkpoints" / "step-000002" / "training.pt")
    assert all("momentum_buffer" in state for state in training["optimizer"]["state"].values())

    assert AutoConfig.from_pretrained(run / "model").architectures == ["MeanPooled"]
    kept = fork_example.MeanPooled.from_pretrained(run / "model").eval()
    assert kept.bert.pooler is None
    scores = json.loads((run / "scores.json").read_text())
    assert scores["test"]["loss"] == pytest.approx(
        focal_loss_by_hand(kept, run / "model", tmp_path / "test.csv", 1.5)
    )

    evaluated = run_script("evaluate.py", run, "--split", "test", "--json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out) == pytest.approx(scores["test"])
    predicted = run_script("predict.py", run, "the sky is blue")
    assert predicted.code == 0, predicted.err
    assert json.loads(predicted.out)["label"] in COLOURS


def test_the_loss_of_the_first_step_of_the_fork_is_the_focal_loss_of_the_new_model(fork, tmp_path):
    result = run_script("train.py", *fork, "--max-steps", "1")
    assert result.code == 0, result.err
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    (logged,) = [
        line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")
    ]
    config = from_command_line(fork)
    set_seed(fold_in(config.seed, "init"))
    model = config.task.build_model().eval()
    assert logged == pytest.approx(
        focal_loss_by_hand(model, config.task.model, tmp_path / "train.csv", 1.5)
    )


# Tables that need cleaning


def write_reviews(file: Path, count: int, seed: int) -> None:
    """Write a table with the faults of the course's: HTML, short reviews, missing conditions."""
    header = ["", "drugName", "condition", "review", "rating", "date", "usefulCount"]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(header)
        for number, row in enumerate(sentences(count, seed)):
            condition = row["colour"] if number % 2 else row["colour"].title()
            text = f"it&#039;s {'so ' * 30}{row['text']}\r\n{seed}.{number}"
            if number < 3:
                text = ("it&#039;s short", text, text)[number]
                condition = (condition, "", "3</span> users found this comment helpful.")[number]
            if number == 3:
                condition = "a rare one"
            writer.writerow(
                [1000 + number, "a drug", condition, f'"{text}"', "9.0", "May 20, 2012", 27]
            )
            if number == 4:
                writer.writerow(
                    [5000, "its other name", condition, f'"{text}"', "9.0", "May 20, 2012", 27]
                )


def test_the_reviews_of_drugs_are_brought_into_shape_and_learned(tiny, tmp_path):
    files = {"train": tmp_path / "drugsComTrain_raw.tsv", "test": tmp_path / "drugsComTest_raw.tsv"}
    write_reviews(files["train"], 60, 1)
    write_reviews(files["test"], 20, 2)
    run = tmp_path / "run"
    words = [
        *(
            "configs/drug_reviews.py",
            "--model",
            tiny("bert"),
            "--max-length",
            "64",
            "--max-steps",
            "2",
        ),
        *("--data.files", *(str(word) for pair in files.items() for word in pair)),
        *("--label-min-rows", "2", "--run-dir", str(run)),
    ]
    result = run_script("train.py", *words)
    assert result.code == 0, result.err
    said = result.out + result.err
    for line in (
        "data: train: --data.filter long_enough removed 3 of 61 rows",
        "data: train: dropped 1 of 58 rows as duplicates",
        "data: labels written in lower case: Blue -> blue, Green -> green, Red -> red",
        "data: labels of rare classes renamed: a rare one -> other (1 row(s) of train, ",
        "data: validation: 6 rows were cut from train, stratified by class",
    ):
        assert line in said, said
    train = from_command_line(words).task.rows["train"]
    assert set(train["label"]) == {"red", "green", "blue", "other"}
    assert set(train.column_names) == {"patient_id", "text", "label"}
    assert all("it's so so" in text for text in train["text"])
    assert json.loads((run / "scores.json").read_text())["test"].keys() == {
        "loss",
        "accuracy",
        "f1_macro",
    }


def test_a_table_like_that_of_the_pathology_reports_is_written_and_learned(tiny, tmp_path):
    file = tmp_path / "reports.pkl"
    written = run_command("python", "-m", "benchmarks.pathology", str(file), "--rows", "200")
    assert written.code == 0, written.err
    with file.open("rb") as stream:
        table = pickle.load(stream)
    texts, codes = table["total"]["X"], table["y"]
    assert (texts.shape, codes.shape) == ((200, 11), (200, 38))
    assert 0.3 < texts.isna().to_numpy().mean() < 0.7
    assert set(codes.sum(axis=1)) == {1, 2, 3}
    words = [
        *("configs/pathology_codes.py", "--model", tiny("bert"), "--data.path", str(file)),
        *("--max-length", "64", "--max-steps", "1", "--run-dir", str(tmp_path / "run")),
    ]
    refused = run_script("train.py", *words)
    assert refused.code == 2
    assert "--data.trust-pickle" in refused.err
    result = run_script("train.py", *words, "--data.trust-pickle")
    assert result.code == 0, result.err
    assert "data: the column report joins Clinical history, Specimen" in result.out + result.err
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert list(config.id2label.values()) == list(codes.columns)
    assert config.problem_type == "multi_label_classification"
    rows = from_command_line([*words, "--data.trust-pickle"]).task.rows
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 160,
        "validation": 20,
        "test": 20,
    }
    found = {
        row["report"]: [row[code] for code in codes.columns]
        for part in rows.values()
        for row in part
    }
    for number in range(200):
        sections = texts.iloc[number].dropna().items()
        report = "\n".join(f"{name}: {text}" for name, text in sections)
        assert found[report] == codes.iloc[number].tolist()
