"""Microseconds to read and collate a batch of token ids, and the memory that rows cost while they are read.

    python -m benchmarks.data_speed MODEL                                  one batch, by four ways to do it
    python -m benchmarks.data_speed MODEL --rows 10000 100000 1000000      memory, by the rows of the set

MODEL has the tokenizer: a Hub id or a folder. The rows are made: pairs of some 53 tokens, in a file as `datasets`
writes it. All ways give equal tensors (this is checked, each round), in one process, taking turns on the same row ids.
Times are of the processor, so that waiting for it, where others work too, does not count.
"""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy
import tyro

LENGTHS = (53, 15)  # mean and standard deviation, in tokens
PEER = "list of rows, DataCollatorWithPadding"
OURS = "TokenDataset, PaddingCollator"


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    model: Annotated[str, tyro.conf.Positional]  # a Hub id or a folder with a tokenizer
    batch_sizes: tuple[int, ...] = (8, 32)  # rows of a batch
    rounds: int = 50  # of each way, taking turns
    batches: int = 20  # of a way's turn, one after another; the first alone costs several times as much, for all ways
    rows: tuple[
        int, ...
    ] = ()  # sizes of sets whose memory is measured, in a process for each; left out: speed
    epochs: int = 1  # passes over such a set
    json: Path | None = None  # a file for the figures


def machine() -> dict[str, Any]:
    """What was measured on, and with which versions."""
    names = ("torch", "transformers", "datasets", "pyarrow", "numpy")
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    found = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }
    return {**found, "python": platform.python_version(), **{name: version(name) for name in names}}


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def made_rows(count: int) -> Iterator[dict[str, list[Any]]]:
    """Sentence pairs as they are when tokenised, a thousand at once."""
    draw = numpy.random.default_rng(0)
    for start in range(0, count, 1000):
        lengths = numpy.maximum(
            8, draw.normal(*LENGTHS, min(1000, count - start)).round().astype(int)
        ).tolist()
        yield {
            "input_ids": [draw.integers(1000, 30_000, length).tolist() for length in lengths],
            "token_type_ids": [
                [0] * (length // 2) + [1] * (length - length // 2) for length in lengths
            ],
            "attention_mask": [[1] * length for length in lengths],
            "length": lengths,
            "labels": [row % 2 for row in range(len(lengths))],
        }


def made_set(count: int, folder: str) -> Any:
    """A set of made rows in a mapped file, as tokenising leaves it: 32-bit ids, a thousand rows a chunk."""
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    lists = {"input_ids": "int32", "token_type_ids": "int8", "attention_mask": "int8"}
    features = {name: List(Value(kind)) for name, kind in lists.items()}
    features |= {name: Value("int64") for name in ("length", "labels")}
    file = str(Path(folder, f"{count}.arrow"))
    with ArrowWriter(path=file, features=Features(features), writer_batch_size=1000) as writer:
        for rows in made_rows(count):
            writer.write_batch(rows)
        writer.finalize()
    return Dataset.from_file(file)


# ---- speed


def ways(model: str, rows: Any) -> dict[str, Callable[[list[int]], Any]]:
    """From row ids to a batch."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from ftloop.data.tokens import PaddingCollator, build_token_dataset

    tokenizer, dataset = AutoTokenizer.from_pretrained(model), build_token_dataset(rows)
    theirs, ours = DataCollatorWithPadding(tokenizer), PaddingCollator(tokenizer)
    kept = rows.remove_columns("length")
    held, tensors = list(kept), kept.with_format("torch")
    return {
        PEER: lambda ids: theirs([held[row] for row in ids]),
        "datasets.Dataset, DataCollatorWithPadding": lambda ids: theirs(kept.__getitems__(ids)),
        'with_format("torch"), DataCollatorWithPadding': lambda ids: theirs(
            tensors.__getitems__(ids)
        ),
        OURS: lambda ids: ours(dataset.__getitems__(ids)),
    }


def measure(
    found: dict[str, Callable], count: int, size: int, rounds: int, at_once: int
) -> dict[str, list[float]]:
    """Microseconds of each way in each round. Raises AssertionError if their tensors differ."""
    draw, seconds = random.Random(1), {name: [] for name in found}
    for _ in range(rounds):
        ids, made = [[draw.randrange(count) for _ in range(size)] for _ in range(at_once)], []
        for name, way in found.items():
            began = time.process_time()
            made.append([way(rows) for rows in ids])
            seconds[name].append((time.process_time() - began) / at_once * 1e6)
        for batches in zip(*made, strict=True):
            for batch in batches[1:]:
                assert list(batch) == list(batches[0])
                assert all(batch[name].dtype == batches[0][name].dtype for name in batch)
                assert all(bool((batch[name] == batches[0][name]).all()) for name in batch)
    return seconds


def speed(given: Options) -> list[dict[str, Any]]:
    """The table of medians and spreads; the ratio is the median of the rounds' ratios."""
    table, count = [], 20_000
    with tempfile.TemporaryDirectory() as folder:
        found = ways(given.model, made_set(count, folder))
        for size in given.batch_sizes:
            measure(found, count, size, 1, given.batches)
            times = measure(found, count, size, given.rounds, given.batches)
            for name, values in times.items():
                least, middle, most = statistics.quantiles(values, n=4)
                ratio = statistics.median(
                    peer / own for peer, own in zip(times[PEER], values, strict=True)
                )
                row = {
                    "rows": size,
                    "way": name,
                    "median": middle,
                    "quartiles": [least, most],
                    "speed": ratio,
                }
                table.append(row)
                print(
                    f"{size:4} rows  {name:48}{middle:9.0f} us  ({least:.0f} to {most:.0f})  x {ratio:.1f}"
                )
    return table


# ---- memory

READ = """
import sys
from transformers import AutoTokenizer
from datasets import Dataset
from ftloop.sampler import random_order
from ftloop.data.tokens import PaddingCollator, build_token_dataset

def status():
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in open("/proc/self/status") if "kB" in line}

file, model, epochs = sys.argv[1:]
dataset = build_token_dataset(Dataset.from_file(file))
collator = PaddingCollator(AutoTokenizer.from_pretrained(model))
for epoch in range(int(epochs)):
    order = random_order(dataset, 42, epoch)
    for start in range(0, len(dataset), 32):
        collator(dataset.__getitems__([int(row) for row in order[start : start + 32]]))
found = status()
print(found["VmHWM"], found["RssAnon"], found["RssFile"])
"""


def memory(given: Options) -> list[dict[str, Any]]:
    """The peak of a process that reads and collates all rows of a set, in random order; and what it holds at the end:
    its own, and pages of files, which the system takes back when somebody needs the memory."""
    table = []
    for count in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            file = made_set(count, folder).cache_files[0]["filename"]
            size = Path(file).stat().st_size / 2**20
            words = (sys.executable, "-c", READ, file, given.model, str(given.epochs))
            result = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        peak, own, mapped = map(float, result.stdout.split())
        table.append({"rows": count, "file": size, "peak": peak, "own": own, "mapped": mapped})
        print(
            f"{count:9} rows, {size:6.0f} MB  peak {peak:6.0f} MB  own {own:6.0f} MB  mapped files {mapped:6.0f} MB"
        )
    return table


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.data_speed", description=__doc__)
    seen = machine()
    print(", ".join(f"{name} {value}" for name, value in seen.items()))
    figures = {
        "machine": seen,
        **({"memory": memory(given)} if given.rows else {"speed": speed(given)}),
    }
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
