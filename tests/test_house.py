"""tools/house.py reports what breaks the rules of a house.toml, on a project of a few lines.

`make house` checks the project itself. It is not checked here, so that a fork that adds lines still
passes its tests.
"""

import runpy
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT

HOUSE = runpy.run_path(str(ROOT / "tools" / "house.py"))
RULES = """
[core]
folder = "ftloop"
max_files = 2
max_lines = 10
max_lines_per_file = 8

[limits]
max_lines_per_file = 20
max_lines_per_function = 5
max_columns = 40
reported_only = ["tests"]

[limits.functions]
"ftloop/loop.py:train" = 9

[uses]
folders = ["configs", "tests"]
libraries = ["evaluate"]

[imports]
tasks = ["data"]
data = []
report = []
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of a core, three parts and two uses that keeps the rules."""
    files = {
        "house.toml": RULES,
        "evaluate.py": "import ftloop\n",
        "ftloop/__init__.py": "",
        "ftloop/loop.py": "def train(model):\n    model.eval()\n",
        "ftloop/data/__init__.py": '"""Data. See "ftloop.report"."""\n',
        "ftloop/data/rows.py": "import evaluate\nfrom ftloop import loop\n",
        "ftloop/tasks/__init__.py": "",
        "ftloop/tasks/text.py": "from ftloop.data import rows\n",
        "ftloop/report/__init__.py": "",
        "configs/text.py": "from ftloop.tasks import text\n",
        "tests/helpers.py": "",
        "tests/test_long.py": "import helpers\n" + "\n" * 30,
    }
    for name, text in files.items():
        write(tmp_path, name, text)
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")


def problems_of(project: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the tool; return the problems that it lists, one a line."""
    status = HOUSE["main"](["--root", str(project)])
    output = capsys.readouterr().out
    if status == 0:
        assert output.endswith("The house is in order.\n")
        return []
    return [line.strip() for line in output.partition(" problems:\n")[2].splitlines()]


def test_a_project_in_order_has_no_problems(project, capsys):
    assert problems_of(project, capsys) == []


def test_only_lines_of_code_count_in_the_core(project, capsys):
    text = '''
        """A docstring

        of three lines."""

        # A comment


        NUMBERS = [
            1,  # a comment after code

        ]
        TEXT = """two
        lines"""
        class Empty:
            """A docstring."""
            field: int = 0
            """A docstring of an attribute."""
        A = 1
    '''
    write(project, "ftloop/loop.py", text)
    assert problems_of(project, capsys) == []  # eight lines of code
    write(project, "ftloop/loop.py", textwrap.dedent(text) + "B = 2\nC = 3\nD = 4\n")
    write(project, "ftloop/run.py", "")
    assert problems_of(project, capsys) == [
        "ftloop/loop.py: 11 lines of code (limit of a core file: 8).",
        "core: 11 lines of code (limit 10).",
        "core: 3 files (limit 2).",
        "ftloop/loop.py: 21 lines (limit 20).",
    ]


def test_long_functions_and_lines_are_listed(project, capsys):
    long_function = "def {}():\n" + "    pass\n" * 7
    write(project, "ftloop/loop.py", "# \n" + long_function.format("train"))
    method = textwrap.indent("\n" + long_function.format("encode"), "    ")
    write(project, "ftloop/tasks/text.py", f"class Text:{method}\n\nname = '{'x' * 40}'\n")
    write(project, "tests/test_long.py", long_function.format("test_all"))
    assert problems_of(project, capsys) == [
        "ftloop/tasks/text.py: Text.encode() has 8 lines (limit 5).",
        "ftloop/tasks/text.py: 1 lines with over 40 columns (line 12).",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "import ftloop.report",
        "from ftloop import report",
        "from . import report",
        "def f(): from ftloop import report",
        "module = 'ftloop.report'",
        "target = 'ftloop.report:build'",
    ],
)
def test_the_core_imports_no_part(project, capsys, line):
    write(project, "ftloop/loop.py", line)
    assert problems_of(project, capsys) == [
        "ftloop/loop.py:1: imports ftloop.report, but the core imports no part."
    ]


@pytest.mark.parametrize(
    "line",
    [
        "from importlib import import_module",
        "importlib.import_module(name)",
        "__import__(name)",
        "exec(text)",
        "runpy.run_path(text)",
    ],
)
def test_the_core_imports_nothing_by_a_computed_name(project, capsys, line):
    write(project, "ftloop/loop.py", line)
    (problem,) = problems_of(project, capsys)
    assert problem.startswith("ftloop/loop.py:1: uses ")
    assert problem.endswith(", a dynamic import.")


def test_a_part_imports_only_the_parts_that_the_table_lists(project, capsys):
    write(project, "ftloop/report/page.py", "def f():\n    from ftloop.data import rows\n")
    assert problems_of(project, capsys) == [
        "ftloop/report/page.py:2: imports ftloop.data.rows,"
        " but house.toml does not list report -> data."
    ]


def test_neither_the_core_nor_a_part_imports_a_use(project, capsys):
    write(project, "ftloop/loop.py", "from configs import text\n")
    write(project, "ftloop/report/page.py", "import tests.helpers\n")
    problems = problems_of(project, capsys)
    ending = "but neither the core nor a part imports a use."
    assert f"ftloop/loop.py:1: imports configs.text, {ending}" in problems
    assert f"ftloop/report/page.py:1: imports tests.helpers, {ending}" in problems


@pytest.mark.parametrize(
    "line",
    [
        "from ftloop.tasks.text import Text",
        "def f(): import ftloop.tasks.text",
        "if TYPE_CHECKING: from ftloop.tasks import text",
        "from ..tasks import text",
        "import_module('ftloop.tasks.text')",
    ],
)
def test_a_cycle_is_listed_however_it_imports(project, capsys, line):
    write(project, "ftloop/data/rows.py", line)
    problems = problems_of(project, capsys)
    closes = "which closes an import cycle."
    assert f"ftloop/data/rows.py:1: imports ftloop.tasks.text, {closes}" in problems
    assert f"ftloop/tasks/text.py:1: imports ftloop.data.rows, {closes}" in problems
    assert "parts: data, tasks import each other in a circle." in problems


def test_a_cycle_through_a_package_is_listed(project, capsys):
    write(project, "ftloop/__init__.py", "from ftloop.loop import train\n")
    write(project, "ftloop/loop.py", "from ftloop import __version__\n")
    assert problems_of(project, capsys) == [
        "ftloop/__init__.py:1: imports ftloop.loop, which closes an import cycle.",
        "ftloop/loop.py:1: imports ftloop, which closes an import cycle.",
    ]


def test_written_out_tuples_are_not_unpacked_in_calls(project, capsys):
    write(project, "configs/text.py", "f(*rows)\nf(1, *(2, 3))\n[*(4, 5)]\n")
    assert problems_of(project, capsys) == [
        "configs/text.py:2: a call unpacks a tuple that is written out; use keyword arguments."
    ]
