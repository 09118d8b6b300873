"""A fork in one file: its own loss, optimizer and model head, without a change in ftloop/.

python train.py configs/fork_example.py --gamma 1.5
"""

from dataclasses import dataclass

import torch
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ftloop.cli import Job
from ftloop.data.samples import Docstrings, find_minilm
from ftloop.optim import parameter_groups
from ftloop.tasks import TextClassification


class MeanPooled(BertForSequenceClassification):
    """BERT with a classifier on the mean of the token states instead of the state of [CLS]."""

    def __init__(self, config):
        super().__init__(config)
        self.bert.pooler = None

    def forward(self, input_ids, attention_mask, **inputs):
        hidden = self.bert(input_ids, attention_mask, **inputs).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        return SequenceClassifierOutput(
            logits=self.classifier((hidden * mask).sum(1) / mask.sum(1))
        )


@dataclass(frozen=True)
class FocalTask(TextClassification):
    """Text classification with the focal loss (Lin et al., 2017)."""

    gamma: float = 2.0  # Down-weighting of easy rows. 0 is cross-entropy.
    model_class = MeanPooled

    def losses(self, outputs, batch):
        cross_entropy = super().losses(outputs, batch)
        return (1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy


def sgd(model, config):
    """Return SGD with momentum."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.SGD(groups, config.learning_rate, momentum=0.9)


task = FocalTask(model=find_minilm(), data=Docstrings(), label_column=("library",), max_length=64)
config = Job(task=task, run_dir="runs/fork", epochs=1, learning_rate=0.05, optimizer=sgd)
