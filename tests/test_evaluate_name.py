"""`import evaluate` is the library, although evaluate.py lies at the root."""

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command

# Importing the library takes seconds, because it imports torch and transformers. Most tests search
# for a stand-in of the same name in a folder site-packages instead.
STAND_IN = {
    "__init__.py": "from .loading import load\n",
    "loading.py": "def load(name):\n    return name\n",
}

PROBE = """
import json, os

def look():
    import evaluate
    with open(os.environ["WITNESS"], "a") as stream:
        found = [evaluate.__file__, evaluate.__name__, callable(evaluate.load)]
        stream.write(json.dumps(found) + "\\n")
"""
CONFIG = PROBE + "look()\nraise SystemExit(0)\n"
# A module that the record of a run names, so that evaluate.py imports it. A spawned process runs
# evaluate.py again.
RECORDED = """
import multiprocessing
from looking import look

look()
process = multiprocessing.get_context("spawn").Process(target=look)
process.start()
process.join()
raise SystemExit(process.exitcode)
"""
SPAWNS = (
    PROBE
    + """
import torch
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, row):
        look()
        return row

def spawned(number):
    look()

if __name__ == "__main__":
    look()
    torch.multiprocessing.spawn(spawned, nprocs=1)
    list(DataLoader(Rows(), num_workers=1, multiprocessing_context="spawn"))
"""
)
PYTEST = PROBE + "def test_the_name():\n    import ftloop\n    look()\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, into which the tests write and from which they install."""
    folder = tmp_path_factory.mktemp("copied") / "project"
    shutil.copytree(
        ROOT / "ftloop", folder / "ftloop", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in (
        "train.py",
        "evaluate.py",
        "predict.py",
        "pyproject.toml",
        "requirements.txt",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of the stand-in, ".../site-packages/evaluate"."""
    folder = tmp_path_factory.mktemp("library") / "site-packages" / "evaluate"
    folder.mkdir(parents=True)
    for name, text in STAND_IN.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def seen(project, library, tmp_path):
    """`seen(*command)` runs a command in the copy; where did its processes find `evaluate`?"""

    def run(*command, at=project, stand_in=True):
        witness = tmp_path / "witness.jsonl"
        path = {"PYTHONPATH": str(library.parent)} if stand_in else {}
        # `env -C` is the shell's `cd`: the command runs as typed there.
        result = run_command("env", "-C", at, *command, WITNESS=str(witness), **path)
        assert result.code == 0, result.err
        found = [json.loads(line) for line in witness.read_text().splitlines()]
        assert all(name == "evaluate" and has_load for _, name, has_load in found)
        return [Path(file) for file, _, _ in found]

    return run


@pytest.fixture
def config(tmp_path):
    (tmp_path / "probe.py").write_text(CONFIG)
    return str(tmp_path / "probe.py")


def test_in_these_tests_it_is_the_library():
    import evaluate

    assert "site-packages" in evaluate.__file__
    assert callable(evaluate.load)


def test_in_train_run_from_another_folder_it_is_the_installed_library(seen, config, tmp_path):
    installed = importlib.metadata.distribution("evaluate").locate_file("evaluate/__init__.py")
    assert seen("python", ROOT / "train.py", config, at=tmp_path, stand_in=False) == [
        Path(installed)
    ]


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        ("python train.py", 1),
        ("python -m train", 1),
        ("python -m torch.distributed.run --standalone --nproc_per_node 2 train.py", 2),
        (
            "python -m accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 "
            "--mixed_precision no "
            "--dynamo_backend no --num_cpu_threads_per_process 1 train.py",
            1,
        ),
    ],
    ids=["python", "python -m", "torchrun", "accelerate launch"],
)
def test_in_train_it_is_the_library(seen, library, config, launcher, processes):
    assert seen(*launcher.split(), config) == [library / "__init__.py"] * processes


def test_in_evaluate_itself_and_its_spawned_processes_it_is_the_library(seen, library, tmp_path):
    (tmp_path / "looking.py").write_text(PROBE)
    (tmp_path / "recorded.py").write_text(RECORDED)
    run = tmp_path / "run"
    run.mkdir()
    record = {
        "ftloop": "0.2.0",
        "import_from": [str(tmp_path)],
        "config": {"class": "recorded:Anything"},
    }
    (run / "config.json").write_text(json.dumps(record))
    command = ("python", "evaluate.py", run, "--trust-code")
    assert seen(*command) == [library / "__init__.py"] * 2


def test_in_spawned_processes_and_workers_it_is_the_library(seen, library, project):
    (project / "spawning.py").write_text(SPAWNS)
    assert seen("python", "spawning.py") == [library / "__init__.py"] * 3


@pytest.mark.parametrize(
    "launcher", ["python -m pytest", "pytest", "pytest --import-mode=importlib"]
)
def test_in_pytest_it_is_the_library(seen, library, project, launcher):
    (project / "tests").mkdir(exist_ok=True)
    (project / "tests" / "test_probe.py").write_text(PYTEST)
    command, *words = launcher.split()
    command = Path(sys.executable).with_name(command)  # the one of this environment
    assert seen(command, *words, "-p", "no:cacheprovider") == [library / "__init__.py"]


def test_with_an_editable_install_used_elsewhere_it_is_the_library(
    seen, library, project, tmp_path
):
    pip = [
        "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    installed = run_command(
        *pip, "--no-deps", "--no-build-isolation", "--prefix", tmp_path / "env", "-e", project
    )
    assert installed.code == 0, installed.err
    (packages,) = (tmp_path / "env").rglob("site-packages")
    script = tmp_path / "own_script.py"
    script.write_text(
        PROBE + f"import site\nsite.addsitedir({str(packages)!r})\n"
        "import ftloop\n"
        f"assert ftloop.__file__ == {str(project / 'ftloop' / '__init__.py')!r}\nlook()\n"
    )
    assert seen("python", script, at=tmp_path) == [library / "__init__.py"]
    tops = [file.read_text().split() for file in packages.rglob("top_level.txt")]
    assert tops == [["ftloop"]]
