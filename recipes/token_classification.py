"""A tag for each word, as in named-entity recognition: the mean loss over all tokens of a step.

    python train.py recipes/token_classification.py --data sentences.jsonl
    python predict.py runs/token_classification "Ada Lovelace lived in London"

A line of sentences.jsonl is a sentence with as many words as tags:

    {"tokens": ["Ada", "Lovelace", "lived"], "tags": ["PERSON", "PERSON", "O"]}

Other names of the two columns are given by --text and --label. Source: Devlin et al., "BERT",
arXiv:1810.04805, section 5.3, where the first token of a word predicts its tag.

It shows that weights are enough for a mean over tokens. Tokens without a tag have weight 0, and the
loop divides the gradient of a step once, by its number of tags over all micro-batches and
processes. A mean of the means of micro-batches would favor the tags of those that have few.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TokenClassification

config = Job(
    task=TokenClassification(model="google-bert/bert-base-cased", data=Data()),
    run_dir="runs/token_classification",
    best_metric="f1_macro",
    warmup=0.06,
)
