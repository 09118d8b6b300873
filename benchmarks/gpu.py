r"""Train BERT-base and ViT-base in bf16 on a GPU: ftloop beside the limit and the Trainer.

    python -m benchmarks.gpu
    python -m benchmarks.gpu bert vit --rounds 2 --json gpu.json
    python -m benchmarks.gpu bert --rivals trainer-bf16 "ftloop-bf16:--max-tokens 8192"

benchmarks/speed.py describes rivals, rounds and what is timed. The clock waits for the GPU at the
end of each epoch. All weights are random, which does not change the speed. "of peak" is the model
FLOPs utilization: the share of the chip's peak that the matrix products of the model make up,
without those of padding. "data wait" is the share of time in which ftloop waited for a batch.
"""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import GPU_WORKLOADS, CommonOptions, Goal, Training, Workload
from benchmarks.speed_loops import count_tokens, describe_lengths

Name = Literal["bert", "bert-long", "vit"]
OURS = ("ftloop-random-bf16", "ftloop-bf16")
RIVALS = {
    "bert": (
        *("limit-bf16", "trainer-bf16", "trainer-grouped-bf16", *OURS),
        *("ftloop-compile-bf16", "ftloop-packing-bf16"),
    ),
    "bert-long": (
        *("limit-bf16", "trainer-bf16", "trainer-grouped-bf16", *OURS, "ftloop-packing-bf16"),
    ),
    "vit": (
        *("limit-bf16", "trainer-bf16", "trainer-workers8-bf16"),
        *("ftloop-bf16", "ftloop-compile-bf16"),
    ),
}
TRAINERS = ("trainer-bf16", "trainer-workers8-bf16")


@dataclass(frozen=True)
class Options(CommonOptions):
    """What is trained, and by whom."""

    gpu: ClassVar[bool] = True
    workloads: Annotated[tuple[Name, ...], tyro.conf.Positional] = tuple(GPU_WORKLOADS)
    rivals: tuple[str, ...] = ()
    """Rivals of benchmarks/speed.py, or NAME:OPTIONS. Default: those of the workload."""
    steps: int | None = None  # per epoch
    epochs: int | None = None  # that are timed
    peak: float = 989.0  # TFLOP/s of the chip in bf16; of H100 and H200 SXM, by their datasheets


def count_flops(training: Training, sizes: dict[str, int]) -> float:
    """Return the floating-point operations of the matrix products of an epoch.

    Each layer has four projections, the two products of the feed-forward layer, and the two of
    attention (https://arxiv.org/abs/2204.02311, appendix B). The backward pass has twice those of
    the forward pass. Embeddings, pooler and head are left out.
    """
    lengths = count_tokens(training)
    if not lengths:
        num_patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
        lengths = [num_patches + 1] * training.rows
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    forward = 0
    for length in lengths:
        forward += length * (8 * width**2 + 4 * width * inner + 4 * length * width)
    return 3 * sizes["num_hidden_layers"] * forward


def read_data_wait(folder: Path) -> float:
    """Return the last logged share of time in which a run waited for batches."""
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["speed"]["data_wait"] for line in lines if "speed" in line][-1]


def measure(
    training: Training, options: Options, workload: Workload, rivals: tuple[str, ...]
) -> speed.Measurements:
    """Measure as speed.measure_rivals, and add "of peak" and, for ftloop, "data wait"."""
    flops = count_flops(training, workload.sizes or {})
    measurements = speed.measure_rivals(training, options, workload, rivals)
    for rival, results in measurements.items():
        for result in results:
            if "failed" not in result:
                seconds = result["ms"] / 1000 * training.steps
                result["of peak"] = flops / seconds / (options.peak * 1e12)
        if rival.startswith("ftloop") and "failed" not in results[-1]:
            folder = Path(speed.for_rival(training, rival).folder)
            results[-1]["data wait"] = read_data_wait(folder)
    return measurements


def format_table(measurements: speed.Measurements) -> str:
    """Return a table with a line for each rival."""
    rows = []
    for rival, results in measurements.items():
        reason = speed.get_failure(measurements, rival)
        if reason:
            rows.append([rival, f"failed: {reason}", *"-----"])
            continue
        ms = speed.compute_spread(speed.get_values(measurements, rival, "ms"))
        rate = statistics.median(speed.get_values(measurements, rival, "rows per second"))
        time_ratio = speed.compute_ratio(measurements, rival, "limit-bf16", "ms")
        speed_ratio = speed.compute_ratio(measurements, "trainer-bf16", rival, "ms")
        of_peak = statistics.median(speed.get_values(measurements, rival, "of peak"))
        data_wait = results[-1].get("data wait")
        cells = [rival, speed.format_spread(ms, 1), f"{rate:.0f}"]
        cells += [speed.format_spread(time_ratio), speed.format_spread(speed_ratio)]
        cells += [f"{of_peak:.1%}", "-" if data_wait is None else f"{data_wait:.1%}"]
        rows.append(cells)
    titles = ("rival", "ms per step", "rows/s", "time / limit", "speed / trainer")
    return speed.format_markdown((*titles, "of peak", "data wait"), rows)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.gpu", description=__doc__)
    machine, results = speed.print_machine(options), {}
    with speed.temporary_folder() as folder:
        for name in options.workloads:
            workload = GPU_WORKLOADS[name]
            workload = replace(
                workload,
                steps=options.steps or workload.steps,
                epochs=options.epochs or workload.epochs,
            )
            training = speed.prepare_training(name, options, Path(folder), workload)
            title = f"{workload.title}: {training.rows} rows{describe_lengths(training)}"
            rivals = options.rivals or RIVALS[name]
            measurements = measure(training, options, workload, rivals)
            same_work = "ftloop-random-bf16" if training.text_columns else "ftloop-bf16"
            goals = [
                Goal(same_work, ("limit-bf16",), "time", 1.03).verdict(measurements),
                Goal("ftloop-bf16", TRAINERS, "speed", 1.0).verdict(measurements),
            ]
            table = format_table(measurements)
            print(f"\n## {title}\n\n{table}\n\n" + "\n".join(goals), flush=True)
            results[name] = {"title": title, "measurements": measurements, "goals": goals}
            speed.write_json(options, {"workloads": results}, machine)


if __name__ == "__main__":
    main()
