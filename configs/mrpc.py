"""BERT on MRPC: do two sentences say the same? As in the Hugging Face course.

    python train.py configs/mrpc.py

Expected on validation: accuracy 0.858, F1 0.900. 3 epochs of 3 668 pairs, about two minutes on a
GPU. Needs the Hub.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification

config = Job(
    task=TextClassification(
        model="google-bert/bert-base-uncased",
        data=Data(path="nyu-mll/glue", name="mrpc"),
        text_columns=("sentence1", "sentence2"),
        label_column=("label",),
        metrics=("accuracy", "f1"),
    ),
    run_dir="runs/mrpc",
    epochs=3,
    batch_size=8,
    learning_rate=5e-5,
    best_metric="f1",
)
