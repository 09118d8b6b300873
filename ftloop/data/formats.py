"""Files of any format to tables, one per split, read by `datasets` into memory-mapped Arrow tables."""

import glob
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.data.splits import SPLIT_NAMES, SPLITS
from ftloop.errors import UserError, root_cause

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
# Parts of what the readers say of a file without rows, and of other complaints, with what helps against these.
NO_ROWS = ("corresponds to no data", "No columns to parse", "at least one example", "StopIteration")
HINTS = {
    "UnicodeDecodeError": "--task.data.options encoding=latin-1 names another encoding",
    "ParserError": "--task.data.options sep=';' names another separator, quoting=3 takes quotes as ordinary characters",
    "as a scalar of type": "a column of numbers holds something else in a later row",
    "unexpected keyword argument": "--task.data.options takes the options of pandas.read_csv, for other formats few",
}


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
