"""metrics.jsonl, and the buffer in front of it: losses are read from the device every `log_every` steps."""

import contextlib
import json
import logging
import math
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from ftloop.errors import TrainingError
from ftloop.sampler import StepPlan
from ftloop.task import Batch, Losses

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("ftloop")

# Steps in a row that the gradient scaler of fp16 may skip. It starts at 65536 and halves each time.
MAX_SKIPPED_STEPS = 20


class MetricLog:
    """Appends to metrics.jsonl: one line per value, with step, epoch, split, name, value and time."""

    def __init__(self, file: Path, keep_bytes: int):
        """Open the log and cut it to the length it had at the step from which the run resumes."""
        self.file, self.stream = file, file.open("ab")
        self.stream.truncate(min(keep_bytes, file.stat().st_size))

    def write(
        self,
        step: int,
        epoch: float,
        split: str,
        scores: dict[str, float],
        rows_per_second: float,
        speed: dict[str, float] | None = None,
    ) -> None:
        """Write one line for each score. Raises TrainingError if the disk is full or read-only."""
        now, lines = round(time.time(), 3), b""
        for name, value in json_scores(scores).items():
            line: dict[str, Any] = {"step": step, "epoch": round(epoch, 6), "split": split}
            line |= {"name": name, "value": value, "time": now}
            line["items_per_second"] = round(rows_per_second, 2)
            if speed:
                line["speed"] = speed
            lines += json.dumps(line).encode() + b"\n"
        try:
            self.stream.write(lines)
        except OSError as error:
            raise write_error(self.file, error) from error

    def sync(self) -> int:
        """Wait until all lines are on disk, and return the length of the file in bytes."""
        try:
            self.stream.flush()
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise write_error(self.file, error) from error
        return self.stream.tell()

    def flush(self) -> None:
        """Hand all lines to the operating system, so that other processes can read them."""
        try:
            self.stream.flush()
        except OSError as error:
            raise write_error(self.file, error) from error

    def close(self) -> None:
        """Close the file. A full disk was reported before."""
        with contextlib.suppress(OSError):
            self.stream.close()


def write_error(file: Path, error: OSError) -> TrainingError:
    """Return the error for a log file that cannot be written."""
    return TrainingError(
        f"cannot write {file}: {error}. The newest checkpoint is intact: free some space and run the same "
        "command again to resume."
    )


class Throughput:
    """What this rank computed since the last log line, and how long it took. Ranks get equal work."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start counting anew, for example after an evaluation, which is not training."""
        self.began = time.perf_counter()
        self.wait_seconds, self.rows, self.tokens, self.padded_tokens = 0.0, 0, 0, 0

    def add_step(self, wait_seconds: float, rows: int, tokens: int, padded_tokens: int) -> None:
        """Count the batches of one step, and how long the loop waited for them."""
        self.wait_seconds += wait_seconds
        self.rows += rows
        self.tokens += tokens
        self.padded_tokens += padded_tokens

    def summarize(self, accelerator: "Accelerator") -> dict[str, float]:
        """Return the speed since the last restart; see `Observer.on_log`."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        speed = {
            "rows_per_second": round(self.rows / seconds, 2),
            "data_wait": round(self.wait_seconds / seconds, 4),
            "peak_memory_mb": peak_memory_mb(accelerator.device),
        }
        if self.padded_tokens:
            tokens_per_second = self.tokens * accelerator.num_processes / seconds
            speed["tokens_per_second"] = round(tokens_per_second, 1)
            speed["padding"] = round(1 - self.tokens / self.padded_tokens, 4)
        return speed


def peak_memory_mb(device: torch.device) -> int:
    """Return the largest memory that this process has held so far, in MB: of its GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 10**6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


@dataclass
class StepRecord:
    """What one optimizer step leaves behind. The values below the line are known after a flush."""

    step: int  # from 1
    epoch: float  # epochs done after this step
    plan: StepPlan
    learning_rate: float
    row_ids: list[torch.Tensor]  # of each micro-batch of this rank; negative ids are padding rows
    outputs: list[Losses]  # of each micro-batch of this rank, on the device
    weights: list[torch.Tensor]
    total_weight: float | torch.Tensor
    grad_norm_tensor: torch.Tensor

    loss: float = math.nan
    grad_norm: float = math.nan
    scalars: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows of the step, over all ranks."""
        return len(self.plan.row_ids)


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum the losses by weight. Items of weight 0 are masked, so that their NaN does not count.

    Raises TrainingError if the shapes differ.
    """
    if losses.shape != weights.shape:
        raise TrainingError(
            f"the losses have shape {tuple(losses.shape)}, but batch['weights'] has shape "
            f"{tuple(weights.shape)}: the task must return one loss per weight."
        )
    return torch.where(weights != 0, losses * weights, 0).sum()


class StepBuffer:
    """Holds the values of steps on the device until a flush reads them. Nothing else waits for the GPU."""

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.records: list[StepRecord] = []
        self.num_skipped_steps = 0  # in a row, by the gradient scaler of fp16

    def flush(self) -> list[StepRecord]:
        """Read the buffered values and return the records. All ranks must call it.

        Raises TrainingError for a loss or gradient norm that is not finite.
        """
        records, self.records = self.records, []
        if not records:
            return []
        names = sorted(records[0].outputs[0].scalars)
        sums = torch.stack([self._sums(record, names) for record in records])  # (steps, values)
        # Gathered and added in Python, since the order of a reduction may depend on its size.
        by_rank = self.accelerator.gather(sums.unsqueeze(0)).tolist()
        grad_norms = torch.stack([record.grad_norm_tensor for record in records]).tolist()
        for index, record in enumerate(records):
            total = float(record.total_weight)
            values = [sum(rank[index][value] for rank in by_rank) for value in range(len(names) + 1)]
            record.loss = values[0] / total if total else math.nan
            record.scalars = {
                name: value / total for name, value in zip(names, values[1:], strict=True)
            }
            record.grad_norm = grad_norms[index]
            self._check(record)
        return records

    def _sums(self, record: StepRecord, names: list[str]) -> torch.Tensor:
        """Return the weighted sums of the loss and the named scalars over the step, on this rank."""
        columns = []
        for output, weights in zip(record.outputs, record.weights, strict=True):
            if sorted(output.scalars) != names:
                raise TrainingError(
                    f"compute_losses returned the scalars {sorted(output.scalars)} after {names}: the names "
                    "must be the same in each call."
                )
            scalars = [_scalar_sum(output.scalars[name], weights) for name in names]
            columns.append(torch.stack([weighted_sum(output.losses, weights), *scalars]))
        return torch.stack(columns).sum(dim=0)

    def _check(self, record: StepRecord) -> None:
        """Raise TrainingError for a step whose loss or gradient norm is not finite."""
        is_finite = math.isfinite(record.grad_norm)
        self.num_skipped_steps = 0 if is_finite else self.num_skipped_steps + 1
        may_skip = MAX_SKIPPED_STEPS if self.accelerator.scaler else 0
        if math.isfinite(record.loss) and self.num_skipped_steps <= may_skip:
            if not is_finite:
                logger.warning(
                    "step %d was skipped: its gradient overflows in fp16 (%d in a row)",
                    record.step,
                    self.num_skipped_steps,
                )
            return
        raise TrainingError(
            f"step {record.step}: the loss is {record.loss} and the gradient norm {record.grad_norm}, "
            f"because of {self._find_rows(record)}. Nothing was saved since the last checkpoint. A smaller "
            "learning_rate or max_grad_norm may help."
        )

    def _find_rows(self, record: StepRecord) -> str:
        """Name the rows whose losses are not finite, over all ranks."""
        rows: list[int] = []
        for row_ids, output in zip(record.row_ids, record.outputs, strict=True):
            is_bad = ~output.losses.isfinite().reshape(len(row_ids), -1).all(dim=1)
            rows += [row for row in row_ids[is_bad].tolist() if row >= 0]
        rows = sorted(gather_object(rows))
        if rows:
            return f"rows {', '.join(map(str, rows[:20]))} of train (counted from 0)"
        if float(record.total_weight) == 0:
            return "weights that sum to 0"
        return "the gradient, not the loss of a row"


def _scalar_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of a named scalar by weight: of one value per item, or of one for the batch."""
    return values * weights.sum() if values.ndim == 0 else weighted_sum(values, weights)


def make_record(
    step: int,
    epoch: float,
    plan: StepPlan,
    micro_batches: list[Batch],
    outputs: list[Losses],
    total_weight: float | torch.Tensor,
    grad_norm: Any,
    learning_rate: float,
) -> StepRecord:
    """Make the record of a step, which keeps of its batches only row ids and weights."""
    return StepRecord(
        step=step,
        epoch=epoch,
        plan=plan,
        learning_rate=learning_rate,
        row_ids=[batch["row_ids"] for batch in micro_batches],
        outputs=outputs,
        weights=[batch["weights"] for batch in micro_batches],
        total_weight=total_weight,
        grad_norm_tensor=grad_norm,
    )


def json_scores(scores: dict[str, float]) -> dict[str, float | None]:
    """Return scores for JSON, which has neither NaN nor infinity: they become None."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def format_scores(scores: dict[str, float]) -> str:
    """Format scores for a log line: "loss 0.3121  accuracy 0.8912"."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
