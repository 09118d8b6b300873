"""Make a sentence-pair task from banking77: do two sentences of a customer ask for the same thing?

    python -m benchmarks.pairs banking77/train.csv pairs

Writes pairs/train.csv and pairs/validation.csv with the columns sentence1, sentence2 and label
("same" or "different"), half of the rows each. Half of the different pairs are hard: the names of
their intents share a word (card_arrival, lost_or_stolen_card). The sentences of validation, a fifth
of every intent, occur in no pair of train. No pair occurs twice. The same input gives the same
files, byte for byte.
"""

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

SIZES = {"train": 10_000, "validation": 2_000}
VALIDATION_SHARE = 0.2
# Words of names that do not make two intents similar
STOP_WORDS = {
    *("about", "after", "by", "for", "into", "my", "not", "of", "on", "or", "to", "up", "via")
}
SEED = 42

Intents = dict[str, list[str]]  # the sentences of each intent, by its name


@dataclass(frozen=True)
class Options:
    """Where to read and write."""

    source: Annotated[Path, tyro.conf.Positional]  # CSV file with the columns text and category
    folder: Annotated[Path, tyro.conf.Positional]  # to write train.csv and validation.csv


def read_intents(file: Path) -> Intents:
    """Read the sentences of every intent, without those that differ from another one by case."""
    intents: Intents = {}
    seen = set()
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            sentence = " ".join(row["text"].split())
            if sentence.lower() not in seen:
                seen.add(sentence.lower())
                intents.setdefault(row["category"], []).append(sentence)
    return intents


def split(intents: Intents, rng: random.Random) -> dict[str, Intents]:
    """Divide the sentences of every intent into train and validation."""
    parts: dict[str, Intents] = {"train": {}, "validation": {}}
    for name, sentences in intents.items():
        shuffled = rng.sample(sentences, len(sentences))
        count = round(VALIDATION_SHARE * len(sentences))
        parts["validation"][name], parts["train"][name] = shuffled[:count], shuffled[count:]
    return parts


def find_similar_intents(names: list[str]) -> dict[str, list[str]]:
    """Return the other intents whose names share a word, for each intent that has any."""
    words = {name: set(name.lower().strip("?").split("_")) - STOP_WORDS for name in names}
    similar = {}
    for name in names:
        others = [other for other in names if other != name and words[name] & words[other]]
        if others:
            similar[name] = others
    return similar


def make_pairs(intents: Intents, size: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """Return rows (sentence1, sentence2, label): half same, a quarter different, a quarter hard."""
    similar = find_similar_intents(list(intents))
    kinds = ["same"] * (size // 2) + ["random"] * (size // 4) + ["hard"] * (size // 4)
    rng.shuffle(kinds)
    rows: list[tuple[str, str, str]] = []
    seen: set[frozenset[str]] = set()
    while len(rows) < size:
        kind = kinds[len(rows)]
        intent = rng.choice(list(similar if kind == "hard" else intents))
        if kind == "same":
            first, second = rng.sample(intents[intent], 2)
        else:
            others = [name for name in intents if name != intent]
            others = similar[intent] if kind == "hard" else others
            first, second = rng.choice(intents[intent]), rng.choice(intents[rng.choice(others)])
        pair = frozenset((first, second))
        if pair not in seen:
            seen.add(pair)
            rows.append((first, second, "same" if kind == "same" else "different"))
    return rows


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.pairs", description=__doc__)
    rng = random.Random(SEED)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, intents in split(read_intents(options.source), rng).items():
        file = options.folder / f"{name}.csv"
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("sentence1", "sentence2", "label"))
            writer.writerows(make_pairs(intents, SIZES[name], rng))


if __name__ == "__main__":
    main()
