"""What looks like a mistake in the labels: few rows, one large class, names that are no classes."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from ftloop.data.findings import MAX_EXAMPLES, Finding
from ftloop.data.labels import Labels, advise_numbers, label_name

MIN_ROWS = 5  # of a class: the scores of a smaller one depend on single rows
LARGE_SHARE = 0.95  # of the rows of train in one class
MANY_CLASSES = 20  # more different whole numbers may be quantities
# Names that often stand for a missing label, in lower case.
MISSING_NAMES = {"na", "n/a", "#n/a", "<na>", "nan", "null", "none", "nil", "-", "?", "unknown"}

Counts = dict[str, list[int]]  # rows of each class, by split


def count_classes(encoded: dict[str, list[Any]], labels: Labels) -> Counts:
    """Count the rows of each class in each split."""
    import numpy

    counts = {}
    for split, values in encoded.items():
        if labels.is_multi_label:
            counts[split] = numpy.sum(values, axis=0).astype(int).tolist()
        else:
            counts[split] = numpy.bincount(values, minlength=len(labels.names)).tolist()
    return counts


def check_classes(encoded: dict[str, list[Any]], labels: Labels, data: Any) -> Iterator[Finding]:
    """Find what is unusual in the numbers and the names of the classes.

    `data` has the options `validation` and `test`.
    """
    if not labels.names:
        return
    counts = count_classes(encoded, labels)
    for split, sizes in counts.items():
        yield from find_small_classes(split, sizes, labels, data)
    if "train" in counts and not labels.is_multi_label:
        yield from find_large_class(counts["train"], labels)
        yield from find_unlikely_classes(counts["train"], labels)
    for name, *sizes in zip(labels.names, *counts.values(), strict=True):
        if name.casefold() in MISSING_NAMES:
            yield Finding(
                f"the label {name!r} of {sum(sizes)} rows may mean that they have none. Drop them: "
                f"a CSV file with --data.options na_values={name} --data.drop-empty, others with "
                "--data.filter"
            )


def find_small_classes(
    split: str, sizes: list[int], labels: Labels, data: Any
) -> Iterator[Finding]:
    """Find the classes with so few rows in a split that their scores mean little."""
    small = [(size, name) for name, size in zip(labels.names, sizes, strict=True)]
    small = sorted(pair for pair in small if pair[0] < MIN_ROWS)
    if not small:
        return
    examples = ", ".join(f"{name!r} {size}" for size, name in small[:MAX_EXAMPLES])
    if split == "train":
        advice = (
            f"--label-min-rows {MIN_ROWS} drops them, and --label-rare other puts them together"
        )
    else:
        size, example = getattr(data, split, 0.0), ""
        if 0 < size < 1:
            share = math.ceil(100 * size * MIN_ROWS / max(small[0][0], 1)) / 100
            example = f" (if it is cut from train: --data.{split} {min(share, 0.5)})"
        advice = (
            f"their scores depend on single rows. Give {split} more of their rows{example}, or "
            "merge classes with --label-merge"
        )
    yield Finding(
        f"{split} has fewer than {MIN_ROWS} rows of {len(small)} of the {len(sizes)} classes "
        f"({examples}{', ...' if len(small) > MAX_EXAMPLES else ''}): {advice}"
    )


def find_large_class(sizes: list[int], labels: Labels) -> Iterator[Finding]:
    """Find a class that nearly all rows of train are in."""
    largest, total = max(sizes), sum(sizes)
    if largest >= LARGE_SHARE * total:
        yield Finding(
            f"{largest} of the {total} rows of train have the label "
            f"{labels.names[sizes.index(largest)]!r}: a model that always predicts it has an "
            f"accuracy of {largest / total:.2f}. Compare f1_macro and choose by --best-metric "
            "f1_macro; recipes/balanced_order.py draws all classes equally often"
        )


def find_unlikely_classes(sizes: list[int], labels: Labels) -> Iterator[Finding]:
    """Find names that are identifiers, quantities or texts rather than classes."""
    num_classes, total = len(sizes), sum(sizes)
    numbers = advise_numbers(labels.names)
    if numbers:
        yield Finding(f"the labels are {num_classes} names such as {labels.names[0]!r}.{numbers}")
    elif num_classes > MANY_CLASSES and all(
        re.fullmatch(r"-?\d+", name) is not None for name in labels.names
    ):
        yield Finding(
            f"the labels are {num_classes} different whole numbers. If they are quantities, add "
            "--problem-type regression"
        )
    elif num_classes > MANY_CLASSES and num_classes > total / 3:
        yield Finding(
            f"the labels are {num_classes} classes for {total} rows of train, such as "
            f"{labels.names[0]!r}: they may be identifiers or texts. --label-column chooses "
            "another column"
        )


def find_similar_names(names: Iterable[str]) -> Iterator[Finding]:
    """Find names that differ only in case, space or invisible characters: "Joy", "joy " and "joy".

    It is not a mistake if training takes them for one name (see `labels.label_name`).
    """
    variants = defaultdict(set)
    for name in names:
        characters = unicodedata.normalize("NFKC", name).casefold()
        visible = [mark for mark in characters if unicodedata.category(mark) != "Cf"]
        variants["".join("".join(visible).split())].add(name)
    groups = [sorted(group) for group in variants.values() if len(group) > 1]
    if groups:
        examples = ", ".join(" and ".join(map(_quote, group)) for group in groups[:MAX_EXAMPLES])
        yield Finding(
            "label names differ only in case or space (--label-lower or --label-merge unites "
            f"them): {len(groups)}, for example {examples}"
            f"{', ...' if len(groups) > MAX_EXAMPLES else ''}",
            is_mistake=any(len(set(map(label_name, group))) > 1 for group in groups),
        )


def _quote(name: str) -> str:
    """Quote a name, with escapes for what is not seen or has another Unicode form than NFC."""
    is_plain = name.isprintable() and name == unicodedata.normalize("NFC", name)
    return repr(name) if is_plain else ascii(name)
