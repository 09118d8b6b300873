"""The splits "train", "validation" and "test": the source's by our names, and those that it lacks cut from train."""

import hashlib
import json
import logging
import random
from typing import TYPE_CHECKING, Any

from ftloop.data.shape import require_columns
from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from ftloop.data.source import Data

logger = logging.getLogger("ftloop")

SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
SPLITS = ("train", "validation", "test")


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


def cut_splits(data: "DatasetDict", source: "Data", classes: list[Any] | None) -> "DatasetDict":
    """Cut the splits that the source lacks from train. `classes`: a value per row of train to stratify by, or None."""
    from datasets import DatasetDict

    warn_of_no_effect(data, source)
    data, rows = dict(data), list(range(len(data["train"])))
    original = data["train"]
    places = _places(original, source) if source.split_hash else None
    groups = _groups(original, source.split_group) if source.split_group else None
    how = "stratified" if source.stratify and classes is not None else "at random"
    how = "by hash" if places else "by group" if groups else how
    for split, wanted in (("test", source.test), ("validation", source.validation)):
        if split in data or not wanted:
            continue
        count = round(wanted * len(original)) if wanted < 1 else int(wanted)
        if places:
            start = source.test if split == "validation" else 0.0
            cut = [row for row in rows if start <= places[row] < start + wanted]
            count = len(cut)
        if not 0 < count < len(rows):
            raise UserError(
                f"--task.data.{split} {wanted}: {count} rows cannot be cut from the {len(rows)} rows of train"
            )
        try:
            if groups:
                cut = _cut_groups(rows, count, groups, source.split_seed)
            elif not places:
                cut = _cut(rows, count, classes if source.stratify else None, source.split_seed)
        except ValueError as error:
            what = "cut whole groups" if groups else "keep the shares of the classes"
            way_out = "" if groups else " (--task.data.no-stratify cuts at random)"
            raise UserError(f"--task.data.{split} {wanted}: cannot {what}: {error}{way_out}") from error
        chosen = set(cut)
        rows = [row for row in rows if row not in chosen]
        data[split] = original.select(cut)
        about = f" ({count} were asked for)" if len(cut) != count else ""
        logger.info(
            "data: %s is %d rows%s cut from train, %s (seed %d)", split, len(cut), about, how, source.split_seed
        )
    if len(rows) < len(original):
        data["train"] = original.select(rows)
    return DatasetDict({split: data[split] for split in SPLITS if split in data})


def warn_of_no_effect(data: "DatasetDict", source: "Data") -> None:
    """Say which options of the cut do nothing, for the source has the splits already."""
    for split in ("validation", "test"):
        wanted = getattr(source, split)
        if split in data and wanted != getattr(type(source), split):
            logger.warning("data: --task.data.%s %g has no effect: the source has a %s split", split, wanted, split)
    for name in ("split_group", "split_hash"):
        if getattr(source, name) and not any(
            getattr(source, split) and split not in data for split in ("validation", "test")
        ):
            logger.warning("data: --task.data.%s has no effect: no split is cut", name.replace("_", "-"))


def _cut(rows: list[int], count: int, classes: list[Any] | None, seed: int) -> list[int]:
    """`count` of the rows, in the order of the source. The only row of a class stays in train."""
    from collections import Counter

    from sklearn.model_selection import train_test_split

    lone = set()
    if classes is not None:
        sizes = Counter(classes[row] for row in rows)
        lone = {row for row in rows if sizes[classes[row]] == 1}
    divisible = [row for row in rows if row not in lone]
    keys = [classes[row] for row in divisible] if classes is not None else None
    _, cut = train_test_split(divisible, test_size=count, random_state=seed, stratify=keys)
    return sorted(cut)


def _cut_groups(rows: list[int], count: int, groups: list[str], seed: int) -> list[int]:
    """The rows of as large a share of the groups as `count` is of the rows, in the order of the source."""
    from sklearn.model_selection import GroupShuffleSplit

    divider = GroupShuffleSplit(n_splits=1, test_size=count / len(rows), random_state=seed)
    _, cut = next(divider.split(rows, groups=[groups[row] for row in rows]))
    return [rows[place] for place in cut]


def _groups(rows: "Dataset", column: str) -> list[str]:
    """The group of each row. Raises UserError for rows without one, which would pass for one large group."""
    require_columns({"train": rows}, (column,), "--task.data.split-group")
    found = rows[column][:]
    lacking = [row for row, group in enumerate(found) if group is None or group == ""]
    if lacking:
        raise UserError(
            f"--task.data.split-group {column}: {len(lacking)} row(s) of train have no value, counted from 0: "
            f"{', '.join(map(str, lacking[:10]))}"
        )
    return list(map(str, found))


def _places(rows: "Dataset", source: "Data") -> list[float]:
    """A number in [0, 1) for each row, which its cells in `split_hash` and the seed alone decide."""
    require_columns({"train": rows}, source.split_hash, "--task.data.split-hash")
    cells = zip(*(rows[column][:] for column in source.split_hash), strict=True)
    digests = (
        hashlib.blake2b(json.dumps([source.split_seed, *map(str, row)]).encode(), digest_size=8).digest()
        for row in cells
    )
    return [int.from_bytes(digest) / 2**64 for digest in digests]


def limit_rows(data: "DatasetDict", source: "Data") -> "DatasetDict":
    """At most `source.limit` rows of each split, drawn at random, in the order of the source."""
    limited = dict(data)
    for split, rows in data.items():
        if source.limit is not None and source.limit < len(rows):
            draw = random.Random(source.split_seed)
            limited[split] = rows.select(sorted(draw.sample(range(len(rows)), source.limit)))
            logger.info("data: %s: %d of %d rows, drawn at random (--task.data.limit)", split, source.limit, len(rows))
    return type(data)(limited)
