"""Splits that keep groups together, splits that stay when the data grows, and limited splits."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from ftloop.data import Data
from ftloop.data.splits import cut_splits, limit_rows
from ftloop.errors import UserError
from ftloop.tasks import TextClassification


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """Return a function that returns the log lines of ftloop so far, joined by newlines."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def patients(count: int = 60) -> DatasetDict:
    """Return train with 1 to 9 rows of each patient, mixed, and a column with the row's number."""
    ids = [patient for patient in range(count) for _ in range(1 + patient * patient % 9)]
    ids = [ids[(7 * row) % len(ids)] for row in range(len(ids))]
    rows = [
        {"row": row, "patient": f"p{patient}", "age": patient % 5}
        for row, patient in enumerate(ids)
    ]
    return DatasetDict({"train": Dataset.from_list(rows)})


def cut(data: DatasetDict, **options: Any) -> dict[str, set[str]]:
    """Return the patients of each split after cutting.

    No row is lost or doubled, and the rows of a split keep the order of the source.
    """
    splits = cut_splits(data, Data(path="-", **options), None)
    rows_by_split = [rows["row"][:] for rows in splits.values()]
    all_rows = sorted(row for rows in rows_by_split for row in rows)
    assert all_rows == sorted(row for part in data.values() for row in part["row"])
    assert all(rows == sorted(rows) for rows in rows_by_split)
    return {split: set(rows["patient"]) for split, rows in splits.items()}


# Options without effect


def test_options_of_a_split_that_is_not_cut_are_named(messages):
    data = DatasetDict({**patients(), "test": patients(3)["train"]})
    cut_splits(data, Data(path="-", test=0.2, validation=0, split_group="patient"), None)
    assert "data: --data.test 0.2 has no effect: the source has a test split" in messages()
    assert "data: --data.split-group has no effect: no split is cut" in messages()
    before = messages().count("no effect")
    cut_splits(data, Data(path="-", split_group="patient"), None)
    assert messages().count("no effect") == before


def test_only_images_can_be_unreadable():
    task = TextClassification(model="bert", data=Data(path="a.csv", drop_unreadable=True))
    with pytest.raises(UserError, match=r"--data.drop-unreadable has no effect on texts"):
        task.validate()


# By group


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits(seed):
    splits = cut(patients(), split_group="patient", validation=0.2, test=0.3, split_seed=seed)
    assert list(splits) == ["train", "validation", "test"]
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 60


def test_groups_have_about_as_many_rows_as_requested_and_the_log_says_how_many(messages):
    data = patients()
    total = data["train"].num_rows
    for size in (0.2, 40):
        splits = cut_splits(data, Data(path="-", split_group="patient", validation=size), None)
        num_rows = splits["validation"].num_rows
        requested = round(0.2 * total) if size == 0.2 else size
        assert abs(num_rows - requested) < 0.1 * total
        assert f"data: validation: {num_rows} rows" in messages()
    assert "were cut from train, by group (seed 42)" in messages()
    assert f"({round(0.2 * total)} were requested)" in messages()


def test_a_test_split_of_the_source_is_left_alone():
    data = patients()
    data["test"] = data["train"].select(range(5))
    options = Data(path="-", split_group="patient", validation=0.2, test=0.5)
    splits = cut_splits(data, options, None)
    assert splits["test"]["row"][:] == list(range(5))
    assert not set(splits["train"]["patient"]) & set(splits["validation"]["patient"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split_group": "patiant"},
            r"--data.split-group: .* no column 'patiant' \(did you mean 'patient'\?\)",
        ),
        (
            {"split_hash": ("row", "agee")},
            r"--data.split-hash: .* no column 'agee' \(did you mean 'age'\?\)",
        ),
        (
            {"split_hash": ("age",), "validation": 0.001},
            "--data.validation 0.001: cannot cut 0 rows from the",
        ),
        (
            {"split_hash": ("row",), "validation": 0.5, "test": 0.5},
            r"--data.validation 0.5: cannot cut \d+ rows from the \d+ rows of train",
        ),
    ],
)
def test_splits_that_cannot_be_cut_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        cut_splits(patients(), Data(path="-", **options), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split_hash": ("row",), "split_group": "age"},
            "--data.split-group and --data.split-hash cannot be combined",
        ),
        (
            {"split_hash": ("row",), "validation": 20},
            "--data.split-hash needs .* fractions below 1",
        ),
        ({"split_hash": ("row",), "test": 20}, "--data.split-hash needs .* fractions below 1"),
    ],
)
def test_options_that_contradict_each_other_are_errors_before_anything_is_read(options, message):
    with pytest.raises(UserError, match=message):
        Data(path="-", **options).validate()


def test_one_group_cannot_be_divided():
    rows = [{"row": row, "patient": "a"} for row in range(9)]
    data = DatasetDict({"train": Dataset.from_list(rows)})
    message = "--data.validation 0.3: cannot cut whole groups: .*resulting train set"
    with pytest.raises(UserError, match=message):
        cut_splits(data, Data(path="-", split_group="patient", validation=0.3), None)


def test_rows_without_a_group_are_named():
    rows = [{"row": row, "patient": None if row == 3 else "ab"[row % 2]} for row in range(9)]
    data = DatasetDict({"train": Dataset.from_list(rows)})
    message = r"--data.split-group patient: 1 row\(s\) of train have no group, .*: 3"
    with pytest.raises(UserError, match=message):
        cut_splits(data, Data(path="-", split_group="patient"), None)


# By hash


def split_of_rows(data: DatasetDict, **options: Any) -> dict[int, str]:
    """Return the split of each row, by its number."""
    splits = cut_splits(data, Data(path="-", **options), None)
    return {row: split for split, rows in splits.items() for row in rows["row"]}


def test_growing_data_keeps_its_splits():
    data = patients(200)
    options = {"split_hash": ("row", "age"), "validation": 0.2, "test": 0.1}
    grown = split_of_rows(data, **options)
    chosen = list(range(0, data["train"].num_rows, 3))[::-1]
    small = split_of_rows(DatasetDict({"train": data["train"].select(chosen)}), **options)
    assert small == {row: grown[row] for row in small}
    assert len(small) == len(chosen)
    shares = {
        split: list(grown.values()).count(split) / len(grown) for split in ("test", "validation")
    }
    assert shares == {
        "test": pytest.approx(0.1, abs=0.03),
        "validation": pytest.approx(0.2, abs=0.04),
    }
    assert split_of_rows(data, **options, split_seed=1) != grown


def test_the_hash_of_a_group_keeps_it_together():
    splits = cut(patients(), split_hash=("patient",), validation=0.2, test=0.2)
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 60


def test_the_hash_is_the_same_everywhere():
    """A recorded result: another machine, process or version of Python cuts the same rows."""
    splits = split_of_rows(patients(20), split_hash=("row",), validation=0.1, test=0.1)
    validation = [row for row, split in splits.items() if split == "validation"]
    assert validation[:6] == [13, 17, 22, 28, 53, 59]


# Limit


def test_a_limit_draws_rows_of_each_split_and_keeps_their_order(messages):
    data = patients()
    data["test"] = data["train"].select(range(5))
    total = data["train"].num_rows
    limited = limit_rows(data, Data(path="-", limit=20))
    rows = limited["train"]["row"][:]
    assert len(set(rows)) == 20
    assert rows == sorted(rows) != list(range(20))
    assert limited["test"]["row"][:] == list(range(5))
    assert messages() == f"data: train: 20 of {total} rows, drawn at random (--data.limit)"
    assert limit_rows(data, Data(path="-", limit=20))["train"]["row"][:] == rows
    assert limit_rows(data, Data(path="-", limit=20, split_seed=1))["train"]["row"][:] != rows
    assert limit_rows(data, Data(path="-"))["train"].num_rows == total


# Columns that decide on the split are not labels


def test_a_pattern_of_labels_does_not_match_the_columns_of_the_split(monkeypatch):
    rows = [
        {"text": f"sky {row}", "patient": row // 2, "C18": row % 2, "C19": 1, "C20": 0}
        for row in range(20)
    ]
    data = DatasetDict({"train": Dataset.from_list(rows)})
    monkeypatch.setattr(Data, "read", lambda self: data)
    for options in ({"split_group": "patient"}, {"split_hash": ("patient",)}):
        source = Data(path="-", validation=0.3, **options)
        task = TextClassification(model="-", data=source, label_column="*")
        assert task.label_columns == ("C18", "C19", "C20")
        assert not set(task.rows["train"]["patient"]) & set(task.rows["validation"]["patient"])
