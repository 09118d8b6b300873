"""Compare scores on validation with those of the Trainer, after equal epochs, over some seeds.

    python -m benchmarks.quality --data DATA
    python -m benchmarks.quality docstrings --seeds 1 2 3 --max-length 256 --json quality.json

Is the speed of ftloop paid for with quality? Rows, weights, epochs, batch size, learning rate and
schedule are the same. The seed decides the head, the order and dropout. The Trainer is that of
benchmarks/beside_trainer.py. ftloop trains with its defaults (rows grouped by length, its choice of
the matrix backend), and in random order. Generated texts (without --data) say nothing about
quality: their labels depend on single words.
"""

import functools
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import WORKLOADS, CommonOptions, Training

Name = Literal["pairs", "tweets", "docstrings"]
# Learning rate, and the score to compare. In a multi-label task, few whole rows would be right.
SETTINGS = {
    "pairs": (2e-4, "accuracy"),
    "tweets": (3e-4, "f1_micro"),
    "docstrings": (2e-4, "accuracy"),
}
THRESHOLD = 0.25  # multi-label: after so little training, few probabilities reach 0.5


@dataclass(frozen=True)
class Options(CommonOptions):
    """What is learned."""

    workloads: Annotated[tuple[Name, ...], tyro.conf.Positional] = ("pairs", "docstrings")
    rivals: tuple[str, ...] = ("trainer", "ftloop", "ftloop-random+kernels")  # see speed.py
    seeds: tuple[int, ...] = (1, 2, 3)
    rows: int = 4_480  # in train
    validation: int = 700  # rows
    epochs: int = 1
    max_length: int = 128  # tokens
    learning_rate: float | None = None  # Default: one that suits the workload


def score_trainer(fields: dict[str, Any], learning_rate: float) -> dict[str, Any]:
    """Train with the Trainer, and return the scores of the last weights."""
    from benchmarks import beside_trainer

    training = Training(**fields)
    assert training.validation is not None
    options = beside_trainer.Options(
        model=training.model,
        train=training.train,
        validation=training.validation,
        text_columns=tuple(training.text_columns),
        problem="multi" if training.label_separator else "single",
        label_separator=training.label_separator or ",",
        label_names=training.label_names,
        threshold=THRESHOLD,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=learning_rate,
        max_length=training.max_length,
        seed=training.seed,
    )
    scores = beside_trainer.train_trainer(options)
    return {name: scores[name] for name in ("loss", "accuracy", "f1_macro", "f1_micro")}


def score_ftloop(fields: dict[str, Any]) -> dict[str, Any]:
    """Train with ftloop, which evaluates once, at the end, and return the scores."""
    from benchmarks.speed_loops import train_ftloop

    training = Training(**fields)
    train_ftloop(training)
    return json.loads(Path(training.folder, "run", "scores.json").read_text())["validation"]


def train_once(
    training: Training, rival: str, options: Options, learning_rate: float, score: str
) -> dict[str, Any]:
    """Train with a rival in a process of its own. Returns its scores, and "seconds" in all."""
    own, began = speed.for_rival(training, rival), time.perf_counter()
    folder = Path(own.folder)
    if own.kind == "trainer":
        function = "benchmarks.quality:score_trainer"
        result = speed.run_child(function, folder, options, asdict(own), learning_rate)
    else:
        words = ["--learning-rate", str(learning_rate), "--metrics", score]
        if own.label_separator:
            words += ["--threshold", str(THRESHOLD)]
        own = replace(own, more_options=words)
        result = speed.run_child("benchmarks.quality:score_ftloop", folder, options, asdict(own))
    return {**result, "seconds": time.perf_counter() - began}


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.quality", description=__doc__)
    machine, results = speed.print_machine(options), {}
    with speed.temporary_folder() as folder:
        for name in options.workloads:
            learning_rate, score = SETTINGS[name]
            learning_rate = options.learning_rate or learning_rate
            workload = replace(
                WORKLOADS[name], steps=options.rows // 32, warmup_epochs=0, epochs=options.epochs
            )
            training = speed.prepare_training(
                name, options, Path(folder), workload, options.validation
            )
            measurements: speed.Measurements = {rival: [] for rival in options.rivals}
            for seed in options.seeds:
                measure = functools.partial(
                    train_once,
                    replace(training, seed=seed),
                    options=options,
                    learning_rate=learning_rate,
                    score=score,
                )
                one_round = speed.measure_in_rounds(options.rivals, 1, measure)
                for rival, (result,) in one_round.items():
                    measurements[rival].append(result)
            title = f"{workload.title}: {training.rows} rows, {options.epochs} epoch(s), "
            title += f"{len(options.seeds)} seeds"
            verdict = compare_scores(measurements, score)
            print(f"\n## {title}\n\n{format_table(measurements, score)}\n\n{verdict}", flush=True)
            results[name] = {"title": title, "measurements": measurements, "goals": [verdict]}
            speed.write_json(options, {"workloads": results}, machine)


def format_table(measurements: speed.Measurements, score: str) -> str:
    """Return a table of means and standard deviations over the seeds."""
    lines = []
    for rival in measurements:
        cells = [rival]
        for name, digits in ((score, 4), ("loss", 4), ("seconds", 0)):
            values = speed.get_values(measurements, rival, name)
            if not values:
                cells.append("-")
                continue
            deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{deviation}")
        reason = speed.get_failure(measurements, rival)
        if reason:
            cells[1] = f"failed: {reason}"
        lines.append(cells)
    titles = ("rival", f"{score} on validation", "loss", "seconds in all")
    return speed.format_markdown(titles, lines)


def compare_scores(measurements: speed.Measurements, score: str) -> str:
    """Tell whether the mean of ftloop is at least that of the Trainer's worst seed."""
    ours = speed.get_values(measurements, "ftloop", score)
    theirs = speed.get_values(measurements, "trainer", score)
    if not ours or not theirs:
        return f"{score}, ftloop and trainer: not measured"
    mean, low, high = statistics.mean(ours), min(theirs), max(theirs)
    failed = "" if mean >= low else " - NOT REACHED"
    message = f"{score}, the mean of ftloop is {mean:.4f}"
    return f"{message}; the seeds of the Trainer give {low:.4f} to {high:.4f}{failed}"


if __name__ == "__main__":
    main()
