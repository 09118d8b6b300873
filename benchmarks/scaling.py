"""What grows with the number of rows, of steps and of processes: memory, and the time of a step.

    python -m benchmarks.scaling
    python -m benchmarks.scaling rows --rows 10000 100000 1000000 --steps 200 --json scaling.json
    python -m benchmarks.scaling steps --slope-steps 2000
    python -m benchmarks.scaling processes

rows        made texts, the tiny BERT: first start (which tokenises) and second (from the cache)
steps       the memory of the tiny BERT's process along its steps: a straight line through the second half
processes   MiniLM on sentence pairs: one process with all threads, two with half of them each; the same steps

Megabytes: "peak" is what the process held at most, files that are mapped into memory too; "own" is without these.
"""

import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import WORDS, WORKS, Common, Job

Part = Literal["rows", "steps", "processes"]
PEAKS = 300  # megabytes that the peaks may differ by


@dataclass(frozen=True)
class Options(Common):
    """What grows."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = ("rows", "steps", "processes")
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    steps: int = 300  # optimizer steps of each start, of 8 rows
    slope_steps: int = 2_000  # optimizer steps of the slope
    process_steps: int = 16  # optimizer steps with one process and with two, of 32 rows
    options: str = ""  # more words for train.py


def write_rows(file: Path, count: int) -> None:
    """Texts of 5 to 20 words, all different, in blocks: a million within seconds."""
    import random

    rng = random.Random(speed.SEED)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 20))) for _ in range(10_000)]
    with file.open("w") as out:
        out.write("text,label\n")
        for start in range(0, count, len(texts)):
            block = enumerate(texts[: count - start], start)
            out.writelines(f"{text} {number},{'even' if number % 2 == 0 else 'odd'}\n" for number, text in block)


def start(job: Job, given: Options, processes: int = 1) -> dict[str, Any]:
    """One start of ftloop: "ms", the median of the second half of its steps, and the memory."""
    own = replace(job, words=given.options.split())
    result = speed.run_child(speed.WORK_OFF, Path(job.folder), given, asdict(own), processes=processes)
    if "failed" not in result:
        result["ms"] = 1000 * statistics.median(result["steps"][len(result["steps"]) // 2 :])
        result["peak"], result["own"] = result["memory"]["peak"], result["memory"]["own"]
    return result


def by_rows(given: Options, job: Job) -> tuple[str, dict[str, Any]]:
    found: speed.Measured = {}
    for count in given.rows:
        folder = Path(job.folder, f"rows{count}")
        folder.mkdir()
        write_rows(folder / "train.csv", count)
        own = replace(
            job,
            kind="ftloop",
            options={"words": []},
            folder=str(folder),
            train=str(folder / "train.csv"),
            rows=count,
            text_columns=["text"],
            max_steps=given.steps,
        )
        for name in ("first", "second"):
            found[f"{count} rows, {name} start"] = [start(own, given)]
    few = f"{given.rows[0]} rows, first start"
    lines = []
    for name, results in found.items():
        said = speed.failure(found, name)
        cells = [f"{results[0][key]:.0f}" for key in ("peak", "own")] if not said else ["-", "-"]
        of_few = speed.ratio(found, name, few, "ms")
        step = f"failed: {said}" if said else f"{results[0]['ms']:.2f}"
        lines.append([name, *cells, step, of_few.shown() if of_few else "-"])
    peaks = [results[0]["peak"] for results in found.values() if "peak" in results[0]]
    table = speed.markdown(("tiny BERT, batch 8", "peak, MB", "own, MB", "ms a step", "of the few rows'"), lines)
    if not peaks:
        return table, found
    apart = max(peaks) - min(peaks)
    verdict = f"peaks are {apart:.0f} MB apart, at most {PEAKS} wanted{'' if apart <= PEAKS else ' - NOT REACHED'}"
    return f"{table}\n\n{verdict}", found


def by_steps(given: Options, job: Job) -> tuple[str, dict[str, Any]]:
    every = max(1, given.slope_steps // 40)
    own = replace(
        speed.variant(job, "ftloop"), folder=f"{job.folder}/steps", max_steps=given.slope_steps, rss_every=every
    )
    result = start(own, given)
    if "failed" in result:
        return f"failed: {result['failed']}", {"ftloop": [result]}
    late = [(step, seen) for step, seen in result["memory by step"] if step >= given.slope_steps / 2]
    lines = []
    for name in ("resident", "own"):
        values = [seen[name] for _, seen in late]
        slope = statistics.linear_regression([step for step, _ in late], values).slope
        lines.append([name, f"{values[0]:.1f}", f"{values[-1]:.1f}", f"{1000 * slope:+.2f}"])
    heads = (f"memory, MB, {given.slope_steps} steps", "half way", "at the end", "per 1 000 steps")
    return speed.markdown(heads, lines), {"ftloop": [result]}


def by_processes(given: Options, job: Job) -> tuple[str, dict[str, Any]]:
    names = {"one process": 1, "two processes": 2}

    def measure(name: str) -> dict[str, Any]:
        own = replace(
            speed.variant(job, "ftloop-random"), folder=f"{job.folder}/{names[name]}", max_steps=given.process_steps
        )
        return start(replace(own, options={"words": ["--batching", "random"]}), given, names[name])

    measured = speed.in_rounds(tuple(names), given.rounds, measure)
    lines = []
    for name in names:
        said, against = speed.failure(measured, name), speed.ratio(measured, name, "one process", "ms")
        value = speed.spread(speed.values_of(measured, name, "ms"))
        lines.append([name, f"failed: {said}" if said else value.shown(1), against.shown() if against else "-"])
    return speed.markdown(("processes", "ms a step", "time, of one"), lines), measured


PARTS = {"rows": (by_rows, "tiny"), "steps": (by_steps, "tiny"), "processes": (by_processes, "pairs")}


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.scaling", description=__doc__)
    seen, found = speed.begin(given), {}
    with speed.workplace() as folder:
        for part in given.parts:
            function, name = PARTS[part]
            job = speed.prepare(name, given, Path(folder, part), WORKS[name])
            table, found[part] = function(given, job)
            print(f"\n## {part}\n\n{table}", flush=True)
            speed.report(given, {"parts": found}, seen)


if __name__ == "__main__":
    main()
