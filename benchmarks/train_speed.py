r"""How long an optimizer step takes, beside the limit, the Trainer and the loop of the course: tables of ratios.

    python -m benchmarks.train_speed                                     all works, made texts
    python -m benchmarks.train_speed pairs tweets --data DATA --rounds 5 --json speed.json
    python -m benchmarks.train_speed pairs --rivals limit trainer ftloop "ftloop:--batching tokens --max-tokens 2048"
    python -m benchmarks.train_speed images --rivals trainer "ftloop:--workers 2" "trainer:dataloader_num_workers=4"

Rivals, rounds and what is timed: benchmarks/speed.py. Like for like are `limit` and `ftloop-random` and, with the
matrix backend that ftloop chooses and the memory that it keeps, `limit+kernels` and `ftloop-random+kernels`. A peer
could do that, too: `trainer+kernels`, `trainer-grouped+kernels`; without it, `ftloop-default-kernels`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import speed
from benchmarks.speed import (
    WORKS,
    Common,
    Goal,
    begin,
    measure_work,
    prepare,
    report,
    table,
    tokens_of,
    workplace,
)

OURS = ("ftloop", "ftloop-default-kernels")
RIVALS = {
    "tiny": ("limit", "course", "trainer", "ftloop-random", "ftloop"),
    "pairs": (
        *(
            "limit",
            "limit+kernels",
            "course",
            "trainer",
            "trainer-grouped",
            "trainer-grouped+kernels",
        ),
        *("trainer-grouped-bf16", "trainer-grouped-bf16+kernels", "ftloop-bf16", *OURS),
        *("ftloop-random", "ftloop-random+kernels"),
    ),
    "tweets": ("limit", "trainer", "trainer-grouped", "trainer-grouped+kernels", *OURS),
    "docstrings": ("limit", "trainer", "trainer-grouped", "trainer-grouped+kernels", *OURS),
    "images": ("limit", "limit+kernels", "trainer", "trainer-workers1", "trainer-workers2", *OURS),
}
WORKERS = ("trainer", "trainer-workers1", "trainer-workers2")
GOALS = {
    "tiny": (Goal("ftloop-random", ("limit",), "time", 1.03),),
    "pairs": (
        Goal("ftloop-random", ("limit",), "speed", 0.99),
        Goal("ftloop-random+kernels", ("limit+kernels",), "speed", 0.99),
        Goal("ftloop", ("trainer",), "speed", 2.2),
        Goal("ftloop", ("trainer-grouped",), "speed", 1.65),
        Goal("ftloop-bf16", ("trainer-grouped-bf16",), "speed", 1.2),
    ),
    "tweets": (Goal("ftloop", ("trainer",), "speed", 2.7),),
    "docstrings": (
        Goal("ftloop", ("trainer",), "speed", 4),
        Goal("ftloop", ("trainer-grouped",), "speed", 1.5),
    ),
    "images": (Goal("ftloop", WORKERS, "speed", 1.7),),
}


@dataclass(frozen=True)
class Options(Common):
    """What is trained, and by whom."""

    works: Annotated[tuple[speed.Name, ...], tyro.conf.Positional] = tuple(WORKS)
    rivals: tuple[
        str, ...
    ] = ()  # of benchmarks/speed.py, or NAME:OPTIONS; left out: those of the work
    steps: int | None = (
        None  # of an epoch; left out: so many that a run takes a minute on two cores
    )
    epochs: int | None = None  # that are timed


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.train_speed", description=__doc__)
    seen, found = begin(given), {}
    with workplace() as folder:
        for name in given.works:
            work = replace(
                WORKS[name],
                steps=given.steps or WORKS[name].steps,
                epochs=given.epochs or WORKS[name].epochs,
            )
            job = prepare(name, given, Path(folder), work)
            title = f"{work.title}: {job.rows} rows{tokens_of(job)}"
            measured = measure_work(job, given, work, given.rivals or RIVALS[name])
            print(f"\n## {title}\n\n{table(measured)}\n", flush=True)
            goals = [goal.verdict(measured) for goal in GOALS[name]]
            print("\n".join(goals), flush=True)
            found[name] = {"title": title, "measured": measured, "goals": goals}
            report(given, {"works": found}, seen)


if __name__ == "__main__":
    main()
