"""What a ledger (ftloop/provenance/ledger.py) proves: `prove` of one run, `compare` of two. Neither reads the data."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from ftloop import checkpoint
from ftloop.checkpoint import TrainState
from ftloop.config import differences, option, read_encoded
from ftloop.sampler import UNBOUNDED, TrainOrder, Window
from ftloop.errors import UserError
from ftloop.provenance.ledger import chained, digest_of, shown


class Wrong(Exception):
    """A ledger that does not prove what it should. The text names the line or the step, the first that is wrong."""


def prove(run: Path) -> list[str]:
    """That each step of a run saw the rows of the plan, and so each row once an epoch: in words, with figures. Raises
    Wrong, and UserError where no run is."""
    entries, encoded, state, epochs = read(run), read_encoded(run)[1], TrainState(), Epochs()
    windows: Iterator[Window] = iter(())
    rows = seen = 0
    for entry in entries:
        if "train_rows" in entry:
            plan, rows = entry, entry["train_rows"]
            lengths = lengths_of(run, rows) if plan.get("grouped") else None
            size, seed = plan["batch_size"], plan["seed"]
            order = TrainOrder(
                rows, size, size, 1, UNBOUNDED, seed, state, lengths, bool(plan.get("grouped"))
            )
            windows = order.windows()
            continue
        check_step(entry, state)
        window = next(windows)
        check_rows(entry, window)
        epochs.count(window, rows)
        state.advance(window)
        seen += entry["rows"]
    changed = [name for name in ("batch_size", "seed") if plan[name] != encoded[name]]
    if changed:
        raise Wrong(
            f"the ledger was written with another {', '.join(map(option, changed))} than config.json has"
        )
    saved = max(map(checkpoint.step_of, checkpoint.find(run / "checkpoints")), default=0)
    if saved > state.step:
        raise Wrong(
            f"the ledger ends with step {state.step}, and a checkpoint of step {saved} is there"
        )
    plans = [entry for entry in entries if "train_rows" in entry]
    digests = sum("weights" in entry for entry in entries)
    return [
        f"chain     {len(entries)} lines, each follows the one before it",
        *(f"plan      from step {plan['step'] + 1}: {said_of(plan)}" for plan in plans),
        f"steps     1 to {state.step}, each once, in order",
        f"rows      {seen} used, in each step those of the plan",
        f"epochs    {epochs.said(rows, seen)}",
        f"weights   {digests} digest(s)"
        if digests
        else "weights   no digests (--digest-every N takes them)",
    ]


def lengths_of(run: Path, rows: int) -> numpy.ndarray:
    """The lengths by which the rows of train were grouped. Raises Wrong if they are not those of so many rows."""
    file = run / "lengths.npy"
    if not file.is_file():
        raise Wrong(f"{file} is missing: the order of rows, grouped by length, follows from it")
    try:
        lengths = numpy.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise Wrong(f"{file} cannot be read: {error}") from error
    if len(lengths) != rows:
        raise Wrong(f"{file} has {len(lengths)} rows, and the plan {rows}")
    return lengths


def said_of(plan: dict[str, Any]) -> str:
    """A plan in words."""
    how = "grouped by length in the order" if plan.get("grouped") else "in the order"
    rows = "a stream" if plan["train_rows"] == UNBOUNDED else f"{plan['train_rows']} rows"
    return f"{rows}, {plan['batch_size']} in a step, {how} of seed {plan['seed']}"


def read(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's ledger; what was half written when a process was killed is left out. Raises Wrong where a
    line does not follow the one before it, UserError if there is no ledger."""
    read_encoded(run)  # no run there: it says which one may be meant
    file = run / "ledger.jsonl"
    if not file.is_file():
        raise UserError(
            f"{str(run)!r} has no ledger.jsonl: the run has not begun, or was made by an earlier version"
        )
    entries, before = [], b""
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            entry = json.loads(line)
            chain = entry.pop("chain")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise Wrong(f"{file}, line {number} is not a line of a ledger") from None
        if chain != chained(before, entry):
            raise Wrong(
                f"{file}, line {number} (step {entry.get('step')}) breaks the chain: it is not what was written there, "
                "or the line before it is not"
            )
        entries.append(entry)
        before = line
    if len(entries) < 2 or "train_rows" not in entries[0]:
        raise Wrong(f"{file} holds no plan with steps after it")
    return entries


def check_step(entry: dict[str, Any], state: TrainState) -> None:
    """Raise Wrong if a step is not the next one."""
    step, expected = entry["step"], state.step + 1
    if step != expected:
        raise Wrong(
            f"step {expected} is missing"
            if step > expected
            else f"step {step} comes again after {state.step}"
        )
    if (entry["epoch"], entry["window"]) != (state.epoch, state.window):
        raise Wrong(
            f"step {step} is at window {entry['window']} of epoch {entry['epoch']} (from 0), "
            f"and not at window {state.window} of epoch {state.epoch}"
        )


def check_rows(entry: dict[str, Any], window: Window) -> None:
    """Raise Wrong if a step did not see the rows of its window, each once."""
    step, planned = entry["step"], len(window.rows)
    if entry["rows"] != planned:
        raise Wrong(f"step {step} saw {entry['rows']} rows, and not {planned}")
    if entry["ids"] != shown(digest_of(window.rows)):
        raise Wrong(f"step {step} saw other rows than those of the plan")


class Epochs:
    """Counts how often each row was used in the epoch at hand: a byte for each."""

    def __init__(self) -> None:
        self.complete = 0
        self.used = numpy.zeros(0, numpy.uint8)

    def count(self, window: Window, rows: int) -> None:
        """Count the rows of the next window. Raises Wrong if its epoch ends and a row was not used once in it."""
        if rows == UNBOUNDED:
            return  # a window of a stream is the positions from its index on: there is nothing to count
        if not len(self.used):
            self.used = numpy.zeros(rows, numpy.uint8)
        numpy.add.at(self.used, window.rows, 1)
        if window.ends_epoch:
            self.check(window.epoch, least=1)
            self.complete, self.used = self.complete + 1, numpy.zeros(0, numpy.uint8)

    def check(self, epoch: int, least: int) -> None:
        """Raise Wrong if a row was used less or more often than it should be."""
        wrong = numpy.flatnonzero((self.used < least) | (self.used > 1))
        if len(wrong):
            raise Wrong(
                f"in epoch {epoch} (from 0), {len(wrong)} rows were not used once; the first is row {wrong[0]}, "
                f"{self.used[wrong[0]]} times (a run that goes on with --allow-changes may divide an epoch anew)"
            )

    def said(self, rows: int, seen: int) -> str:
        """What the counts prove, in words."""
        if rows == UNBOUNDED:
            return f"a stream: its positions 0 to {seen - 1}, each once"
        self.check(self.complete, least=0)
        begun = int(self.used.sum())
        rest = f"; {begun} rows of the next, none twice" if begun else ""
        return f"{self.complete} complete, in each of them each of the {rows} rows once{rest}"


def compare(run: Path, other: Path) -> tuple[bool, list[str]]:
    """Whether two runs are the same, step by step; and in words, the first step in which they differ, what differed
    first in it, and the options, rows and versions in which they differ. Raises Wrong, and UserError."""
    ours, others = read(run), read(other)
    difference = first_difference(ours, others)
    lines = [
        f"differ    {difference}" if difference else f"equal     in all {ours[-1]['step']} steps"
    ]
    lines += [
        f"option    {change}"
        for change in differences(read_encoded(run)[1], read_encoded(other)[1])
    ]
    plans = said_of(ours[0]), said_of(others[0])
    lines += [f"plan      {plans[0]} -> {plans[1]}"] if plans[0] != plans[1] else []
    before, after = made_by(run), made_by(other)
    changed = [name for name in before if before[name] != after.get(name)]
    lines += [f"made by   {name} {before[name]} -> {after.get(name)}" for name in changed]
    return difference is None, lines


def first_difference(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> str | None:
    """The first step in which two ledgers differ, in words. Within a step the order is that of cause and effect: rows
    are read, a loss is computed from them and the weights before, then come the weights after."""
    ours, others = (
        {entry["step"]: entry for entry in entries if counts(entry)} for entries in (ours, others)
    )
    known = None  # the newest step after which both have a digest of the weights, and the same one
    for step in sorted(ours.keys() & others.keys()):
        one, two = ours[step], others[step]
        where = f"first in step {step}: "
        if any(one.get(name) != two.get(name) for name in ("epoch", "window", "rows", "ids")):
            return f"{where}the data; {weights_before(step, known)}"
        if one.get("loss") != two.get("loss"):
            values = " and ".join(repr(float.fromhex(entry["loss"])) for entry in (one, two))
            return f"{where}the loss, {values}, from the same rows; {weights_before(step, known)}"
        if "weights" in one and "weights" in two:
            if one["weights"] != two["weights"]:
                if step == 0:
                    return "before the first step: the weights"
                return f"{where}the weights, after the same rows and loss; {weights_before(step, known)}"
            known = step
    shorter, longer = sorted((max(ours), max(others)))
    return (
        f"after step {shorter}: equal so far, but only one goes on, to step {longer}"
        if shorter < longer
        else None
    )


def counts(entry: dict[str, Any]) -> bool:
    """Whether an entry is compared: a step, or what was there before the first one."""
    return "ids" in entry or entry["step"] == 0


def weights_before(step: int, known: int | None) -> str:
    """What digests say of the weights from which the loss of a step was computed."""
    if known == step - 1:
        return "the weights before it were the same"
    if known is None:
        return (
            "of the weights before it nothing is known (--digest-every 1 in both runs would tell)"
        )
    return f"the weights were known to be the same after step {known} (--digest-every 1 in both runs would tell more)"


def made_by(run: Path) -> dict[str, Any]:
    """Versions, device, threads and processes of a run, from its newest checkpoint; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        return checkpoint.load_made_by(checkpoint.find(run / "checkpoints")[-1])
    return {}
