"""How long an evaluation takes, beside `Trainer.evaluate` on the same weights and rows: rows per second, equal scores.

    python -m benchmarks.eval_speed
    python -m benchmarks.eval_speed docstrings --rounds 5 --data DATA --json eval.json

The weights are those of a finished run of ftloop. Its variants are options of that run, whose learning rate is 0; what
is timed is the pass alone, from loader to scores, without loading model and rows. `trainer` has batches of 32 rows,
`trainer-64` of 64, as ftloop by default.
"""

import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import Common, Goal, Job, Rival, Work, ftloop

Name = Literal["pairs", "docstrings"]
WORKS = {
    "pairs": Work("MiniLM, sentence pairs", "pairs", 8, 51, 0),
    "docstrings": Work("MiniLM, docstrings to 512 tokens", "docstrings", 8, 32, 0, max_length=512),
}
RIVALS = {
    "trainer": Rival("trainer", {"per_device_eval_batch_size": 32}),
    "trainer-64": Rival("trainer", {"per_device_eval_batch_size": 64}),
    "trainer+kernels": Rival("trainer", {"per_device_eval_batch_size": 32, "kernels": True}),
    "ftloop": ftloop(),
    "ftloop-default-kernels": ftloop(*speed.DEFAULT_KERNELS),
    "ftloop-bf16": ftloop("--precision", "bf16"),
}
GOALS = {"pairs": 2.2, "docstrings": 3.0}


@dataclass(frozen=True)
class Options(Common):
    """What is scored."""

    works: Annotated[tuple[Name, ...], tyro.conf.Positional] = tuple(WORKS)
    rivals: tuple[str, ...] = tuple(RIVALS)
    rows: int | None = None  # that are scored; left out: so many that a pass takes some seconds
    passes: int = 3  # of each process, after a first one that is not counted


def train(job: Job) -> None:
    """A finished run with the weights that a training begins with. Its train split is what is scored."""
    words = ["--learning-rate", "0", "--task.metrics", "accuracy"]
    speed.run_ftloop(replace(job, max_steps=1, words=words))


def by_ftloop(options: dict[str, Any], passes: int) -> dict[str, Any]:
    """The seconds of some passes, and the scores."""
    job, seconds = Job(**options), []
    train(job)
    if not passes:
        return {}

    from ftloop import evaluation

    scored = evaluation.evaluate_split

    def several_times(*arguments: Any, **keywords: Any) -> dict[str, float]:
        for _ in range(passes + 1):
            began = time.perf_counter()
            scores = scored(*arguments, **keywords)
            seconds.append(time.perf_counter() - began)
        return scores

    evaluation.evaluate_split = several_times
    scores = evaluation.evaluate(f"{job.folder}/run", "train")
    return {"seconds": seconds[1:], "loss": scores["loss"], "accuracy": scores["accuracy"]}


def by_trainer(options: dict[str, Any], passes: int, folder: str) -> dict[str, Any]:
    """Likewise, of the weights in a folder."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    job, seconds = Job(**options), []
    rows, collate, names = speed.peers_rows(job)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = [model.config.label2id[name] for name in names]
    rows = rows.map(lambda row: {"labels": ids[row["labels"]]})
    if job.options.get("kernels"):
        speed.use_kernels(model)
    keywords = {name: value for name, value in job.options.items() if name != "kernels"}
    trainer = Trainer(
        model,
        TrainingArguments(f"{job.folder}/trainer", report_to="none", use_cpu=True, **keywords),
        data_collator=collate,
        eval_dataset=rows,
        compute_metrics=lambda found: {"accuracy": float((found[0].argmax(-1) == found[1]).mean())},
    )
    for _ in range(passes + 1):
        began = time.perf_counter()
        scores = trainer.evaluate()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": seconds[1:],
        "loss": scores["eval_loss"],
        "accuracy": scores["eval_accuracy"],
    }


def table(measured: speed.Measured, rows: int) -> str:
    """A line for each rival."""
    lines = []
    for rival, results in measured.items():
        said, last = (
            speed.failure(measured, rival),
            next((one for one in results if "ms" in one), None),
        )
        if said or last is None:
            lines.append([rival, f"failed: {said}", "-", "-", "-"])
            continue
        per_second = speed.spread(
            [1000 * rows / value for value in speed.values_of(measured, rival, "ms")]
        )
        against = speed.ratio(measured, "trainer", rival, "ms")
        scores = (f"{last['loss']:.6f}", f"{last['accuracy']:.4f}")
        lines.append([rival, per_second.shown(1), against.shown() if against else "-", *scores])
    return speed.markdown(
        ("rival", "rows a second", "speed, of trainer", "loss", "accuracy"), lines
    )


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.eval_speed", description=__doc__)
    seen, found = speed.begin(given), {}
    with speed.workplace() as folder:
        for name in given.works:
            work = WORKS[name]
            work = replace(work, steps=(given.rows or work.steps * 8) // 8)
            job = speed.prepare(name, given, Path(folder), work)
            base = replace(job, options={"words": []}, folder=f"{job.folder}/base")
            made = speed.run_child(
                "benchmarks.eval_speed:by_ftloop", Path(base.folder), given, asdict(base), 0
            )
            if "failed" in made:
                raise SystemExit(f"the run whose weights are scored failed: {made['failed']}")

            def measure(rival: str, job: Job = job, base: Job = base) -> dict[str, Any]:
                own = replace(
                    *(job,),
                    options=RIVALS[rival].options,
                    folder=f"{job.folder}/{rival.replace('+', '-')}",
                )
                arguments = (asdict(own), given.passes)
                if RIVALS[rival].kind == "ftloop":
                    result = speed.run_child(
                        "benchmarks.eval_speed:by_ftloop", Path(own.folder), given, *arguments
                    )
                else:
                    model = f"{base.folder}/run/model"
                    result = speed.run_child(
                        "benchmarks.eval_speed:by_trainer",
                        Path(own.folder),
                        given,
                        *arguments,
                        model,
                    )
                if "seconds" in result:
                    result["ms"] = 1000 * statistics.median(result["seconds"])
                return result

            measured = speed.in_rounds(given.rivals, given.rounds, measure)
            title = f"{work.title}: {job.rows} rows"
            goal = Goal("ftloop", ("trainer",), "speed", GOALS[name]).verdict(measured)
            print(f"\n## {title}\n\n{table(measured, job.rows)}\n\n{goal}", flush=True)
            found[name] = {"title": title, "measured": measured, "goals": [goal]}
            speed.report(given, {"works": found}, seen)


if __name__ == "__main__":
    main()
