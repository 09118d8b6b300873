"""Predictors: what prediction of new rows needs besides a task.

predictor = build_predictor(task)          # the task of a finished run
rows = predictor.shape_rows(rows, folder)  # as the source of training was shaped
dataset = predictor.prepare(rows)          # what the task collates
predictor.format_predictions(values)       # one dictionary per row, from task.predict
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.data import Data
from ftloop.data.image_folders import list_images
from ftloop.data.images import (
    find_unreadable_images,
    format_errors,
    keep_images_encoded,
    list_relative_paths,
    resolve_relative_paths,
)
from ftloop.data.prepared import PreparedDataset
from ftloop.data.shape import TEXT_TYPES, parse_join, require_columns, shape_rows
from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("ftloop")


def build_predictor(task: Any) -> "Predictor":
    """Return the predictor of a task."""
    return getattr(task, "predictor_class", Predictor)(task)


class Predictor:
    """Makes new rows what the task collates, and what it predicts one dictionary per row.

    The task has `data`, `input_columns`, `prepare` and `build_dataset`, as a `DataTask` has them.
    """

    def __init__(self, task: Any):
        self.task = task

    def expand_inputs(self, inputs: Sequence[str]) -> Sequence[str]:
        """Return what the inputs on a command line stand for: themselves, or files of folders."""
        return inputs

    def shape_rows(self, rows: "Dataset", folder: Path) -> "Dataset":
        """Bring the rows of a file into the shape that those of training had.

        Columns are renamed, mapped and joined, but no row is filtered out. Columns that have our
        names already keep them, and a join without its parts is taken as done. With several
        sources, the options are those of the source that fits the columns; if none or several fit,
        only the options of the whole apply. Relative paths start at `folder`.
        """
        for source in (*self.fitting_sources(rows), self.task.data):
            rows = self.shape_by_source(rows, source)
        return rows

    def shape_by_source(self, rows: "Dataset", source: Data) -> "Dataset":
        """Rename, map and join new rows by the options of one source."""
        columns = {}
        for new, name in source.columns.items():
            if str(name) in rows.column_names:
                columns[new] = str(name)
            elif new in rows.column_names:
                columns[new] = new
        rows = shape_rows({"train": rows}, Data(columns=columns))["train"]
        missing = sorted(set(getattr(self.task, "label_column", ())) - set(rows.column_names))
        try:
            rows = shape_rows({"train": rows}, Data(map=source.map))["train"]
        except UserError as error:
            if not missing:
                raise
            raise UserError(
                f"{error} The file has no column {', '.join(missing)}; the function must work "
                "without labels."
            ) from error
        joins = {
            name: parts
            for name, parts in source.join.items()
            if name not in rows.column_names or has_join_parts(rows, name, parse_join(parts))
        }
        options = replace(source, columns={}, map=None, join=joins, filter=None)
        return shape_rows({"train": rows}, options)["train"]

    def fitting_sources(self, rows: "Dataset") -> list[Data]:
        """Return the only source whose options fit the columns of new rows, in a list, or []."""
        fitting: list[Data] = []
        for source in self.task.data.sources:
            options = Data(columns=source.columns, map=source.map, join=source.join)
            parts = {
                str(source.columns.get(part, part))
                for name in self.task.input_columns
                for part in parse_join(source.join.get(name, name))
                if part != "*"
            }
            if parts <= set(rows.column_names) and options not in fitting:
                fitting.append(options)
        if self.task.data.sources and len(fitting) != 1:
            logger.info(
                "data: %d of the sources of the run fit the columns of the new rows, so they are "
                "used as they are",
                len(fitting),
            )
        return fitting if len(fitting) == 1 else []

    def prepare(self, rows: "Dataset", first_row: int = 0) -> PreparedDataset:
        """Return the dataset of a block of new rows, which need no labels.

        `first_row` is the number of the first row in its file. Raises UserError for missing cells.
        """
        self.require_inputs(rows, first_row)
        return self.task.build_dataset(self.task.prepare(rows), None, "new")

    def require_inputs(self, rows: "Dataset", first_row: int) -> None:
        """Raise UserError for input columns or cells that are missing."""
        require_columns({"new": rows}, self.task.input_columns, self.task.input_option)
        for column in self.task.input_columns:
            missing = [row for row, cell in enumerate(rows[column], first_row) if cell is None]
            if missing:
                raise UserError(
                    f"{len(missing)} row(s) have no {column!r}, counted from 0: "
                    f"{', '.join(map(str, missing[:10]))}."
                )

    def format_predictions(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a dictionary per row from the tensors of `task.predict`: their values by name."""
        names = list(values)
        columns = (values[name].tolist() for name in names)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def log_summary(self) -> None:
        """Log what was counted in all blocks. Called after the last block."""


def has_join_parts(rows: "Dataset", name: str, parts: list[str]) -> bool:
    """Return whether rows have columns, other than `name`, that a join would put into `name`."""
    texts = set()
    if "*" in parts:
        features = rows.features.items()
        texts = {name for name, kind in features if getattr(kind, "dtype", None) in TEXT_TYPES}
    return bool((texts | (set(parts) & set(rows.column_names))) - {name})


class ClassificationPredictor(Predictor):
    """Predicts labels of any kind, with their probabilities."""

    def format_predictions(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Return one dictionary per row, by the kind of problem.

        One class: {"label", "probability", "probabilities"}. Any number of labels: {"labels",
        "probabilities"}. Regression: {"value"}.
        """
        labels = self.task.labels
        if labels.problem_type == "regression":
            return [{"value": value} for value in values["predictions"].tolist()]
        rows = []
        predictions, probabilities = values["predictions"], values["probabilities"]
        for predicted, scores in zip(predictions.tolist(), probabilities.tolist(), strict=True):
            if labels.is_multi_label:
                present = [name for name, bit in zip(labels.names, predicted, strict=True) if bit]
                row = {"labels": present}
            else:
                row = {"label": labels.names[predicted], "probability": scores[predicted]}
            row["probabilities"] = dict(zip(labels.names, scores, strict=True))
            rows.append(row)
        return rows


class TextPredictor(Predictor):
    """Counts what is truncated in all blocks, and logs it once."""

    def __init__(self, task: Any):
        super().__init__(task)
        self.counts: Any = None

    def prepare(self, rows: "Dataset", first_row: int = 0) -> PreparedDataset:
        self.require_inputs(rows, first_row)
        prepared, counts = self.task.tokenize(rows)
        self.counts = counts if self.counts is None else self.counts + counts
        return self.task.build_dataset(prepared, None, "new")

    def log_summary(self) -> None:
        if self.counts is not None:
            self.task.log_truncation(self.counts)


class TextClassificationPredictor(TextPredictor, ClassificationPredictor):
    """Predicts labels of texts."""


class ImagePredictor(ClassificationPredictor):
    """Predicts labels of images; a folder stands for the images in it."""

    def expand_inputs(self, inputs: Sequence[str]) -> Sequence[str]:
        """Return files: a folder stands for the images in it and in its class folders, sorted."""
        files: list[str] = []
        for name in inputs:
            files += list_images(name) if Path(name).is_dir() else [name]
        return files

    def shape_rows(self, rows: "Dataset", folder: Path) -> "Dataset":
        """Shape new rows as `Predictor.shape_rows` does, and resolve the paths of their images.

        Relative paths are relative to `folder` or, if the task has an `image_folder` and none of
        them exists in `folder`, to `image_folder`.
        """
        rows, column = super().shape_rows(rows, folder), self.task.image_column
        if column not in rows.column_names:
            return rows
        rows = keep_images_encoded(rows, column)
        paths = list_relative_paths(rows, column)
        if not paths:
            return rows
        exist_here = any((folder / path).is_file() for path in paths)
        if self.task.image_folder is not None and not exist_here:
            folder = Path(self.task.image_folder).expanduser()
        return resolve_relative_paths(rows, column, folder)

    def prepare(self, rows: "Dataset", first_row: int = 0) -> PreparedDataset:
        column = self.task.image_column
        if column in rows.column_names:
            rows = keep_images_encoded(rows, column)
        self.require_inputs(rows, first_row)
        errors = find_unreadable_images(rows, column)
        if errors:
            raise UserError(
                f"{len(errors)} unreadable image(s), the first one in row "
                f"{first_row + min(errors)} (from 0): {format_errors(errors)}."
            )
        return self.task.build_dataset(self.task.prepare(rows), None, "new")


class TokenPredictor(TextPredictor):
    """Predicts a tag for each word; a text is split into words at spaces."""

    def prepare(self, rows: "Dataset", first_row: int = 0) -> PreparedDataset:
        self.require_inputs(rows, first_row)
        (column,) = self.task.text_columns
        if getattr(rows.features[column], "dtype", None) in TEXT_TYPES:
            rows = rows.map(
                split_into_words, batched=True, input_columns=column, fn_kwargs={"column": column}
            )
        return super().prepare(rows, first_row)

    def format_predictions(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Return {"tags", "probabilities"} with one entry per word. Truncated words have none."""
        rows = []
        predictions, probabilities = values["predictions"], values["probabilities"]
        for predicted, scores in zip(predictions.tolist(), probabilities.tolist(), strict=True):
            words = [place for place, tag in enumerate(predicted) if tag >= 0]
            tags = [self.task.tag_names[predicted[place]] for place in words]
            rows.append({"tags": tags, "probabilities": [scores[place] for place in words]})
        return rows


def split_into_words(texts: list[str], column: str) -> dict[str, list[list[str]]]:
    return {column: [text.split() for text in texts]}
