"""ledger.jsonl: the rows of each optimizer step, its loss and its weights, as a hash chain. ftloop/provenance/verify.py reads it.

One line a step; before them one with the plan (how many rows, how many a step, the seed), and another where a run goes
on with another plan (--allow-changes). It is cut and continued with the checkpoints, and holds no clock: a run that was
interrupted leaves the same bytes as one that was not.

What is written of the rows is what the losses were computed from, not what was planned: the sum of 64 mixed bits of
each row id, which needs no order, and so is added up over micro-batches and processes. Two sets of rows share it by
chance once in 2 ** 64.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ftloop.sampler import splitmix
from ftloop.devices.sharding import weights_of
from ftloop.logs.terminal import MetricLog, NoMetricLog, Step

if TYPE_CHECKING:
    from accelerate import Accelerator

ODD = numpy.uint64(0x9E3779B97F4A7C15)  # added to an id before it is mixed: else row 0 would add nothing


class Ledger:
    """Lives on every process, for each knows its own rows; the main process writes."""

    def __init__(self, accelerator: "Accelerator", model: Any, digest_every: int | None):
        """`model` as it was prepared; `digest_every` in optimizer steps, None for never."""
        self.accelerator, self.model, self.digest_every = accelerator, model, digest_every
        self.file: Any = NoMetricLog()
        self.newest = b""  # the line that the next one is chained to
        self.told = 0  # bytes of the file that mean_loss has read

    def open(self, file: Path, keep_bytes: int, step: int, plan: dict[str, int], weights: str | None) -> None:
        """Cut the ledger to what the resumed `step` had written, and go on; on the main process only. `weights` is
        their digest after that step, if one is due."""
        self.file = MetricLog(file, keep_bytes)
        planned = b""
        with file.open("rb") as lines:
            for self.newest in lines:
                planned = self.newest if b'"train_rows"' in self.newest else planned
        if json.dumps(plan)[1:-1].encode() + b"," not in planned:
            self._append([{"step": step, **plan, "weights": weights}])

    def weights_after(self, step: int) -> str | None:
        """The digest of the weights as they are now, if one is due after this step; on the main process. All call it:
        each may have a part of the weights. The device is waited for."""
        if self.digest_every is None or step % self.digest_every:
            return None
        weights = weights_of(self.model, self.accelerator)
        if not self.accelerator.is_main_process:
            return None
        found = hashlib.sha256()
        for tensor in weights.values():
            found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def write(self, steps: list[Step], losses: list[float]) -> None:
        """Append steps and their losses. All processes call it: what each has seen is added up."""
        rows = torch.cat([ids for step in steps for ids, _ in step.losses]).cpu().numpy()
        real, mixed = rows >= 0, mixed_of(rows)
        mixed[~real] = 0  # empty seats count nothing
        starts = numpy.cumsum([0, *(sum(len(ids) for ids, _ in step.losses) for step in steps[:-1])])
        # int64, as the devices have it: sums that overflow are the same bits.
        seen = numpy.stack(
            [numpy.add.reduceat(mixed, starts).view(numpy.int64), numpy.add.reduceat(real, starts, dtype=numpy.int64)],
            axis=1,
        )
        seen = self.accelerator.gather(torch.from_numpy(seen).to(self.accelerator.device))
        seen = seen.reshape(-1, len(steps), 2).tolist()  # by process
        entries = []
        for place, (step, loss) in enumerate(zip(steps, losses, strict=True)):
            digest, count = (sum(process[place][what] for process in seen) for what in (0, 1))
            entry = {"step": step.number, "epoch": step.window.epoch, "window": step.window.index, "rows": count}
            entries.append({**entry, "ids": shown(digest), "loss": loss.hex(), "weights": step.weights})
        self._append(entries)

    def _append(self, entries: list[dict[str, Any]]) -> None:
        if not self.accelerator.is_main_process:
            return
        lines = b""
        for entry in entries:
            entry = {name: value for name, value in entry.items() if value is not None}
            self.newest = json.dumps({**entry, "chain": chained(self.newest, entry)}).encode() + b"\n"
            lines += self.newest
        self.file.append(lines)

    def mean_loss(self, after: int) -> float:
        """The mean over the rows of the steps after step `after` (NaN without any); on the main process. Each line is
        read once, and after an interruption the file knows what was before it."""
        with self.file.file.open("rb") as lines:
            lines.seek(self.told)
            entries = [entry for entry in map(json.loads, lines) if "loss" in entry]  # not the plan
            self.told = lines.tell()
        steps = [(entry["rows"], float.fromhex(entry["loss"])) for entry in entries if entry["step"] > after]
        return sum(rows * loss for rows, loss in steps) / (sum(rows for rows, _ in steps) or math.nan)

    def durable(self) -> int:
        """Wait until the disk has all lines; the length of the ledger in bytes, for the checkpoint."""
        return self.file.durable()

    def close(self) -> None:
        self.file.close()


def chained(before: bytes, entry: dict[str, Any]) -> str:
    """What a line ends with: sha256 over the line before it, as it is in the file, and its own entry."""
    return hashlib.sha256(before + json.dumps(entry).encode()).hexdigest()


def mixed_of(ids: Iterable[int]) -> numpy.ndarray:
    """Sixty-four mixed bits of each row id, uint64."""
    return splitmix(numpy.asarray(ids, numpy.int64).astype(numpy.uint64) + ODD)


def digest_of(ids: Iterable[int]) -> int:
    """The digest of a multiset of row ids, below 2 ** 64."""
    return int(mixed_of(ids).sum(dtype=numpy.uint64))


def shown(digest: int) -> str:
    """As it is in the ledger: sixteen hexadecimal digits of the digest, or of a sum of digests."""
    return f"{digest % 2**64:016x}"
