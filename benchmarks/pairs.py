"""Make a sentence-pair task from banking77: do two sentences of a customer ask for the same thing?

    python -m benchmarks.pairs banking77/train.csv pairs      writes pairs/train.csv and pairs/validation.csv

Columns sentence1, sentence2 and label ("same" or "different"), half of the rows each. Half of the different pairs are
hard: the names of their intents share a word (card_arrival, lost_or_stolen_card). The sentences of validation, a fifth
of every intent, occur in no pair of train. No pair occurs twice. The same input gives the same files, byte for byte.
"""

import argparse
import csv
import random
from pathlib import Path

SIZES = {"train": 10_000, "validation": 2_000}
VALIDATION_SHARE = 0.2
FILLERS = {"about", "after", "by", "for", "into", "my", "not", "of", "on", "or", "to", "up", "via"}  # share no meaning
SEED = 42

Intents = dict[str, list[str]]  # the name of an intent, and its sentences


def read_intents(file: Path) -> Intents:
    """The sentences of every intent in one line each, without those that differ from an earlier one by case only."""
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
    """Cut the sentences of every intent into those of train and those of validation."""
    parts: dict[str, Intents] = {"train": {}, "validation": {}}
    for name, sentences in intents.items():
        shuffled = rng.sample(sentences, len(sentences))
        count = round(VALIDATION_SHARE * len(sentences))
        parts["validation"][name], parts["train"][name] = shuffled[:count], shuffled[count:]
    return parts


def near_intents(names: list[str]) -> dict[str, list[str]]:
    """For every intent, the others whose names share a word with its name; intents without any are left out."""
    words = {name: set(name.lower().strip("?").split("_")) - FILLERS for name in names}
    near = {name: [other for other in names if other != name and words[name] & words[other]] for name in names}
    return {name: others for name, others in near.items() if others}


def make_pairs(intents: Intents, size: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """`size` rows (sentence1, sentence2, label), shuffled: half same, a quarter different, a quarter hard."""
    near = near_intents(list(intents))
    kinds = ["same"] * (size // 2) + ["random"] * (size // 4) + ["hard"] * (size // 4)
    rng.shuffle(kinds)
    rows: list[tuple[str, str, str]] = []
    seen: set[frozenset[str]] = set()
    while len(rows) < size:
        kind = kinds[len(rows)]
        first = rng.choice(list(near if kind == "hard" else intents))
        if kind == "same":
            one, two = rng.sample(intents[first], 2)
        else:
            others = near[first] if kind == "hard" else [name for name in intents if name != first]
            one, two = rng.choice(intents[first]), rng.choice(intents[rng.choice(others)])
        pair = frozenset((one, two))
        if pair not in seen:
            seen.add(pair)
            rows.append((one, two, "same" if kind == "same" else "different"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="TRAIN.csv", help="of banking77, columns text and category")
    parser.add_argument("folder", type=Path, metavar="OUT_FOLDER")
    options = parser.parse_args()
    rng = random.Random(SEED)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, intents in split(read_intents(options.source), rng).items():
        with (options.folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("sentence1", "sentence2", "label"))
            writer.writerows(make_pairs(intents, SIZES[name], rng))


if __name__ == "__main__":
    main()
