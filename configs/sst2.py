"""DistilBERT on SST-2: is a sentence from a film review positive or negative?

    python train.py configs/sst2.py

Expected on validation: accuracy about 0.91, as published for distilbert-base-uncased. Needs the Hub
and a GPU. The test split on the Hub has no labels; training logs that and ignores the split.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification

config = Job(
    task=TextClassification(
        model="distilbert/distilbert-base-uncased",
        data=Data(path="nyu-mll/glue", name="sst2"),
        text_columns=("sentence",),
        metrics=("accuracy",),
        max_length=64,
    ),
    run_dir="runs/sst2",
    epochs=3,
    batch_size=32,
    learning_rate=2e-5,
    warmup=0.06,
    best_metric="accuracy",
)
