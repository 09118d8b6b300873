"""Every command, run on run folders of a stranger, does nothing that the stranger wants.

The folders hold a record that names code, pickles, models with code of their own, links to files of
the user, labels that a terminal or a page would obey, and JSON of another shape. One process runs
all commands under the audit hook of audited.py.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_command, run_script
from hub_server import WRITER, Hub
from stranger import FOLDERS, RECORDS, SECRET, Home, change_record, plant_everything

# A terminal obeys these; a line feed is what ends our own lines.
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CLI = "ftloop/cli/__main__.py"
SCRIPTS = ("train.py", "evaluate.py", "predict.py")
INPUT = "y\ny\n"  # the answer to the question whether to run code, if a library asks it
# The functions of the others are called by training only.
REFUSED = {"everything", *RECORDS} - {"an optimizer", "a schedule", "a row order"}
# Every command runs on the other folders: "everything", "links", "a nested record", "other types".
COMMANDS_ON = {
    "only labels": (
        *("evaluate", "predict", "predict words", "predict input", "report", "compare"),
        *("verify", "verify two", "features", "push", "train"),
    ),
    **dict.fromkeys(RECORDS, ("evaluate", "predict", "report")),
    **dict.fromkeys(("an optimizer", "a schedule", "a row order"), ("evaluate", "verify")),
    "another run": (),
    "a model with code": ("evaluate", "predict", "features", "card"),
    "a known model with code": ("evaluate",),
    "pickled weights": ("evaluate", "predict", "features"),
    "pickled weights besides": ("evaluate", "train"),
    "links in the model": ("evaluate", "predict", "card", "push", "train"),
    "a linked report": ("report", "push"),
    "nested logs": ("report", "verify", "train"),
    "nested scores": ("report", "compare", "card", "train"),
}


def commands_on(run: Path, home: Home, train: list[str]) -> list[dict[str, Any]]:
    """Return the commands for a run folder, as COMMANDS_ON says; by default all."""
    out, other = home.out, home.runs / "another run"
    commands = {
        "evaluate": ["evaluate.py", run, "--split", "validation"],
        "evaluate again": ["evaluate.py", run, "--json", "--batch-size", 2],
        "predict": ["predict.py", run, "--file", home.rows, "--out", out / "labelled.csv"],
        "predict words": ["predict.py", run, "red sky", "blue sea", "--plot", out / "plot.png"],
        "predict input": ["predict.py", run, "-"],
        "report": [CLI, "report", run],
        "compare": [CLI, "compare", run, other, "--out", out / "compare.html"],
        "verify": [CLI, "verify", run],
        "verify two": [CLI, "verify", run, other],
        "card": [CLI, "card", run, "--overwrite"],
        "features": [CLI, "features", run, "--split", "validation", "--out", out / "f.parquet"],
        "push": [CLI, "push", run, "me/pushed"],
        "train": [*train, "--run-dir", run],
        "change": [*train, "--run-dir", run, "--allow-changes", "--epochs", 2],
    }
    names = COMMANDS_ON.get(run.name, tuple(commands))
    return [
        {"script": str(script), "words": [str(word) for word in words], "input": INPUT}
        for script, *words in (commands[name] for name in names)
    ]


@dataclass
class Audited:
    """What all commands did. `before` and `after`: what they must not change."""

    home: Home
    hub: Hub
    results: list[dict[str, Any]]
    foreign_modules: list[str]
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def audited(tiny, tmp_path_factory) -> Audited:
    home = Home(tmp_path_factory.mktemp("hostile"))
    train = ["train.py", "configs/text.py", "--model", tiny("bert"), "--data", str(home.rows)]
    train += ["--data.validation", "10", "--max-length", "32", "--batch-size", "8"]
    train += ["--max-steps", "2", "--save-every", "1", "--keep-last", "2", "--no-report"]
    trained = run_script(*train, "--run-dir", str(home.folder / "trained"))
    assert trained.code == 0, trained.err
    for name, plant in {**FOLDERS, "everything": plant_everything}.items():
        run = shutil.copytree(home.folder / "trained", home.runs / name)
        plant(run, home)
    for name in RECORDS:
        run = shutil.copytree(home.folder / "trained", home.runs / name)
        change_record(run, home, name)
    for name in ("links", "nested logs", "pickled weights besides"):  # training resumes them
        (home.runs / name / "scores.json").unlink()
    commands = [
        command for run in sorted(home.runs.iterdir()) for command in commands_on(run, home, train)
    ]
    page = ["explore", "configs/text.py", "--data", str(home.rows)]
    page += [
        "--model",
        tiny("bert"),
        "--out",
        str(home.out / "explore.html"),
        "--run-dir",
        str(home.out / "new"),
    ]
    commands.append({"script": CLI, "words": page, "input": INPUT})
    check = [*train[1:], "--check", "--run-dir", str(home.out / "new")]
    commands.append({"script": "train.py", "words": check, "input": INPUT})
    before = home.digest()
    writable = [home.runs, home.out, home.cache, home.tmp, "/dev/null"]
    with Hub() as hub:
        answer = run_audited(home.folder, commands, writable, hub)
    results = [
        command | result for command, result in zip(commands, answer["commands"], strict=True)
    ]
    return Audited(home, hub, results, answer["foreign_modules"], before, home.digest())


def run_audited(
    folder: Path, commands: list[dict[str, Any]], writable: list[Any], hub: Hub | None = None
) -> dict[str, Any]:
    """Run commands in one new process under the audit hook, and return their results."""
    plan, results = folder / "plan.json", folder / "results.json"
    addresses = [hub.url.removeprefix("http://")] if hub else []
    places = [str(place) for place in writable]
    plan.write_text(json.dumps({"commands": commands, "writable": places, "addresses": addresses}))
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITER} if hub else {}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HOME": str(folder / "user")}
    caches = (
        "HF_HOME",
        "XDG_CACHE_HOME",
        "HF_DATASETS_CACHE",
        "MPLCONFIGDIR",
        "TORCHINDUCTOR_CACHE_DIR",
    )
    environment |= {name: str(folder / "cache") for name in caches}
    environment |= {"TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    words = ("python", "tests/audited.py", str(plan), str(results))
    result = run_command(*words, timeout=600, **environment)
    assert result.code == 0, result.err
    return json.loads(results.read_text())


def title(result: dict[str, Any]) -> str:
    return " ".join([Path(result["script"]).stem, *result["words"]])


def test_every_command_is_run(audited):
    from ftloop.cli.__main__ import COMMANDS

    own = {result["words"][0] for result in audited.results if result["script"] == CLI}
    assert own == set(COMMANDS)
    assert {result["script"] for result in audited.results} == {CLI, *SCRIPTS}


def test_no_command_does_what_a_stranger_wants(audited):
    violations = {
        title(result): result["violations"] for result in audited.results if result["violations"]
    }
    assert violations == {}
    assert audited.foreign_modules == []
    assert not audited.home.witness.exists()
    assert audited.after == audited.before


def test_every_outcome_is_a_result_or_one_error(audited):
    tracebacks = [title(result) for result in audited.results if result["traceback"]]
    assert tracebacks == []
    for result in audited.results:
        assert result["code"] in (0, 1, 2), title(result)
        errors = re.findall("^error: ", result["err"], re.MULTILINE)
        assert len(errors) == (result["code"] == 2), (title(result), result["err"])


def test_no_text_is_obeyed_by_a_terminal(audited):
    for result in audited.results:
        output = result["out"] + result["err"]
        assert not OBEYED.search(output), title(result)
        assert "\nerror: forged" not in output, title(result)


def test_only_a_command_that_reads_texts_reads_standard_input(audited):
    for result in audited.results:
        if "-" not in result["words"]:
            assert result["unread_input"] == INPUT, title(result)


def test_code_of_a_record_is_refused_by_name(audited):
    for result in audited.results:
        if result["script"] == "evaluate.py" and Path(result["words"][0]).name in REFUSED:
            assert result["code"] == 2
            assert "Use --trust-" in result["err"], title(result)


def test_no_advice_of_a_library_would_run_code(audited):
    for result in audited.results:
        for advice in ("trust_remote_code", "weights_only"):
            assert advice not in result["out"] + result["err"], title(result)


def test_nothing_of_the_user_is_published(audited):
    assert audited.hub.repositories
    for repository in audited.hub.repositories.values():
        for files in repository.commits.values():
            assert not any(SECRET.encode() in content for content in files.values())
    assert not any(SECRET.encode() in content for content in audited.hub.stored.values())
    assert not any(SECRET in result["out"] + result["err"] for result in audited.results)


# The audit itself

VIOLATIONS = {
    "open": "open(outside + '/new', 'w')",
    "open by flags": "os.open(outside + '/new', os.O_RDWR | os.O_CREAT)",
    "open through a link": "open(inside + '/link', 'a')",
    "os.rename": "os.rename(inside + '/a', outside + '/a')",
    "os.remove": "os.remove(outside + '/mine')",
    "os.mkdir": "os.mkdir(outside + '/folder')",
    "os.symlink": "os.symlink(inside, outside + '/l')",
    "os.chmod": "os.chmod(outside, 0o700)",
    "os.truncate": "os.truncate(outside + '/mine', 0)",
    "os.rmdir": "shutil.rmtree(outside + '/full')",
    "foreign_module.py": "sys.path.append(outside); import foreign_module",
    "'<string>'": "exec('1')",
    "subprocess.Popen": "subprocess.run(['true'])",
    "os.system": "os.system('true')",
    "os.posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "os.exec": "os.execv('/nowhere', ['nowhere'])",
    "os.fork": "os._exit(0) if os.fork() == 0 else os.wait()",
    "pickle.find_class posix.system": "pickle.loads(b'cposix\\nsystem\\n.')",
    "a connection to 127.0.0.1:9": "socket.create_connection(('127.0.0.1', 9))",
}


def test_the_audit_sees_violations(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (outside / "full").mkdir(parents=True)
    inside.mkdir()
    for file in (outside / "mine", outside / "full" / "mine", inside / "a"):
        file.write_text("")
    (outside / "foreign_module.py").write_text("")
    (inside / "link").symlink_to(outside / "mine")
    imports = "import os, pickle, shutil, socket, subprocess, sys\n"
    imports += f"inside, outside = {str(inside)!r}, {str(outside)!r}\n"
    commands = []
    for name, code in {**VIOLATIONS, "none": "open(inside + '/new', 'w').close()"}.items():
        script = tmp_path / f"script_{len(commands)}.py"
        script.write_text(imports + code + "\n")
        commands.append({"script": str(script), "words": [name]})
    results = run_audited(tmp_path, commands, [inside])["commands"]
    for command, result in zip(commands, results, strict=True):
        own = command["script"]
        noted = [text for text in result["violations"] if not text.startswith(f"code of {own!r}")]
        assert len(noted) < len(result["violations"])  # the script itself is foreign code
        (name,) = command["words"]
        assert bool(noted) == (name != "none"), (name, noted)
        words = name.split(" by ")[0].split(" through ")[0]
        assert name == "none" or any(words in text for text in noted), (name, noted)
