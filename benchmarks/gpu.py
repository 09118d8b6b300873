r"""BERT-base and ViT-base in bf16 on a GPU: ftloop beside the limit and the Trainer, with and without --compile.

    python -m benchmarks.gpu
    python -m benchmarks.gpu bert vit --rounds 2 --json gpu.json
    python -m benchmarks.gpu bert --rivals trainer-bf16 "ftloop-bf16:--batching tokens --max-tokens 8192"

Rivals, rounds and what is timed: benchmarks/speed.py; the GPU is waited for at the end of each epoch. All weights are
random: speed does not care. "of peak" is the share of the chip's peak that the products of the model make out, without
those of padding (model FLOPs utilisation); "data wait" the share of time in which ftloop waited for a batch.
"""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import LARGE_WORKS, Common, Goal, Job, Work, lengths_of, tokens_of

Name = Literal["bert", "bert-long", "vit"]
OURS = ("ftloop-random-bf16", "ftloop-bf16", "ftloop-compile-bf16")
RIVALS = {
    "bert": ("limit-bf16", "trainer-bf16", "trainer-grouped-bf16", *OURS, "ftloop-packing-bf16"),
    "bert-long": ("limit-bf16", "trainer-bf16", "trainer-grouped-bf16", *OURS[:2], "ftloop-packing-bf16"),
    "vit": ("limit-bf16", "trainer-bf16", "trainer-workers8-bf16", "ftloop-bf16", "ftloop-compile-bf16"),
}
THEIRS = ("trainer-bf16", "trainer-workers8-bf16")


@dataclass(frozen=True)
class Options(Common):
    """What is trained, and by whom."""

    gpu: ClassVar[bool] = True
    works: Annotated[tuple[Name, ...], tyro.conf.Positional] = tuple(LARGE_WORKS)
    rivals: tuple[str, ...] = ()  # of benchmarks/speed.py, or NAME:OPTIONS; left out: those of the work
    steps: int | None = None  # of an epoch
    epochs: int | None = None  # that are timed
    peak: float = 989.0  # TFLOP/s of the chip's bf16 products; H100 and H200 SXM, by their datasheets


def flops_of(job: Job, shape: dict[str, int]) -> float:
    """Floating-point operations of the products of an epoch, backward pass and all (twice the forward pass): four
    projections, two of the feed-forward layer, and attention's two, in each layer (https://arxiv.org/abs/2204.02311,
    appendix B). Embeddings, pooler and head are left out."""
    lengths = lengths_of(job) or [(shape["image_size"] // shape["patch_size"]) ** 2 + 1] * job.rows
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    forward = sum(length * (8 * width**2 + 4 * width * inner + 4 * length * width) for length in lengths)
    return 3 * shape["num_hidden_layers"] * forward


def data_wait(folder: Path) -> float:
    """The share that the run logged last, when all was warm."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["speed"]["data_wait"] for line in lines if '"data_wait"' in line][-1]


def measure(job: Job, given: Options, work: Work, rivals: tuple[str, ...]) -> speed.Measured:
    """As speed.measure_work, with "of peak" and, of ftloop, "data wait"."""
    flops = flops_of(job, work.shape)
    measured = speed.measure_work(job, given, work, rivals)
    for rival, results in measured.items():
        for result in results:
            if "failed" not in result:
                result["of peak"] = flops / (result["ms"] / 1000 * job.steps) / (given.peak * 1e12)
        if rival.startswith("ftloop") and "failed" not in results[-1]:
            results[-1]["data wait"] = data_wait(Path(speed.variant(job, rival).folder))
    return measured


def table(measured: speed.Measured) -> str:
    rows = []
    for rival, results in measured.items():
        if said := speed.failure(measured, rival):
            rows.append([rival, f"failed: {said}", *"-----"])
            continue
        ms, limit, trainer = (
            speed.spread(speed.values_of(measured, rival, "ms")),
            speed.ratio(measured, rival, "limit-bf16", "ms"),
            speed.ratio(measured, "trainer-bf16", rival, "ms"),
        )
        rows.append(
            [
                *(rival, ms.shown(1), f"{median(measured, rival, 'rows per second'):.0f}"),
                *(limit.shown() if limit else "-", trainer.shown() if trainer else "-"),
                f"{median(measured, rival, 'of peak'):.1%}",
                f"{results[-1]['data wait']:.1%}" if "data wait" in results[-1] else "-",
            ]
        )
    heads = ("rival", "ms a step", "rows/s", "time, of limit", "speed, of trainer", "of peak", "data wait")
    return speed.markdown(heads, rows)


def median(measured: speed.Measured, rival: str, name: str) -> float:
    return statistics.median(speed.values_of(measured, rival, name))


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.gpu", description=__doc__)
    seen, found = speed.begin(given), {}
    with speed.workplace() as folder:
        for name in given.works:
            work = LARGE_WORKS[name]
            work = replace(work, steps=given.steps or work.steps, epochs=given.epochs or work.epochs)
            job = speed.prepare(name, given, Path(folder), work)
            title = f"{work.title}: {job.rows} rows{tokens_of(job)}"
            measured = measure(job, given, work, given.rivals or RIVALS[name])
            like = Goal("ftloop-random-bf16" if job.text_columns else "ftloop-bf16", ("limit-bf16",), "time", 1.03)
            goals = [like.verdict(measured), Goal("ftloop-bf16", THEIRS, "speed", 1.0).verdict(measured)]
            print(f"\n## {title}\n\n{table(measured)}\n\n" + "\n".join(goals), flush=True)
            found[name] = {"title": title, "measured": measured, "goals": goals}
            speed.report(given, {"works": found}, seen)


if __name__ == "__main__":
    main()
