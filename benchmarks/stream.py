"""Measure the memory of a stream: train on gigabytes of JSON Lines, and on their first 1 000 rows.

    python -m benchmarks.stream MODEL folder --gigabytes 5 --max-steps 200

Writes the files into the folder, unless they exist, and prints the peak resident memory of each
training. That of the few rows, which are memory-mapped, is the memory of the model. Then a process
without a model reads a whole epoch of the stream, block by block. Rows have "text" (60 to 200
words) and "label".
"""

import csv
import json
import random
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

WORDS = [f"word{number}" for number in range(2000)]


READ_EPOCH = """
import resource, sys, time
from ftloop.data import Data
from ftloop.tasks import TextClassification

def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

data = Data(path=sys.argv[2], streaming=True, validation=0)
task = TextClassification(model=sys.argv[1], data=data)
stream, began, position = task.rows["train"], time.perf_counter(), 0
task.labels, task.processor
memory_before = peak_memory()
stream.set_seed(1)
while not stream.shard_sizes:  # with one file: until its end was reached
    if stream.start + (0 if stream.block is None else len(stream.block)) > position:
        break
    stream.__getitems__([position])
    position = stream.start + len(stream.block)
seconds = time.perf_counter() - began
gibibytes = (peak_memory() - memory_before) / 2**20
print(f"epoch: {position} rows in {seconds:.0f} s, {gibibytes:.2f} GiB more than at the start")
"""


@dataclass(frozen=True)
class Options:
    """How much is written, and how long it is trained."""

    model: Annotated[str, tyro.conf.Positional]  # a Hub id or a folder
    folder: Annotated[Path, tyro.conf.Positional]  # for the files
    gigabytes: float = 5  # of all files together
    files: int = 1  # a resumed run skips whole files
    max_steps: int = 200  # optimizer steps of 32 rows


def write_files(folder: Path, gigabytes: float, num_files: int) -> None:
    """Write JSON Lines, gigabytes per minute: 2 000 random rows are written five times in a row."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        with (folder / f"part-{number:03d}.jsonl").open("w") as stream:
            while stream.tell() < gigabytes * 1e9 / num_files:
                lines = []
                for _ in range(2000):
                    label = rng.choice(("even", "odd"))
                    words = rng.choices(WORDS, k=rng.randint(60, 200))
                    row = {"text": " ".join([label, *words]), "label": label}
                    lines.append(json.dumps(row) + "\n")
                stream.write("".join(lines * 5))


def write_few_rows(source: Path, file: Path) -> None:
    """Write the first 1 000 rows of a file as CSV."""
    with source.open() as lines, file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "label"])
        writer.writeheader()
        writer.writerows(json.loads(next(lines)) for _ in range(1000))


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.stream", description=__doc__)
    folder = options.folder
    if not folder.exists():
        write_files(folder, options.gigabytes, options.files)
    few_rows, all_files = folder / "few.csv", f"{folder}/part-*.jsonl"
    if not few_rows.exists():
        write_few_rows(folder / "part-000.jsonl", few_rows)
    sources = {
        "few rows": ["--data.path", str(few_rows)],
        "stream": ["--data.path", all_files, "--data.streaming"],
    }
    for name, source in sources.items():
        run = folder / f"run-{name.replace(' ', '-')}"
        command = ["train.py", "configs/text.py", "--run-dir", str(run), "--model", options.model]
        command += [*source, "--data.validation", "500", "--no-report"]
        command += ["--max-steps", str(options.max_steps)]
        subprocess.run([sys.executable, *command], check=True)
        # The peak is that of all child processes so far: the smaller training comes first.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"{name}: at most {peak:.2f} GiB", flush=True)
    command = [sys.executable, "-c", READ_EPOCH, options.model, all_files]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
