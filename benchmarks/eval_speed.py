"""Compare the speed of an evaluation with `Trainer.evaluate`, on the same weights and rows.

    python -m benchmarks.eval_speed
    python -m benchmarks.eval_speed docstrings --rounds 5 --data DATA --json eval.json

The weights are those of a finished run of ftloop, whose learning rate was 0. Its variants are
options of that run. A pass is timed from the loader to the scores, without loading the model and
the rows. `trainer` has batches of 32 rows, `trainer-64` of 64 rows, like ftloop. Loss and accuracy
must be equal.
"""

import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import speed
from benchmarks.speed import CommonOptions, Goal, Rival, Training, Workload, ftloop

Name = Literal["pairs", "docstrings"]
WORKLOADS = {
    "pairs": Workload("MiniLM, sentence pairs", "pairs", 8, steps=51, epochs=0),
    "docstrings": Workload(
        "MiniLM, docstrings to 512 tokens", "docstrings", 8, steps=32, epochs=0, max_length=512
    ),
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
class Options(CommonOptions):
    """What is evaluated."""

    workloads: Annotated[tuple[Name, ...], tyro.conf.Positional] = tuple(WORKLOADS)
    rivals: tuple[str, ...] = tuple(RIVALS)
    rows: int | None = None  # to evaluate. Default: a pass takes some seconds
    passes: int = 3  # per process, after a first one that is not timed


def evaluate_ftloop(fields: dict[str, Any], passes: int) -> dict[str, Any]:
    """Train for one step with a learning rate of 0, and evaluate the train split.

    Returns the seconds of each pass, and the scores. With 0 passes, only trains.
    """
    from benchmarks.speed_loops import train_ftloop

    training, seconds = Training(**fields), []
    options = ["--learning-rate", "0", "--metrics", "accuracy"]
    train_ftloop(replace(training, max_steps=1, more_options=options))
    if not passes:
        return {}

    from ftloop.evaluation import build_eval_loader, evaluate
    from ftloop.runs.finished import load_run, prepare_for_inference

    config, task, model = load_run(f"{training.folder}/run")
    dataset = task.load_datasets()["train"]
    with prepare_for_inference(config, model) as (accelerator, prepared_model):
        for _ in range(passes + 1):
            began = time.perf_counter()
            loader = build_eval_loader(dataset, task, accelerator, config.eval_batch_size)
            scores = evaluate(prepared_model, loader, task, accelerator)
            seconds.append(time.perf_counter() - began)
    assert scores is not None  # no stop was requested
    return {"seconds": seconds[1:], "loss": scores["loss"], "accuracy": scores["accuracy"]}


def evaluate_trainer(fields: dict[str, Any], passes: int, folder: str) -> dict[str, Any]:
    """Evaluate the same rows with the weights in a folder. Returns the same values."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    from benchmarks import speed_loops

    training, seconds = Training(**fields), []
    dataset, collate, names = speed_loops.load_peer_dataset(training)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = [model.config.label2id[name] for name in names]
    dataset = dataset.map(lambda row: {"labels": ids[row["labels"]]})
    if training.options.get("kernels"):
        speed_loops.use_kernels(model)
    options = {name: value for name, value in training.options.items() if name != "kernels"}
    arguments = TrainingArguments(
        f"{training.folder}/trainer", report_to="none", use_cpu=True, **options
    )

    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits, labels = prediction
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    trainer = Trainer(
        model,
        arguments,
        data_collator=collate,
        eval_dataset=dataset,
        compute_metrics=compute_metrics,
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


def format_table(measurements: speed.Measurements, num_rows: int) -> str:
    """Return a table with a line for each rival."""
    lines = []
    for rival, results in measurements.items():
        successful = [result for result in results if "ms" in result]
        if not successful:
            reason = speed.get_failure(measurements, rival)
            lines.append([rival, f"failed: {reason}", "-", "-", "-"])
            continue
        rates = [1000 * num_rows / ms for ms in speed.get_values(measurements, rival, "ms")]
        rate = speed.format_spread(speed.compute_spread(rates), 1)
        ratio = speed.format_spread(speed.compute_ratio(measurements, "trainer", rival, "ms"))
        last = successful[-1]
        lines.append([rival, rate, ratio, f"{last['loss']:.6f}", f"{last['accuracy']:.4f}"])
    titles = ("rival", "rows per second", "speed / trainer", "loss", "accuracy")
    return speed.format_markdown(titles, lines)


def measure_workload(training: Training, options: Options, model_folder: str) -> speed.Measurements:
    """Evaluate with each rival. "ms": the median milliseconds of a pass."""

    def measure(name: str) -> dict[str, Any]:
        rival = RIVALS[name]
        folder = f"{training.folder}/{name.replace('+', '-')}"
        own = replace(training, options=rival.options, folder=folder)
        arguments: list[Any] = [asdict(own), options.passes]
        function = "benchmarks.eval_speed:evaluate_ftloop"
        if rival.kind == "trainer":
            function = "benchmarks.eval_speed:evaluate_trainer"
            arguments.append(model_folder)
        result = speed.run_child(function, Path(folder), options, *arguments)
        if "seconds" in result:
            result["ms"] = 1000 * statistics.median(result["seconds"])
        return result

    return speed.measure_in_rounds(options.rivals, options.rounds, measure)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.eval_speed", description=__doc__)
    machine, results = speed.print_machine(options), {}
    with speed.temporary_folder() as folder:
        for name in options.workloads:
            workload = WORKLOADS[name]
            if options.rows is not None:
                workload = replace(workload, steps=options.rows // workload.batch_size)
            training = speed.prepare_training(name, options, Path(folder), workload)

            # The run whose weights are evaluated
            base = replace(training, options={"words": []}, folder=f"{training.folder}/base")
            function = "benchmarks.eval_speed:evaluate_ftloop"
            result = speed.run_child(function, Path(base.folder), options, asdict(base), 0)
            if "failed" in result:
                raise SystemExit(f"the run to be evaluated failed: {result['failed']}")

            measurements = measure_workload(training, options, f"{base.folder}/run/model")
            title = f"{workload.title}: {training.rows} rows"
            goal = Goal("ftloop", ("trainer",), "speed", GOALS[name]).verdict(measurements)
            table = format_table(measurements, training.rows)
            print(f"\n## {title}\n\n{table}\n\n{goal}", flush=True)
            results[name] = {"title": title, "measurements": measurements, "goals": [goal]}
            speed.write_json(options, {"workloads": results}, machine)


if __name__ == "__main__":
    main()
