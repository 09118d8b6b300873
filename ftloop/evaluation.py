"""Exact evaluation: every row once, for any batch size and number of processes.

The values of each row are gathered together with its row id, padding rows are dropped by their id,
and the ids are counted. The loss is summed in float64 by row, so that it does not depend on the
order in which rows are computed.
"""

import numbers
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.nn import Module
from torch.utils.data import DataLoader

from ftloop.errors import UserError
from ftloop.loader import build_dataloader
from ftloop.metric_log import weighted
from ftloop.sampler import MAX_TOKENS_ON_CPU, EvalSampler
from ftloop.task import Batch, Task, model_inputs

LABEL_PADDING = -100  # fills up what has different lengths in different batches; losses ignore it
Values = dict[str, torch.Tensor]
StopCheck = Callable[[], bool] | None  # tells, on all ranks alike, whether to stop


class EvaluationStopped(Exception):
    """An evaluation ended because a stop was requested. It has no scores."""


def build_eval_loader(
    dataset: Any, task: Task, accelerator: Accelerator, batch_size: int, workers: int = 0
) -> DataLoader:
    """Build the prepared DataLoader over all rows of a dataset, the longest first."""
    max_tokens = MAX_TOKENS_ON_CPU if accelerator.device.type == "cpu" else None
    sampler = EvalSampler(dataset, batch_size, accelerator.num_processes, max_tokens)
    return accelerator.prepare(build_dataloader(dataset, sampler, task.collate, workers=workers))


def build_eval_loaders(
    datasets: dict[str, Any], task: Task, accelerator: Accelerator, batch_size: int, workers: int
) -> dict[str, DataLoader]:
    """Build the loaders of all splits but train."""
    return {
        split: build_eval_loader(dataset, task, accelerator, batch_size, workers)
        for split, dataset in datasets.items()
        if split != "train"
    }


def evaluate(
    model: Module, loader: DataLoader, task: Task, accelerator: Accelerator, stop: StopCheck = None
) -> dict[str, float] | None:
    """Return the scores of a prepared model: "loss", the weighted mean of the losses, and the
    metrics.

    All ranks call it and get the same scores. `stop` is called after each batch; if it
    returns True, the result is None. Raises RuntimeError unless every row was evaluated exactly
    once.
    """
    metrics = task.build_metrics() if accelerator.is_main_process else []
    num_rows = len(loader.dataset)  # type: ignore[arg-type]
    sums = torch.zeros(2, num_rows, dtype=torch.float64)  # weighted losses; weights
    try:
        for values in iterate_predictions(model, loader, task, accelerator, stop):
            row_ids = values["row_ids"]
            sums[0, row_ids] = values.pop("loss_sums").double()
            sums[1, row_ids] = values.pop("weight_sums").double()
            for metric in metrics:
                add_batch(metric, values)
    except EvaluationStopped:
        return None
    scores = {}
    if accelerator.is_main_process:
        loss_sum, weight_sum = sums.sum(dim=1).tolist()
        scores["loss"] = loss_sum / weight_sum if weight_sum else float("nan")
        for metric in metrics:
            scores |= compute_metric(metric)
    return broadcast_object_list([scores])[0] if accelerator.num_processes > 1 else scores


@torch.no_grad()
def iterate_predictions(
    model: Module, loader: DataLoader, task: Task, accelerator: Accelerator, stop: StopCheck = None
) -> Iterator[Values]:
    """Yield what `task.predict` returns for each batch, on the CPU of the main process.

    One entry per row, without padding rows, with "row_ids" and, if rows have labels, "references",
    "losses", "loss_sums" and "weight_sums". Other ranks take part and yield nothing. Leaves the
    model in training mode. Raises EvaluationStopped if `stop` returns True on all ranks.
    """
    model.eval()
    num_rows = len(loader.dataset)  # type: ignore[arg-type]
    num_evaluations = torch.zeros(num_rows, dtype=torch.int64)
    try:
        for batch in loader:
            values = predict_batch(model, batch, task)
            if accelerator.num_processes > 1:
                values = accelerator.pad_across_processes(values, dim=1, pad_index=LABEL_PADDING)
                values = accelerator.gather(values)
            if accelerator.is_main_process:
                is_real = values["row_ids"] >= 0
                values = {name: value[is_real].cpu() for name, value in values.items()}
                num_evaluations[values["row_ids"]] += 1
                yield values
            if stop is not None and stop():
                raise EvaluationStopped
    finally:
        model.train()
    num_wrong = int((num_evaluations != 1).sum())
    if accelerator.is_main_process and num_wrong:
        raise RuntimeError(f"{num_wrong} rows were not evaluated exactly once")


def predict_batch(model: Module, batch: Batch, task: Task) -> Values:
    """Compute the predictions of a batch on this rank and, if it has labels, its losses."""
    outputs = model(**model_inputs(batch))
    values = {"row_ids": batch["row_ids"], **task.predict(outputs, batch)}
    if "labels" not in batch:
        return values
    values.setdefault("references", batch["labels"])
    losses, weights = task.losses(outputs, batch), batch["weights"]
    values["losses"] = losses
    values["loss_sums"] = weighted(losses, weights).reshape(len(losses), -1).sum(1)
    values["weight_sums"] = weights.reshape(len(weights), -1).sum(1)
    return values


def metric_inputs(metric: Any) -> list[str]:
    """Return the names of the values that a metric takes: its features, or the usual two."""
    features = getattr(metric, "features", None)
    if isinstance(features, list):  # `evaluate` allows alternatives with the same names
        features = features[0]
    return list(features or ("predictions", "references"))


def add_batch(metric: Any, values: Values) -> None:
    """Add a batch to a metric, passing only the values that the metric uses."""
    names = metric_inputs(metric)
    missing = ", ".join(name for name in names if name not in values)
    if missing:
        name = getattr(metric, "name", type(metric).__name__)
        raise UserError(f"{name!r} needs {missing}, but the task gives {', '.join(values)}.")
    metric.add_batch(**{name: values[name] for name in names})


def compute_metric(metric: Any) -> dict[str, float]:
    """Return the scores of the rows that were added to a metric, without other entries."""
    scores = metric.compute()
    return {name: float(value) for name, value in scores.items() if isinstance(value, numbers.Real)}
