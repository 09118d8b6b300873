"""Labels: what they are is decided once, from train; encoded, they equal scikit-learn's; a run keeps its mapping."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_script, sentences, write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

from ftloop import Data, TextClassification
from ftloop.data import labels
from ftloop.errors import UserError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def table(cells: list[Any], feature: Any = None) -> Dataset:
    """Rows with these labels, in a column of the given type or of what Arrow makes of them."""
    texts = [f"sky {number}" for number in range(len(cells))]
    features = Features({"text": Value("string"), "label": feature}) if feature is not None else None
    return Dataset.from_dict({"text": texts, "label": cells}, features=features)


def decided(rows: Dataset, **options: Any) -> tuple[labels.Labels, list[Any]]:
    """The labels as decided from these rows of train, and the rows encoded by them."""
    columns = options.pop("columns", ("label",))
    options = {"separator": None, "problem_type": None, "names": (), **options}
    found = labels.decide(rows, columns, **options)
    return found, labels.encode(rows, columns, options["separator"], found, "train")


def binarized(cells: list[list[Any]], classes: Any = None) -> tuple[list[Any], list[list[float]]]:
    """scikit-learn's classes and 0/1 rows."""
    binarizer = MultiLabelBinarizer(classes=classes)
    encoded = binarizer.fit_transform(cells).astype(float).tolist()
    return list(binarizer.classes_), encoded


# ---- single-label


@pytest.mark.parametrize(
    "cells",
    [
        ["green", "red", "blue", "red", "green"],
        ["b", "a", "B", "ä", "A"],
        [2, 0, 1, 1, 2],
        [3, 1, 2, 1, 3],  # ids that start at 1
        [10, 9, 100, 9],  # by number, not by letter
        [-1, 1, 1, -1],
        [7, 2, 40],  # with gaps
        [True, False, True],
        ["10", "9", "100"],
    ],
    ids=str,
)
def test_single_labels_are_encoded_as_by_scikit_learn(cells):
    numbers = [int(cell) for cell in cells] if str(cells[0]).lstrip("-").isdecimal() else cells
    encoder = LabelEncoder().fit(numbers)
    found, encoded = decided(table(cells))
    assert found.problem_type == SINGLE
    assert encoded == encoder.transform(numbers).tolist()
    assert list(found.names) == list(map(str, encoder.classes_))


@pytest.mark.parametrize("names", [["neg", "pos", "mixed"], ["2", "1", "0"], ["0", "2", "1"], ["b", "a", "1"]])
def test_a_class_label_keeps_its_own_order(names):
    ids = [2, 0, 1, 1, 0]
    found, encoded = decided(table(ids, ClassLabel(names=names)))
    assert (found.problem_type, list(found.names)) == (SINGLE, names)
    assert encoded == ids


def test_a_class_label_keeps_the_names_that_train_lacks(caplog):
    found, encoded = decided(table([2, 0, 2], ClassLabel(names=["neg", "never", "pos"])))
    assert found.names == ("neg", "never", "pos")
    assert encoded == [2, 0, 2]


def test_ids_get_the_names_that_are_given():
    found, encoded = decided(table([2, 0, 1, 0]), names=("bad", "fair", "good"))
    assert found.names == ("bad", "fair", "good")
    assert encoded == [2, 0, 1, 0]
    assert labels.encode(table(["good", "bad"]), ("label",), None, found, "test") == [2, 0]  # a split may hold names


def test_truth_values_are_ids_of_two_names():
    found, encoded = decided(table([True, False]), names=("no", "yes"))
    assert encoded == [1, 0]
    found, _ = decided(table([0, 1]))
    assert labels.encode(table([True, False]), ("label",), None, found, "test") == [1, 0]
    found, _ = decided(table([1, 2]))
    with pytest.raises(UserError, match=r"2 label\(s\) that train lacks: 'False', 'True'"):
        labels.encode(table([True, False]), ("label",), None, found, "test")


def test_the_threshold_of_single_labels_has_no_effect_and_that_is_said(tmp_path, caplog):
    path = write_csv(tmp_path / "rows.csv", [{"text": row["text"], "label": row["colour"]} for row in sentences(20)])
    task = TextClassification(model="-", data=Data(path=path, validation=0), threshold=0.7)
    with caplog.at_level("WARNING", "ftloop"):
        _ = task.labels
    assert "--task.threshold 0.7 has no effect" in caplog.text


def test_names_are_given_their_order():
    found, encoded = decided(table(["good", "bad", "fair"]), names=("bad", "fair", "good"))
    assert encoded == [2, 0, 1]
    assert found.outputs == 3


def test_a_name_that_is_a_number_is_never_taken_for_an_id():
    """Train has 1, 2, 3. A split with 0, 1, 2 would pass as ids, and each would mean another label than it says."""
    found, _ = decided(table([1, 2, 3]))
    assert labels.encode(table([3, 1]), ("label",), None, found, "validation") == [2, 0]
    with pytest.raises(
        UserError, match=r"validation has 1 label\(s\) that train lacks: '0'; the labels are '1', '2', '3'"
    ):
        labels.encode(table([0, 1, 2]), ("label",), None, found, "validation")


def test_whole_numbers_written_as_decimals_ask_what_is_meant():
    rows = table([1.0, 3.0, 2.0, 1.0])
    with pytest.raises(UserError, match=r"'label' holds whole numbers written as decimals: .*--task.problem-type"):
        decided(rows)
    assert decided(rows, problem_type=SINGLE) == (labels.Labels(SINGLE, ("1", "2", "3")), [0, 2, 1, 0])
    assert decided(rows, problem_type=REGRESSION) == (labels.Labels(REGRESSION, ()), [1.0, 3.0, 2.0, 1.0])


# ---- regression


def test_decimals_are_regression():
    cells = [0.5, 3.0, -2.25]
    assert decided(table(cells)) == (labels.Labels(REGRESSION, ()), cells)


def test_whole_numbers_are_regression_on_demand():
    assert decided(table([5, 3, 4]), problem_type=REGRESSION) == (labels.Labels(REGRESSION, ()), [5.0, 3.0, 4.0])


def test_regression_refuses_what_is_no_finite_number():
    found, _ = decided(table([0.5, 1.5]))
    with pytest.raises(UserError, match="test holds inf in row 1, counted from 0"):
        labels.encode(table([0.5, float("inf")]), ("label",), None, found, "test")
    with pytest.raises(UserError, match=r"test holds a label that is not a number: .*'many'"):
        labels.encode(table(["1.5", "many"]), ("label",), None, found, "test")


# ---- multi-label


TAGS = [["sea", "sky"], [], ["grass"], ["sky"], ["sky", "grass", "sea"]]


def test_a_list_column_of_names_is_multi_label():
    names, expected = binarized(TAGS)
    assert decided(table(TAGS)) == (labels.Labels(MULTI, tuple(names)), expected)


@pytest.mark.parametrize("cells", [[[2, 0], [1], [], [0, 1, 2]], [[1, 3], [2], [1, 2]], [[10], [9, 100]]], ids=str)
def test_a_list_column_of_ids_is_multi_label(cells):
    ids, expected = binarized(cells)
    assert decided(table(cells)) == (labels.Labels(MULTI, tuple(map(str, ids))), expected)


def test_a_list_column_of_class_labels_keeps_their_order():
    names, cells = ["sky", "2", "0"], [[2, 0], [1], [0, 1]]
    _, expected = binarized(cells)
    found, encoded = decided(table(cells, List(ClassLabel(names=names))))
    assert (list(found.names), encoded) == (names, expected)


def test_a_separated_text_is_multi_label():
    names, expected = binarized(TAGS)
    cells = [" , ".join(tags) for tags in TAGS]
    assert decided(table(cells), separator=",") == (labels.Labels(MULTI, tuple(names)), expected)


def test_separated_ids_get_their_names_from_a_file(tmp_path):
    """As goemotions has them: ids in one comma-separated column, the names in a file, one a line."""
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
    assert task.labels == labels.Labels(MULTI, tuple(names))
    _, expected = binarized([[int(part) for part in cell.split(",")] for cell in cells], range(4))
    train = task.rows["train"]
    assert labels.encode(train, ("emotions",), ",", task.labels, "train") == expected


def test_a_separated_column_in_which_every_row_has_one_id_is_still_multi_label():
    """pandas reads such a column as numbers."""
    found, encoded = decided(table([0, 2, 1]), separator=",", names=("a", "b", "c"))
    assert found.problem_type == MULTI
    assert encoded == np.eye(3)[[0, 2, 1]].tolist()


CODES = {"c18": [1, 0, 0, 1], "c19": [0, 0, 1, 1], "c20": [0, 1, 0, 1]}


@pytest.mark.parametrize(
    "kind", [int, float, bool, str, lambda cell: str(bool(cell)), lambda cell: f"{bool(cell)}".lower()]
)
def test_several_columns_of_0_and_1_are_multi_label(kind):
    rows = Dataset.from_dict({name: [kind(cell) for cell in cells] for name, cells in CODES.items()})
    found, encoded = decided(rows, columns=tuple(CODES))
    assert found == labels.Labels(MULTI, tuple(CODES))
    assert encoded == np.array(list(CODES.values()), float).T.tolist()


def test_several_columns_refuse_other_cells_and_a_wrong_number_of_names():
    rows = Dataset.from_dict({"a": [0, 1, 2], "b": [1, 1, 0]})
    with pytest.raises(UserError, match=r"--task.label-column 'a': train holds \['2'\]; 0 or 1 is needed"):
        decided(rows, columns=("a", "b"))
    with pytest.raises(UserError, match=r"--task.label-names: 3 names for the 2 columns of --task.label-column"):
        decided(rows, columns=("a", "b"), names=("x", "y", "z"))


def test_lists_of_0_and_1_are_not_taken_for_ids():
    with pytest.raises(
        UserError, match=r"'label' holds lists of 0 and 1 \(\[1, 0, 1\]\): give lists of names or ids, or"
    ):
        decided(table([[1, 0, 1], [0, 0, 1]]))


# ---- refusals


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (table(["a", "a", "a"]), {}, "train has one class only, 'a'; nothing to tell apart"),
        (table([1, 1]), {"names": ("a", "b")}, "train has one class only, '1'"),
        (table([0, 0], ClassLabel(names=["neg", "pos"])), {}, "train has one class only, 'neg'"),
        (table([None, None], Value("string")), {}, "no row of train has a label in label"),
        (table(["a", "b"]), {"names": ("a", "b", "a")}, "--task.label-names: 'a' occurs twice"),
        (table(["a", "b", "c"]), {"names": ("a", "b")}, r"train has 1 label\(s\) that --task.label-names lacks: 'c'"),
        (
            table([0, 1, 2]),
            {"names": ("a", "b")},
            r"train has 3 label\(s\) that --task.label-names lacks: '0', '1', '2'",
        ),
        (
            table(["a", "b"]),
            {"problem_type": MULTI},
            "does not fit .* single values .--task.label-separator splits texts",
        ),
        (table([["a"], ["b"]]), {"problem_type": SINGLE}, "does not fit the label column label, which holds lists"),
        (table([["a"], ["b"]]), {"problem_type": SINGLE, "names": ("a", "b")}, "which holds lists"),
        (table([[0.5], [1.5]]), {"problem_type": REGRESSION}, "regression does not fit .* which holds lists"),
        (table(["a", "b"]), {"problem_type": REGRESSION}, r"holds texts \('a'\): regression needs numbers"),
        (table([{"id": 1}, {"id": 2}]), {}, r"'label' holds \{'id': 1\}, which is no name, id or number"),
        (table([[["a"]], [["b"]]]), {}, r"'label' holds \['a'\], which is no name, id or number"),
    ],
)
def test_labels_that_make_no_task_are_refused(rows, options, words):
    with pytest.raises(UserError, match=words):
        decided(rows, **options)


def test_a_label_that_train_lacks_is_named_with_the_nearest():
    found, _ = decided(table(["positive", "negative"]))
    with pytest.raises(
        UserError, match=r"has 1 label\(s\) that train lacks: 'positiv' \(did you mean 'positive'\?\); the"
    ):
        labels.encode(table(["negative", "positiv"]), ("label",), None, found, "validation")


# ---- kept by the model


def colour_task(tiny: Any, folder: Path, label_column: str = "colour") -> TextClassification:
    rows = [{**row, "tags": [row["colour"], ("dull", "bright")["bright" in row["text"]]]} for row in sentences(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(path=str(folder / "rows.jsonl"), validation=0)
    return TextClassification(model=tiny("bert"), data=data, label_column=label_column, max_length=32)


def save_model(task: TextClassification, folder: Path) -> str:
    """Leave in a folder what a finished run leaves in its model/."""
    model = task.build_model()
    for part in (model, task.processor):
        part.save_pretrained(folder)
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
def test_the_mapping_is_in_the_models_config_and_comes_back(tiny, tmp_path, column, problem_type, names):
    task = colour_task(tiny, tmp_path, column)
    model = task.build_model()
    assert model.config.problem_type == problem_type
    assert model.config.num_labels == (len(names) or 1)
    if names:
        assert model.config.id2label == dict(enumerate(names))
        assert model.config.label2id == {name: number for number, name in enumerate(names)}
    restored = task.of_run(save_model(task, tmp_path / "model"))
    assert restored.labels == task.labels == labels.Labels(problem_type, tuple(names))
    assert type(restored.build_model()) is type(model)


def test_a_multi_label_run_with_one_label_comes_back(tiny, tmp_path):
    """Its only name is no file of names."""
    rows = [{"text": "sky", "tags": ["urgent"]}, {"text": "sea", "tags": []}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(path=str(tmp_path / "rows.jsonl"), validation=0)
    task = TextClassification(model=tiny("bert"), data=data, label_column="tags", max_length=32)
    restored = task.of_run(save_model(task, tmp_path / "model"))
    assert restored.labels == labels.Labels(MULTI, ("urgent",))
    assert labels.encode(restored.rows["train"], ("tags",), None, restored.labels, "train") == [[1.0], [0.0]]


def test_a_run_gives_the_same_ids_to_other_data(tiny, tmp_path, monkeypatch):
    """Labels in another order, as names or ids, or not all of them: what the logits mean was decided in training."""
    model = save_model(colour_task(tiny, tmp_path), tmp_path / "model")
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
        task = TextClassification(model="-", data=data).of_run(model)
        assert task.load()["train"]["labels"][:] == ids, cells
        assert {name: number for number, name in enumerate(task.labels.names)} == expected
    for feature in (ClassLabel(names=["red", "blue"]), ClassLabel(names=["green", "red", "blue"])):
        rows = table([1, 0], feature)
        monkeypatch.setattr(Data, "read", lambda self, rows=rows: DatasetDict({"train": rows}))
        task = TextClassification(model="-", data=Data(path="-", validation=0)).of_run(model)
        assert task.load()["train"]["labels"][:] == [expected[name] for name in feature.int2str([1, 0])]


def test_evaluation_names_a_label_that_the_run_does_not_know(tiny, colours, tmp_path):
    words = ["configs/text.py", "--task.model", tiny("bert"), *colours, "--max-steps", "2"]
    assert run_script("train.py", *words).code == 0
    run, before = tmp_path / "run", json.loads((tmp_path / "run" / "scores.json").read_text())
    test = sentences(11, seed=2)
    write_csv(tmp_path / "test.csv", test[::-1])  # another order of rows and labels: the same scores
    evaluated = run_script("evaluate.py", run, "--json")
    assert json.loads(evaluated.out) == pytest.approx(before["test"], rel=1e-6)
    test[3]["colour"] = "rde"
    write_csv(tmp_path / "test.csv", test)
    refused = run_script("evaluate.py", run)
    assert refused.code == 2
    assert refused.err.count("error:") == 1
    assert "test has 1 label(s) that train lacks: 'rde' (did you mean 'red'?)" in refused.err
