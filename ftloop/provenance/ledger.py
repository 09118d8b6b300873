"""ledger.jsonl: the rows, the loss and optionally the weights of each step, as a hash chain.

There is one line per optimizer step, and before them a line with the plan: the number of rows, the
batch size, the seed, the row order, and a digest of the rows of each split. Another plan line
follows where a run resumes with another plan. The ledger holds no times: an interrupted run leaves
the same bytes as one that was not interrupted.

The ledger records the rows from which the losses were computed, and not those that were planned.
`ftloop.provenance.verify` compares the two.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy
import torch

from ftloop.config import encode
from ftloop.errors import UserError, read_json
from ftloop.extensions import Observer
from ftloop.files import replace_file
from ftloop.files.metric_lines import has_fields
from ftloop.metric_log import StepRecord, raise_write_errors
from ftloop.provenance.row_digest import format_digest, hash_rows

logger = logging.getLogger("ftloop")


# The fields of a line, and their types
STEP = {"step": int, "epoch": int, "index": int, "rows": int, "row_digest": str, "loss": str}
PLAN = {
    **{"step": int, "num_rows": int, "batch_size": int, "seed": int, "grouped": bool},
    **{"row_order": dict, "fingerprints": dict},
}
CHAIN = {"chain": str}


class Ledger(Observer):
    """Writes ledger.jsonl. Every rank has one, since each knows only its own rows."""

    def __init__(self, digest_every: int | None = None):
        """`digest_every`: optimizer steps between digests of the weights; None: no digests."""
        self.digest_every = digest_every
        self.stream: Any = None  # on the main process
        self.last_line = b""  # to which the next line is chained

    def on_start(self, run: Any) -> None:
        """Cut the ledger at the resumed step, and write the plan if it is new."""
        every, log_every = self.digest_every, run.config.log_every
        if every is not None and every % log_every:
            message = f"{every} must be a multiple of log_every, which is {log_every}."
            raise UserError(message, field="digest_every")
        digest = self._digest_weights(run, run.state.step)  # all ranks gather the weights
        if not run.is_main_process:
            return
        lines, last_step = kept_lines(run.folder / "ledger.jsonl", run.state.step)
        if last_step != run.state.step:
            logger.warning(
                "ledger.jsonl has changed: it ends with step %d, but the run resumes after step "
                "%d. `verify` finds the first line that is missing or wrong.",
                last_step,
                run.state.step,
            )
        self.last_line = lines[-1] if lines else b""
        self.stream = (run.folder / "ledger.jsonl").open("ab")
        self.stream.truncate(sum(map(len, lines)))
        plan = {**describe_plan(run.sampler), "fingerprints": run.state.fingerprints}
        if run.sampler.group_by_length:  # `verify` computes the order of the rows from them
            with replace_file(run.folder / "lengths.npy", is_locked=True) as stream:
                numpy.save(stream, run.sampler.lengths)
        plans = [entry for entry in map(read_entry, lines) if "num_rows" in entry]
        if not plans or any(plans[-1].get(name) != value for name, value in plan.items()):
            self._append({"step": run.state.step, **plan, "weights": digest})

    def on_log(self, run: Any, steps: list[StepRecord], speed: dict[str, float]) -> None:
        """Write one line per step. All ranks take part: their rows are added up."""
        sums = torch.from_numpy(numpy.stack([sum_rows(record) for record in steps]))
        by_rank = run.accelerator.gather(sums.to(run.accelerator.device).unsqueeze(0)).tolist()
        digest = self._digest_weights(run, steps[-1].step)
        for index, record in enumerate(steps):
            rows = sum(rank[index][0] for rank in by_rank)
            row_digest = sum(rank[index][1] for rank in by_rank)
            entry = {"step": record.step, "epoch": record.plan.epoch, "index": record.plan.index}
            entry |= {"rows": rows, "row_digest": format_digest(row_digest)}
            entry |= {"loss": record.loss.hex(), "weights": digest if record is steps[-1] else None}
            self._append(entry)
        if self.stream is not None:
            with raise_write_errors(self.stream.name):
                self.stream.flush()

    def sync(self) -> None:
        """Wait until all lines are on disk."""
        if self.stream is not None:
            with raise_write_errors(self.stream.name):
                self.stream.flush()
                os.fsync(self.stream.fileno())

    def close(self, run: Any) -> None:
        """Close the file."""
        if self.stream is not None:
            self.stream.close()

    def _append(self, entry: dict[str, Any]) -> None:
        if self.stream is None:
            return
        entry = {name: value for name, value in entry.items() if value is not None}
        chain = chain_digest(self.last_line, entry)
        self.last_line = json.dumps({**entry, "chain": chain}).encode() + b"\n"
        with raise_write_errors(self.stream.name):
            self.stream.write(self.last_line)

    def _digest_weights(self, run: Any, step: int) -> str | None:
        """Return the sha256 of the weights if it is due after this step. All ranks must call it."""
        if self.digest_every is None or step % self.digest_every:
            return None
        digest = hashlib.sha256()
        for tensor in run.registered["model"].state_dict().values():
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def describe_plan(sampler: Any) -> dict[str, Any]:
    """Return what the order of the rows follows from."""
    return {
        "num_rows": sampler.num_rows,
        "batch_size": sampler.rows_per_step,
        "seed": sampler.seed,
        "grouped": sampler.group_by_length,
        "row_order": encode(sampler.row_order),
    }


def sum_rows(record: StepRecord) -> numpy.ndarray:
    """Return (number of rows, sum of their hashes) of a step on this rank, without padding rows.

    int64, as the devices have it: a sum that overflows has the same bits as in uint64.
    """
    row_ids = torch.cat(record.row_ids).cpu().numpy()
    hashes = hash_rows(row_ids[row_ids >= 0]).view(numpy.int64)
    return numpy.array([len(hashes), hashes.sum(dtype=numpy.int64)])


def kept_lines(file: Path, step: int) -> tuple[list[bytes], int]:
    """Return the lines of a ledger up to a step, and the last step among them.

    An incomplete last line is left out. A line that is not one of a ledger is kept, so that
    `verify` reports it.
    """
    lines: list[bytes] = []
    last_step = 0
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
        number = read_entry(line).get("step", last_step)
        if not line.endswith(b"\n") or number > step:
            break
        lines.append(line)
        last_step = number
    return lines, last_step


def read_entry(line: bytes) -> dict[str, Any]:
    """Return a line of a ledger, a plan or a step; {} for one that is neither."""
    with contextlib.suppress(UserError):
        entry = read_json(Path("ledger.jsonl"), Any, line)
        optional = {"weights": str}
        if has_fields(entry, {**STEP, **CHAIN}, optional):
            return entry
        if has_fields(entry, {**PLAN, **CHAIN}, optional):
            is_named = isinstance(entry["row_order"].get("function"), str)
            return entry if is_named else {}
    return {}


def chain_digest(previous_line: bytes, entry: dict[str, Any]) -> str:
    """Return what ends a line: the sha256 of the previous line of the file and of its own entry."""
    return hashlib.sha256(previous_line + json.dumps(entry).encode()).hexdigest()
