"""Labels in lower case, merged, and without rare classes: counted, said, and encoded as before."""

import logging
from typing import Any

import pytest
from conftest import write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from ftloop import Data, TextClassification
from ftloop.data import labels
from ftloop.errors import UserError

NOTHING = {"separator": None, "lower": False, "merge": {}, "min_rows": 0, "rare": None}


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()`: the log lines of ftloop so far, one below the other."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def table(train: list[Any], feature: Any = None, **splits: list[Any]) -> DatasetDict:
    """Splits with these labels, and a column with the row's number."""
    features = Features({"row": Value("int64"), "label": feature}) if feature is not None else None
    parts = {"train": train, **splits}
    return DatasetDict(
        {
            split: Dataset.from_dict({"row": list(range(len(cells))), "label": cells}, features=features)
            for split, cells in parts.items()
        }
    )


def shaped(data: DatasetDict, **options: Any) -> DatasetDict:
    return labels.shape_labels(data, options.pop("columns", ("label",)), **{**NOTHING, **options})


def cells(data: DatasetDict, split: str = "train", separator: str | None = None) -> list[Any]:
    return labels.cells(data[split], ("label",), separator)


def decided(data: DatasetDict, separator: str | None = None) -> tuple[labels.Labels, list[Any]]:
    found = labels.decide(data["train"], ("label",), separator, None, ())
    return found, labels.encode(data["train"], ("label",), separator, found, "train")


# ---- nothing asked, nothing done


def test_without_an_option_the_rows_are_the_same_object():
    data = table(["Joy", "joy"])
    assert shaped(data) is data
    assert shaped(table([0.5, 1.5])).keys() == {"train"}
    two = DatasetDict({"train": Dataset.from_dict({"a": [0], "b": [1]})})
    assert shaped(two, columns=("a", "b")) is two


def test_labels_that_need_no_change_are_left_as_they_are():
    data = table(["joy", "fear", "joy"])
    assert shaped(data, lower=True, min_rows=1) is data
    ids = table([3, 1, 3])
    assert shaped(ids, min_rows=1) is ids


# ---- lower case and merging


def test_single_labels_are_lowered_stripped_and_counted(messages):
    data = shaped(table(["Joy", " joy", "FEAR", "joy "], test=["joy", "Fear"]), lower=True)
    assert cells(data) == ["joy", "joy", "fear", "joy"]
    assert cells(data, "test") == ["joy", "fear"]
    assert messages() == (
        "data: labels in lower case: FEAR -> fear, Fear -> fear, Joy -> joy (2 row(s) of train, 1 row(s) of test)"
    )
    assert decided(data) == (labels.Labels("single_label_classification", ("fear", "joy")), [1, 1, 0, 1])


def test_labels_are_merged_after_they_were_lowered(messages):
    data = table(["grief", "Annoyance", "anger", "joy"])
    merge = {"Grief": "Sadness", "annoyance": "anger"}
    assert cells(shaped(data, lower=True, merge=merge)) == ["sadness", "anger", "anger", "joy"]
    assert "data: labels merged: annoyance -> anger, grief -> sadness (2 row(s) of train)" in messages()
    swap = shaped(table(["a", "b"]), merge={"a": "b", "b": "a"})
    assert cells(swap) == ["b", "a"]


def test_ids_are_merged_by_their_numbers():
    """The command line reads `1 2` as a label's text and a number."""
    assert cells(shaped(table([1, 2, 3]), merge={"1": 2})) == ["2", "2", "3"]
    assert decided(shaped(table([1, 2, 10, 3]), merge={"1": 2}))[0].names == ("2", "3", "10")
    assert cells(shaped(table([1.0, 2.0]), merge={"1": "low"})) == ["low", "2"]


def test_a_label_that_nobody_has_cannot_be_merged():
    with pytest.raises(UserError, match=r"--task.label-merge greif: no row has this label \(did you mean 'grief'\?\)"):
        shaped(table(["grief", "joy"]), merge={"greif": "sadness"})
    assert cells(shaped(table(["joy"], test=["grief"]), merge={"grief": "joy"}), "test") == ["joy"]


# ---- rare classes

SIZES = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"]


def test_the_rows_of_rare_classes_are_dropped_in_all_splits(messages):
    data = shaped(table(SIZES, test=["a", "c", "unseen", "b"]), min_rows=3)
    assert cells(data) == ["a"] * 5 + ["b"] * 3
    assert cells(data, "test") == ["a", "b"]
    assert data["test"]["row"][:] == [0, 3]
    assert messages() == "data: labels of rare classes, dropped: c, d, unseen (3 row(s) of train, 2 row(s) of test)"


def test_rare_classes_become_one(messages):
    data = shaped(table(SIZES, test=["a", "c", "unseen"]), min_rows=3, rare="other")
    assert cells(data) == ["a"] * 5 + ["b"] * 3 + ["other"] * 3
    assert cells(data, "test") == ["a", "other", "other"]
    assert (
        "of rare classes: c -> other, d -> other, unseen -> other (3 row(s) of train, 2 row(s) of test)" in messages()
    )
    assert cells(shaped(table(SIZES), min_rows=3, rare="d")) == ["a"] * 5 + ["b"] * 3 + ["d"] * 3


def test_classes_are_counted_when_they_are_merged():
    merged = shaped(table([*SIZES, "D"]), lower=True, merge={"c": "d"}, min_rows=4)
    assert cells(merged) == ["a"] * 5 + ["d"] * 4


# ---- kinds of label columns


def test_lists_of_names_lose_rare_labels_and_stay(messages):
    data = shaped(table([["A", "b"], ["a"], [], ["c", "a"], ["c"], ["d"]]), lower=True, merge={"c": "b"}, min_rows=2)
    assert cells(data) == [["a", "b"], ["a"], [], ["b", "a"], ["b"], []]
    assert "data: labels of rare classes, dropped: d (1 row(s) of train)" in messages()
    found, encoded = decided(data)
    assert found == labels.Labels("multi_label_classification", ("a", "b"))
    assert encoded == [[1, 1], [1, 0], [0, 0], [1, 1], [0, 1], [0, 0]]


def test_separated_texts_stay_separated_texts():
    data = shaped(table(["A, b", "a", "", "c,a", "d"]), separator=",", lower=True, merge={"c": "b"}, min_rows=2)
    assert data["train"]["label"][:] == ["a,b", "a", "", "b,a", ""]
    assert decided(data, ",")[0].names == ("a", "b")


def test_a_class_label_keeps_its_order():
    feature = ClassLabel(names=["Worse", "Bad", "good", "never"])
    data = shaped(table([0, 1, 2, 2, 1], feature, test=[3, 2]), lower=True, merge={"worse": "bad"}, min_rows=1)
    assert data["train"].features["label"] == ClassLabel(names=["bad", "good"])
    assert data["train"]["label"][:] == [0, 0, 1, 1, 0]
    assert data["test"]["label"][:] == [1]
    assert decided(data)[0].names == ("bad", "good")
    unlabelled = shaped(table([0, 1, -1], feature), lower=True)
    assert cells(unlabelled) == ["worse", "bad", None]


def test_lists_of_class_labels_keep_their_order():
    feature = List(ClassLabel(names=["z", "A", "m"]))
    data = shaped(table([[0, 1], [2], [], [1]], feature), merge={"m": "A"})
    assert data["train"].features["label"] == List(ClassLabel(names=["z", "A"]))
    assert decided(data) == (
        labels.Labels("multi_label_classification", ("z", "A")),
        [[1, 1], [0, 1], [0, 0], [0, 1]],
    )


# ---- refusals


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (table(["a"]), {"rare": "other"}, "--task.label-rare other: --task.label-min-rows says below how many rows"),
        (table([0.5, 1.5]), {"min_rows": 2}, "need one column of names, and 'label' holds 0.5"),
        (table(["a", "b"]), {"min_rows": 2}, "--task.label-min-rows 2: no class of train has as many rows"),
        (table(["a", "a"], test=["b"]), {"min_rows": 2}, "the split 'test' is empty without its rare classes"),
        (table([0, 1]), {"columns": ("c1", "c2"), "lower": True}, "one column of names, and --task.label-column has 2"),
    ],
)
def test_options_that_make_no_sense_are_refused(data, options, words):
    with pytest.raises(UserError, match=words):
        shaped(data, **options)


# ---- patterns of label columns


def test_patterns_name_label_columns_in_the_order_of_the_source():
    columns = ["text", "code_2", "code_1", "other", "x*"]
    assert labels.matching(("code_*",), columns, ("text",)) == ("code_2", "code_1")
    assert labels.matching(("other", "code_?"), columns, ("text",)) == ("other", "code_2", "code_1")
    assert labels.matching(("*",), columns, ("text", None, "other")) == ("code_2", "code_1", "x*")
    assert labels.matching(("x*",), columns, ()) == ("x*",)  # a column of that very name
    assert labels.matching(("code_*", "*"), columns, ("text",)) == ("code_2", "code_1", "other", "x*")
    assert labels.matching(("missing",), columns, ()) == ("missing",)  # what is no pattern is looked for later
    with pytest.raises(UserError, match=r"--task.label-column 'c_\*' matches no column of 'text', 'code_2'"):
        labels.matching(("c_*",), columns, ())


# ---- through a task


def test_a_task_counts_its_classes_before_it_cuts_validation(tiny, tmp_path, messages):
    rows = [{"text": f"sky {number}", "label": label} for number, label in enumerate([*SIZES * 4, "Z", "z"])]
    data = Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0.25, test=0.25)
    options = {"max_length": 32, "label_lower": True, "label_min_rows": 8, "label_rare": "other"}
    task = TextClassification(model=tiny("bert"), data=data, **options)
    loaded = task.load()
    assert task.labels.names == ("a", "b", "c", "other")
    assert sum(rows.num_rows for rows in loaded.values()) == 46
    assert "of rare classes: d -> other, z -> other (6 row(s) of train)" in messages()


def test_a_finished_run_finds_the_rows_of_its_training_again(tiny, tmp_path):
    """Also if `limit` left a class out of all that was seen: it is not rare for that."""
    rows = [{"text": f"sky {number}", "label": label} for number, label in enumerate("ab" * 30 + "ccc" + "d")]
    data = Data(path=write_csv(tmp_path / "rows.csv", rows), limit=8)
    task = TextClassification(model=tiny("bert"), data=data, max_length=32, label_min_rows=3)
    loaded = task.load()
    assert task.labels.names == ("a", "b")
    model = tmp_path / "model"
    task.build_model().save_pretrained(model)
    task.processor.save_pretrained(model)
    scored = task.of_run(str(model)).load()
    assert {split: rows.to_list() for split, rows in scored.items()} == {
        split: rows.to_list() for split, rows in loaded.items()
    }


def test_duplicates_are_dropped_after_rare_classes(tmp_path):
    rows = [{"text": "same", "label": "rare"}, {"text": "same", "label": "a"}]
    rows += [{"text": f"sky {number}", "label": "ab"[number % 2]} for number in range(6)]
    data = Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0, drop_duplicates=True)
    task = TextClassification(model="-", data=data, label_min_rows=2)
    assert task.rows["train"]["text"][:] == [row["text"] for row in rows[1:]]
