"""The short help of a config file: what most people need, one line per option.

The text of an option is the comment or the docstring of its field; the short help shows its first
sentence. `--help-all`, which tyro prints, shows everything.
"""

import ast
import dataclasses
import functools
import inspect
import io
import itertools
import textwrap
import tokenize
from pathlib import Path
from typing import Any

from ftloop.cli.option_names import OptionNames
from ftloop.cli.options import format_function, format_pairs

COLUMNS = 100
# Options that the task of the config does not have are left out.
GROUPS = {
    "Data and model": {
        "--data": "PATH",
        "--data.files": "SPLIT FILE ...",
        "--text": "COLUMN ...",
        "--image": "COLUMN",
        "--label": "COLUMN ...",
        "--model": "MODEL",
        "--max-length": "TOKENS",
        "--image-size": "PIXELS",
        "--metrics": "NAME ...",
    },
    "Training": {
        "--epochs": "N",
        "--max-steps": "N",
        "--batch-size": "N",
        "--micro-batch-size": "N",
        "--learning-rate": "RATE",
        "--warmup": "STEPS",
        "--precision": "TYPE",
        "--seed": "N",
    },
    "Evaluation": {
        "--eval-every": "STEPS",
        "--best-metric": "NAME",
        "--patience": "N",
    },
    "Run": {
        "--run-dir": "FOLDER",
        "--max-minutes": "N",
        "--track": "NAME ...",
        "--check": "",
    },
}


def print_help(job: Any, file: str) -> None:
    """Print the options that most people need, with the values that the config file gives them."""
    names = OptionNames.of(job)
    print(f"usage: python train.py {file} [OPTION VALUE ...]")
    for title, group in {**GROUPS, **own_options(job, names)}.items():
        lines = []
        for option, metavar in group.items():
            path = names.fields.get(names.short_forms().get(option, option))
            if path is not None:
                lines.append(help_line(job, path, f"{option} {metavar}"))
        if lines:
            print(f"\n{title}", *lines, sep="\n")
    print("\n--help-all shows all options. In brackets: the value in the config file.")


def list_configs() -> str:
    """Return the files in configs/, each with the first line of its docstring."""
    lines = ["Configs:"]
    for file in sorted(Path(__file__).parents[2].glob("configs/*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"    configs/{file.name:<24} {docstring.partition(chr(10))[0]}")
    return "\n".join(lines)


def own_options(job: Any, names: OptionNames) -> dict[str, dict[str, str]]:
    """Return a group for each class outside of ftloop, with the options that it adds."""
    groups = {}
    for config, prefix in ((job, ""), (job.task, "task.")):
        for cls in reversed(type(config).__mro__):
            if cls is object or cls.__module__.partition(".")[0] == "ftloop":
                continue
            added = {prefix + name for name in vars(cls).get("__annotations__", {})}
            options = {option: "" for option, path in names.fields.items() if path in added}
            groups[f"Options of {cls.__name__}"] = options
    return groups


def help_line(job: Any, path: str, usage: str) -> str:
    """Return one line: the option, the first sentence of its help, and its value."""
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, job)
    text = first_sentence(field_help(type(owner), name))
    value = format_value(getattr(owner, name))
    line = f"  {usage:<26} {text}" + (f" [{value}]" if value else "")
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"


def format_value(value: Any) -> str:
    """Write a value as it is written on the command line; "" for None and for empty values."""
    if isinstance(value, dict):
        return " ".join(format_pairs(value))
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if value is None or value is False:
        return ""
    return format_function(value) if callable(value) else str(value)


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, without its full stop."""
    return text.partition(". ")[0].removesuffix(".")


def field_help(owner: type, name: str) -> str:
    """Return the comment or the docstring of a field of a dataclass; "" if it has none."""
    for cls in owner.__mro__:
        if dataclasses.is_dataclass(cls):
            text = class_help(cls).get(name)
            if text:
                return text
    return ""


@functools.cache
def class_help(cls: type) -> dict[str, str]:
    """Return the help of the fields that a class itself declares.

    It is the string below a field or, without one, the comment at the end of its line. A class
    without source code, as one defined in an interactive session, has none.
    """
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    texts = {}
    body = ast.parse(source).body[0].body
    for node, following in itertools.zip_longest(body, body[1:]):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        text = comments.get(node.end_lineno, "")
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = str(following.value.value)
        texts[node.target.id] = " ".join(text.split())
    return texts
