"""The metadata of a model card: the YAML block that the Hub reads.

Sources: huggingface_hub's ModelCardData and EvalResult.
"""

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ftloop.escape import printable

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Names on the Hub of scores that have another name here
HUB_METRICS = {
    "subset_accuracy": "accuracy",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "rmse": "mse",
    "r2": "r_squared",
}
AVERAGED_METRICS = ("precision", "recall", "f1")
# The Hub refuses invalid licenses and languages, so these fields are comments until a person fills
# them in.
FIELDS_TO_FILL = (
    "# license: [to be filled: apache-2.0, mit, cc-by-4.0, ...]\n"
    "# language: [to be filled: en, de, ...]"
)

Scores = dict[str, dict[str, float | None]]
"""Scores by split and name."""

Intervals = dict[str, dict[str, Any]]
"""Bootstrap intervals by split and name: the class Interval of ftloop/report/bootstrap.py."""


def hub_id(name: str | None) -> str | None:
    """Return a name of the Hub; None for a path of this machine, which is private."""
    is_hub_name = name and HUB_ID.fullmatch(name) and not Path(name).exists()
    return name if is_hub_name else None


def describe_source(data: Any) -> tuple[str | None, str]:
    """Return the id of a data set on the Hub, or None, and its name for a person.

    Of local files, the name tells only the file names.
    """
    if data is None:
        return None, "rows that the task reads"
    if getattr(data, "sources", ()):
        names = [name for _, name in map(describe_source, data.sources)]
        return None, ", ".join(dict.fromkeys(names))
    is_remote = not data.files and "://" not in str(data.path)
    dataset_id = hub_id(data.path) if is_remote else None
    if dataset_id is not None:
        return dataset_id, f"{dataset_id} ({data.name})" if data.name else dataset_id
    names = []
    for entry in data.files.values() if data.files else [data.path]:
        files = entry if isinstance(entry, list | tuple) else [entry]
        names += [file_name(str(file)) for file in files if file]
    return None, ", ".join(dict.fromkeys(filter(None, names))) or type(data).__name__


def file_name(path: str) -> str:
    """Return the name of a file or of an address, without its query, which may hold a secret."""
    return Path(urlsplit(path).path if "://" in path else path).name


def pipeline_task(model_config: dict[str, Any]) -> str | None:
    """Return the task of transformers' pipeline for a model.

    None for classes that transformers does not have.
    """
    import transformers

    for name in model_config.get("architectures") or ():
        if not hasattr(transformers, name):
            continue
        if name.endswith("ForSequenceClassification"):
            return "text-classification"
        if name.endswith("ForImageClassification"):
            return "image-classification"
        if name.endswith("ForTokenClassification"):
            return "token-classification"
    return None


def hub_metric(name: str) -> tuple[str, dict[str, Any]]:
    """Return the Hub's name of a score and its arguments: f1_macro is f1 with average="macro"."""
    if name.startswith("hub:"):
        return name.split(":")[1], {}
    metric, _, average = name.partition("_")
    if metric in AVERAGED_METRICS:
        return metric, {"average": average} if average else {}
    return HUB_METRICS.get(name, name), {"squared": False} if name == "rmse" else {}


def build_metadata(
    title: str,
    task: Any,
    model_config: dict[str, Any],
    scores: Scores,
    intervals: Intervals,
    is_adapter: bool = False,
) -> str:
    """Return the YAML block at the top of a card. `task` is the one of the config.

    `is_adapter`: the folder holds the changes of a model only, by the library peft.
    """
    from huggingface_hub import ModelCardData

    is_pretrained = getattr(task, "init", "pretrained") == "pretrained"
    base_model = hub_id(getattr(task, "model", None)) if is_pretrained else None
    dataset_id, _ = describe_source(getattr(task, "data", None))
    library = "peft" if is_adapter else "transformers" if model_config else "pytorch"
    problem_type = model_config.get("problem_type")
    results = build_results(task, model_config, scores, intervals)
    metrics = dict.fromkeys(result.metric_type for result in results)
    metrics.pop("loss", None)
    card_data = ModelCardData(
        library_name=library,
        pipeline_tag=None if is_adapter else pipeline_task(model_config),
        base_model=base_model,
        datasets=[dataset_id] if dataset_id else None,
        tags=["ftloop", *([problem_type.replace("_", "-")] if problem_type else [])],
        metrics=list(metrics) or None,
        eval_results=results or None,
        model_name=printable(title) if results else None,
    )
    return f"---\n{FIELDS_TO_FILL}\n{card_data.to_yaml()}\n---"


def build_results(
    task: Any, model_config: dict[str, Any], scores: Scores, intervals: Intervals
) -> list[Any]:
    """Return an EvalResult for each score that has a value, except those of single classes."""
    from huggingface_hub import EvalResult

    data = getattr(task, "data", None)
    dataset_id, dataset_name = describe_source(data)
    results = []
    for split, values in scores.items():
        for name, value in values.items():
            is_of_one_class = "[" in name  # the report and the tables have these
            if value is None or is_of_one_class:
                continue
            metric, arguments = hub_metric(name)
            interval = intervals.get(split, {}).get(name)
            if interval is not None and math.isfinite(interval.low):
                bounds = [round(float(interval.low), 6), round(float(interval.high), 6)]
                arguments |= {"bootstrap_95": bounds, "resamples": int(interval.resamples)}
            result = EvalResult(
                task_type=pipeline_task(model_config) or "other",
                dataset_type=dataset_id or "local",
                dataset_name=printable(dataset_name),
                dataset_config=getattr(data, "name", None),
                dataset_revision=getattr(data, "revision", None),
                dataset_split=split,
                metric_type=metric,
                metric_name=name,
                metric_value=float(value),  # YAML would write a numpy number as binary data
                metric_args=arguments or None,
            )
            results.append(result)
    return results
