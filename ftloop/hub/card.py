"""The model card of a run, model/README.md: metadata that the Hub reads, and what a person needs to use the model.

What only a person knows is a marked field: `[to be filled: ...]`, and in the metadata a comment. A card ends with the
digest of its own text, so that one which somebody changed is known, and is never overwritten silently.

Model cards: Mitchell et al. 2019, arXiv:1810.03993; the metadata: huggingface_hub's ModelCardData and EvalResult.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import math
import platform
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop import __version__, checkpoint
from ftloop.config import FREE_TO_CHANGE, Config, encode, read_record
from ftloop.sampler import UNBOUNDED
from ftloop.errors import UserError

if TYPE_CHECKING:
    from ftloop.report.scored import Scored

logger = logging.getLogger("ftloop")

NAME = "README.md"
BLOCK = 65_536  # rows whose labels are counted together
PICTURE = "confusion_matrix.png"
HERE = 'model = "."  # this folder'  # the line of the example that a push replaces by the repository's name
SIGNATURE = re.compile(r"\n<!-- ftloop wrote this card; sha256 of what is above: ([0-9a-f]{64}) -->\n\Z")
# The Hub's names of our scores, and the arguments that make them ours.
METRICS = {
    "subset_accuracy": "accuracy",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "rmse": "mse",
    "r2": "r_squared",
}
RATIOS = ("precision", "recall", "f1")
SHAPING = ("columns", "map", "join", "filter", "validation", "test", "stratify", "split_group", "split_hash")
SHAPING = (*SHAPING, "split_seed", "limit", "drop_empty", "drop_duplicates", "drop_unreadable")
LONG_LIST = 15  # labels; more are folded away

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

Intervals = dict[str, dict[str, Any]]  # by split and score: ftloop/report/statistics.py's Interval


# ---- written, and whether by a person


def write(
    run_dir: Path,
    config: Config | None = None,
    task: Any = None,
    scores: dict[str, Any] | None = None,
    *,
    compute: bool = False,
    overwrite: bool = False,
) -> str:
    """Write model/README.md of a finished run, and the picture of its confusion matrix; what was done, in a line.

    `config`, `task` and `scores`: those of the run, where the caller has them. Intervals and picture need the outputs
    of each row: those that the report has left in RUN/outputs, or with `compute`, of an exact pass. A card that a
    person has edited stays, unless `overwrite`. Raises UserError for a run that is not finished.
    """
    folder, file = run_dir / "model", run_dir / "model" / NAME
    if scores is None and not (run_dir / "scores.json").is_file():
        raise UserError(f"{str(run_dir)!r} has no scores.json: its training is not finished, or it is no run")
    if file.is_file() and is_edited(file.read_text(encoding="utf-8")) and not overwrite:
        return f"{file} was edited, and stays as it is (python -m ftloop card {run_dir} --overwrite writes it anew)"
    config = config or read_record(run_dir)
    task = task or config.task.of_run(str(folder))
    if scores is None:
        scores = json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
    scored = outputs(run_dir, task, scores, compute)
    if scored:
        draw(list(scored.values())[-1], folder / PICTURE)  # test, where there is one
    checkpoint.write_text(file, card(run_dir, config, task, scores, scored))
    lacking = "" if scored else f" (python -m ftloop card {run_dir} adds intervals and the confusion matrix)"
    return f"{file}{lacking}"


def signed(text: str) -> str:
    """A card with the digest of its text as its last line."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- ftloop wrote this card; sha256 of what is above: {digest} -->\n"


def is_edited(text: str) -> bool:
    """Whether a card is not as ftloop wrote it. (Line ends may have been changed on the way: that is no edit.)"""
    text = text.replace("\r\n", "\n")
    found = SIGNATURE.search(text)
    return found is None or hashlib.sha256(text[: found.start()].encode()).hexdigest() != found[1]


def for_repository(text: str, name: str) -> str:
    """A card whose example loads the model from a repository."""
    found = None if is_edited(text) else SIGNATURE.search(text)
    changed = text.replace(HERE, f'model = "{name}"')
    return changed if found is None else signed(SIGNATURE.sub("", changed))


# ---- what is known of a run


def outputs(run_dir: Path, task: Any, scores: dict[str, Any], compute: bool) -> "dict[str, Scored]":
    """The rows of the scored splits as the model sees them: kept ones or, with `compute`, computed. Empty where the
    report was deleted, or the task is none whose rows have labels."""
    try:
        from ftloop.report import scored
    except ModuleNotFoundError:
        return {}
    found = {}
    for split in scores:
        file = run_dir / "outputs" / f"{split}.npz"
        try:
            if compute:
                found[split] = scored.score(run_dir, split)
            elif file.is_file():
                found[split] = scored.Scored.load(file, scored.key_of(run_dir, split, scored.source_rows(task, split)))
        except (UserError, ValueError) as error:  # no labels, or outputs of other weights
            logger.info("card: no intervals on %s: %s", split, error)
    return found


def intervals_of(task: Any, scored: "dict[str, Scored]") -> Intervals:
    """95 % bootstrap intervals by split and score."""
    if not scored:
        return {}
    from ftloop.report.statistics import intervals

    return {split: intervals(rows, task.metric_names) for split, rows in scored.items()}


def log_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def hub_id(place: str | None) -> str | None:
    """A name as the Hub has them; None for a folder or file of this machine, whose path is nobody else's business."""
    return place if place and HUB_ID.fullmatch(place) and not Path(place).exists() else None


def source_of(data: Any) -> tuple[str | None, str]:
    """The data set's id on the Hub, if it is from there, and what a person calls it: of files, their names alone."""
    if data is None:
        return None, "rows that its task reads"
    if getattr(data, "sources", ()):
        ids = [source_of(source) for source in data.sources]
        return None, ", ".join(dict.fromkeys(name for _, name in ids))
    files = data.files.values() if data.files else [data.path]
    names = [Path(str(name)).name for of in files if of for name in (of if isinstance(of, list | tuple) else [of])]
    found = hub_id(data.path) if not data.files and "://" not in str(data.path) else None
    if found is not None:
        return found, f"{found}{f' ({data.name})' if data.name else ''}"
    return None, ", ".join(dict.fromkeys(names)) or type(data).__name__


def pipeline_of(model: dict[str, Any]) -> str | None:
    """The task of transformers' pipelines that a model is for; None for a class that transformers does not have."""
    import transformers

    for name in model.get("architectures") or ():
        for ending, task in (("ForSequenceClassification", "text-"), ("ForImageClassification", "image-")):
            if name.endswith(ending) and hasattr(transformers, name):
                return f"{task}classification"
    return None


def versions(run_dir: Path) -> dict[str, str]:
    """Of the libraries: those that the newest checkpoint records, else those installed."""
    names = ("transformers", "torch", "datasets", "tokenizers", "accelerate")
    found = {"ftloop": __version__, "python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {name: value for name, value in made_by(run_dir).items() if name in found}


def made_by(run_dir: Path) -> dict[str, Any]:
    """What the newest checkpoint says it was made by: versions, device, threads, processes. Empty without one."""
    found = checkpoint.find(run_dir / "checkpoints")
    with contextlib.suppress(OSError, ValueError, KeyError):
        return checkpoint.load_made_by(found[-1]) if found else {}
    return {}


# ---- the card


def card(
    run_dir: Path,
    config: Config,
    task: Any,
    scores: dict[str, Any],
    scored: "dict[str, Scored] | None" = None,
    step: int | None = None,
) -> str:
    """The text of a card. `scores`: by split; `scored`: their rows, for intervals; `step`: of weights that are pushed
    before the training has ended."""
    folder = run_dir / ("model" if step is None else "pushed")
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    intervals = intervals_of(task, scored or {})
    base, title = getattr(config.task, "model", None), run_dir.resolve().name
    parts = [
        metadata(title, config, model, scores, intervals),
        f"# {title}",
        what_it_is(config, task, model, base, step),
        "## Intended uses and limits",
        "- Intended for: [to be filled: who should use it, for what]\n"
        "- Not for: [to be filled: uses it was not made for, or would do harm in]\n"
        "- Known limits: [to be filled: groups, languages, kinds of input on which it is worse, or was not tried]\n"
        "- Licence: [to be filled: also in the metadata above, with the language]",
        "## How to use it",
        how_to_use(task, model),
        "## Data",
        data_of(config, task),
        "## Preprocessing",
        preprocessing(config, task),
        "## Training",
        "By ftloop, a hand-written PyTorch loop.",
        hyperparameters(config, run_dir),
        training_table(run_dir, scores if step is None else {}),
        "## Evaluation",
        results_table(scores, intervals),
        *([f"![Confusion matrix on {list(scored)[-1]}]({PICTURE})"] if scored and (folder / PICTURE).is_file() else []),
        "## Versions",
        table([["library", "version"], *([name, value] for name, value in versions(run_dir).items())]),
    ]
    return signed("\n\n".join(part for part in parts if part) + "\n")


def metadata(title: str, config: Config, model: dict[str, Any], scores: dict[str, Any], intervals: Intervals) -> str:
    """The YAML block at the top. A licence or language that is no code would be refused: they are comments."""
    from huggingface_hub import EvalResult, ModelCardData

    data, pretrained = getattr(config.task, "data", None), getattr(config.task, "init", None) == "pretrained"
    identity, called = source_of(data)
    kind = pipeline_of(model)
    results = []
    for split, values in scores.items():
        for name, value in values.items():
            if value is None or "[" in name:  # without a value; of one class, which the tables have
                continue
            hub_name, arguments = hub_metric(name)
            interval = intervals.get(split, {}).get(name)
            if interval is not None and math.isfinite(interval.low):
                bounds = [round(float(interval.low), 6), round(float(interval.high), 6)]
                arguments = {**arguments, "bootstrap_95": bounds, "resamples": int(interval.resamples)}
            results.append(
                EvalResult(
                    task_type=kind or "other",
                    dataset_type=identity or "local",
                    dataset_name=called,
                    dataset_config=getattr(data, "name", None),
                    dataset_revision=getattr(data, "revision", None),
                    dataset_split=split,
                    metric_type=hub_name,
                    metric_name=name,
                    metric_value=float(value),  # numpy's numbers would become binary YAML
                    metric_args=arguments or None,
                )
            )
    found = ModelCardData(
        library_name="transformers",
        pipeline_tag=kind,
        base_model=hub_id(getattr(config.task, "model", None)) if pretrained else None,
        datasets=[identity] if identity else None,
        tags=["ftloop", *([str(model["problem_type"]).replace("_", "-")] if model.get("problem_type") else [])],
        metrics=list(dict.fromkeys(result.metric_type for result in results if result.metric_type != "loss")) or None,
        eval_results=results or None,
        model_name=title if results else None,
    )
    fields = "# license: [to be filled: apache-2.0, mit, cc-by-4.0, ..]\n# language: [to be filled: en, de, ..]"
    return f"---\n{fields}\n{found.to_yaml()}\n---"


def hub_metric(name: str) -> tuple[str, dict[str, Any]]:
    """The Hub's name of one of our scores, and its arguments: f1_macro is f1 with average macro."""
    if name.startswith("hub:"):
        return name.split(":")[1], {}
    ratio, _, average = name.partition("_")
    if ratio in RATIOS:
        return ratio, {"average": average} if average else {}
    return METRICS.get(name, name), {"squared": False} if name == "rmse" else {}


def what_it_is(config: Config, task: Any, model: dict[str, Any], base: str | None, step: int | None) -> str:
    """The first paragraph."""
    architecture = (model.get("architectures") or [type(task).__name__])[0]
    random = getattr(config.task, "init", "pretrained") == "random"
    named = hub_id(base)
    if random:
        origin = f"trained from random weights ({Path(base or '').name})"
    elif named:
        origin = f"fine-tuned from [{named}](https://huggingface.co/{named})"
    else:
        origin = f"fine-tuned from weights in a folder ({Path(base or '').name})"
    names = list(model.get("id2label", {}).values())
    says = {
        "single_label_classification": f"one of {len(names)} classes",
        "multi_label_classification": f"any of {len(names)} labels",
        "regression": "a number",
    }.get(model.get("problem_type") or "", "what its task describes")
    inputs = getattr(task, "input_columns", ())
    kind = {"text-classification": "a text", "image-classification": "an image"}.get(
        pipeline_of(model) or "", "an input"
    )
    given = "a pair of texts" if len(inputs) == 2 else kind
    text = f"`{architecture}`, {origin}. It gives {given} {says}."
    if names and model.get("problem_type") != "regression":
        text += "\n\n" + folded(f"The {len(names)} labels", ", ".join(f"`{name}`" for name in names), len(names))
    if step is not None:
        text += f"\n\nIts training has not ended: these are the weights after step {step}."
    return text


def how_to_use(task: Any, model: dict[str, Any]) -> str:
    """Code that runs in this folder, and from anywhere with the repository's name."""
    kind = pipeline_of(model)
    if kind is None:
        name = (model.get("architectures") or ["?"])[0]
        return (
            f"The model is a `{name}`, which transformers does not have: with the code that trained it, "
            f"`{name}.from_pretrained` loads it, and `python predict.py RUN` labels new rows."
        )
    multi, options = model.get("problem_type") == "multi_label_classification", {}
    if kind == "image-classification":
        given = '"photo.jpg"'
    else:
        given = '"a new text"'
        if len(task.input_columns) == 2:
            given = '{"text": "a new text", "text_pair": "and the text beside it"}'
        options |= {"truncation": "True", "max_length": str(getattr(task, "max_length", None) or 512)}
    if multi:
        options["top_k"] = "None"
    arguments = "".join(f", {name}={value}" for name, value in options.items())
    lines = [
        "from transformers import pipeline",
        "",
        HERE,
        f'classify = pipeline("{kind}", model=model)',
        f"print(classify({given}{arguments}))",
    ]
    said = "```python\n" + "\n".join(lines) + "\n```"
    if multi:
        said += f"\n\nA label is predicted from a score of {getattr(task, 'threshold', 0.5):g} on."
    long_text = getattr(task, "long_text", "truncate")
    if long_text != "truncate":
        kept = {"windows": "all of it, in overlapping windows whose logits are averaged"}.get(
            long_text, "its beginning and its end"
        )
        said += (
            f"\n\nOf a long text, the model was trained to see {kept}. A pipeline does not know that: it sees "
            f"the first {task.max_length} tokens alone, and the scores below do not hold for it. ftloop's predict.py "
            "does as training did."
        )
    return said


def data_of(config: Config, task: Any) -> str:
    """Source, rows by split, what was left out, and the sizes of the classes."""
    data = getattr(config.task, "data", None)
    said = [f"Source: {source_of(data)[1]}. [to be filled: where the rows come from, who labelled them, how]"]
    if not hasattr(task, "rows") or not hasattr(task, "labels"):
        return "\n\n".join(said)
    try:
        splits, source = task.rows, task.source
    except UserError as error:
        return "\n\n".join([*said, f"When this card was written, they could not be read: {error}"])
    header, counted = ["split", "rows", "in the source"], []
    for split, rows in splits.items():
        unbounded = len(rows) == UNBOUNDED
        before = "" if unbounded else len(source[split]) if split in source else "cut from train"
        counted.append([split, "a stream" if unbounded else len(rows), before])
    said.append(table([header, *counted]))
    options = {name: getattr(data, name, None) for name in SHAPING}
    chosen = [f"{name} {plain(value)}" for name, value in options.items() if value != default_of(data, name)]
    if chosen:
        said.append("Shaped by the options: " + ", ".join(f"`{one}`" for one in chosen) + ".")
    sizes = {split: rows for split, rows in splits.items() if len(rows) != UNBOUNDED}
    if task.labels.names:
        counts = {split: label_counts(task, rows, split) for split, rows in sizes.items()}
        lines = [[name, *(counts[split][number] for split in sizes)] for number, name in enumerate(task.labels.names)]
        said.append(folded("Rows by label", table([["label", *sizes], *lines]), len(lines)))
    else:
        values = {split: task.encoded(rows, split) for split, rows in sizes.items()}
        lines = [[split, min(of), sum(of) / len(of), max(of)] for split, of in values.items()]
        said.append(table([["split", "least", "mean", "greatest"], *lines]))
    return "\n\n".join(said)


def label_counts(task: Any, rows: Any, split: str) -> Counter:
    """How many rows have each label, by its id. Block by block: a million labels at once would take 60 MB."""
    counts = Counter()
    for start in range(0, len(rows), BLOCK):
        encoded = task.encoded(rows.select(range(start, min(start + BLOCK, len(rows)))), split)
        if task.labels.multi:
            counts.update(number for row in encoded for number, present in enumerate(row) if present)
        else:
            counts.update(int(label) for label in encoded)
    return counts


def preprocessing(config: Config, task: Any) -> str:
    """The options of the task that decide on what the model sees, and how labels became ids."""
    aside = ("model", "init", "data", "metrics", "image_folder")
    of = config.task
    if not dataclasses.is_dataclass(of):
        return f"That of `{type(of).__name__}`."
    values = {item.name: getattr(of, item.name) for item in dataclasses.fields(of) if item.name not in aside}
    processor = getattr(task, "processor", None)
    said = [f"`{type(of).__name__}`" + (f", with its `{type(processor).__name__}`." if processor is not None else ".")]
    return "\n\n".join([*said, table([["option", "value"], *set_options(values)])])


def hyperparameters(config: Config, run_dir: Path) -> str:
    """The options that decide on the result, and what it was computed with."""
    aside = ("task", *FREE_TO_CHANGE)
    names = [item.name for item in dataclasses.fields(config) if item.name not in aside]
    known = made_by(run_dir)
    lines = set_options({name: getattr(config, name) for name in names})
    computed = {"device": "device", "processes": "processes", "matmul": "fp32 products by"}
    lines += [[called, known[name]] for name, called in computed.items() if name in known]
    return table([["hyperparameter", "value"], *lines])


def training_table(run_dir: Path, kept: dict[str, Any]) -> str:
    """A line for each evaluation, as in the Hugging Face course. The training loss is the mean over the steps since the
    line before; the weights that were kept are marked, where `kept` has their scores on validation."""
    losses, rows, names, found = [], [], [], {}
    for line in log_of(run_dir):
        if line["split"] == "train" and line["name"] == "loss" and line["value"] is not None:
            losses.append(line["value"])
        elif line["split"] == "validation":
            if line["name"] == "loss":
                found = {}
                rows.append((sum(losses) / len(losses) if losses else "", line["epoch"], line["step"], found))
                losses = []
            if "[" not in line["name"]:
                names = [*names, *([line["name"]] if line["name"] not in names else [])]
            found[line["name"]] = line["value"]
    if not rows:
        return ""
    best = next((found for *_, found in rows if found == kept.get("validation")), None)
    header = ["Training Loss", "Epoch", "Step", *("Validation Loss" if name == "loss" else name for name in names), ""]
    lines = [
        [loss, f"{epoch:.2f}", step, *(found.get(name) for name in names), "kept" if found is best else ""]
        for loss, epoch, step, found in rows
    ]
    return table([header, *lines])


def results_table(scores: dict[str, Any], intervals: Intervals) -> str:
    """The scores of the weights in this folder, with their intervals where these are known."""
    if not scores:
        return "There was no split to score."
    lines = []
    for split, values in scores.items():
        for name, value in values.items():
            interval = intervals.get(split, {}).get(name)
            known = interval is not None and math.isfinite(interval.low)
            lines.append([split, name, value, f"{interval.low:.4f} to {interval.high:.4f}" if known else ""])
    if not intervals:
        return table([["split", "score", "value"], *(line[:3] for line in lines)])
    resamples = max(one.resamples for of in intervals.values() for one in of.values())
    return (
        folded("Scores", table([["split", "score", "value", "95 % interval"], *lines]), len(lines) // 2)
        + f"\n\nIntervals: percentile bootstrap over the rows of the split, {resamples} resamples. They say how much "
        "another sample of rows would change the score, not another training."
    )


# ---- Markdown


def table(rows: list[list[Any]]) -> str:
    """A table; its first row is the header."""
    lines = [" | ".join(shown(cell) for cell in row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in rows[0]))
    return "\n".join(f"| {line} |" for line in lines)


def shown(cell: Any) -> str:
    """A cell: numbers short, and no text that would end the cell or the line."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4f}"
    return " ".join(str(cell).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def plain(value: Any) -> str:
    """An option's value: functions by name, and of what is a path here, the last part alone."""
    encoded = encode(value)
    if isinstance(encoded, dict) and "function" in encoded:
        return encoded["function"].partition(":")[2]
    if isinstance(encoded, list):
        return " ".join(plain(one) for one in value) or "-"
    if isinstance(encoded, dict):
        return ", ".join(f"{name} {plain(one)}" for name, one in value.items()) or "-"
    if isinstance(encoded, str) and "/" in encoded and Path(encoded).expanduser().is_absolute():
        return Path(encoded).name
    return "-" if encoded is None else f"{encoded:g}" if isinstance(encoded, float) else str(encoded)


def set_options(values: dict[str, Any]) -> list[list[str]]:
    """Options and values, without those that are left out, empty, or switched off."""
    off = ((), [], {}, "")
    found = {name: value for name, value in values.items() if value is not None and value is not False}
    return [[name, plain(value)] for name, value in found.items() if value not in off]


def default_of(options: Any, name: str) -> Any:
    """The default of a field of a dataclass."""
    for item in dataclasses.fields(options):
        if item.name == name:
            return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    return None


def folded(title: str, text: str, length: int) -> str:
    """A text, behind a title to click on if it is long."""
    if length <= LONG_LIST:
        return text
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


# ---- the picture


def draw(scored: "Scored", file: Path) -> None:
    """The confusion matrix of a split as a PNG: shares of each true class, and the counts where they fit. None for
    several labels, and for numbers."""
    if scored.multi or scored.regression:
        return
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    many = len(scored.names)
    counts = numpy.zeros((many, many), numpy.int64)
    numpy.add.at(counts, (scored.references, scored.predictions), 1)
    shares = counts / numpy.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(3 + 0.55 * many, 16)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = max(4, min(10, 500 / max(many, 1)))
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in scored.names]
    axes.set_xticks(range(many), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(many), names, fontsize=size, parse_math=False)
    if many <= 25:
        for (true, predicted), count in numpy.ndenumerate(counts):
            shade = "white" if shares[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, str(count), ha="center", va="center", color=shade, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{scored.split}, {scored.rows} rows; colour: share of the true class")
    figure.colorbar(picture, fraction=0.046)
    figure.savefig(file, metadata={"Software": None})  # the same run gives the same bytes
