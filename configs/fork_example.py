"""A fork in one file: its own loss, optimizer and model head, and nothing in ftloop/ touched.

python train.py configs/fork_example.py --task.gamma 1.5
"""

from dataclasses import dataclass

import torch
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ftloop import Config, TextClassification
from ftloop.optim import parameter_groups
from ftloop.data.samples import Docstrings, minilm


class MeanPooled(BertForSequenceClassification):
    """A head on the mean of the tokens, instead of on the first."""

    def __init__(self, config):
        super().__init__(config)
        self.bert.pooler = None

    def forward(self, input_ids, attention_mask, **inputs):
        hidden = self.bert(input_ids, attention_mask, **inputs).last_hidden_state
        kept = attention_mask.unsqueeze(-1)
        return SequenceClassifierOutput(logits=self.classifier((hidden * kept).sum(1) / kept.sum(1)))


@dataclass(frozen=True)
class FocalTask(TextClassification):
    gamma: float = 2.0  # how much the loss looks at hard rows (Lin et al., 2017); 0 is cross-entropy
    model_class = MeanPooled

    def losses(self, outputs, targets):
        cross_entropy = super().losses(outputs, targets)
        return (1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy


def sgd(model, config):
    return torch.optim.SGD(parameter_groups(model, config.weight_decay), config.learning_rate, momentum=0.9)


task = FocalTask(model=minilm(), data=Docstrings(), label_column=("library",), max_length=64)
config = Config(task=task, run_dir="runs/fork", epochs=1, learning_rate=0.05, optimizer=sgd)
