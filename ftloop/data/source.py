"""Where rows come from, as options: Data. Reading is in formats.py, shaping in shape.py, cutting in splits.py.

A source of another kind is a subclass that overrides `read`: see `ftloop/samples.py` for one.
"""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ftloop.data.formats import READERS, local_files, read_files
from ftloop.data.splits import SPLIT_NAMES, SPLITS, rename_splits
from ftloop.errors import UserError, nearest, root_cause
from ftloop.options import OptionalFunction, Pairs, no_pairs

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class Data:
    """Where the rows come from, what shape they are brought into, and how they are divided into splits."""

    path: str | None = None  # a Hub id (nyu-mll/glue), a folder with train.*, validation.*, test.*, or one file
    name: str | None = None  # configuration of a Hub data set (mrpc)
    revision: str | None = None  # commit, tag or branch of a Hub data set
    files: Pairs = no_pairs()  # split and file in turn: train a.csv validation b.csv test c.csv
    format: str | None = None  # how files are read (see docs/data.md); left out: by the ending
    field: tuple[str, ...] = ()  # the key of nested JSON or of a pickled dictionary: data.rows; several: side by side
    query: str | None = None  # of an SQLite file: SELECT ...
    options: Pairs = no_pairs()  # for the reader: sep ; quoting 3 encoding latin-1 names text,label
    trust_pickle: bool = False  # read pickled files, which run code of whoever wrote them
    sources: Annotated[tuple[Any, ...], tyro.conf.Suppress] = ()  # several Data, one after the other
    probabilities: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()  # of drawing from each of `sources`
    splits: Pairs = no_pairs()  # split and its name in the source: validation validation_matched
    streaming: bool = False  # read train while training, for sources larger than memory or disk
    shuffle_buffer: int = 10_000  # rows of a stream that are held in memory and shuffled together

    columns: Pairs = no_pairs()  # the columns to keep, our name and the source's: text review
    map: OptionalFunction = None  # f(row) -> the row changed, a dictionary; before join and filter
    join: Pairs = no_pairs()  # several text columns as one: text title,body; text * joins them all
    filter: OptionalFunction = None  # f(row) -> whether it stays

    validation: float = 0.1  # rows (from 1) or share (below 1) cut from train if there is no such split; 0: none
    test: float = 0.0  # likewise for test
    stratify: bool = True  # keep the shares of the classes when cutting (single-label tasks)
    split_group: str | None = None  # a column: rows with the same value (a patient) are cut into the same split
    split_hash: tuple[str, ...] = ()  # columns whose hash decides on the split: it stays so when the data grows
    split_seed: int = 42  # of the cut; another seed cuts other rows
    limit: int | None = None  # rows of each split, drawn at random; for a quick try
    drop_empty: bool = False  # drop rows with empty texts or missing labels, and say how many
    drop_duplicates: bool = False  # drop rows whose input occurred before, or is in validation or test
    drop_unreadable: bool = False  # drop images that cannot be read, and name them

    def check(self) -> None:
        """Raise UserError for options that cannot work, before anything is read."""
        for name, value in (("validation", self.validation), ("test", self.test)):
            if not math.isfinite(value) or value < 0 or (value >= 1 and value != int(value)):
                raise UserError(f"--task.data.{name} {value}: a share below 1, or whole rows; 0 cuts nothing")
        if self.format is not None and self.format not in READERS:
            raise UserError(f"--task.data.format {self.format!r} is none of {', '.join(READERS)}")
        for name in ("limit", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--task.data.{name.replace('_', '-')} {value}: at least 1 row is needed")
        known = (*SPLITS, *SPLIT_NAMES)
        for split in self.files:
            if split not in known and not self.splits:
                raise UserError(f"--task.data.files: {split!r} is none of {', '.join(SPLITS)}{nearest(split, known)}")

    def read(self) -> "DatasetDict":
        """The rows as the source has them, by split. Raises UserError if they cannot be read."""
        if bool(self.path) == bool(self.files):
            raise UserError("give the data by --task.data.path or by --task.data.files, one of the two")
        files = self.files or local_files(self.path)
        data = read_files(files, self.format, self.options) if files else self._read_hub()
        found = ", ".join(data)
        data = rename_splits(data, self.splits)
        if "train" not in data:
            raise UserError(
                f"--task.data: there is no split 'train' (--task.data.splits may name it); the source has {found}"
            )
        for split, rows in data.items():
            if len(rows) == 0:
                raise UserError(f"--task.data: the split {split!r} is empty")
        return data

    def _read_hub(self) -> "DatasetDict":
        from datasets import DatasetDict, load_dataset

        try:
            data = load_dataset(self.path, self.name, revision=self.revision, **self.options)
        except Exception as error:  # the Hub's client raises dozens of kinds, some bare
            raise UserError(
                f"--task.data.path {self.path!r} is no file or folder here, and as a data set of the Hub "
                f"it could not be read: {root_cause(error)}"
            ) from error
        if not isinstance(data, DatasetDict):
            raise UserError(f"--task.data.options {self.options}: all splits are needed, with rows that can be counted")
        return data
