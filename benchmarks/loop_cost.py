r"""Measure what a loop adds to the limit, in turns within one process.

    python -m benchmarks.loop_cost                     tiny BERT: limit, ftloop-random, trainer
    python -m benchmarks.loop_cost --workload pairs --rivals ftloop-random+kernels --rounds 5 \
        --json cost.json

Two processes of the same code differ by a tenth, depending on where their memory lies and on what
else the machine does. Here a rival trains, and after each block of its optimizer steps the same
process computes as many steps of the limit (benchmarks/speed.py), with a model and batches of its
own. Differences of a few hundredths become visible. The rival `limit` is the control: its ratio
should be 1. The limit has the matrix backend and the precision of the rival. Run nothing else
meanwhile.
"""

import importlib
import itertools
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks import speed
from benchmarks.speed import WORKLOADS, CommonOptions, Training, WorkloadName

BLOCK = 30  # optimizer steps


@dataclass(frozen=True)
class Options(CommonOptions):
    """What is trained, and by whom."""

    workload: WorkloadName = "tiny"
    rivals: tuple[str, ...] = ("limit", "ftloop-random", "trainer")
    steps: int | None = None  # per epoch. Default: that of the workload


def train_beside_limit(fields: dict[str, Any]) -> dict[str, Any]:
    """Train in this process, with a block of the limit's steps after each block of steps.

    Returns "ms" and "limit ms", means over whole blocks, and "ratio", the median over the blocks.
    The first epoch is left out, because memory and kernels are set up in it.
    """
    import torch

    from benchmarks import speed_loops

    training = Training(**fields)
    our_seconds: list[float] = []  # by step
    limit_seconds: list[float] = []
    words = training.options.get("words", ["--matmul"])
    uses_kernels = training.options.get("kernels") or "--matmul" not in words
    is_bf16 = training.options.get("bf16") or "bf16" in words
    limit_options = {"kernels": uses_kernels, "bf16": is_bf16}
    limit = speed_loops.limit_steps(replace(training, kind="limit", options=limit_options))
    next(limit)
    clock = {"began": 0.0}
    in_limit = False

    def begin(module: Any, inputs: Any) -> None:
        handle.remove()
        clock["began"] = time.perf_counter()

    def end_step(optimizer: Any, arguments: Any, options: Any) -> None:
        nonlocal in_limit
        if in_limit:
            return
        our_seconds.append(time.perf_counter() - clock["began"])
        if len(our_seconds) % BLOCK == 0:
            in_limit = True
            with torch.random.fork_rng(devices=[]):
                for _ in range(BLOCK):
                    began = time.perf_counter()
                    next(limit)
                    limit_seconds.append(time.perf_counter() - began)
            in_limit = False
        clock["began"] = time.perf_counter()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(begin)
    # `torch.optim.optimizer` as an attribute is hidden by a name in torch.optim.
    importlib.import_module("torch.optim.optimizer").register_optimizer_step_post_hook(end_step)
    speed_loops.train(training)

    first_step = -(-training.steps // BLOCK) * BLOCK  # after the first epoch
    ours, theirs = [], []
    for start, end in itertools.pairwise(range(first_step, len(limit_seconds) + 1, BLOCK)):
        ours.append(sum(our_seconds[start:end]))
        theirs.append(sum(limit_seconds[start:end]))
    if not ours:
        steps = len(our_seconds)
        raise SystemExit(f"{steps} optimizer steps are too few: {BLOCK} after the first epoch")
    return {
        "ms": 1000 * statistics.mean(ours) / BLOCK,
        "limit ms": 1000 * statistics.mean(theirs) / BLOCK,
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.loop_cost", description=__doc__)
    machine, workload = speed.print_machine(options), WORKLOADS[options.workload]
    workload = replace(workload, steps=options.steps or workload.steps)
    with speed.temporary_folder() as folder:
        training = speed.prepare_training(options.workload, options, Path(folder), workload)

        def measure(name: str) -> dict[str, Any]:
            own = speed.for_rival(training, name)
            function = "benchmarks.loop_cost:train_beside_limit"
            return speed.run_child(function, Path(own.folder), options, asdict(own))

        measurements = speed.measure_in_rounds(options.rivals, options.rounds, measure)
    rows = []
    for rival in measurements:
        cells = [rival]
        for name, digits in (("ms", 2), ("limit ms", 2), ("ratio", 3)):
            values = speed.get_values(measurements, rival, name)
            cells.append(speed.format_spread(speed.compute_spread(values), digits))
        reason = speed.get_failure(measurements, rival)
        if reason:
            cells[1] = f"failed: {reason}"
        rows.append(cells)
    titles = ("rival", "ms per step", "ms per step of the limit", "time / limit")
    print(f"\n{speed.format_markdown(titles, rows)}\n")
    speed.write_json(options, {"measurements": measurements}, machine)


if __name__ == "__main__":
    main()
