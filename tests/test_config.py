"""From a config file and the command line to a Config, and from the record in a run folder back to it."""

import ast
import dataclasses
import functools
import json
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_command, run_script

from ftloop import Config, Data, TextClassification, UserError, optim
from ftloop.config import (
    decode,
    differences,
    encode,
    from_command_line,
    import_folders,
    load_config_file,
    name_of,
    parse_keep,
    read_record,
    record_of,
    validate,
)

RECIPES = sorted(ROOT.glob("configs/*.py"))
TEXT = str(ROOT / "configs" / "text.py")
BASE = Config(task=TextClassification(model="a/model", data=Data(path="rows.csv")), run_dir="runs/base")


@dataclass(frozen=True)
class Margins(TextClassification):
    margin: float = 0.5  # a fork's own option


def falling(step: int, total_steps: int, warmup_steps: int) -> float:
    return 1 - step / total_steps


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch):
    """What a test adds to sys.path and imports is gone after it: two tests may name their config files alike."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).suffix == ".py" and "site-packages" not in file and not file.startswith(str(ROOT)):
            del sys.modules[name]


def option_values(*words: str) -> Config:
    return from_command_line([TEXT, *words])


def look_up(config: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


# ---- from the command line


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default():
    assert Config(task=BASE.task, run_dir="x").warmup == 0.0
    assert option_values().warmup == 0.06
    assert option_values("--warmup", "0.2").warmup == 0.2
    assert option_values("--warmup", "0.2").epochs == Config(task=BASE.task, run_dir="x").epochs


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        ("--run-dir elsewhere/run", "run_dir", "elsewhere/run"),
        ("--epochs 7", "epochs", 7),
        ("--max-steps 100", "max_steps", 100),
        ("--batch-size 64", "batch_size", 64),
        ("--micro-batch-size 16", "micro_batch_size", 16),
        ("--learning-rate 3e-5", "learning_rate", 3e-5),
        ("--weight-decay 0.1", "weight_decay", 0.1),
        ("--warmup 100", "warmup", 100.0),
        ("--warmup 0.1", "warmup", 0.1),
        ("--schedule cosine", "schedule", "cosine"),
        ("--schedule math:fmod", "schedule", __import__("math").fmod),
        ("--schedule-options num_cycles 2", "schedule_options", {"num_cycles": 2}),
        ("--optimizer ftloop.optim:adamw", "optimizer", optim.adamw),
        ("--max-grad-norm 0", "max_grad_norm", 0.0),
        ("--seed 7", "seed", 7),
        ("--precision fp32", "precision", "fp32"),
        ("--precision bf16", "precision", "bf16"),
        ("--precision fp16", "precision", "fp16"),
        ("--workers 2", "workers", 2),
        ("--eval-every 50", "eval_every", 50),
        ("--eval-every epoch", "eval_every", "epoch"),
        ("--best-metric f1_macro", "best_metric", "f1_macro"),
        ("--patience 3", "patience", 3),
        ("--keep last=2,best=3", "keep", "last=2,best=3"),
        ("--resume none", "resume", "none"),
        ("--resume runs/x/checkpoints/step-000010", "resume", "runs/x/checkpoints/step-000010"),
        ("--gradient-checkpointing", "gradient_checkpointing", True),
        ("--task.model some/folder", "task.model", "some/folder"),
        ("--task.init random", "task.init", "random"),
        ("--task.text-columns a b", "task.text_columns", ("a", "b")),
        ("--task.label-column a b c", "task.label_column", ("a", "b", "c")),
        ("--task.label-separator ,", "task.label_separator", ","),
        ("--task.label-names no yes", "task.label_names", ("no", "yes")),
        ("--task.problem-type regression", "task.problem_type", "regression"),
        ("--task.max-length 64", "task.max_length", 64),
        ("--task.pad-to max", "task.pad_to", "max"),
        ("--task.dropout 0.0", "task.dropout", 0.0),
        ("--task.metrics accuracy f1_macro", "task.metrics", ("accuracy", "f1_macro")),
        ("--task.data.path my.csv", "task.data.path", "my.csv"),
        ("--task.data.files train a.csv test b.csv", "task.data.files", {"train": "a.csv", "test": "b.csv"}),
        ("--task.data.files train=a.csv test=b.csv", "task.data.files", {"train": "a.csv", "test": "b.csv"}),
        ("--task.data.files train=a.csv test b.csv", "task.data.files", {"train": "a.csv", "test": "b.csv"}),
        ("--task.data.options sep ; quoting 3", "task.data.options", {"sep": ";", "quoting": 3}),
        ("--task.data.options sep=; quoting=3", "task.data.options", {"sep": ";", "quoting": 3}),
        ("--task.data.options sep \\t", "task.data.options", {"sep": "\t"}),
        ("--task.data.options sep \t", "task.data.options", {"sep": "\t"}),
        ("--task.data.options encoding latin-1", "task.data.options", {"encoding": "latin-1"}),
        ("--task.data.options names text,label", "task.data.options", {"names": "text,label"}),
        ('--task.data.options names ["text","label"]', "task.data.options", {"names": ["text", "label"]}),
        ("--task.data.options header None skiprows 1", "task.data.options", {"header": None, "skiprows": 1}),
        ("--task.data.options header null", "task.data.options", {"header": None}),
        ("--task.data.options na_filter=false", "task.data.options", {"na_filter": False}),
        ("--task.data.format tsv", "task.data.format", "tsv"),
        ("--task.data.validation 200", "task.data.validation", 200.0),
        ("--task.data.no-stratify", "task.data.stratify", False),
        ("--task.data.drop-empty", "task.data.drop_empty", True),
    ],
)
def test_an_option_reaches_the_config(words, path, value):
    found = look_up(option_values(*words.split(" ")), path)
    assert found == value
    assert type(found) is type(value)


def test_an_option_leaves_all_others_as_they_are():
    config = option_values("--task.data.options", "sep", ";")
    task = config.task
    assert replace(config, task=replace(task, data=replace(task.data, options={}))) == load_config_file(TEXT)


def test_a_function_in_the_config_survives_the_command_line(tmp_path):
    (tmp_path / "with_partial.py").write_text(
        "import functools\nfrom ftloop import Config, TextClassification, optim\n"
        "config = Config(task=TextClassification(model='m'), run_dir='r',\n"
        "                optimizer=functools.partial(optim.adamw, betas=(0.9, 0.98)))\n"
    )
    config = from_command_line([str(tmp_path / "with_partial.py"), "--epochs", "1"])
    assert config.optimizer.keywords == {"betas": (0.9, 0.98)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--learning-rte 3e-5", "--learning-rate"),
        ("--task.maxlength 64", "--task.max-length"),
        ("--task.data.file train a.csv", "--task.data.files"),
        ("--epochs many", "--epochs"),
        ("--precision fp8", "bf16"),
        ("--eval-every never", "--eval-every"),
        ("--task.data.options quoting", "'quoting' has no value"),
        ("--optimizer torch.optim:Nope", "--optimizer: 'torch.optim:Nope' cannot be imported"),
        ("--optimizer adamw", "--optimizer: 'adamw' is no qualified name: MODULE:NAME is needed"),
        ("--task.data.map nomodule:f", "--task.data.map: 'nomodule:f' cannot be imported"),
    ],
)
def test_a_mistyped_option_is_answered_with_the_nearest_or_the_choices(words, message):
    result = run_script("train.py", TEXT, *words.split())
    assert result.code == 2
    assert message in " ".join((result.out + result.err).replace("│", " ").split())


def test_functions_are_found_in_the_working_folder_and_their_record_says_where(tmp_path, monkeypatch):
    (tmp_path / "of_this_folder.py").write_text("def lower(row):\n    return {'text': row['text'].lower()}\n")
    monkeypatch.chdir(tmp_path)
    config = option_values("--task.data.map", "of_this_folder:lower")
    assert sys.path[-1] == str(tmp_path)
    assert config.task.data.map({"text": "A"}) == {"text": "a"}
    record = json.loads(record_of(config))
    assert record["import_from"] == [str(tmp_path)]
    sys.path.remove(str(tmp_path))
    del sys.modules["of_this_folder"]
    with pytest.raises(UserError, match="cannot be imported"):  # a record names the folders that it needs
        decode(record["config"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs 0: at least 1"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"patience": 0}, "--patience 0"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"warmup": 1.5}, "--warmup 1.5: whole steps, or a share below 1"),
        ({"eval_every": 0}, "--eval-every 0"),
        ({"batch_size": 8, "micro_batch_size": 16}, "--micro-batch-size 16 is more than --batch-size 8"),
        ({"run_dir": ""}, "--run-dir is missing"),
        ({"keep": "last=0"}, "--keep 'last=0'"),
        ({"keep": "newest=3"}, "--keep 'newest=3'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"task": TextClassification()}, "--task.model is missing"),
        ({"task": TextClassification(model="m", dropout=1.0)}, "--task.dropout 1.0"),
        ({"task": TextClassification(model="m", text_columns=("a", "b", "c"))}, "--task.text-columns a b c"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        validate(replace(BASE, **changes))


def test_keep_has_at_least_the_newest_and_the_best():
    assert parse_keep("best=3") == {"last": 1, "best": 3}
    assert parse_keep("last=2, best=1") == {"last": 2, "best": 1}


# ---- help


def help_entries(text: str) -> dict[str, str]:
    """The text beside or under each option in tyro's help, without the default."""
    entries, current = {}, ()
    for line in (framed.strip("│| ") for framed in text.splitlines()):
        option = re.match(r"(--[a-z][\w.-]*)(.*?)(?: {2,}(.*))?$", line)
        if option:
            current = (option[1], *re.findall(r", (--[a-z][\w.-]*)", option[2]))  # its other names too
            entries |= dict.fromkeys(current, "")
            line = option[3] or ""
        for name in current:
            entries[name] += f"{line} "
    return {name: entry.partition("(default:")[0].strip() for name, entry in entries.items()}


@pytest.mark.parametrize(("made", "prefix"), [(Config, "--"), (TextClassification, "--task."), (Data, "--task.data.")])
def test_help_gives_every_field_with_its_meaning(made, prefix):
    entries = help_entries(run_script("train.py", TEXT, "--help").out)
    options = {field.name for field in dataclasses.fields(made)} - {"task", "data"}  # which have options of their own
    options -= {"sources", "probabilities"}  # for Python: Data within Data has no options
    for name in sorted(options):
        meaning = entries[prefix + name.replace("_", "-")]
        assert len(meaning) > 10, f"{name} has no meaning: is its comment on the line of the field?"


@pytest.mark.parametrize(
    ("script", "positional"), [("evaluate.py", "RUN"), ("predict.py", "RUN [TEXT|IMAGE|FOLDER|- ...]")]
)
def test_help_of_the_other_scripts_gives_every_option_with_its_meaning(script, positional):
    result = run_script(script, "--help")
    assert result.code == 0
    assert f"usage: {script} [-h] [OPTIONS] {positional}" in result.out
    entries = help_entries(result.out)
    assert "--batch-size" in entries
    assert all(entries.values()), entries


def test_help_answers_without_torch(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import runpy, sys\n"
        f"sys.argv = ['train.py', {TEXT!r}, '--help']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('LOADED', sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))\n"
    )
    result = run_command("python", str(probe))
    assert result.code == 0, result.err
    assert "--task.data.options" in result.out
    assert "LOADED []" in result.out


def test_train_without_arguments_explains_itself():
    result = run_script("train.py")
    assert result.code == 2
    assert "python train.py configs/text.py --help" in result.out
    for file in RECIPES:
        first = ast.get_docstring(ast.parse(file.read_text())).partition("\n")[0]
        assert re.search(rf"configs/{file.name} +{re.escape(first)}", result.out)
    assert run_script("train.py", "--help").code == 0


def test_options_before_the_config_file_are_answered_with_the_right_order():
    result = run_script("train.py", "--epochs", "3", "configs/text.py")
    assert result.code == 2
    assert "the config file comes first" in result.err


# ---- config files


def own_config(folder: Path, name: str = "mine.py", body: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(
        "from ftloop import Config, Data, TextClassification\n"
        f"{body}\n"
        "config = Config(task=TextClassification(model='m', data=Data(path='rows.csv')), run_dir='runs/mine')\n"
    )
    return file


def test_a_config_file_may_lie_outside_the_project_and_the_command_run_anywhere(tmp_path, monkeypatch):
    own_config(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert from_command_line(["elsewhere/mine.py", "--epochs", "9"]).epochs == 9


def test_a_config_file_may_import_another(tmp_path):
    own_config(tmp_path, "base.py")
    variant = tmp_path / "variant.py"
    variant.write_text(
        "from dataclasses import replace\nfrom base import config as base\nfrom configs.text import config as text\n"
        "config = replace(base, run_dir='runs/variant', warmup=text.warmup)\n"
    )
    sys.path.insert(0, str(ROOT))  # as `python train.py` has it
    config = load_config_file(str(variant))
    assert (config.run_dir, config.warmup, config.task.model) == ("runs/variant", 0.06, "m")


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("broken.py", "x = (", r"broken.py', line 2: SyntaxError"),
        ("raising.py", "\n\nraise ValueError('no')", r"raising.py', line 4: ValueError: no"),
        ("unknown.py", "Config(bogus=1)", r"unknown.py', line 2: TypeError: .*bogus"),
        ("deep.py", "import json\njson.loads('{')", r"deep.py', line 3: JSONDecodeError"),
        ("with-hyphen.py", "", r"Python identifier"),
        ("notes.txt", "", r"the ending .py is needed"),
        ("json.py", "", r"a module named json exists already"),
    ],
)
def test_a_config_file_that_cannot_be_imported_is_named_with_its_line(tmp_path, name, body, message):
    file = own_config(tmp_path, name, body)
    with pytest.raises(UserError, match=message):
        load_config_file(str(file))


def test_a_config_file_without_a_config_is_refused(tmp_path):
    file = tmp_path / "empty_one.py"
    file.write_text("Config = 3\n")
    with pytest.raises(UserError, match=r"no variable `config`"):
        load_config_file(str(file))


def test_a_missing_config_file_is_answered_with_the_nearest():
    result = run_script("train.py", str(ROOT / "configs" / "txt.py"))
    assert result.code == 2
    assert f"did you mean {TEXT!r}?" in result.err


# ---- the record


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_record_of_a_recipe_gives_the_same_config_again(file):
    config = load_config_file(str(file))
    assert decode(json.loads(json.dumps(encode(config)))) == config


def test_the_record_keeps_own_tasks_schedules_and_paths():
    task = Margins(model="m", margin=0.25, data=Data(files={"train": "a.csv"}, options={"quoting": 3, "sep": "\t"}))
    config = Config(task=task, run_dir="r", schedule=falling, eval_every=10, precision="bf16")
    again = decode(json.loads(json.dumps(encode(config))))
    assert again == config
    assert type(again.task) is Margins
    assert again.schedule is falling


@pytest.mark.parametrize("name", ["class", "function", "pairs"])
def test_columns_may_have_any_name(name):
    data = Data(path="a.csv", columns={name: "a", "text": "b"}, join={"text": name})
    config = Config(task=TextClassification(model="m", data=data, label_merge={name: "other"}), run_dir="r")
    encoded = json.loads(json.dumps(encode(config)))
    assert decode(encoded) == config
    assert import_folders(encoded) == []
    (change,) = differences(encoded, encode(replace(config, task=replace(config.task, label_merge={"x": "y"}))))
    assert change == f'--task.label-merge {{"pairs": [["{name}", "other"]]}} -> {{"x": "y"}}'


def test_the_record_keeps_partial_functions_with_their_arguments():
    config = replace(BASE, optimizer=functools.partial(optim.adamw, betas=(0.9, 0.98), eps=1e-6))
    again = decode(json.loads(json.dumps(encode(config)))).optimizer
    assert again.func is optim.adamw
    assert again.keywords == {"betas": (0.9, 0.98), "eps": 1e-6}
    assert again.args == ()


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
    [lambda model, config: None, inner_function(), Recipe().optimizer, Recipe(), functools.partial(inner_function())],
    ids=["lambda", "inner function", "method", "object", "partial of an inner function"],
)
def test_functions_that_cannot_be_found_again_are_refused(function):
    with pytest.raises(UserError, match="define it at the top"):
        encode(replace(BASE, optimizer=function))


def test_values_that_are_no_data_are_refused():
    with pytest.raises(UserError, match=r"a config cannot hold .*object"):
        encode(replace(BASE, run_dir=object()))


def test_a_run_is_rebuilt_from_its_record_wherever_its_folder_was_moved(tmp_path):
    body = "def rate(step, total_steps, warmup_steps): return 0.25"
    file = own_config(tmp_path / "code", "home_of_rate.py", body)
    config = replace(load_config_file(str(file)), schedule=sys.modules["home_of_rate"].rate)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(record_of(config))
    # As in another process:
    del sys.modules["home_of_rate"]
    sys.path.remove(str(tmp_path / "code"))
    moved = Path(shutil.move(run, tmp_path / "moved"))
    again = read_record(moved)
    assert again.run_dir == str(moved)
    assert again.schedule(1, 2, 3) == 0.25


def test_the_folders_of_a_record_are_those_that_its_names_are_imported_from(tmp_path):
    package = tmp_path / "pack" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("def at_the_top(step, total_steps, warmup_steps): return 1.0\n")
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("def further_down(step, total_steps, warmup_steps): return 1.0\n")
    sys.path.append(str(tmp_path))
    import pack
    import pack.inner.deep

    assert import_folders(encode(replace(BASE, schedule=pack.at_the_top))) == [str(tmp_path)]
    assert import_folders(encode(replace(BASE, schedule=pack.inner.deep.further_down))) == [str(tmp_path)]
    assert import_folders(encode(BASE)) == []


@pytest.mark.parametrize("layout", ["own folder", "package above"])
def test_no_file_of_a_run_folder_is_executed(tmp_path, layout):
    run = tmp_path / "runs" / "planted"
    (run / "configs").mkdir(parents=True)
    witness = tmp_path / "it_ran"
    evil = f"open({str(witness)!r}, 'w').close()\ndef schedule(step, total_steps, warmup_steps): return 1.0\n"
    (run / "evil_module.py").write_text(evil)
    (run / "configs" / "__init__.py").write_text(evil)
    own = layout == "own folder"
    record = {
        "ftloop": "0.1.0",
        "import_from": [str(run) if own else str(tmp_path / "runs")],
        "config": encode(BASE) | {"schedule": {"function": f"{'' if own else 'planted.'}evil_module:schedule"}},
    }
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="cannot be imported" if own else "file of the run folder"):
        read_record(run)
    assert not witness.exists()
    assert str(run) not in sys.path


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"config": {}}'])
def test_a_record_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not a record of a run"):
        read_record(tmp_path)


def test_a_record_of_another_version_names_the_fields_that_are_unknown(tmp_path):
    record = {"ftloop": "9", "import_from": [], "config": encode(BASE) | {"lookahead": 3}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"fields that ftloop\.config:Config lacks: lookahead"):
        read_record(tmp_path)


def test_differences_name_the_options():
    task = replace(BASE.task, max_length=64, data=replace(BASE.task.data, options={"quoting": 3}))
    changed = replace(
        BASE, learning_rate=1.0, task=task, schedule=falling, workers=4, run_dir="elsewhere", keep="best=9"
    )
    assert differences(encode(BASE), encode(changed)) == [
        "--learning-rate 5e-05 -> 1.0",
        f'--schedule "linear" -> {{"function": "{name_of(falling)}"}}',
        '--task.data.options {} -> {"quoting": 3}',
        "--task.max-length 128 -> 64",
    ]
    assert differences(encode(BASE), json.loads(json.dumps(encode(BASE)))) == []


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from ftloop.config import Config, read_record, record_of
from ftloop.tasks.text import TextClassification

def rate(step, total_steps, warmup_steps):
    return 0.5

if __name__ == "__main__":
    config = Config(task=TextClassification(model="m"), run_dir="r", schedule=rate)
    (Path(sys.argv[1]) / "config.json").write_text(record_of(config))
"""


@pytest.mark.parametrize("how", ["script", "module"])
def test_functions_of_a_script_are_recorded_by_a_name_that_can_be_imported(tmp_path, how):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "own_script.py").write_text(SCRIPT)
    command = [str(tmp_path / "papers" / "own_script.py")] if how == "script" else ["-m", "papers.own_script"]
    result = run_command("python", *command, str(tmp_path), PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert result.code == 0, result.err
    named = json.loads((tmp_path / "config.json").read_text())["config"]["schedule"]["function"]
    assert named == ("own_script:rate" if how == "script" else "papers.own_script:rate")
    # In a run folder of its own: the script lies beside it, not within.
    run = tmp_path / "run"
    run.mkdir()
    shutil.move(tmp_path / "config.json", run)
    assert read_record(run).schedule(1, 2, 3) == 0.5
