"""Measure what grows with rows, steps and processes: memory, and the time of a step.

    python -m benchmarks.scaling
    python -m benchmarks.scaling rows --rows 10000 100000 1000000 --steps 200 --json scaling.json
    python -m benchmarks.scaling steps --slope-steps 2000
    python -m benchmarks.scaling processes

rows        generated texts, tiny BERT: the first start, which tokenizes, and a second one, which
            reads the cache
steps       memory of the process of the tiny BERT: a straight line through the second half
processes   MiniLM on sentence pairs: one process with all threads, and two with half of them each

Memory is in megabytes. "peak" is the largest resident memory, which includes mapped files. "own"
does not include them.
"""

import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import WORKLOADS, CommonOptions, Training
from benchmarks.speed_data import SEED, WORDS

Part = Literal["rows", "steps", "processes"]
MAX_PEAK_DIFFERENCE = 300  # megabytes, between few and many rows


@dataclass(frozen=True)
class Options(CommonOptions):
    """What grows."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = ("rows", "steps", "processes")
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    steps: int = 300  # optimizer steps of each start, of 8 rows
    slope_steps: int = 2_000  # optimizer steps for the slope
    process_steps: int = 16  # optimizer steps with one process and with two, of 32 rows
    options: str = ""  # more options for train.py


def write_rows(file: Path, num_rows: int) -> None:
    """Write different texts of 5 to 20 words. A million takes seconds, since words are reused."""
    rng = random.Random(SEED)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 20))) for _ in range(10_000)]
    with file.open("w") as stream:
        stream.write("text,label\n")
        for number in range(num_rows):
            label = "even" if number % 2 == 0 else "odd"
            stream.write(f"{texts[number % len(texts)]} {number},{label}\n")


def run_training(training: Training, options: Options, num_processes: int = 1) -> dict[str, Any]:
    """Train once. Returns "ms", the median of the second half of the steps, and the memory."""
    own = replace(training, more_options=options.options.split())
    result = speed.run_child(
        speed.TRAIN_AND_TIME, Path(own.folder), options, asdict(own), num_processes=num_processes
    )
    if "failed" not in result:
        second_half = result["steps"][len(result["steps"]) // 2 :]
        result["ms"] = 1000 * statistics.median(second_half)
        result["peak"], result["own"] = result["memory"]["peak"], result["memory"]["own"]
    return result


def measure_rows(options: Options, training: Training) -> tuple[str, speed.Measurements]:
    """Train on files of different sizes, each twice."""
    measurements: speed.Measurements = {}
    for num_rows in options.rows:
        folder = Path(training.folder, f"rows{num_rows}")
        folder.mkdir()
        write_rows(folder / "train.csv", num_rows)
        own = replace(
            training,
            kind="ftloop",
            options={"words": []},
            folder=str(folder),
            train=str(folder / "train.csv"),
            rows=num_rows,
            text_columns=["text"],
            max_steps=options.steps,
        )
        for name in ("first", "second"):
            measurements[f"{num_rows} rows, {name} start"] = [run_training(own, options)]

    fewest = f"{options.rows[0]} rows, first start"
    lines, peaks = [], []
    for name, (result,) in measurements.items():
        if "failed" in result:
            lines.append([name, "-", "-", f"failed: {result['failed']}", "-"])
            continue
        peaks.append(result["peak"])
        ratio = speed.compute_ratio(measurements, name, fewest, "ms")
        memory = [f"{result['peak']:.0f}", f"{result['own']:.0f}"]
        lines.append([name, *memory, f"{result['ms']:.2f}", speed.format_spread(ratio)])
    titles = ("tiny BERT, batch 8", "peak, MB", "own, MB", "ms per step", "time / few rows")
    table = speed.format_markdown(titles, lines)
    if not peaks:
        return table, measurements
    difference = max(peaks) - min(peaks)
    failed = "" if difference <= MAX_PEAK_DIFFERENCE else " - NOT REACHED"
    goal = f"the peaks differ by {difference:.0f} MB, at most {MAX_PEAK_DIFFERENCE} is the goal"
    return f"{table}\n\n{goal}{failed}", measurements


def measure_steps(options: Options, training: Training) -> tuple[str, speed.Measurements]:
    """Train for many steps, and fit a line to the memory of their second half."""
    own = replace(
        speed.for_rival(training, "ftloop"),
        folder=f"{training.folder}/steps",
        max_steps=options.slope_steps,
        memory_every=max(1, options.slope_steps // 40),
    )
    result = run_training(own, options)
    if "failed" in result:
        return f"failed: {result['failed']}", {"ftloop": [result]}
    second_half = []
    for step, memory in result["memory by step"]:
        if step >= options.slope_steps / 2:
            second_half.append((step, memory))
    steps = [step for step, _ in second_half]
    lines = []
    for name in ("resident", "own"):
        values = [memory[name] for _, memory in second_half]
        slope = statistics.linear_regression(steps, values).slope
        lines.append([name, f"{values[0]:.1f}", f"{values[-1]:.1f}", f"{1000 * slope:+.2f}"])
    titles = (f"memory, MB, {options.slope_steps} steps", "half way", "at the end")
    table = speed.format_markdown((*titles, "per 1 000 steps"), lines)
    return table, {"ftloop": [result]}


def measure_processes(options: Options, training: Training) -> tuple[str, speed.Measurements]:
    """Train the same steps with one process and with two."""
    num_processes = {"one process": 1, "two processes": 2}

    def measure(name: str) -> dict[str, Any]:
        own = replace(
            training,
            kind="ftloop",
            options={"words": list(speed.RANDOM_ORDER)},
            folder=f"{training.folder}/{num_processes[name]}",
            max_steps=options.process_steps,
        )
        return run_training(own, options, num_processes[name])

    measurements = speed.measure_in_rounds(tuple(num_processes), options.rounds, measure)
    lines = []
    for name in num_processes:
        reason = speed.get_failure(measurements, name)
        ms = speed.compute_spread(speed.get_values(measurements, name, "ms"))
        ratio = speed.compute_ratio(measurements, name, "one process", "ms")
        first = f"failed: {reason}" if reason else speed.format_spread(ms, 1)
        lines.append([name, first, speed.format_spread(ratio)])
    titles = ("processes", "ms per step", "time / one process")
    return speed.format_markdown(titles, lines), measurements


PARTS: dict[str, tuple[Callable[..., tuple[str, speed.Measurements]], str]] = {
    "rows": (measure_rows, "tiny"),
    "steps": (measure_steps, "tiny"),
    "processes": (measure_processes, "pairs"),
}


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.scaling", description=__doc__)
    machine, results = speed.print_machine(options), {}
    with speed.temporary_folder() as folder:
        for part in options.parts:
            measure, name = PARTS[part]
            training = speed.prepare_training(name, options, Path(folder, part), WORKLOADS[name])
            table, results[part] = measure(options, training)
            print(f"\n## {part}\n\n{table}", flush=True)
            speed.write_json(options, {"parts": results}, machine)


if __name__ == "__main__":
    main()
