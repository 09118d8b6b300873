"""How much memory a stream takes: train on gigabytes of JSON Lines, and beside it on their first thousand rows.

    python -m benchmarks.stream MODEL folder --gigabytes 5 --max-steps 200

Writes the files into the folder, if they are not there yet, and prints the greatest resident memory of each training:
the first is the model's own, for its rows are few and memory-mapped. Then a process without a model reads a whole epoch
of the stream, block by block. Rows: {"text": 60 to 200 words, "label": a name}.
"""

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


READ = """
import logging, resource, sys, time
from ftloop.data import Data
from ftloop.tasks import TextClassification
task = TextClassification(model=sys.argv[1], data=Data(path=sys.argv[2], streaming=True, validation=0))
stream, began, position = task.rows["train"], time.perf_counter(), 0
task.labels, task.processor
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream.set_seed(1)
while stream.start + (0 if stream.block is None else len(stream.block)) <= position and not stream.shard_sizes:
    stream.__getitems__([position])
    position = stream.start + len(stream.block)
seconds = time.perf_counter() - began
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"epoch: {position} rows in {seconds:.0f} s, {(after - before) / 2**20:.2f} GiB above the start")
"""


@dataclass(frozen=True)
class Options:
    """How much is written, and how long it is trained."""

    model: Annotated[str, tyro.conf.Positional]  # a Hub id or a folder
    folder: Annotated[Path, tyro.conf.Positional]  # where the files are written
    gigabytes: float = 5  # of all files together
    files: int = 1  # several can be skipped one by one when a run goes on
    max_steps: int = 200  # optimizer steps of 32 rows


def write(folder: Path, gigabytes: float, files: int) -> None:
    """JSON Lines of so many bytes, by copying blocks of 2 000 drawn rows: gigabytes a minute."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        with (folder / f"part-{number:03d}.jsonl").open("w") as out:
            while out.tell() < gigabytes * 1e9 / files:
                rows = [
                    (draw.choice(("even", "odd")), draw.choices(WORDS, k=draw.randint(60, 200)))
                    for _ in range(2000)
                ]
                lines = [
                    json.dumps({"text": " ".join([label, *words]), "label": label})
                    for label, words in rows
                ]
                out.write("\n".join(lines * 5) + "\n")


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.stream")
    if not given.folder.exists():
        write(given.folder, given.gigabytes, given.files)
    few = given.folder / "few.csv"
    if not few.exists():
        import csv

        with (given.folder / "part-000.jsonl").open() as lines, few.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["text", "label"])
            writer.writeheader()
            writer.writerows(json.loads(next(lines)) for _ in range(1000))
    stream = ["--data.path", f"{given.folder}/part-*.jsonl", "--data.streaming"]
    for name, source in (("few", ["--data.path", str(few)]), ("stream", stream)):
        run = given.folder / f"run-{name}"
        fixed = ["train.py", "configs/text.py", "--run-dir", str(run), "--model", given.model]
        sizes = ["--data.validation", "500", "--max-steps", str(given.max_steps), "--no-report"]
        subprocess.run([sys.executable, *fixed, *source, *sizes], check=True)
        # Of the children so far, the greatest: the smaller training comes first.
        print(
            f"{name}: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB at most",
            flush=True,
        )
    # One file: its number of rows is known when it was read to its end.
    subprocess.run(
        [sys.executable, "-c", READ, given.model, f"{given.folder}/part-*.jsonl"], check=True
    )


if __name__ == "__main__":
    main()
