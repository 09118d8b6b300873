"""Long texts with labels, and tasks on them; for test_long_text.py, test_packing.py and others."""

from pathlib import Path
from typing import Any

from conftest import sentences, write_csv

from ftloop.data import Data
from ftloop.tasks import TextClassification


def documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one to six sentences, so of up to 72 words, with the colour of the last one."""
    rows = sentences(6 * count, seed)
    texts = []
    for number in range(count):
        part = rows[6 * number : 6 * number + 1 + number % 6]
        text = " ".join(row["text"] for row in part)
        texts.append({"text": text, "colour": part[-1]["colour"]})
    return texts


def text_task(
    model: str, file: Path, rows: list[dict[str, Any]], **options: Any
) -> TextClassification:
    """A task that learns the colour of some rows, written to a file."""
    data = Data(files={"train": write_csv(file, rows)}, validation=0)
    return TextClassification(model=model, data=data, label_column="colour", **options)
