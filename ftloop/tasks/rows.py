"""DataTask: read the rows of a task, clean them, and divide them into splits.

A task of this kind names its columns and prepares rows for its model. Everything else about the
data is done here, by the options of `ftloop.data.Data`:

    source          the rows as the source has them, in the shape that the options give them
    rows            without unusable rows and duplicates, divided into splits; all columns
    load_datasets   the model's inputs and the labels of `rows`, as datasets for the loop
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ftloop.data import Data
from ftloop.data.prepared import PreparedDataset
from ftloop.data.shape import code_digest, drop_duplicates, require_columns, shape_rows
from ftloop.data.splits import cut_splits, limit_rows, warn_about_unused_options
from ftloop.errors import UserError
from ftloop.task import Task

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")


class UnusableRows(NamedTuple):
    """Rows that cannot be trained on, for one reason."""

    reason: str  # "missing label"
    rows: set[int]
    option: str  # the field of `Data` that allows to drop them: "drop_empty"


@dataclass(frozen=True)
class DataTask(Task):
    """A task whose rows come from `Data`."""

    data: Data = field(default_factory=Data)

    input_option: ClassVar[str]  # the option that names `input_columns`: --text-columns

    def __post_init__(self) -> None:
        for option in fields(self):  # text_columns="text" in a config file means ("text",)
            value = getattr(self, option.name)
            if str(option.type).startswith("tuple") and isinstance(value, str):
                object.__setattr__(self, option.name, (value,))

    def validate(self) -> None:
        self.data.validate()

    # What a task of this kind adds

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns of the source that the model sees."""
        raise NotImplementedError

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of the source that the model learns to predict, if there are any."""
        return ()

    def prepare(self, rows: "Dataset") -> "Dataset":
        """Return the model's inputs for rows of the source; the log says what was truncated.

        A column "length" holds the cost of each row, in tokens, where rows differ in it. Labels are
        added later, so that `datasets` can cache the result for all options of the labels.
        """
        raise NotImplementedError

    def prepare_block(self, rows: "Dataset") -> Sequence[dict[str, Any]]:
        """Return some rows of a stream as `collate` takes them."""
        return self.build_dataset(self.prepare(rows), self.encode_labels(rows, "train"), "train")

    def encode_labels(self, rows: "Dataset", split: str) -> list[Any] | None:
        """Return the label of each row as numbers, or None for a task without labels."""
        return None

    def build_dataset(
        self, prepared: "Dataset", labels: list[Any] | None, split: str
    ) -> PreparedDataset:
        """Return the dataset of a split from the results of `prepare` and `encode_labels`."""
        if labels is not None:
            prepared = prepared.add_column("labels", labels)
        return PreparedDataset(prepared)

    def example_settings(self) -> dict[str, Any]:
        """Return what decides the examples besides the rows; see `PreparedDataset.fingerprint`.

        A run resumes with the same values only. They are JSON values.
        """
        return {}

    def change_labels(self, data: "DatasetDict") -> "DatasetDict":
        """Return the rows with changed labels, by the options of the task."""
        return data

    def classes_to_stratify(self, train: "Dataset") -> list[Any] | None:
        """Return a value per row whose shares are kept when splits are cut from train."""
        return None

    def has_labels(self, test: "Dataset") -> bool:
        """Return whether a test split has labels. Those of benchmarks on the Hub have none."""
        return set(self.label_columns) <= set(test.column_names)

    def find_unusable_rows(self, rows: "Dataset") -> list[UnusableRows]:
        """Return the rows that cannot be trained on; each row appears for one reason only."""
        empty = {
            row
            for column in self.input_columns
            for row, cell in enumerate(rows[column])
            if cell is None or (isinstance(cell, str) and not cell.strip())
        }
        return [UnusableRows(f"empty {' or '.join(self.input_columns)}", empty, "drop_empty")]

    def report_on_data(self, labels: dict[str, Any]) -> None:
        """Log what `labels`, the result of `encode_labels` for each split, and `rows` look like."""

    # Rows

    @cached_property
    def source(self) -> "DatasetDict":
        """The rows of the source, by split, with columns selected, mapped, joined and filtered."""
        data = shape_rows(self.data.read(), self.data)
        require_columns(data, self.input_columns, self.input_option)
        return data

    @cached_property
    def rows(self) -> "DatasetDict":
        """The rows to train on and to evaluate, by split, in the order of the row ids.

        They have all columns of the source. A streamed train split is a `Stream`.
        """
        data = self.source
        trained = {split: rows for split, rows in data.items() if split != "test"}
        require_columns(trained, self.label_columns, "--label-column")
        if "test" in data and not self.has_labels(data["test"]):
            count = len(data["test"])
            logger.info("data: test has no labels and is not evaluated (%d rows)", count)
            data = type(data)({split: rows for split, rows in data.items() if split != "test"})
        if self.data.streaming:
            return self.stream_rows(data)
        data = type(data)({split: self.drop_unusable(split, rows) for split, rows in data.items()})
        data = self.change_labels(data)
        if self.data.drop_duplicates:
            data = drop_duplicates(data, self.input_columns, self.label_columns)
        data = cut_splits(data, self.data, self.classes_to_stratify(data["train"]))
        data = limit_rows(data, self.data)
        if "validation" not in data:
            logger.info(
                "data: there is no validation split, so training is not evaluated and the last "
                "weights are the result"
            )
        return data

    def stream_rows(self, data: Any) -> dict[str, Any]:
        """Return train as a stream; a split that the source lacks is the first rows of train."""
        from datasets.fingerprint import Hasher

        from ftloop.data.stream import Stream, describe_shards, file_stamps

        data = dict(data)
        warn_about_unused_options(data, self.data)
        columns = (self.input_columns, self.label_columns, getattr(self, "label_separator", None))
        code = (code_digest(self.data.map), code_digest(self.data.filter))
        stream = Stream(
            source=data.pop("train"),
            buffer_size=self.data.shuffle_buffer,
            drop_unusable=partial(self.drop_unusable, "train"),
            prepare=self.prepare_block,
            cache_key=Hasher.hash((self.data, file_stamps(self.data), code, columns)),
            shards=describe_shards(self.data),
        )
        splits = {split: self.drop_unusable(split, rows) for split, rows in data.items()}
        for split, count in (("test", self.data.test), ("validation", self.data.validation)):
            if count and split not in splits:
                splits[split] = stream.hold_out(count, split)
        return {**splits, "train": stream}

    def drop_unusable(
        self, split: str, rows: "Dataset", shard: int | None = None, first_row: int = 0
    ) -> "Dataset":
        """Drop the unusable rows that options allow to drop. Raises UserError for other ones.

        `shard` and `first_row` are given for a part of a stream, which logs itself what is dropped.
        """
        unusable = [group for group in self.find_unusable_rows(rows) if group.rows]
        if not unusable:
            return rows
        refused = [group for group in unusable if not getattr(self.data, group.option)]
        if refused:
            options = sorted({f"--data.{group.option.replace('_', '-')}" for group in refused})
            place = "" if shard is None else f" in shard {shard}"
            raise UserError(
                f"--data: the split {split!r} has {describe_unusable(refused, first_row)}, counted "
                f"from 0{place}. Correct the file, or drop these rows with {' '.join(options)}."
            )
        dropped = {row for group in unusable for row in group.rows}
        if shard is None:
            logger.warning("data: %s: dropped %s", split, describe_unusable(unusable, first_row))
            if len(dropped) == len(rows):
                raise UserError(f"--data: all rows of the split {split!r} are dropped.")
        return rows.select([row for row in range(len(rows)) if row not in dropped])

    # Datasets

    def load_datasets(self) -> dict[str, Any]:
        splits = dict(self.rows)
        stream = splits.pop("train") if self.data.streaming else None
        labelled = dict(splits)
        if stream is not None:  # the log describes the labels of its first rows
            labelled["train"] = stream.head(self.data.shuffle_buffer)
        labels = {split: self.encode_labels(rows, split) for split, rows in labelled.items()}
        self.report_on_data(labels)
        datasets = {
            split: self.build_dataset(self.prepare(rows), labels[split], split)
            for split, rows in splits.items()
        }
        datasets = datasets if stream is None else {**datasets, "train": stream}
        for dataset in datasets.values():
            dataset.settings = json.dumps(self.example_settings())
        return datasets


def describe_unusable(unusable: list[UnusableRows], first_row: int) -> str:
    """Return "2 missing label (rows 3, 7) and 1 empty text (rows 9)"."""
    parts = []
    for reason, rows, _ in unusable:
        numbers = [str(first_row + row) for row in sorted(rows)[:10]]
        more = ", ..." if len(rows) > 10 else ""
        parts.append(f"{len(rows)} {reason} (rows {', '.join(numbers)}{more})")
    return " and ".join(parts)
