"""What a drug was taken for, from its review: a table brought into shape by options and two functions of a row.

    python train.py configs/drug_reviews.py
    python train.py configs/drug_reviews.py --task.data.limit 2000 --epochs 1
    python train.py configs/drug_reviews.py --task.label-min-rows 500 --task.label-rare None

The table of chapter 5 of the Hugging Face course, UCI's Drug Review Dataset (Drugs.com): put drugsComTrain_raw.tsv and
drugsComTest_raw.tsv here, or name them by --task.data.files. Its first column, the patient's id, has no name. Left out
are rows without a condition, and reviews of fewer than 30 words; HTML is unescaped, a review that occurs under two
names of a drug is kept once, and conditions with fewer than 100 rows become "other". The score was not measured.
"""

import html
from typing import Any

from ftloop import Config, Data, TextClassification


def unescape(row: dict[str, Any]) -> dict[str, Any]:
    """The texts of a row without HTML: `I&#039;ve` becomes `I've`."""
    return {"text": html.unescape(row["text"] or "")}


def long_enough(row: dict[str, Any], words: int = 30) -> bool:
    """Whether a row has a condition and a review of so many words. Some conditions hold the site's HTML instead."""
    return bool(row["label"]) and "</span>" not in row["label"] and len(row["text"].split()) >= words


config = Config(
    task=TextClassification(
        model="distilbert/distilbert-base-uncased",
        data=Data(
            files={"train": "drugsComTrain_raw.tsv", "test": "drugsComTest_raw.tsv"},
            columns={"patient_id": "Unnamed: 0", "text": "review", "label": "condition"},
            map=unescape,
            filter=long_enough,
            drop_duplicates=True,
            validation=0.1,
        ),
        label_lower=True,
        label_min_rows=100,
        label_rare="other",
        max_length=256,
        metrics=("accuracy", "f1_macro"),
    ),
    run_dir="runs/drug_reviews",
    epochs=2,
    batch_size=32,
    learning_rate=5e-5,
    warmup=0.06,
    best_metric="f1_macro",
)
