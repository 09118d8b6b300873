r"""Compare the time of an optimizer step with the limit, the Trainer and the loop of the course.

    python -m benchmarks.train_speed                                    all workloads
    python -m benchmarks.train_speed pairs tweets --data DATA --rounds 5 --json speed.json
    python -m benchmarks.train_speed pairs --rivals limit trainer ftloop "ftloop:--max-tokens 2048"
    python -m benchmarks.train_speed images \
        --rivals trainer "ftloop:--workers 2" "trainer:dataloader_num_workers=4"

benchmarks/speed.py describes rivals, rounds and what is timed. `limit` and `ftloop-random` do the
same work. So do `limit+kernels` and `ftloop-random+kernels`, with the matrix backend that ftloop
chooses, and with freed memory kept. A user of the Trainer could set these too: `trainer+kernels`,
`trainer-grouped+kernels`. `ftloop-default-kernels` is ftloop without them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import speed
from benchmarks.speed import WORKLOADS, CommonOptions, Goal, WorkloadName
from benchmarks.speed_loops import describe_lengths

OURS = ("ftloop", "ftloop-default-kernels")
RIVALS = {
    "tiny": ("limit", "course", "trainer", "ftloop-random", "ftloop"),
    "pairs": (
        *("limit", "limit+kernels", "course", "trainer", "trainer-grouped"),
        *("trainer-grouped+kernels", "trainer-grouped-bf16", "trainer-grouped-bf16+kernels"),
        *("ftloop-bf16", *OURS, "ftloop-random", "ftloop-random+kernels"),
    ),
    "tweets": ("limit", "trainer", "trainer-grouped", "trainer-grouped+kernels", *OURS),
    "docstrings": ("limit", "trainer", "trainer-grouped", "trainer-grouped+kernels", *OURS),
    "images": (
        *("limit", "limit+kernels", "trainer", "trainer-workers1", "trainer-workers2"),
        *OURS,
    ),
}
IMAGE_TRAINERS = ("trainer", "trainer-workers1", "trainer-workers2")
GOALS = {
    "tiny": (Goal("ftloop-random", ("limit",), "time", 1.10),),
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
    "images": (Goal("ftloop", IMAGE_TRAINERS, "speed", 1.7),),
}


@dataclass(frozen=True)
class Options(CommonOptions):
    """What is trained, and by whom."""

    workloads: Annotated[tuple[WorkloadName, ...], tyro.conf.Positional] = tuple(WORKLOADS)
    rivals: tuple[str, ...] = ()
    """Rivals of benchmarks/speed.py, or NAME:OPTIONS. Default: those of the workload."""
    steps: int | None = None  # per epoch. Default: a run takes about a minute on two cores
    epochs: int | None = None  # that are timed


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.train_speed", description=__doc__)
    machine, results = speed.print_machine(options), {}
    with speed.temporary_folder() as folder:
        for name in options.workloads:
            workload = WORKLOADS[name]
            workload = replace(
                workload,
                steps=options.steps or workload.steps,
                epochs=options.epochs or workload.epochs,
            )
            training = speed.prepare_training(name, options, Path(folder), workload)
            title = f"{workload.title}: {training.rows} rows{describe_lengths(training)}"
            rivals = options.rivals or RIVALS[name]
            measurements = speed.measure_rivals(training, options, workload, rivals)
            print(f"\n## {title}\n\n{speed.format_table(measurements)}\n", flush=True)
            goals = [goal.verdict(measurements) for goal in GOALS[name]]
            print("\n".join(goals), flush=True)
            results[name] = {"title": title, "measurements": measurements, "goals": goals}
            speed.write_json(options, {"workloads": results}, machine)


if __name__ == "__main__":
    main()
