"""Measure memory and speed of predict.py, for ten thousand rows and for a million.

    python -m benchmarks.prediction folder --rows 10000 100000 1000000

A random BERT of two layers labels texts of 5 to 20 words, from JSON Lines to JSON Lines. The rows
are read from standard input, and with --file, which first converts them to a memory-mapped table on
disk. Memory is the peak of what the process holds itself (RssAnon, read ten times per second), and
that with mapped files (ru_maxrss), which the system may take back. Rows per second are those of the
whole command, including its start.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.speed import TINY
from benchmarks.speed_data import write_bert

WORDS = [f"word{number}" for number in range(2000)]
LABELS = ("even", "odd", "prime")
TITLES = (
    *("rows", "read from", "peak memory, MB", "with mapped files, MB", "seconds"),
    "rows per second",
)


@dataclass(frozen=True)
class Options:
    """How many rows are labelled; each number in a process of its own."""

    folder: Annotated[Path, tyro.conf.Positional]  # for rows, run and results
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    batch_size: int = 64
    sources: tuple[str, ...] = ("standard input", "file")


def write_rows(file: Path, num_rows: int) -> None:
    """Write rows with "text", "label" and "id"."""
    rng = random.Random(0)
    with file.open("w") as stream:
        for number in range(num_rows):
            text = " ".join(rng.choices(WORDS, k=rng.randint(5, 20)))
            row = {"text": text, "label": rng.choice(LABELS), "id": number}
            stream.write(json.dumps(row) + "\n")


def train(folder: Path) -> Path:
    """Return the folder of a finished run, which is trained unless it exists."""
    run = folder / "run"
    if not (run / "model").exists():
        from ftloop.data.samples import find_minilm

        write_rows(folder / "train.jsonl", 200)
        model = write_bert(find_minilm(), TINY, folder / "tiny")
        command = ["train.py", "configs/text.py", "--data.path", str(folder / "train.jsonl")]
        command += ["--model", model, "--max-steps", "2", "--run-dir", str(run), "--no-report"]
        subprocess.run([sys.executable, *command], check=True)
    return run


def measure(command: list[str], standard_input: Path | None) -> tuple[float, float, float]:
    """Run a command. Returns seconds, peak MB of its own, and peak MB with mapped files."""
    own_memory, began = 0, time.perf_counter()
    with open(standard_input or os.devnull, "rb") as stream:
        process = subprocess.Popen(
            [sys.executable, *command], stdin=stream, stderr=subprocess.DEVNULL
        )
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        text = Path(f"/proc/{process.pid}/status").read_text()
        match = re.search(r"RssAnon:\s+(\d+)", text)
        own_memory = max(own_memory, int(match[1]) if match else 0)
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, own_memory / 1000, usage.ru_maxrss / 1000


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.prediction", description=__doc__)
    options.folder.mkdir(parents=True, exist_ok=True)
    run = train(options.folder)
    print(f"| {' | '.join(TITLES)} |\n|{'---:|' * len(TITLES)}")
    for num_rows in options.rows:
        file, out = options.folder / f"{num_rows}.jsonl", options.folder / "labelled.jsonl"
        if not file.exists():
            write_rows(file, num_rows)
        for source in options.sources:
            is_piped = source == "standard input"
            command = ["predict.py", str(run)]
            command += ["-", "--format", "jsonl"] if is_piped else ["--file", str(file)]
            command += ["--out", str(out), "--batch-size", str(options.batch_size)]
            seconds, own, with_files = measure(command, file if is_piped else None)
            with out.open() as lines:
                ids = [json.loads(line)["id"] for line in lines]
            if ids != list(range(num_rows)):
                raise SystemExit("the results do not have every row once, in order")
            memory = [f"{own:.0f}", f"{with_files:.0f}"]
            cells = [f"{num_rows:,}", source, *memory, f"{seconds:.0f}"]
            print(f"| {' | '.join([*cells, f'{num_rows / seconds:,.0f}'])} |", flush=True)


if __name__ == "__main__":
    main()
