"""Write what the docs repeat from the code: docs/config.md, and the two functions in README.md.

    python -m docs.generate

docs/config.md is the reference of all options, made from the fields of the dataclasses and the
comments beside them. README.md shows `train_step` and `train` of ftloop/loop.py, without docstrings
and blank lines and with longer lines. Tests compare both files with the code.
"""

import ast
import inspect
import io
import itertools
import re
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README, CONFIG_PAGE = ROOT / "README.md", ROOT / "docs" / "config.md"
COLUMNS = 118  # of the code in README.md

INTRODUCTION = """\
# Every option

Written by `python -m docs.generate` from the dataclasses of ftloop and compared with them by a
test: to change a description, change the comment beside the field. `--help-all` after a config file
prints the same descriptions with the values of that file.

Every field is an option, and every option is a field. The config file overrides the defaults of
the dataclasses, and the command line overrides the config file.

| in Python | on the command line |
|---|---|
| `Job(batch_size=16)` | `--batch-size 16` |
| `TextClassification(max_length=64)` | `--max-length 64`: options of the task have no prefix |
| `Data(path="reviews.csv")` | `--data.path reviews.csv`, or `--data reviews.csv` |
| `report=False`, a `bool` | `--no-report`; `--report` for True |
| `metrics=("accuracy", "f1")`, a tuple | `--metrics accuracy f1` |
| `options={"sep": ";"}`, a dictionary | `--data.options 'sep=;'`, or `--data.options sep ';'` |
| `optimizer=sgd`, a function | `--optimizer my_module:sgd` |

The fields that a subclass of your own adds are options as well, with their comments as help; see
[forking.md](forking.md). Options of the Hugging Face Trainer and of timm are answered with the name
that ftloop has for them; [trainer-names.md](trainer-names.md) lists them.
"""

SHORT_FORMS = {
    "--data.path": "--data",
    "--text-columns": "--text",
    "--label-column": "--label",
    "--image-column": "--image",
}
TYPES = {  # as a value is written on the command line
    "bool": "flag",
    "dict[str, Any]": "KEY=VALUE ...",
    "LogLevel": "debug, info, warning or error",
    "ProblemType": "one of transformers' problem types",
}


class Option(NamedTuple):
    """A row of a table of options."""

    names: list[str]  # on the command line; for a field that only Python can set, its name
    type: str
    default: str  # "" if a value must be given
    text: str


def options_of(cls: type, prefix: str = "") -> Iterator[Option]:
    """Yield the options that a dataclass adds to those of its bases.

    Their text is the string below a field or, without one, the comment at the end of its line.
    Raises ValueError for a field that has neither.
    """
    source = textwrap.dedent(inspect.getsource(cls))
    comments = read_comments(source)
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    for node, following in itertools.zip_longest(body, body[1:]):
        if not isinstance(node, ast.AnnAssign):
            continue
        name, annotation = ast.unparse(node.target), ast.unparse(node.annotation)
        if "ClassVar" in annotation or name in ("task", "data"):
            continue
        text = comments.get(node.end_lineno or 0, "")
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        if not text:
            raise ValueError(f"{cls.__name__}.{name} has no comment that describes it")
        option = f"--{prefix}{name.replace('_', '-')}"
        names = [option, *find_aliases(node.annotation)]
        if option in SHORT_FORMS:
            names.append(SHORT_FORMS[option])
        if "Suppress" in annotation:
            names = [name]
        kind = describe_type(node.annotation)
        yield Option(names, kind, describe_default(node.value), capitalize(text))


def capitalize(text: str) -> str:
    """Begin a description with a capital letter, unless its first word is a value: "auto: ..."."""
    is_value = text.partition(" ")[0].endswith(":")
    text = text if is_value else text[0].upper() + text[1:]
    return text if text.endswith("...") else text.removesuffix(".")


def read_comments(source: str) -> dict[int, str]:
    """Return the comments in some code by the numbers of their lines, from 1 on."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def find_aliases(annotation: ast.expr) -> list[str]:
    """Return the other names of an option: `aliases=[...]` in its annotation for tyro."""
    keywords = [node for node in ast.walk(annotation) if isinstance(node, ast.keyword)]
    lists = [ast.literal_eval(node.value) for node in keywords if node.arg == "aliases"]
    return [alias for aliases in lists for alias in aliases]


def describe_type(annotation: ast.expr) -> str:
    """Describe the values of an option: "number or auto", "text ...", "MODULE:NAME"."""
    text = ast.unparse(annotation).replace("'", '"')
    if text in TYPES:
        return TYPES[text]
    if isinstance(annotation, ast.BinOp):  # a union
        parts = [describe_type(annotation.left), describe_type(annotation.right)]
        return " or ".join(part for part in parts if part != "None")
    if isinstance(annotation, ast.Subscript):
        outer, inner = ast.unparse(annotation.value), annotation.slice
        if outer == "Annotated" and isinstance(inner, ast.Tuple):
            return describe_type(inner.elts[0])
        if outer == "Literal":
            values = ast.literal_eval(inner)
            return " or ".join(values if isinstance(values, tuple) else [values])
        if outer == "tuple" and isinstance(inner, ast.Tuple):
            return f"{describe_type(inner.elts[0])} ..."
        if outer == "Callable":
            return "MODULE:NAME"
    return {"str": "text", "int": "whole number", "float": "number", "Any": "Data"}.get(text, text)


def describe_default(value: ast.expr | None) -> str:
    """Return a default as Python writes it; "" if there is none."""
    if value is None:
        return ""
    text = ast.unparse(value).replace("'", '"')
    factory = re.search(r"field\(default_factory=(\w+)\)", text)
    return {"dict": "{}"}.get(factory[1], factory[1]) if factory else text


def build_table(options: Iterator[Option]) -> list[str]:
    """Return the lines of a table of options."""
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    for option in options:
        only_python = "" if option.names[0].startswith("--") else ", in Python only"
        names = "<br>".join(f"`{name}`" for name in option.names) + only_python
        default = f"`{option.default}`" if option.default else "required"
        cells = [names, option.type, default, option.text]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def build_config_page() -> str:
    """Return the text of docs/config.md."""
    from ftloop.cli.job import Job
    from ftloop.config import Config
    from ftloop.data import Data
    from ftloop.optim import SCHEDULES
    from ftloop.tasks import (
        Classification,
        DataTask,
        ImageClassification,
        PretrainedTask,
        TextClassification,
        TextTask,
        TokenClassification,
    )

    sections: list[tuple[str, type, str, str]] = [
        ("Training", Config, "", "The fields of the core, `ftloop/config.py`."),
        ("Speed, logs, report and Hub", Job, "", "What `ftloop/cli/job.py` adds to them."),
        ("Every task: the model", PretrainedTask, "", "`ftloop/tasks/pretrained.py`."),
        ("Tasks on texts", TextTask, "", "`ftloop/tasks/text.py`."),
        (
            "Classification",
            Classification,
            "",
            "Of texts and images. `ftloop/tasks/classification.py`.",
        ),
        (
            "Text classification",
            TextClassification,
            "",
            "In addition. `ftloop/tasks/text_classification.py`.",
        ),
        (
            "Token classification",
            TokenClassification,
            "",
            "Instead of the options of classification. `ftloop/tasks/token_classification.py`.",
        ),
        ("Image classification", ImageClassification, "", "In addition. `ftloop/tasks/image.py`."),
        ("Rows", Data, "data.", "`ftloop/data/source.py`; [data.md](data.md) has examples."),
    ]
    assert not list(options_of(DataTask)), "DataTask has options that the page would lack"
    lines = [INTRODUCTION]
    for title, cls, prefix, text in sections:
        lines += [f"## {title}", "", text, "", *build_table(options_of(cls, prefix)), ""]
    names = ", ".join(SCHEDULES.split())
    lines += ["## Names", "", f"Schedules: {names}. Or a function.", ""]
    return "\n".join([*lines, *describe_metrics(), "", *describe_augmentations()]) + "\n"


def describe_metrics() -> list[str]:
    """Return the lines about the names of metrics."""
    from ftloop.tasks import metrics

    kinds = {
        metrics.SINGLE: "One class per row",
        metrics.MULTI: "Several labels per row",
        metrics.REGRESSION: "Regression",
    }
    lines = ["Metrics, by the kind of problem:", ""]
    for problem_type, kind in kinds.items():
        scores = metrics.SCORES.items()
        names = ", ".join(name for name, score in scores if problem_type in score.problem_types)
        default = ", ".join(metrics.DEFAULTS[problem_type])
        lines.append(f"- {kind}: {names}. Default: {default}.")
    binary = ", ".join(name for name, score in metrics.SCORES.items() if score.binary)
    lines.append(f"- For exactly two classes, of which the second is the positive one: {binary}.")
    return [*lines, "- `hub:NAME` is a metric of the Hub. Its script is executed."]


def describe_augmentations() -> list[str]:
    """Return the table of augmentations."""
    from ftloop.tasks.augmentation import AUGMENTATIONS

    lines = [
        "Augmentations of images, applied in this order:",
        "",
        "| name | default strength | largest | the strength is |",
        "|---|---|---|---|",
    ]
    for name, (default, maximum, meaning) in AUGMENTATIONS.items():
        if default is None:
            lines.append(f"| {name} | - | - | (it has none) |")
        else:
            lines.append(f"| {name} | {default:g} | {maximum:g} | {meaning} |")
    return lines


def read_functions(file: Path = ROOT / "ftloop" / "loop.py") -> str:
    """Return `train_step` and `train` without their docstrings, as they are in the file."""
    source = file.read_text(encoding="utf-8")
    lines, functions = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in ("train_step", "train"):
            docstring = node.body[0]
            signature = lines[node.lineno - 1 : docstring.lineno - 1]
            functions.append("\n".join(signature + lines[docstring.end_lineno : node.end_lineno]))
    return "\n\n".join(functions) + "\n"


def shorten(code: str) -> str:
    """Format functions with the long lines that README.md has room for, without blank lines."""
    command = [sys.executable, "-m", "ruff", "format", "--line-length", str(COLUMNS), "-"]
    options = ["--config", "format.skip-magic-trailing-comma=true"]
    formatted = subprocess.run(
        [*command, *options], input=code, capture_output=True, text=True, check=True
    ).stdout
    lines = [line for line in formatted.splitlines() if line.strip()]
    text = "\n".join(lines).replace("\ndef ", "\n\ndef ") + "\n"
    return re.sub(r"(?<=\($)(\n    [^\n]+,)+$", fill_parameters, text, count=1, flags=re.M)


def fill_parameters(found: re.Match[str]) -> str:
    """Write the parameters of a function on as few lines as possible instead of one on each."""
    parameters = ", ".join(line.strip(" ,").replace(" ", "~") for line in found[0].split("\n")[1:])
    filled = textwrap.fill(parameters + ",", COLUMNS - 4).replace("~", " ")
    return "\n" + textwrap.indent(filled, "    ")


def update_readme(text: str) -> str:
    """Return README.md with the functions as they are in ftloop/loop.py now."""
    pattern = r"(```python\n)def train_step\(.*?(```\n)"
    code = shorten(read_functions())
    updated, count = re.subn(pattern, lambda found: found[1] + code + found[2], text, flags=re.S)
    if count != 1:
        raise ValueError("README.md has no block of code that begins with `def train_step(`")
    return updated


if __name__ == "__main__":
    CONFIG_PAGE.write_text(build_config_page(), encoding="utf-8")
    README.write_text(update_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(CONFIG_PAGE.relative_to(ROOT), README.relative_to(ROOT), sep="\n")
