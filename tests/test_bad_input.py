"""What a user can get wrong: one clear error that names the option, before training, with nothing written over."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, run_script, sentences, write_csv

from ftloop import Config, Data, TextClassification, train
from ftloop.errors import TrainingError

SPLITS = {"train": 43, "validation": 11, "test": 11}


@dataclass(frozen=True)
class Case:
    """Words for `train.py configs/text.py ...` after those of a run that works, and what the answer must say.

    "FOLDER" in a word stands for the folder of the tables and of `files`, "MODELS" for that of the models.
    """

    words: str
    expected: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    config: str = "configs/text.py"


def answer(words: str, *expected: str, config: str = "configs/text.py", **files: str | bytes) -> Case:
    """Files are named by keyword: `train_csv="..."` is FOLDER/train.csv."""
    return Case(words, expected, {name.replace("_", "."): content for name, content in files.items()}, config)


OPTIONS = {
    # of the command line
    "unknown option": answer("--learning-rat 1e-3", "Unrecognized options", "--learning-rat", "--learning-rate"),
    "unknown option of the task": answer("--task.max-len 12", "Unrecognized options", "--task.max-length"),
    "no number": answer("--epochs many", "--epochs", "many"),
    "a precision that the device lacks": answer("--precision fp16", "--precision fp16", "cpu"),
    "unknown choice": answer("--precision fp64", "--precision", "fp64", "fp32", "bf16", "fp16"),
    "pairs without a value": answer("--task.data.files train a.csv test", "'test' has no value", "KEY=VALUE"),
    "pairs given twice": answer("--task.data.files train a.csv train b.csv", "'train' is given twice"),
    # config files
    "unknown config": answer("", "'configs/txet.py' does not exist", "'configs/text.py'?", config="configs/txet.py"),
    "no folder of configs": answer("", "'confgs/text.py' does not exist", "found: none", config="confgs/text.py"),
    "config with a syntax error": answer(
        "", "config file 'FOLDER/wrong1.py', line 2: SyntaxError", config="FOLDER/wrong1.py", wrong1_py="a = 1\nb = (\n"
    ),
    "config that fails": answer(
        "",
        "config file 'FOLDER/wrong2.py', line 3: ZeroDivisionError: division by zero",
        config="FOLDER/wrong2.py",
        wrong2_py="import json\n\nratio = 1 / 0\n",
    ),
    "config with an unknown field": answer(
        "",
        "config file 'FOLDER/wrong3.py', line 2: TypeError",
        "unexpected keyword argument 'learning_rat'",
        config="FOLDER/wrong3.py",
        wrong3_py="from ftloop import Config, TextClassification\n"
        "config = Config(task=TextClassification(), run_dir='x', learning_rat=1e-3)\n",
    ),
    "config that imports what is not there": answer(
        "",
        "config file 'FOLDER/wrong4.py', line 1: ModuleNotFoundError: No module named 'not_installed'",
        config="FOLDER/wrong4.py",
        wrong4_py="import not_installed\n",
    ),
    "config without config": answer(
        "", "sets no variable `config`", "ftloop.Config", config="FOLDER/wrong5.py", wrong5_py="settings = {}\n"
    ),
    "no config": answer("", "the config file comes first: python train.py configs/text.py", config="--epochs"),
    "no Python file": answer("", "train.csv'", "ending .py is needed", config="FOLDER/train.csv"),
    # numbers
    "no epoch": answer("--epochs 0", "--epochs 0: at least 1 is needed"),
    "negative steps": answer("--max-steps -5", "--max-steps -5: at least 1 is needed"),
    "no batch": answer("--batch-size 0", "--batch-size 0: at least 1 is needed"),
    "more micro-batch than batch": answer(
        "--batch-size 8 --micro-batch-size 16", "--micro-batch-size 16 is more than --batch-size 8"
    ),
    "negative learning rate": answer("--learning-rate=-1e-3", "--learning-rate -0.001: a finite number from 0 on"),
    "learning rate NaN": answer("--learning-rate nan", "--learning-rate nan: a finite number"),
    "infinite weight decay": answer("--weight-decay inf", "--weight-decay inf: a finite number"),
    "negative clipping": answer("--max-grad-norm=-1", "--max-grad-norm -1.0: a finite number"),
    "broken warmup": answer("--warmup 1.5", "--warmup 1.5: whole steps, or a share below 1"),
    "negative workers": answer("--workers=-1", "--workers -1"),
    "eval-every zero": answer("--eval-every 0", "--eval-every 0: steps from 1 on, or 'epoch'"),
    "eval-every of a word": answer("--eval-every epochs", "--eval-every", "epochs", "epoch"),
    "patience zero": answer("--patience 0", "--patience 0: at least 1 is needed"),
    "dropout of 1": answer("--task.dropout 1.0", "--task.dropout 1.0: a probability from 0 to below 1"),
    "dropout NaN": answer("--task.dropout nan", "--task.dropout nan: a probability"),
    "threshold of 2": answer("--task.threshold 2", "--task.threshold 2.0: a probability between 0 and 1"),
    "max-length of 2": answer("--task.max-length 2", "--task.max-length 2: at least 4 tokens"),
    "three text columns": answer("--task.text-columns a b c", "--task.text-columns a b c: one column, or the two of a"),
    "padding to a multiple of 0": answer("--task.pad-to-multiple-of 0", "--task.pad-to-multiple-of 0: at least 1"),
    # words
    "one column as a pair": answer("--task.text-columns text text", "--task.text-columns text text: the same column"),
    "label among the texts": answer("--task.text-columns text colour", "--task.label-column colour is in --task.text"),
    "no label column": answer("--task.label-column", "--task.label-column: name at least one column"),
    "empty separator": answer("--task.label-separator=", "--task.label-separator is empty"),
    "keep of nothing": answer("--keep last=0", "--keep 'last=0': write last=N,best=N"),
    "keep of a number": answer("--keep 3", "--keep '3': write last=N,best=N"),
    "keep of a typo": answer("--keep bets=3", "--keep 'bets=3': write last=N,best=N"),
    "unknown schedule": answer("--schedule cosin", "--schedule 'cosin' is unknown (did you mean 'cosine'?)", "linear"),
    "schedule that follows scores": answer("--schedule reduce_lr_on_plateau", "follows the scores", "choose one of"),
    "schedule without its options": answer(
        "--schedule warmup_stable_decay", "--schedule warmup_stable_decay", "num_decay_steps", "--schedule-options"
    ),
    "option that the schedule lacks": answer(
        "--schedule-options num_cycles=2", "--schedule-options {'num_cycles': 2}: linear takes none"
    ),
    "schedule that cannot be imported": answer("--schedule nowhere:f", "'nowhere:f' cannot be imported"),
    "optimizer that is no name": answer("--optimizer adamw", "'adamw' is no qualified name: MODULE:NAME"),
    "no run folder": answer("--run-dir=", "--run-dir is missing"),
    "no model": answer("--task.model=", "--task.model is missing"),
    # metrics
    "unknown metric": answer(
        "--task.metrics acuracy", "'acuracy' is not a metric", "did you mean 'accuracy'?", "f1_macro"
    ),
    "metric of regression": answer("--task.metrics pearson", "'pearson' does not fit", "with 3 labels", "accuracy"),
    "binary metric on three classes": answer("--task.metrics f1", "'f1' does not fit", "f1_macro", "f1_micro"),
    "metric of the Hub without a hub": answer("--task.metrics hub:bleu", "'hub:bleu' could not be loaded", "Hub"),
    "best-metric that is not computed": answer(
        "--best-metric f1_micro", "--best-metric 'f1_micro' is not computed", "the scores are loss, accuracy, f1_macro"
    ),
    "best-metric with a typo": answer("--best-metric acuracy", "did you mean 'accuracy'?"),
}

TABLES = {
    "missing file": answer("--task.data.files train FOLDER/no.csv", "train file 'FOLDER/no.csv' does not exist"),
    "missing path": answer(
        "--task.data.files --task.data.path FOLDER/no.csv", "--task.data.path 'FOLDER/no.csv': no such"
    ),
    "no data": answer("--task.data.files", "give the data by --task.data.path or by --task.data.files"),
    "data twice": answer(
        "--task.data.path FOLDER/train.csv", "--task.data.path or by --task.data.files, one of the two"
    ),
    "folder without data": answer("--task.data.files --task.data.path MODELS", "'MODELS' holds no train.csv, .tsv"),
    "hub without a hub": answer(
        "--task.data.files --task.data.path nyu-mll/glue", "'nyu-mll/glue' is no file or folder"
    ),
    "unknown format": answer("--task.data.format exel", "--task.data.format 'exel' is none of csv, tsv, json, jsonl"),
    "ending of no format": answer(
        "--task.data.files train FOLDER/rows.xlsx", "cannot tell how to read", "--task.data.format", rows_xlsx="PK"
    ),
    "unknown split": answer(
        "--task.data.files train FOLDER/train.csv tset FOLDER/test.csv",
        "'tset' is none of train, validation, test (did you mean 'test'?)",
    ),
    "split that the source lacks": answer(
        "--task.data.splits train train test tset",
        "--task.data.splits: the source has no 'tset' (did you mean 'test'?)",
    ),
    "no train split": answer("--task.data.files test FOLDER/test.csv", "there is no split 'train'", "has test"),
    "missing text column": answer(
        "--task.text-columns txt", "--task.text-columns", "no column 'txt' (did you mean 'text'?)", "'colour', 'number'"
    ),
    "missing label column": answer(
        "--task.label-column color", "--task.label-column", "no column 'color' (did you mean 'colour'?)", "'text'"
    ),
    "column that validation lacks": answer(
        "",
        "--task.text-columns: the split 'validation' has no column 'text'",
        "'words'",
        validation_csv="words,colour\nsky,red\n",
    ),
    "label that train lacks": answer(
        "",
        "--task.label-column 'colour': validation has 2 label(s) that train lacks: 'gren', 'violet'",
        "did you mean 'green'?",
        "'blue', 'green', 'red'",
        validation_csv="text,colour\nsky,gren\nsea,violet\ngrass,red\n",
    ),
    "header only": answer("", "the split 'validation' is empty", validation_csv="text,colour\n"),
    "no byte": answer("", "train file 'FOLDER/train.csv' is empty", train_csv=b""),
    "line breaks only": answer("", "the split 'train' is empty", "FOLDER/train.csv", train_csv="\n\n"),
    "empty list": answer("--task.data.files train FOLDER/a.json", "the split 'train' is empty", a_json="[]"),
    "empty and blank texts": answer(
        "",
        "the split 'train' has 2 empty text (rows 1, 3), counted from 0",
        "--task.data.drop-empty",
        train_csv='text,colour\nsky,red\n,red\nsea,blue\n"  ",blue\n',
    ),
    "many empty texts": answer(
        "",
        "20 empty text (rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)",
        train_csv="text,colour\nsky,red\n" + ",blue\n" * 20,
    ),
    "null text": answer(
        "--task.data.files train FOLDER/a.jsonl",
        "1 empty text (rows 1)",
        a_jsonl='{"text": "sky", "colour": "red"}\n{"text": null, "colour": "red"}\n{"text": "a", "colour": "blue"}\n',
    ),
    "missing label": answer(
        "", "the split 'test' has 1 missing label (rows 1)", test_csv="text,colour\nsky,red\nsea,\ngrass,green\n"
    ),
    "row without a label": answer(
        "", "the split 'train' has 1 missing label (rows 1)", train_csv="text,colour\nsky,red\nsea\ngrass,green\n"
    ),
    "nothing left without empty rows": answer(
        "--task.data.drop-empty", "the split 'validation' is empty without its", validation_csv="text,colour\n,red\n"
    ),
    "texts as 0 and 1": answer(
        "--task.label-column colour number", "'colour': train holds ['blue'", "0 or 1 is needed"
    ),
    "one class": answer(
        "--task.data.files train FOLDER/train.csv",
        "--task.label-column 'colour': train has one class only, 'red'",
        train_csv="text,colour\n" + "sky,red\n" * 20,
    ),
    "text column of numbers": answer(
        "--task.text-columns number", "--task.text-columns: 'number' holds", "int64", "not text"
    ),
    "regression on texts": answer("--task.problem-type regression", "holds texts ('", "regression needs numbers"),
    "several labels a row from single values": answer(
        "--task.problem-type multi_label_classification",
        "does not fit the label column colour",
        "--task.label-separator",
    ),
    "whole decimals": answer(
        "",
        "holds whole numbers written as decimals",
        "--task.problem-type regression or single_label_classification",
        train_csv="text,colour\nsky,1.0\nsea,2.0\n",
    ),
    "names from a missing file": answer(
        "--task.label-names labels.txt", "--task.label-names 'labels.txt': give all names"
    ),
    "names from a table": answer("--task.label-names FOLDER/train.csv", "lacks: 'blue', 'green', 'red'"),
    "max-length beyond the model": answer(
        "--task.max-length 65", "--task.max-length 65: the model", "64 tokens at most"
    ),
    "cells too many": answer(
        "",
        "cannot read train file 'FOLDER/train.csv'",
        "Expected 2 fields in line 3, saw 3",
        "--task.data.options sep",
        train_csv="text,colour\nsky,red\nsea, deep,blue\n",
    ),
    "another separator": answer(
        "", "no column 'text'", "it has 'text;colour'", train_csv="text;colour\nsky;red\nsea;blue\n"
    ),
    "another encoding": answer(
        "",
        "cannot read train file",
        "UnicodeDecodeError",
        "encoding=latin-1",
        train_csv="text,colour\né,red\n".encode("l1"),
    ),
    "unknown reader option": answer("--task.data.options seperator ;", "cannot read train file", "seperator"),
    "broken JSON Lines": answer(
        "--task.data.files train FOLDER/a.jsonl", "cannot read train file", "JSON", a_jsonl='{"text": "a"}\n{"text": \n'
    ),
    "broken JSON": answer("--task.data.files train FOLDER/a.json", "cannot read train file", a_json='[{"text": "a"},'),
    "broken Parquet": answer(
        "--task.data.files train FOLDER/a.parquet", "cannot read train file", a_parquet=b"PAR1broken"
    ),
    "broken gzip": answer("--task.data.files train FOLDER/a.csv.gz", "cannot read", "gzip", a_csv_gz=b"no gzip"),
    "validation beyond train": answer(
        "--task.data.files train FOLDER/train.csv --task.data.validation 43",
        "--task.data.validation 43.0: 43 rows cannot be cut from the 43 rows of train",
    ),
    "broken count": answer("--task.data.test 1.5", "--task.data.test 1.5: a share below 1, or whole rows"),
    "negative share": answer("--task.data.validation=-0.1", "--task.data.validation -0.1: a share below 1"),
    "share NaN": answer("--task.data.validation nan", "--task.data.validation nan: a share below 1"),
    "too few rows for the classes": answer(
        "--task.data.files train FOLDER/train.csv --task.data.validation 2",
        "--task.data.validation 2.0: cannot keep the shares of the classes",
        "--task.data.no-stratify",
    ),
}

MODELS = {
    "model that is not there": answer("--task.model MODELS/no", "--task.model 'MODELS/no': no such folder"),
    "model of the Hub without a hub": answer("--task.model google/bert", "--task.model 'google/bert'"),
    "empty folder": answer("--task.model MODELS/empty", "--task.model 'MODELS/empty' holds no config.json"),
    "no config.json": answer("--task.model MODELS/unnamed", "--task.model 'MODELS/unnamed' holds no config.json"),
    "broken config.json": answer("--task.model MODELS/misnamed", "--task.model 'MODELS/misnamed'", "valid JSON"),
    "truncated weights": answer("--task.model MODELS/truncated", "--task.model 'MODELS/truncated' cannot be loaded"),
    "no weights": answer("--task.model MODELS/weightless", "--task.model 'MODELS/weightless' cannot be loaded"),
    "no tokenizer": answer(
        "--task.model MODELS/speechless", "--task.model 'MODELS/speechless': its tokenizer knows no"
    ),
}


def fingerprints(folder: Path) -> dict[str, str]:
    """Every file of a folder by its sha256."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write_tables(folder: Path) -> list[str]:
    """The three splits as files, and the words of a run on them that works."""
    files = {split: write_csv(folder / f"{split}.csv", sentences(rows, rows)) for split, rows in SPLITS.items()}
    return [
        *("--task.data.files", *(word for pair in files.items() for word in pair)),
        *("--task.label-column", "colour", "--task.max-length", "32", "--batch-size", "8", "--epochs", "1"),
    ]


def assert_one_error(result: Result, *expected: str) -> None:
    """Exit code 2, and one error that says what is expected, not a traceback."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.out + result.err
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    if "For full helptext" in result.err:  # tyro's answer, in a box
        assert not lines
        text = " ".join(result.err.replace("│", " ").split())
    else:
        assert len(lines) == 1, result.err
        text = lines[0]
    for words in expected:
        assert words in text


@pytest.fixture(scope="module")
def models(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a model that works ("bert"), and with those that lack something."""
    home = tmp_path_factory.mktemp("broken")
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


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in {**OPTIONS, **TABLES, **MODELS}.items()]
)
def test_bad_input_gets_one_clear_error(case, models, tmp_path):
    words = write_tables(tmp_path)
    for name, content in case.files.items():
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = fingerprints(tmp_path)

    def placed(text: str) -> str:
        return text.replace("FOLDER", str(tmp_path)).replace("MODELS", str(models))

    given = [placed(word) for word in case.words.split()]
    start = ("--task.model", str(models / "bert"), "--run-dir", str(tmp_path / "run"), *words)
    assert_one_error(run_script("train.py", placed(case.config), *start, *given), *map(placed, case.expected))
    assert fingerprints(tmp_path) == before
    assert not (tmp_path / "run").exists()


# ---- run folders


@pytest.fixture(scope="module")
def finished(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The words of a run, without its folder, and that folder after it has finished."""
    home = tmp_path_factory.mktemp("finished")
    words = ["configs/text.py", "--task.model", tiny("bert"), *write_tables(home)]
    result = run_script("train.py", *words, "--run-dir", home / "run")
    assert result.code == 0, result.err
    return words, home / "run"


def test_a_folder_that_holds_another_run_is_left_alone(finished):
    words, run = finished
    before = fingerprints(run)
    changed = ("--epochs", "2", "--task.max-length", "16", "--task.data.validation", "0.2")
    result = run_script("train.py", *words, "--run-dir", run, *changed)
    expected = ("--epochs 1 -> 2", "--task.max-length 32 -> 16", "--task.data.validation 0.1 -> 0.2")
    assert_one_error(result, f"--run-dir '{run}' holds another run", *expected, "choose another --run-dir")
    assert fingerprints(run) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--resume none", "--run-dir 'RUN' holds a run already, and --resume none starts anew"),
        ("--epochs 0", "--epochs 0: at least 1"),
        ("--batch-size 16", "--batch-size 8 -> 16"),
        ("--resume atuo", "--resume 'atuo': no run there; give auto, none, or the path of a checkpoint"),
        ("--resume RUN/checkpoints/step-000001", "--resume 'RUN/checkpoints/step-000001' is no intact checkpoint"),
        (
            "--run-dir RUN/new --resume RUN/checkpoints/damaged/step-000006",
            "is no intact checkpoint: weights.pt is not",
        ),
        ("--run-dir RUN/config.json", "--run-dir 'RUN/config.json' is not empty and holds no run"),
        ("--run-dir RUN/checkpoints", "--run-dir 'RUN/checkpoints' is not empty and holds no run"),
    ],
)
def test_what_lies_in_a_run_folder_stays_as_it_is(finished, words, expected, tmp_path):
    given, original = finished
    run = tmp_path / "run"
    shutil.copytree(original, run)
    damaged = run / "checkpoints" / "damaged" / "step-000006"
    shutil.copytree(run / "checkpoints" / "step-000006", damaged)
    with (damaged / "weights.pt").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    before = fingerprints(run)
    result = run_script("train.py", *given, "--run-dir", run, *words.replace("RUN", str(run)).split())
    assert_one_error(result, expected.replace("RUN", str(run)))
    assert fingerprints(run) == before


# ---- a loss that is no number


@dataclass(frozen=True)
class Poisoned(TextClassification):
    """The loss of the rows with this label is infinite."""

    poison: int = 0

    def losses(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        losses = super().losses(outputs, targets)
        return torch.where(targets == self.poison, torch.inf, losses) if outputs.logits.requires_grad else losses


def test_an_infinite_loss_stops_the_run_and_names_step_and_rows(tiny, tmp_path):
    rows = [{"text": "sky", "colour": COLOUR} for COLOUR in ["red", "green"] * 10]
    rows[13]["colour"] = "blue"
    data = Data(path=write_csv(tmp_path / "train.csv", rows), validation=0)
    task = Poisoned(model=tiny("bert"), data=data, label_column="colour", max_length=16, poison=0)
    config = Config(task=task, run_dir=str(tmp_path / "run"), batch_size=4, save_every=1, seed=3, report=False)
    with pytest.raises(
        TrainingError, match=r"step \d+: the loss is inf, .* from rows 13 of the train split \(from 0"
    ) as stop:
        train(config)
    step = int(str(stop.value).partition(":")[0].removeprefix("step "))
    assert step > 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{step - 1:06d}"]
    assert not (tmp_path / "run" / "model").exists()


def test_a_learning_rate_beyond_all_measure_stops_the_run_with_exit_code_1(tiny, colours, tmp_path):
    words = ["configs/text.py", "--task.model", tiny("bert"), *colours, "--warmup", "0", "--save-every", "1"]
    result = run_script("train.py", *words, "--learning-rate", "1e30")
    assert result.code == 1
    assert "Traceback" not in result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: step 2: the loss is nan, the gradient norm nan, from rows ")
    assert "A smaller --learning-rate" in line
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
