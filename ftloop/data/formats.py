"""Find the files behind a path, and read files of any format as one table per split.

Tables are memory-mapped Arrow files in the cache of `datasets`. Its builders read the formats for
which it has one that works; tables.py and image_folders.py read the others.
"""

import glob
import json
import logging
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ftloop.data.csv_structure import pandas_warnings
from ftloop.data.csv_types import examine_csv_files, restore_numeric_columns, split_names
from ftloop.data.encodings import find_spelling, refuse_wide_characters, require_utf8
from ftloop.data.reader_errors import raise_user_errors
from ftloop.data.splits import SPLIT_ALIASES, SPLITS
from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

logger = logging.getLogger("ftloop")

# Options of pandas. keep_default_na: the texts "NA", "null" and "None" would become missing values.
# chunksize: `datasets` takes the type of a column from the first chunk, and fails at a later row of
# another type; its own chunks have 10 000 rows. index_col: where rows have one cell more than the
# header, the first column would become an index, and all columns would move by one.
CSV_OPTIONS = {"keep_default_na": False, "chunksize": 100_000, "index_col": False}
TEXT_OPTIONS = {"encoding": "utf-8-sig"}  # without the byte-order mark that may begin the file
# Rows with columns such as "type" and "message" would be taken for the log of an agent and changed.
JSON_OPTIONS = {"parse_agent_traces": False}
# By file extension, or kind of folder: the reader, and options that keep it from changing the data.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "csv": ("csv", CSV_OPTIONS),
    "tsv": ("csv", {**CSV_OPTIONS, "sep": "\t"}),
    "json": ("json", JSON_OPTIONS),
    "jsonl": ("json", JSON_OPTIONS),
    "parquet": ("parquet", {}),
    "arrow": ("arrow", {}),
    "txt": ("text", TEXT_OPTIONS),  # one row per line, in the column "text"
    "text": ("text", TEXT_OPTIONS),
    "h5": ("hdf5", {}),
    "hdf5": ("hdf5", {}),
    # Read by tables.py and image_folders.py:
    "xml": ("xml", {}),
    "sqlite": ("sqlite", {}),
    "db": ("sqlite", {}),
    "pkl": ("pickle", {}),
    "pickle": ("pickle", {}),
    "save_to_disk": ("save_to_disk", {}),  # a folder written by Dataset.save_to_disk
    "imagefolder": ("imagefolder", {}),  # a folder with CLASS/photo.jpg
}
ENCODED_READERS = ("csv", "json", "text")  # those with the option `encoding`
TABLE_READERS = ("xml", "sqlite", "pickle", "save_to_disk")  # the readers in tables.py
COMPRESSION_EXTENSIONS = ("gz", "zip", "zst", "xz", "bz2")  # may follow the extensions above
DECOMPRESSING_READERS = ("csv", "json", "text", "xml", "pickle")


# Finding files


def find_files(path: str) -> dict[str, str]:
    """Return what is behind a path by split: a file, glob, URL or folder.

    The result is {} if nothing on this machine has that name: it may be the id of a Hub dataset.
    Raises UserError if the path looks like a file that is missing, or a folder has no data.
    """
    root = find_spelling(Path(path).expanduser())
    is_glob = glob.has_magic(path) and glob.glob(str(root), recursive=True)
    if "://" in path or root.is_file() or is_glob:
        return {"train": str(root) if root.is_file() else path}
    if not root.is_dir():
        if root.suffix or path.startswith((".", "/", "~")):
            raise UserError(f"--data.path {path!r}: there is no such file or folder.")
        return {}
    if (root / "dataset_dict.json").is_file():  # written by DatasetDict.save_to_disk
        splits = json.loads((root / "dataset_dict.json").read_text())["splits"]
        return {split: str(root / split) for split in splits}
    if detect_format(root) == "save_to_disk":
        return {"train": str(root)}
    return _find_files_in_folder(path, root)


def _find_files_in_folder(path: str, folder: Path) -> dict[str, str]:
    """Return the files or folders named train, validation or test, else the folder of images."""
    from ftloop.data.image_folders import IMAGE_DEPTHS, iterate_images

    entries = sorted(folder.iterdir())
    files: dict[str, str] = {}
    for entry in entries:
        name = entry.name.split(".")[0].lower()
        split = SPLIT_ALIASES.get(name, name)
        if split in SPLITS and detect_format(entry) in READERS:
            if split in files:
                raise UserError(
                    f"--data.path {path!r} has two files for the split {split!r}; choose one with "
                    "--data.files."
                )
            files[split] = str(entry)
    if files:
        ignored = [entry for entry in entries if str(entry) not in files.values()]
        log_ignored_entries(folder, ignored)
        return files
    if detect_format(folder) == "imagefolder":
        return {"train": str(folder)}
    names = [_entry_name(entry) for entry in entries]
    content = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    advice = "To read a copy of a Hub dataset, add --data.name default."
    for image in chain.from_iterable(iterate_images(folder, depth) for depth in IMAGE_DEPTHS):
        advice = f"Its images are elsewhere, for example in {image.relative_to(folder)}."
        break
    raise UserError(
        f"--data.path {path!r} has no train.csv, .tsv, .json, .jsonl, .parquet or other known "
        "format, no dataset written by save_to_disk, and no images in CLASS/*.jpg, "
        f"CLASS/FOLDER/*.jpg or train/CLASS/*.jpg. It contains {content or 'nothing'}. {advice}"
    )


def log_ignored_entries(folder: Path, entries: list[Path]) -> None:
    """Log which entries of a folder are not read, except for hidden ones."""
    names = [_entry_name(entry) for entry in entries if not entry.name.startswith(".")]
    if names:
        shown = ", ".join(sorted(names)[:10]) + (", ..." if len(names) > 10 else "")
        logger.info("data: ignored in the folder %s (%d): %s", folder, len(names), shown)


def _entry_name(entry: Path) -> str:
    return f"{entry.name}/" if entry.is_dir() else entry.name


def detect_format(path: str | Path) -> str:
    """Return the format of a file, URL or folder as in READERS: "csv" for reviews.CSV.gz.

    Another extension is returned as it is, and "" if there is none.
    """
    from ftloop.data.image_folders import has_class_folders

    is_url = "://" in str(path)
    path = Path(urlsplit(str(path)).path if is_url else path).expanduser()
    if path.is_dir():
        if (path / "state.json").is_file():
            return "save_to_disk"
        return "imagefolder" if has_class_folders(path) else ""
    extensions = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if extensions and extensions[-1] in COMPRESSION_EXTENSIONS:
        extensions.pop()
    return extensions[-1] if extensions else ""


def expand_paths(split: str, names: str | Iterable[str]) -> list[str]:
    """Return files, folders and URLs in the order of their names, with globs expanded."""
    paths: list[str] = []
    for name in [names] if isinstance(names, str | Path) else names:
        path = str(name)
        if "://" not in path:
            path = str(find_spelling(Path(path).expanduser()))
        is_literal = "://" in path or os.path.exists(path)
        matches = [path] if is_literal else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise UserError(f"--data.files: the {split} file {path!r} does not exist.")
        paths += matches
    return paths


def _common_format(split: str, paths: list[str], format: str | None) -> str:
    """Return the format of all files of a split. Raises UserError for files that cannot be read."""
    formats = [format or detect_format(path) for path in paths]
    for path, kind in zip(paths, formats, strict=True):
        if kind not in READERS:
            raise UserError(
                f"--data.format: cannot tell the format of {path!r}. The formats are "
                f"{', '.join(READERS)}."
            )
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise UserError(f"--data: the {split} file {path!r} is empty.")
        is_compressed = Path(path).suffix.lower().lstrip(".") in COMPRESSION_EXTENSIONS
        if is_compressed and READERS[kind][0] not in DECOMPRESSING_READERS:
            advice = "Parquet is compressed already" if kind == "parquet" else f"it holds {kind}"
            raise UserError(f"--data: decompress the {split} file {path!r} first: {advice}.")
    if len(set(formats)) > 1:
        raise UserError(
            f"--data.files: the files of {split} must have one format, but have "
            f"{', '.join(sorted(set(formats)))}."
        )
    return formats[0]


# Reading files


def validate_reader_options(
    formats: set[str],
    options: dict[str, Any],
    field: tuple[str, ...] = (),
    query: str | None = None,
    trust_pickle: bool = False,
    streaming: bool = False,
) -> None:
    """Raise UserError for options that have no effect on these formats.

    A pickle needs `trust_pickle`, because reading it runs code.
    """
    for option, value, supported in (
        ("--data.field", field, ("json", "pkl", "pickle")),
        ("--data.query", query, ("sqlite", "db")),
        ("--data.trust-pickle", trust_pickle, ("pkl", "pickle")),
    ):
        if value and not formats & set(supported):
            raise UserError(
                f"{option} has no effect on {', '.join(sorted(formats))}: it is for "
                f"{', '.join(supported)}."
            )
    readers = {READERS[kind][0] for kind in formats if kind in READERS}
    if "pickle" in readers and not trust_pickle:
        raise UserError(
            "--data: reading a pickle runs code of whoever wrote it. If you trust the file, add "
            "--data.trust-pickle."
        )
    if "json" in formats and len(field) > 1:
        raise UserError(
            f"--data.field {' '.join(field)}: JSON files take one key only, such as data.rows."
        )
    if options and readers & set(TABLE_READERS):
        raise UserError(
            f"--data.options {options} has no effect: {', '.join(sorted(formats))} takes no "
            "options."
        )
    not_streamable = (*TABLE_READERS, "imagefolder")
    if streaming and (field or readers & set(not_streamable)):
        refused = ", ".join(sorted(formats)) + (" with --data.field" if field else "")
        streamable = [kind for kind, (name, _) in READERS.items() if name not in not_streamable]
        raise UserError(
            f"--data.streaming: {refused} cannot be streamed. The formats that can are "
            f"{', '.join(streamable)}."
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
    """Read the files of each split: a file, glob, URL or folder, or a list of these.

    `format` is a key of READERS, or None to detect it. `options` go to the reader. The others are
    fields of `ftloop.data.Data`. Raises UserError for whatever cannot be read.
    """
    import datasets

    from ftloop.data.tables import read_tables

    paths = {split: expand_paths(split, names) for split, names in files.items()}
    formats = {split: _common_format(split, names, format) for split, names in paths.items()}
    validate_reader_options(set(formats.values()), options, field, query, trust_pickle, streaming)
    if "imagefolder" in formats.values():
        return _read_image_folders(paths, formats, options)

    for split, names in paths.items():
        if READERS[formats[split]][0] in ENCODED_READERS and not ("encoding" in options or field):
            refuse_wide_characters(split, names)
    csv_splits = [split for split, kind in formats.items() if kind in ("csv", "tsv")]
    reader_options = {split: {**READERS[formats[split]][1], **options} for split in csv_splits}
    code_columns, unchecked = examine_csv_files(paths, reader_options, streaming)

    # Read each split
    data: dict[str, Any] = {}
    for split, names in paths.items():
        reader = READERS[formats[split]][0]
        with raise_user_errors(split, names), pandas_warnings(split not in unchecked):
            if reader in TABLE_READERS or (field and formats[split] == "json"):
                rows = read_tables(reader, split, names, field, query)
            else:
                converters = dict.fromkeys(code_columns, str) if split in csv_splits else {}
                rows = _load_dataset(names, formats[split], options, converters, streaming)
            if reader == "json" and not streaming:
                require_utf8(rows)
        if isinstance(rows, dict):  # a pickled dictionary of splits
            if len(files) > 1:
                raise UserError(
                    f"--data.files: the file {names[0]!r} of {split} holds several splits "
                    f"({', '.join(rows)}); give it alone."
                )
            return datasets.DatasetDict(rows)
        data[split] = rows

    if streaming:
        return datasets.IterableDatasetDict(data)
    csv_data = {split: data[split] for split in csv_splits}
    data |= restore_numeric_columns(csv_data, str(options.get("decimal", ".")))
    return datasets.DatasetDict(data)


def _load_dataset(
    paths: list[str],
    format: str,
    options: dict[str, Any],
    converters: dict[Any, type],
    streaming: bool,
) -> Any:
    """Read files by the builder of `datasets` for their format."""
    import datasets

    reader, defaults = READERS[format]
    arguments = split_names({**defaults, **options})
    if converters:
        arguments["converters"] = converters
    if streaming:
        arguments["streaming"] = True
    # data_files are glob patterns, but a file may be named "rows[1].csv".
    data_files = [path if "://" in path else glob.escape(path) for path in paths]
    return datasets.load_dataset(reader, data_files=data_files, split="train", **arguments)


def _read_image_folders(
    paths: dict[str, list[str]], formats: dict[str, str], options: dict[str, Any]
) -> "DatasetDict":
    """Read class folders, of all splits at once."""
    from ftloop.data.image_folders import read_image_folders

    if len(set(formats.values())) > 1:
        mixture = ", ".join(f"{split} {kind}" for split, kind in formats.items())
        raise UserError(
            f"--data.files: class folders cannot be mixed with other formats: {mixture}."
        )
    folders = [path for names in paths.values() for path in names]
    for folder in map(Path, folders):
        entries = list(folder.iterdir())
        ignored = [entry for entry in entries if not (entry.is_dir() and any(entry.iterdir()))]
        log_ignored_entries(folder, ignored)
    with raise_user_errors(", ".join(paths), folders):
        return read_image_folders(paths, options)
