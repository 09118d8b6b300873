"""What a run says while it trains: metrics.jsonl, the progress bar, lines on the terminal."""

import contextlib
import itertools
import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

from ftloop.loader import TOKENS
from ftloop.errors import TrainingError, coloured

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ftloop.sampler import Window
    from ftloop.provenance.ledger import Ledger

logger = logging.getLogger("ftloop")

MOST_SKIPPED = 20  # steps in a row under fp16; the scale is halved each time, and starts at 65 536


def terminal() -> TextIO:
    """Where a run speaks: standard error; in a notebook, which shows that in red, standard output."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stdout if shell is not None and "IPKernelApp" in shell.config else sys.stderr


class _Terminal(logging.Handler):
    """Log lines above a progress bar instead of through it; those that are not information begin with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        where, text = terminal(), self.format(record)
        if record.levelno != logging.INFO:
            colour = "red" if record.levelno > logging.WARNING else "yellow"
            text = f"{coloured(record.levelname.lower() + ':', colour, where)} {text}"
        # In a pipe not above the bar: `write` draws it again, and a pipe would keep that.
        (tqdm.write if where.isatty() else print)(text, file=where)


def set_up_logging(is_main_process: bool, level: str | None = None) -> None:
    """Let the logger "ftloop" speak on the main process only, from `level` on (debug, info, warning, error; left out:
    as before, at first info). A program that has set up the logger itself keeps it."""
    if not logger.handlers:
        logger.addHandler(_Terminal())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    if level is not None and any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.setLevel(level.upper())
    if not is_main_process:
        logger.setLevel(logging.CRITICAL)
    import datasets
    import transformers

    transformers.logging.disable_progress_bar()  # for a second of reading weights
    if not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO):  # in a pipe, tokenising would fill the log
        datasets.disable_progress_bars()


class MetricLog:
    """Appends to metrics.jsonl: one line per value, with step, epoch, split, name, value, time, items_per_second."""

    def __init__(self, file: Path, keep_bytes: int):
        """Cut the log to what the resumed step had written (`keep_bytes`; 0 for a new run) and append from there."""
        self.file, self.stream, self.waiting = file, file.open("ab"), b""
        self.stream.truncate(min(keep_bytes, file.stat().st_size))

    def write(
        self, step: int, epoch: float, split: str, scores: dict[str, float], items_per_second: float, **speed: Any
    ) -> None:
        """One line for each of the scores; `append` hands all to the system. `speed`: what else was measured since the
        last lines."""
        now, lines = round(time.time(), 3), b""
        for name, value in finite(scores).items():
            line = {"step": step, "epoch": round(epoch, 6), "split": split, "name": name, "value": value}
            line |= {"time": now, "items_per_second": round(items_per_second, 2)}
            line |= {"speed": speed} if speed else {}
            lines += json.dumps(line).encode() + b"\n"
        self.waiting += lines

    def see(self, split: str, values: dict[str, torch.Tensor]) -> None:
        """Nothing: of the rows that are evaluated, trackers alone keep something (ftloop/logs/trackers.py)."""

    def append(self, lines: bytes = b"") -> None:
        """Add whole lines, and hand them to the system with those that wait: once a look, for each time costs as much
        as a line. Raises TrainingError when the disk is full or read-only."""
        try:
            lines, self.waiting = self.waiting + lines, b""
            self.stream.write(lines)
            self.stream.flush()
        except OSError as error:
            raise TrainingError(
                f"cannot write {self.file}: {error}. The newest checkpoint is whole: make room, and the same command "
                "goes on from it"
            ) from error

    def durable(self) -> int:
        """Wait until the disk has all lines; the length of the log in bytes, for the checkpoint."""
        os.fsync(self.stream.fileno())
        return self.stream.tell()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk refused was said before
            self.stream.close()


class NoMetricLog:
    """Takes the place of the log on all processes but the main one."""

    def write(self, *_: Any, **__: Any) -> None:
        """Nothing: the main process writes."""

    append = see = write

    def durable(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""


class Served:
    """A loader, and what is to be known of its speed: how long it was waited for, how many tokens are padding.

    Small batches that this process collates itself are read some at a time: between two steps of a model all that
    Python needs has left the caches of the processor, and the first batch costs five times as much as those after it.
    """

    AHEAD = 64  # batches at most, and
    BYTES = 2**20  # of all of them together

    def __init__(self, loader: Any):
        self.loader = loader
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.tokens, self.computed = time.perf_counter(), 0.0, 0, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches, ahead = iter(self.loader), 1
        while True:
            began = time.perf_counter()
            read = list(itertools.islice(batches, ahead))
            self.waited += time.perf_counter() - began
            if not read:
                return
            if self.loader.num_workers == 0:
                largest = max(sum(value.nbytes for value in batch.values() if torch.is_tensor(value)) for batch in read)
                ahead = max(1, min(self.AHEAD, self.BYTES // largest))
            for batch in read:
                tokens, computed = batch.pop(TOKENS, (0, 0))
                self.tokens, self.computed = self.tokens + tokens, self.computed + computed
                yield batch

    def speed(self, accelerator: "Accelerator") -> dict[str, float]:
        """Since `restart`, of this process: the others are given equal work. "padding" and "data_wait" are shares."""
        seconds = time.perf_counter() - self.began
        found = {"data_wait": round(self.waited / seconds, 4), "peak_memory_mb": peak_memory(accelerator)}
        if self.computed:
            found["tokens_per_second"] = round(self.tokens * accelerator.num_processes / seconds, 1)
            found["padding"] = round(1 - self.tokens / self.computed, 4)
        return found


def peak_memory(accelerator: "Accelerator") -> int:
    """The most that this process held until now, in MB: of the GPU, else of the machine."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device) // 10**6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


class Profile:
    """torch's profiler over `steps` optimizer steps, from the third on; 0: none."""

    WARMUP = 2  # steps, in which memory and kernels are set up

    def __init__(self, steps: int, folder: Path, accelerator: "Accelerator"):
        self.file = folder / "profile.json"
        self.profiler = None
        if steps and accelerator.is_main_process:
            phases = torch.profiler.schedule(wait=self.WARMUP - 1, warmup=1, active=steps, repeat=1)
            self.profiler = torch.profiler.profile(schedule=phases, on_trace_ready=self.write)
            self.profiler.start()

    def step(self) -> None:
        if self.profiler is not None:
            self.profiler.step()

    def write(self, found: Any) -> None:
        """Write the trace, and show where the time went."""
        found.export_chrome_trace(str(self.file))
        on_gpu = torch.cuda.is_available()
        table = found.key_averages().table(f"self_{'cuda' if on_gpu else 'cpu'}_time_total", row_limit=10)
        logger.info("profile: %s (open it in chrome://tracing or ui.perfetto.dev)\n%s", self.file, table)

    def close(self) -> None:
        """Of a training that ends before, the steps that there were."""
        if self.profiler is not None:
            self.profiler.stop()


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
        self,
        log: MetricLog | NoMetricLog,
        ledger: "Ledger",
        bar: tqdm,
        served: Served,
        accelerator: "Accelerator",
        on_nan: str,
    ):
        self.log, self.ledger, self.bar, self.served, self.accelerator = log, ledger, bar, served, accelerator
        self.pending: list[Step] = []
        self.skipped = 0  # steps in a row that the fp16 gradient scaler left out
        self.skipped_at_most = MOST_SKIPPED if accelerator.scaler else 0
        self.on_nan = on_nan  # skip: the loop has left out what is not finite, and said so
        self.restart_clock()

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
        rate, speed = sum(items) / (time.perf_counter() - self.served.began), self.served.speed(self.accelerator)
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
            newest = step is self.pending[-1]
            self.log.write(step.number, step.epoch, "train", scores, rate, **(speed if newest else {}))
        self.log.append()
        newest, mean = self.pending[-1], sum(sums) / sum(items)
        logger.debug("step %d: loss %.4f, gradient norm %.4f", newest.number, mean, norms[-1])
        shown = {"epoch": f"{newest.epoch:.2f}", "loss": f"{mean:.4f}", "rows_per_s": f"{rate:.0f}"}
        shown |= {name: f"{speed[name]:.0%}" for name in ("padding", "data_wait") if name in speed}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(newest.number - self.bar.n)
        self.pending.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of items_per_second what was not training: an evaluation, a checkpoint."""
        self.served.restart()

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


class ScoreTable:
    """The scores on validation as they come: a header once, then a line for each evaluation."""

    MOST = 8  # columns of metrics; metrics.jsonl has all

    def __init__(self, best_metric: str):
        self.best_metric, self.names = best_metric, []

    def add(self, step: int, epoch: float, training_loss: float, scores: dict[str, float], is_best: bool) -> None:
        """`training_loss`: the mean over the rows since the last line."""
        names, begins = [name for name in scores if name != "loss"], not self.names
        self.names = self.names or ["loss", *(n for n in names if n in [*names[: self.MOST], self.best_metric])]
        titles = ["Step", "Epoch", "Training Loss", "Validation Loss", *map(titled, self.names[1:])]
        if begins:
            more = len(scores) - len(self.names)
            more = f"  ({more} more in metrics.jsonl)" if more else ""
            logger.info("%s%s", "  ".join(f"{title:>7}" for title in titles), more)
        values = training_loss, *map(scores.get, self.names)
        cells = [str(step), f"{epoch:.2f}", *(f"{value:.4f}" for value in values)]
        cells = [cell.rjust(max(len(title), 7)) for title, cell in zip(titles, cells, strict=True)]
        logger.info("%s%s", "  ".join(cells), "  " + coloured("best", "green", terminal()) if is_best else "")


def titled(name: str) -> str:
    """ "f1_macro" -> "F1 Macro"; the label in "recall[not_sure]" stays as it is."""
    score, bracket, label = name.partition("[")
    return " ".join(word.capitalize() for word in score.split("_")) + bracket + label


class _Lines(plain_tqdm):
    """A bar in a pipe: each drawing is a line."""

    monitor_interval = 0  # no thread that draws as well

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.disable or self.n > self.initial:  # `close` ends its line itself
            self.fp.write(f"{self}{'' if self.disable else chr(10)}")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Nothing is wiped out."""


def progress_bar(total: int, done: int, is_main_process: bool) -> plain_tqdm:
    """A bar over optimizer steps, where information is logged; in a pipe, a line in ten seconds, and the last."""
    live = terminal().isatty() or any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return (tqdm if live else _Lines)(
        total=total,
        initial=done,
        unit="step",
        disable=not (is_main_process and logger.isEnabledFor(logging.INFO)),
        file=terminal(),
        mininterval=0.1 if live else 10,
        miniters=1,
        dynamic_ncols=True,
        smoothing=0.05,
    )


def finite(scores: dict[str, float]) -> dict[str, float | None]:
    """Scores for JSON, which has no NaN and no infinity: None stands for them."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def shown(scores: dict[str, float]) -> str:
    """Scores for a person: "loss 0.3121  accuracy 0.8912"."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
