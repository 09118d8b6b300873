"""Compare the speed of training with that of another version of ftloop, in one run.

    git worktree add ../first 1361c8c
    python -m benchmarks.beside_first_edition ../first
    python -m benchmarks.beside_first_edition ../first pairs --steps 60 --rounds 5 --data DATA

Both versions run train.py with the same options on the same rows, each in a process of its own.
They take turns: while one computes a block of optimizer steps, the other waits, so that whatever
else the machine does affects both. The first epoch is not timed, because memory and kernels are set
up in it. The ratio of a round is (seconds of this version) / (seconds of the other version) for
whole epochs, since the versions may draw other orders of the rows. The table shows median, minimum
and maximum over the rounds.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import speed, step_clock
from benchmarks.speed import WORKLOADS, CommonOptions, Training

Name = Literal["tiny", "pairs", "tweets", "docstrings", "images"]


@dataclass(frozen=True)
class Options(CommonOptions):
    """What is compared."""

    other: Annotated[Path, tyro.conf.Positional] = Path()
    """Folder with the other version, such as a git worktree."""
    workloads: Annotated[tuple[Name, ...], tyro.conf.Positional] = ("pairs", "tweets", "docstrings")
    steps: int = 24  # optimizer steps per epoch
    epochs: int = 1  # that are timed
    steps_per_turn: int = 4
    options: str = "--matmul default"  # more options for train.py, in both versions
    our_options: str = ""  # more options for this version alone
    other_options: str = ""  # more options for the other version alone


def measure_round(
    training: Training, options: Options, folder: Path, number: int
) -> dict[str, list[float]]:
    """Train with both versions in turns. Returns the seconds of each block of steps."""
    pipes = [os.pipe(), os.pipe()]  # a version reads its turn from its own pipe
    folders = [speed.ROOT, options.other.resolve()]
    more_options = [options.our_options, options.other_options]
    processes, outs = [], []
    for index, root in enumerate(folders):
        own = replace(training, folder=str(folder / f"{number}-{index}"))
        Path(own.folder).mkdir(parents=True)
        out = Path(own.folder) / "seconds.json"
        turn_in, turn_out = pipes[index][0], pipes[1 - index][1]
        command = [sys.executable, step_clock.__file__, str(out), str(options.steps_per_turn)]
        command += [str(turn_in), str(turn_out), "train.py"]
        command += speed.train_options(own, task_prefix(root))
        command += [*options.options.split(), *more_options[index].split()]
        environment = {**os.environ, **speed.ENVIRONMENT, **speed.CPU_ONLY}
        environment |= {"OMP_NUM_THREADS": str(options.threads)}
        environment |= {"HF_DATASETS_CACHE": f"{own.folder}/cache"}
        environment.pop("PYTHONPATH", None)
        with (Path(own.folder) / "log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=root,
                env=environment,
                stdout=log,
                stderr=log,
                pass_fds=(turn_in, turn_out),
            )
        processes.append(process)
        outs.append(out)
    while not all(step_clock.ready_file(out).exists() for out in outs):
        if any(process.poll() for process in processes):
            break  # its log is read below
        time.sleep(0.05)
    os.write(pipes[number % 2][1], b".")  # another version begins in each round
    for descriptors in pipes:
        for descriptor in descriptors:
            os.close(descriptor)
    for process, out in zip(processes, outs, strict=True):
        if process.wait():
            log = (out.parent / "log").read_text()
            raise SystemExit(f"{' '.join(process.args)} failed: {speed.find_reason(log)}")
    ours, other = [json.loads(out.read_text()) for out in outs]
    return {"ours": ours, "other": other}


def task_prefix(root: Path) -> str:
    """Return what the task options of a version begin with: version 0.1 spelled --task.model."""
    lines = (root / "pyproject.toml").read_text().splitlines()
    (version,) = [line.split('"')[1] for line in lines if line.startswith("version = ")]
    return "task." if version.startswith("0.1.") else ""


def summarize(rounds: list[dict[str, list[float]]], options: Options) -> list[str]:
    """Return the cells of the table: seconds per step of both versions, and their ratio."""
    first_block = options.steps // options.steps_per_turn  # of the second epoch
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    for result in rounds:
        for name, per_step in seconds.items():
            blocks = result[name][first_block:]
            per_step.append(sum(blocks) / len(blocks) / options.steps_per_turn)
    pairs = zip(seconds["ours"], seconds["other"], strict=True)
    columns = [*seconds.values(), [ours / other for ours, other in pairs]]
    return [speed.format_spread(speed.compute_spread(column), 3) for column in columns]


def main() -> None:
    options = tyro.cli(
        Options, prog="python -m benchmarks.beside_first_edition", description=__doc__
    )
    if not (options.other / "train.py").is_file():
        sys.exit(f"error: {str(options.other)!r} is not a checkout of ftloop: it has no train.py")
    if options.steps % options.steps_per_turn:
        sys.exit("error: --steps must be a multiple of --steps-per-turn")
    machine = speed.print_machine(options)
    titles = ("workload", "s per step", "the other's", "ratio of seconds")
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    with speed.temporary_folder() as folder:
        for name in options.workloads:
            workload = replace(WORKLOADS[name], steps=options.steps)
            training = speed.prepare_training(name, options, Path(folder), workload)
            training = replace(training, epochs=1 + options.epochs)
            rounds = []
            for number in range(options.rounds):
                rounds.append(measure_round(training, options, Path(folder, name), number))
                cells = summarize(rounds[-1:], options)
                print(
                    f"{name}, round {number + 1}: {', '.join(cells)}", file=sys.stderr, flush=True
                )
            rows.append([workload.title, *summarize(rounds, options)])
            results[name] = rounds
            speed.write_json(options, {"workloads": results}, machine)
    print(f"\n{speed.format_markdown(titles, rows)}")


if __name__ == "__main__":
    main()
