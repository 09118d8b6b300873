"""Checks before training: each finding on a few rows, with its exact counts, and `train.py --check` as it is typed."""

import io
import json

import pytest
from conftest import ranks, run_script, sentences, write_csv

from ftloop import Data, Task, TextClassification
from ftloop.data import checks
from ftloop.data.labels import Labels
from ftloop.errors import UserError

TEXT, SINGLE = ("text",), "single_label_classification"


def splits(**texts):
    from datasets import Dataset

    return {split: Dataset.from_dict({"text": cells}) for split, cells in texts.items()}


def texts_of(findings):
    return [finding.text for finding in findings]


@pytest.fixture
def table(tmp_path, tiny):
    """`table(train=[(text, label), ...])`: options for a run on these rows and, where not given, forty more a split."""

    def make(**given):
        usual = [(row["text"], row["colour"]) for row in sentences(80)]
        files = []
        for number, split in enumerate(("train", "test")):
            pairs = [*given.get(split, ()), *usual[number * 40 : number * 40 + 40]]
            rows = [{"text": text, "label": label} for text, label in pairs]
            files += [split, write_csv(tmp_path / f"{split}.csv", rows)]
        return [
            *("configs/text.py", "--task.model", tiny("bert"), "--task.data.files", *files, "--task.max-length", "32"),
            *("--task.data.validation", "0", "--max-steps", "1", "--run-dir", str(tmp_path / "run")),
        ]

    return make


# ---- rows


def test_repeated_rows_are_the_same_letter_for_letter():
    data = splits(train=["a", "b", "a", "A", "a "], test=["c", "a", "b"])
    assert checks.repeated_rows(data, TEXT) == [
        [("train", 0), ("train", 2), ("test", 1)],
        [("train", 1), ("test", 2)],
    ]


def test_a_pair_repeats_only_as_a_pair():
    from datasets import Dataset

    data = {"train": Dataset.from_dict({"one": ["a", "a", "a"], "two": ["b", "c", "b"]})}
    assert checks.repeated_rows(data, ("one", "two")) == [[("train", 0), ("train", 2)]]


def test_images_are_the_same_if_their_bytes_are(tmp_path):
    from datasets import Dataset, Features, Image
    from PIL import Image as Picture

    stream = io.BytesIO()
    Picture.new("RGB", (4, 4), "red").save(stream, "PNG")
    Picture.new("RGB", (4, 4), "blue").save(tmp_path / "blue.png")
    (tmp_path / "red.png").write_bytes(stream.getvalue())
    cells = [str(tmp_path / "red.png"), str(tmp_path / "blue.png"), {"bytes": stream.getvalue(), "path": None}]
    for decode in (False, True):
        rows = Dataset.from_dict({"image": cells}, Features({"image": Image(decode=decode)}))
        data = {"train": checks.undecoded(rows)}
        same = checks.repeated_rows(data, ("image",))
        assert same == [[("train", 0), ("train", 2)]]
        assert "red.png' (train 0, train 2)" in checks.examples(data, ("image",), same)


def test_rows_in_two_splits_are_counted_by_the_later_one():
    data = splits(train=["a", "b", "c", "a"], validation=["a", "a", "x"], test=["x", "b", "y", "a"])
    repeated = checks.repeated_rows(data, TEXT)
    assert texts_of(checks.in_two_splits(data, TEXT, repeated)) == [
        "rows in two splits (--task.data.drop-duplicates drops them): 2 of the 3 rows of validation in train too, "
        "2 of the 4 rows of test in train too, 2 of the 4 rows of test in validation too, "
        "as 'a' (train 0, validation 0, test 3), 'b' (train 1, test 1), 'x' (validation 2, test 0)"
    ]
    data = splits(train=["a", "a"], test=["b", "b"])
    assert not list(checks.in_two_splits(data, TEXT, checks.repeated_rows(data, TEXT)))


def test_the_same_input_with_different_labels_is_told_from_a_repetition():
    data = splits(train=["a", "b", "a", "b"], test=["a", "long " * 20])
    repeated = checks.repeated_rows(data, TEXT)
    targets = {("train", 0): "joy", ("train", 2): "joy", ("test", 0): "anger", ("train", 1): "joy", ("train", 3): "joy"}
    assert texts_of(checks.contradictions(data, TEXT, repeated, targets)) == [
        "the same input with different labels: 1 input(s), 3 rows, as 'a' (train 0 joy, train 2 joy, test 0 anger)"
    ]
    assert not list(checks.contradictions(data, TEXT, repeated, dict.fromkeys(targets, "joy")))


def test_examples_are_few_and_short():
    data = splits(train=[f"{number} {'word ' * 20}" for number in range(5)] * 6)
    text = checks.examples(data, TEXT, checks.repeated_rows(data, TEXT))
    assert text.count("...'") == 3
    assert text.startswith(f"'0 {('word ' * 20)[:55]}...' (train 0, train 5, train 10, 3 more), '1 ")
    assert text.endswith("3 more), ...")


# ---- labels and lengths


def test_names_alike_in_case_or_space():
    (finding,) = checks.alike_names(["Joy", "joy ", "joy", "anger", "no label", "No  Label"])
    assert "them): 2, as 'Joy' and 'joy' and 'joy ', 'No  Label' and 'no label'" in finding.text
    assert finding.mistake
    (ignored,) = checks.alike_names(["joy ", "joy"])  # training takes them for one
    assert not ignored.mistake
    assert not list(checks.alike_names(["joy", "joys", "anger"]))


def test_class_sizes_by_split():
    known = Labels(SINGLE, ("a", "b", "c"))
    finding = checks.class_sizes({"train": [0, 1, 1, 1], "test": [2, 1]}, known)
    assert finding.text == "rows of each class in train, test\n    b: 3, 1\n    a: 1, 0\n    c: 0, 1"
    several = Labels("multi_label_classification", ("a", "b"))
    assert checks.class_sizes({"train": [[1.0, 1.0], [0.0, 1.0]]}, several).text.endswith("train\n    b: 2\n    a: 1")
    values = checks.class_sizes({"train": [0.5, 4.0, 1.0]}, Labels("regression", ()))
    assert values.text == "values\n    train: least 0.5, median 1, greatest 4"


def test_lengths_of_prepared_rows():
    from datasets import Dataset

    finding = checks.lengths("train", Dataset.from_dict({"length": [*range(1, 101), 300]}))
    assert finding.text == "train: 101 rows, of length 51 (median), 91 (90 %), 100 (99 %), 300 (longest)"
    assert checks.lengths("test", Dataset.from_dict({"pixels": [1, 2]})).text == "test: 2 rows"


@pytest.mark.parametrize(
    ("cells", "options", "shown"),
    [
        ([0.5, 1.5, 0.5, 2.5], {}, "train 0 0.5, train 1 1.5"),
        (["a,b", "b", "b,a", "a"], {"label_separator": ","}, "train 0 a+b, train 1 b"),
    ],
)
def test_labels_of_any_kind_contradict_each_other(tmp_path, tiny, cells, options, shown):
    # The first two rows differ; the third and the first are the same, the order of labels aside.
    rows = [{"text": text, "label": cell} for text, cell in zip(["x", "x", "x", "y"], cells, strict=True)]
    data = Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0)
    task = TextClassification(model=tiny("bert"), data=data, **options)
    (finding,) = checks.findings(task)
    assert finding.text.startswith("the same input with different labels: 1 input(s), 3 rows, as 'x' (" + shown)
    alone = TextClassification(model=tiny("bert"), data=Data(path=data.path, validation=0, limit=1), **options)
    assert alone.rows["train"].num_rows == 1
    assert not list(checks.in_two_splits(alone.rows, TEXT, []))


def test_many_rows_are_compared_by_check_alone(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(checks, "QUICK_ROWS", 5)
    rows = [{"text": text, "label": text} for text in "abcaba"]
    task = TextClassification(model=tiny("bert"), data=Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0))
    assert texts_of(checks.findings(task)) == [
        "rows are not searched for duplicates, which takes a while: --check does it"
    ]


def test_a_stream_is_not_looked_at(tmp_path, tiny):
    rows = [{"text": text, "label": text} for text in "abca"]
    task = TextClassification(model=tiny("bert"), data=Data(path=write_csv(tmp_path / "rows.csv", rows), validation=0))
    assert task.labels.names == ("a", "b", "c")
    vars(task)["rows"] = {"train": iter(()), "validation": task.rows["train"]}
    first, *others = texts_of(checks.findings(task, full=True))
    assert first == "train is a stream: its rows are not compared, nor counted"
    assert others[0].startswith("rows of each class in validation\n    a: 2")


def test_a_task_that_cannot_look_says_so():
    assert Task().check_data(full=False) == 0
    with pytest.raises(UserError, match="--check: Task has no check_data"):
        Task().check_data(full=True)


# ---- as typed


def test_check_says_all_and_writes_nothing(table, tmp_path):
    same = "the sky is so red"
    words = table(train=[(same, "red"), ("a red " * 40, "Red"), (same, "green")], test=[(same, "red")])
    result = run_script("train.py", *words, "--check")
    assert result.code == 1, result.err
    assert "1 of the 41 rows of test in train too, as" in result.err
    assert f"1 input(s), 3 rows, as {same!r} (train 0 red, train 2 green, test 0 red)" in result.err
    assert "makes one of them): 1, as 'Red' and 'red'" in result.err
    assert "rows of each class in train, test\n" in result.err
    assert "\n    Red: 1, 0\n" in result.err
    assert "1 of 43 texts are longer than --task.max-length 32 and were cut" in result.err
    assert "train: 43 rows, of length" in result.err
    assert "check: 3 finding(s) that usually are mistakes" in result.err
    assert "million parameters" not in result.err
    assert not (tmp_path / "run").exists()


def test_nothing_found_is_said_by_check_and_silent_in_training(table, tmp_path):
    result = run_script("train.py", *table(), "--check")
    assert result.code == 0, result.err
    assert "check: nothing looks like a mistake" in result.err
    assert "warning" not in result.err
    trained = run_script("train.py", *table())
    assert trained.code == 0, trained.err
    assert "warning" not in trained.err
    assert "check" not in trained.err.partition("train: ")[0]
    # A finished run does not matter, and is not touched.
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    assert run_script("train.py", *table(), "--check", "--learning-rate", "1").code == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_training_warns_and_goes_on(table, tmp_path):
    same = "the sky is so red"
    result = run_script("train.py", *table(train=[(same, "red")], test=[(same, "green")]))
    assert result.code == 0, result.err
    assert "warning: data: rows in two splits" in result.err
    assert "warning: data: the same input with different labels: 1 input(s), 2 rows" in result.err
    assert "rows of each class" not in result.err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["check"] is False


def test_rows_that_would_stop_training_do_not_hide_the_rest(table):
    words = table(
        train=[("", "red"), ("the sky", ""), (" ", "red"), ("rose", "red")], test=[("", "red"), ("rose", "red")]
    )
    result = run_script("train.py", *words, "--check")
    assert result.code == 1, result.err
    assert (
        "training would stop (this goes on without such rows): --task.data: the split 'train' has 2 empty" in result.err
    )
    assert "dropped 2 empty text (rows 0, 2) and 1 missing label (rows 1)" in result.err
    assert "data: test: dropped 1 empty text (rows 0)" in result.err
    assert "1 of the 41 rows of test in train too, as 'rose' (train 0, test 0)" in result.err
    assert "check: 2 finding(s)" in result.err
    result = run_script("train.py", *words, "--check", "--task.data.drop-empty")
    assert "check: 1 finding(s)" in result.err


def test_labels_that_would_stop_training_are_a_finding(table):
    result = run_script("train.py", *table(test=[("the sky", "RED"), ("rose", "purple")]), "--check")
    assert result.code == 1, result.err
    assert "as 'RED' and 'red'" in result.err
    assert "training would stop (and so does this): --task.label-column 'label': test has 2 label(s)" in result.err
    assert "check: 2 finding(s)" in result.err


def test_what_cannot_be_read_is_an_error_as_in_training(table, tmp_path):
    words = ["--task.data.files", "train", str(tmp_path / "none.csv"), "--check"]
    result = run_script("train.py", *table(), *words)
    assert result.code == 2
    assert result.err.startswith("error: --task.data.files: train file")
    result = run_script("train.py", *table(), "--task.label-column", "colour", "--check")
    assert result.code == 2
    assert "has no column 'colour'" in result.err


def test_one_process_of_several_looks(table):
    result = ranks(2, "train.py", *table(test=[("the sky", "RED")]), "--check")
    assert result.code == 1
    assert result.err.count("training would stop") == 1
