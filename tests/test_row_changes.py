"""A run resumes only on the rows with which it began, in every split and on every rank."""

import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from conftest import run_script, run_script_of_ftloop, sentences, write_csv
from datasets import Dataset
from interrupt import train_until_step
from PIL import Image
from toy import Points, Rows, train_toy, train_toys_in_ranks

from ftloop.checkpoint import find_checkpoints, load_state
from ftloop.data import Data, images
from ftloop.report.scored import storage_key
from ftloop.runs.record import load_config
from ftloop.tasks import ImageClassification, TextClassification

OTHER_ROWS = "are not those with which the run began"


def rewrite(file: Path, change: Callable[[bytes], bytes], keeps_time: bool = False) -> None:
    """Change a file; `keeps_time` sets its modification time back, as copying tools may do."""
    status, content = file.stat(), file.read_bytes()
    changed = change(content)
    assert changed != content
    file.write_bytes(changed)
    if keeps_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def files_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@dataclass
class Killed:
    """A run that was killed, its command, and the folder of its files and of the run."""

    command: list[str]
    folder: Path

    def resume(self, *words: str) -> Any:
        return run_script("train.py", *self.command, *words)

    def check_that_it_is_refused(self, splits: str) -> None:
        before = files_of(self.folder / "run")
        result = self.resume()
        assert result.code == 2, result.err
        assert f"error: the rows of {splits} {OTHER_ROWS}. Restore them, or start" in result.err
        assert result.err.count("error:") == 1
        assert files_of(self.folder / "run") == before


def restore_after(killed: Killed) -> Iterator[Killed]:
    """Give a killed run to a test, which may change its data and resume it."""
    kept = files_of(killed.folder)
    yield killed
    shutil.rmtree(killed.folder)
    for file, content in kept.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


# Texts


@pytest.fixture(scope="module")
def killed_on_texts(tiny, tmp_path_factory) -> Killed:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "data").mkdir()
    for seed, (split, count) in enumerate({"train": 24, "validation": 8, "test": 8}.items()):
        write_csv(folder / "data" / f"{split}.csv", sentences(count, seed))
    (folder / "names.txt").write_text("red\ngreen\nblue\n")
    command = ["configs/text.py", "--model", tiny("bert"), "--data", str(folder / "data")]
    command += ["--label", "number", "--label-names", str(folder / "names.txt")]
    command += ["--max-length", "32", "--batch-size", "8", "--epochs", "2", "--save-every", "2"]
    command += ["--run-dir", str(folder / "run")]
    train_until_step(3, *command)
    return Killed(command, folder)


@pytest.fixture
def texts(killed_on_texts) -> Iterator[Killed]:
    yield from restore_after(killed_on_texts)


def change_a_word(content: bytes) -> bytes:
    return content.replace(b"sea", b"sky", 1)


def swap_two_rows(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    return b"".join(lines)


def change_a_label(content: bytes) -> bytes:
    return content.replace(b",0,", b",1,", 1)


def swap_names(content: bytes) -> bytes:
    return b"blue\ngreen\nred\n"


@pytest.mark.parametrize(
    ("file", "change", "splits"),
    [
        ("data/train.csv", change_a_word, "train"),
        ("data/train.csv", swap_two_rows, "train"),
        ("data/validation.csv", change_a_word, "validation"),
        ("data/test.csv", change_a_label, "test"),
        ("names.txt", swap_names, "train and validation and test"),
    ],
)
def test_a_run_does_not_resume_on_changed_texts(texts, file, change, splits):
    rewrite(texts.folder / file, change)
    texts.check_that_it_is_refused(splits)


def test_a_split_that_appears_is_another_split(texts):
    (texts.folder / "data" / "test.csv").unlink()
    texts.check_that_it_is_refused("test")


def test_allow_changes_accepts_other_rows_and_says_so(texts):
    rewrite(texts.folder / "data" / "train.csv", change_a_word)
    result = texts.resume("--allow-changes")
    assert result.code == 0, result.err
    assert f"resume: the rows of train {OTHER_ROWS}" in result.err
    # The ledger names the rows before and after.
    ledger = (texts.folder / "run" / "ledger.jsonl").read_text().splitlines()
    one, two = [line["fingerprints"] for line in map(json.loads, ledger) if "num_rows" in line]
    assert one["train"] != two["train"]
    assert one["validation"] == two["validation"]
    newest = find_checkpoints(texts.folder / "run" / "checkpoints")[-1]
    assert load_state(newest).fingerprints == two
    assert run_script_of_ftloop("verify", texts.folder / "run").code == 0


def test_a_comparison_of_two_runs_names_the_splits_with_other_rows(texts):
    assert texts.resume().code == 0
    rewrite(texts.folder / "data" / "validation.csv", change_a_word)
    assert texts.resume("--run-dir", texts.folder / "other").code == 0
    compared = run_script_of_ftloop("verify", texts.folder / "run", texts.folder / "other")
    assert "rows      validation has other rows" in compared.out
    assert "rows      train" not in compared.out


def test_files_with_equal_content_may_be_new(texts):
    for file in (texts.folder / "data").iterdir():
        file.touch()
    assert texts.resume().code == 0
    check_evaluation(texts, texts.folder / "data" / "test.csv", change_a_word)


def check_evaluation(finished: Killed, file: Path, change: Callable[[bytes], bytes]) -> None:
    """Check that evaluate.py notices changed rows, and only those."""
    message = "the rows of test are not those with which the run was trained"
    for is_changed in (False, True):
        if is_changed:
            rewrite(file, change)
        evaluated = run_script("evaluate.py", finished.folder / "run")
        assert evaluated.code == 0, evaluated.err
        assert (message in evaluated.err) == is_changed


# Images in files of their own


@pytest.fixture(scope="module")
def killed_on_images(tmp_path_factory) -> Killed:
    folder = tmp_path_factory.mktemp("images")
    draw = numpy.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        for label in ("cats", "dogs"):
            (folder / "data" / split / label).mkdir(parents=True)
            for row in range(count):
                pixels = draw.integers(0, 256, (16, 16, 3), numpy.uint8)
                Image.fromarray(pixels).save(folder / "data" / split / label / f"{row}.bmp")
    command = ["configs/image.py", "--data", str(folder / "data"), "--model", "vit"]
    command += ["--init", "random", "--image-size", "8", "--model-options", "hidden_size=8"]
    command += ["num_hidden_layers=1", "num_attention_heads=1", "intermediate_size=8"]
    command += ["patch_size=8", "--batch-size", "2", "--epochs", "1", "--save-every", "2"]
    command += ["--run-dir", str(folder / "run")]
    train_until_step(3, *command)
    return Killed(command, folder)


@pytest.fixture
def photos(killed_on_images) -> Iterator[Killed]:
    yield from restore_after(killed_on_images)


def change_a_pixel(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])  # the last byte of a BMP is a colour


@pytest.mark.parametrize("keeps_time", [False, True])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_run_does_not_resume_on_changed_images(photos, split, keeps_time):
    rewrite(photos.folder / "data" / split / "dogs" / "1.bmp", change_a_pixel, keeps_time)
    photos.check_that_it_is_refused(split)


def test_a_run_on_images_is_evaluated_on_its_rows(photos):
    assert photos.resume().code == 0
    check_evaluation(photos, photos.folder / "data" / "test" / "cats" / "0.bmp", change_a_pixel)


def test_the_report_predicts_changed_images_again(photos):
    assert photos.resume().code == 0
    run = photos.folder / "run"

    def key() -> str:
        return storage_key(run, "test", load_config(run).task.rows["test"])

    before = key()
    assert key() == before
    rewrite(photos.folder / "data/test/cats/0.bmp", change_a_pixel, keeps_time=True)
    assert key() != before


def test_files_of_images_are_not_read_again_before_they_change(photos, monkeypatch):
    def load() -> dict[str, str]:
        data = Data(path=str(photos.folder / "data"))
        task = ImageClassification(model="vit", init="random", data=data)
        return {split: rows.fingerprint for split, rows in task.load_datasets().items()}

    reads: list[Path] = []
    first = load()
    monkeypatch.setattr(images.Path, "read_bytes", lambda path: reads.append(path) or b"")
    assert load() == first
    assert not reads


# The digest of other kinds of rows


def fingerprints(task: Any) -> dict[str, str]:
    return {split: dataset.fingerprint for split, dataset in task.load_datasets().items()}


def to_bytes(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize("encode", [to_bytes, lambda image: image], ids=["bytes", "PIL"])
def test_images_within_a_table_count_by_their_pixels(encode):
    def digest(change: int) -> str:
        pixels = numpy.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), numpy.uint8)
        pixels[2, 0, 0, 0] ^= change
        cells = [encode(Image.fromarray(values)) for values in pixels]
        rows = Dataset.from_list(
            [{"image": cell, "label": "ab"[cell is cells[0]]} for cell in cells]
        )
        data = Data.from_memory(rows, validation=0)
        return fingerprints(ImageClassification(model="vit", init="random", data=data))["train"]

    assert digest(0) == digest(0) != digest(1)


def test_the_view_of_images_counts(photos):
    data = Data(path=str(photos.folder / "data"))
    sizes = [
        fingerprints(ImageClassification(model="vit", init="random", data=data, image_size=size))
        for size in (16, 32)
    ]
    assert sizes[0]["train"] != sizes[1]["train"]


@pytest.mark.parametrize(
    ("column", "old", "new", "options"),
    [
        ("text", "a rose", "a sea", {"text_columns": ("text", "other")}),
        ("other", "is red", "is blue", {"text_columns": ("text", "other")}),
        ("tags", ["red", "deep"], ["red"], {"label_column": "tags"}),
        ("tags", ["red", "deep"], ["deep", "pale"], {"label_column": "tags"}),
        ("tone", 0.25, 0.26, {"label_column": "tone"}),
        ("label", "red", "green", {}),
        ("text", "a rose", "a sea", {"long_text": "windows", "window_overlap": 1}),
        ("text", "a rose", "a sea", {"pad_to": "max"}),
    ],
)
def test_one_cell_of_any_kind_gives_another_digest(tiny, column, old, new, options):
    def digest(cell: Any) -> str:
        row = {"text": "a rose", "other": "is red", "label": "red", "tags": ["red", "deep"]}
        rows = [{**row, "tone": 0.25}, {**row, "text": "the sea", "label": "green"}] * 2
        rows = [{"tone": 1.5, **row} for row in rows]
        rows[0] = {**rows[0], column: cell}
        data = Data.from_memory(Dataset.from_list(rows), validation=0)
        options_of_task = {"label_column": "label", "max_length": 8, **options}
        return fingerprints(TextClassification(model=tiny("bert"), data=data, **options_of_task))[
            "train"
        ]

    assert digest(old) == digest(old) != digest(new)


@dataclass(frozen=True)
class Weighted(TextClassification):
    """Rows with weights, as a fork adds them."""

    weight: float = 1.0

    def build_dataset(self, prepared: Any, labels: Any, split: str) -> Any:
        prepared = prepared.add_column("weights", [self.weight, *[1.0] * (len(prepared) - 1)])
        return super().build_dataset(prepared, labels, split)


def test_weights_that_a_fork_adds_count(tiny):
    rows = Dataset.from_dict({"text": ["a rose", "the sea"] * 2, "label": [0, 1] * 2})
    data = Data.from_memory(rows, validation=0)
    tasks = [Weighted(model=tiny("bert"), data=data, weight=weight) for weight in (1.0, 1.0, 0.5)]
    digests = [fingerprints(replace(task, max_length=8))["train"] for task in tasks]
    assert digests[0] == digests[1] != digests[2]


# Streams, of which not all rows are read before training


def write_shards(folder: Path, count: int = 2) -> Data:
    folder.mkdir()
    for shard in range(count):
        lines = [json.dumps({"text": f"a rose {row}", "label": row % 2}) for row in range(40)]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return Data(files={"train": str(folder / "*.jsonl")}, streaming=True, validation=4)


def stream_digest(tiny: Callable[[str], str], data: Data, **options: Any) -> dict[str, str]:
    return fingerprints(TextClassification(model=tiny("bert"), data=data, max_length=8, **options))


def test_copies_of_a_stream_have_the_same_digest(tiny, tmp_path):
    data, copied = (write_shards(tmp_path / name) for name in ("one", "two"))
    os.utime(tmp_path / "two" / "0.jsonl", (1, 1))
    assert stream_digest(tiny, data) == stream_digest(tiny, copied)


@pytest.mark.parametrize("change", ["a character", "a shard more", "a name", "the labels"])
def test_a_changed_stream_has_another_digest(tiny, tmp_path, change):
    data, changed = (write_shards(tmp_path / name) for name in ("one", "two"))
    options: dict[str, Any] = {}
    if change == "a character":
        rewrite(tmp_path / "two" / "1.jsonl", lambda content: content[:-4] + b"0}\n\n")
    if change == "a shard more":
        shutil.copy(tmp_path / "two" / "1.jsonl", tmp_path / "two" / "2.jsonl")
    if change == "a name":
        (tmp_path / "two" / "1.jsonl").rename(tmp_path / "two" / "5.jsonl")
    if change == "the labels":
        options["label_names"] = ("bad", "good")
    one, two = stream_digest(tiny, data), stream_digest(tiny, changed, **options)
    assert one["train"] != two["train"]
    assert (one["validation"] == two["validation"]) == (change != "the labels")


def test_another_tokenizer_gives_another_digest_of_a_stream(tiny, tmp_path):
    data = write_shards(tmp_path / "one")
    changed = Path(shutil.copytree(tiny("bert"), tmp_path / "bert"))
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["rose"], words["sea"] = words["sea"], words["rose"]
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    one, two = stream_digest(tiny, data), stream_digest(lambda name: str(changed), data)
    assert one["train"] != two["train"]


# Plain datasets, and several ranks


@dataclass(frozen=True)
class Changed(Points):
    """One number of one row of a split is another one, on all ranks or on one of them."""

    split: str = ""
    rank: int | None = None
    has_fingerprint: bool = True

    def load_datasets(self) -> dict[str, Rows]:
        datasets = super().load_datasets()
        rank = int(os.environ.get("RANK", "0"))
        if self.split and self.rank in (None, rank):
            examples = datasets[self.split].examples
            examples[3]["input"][0] += 1.0
            datasets[self.split] = Rows(examples)
        for dataset in datasets.values() if not self.has_fingerprint else ():
            dataset.fingerprint = None
        return datasets


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_ranks_with_other_rows_stop_with_the_same_error(tmp_path, split):
    run = {"task": "test_row_changes:Changed", "run_dir": str(tmp_path / "run"), "epochs": 1}
    task = {"sizes": [16, 8, 8], "split": split, "rank": 1}
    train_toys_in_ranks(2, {**run, "task_options": task})
    errors = [(tmp_path / f"run.error{rank}").read_text() for rank in ("", "-of-rank-1")]
    message = f"UserError: rank 1 differs from rank 0 in {split}. All ranks must read the same rows"
    assert errors[0] == errors[1]
    assert errors[0].startswith(message)


def test_a_dataset_without_a_fingerprint_is_compared_by_its_number_of_rows(tmp_path, caplog):
    task = Changed(sizes=(16, 8), has_fingerprint=False)
    with caplog.at_level(logging.WARNING, "ftloop"):
        train_toy(task, tmp_path / "run", epochs=1)
    for split in ("train", "validation"):
        message = f"{split} has no fingerprint: only its number of rows is compared"
        assert caplog.text.count(message) == 1
    (newest,) = find_checkpoints(tmp_path / "run" / "checkpoints")
    assert load_state(newest).fingerprints == {"train": "16 rows", "validation": "8 rows"}
