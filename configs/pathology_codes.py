"""Pathology reports to 38 codes: a multi-label task on a pickled dictionary of two tables.

    python -m benchmarks.pathology reports.pkl --rows 1000             writes tables of this shape
    python train.py configs/pathology_codes.py --data.trust-pickle
    python train.py configs/pathology_codes.py --data.trust-pickle --data.limit 2000 --epochs 1

The dictionary holds `total` -> `X`, a DataFrame with a column for each of eleven sections and many
missing cells, and `y`, a DataFrame with a column of 0 and 1 for each code. They are joined row by
row. All text columns become the column `report`, with the names of the sections; the other columns
are the labels. A tenth of the rows becomes the validation split, another tenth the test split.
Reading a pickle runs the code of whoever wrote it; --data.trust-pickle consents to that. Scores
depend on your reports.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification

config = Job(
    task=TextClassification(
        model="google-bert/bert-base-uncased",
        data=Data(
            path="reports.pkl",
            field=("total.X", "y"),
            join={"report": "*"},
            validation=0.1,
            test=0.1,
        ),
        text_columns=("report",),
        label_column=("*",),
        max_length=512,
        metrics=("f1_micro", "f1_macro", "subset_accuracy", "roc_auc"),
    ),
    run_dir="runs/pathology_codes",
    epochs=4,
    batch_size=32,
    micro_batch_size=8,
    learning_rate=5e-5,
    warmup=0.06,
    best_metric="f1_micro",
)
