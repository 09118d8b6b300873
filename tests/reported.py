"""Tiny runs for the tests of pages, whose texts and labels try to break out of them."""

import csv
import io
import re
import runpy
import sys
from base64 import b64decode
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

from conftest import Result, run_script, sentences, write_csv

NAMES = {"red": "<b>red</b>", "green": "_green $1$ &amp;", "blue": "\"blue'>"}
EVIL = '<script>alert("row")</script><img src="https://example.org/x.png" onerror="alert(1)">'


def texts(folder: Path, tiny, name: str = "run", *words: str) -> Path:
    """A finished run on texts: 43 + 20 + 20 rows of three classes."""
    files = []
    for seed, (split, count) in enumerate({"train": 43, "validation": 20, "test": 20}.items()):
        rows = sentences(count, seed)
        for row in rows:
            row["colour"], row["tags"] = (
                NAMES[row["colour"]],
                f"{row['colour']};{'long' if len(row['text']) > 30 else ''}",
            )
        rows[0]["text"] = f"{EVIL} {rows[0]['text']}"
        rows[1]["text"] = f'=1+1,\x0b"{rows[1]["text"]}'
        if split == "test":
            rows[2]["text"], rows[2]["colour"] = sentences(43, 0)[5]["text"], NAMES["red"]  # a leak from train
        files += [split, write_csv(folder / f"{split}.csv", rows)]
    source = ["--task.model", tiny("bert"), "--task.data.files", *files, "--task.max-length", "12"]
    sizes = ["--batch-size", "8", "--learning-rate", "5e-3", "--max-steps", "12", "--eval-every", "4"]
    return trained("configs/text.py", folder / name, *source, "--task.label-column", "colour", *sizes, *words)


def images(folder: Path) -> Path:
    """A finished run on images: 12 of 20 x 12 pixels, of two classes, one of them transparent."""
    import numpy
    from PIL import Image

    for number in range(12):
        place = folder / "photos" / ("dark", "light")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = numpy.random.default_rng(number).integers(0, 120, (12, 20, 4)) + 120 * (number % 2)
        Image.fromarray(pixels.astype("uint8"), "RGBA").save(place / f"{number}.png")
    model = ["hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16", "patch_size=4"]
    source = ["--task.data.path", str(folder / "photos"), "--task.data.validation", "0.3", "--task.image-size", "8"]
    words = [*source, "--task.init", "random", "--task.model", "vit", "--task.model-options", *model]
    return trained("configs/image.py", folder / "images", *words, "--max-steps", "2", "--batch-size", "4")


def trained(config: str, run: Path, *words: str) -> Path:
    result = run_script("train.py", config, "--run-dir", run, *words)
    assert result.code == 0, result.err
    return run


def command(*words: str) -> Result:
    """`python -m ftloop WORDS`, in this process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["ftloop/cli/__main__.py", *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            sys.modules.pop("ftloop.cli.__main__", None)  # or runpy warns where a test has imported it
            runpy.run_module("ftloop", run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        sys.argv = argv
    return Result(code, out.getvalue(), err.getvalue())


class Parsed(HTMLParser):
    """A page as a browser would take it apart: tags with attributes, words, CSVs by name."""

    def __init__(self, file: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.csv: dict[str, list[dict[str, str]]] = {}
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if "download" in found:
            head, data = found["href"].split(",", 1)
            assert head == "data:text/csv;charset=utf-8;base64"
            rows = csv.DictReader(io.StringIO(b64decode(data, validate=True).decode()))
            name = found["download"].removesuffix(".csv")
            assert name not in self.csv
            self.csv[name] = list(rows)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def figures(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "figure"]

    @property
    def sections(self) -> list[str]:
        return re.findall(r"<section id=\"[^\"]+\"><h2>([^<]+)</h2>", self.text)

    def holds(self, text: str) -> bool:
        return text in " ".join(self.words)
