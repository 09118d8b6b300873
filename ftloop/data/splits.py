"""The splits "train", "validation" and "test": the source's by our names, and those that it lacks cut from train."""

import logging
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import DatasetDict

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


def limit_rows(data: "DatasetDict", source: "Data") -> "DatasetDict":
    """At most `source.limit` rows of each split, drawn at random, in the order of the source."""
    return data
