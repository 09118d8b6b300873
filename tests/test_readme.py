"""What the README shows is run: its snippets as configs, its commands as far as they need no Hub."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, run_script

from ftloop.cli.config_file import from_command_line
from ftloop.config import Config

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(
    r"^    (?:\S*/)?(?:python|torchrun .*?|accelerate launch .*?) ?(\w+\.py .*)$", README, flags=re.MULTILINE
)


@pytest.mark.parametrize("place", range(len(SNIPPETS)))
def test_each_snippet_is_a_config_that_trains(place, tiny, colours, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tmp_path / f"snippet_{place}.py"
    config.write_text(SNIPPETS[place])
    words = [*colours, "--task.model", tiny("bert"), "--max-steps", "3"]
    if "class Squares" in SNIPPETS[place]:  # its own rows, not those of files
        words = ["--task.model", tiny("bert"), "--task.max-length", "32", "--max-steps", "3", "--task.data.rows", "30"]
        words += ["--run-dir", str(tmp_path / "run")]
    result = run_script("train.py", config, *words)
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    evaluated = run_script("evaluate.py", tmp_path / "run", "--split", "validation", "--json")
    assert evaluated.code == 0, evaluated.err


def test_there_are_four_snippets_and_each_is_short():
    assert len(SNIPPETS) == 4
    assert all(len(snippet.splitlines()) <= 17 for snippet in SNIPPETS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_names_files_and_options_that_exist(command):
    script, *words = shlex.split(command)
    assert (ROOT / script).is_file()
    if script != "train.py":
        assert words[0].startswith("runs/")
        return
    if words[-1] == "--help":
        words.pop()
    assert isinstance(from_command_line(words), Config)


def test_the_file_tree_names_every_file():
    tree = README[README.index("## The files") : README.index("A run leaves")]
    named = set(re.findall(r"^\s+(\S+\.py)\s", tree, flags=re.MULTILINE))
    files = {path.relative_to(ROOT / "ftloop").as_posix() for path in Path(ROOT / "ftloop").rglob("*.py")}
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert named == {file for file in files if not file.endswith("__init__.py")} | scripts
