"""What README.md and the pages in docs/ show: blocks of code, commands, and changes of the loop."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from conftest import ROOT

LOOP = ROOT / "ftloop" / "loop.py"


def read_pages() -> dict[str, str]:
    """README.md and the pages of docs/, by name."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def blocks(page: str, language: str = "python") -> list[str]:
    """The blocks of code of one language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The commands that begin with python, without that word: in blocks of commands and tables."""
    indented = r"^    (?:\$ )?(?:zcat \S+ \| )?(?:\S*/)?python (.*)$"
    in_tables = r"`(?:torchrun|accelerate launch|python)(?: [^`]*?)? ?(\w+\.py [^`]*)`"
    found = re.findall(indented, page, flags=re.MULTILINE)
    return found + re.findall(in_tables, page)


def apply_patch(source: str, patch: str) -> str:
    """Change some lines: "-" removes a line, "+" adds one, " " is a line around the change.

    Added lines follow the line before them or, at the beginning, precede the line after them.
    """
    result, added, rest = [], [], source.splitlines()
    for line in patch.splitlines():
        sign, text = line[0], line[1:]
        if sign == "+":
            added.append(text)
            continue
        index = rest.index(text)
        result += [*added, *rest[:index]] if result else [*rest[:index], *added]
        if sign == " ":
            result.append(text)
        added, rest = [], rest[index + 1 :]
    return "\n".join([*result, *added, *rest]) + "\n"


def load_patched_loop(patch: str, imports: str, folder: Path, name: str) -> ModuleType:
    """Apply a change to ftloop/loop.py and import the result from a folder."""
    source = apply_patch(LOOP.read_text(encoding="utf-8"), patch)
    file = folder / f"{name}.py"
    file.write_text(source.replace("import torch\n", f"{imports}\nimport torch\n", 1))
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
