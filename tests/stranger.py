"""What a stranger plants: records that name code, models with code of their own, pickles, links to
files of the user, labels that a terminal or a page would obey, and JSON of another shape.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import sentences

SECRET = "the secret of the user"
LABELS = {
    "red": "`](https://evil.example)<b>x</b>|y",
    "green": "=cmd|' /C calc'!A0",
    "blue": "\x1b[31mred\nerror: forged\r\x9b2J\u202eabc\u2028# x",
}
CODE = "import pathlib\npathlib.Path({witness!r}).touch()\ndef order(*_): return [0]\n"


class Payload:
    """Unpickling it runs a command of the shell."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Home:
    """The folders of a test: what is the user's, the stranger's, and what commands may write."""

    def __init__(self, folder: Path):
        self.folder = folder
        names = ("user", "stranger", "runs", "out", "cache", "tmp")
        self.user, self.stranger, self.runs, self.out, self.cache, self.tmp = (
            folder / name for name in names
        )
        for name in names:
            (folder / name).mkdir()
        self.witness = self.user / "witness"  # a file that only code of the stranger creates
        (self.user / "secret.txt").write_text(SECRET)
        (self.user / "notes.md").write_text("notes of the user")
        (self.user / "folder").mkdir()
        (self.user / "folder" / "mine.txt").write_text("mine")
        self.rows = self.stranger / "rows.jsonl"
        rows = [{"text": row["text"], "label": LABELS[row["colour"]]} for row in sentences(40)]
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.write_code_of_the_stranger()

    def write_code_of_the_stranger(self) -> None:
        code = CODE.format(witness=str(self.witness))
        (self.stranger / "module_of_a_stranger.py").write_text(code)
        (self.stranger / "configs").mkdir()
        (self.stranger / "configs" / "planted.py").write_text(code)
        (self.stranger / "metric").mkdir()
        (self.stranger / "metric" / "metric.py").write_text(code)
        self.pickled = pickle.dumps(Payload(f"touch {self.witness}"))
        (self.stranger / "rows.pkl").write_bytes(self.pickled)
        (self.stranger / "link").symlink_to(self.stranger)

    def digest(self) -> dict[str, str]:
        """Return the content of what no command may change. A run folder is the stranger's, too."""
        files = [file for place in (self.user, self.stranger) for file in place.rglob("*")]
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
            for file in files
        }


# What a stranger writes into a record. Each changes the record and its config.

Change = Callable[[dict[str, Any], dict[str, Any], Home], None]


def call(name: str, home: Home) -> dict[str, Any]:
    return {"function": name, "arguments": [f"touch {home.witness}"], "options": {}}


def name_a_map(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    words = [["touch", str(home.witness)]]
    config["task"]["data"]["map"] = {"function": "subprocess:Popen", "arguments": words}


def name_an_optimizer(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["optimizer"] = call("os:system", home)


def name_a_schedule(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["schedule"] = call("ftloop.distributed:os.system", home)


def name_a_row_order(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["row_order"] = {"function": "module_of_a_stranger:order"}
    record["import_from"] = [str(home.stranger), str(home.stranger / "link")]


def name_a_file_in_configs(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["task"]["data"]["map"] = {"function": "configs.planted:order"}
    record["import_from"] = [str(home.stranger)]


def name_a_file_of_the_run(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["task"]["data"]["map"] = {"function": "module_in_the_run:order"}
    record["import_from"] = [str(home.runs / "a file of the run"), str(home.runs)]


def name_a_class(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["task"] |= {"class": "subprocess:Popen", "args": ["touch", str(home.witness)]}


def name_a_config(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["class"] = "module_of_a_stranger:Job"
    record["import_from"] = [str(home.stranger)]


def trust_a_pickle(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["task"]["data"] |= {"path": str(home.stranger / "rows.pkl"), "trust_pickle": True}


def name_a_metric(record: dict[str, Any], config: dict[str, Any], home: Home) -> None:
    config["task"]["metrics"] = [f"hub:{home.stranger / 'metric'}"]


RECORDS: dict[str, Change] = {
    "a map": name_a_map,
    "an optimizer": name_an_optimizer,
    "a schedule": name_a_schedule,
    "a row order": name_a_row_order,
    "a file in configs": name_a_file_in_configs,
    "a file of the run": name_a_file_of_the_run,
    "a class": name_a_class,
    "a config": name_a_config,
    "a pickle": trust_a_pickle,
    "a metric": name_a_metric,
}


def change_record(run: Path, home: Home, *names: str) -> None:
    record = json.loads((run / "config.json").read_text())
    for name in names:
        RECORDS[name](record, record["config"], home)
    (run / "config.json").write_text(json.dumps(record))
    (run / "module_in_the_run.py").write_text(CODE.format(witness=str(home.witness)))


# What a stranger puts into the folder


def give_the_model_code(run: Path, home: Home) -> None:
    """The model and its tokenizer ask for classes of a file in their folder."""
    model = run / "model"
    (model / "planted.py").write_text(CODE.format(witness=str(home.witness)))
    for name, classes in {
        "config.json": {
            "AutoConfig": "planted.A",
            "AutoModelForSequenceClassification": "planted.B",
        },
        "tokenizer_config.json": {"AutoTokenizer": ["planted.C", "planted.D"]},
    }.items():
        values = json.loads((model / name).read_text()) | {"auto_map": classes}
        if name == "config.json":
            values["model_type"] = "planted"
        (model / name).write_text(json.dumps(values))


def give_a_known_model_code(run: Path, home: Home) -> None:
    give_the_model_code(run, home)
    values = json.loads((run / "model" / "config.json").read_text()) | {"model_type": "bert"}
    (run / "model" / "config.json").write_text(json.dumps(values))


def pickle_the_weights(run: Path, home: Home) -> None:
    (run / "model" / "model.safetensors").unlink()
    (run / "model" / "pytorch_model.bin").write_bytes(home.pickled)


def add_pickled_weights(run: Path, home: Home) -> None:
    (run / "model" / "pytorch_model.bin").write_bytes(home.pickled)
    for file in (run / "checkpoints").glob("*/*.pt"):
        file.write_bytes(home.pickled)


LINKED = [
    *("config.json.tmp", "scores.json.tmp", "report.html", "report.html.tmp", "metrics.jsonl"),
    *("ledger.jsonl", "outputs.npz", "lengths.npy", "lengths.npy.tmp", "lock", "model.tmp"),
    *("checkpoints/step-000003.tmp", "pushed", "outputs", "compare.html"),
]


def plant_links(run: Path, home: Home) -> None:
    """Every name that a command may write in a run leads to a file or folder of the user."""
    for name in LINKED:
        file = run / name
        if file.is_dir():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
        is_folder = name in ("model.tmp", "pushed", "outputs") or name.startswith("checkpoints/")
        file.symlink_to(home.user / ("folder" if is_folder else "notes.md"))


def plant_links_in_the_model(run: Path, home: Home) -> None:
    for name in ("README.md", "README.md.tmp", "confusion_matrix.png"):
        (run / "model" / name).unlink(missing_ok=True)
        (run / "model" / name).symlink_to(home.user / "notes.md")
    (run / "model" / "vocab.txt").symlink_to(home.user / "secret.txt")


def link_the_report(run: Path, home: Home) -> None:
    (run / "report.html").unlink(missing_ok=True)
    (run / "report.html").symlink_to(home.user / "secret.txt")


def nest_the_record(run: Path, home: Home) -> None:
    (run / "config.json").write_text('{"ftloop": "0.2.0", "config": ' + 100_000 * "[")


def nest_the_logs(run: Path, home: Home) -> None:
    for file in (*run.glob("*.jsonl"), *run.glob("checkpoints/*/manifest.json")):
        file.write_text(100_000 * '{"a":')


def nest_the_scores(run: Path, home: Home) -> None:
    (run / "scores.json").write_text("[" * 100_000)


def give_values_of_other_types(run: Path, home: Home) -> None:
    record = json.loads((run / "config.json").read_text())
    config = record["config"] | {"eval_batch_size": 0, "precision": [], "seed": {"a": "b"}}
    (run / "config.json").write_text(json.dumps(record | {"config": config, "import_from": 3}))
    (run / "scores.json").write_text('{"validation": {"loss": "\\u001b[31m"}}')
    (run / "metrics.jsonl").write_text('[]\n3\n{"step": "x"}\n')
    (run / "ledger.jsonl").write_text('{"num_rows": [], "chain": 3}\n{"step": {}}\n')


FOLDERS: dict[str, Callable[[Path, Home], None]] = {
    "only labels": lambda run, home: None,
    "another run": lambda run, home: None,
    "a model with code": give_the_model_code,
    "a known model with code": give_a_known_model_code,
    "pickled weights": pickle_the_weights,
    "pickled weights besides": add_pickled_weights,
    "links": plant_links,
    "links in the model": plant_links_in_the_model,
    "a linked report": link_the_report,
    "a nested record": nest_the_record,
    "nested logs": nest_the_logs,
    "nested scores": nest_the_scores,
    "other types": give_values_of_other_types,
}


def plant_everything(run: Path, home: Home) -> None:
    change_record(run, home, *RECORDS)
    give_the_model_code(run, home)
    add_pickled_weights(run, home)
    pickle_the_weights(run, home)
    plant_links(run, home)
    plant_links_in_the_model(run, home)
