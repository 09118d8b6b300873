"""Where rows come from, as options: Data. Reading is in formats.py, shaping in shape.py, cutting in splits.py.

A source of another kind is a subclass that overrides `read`: see `ftloop/data/samples.py` for one.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ftloop.data.formats import READERS, check_options, format_of, local_files, read_files
from ftloop.data.shape import shape
from ftloop.data.splits import SPLIT_NAMES, SPLITS, rename_splits
from ftloop.errors import UserError, nearest, root_cause

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class Data:
    """Where the rows come from, what shape they are brought into, and how they are divided into splits."""

    path: str | None = None  # a Hub id (nyu-mll/glue), a folder with train.*, validation.*, test.*, or one file
    name: str | None = None  # configuration of a Hub data set (mrpc)
    revision: str | None = None  # commit, tag or branch of a Hub data set
    files: dict[str, Any] = dataclasses.field(default_factory=dict)  # split and file in turn: train a.csv validation b.csv test c.csv
    format: str | None = None  # how files are read (see docs/data.md); left out: by the ending
    field: tuple[str, ...] = ()  # the key of nested JSON or of a pickled dictionary: data.rows; several: side by side
    query: str | None = None  # of an SQLite file: SELECT ...
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # for the reader: sep ; quoting 3 encoding latin-1 names text,label
    trust_pickle: bool = False  # read pickled files, which run code of whoever wrote them
    sources: Annotated[tuple[Any, ...], tyro.conf.Suppress] = ()  # several Data, one after the other
    probabilities: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()  # of drawing from each of `sources`
    splits: dict[str, Any] = dataclasses.field(default_factory=dict)  # split and its name in the source: validation validation_matched
    streaming: bool = False  # read train while training, for sources larger than memory or disk
    shuffle_buffer: int = 10_000  # rows of a stream that are held in memory and shuffled together

    columns: dict[str, Any] = dataclasses.field(default_factory=dict)  # the columns to keep, our name and the source's: text review
    map: Callable[..., Any] | None = None  # f(row) -> a dictionary of columns to change or add; before join and filter
    join: dict[str, Any] = dataclasses.field(default_factory=dict)  # several as one: text title,body; text * joins all columns of texts, label names too
    filter: Callable[..., Any] | None = None  # f(row) -> whether it stays

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

    def __post_init__(self) -> None:
        for name in ("field", "split_hash"):  # field="rows" in a config file means ("rows",)
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))

    def check(self) -> None:
        """Raise UserError for options that cannot work, before anything is read."""
        for name, value in (("validation", self.validation), ("test", self.test)):
            if not math.isfinite(value) or value < 0 or (value >= 1 and value != int(value)):
                raise UserError(f"--task.data.{name} {value}: a share below 1, or whole rows; 0 cuts nothing")
        if self.format is not None and self.format not in READERS:
            raise UserError(
                f"--task.data.format {self.format!r} is none of {', '.join(READERS)}{nearest(self.format, READERS)}"
            )
        for name in ("limit", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--task.data.{name.replace('_', '-')} {value}: at least 1 row is needed")
        if self.split_group and self.split_hash:
            raise UserError("--task.data.split-group and --task.data.split-hash: one of the two decides on the split")
        if self.split_hash and max(self.validation, self.test) >= 1:
            raise UserError("--task.data.split-hash: --task.data.validation and --task.data.test are shares, below 1")
        known = (*SPLITS, *SPLIT_NAMES)
        for split in self.files:
            if split not in known and not self.splits:
                raise UserError(f"--task.data.files: {split!r} is none of {', '.join(SPLITS)}{nearest(split, known)}")
        named = (
            name for name in (self.path, *self.files.values()) if isinstance(name, str) and not Path(name).is_dir()
        )
        kinds = {self.format or format_of(name) for name in named}
        if kinds and kinds <= set(READERS):  # else reading tells
            check_options(kinds, **self._for_readers())
        for name in ("split_group", "split_hash", "drop_duplicates") if self.streaming else ():
            if getattr(self, name):
                raise UserError(f"--task.data.streaming: --task.data.{name.replace('_', '-')} needs all rows at once")
        if self.streaming and self.limit is not None:
            raise UserError(f"--task.data.limit {self.limit}: a stream has no limit of rows; --max-steps ends it")
        if not self.streaming and self.shuffle_buffer != type(self).shuffle_buffer:
            raise UserError(f"--task.data.shuffle-buffer {self.shuffle_buffer}: it is for --task.data.streaming")
        self._check_sources()

    @classmethod
    def of(cls, rows: Any, **options: Any) -> "Data":
        """The options for rows that are in memory: a Dataset, a DataFrame, or a dictionary of these by split.

        They are written once into the cache of `datasets` under a name made of their content, so that a run's record
        can name them. Whoever empties that cache can no longer evaluate the run.
        """
        from ftloop.data.tables import rows_of, stored

        splits = rows if isinstance(rows, dict) else {"train": rows}
        return cls(path=str(stored({split: rows_of(part, split) for split, part in splits.items()})), **options)

    def read(self) -> "DatasetDict":
        """The rows as the source has them, by split; streaming, train is an IterableDataset, and the others are whole.

        Raises UserError if they cannot be read.
        """
        if self.sources:
            return self._read_sources()
        if bool(self.path) == bool(self.files):
            raise UserError("give the data by --task.data.path or by --task.data.files, one of the two")
        # A folder of which a configuration is named is a copy of a data set of the Hub, and is read as such.
        copy = self.path and self.name and Path(self.path).expanduser().is_dir()
        files = {} if copy else self.files or local_files(self.path)
        if files and (self.name or self.revision):
            raise UserError("--task.data.name and --task.data.revision have no effect on files: they are for the Hub")
        data = self._read_local(files) if files else self._read_hub()
        found = ", ".join(data)
        data = rename_splits(data, self.splits)
        if "train" not in data:
            raise UserError(
                f"--task.data: there is no split 'train' (--task.data.splits may name it); the source has {found}"
            )
        for split in [split for split in data if self.streaming and split != "train"]:
            data[split] = _whole(data[split])
        for split, rows in data.items():
            if not (self.streaming and split == "train") and len(rows) == 0:
                raise UserError(f"--task.data: the split {split!r} is empty")
        return data

    def _for_readers(self) -> dict[str, Any]:
        """The options that decide on the reading of files, as `read_files` takes them."""
        return {name: getattr(self, name) for name in ("options", "field", "query", "trust_pickle")}

    def _read_local(self, files: dict[str, Any]) -> dict[str, Any]:
        train = self.splits.get("train", "train")
        if not self.streaming or train not in files:
            return read_files(files, self.format, **self._for_readers())
        others = {split: names for split, names in files.items() if split != train}
        streamed = read_files({train: files[train]}, self.format, **self._for_readers(), streaming=True)
        return {**streamed, **read_files(others, self.format, **self._for_readers())}

    def _read_hub(self) -> "DatasetDict":
        from datasets import DatasetDict, IterableDatasetDict, load_dataset

        check_options({"a data set of the Hub"}, **self._for_readers())
        streaming = {"streaming": True} if self.streaming else {}
        try:
            data = load_dataset(self.path, self.name, revision=self.revision, **streaming, **self.options)
        except Exception as error:  # the Hub's client raises dozens of kinds, some bare
            raise UserError(
                f"--task.data.path {self.path!r} is no file or folder here, and as a data set of the Hub "
                f"it could not be read: {root_cause(error)}"
            ) from error
        if not isinstance(data, DatasetDict | IterableDatasetDict):
            raise UserError(f"--task.data.options {self.options}: all splits are needed, with rows that can be counted")
        return data

    def _check_sources(self) -> None:
        """Raise UserError for options of `sources` that contradict each other or have no effect."""
        weights = self.probabilities
        if weights and (len(weights) != len(self.sources) or min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6):
            raise UserError(f"data: probabilities {weights}: one above 0 for each of `sources`, 1 in sum")
        if self.sources and (self.path or self.files or self.streaming):
            raise UserError("data: with `sources`, path and files are theirs, and streaming is for one source")
        defaults = {field.name: field.default for field in fields(Data)}
        names = list(defaults)
        for number, source in enumerate(self.sources):
            for name in ("streaming", *names[names.index("validation") :]):
                if getattr(source, name) != defaults[name]:
                    raise UserError(f"data: source {number}: {name} has no effect there; give it beside `sources`")
            source.check()

    def _read_sources(self) -> "DatasetDict":
        """The sources, each shaped by its own options, one after the other.

        With `probabilities`, each next row of train is drawn from one of them until one has no more: the sources are
        then seen in these shares, no row twice, and how many rows of the others are left out is said.
        """
        from datasets import DatasetDict, concatenate_datasets, interleave_datasets

        parts, data = [shape(source.read(), source) for source in self.sources], {}
        for split in SPLITS:
            found = {number: _plain_texts(part[split]) for number, part in enumerate(parts) if split in part}
            tables = list(found.values())
            for number, rows in found.items():
                ours, first = rows.features, tables[0].features
                odd = [
                    f"{name!r} ({ours.get(name)}, {first.get(name)})"
                    for name in {**first, **ours}
                    if ours.get(name) != first.get(name)
                ]
                if odd:
                    raise UserError(
                        f"data: source {number} differs from source {next(iter(found))} in {split}, in the columns "
                        f"{', '.join(odd)}: bring them into one shape by `columns` or `map` of the source"
                    )
            tables = [rows.select_columns(tables[0].column_names) for rows in tables]
            if split == "train" and self.probabilities:
                data[split] = interleave_datasets(
                    tables, list(self.probabilities), seed=self.split_seed, stopping_strategy="first_exhausted"
                )
                rows = sum(map(len, tables))
                logger.info("data: %d of the %d rows of the sources are drawn for train", len(data[split]), rows)
            elif tables:
                data[split] = concatenate_datasets(tables)
        return DatasetDict(data)


def _plain_texts(rows: "Dataset") -> "Dataset":
    """With texts of one type: pandas, which reads CSV, gives large strings, and other readers do not."""
    from datasets import Features, Value

    plain = {name: Value("string") if kind == Value("large_string") else kind for name, kind in rows.features.items()}
    return rows if plain == rows.features else rows.cast(Features(plain))


def _whole(rows: Any) -> "Dataset":
    """A split of a stream as rows that can be counted, stored in the cache; others as they are."""
    from datasets import Dataset, load_from_disk

    from ftloop.data.tables import stored

    if isinstance(rows, Dataset):
        return rows
    return load_from_disk(stored({"rows": Dataset.from_list(list(rows.decode(False)), features=rows.features)}))["rows"]
