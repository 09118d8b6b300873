"""Where rows come from: every format gives the same rows, splits are cut fairly, and texts are tokenised once."""

import csv
import gzip
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import COLOURS, ROOT, run_command, run_script, sentences

from ftloop import Data, TextClassification
from ftloop.data.splits import cut_splits
from ftloop.errors import UserError
from ftloop.cli.options import parse_pairs

# Texts that readers like to change: pandas takes the first five for missing values, and the two with a quote for one.
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
ENDINGS = ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "tsv.gz", "json.gz", "jsonl.gz"]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()`: the log lines of ftloop so far, one below the other."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def write(file: Path, rows: list[dict[str, Any]], encoding: str = "utf-8", **dialect: Any) -> Path:
    """Write rows in the format of the file's ending, by the standard library; gzipped if the name ends so."""
    kind, packed = file.name.removesuffix(".gz").rpartition(".")[2], file.name.endswith(".gz")
    header = dialect.pop("header", True)
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
        return file
    with (gzip.open if packed else open)(file, "wt", encoding=encoding, newline="") as stream:
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


def train_rows(**data: Any) -> list[dict[str, Any]]:
    return Data(**data).read()["train"].to_list()


# ---- formats


@pytest.mark.parametrize(
    "ending", ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "tsv.gz", "json.gz", "jsonl.gz"]
)
def test_every_format_gives_the_same_rows(tmp_path, ending):
    file = write(tmp_path / f"rows.{ending}", ROWS)
    assert train_rows(path=str(file)) == ROWS
    assert train_rows(files={"train": str(file)}) == ROWS


def test_a_gzipped_parquet_file_is_refused_with_the_way_out(tmp_path):
    file = write(tmp_path / "rows.parquet", ROWS)
    packed = file.rename(tmp_path / "rows.parquet.gz")
    with pytest.raises(UserError, match=r"rows\.parquet\.gz': Parquet is compressed inside; gunzip it"):
        Data(path=str(packed)).read()


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
    assert train_rows(path=str(file), options=parse_pairs(options.split(" "))) == ROWS


def test_no_row_is_lost_between_quotes_that_are_ordinary_characters(tmp_path, messages):
    """MRPC's trap: read with quoting, two single quotes swallow the rows between them. Then at least it is said."""
    file = tmp_path / "rows.tsv"
    file.write_text("".join(f"{row['text']}\t{row['label']}\n" for row in ROWS), encoding="utf-8")
    names = {"names": "text,label"}
    assert train_rows(path=str(file), options={**names, "quoting": 3}) == ROWS
    assert messages() == ""
    assert len(train_rows(path=str(file), options=names)) == len(ROWS) - 1
    assert "1 row(s) hold a line break between quotes, the first is row 5" in messages()
    assert "--task.data.options quoting=3" in messages()


def test_an_unusual_ending_is_read_by_the_format_that_is_named(tmp_path):
    file = write(tmp_path / "rows.csv", ROWS).rename(tmp_path / "rows.dat")
    assert train_rows(path=str(file), format="csv") == ROWS
    with pytest.raises(UserError, match=r"--task.data.format: cannot tell how to read .*; the formats are csv, tsv"):
        Data(path=str(file)).read()


def test_file_names_are_no_patterns(tmp_path):
    write(tmp_path / "rows1.csv", ROWS[:2])
    assert train_rows(path=str(write(tmp_path / "rows[1].csv", ROWS))) == ROWS


def test_a_changed_file_is_read_anew(tmp_path):
    for ending in ("csv", "jsonl.gz"):
        for rows in (ROWS[:4], ROWS[4:8]):
            assert train_rows(path=str(write(tmp_path / f"rows.{ending}", rows))) == rows


def test_the_whole_file_decides_what_a_column_holds(tmp_path):
    """Not the first 10 000 rows, which `datasets` would cast the others to."""
    rows = [{"text": "1", "label": "2"}] * 10_000 + [{"text": "NA", "label": ""}, {"text": "sky", "label": "x"}]
    assert train_rows(path=str(write(tmp_path / "rows.csv", rows))) == rows


def test_words_of_the_command_line_become_pairs():
    words = [
        "train",
        "a b.csv",
        "sep=;",
        "quoting",
        "3",
        "flag=true",
        "list=[1, 2]",
        "path=x=y",
        "tab=\\t",
        "none",
        "null",
    ]
    assert parse_pairs(words) == {
        **{"train": "a b.csv", "sep": ";", "quoting": 3, "flag": True, "list": [1, 2], "path": "x=y", "tab": "\t"},
        "none": None,
    }
    with pytest.raises(ValueError, match="'test' has no value"):
        parse_pairs(["train", "a.csv", "test"])
    with pytest.raises(ValueError, match="'train' is given twice"):
        parse_pairs(["train", "a.csv", "train", "b.csv"])


# ---- splits


def test_a_folder_holds_one_file_for_each_split(tmp_path):
    for split, rows in {"train": ROWS[:6], "dev": ROWS[6:8], "test": ROWS[8:]}.items():
        write(tmp_path / "folder" / f"{split}.csv", rows)
    (tmp_path / "folder" / "readme.txt").write_text("not a split")
    data = Data(path=str(tmp_path / "folder")).read()
    assert list(data) == ["train", "validation", "test"]
    assert [rows.to_list() for rows in data.values()] == [ROWS[:6], ROWS[6:8], ROWS[8:]]


def test_formats_may_differ_between_splits(tmp_path):
    files = {"train": write(tmp_path / "a.jsonl", ROWS), "validation": write(tmp_path / "b.csv", ROWS)}
    data = Data(files={split: str(file) for split, file in files.items()}).read()
    assert data["train"].to_list() == data["validation"].to_list() == ROWS


@pytest.mark.parametrize("name", ["valid", "val", "dev", "eval", "validation"])
def test_usual_names_of_the_validation_split_are_known(tmp_path, name):
    files = {"train": write(tmp_path / "a.csv", ROWS), name: write(tmp_path / "b.csv", ROWS[:3])}
    data = Data(files={split: str(file) for split, file in files.items()}).read()
    assert list(data) == ["train", "validation"]
    assert len(data["validation"]) == 3


def hub(monkeypatch: pytest.MonkeyPatch, **splits: list[dict[str, Any]]) -> list[Any]:
    """Let `load_dataset` answer with these splits; the calls it got."""
    calls: list[Any] = []
    found = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **options: calls.append((words, options)) or found)
    return calls


def test_a_hub_data_set_is_read_by_load_dataset(monkeypatch):
    calls = hub(monkeypatch, train=ROWS, validation=ROWS[:2])
    data = Data(path="nyu-mll/glue", name="mrpc", revision="abc", options={"token": True}).read()
    assert calls == [(("nyu-mll/glue", "mrpc"), {"revision": "abc", "token": True})]
    assert data["train"].to_list() == ROWS


def test_splits_are_chosen_by_their_names_in_the_source(monkeypatch, messages):
    hub(monkeypatch, train=ROWS, validation_matched=ROWS[:2], validation_mismatched=ROWS[:3], extra=ROWS)
    assert list(Data(path="glue").read()) == ["train"]
    assert "the splits extra, validation_matched, validation_mismatched are not used" in messages()
    data = Data(path="glue", splits={"train": "extra", "validation": "validation_mismatched"}).read()
    assert {split: len(rows) for split, rows in data.items()} == {"train": len(ROWS), "validation": 3}
    with pytest.raises(UserError, match=r"no 'validation_mached' \(did you mean 'validation_matched'\?\)"):
        Data(path="glue", splits={"train": "train", "validation": "validation_mached"}).read()
    with pytest.raises(UserError, match=r"'validaton' is not one of train, validation, test \(did you mean"):
        Data(path="glue", splits={"validaton": "validation_matched"}).read()


def test_two_splits_that_would_be_validation_are_not_chosen_between(monkeypatch):
    hub(monkeypatch, train=ROWS, dev=ROWS[:2], validation=ROWS[:3])
    with pytest.raises(UserError, match=r"two splits for 'validation': choose by --task.data.splits"):
        Data(path="somebody/something").read()


def test_a_source_without_train_names_what_it_has(monkeypatch):
    hub(monkeypatch, default=ROWS)
    with pytest.raises(UserError, match=r"no split 'train' \(--task.data.splits may name it\); the source has default"):
        Data(path="somebody/something").read()
    assert list(Data(path="somebody/something", splits={"train": "default"}).read()) == ["train"]


def test_one_split_of_the_hub_is_not_enough(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS))
    with pytest.raises(UserError, match=r"--task.data.options .*split.*: all splits are needed"):
        Data(path="somebody/something", options={"split": "train"}).read()


def test_without_a_hub_its_data_sets_give_one_clear_error():
    with pytest.raises(UserError, match=r"--task.data.path 'nyu-mll/glue' is no file or folder here, and as a"):
        Data(path="nyu-mll/glue", name="mrpc").read()


# ---- cutting splits from train


def numbered(shares: dict[str, int]) -> datasets.DatasetDict:
    """train with so many rows of each class, mixed, and a column with the row's number."""
    labels = [label for label, count in shares.items() for _ in range(count)]
    labels = [labels[(7 * row) % len(labels)] for row in range(len(labels))]  # 7 and the length share no divisor
    rows = [{"row": row, "label": label} for row, label in enumerate(labels)]
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def cut(data: datasets.DatasetDict, **options: Any) -> dict[str, list[int]]:
    """The row numbers of each split after cutting."""
    parts = cut_splits(data, Data(path="-", **options), data["train"]["label"][:])
    return {split: rows["row"][:] for split, rows in parts.items()}


SHARES = {"red": 60, "green": 30, "blue": 10}


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
    parts = cut(numbered(SHARES), **options)
    assert tuple(len(parts.get(split, [])) for split in ("train", "validation", "test")) == sizes
    assert sorted(row for rows in parts.values() for row in rows) == list(range(100))
    assert all(rows == sorted(rows) for rows in parts.values())  # each in the order of the source


def test_cut_splits_keep_the_shares_of_the_classes():
    data = numbered(SHARES)
    label = data["train"]["label"][:]
    parts = cut(data, validation=0.2, test=0.3)
    counts = {split: Counter(label[row] for row in rows) for split, rows in parts.items()}
    expected = {"train": 0.5, "validation": 0.2, "test": 0.3}
    assert counts == {split: {name: SHARES[name] * share for name in SHARES} for split, share in expected.items()}


def test_the_only_row_of_a_class_stays_in_train():
    data = numbered({"red": 70, "green": 30, "blue": 1})
    blue = data["train"]["label"][:].index("blue")
    parts = cut(data, validation=20, test=20)
    assert blue in parts["train"]
    assert len(parts["validation"]) == len(parts["test"]) == 20


def test_the_cut_is_a_function_of_the_split_seed():
    data = numbered(SHARES)
    assert cut(data, test=0.1) == cut(data, test=0.1)
    assert cut(data, test=0.1, split_seed=1) != cut(data, test=0.1)
    assert cut(data, stratify=False, split_seed=1) != cut(data, stratify=False, split_seed=2)


def test_given_splits_are_not_cut_again():
    data = numbered(SHARES)
    data["validation"] = data["train"].select(range(7))
    parts = cut(data, validation=0.5, test=10)
    assert parts["validation"] == list(range(7))
    assert (len(parts["train"]), len(parts["test"])) == (90, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": 100}, "--task.data.validation 100: 100 rows cannot be cut from the 100 rows of train"),
        ({"validation": 60, "test": 60}, "--task.data.validation 60: 60 rows cannot be cut from the 40 rows of train"),
        ({"test": 0.001}, "--task.data.test 0.001: 0 rows cannot be cut from the 100 rows of train"),
        (
            {"validation": 2},
            "--task.data.validation 2: cannot keep the shares .*--task.data.no-stratify cuts at random",
        ),
    ],
)
def test_what_cannot_be_cut_is_said(options, words):
    with pytest.raises(UserError, match=words):
        cut(numbered(SHARES), **options)


# ---- through a task


def text_task(tiny: Any, file: Path, **options: Any) -> TextClassification:
    data = options.pop("data", {})
    return TextClassification(model=tiny("bert"), data=Data(path=str(file), **data), label_column="colour", **options)


def test_a_task_cuts_stratified_by_names_ids_and_ids_written_as_decimals(tiny, tmp_path):
    rows = [{**row, "decimal": float(row["number"])} for row in sentences(60)]
    file = write(tmp_path / "rows.csv", rows)
    share = Counter(row["colour"] for row in rows)
    for column in ("colour", "number", "decimal"):
        task = TextClassification(
            model=tiny("bert"),
            data=Data(path=str(file), validation=0.5),
            label_column=column,
            problem_type="single_label_classification",
        )
        cut_off = Counter(task.rows["validation"]["colour"][:])
        assert all(abs(cut_off[colour] - share[colour] / 2) < 1 for colour in COLOURS)


def test_the_loaded_rows_are_those_of_the_file_in_its_order(tiny, tmp_path):
    rows = sentences(20)
    task = text_task(tiny, write(tmp_path / "rows.csv", rows), data={"validation": 0})
    loaded = task.load()["train"]
    tokens = task.processor([row["text"] for row in rows])
    assert loaded["input_ids"][:] == tokens["input_ids"]
    assert loaded["length"][:] == [len(ids) for ids in tokens["input_ids"]]
    assert loaded["labels"][:] == [sorted(COLOURS).index(row["colour"]) for row in rows]
    assert set(loaded.column_names) == {*tokens, "length", "labels"}


def test_cut_off_texts_are_counted(tiny, tmp_path, messages):
    rows = sentences(20)
    file = write(tmp_path / "rows.csv", rows)
    longer = sum(len(row["text"].split()) + 2 > 10 for row in rows)  # two special tokens
    assert 0 < longer < 20
    loaded = text_task(tiny, file, data={"validation": 0}, max_length=10).load()["train"]
    assert f"data: {longer} of 20 texts are longer than --task.max-length 10 and were cut" in messages()
    assert max(loaded["length"]) == 10
    again = text_task(tiny, file, data={"validation": 0}, max_length=10).load()  # from the cache, and said again
    assert messages().count("were cut") == 2
    assert again["train"].to_list() == loaded.to_list()


def test_pairs_are_cut_and_counted_together(tiny, tmp_path, messages):
    rows = [{"first": "sky " * 6, "second": "sea " * size, "colour": "ab"[size % 2]} for size in (1, 2, 3, 4)]
    columns = ("first", "second")
    task = text_task(
        tiny, write(tmp_path / "rows.csv", rows), data={"validation": 0}, text_columns=columns, max_length=11
    )
    loaded = task.load()["train"]
    assert loaded["length"][:] == [10, 11, 11, 11]
    assert "2 of 4 texts are longer" in messages()
    assert loaded["token_type_ids"][0] == [0] * 8 + [1] * 2


def test_empty_rows_are_dropped_on_demand_and_said(tiny, tmp_path, messages):
    rows = sentences(12)
    spoiled = [dict(row) for row in rows]
    spoiled[2]["text"], spoiled[5]["text"], spoiled[9]["colour"] = "", "  ", ""
    file = write(tmp_path / "rows.csv", spoiled)
    with pytest.raises(UserError, match=r"2 empty text \(rows 2, 5\) and 1 missing label \(rows 9\), counted from 0"):
        text_task(tiny, file, data={"validation": 0}).load()
    task = text_task(tiny, file, data={"validation": 0, "drop_empty": True})
    task.load()
    assert "data: train: dropped 2 empty text (rows 2, 5) and 1 missing label (rows 9)" in messages()
    kept = [row for number, row in enumerate(rows) if number not in (2, 5, 9)]
    assert [(row["text"], row["colour"]) for row in task.rows["train"]] == [
        (row["text"], row["colour"]) for row in kept
    ]


def test_null_texts_and_labels_are_missing(tiny, tmp_path):
    rows = [{"text": "sky", "colour": "red"}, {"text": None, "colour": "red"}, {"text": "sea", "colour": None}]
    with pytest.raises(UserError, match=r"1 empty text \(rows 1\) and 1 missing label \(rows 2\)"):
        text_task(tiny, write(tmp_path / "rows.jsonl", rows)).load()


def test_an_unlabelled_test_split_is_left_out(tiny, tmp_path, messages):
    files = {"train": write(tmp_path / "a.csv", sentences(40)), "test": write(tmp_path / "b.csv", [{"text": "sky"}])}
    data = Data(files={split: str(file) for split, file in files.items()})
    task = TextClassification(model=tiny("bert"), data=data, label_column="colour")
    assert list(task.load()) == ["train", "validation"]
    assert "test has no labels, so it is not scored (1 rows)" in messages()


# ---- the cache

LOAD = """
import json, sys
from test_data import load_counted

print(json.dumps(load_counted(sys.argv[1], sys.argv[2], 32)))
"""


def load_counted(model: str, path: str, max_length: int) -> dict[str, Any]:
    """How many rows each call of the tokenizer got while a task was loaded, and the fingerprints of the splits."""
    from transformers import PreTrainedTokenizerFast

    calls, original = [], PreTrainedTokenizerFast._encode_plus

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        encoded = original(self, *arguments, **options)
        calls.append(len(encoded["input_ids"]))
        return encoded

    data = Data(path=path, validation=0.2, test=5)
    task = TextClassification(model=model, data=data, label_column="colour", max_length=max_length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "_encode_plus", counted)
        loaded = task.load()
    return {"calls": calls, "prints": {split: rows._fingerprint for split, rows in loaded.items()}}


def cached() -> dict[str, int]:
    """The Arrow files in the cache of the data sets, with the times they were written."""
    folder = Path(os.environ["HF_DATASETS_CACHE"])
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*.arrow")}


def test_texts_are_tokenised_once_and_found_again_by_the_next_process(tiny, tmp_path):
    """A tokenizer's state changes when it is first called; the cache's key does not depend on it."""
    file, before = str(write(tmp_path / "rows.csv", sentences(40))), cached()
    first, files = load_counted(tiny("bert"), file, 32), cached()
    assert first["calls"] == [27, 8, 5]
    assert len(files) == len(before) + 1 + 3  # the rows of the file, and those of each split
    command = ("python", "-W", "error", "-c", LOAD, tiny("bert"), file)
    result = run_command(*command, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"calls": [], "prints": first["prints"]}
    assert cached() == files
    assert load_counted(tiny("bert"), file, 16)["calls"] == first["calls"]  # another length is another result
    assert len(cached()) == len(files) + 3


def test_a_second_command_adds_nothing_to_the_cache(tiny, colours, tmp_path):
    words = ["configs/text.py", "--task.model", tiny("bert"), *colours, "--max-steps", "1"]
    assert run_script("train.py", *words).code == 0
    files = cached()
    assert run_script("train.py", *words, "--run-dir", tmp_path / "second").code == 0
    assert cached() == files
