"""DistilBERT on emotion tweets: sadness, joy, love, anger, fear or surprise?

    python train.py configs/emotion.py

Expected on validation: accuracy 0.936, weighted F1 0.936. 2 epochs of 16 000 tweets. Needs the Hub.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification

config = Job(
    task=TextClassification(
        model="distilbert/distilbert-base-uncased",
        data=Data(path="dair-ai/emotion", name="split"),
        text_columns=("text",),
        metrics=("accuracy", "f1_weighted"),
    ),
    run_dir="runs/emotion",
    epochs=2,
    batch_size=64,
    learning_rate=2e-5,
    best_metric="f1_weighted",
)
