"""Files of any format to tables, one per split: memory-mapped Arrow tables in the cache of `datasets`.

A reader is a builder of `datasets` where it has one that works, else a function of tables.py or images.py.
"""

import glob
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ftloop.data.splits import SPLIT_NAMES, SPLITS
from ftloop.errors import UserError, root_cause

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDatasetDict

logger = logging.getLogger("ftloop")

# For pandas. Without the first, the texts "NA", "null" and "None" would become missing values. With the second, 100 000
# rows decide what a column holds, and not the first 10 000, as in datasets: a later row of another type is an error.
CSV = {"keep_default_na": False, "chunksize": 100_000}
# Rows with columns such as "type" and "message" would be taken for the log of an agent, and be rewritten.
JSON = {"parse_agent_traces": False}
# What `datasets` calls the reader of each ending, with options that keep it from changing the data.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("csv", CSV),
    "tsv": ("csv", {**CSV, "sep": "\t"}),
    "json": ("json", JSON),
    "jsonl": ("json", JSON),
    "parquet": ("parquet", {}),
    "arrow": ("arrow", {}),
    "txt": ("text", {}),  # a row a line, column "text"
    "text": ("text", {}),
    "h5": ("hdf5", {}),
    "hdf5": ("hdf5", {}),
    "xml": ("xml", {}),  # these and those below are read by tables.py and images.py
    "sqlite": ("sqlite", {}),
    "db": ("sqlite", {}),
    "pkl": ("pickle", {}),
    "pickle": ("pickle", {}),
    "save_to_disk": ("save_to_disk", {}),  # folders: what Dataset.save_to_disk wrote,
    "imagefolder": ("imagefolder", {}),  # and CLASS/photo.jpg
}
PACKED = ("gz", "zip", "zst", "xz", "bz2")  # endings behind those above
PACKABLE = ("csv", "json", "text", "xml", "pickle")
OWN = ("xml", "sqlite", "pickle", "save_to_disk")
# Parts of what the readers say of a file without rows, and of other complaints, with what helps against these.
NO_ROWS = ("corresponds to no data", "No columns to parse", "at least one example", "StopIteration")
HINTS = {
    "UnicodeDecodeError": "--task.data.options encoding=latin-1 names another encoding",
    "ParserError": "--task.data.options sep=';' names another separator, quoting=3 takes quotes as ordinary characters",
    "as a scalar of type": "a column of numbers holds something else in a later row",
    "No module named 'h5py'": "pip install h5py",
    "unexpected keyword argument": "--task.data.options takes the options of pandas.read_csv, for other formats few",
}


def local_files(path: str) -> dict[str, str]:
    """What is behind a path, by split: a file, glob, URL or folder; {} if nothing here has that name."""
    place = Path(path).expanduser()
    if "://" in path or place.is_file() or (glob.has_magic(path) and glob.glob(str(place), recursive=True)):
        return {"train": path}
    if not place.is_dir():
        if place.suffix or path.startswith((".", "/", "~")):
            raise UserError(f"--task.data.path {path!r}: no such file or folder")
        return {}
    if (place / "dataset_dict.json").is_file():  # DatasetDict.save_to_disk
        return {split: str(place / split) for split in json.loads((place / "dataset_dict.json").read_text())["splits"]}
    if format_of(place) == "save_to_disk":
        return {"train": str(place)}
    found: dict[str, str] = {}
    for entry in sorted(place.iterdir()):  # files or folders
        split = SPLIT_NAMES.get(entry.name.split(".")[0], entry.name.split(".")[0])
        if split in SPLITS and format_of(entry) in READERS:
            if split in found:
                raise UserError(
                    f"--task.data.path {path!r} holds two files for {split!r}: name them by --task.data.files"
                )
            found[split] = str(entry)
    if not found and format_of(place) == "imagefolder":
        found = {"train": str(place)}
    if not found:
        held = sorted(entry.name + "/" * entry.is_dir() for entry in place.iterdir())
        raise UserError(
            f"--task.data.path {path!r} holds no train.csv, .tsv, .json, .jsonl, .parquet or another format, no "
            f"save_to_disk and no CLASS/*.jpg or train/CLASS/*.jpg; it holds {', '.join(held[:10]) or 'nothing'}"
            f"{', ...' if len(held) > 10 else ''} (a copy of a Hub data set: --task.data.name default)"
        )
    return found


def format_of(place: str | Path) -> str:
    """The ending that decides on the reader: "csv" for reviews.CSV.gz; for a folder, what it holds; else ""."""
    from ftloop.data.images import images

    place = Path(urlsplit(str(place)).path if "://" in str(place) else place).expanduser()
    if place.is_dir():
        if (place / "state.json").is_file():
            return "save_to_disk"
        return "imagefolder" if next(images(place), None) else ""
    endings = [ending.lower().lstrip(".") for ending in place.suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    return endings[-1] if endings else ""


def check_options(
    kinds: set[str],
    options: dict[str, Any],
    field: tuple[str, ...] = (),
    query: str | None = None,
    trust_pickle: bool = False,
    streaming: bool = False,
) -> None:
    """Raise UserError for options that files of these kinds cannot follow, and for a pickle without trust."""
    for option, given, takers in (
        ("--task.data.field", field, ("json", "pkl", "pickle")),
        ("--task.data.query", query, ("sqlite", "db")),
        ("--task.data.trust-pickle", trust_pickle, ("pkl", "pickle")),
    ):
        if given and not kinds & set(takers):
            raise UserError(f"{option} has no effect on {', '.join(sorted(kinds))}: it is for {', '.join(takers)}")
    readers = {READERS[kind][0] for kind in kinds if kind in READERS}
    if "pickle" in readers and not trust_pickle:
        raise UserError(
            "--task.data: a pickled file is not read unless you trust it, for it runs code of whoever wrote it: "
            "--task.data.trust-pickle"
        )
    if "json" in kinds and len(field) > 1:
        raise UserError(f"--task.data.field {' '.join(field)}: of JSON, one key is read (data.rows)")
    if options and readers & set(OWN):
        raise UserError(f"--task.data.options {options}: {', '.join(sorted(kinds))} takes none")
    if streaming and (field or readers & {*OWN, "imagefolder"}):
        able = [kind for kind, (reader, _) in READERS.items() if reader not in (*OWN, "imagefolder")]
        raise UserError(
            f"--task.data.streaming: {', '.join(sorted(kinds))}{' with --task.data.field' if field else ''} cannot be "
            f"streamed; {', '.join(able)} can"
        )


def read_files(
    files: dict[str, str | list[str]],
    format: str | None,
    options: dict[str, Any],
    *,
    field: tuple[str, ...] = (),
    query: str | None = None,
    trust_pickle: bool = False,
    streaming: bool = False,
) -> "DatasetDict | IterableDatasetDict":
    """Read what is behind each split: a file, a glob, a URL, a folder, or a list of these. Raises UserError."""
    import datasets

    from ftloop.data.images import read_images
    from ftloop.data.tables import read_table

    places = {split: _places(split, names) for split, names in files.items()}
    kinds = {split: _kind(split, names, format) for split, names in places.items()}
    check_options(set(kinds.values()), options, field, query, trust_pickle, streaming)
    if "imagefolder" in kinds.values():
        return read_images(places, options)
    data = {}
    for split, names in places.items():
        reader, defaults = READERS[kinds[split]]
        shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        verbosity = datasets.logging.get_verbosity()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs each error before it raises it
        try:
            if reader in OWN or (field and kinds[split] == "json"):
                rows = read_table(reader, split, names, field, query)
            else:
                arguments = {**defaults, **options, **({"streaming": True} if streaming else {})}
                for option in ("names", "usecols"):  # lists for pandas; on the command line, words with commas
                    if isinstance(arguments.get(option), str):
                        arguments[option] = arguments[option].split(",")
                # Escaped, for data_files are patterns: a file may be named "rows[1].csv".
                escaped = [name if "://" in name else glob.escape(name) for name in names]
                rows = datasets.load_dataset(reader, data_files=escaped, split="train", **arguments)
        except UserError:
            raise
        except Exception as error:  # pandas, pyarrow and datasets each have their own
            cause = root_cause(error)
            if any(sign in cause for sign in NO_ROWS):
                raise UserError(f"--task.data: the split {split!r} is empty: no rows in {shown}") from error
            hints = "".join(f" ({hint})" for sign, hint in HINTS.items() if sign in cause)
            raise UserError(f"--task.data: cannot read {split} file {shown}: {cause}{hints}") from error
        finally:
            datasets.logging.set_verbosity(verbosity)
        if isinstance(rows, dict):  # a pickled dictionary of splits
            if len(files) > 1:
                raise UserError(f"--task.data.files: {split} file {shown} holds several splits: {', '.join(rows)}")
            return datasets.DatasetDict(rows)
        if kinds[split] == "tsv" and "quoting" not in options and not streaming:
            warn_of_joined_rows(split, rows)
        data[split] = rows
    return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(data)


def _places(split: str, names: str | Iterable[str]) -> list[str]:
    """The files, folders and URLs that are named: globs by what they match, in the order of the names."""
    found: list[str] = []
    for name in [names] if isinstance(names, str | Path) else names:
        place = str(name) if "://" in str(name) else str(Path(str(name)).expanduser())
        matches = [place] if "://" in place or os.path.exists(place) else sorted(glob.glob(place, recursive=True))
        if not matches:
            raise UserError(f"--task.data.files: {split} file {place!r} does not exist")
        found += matches
    return found


def _kind(split: str, names: list[str], format: str | None) -> str:
    """The one kind of a split's files, by its name in READERS. Raises UserError for those that cannot be read."""
    kinds = [format or format_of(name) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if kind not in READERS:
            raise UserError(
                f"--task.data.format: cannot tell how to read {name!r}; the formats are {', '.join(READERS)}"
            )
        if "://" not in name and Path(name).is_file() and Path(name).stat().st_size == 0:
            raise UserError(f"--task.data: {split} file {name!r} is empty")
        if Path(name).suffix.lower().lstrip(".") in PACKED and READERS[kind][0] not in PACKABLE:
            how = "Parquet is compressed inside; gunzip it first" if kind == "parquet" else f"unpack it first: {kind}"
            raise UserError(f"--task.data: {split} file {name!r}: {how}")
    if len(set(kinds)) > 1:
        raise UserError(f"--task.data.files: {split} has files of several formats: {', '.join(sorted(set(kinds)))}")
    return kinds[0]


def warn_of_joined_rows(split: str, rows: "Dataset") -> None:
    """TSV files often have quotes that are ordinary characters, as MRPC's: two of them swallow the rows between."""
    joined = {row for name in rows.column_names for row, cell in enumerate(rows[name]) if "\n" in str(cell)}
    if joined:
        logger.warning(
            "data: %s: %d row(s) hold a line break between quotes, the first is row %d; if quotes are ordinary "
            "characters in this file, rows were joined: --task.data.options quoting=3",
            *(split, len(joined), min(joined)),
        )
