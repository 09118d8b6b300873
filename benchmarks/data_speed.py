"""Time reading and collating a batch of token ids, and measure the memory that the rows need.

    python -m benchmarks.data_speed MODEL                               time per batch, in four ways
    python -m benchmarks.data_speed MODEL --rows 10000 100000 1000000   memory, by number of rows

MODEL has the tokenizer: a Hub id or a folder. The rows are generated: pairs of about 53 tokens, in
a file as `datasets` writes it. All ways take turns on the same row ids in one process, and must
give equal tensors. Times are processor times, which do not include waiting for other programs.
"""

import json
import os
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

MEAN_LENGTH, LENGTH_DEVIATION = 53, 15  # tokens
NUM_ROWS = 20_000  # of the dataset whose batches are timed
PEER = "list of rows, DataCollatorWithPadding"
OURS = "TokenDataset, PaddingCollator"


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    model: Annotated[str, tyro.conf.Positional]  # a Hub id or a folder with a tokenizer
    batch_sizes: tuple[int, ...] = (8, 32)
    rounds: int = 50  # of each way, in turns
    batches: int = 20
    """Batches per turn. The first one alone costs several times as much, in all ways."""
    rows: tuple[int, ...] = ()
    """Numbers of rows for which memory is measured, each in a process of its own. Default: time is
    measured."""
    epochs: int = 1  # passes over the rows, for memory
    json: Path | None = None  # file for the results


def describe_machine() -> dict[str, Any]:
    """Return on what is measured, and with which versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    machine = {"cpu": names[0] if names else "unknown"}
    machine |= {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    machine["python"] = sys.version.split()[0]
    libraries = ("torch", "transformers", "datasets", "pyarrow", "numpy")
    return machine | {name: version(name) for name in libraries}


def generate_rows(num_rows: int) -> Iterator[dict[str, list[Any]]]:
    """Yield tokenized sentence pairs, a thousand rows at a time."""
    rng = numpy.random.default_rng(0)
    for start in range(0, num_rows, 1000):
        count = min(1000, num_rows - start)
        drawn = rng.normal(MEAN_LENGTH, LENGTH_DEVIATION, count).round().astype(int)
        lengths = numpy.maximum(8, drawn).tolist()
        halves = [(length // 2, length - length // 2) for length in lengths]
        yield {
            "input_ids": [rng.integers(1000, 30_000, length).tolist() for length in lengths],
            "token_type_ids": [[0] * first + [1] * second for first, second in halves],
            "attention_mask": [[1] * length for length in lengths],
            "length": lengths,
            "labels": [row % 2 for row in range(count)],
        }


def write_dataset(num_rows: int, folder: str) -> Any:
    """Return a `datasets.Dataset` in a mapped file, like a tokenized one: 32-bit ids, chunks of a
    thousand rows."""
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    types = {"input_ids": "int32", "token_type_ids": "int8", "attention_mask": "int8"}
    features: dict[str, Any] = {name: List(Value(dtype)) for name, dtype in types.items()}
    features |= {name: Value("int64") for name in ("length", "labels")}
    file = str(Path(folder, f"{num_rows}.arrow"))
    with ArrowWriter(path=file, features=Features(features), writer_batch_size=1000) as writer:
        for rows in generate_rows(num_rows):
            writer.write_batch(rows)
        writer.finalize()
    return Dataset.from_file(file)


# Time

MakeBatch = Callable[[list[int]], Any]  # from row ids to a batch


def build_ways(model: str, table: Any) -> dict[str, MakeBatch]:
    """Return the ways to make a batch, by name."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from ftloop.data.tokens import PaddingCollator, build_token_dataset

    tokenizer, dataset = AutoTokenizer.from_pretrained(model), build_token_dataset(table)
    peer_collate, our_collate = DataCollatorWithPadding(tokenizer), PaddingCollator(tokenizer)
    columns = table.remove_columns("length")
    rows, tensors = list(columns), columns.with_format("torch")
    return {
        PEER: lambda ids: peer_collate([rows[row] for row in ids]),
        "datasets.Dataset, DataCollatorWithPadding": lambda ids: peer_collate(
            columns.__getitems__(ids)
        ),
        'with_format("torch"), DataCollatorWithPadding': lambda ids: peer_collate(
            tensors.__getitems__(ids)
        ),
        OURS: lambda ids: our_collate(dataset.__getitems__(ids)),
    }


def time_batches(
    ways: dict[str, MakeBatch], batch_size: int, rounds: int, num_batches: int
) -> dict[str, list[float]]:
    """Return the microseconds per batch of each way in each round.

    Raises AssertionError if the tensors differ.
    """
    rng = random.Random(1)
    microseconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        row_ids, results = [], []
        for _ in range(num_batches):
            row_ids.append([rng.randrange(NUM_ROWS) for _ in range(batch_size)])
        for name, make_batch in ways.items():
            began = time.process_time()
            results.append([make_batch(ids) for ids in row_ids])
            microseconds[name].append((time.process_time() - began) / num_batches * 1e6)
        for first, *others in zip(*results, strict=True):
            for batch in others:
                assert list(batch) == list(first)
                for name, tensor in batch.items():
                    assert tensor.dtype == first[name].dtype
                    assert bool((tensor == first[name]).all())
    return microseconds


def measure_time(options: Options) -> list[dict[str, Any]]:
    """Print and return medians and quartiles; the ratio is the median of those of the rounds."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        ways = build_ways(options.model, write_dataset(NUM_ROWS, folder))
        for size in options.batch_sizes:
            time_batches(ways, size, 1, options.batches)  # warm-up
            microseconds = time_batches(ways, size, options.rounds, options.batches)
            for name, values in microseconds.items():
                low, median, high = statistics.quantiles(values, n=4)
                pairs = zip(microseconds[PEER], values, strict=True)
                ratio = statistics.median(peer / own for peer, own in pairs)
                result = {"rows": size, "way": name, "median": median, "speed": ratio}
                results.append({**result, "quartiles": [low, high]})
                spread = f"{median:9.0f} us  ({low:.0f} to {high:.0f})"
                print(f"{size:4} rows  {name:48}{spread}  x {ratio:.1f}")
    return results


# Memory

READ_ROWS = """
import sys
from transformers import AutoTokenizer
from datasets import Dataset
from ftloop.sampler import random_order
from ftloop.data.tokens import PaddingCollator, build_token_dataset

file, model, epochs = sys.argv[1:]
dataset = build_token_dataset(Dataset.from_file(file))
collator = PaddingCollator(AutoTokenizer.from_pretrained(model))
for epoch in range(int(epochs)):
    order = random_order(dataset, 42, epoch)
    for start in range(0, len(dataset), 32):
        collator(dataset.__getitems__([int(row) for row in order[start : start + 32]]))
for line in open("/proc/self/status"):
    if line.startswith(("VmHWM", "RssAnon", "RssFile")):
        print(int(line.split()[1]) / 1024)
"""


def measure_memory(options: Options) -> list[dict[str, Any]]:
    """Print and return the memory of processes that read all rows in random order.

    "peak" is the largest resident memory. "own" and "mapped" are what the process holds at the end:
    its own memory, and pages of files, which the system may take back.
    """
    results = []
    for num_rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            file = write_dataset(num_rows, folder).cache_files[0]["filename"]
            file_size = Path(file).stat().st_size / 2**20
            command = [sys.executable, "-c", READ_ROWS, file, options.model, str(options.epochs)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak, own, mapped = map(float, result.stdout.split())
        values = {"rows": num_rows, "file": file_size, "peak": peak, "own": own, "mapped": mapped}
        results.append(values)
        print(
            f"{num_rows:9} rows, {file_size:6.0f} MB  peak {peak:6.0f} MB  own {own:6.0f} MB  "
            f"mapped files {mapped:6.0f} MB"
        )
    return results


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.data_speed", description=__doc__)
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results: dict[str, Any] = {"machine": machine}
    if options.rows:
        results["memory"] = measure_memory(options)
    else:
        results["speed"] = measure_time(options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
