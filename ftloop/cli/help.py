"""The short help of a config file: the options that most people need, one line each.

`--help-all`, which tyro prints, shows all options with the comments of their fields.
"""

import ast
import functools
import inspect
import io
import itertools
import textwrap
import tokenize
from pathlib import Path
from typing import Any

from ftloop.cli.option_names import OptionNames
from ftloop.cli.options import format_function, format_pairs, option_name

COLUMNS = 100
# Options that the task of the config does not have are left out.
GROUPS = {
    "Data and model": {
        "--data PATH": "A file, a folder, or the id of a dataset on the Hub",
        "--data.files SPLIT FILE ...": "A file per split: train a.csv validation b.csv",
        "--text COLUMN ...": "Column of the texts, or two columns for pairs",
        "--image COLUMN": "Column of the images",
        "--label COLUMN ...": "Column of the labels, or a column of 0 and 1 per label",
        "--model MODEL": "Pretrained model: a Hub id or a folder",
        "--max-length TOKENS": "Longer texts are truncated",
        "--image-size PIXELS": "Side of the images. Default: that of the model",
        "--augment NAME ...": "Random changes of training images",
        "--metrics NAME ...": "Scores to compute. Default: usual ones for the kind of labels",
    },
    "Training": {
        "--epochs N": "Passes over the training rows",
        "--max-steps N": "Optimizer steps, instead of epochs",
        "--batch-size N": "Rows per optimizer step, over all processes",
        "--micro-batch-size N": "Rows per forward pass; 'auto': as many as fit into memory",
        "--learning-rate RATE": "The highest rate, after warmup",
        "--warmup STEPS": "Optimizer steps, or a fraction of all steps if below 1",
        "--precision TYPE": "fp32, bf16 or fp16. Default: as accelerate launch, else fp32",
        "--seed N": "Seed of new weights, the order of rows, augmentation and dropout",
    },
    "Evaluation": {
        "--eval-every STEPS": "Optimizer steps between evaluations, or 'epoch'",
        "--best-metric NAME": "Score that decides which checkpoint is exported",
        "--patience N": "Stop after this many evaluations without a better score",
    },
    "Run": {
        "--run-dir FOLDER": "Folder for checkpoints, logs, the model and the report",
        "--max-minutes N": "Save and stop before a time limit; the same command resumes",
        "--track NAME ...": "Trackers: tensorboard, wandb, trackio, mlflow",
        "--push-to-hub REPO": "Upload the model to the Hub at the end",
        "--check": "Look for mistakes in the data and exit",
    },
}


def print_help(job: Any, file: str) -> None:
    """Print the options that most people need, with the values that the config file gives them."""
    names = OptionNames.of(job)
    print(f"usage: python train.py {file} [OPTION VALUE ...]")
    for title, group in {**GROUPS, **own_options(job, names)}.items():
        lines = []
        for usage, text in group.items():
            option = usage.partition(" ")[0]
            path = names.fields.get(names.short_forms().get(option, option))
            if path is not None:
                lines.append(help_line(usage, text, get_field(job, path)))
        if lines:
            print(f"\n{title}", *lines, sep="\n")
    print("\nIn brackets: the value in the config file. --help-all shows all options.")


def list_configs() -> str:
    """Return the files in configs/, each with the first line of its docstring."""
    lines = ["Configs:"]
    for file in sorted(Path(__file__).parents[2].glob("configs/*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"    configs/{file.name:<24} {docstring.partition(chr(10))[0]}")
    return "\n".join(lines)


def own_options(job: Any, names: OptionNames) -> dict[str, dict[str, str]]:
    """Return a group for each class outside of ftloop, with the options that it adds."""
    groups: dict[str, dict[str, str]] = {}
    for config, prefix in ((job, ""), (job.task, "task.")):
        for cls in type(config).__mro__:
            if cls is object or cls.__module__.partition(".")[0] == "ftloop":
                continue
            for name, text in field_texts(cls).items():
                option = option_name(prefix + name)
                if option in names.fields:
                    groups.setdefault(f"Options of {cls.__name__}", {})[option] = text
    return groups


def help_line(usage: str, text: str, value: Any) -> str:
    """Return one line: an option, what it is, and its value."""
    line = f"  {usage:<28}{text}"
    formatted = format_value(value)
    if formatted:
        line += f" [{formatted}]"
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"


def get_field(job: Any, path: str) -> Any:
    """Return the value of a field by its path: "task.data.path"."""
    return functools.reduce(getattr, path.split("."), job)


def format_value(value: Any) -> str:
    """Write a value as it is written on the command line; "" for None and for empty values."""
    if isinstance(value, dict):
        return " ".join(format_pairs(value))
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if value is None or value is False:
        return ""
    return format_function(value) if callable(value) else str(value)


def field_texts(cls: type) -> dict[str, str]:
    """Return the first sentence of the help of each field that a class itself declares.

    The help is the string below a field or, without one, the comment at the end of its line. A
    class without source code, as one defined in an interactive session, has none.
    """
    names = list(vars(cls).get("__annotations__", {}))
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return dict.fromkeys(names, "")
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
            text = " ".join(str(following.value.value).split())
        texts[node.target.id] = text.partition(". ")[0].removesuffix(".")
    return texts
