"""Read the ledger of a run, and check that its lines continue one another."""

from pathlib import Path
from typing import Any

from ftloop.config import encode, read_record
from ftloop.errors import UserError
from ftloop.provenance.ledger import chain_digest, read_entry
from ftloop.sampler import UNBOUNDED, own_order, random_order

Entry = dict[str, Any]  # a line of a ledger, without its chain digest: a plan or a step

MAX_ROWS = 2**40  # a plan of more rows would not fit in memory


class LedgerError(Exception):
    """A ledger that does not prove what it should. The message names the first line or step."""


def read_ledger(run_dir: Path) -> list[Entry]:
    """Read the lines of a ledger, but not an incomplete last line, which a killed process leaves.

    Raises LedgerError for a line that does not continue the one before it, and UserError if the
    folder holds no ledger.
    """
    read_record(run_dir)  # raises UserError if the folder holds no run
    file = run_dir / "ledger.jsonl"
    if not file.is_file():
        raise UserError(f"{str(run_dir)!r} has no ledger.jsonl: its training wrote no ledger.")
    entries, previous = [], b""
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        entry, chain = parse_line(line)
        if entry is None:
            raise LedgerError(f"{file}, line {number} is not a line of a ledger")
        if chain != chain_digest(previous, entry):
            raise LedgerError(
                f"{file}, line {number} (step {entry['step']}) breaks the chain: this line or the "
                "one before it has changed since it was written"
            )
        entries.append(entry)
        previous = line
    if len(entries) < 2 or not is_plan(entries[0]):
        raise LedgerError(f"{file} has no plan that is followed by steps")
    return entries


def parse_line(line: bytes) -> tuple[Entry | None, str]:
    """Return the entry and the chain digest of a line; (None, "") for what is no such line."""
    entry = read_entry(line)
    try:
        float.fromhex(entry.get("loss", "0"))
    except (ValueError, OverflowError):
        return None, ""
    sizes = entry.get("num_rows", 1), entry.get("batch_size", 1)
    is_possible = entry and min(sizes) > 0 and (sizes[0] < MAX_ROWS or sizes[0] == UNBOUNDED)
    return (entry, entry.pop("chain")) if is_possible else (None, "")


def is_plan(entry: Entry) -> bool:
    """Return whether an entry is a plan, and not a step."""
    return "num_rows" in entry


def has_random_order(plan: Entry) -> bool:
    """Return whether a plan has the default order: a permutation that follows from the seed."""
    return plan["row_order"] == encode(random_order)


def format_plan(plan: Entry) -> str:
    """Format a plan: "43 rows, 8 per step, grouped by length, seed 42"."""
    rows = "a stream" if plan["num_rows"] == UNBOUNDED else f"{plan['num_rows']} rows"
    parts = [rows, f"{plan['batch_size']} per step"]
    if plan["grouped"]:
        parts.append("grouped by length")
    if plan["row_order"] not in (encode(random_order), encode(own_order)):
        parts.append(f"in the order of {plan['row_order']['function']}")
    return ", ".join([*parts, f"seed {plan['seed']}"])
