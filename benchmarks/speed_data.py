"""The rows that the speed benchmarks train on: real or generated texts, and generated images.

Real texts are read from a folder (`--data`) with banking77/train.csv, goemotions/train.tsv, dev.tsv
and labels.txt. Docstrings are read from the libraries that are installed.
"""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEED = 1
# Each is one piece of a WordPiece vocabulary, so that generated texts have the intended lengths.
WORDS = """
the of and to in is was for on that with as it his be at by had not are but from or have an they
which one you were her all she there would their we him been has when who will more no if out so
said what up its about into than them can only other new some could time these two may then do first
any my now such like our over man me even most made after also
""".split()  # noqa: SIM905 - as a list literal it would take 100 lines

Splits = dict[str, Any]  # "train" and "validation": lists of rows; "labels" of tweets


def load_texts(source: str, data: Path | None, num_train: int, num_validation: int) -> Splits:
    """Return random rows of pairs, tweets or docstrings, as dictionaries.

    Without a folder `data`, pairs and tweets are generated, with similar lengths.
    """
    if source == "docstrings":
        splits = read_docstrings()
    elif source == "tweets":
        splits = read_tweets(data) if data else generate_tweets(num_train, num_validation)
    else:
        splits = read_pairs(data) if data else generate_pairs(num_train, num_validation)
    for split, count in (("train", num_train), ("validation", num_validation)):
        if count > len(splits[split]):
            available = len(splits[split])
            raise SystemExit(
                f"{source}: {count} rows of {split} are needed, but it has {available}"
            )
        splits[split] = random.Random(SEED).sample(splits[split], count)
    return splits


def read_docstrings() -> Splits:
    from ftloop.data.samples import build_docstrings

    folder, splits = build_docstrings(), {}
    for split in ("train", "validation"):
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = map(json.loads, lines)
        splits[split] = [{"text": row["text"], "label": row["library"]} for row in rows]
    return splits


def read_pairs(data: Path) -> Splits:
    """Return the sentence pairs of benchmarks/pairs.py."""
    from benchmarks import pairs

    rng, splits = random.Random(pairs.SEED), {}
    parts = pairs.split(pairs.read_intents(data / "banking77" / "train.csv"), rng)
    names = ("sentence1", "sentence2", "label")
    for split, intents in parts.items():
        rows = pairs.make_pairs(intents, pairs.SIZES[split], rng)
        splits[split] = [dict(zip(names, row, strict=True)) for row in rows]
    return splits


def read_tweets(data: Path) -> Splits:
    folder = data / "goemotions"
    splits: Splits = {"labels": (folder / "labels.txt").read_text().split()}
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
        cells = [line.split("\t") for line in lines]
        splits[split] = [{"text": text, "label": labels} for text, labels, _ in cells]
    return splits


def generate_text(rng: random.Random, num_tokens: float) -> str:
    return " ".join(rng.choices(WORDS, k=max(2, round(num_tokens))))


def generate_pairs(num_train: int, num_validation: int) -> Splits:
    """Return pairs with the lengths of MRPC: 53 tokens, a third of random batches of 32 is padding.

    The label depends on the first word.
    """
    rng, splits = random.Random(SEED), {}
    for split, count in (("train", num_train), ("validation", num_validation)):
        rows = []
        for _ in range(count):
            first = generate_text(rng, rng.gauss(25, 9))
            second = generate_text(rng, rng.gauss(25, 9))
            label = ("same", "different")[WORDS.index(first.split()[0]) % 2]
            rows.append({"sentence1": first, "sentence2": second, "label": label})
        splits[split] = rows
    return splits


def generate_tweets(num_train: int, num_validation: int) -> Splits:
    """Return texts of 22 tokens, of which 57 % are padding in random batches of 32.

    The labels depend on the first two words.
    """
    rng = random.Random(SEED)
    splits: Splits = {"labels": [f"label{number}" for number in range(28)]}
    for split, count in (("train", num_train), ("validation", num_validation)):
        texts = [generate_text(rng, rng.lognormvariate(2.9, 0.5)) for _ in range(count)]
        rows = []
        for text in texts:
            labels = {WORDS.index(word) % 28 for word in text.split()[:2]}
            rows.append({"text": text, "label": ",".join(map(str, sorted(labels)))})
        splits[split] = rows
    return splits


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_images(folder: Path, num_images: int) -> None:
    """Write JPEGs with the detail of photographs (some 60 KB), in two class folders."""
    import numpy
    from PIL import Image

    rng = numpy.random.default_rng(SEED)
    for number in range(num_images):
        small = Image.fromarray(rng.integers(0, 256, (13, 15, 3), numpy.uint8))
        pixels = numpy.asarray(small.resize((460, 391), Image.Resampling.BICUBIC))
        noisy = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(numpy.uint8)
        file = folder / ("one", "two")[number % 2] / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(file, quality=90)


def write_bert(model: str, sizes: dict[str, int], folder: Path) -> str:
    """Write a random BERT of these sizes with the tokenizer of a text model; return the folder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(SEED)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
