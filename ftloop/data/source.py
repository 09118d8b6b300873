"""Where rows come from: a Hub data set or local files become the splits "train", "validation" and maybe "test".

A source of another kind is a subclass that overrides `read`: see `ftloop/samples.py` for one.
"""

import glob
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.data.pairs import Pairs
from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")

# For pandas. Without the first, the texts "NA", "null" and "None" would become missing values. With the second, 100 000
# rows decide what a column holds, and not the first 10 000, as in datasets: a later row of another type is an error.
CSV = {"keep_default_na": False, "chunksize": 100_000}
# What `datasets` calls the reader of each ending, with options that keep it from changing the data.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("csv", CSV),
    "tsv": ("csv", {**CSV, "sep": "\t"}),
    "json": ("json", {}),
    "jsonl": ("json", {}),
    "parquet": ("parquet", {}),
}
SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
SPLITS = ("train", "validation", "test")
# Parts of what the readers say of a file without rows, and of other complaints, with what helps against these.
NO_ROWS = ("corresponds to no data", "No columns to parse", "at least one example", "StopIteration")
HINTS = {
    "UnicodeDecodeError": "--task.data.options encoding=latin-1 names another encoding",
    "ParserError": "--task.data.options sep=';' names another separator, quoting=3 takes quotes as ordinary characters",
    "as a scalar of type": "a column of numbers holds something else in a later row",
    "unexpected keyword argument": "--task.data.options takes the options of pandas.read_csv, for other formats few",
}


@dataclass(frozen=True)
class Data:
    """Where the rows come from and how they are divided into splits."""

    path: str | None = None  # a Hub id (nyu-mll/glue), a folder with train.*, validation.*, test.*, or one file
    name: str | None = None  # configuration of a Hub data set (mrpc)
    revision: str | None = None  # commit, tag or branch of a Hub data set
    files: Pairs = field(default_factory=dict)  # split and file in turn: train a.csv validation b.csv test c.csv
    format: str | None = None  # csv, tsv, json, jsonl or parquet, also gzipped; left out: by the file's ending
    options: Pairs = field(default_factory=dict)  # for the reader: sep ; quoting 3 encoding latin-1 names text,label
    splits: Pairs = field(default_factory=dict)  # split and its name in the source: validation validation_matched
    validation: float = 0.1  # rows (from 1) or share (below 1) cut from train if there is no such split; 0: none
    test: float = 0.0  # likewise for test
    stratify: bool = True  # keep the shares of the classes when cutting (single-label tasks)
    split_seed: int = 42  # of the cut; another seed cuts other rows
    drop_empty: bool = False  # drop rows with empty texts or missing labels, and say how many

    def check(self) -> None:
        """Raise UserError for options that cannot work, before anything is read."""
        for name, value in (("validation", self.validation), ("test", self.test)):
            if not math.isfinite(value) or value < 0 or (value >= 1 and value != int(value)):
                raise UserError(f"--task.data.{name} {value}: a share below 1, or whole rows; 0 cuts nothing")
        if self.format is not None and self.format not in READERS:
            raise UserError(f"--task.data.format {self.format!r} is none of {', '.join(READERS)}")
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


def local_files(path: str) -> dict[str, str]:
    """The files behind a local path, by split; {} if nothing local has that name."""
    place = Path(path).expanduser()
    if place.is_file():
        return {"train": str(place)}
    if not place.is_dir():
        if Path(path).suffix or path.startswith((".", "/", "~")):
            raise UserError(f"--task.data.path {path!r}: no such file or folder")
        return {}
    found: dict[str, str] = {}
    for file in sorted(place.iterdir()):
        split = SPLIT_NAMES.get(file.name.split(".")[0], file.name.split(".")[0])
        if split in SPLITS and format_of(file) in READERS:
            if split in found:
                raise UserError(
                    f"--task.data.path {path!r} holds two files for {split!r}: name them by --task.data.files"
                )
            found[split] = str(file)
    if not found:
        raise UserError(f"--task.data.path {path!r} holds no train.csv, .tsv, .json, .jsonl or .parquet")
    return found


def format_of(file: Path) -> str:
    """The ending that decides on the reader: "csv" for reviews.CSV.gz."""
    endings = [ending.lower().lstrip(".") for ending in file.suffixes]
    if endings and endings[-1] == "gz":
        endings.pop()
    return endings[-1] if endings else ""


def read_files(files: dict[str, str], format: str | None, options: dict[str, Any]) -> "DatasetDict":
    """Read one file per split by `datasets`, which keeps them as memory-mapped Arrow tables in its cache."""
    import datasets

    data = {}
    for split, name in files.items():
        file = Path(str(name)).expanduser()
        if not file.is_file():
            raise UserError(f"--task.data.files: {split} file {str(file)!r} does not exist")
        kind = format or format_of(file)
        if kind not in READERS:
            raise UserError(
                f"--task.data.format: cannot tell how to read {str(file)!r}; the formats are {', '.join(READERS)}"
            )
        if file.stat().st_size == 0:
            raise UserError(f"--task.data: {split} file {str(file)!r} is empty")
        if kind == "parquet" and file.suffix.lower() == ".gz":
            raise UserError(f"--task.data: {split} file {str(file)!r}: Parquet is compressed inside; gunzip it first")
        reader, defaults = READERS[kind]
        arguments = {**defaults, **options}
        for option in ("names", "usecols"):  # lists for pandas; on the command line, words with commas
            if isinstance(arguments.get(option), str):
                arguments[option] = arguments[option].split(",")
        verbosity = datasets.logging.get_verbosity()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs each error before it raises it
        try:
            # Escaped, for data_files are patterns: a file may be named "rows[1].csv".
            data[split] = datasets.load_dataset(reader, data_files=glob.escape(str(file)), split="train", **arguments)
        except Exception as error:  # pandas, pyarrow and datasets each have their own
            cause = root_cause(error)
            if any(sign in cause for sign in NO_ROWS):
                raise UserError(f"--task.data: the split {split!r} is empty: no rows in {str(file)!r}") from error
            hints = "".join(f" ({hint})" for sign, hint in HINTS.items() if sign in cause)
            raise UserError(f"--task.data: cannot read {split} file {str(file)!r}: {cause}{hints}") from error
        finally:
            datasets.logging.set_verbosity(verbosity)
        if kind == "tsv" and "quoting" not in options:
            warn_of_joined_rows(split, data[split])
    return datasets.DatasetDict(data)


def warn_of_joined_rows(split: str, rows: "Dataset") -> None:
    """TSV files often have quotes that are ordinary characters, as MRPC's: two of them swallow the rows between."""
    joined = {row for name in rows.column_names for row, cell in enumerate(rows[name]) if "\n" in str(cell)}
    if joined:
        logger.warning(
            "data: %s: %d row(s) hold a line break between quotes, the first is row %d; if quotes are ordinary "
            "characters in this file, rows were joined: --task.data.options quoting=3",
            *(split, len(joined), min(joined)),
        )


def rename_splits(data: "DatasetDict", chosen: dict[str, str]) -> "DatasetDict":
    """Our names for the source's splits: as chosen, else by their usual names. Others are left out, and said."""
    from datasets import DatasetDict

    if chosen:
        for split, name in chosen.items():
            if split not in SPLITS:
                raise UserError(
                    f"--task.data.splits: {split!r} is not one of {', '.join(SPLITS)}{nearest(split, SPLITS)}"
                )
            if name not in data:
                raise UserError(
                    f"--task.data.splits: the source has no {name!r}{nearest(name, data)}; it has {', '.join(data)}"
                )
        named = {split: data[name] for split, name in chosen.items()}
    else:
        named = {}
        for name, rows in data.items():
            split = SPLIT_NAMES.get(name, name)
            if split in named:
                raise UserError(f"--task.data: the source has two splits for {split!r}: choose by --task.data.splits")
            named[split] = rows
        unused = sorted(named.keys() - set(SPLITS))
        if unused:
            logger.info("data: the splits %s are not used (choose by --task.data.splits)", ", ".join(unused))
    return DatasetDict({split: named[split] for split in SPLITS if split in named})


def cut_splits(data: "DatasetDict", source: Data, classes: list[Any] | None) -> "DatasetDict":
    """Cut the splits that the source lacks from train. `classes`: a value per row of train to stratify by, or None."""
    from datasets import DatasetDict

    data, rows = dict(data), list(range(len(data["train"])))
    original = data["train"]
    for split, wanted in (("test", source.test), ("validation", source.validation)):
        if split in data or not wanted:
            continue
        count = round(wanted * len(original)) if wanted < 1 else int(wanted)
        if not 0 < count < len(rows):
            raise UserError(
                f"--task.data.{split} {wanted}: {count} rows cannot be cut from the {len(rows)} rows of train"
            )
        try:
            rows, cut = _cut(rows, count, classes if source.stratify else None, source.split_seed)
        except ValueError as error:
            raise UserError(
                f"--task.data.{split} {wanted}: cannot keep the shares of the classes: {error} "
                "(--task.data.no-stratify cuts at random)"
            ) from error
        data[split] = original.select(cut)
        how = "stratified" if source.stratify and classes is not None else "at random"
        logger.info("data: %s is %d rows cut from train, %s (seed %d)", split, count, how, source.split_seed)
    if len(rows) < len(original):
        data["train"] = original.select(rows)
    return DatasetDict({split: data[split] for split in SPLITS if split in data})


def _cut(rows: list[int], count: int, classes: list[Any] | None, seed: int) -> tuple[list[int], list[int]]:
    """(what stays, what is cut), both in the order of the source. The only row of a class stays in train."""
    from collections import Counter

    from sklearn.model_selection import train_test_split

    lone = set()
    if classes is not None:
        sizes = Counter(classes[row] for row in rows)
        lone = {row for row in rows if sizes[classes[row]] == 1}
    divisible = [row for row in rows if row not in lone]
    keys = [classes[row] for row in divisible] if classes is not None else None
    _, cut = train_test_split(divisible, test_size=count, random_state=seed, stratify=keys)
    chosen = set(cut)
    return [row for row in rows if row not in chosen], sorted(cut)


def root_cause(error: BaseException) -> str:
    """The innermost cause in one line: `datasets` wraps what went wrong in errors that do not say it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def require_columns(data: "DatasetDict", columns: tuple[str, ...], option: str) -> None:
    """Raise UserError unless every split has the columns."""
    for split, rows in data.items():
        for column in columns:
            if column not in rows.column_names:
                raise UserError(
                    f"{option}: the split {split!r} has no column {column!r}{nearest(column, rows.column_names)}; "
                    f"it has {', '.join(map(repr, rows.column_names))}"
                )
