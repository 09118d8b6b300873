r"""Fine-tune a text classifier by the Hugging Face Trainer, to compare its scores and seconds on the same job.

    python -m benchmarks.beside_trainer --model MODEL --train pairs/train.csv --validation pairs/validation.csv \
        --format csv --text-columns sentence1 sentence2 --learning-rate 2e-4
    python -m benchmarks.beside_trainer --model MODEL --train goemotions/train.tsv --validation goemotions/dev.tsv \
        --format tsv --column-names text labels id --label-column labels --problem multi --label-separator , \
        --label-names goemotions/labels.txt --epochs 2 --learning-rate 3e-4

Prints one line of JSON; what the Trainer says goes to stderr.
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
class Job:
    model: str  # folder or Hub name
    train: str  # file
    validation: str  # file
    format: Literal["csv", "tsv"] = "csv"  # tsv: tabs divide the cells, and a quote is a character like any other
    column_names: tuple[str, ...] = ()  # of files without a header
    text_columns: tuple[str, ...] = ("text",)  # one, or the two of a sentence pair
    label_column: str = "label"
    problem: Literal["single", "multi"] = "single"  # one class a row, or any number of labels
    label_separator: str = ","  # multi: between the labels of a row
    label_names: str | None = None  # file, a name per line in the order of the ids; left out: those of train, sorted
    threshold: float = 0.5  # multi: the probability from which a row is said to have a label
    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.0  # optimizer steps (from 1) or share of all steps (below 1)
    max_length: int = 128  # tokens
    seed: int = 42


def read(job: Job, file: str) -> pd.DataFrame:
    """The cells of a file, all of them texts: "null" and "3" stay as written."""
    layout = {"sep": "\t", "quoting": csv.QUOTE_NONE} if job.format == "tsv" else {}
    header = {"names": list(job.column_names), "header": None} if job.column_names else {}
    return pd.read_csv(file, dtype=str, keep_default_na=False, **layout, **header)


def split_labels(job: Job, cells: pd.Series) -> list[list[str]]:
    """The labels of each row; a list of one for single-label."""
    if job.problem == "single":
        return [[cell] for cell in cells]
    return [[part.strip() for part in cell.split(job.label_separator) if part.strip()] for cell in cells]


def name_labels(job: Job, cells: pd.Series) -> list[str]:
    """The label names in the order of their ids: those of the file, or those that train holds, sorted."""
    if job.label_names is None:
        return sorted({label for labels in split_labels(job, cells) for label in labels})
    return Path(job.label_names).read_text(encoding="utf-8").splitlines()


def encode_labels(job: Job, cells: pd.Series, names: list[str]) -> list[Any]:
    """An id per row; for multi-label 0.0 or 1.0 per label (its loss wants floats). The cells hold names or ids."""
    labels = split_labels(job, cells)
    ids = {name: number for number, name in enumerate(names)}
    if any(label not in ids for row in labels for label in row):
        ids = {str(number): number for number in range(len(names))}
    numbers = [[ids[label] for label in row] for row in labels]
    if job.problem == "single":
        return [row[0] for row in numbers]
    return [[float(number in row) for number in range(len(names))] for row in numbers]


def run_trainer(job: Job) -> dict[str, Any]:
    """Train by the Trainer with its defaults, and score the last weights on validation.

    Accuracy is of whole rows: for multi-label, all labels of a row must be right.
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

    cells = {split: read(job, file) for split, file in (("train", job.train), ("validation", job.validation))}
    names = name_labels(job, cells["train"][job.label_column])
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    rows = {}
    for split, frame in cells.items():
        texts = [frame[column].tolist() for column in job.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=job.max_length)
        rows[split] = Dataset.from_dict({**encoded, "labels": encode_labels(job, frame[job.label_column], names)})

    set_seed(job.seed)  # the Trainer seeds everything but the weights of the new head, which exist before it
    model = AutoModelForSequenceClassification.from_pretrained(
        job.model,
        dtype="float32",
        problem_type=f"{job.problem}_label_classification",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=job.epochs,
            per_device_train_batch_size=job.batch_size,
            per_device_eval_batch_size=job.batch_size,
            gradient_accumulation_steps=1,
            learning_rate=job.learning_rate,
            weight_decay=job.weight_decay,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            warmup_steps=job.warmup,
            seed=job.seed,
            save_strategy="no",
            report_to="none",
        )
        trainer = Trainer(model, arguments, train_dataset=rows["train"], processing_class=tokenizer)
        start = time.perf_counter()
        steps = trainer.train().global_step
        seconds = time.perf_counter() - start
        logits, truth, scores = trainer.predict(rows["validation"])

    least = math.log(job.threshold / (1 - job.threshold))
    guess = logits.argmax(axis=1) if job.problem == "single" else logits >= least
    every_label = {"labels": range(len(names)), "zero_division": 0}
    return {
        "loop": "trainer",
        "loss": scores["test_loss"],
        "accuracy": accuracy_score(truth, guess),
        "f1_macro": f1_score(truth, guess, average="macro", **every_label),
        "f1_micro": f1_score(truth, guess, average="micro", **every_label),
        "steps": steps,
        "train_seconds": round(seconds, 1),
    }


def main() -> None:
    job = tyro.cli(Job, description=__doc__)
    with contextlib.redirect_stdout(sys.stderr):
        scores = run_trainer(job)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
