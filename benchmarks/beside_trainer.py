r"""Fine-tune a text classifier with the Hugging Face Trainer, to compare its scores and seconds.

    python -m benchmarks.beside_trainer --model MODEL --train pairs/train.csv \
        --validation pairs/validation.csv --text-columns sentence1 sentence2 --learning-rate 2e-4
    python -m benchmarks.beside_trainer --model MODEL --train goemotions/train.tsv \
        --validation goemotions/dev.tsv --format tsv --column-names text labels id \
        --label-column labels --problem multi --label-separator , \
        --label-names goemotions/labels.txt --epochs 2 --learning-rate 3e-4

Prints one line of JSON. The messages of the Trainer go to standard error.
"""

import contextlib
import csv
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tyro


@dataclass(frozen=True)
class Options:
    """A text classification by the Trainer."""

    model: str  # folder or Hub id
    train: str  # file
    validation: str  # file
    format: Literal["csv", "tsv"] = "csv"  # in tsv, a quote is a character like any other
    column_names: tuple[str, ...] = ()  # of files without a header
    text_columns: tuple[str, ...] = ("text",)  # one, or the two of a sentence pair
    label_column: str = "label"
    problem: Literal["single", "multi"] = "single"  # one class per row, or any number of labels
    label_separator: str = ","  # multi: between the labels of a row
    label_names: str | None = None
    """File with a name per line, in the order of the ids. Default: those of train, sorted."""
    threshold: float = 0.5  # multi: probability from which a label is predicted
    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.0  # optimizer steps (1 or more), or a fraction of all steps (below 1)
    max_length: int = 128  # tokens
    seed: int = 42


def read_table(options: Options, file: str) -> pd.DataFrame:
    """Read a file with all cells as texts: "null" and "3" stay as they are written."""
    layout = {"sep": "\t", "quoting": csv.QUOTE_NONE} if options.format == "tsv" else {}
    if options.column_names:
        layout |= {"names": list(options.column_names), "header": None}
    return pd.read_csv(file, dtype=str, keep_default_na=False, **layout)


def split_labels(options: Options, cells: pd.Series) -> list[list[str]]:
    """Return the labels of each row; for single-label, lists with one label."""
    if options.problem == "single":
        return [[cell] for cell in cells]
    rows = []
    for cell in cells:
        labels = [part.strip() for part in cell.split(options.label_separator)]
        rows.append([label for label in labels if label])
    return rows


def read_label_names(options: Options, cells: pd.Series) -> list[str]:
    """Return the label names in the order of their ids: from the file, or sorted from train."""
    if options.label_names is None:
        return sorted({label for labels in split_labels(options, cells) for label in labels})
    return Path(options.label_names).read_text(encoding="utf-8").splitlines()


def encode_labels(options: Options, cells: pd.Series, names: list[str]) -> list[Any]:
    """Return an id per row; for multi-label, 0.0 or 1.0 per label. Cells hold names or ids."""
    labels = split_labels(options, cells)
    ids = {name: number for number, name in enumerate(names)}
    if any(label not in ids for row in labels for label in row):
        ids = {str(number): number for number in range(len(names))}
    numbers = [[ids[label] for label in row] for row in labels]
    if options.problem == "single":
        return [row[0] for row in numbers]
    return [[float(number in row) for number in range(len(names))] for row in numbers]


def train_trainer(options: Options) -> dict[str, Any]:
    """Train with the Trainer and its defaults, and score the last weights on validation.

    Accuracy counts whole rows: for multi-label, all labels of a row must be right.
    """
    from datasets import Dataset
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    # Data
    tables = {"train": read_table(options, options.train)}
    tables["validation"] = read_table(options, options.validation)
    names = read_label_names(options, tables["train"][options.label_column])
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    datasets = {}
    for split, table in tables.items():
        texts = [table[column].tolist() for column in options.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=options.max_length)
        labels = encode_labels(options, table[options.label_column], names)
        datasets[split] = Dataset.from_dict({**encoded, "labels": labels})

    # The Trainer seeds everything but the weights of the new head, which exist before it.
    set_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        dtype="float32",
        problem_type=f"{options.problem}_label_classification",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            gradient_accumulation_steps=1,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            warmup_steps=options.warmup,
            seed=options.seed,
            save_strategy="no",
            report_to="none",
        )
        train_dataset = datasets["train"]
        trainer = Trainer(model, arguments, train_dataset=train_dataset, processing_class=tokenizer)
        began = time.perf_counter()
        num_steps = trainer.train().global_step
        seconds = time.perf_counter() - began
        logits, references, scores = trainer.predict(datasets["validation"])

    # Scores
    min_logit = math.log(options.threshold / (1 - options.threshold))
    predictions = logits.argmax(axis=1) if options.problem == "single" else logits >= min_logit
    all_labels = {"labels": range(len(names)), "zero_division": 0}
    return {
        "loop": "trainer",
        "loss": scores["test_loss"],
        "accuracy": accuracy_score(references, predictions),
        "f1_macro": f1_score(references, predictions, average="macro", **all_labels),
        "f1_micro": f1_score(references, predictions, average="micro", **all_labels),
        "steps": num_steps,
        "train_seconds": round(seconds, 1),
    }


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.beside_trainer", description=__doc__)
    with contextlib.redirect_stdout(sys.stderr):
        scores = train_trainer(options)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
