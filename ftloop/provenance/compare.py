"""Find the first step at which two runs differ, by their ledgers."""

import contextlib
from pathlib import Path
from typing import Any

from ftloop import checkpoint as checkpoints
from ftloop.config import differences, read_record
from ftloop.errors import UserError
from ftloop.provenance.reading import Entry, LedgerError, format_plan, is_plan, read_ledger


def compare_runs(run_dir: Path, other_dir: Path) -> tuple[bool, list[str]]:
    """Find the first step at which two runs differ, and what differs first in it.

    Returns whether all steps are equal, and lines to print, which also list the options, plans and
    environments that differ. Raises UserError if a folder holds no run.
    """
    try:
        ledger, other_ledger = read_ledger(run_dir), read_ledger(other_dir)
    except LedgerError as error:
        return False, [f"wrong     {error}"]
    difference = find_difference(ledger, other_ledger)
    equal = f"equal     in all {ledger[-1]['step']} steps"
    lines = [equal if difference is None else f"differ    {difference}"]
    old, new = read_record(run_dir)["config"], read_record(other_dir)["config"]
    changes = differences(old, new, may_change=frozenset({"run_dir"}))
    lines += [f"config    {change}" for change in changes]
    plan, other_plan = format_plan(ledger[0]), format_plan(other_ledger[0])
    if plan != other_plan:
        lines.append(f"plan      {plan} -> {other_plan}")
    rows, other_rows = ledger[0]["fingerprints"], other_ledger[0]["fingerprints"]
    for split in {**rows, **other_rows}:
        if rows.get(split) != other_rows.get(split):
            lines.append(f"rows      {split} has other rows")
    before, after = load_environment(run_dir), load_environment(other_dir)
    for name in before:
        if before[name] != after.get(name):
            lines.append(f"machine   {name}: {before[name]} -> {after.get(name)}")
    return difference is None, lines


def find_difference(ledger: list[Entry], other_ledger: list[Entry]) -> str | None:
    """Describe the first difference of two ledgers, or return None if they are equal.

    Within a step, a cause comes before its effect: rows are read, the loss is computed from them
    and from the weights before the step, and the weights after the step follow.
    """
    steps, other_steps = steps_by_number(ledger), steps_by_number(other_ledger)
    equal_weights = None  # the newest step after which both have the same digest of the weights
    for step in sorted(steps.keys() & other_steps.keys()):
        one, two = steps[step], other_steps[step]
        before = describe_weights_before(step, equal_weights)
        if any(one.get(name) != two.get(name) for name in ("epoch", "index", "rows", "row_digest")):
            return f"first at step {step}, in the rows; {before}"
        if one.get("loss") != two.get("loss"):
            losses = " and ".join(repr(float.fromhex(entry["loss"])) for entry in (one, two))
            return f"first at step {step}, in the loss of the same rows ({losses}); {before}"
        if "weights" in one and "weights" in two:
            if one["weights"] != two["weights"] and step == 0:
                return "before the first step, in the weights"
            if one["weights"] != two["weights"]:
                return f"first at step {step}, in the weights after equal rows and loss; {before}"
            equal_weights = step
    shorter, longer = sorted((max(steps), max(other_steps)))
    if shorter < longer:
        return f"in length: equal up to step {shorter}, then only one continues to step {longer}"
    return None


def steps_by_number(ledger: list[Entry]) -> dict[int, Entry]:
    """Return the steps of a ledger, and as step 0 the first plan, which has the initial weights."""
    return {entry["step"]: entry for entry in ledger if not is_plan(entry) or entry["step"] == 0}


def describe_weights_before(step: int, equal_weights: int | None) -> str:
    """Describe what is known of the weights from which the loss of a step was computed."""
    if equal_weights == step - 1:
        return "the weights before this step were equal"
    more = "--digest-every 1 --log-every 1 in both runs would tell"
    if equal_weights is None:
        return f"whether the weights before this step were equal is not known ({more})"
    return f"the weights after step {equal_weights} were equal ({more} more)"


def load_environment(run_dir: Path) -> dict[str, Any]:
    """Load the environment of the newest checkpoint; {} if there is none that is readable."""
    with contextlib.suppress(UserError, IndexError):
        newest = checkpoints.find_checkpoints(run_dir / "checkpoints")[-1]
        return checkpoints.load_environment(newest)
    return {}
