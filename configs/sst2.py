"""DistilBERT on SST-2: is a sentence of a film review positive or negative?

    python train.py configs/sst2.py

Expected on validation: accuracy about 0.91, as published for distilbert-base-uncased. Needs the Hub, and a
GPU to be quick. The test split of the Hub has no labels: training says so and leaves it out.
"""

from ftloop import Config, Data, TextClassification

config = Config(
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
