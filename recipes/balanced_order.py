"""Class-balanced sampling: each class is drawn equally often, however rare it is.

    python train.py recipes/balanced_order.py --data reviews.csv --text review --label stars
    python -m ftloop.cli verify runs/balanced_order

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
arXiv:1910.09217 (there: class-balanced sampling). Rows are drawn with replacement.

It shows that the order of the rows is a function of the data, the seed and the epoch. Resuming,
micro-batches and processes need no further code, and `verify` computes the order again to prove
that each step of a run used its rows.
"""

import numpy

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.state import fold_in
from ftloop.tasks import TextClassification


def balanced_order(dataset, seed, epoch):
    """Return the row ids of an epoch: drawn with replacement, each class equally likely."""
    labels = numpy.array(dataset.table["labels"])
    chances = 1 / numpy.bincount(labels)[labels]
    random = numpy.random.RandomState(fold_in(seed, "balanced", epoch) % 2**32)
    return random.choice(len(labels), size=len(labels), p=chances / chances.sum())


config = Job(
    task=TextClassification(model="google-bert/bert-base-uncased", data=Data()),
    run_dir="runs/balanced_order",
    row_order=balanced_order,
    warmup=0.06,
)
