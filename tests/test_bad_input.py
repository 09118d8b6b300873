"""Mistakes of a user give one clear error that names the option, and change no file."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, run_script, sentences, write_csv

from ftloop import Config, TrainingError, train
from ftloop.data import Data
from ftloop.tasks import TextClassification

SPLITS = {"train": 43, "validation": 11, "test": 11}


@dataclass(frozen=True)
class Case:
    """Options that spoil a valid command `train.py configs/text.py ...`, and the error to expect.

    "FOLDER" stands for the folder of the tables and of `files`, "MODELS" for that of the models.
    """

    options: str
    expected: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    config: str = "configs/text.py"


def case(
    options: str, *expected: str, config: str = "configs/text.py", **files: str | bytes
) -> Case:
    """Make a Case. Files are keyword arguments: `train_csv="..."` is FOLDER/train.csv."""
    contents = {name.replace("_", "."): content for name, content in files.items()}
    return Case(options, expected, contents, config)


COMMAND_LINE = {
    "unknown option": case(
        "--learning-rat 1e-3", "--learning-rat is not an option", "'--learning-rate'"
    ),
    "unknown option of the task": case(
        "--max-len 12", "--max-len is not an option", "'--max-length'"
    ),
    "not a number": case("--epochs many", "--epochs", "many"),
    "unknown choice": case("--precision fp64", "--precision", "fp64", "fp32", "bf16", "fp16"),
    "precision that the device lacks": case(
        "--precision fp16", "--precision: fp16 is not available on this device (cpu)"
    ),
    "pairs without a value": case(
        "--data.files train a.csv test", "'test' has no value", "KEY=VALUE"
    ),
    "repeated key": case("--data.files train a.csv train b.csv", "'train' is given twice"),
}

CONFIG_FILES = {
    "misspelled config file": case(
        "",
        "config file 'configs/txet.py' does not exist",
        "did you mean 'configs/text.py'?",
        config="configs/txet.py",
    ),
    "misspelled folder": case(
        "", "'confgs/text.py' does not exist", "none", config="confgs/text.py"
    ),
    "syntax error": case(
        "",
        "config file 'FOLDER/wrong1.py', line 2: SyntaxError",
        config="FOLDER/wrong1.py",
        wrong1_py="a = 1\nb = (\n",
    ),
    "exception": case(
        "",
        "config file 'FOLDER/wrong2.py', line 3: ZeroDivisionError: division by zero",
        config="FOLDER/wrong2.py",
        wrong2_py="import json\n\nratio = 1 / 0\n",
    ),
    "unknown field": case(
        "",
        "config file 'FOLDER/wrong3.py', line 3: TypeError",
        "unexpected keyword argument 'learning_rat'",
        config="FOLDER/wrong3.py",
        wrong3_py="from ftloop.cli import Job\nfrom ftloop.tasks import TextClassification\n"
        "config = Job(task=TextClassification(), run_dir='x', learning_rat=1e-3)\n",
    ),
    "missing module": case(
        "",
        "config file 'FOLDER/wrong4.py', line 1: ModuleNotFoundError: "
        "No module named 'not_installed'",
        config="FOLDER/wrong4.py",
        wrong4_py="import not_installed\n",
    ),
    "no config": case(
        "",
        "'FOLDER/wrong5.py' has no variable `config`",
        "ftloop.cli.Job",
        config="FOLDER/wrong5.py",
        wrong5_py="settings = {}\n",
    ),
    "no config file": case(
        "", "the config file comes first: python train.py configs/text.py", config="--epochs"
    ),
    "not a Python file": case("", "train.csv'", ".py", config="FOLDER/train.csv"),
}

VALUES = {
    # Numbers
    "no epoch": case("--epochs 0", "--epochs: must be at least 1, but is 0"),
    "negative steps": case("--max-steps -5", "--max-steps: must be at least 1, but is -5"),
    "empty batch": case("--batch-size 0", "--batch-size: must be at least 1, but is 0"),
    "micro-batch larger than the batch": case(
        "--batch-size 8 --micro-batch-size 16", "--micro-batch-size: 16 is larger than batch_size 8"
    ),
    "negative learning rate": case(
        "--learning-rate=-1e-3", "--learning-rate: must be at least 0, but is -0.001"
    ),
    "learning rate NaN": case("--learning-rate nan", "--learning-rate: must be at least 0"),
    "infinite weight decay": case("--weight-decay inf", "--weight-decay: must be at most 1e+20"),
    "negative clipping": case("--max-grad-norm=-1", "--max-grad-norm: must be at least 0"),
    "fractional warmup steps": case(
        "--warmup 1.5", "--warmup: must be a whole number of steps or a fraction below 1"
    ),
    "negative workers": case("--workers=-1", "--workers: must be at least 0"),
    "eval-every 0": case("--eval-every 0", "--eval-every: must be at least 1, but is 0"),
    "eval-every with a typo": case("--eval-every epochs", "--eval-every", "epochs", "epoch"),
    "patience 0": case("--patience 0", "--patience: must be at least 1, but is 0"),
    "no checkpoint": case("--keep-last 0", "--keep-last: must be at least 1, but is 0"),
    "dropout 1": case("--dropout 1.0", "--dropout 1.0 is not a probability from 0 to below 1"),
    "dropout NaN": case("--dropout nan", "--dropout nan is not a probability"),
    "threshold 2": case("--threshold 2", "--threshold 2.0 is not a probability between 0 and 1"),
    "max-length 2": case("--max-length 2", "--max-length 2 is not at least 4 tokens"),
    "padding to a multiple of 0": case(
        "--pad-to-multiple-of 0", "--pad-to-multiple-of 0 is not at least 1"
    ),
    # Names
    "three text columns": case(
        "--text-columns a b c", "--text-columns a b c: give one column, or the two columns"
    ),
    "one column as a pair": case(
        "--text-columns text text", "--text-columns text text: the two columns of a pair must"
    ),
    "label among the texts": case(
        "--text-columns text colour", "--label-column colour is also in --text-columns"
    ),
    "no label column": case("--label-column", "--label-column must name at least one column"),
    "empty separator": case("--label-separator=", "--label-separator is empty"),
    "no run folder": case("--run-dir=", "--run-dir: is missing"),
    "no model": case("--model=", "--model is missing"),
    # Schedules and functions
    "unknown schedule": case(
        "--schedule cosin",
        "--schedule: 'cosin' is not supported (did you mean 'cosine'?)",
        "linear",
    ),
    "schedule that needs scores": case(
        "--schedule reduce_lr_on_plateau",
        "--schedule: 'reduce_lr_on_plateau' is not supported",
        "Choose one of",
    ),
    "schedule without its options": case(
        "--schedule warmup_stable_decay",
        "--schedule-options: ",
        "the schedule warmup_stable_decay",
        "num_decay_steps",
    ),
    "option that the schedule lacks": case(
        "--schedule-options num_cycles=2",
        "--schedule-options: {'num_cycles': 2} has no effect on linear.",
    ),
    "schedule that cannot be imported": case(
        "--schedule nowhere:f", "'nowhere:f' cannot be imported"
    ),
    "optimizer that is not a function": case("--optimizer adamw", "'adamw'", "MODULE:NAME"),
    # Metrics
    "unknown metric": case(
        "--metrics acuracy", "--metrics: 'acuracy'", "did you mean 'accuracy'?", "f1_macro"
    ),
    "metric of regression": case(
        "--metrics pearson", "--metrics: 'pearson'", "3 labels", "accuracy"
    ),
    "binary metric with three classes": case(
        "--metrics f1", "--metrics: 'f1'", "f1_macro", "f1_micro"
    ),
    "metric of the Hub, offline": case(
        "--metrics hub:bleu", "--metrics: 'hub:bleu' cannot be loaded", "Hub"
    ),
    "best-metric that is not computed": case(
        "--best-metric f1_micro",
        "--best-metric: 'f1_micro' is not computed",
        "The scores are loss, accuracy, f1_macro",
    ),
    "best-metric with a typo": case("--best-metric acuracy", "did you mean 'accuracy'?"),
}

TRAIN_ONLY = "--data.files train FOLDER/train.csv"

TABLES = {
    # Files
    "missing file": case(
        "--data.files train FOLDER/no.csv", "the train file 'FOLDER/no.csv' does not exist"
    ),
    "missing path": case(
        "--data.files --data.path FOLDER/no.csv",
        "--data.path 'FOLDER/no.csv': there is no such file or folder",
    ),
    "no data": case("--data.files", "give it with --data.path or --data.files"),
    "data twice": case(
        "--data.path FOLDER/train.csv", "--data.path and --data.files cannot be combined"
    ),
    "folder without data": case(
        "--data.files --data.path MODELS", "--data.path 'MODELS' has no train.csv, .tsv"
    ),
    "Hub dataset, offline": case(
        "--data.files --data.path nyu-mll/glue",
        "--data.path 'nyu-mll/glue': there is no such file or folder",
        "Hub dataset",
    ),
    "unknown format": case(
        "--data.format exel", "--data.format 'exel' is not one of csv, tsv, json, jsonl"
    ),
    "unknown extension": case(
        "--data.files train FOLDER/rows.xlsx",
        "--data.format: cannot tell the format of 'FOLDER/rows.xlsx'",
        rows_xlsx="PK",
    ),
    "unknown split": case(
        "--data.files train FOLDER/train.csv tset FOLDER/test.csv",
        "--data.files: 'tset' is not one of train, validation, test (did you mean 'test'?)",
    ),
    "split that the source lacks": case(
        "--data.splits train train test tset",
        "--data.splits: the source has no split 'tset' (did you mean 'test'?)",
    ),
    "no train split": case(
        "--data.files test FOLDER/test.csv", "the source has no split 'train'", "(test)"
    ),
    "empty file": case("", "the train file 'FOLDER/train.csv' is empty", train_csv=b""),
    "only line breaks": case(
        "", "the split 'train' is empty", "FOLDER/train.csv", train_csv="\n\n"
    ),
    "only a header": case("", "the split 'validation' is empty", validation_csv="text,colour\n"),
    "empty list": case(
        "--data.files train FOLDER/a.json", "the split 'train' is empty", a_json="[]"
    ),
    "too many cells": case(
        "",
        "cannot read the train file 'FOLDER/train.csv'",
        "the row in line 3 has 3 cells, but the header has 2: 'sea', ' deep', 'blue'",
        "--data.options sep",
        train_csv="text,colour\nsky,red\nsea, deep,blue\n",
    ),
    "another separator": case(
        "", "no column 'text'", "'text;colour'", train_csv="text;colour\nsky;red\nsea;blue\n"
    ),
    "another encoding": case(
        "",
        "cannot read the train file",
        "it is not utf-8",
        "--data.options encoding=cp1252",
        train_csv="text,colour\né,red\n".encode("l1"),
    ),
    "unknown reader option": case(
        "--data.options seperator ;", "cannot read the train file", "seperator"
    ),
    "damaged JSON Lines": case(
        "--data.files train FOLDER/a.jsonl",
        "cannot read the train file",
        "JSON",
        a_jsonl='{"text": "a"}\n{"text": \n',
    ),
    "damaged JSON": case(
        "--data.files train FOLDER/a.json", "cannot read the train file", a_json='[{"text": "a"},'
    ),
    "damaged Parquet": case(
        "--data.files train FOLDER/a.parquet", "cannot read the train file", a_parquet=b"PAR1broken"
    ),
    "damaged gzip": case(
        "--data.files train FOLDER/a.csv.gz",
        "cannot read the train file",
        "gzip",
        a_csv_gz=b"no gzip",
    ),
    # Columns
    "missing text column": case(
        "--text-columns txt",
        "--text-columns: the split 'train' has no column 'txt' (did you mean 'text'?)",
        "'colour', 'number'",
    ),
    "missing label column": case(
        "--label-column color",
        "--label-column: the split 'train' has no column 'color' (did you mean 'colour'?)",
        "'text'",
    ),
    "column that validation lacks": case(
        "",
        "--text-columns: the split 'validation' has no column 'text'",
        "'words'",
        validation_csv="words,colour\nsky,red\n",
    ),
    "text column of numbers": case(
        "--text-columns number", "--text-columns: the column 'number' holds", "int64", "not text"
    ),
    # Empty cells
    "empty and blank texts": case(
        "",
        "the split 'train' has 2 empty text (rows 1, 3), counted from 0",
        "--data.drop-empty",
        train_csv='text,colour\nsky,red\n,red\nsea,blue\n"  ",blue\n',
    ),
    "many empty texts": case(
        "",
        "20 empty text (rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)",
        train_csv="text,colour\nsky,red\n" + ",blue\n" * 20,
    ),
    "null text": case(
        "--data.files train FOLDER/a.jsonl",
        "1 empty text (rows 1)",
        a_jsonl='{"text": "sky", "colour": "red"}\n{"text": null, "colour": "red"}\n'
        '{"text": "a", "colour": "blue"}\n',
    ),
    "missing label": case(
        "",
        "the split 'test' has 1 missing label (rows 1)",
        test_csv="text,colour\nsky,red\nsea,\ngrass,green\n",
    ),
    "row without a label": case(
        "",
        "the split 'train' has 1 missing label (rows 1)",
        train_csv="text,colour\nsky,red\nsea\ngrass,green\n",
    ),
    "no row left": case(
        "--data.drop-empty",
        "all rows of the split 'validation' are dropped",
        validation_csv="text,colour\n,red\n",
    ),
    # Labels
    "label that train lacks": case(
        "",
        "--label-column 'colour': validation has 2 label(s)",
        "'gren', 'violet'",
        "did you mean 'green'?",
        "'blue', 'green', 'red'",
        validation_csv="text,colour\nsky,gren\nsea,violet\ngrass,red\n",
    ),
    "texts as 0 and 1": case(
        "--label-column colour number", "--label-column 'colour': train holds", "'blue'", "0 or 1"
    ),
    "one class": case(
        TRAIN_ONLY,
        "--label-column 'colour': train has only one class, 'red'",
        train_csv="text,colour\n" + "sky,red\n" * 20,
    ),
    "regression on texts": case(
        "--problem-type regression", "holds texts ('", "regression needs numbers"
    ),
    "several labels per row from single values": case(
        "--problem-type multi_label_classification",
        "--problem-type multi_label_classification does not fit the label column colour",
        "--label-separator",
    ),
    "whole decimals": case(
        "",
        "holds whole numbers written as decimals",
        "--problem-type regression or single_label_classification",
        train_csv="text,colour\nsky,1.0\nsea,2.0\n",
    ),
    "label names from a missing file": case(
        "--label-names labels.txt", "--label-names 'labels.txt'"
    ),
    "label names from a table": case(
        "--label-names FOLDER/train.csv", "--label-names", "'blue', 'green', 'red'"
    ),
    "max-length beyond the model": case(
        "--max-length 65", "--max-length 65: the model", "at most 64 tokens"
    ),
    # Cutting splits
    "validation as large as train": case(
        f"{TRAIN_ONLY} --data.validation 43",
        "--data.validation 43.0: cannot cut 43 rows from the 43 rows of train",
    ),
    "fractional number of rows": case(
        "--data.test 1.5", "--data.test 1.5 must be a fraction below 1 or a whole number of rows"
    ),
    "negative fraction": case(
        "--data.validation=-0.1", "--data.validation -0.1 must be a fraction below 1"
    ),
    "fraction NaN": case("--data.validation nan", "--data.validation nan must be a fraction"),
    "too few rows for the classes": case(
        f"{TRAIN_ONLY} --data.validation 2",
        "--data.validation 2.0: cannot keep the shares of the classes",
        "--data.no-stratify",
    ),
}

MODELS = {
    "missing folder": case("--model MODELS/no", "--model 'MODELS/no': there is no such folder"),
    "Hub model, offline": case("--model google/bert", "--model 'google/bert'"),
    "empty folder": case("--model MODELS/empty", "--model 'MODELS/empty'", "no config.json"),
    "no config.json": case("--model MODELS/unnamed", "--model 'MODELS/unnamed'", "no config.json"),
    "damaged config.json": case(
        "--model MODELS/misnamed", "--model 'MODELS/misnamed'", "valid JSON"
    ),
    "truncated weights": case(
        "--model MODELS/truncated", "--model 'MODELS/truncated'", "cannot be loaded"
    ),
    "no weights": case(
        "--model MODELS/weightless", "--model 'MODELS/weightless'", "cannot be loaded"
    ),
    "no tokenizer": case(
        "--model MODELS/speechless", "--model 'MODELS/speechless': its tokenizer has no words"
    ),
}

CASES = {**COMMAND_LINE, **CONFIG_FILES, **VALUES, **TABLES, **MODELS}


def digest_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def write_tables(folder: Path) -> list[str]:
    """Write the three splits, and return the options of a valid run on them."""
    options = ["--data.files"]
    for split, count in SPLITS.items():
        options += [split, write_csv(folder / f"{split}.csv", sentences(count, seed=count))]
    options += ["--label-column", "colour", "--max-length", "32"]
    return [*options, "--batch-size", "8", "--epochs", "1"]


def assert_one_error(result: Result, *expected: str) -> None:
    """Assert exit code 2 and one error with the expected texts, without a traceback."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.out + result.err
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    if "For full helptext" in result.err:  # an error of tyro, in a box
        assert not lines
        text = " ".join(result.err.replace("│", " ").split())
    else:
        assert len(lines) == 1, result.err
        text = lines[0]
    for part in expected:
        assert part in text


@pytest.fixture(scope="module")
def models(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid model ("bert"), and with models that lack something."""
    home = tmp_path_factory.mktemp("damaged")
    for name in ("bert", "truncated", "weightless", "speechless", "unnamed", "misnamed"):
        shutil.copytree(tiny("bert"), home / name)
    weights = home / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (home / "weightless" / "model.safetensors").unlink()
    for file in (home / "speechless").glob("tokenizer*"):
        file.unlink()
    (home / "unnamed" / "config.json").unlink()
    (home / "misnamed" / "config.json").write_text("{")
    (home / "empty").mkdir()
    return home


@pytest.mark.parametrize("case", [pytest.param(value, id=name) for name, value in CASES.items()])
def test_bad_input_gets_one_clear_error(case, models, tmp_path):
    valid = ["--model", str(models / "bert"), "--run-dir", str(tmp_path / "run")]
    valid += write_tables(tmp_path)
    for name, content in case.files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    before = digest_files(tmp_path)

    def insert_folders(text: str) -> str:
        return text.replace("FOLDER", str(tmp_path)).replace("MODELS", str(models))

    options = map(insert_folders, case.options.split())
    result = run_script("train.py", insert_folders(case.config), *valid, *options)
    assert_one_error(result, *map(insert_folders, case.expected))
    after = digest_files(tmp_path)
    # The run folder is locked before anything is read; at most the empty lock remains.
    if after.pop("run/lock", None) is not None:
        assert (tmp_path / "run" / "lock").stat().st_size == 0
    assert after == before


# Run folders


@pytest.fixture(scope="module")
def finished(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command of a finished run without its run folder, and the run folder."""
    home = tmp_path_factory.mktemp("finished")
    words = ["configs/text.py", "--model", tiny("bert"), *write_tables(home)]
    result = run_script("train.py", *words, "--run-dir", home / "run")
    assert result.code == 0, result.err
    return words, home / "run"


def test_a_folder_that_holds_another_run_is_left_alone(finished):
    words, run = finished
    before = digest_files(run)
    changed = ("--epochs", "2", "--max-length", "16", "--data.validation", "0.2")
    result = run_script("train.py", *words, "--run-dir", run, *changed)
    changes = ("epochs: 1 -> 2", "max_length: 32 -> 16", "data.validation: 0.1 -> 0.2")
    expected = f"--run-dir: '{run}' holds a run with other options"
    assert_one_error(result, expected, *changes, "Choose another folder")
    assert digest_files(run) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--resume none", "--run-dir: 'RUN' holds a run already"),
        ("--epochs 0", "--epochs: must be at least 1"),
        ("--batch-size 16", "batch_size: 8 -> 16"),
        ("--resume atuo", "invalid choice 'atuo'"),
        ("--run-dir RUN/config.json", "--run-dir: 'RUN/config.json'"),
        ("--run-dir RUN/checkpoints", "--run-dir: 'RUN/checkpoints' is not empty"),
    ],
)
def test_the_files_in_a_run_folder_stay_as_they_are(finished, options, expected, tmp_path):
    words, original = finished
    run = tmp_path / "run"
    shutil.copytree(original, run)
    before = digest_files(run)
    options = options.replace("RUN", str(run)).split()
    result = run_script("train.py", *words, "--run-dir", run, *options)
    assert_one_error(result, expected.replace("RUN", str(run)))
    assert digest_files(run) == before


# Losses that are not finite


@dataclass(frozen=True)
class InfiniteLoss(TextClassification):
    """In training, the loss of the rows with the label `infinite_label` is infinite."""

    infinite_label: int = 0

    def losses(self, outputs: Any, batch: Any) -> torch.Tensor:
        losses = super().losses(outputs, batch)
        if not outputs.logits.requires_grad:
            return losses
        return torch.where(batch["labels"] == self.infinite_label, torch.inf, losses)


def test_an_infinite_loss_stops_the_run_and_names_step_and_rows(tiny, tmp_path):
    rows = [{"text": "sky", "colour": colour} for colour in ["red", "green"] * 10]
    rows[13]["colour"] = "blue"
    data = Data(path=write_csv(tmp_path / "train.csv", rows), validation=0)
    task = InfiniteLoss(model=tiny("bert"), data=data, label_column="colour", max_length=16)
    run_dir = tmp_path / "run"
    config = Config(task=task, run_dir=str(run_dir), batch_size=4, save_every=1, seed=3)
    message = r"step \d+: the loss is inf .* rows 13 of train \(counted from 0\)"
    with pytest.raises(TrainingError, match=message) as error:
        train(config)
    step = int(str(error.value).partition(":")[0].removeprefix("step "))
    assert step > 1
    checkpoints = [path.name for path in (run_dir / "checkpoints").iterdir()]
    assert checkpoints == [f"step-{step - 1:06d}"]
    assert not (run_dir / "model").exists()


def test_a_far_too_large_learning_rate_stops_the_run_with_exit_code_1(tiny, colours, tmp_path):
    words = ["configs/text.py", "--model", tiny("bert"), *colours, "--warmup", "0"]
    words += ["--save-every", "1", "--learning-rate", "1e20"]
    result = run_script("train.py", *words)
    assert result.code == 1
    assert "Traceback" not in result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: step 2: the loss is nan and the gradient norm is nan")
    assert "because of rows " in line
    assert "A smaller learning_rate" in line
    checkpoints = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert checkpoints == ["step-000001"]
