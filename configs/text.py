"""Your own texts: every option on the command line.

    python train.py configs/text.py --task.data.path reviews.csv --task.text-columns review --task.label-column stars
    python train.py configs/text.py --task.data.files train a.tsv test b.tsv --task.data.options quoting=3
    python train.py configs/text.py --task.data.path tickets.jsonl --task.label-column tags --task.label-separator ,

Labels may be names, ids, lists (multi-label) or decimals (regression); two text columns make a pair task.
"""

from ftloop import Config, Data, TextClassification

config = Config(
    task=TextClassification(model="google-bert/bert-base-uncased", data=Data()),
    run_dir="runs/text",
    best_metric="loss",
    warmup=0.06,
)
