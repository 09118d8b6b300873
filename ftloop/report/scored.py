"""Score a split with the model of a finished run, row by row: what reports and comparisons show.

The pass over the rows is that of evaluation, so the scores are those that training printed. The
outputs are kept in RUN/outputs/SPLIT.npz with a digest of all that they depend on, and are read
from there the next time.
"""

import hashlib
import json
import logging
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ftloop.config import read_record
from ftloop.data.images import list_file_stamps
from ftloop.errors import UserError, did_you_mean
from ftloop.files import refuse_links, replace_file
from ftloop.report.subset import Subset, sample_rows
from ftloop.runs.finished import load_model, load_task, model_folder, prepare_for_inference
from ftloop.runs.record import load_config
from ftloop.tasks import metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("ftloop")

# What reading a file of another kind or shape raises
DAMAGED = (zipfile.BadZipFile, EOFError, KeyError, TypeError, AttributeError, RecursionError)

FORMAT = 1  # of the stored files; it is part of their key
ROW_ARRAYS = ("references", "predictions", "losses", "row_ids")
LABEL_TYPES = {metrics.SINGLE: numpy.int64, metrics.MULTI: bool, metrics.REGRESSION: numpy.float64}


@dataclass(frozen=True)
class ScoredSplit:
    """Rows of a split with the outputs of a model, in the order of their ids.

    An index into the arrays is called a place; `row_ids` has the ids of the rows in the split.
    """

    split: str
    problem_type: str  # metrics.SINGLE, MULTI or REGRESSION
    names: tuple[str, ...]  # of the labels by id; () for regression
    references: numpy.ndarray  # int64 [rows], bool [rows, labels] or float64 [rows]
    predictions: numpy.ndarray  # like the references
    probabilities: numpy.ndarray | None  # float32 [rows, labels]; None if the task returns none
    losses: numpy.ndarray  # float64 [rows]
    row_ids: numpy.ndarray = None  # type: ignore[assignment]  # int64 [rows]; default: 0, 1, 2, ...
    total: int = 0  # rows of the whole split, if only some were scored; default: all were

    def __post_init__(self) -> None:
        if self.row_ids is None:
            object.__setattr__(self, "row_ids", numpy.arange(self.rows))
        if not self.total:
            object.__setattr__(self, "total", self.rows)

    @property
    def rows(self) -> int:
        """The number of rows that were scored."""
        return len(self.references)

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == metrics.MULTI

    @property
    def is_regression(self) -> bool:
        return self.problem_type == metrics.REGRESSION

    @property
    def wrong(self) -> numpy.ndarray:
        """bool [rows]: at least one predicted label differs. It says little about regression."""
        is_different = self.predictions != self.references
        return is_different.any(axis=1) if self.is_multi_label else is_different

    def has_label(self, label: int) -> numpy.ndarray:
        """Return which rows truly have a class or label: bool [rows]."""
        return self.references[:, label] if self.is_multi_label else self.references == label

    def take(self, places: numpy.ndarray) -> "ScoredSplit":
        """Return some of the rows, by their places and in this order."""
        chosen = {name: getattr(self, name)[places] for name in ROW_ARRAYS}
        probabilities = None if self.probabilities is None else self.probabilities[places]
        return replace(self, **chosen, probabilities=probabilities)

    def save(self, file: Path, key: str = "") -> None:
        """Write the rows to an .npz file atomically. `key` is a digest of what they depend on."""
        arrays = {name: getattr(self, name) for name in ROW_ARRAYS}
        if self.probabilities is not None:
            arrays["probabilities"] = self.probabilities
        header = {
            "split": self.split,
            "problem_type": self.problem_type,
            "names": self.names,
            "total": self.total,
            "key": key,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(file) as stream:
            numpy.savez_compressed(stream, about=numpy.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, file: Path, key: str | None = None) -> "ScoredSplit":
        """Read what `save` wrote. Raises ValueError for an unreadable file or another key."""
        try:
            with file.open("rb") as stream, numpy.load(stream, allow_pickle=False) as stored:
                header = json.loads(str(stored["about"]))
                stored_key = header.pop("key")
                if key is not None and stored_key != key:
                    raise ValueError(f"{file} belongs to another model, other data or options")
                arrays = {name: stored[name] for name in stored.files if name != "about"}
            header["names"] = tuple(header["names"])
            return cls(**{"probabilities": None, **header, **arrays})
        except DAMAGED as error:
            raise ValueError(f"{file} cannot be read: {error}") from error


def score_split(
    run_dir: str | Path,
    split: str,
    task: Any = None,
    model: "PreTrainedModel | None" = None,
    *,
    max_rows: int | None = None,
    use_stored: bool = True,
) -> ScoredSplit:
    """Return the rows of a split with the outputs of a finished run, computed in one process.

    `task` and `model` are those of `runs.finished.load_run`, if the caller has them. Of a split
    with more than `max_rows` rows, so many are chosen at random by the run's seed. Without
    `use_stored`, outputs are computed again and stored.

    Raises UserError for a split that the data lacks or that has no labels, for a stream, for a task
    that is no Classification, and in several processes.
    """
    if max_rows is not None and max_rows < 1:
        raise UserError(f"the number of rows to score must be at least 1, but is {max_rows}.")
    run_dir = Path(run_dir)
    config = load_config(run_dir)
    if task is None:
        task = load_task(config)
    rows = find_rows(task, split)
    key = storage_key(run_dir, split, rows)
    row_ids = sample_rows(len(rows), max_rows, config.seed)
    is_sample = len(row_ids) < len(rows)

    # Stored outputs: those of the whole split, or those of the same sample
    refuse_links(run_dir)
    folder = run_dir / "outputs"
    split_file, sample_file = folder / f"{split}.npz", folder / f"{split}-{max_rows}.npz"
    if use_stored:
        stored = read_stored(split_file, key)
        if stored is not None:
            return stored.take(row_ids) if is_sample else stored
        stored = read_stored(sample_file, key) if is_sample else None
        if stored is not None:
            return stored

    if is_sample:
        logger.info("outputs: %s: %d of %d rows, chosen at random", split, len(row_ids), len(rows))
    scored = compute_outputs(run_dir, split, task, model, row_ids)
    try:
        scored.save(sample_file if is_sample else split_file, key)
    except OSError as error:  # the report of a run on a read-only disk is still possible
        logger.warning("outputs: those of %s cannot be stored: %s", split, error)
    return scored


def read_stored(file: Path, key: str) -> ScoredSplit | None:
    """Read stored outputs; None if there are none or they depend on something that changed."""
    if not file.is_file():
        return None
    try:
        return ScoredSplit.load(file, key)
    except ValueError as error:
        logger.info("outputs: computed again: %s", error)
        return None


def compute_outputs(
    run_dir: Path, split: str, task: Any, model: "PreTrainedModel | None", row_ids: numpy.ndarray
) -> ScoredSplit:
    """Compute the outputs of some rows of a split, as evaluation does."""
    from ftloop.evaluation import build_eval_loader, iterate_predictions

    config = load_config(run_dir)
    if model is None:
        model = load_model(task, model_folder(run_dir))
    dataset = load_datasets_once(task)[split]
    total = len(dataset)
    if len(row_ids) < total:
        dataset = Subset(dataset, row_ids)

    columns: dict[str, numpy.ndarray] = {}
    with prepare_for_inference(config, model) as (accelerator, model):
        if accelerator.num_processes > 1:
            raise UserError(
                "rows are scored in one process: start it without torchrun or accelerate launch."
            )
        loader = build_eval_loader(dataset, task, accelerator, config.eval_batch_size)
        for values in iterate_predictions(model, loader, task, accelerator):
            places = values["row_ids"].numpy()
            for name in ("references", "predictions", "probabilities", "losses"):
                if name not in values:
                    continue
                value = values[name]
                if value.is_floating_point():  # NumPy has no bf16
                    value = value.float()
                if name not in columns:
                    shape = (len(dataset), *value.shape[1:])
                    columns[name] = numpy.empty(shape, value.numpy().dtype)
                columns[name][places] = value.numpy()

    label_type = LABEL_TYPES[task.labels.problem_type]
    return ScoredSplit(
        split=split,
        problem_type=task.labels.problem_type,
        names=tuple(task.labels.names),
        references=columns["references"].astype(label_type),
        predictions=columns["predictions"].astype(label_type),
        probabilities=columns.get("probabilities"),
        losses=columns["losses"].astype(numpy.float64),
        row_ids=row_ids,
        total=total,
    )


def find_rows(task: Any, split: str) -> Any:
    """Return the rows of a split with all columns, in the order of the row ids.

    Raises UserError for a task that is no Classification, an unknown split and a stream.
    """
    from ftloop.sampler import UNBOUNDED

    if not hasattr(task, "labels") or not hasattr(task, "rows"):
        raise UserError(
            f"{type(task).__name__} is no Classification: its rows have no labels to compare with."
        )
    if split not in task.rows:
        problem = "is not in the data"
        if split == "test":
            problem = "has no labels or is not in the data"
        raise UserError(
            f"the split {split!r} {problem}{did_you_mean(split, task.rows)}. The splits are "
            f"{', '.join(task.rows)}."
        )
    rows = task.rows[split]
    if len(rows) == UNBOUNDED:
        raise UserError(f"the split {split!r} is a stream: it has no end, and its rows no ids.")
    return rows


def load_datasets_once(task: Any) -> Any:
    """Return `task.load_datasets()`; later calls for the same task return the same datasets.

    Several passes over the splits of a task then prepare the rows, and log about them, only once.
    """
    if "loaded_datasets" not in vars(task):
        vars(task)["loaded_datasets"] = task.load_datasets()
    return vars(task)["loaded_datasets"]


def storage_key(run_dir: Path, split: str, rows: Any) -> str:
    """Return a digest of what the outputs of a split depend on: model, options of the task, rows.

    The files of the model and of images are compared by size and time, because they are large.
    """
    from datasets import Image

    options = read_record(run_dir)["config"]
    model_files = sorted(
        file
        for file in model_folder(run_dir).iterdir()
        if file.suffix in (".safetensors", ".bin", ".json")
    )
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in model_files]
    columns = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    parts = [
        FORMAT,
        split,
        stamps,
        [list_file_stamps(rows, column) for column in columns],
        options["task"],
        options.get("precision"),
        len(rows),
        rows._fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
