"""No code of a stranger runs: neither that of a run folder, nor that of a model folder."""

import functools
import json
import pickle
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import ROOT, run_script, run_script_of_ftloop, sentences, write_csv

from ftloop import optim
from ftloop.cli.job import Job
from ftloop.config import encode
from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.runs import trust
from ftloop.runs.record import load_config, options_needed
from ftloop.runs.trust import allow
from ftloop.tasks import ImageClassification, TextClassification, metrics

BASE = Job(task=TextClassification(model="a/model", data=Data(path="rows.csv")), run_dir="r")
REFUSED = "this run names code outside of ftloop: {}. Use --trust-code to run it."


@dataclass(frozen=True)
class OwnTask(TextClassification):
    """A task that is not in ftloop."""


def own_rate(step, total_steps, warmup_steps):
    return 0.5


def write_record(folder: Path, config: dict, **record) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"ftloop": "0.2.0", "config": config, **record}))
    return folder


def with_data(**fields) -> dict:
    """Return an encoded config whose data has other fields."""
    config = encode(BASE)
    config["task"]["data"] |= fields
    return config


def refusal(folder: Path, config: dict, **record) -> str:
    """Return the error of a record that is not permitted anything."""
    with pytest.raises(UserError) as caught:
        load_config(write_record(folder, config, **record))
    return str(caught.value)


# Which names are trusted


@pytest.mark.parametrize(
    ("name", "is_trusted"),
    [
        ("ftloop.tasks.text_classification:TextClassification", True),
        ("configs.fork_example:FocalTask", True),
        ("recipes.r_drop:RDrop", True),
        ("ftloop_tools.tasks:Task", False),
        ("torchevil:Task", False),
        ("torch:Tensor", False),
        ("transformers:TrainingArguments", False),
        ("benchmarks.speed:Options", False),
        ("configs.no_such_file:FocalTask", False),
        ("configs:FocalTask", False),
        ("subprocess:Popen", False),
        ("builtins:exec", False),
        ("", False),
    ],
)
def test_classes_that_a_record_may_name(name, is_trusted):
    assert trust.is_trusted(name, "class") is is_trusted


@pytest.mark.parametrize(
    ("name", "is_trusted"),
    [
        ("ftloop.optim:adamw", True),
        ("torch.optim:SGD", True),
        ("torch.nn.functional:gelu", True),
        ("transformers.optimization:Adafactor", True),
        ("configs.fork_example:sgd", True),
        # These read or write files, or run what they are told to run.
        ("torch:load", False),
        ("torch.hub:load", False),
        ("torch.optimizer:load", False),
        ("torch.serialization:save", False),
        ("transformers.dynamic_module_utils:get_class_from_dynamic_module", False),
        ("ftloop.tasks.metrics:build", False),
        ("ftloop.cli.config_file:load_config_file", False),
        ("ftloop.hub.push:push", False),
    ],
)
def test_functions_that_a_record_may_name(name, is_trusted):
    assert trust.is_trusted(name, "function") is is_trusted


def test_a_file_that_stands_before_a_config_of_the_project_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "mrpc.py", tmp_path / "configs" / "mrpc.py")
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert trust.is_own_module("configs.mrpc")
    monkeypatch.syspath_prepend(tmp_path)
    assert not trust.is_own_module("configs.mrpc")
    assert trust.is_own_module("configs.sst2")


def test_a_link_out_of_the_project_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere.py").write_text("raise SystemExit")
    (tmp_path / "configs" / "linked.py").symlink_to(tmp_path / "elsewhere.py")
    monkeypatch.setattr(trust, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert trust.module_files("configs.linked") == [str(tmp_path / "configs" / "linked.py")]
    assert not trust.is_own_module("configs.linked")


# What a record may do


@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "builtins:exec", "os:system", "no_such_module:function"]
)
@pytest.mark.parametrize("kind", ["function", "partial", "in a list", "class", "config", "task"])
def test_code_outside_of_ftloop_is_refused_before_it_is_imported(tmp_path, name, kind):
    value = {"function": name, "arguments": [["touch", "file"]], "options": {}}
    configs = {
        "function": with_data(map={"function": name}),
        "partial": with_data(map=value),
        "in a list": with_data(options={"pairs": [["converters", [value]]]}),
        "class": encode(BASE) | {"task": {"class": name}},
        "config": encode(BASE) | {"class": name},
        "task": encode(BASE) | {"task": {"class": name, "size": 3}},
    }
    assert refusal(tmp_path / "run", configs[kind]) == REFUSED.format(name)


@pytest.mark.parametrize(
    "name",
    [
        "torch.optim:torch.hub.load",
        "configs.mrpc:TextClassification.from_memory",
        "torch.nn:Module",
    ],
)
def test_what_a_trusted_module_has_imported_is_not_trusted_with_it(tmp_path, name):
    message = refusal(
        tmp_path, with_data(map=None) | {"schedule": "linear", "task": {"class": name}}
    )
    assert name in message
    if name != "torch.nn:Module":
        message = refusal(tmp_path, with_data(map={"function": name}))
        assert name in message


def test_a_name_sends_nothing_to_the_terminal(tmp_path):
    message = refusal(tmp_path, with_data(map={"function": "evil:\x1b[2Jname"}))
    assert message == REFUSED.format(r"'evil:\x1b[2Jname'")


def test_functions_of_ftloop_that_load_code_are_refused(tmp_path):
    loads = {"function": "ftloop.tasks.metrics:build", "arguments": ["hub:./evil", "regression"]}
    message = refusal(tmp_path, with_data(map=loads))
    assert message == (
        "this run names library code that is not made for configs: ftloop.tasks.metrics:build. "
        "Use --trust-code to run it."
    )


@pytest.mark.parametrize("field", ["options", "path", "join", "field"])
def test_only_fields_that_take_functions_may_hold_one(tmp_path, field):
    message = refusal(tmp_path, with_data(**{field: {"function": "ftloop.optim:adamw"}}))
    assert "names ftloop.optim:adamw in a field that takes no function" in message


def test_a_class_that_is_no_config_task_or_data_is_refused(tmp_path):
    for name in ("ftloop.errors:UserError", "configs.fork_example:MeanPooled"):
        message = refusal(tmp_path, with_data(map=None) | {"task": {"class": name}})
        assert message == f"the record names {name}, which is no Config, Task or Data."


def test_functions_of_training_are_not_imported_by_commands_that_do_not_train(tmp_path):
    partial = {"function": "evil:optimizer", "arguments": [1], "options": {"betas": [0.9]}}
    config = encode(BASE) | {"optimizer": partial, "row_order": {"function": "evil:order"}}
    loaded = load_config(write_record(tmp_path, config))
    assert encode(loaded)["optimizer"] == partial  # a report shows it
    assert encode(loaded)["row_order"] == {"function": "evil:order"}
    with pytest.raises(UserError, match="evil:order of the run was not imported"):
        loaded.row_order()
    with pytest.raises(UserError, match=r"evil:order\. Use --trust-code"):
        load_config(tmp_path, functions=("row_order",))  # for verify


def test_the_folders_of_a_record_are_used_only_with_trust_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "code").mkdir()
    body = "def keep(row): return True\n"
    (tmp_path / "code" / "stranger_of_folder.py").write_text(body)
    (tmp_path / "link").symlink_to(tmp_path / "code")
    config = with_data(filter={"function": "stranger_of_folder:keep"})
    folders = [str(tmp_path / "link"), str(tmp_path / "code")]
    message = refusal(tmp_path / "run", config, import_from=folders)
    assert message == REFUSED.format("stranger_of_folder:keep")
    assert not set(folders) & set(sys.path)
    assert "stranger_of_folder" not in sys.modules
    with allow(code=True):
        assert load_config(tmp_path / "run").task.data.filter({}) is True
    del sys.modules["stranger_of_folder"]


def test_permissions_come_from_the_command_line_only(tmp_path):
    run = write_record(tmp_path / "run", with_data(path="rows.pkl", trust_pickle=True))
    with pytest.raises(UserError, match=r"pickled.*Use --trust-pickle to read it"):
        load_config(run)
    assert load_config(run, needs_data=False).task.data.trust_pickle is False
    with allow(pickle=True):
        assert load_config(run).task.data.trust_pickle is True
    harmless = write_record(tmp_path / "other", encode(BASE))
    with allow(pickle=True):
        assert load_config(harmless).task.data.trust_pickle is False


def test_metrics_of_the_hub_are_code(tmp_path):
    config = encode(BASE)
    config["task"]["metrics"] = ["accuracy", "hub:./evil"]
    assert refusal(tmp_path, config) == REFUSED.format("hub:./evil")
    assert load_config(tmp_path, needs_data=False).task.metrics == ("accuracy", "hub:./evil")
    with allow(code=True):
        assert load_config(tmp_path).task.metrics == ("accuracy", "hub:./evil")


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, []),
        ({"optimizer": functools.partial(optim.adamw, eps=1e-6), "schedule": own_rate}, []),
        ({"task": OwnTask()}, ["--trust-code"]),
        ({"task": replace(BASE.task, metrics=("hub:glue:mrpc",))}, ["--trust-code"]),
        (
            {"task": OwnTask(data=Data(sources=(Data(path="a.pkl", trust_pickle=True),)))},
            ["--trust-code", "--trust-pickle"],
        ),
    ],
)
def test_the_report_after_training_may_run_what_training_ran(change, options):
    assert options_needed(replace(BASE, **change)) == options


def test_a_script_in_this_folder_is_not_taken_for_a_metric_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    message = (
        r"'hub:accuracy' is a metric of the Hub, but .* Write hub:\./accuracy to run the script"
    )
    with pytest.raises(UserError, match=message):
        metrics.build("hub:accuracy", metrics.REGRESSION, ())


@pytest.mark.parametrize("task", [{"pairs": 3}, {"class": None}, {"class": "ftloop:"}])
def test_a_record_of_another_shape_is_one_error(tmp_path, task):
    assert refusal(tmp_path, encode(BASE) | {"optimizer": {"function": "a:b"}, "task": task})


def test_a_record_that_is_nested_deeply_is_one_error(tmp_path):
    folder = write_record(tmp_path, with_data(columns="NESTED"))
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"NESTED"', "[" * 100_000 + "]" * 100_000))
    with pytest.raises(UserError, match=r"config\.json"):
        load_config(folder)


@pytest.mark.parametrize("name", ["sql", "csv", "generator"])
def test_readers_of_the_library_are_no_data(name):
    with pytest.raises(UserError, match=f"'{name}' is a reader of the library datasets"):
        Data(path=name, options={"con": "sqlite:///rows.db"}).read()


# The commands, on a run whose record was changed


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run of one step with two splits."""
    folder = tmp_path_factory.mktemp("trusted")
    command = ["configs/text.py", "--model", tiny("bert"), "--run-dir", folder / "run"]
    command += ["--label-column", "colour", "--max-length", "32", "--data.files"]
    for seed, (split, count) in enumerate({"train": 24, "validation": 9}.items()):
        command += [split, write_csv(folder / f"{split}.csv", sentences(count, seed))]
    result = run_script("train.py", *command, "--batch-size", "8", "--max-steps", "1")
    assert result.code == 0, result.err
    return folder / "run"


def change_record(run: Path, copy: Path, **fields) -> Path:
    """Copy a run and change fields of its data."""
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    record["config"]["task"]["data"] |= fields
    (copy / "config.json").write_text(json.dumps(record))
    return copy


def test_no_command_runs_what_a_record_names(run, tmp_path):
    witness = tmp_path / "it_ran"
    popen = {"function": "subprocess:Popen", "arguments": [["touch", str(witness)]], "options": {}}
    copy = change_record(run, tmp_path / "run", map=popen)
    out = str(tmp_path / "out.parquet")
    results = [
        run_script("evaluate.py", copy),
        run_script("predict.py", copy, "--file", run.parent / "train.csv"),
        run_script_of_ftloop("report", copy),
        run_script_of_ftloop("compare", run, copy, "--out", str(tmp_path / "compare.html")),
        run_script_of_ftloop("features", copy, "--out", out, "--pretrained"),
        run_script_of_ftloop("card", copy, "--overwrite"),
    ]
    for result in results:
        assert (result.code, result.err.strip()) == (
            2,
            f"error: {REFUSED.format('subprocess:Popen')}",
        )
    # These call no function of the data.
    assert run_script_of_ftloop("verify", copy).code == 0
    assert run_script("predict.py", copy, "the sky is blue").code == 0
    assert not witness.exists()


class Witness:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_no_command_reads_a_pickle_because_a_record_says_so(run, tmp_path):
    witness = tmp_path / "it_ran"
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(Witness(witness)))
    fields = {"files": {}, "path": str(tmp_path / "rows.pkl"), "trust_pickle": True}
    copy = change_record(run, tmp_path / "run", **fields)
    results = [run_script("evaluate.py", copy), run_script_of_ftloop("report", copy)]
    for result in results:
        assert result.code == 2
        assert "Use --trust-pickle to read it." in result.err
    assert run_script("predict.py", copy, "the sky is blue").code == 0
    assert not witness.exists()


def test_a_run_is_evaluated_without_its_trackers(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "config.json").read_text())
    record["config"]["track"] = ["comet_ml"]  # which is not installed
    (copy / "config.json").write_text(json.dumps(record))
    assert run_script("evaluate.py", copy).code == 0


def test_a_run_of_an_own_config_is_evaluated_with_trust_code(run, tmp_path, fresh_imports):
    file = tmp_path / "config_to_trust.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from ftloop.cli import Job\n"
        "from ftloop.data import Data\n"
        "from ftloop.tasks import TextClassification\n"
        "def keep(row): return 'red' not in row['text']\n"
        "@dataclass(frozen=True)\n"
        "class Trusted(TextClassification): pass\n"
        f"files = {{'train': {str(run.parent / 'train.csv')!r}}}\n"
        "data = Data(files=files, filter=keep, validation=4)\n"
        "task = Trusted(model='m', label_column=('colour',), max_length=32, data=data)\n"
        f"config = Job(task=task, run_dir={str(tmp_path / 'run')!r}, max_steps=2)\n"
    )
    model = json.loads((run / "config.json").read_text())["config"]["task"]["model"]
    words = [str(file), "--model", model, "--epochs", "1"]
    assert run_script("train.py", *words).code == 0
    names = "config_to_trust:Trusted, config_to_trust:keep"
    refused = run_script("evaluate.py", tmp_path / "run")
    assert (refused.code, refused.err.strip()) == (2, f"error: {REFUSED.format(names)}")
    assert run_script("evaluate.py", tmp_path / "run", "--trust-code").code == 0
    assert run_script("predict.py", tmp_path / "run", "the sky", "--trust-code").code == 0
    # Resuming needs no option: the person names the config file.
    (tmp_path / "run" / "scores.json").unlink()
    again = run_script("train.py", *words)
    assert again.code == 0, again.err
    assert "resuming from" in again.err


# Models with code of their own


@pytest.fixture
def model_with_code(tiny, tmp_path, monkeypatch):
    """Return a function that makes a model folder whose Python file creates a file."""

    questions = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    witness = tmp_path / "it_ran"

    def make(base: Path, changes: dict, file: str = "config.json") -> str:
        folder = tmp_path / "with_code"
        shutil.copytree(base, folder)
        (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(content))
        return str(folder)

    yield make
    assert not witness.exists()
    assert questions == []


AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
AUTO_MAP = dict.fromkeys(AUTO_CLASSES, "evil.Evil")
WITH_CODE = "it comes with Python code of its own, and such models are not supported"


@pytest.mark.parametrize("init", ["pretrained", "random"])
@pytest.mark.parametrize("type", ["evil", "bert-generation"])  # the second one has no classifier
def test_a_model_with_code_is_not_trained(model_with_code, tiny, colours, init, type):
    model = model_with_code(tiny("bert"), {"model_type": type, "auto_map": AUTO_MAP})
    result = run_script("train.py", "configs/text.py", "--model", model, "--init", init, *colours)
    assert result.code == 2
    assert WITH_CODE in result.err
    assert "trust_remote_code" not in result.err


def test_the_code_beside_a_model_of_transformers_is_not_run(model_with_code, tiny, colours):
    model = model_with_code(tiny("bert"), {"auto_map": AUTO_MAP})
    words = ["configs/text.py", "--model", model, *colours, "--max-steps", "1"]
    for init in ("pretrained", "random"):
        result = run_script("train.py", *words, "--init", init, "--run-dir", f"{model}-{init}")
        assert result.code == 0, result.err


def test_a_tokenizer_with_code_is_not_used(model_with_code, tiny, colours):
    changes = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    model = model_with_code(tiny("bert"), changes, "tokenizer_config.json")
    result = run_script("train.py", "configs/text.py", "--model", model, *colours, "--max-steps=1")
    if result.code != 0:  # transformers may also read tokenizer.json by itself
        assert WITH_CODE in result.err
        assert "trust_remote_code" not in result.err


def test_an_image_processor_with_code_is_not_used(model_with_code, tiny, tmp_path):
    shutil.copytree(tiny("bert"), tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text("{}")
    changes = {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Evil"}}
    model = model_with_code(tmp_path / "base", changes, "preprocessor_config.json")
    with pytest.raises(UserError, match=f"image processor cannot be loaded: {WITH_CODE}"):
        ImageClassification(model=model).load_original_processor()


def test_the_first_model_of_a_run_may_have_no_code(model_with_code, run, tiny, tmp_path):
    model = model_with_code(tiny("bert"), {"model_type": "evil", "auto_map": AUTO_MAP})
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "config.json").read_text())
    record["config"]["task"]["model"] = model
    (copy / "config.json").write_text(json.dumps(record))
    words = ["--out", str(tmp_path / "out.parquet"), "--pretrained"]
    result = run_script_of_ftloop("features", copy, *words)
    assert (result.code, WITH_CODE in result.err) == (2, True)
    assert run_script("evaluate.py", copy).code == 0  # uses model/ of the run
    assert run_script_of_ftloop("report", copy).code == 0
    assert WITH_CODE in (copy / "report.html").read_text()


def test_a_run_whose_model_has_code_is_refused(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    witness = tmp_path / "it_ran"
    (copy / "model" / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    file = copy / "model" / "config.json"
    changes = {"model_type": "evil", "auto_map": AUTO_MAP}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    monkeypatch.setattr("builtins.input", lambda question="": "y")
    for result in (
        run_script("evaluate.py", copy),
        run_script("predict.py", copy, "-"),
        run_script_of_ftloop("card", copy, "--overwrite"),
    ):
        assert result.code == 2
        assert WITH_CODE in result.err
        assert "trust_remote_code" not in result.err
    assert not witness.exists()


def test_a_model_does_not_choose_a_kernel_of_the_hub(tiny, tmp_path):
    folder = tmp_path / "kernel"
    shutil.copytree(tiny("bert"), folder)
    file = folder / "config.json"
    changes = {"attn_implementation": "someone/kernel"}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(
        UserError, match="asks for 'someone/kernel', an attention kernel of the Hub"
    ):
        TextClassification(model=str(folder)).build_model()


def test_pickled_weights_run_no_code(tiny, tmp_path, colours):
    folder, witness = tmp_path / "pickled", tmp_path / "it_ran"
    shutil.copytree(tiny("bert"), folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Witness(witness)}))
    result = run_script("train.py", "configs/text.py", "--model", folder, *colours)
    assert result.code == 2
    assert "cannot be loaded" in result.err
    assert not witness.exists()
