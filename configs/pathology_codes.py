"""Pathology reports to 38 codes: multi-label, one 0/1 column per code, from your own table.

    python train.py configs/pathology_codes.py --task.data.path reports.csv
    python train.py configs/pathology_codes.py --task.data.path reports.parquet --task.label-column C18 C19 C20

The table has a column `report` and the columns `code_01` to `code_38`; other names are given as in the second command.
A tenth of the rows is cut off as validation, another as test. The score depends on your reports.
"""

from ftloop import Config, Data, TextClassification

config = Config(
    task=TextClassification(
        model="google-bert/bert-base-uncased",
        data=Data(path="reports.csv", validation=0.1, test=0.1),
        text_columns=("report",),
        label_column=tuple(f"code_{number:02d}" for number in range(1, 39)),
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
