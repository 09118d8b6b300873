"""The sections of a model card: what the model is, its data and its training."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from ftloop import __version__
from ftloop.config import Config
from ftloop.errors import UserError
from ftloop.escape import code_span, for_markdown
from ftloop.files.metric_lines import read_metric_lines
from ftloop.hub.markdown import fold, format_option, option_rows, table
from ftloop.hub.metadata import Intervals, Scores, describe_source, hub_id, pipeline_task
from ftloop.sampler import UNBOUNDED

logger = logging.getLogger("ftloop")

BLOCK_SIZE = 65_536  # rows whose labels are counted at once
INTENDED_USES = """\
- Intended for: [to be filled: who should use it, for what]
- Not for: [to be filled: uses it was not made for, or would do harm in]
- Known limits: [to be filled: groups, languages, kinds of input on which it is worse, or untested]
- License: [to be filled: also in the metadata above, with the language]"""
# Options of the data that select, change or split rows
DATA_OPTIONS = ("columns", "map", "join", "filter", "validation", "test", "stratify")
DATA_OPTIONS += ("split_group", "split_hash", "split_seed", "limit")
DATA_OPTIONS += ("drop_empty", "drop_duplicates", "drop_unreadable")
OUTPUTS = {
    "single_label_classification": "assigns one of {count} classes to",
    "multi_label_classification": "assigns any of {count} labels to",
    "regression": "predicts a number for",
}
INPUTS = {"image-classification": "an image"}


# The model


def describe_model(task: Any, model_config: dict[str, Any], step: int | None) -> str:
    """Return the first paragraphs: architecture, origin, what it predicts, and its labels.

    `step` is given for weights that are pushed before training has ended.
    """
    architecture = (model_config.get("architectures") or [type(task).__name__])[0]
    names = list(model_config.get("id2label", {}).values())
    problem_type = model_config.get("problem_type")
    inputs = INPUTS.get(pipeline_task(model_config) or "", "a text")
    if len(getattr(task, "input_columns", ())) == 2:
        inputs = "a pair of texts"
    paragraphs = [f"{code_span(architecture)}, {describe_origin(task)}."]
    if problem_type in OUTPUTS:
        paragraphs[0] += f" It {OUTPUTS[problem_type].format(count=len(names))} {inputs}."
    if names and problem_type != "regression":
        labels = f"Labels: {', '.join(map(code_span, names))}"
        paragraphs.append(fold(f"The {len(names)} labels", labels, len(names)))
    if step is not None:
        paragraphs.append(f"Training has not ended: these are the weights after step {step}.")
    return "\n\n".join(paragraphs)


def describe_origin(task: Any) -> str:
    """Tell from which weights training started. `task` is the one of the config."""
    base = getattr(task, "model", None)
    if base is None:
        return "trained from the weights that its task builds"
    if getattr(task, "init", "pretrained") == "random":
        return f"trained from random weights ({for_markdown(Path(base).name)})"
    if hub_id(base):
        return f"fine-tuned from [{base}](https://huggingface.co/{base})"
    return f"fine-tuned from weights in a local folder ({for_markdown(Path(base).name)})"


# The data


def describe_data(data: Any, task: Any) -> str:
    """Return the model card's text on the data: its source, rows by split, options, and labels.

    Rows and options are there only if the task has `rows`, labels only if it also has `labels`.
    """
    source_name = for_markdown(describe_source(data)[1])
    paragraphs = [
        f"Source: {source_name}. [to be filled: where the rows come from, who labelled them, how]"
    ]
    if not hasattr(type(task), "rows"):  # ask the class: hasattr(task, ...) would read the data
        return paragraphs[0]
    try:
        splits, original_splits = task.rows, task.source
    except UserError as error:
        logger.warning("The model card does not describe the rows: %s", error)
        paragraphs.append("The rows could not be read when this card was written.")
        return "\n\n".join(paragraphs)
    rows: list[list[Any]] = [["split", "rows", "in the source"]]
    for split, dataset in splits.items():
        if len(dataset) == UNBOUNDED:
            rows.append([split, "a stream", ""])
        elif split in original_splits:
            rows.append([split, len(dataset), len(original_splits[split])])
        else:
            rows.append([split, len(dataset), "split off train"])
    paragraphs.append(table(rows))
    options = changed_options(data)
    if options:
        paragraphs.append(f"Options that select or change rows: {', '.join(options)}.")
    if hasattr(type(task), "labels"):
        finite = {split: dataset for split, dataset in splits.items() if len(dataset) != UNBOUNDED}
        paragraphs.append(label_table(task, finite))
    return "\n\n".join(paragraphs)


def changed_options(data: Any) -> list[str]:
    """Return the options of the data that do not have their default: "`limit 30`"."""
    options = []
    for field in dataclasses.fields(data):
        if field.name in DATA_OPTIONS:
            value, default = getattr(data, field.name), field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if value != default:
                options.append(code_span(f"{field.name} {format_option(value)}"))
    return options


def label_table(task: Any, splits: dict[str, Any]) -> str:
    """Return the rows of each split by label; for regression, the range of the values."""
    if not task.labels.names:
        rows: list[list[Any]] = [["split", "minimum", "mean", "maximum"]]
        for split, dataset in splits.items():
            values = task.encode_labels(dataset, split)
            rows.append([split, min(values), sum(values) / len(values), max(values)])
        return table(rows)
    counts = {split: count_labels(task, dataset, split) for split, dataset in splits.items()}
    rows = [["label", *splits]]
    for label, name in enumerate(task.labels.names):
        rows.append([name, *(counts[split][label] for split in splits)])
    return fold("Rows by label", table(rows), len(task.labels.names))


def count_labels(task: Any, dataset: Any, split: str) -> Counter:
    """Count the rows of each label id, block by block: a million labels at once take 60 MB."""
    counts: Counter = Counter()
    for start in range(0, len(dataset), BLOCK_SIZE):
        block = dataset.select(range(start, min(start + BLOCK_SIZE, len(dataset))))
        encoded = task.encode_labels(block, split)
        if task.labels.is_multi_label:
            for row in encoded:
                counts.update(label for label, is_present in enumerate(row) if is_present)
        else:
            counts.update(int(label) for label in encoded)
    return counts


def describe_preprocessing(config_task: Any, task: Any) -> str:
    """Return the options of the task that decide what the model sees."""
    name = type(config_task).__name__
    if not dataclasses.is_dataclass(config_task):
        return f"By `{name}`."
    described_elsewhere = ("model", "init", "data", "metrics", "image_folder")
    options = {}
    for field in dataclasses.fields(config_task):
        if field.name not in described_elsewhere:
            options[field.name] = getattr(config_task, field.name)
    processor = getattr(task, "processor", None)
    by = f"`{name}` with a `{type(processor).__name__}`" if processor is not None else f"`{name}`"
    return f"By {by}.\n\n" + table([["option", "value"], *option_rows(options)])


# Training and scores


def describe_hyperparameters(config: Config, environment: dict[str, Any]) -> str:
    """Return the options that decide the result, and the devices that computed it."""
    excluded = {"task", *config.may_change} - {"micro_batch_size", "max_tokens"}
    options = {}
    for field in dataclasses.fields(config):
        if field.name not in excluded:
            options[field.name] = getattr(config, field.name)
    rows = option_rows(options)
    for name in ("device", "num_processes", "matmul_backend"):
        if name in environment:
            rows.append([name, environment[name]])
    return table([["hyperparameter", "value"], *rows])


def read_metric_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return read_metric_lines(run_dir / "metrics.jsonl")


def training_table(log: list[dict[str, Any]], exported: dict[str, Any] | None) -> str:
    """Return a table with a row per evaluation, as in the Hugging Face course.

    The training loss is the mean over the steps since the row before. The row whose scores on
    validation are `exported` is marked.
    """
    evaluations: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    losses: list[float] = []
    for line in log:
        if line["split"] == "train" and line["name"] == "loss" and line["value"] is not None:
            losses.append(line["value"])
        elif line["split"] == "validation":
            if not evaluations or evaluations[-1]["step"] != line["step"]:  # its first score
                loss = sum(losses) / len(losses) if losses else ""
                evaluations.append(
                    {"loss": loss, "epoch": line["epoch"], "step": line["step"], "scores": {}}
                )
                losses = []
            evaluations[-1]["scores"][line["name"]] = line["value"]
            if "[" not in line["name"]:  # scores of single classes would make it too wide
                names[line["name"]] = None
    if not evaluations:
        return ""
    best = next((each for each in evaluations if each["scores"] == exported), None)
    columns = ["Validation Loss" if name == "loss" else name for name in names]
    rows = [["Training Loss", "Epoch", "Step", *columns, ""]]
    for each in evaluations:
        scores = [each["scores"].get(name) for name in names]
        mark = "this model" if each is best else ""
        rows.append([each["loss"], f"{each['epoch']:.2f}", each["step"], *scores, mark])
    return table(rows)


def results_table(scores: Scores, intervals: Intervals) -> str:
    """Return the scores of the weights in this folder, with their intervals if these are known."""
    if not scores:
        return "The data has no split for evaluation."
    rows: list[list[Any]] = []
    for split, values in scores.items():
        for name, value in values.items():
            interval = intervals.get(split, {}).get(name)
            is_known = interval is not None and math.isfinite(interval.low)
            bounds = f"{interval.low:.4f} to {interval.high:.4f}" if is_known else ""
            rows.append([split, name, value, bounds])
    header = ["split", "score", "value", "95 % interval"]
    if not intervals:
        return table([header[:3], *(row[:3] for row in rows)])
    resamples = max(each.resamples for split in intervals.values() for each in split.values())
    return fold("Scores", table([header, *rows]), len(rows) // 2) + (
        f"\n\nIntervals: percentile bootstrap over the rows of the split, {resamples} resamples. "
        "They tell how much the score would change with another sample of rows, not with another "
        "training run."
    )


def library_versions(recorded: dict[str, Any]) -> dict[str, str]:
    """Return the version of each library: that in `recorded` or, without one, the installed one.

    `recorded` is the environment that the newest checkpoint records.
    """
    versions = {"ftloop": __version__, "python": platform.python_version()}
    for name in ("transformers", "torch", "datasets", "tokenizers", "accelerate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions | {name: recorded[name] for name in versions if name in recorded}
