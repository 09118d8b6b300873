"""What the loop needs from a task: data, a model, losses, predictions and metrics.

The task computes and the loop drives: devices, precision, accumulation, ranks and checkpoints are
not the business of a task. A task is usually a frozen dataclass whose fields are its options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]
"""The model's inputs by name, "labels", "weights" and "row_ids"; values are tensors.

"weights" are float, with the shape of the losses: (rows,) or (rows, tokens). An item of weight 0
does not count. "row_ids" is int64, (rows,): the row of the dataset; a negative id ~row marks a
padding row, which repeats `row` to fill up a micro-batch and counts nowhere.
"""

NOT_MODEL_INPUTS = ("labels", "weights", "row_ids", "weight_sum")


@dataclass
class Losses:
    """What `Task.compute_losses` returns for one micro-batch."""

    losses: "torch.Tensor"  # one loss per item, not reduced: (rows,) or (rows, tokens)
    scalars: dict[str, "torch.Tensor"] = field(default_factory=dict)
    """Named values to log, with the shape of the losses or no dimension.

    They are averaged by weight over the step and over all ranks.
    """

    def detach(self) -> "Losses":
        """Return the same values without their graph."""
        scalars = {name: value.detach() for name, value in self.scalars.items()}
        return Losses(self.losses.detach(), scalars)


def model_inputs(batch: Batch) -> Batch:
    """Return the entries of a batch that are arguments of the model."""
    return {name: value for name, value in batch.items() if name not in NOT_MODEL_INPUTS}


class Task:
    """The protocol between a task and the loop. Inherit from it, or write its methods."""

    independent_rows: ClassVar[bool] = True
    """Whether the loss of a row depends on that row alone. If not (in-batch negatives), the loop
    refuses to divide a batch into micro-batches or over ranks."""

    def validate(self) -> None:
        """Raise UserError for options that cannot work, before anything is read or written."""

    def load_datasets(self) -> dict[str, Any]:
        """Return map-style datasets "train" and, where the data has them, "validation" and "test".

        A dataset has `__len__` and `__getitem__(row)`; random choices for a row belong there, since
        the loader seeds them by (seed, epoch, row). It may also offer

            lengths           tokens per row: rows of similar length form a batch
            fingerprint       str, a digest of the content, compared between ranks and at resume
            is_deterministic  True: `__getitems__(rows)` reads a batch; nothing is drawn at random
            row_order(seed, epoch), set_seed(seed)     for an order of its own, as streams have
        """
        raise NotImplementedError

    def build_model(self) -> "torch.nn.Module":
        """Return the model to train, in float32 and on the CPU."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Make a batch from the examples of some rows. It must not draw at random.

        "weights" may be left out: every item then has weight 1.
        """
        raise NotImplementedError

    def compute_losses(self, model: "torch.nn.Module", batch: Batch) -> Losses:
        """Compute the losses in training. Override it for losses that need the model."""
        return Losses(self.losses(model(**model_inputs(batch)), batch))

    def losses(self, outputs: Any, batch: Batch) -> "torch.Tensor":
        """Return one loss per item, (rows,) or (rows, tokens), from the outputs of the model."""
        raise NotImplementedError

    def predict(self, outputs: Any, batch: Batch) -> dict[str, "torch.Tensor"]:
        """Return what metrics compare, one entry per row, for example {"predictions": ...}.

        "references" may be left out: they are then the labels of the batch.
        """
        raise NotImplementedError

    def build_metrics(self) -> list[Any]:
        """Return `evaluate.Metric` objects, or others with `add_batch` and `compute`.

        Called on the main process for each evaluation.
        """
        return []

    def score_names(self) -> Sequence[str] | None:
        """Return the names of the scores besides "loss"; None if they are not known."""
        return None

    def export(self, model: "torch.nn.Module", state_dict: dict[str, Any], folder: Path) -> None:
        """Write the model with these full weights into an existing, empty folder.

        Called on the main process. By default the format of `save_pretrained` or, for a plain
        module, model.safetensors.
        """
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder, state_dict=state_dict)  # type: ignore[operator]
            return
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous().clone() for name, tensor in state_dict.items()}
        save_file(tensors, folder / "model.safetensors")
