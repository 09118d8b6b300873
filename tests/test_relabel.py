"""Labels in lower case, merged, and without rare classes: counted, logged, and encoded as usual."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from ftloop.data import Data
from ftloop.data.labels import (
    Labels,
    encode_labels,
    infer_labels,
    read_label_cells,
    resolve_columns,
)
from ftloop.data.relabel import relabel_rows
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


def table(train: list[Any], feature: Any = None, **splits: list[Any]) -> DatasetDict:
    """Return splits with these labels, and a column with the row's number."""
    features = None
    if feature is not None:
        features = Features({"row": Value("int64"), "label": feature})
    tables = {}
    for split, cells in {"train": train, **splits}.items():
        columns = {"row": list(range(len(cells))), "label": cells}
        tables[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(tables)


def relabel(
    data: DatasetDict,
    columns: tuple[str, ...] = ("label",),
    separator: str | None = None,
    **options: Any,
) -> DatasetDict:
    defaults = {"lower": False, "merge": {}, "min_rows": 0, "rare": None}
    return relabel_rows(data, columns, separator, **{**defaults, **options})


def cells(data: DatasetDict, split: str = "train") -> list[Any]:
    return read_label_cells(data[split], ("label",), None)


def infer_and_encode(data: DatasetDict) -> tuple[Labels, list[Any]]:
    labels = infer_labels(data["train"], ("label",), None, None, ())
    return labels, encode_labels(data["train"], ("label",), None, labels, "train")


# Without an effect


def test_without_an_option_the_rows_are_the_same_object():
    data = table(["Joy", "joy"])
    assert relabel(data) is data
    assert relabel(table([0.5, 1.5])).keys() == {"train"}
    two_columns = DatasetDict({"train": Dataset.from_dict({"a": [0], "b": [1]})})
    assert relabel(two_columns, columns=("a", "b")) is two_columns


def test_labels_that_need_no_change_are_left_as_they_are():
    data = table(["joy", "fear", "joy"])
    assert relabel(data, lower=True, min_rows=1) is data
    ids = table([3, 1, 3])
    assert relabel(ids, min_rows=1) is ids


# Lower case and merging


def test_labels_are_stripped_and_written_in_lower_case(messages):
    data = table(["Joy", " joy", "FEAR", "joy "], test=["joy", "Fear"])
    data = relabel(data, lower=True)
    assert cells(data) == ["joy", "joy", "fear", "joy"]
    assert cells(data, "test") == ["joy", "fear"]
    assert messages() == (
        "labels: spaces and invisible characters around a name do not count, nor does the Unicode "
        "form (NFC is used): ' joy' is 'joy', 'joy ' is 'joy' (2 name(s))\n"
        "data: labels written in lower case: FEAR -> fear, Fear -> fear, Joy -> joy "
        "(2 row(s) of train, 1 row(s) of test)"
    )
    labels = Labels("single_label_classification", ("fear", "joy"))
    assert infer_and_encode(data) == (labels, [1, 1, 0, 1])


def test_labels_are_merged_after_they_were_written_in_lower_case(messages):
    data = table(["grief", "Annoyance", "anger", "joy"])
    merge = {"Grief": "Sadness", "annoyance": "anger"}
    merged = relabel(data, lower=True, merge=merge)
    assert cells(merged) == ["sadness", "anger", "anger", "joy"]
    message = "data: labels merged: annoyance -> anger, grief -> sadness (2 row(s) of train)"
    assert message in messages()
    swapped = relabel(table(["a", "b"]), merge={"a": "b", "b": "a"})
    assert cells(swapped) == ["b", "a"]


def test_ids_are_merged_by_their_numbers():
    """The command line reads `1 2` as the text of a label and a number."""
    assert cells(relabel(table([1, 2, 3]), merge={"1": 2})) == ["2", "2", "3"]
    labels, _ = infer_and_encode(relabel(table([1, 2, 10, 3]), merge={"1": 2}))
    assert labels.names == ("2", "3", "10")
    assert cells(relabel(table([1.0, 2.0]), merge={"1": "low"})) == ["low", "2"]


def test_a_label_that_no_row_has_cannot_be_merged():
    message = r"--label-merge greif: no row has this label \(did you mean 'grief'\?\)"
    with pytest.raises(UserError, match=message):
        relabel(table(["grief", "joy"]), merge={"greif": "sadness"})
    merged = relabel(table(["joy"], test=["grief"]), merge={"grief": "joy"})
    assert cells(merged, "test") == ["joy"]


# Rare classes

SIZES = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"]


def test_the_rows_of_rare_classes_are_dropped_in_all_splits(messages):
    data = relabel(table(SIZES, test=["a", "c", "unseen", "b"]), min_rows=3)
    assert cells(data) == ["a"] * 5 + ["b"] * 3
    assert cells(data, "test") == ["a", "b"]
    assert data["test"]["row"][:] == [0, 3]
    assert messages() == (
        "data: labels of rare classes dropped: c, d, unseen (3 row(s) of train, 2 row(s) of test)"
    )


def test_rare_classes_become_one(messages):
    data = relabel(table(SIZES, test=["a", "c", "unseen"]), min_rows=3, rare="other")
    assert cells(data) == ["a"] * 5 + ["b"] * 3 + ["other"] * 3
    assert cells(data, "test") == ["a", "other", "other"]
    assert messages() == (
        "data: labels of rare classes renamed: c -> other, d -> other, unseen -> other "
        "(3 row(s) of train, 2 row(s) of test)"
    )
    renamed = relabel(table(SIZES), min_rows=3, rare="d")
    assert cells(renamed) == ["a"] * 5 + ["b"] * 3 + ["d"] * 3


def test_classes_are_counted_after_merging():
    merged = relabel(table([*SIZES, "D"]), lower=True, merge={"c": "d"}, min_rows=4)
    assert cells(merged) == ["a"] * 5 + ["d"] * 4


# Kinds of label columns


def test_lists_of_names_lose_rare_labels_and_stay(messages):
    data = table([["A", "b"], ["a"], [], ["c", "a"], ["c"], ["d"]])
    data = relabel(data, lower=True, merge={"c": "b"}, min_rows=2)
    assert cells(data) == [["a", "b"], ["a"], [], ["b", "a"], ["b"], []]
    assert "data: labels of rare classes dropped: d (1 row(s) of train)" in messages()
    labels, encoded = infer_and_encode(data)
    assert labels == Labels("multi_label_classification", ("a", "b"))
    assert encoded == [[1, 1], [1, 0], [0, 0], [1, 1], [0, 1], [0, 0]]


def test_texts_with_separators_stay_such_texts():
    data = table(["A, b", "a", "", "c,a", "d"])
    data = relabel(data, separator=",", lower=True, merge={"c": "b"}, min_rows=2)
    assert data["train"]["label"][:] == ["a,b", "a", "", "b,a", ""]
    assert infer_labels(data["train"], ("label",), ",", None, ()).names == ("a", "b")


def test_a_class_label_keeps_its_order():
    feature = ClassLabel(names=["Worse", "Bad", "good", "never"])
    data = table([0, 1, 2, 2, 1], feature, test=[3, 2])
    data = relabel(data, lower=True, merge={"worse": "bad"}, min_rows=1)
    assert data["train"].features["label"] == ClassLabel(names=["bad", "good"])
    assert data["train"]["label"][:] == [0, 0, 1, 1, 0]
    assert data["test"]["label"][:] == [1]
    assert infer_and_encode(data)[0].names == ("bad", "good")
    unlabelled = relabel(table([0, 1, -1], feature), lower=True)
    assert cells(unlabelled) == ["worse", "bad", None]


def test_lists_of_class_labels_keep_their_order():
    feature = List(ClassLabel(names=["z", "A", "m"]))
    data = relabel(table([[0, 1], [2], [], [1]], feature), merge={"m": "A"})
    assert data["train"].features["label"] == List(ClassLabel(names=["z", "A"]))
    assert infer_and_encode(data) == (
        Labels("multi_label_classification", ("z", "A")),
        [[1, 1], [0, 1], [0, 0], [0, 1]],
    )


# Refusals


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            table([0.5, 1.5]),
            {"min_rows": 2},
            "need class names, but column 'label' holds the number 0.5",
        ),
        (
            table(["a", "b"]),
            {"min_rows": 2},
            "--label-min-rows 2: no class of train has that many rows",
        ),
        (
            table(["a", "a"], test=["b"]),
            {"min_rows": 2},
            "the split 'test' has only rows of rare classes",
        ),
        (
            table([0, 1]),
            {"columns": ("c1", "c2"), "lower": True},
            "need one column of names, but --label-column has 2",
        ),
    ],
)
def test_options_that_do_not_fit_the_labels_are_refused(data, options, message):
    with pytest.raises(UserError, match=message):
        relabel(data, **options)


def test_a_name_for_rare_classes_needs_the_number_of_rows():
    task = TextClassification(model="bert", data=Data(path="rows.csv"), label_rare="other")
    message = "--label-rare other has no effect without --label-min-rows"
    with pytest.raises(UserError, match=message):
        task.validate()


# Patterns of label columns


def test_patterns_name_label_columns_in_the_order_of_the_source():
    columns = ["text", "code_2", "code_1", "other", "x*"]
    assert resolve_columns(("code_*",), columns, ("text",)) == ("code_2", "code_1")
    assert resolve_columns(("other", "code_?"), columns, ()) == ("other", "code_2", "code_1")
    excluded = ("text", None, "other")
    assert resolve_columns(("*",), columns, excluded) == ("code_2", "code_1", "x*")
    assert resolve_columns(("x*",), columns, ()) == ("x*",)  # a column of this very name
    all_columns = ("code_2", "code_1", "other", "x*")
    assert resolve_columns(("code_*", "*"), columns, ("text",)) == all_columns
    assert resolve_columns(("missing",), columns, ()) == ("missing",)  # looked for later
    message = r"--label-column 'c_\*' matches none of the columns 'text', 'code_2'"
    with pytest.raises(UserError, match=message):
        resolve_columns(("c_*",), columns, ())


# Through a task


def test_a_task_counts_its_classes_before_it_cuts_validation(tiny, tmp_path, messages):
    labels = [*SIZES * 4, "Z", "z"]
    rows = [{"text": f"sky {number}", "label": label} for number, label in enumerate(labels)]
    task = TextClassification(
        model=tiny("bert"),
        data=Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0.25, test=0.25),
        max_length=32,
        label_lower=True,
        label_min_rows=8,
        label_rare="other",
    )
    datasets = task.load_datasets()
    assert task.labels.names == ("a", "b", "c", "other")
    assert sum(map(len, datasets.values())) == 46
    message = "of rare classes renamed: d -> other, z -> other (6 row(s) of train)"
    assert message in messages()


def test_a_finished_run_selects_the_rows_of_its_training_again(tiny, tmp_path):
    """Even if `limit` left no row of a class: the class is not rare for that."""
    labels = ["a", "b"] * 30 + ["c"] * 3 + ["d"]
    rows = [{"text": f"sky {number}", "label": label} for number, label in enumerate(labels)]
    data = Data(path=write_csv(tmp_path / "rows.csv", rows), limit=8)
    task = TextClassification(model=tiny("bert"), data=data, max_length=32, label_min_rows=3)
    datasets = task.load_datasets()
    assert task.labels.names == ("a", "b")
    model = tmp_path / "model"
    task.build_model().save_pretrained(model)
    task.processor.save_pretrained(model)
    again = task.from_finished_run(str(model)).load_datasets()
    assert again.keys() == datasets.keys()
    for split, dataset in datasets.items():
        assert [dict(row) for row in again[split]] == [dict(row) for row in dataset]


def test_duplicates_are_dropped_after_rare_classes(tmp_path):
    rows = [{"text": "same", "label": "rare"}, {"text": "same", "label": "a"}]
    rows += [{"text": f"sky {number}", "label": "ab"[number % 2]} for number in range(6)]
    data = Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0, drop_duplicates=True)
    task = TextClassification(model="-", data=data, label_min_rows=2)
    assert task.rows["train"]["text"][:] == [row["text"] for row in rows[1:]]
