"""Every format gives the same rows, splits are cut fairly, and texts are tokenized once."""

import csv
import gzip
import json
import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import COLOURS, ROOT, run_command, run_script, sentences

from ftloop.cli.options import parse_pairs
from ftloop.data import Data
from ftloop.data.splits import cut_splits
from ftloop.errors import UserError
from ftloop.tasks import TextClassification

# Texts that readers tend to change: pandas reads the first five as missing values, and the two with
# a quote as one text.
TEXTS = [
    "NA",
    "null",
    "None",
    "nan",
    "N/A",
    '"half a quote',
    'the other half"',
    "é ü ø",
    "a;b,c|d",
    "  spaced  ",
    "1e5",
]
ROWS = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(TEXTS)]
EXTENSIONS = ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "tsv.gz", "json.gz", "jsonl.gz"]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()` returns the lines that ftloop has logged so far."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def write(file: Path, rows: list[dict[str, Any]], encoding: str = "utf-8", **dialect: Any) -> Path:
    """Write rows in the format of the file's extension, with the standard library."""
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    open_file = gzip.open if file.name.endswith(".gz") else open
    header = dialect.pop("header", True)
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
        return file
    with open_file(file, "wt", encoding=encoding, newline="") as stream:
        if kind == "json":
            json.dump(rows, stream)
        elif kind == "jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            dialect = {"delimiter": "\t" if kind == "tsv" else ",", **dialect}
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), **dialect)
            if header:
                writer.writeheader()
            writer.writerows(rows)
    return file


def read_train(**options: Any) -> list[dict[str, Any]]:
    return Data(**options).read()["train"].to_list()


# Formats


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_gives_the_same_rows(tmp_path, extension):
    file = write(tmp_path / f"rows.{extension}", ROWS)
    assert read_train(path=str(file)) == ROWS
    assert read_train(files={"train": str(file)}) == ROWS


def test_a_gzipped_parquet_file_must_be_decompressed(tmp_path):
    file = write(tmp_path / "rows.parquet", ROWS)
    compressed = file.rename(tmp_path / "rows.parquet.gz")
    message = (
        r"decompress the train file '.*rows\.parquet\.gz' first: Parquet is compressed already"
    )
    with pytest.raises(UserError, match=message):
        Data(path=str(compressed)).read()


@pytest.mark.parametrize(
    ("options", "dialect"),
    [
        ("sep ; encoding latin-1", {"delimiter": ";", "encoding": "latin-1"}),
        ("sep=| quotechar='", {"delimiter": "|", "quotechar": "'"}),
        ("names text,label header null", {"header": False}),
        ("engine python", {}),
        (r"sep \t", {"delimiter": "\t"}),
    ],
)
def test_reader_options_are_those_of_pandas(tmp_path, options, dialect):
    file = write(tmp_path / "rows.csv", ROWS, **dialect)
    assert read_train(path=str(file), options=parse_pairs(options.split(" "))) == ROWS


def test_rows_that_stray_quotes_join_are_reported(tmp_path, messages):
    """In MRPC's files, two quotes that are ordinary characters swallow the rows between them."""
    file = tmp_path / "rows.tsv"
    file.write_text("".join(f"{row['text']}\t{row['label']}\n" for row in ROWS), encoding="utf-8")
    names = {"names": "text,label"}
    assert read_train(path=str(file), options={**names, "quoting": 3}) == ROWS
    assert messages() == ""
    assert len(read_train(path=str(file), options=names)) == len(ROWS) - 1
    assert "1 line break(s) are inside quotes, the first in line 6" in messages()
    assert "--data.options quoting=3" in messages()


def test_an_unknown_extension_needs_a_format(tmp_path):
    file = write(tmp_path / "rows.csv", ROWS).rename(tmp_path / "rows.dat")
    assert read_train(path=str(file), format="csv") == ROWS
    message = r"--data.format: cannot tell the format of .*\. The formats are csv, tsv"
    with pytest.raises(UserError, match=message):
        Data(path=str(file)).read()


def test_file_names_are_not_glob_patterns(tmp_path):
    write(tmp_path / "rows1.csv", ROWS[:2])
    assert read_train(path=str(write(tmp_path / "rows[1].csv", ROWS))) == ROWS


def test_a_changed_file_is_read_again(tmp_path):
    for extension in ("csv", "jsonl.gz"):
        for rows in (ROWS[:4], ROWS[4:8]):
            assert read_train(path=str(write(tmp_path / f"rows.{extension}", rows))) == rows


def test_later_rows_may_turn_a_column_of_numbers_into_texts(tmp_path):
    """`datasets` would infer the type from the first 10 000 rows, and fail at the others."""
    rows = [{"text": "1", "label": "2"}] * 10_000
    rows += [{"text": "NA", "label": ""}, {"text": "sky", "label": "x"}]
    assert read_train(path=str(write(tmp_path / "rows.csv", rows))) == rows


def test_pairs_are_parsed_from_the_command_line():
    words = ["train", "a b.csv", "sep=;", "quoting", "3", "flag=true", "list=[1, 2]", "path=x=y"]
    words += ["tab=\\t", "none", "null"]
    assert parse_pairs(words) == {
        "train": "a b.csv",
        "sep": ";",
        "quoting": 3,
        "flag": True,
        "list": [1, 2],
        "path": "x=y",
        "tab": "\t",
        "none": None,
    }
    with pytest.raises(ValueError, match="'test' has no value"):
        parse_pairs(["train", "a.csv", "test"])
    with pytest.raises(ValueError, match="'train' is given twice"):
        parse_pairs(["train", "a.csv", "train", "b.csv"])


# Splits


def test_a_folder_holds_one_file_for_each_split(tmp_path):
    for split, rows in {"train": ROWS[:6], "dev": ROWS[6:8], "test": ROWS[8:]}.items():
        write(tmp_path / "folder" / f"{split}.csv", rows)
    (tmp_path / "folder" / "readme.txt").write_text("not a split")
    data = Data(path=str(tmp_path / "folder")).read()
    assert list(data) == ["train", "validation", "test"]
    assert [rows.to_list() for rows in data.values()] == [ROWS[:6], ROWS[6:8], ROWS[8:]]


def test_formats_may_differ_between_splits(tmp_path):
    train, validation = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.csv", ROWS)
    data = Data(files={"train": str(train), "validation": str(validation)}).read()
    assert data["train"].to_list() == data["validation"].to_list() == ROWS


@pytest.mark.parametrize("name", ["valid", "val", "dev", "eval", "validation"])
def test_usual_names_of_the_validation_split_are_known(tmp_path, name):
    train, validation = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", ROWS[:3])
    data = Data(files={"train": str(train), name: str(validation)}).read()
    assert list(data) == ["train", "validation"]
    assert len(data["validation"]) == 3


def replace_hub(monkeypatch: pytest.MonkeyPatch, **splits: list[dict[str, Any]]) -> list[Any]:
    """Let `load_dataset` return these splits, and return the list of its calls."""
    calls: list[Any] = []
    tables = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}

    def load_dataset(*arguments: Any, **options: Any) -> datasets.DatasetDict:
        calls.append((arguments, options))
        return datasets.DatasetDict(tables)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_dataset_is_read_by_load_dataset(monkeypatch):
    calls = replace_hub(monkeypatch, train=ROWS, validation=ROWS[:2])
    data = Data(path="nyu-mll/glue", name="mrpc", revision="abc", options={"token": True}).read()
    assert calls == [(("nyu-mll/glue", "mrpc"), {"revision": "abc", "token": True})]
    assert data["train"].to_list() == ROWS


def test_splits_are_chosen_by_their_names_in_the_source(monkeypatch, messages):
    replace_hub(
        monkeypatch,
        train=ROWS,
        validation_matched=ROWS[:2],
        validation_mismatched=ROWS[:3],
        extra=ROWS,
    )
    assert list(Data(path="glue").read()) == ["train"]
    unused = "the splits extra, validation_matched, validation_mismatched are not used"
    assert unused in messages()
    splits = {"train": "extra", "validation": "validation_mismatched"}
    data = Data(path="glue", splits=splits).read()
    assert {split: len(rows) for split, rows in data.items()} == {"train": 11, "validation": 3}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": "train", "validation": "validation_mached"},
            r"no split 'validation_mached' \(did you mean 'validation_matched'\?\)",
        ),
        (
            {"validaton": "validation_matched"},
            r"'validaton' is not one of train, validation, test \(did you mean",
        ),
    ],
)
def test_misspelled_splits_are_errors(monkeypatch, splits, message):
    replace_hub(monkeypatch, train=ROWS, validation_matched=ROWS[:2])
    with pytest.raises(UserError, match=message):
        Data(path="glue", splits=splits).read()


def test_two_splits_that_would_be_validation_are_an_error(monkeypatch):
    replace_hub(monkeypatch, train=ROWS, dev=ROWS[:2], validation=ROWS[:3])
    message = r"two splits for 'validation'; choose one with --data.splits"
    with pytest.raises(UserError, match=message):
        Data(path="somebody/something").read()


def test_the_error_for_a_source_without_train_names_its_splits(monkeypatch):
    replace_hub(monkeypatch, default=ROWS)
    message = (
        r"no split 'train'. Choose one of its splits \(default\) with --data.splits train NAME"
    )
    with pytest.raises(UserError, match=message):
        Data(path="somebody/something").read()
    data = Data(path="somebody/something", splits={"train": "default"})
    assert list(data.read()) == ["train"]


def test_a_single_split_of_a_hub_dataset_is_an_error(monkeypatch):
    rows = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: rows)
    with pytest.raises(UserError, match=r"--data.options .* must not choose a split"):
        Data(path="somebody/something", options={"split": "train"}).read()


def test_a_hub_dataset_that_cannot_be_reached_is_one_clear_error():
    message = (
        r"--data.path 'nyu-mll/glue': there is no such file or folder, and it could not be read"
    )
    with pytest.raises(UserError, match=message):
        Data(path="nyu-mll/glue", name="mrpc").read()


# Cutting splits from train

SHARES = {"red": 60, "green": 30, "blue": 10}


def build_numbered_rows(shares: dict[str, int]) -> datasets.DatasetDict:
    """Rows of train with so many of each class, mixed, and their numbers in the column "row"."""
    labels = [label for label, count in shares.items() for _ in range(count)]
    # A permutation, because 7 and the number of rows have no common divisor.
    labels = [labels[(7 * row) % len(labels)] for row in range(len(labels))]
    rows = [{"row": row, "label": label} for row, label in enumerate(labels)]
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def cut(data: datasets.DatasetDict, **options: Any) -> dict[str, list[int]]:
    """Cut splits from train, and return the row numbers of each split."""
    splits = cut_splits(data, Data(path="-", **options), data["train"]["label"][:])
    return {split: rows["row"][:] for split, rows in splits.items()}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (90, 10, 0)),
        ({"validation": 0.2, "test": 0.3}, (50, 20, 30)),
        ({"validation": 20, "test": 10}, (70, 20, 10)),
        ({"validation": 0, "test": 0.25}, (75, 0, 25)),
        ({"validation": 0.0}, (100, 0, 0)),
        ({"validation": 33, "stratify": False}, (67, 33, 0)),
        ({"validation": 97, "stratify": False}, (3, 97, 0)),
    ],
)
def test_cut_splits_are_exact_disjoint_and_complete(options, sizes):
    splits = cut(build_numbered_rows(SHARES), **options)
    assert tuple(len(splits.get(split, [])) for split in ("train", "validation", "test")) == sizes
    assert sorted(row for rows in splits.values() for row in rows) == list(range(100))
    assert all(rows == sorted(rows) for rows in splits.values())  # in the order of the source


def test_cut_splits_keep_the_shares_of_the_classes():
    data = build_numbered_rows(SHARES)
    labels = data["train"]["label"][:]
    splits = cut(data, validation=0.2, test=0.3)
    for split, share in {"train": 0.5, "validation": 0.2, "test": 0.3}.items():
        counts = Counter(labels[row] for row in splits[split])
        assert counts == {label: count * share for label, count in SHARES.items()}


def test_the_only_row_of_a_class_stays_in_train():
    data = build_numbered_rows({"red": 70, "green": 30, "blue": 1})
    blue_row = data["train"]["label"][:].index("blue")
    splits = cut(data, validation=20, test=20)
    assert blue_row in splits["train"]
    assert len(splits["validation"]) == len(splits["test"]) == 20


def test_the_cut_is_a_function_of_the_split_seed():
    data = build_numbered_rows(SHARES)
    assert cut(data, test=0.1) == cut(data, test=0.1)
    assert cut(data, test=0.1, split_seed=1) != cut(data, test=0.1)
    assert cut(data, stratify=False, split_seed=1) != cut(data, stratify=False, split_seed=2)


def test_splits_of_the_source_are_not_cut_again():
    data = build_numbered_rows(SHARES)
    data["validation"] = data["train"].select(range(7))
    splits = cut(data, validation=0.5, test=10)
    assert splits["validation"] == list(range(7))
    assert (len(splits["train"]), len(splits["test"])) == (90, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"validation": 100},
            "--data.validation 100: cannot cut 100 rows from the 100 rows of train",
        ),
        (
            {"validation": 60, "test": 60},
            "--data.validation 60: cannot cut 60 rows from the 40 rows of train",
        ),
        ({"test": 0.001}, "--data.test 0.001: cannot cut 0 rows from the 100 rows of train"),
        (
            {"validation": 2},
            "--data.validation 2: cannot keep the shares .*--data.no-stratify cuts at random",
        ),
    ],
)
def test_impossible_cuts_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        cut(build_numbered_rows(SHARES), **options)


# Through a task


def build_task(model: str, file: Path, data: dict[str, Any], **options: Any) -> TextClassification:
    source = Data(path=str(file), **data)
    return TextClassification(model=model, data=source, label_column="colour", **options)


def test_a_task_stratifies_by_names_ids_and_ids_written_as_decimals(tiny, tmp_path):
    rows = [{**row, "decimal": float(row["number"])} for row in sentences(60)]
    file = write(tmp_path / "rows.csv", rows)
    counts = Counter(row["colour"] for row in rows)
    for column in ("colour", "number", "decimal"):
        task = TextClassification(
            model=tiny("bert"),
            data=Data(path=str(file), validation=0.5),
            label_column=column,
            problem_type="single_label_classification",
        )
        cut_counts = Counter(task.rows["validation"]["colour"][:])
        assert all(abs(cut_counts[colour] - counts[colour] / 2) < 1 for colour in COLOURS)


def test_the_loaded_rows_are_those_of_the_file_in_its_order(tiny, tmp_path):
    rows = sentences(20)
    task = build_task(tiny("bert"), write(tmp_path / "rows.csv", rows), data={"validation": 0})
    dataset = task.load_datasets()["train"]
    tokens = task.processor([row["text"] for row in rows])
    assert dataset.table["input_ids"][:] == tokens["input_ids"]
    assert list(dataset.lengths) == [len(ids) for ids in tokens["input_ids"]]
    labels = [sorted(COLOURS).index(row["colour"]) for row in rows]
    assert dataset.table["labels"][:] == labels
    assert set(dataset.table.column_names) == {*tokens, "labels"}


def test_truncated_texts_are_counted(tiny, tmp_path, messages):
    rows = sentences(20)
    file = write(tmp_path / "rows.csv", rows)
    num_longer = sum(len(row["text"].split()) + 2 > 10 for row in rows)  # two special tokens
    assert 0 < num_longer < 20
    task = build_task(tiny("bert"), file, data={"validation": 0}, max_length=10)
    dataset = task.load_datasets()["train"]
    warning = f"data: {num_longer} of 20 texts are longer than --max-length 10 and were truncated"
    assert warning in messages()
    assert max(dataset.lengths) == 10

    # From the cache, the same rows and the same warning
    again = build_task(tiny("bert"), file, data={"validation": 0}, max_length=10)
    assert again.load_datasets()["train"].table.to_list() == dataset.table.to_list()
    assert messages().count(warning) == 2


def test_pairs_are_truncated_and_counted_together(tiny, tmp_path, messages):
    rows = [
        {"first": "sky " * 6, "second": "sea " * size, "colour": "ab"[size % 2]}
        for size in (1, 2, 3, 4)
    ]
    file = write(tmp_path / "rows.csv", rows)
    task = build_task(
        tiny("bert"), file, data={"validation": 0}, text_columns=("first", "second"), max_length=11
    )
    dataset = task.load_datasets()["train"]
    assert list(dataset.lengths) == [10, 11, 11, 11]
    assert "2 of 4 texts are longer" in messages()
    assert dataset.table["token_type_ids"][0] == [0] * 8 + [1] * 2


def test_empty_rows_are_an_error_unless_they_are_dropped(tiny, tmp_path, messages):
    rows = sentences(12)
    damaged = [dict(row) for row in rows]
    damaged[2]["text"], damaged[5]["text"], damaged[9]["colour"] = "", "  ", ""
    file = write(tmp_path / "rows.csv", damaged)
    counts = r"2 empty text \(rows 2, 5\) and 1 missing label \(rows 9\)"
    with pytest.raises(UserError, match=rf"{counts}, counted from 0"):
        build_task(tiny("bert"), file, data={"validation": 0}).load_datasets()
    task = build_task(tiny("bert"), file, data={"validation": 0, "drop_empty": True})
    task.load_datasets()
    assert re.search(rf"data: train: dropped {counts}", messages())
    expected = [row for number, row in enumerate(rows) if number not in (2, 5, 9)]
    assert task.rows["train"]["text"][:] == [row["text"] for row in expected]
    assert task.rows["train"]["colour"][:] == [row["colour"] for row in expected]


def test_null_texts_and_labels_are_missing(tiny, tmp_path):
    rows = [
        {"text": "sky", "colour": "red"},
        {"text": None, "colour": "red"},
        {"text": "sea", "colour": None},
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    message = r"1 empty text \(rows 1\) and 1 missing label \(rows 2\)"
    with pytest.raises(UserError, match=message):
        build_task(tiny("bert"), file, data={}).load_datasets()


def test_a_test_split_without_labels_is_ignored(tiny, tmp_path, messages):
    train = write(tmp_path / "a.csv", sentences(40))
    test = write(tmp_path / "b.csv", [{"text": "sky"}])
    data = Data(files={"train": str(train), "test": str(test)})
    task = TextClassification(model=tiny("bert"), data=data, label_column="colour")
    assert list(task.load_datasets()) == ["train", "validation"]
    assert "test has no labels and is not evaluated (1 rows)" in messages()


# The cache

LOAD = """
import json, sys
from test_data import load_and_count

print(json.dumps(load_and_count(sys.argv[1], sys.argv[2], 32)))
"""


def load_and_count(model: str, path: str, max_length: int) -> dict[str, Any]:
    """Load a task; return the rows of each call of the tokenizer, and fingerprints by split."""
    from transformers import PreTrainedTokenizerFast

    calls, original = [], PreTrainedTokenizerFast._encode_plus

    def encode_and_count(self: Any, *arguments: Any, **options: Any) -> Any:
        encoded = original(self, *arguments, **options)
        calls.append(len(encoded["input_ids"]))
        return encoded

    data = Data(path=path, validation=0.2, test=5)
    task = TextClassification(model=model, data=data, label_column="colour", max_length=max_length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "_encode_plus", encode_and_count)
        loaded = task.load_datasets()
    fingerprints = {split: dataset.fingerprint for split, dataset in loaded.items()}
    return {"calls": calls, "fingerprints": fingerprints}


def list_cached_files() -> dict[str, int]:
    """Return the Arrow files in the cache of `datasets`, with their modification times."""
    folder = Path(os.environ["HF_DATASETS_CACHE"])
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*.arrow")
    }


def test_texts_are_tokenized_once_and_reused_by_the_next_process(tiny, tmp_path):
    """The cache key does not depend on the state of a tokenizer, which its first call changes."""
    file, before = str(write(tmp_path / "rows.csv", sentences(40))), list_cached_files()
    first, files = load_and_count(tiny("bert"), file, 32), list_cached_files()
    assert first["calls"] == [27, 8, 5]
    assert len(files) == len(before) + 1 + 3  # the rows of the file, and those of each split
    command = ("python", "-W", "error", "-c", LOAD, tiny("bert"), file)
    result = run_command(*command, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"calls": [], "fingerprints": first["fingerprints"]}
    assert list_cached_files() == files
    # Another length is another result.
    assert load_and_count(tiny("bert"), file, 16)["calls"] == first["calls"]
    assert len(list_cached_files()) == len(files) + 3


def test_a_second_run_adds_nothing_to_the_cache(tiny, colours, tmp_path):
    words = ["configs/text.py", "--model", tiny("bert"), *colours, "--max-steps", "1"]
    assert run_script("train.py", *words).code == 0
    files = list_cached_files()
    assert run_script("train.py", *words, "--run-dir", tmp_path / "second").code == 0
    assert list_cached_files() == files
