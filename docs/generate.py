"""Write docs/config.md, the reference of all options, from the dataclasses: names, types, defaults, and the comments
beside them, which are what --help says too.

    python -m docs.generate

A test compares the page with what this writes.
"""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).with_name("config.md")
HEAD = """\
# Every option

Written by `python -m docs.generate` from the dataclasses of `ftloop/`, and compared with them by a test: change the
comment beside a field there, not this page. `python train.py configs/text.py --help` says the same, with the values of
that config.

A field is an option, and an option a field: `--task.data.path reviews.csv` is `data=Data(path="reviews.csv")` of the
task. The default of the dataclass gives way to the config file, and that to the command line. Of a `bool`, `--report`
says yes and `--no-report` no. The values of a `tuple` follow each other (`--task.metrics accuracy f1`). A `dict` is
`KEY VALUE KEY VALUE` or `KEY=VALUE KEY=VALUE`, a function is `MODULE:NAME`. The fields of a fork's subclass are options
too, with their comments as help ([forking.md](forking.md)).
"""
PLAIN = {  # types that are written for the command line, in words for a reader
    "Pairs": "dict",
    "Function": "function",
    "OptionalFunction": "function | None",
    "Schedule": "str | function",
    "ProblemType | None": "Literal[...] | None",
    "LogLevel": 'Literal["debug", "info", "warning", "error"]',
}
HOLDERS = {  # fields that hold options, and are none themselves
    "task": "what is learned, and from which data: the options of a task, below",
    "data": "where rows come from: the options of `Data`, below",
}


class Option(NamedTuple):
    spellings: tuple[str, ...]  # on the command line; none: in Python alone
    name: str  # of the field
    type: str
    default: str  # as Python writes it; "" where a value must be given
    meaning: str


def options_of(owner: type, prefix: str) -> Iterator[Option]:
    """The fields that a dataclass adds to those of its bases. Raises ValueError for one without a comment."""
    source = inspect.getsource(owner)
    said = comments(source)
    for field in ast.parse(source).body[0].body:
        if not isinstance(field, ast.AnnAssign) or ast.unparse(field.annotation).startswith("ClassVar"):
            continue
        name, kind = field.target.id, ast.unparse(field.annotation)
        meaning = HOLDERS.get(name) or said.get(field.end_lineno)
        if meaning is None:
            raise ValueError(f"{owner.__name__}.{name} has no comment that says what it means")
        spelled = f"--{prefix}{name.replace('_', '-')}{'.*' * (name in HOLDERS)}"
        given = [] if "Suppress" in kind else [spelled, *aliases(field.annotation)]
        yield Option(tuple(given), name, plain(field.annotation), default(field.value), meaning)


def comments(source: str) -> dict[int, str]:
    """The comments of some lines of code, by the numbers of these lines from 1 on."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def plain(annotation: ast.expr) -> str:
    """A type as a reader understands it: without what is said to tyro."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        annotation = annotation.slice.elts[0]
    text = ast.unparse(annotation).replace("'", '"')
    return PLAIN.get(text, text).replace("tuple[Any, ...]", "tuple[Data, ...]")


def aliases(annotation: ast.expr) -> list[str]:
    """The other spellings of an option: `aliases=[...]` in what is said to tyro."""
    lists = [word.value for word in ast.walk(annotation) if isinstance(word, ast.keyword) and word.arg == "aliases"]
    return [name for found in lists for name in ast.literal_eval(found)]


def default(value: ast.expr | None) -> str:
    """A default as Python writes it; those that are made for each object, as what is made."""
    text = "" if value is None else ast.unparse(value).replace("'", '"')
    return {"no_pairs()": "{}", "field(default_factory=dict)": "{}", "field(default_factory=Data)": "Data()"}.get(
        text, text
    )


def table(options: Iterator[Option]) -> list[str]:
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for option in options:
        spelled = "<br>".join(f"`{word}`" for word in option.spellings) or f"`{option.name}`, in Python alone"
        value = f"`{option.default}`" if option.default else "must be given"
        cells = (spelled, f"`{option.type}`", value, option.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def page() -> str:
    """The whole page."""
    from ftloop import Classification, Config, Data, ImageClassification, TextClassification, optim
    from ftloop.tasks import image
    from ftloop.tasks import metrics

    names = {metrics.SINGLE: "one class a row", metrics.MULTI: "several labels", metrics.REGRESSION: "regression"}
    parts = [
        ("Config", Config, "", "`Config`: how a run learns, and what it leaves behind. `ftloop/config.py`."),
        (
            *("Texts and images", Classification, "task."),
            "`Classification`: the options that both tasks have. `ftloop/tasks/classification.py`.",
        ),
        ("Texts", TextClassification, "task.", "`TextClassification`, besides. `ftloop/tasks/text.py`."),
        ("Images", ImageClassification, "task.", "`ImageClassification`, besides. `ftloop/tasks/image.py`."),
        (
            *("Rows", Data, "task.data."),
            "`Data`: read by any task that has a field for it. `ftloop/data/source.py`; by example, "
            "[data.md](data.md).",
        ),
    ]
    lines = [HEAD]
    for title, owner, prefix, what in parts:
        lines += [f"## {title}", "", what, "", *table(options_of(owner, prefix)), ""]
    lines += ["## Names", "", f"- `--schedule`: {', '.join(optim.SCHEDULES)}."]
    for problem, words in names.items():
        fitting = [name for name, score in metrics.SCORES.items() if problem in score.problem_types]
        usual = ", ".join(metrics.DEFAULTS[problem])
        lines += [f"- `--task.metrics`, {words}: {', '.join(fitting)}. Left out: {usual}."]
    binary = ", ".join(name for name, score in metrics.SCORES.items() if score.binary)
    lines += [f"- Of these, {binary} are for exactly two classes, of which the second is the positive one.", ""]
    lines += ["`--task.augment`, in the order in which they are applied:", ""]
    lines += ["| name | strength, if none is given | at most | what it is |", "|---|---|---|---|"]
    for name, (strength, greatest, meaning) in image.AUGMENTATIONS.items():
        numbers = ("", "") if strength is None else (f"{strength:g}", f"{greatest:g}")
        lines.append(f"| {name} | {numbers[0]} | {numbers[1]} | {meaning or 'it has no strength'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
