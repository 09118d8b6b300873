"""Data: the options that say where rows come from, and the methods that read them.

formats.py reads the files, shape.py shapes the rows, and splits.py divides them. Another kind of
source is a subclass that overrides `read`; samples.py has examples.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ftloop.data.formats import (
    READERS,
    detect_format,
    find_files,
    read_files,
    validate_reader_options,
)
from ftloop.data.shape import shape_rows
from ftloop.data.splits import SPLIT_ALIASES, SPLITS, rename_splits
from ftloop.errors import UserError, did_you_mean, root_cause

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class Data:
    """Where the rows come from, how they are shaped, and how they are divided into splits."""

    # Source
    path: str | None = None
    """A file, a glob, a URL, a folder with train.*, validation.* and test.*, a folder of images by
    class, or the id of a Hub dataset (nyu-mll/glue)."""
    name: str | None = None  # Configuration of a Hub dataset (mrpc)
    revision: str | None = None  # Commit, tag or branch of a Hub dataset
    files: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Files by split, instead of path: train a.csv validation b.csv test c.csv"""
    splits: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Splits of the source to use: train train validation validation_matched. Default: the splits
    named train, validation (or dev, val, valid, eval) and test."""
    sources: Annotated[tuple[Any, ...], tyro.conf.Suppress] = ()
    """Several Data objects, whose rows follow one another."""
    probabilities: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """Probability of drawing the next training row from each of `sources`, until one of them has no
    more rows. Default: all rows, one source after another."""

    # Reading
    format: str | None = None
    """Format of the files: csv, tsv, json, jsonl, parquet, ... Default: from the file extension."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the reader (for CSV those of pandas.read_csv): sep ; quoting 3 encoding cp1252"""
    field: tuple[str, ...] = ()
    """Dotted key of the rows in nested JSON or in a pickled dictionary: data.rows. Of a pickle,
    tables under several keys are put side by side."""
    query: str | None = None  # Query of an SQLite file: SELECT ...
    trust_pickle: bool = False  # Read pickles, which runs code of whoever wrote them
    streaming: bool = False
    """Read the training rows during training. For sources that are larger than memory or disk."""
    shuffle_buffer: int = 10_000  # Rows of a stream that are held in memory and shuffled together

    # Columns and rows
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Columns to use, each as its new name and its name in the source: text review label stars.
    Default: all columns under their own names."""
    map: Callable[..., Any] | None = None
    """Function f(row) that returns a dictionary of columns to change or add."""
    join: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Columns to join as one text, by the name of the new column: text title,body. 'text *' joins
    all text columns, including labels that are texts."""
    filter: Callable[..., Any] | None = None  # Function f(row) that tells whether to use a row
    limit: int | None = None  # Rows of each split to use, drawn at random. Default: all
    drop_empty: bool = False  # Drop rows with empty texts or missing labels. Default: an error
    drop_duplicates: bool = False
    """Drop rows whose input occurred before in the split, or occurs in validation or test."""
    drop_unreadable: bool = False  # Drop images that cannot be decoded. Default: an error

    # Splits that the source lacks
    validation: float = 0.1
    """Rows (1 or more) or fraction of rows (below 1) to cut from train for validation, if the
    source has no such split. 0: none."""
    test: float = 0.0  # The same for test
    stratify: bool = True
    """Keep the shares of the classes when cutting. Applies to single-label classification."""
    split_group: str | None = None
    """Column of groups (patient): all rows of a group are cut into the same split."""
    split_hash: tuple[str, ...] = ()
    """Columns whose hash decides the split of a row, which then stays the same when rows are added.
    Default: rows are cut at random."""
    split_seed: int = 42  # Seed of the random cut, of split_hash and of limit

    def __post_init__(self) -> None:
        for name in ("field", "split_hash"):  # a config file may say field="rows" for ("rows",)
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))

    @classmethod
    def from_memory(cls, rows: Any, **options: Any) -> "Data":
        """Use rows in memory: a Dataset, a DataFrame, or a dictionary of these by split.

        They are written to the cache of `datasets` under a digest of their content, so that the
        record of a run can name them. If that cache is deleted, the run cannot be evaluated again.
        """
        from ftloop.data.tables import store_splits, to_dataset

        splits = rows if isinstance(rows, dict) else {"train": rows}
        tables = {split: to_dataset(table, split) for split, table in splits.items()}
        return cls(path=str(store_splits(tables)), **options)

    # Validation

    def validate(self) -> None:
        """Raise UserError for options that cannot work, before anything is read."""
        self._validate_values()
        self._validate_files()
        self._validate_streaming()
        self._validate_sources()

    def _validate_values(self) -> None:
        for name, size in (("validation", self.validation), ("test", self.test)):
            is_valid = math.isfinite(size) and size >= 0 and (size < 1 or size == int(size))
            if not is_valid:
                raise UserError(
                    f"--data.{name} {size} must be a fraction below 1 or a whole number of rows; 0 "
                    "cuts no rows."
                )
        if self.format is not None and self.format not in READERS:
            raise UserError(
                f"--data.format {self.format!r} is not one of {', '.join(READERS)}"
                f"{did_you_mean(self.format, READERS)}."
            )
        for name in ("limit", "shuffle_buffer"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UserError(f"--data.{_dashed(name)} {count} must be at least 1.")
        if self.split_group and self.split_hash:
            raise UserError(
                "--data.split-group and --data.split-hash cannot be combined: give one of them."
            )
        if self.split_hash and max(self.validation, self.test) >= 1:
            raise UserError(
                "--data.split-hash needs --data.validation and --data.test as fractions below 1."
            )

    def _validate_files(self) -> None:
        known = (*SPLITS, *SPLIT_ALIASES)
        for split in self.files:
            if split not in known and not self.splits:
                raise UserError(
                    f"--data.files: {split!r} is not one of {', '.join(SPLITS)}"
                    f"{did_you_mean(split, known)}."
                )
        names = [self.path, *self.files.values()]
        files = [name for name in names if isinstance(name, str) and not Path(name).is_dir()]
        formats = {self.format or detect_format(name) for name in files}
        if formats and formats <= set(READERS):  # reading raises an error for other formats
            validate_reader_options(formats, **self._reader_options())

    def _validate_streaming(self) -> None:
        if not self.streaming:
            if self.shuffle_buffer != type(self).shuffle_buffer:
                raise UserError(
                    f"--data.shuffle-buffer {self.shuffle_buffer} needs --data.streaming."
                )
            return
        for name in ("split_group", "split_hash", "drop_duplicates"):
            if getattr(self, name):
                raise UserError(
                    f"--data.{_dashed(name)} needs all rows, so it cannot be combined with "
                    "--data.streaming."
                )
        if self.limit is not None:
            raise UserError(
                f"--data.limit {self.limit} cannot be combined with --data.streaming; --max-steps "
                "limits the rows of a stream."
            )

    def _validate_sources(self) -> None:
        weights = self.probabilities
        if weights:
            matches = len(weights) == len(self.sources) and min(weights) > 0
            if not matches or abs(sum(weights) - 1) > 1e-6:
                raise UserError(
                    f"data: probabilities {weights} must have one number above 0 for each of "
                    "`sources`, with a sum of 1."
                )
        if not self.sources:
            return
        for name in ("path", "files", "streaming"):
            if getattr(self, name):
                raise UserError(f"data: {name} cannot be combined with `sources`.")
        for number, source in enumerate(self.sources):
            for name in _WHOLE_DATA_OPTIONS:
                if getattr(source, name) != _DEFAULTS[name]:
                    raise UserError(
                        f"data: {name} has no effect in source {number}; set it next to `sources`."
                    )
            source.validate()

    # Reading

    def read(self) -> "DatasetDict":
        """Read the rows of each split as they are in the source. Raises UserError.

        With `streaming`, train is an IterableDataset and the other splits are tables.
        """
        if self.sources:
            return self._read_sources()
        if not self.path and not self.files:
            raise UserError("the data is missing: give it with --data.path or --data.files.")
        if self.path and self.files:
            raise UserError("--data.path and --data.files cannot be combined: give one of them.")

        files = self.split_files
        if files and (self.name or self.revision):
            raise UserError(
                "--data.name and --data.revision have no effect on files: they are for Hub "
                "datasets. If a config file sets them, add --data.name None or --data.revision "
                "None."
            )
        source = self._read_files(files) if files else self._read_hub()
        data = rename_splits(source, self.splits)
        if "train" not in data:
            raise UserError(
                "--data: the source has no split 'train'. Choose one of its splits "
                f"({', '.join(source)}) with --data.splits train NAME."
            )
        for split, rows in data.items():
            if self.streaming and split == "train":
                continue
            data[split] = rows = _load_stream(rows)
            if len(rows) == 0:
                raise UserError(f"--data: the split {split!r} is empty.")
        return data

    @cached_property
    def split_files(self) -> dict[str, Any]:
        """The files or folders of each split; {} if the rows come from elsewhere."""
        # A folder of which a configuration is named is a copy of a Hub dataset.
        is_hub_copy = bool(self.path and self.name and Path(self.path).expanduser().is_dir())
        if not self.path or is_hub_copy:
            return self.files
        return find_files(self.path)

    def _reader_options(self) -> dict[str, Any]:
        """Return the options that `read_files` and `validate_reader_options` take."""
        names = ("options", "field", "query", "trust_pickle")
        return {name: getattr(self, name) for name in names}

    def _read_files(self, files: dict[str, Any]) -> dict[str, Any]:
        options = self._reader_options()
        train = self.splits.get("train", "train")
        if not self.streaming or train not in files:
            return read_files(files, self.format, **options)
        others = {split: names for split, names in files.items() if split != train}
        stream = read_files({train: files[train]}, self.format, **options, streaming=True)
        return {**stream, **read_files(others, self.format, **options)}

    def _read_hub(self) -> "DatasetDict":
        from datasets import DatasetDict, IterableDatasetDict, load_dataset

        validate_reader_options({"Hub datasets"}, **self._reader_options())
        name = str(self.path)
        if name.isidentifier() and find_spec(f"datasets.packaged_modules.{name}"):
            raise UserError(  # it would read, and sql could write, whatever the options name
                f"--data.path {name!r} is a reader of the library datasets. Give a file, a folder "
                "or the id of a Hub dataset."
            )
        streaming = {"streaming": True} if self.streaming else {}
        try:
            data = load_dataset(
                self.path, self.name, revision=self.revision, **streaming, **self.options
            )
        except Exception as error:  # the client of the Hub raises errors of many types
            if Path(self.path).expanduser().is_dir():
                raise UserError(
                    f"--data.name {self.name!r}: the folder {self.path!r} cannot be read as a copy "
                    "of a Hub dataset with this configuration: "
                    f"{root_cause(error).rstrip('.')}. To read its files or images, unset the "
                    "configuration: --data.name None."
                ) from error
            raise UserError(
                f"--data.path {self.path!r}: there is no such file or folder, and it could not be "
                f"read as a Hub dataset: {root_cause(error)}"
            ) from error
        if not isinstance(data, DatasetDict | IterableDatasetDict):
            raise UserError(
                f"--data.options {self.options} must not choose a split, because all of them are "
                "needed. Use --data.splits."
            )
        return data

    def _read_sources(self) -> "DatasetDict":
        """Read and shape each source by its own options, and combine their rows by split.

        With `probabilities`, each next row of train is drawn from one of the sources, in order and
        without repeats, until one has no more rows. The number of unused rows is logged.
        """
        from datasets import DatasetDict, concatenate_datasets, interleave_datasets

        parts = [shape_rows(source.read(), source) for source in self.sources]
        data = {}
        for split in SPLITS:
            tables = {
                number: _unify_text_types(part[split])
                for number, part in enumerate(parts)
                if split in part
            }
            if not tables:
                continue
            _require_equal_columns(split, tables)
            first = next(iter(tables.values()))
            ordered = [rows.select_columns(first.column_names) for rows in tables.values()]
            if split == "train" and self.probabilities:
                data[split] = interleave_datasets(
                    ordered,
                    list(self.probabilities),
                    seed=self.split_seed,
                    stopping_strategy="first_exhausted",
                )
                total = sum(map(len, ordered))
                logger.info(
                    "data: train uses %d of the %d rows of the sources", len(data[split]), total
                )
            else:
                data[split] = concatenate_datasets(ordered)
        return DatasetDict(data)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Data)}
# Options that apply to all rows together. They have no effect in one of several sources.
_WHOLE_DATA_OPTIONS = (
    "streaming",
    "validation",
    "test",
    "stratify",
    "split_group",
    "split_hash",
    "split_seed",
    "limit",
    "drop_empty",
    "drop_duplicates",
    "drop_unreadable",
)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _require_equal_columns(split: str, tables: "dict[int, Dataset]") -> None:
    """Raise UserError unless all sources have columns of the same names and types in a split."""
    first_number, first_rows = next(iter(tables.items()))
    expected = first_rows.features
    for number, rows in tables.items():
        differences = []
        for name in {**expected, **rows.features}:
            actual_type, expected_type = rows.features.get(name), expected.get(name)
            if actual_type != expected_type:
                differences.append(f"{name!r} ({actual_type}, {expected_type})")
        if differences:
            raise UserError(
                f"data: source {number} differs from source {first_number} in the columns of "
                f"{split}: {', '.join(differences)}. Give them equal columns with the option "
                "`columns` or `map` of a source."
            )


def _unify_text_types(rows: "Dataset") -> "Dataset":
    """Cast large strings, which pandas makes of CSV texts, to the strings of the other readers."""
    from datasets import Features, Value

    features = {
        name: Value("string") if feature == Value("large_string") else feature
        for name, feature in rows.features.items()
    }
    return rows if features == rows.features else rows.cast(Features(features))


def _load_stream(rows: Any) -> "Dataset":
    """Store the rows of a stream in the cache as a table. A table is returned as it is."""
    from datasets import Dataset, load_from_disk

    from ftloop.data.tables import store_splits

    if isinstance(rows, Dataset):
        return rows
    table = Dataset.from_list(list(rows.decode(False)), features=rows.features)
    return load_from_disk(store_splits({"rows": table}))["rows"]
