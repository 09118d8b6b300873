"""Tiny runs for the tests of report pages. Their texts and labels try to break out of the HTML."""

import csv
import io
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

from conftest import Result, run_script, run_script_of_ftloop, sentences, write_csv

LABELS = {"red": "<b>red</b>", "green": "_green $1$ &amp;", "blue": "\"blue'>"}
EVIL = '<script>alert("row")</script><img src="https://example.org/x.png" onerror="alert(1)">'


def train_on_texts(folder: Path, tiny, name: str = "run", *options: str) -> Path:
    """Train on texts: 43 + 20 + 20 rows of three classes. Return the run folder."""
    files = []
    for seed, (split, count) in enumerate({"train": 43, "validation": 20, "test": 20}.items()):
        rows = sentences(count, seed)
        for row in rows:
            second_tag = "long" if len(row["text"]) > 30 else ""
            row["tags"] = f"{row['colour']};{second_tag}"
            row["colour"] = LABELS[row["colour"]]
        rows[0]["text"] = f"{EVIL} {rows[0]['text']}"
        rows[1]["text"] = f'=1+1,\x0b"{rows[1]["text"]}'
        if split == "test":  # a row of train
            rows[2]["text"], rows[2]["colour"] = sentences(43, 0)[5]["text"], LABELS["red"]
        files += [split, write_csv(folder / f"{split}.csv", rows)]
    data = ["--model", tiny("bert"), "--data.files", *files, "--max-length", "12"]
    data += ["--label", "colour"]
    training = ["--batch-size", "8", "--learning-rate", "5e-3", "--max-steps", "12"]
    training += ["--eval-every", "4"]
    return train_run("configs/text.py", folder / name, *data, *training, *options)


def train_on_images(folder: Path) -> Path:
    """Train on 12 images of 20 x 12 pixels with an alpha channel, of two classes."""
    import numpy
    from PIL import Image

    for number in range(12):
        place = folder / "photos" / ("dark", "light")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise = numpy.random.default_rng(number).integers(0, 120, (12, 20, 4))
        pixels = noise + 120 * (number % 2)
        Image.fromarray(pixels.astype("uint8"), "RGBA").save(place / f"{number}.png")
    data = ["--data", str(folder / "photos"), "--data.validation", "0.3", "--image-size", "8"]
    model = ["--init", "random", "--model", "vit", "--model-options", "hidden_size=16"]
    model += ["num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16"]
    model += ["patch_size=4"]
    training = ["--max-steps", "2", "--batch-size", "4"]
    return train_run("configs/image.py", folder / "images", *data, *model, *training)


def train_run(config: str, run_dir: Path, *options: str) -> Path:
    """Train a run and return its folder."""
    result = run_script("train.py", config, "--run-dir", run_dir, *options)
    assert result.code == 0, result.err
    return run_dir


def run_ftloop(*words: str) -> Result:
    """Run `python -m ftloop.cli WORDS` in this process."""
    return run_script_of_ftloop(*words)


class ParsedPage(HTMLParser):
    """A page as a browser reads it: tags with their attributes, texts, and CSV files by name."""

    def __init__(self, file: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.csv: dict[str, list[dict[str, str]]] = {}
        self.html = file.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if "download" in attributes:
            head, data = attributes["href"].split(",", 1)
            assert head == "data:text/csv;charset=utf-8;base64"
            name = attributes["download"].removesuffix(".csv")
            assert name not in self.csv
            content = b64decode(data, validate=True).decode()
            self.csv[name] = list(csv.DictReader(io.StringIO(content)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def figures(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "figure"]

    @property
    def sections(self) -> list[str]:
        return re.findall(r"<section id=\"[^\"]+\"><h2>([^<]+)</h2>", self.html)

    def shows(self, text: str) -> bool:
        """Tell whether a reader sees a text."""
        return text in " ".join(self.texts)
