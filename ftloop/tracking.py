"""What a run says while it trains: metrics.jsonl, the progress bar, lines on the terminal."""

import json
import logging
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ftloop.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ftloop.data.order import Window
    from ftloop.ledger import Ledger

logger = logging.getLogger("ftloop")

MOST_SKIPPED = 20  # steps in a row under fp16; the scale is halved each time, and starts at 65 536


class _Terminal(logging.Handler):
    """Log lines on standard error, above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + self.format(record), file=sys.stderr)


def set_up_logging(is_main_process: bool) -> None:
    """Let the logger "ftloop" speak on the main process only. A program that has set up the logger itself keeps it."""
    if not logger.handlers:
        logger.addHandler(_Terminal())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    if not is_main_process:
        logger.setLevel(logging.CRITICAL)
    import datasets
    import transformers

    transformers.logging.disable_progress_bar()  # for a second of reading weights
    if not sys.stderr.isatty():  # in a pipe, tokenising would fill the log
        datasets.disable_progress_bars()


class MetricLog:
    """Appends to metrics.jsonl: one line per value, with step, epoch, split, name, value, time, items_per_second."""

    def __init__(self, file: Path, keep_bytes: int):
        """Cut the log to what the resumed step had written (`keep_bytes`; 0 for a new run) and append from there."""
        self.stream = file.open("ab")
        self.stream.truncate(min(keep_bytes, file.stat().st_size))

    def write(self, step: int, epoch: float, split: str, scores: dict[str, float], items_per_second: float) -> None:
        now = round(time.time(), 3)
        for name, value in finite(scores).items():
            line = {"step": step, "epoch": round(epoch, 6), "split": split, "name": name, "value": value}
            line |= {"time": now, "items_per_second": round(items_per_second, 2)}
            self.stream.write(json.dumps(line).encode() + b"\n")
        self.stream.flush()

    def durable(self) -> int:
        """Wait until the disk has all lines; the length of the log in bytes, for the checkpoint."""
        os.fsync(self.stream.fileno())
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()


class NoMetricLog:
    """Takes the place of the log on all processes but the main one."""

    def write(self, *_: Any) -> None:
        """Nothing: the main process writes."""

    def durable(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Step:
    """What one optimizer step leaves behind, still on the device."""

    number: int
    epoch: float
    window: "Window"  # its rows over all processes
    losses: list[tuple[torch.Tensor, torch.Tensor]]  # of this process: row ids and their losses, per micro-batch
    gradient_norm: torch.Tensor
    learning_rate: float
    weights: str | None = None  # their digest after it, if one was due


class StepLog:
    """Holds steps back until `flush`, the only place in training where the device is waited for."""

    def __init__(
        self, log: MetricLog | NoMetricLog, ledger: "Ledger", bar: tqdm, accelerator: "Accelerator", on_nan: str
    ):
        self.log, self.ledger, self.bar, self.accelerator = log, ledger, bar, accelerator
        self.pending: list[Step] = []
        self.skipped = 0  # steps in a row that the fp16 gradient scaler left out
        self.skipped_at_most = MOST_SKIPPED if accelerator.scaler else 0
        self.on_nan = on_nan  # skip: the loop has left out what is not finite, and said so
        self.started = time.perf_counter()

    def add(self, step: Step) -> None:
        step.weights = self.ledger.weights_after(step.number)
        self.pending.append(step)

    def flush(self) -> None:
        """Write loss, learning rate and gradient norm of the pending steps. Raises TrainingError for NaN, infinity."""
        if not self.pending:
            return
        # Summed as in the gradient: over the rows of all processes, divided once.
        sums = torch.stack([sum(losses.sum() for _, losses in step.losses) for step in self.pending])
        # Gathered and not reduced: how often the log is written must not change the order in which processes are added.
        sums = [sum(parts) for parts in self.accelerator.gather(sums).reshape(-1, len(sums)).T.tolist()]
        items = [len(step.window.rows) for step in self.pending]
        self.ledger.write(self.pending, [total / count for total, count in zip(sums, items, strict=True)])
        norms = torch.stack([step.gradient_norm for step in self.pending]).tolist()
        seconds = time.perf_counter() - self.started
        rate = sum(items) / seconds
        for step, total, count, norm in zip(self.pending, sums, items, norms, strict=True):
            # Under fp16 the gradient scaler skips a step whose norm is not finite, and lowers its scale for the next.
            self.skipped = 0 if math.isfinite(norm) or self.on_nan == "skip" else self.skipped + 1
            if self.on_nan == "stop" and (not math.isfinite(total) or self.skipped > self.skipped_at_most):
                self._stop(step, total / count, norm)
            if self.skipped:
                logger.warning(
                    "step %d was skipped: its gradient overflows in fp16 (%d in a row)", step.number, self.skipped
                )
            scores = {"loss": total / count, "learning_rate": step.learning_rate, "gradient_norm": norm}
            self.log.write(step.number, step.epoch, "train", scores, rate)
        newest, mean = self.pending[-1], sum(sums) / sum(items)
        self.bar.set_postfix(epoch=f"{newest.epoch:.2f}", loss=f"{mean:.4f}", rows_per_s=f"{rate:.0f}", refresh=False)
        self.bar.update(newest.number - self.bar.n)
        self.pending.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of items_per_second what was not training: an evaluation, a checkpoint."""
        self.started = time.perf_counter()

    def _stop(self, step: Step, loss: float, norm: float) -> None:
        from accelerate.utils import gather_object

        bad = [row for rows, losses in step.losses for row in rows[~losses.isfinite()].tolist() if row >= 0]
        bad = sorted(gather_object(bad))
        which = (
            f"rows {', '.join(map(str, bad[:20]))} of the train split (from 0, as `task.rows` has them)"
            if bad
            else "the gradient, not a row's loss"
        )
        raise TrainingError(
            f"step {step.number}: the loss is {loss}, the gradient norm {norm}, from {which}. "
            "The last checkpoint is from before. A smaller --learning-rate or --max-grad-norm may help"
        )


def progress_bar(total: int, done: int, is_main_process: bool) -> tqdm:
    """A bar over optimizer steps; in a pipe it is drawn once in ten seconds."""
    wait = 0.1 if sys.stderr.isatty() else 10
    return tqdm(
        total=total,
        initial=done,
        unit="step",
        disable=not is_main_process,
        mininterval=wait,
        dynamic_ncols=True,
        smoothing=0.05,
    )


def finite(scores: dict[str, float]) -> dict[str, float | None]:
    """Scores for JSON, which has no NaN and no infinity: None stands for them."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def shown(scores: dict[str, float]) -> str:
    """Scores for a person: "loss 0.3121  accuracy 0.8912"."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
