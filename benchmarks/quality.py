"""What speed costs in quality: scores on validation after equal epochs, ftloop's beside the Trainer's, over some seeds.

    python -m benchmarks.quality --data DATA
    python -m benchmarks.quality docstrings --seeds 1 2 3 --max-length 256 --json quality.json

The same rows, weights, epochs, batch, learning rate and schedule; the seed draws the head, the order and dropout. The
Trainer by benchmarks/beside_trainer.py; ftloop with its defaults (rows grouped by length, its choice of kernels), and
in random order. Texts that are made (without --data) tell nothing of quality: their labels are a word.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import WORKS, Common, Job

Name = Literal["pairs", "tweets", "docstrings"]
# Learning rate, and the score that counts. Of a multi-label task, rows that are right as a whole would be few.
SETTINGS = {"pairs": (2e-4, "accuracy"), "tweets": (3e-4, "f1_micro"), "docstrings": (2e-4, "accuracy")}
THRESHOLD = 0.25  # of a multi-label task: after so little training, few probabilities reach a half


@dataclass(frozen=True)
class Options(Common):
    """What is learned."""

    works: Annotated[tuple[Name, ...], tyro.conf.Positional] = ("pairs", "docstrings")
    rivals: tuple[str, ...] = ("trainer", "ftloop", "ftloop-random+kernels")  # or another ftloop-.., as in speed.py
    seeds: tuple[int, ...] = (1, 2, 3)
    rows: int = 4_480  # of train
    validation: int = 700  # rows
    epochs: int = 1
    max_length: int = 128  # tokens
    learning_rate: float | None = None  # left out: one that suits the work


def by_trainer(options: dict[str, Any], learning_rate: float) -> dict[str, Any]:
    """The scores of the last weights."""
    from benchmarks import beside_trainer

    job = Job(**options)
    several = job.label_separator is not None
    scores = beside_trainer.run_trainer(
        beside_trainer.Job(
            *(job.model, job.train, job.validation),
            text_columns=tuple(job.text_columns),
            problem="multi" if several else "single",
            label_separator=job.label_separator or ",",
            label_names=job.label_names,
            threshold=THRESHOLD,
            epochs=job.epochs,
            batch_size=job.batch_size,
            learning_rate=learning_rate,
            max_length=job.max_length,
            seed=job.seed,
        )
    )
    return {"loss": scores["loss"], **{name: scores[name] for name in ("accuracy", "f1_macro", "f1_micro")}}


def by_ftloop(options: dict[str, Any]) -> dict[str, Any]:
    """Evaluated once, at the end: the scores of the last weights."""
    job = Job(**options)
    speed.run_ftloop(job)
    return json.loads(Path(job.folder, "run", "scores.json").read_text())["validation"]


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.quality", description=__doc__)
    seen, found = speed.begin(given), {}
    with speed.workplace() as folder:
        for name in given.works:
            rate, score = given.learning_rate or SETTINGS[name][0], SETTINGS[name][1]
            work = replace(WORKS[name], steps=given.rows // 32, warm_up=0, epochs=given.epochs)
            job = speed.prepare(name, given, Path(folder), work, given.validation)
            measured: speed.Measured = {rival: [] for rival in given.rivals}
            for seed in given.seeds:
                own = replace(job, seed=seed)

                def measure(rival: str, own: Job = own, rate: float = rate, score: str = score) -> dict[str, Any]:
                    once, began = speed.variant(own, rival), time.perf_counter()
                    place = Path(once.folder)
                    if once.kind == "trainer":
                        result = speed.run_child("benchmarks.quality:by_trainer", place, given, asdict(once), rate)
                    else:
                        words = ["--learning-rate", str(rate), "--task.metrics", score]
                        if once.label_separator:
                            words += ["--task.threshold", str(THRESHOLD)]
                        result = speed.run_child(
                            "benchmarks.quality:by_ftloop", place, given, asdict(replace(once, words=words))
                        )
                    return {**result, "seconds": time.perf_counter() - began}

                for rival, (result,) in speed.in_rounds(given.rivals, 1, measure).items():
                    measured[rival].append(result)
            title = f"{work.title}: {job.rows} rows, {given.epochs} epoch(s), {len(given.seeds)} seeds"
            verdict = compared(measured, score)
            print(f"\n## {title}\n\n{table(measured, score)}\n\n{verdict}", flush=True)
            found[name] = {"title": title, "measured": measured, "goals": [verdict]}
            speed.report(given, {"works": found}, seen)


def table(measured: speed.Measured, score: str) -> str:
    lines = []
    for rival in measured:
        said = speed.failure(measured, rival)
        cells = [spread_of(measured, rival, name, digits) for name, digits in ((score, 4), ("loss", 4), ("seconds", 0))]
        lines.append([rival, f"failed: {said}" if said else cells[0], *cells[1:]])
    return speed.markdown(("rival", f"{score} on validation", "loss", "seconds, all in all"), lines)


def spread_of(measured: speed.Measured, rival: str, name: str, digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    values = speed.values_of(measured, rival, name)
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def compared(measured: speed.Measured, score: str) -> str:
    """Whether ftloop's mean is one that the Trainer has with some seed, or better."""
    ours, theirs = (speed.values_of(measured, rival, score) for rival in ("ftloop", "trainer"))
    if not ours or not theirs:
        return f"{score}, ftloop and trainer: not measured"
    reached = statistics.mean(ours) >= min(theirs)
    return (
        f"{score}, ftloop's mean {statistics.mean(ours):.4f}; the Trainer's seeds {min(theirs):.4f} to "
        f"{max(theirs):.4f}{'' if reached else ' - NOT REACHED'}"
    )


if __name__ == "__main__":
    main()
