"""R-Drop: two forward passes with different dropout should predict the same.

    python train.py recipes/r_drop.py --data reviews.csv --text review --label stars --alpha 0.5

Source: Liang et al., "R-Drop: Regularized Dropout for Neural Networks", arXiv:2106.14448. The loss
of a row is the cross-entropy of both passes plus alpha times their symmetric KL divergence
(equation 4). For tasks with one label per row.

It shows that a loss may run the model as often as it likes: `compute_losses` gets the model and the
whole micro-batch. "kl" is averaged over each step and logged to metrics.jsonl beside the loss.
"""

from dataclasses import dataclass

from torch.nn.functional import nll_loss

from ftloop import Losses, model_inputs
from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification


@dataclass(frozen=True)
class RDrop(TextClassification):
    alpha: float = 1.0  # weight of the KL divergence between the two passes

    def compute_losses(self, model, batch):
        p, q = (model(**model_inputs(batch)).logits.log_softmax(-1) for _ in range(2))
        kl = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2  # (KL(p || q) + KL(q || p)) / 2, by row
        losses = nll_loss(p + q, batch["labels"], reduction="none") + self.alpha * kl
        return Losses(losses, {"kl": kl})


config = Job(
    task=RDrop(model="google-bert/bert-base-uncased", data=Data()),
    run_dir="runs/r_drop",
    warmup=0.06,
)
