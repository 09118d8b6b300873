"""How much memory predict.py takes, and how quick it is, for ten thousand rows and for a million.

    python -m benchmarks.prediction folder --rows 10000 100000 1000000

Texts of 5 to 20 words are labelled by a random BERT of two layers, from JSON Lines to JSON Lines: read from standard
input, and by --file, which first makes a table on disk of them that is mapped into memory. Peak memory is what the
process holds of its own (RssAnon of Linux, looked at ten times a second), and with the pages of mapped files
(ru_maxrss), which the system may take back. Rows a second are of the whole command, with its start.
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

from benchmarks.speed import TINY, make_bert

WORDS = [f"word{number}" for number in range(2000)]
LABELS = ("even", "odd", "prime")
HEAD = "| rows | read from | peak memory of its own, MB | with mapped files, MB | seconds | rows a second |"


@dataclass(frozen=True)
class Options:
    """How many rows are labelled, each number in a process of its own."""

    folder: Annotated[Path, tyro.conf.Positional]  # where rows, run and results are written
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    batch_size: int = 64
    sources: tuple[str, ...] = ("standard input", "file")


def write(file: Path, count: int) -> None:
    """Rows {"text", "label", "id"}."""
    draw = random.Random(0)
    with file.open("w") as out:
        for number in range(count):
            text = " ".join(draw.choices(WORDS, k=draw.randint(5, 20)))
            out.write(json.dumps({"text": text, "label": draw.choice(LABELS), "id": number}) + "\n")


def measure(words: list[str], source: Path | None) -> tuple[float, float, float]:
    """Seconds, peak MB of its own, peak MB with mapped files, of a process that is given a file on standard input."""
    own, began = 0, time.perf_counter()
    with open(source or os.devnull, "rb") as stream:
        process = subprocess.Popen([sys.executable, *words], stdin=stream, stderr=subprocess.DEVNULL)
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        own = max(own, int(found[1]) if found else 0)
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)} failed")
    return seconds, own / 1000, usage.ru_maxrss / 1000


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.prediction")
    given.folder.mkdir(parents=True, exist_ok=True)
    run = given.folder / "run"
    if not (run / "model").exists():
        from ftloop.data.samples import find_minilm

        write(given.folder / "train.jsonl", 200)
        model = make_bert(find_minilm(), TINY, given.folder / "tiny")
        source = ["--task.model", model, "--task.data.path", str(given.folder / "train.jsonl")]
        command = ["train.py", "configs/text.py", *source, "--max-steps", "2", "--run-dir", str(run)]
        subprocess.run([sys.executable, *command], check=True)
    print(f"{HEAD}\n|{'---:|' * HEAD.count(' | ')}---:|")
    for count in given.rows:
        file = given.folder / f"{count}.jsonl"
        if not file.exists():
            write(file, count)
        for name in given.sources:
            out = given.folder / "labelled.jsonl"
            piped = name == "standard input"
            source = ["-", "--format", "jsonl"] if piped else ["--file", str(file)]
            sizes = ["--out", str(out), "--batch-size", str(given.batch_size)]
            seconds, own, whole = measure(["predict.py", str(run), *source, *sizes], file if piped else None)
            with out.open() as lines:
                ids = [json.loads(line)["id"] for line in lines]
            if ids != list(range(count)):
                raise SystemExit("not every row once, in order")
            cells = (f"{count:,}", name, f"{own:.0f}", f"{whole:.0f}", f"{seconds:.0f}", f"{count / seconds:,.0f}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
