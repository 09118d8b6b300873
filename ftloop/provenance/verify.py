"""Verify that each optimizer step of a run used the rows that the seed determines.

The ledger records the rows from which the losses of each step were computed. Verification computes
the rows of each step again, by the sampler that training used, and compares. For the default row
order it neither reads the data nor imports the code of the run.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from ftloop import checkpoint as checkpoints
from ftloop.config import Config, encode, read_record
from ftloop.errors import UserError
from ftloop.provenance.reading import (
    Entry,
    LedgerError,
    format_plan,
    has_random_order,
    is_plan,
    read_ledger,
)
from ftloop.provenance.row_digest import digest_rows, format_digest
from ftloop.runs.finished import fingerprint_of
from ftloop.runs.record import load_config
from ftloop.sampler import UNBOUNDED, StepPlan, TrainSampler
from ftloop.task import Task


def verify_run(run_dir: Path) -> tuple[bool, list[str]]:
    """Verify that each step of a run used the rows of the plan.

    Returns whether nothing is wrong, and lines to print. Raises UserError if the folder holds no
    run, or if the row order depends on code or data that cannot be loaded.
    """
    try:
        return True, check_ledger(run_dir)
    except LedgerError as error:
        return False, [f"wrong     {error}"]
    except MemoryError as error:
        return False, [f"wrong     the plan has more rows than fit in memory: {error}"]


def check_ledger(run_dir: Path) -> list[str]:
    """Check the ledger of a run, and describe what it proves in lines. Raises LedgerError."""
    entries = read_ledger(run_dir)
    last_step = check_step_numbers(entries)
    lines = [f"chain     {len(entries)} lines, each of which continues the one before it"]
    lines += [f"steps     1 to {last_step}, each once, in order"]
    is_permutation = all(has_random_order(entry) for entry in entries if is_plan(entry))
    counts = RowCounts() if is_permutation else None
    for plan, steps in split_by_plan(entries):
        lines += check_plan(run_dir, plan, steps, counts)
    check_end(run_dir, entries)
    if counts is not None:
        lines.append(f"epochs    {counts.describe()}")
    num_digests = sum("weights" in entry for entry in entries)
    lines.append(f"weights   {num_digests or 'no'} digests (--digest-every)")
    return lines


def check_step_numbers(entries: list[Entry]) -> int:
    """Return the last step. Raises LedgerError unless the steps are 1, 2, 3, ..."""
    last_step = 0
    for entry in entries:
        step = last_step if is_plan(entry) else last_step + 1
        if entry["step"] > step:
            raise LedgerError(f"step {step} is missing")
        if entry["step"] < step:
            raise LedgerError(f"step {entry['step']} appears again after step {last_step}")
        last_step = step
    return last_step


def split_by_plan(entries: list[Entry]) -> Iterator[tuple[Entry, list[Entry]]]:
    """Yield each plan with its steps. A plan without steps, as of a killed process, is left out."""
    starts = [index for index, entry in enumerate(entries) if is_plan(entry)]
    for start, stop in zip(starts, [*starts[1:], len(entries)], strict=True):
        if stop > start + 1:
            yield entries[start], entries[start + 1 : stop]


def check_plan(
    run_dir: Path, plan: Entry, steps: list[Entry], counts: "RowCounts | None"
) -> list[str]:
    """Check the steps of one plan, and describe what that proves. Raises LedgerError."""
    first, last = steps[0]["step"], steps[-1]["step"]
    lines = [f"plan      from step {first}: {format_plan(plan)}"]
    sampler = build_sampler(run_dir, plan)
    if sampler is None:
        message = (
            f"rows      steps {first} to {last} are not verified: config.json has another row order"
        )
        return [*lines, message]
    for entry in steps:
        expected = sampler.plan(entry["step"] - 1)
        check_rows(entry, expected, plan)
        if counts is not None:
            counts.add(expected, sampler.num_rows)
    num_rows = sum(entry["rows"] for entry in steps)
    rows = f"rows      steps {first} to {last} used the {num_rows} rows of the plan"
    if plan["num_rows"] == UNBOUNDED:
        rows += ", by their positions in the stream (what is at a position is not recorded)"
    return [*lines, rows]


class Rows:
    """Stands for a dataset of which only the number of rows and their lengths are known."""

    def __init__(self, num_rows: int, lengths: numpy.ndarray | None):
        self.num_rows, self.lengths = num_rows, lengths

    def __len__(self) -> int:
        return self.num_rows


def build_sampler(run_dir: Path, plan: Entry) -> TrainSampler | None:
    """Build the sampler that computes the rows of a plan.

    Any order but the default one is computed by a function of the config or of the dataset, which
    are loaded. Returns None if that is not the function of the plan: a run that was resumed with
    --allow-changes may have several plans, and config.json has only the last function.
    """
    batch_size, seed, grouped = plan["batch_size"], plan["seed"], plan["grouped"]
    config = Config(Task(), "", batch_size=batch_size, seed=seed, group_by_length=grouped)
    if has_random_order(plan):
        lengths = load_lengths(run_dir, plan["num_rows"]) if grouped else None
        return TrainSampler(Rows(plan["num_rows"], lengths), config)
    recorded = load_config(run_dir, functions=("row_order",))
    dataset = recorded.task.load_datasets()["train"]
    check_fingerprint(run_dir, plan, dataset)
    sampler = TrainSampler(dataset, replace(config, row_order=recorded.row_order))
    if encode(sampler.row_order) != plan["row_order"]:
        return None
    if sampler.num_rows != plan["num_rows"]:
        raise LedgerError(
            f"an epoch of the plan has {plan['num_rows']} rows, but now "
            f"{plan['row_order']['function']} returns {sampler.num_rows} rows"
        )
    return sampler


def load_lengths(run_dir: Path, num_rows: int) -> numpy.ndarray:
    """Load the lengths by which the rows of a run were grouped. Raises LedgerError."""
    file = run_dir / "lengths.npy"
    if not file.is_file():
        raise LedgerError(f"{file} is missing: it decides the order of rows grouped by length")
    try:
        lengths = numpy.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise LedgerError(f"{file} is unreadable: {error}") from error
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise LedgerError(f"{file} does not hold lengths")
    if len(lengths) != num_rows:
        raise LedgerError(f"{file} has {len(lengths)} rows, but the plan has {num_rows}")
    return lengths


def check_fingerprint(run_dir: Path, plan: Entry, dataset: Any) -> None:
    """Raise UserError if the training rows are no longer those of the run."""
    if plan["fingerprints"]["train"] != fingerprint_of(dataset):
        raise UserError(
            f"the training rows have changed since the run {str(run_dir)!r}, and its row order "
            "depends on them. Restore the data to verify the run."
        )


def check_rows(entry: Entry, expected: StepPlan, plan: Entry) -> None:
    """Raise LedgerError if a step did not use its rows, each once."""
    step, num_rows = entry["step"], len(expected.row_ids)
    if (entry["epoch"], entry["index"]) != (expected.epoch, expected.index):
        raise LedgerError(
            f"step {step} is recorded at index {entry['index']} of epoch {entry['epoch']}, but its "
            f"place is index {expected.index} of epoch {expected.epoch} (all from 0)"
        )
    if entry["rows"] != num_rows:
        raise LedgerError(f"step {step} used {entry['rows']} rows instead of {num_rows}")
    if entry["row_digest"] != format_digest(digest_rows(expected.row_ids)):
        message = f"step {step} used other rows than those of the plan"
        if not has_random_order(plan):
            message += f", or {plan['row_order']['function']} has changed since the run"
        raise LedgerError(message)


def check_end(run_dir: Path, entries: list[Entry]) -> None:
    """Raise LedgerError if the ledger does not match the config and the checkpoints of the run."""
    plan = [entry for entry in entries if is_plan(entry)][-1]
    recorded = read_record(run_dir)["config"]
    for name in ("batch_size", "seed"):
        if plan[name] != recorded.get(name):
            option = f"--{name.replace('_', '-')}"
            raise LedgerError(
                f"the ledger was written with {option} {plan[name]}, but config.json has "
                f"{recorded.get(name)}"
            )
    saved = checkpoints.find_checkpoints(run_dir / "checkpoints")
    if saved and checkpoints.step_of(saved[-1]) > entries[-1]["step"]:
        raise LedgerError(f"the ledger ends with step {entries[-1]['step']}, before {saved[-1]}")


class RowCounts:
    """Counts how often each row was used in the current epoch, in which each is used once."""

    def __init__(self) -> None:
        self.num_complete, self.epoch = 0, 0
        self.counts = numpy.zeros(0, numpy.uint8)

    def add(self, plan: StepPlan, num_rows: int) -> None:
        """Count the rows of a step. Raises LedgerError if the epoch before it is not complete."""
        if plan.epoch != self.epoch or len(self.counts) != num_rows:
            self.check(at_least=1)
            self.num_complete += len(self.counts) > 0
            self.epoch, self.counts = plan.epoch, numpy.zeros(num_rows, numpy.uint8)
        self.counts[plan.row_ids] += 1

    def check(self, at_least: int) -> None:
        """Raise LedgerError if a row was used more than once, or less often than `at_least`."""
        wrong = numpy.flatnonzero((self.counts < at_least) | (self.counts > 1))
        if len(wrong):
            raise LedgerError(
                f"in epoch {self.epoch} (from 0), {len(wrong)} rows were not used once. The first "
                f"is row {wrong[0]}, which was used {self.counts[wrong[0]]} times. (A run that is "
                "resumed with --allow-changes may order the rest of an epoch anew.)"
            )

    def describe(self) -> str:
        """Describe all epochs. Raises LedgerError if a row was used twice in the last one."""
        self.check(at_least=0)
        num_used, num_rows = int(self.counts.sum()), len(self.counts)
        num_complete = self.num_complete + (num_used == num_rows)
        text = (
            f"{num_complete} complete, in each of which each of the {num_rows} rows was used once"
        )
        return text if num_used == num_rows else f"{text}; {num_used} rows of the next, none twice"
