"""Config files, the validation of a config, and how it is encoded."""

import functools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, run_script

from ftloop import UserError
from ftloop.cli import Job
from ftloop.cli.config_file import from_command_line, load_config_file
from ftloop.config import differences, encode, qualified_name, validate
from ftloop.data import Data
from ftloop.runs.record import decode, import_folders
from ftloop.tasks import TextClassification

CONFIGS = sorted(ROOT.glob("configs/*.py"))
TEXT = str(ROOT / "configs" / "text.py")
BASE = Job(
    task=TextClassification(model="a/model", data=Data(path="rows.csv")), run_dir="runs/base"
)


def falling(step: int, total_steps: int, warmup_steps: int) -> float:
    return 1 - step / total_steps


pytestmark = pytest.mark.usefixtures("fresh_imports")


# Config files


def own_config(folder: Path, name: str = "mine.py", body: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(
        "from ftloop.cli import Job\nfrom ftloop.data import Data\n"
        "from ftloop.tasks import TextClassification\n"
        f"{body}\n"
        "task = TextClassification(model='m', data=Data(path='rows.csv'))\n"
        "config = Job(task=task, run_dir='runs/mine')\n"
    )
    return file


def test_a_config_file_may_lie_outside_the_project_and_the_command_run_anywhere(
    tmp_path, monkeypatch
):
    own_config(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert from_command_line(["elsewhere/mine.py", "--epochs", "9"]).epochs == 9


def test_a_config_file_may_import_another(tmp_path):
    own_config(tmp_path, "base.py")
    variant = tmp_path / "variant.py"
    variant.write_text(
        "from dataclasses import replace\n"
        "from base import config as base\n"
        "from configs.text import config as text\n"
        "config = replace(base, run_dir='runs/variant', warmup=text.warmup)\n"
    )
    sys.path.insert(0, str(ROOT))  # as `python train.py` has it
    config = load_config_file(str(variant))
    assert (config.run_dir, config.warmup, config.task.model) == ("runs/variant", 0.06, "m")


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("broken.py", "x = (", r"broken.py', line 4: SyntaxError"),
        ("raising.py", "\n\nraise ValueError('no')", r"raising.py', line 6: ValueError: no"),
        ("unknown.py", "Job(bogus=1)", r"unknown.py', line 4: TypeError: .*bogus"),
        ("deep.py", "import json\njson.loads('{')", r"deep.py', line 5: JSONDecodeError"),
        ("with-hyphen.py", "", r"Python identifier"),
        ("notes.txt", "", r"followed by .py"),
        ("json.py", "", r"another module is named json"),
    ],
)
def test_a_config_file_that_cannot_be_imported_is_named_with_its_line(
    tmp_path, name, body, message
):
    file = own_config(tmp_path, name, body)
    with pytest.raises(UserError, match=message):
        load_config_file(str(file))


def test_a_plain_config_becomes_a_job(tmp_path):
    file = tmp_path / "plain_config.py"
    file.write_text(
        "from ftloop import Config\nfrom ftloop.tasks import TextClassification\n"
        "config = Config(task=TextClassification(model='m'), run_dir='r', epochs=9)\n"
    )
    job = load_config_file(str(file))
    assert (type(job), job.epochs, job.report) == (Job, 9, True)


def test_a_config_file_without_a_config_is_refused(tmp_path):
    file = tmp_path / "empty_one.py"
    file.write_text("Config = 3\n")
    with pytest.raises(UserError, match=r"no variable `config`"):
        load_config_file(str(file))


def test_a_missing_config_file_is_answered_with_the_nearest():
    result = run_script("train.py", str(ROOT / "configs" / "txt.py"))
    assert result.code == 2
    assert f"did you mean {TEXT!r}?" in result.err


# Validation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: must be at least 1, but is 0."),
        ({"max_steps": 0}, "max_steps: must be at least 1"),
        ({"patience": 0}, "patience: must be at least 1"),
        ({"keep_last": 0}, "keep_last: must be at least 1"),
        ({"keep_best": 0}, "keep_best: must be at least 1"),
        ({"eval_every": 0}, "eval_every: must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate: must be at least 0, but is -1.0."),
        ({"learning_rate": float("nan")}, "learning_rate: must be at least 0"),
        ({"warmup": 1.5}, "warmup: must be a whole number of steps or a fraction below 1"),
        (
            {"batch_size": 8, "micro_batch_size": 16},
            "micro_batch_size: 16 is larger than batch_size 8",
        ),
        ({"run_dir": ""}, "run_dir: is missing"),
        ({"schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"task": TextClassification()}, "--model"),
        ({"task": TextClassification(model="m", dropout=1.0)}, "--dropout"),
        ({"task": TextClassification(model="m", text_columns=("a", "b", "c"))}, "--text-columns"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        validate(replace(BASE, **changes))


# Encoding


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_record_of_a_config_file_gives_the_same_config_again(file):
    config = load_config_file(str(file))
    assert decode(json.loads(json.dumps(encode(config)))) == config


def test_functions_are_found_in_the_working_folder_and_the_record_says_where(tmp_path, monkeypatch):
    (tmp_path / "of_this_folder.py").write_text(
        "def lower(row):\n    return {'text': row['text'].lower()}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = from_command_line([TEXT, "--data.map", "of_this_folder:lower"])
    assert sys.path[-1] == str(tmp_path)
    assert config.task.data.map({"text": "A"}) == {"text": "a"}
    encoded = encode(config)
    assert import_folders(encoded) == [str(tmp_path)]
    sys.path.remove(str(tmp_path))
    del sys.modules["of_this_folder"]
    with pytest.raises(UserError, match="names code outside of ftloop: of_this_folder:lower"):
        decode(encoded)


def inner_function():
    def inner(model, config):
        raise AssertionError

    return inner


class Recipe:
    def optimizer(self, model, config):
        raise AssertionError

    def __call__(self, model, config):
        raise AssertionError


@pytest.mark.parametrize(
    "function",
    [
        lambda model, config: None,
        inner_function(),
        Recipe().optimizer,
        Recipe(),
        functools.partial(inner_function()),
    ],
    ids=["lambda", "inner function", "method", "object", "partial of an inner function"],
)
def test_functions_that_cannot_be_found_again_are_refused(function):
    with pytest.raises(UserError, match="define it at the top level"):
        encode(replace(BASE, optimizer=function))


def test_the_folders_of_a_record_are_those_that_its_names_are_imported_from(tmp_path):
    package = tmp_path / "pack" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text(
        "def at_the_top(step, total_steps, warmup_steps): return 1.0\n"
    )
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text(
        "def further_down(step, total_steps, warmup_steps): return 1.0\n"
    )
    sys.path.append(str(tmp_path))
    import pack
    import pack.inner.deep

    assert import_folders(encode(replace(BASE, schedule=pack.at_the_top))) == [str(tmp_path)]
    assert import_folders(encode(replace(BASE, schedule=pack.inner.deep.further_down))) == [
        str(tmp_path)
    ]
    assert import_folders(encode(BASE)) == []


def test_differences_name_the_fields():
    data = replace(BASE.task.data, options={"quoting": 3})
    task = replace(BASE.task, max_length=64, data=data)
    changed = replace(
        BASE,
        learning_rate=1.0,
        task=task,
        schedule=falling,
        workers=4,
        run_dir="elsewhere",
        keep_best=9,
        report=False,
    )
    assert differences(encode(BASE), encode(changed), Job.may_change) == [
        "learning_rate: 5e-05 -> 1.0",
        f'schedule: "linear" -> {{"function": "{qualified_name(falling)}"}}',
        'task.data.options: {} -> {"quoting": 3}',
        "task.max_length: 128 -> 64",
    ]
    assert differences(encode(BASE), json.loads(json.dumps(encode(BASE))), Job.may_change) == []
