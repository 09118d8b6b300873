"""A split as a finished run sees it, row by row: what reports and comparisons are made from.

The pass is that of evaluation (every row once, the losses by row id), so its scores are those that training printed. It
is kept in RUN/outputs/SPLIT.npz with a key of all that it follows from: asked again, it is read, not computed.
"""

import hashlib
import json
import logging
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ftloop.config import read_record
from ftloop.errors import UserError, did_you_mean
from ftloop.runs.finished import load_task, model_folder
from ftloop.runs.record import load_config
from ftloop.tasks import metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftloop.tasks.classification import Task

logger = logging.getLogger("ftloop")

FORMAT = 1  # of the files; part of their key


@dataclass(frozen=True)
class Scored:
    """The rows of a split in the order of their ids, with what a model says of them. `rows` is how many there are."""

    split: str
    problem_type: str  # metrics.SINGLE, MULTI or REGRESSION
    names: tuple[str, ...]  # of the labels, by id; () for regression
    references: numpy.ndarray  # int64 [rows] | bool [rows, labels] | float64 [rows]
    predictions: numpy.ndarray  # likewise
    probabilities: (
        numpy.ndarray | None
    )  # float32 [rows, labels]; None for regression, and where a task gives none
    losses: numpy.ndarray  # float64 [rows]
    row_ids: numpy.ndarray = None  # type: ignore[assignment]  # int64 [rows], of the split; left out: 0, 1, 2, ..
    total: int = 0  # rows of the split; more than `rows` if only some were scored; left out: `rows`

    def __post_init__(self) -> None:
        if self.row_ids is None:
            object.__setattr__(self, "row_ids", numpy.arange(self.rows))
        if not self.total:
            object.__setattr__(self, "total", self.rows)

    @property
    def rows(self) -> int:
        return len(self.references)

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == metrics.MULTI

    @property
    def is_regression(self) -> bool:
        return self.problem_type == metrics.REGRESSION

    @property
    def wrong(self) -> numpy.ndarray:
        """bool [rows]: the prediction is not the reference; for several labels, not in all of them. Not for regression,
        where the losses tell."""
        different = self.predictions != self.references
        return different.any(axis=1) if self.is_multi_label else different

    def take(self, places: numpy.ndarray) -> "Scored":
        """Some of these rows, by their places (0 to rows - 1), in the order given."""
        chosen = {
            name: getattr(self, name)[places]
            for name in ("references", "predictions", "losses", "row_ids")
        }
        probabilities = None if self.probabilities is None else self.probabilities[places]
        return replace(self, **chosen, probabilities=probabilities)

    def save(self, file: Path, key: str = "") -> None:
        """Write one .npz, aside and then renamed: a reader finds all of it or nothing."""
        arrays = {
            name: getattr(self, name) for name in ("references", "predictions", "losses", "row_ids")
        }
        if self.probabilities is not None:
            arrays["probabilities"] = self.probabilities
        about = {
            "split": self.split,
            "problem_type": self.problem_type,
            "names": self.names,
            "total": self.total,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        with aside.open("wb") as stream:
            numpy.savez_compressed(
                stream, about=numpy.array(json.dumps({**about, "key": key})), **arrays
            )
        aside.replace(file)

    @classmethod
    def load(cls, file: Path, key: str | None = None) -> "Scored":
        """What `save` wrote. Raises ValueError for another key, or a file that is none of these."""
        try:
            with file.open("rb") as stream, numpy.load(stream, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                if about.pop("key") != key and key is not None:
                    raise ValueError(f"{file} follows from another model, data or options")
                found = {name: arrays[name] for name in arrays.files if name != "about"}
        except (zipfile.BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        return cls(**{"probabilities": None, **about, **found, "names": tuple(about["names"])})


def score(
    run_dir: str | Path,
    split: str,
    task: "Task | None" = None,
    model: "PreTrainedModel | None" = None,
    *,
    at_most: int | None = None,
    batch_size: int | None = None,
    cached: bool = True,
) -> Scored:
    """A split as the kept model of a finished run sees it; in one process.

    `task` and `model` are those of `ftloop.load_run`, where the caller has them. Of a split with more than `at_most`
    rows, so many are chosen at random, by the run's seed: the same ones for runs of the same seed. `batch_size`: left
    out, that of the run's evaluation. `cached` False: computed anew, and kept.

    Raises UserError for a split that the data lacks or that has no labels, for a stream, for a task without labels
    (not a Classification), and when it was started in several processes.
    """
    if at_most is not None and at_most < 1:
        raise UserError(f"at most {at_most} rows: at least 1 is needed")
    run_dir = Path(run_dir)
    config = load_config(run_dir)
    if task is None:
        task = load_task(config)
    rows = source_rows(task, split)
    key = key_of(run_dir, split, rows)
    folder, chosen = run_dir / "outputs", some_rows(len(rows), at_most, config.seed)
    whole, part = folder / f"{split}.npz", folder / f"{split}-{at_most}.npz"
    for file in (whole, part) if cached else ():
        if file.is_file() and (file == whole or chosen is not None):
            try:
                found = Scored.load(file, key)
            except ValueError as error:
                logger.info("outputs: computed anew: %s", error)
                continue
            return found.take(chosen) if file == whole and chosen is not None else found
    if chosen is not None:
        logger.info("outputs: %s: %d of %d rows, chosen at random", split, len(chosen), len(rows))
    found = compute(run_dir, split, task, model, chosen, batch_size)
    try:
        found.save(whole if chosen is None else part, key)
    except OSError as error:  # a folder that is only read: the numbers are there all the same
        logger.warning("outputs: %s cannot be kept: %s", split, error)
    return found


def compute(
    run_dir: Path,
    split: str,
    task: Any,
    model: "PreTrainedModel | None",
    chosen: numpy.ndarray | None,
    batch_size: int | None,
) -> Scored:
    """One exact pass over the rows `chosen` of a split (None: all), as evaluation makes it."""
    from ftloop.evaluation import build_eval_loader, iterate_predictions
    from ftloop.report.subset import Subset
    from ftloop.runs.finished import load_model, prepare_for_inference

    config = load_config(run_dir)
    if model is None:
        model = load_model(task, model_folder(run_dir))
    dataset = loaded(task)[split]
    total = len(dataset)
    if chosen is not None:
        dataset = Subset(dataset, chosen)
    columns: dict[str, numpy.ndarray] = {}
    with prepare_for_inference(config, model) as (accelerator, model):
        if accelerator.num_processes > 1:
            raise UserError(
                "rows are scored in one process: start it without torchrun or accelerate launch."
            )
        loader = build_eval_loader(dataset, task, accelerator, batch_size or config.eval_batch_size)
        for values in iterate_predictions(model, loader, task, accelerator):
            row_ids = values["row_ids"].numpy()
            for name in ("references", "predictions", "probabilities", "losses"):
                if name not in values:
                    continue
                value = values[name]
                value = (value.float() if value.is_floating_point() else value).numpy()
                if name not in columns:
                    columns[name] = numpy.empty((len(dataset), *value.shape[1:]), value.dtype)
                columns[name][row_ids] = value
    kind = {metrics.SINGLE: numpy.int64, metrics.MULTI: bool, metrics.REGRESSION: numpy.float64}
    problem_type = task.labels.problem_type
    return Scored(
        split,
        problem_type,
        tuple(task.labels.names),
        references=columns["references"].astype(kind[problem_type]),
        predictions=columns["predictions"].astype(kind[problem_type]),
        probabilities=columns.get("probabilities"),
        losses=columns["losses"].astype(numpy.float64),
        row_ids=numpy.arange(total) if chosen is None else chosen,
        total=total,
    )


def source_rows(task: Any, split: str) -> Any:
    """The rows of a split as the source has them, in the order of the row ids. Raises UserError."""
    from ftloop.sampler import UNBOUNDED

    if not hasattr(task, "labels") or not hasattr(task, "rows"):
        raise UserError(
            f"{type(task).__name__} is no Classification: its rows have no labels to compare"
        )
    if split not in task.rows:
        known = ", ".join(task.rows)
        lacking = (
            "has no labels, or is not in the data" if split == "test" else "is not in the data"
        )
        raise UserError(
            f"the split {split!r} {lacking}{did_you_mean(split, task.rows)}; the splits are {known}"
        )
    rows = task.rows[split]
    if len(rows) == UNBOUNDED:
        raise UserError(f"the split {split!r} is a stream: it has no end, and its rows no ids")
    return rows


def loaded(task: Any) -> Any:
    """`task.load_datasets()`, once for each task: several passes over its splits prepare, and say what is odd, but once."""
    if "loaded" not in vars(task):
        vars(task)["loaded"] = task.load_datasets()
    return vars(task)["loaded"]


def some_rows(rows: int, at_most: int | None, seed: int) -> numpy.ndarray | None:
    """`at_most` of so many rows, at random by the seed, ascending; None: all of them."""
    if at_most is None or rows <= at_most:
        return None
    return numpy.sort(numpy.random.default_rng([seed, rows]).choice(rows, at_most, replace=False))


def key_of(run_dir: Path, split: str, rows: Any) -> str:
    """A digest of what the outputs of a split follow from: the kept model's files (by size and time, not by content:
    they are hundreds of megabytes), the task's options and the rows."""
    encoded = read_record(run_dir)["config"]
    files = sorted(
        path
        for path in model_folder(run_dir).iterdir()
        if path.suffix in (".safetensors", ".bin", ".json")
    )
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    parts = [
        FORMAT,
        split,
        stats,
        encoded["task"],
        encoded.get("precision"),
        len(rows),
        rows._fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
