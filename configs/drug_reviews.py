"""Drug reviews: for which condition was the drug taken? A table that needs cleaning.

    python train.py configs/drug_reviews.py
    python train.py configs/drug_reviews.py --data.limit 2000 --epochs 1
    python train.py configs/drug_reviews.py --label-min-rows 500 --label-rare None

This is the table of chapter 5 of the Hugging Face course, UCI's Drug Review Dataset (Drugs.com).
Put drugsComTrain_raw.tsv and drugsComTest_raw.tsv into this folder, or give their paths by
--data.files. The first column of the table, the id of the patient, has no name. Rows without a
condition and reviews with fewer than 30 words are removed. HTML is unescaped. A review that occurs
under two names of a drug is kept once. Conditions with fewer than 100 rows become "other". The
score was not measured.
"""

import html
from typing import Any

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification


def unescape(row: dict[str, Any]) -> dict[str, Any]:
    """Return the text of a row without HTML escapes: `I&#039;ve` becomes `I've`."""
    return {"text": html.unescape(row["text"] or "")}


def long_enough(row: dict[str, Any], words: int = 30) -> bool:
    """Return whether a row has a condition and a review with at least this many words.

    Some conditions in the table are HTML from the site; such rows are removed too.
    """
    has_condition = bool(row["label"]) and "</span>" not in row["label"]
    return has_condition and len(row["text"].split()) >= words


config = Job(
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
