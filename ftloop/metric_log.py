"""metrics.jsonl, and the buffer in front of it, which is read from the GPU at log steps."""

import contextlib
import json
import logging
import math
import os
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ftloop.errors import TrainingError
from ftloop.sampler import StepPlan, TrainSampler
from ftloop.state import TrainState
from ftloop.task import Batch, Losses

logger = logging.getLogger("ftloop")

Scores = dict[str, float]

# Steps in a row that the gradient scaler of fp16 may skip. Its scale starts at 65536 and is halved
# each time.
MAX_SKIPPED_STEPS = 20


@dataclass
class StepRecord:
    """What one optimizer step leaves behind: tensors and, after a flush, their values."""

    step: int  # from 1
    epoch: float  # epochs done after this step
    plan: StepPlan
    row_ids: list[torch.Tensor]
    """Of each micro-batch of this rank; negative ids are padding rows."""
    weights: list[torch.Tensor]
    outputs: list[Losses]
    total_weight: Any  # over all micro-batches and ranks
    grad_norm_tensor: Any
    learning_rate: float
    loss: float = math.nan
    grad_norm: float = math.nan
    scalars: dict[str, float] = field(default_factory=dict)  # named values of the task


class MetricLog:
    """Appends to metrics.jsonl: one line per value, with step, epoch, split, name, value and time.

    Every rank has one, since a flush gathers values from all ranks; the main process has the file.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.buffer: list[StepRecord] = []
        self.num_skipped_steps = 0  # in a row, by the gradient scaler of fp16
        self.stream: Any = None  # on the main process, once the run has started
        self.lines, self.checksum = b"", 0  # not written yet; crc32 of the file
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure speed from now on: called after what is not training, such as an evaluation."""
        self.began, self.data_wait_seconds = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Return the seconds since the clock was restarted."""
        return max(time.perf_counter() - self.began, 1e-9)

    def open(self, file: Path, state: TrainState) -> None:
        """Open the file and cut it to the length it had at the step from which the run resumes."""
        self.stream = file.open("ab")
        kept = file.read_bytes()[: state.log_bytes]
        kept = kept[: kept.rfind(b"\n") + 1]  # complete lines: it may have been cut anywhere
        self.checksum = zlib.crc32(kept)
        if self.checksum != state.log_checksum:
            logger.warning("%s has changed since step %d was saved", file, state.step)
        self.stream.truncate(len(kept))

    def add_step(self, step: int, sampler: TrainSampler, batches: list[Batch], *rest: Any) -> None:
        """Buffer what an optimizer step leaves behind. `step` counts from 1.

        rest: outputs, total_weight, grad_norm_tensor and learning_rate; see `StepRecord`.
        """
        row_ids = [batch["row_ids"] for batch in batches]
        weights = [batch["weights"] for batch in batches]
        plan, epoch = sampler.plan(step - 1), sampler.epochs_done(step)
        self.buffer.append(StepRecord(step, epoch, plan, row_ids, weights, *rest))

    def flush(self) -> tuple[list[StepRecord], dict[str, float]]:
        """Read and write the values of the buffered steps. Returns them, and the speed since then.

        This waits for the GPU. All ranks must call it. Raises TrainingError for a loss or gradient
        norm that is not finite.
        """
        records, self.buffer = self.buffer, []
        if not records:
            return [], {}
        names = sorted(records[0].outputs[0].scalars)
        sums = torch.stack([sum_losses(record, names) for record in records])  # (steps, values)
        # Gathered and added in Python: the order of a reduction may depend on the number of steps.
        by_rank = self.accelerator.gather(sums.unsqueeze(0)).tolist()
        grad_norms = torch.stack([record.grad_norm_tensor for record in records]).tolist()
        for index, record in enumerate(records):
            totals = numpy.sum([rank[index] for rank in by_rank], axis=0).tolist()
            weight = float(record.total_weight) or math.nan
            record.loss, *scalars = (total / weight for total in totals)
            record.scalars = dict(zip(names, scalars, strict=True))
            record.grad_norm = grad_norms[index]
            self._check_finite(record)
        rate = round(sum(len(record.plan.row_ids) for record in records) / self.seconds(), 2)
        wait = round(self.data_wait_seconds / self.seconds(), 4)
        speed = {"rows_per_second": rate, "data_wait": wait}
        for record in records:
            scores = {"loss": record.loss, "learning_rate": record.learning_rate}
            scores |= {"grad_norm": record.grad_norm, **record.scalars}
            more = {"speed": speed} if record is records[-1] else {}
            self.write(record.step, record.epoch, "train", scores, rate, **more)
        self.sync(wait_for_disk=False)
        self.restart_clock()
        return records, speed

    def write(
        self, step: int, epoch: float, split: str, scores: Scores, rate: float, **more: Any
    ) -> None:
        """Add one line for each score; `sync` writes them. `rate`: rows per second."""
        position = {"step": step, "epoch": round(epoch, 6), "split": split}
        speed = {"time": round(time.time(), 3), "items_per_second": rate, **more}
        for name, value in json_scores(scores).items():
            line = {**position, "name": name, "value": value, **speed}
            self.lines += json.dumps(line).encode() + b"\n"

    def sync(self, wait_for_disk: bool = True) -> int:
        """Write all lines, and wait for the disk if wanted. Returns the length in bytes."""
        lines, self.lines = self.lines, b""
        if self.stream is None:
            return 0
        with raise_write_errors(self.stream.name):
            self.stream.write(lines)
            self.checksum = zlib.crc32(lines, self.checksum)
            self.stream.flush()
            if wait_for_disk:
                os.fsync(self.stream.fileno())
        return os.fstat(self.stream.fileno()).st_size

    def close(self) -> None:
        """Close the file. A full disk was reported before."""
        with contextlib.suppress(AttributeError, OSError):
            self.stream.close()

    def _check_finite(self, record: StepRecord) -> None:
        """Raise TrainingError for a step whose loss or gradient norm is not finite."""
        is_skipped = not math.isfinite(record.grad_norm)
        self.num_skipped_steps = self.num_skipped_steps + 1 if is_skipped else 0
        limit = MAX_SKIPPED_STEPS if self.accelerator.scaler else 0
        if not math.isfinite(record.loss) or self.num_skipped_steps > limit:
            message = f"step {record.step}: the loss is {record.loss} and the gradient norm is "
            message += f"{record.grad_norm}, because of {find_cause(record)}. The last "
            message += "checkpoint is older. A smaller learning_rate or max_grad_norm may help."
            raise TrainingError(message)
        if self.num_skipped_steps:
            message = "step %d was skipped: its gradient overflows in fp16 (%d in a row)"
            logger.warning(message, record.step, self.num_skipped_steps)


@contextlib.contextmanager
def raise_write_errors(file: str) -> Any:
    """Turn a full or read-only disk into a TrainingError."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {file}: {error}. The newest checkpoint is intact: free some space"
        raise TrainingError(f"{message} and run the same command again to resume.") from error


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum the losses by weight; see `weighted`."""
    return weighted(losses, weights).sum()


def weighted(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply losses by their weights. Items of weight 0 are masked: their NaN does not count.

    Raises TrainingError if the shapes differ.
    """
    if losses.shape != weights.shape:
        message = f"the losses have shape {tuple(losses.shape)}, but batch['weights'] has shape "
        raise TrainingError(f"{message}{tuple(weights.shape)}: return one loss per weight.")
    return torch.where(weights != 0, losses * weights, 0)


def sum_losses(record: StepRecord, names: list[str]) -> torch.Tensor:
    """Return the weighted sums of the loss and the named scalars over the step, on this rank."""
    rows = []
    for output, weights in zip(record.outputs, record.weights, strict=True):
        if sorted(output.scalars) != names:
            message = f"a micro-batch has the scalars {sorted(output.scalars)}, but the first has "
            raise TrainingError(f"{message}{names}: compute_losses must return the same ones.")
        values = [output.losses, *(output.scalars[name] for name in names)]
        # A scalar without dimensions stands for all items of the micro-batch.
        values = [value if value.ndim else value.expand_as(weights) for value in values]
        rows.append(torch.stack([weighted_sum(value, weights) for value in values]))
    return torch.stack(rows).sum(dim=0)


def find_cause(record: StepRecord) -> str:
    """Name the rows whose losses are not finite, over all ranks. All ranks must call it."""
    rows: list[int] = []
    for ids, weights, output in zip(record.row_ids, record.weights, record.outputs, strict=True):
        is_valid = output.losses.isfinite() | (weights == 0)
        rows += ids[~is_valid.reshape(len(ids), -1).all(dim=1)].tolist()
    rows = sorted(gather_object(rows))
    if rows:
        return f"rows {', '.join(map(str, rows[:20]))} of train (counted from 0)"
    return "the gradient (or weights that sum to 0), not the loss of a row"


def json_scores(scores: dict[str, float]) -> dict[str, float | None]:
    """Return scores for JSON, which has neither NaN nor infinity: they become None."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}
