"""Splits that respect groups, that stay as they are while the data grows, and that are limited for a quick try."""

import logging
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from ftloop import Data, TextClassification
from ftloop.data.splits import cut_splits, limit_rows
from ftloop.errors import UserError


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()`: the log lines of ftloop so far, one below the other."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def patients(count: int = 60) -> DatasetDict:
    """train with 1 to 9 rows of each patient, mixed, and a column with the row's number."""
    found = [patient for patient in range(count) for _ in range(1 + patient * patient % 9)]
    found = [found[(7 * row) % len(found)] for row in range(len(found))]
    rows = [{"row": row, "patient": f"p{patient}", "age": patient % 5} for row, patient in enumerate(found)]
    return DatasetDict({"train": Dataset.from_list(rows)})


def cut(data: DatasetDict, **options: Any) -> dict[str, set[str]]:
    """The patients of each split after cutting; rows are neither lost nor doubled, and in the order of the source."""
    parts = cut_splits(data, Data(path="-", **options), None)
    rows = [rows["row"][:] for rows in parts.values()]
    assert sorted(row for part in rows for row in part) == sorted(row for part in data.values() for row in part["row"])
    assert all(part == sorted(part) for part in rows)
    return {split: set(rows["patient"]) for split, rows in parts.items()}


# ---- options that do nothing


def test_options_of_a_cut_that_is_not_made_are_named(messages):
    data = DatasetDict({**patients(), "test": patients(3)["train"]})
    cut_splits(data, Data(path="-", test=0.2, validation=0, split_group="patient"), None)
    assert "data: --task.data.test 0.2 has no effect: the source has a test split" in messages()
    assert "data: --task.data.split-group has no effect: no split is cut" in messages()
    before = messages().count("no effect")
    cut_splits(data, Data(path="-", split_group="patient"), None)
    assert messages().count("no effect") == before


def test_images_alone_can_be_unreadable():
    task = TextClassification(model="bert", data=Data(path="a.csv", drop_unreadable=True))
    with pytest.raises(UserError, match=r"--task.data.drop-unreadable has no effect on texts"):
        task.check()


# ---- by group


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits(seed):
    parts = cut(patients(), split_group="patient", validation=0.2, test=0.3, split_seed=seed)
    assert list(parts) == ["train", "validation", "test"]
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 60


def test_the_rows_of_groups_are_about_as_many_as_asked_for_and_counted(messages):
    data = patients()
    total = data["train"].num_rows
    for wanted in (0.2, 40):
        parts = cut_splits(data, Data(path="-", split_group="patient", validation=wanted), None)
        asked = round(0.2 * total) if wanted == 0.2 else wanted
        assert abs(parts["validation"].num_rows - asked) < 0.1 * total
        assert f"data: validation is {parts['validation'].num_rows} rows" in messages()
    assert "cut from train, by group (seed 42)" in messages()
    assert f"({round(0.2 * total)} were asked for)" in messages()


def test_groups_of_a_given_test_split_are_left_to_it():
    data = patients()
    data["test"] = data["train"].select(range(5))
    parts = cut_splits(data, Data(path="-", split_group="patient", validation=0.2, test=0.5), None)
    assert parts["test"]["row"][:] == list(range(5))
    assert not set(parts["train"]["patient"]) & set(parts["validation"]["patient"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split_group": "patiant"}, r"--task.data.split-group: .* no column 'patiant' \(did you mean 'patient'\?\)"),
        ({"split_hash": ("row", "agee")}, r"--task.data.split-hash: .* no column 'agee' \(did you mean 'age'\?\)"),
        ({"split_hash": ("age",), "validation": 0.001}, "--task.data.validation 0.001: 0 rows cannot be cut from"),
        ({"split_hash": ("row",), "validation": 0.5, "test": 0.5}, "--task.data.validation 0.5: .* cannot be cut from"),
    ],
)
def test_what_cannot_be_cut_is_said(options, words):
    with pytest.raises(UserError, match=words):
        cut_splits(patients(), Data(path="-", **options), None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split_hash": ("row",), "split_group": "age"}, "split-group and --task.data.split-hash: one of the two"),
        ({"split_hash": ("row",), "validation": 20}, "--task.data.split-hash: .* are shares, below 1"),
        ({"split_hash": ("row",), "test": 20}, "--task.data.split-hash: .* are shares, below 1"),
    ],
)
def test_options_that_contradict_each_other_are_said_before_reading(options, words):
    with pytest.raises(UserError, match=words):
        Data(path="-", **options).check()


def test_one_group_cannot_be_divided():
    data = DatasetDict({"train": Dataset.from_list([{"row": row, "patient": "a"} for row in range(9)])})
    with pytest.raises(UserError, match=r"--task.data.validation 0.3: cannot cut whole groups: .*resulting train set"):
        cut_splits(data, Data(path="-", split_group="patient", validation=0.3), None)


def test_rows_without_a_group_are_named():
    rows = [{"row": row, "patient": None if row == 3 else "ab"[row % 2]} for row in range(9)]
    data = DatasetDict({"train": Dataset.from_list(rows)})
    with pytest.raises(UserError, match=r"--task.data.split-group patient: 1 row.* of train .* no value, .*: 3"):
        cut_splits(data, Data(path="-", split_group="patient"), None)


# ---- by hash


def by_hash(data: DatasetDict, **options: Any) -> dict[int, str]:
    """The split of each row, by its number."""
    parts = cut_splits(data, Data(path="-", **options), None)
    return {row: split for split, rows in parts.items() for row in rows["row"]}


def test_growing_data_keeps_its_split():
    whole = patients(200)
    options = {"split_hash": ("row", "age"), "validation": 0.2, "test": 0.1}
    grown = by_hash(whole, **options)
    draw = list(range(0, whole["train"].num_rows, 3))[::-1]
    first = by_hash(DatasetDict({"train": whole["train"].select(draw)}), **options)
    assert first == {row: grown[row] for row in first}
    assert len(first) == len(draw)
    counts = {split: list(grown.values()).count(split) / len(grown) for split in ("test", "validation")}
    assert counts == {"test": pytest.approx(0.1, abs=0.03), "validation": pytest.approx(0.2, abs=0.04)}
    assert by_hash(whole, **options, split_seed=1) != grown


def test_the_hash_of_a_group_keeps_it_together():
    parts = cut(patients(), split_hash=("patient",), validation=0.2, test=0.2)
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 60


def test_the_hash_is_the_same_everywhere():
    """A frozen answer: another machine, process or version of Python cuts the same rows."""
    found = by_hash(patients(20), split_hash=("row",), validation=0.1, test=0.1)
    assert [row for row, split in found.items() if split == "validation"][:6] == [13, 17, 22, 28, 53, 59]


# ---- limit


def test_a_limit_draws_rows_of_each_split_and_keeps_their_order(messages):
    data = patients()
    data["test"] = data["train"].select(range(5))
    found = limit_rows(data, Data(path="-", limit=20))
    rows = found["train"]["row"][:]
    assert len(set(rows)) == 20
    assert rows == sorted(rows) != list(range(20))
    assert found["test"]["row"][:] == list(range(5))
    total = data["train"].num_rows
    assert messages() == f"data: train: 20 of {total} rows, drawn at random (--task.data.limit)"
    assert limit_rows(data, Data(path="-", limit=20))["train"]["row"][:] == rows
    assert limit_rows(data, Data(path="-", limit=20, split_seed=1))["train"]["row"][:] != rows
    assert limit_rows(data, Data(path="-"))["train"].num_rows == total


# ---- the columns that decide on the split are no labels


def test_a_pattern_of_labels_leaves_the_group_alone(monkeypatch):
    rows = [{"text": f"sky {row}", "patient": row // 2, "C18": row % 2, "C19": 1, "C20": 0} for row in range(20)]
    monkeypatch.setattr(Data, "read", lambda self: DatasetDict({"train": Dataset.from_list(rows)}))
    for options in ({"split_group": "patient"}, {"split_hash": ("patient",)}):
        task = TextClassification(model="-", data=Data(path="-", validation=0.3, **options), label_column="*")
        assert task.label_columns == ("C18", "C19", "C20")
        assert not set(task.rows["train"]["patient"]) & set(task.rows["validation"]["patient"])
