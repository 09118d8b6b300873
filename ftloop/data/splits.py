"""Name the splits of a source "train", "validation" and "test"; cut missing ones from train."""

import hashlib
import json
import logging
import random
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from ftloop.data.encodings import normalize_name
from ftloop.data.labels import label_name
from ftloop.data.shape import require_columns
from ftloop.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}


class SplitOptions(Protocol):
    """The options of `ftloop.data.Data` that this file reads."""

    validation: float
    test: float
    stratify: bool
    split_group: str | None
    split_hash: tuple[str, ...]
    split_seed: int
    limit: int | None


def rename_splits(data: "DatasetDict", names: dict[str, str]) -> "DatasetDict":
    """Return the splits "train", "validation" and "test" of a source.

    `names` is {split: its name in the source}, from `--data.splits`. Without it, the usual names
    and aliases count, and the log names the splits that are not used.
    """
    from datasets import DatasetDict

    data = type(data)({normalize_name(name): rows for name, rows in data.items()})
    names = {split: normalize_name(str(name)) for split, name in names.items()}
    renamed = {}
    for split, name in names.items():
        if split not in SPLITS:
            raise UserError(
                f"--data.splits: {split!r} is not one of {', '.join(SPLITS)}"
                f"{did_you_mean(split, SPLITS)}."
            )
        if name not in data:
            raise UserError(
                f"--data.splits: the source has no split {name!r}{did_you_mean(name, data)}. "
                f"Its splits are {', '.join(data)}."
            )
        renamed[split] = data[name]
    if not names:
        for name, rows in data.items():
            split = SPLIT_ALIASES.get(name, name)
            if split in renamed:
                raise UserError(
                    f"--data: the source has two splits for {split!r}; choose one with "
                    "--data.splits."
                )
            renamed[split] = rows
        unused = sorted(renamed.keys() - set(SPLITS))
        if unused:
            logger.info(
                "data: the splits %s are not used (--data.splits chooses others)", ", ".join(unused)
            )
    return DatasetDict({split: renamed[split] for split in SPLITS if split in renamed})


def cut_splits(
    data: "DatasetDict", options: SplitOptions, classes: list[Any] | None
) -> "DatasetDict":
    """Cut the splits "test" and "validation" from train where the source lacks them.

    `classes` has one value per row of train to stratify by; None cuts at random. The rows of each
    split keep the order of the source. Raises UserError.
    """
    from datasets import DatasetDict

    warn_about_unused_options(data, options)
    train, splits = data["train"], dict(data)
    positions = _hash_positions(train, options) if options.split_hash else None
    groups = _row_groups(train, options.split_group) if options.split_group else None
    classes = classes if options.stratify else None
    rows = list(range(len(train)))  # those that are still in train
    for split, size in (("test", options.test), ("validation", options.validation)):
        if split in splits or not size:
            continue
        requested = round(size * len(train)) if size < 1 else int(size)
        if positions:
            start = options.test if split == "validation" else 0.0
            hashed = [row for row in rows if start <= positions[row] < start + size]
            requested = len(hashed)
        if not 0 < requested < len(rows):
            raise UserError(
                f"--data.{split} {size}: cannot cut {requested} rows from the {len(rows)} rows of "
                "train."
            )
        if positions:
            method, cut = "by hash", hashed
        elif groups:
            method, cut = "by group", _cut_groups(rows, requested, groups, split, options)
        else:
            method = "stratified by class" if classes is not None else "at random"
            cut = _cut_rows(rows, requested, classes, split, options)
        rows = sorted(set(rows) - set(cut))
        splits[split] = train.select(cut)
        difference = f" ({requested} were requested)" if len(cut) != requested else ""
        logger.info(
            "data: %s: %d rows%s were cut from train, %s (seed %d)",
            split,
            len(cut),
            difference,
            method,
            options.split_seed,
        )
    if len(rows) < len(train):
        splits["train"] = train.select(rows)
    return DatasetDict({split: splits[split] for split in SPLITS if split in splits})


def warn_about_unused_options(data: "DatasetDict", options: SplitOptions) -> None:
    """Log a warning for each option that has no effect because the source has the split already."""
    for split in ("validation", "test"):
        size = getattr(options, split)
        if split in data and size != getattr(type(options), split):
            logger.warning(
                "data: --data.%s %g has no effect: the source has a %s split", split, size, split
            )
    cuts = any(getattr(options, split) and split not in data for split in ("validation", "test"))
    for name in ("split_group", "split_hash"):
        if getattr(options, name) and not cuts:
            option = name.replace("_", "-")
            logger.warning("data: --data.%s has no effect: no split is cut from train", option)


def _cut_rows(
    rows: list[int], count: int, classes: list[Any] | None, split: str, options: SplitOptions
) -> list[int]:
    """Return `count` of the rows. A row that is alone in its class is never cut."""
    from sklearn.model_selection import train_test_split

    keys = None
    if classes is not None:
        sizes = Counter(classes[row] for row in rows)
        rows = [row for row in rows if sizes[classes[row]] > 1]
        keys = [classes[row] for row in rows]
    try:
        _, cut = train_test_split(
            rows, test_size=count, random_state=options.split_seed, stratify=keys
        )
    except ValueError as error:
        raise UserError(
            f"--data.{split} {getattr(options, split)}: cannot keep the shares of the classes: "
            f"{error} --data.no-stratify cuts at random."
        ) from error
    return sorted(cut)


def _cut_groups(
    rows: list[int], count: int, groups: list[str], split: str, options: SplitOptions
) -> list[int]:
    """Return the rows of whole groups: as large a share of the groups as `count` is of the rows."""
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(
        n_splits=1, test_size=count / len(rows), random_state=options.split_seed
    )
    try:
        _, places = next(splitter.split(rows, groups=[groups[row] for row in rows]))
    except ValueError as error:
        raise UserError(
            f"--data.{split} {getattr(options, split)}: cannot cut whole groups: {error}"
        ) from error
    return [rows[place] for place in places]


def _row_groups(rows: "Dataset", column: str) -> list[str]:
    """Return the group of each row. Raises UserError for rows without one.

    Rows without a group would otherwise form one large group.
    """
    require_columns({"train": rows}, (column,), "--data.split-group")
    groups = rows[column][:]
    missing = [row for row, group in enumerate(groups) if group is None or group == ""]
    if missing:
        raise UserError(
            f"--data.split-group {column}: {len(missing)} row(s) of train have no group, counted "
            f"from 0: {', '.join(map(str, missing[:10]))}{', ...' if len(missing) > 10 else ''}."
        )
    return list(map(label_name, groups))  # as for labels, 3 and 3.0 are one group


def _hash_positions(rows: "Dataset", options: SplitOptions) -> list[float]:
    """Return a number in [0, 1) for each row, a hash of its `split_hash` cells and the seed."""
    require_columns({"train": rows}, options.split_hash, "--data.split-hash")
    positions = []
    for cells in zip(*(rows[column][:] for column in options.split_hash), strict=True):
        texts = [unicodedata.normalize("NFC", str(cell)) for cell in cells]
        content = json.dumps([options.split_seed, *texts]).encode()
        digest = hashlib.blake2b(content, digest_size=8).digest()
        positions.append(int.from_bytes(digest) / 2**64)
    return positions


def limit_rows(data: "DatasetDict", options: SplitOptions) -> "DatasetDict":
    """Keep at most `options.limit` rows of each split, drawn at random, in the source's order."""
    limited = dict(data)
    for split, rows in data.items():
        if options.limit is not None and options.limit < len(rows):
            generator = random.Random(options.split_seed)
            chosen = sorted(generator.sample(range(len(rows)), options.limit))
            limited[split] = rows.select(chosen)
            logger.info(
                "data: %s: %d of %d rows, drawn at random (--data.limit)",
                split,
                options.limit,
                len(rows),
            )
    return type(data)(limited)
