"""Pathology reports to 38 codes: multi-label, eleven sections joined into one text, all in one pickled dictionary.

    python -m benchmarks.pathology reports.pkl --rows 1000                          writes a table that looks like it
    python train.py configs/pathology_codes.py --task.data.trust-pickle
    python train.py configs/pathology_codes.py --task.data.trust-pickle --task.data.limit 2000 --epochs 1

The dictionary holds `total` -> `X`, a DataFrame with a column for each section and many missing cells, and `y`, one
with a column of 0/1 for each code; they are joined row by row. All columns of texts become `report`, with their names,
and the columns that are left are the labels. A tenth of the rows is cut off as validation, another as test. Reading a
pickle runs the code of whoever wrote it: that is what --task.data.trust-pickle consents to. The score depends on your
reports.
"""

from ftloop import Config, Data, TextClassification

config = Config(
    task=TextClassification(
        model="google-bert/bert-base-uncased",
        data=Data(path="reports.pkl", field=("total.X", "y"), join={"report": "*"}, validation=0.1, test=0.1),
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
