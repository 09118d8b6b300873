r"""What a loop adds to the limit, step by step in one process: the one measure that a few hundredths show in.

    python -m benchmarks.loop_cost                                        tiny BERT: limit, ftloop-random, trainer
    python -m benchmarks.loop_cost --work pairs --rivals ftloop-random+kernels --rounds 5 --json cost.json

Two processes of the very same code differ by a tenth, by where their memory came to lie and by what else the machine
did at the time. So a rival trains, and after each BLOCK of its optimizer steps the same process does as many of the
limit (benchmarks/speed.py), on a model and batches of its own. The rival `limit` is the control: it should give 1.
The limit has the kernels and the precision of the rival beside it; what else an option of ftloop changes in the whole
process (--cheaper-dropout, --no-keep-memory) changes the limit too. Any other program that runs meanwhile spoils it.
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
from benchmarks.speed import WORKS, Common, Job, Name, begin, in_rounds, prepare, report, variant, workplace

BLOCK = 30  # optimizer steps


@dataclass(frozen=True)
class Options(Common):
    """What is trained, and by whom."""

    work: Name = "tiny"
    rivals: tuple[str, ...] = ("limit", "ftloop-random", "trainer")
    steps: int | None = None  # of an epoch; left out: as the work has it


def beside_limit(options: dict[str, Any]) -> dict[str, Any]:
    """Train in this process as the fields of a Job say, a block of the limit's steps after each of its own: "ms" of
    its steps and "limit ms", the means of whole blocks, and "ratio", the median over the blocks. Not of the first
    epoch, in which memory and kernels are set up."""
    import torch

    job, ours, theirs = Job(**options), [], []
    words = job.options.get("words", ["--matmul"])
    same = {"kernels": job.options.get("kernels") or "--matmul" not in words}
    same |= {"bf16": job.options.get("bf16") or "bf16" in words}
    limit = speed.limit_steps(replace(job, kind="limit", options=same))
    next(limit)
    clock: dict[str, float] = {}

    def note_begin(module: Any, inputs: Any) -> None:
        first.remove()
        clock["before"] = time.perf_counter()

    def note_step(optimizer: Any, arguments: Any, given: Any) -> None:
        if "away" in clock:  # a step of the limit
            return
        ours.append(time.perf_counter() - clock["before"])
        if len(ours) % BLOCK == 0:
            clock["away"] = 1
            with torch.random.fork_rng(devices=[]):
                before = time.perf_counter()
                for _ in range(BLOCK):
                    next(limit)
                    theirs.append(time.perf_counter() - before)
                    before = time.perf_counter()
            del clock["away"]
        clock["before"] = time.perf_counter()

    first = torch.nn.modules.module.register_module_forward_pre_hook(note_begin)
    importlib.import_module("torch.optim.optimizer").register_optimizer_step_post_hook(note_step)
    speed.run(job)
    since = -(-job.steps // BLOCK) * BLOCK
    blocks = [
        [sum(steps[start:end]) for start, end in itertools.pairwise(range(since, len(theirs) + 1, BLOCK))]
        for steps in (ours, theirs)
    ]
    if not blocks[0]:
        raise SystemExit(f"{len(ours)} optimizer steps: a block of {BLOCK} after the first epoch is wanted")
    means = [1000 * statistics.mean(of) / BLOCK for of in blocks]
    ratios = [one / other for one, other in zip(*blocks, strict=True)]
    return {"ms": means[0], "limit ms": means[1], "ratio": statistics.median(ratios)}


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.loop_cost", description=__doc__)
    seen, work = begin(given), WORKS[given.work]
    with workplace() as folder:
        job = prepare(given.work, given, Path(folder), replace(work, steps=given.steps or work.steps))

        def measure(name: str) -> dict[str, Any]:
            own = variant(job, name)
            return speed.run_child("benchmarks.loop_cost:beside_limit", Path(own.folder), given, asdict(own))

        measured = in_rounds(given.rivals, given.rounds, measure)
    rows = []
    for rival in measured:
        values = (speed.spread(speed.values_of(measured, rival, name)) for name in ("ms", "limit ms", "ratio"))
        cells = [value.shown(digits) if value else "-" for value, digits in zip(values, (2, 2, 3), strict=True)]
        said = speed.failure(measured, rival)
        rows.append([rival, f"failed: {said}" if said else cells[0], *cells[1:]])
    print(f"\n{speed.markdown(('rival', 'ms a step', 'of the limit beside it', 'time, of limit'), rows)}\n")
    report(given, {"measured": measured}, seen)


if __name__ == "__main__":
    main()
