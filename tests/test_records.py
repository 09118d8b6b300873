"""Runs on disk: a record gives the same config again and runs no code; a finished run is usable."""

import functools
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import ROOT, run_command, run_script, sentences, write_csv

from ftloop import optim
from ftloop.cli.job import Job
from ftloop.config import encode, record_text
from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.extensions import Setup
from ftloop.runs import finished
from ftloop.runs.record import add_import_folders, decode, import_folders, import_name, load_config
from ftloop.runs.trust import allow
from ftloop.task import Task
from ftloop.tasks.text_classification import TextClassification

BASE = Job(
    task=TextClassification(model="a/model", data=Data(path="rows.csv")), run_dir="runs/base"
)


@dataclass(frozen=True)
class MarginClassification(TextClassification):
    margin: float = 0.5  # an option of a fork


class PlainTask(Task):
    """A task that is not a dataclass."""


class TaskWithArgument(Task):
    def __init__(self, size):
        self.size = size


def falling(step: int, total_steps: int, warmup_steps: int) -> float:
    return 1 - step / total_steps


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch):
    """Undo what a test adds to sys.path and imports from temporary folders."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if "pytest" in file and "site-packages" not in file:
            del sys.modules[name]


def encode_and_decode(value):
    with allow(code=True):  # the classes of this file
        return decode(json.loads(json.dumps(encode(value))))


def write_record(folder: Path, config: dict, import_from: tuple[str, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"ftloop": "0.2.0", "import_from": list(import_from), "config": config}
    (folder / "config.json").write_text(json.dumps(record))


# Decoding


def test_a_task_and_a_schedule_of_a_fork_are_rebuilt():
    data = Data(files={"train": "a.csv"}, options={"quoting": 3, "sep": "\t"})
    task = MarginClassification(model="m", margin=0.25, data=data)
    config = Job(task=task, run_dir="r", schedule=falling, eval_every=10, precision="bf16")
    decoded = encode_and_decode(config)
    assert decoded == config
    assert type(decoded.task) is MarginClassification
    assert decoded.schedule is falling


@pytest.mark.parametrize("name", ["class", "function", "pairs"])
def test_columns_may_have_any_name(name):
    data = Data(path="a.csv", columns={name: "a", "text": "b"}, join={"text": name})
    task = TextClassification(model="m", data=data, label_merge={name: "other"})
    config = Job(task=task, run_dir="r")
    assert encode_and_decode(config) == config


def test_partial_functions_keep_their_arguments():
    optimizer = functools.partial(optim.adamw, betas=(0.9, 0.98), eps=1e-6)
    decoded = encode_and_decode(replace(BASE, optimizer=optimizer)).optimizer
    assert decoded.func is optim.adamw
    assert decoded.keywords == {"betas": (0.9, 0.98), "eps": 1e-6}
    assert decoded.args == ()


def test_a_task_that_is_not_a_dataclass_is_rebuilt_if_it_takes_no_arguments():
    assert isinstance(encode_and_decode(PlainTask()), PlainTask)
    with pytest.raises(UserError, match="must be a dataclass"):
        encode_and_decode(TaskWithArgument(3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"class": "ftloop.errors:UserError"}, "which is no Config, Task or Data"),
        ({"class": "ftloop.errors:root_cause"}, "which is no Config, Task or Data"),
        ({"class": "ftloop.cli.predict_options:PredictOptions"}, "no Config, Task or Data"),
        ({"function": "no_colon"}, "is not a qualified name"),
        ({"function": "ftloop.optim:no_such_name"}, "cannot be imported"),
        ({"function": "no_such_module:name"}, "cannot be imported"),
    ],
)
def test_names_that_cannot_be_used_are_errors(value, message):
    with pytest.raises(UserError, match=message), allow(code=True):
        decode(value)


# Records


def test_a_run_is_rebuilt_wherever_its_folder_was_moved(tmp_path):
    (tmp_path / "code").mkdir()
    body = "def rate(step, total_steps, warmup_steps): return 0.25\n"
    (tmp_path / "code" / "module_of_rate.py").write_text(body)
    sys.path.append(str(tmp_path / "code"))
    rate = import_name("module_of_rate:rate")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(record_text(replace(BASE, schedule=rate)))
    add_import_folders(run)

    # As in another process
    del sys.modules["module_of_rate"]
    sys.path.remove(str(tmp_path / "code"))
    moved = Path(shutil.move(run, tmp_path / "moved"))
    with allow(code=True):
        config = load_config(moved)
    assert config.run_dir == str(moved)
    assert config.schedule(1, 2, 3) == 0.25


def test_import_folders_are_those_above_the_packages(tmp_path):
    package = tmp_path / "pack" / "inner"
    package.mkdir(parents=True)
    code = "def schedule(step, total_steps, warmup_steps): return 1.0\n"
    (tmp_path / "pack" / "__init__.py").write_text(code)
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text(code)
    sys.path.append(str(tmp_path))
    for name in ("pack:schedule", "pack.inner.deep:schedule"):
        config = replace(BASE, schedule=import_name(name))
        assert import_folders(encode(config)) == [str(tmp_path)]
    assert import_folders(encode(BASE)) == []


SCRIPT = """
import sys
from pathlib import Path
from ftloop.config import Config, record_text
from ftloop.runs.record import add_import_folders
from ftloop.tasks.text_classification import TextClassification

def rate(step, total_steps, warmup_steps):
    return 0.5

if __name__ == "__main__":
    config = Config(task=TextClassification(model="m"), run_dir="r", schedule=rate)
    (Path(sys.argv[1]) / "config.json").write_text(record_text(config))
    add_import_folders(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("started_as", ["script", "module"])
def test_functions_of_a_script_are_found_again(tmp_path, started_as):
    folder, run = tmp_path / "papers", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    (folder / "own_script.py").write_text(SCRIPT)
    command = [str(folder / "own_script.py")]
    if started_as == "module":
        command = ["-m", "papers.own_script"]
    result = run_command("python", *command, str(run), PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert result.code == 0, result.err
    name = json.loads((run / "config.json").read_text())["config"]["schedule"]["function"]
    assert name == ("own_script:rate" if started_as == "script" else "papers.own_script:rate")
    with allow(code=True):
        assert load_config(run).schedule(1, 2, 3) == 0.5


@pytest.mark.parametrize("layout", ["own folder", "package above"])
def test_no_file_of_a_run_folder_is_executed(tmp_path, layout):
    run, witness = tmp_path / "runs" / "planted", tmp_path / "it_ran"
    (run / "configs").mkdir(parents=True)
    code = f"open({str(witness)!r}, 'w').close()\n"
    code += "def schedule(step, total_steps, warmup_steps): return 1.0\n"
    (run / "evil_module.py").write_text(code)
    (run / "configs" / "__init__.py").write_text(code)
    if layout == "own folder":
        folder, name, message = run, "evil_module:schedule", "cannot be imported"
    else:
        folder, name, message = run.parent, "planted.evil_module:schedule", "file of the run folder"
    write_record(run, encode(BASE) | {"schedule": {"function": name}}, (str(folder),))
    with pytest.raises(UserError, match=message), allow(code=True):
        load_config(run)
    assert not witness.exists()
    assert str(run) not in sys.path


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"config": {}}'])
def test_a_file_that_is_not_a_record_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not the record of a run"):
        load_config(tmp_path)


def test_a_record_of_something_else_than_a_config_is_an_error(tmp_path):
    write_record(tmp_path, encode(BASE)["task"])
    with pytest.raises(UserError, match=r"holds no ftloop\.Config"):
        load_config(tmp_path)


def test_a_folder_without_a_record_is_an_error_that_names_a_similar_run(tmp_path):
    write_record(tmp_path / "mrpc", encode(BASE))
    with pytest.raises(UserError, match=r"holds no run.*did you mean 'mrpc'"):
        load_config(tmp_path / "mrcp")


def test_unknown_fields_of_another_version_are_named(tmp_path):
    write_record(tmp_path, encode(BASE) | {"lookahead": 3})
    with pytest.raises(UserError, match=r"fields that ftloop\.cli\.job:Job lacks: lookahead"):
        load_config(tmp_path)


# Finished runs


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run of two steps with three splits."""
    folder = tmp_path_factory.mktemp("finished")
    command = ["train.py", "configs/text.py", "--model", tiny("bert"), "--run-dir", folder / "run"]
    command += ["--label-column", "colour", "--max-length", "32", "--data.files"]
    for seed, (split, count) in enumerate({"train": 24, "validation": 9, "test": 7}.items()):
        command += [split, write_csv(folder / f"{split}.csv", sentences(count, seed))]
    result = run_script(*command, "--batch-size", "8", "--max-steps", "2")
    assert result.code == 0, result.err
    return folder / "run"


class RecordingSetup(Setup):
    """Records which of its methods are called."""

    def __init__(self):
        self.calls = []

    def resume(self, environment):
        self.calls.append(("resume", environment))

    def prepare_model(self, model, accelerator):
        self.calls.append(("prepare_model", next(model.parameters()).device.type))

    def undo(self):
        self.calls.append(("undo", None))


def test_a_finished_run_gives_the_scores_of_its_training(run):
    scores = json.loads((run / "scores.json").read_text())
    assert finished.evaluate_run(run) == scores["test"]  # the default
    assert finished.evaluate_run(run, "validation", batch_size=64) == scores["validation"]
    other_batches = finished.evaluate_run(run, "validation", batch_size=2)
    assert other_batches == pytest.approx(scores["validation"], rel=1e-5)


def test_a_split_that_does_not_exist_is_an_error(run):
    with pytest.raises(UserError, match=r"split: .*'tset' \(did you mean 'test'\?\)"):
        finished.evaluate_run(run, "tset")


def test_predictions_are_in_the_order_of_the_rows(run):
    from datasets import Dataset

    rows = Dataset.from_list([{"text": row["text"]} for row in sentences(10, seed=5)])
    predictions = finished.predict_rows(run, rows)
    one_by_one = [finished.predict_rows(run, rows.select([row]))[0] for row in range(3)]
    assert len(predictions) == 10
    for together, alone in zip(predictions, one_by_one, strict=False):
        assert together["label"] == alone["label"]
        assert together["probability"] == pytest.approx(alone["probability"], rel=1e-5)


def test_blocks_are_predicted_one_at_a_time(run):
    from datasets import Dataset

    rows = Dataset.from_list([{"text": row["text"]} for row in sentences(10, seed=5)])
    num_read = 0

    def blocks():
        nonlocal num_read
        for block in finished.split_into_blocks(rows, 4):
            num_read += 1
            yield block

    predictions = finished.predict_blocks(run, blocks())
    block, first = next(predictions)
    assert num_read == 1
    assert len(block) == len(first) == 4
    assert [len(rest) for _, rest in predictions] == [4, 2]


def test_setups_get_the_recorded_environment_and_are_undone(run, monkeypatch):
    setup = RecordingSetup()
    monkeypatch.setattr(Job, "setups", lambda self: [setup])
    config, _, model = finished.load_run(run)
    environment = finished.recorded_environment(run)
    assert environment["torch"]
    with finished.prepare_for_inference(config, model) as (_, prepared):
        assert isinstance(prepared, type(model))
    calls = [("resume", environment), ("prepare_model", "cpu"), ("undo", None)]
    assert setup.calls == calls

    def fail():
        with finished.prepare_for_inference(config, model):
            raise ValueError("an error in the block")

    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert setup.calls == 2 * calls


def test_only_the_model_folder_is_needed(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    assert finished.recorded_environment(copy) == {}
    assert finished.evaluate_run(copy) == pytest.approx(finished.evaluate_run(run), rel=1e-5)


def test_a_run_without_a_model_is_not_finished(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "model")
    with pytest.raises(UserError, match="its training is not finished"):
        finished.load_run(copy)
