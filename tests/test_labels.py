"""Labels are inferred once, from train, encoded as by scikit-learn, and saved with the model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_script, sentences, write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

from ftloop.data import Data
from ftloop.data.labels import Labels, encode_labels, infer_labels
from ftloop.errors import UserError
from ftloop.tasks import TextClassification

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"


def table(cells: list[Any], feature: Any = None) -> Dataset:
    """Return rows with these labels, in a column of the given type or of the type Arrow infers."""
    texts = [f"sky {number}" for number in range(len(cells))]
    features = None
    if feature is not None:
        features = Features({"text": Value("string"), "label": feature})
    return Dataset.from_dict({"text": texts, "label": cells}, features=features)


def infer_and_encode(
    rows: Dataset,
    columns: Sequence[str] = ("label",),
    separator: str | None = None,
    problem_type: Any = None,
    names: Sequence[str] = (),
) -> tuple[Labels, list[Any]]:
    """Infer the labels from rows of train, and encode these rows."""
    labels = infer_labels(rows, columns, separator, problem_type, names)
    return labels, encode_labels(rows, columns, separator, labels, "train")


def encode(rows: Dataset, labels: Labels, split: str = "test") -> list[Any]:
    """Encode the rows of another split."""
    return encode_labels(rows, ("label",), None, labels, split)


def binarize(cells: list[list[Any]], classes: Any = None) -> tuple[list[Any], list[list[float]]]:
    """Return scikit-learn's classes and 0/1 rows."""
    binarizer = MultiLabelBinarizer(classes=classes)
    encoded = binarizer.fit_transform(cells).astype(float).tolist()
    return list(binarizer.classes_), encoded


# Single-label


@pytest.mark.parametrize(
    "cells",
    [
        ["green", "red", "blue", "red", "green"],
        ["b", "a", "B", "ä", "A"],
        [2, 0, 1, 1, 2],
        [3, 1, 2, 1, 3],  # ids that start at 1
        [10, 9, 100, 9],  # sorted as numbers, not as texts
        [-1, 1, 1, -1],
        [7, 2, 40],  # with gaps
        [True, False, True],
        ["10", "9", "100"],
    ],
    ids=str,
)
def test_single_labels_are_encoded_as_by_scikit_learn(cells):
    is_number = str(cells[0]).lstrip("-").isdecimal()
    values = [int(cell) for cell in cells] if is_number else cells
    encoder = LabelEncoder().fit(values)
    labels, encoded = infer_and_encode(table(cells))
    assert labels.problem_type == SINGLE
    assert encoded == encoder.transform(values).tolist()
    assert list(labels.names) == list(map(str, encoder.classes_))


@pytest.mark.parametrize(
    "names", [["neg", "pos", "mixed"], ["2", "1", "0"], ["0", "2", "1"], ["b", "a", "1"]]
)
def test_a_class_label_keeps_its_own_order(names):
    ids = [2, 0, 1, 1, 0]
    labels, encoded = infer_and_encode(table(ids, ClassLabel(names=names)))
    assert labels == Labels(SINGLE, tuple(names))
    assert encoded == ids


def test_a_class_label_keeps_the_names_that_train_does_not_have():
    feature = ClassLabel(names=["neg", "never", "pos"])
    labels, encoded = infer_and_encode(table([2, 0, 2], feature))
    assert labels.names == ("neg", "never", "pos")
    assert encoded == [2, 0, 2]


def test_ids_get_the_names_of_the_option():
    labels, encoded = infer_and_encode(table([2, 0, 1, 0]), names=("bad", "fair", "good"))
    assert labels.names == ("bad", "fair", "good")
    assert encoded == [2, 0, 1, 0]
    assert encode(table(["good", "bad"]), labels) == [2, 0]  # another split may hold the names


def test_truth_values_are_ids_of_two_names():
    _, encoded = infer_and_encode(table([True, False]), names=("no", "yes"))
    assert encoded == [1, 0]
    labels, _ = infer_and_encode(table([0, 1]))
    assert encode(table([True, False]), labels) == [1, 0]
    labels, _ = infer_and_encode(table([1, 2]))
    message = r"2 label\(s\) that train does not have: 'False', 'True'"
    with pytest.raises(UserError, match=message):
        encode(table([True, False]), labels)


def test_a_threshold_for_single_labels_is_reported_as_without_effect(tmp_path, caplog):
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(20)]
    data = Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0)
    task = TextClassification(model="-", init="random", data=data, threshold=0.7)
    with caplog.at_level("WARNING", "ftloop"):
        _ = task.labels
    assert "--threshold 0.7 has no effect" in caplog.text


def test_names_of_the_option_decide_on_the_order():
    labels, encoded = infer_and_encode(
        table(["good", "bad", "fair"]), names=("bad", "fair", "good")
    )
    assert encoded == [2, 0, 1]
    assert labels.num_outputs == 3


def test_a_name_that_is_a_number_is_never_taken_for_an_id():
    """With the names 1, 2 and 3, the values 0, 1 and 2 would be valid ids of other labels."""
    labels, _ = infer_and_encode(table([1, 2, 3]))
    assert encode(table([3, 1]), labels) == [2, 0]
    message = (
        r"validation has 1 label\(s\) that train does not have: '0'\. "
        "The labels are '1', '2', '3'"
    )
    with pytest.raises(UserError, match=message):
        encode(table([0, 1, 2]), labels, "validation")


def test_whole_numbers_written_as_decimals_need_a_problem_type():
    rows = table([1.0, 3.0, 2.0, 1.0])
    message = "'label' holds whole numbers written as decimals.*--problem-type regression or"
    with pytest.raises(UserError, match=message):
        infer_and_encode(rows)
    classes = Labels(SINGLE, ("1", "2", "3"))
    assert infer_and_encode(rows, problem_type=SINGLE) == (classes, [0, 2, 1, 0])
    numbers = Labels(REGRESSION, ())
    assert infer_and_encode(rows, problem_type=REGRESSION) == (numbers, [1.0, 3.0, 2.0, 1.0])


# Regression


def test_decimals_are_regression():
    cells = [0.5, 3.0, -2.25]
    assert infer_and_encode(table(cells)) == (Labels(REGRESSION, ()), cells)


def test_whole_numbers_are_regression_on_demand():
    labels, encoded = infer_and_encode(table([5, 3, 4]), problem_type=REGRESSION)
    assert labels == Labels(REGRESSION, ())
    assert encoded == [5.0, 3.0, 4.0]


def test_regression_refuses_what_is_not_a_finite_number():
    labels, _ = infer_and_encode(table([0.5, 1.5]))
    with pytest.raises(UserError, match=r"test holds inf in row 1 \(from 0\)"):
        encode(table([0.5, float("inf")]), labels)
    with pytest.raises(UserError, match=r"test holds a label that is not a number: .*'many'"):
        encode(table(["1.5", "many"]), labels)


# Multi-label

TAGS = [["sea", "sky"], [], ["grass"], ["sky"], ["sky", "grass", "sea"]]


def test_a_list_column_of_names_is_multi_label():
    names, expected = binarize(TAGS)
    assert infer_and_encode(table(TAGS)) == (Labels(MULTI, tuple(names)), expected)


@pytest.mark.parametrize(
    "cells", [[[2, 0], [1], [], [0, 1, 2]], [[1, 3], [2], [1, 2]], [[10], [9, 100]]], ids=str
)
def test_a_list_column_of_ids_is_multi_label(cells):
    ids, expected = binarize(cells)
    assert infer_and_encode(table(cells)) == (Labels(MULTI, tuple(map(str, ids))), expected)


def test_a_list_column_of_class_labels_keeps_their_order():
    names, cells = ["sky", "2", "0"], [[2, 0], [1], [0, 1]]
    _, expected = binarize(cells)
    labels, encoded = infer_and_encode(table(cells, List(ClassLabel(names=names))))
    assert list(labels.names) == names
    assert encoded == expected


def test_a_text_with_separators_is_multi_label():
    names, expected = binarize(TAGS)
    cells = [" , ".join(tags) for tags in TAGS]
    labels, encoded = infer_and_encode(table(cells), separator=",")
    assert labels == Labels(MULTI, tuple(names))
    assert encoded == expected


def test_ids_with_separators_get_their_names_from_a_file(tmp_path):
    """As in GoEmotions: ids in one column, separated by commas, and a file with a name per line."""
    names = ["admiration", "amusement", "anger", "joy"]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    cells = ["2", "0,3", "1", "3", "0,1,2"] * 3
    rows = [{"text": f"sky {number}", "emotions": cell} for number, cell in enumerate(cells)]
    task = TextClassification(
        model="-",
        data=Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0),
        label_column="emotions",
        label_separator=",",
        label_names=str(tmp_path / "labels.txt"),
    )
    assert task.labels == Labels(MULTI, tuple(names))
    _, expected = binarize([[int(part) for part in cell.split(",")] for cell in cells], range(4))
    assert task.encode_labels(task.rows["train"], "train") == expected


def test_a_separator_makes_single_ids_multi_label():
    """pandas reads a column with one id in every row as numbers."""
    labels, encoded = infer_and_encode(table([0, 2, 1]), separator=",", names=("a", "b", "c"))
    assert labels.problem_type == MULTI
    assert encoded == np.eye(3)[[0, 2, 1]].tolist()


CODES = {"c18": [1, 0, 0, 1], "c19": [0, 0, 1, 1], "c20": [0, 1, 0, 1]}


@pytest.mark.parametrize(
    "kind",
    [int, float, bool, str, lambda cell: str(bool(cell)), lambda cell: str(bool(cell)).lower()],
)
def test_several_columns_of_0_and_1_are_multi_label(kind):
    rows = Dataset.from_dict({name: list(map(kind, cells)) for name, cells in CODES.items()})
    labels, encoded = infer_and_encode(rows, columns=tuple(CODES))
    assert labels == Labels(MULTI, tuple(CODES))
    assert encoded == np.array(list(CODES.values()), float).T.tolist()


def test_several_columns_refuse_other_cells_and_a_wrong_number_of_names():
    rows = Dataset.from_dict({"a": [0, 1, 2], "b": [1, 1, 0]})
    message = "--label-column 'a': train holds '2'.*each must hold 0 or 1"
    with pytest.raises(UserError, match=message):
        infer_and_encode(rows, columns=("a", "b"))
    message = "--label-names has 3 names for the 2 columns of --label-column"
    with pytest.raises(UserError, match=message):
        infer_and_encode(rows, columns=("a", "b"), names=("x", "y", "z"))


def test_lists_of_0_and_1_are_not_taken_for_ids():
    message = r"'label' holds lists of 0 and 1 \(\[1, 0, 1\]\)\. Use lists of names or ids, or"
    with pytest.raises(UserError, match=message):
        infer_and_encode(table([[1, 0, 1], [0, 0, 1]]))


# Refusals


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (table(["a", "a", "a"]), {}, "train has only one class, 'a'"),
        (table([1, 1]), {"names": ("a", "b")}, "train has only one class, '1'"),
        (table([0, 0], ClassLabel(names=["neg", "pos"])), {}, "train has only one class, 'neg'"),
        (table([None, None], Value("string")), {}, "no row of train has a label in label"),
        (table(["a", "b"]), {"names": ("a", "b", "a")}, "--label-names: 'a' occurs twice"),
        (
            table(["a", "b", "c"]),
            {"names": ("a", "b")},
            r"train has 1 label\(s\) that --label-names does not have: 'c'",
        ),
        (
            table([0, 1, 2]),
            {"names": ("a", "b")},
            r"train has 3 label\(s\) that --label-names does not have: '0', '1', '2'",
        ),
        (
            table(["a", "b"]),
            {"problem_type": MULTI},
            r"does not fit .* single values \(--label-separator splits texts",
        ),
        (
            table([["a"], ["b"]]),
            {"problem_type": SINGLE},
            "does not fit the label column label, which holds lists",
        ),
        (table([["a"], ["b"]]), {"problem_type": SINGLE, "names": ("a", "b")}, "holds lists"),
        (
            table([[0.5], [1.5]]),
            {"problem_type": REGRESSION},
            "regression does not fit .* which holds lists",
        ),
        (
            table(["a", "b"]),
            {"problem_type": REGRESSION},
            r"holds texts \('a'\); regression needs numbers",
        ),
        (
            table([{"id": 1}, {"id": 2}]),
            {},
            r"'label' holds \{'id': 1\}, which is not a name, an id or a number",
        ),
        (
            table([[["a"]], [["b"]]]),
            {},
            r"'label' holds \['a'\], which is not a name, an id or a number",
        ),
    ],
)
def test_labels_that_make_no_task_are_refused(rows, options, message):
    with pytest.raises(UserError, match=message):
        infer_and_encode(rows, **options)


def test_an_unknown_label_gets_a_suggestion():
    labels, _ = infer_and_encode(table(["positive", "negative"]))
    message = (
        r"has 1 label\(s\) that train does not have: 'positiv' \(did you mean 'positive'\?\)\. The"
    )
    with pytest.raises(UserError, match=message):
        encode(table(["negative", "positiv"]), labels, "validation")


# The mapping is saved with the model


def build_task(tiny: Any, folder: Path, label_column: str = "colour") -> TextClassification:
    rows = []
    for row in sentences(24):
        brightness = "bright" if "bright" in row["text"] else "dull"
        rows.append({**row, "tags": [row["colour"], brightness]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(path=str(folder / "rows.jsonl"), validation=0)
    return TextClassification(
        model=tiny("bert"), data=data, label_column=label_column, max_length=32
    )


def save_model(task: TextClassification, folder: Path) -> str:
    """Save a model as a finished run leaves it in its model/."""
    task.build_model().save_pretrained(folder)
    task.processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("column", "problem_type", "names"),
    [
        ("colour", SINGLE, ["blue", "green", "red"]),
        ("number", SINGLE, ["0", "1", "2"]),
        ("tags", MULTI, ["blue", "bright", "dull", "green", "red"]),
        ("tone", REGRESSION, []),
    ],
)
def test_the_mapping_is_saved_in_the_configuration_of_the_model(
    tiny, tmp_path, column, problem_type, names
):
    task = build_task(tiny, tmp_path, column)
    model = task.build_model()
    assert model.config.problem_type == problem_type
    assert model.config.num_labels == (len(names) or 1)
    if names:
        assert model.config.id2label == dict(enumerate(names))
        assert model.config.label2id == {name: number for number, name in enumerate(names)}
    restored = task.from_finished_run(save_model(task, tmp_path / "model"))
    assert restored.labels == task.labels == Labels(problem_type, tuple(names))
    assert type(restored.build_model()) is type(model)


def test_the_single_name_of_a_multi_label_run_is_not_taken_for_a_file(tiny, tmp_path):
    rows = [{"text": "sky", "tags": ["urgent"]}, {"text": "sea", "tags": []}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(path=str(tmp_path / "rows.jsonl"), validation=0)
    task = TextClassification(model=tiny("bert"), data=data, label_column="tags", max_length=32)
    restored = task.from_finished_run(save_model(task, tmp_path / "model"))
    assert restored.labels == Labels(MULTI, ("urgent",))
    assert restored.encode_labels(restored.rows["train"], "train") == [[1.0], [0.0]]


def test_a_finished_run_encodes_other_data_with_its_own_ids(tiny, tmp_path, monkeypatch):
    """Labels may be in another order, be names or ids, or be incomplete."""
    model = save_model(build_task(tiny, tmp_path), tmp_path / "model")
    expected = {"blue": 0, "green": 1, "red": 2}
    for number, (cells, ids) in enumerate(
        [
            (["red", "green"], [2, 1]),
            (["red", "red"], [2, 2]),  # one class is enough to evaluate
            ([2, 0, 1], [2, 0, 1]),
            ([1, 1], [1, 1]),
        ]
    ):
        rows = [{"text": f"sky {cell}", "label": cell} for cell in cells]
        data = Data(path=write_csv(tmp_path / f"{number}.csv", rows), validation=0)
        task = TextClassification(model="-", data=data).from_finished_run(model)
        assert task.encode_labels(task.rows["train"], "train") == ids, cells
        assert [example["labels"] for example in task.load_datasets()["train"]] == ids, cells
        assert {name: number for number, name in enumerate(task.labels.names)} == expected
    for names in (["red", "blue"], ["green", "red", "blue"]):
        feature = ClassLabel(names=names)
        rows = table([1, 0], feature)
        monkeypatch.setattr(Data, "read", lambda self, rows=rows: DatasetDict({"train": rows}))
        data = Data(path="-", validation=0)
        task = TextClassification(model="-", data=data).from_finished_run(model)
        ids = [expected[name] for name in feature.int2str([1, 0])]
        assert [example["labels"] for example in task.load_datasets()["train"]] == ids


def test_evaluation_names_a_label_that_the_run_does_not_know(tiny, colours, tmp_path):
    command = ["configs/text.py", "--model", tiny("bert"), *colours, "--max-steps", "2"]
    assert run_script("train.py", *command).code == 0
    run = tmp_path / "run"
    scores = json.loads((run / "scores.json").read_text())
    test = sentences(11, seed=2)
    write_csv(tmp_path / "test.csv", test[::-1])  # another order of rows and labels: same scores
    evaluated = run_script("evaluate.py", run, "--json")
    assert json.loads(evaluated.out) == pytest.approx(scores["test"], rel=1e-6)
    test[3]["colour"] = "rde"
    write_csv(tmp_path / "test.csv", test)
    refused = run_script("evaluate.py", run)
    assert refused.code == 2
    assert refused.err.count("error:") == 1
    message = "test has 1 label(s) that train does not have: 'rde' (did you mean 'red'?)"
    assert message in refused.err
