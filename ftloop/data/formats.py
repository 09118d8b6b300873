"""Files of any format to tables, one per split: memory-mapped Arrow tables in the cache of `datasets`.

A reader is a builder of `datasets` where it has one that works, else a function of tables.py or images.py.
"""

import contextlib
import glob
import json
import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ftloop.data.shape import TEXTS, by_table
from ftloop.data.splits import SPLIT_NAMES, SPLITS
from ftloop.errors import UserError, root_cause

if TYPE_CHECKING:
    import pyarrow
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
# What the cells of a column must all match to be more than texts: what pandas makes of them where none is empty. A code
# such as 007 is a text.
KINDS = {
    "bool": "True|TRUE|true|False|FALSE|false",
    "int64": r"[-+]?(0|[1-9]\d*)",
    "float64": r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?",
}
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
        name = entry.name.split(".")[0].lower()
        split = SPLIT_NAMES.get(name, name)
        if split in SPLITS and format_of(entry) in READERS:
            if split in found:
                raise UserError(
                    f"--task.data.path {path!r} holds two files for {split!r}: name them by --task.data.files"
                )
            found[split] = str(entry)
    if found:
        say_left_out(place, [entry for entry in place.iterdir() if str(entry) not in found.values()])
    elif format_of(place) == "imagefolder":
        found = {"train": str(place)}
    if not found:
        held = sorted(entry.name + "/" * entry.is_dir() for entry in place.iterdir())
        raise UserError(
            f"--task.data.path {path!r} holds no train.csv, .tsv, .json, .jsonl, .parquet or another format, no "
            f"save_to_disk and no CLASS/*.jpg or train/CLASS/*.jpg; it holds {', '.join(held[:10]) or 'nothing'}"
            f"{', ...' if len(held) > 10 else ''} (a copy of a Hub data set: --task.data.name default)"
        )
    return found


def say_left_out(folder: Path, entries: list[Path]) -> None:
    """One line that names what of a folder is not read, hidden files aside."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in entries if not entry.name.startswith("."))
    if names:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        logger.info("data: of the folder %s, %d are left out: %s", folder, len(names), shown)


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
        if len(set(kinds.values())) > 1:
            mixed = ", ".join(f"{split} {kind}" for split, kind in kinds.items())
            raise UserError(f"--task.data.files: class folders cannot be mixed with other formats: {mixed}")
        for folder in (Path(name) for names in places.values() for name in names):
            unseen = [entry for entry in folder.iterdir() if not entry.is_dir() or not any(entry.iterdir())]
            say_left_out(folder, unseen)
        with _one_error(", ".join(places), [name for names in places.values() for name in names]):
            return read_images(places, options)
    tables = [split for split, kind in kinds.items() if kind in ("csv", "tsv")]
    padded = set().union(*(zero_padded(places[split][0], {**READERS[kinds[split]][1], **options}) for split in tables))
    if padded:
        logger.info("data: numbers with leading zeros are kept as texts: %s", ", ".join(sorted(map(str, padded))))
    data: dict[str, Any] = {}
    for split, names in places.items():
        reader, defaults = READERS[kinds[split]]
        with _one_error(split, names):
            if reader in OWN or (field and kinds[split] == "json"):
                rows = read_table(reader, split, names, field, query)
            else:
                arguments = {**defaults, **options, **({"streaming": True} if streaming else {})}
                for option in ("names", "usecols"):  # lists for pandas; on the command line, words with commas
                    if isinstance(arguments.get(option), str):
                        arguments[option] = arguments[option].split(",")
                if padded and split in tables:
                    arguments["converters"] = dict.fromkeys(padded, str)
                # Escaped, for data_files are patterns: a file may be named "rows[1].csv".
                escaped = [name if "://" in name else glob.escape(name) for name in names]
                rows = datasets.load_dataset(reader, data_files=escaped, split="train", **arguments)
        if isinstance(rows, dict):  # a pickled dictionary of splits
            if len(files) > 1:
                raise UserError(f"--task.data.files: {split} {names[0]!r} holds several splits: {', '.join(rows)}")
            return datasets.DatasetDict(rows)
        if kinds[split] == "tsv" and "quoting" not in options and not streaming:
            warn_of_joined_rows(split, rows)
        data[split] = rows
    if streaming:
        return datasets.IterableDatasetDict(data)
    return datasets.DatasetDict({**data, **numbers_with_blanks({split: data[split] for split in tables})})


@contextlib.contextmanager
def _one_error(split: str, names: list[str]) -> Iterator[None]:
    """Whatever the readers raise, as one UserError that names the files; `datasets` is silent meanwhile."""
    import datasets

    shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs each error before it raises it
    try:
        yield
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


def zero_padded(name: str, options: dict[str, Any]) -> set[Any]:
    """The columns of a CSV file that hold whole numbers with leading zeros (007) in the first thousand rows.

    pandas would read 7. A second look at the beginning costs some milliseconds; a URL is not fetched a second time.
    """
    import pandas

    if "://" in name or {"converters", "features"} & set(options):
        return set()
    names = {"names": options["names"].split(",")} if isinstance(options.get("names"), str) else {}
    usecols = {"usecols": options["usecols"].split(",")} if isinstance(options.get("usecols"), str) else {}
    try:
        with pandas.read_csv(name, dtype=str, **{**options, "chunksize": 1000, **names, **usecols}) as reader:
            head = next(reader).fillna("")
    except Exception:  # the reader itself says what is wrong
        return set()
    return {
        column
        for column in head
        if head[column].str.match(r"[-+]?0\d").any() and head[column].str.fullmatch(r"[-+]?\d+|").all()
    }


def numbers_with_blanks(data: "dict[str, Dataset]") -> "dict[str, Dataset]":
    """CSV tables whose columns of numbers hold nulls where a cell is empty; pandas, told to keep the texts "NA" and
    "null", reads a column of texts there. A column of texts in one split is one in all.

    Of a column of texts, the first thousand rows are looked at; one of numbers is read whole: 0.2 s a million rows.
    """
    from datasets import Features, Value

    kinds: dict[str, dict[str, str | None]] = {}
    for split, rows in data.items():
        for name, feature in rows.features.items():
            text = feature.dtype in TEXTS[:2]
            kinds.setdefault(name, {})[split] = kind_of(rows.data.column(name)) if text else feature.dtype
    changed = {}
    for split, rows in data.items():
        new = {
            name: Value(kinds[name][split])
            for name, feature in rows.features.items()
            if None not in kinds[name].values() and feature.dtype != kinds[name][split]
        }
        if new:
            logger.info("data: %s: empty cells among numbers are missing values: %s", split, ", ".join(new))
            features = Features({**rows.features, **new})
            rows = by_table(rows, partial(_without_blanks, schema=features.arrow_schema), features)
        changed[split] = rows
    return changed


def kind_of(column: "pyarrow.ChunkedArray") -> str | None:
    """What a column of texts with empty cells holds besides these, by its name in KINDS; None for texts."""
    import pyarrow.compute

    kinds, blank, filled = list(KINDS), False, False
    for chunk in column.chunks:
        cells = pyarrow.compute.utf8_trim_whitespace(chunk.drop_null())
        present = cells.filter(pyarrow.compute.not_equal(cells, ""))
        blank, filled = blank or len(present) < len(chunk), filled or len(present) > 0
        kinds = [
            kind
            for kind in kinds
            if pyarrow.compute.all(
                pyarrow.compute.match_substring_regex(present, f"^({KINDS[kind]})$"), min_count=0
            ).as_py()
        ]
        if not kinds:
            return None
    return kinds[0] if blank and filled else None


def _without_blanks(table: "pyarrow.Table", schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow.compute

    for place, (old, new) in enumerate(zip(table.schema, schema, strict=True)):
        if old.type != new.type:
            cells = pyarrow.compute.utf8_trim_whitespace(table.column(place))
            blank = pyarrow.compute.equal(cells, "")
            cells = pyarrow.compute.if_else(blank, pyarrow.scalar(None, cells.type), cells)
            table = table.set_column(place, new, cells.cast(new.type))
    return table


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
