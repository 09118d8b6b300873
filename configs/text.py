"""Your own texts. Every option can be given on the command line.

    python train.py configs/text.py --data reviews.csv --text review --label stars
    python train.py configs/text.py --data.files train a.tsv test b.tsv --data.options quoting=3
    python train.py configs/text.py --data tickets.jsonl --label tags --label-separator ,

Labels may be names, ids, lists (multi-label) or decimal numbers (regression). Two text columns make
a task on sentence pairs.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification

config = Job(
    task=TextClassification(model="google-bert/bert-base-uncased", data=Data()),
    run_dir="runs/text",
    best_metric="loss",
    warmup=0.06,
)
