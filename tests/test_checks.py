"""Checks of the data: each finding on a few rows, with exact counts, and `train.py --check`."""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, ranks, run_script, sentences, write_csv
from datasets import Dataset, Features, Image

from ftloop.cli import Job
from ftloop.cli.check import check_data
from ftloop.data import Data, checks
from ftloop.data.labels import Labels
from ftloop.errors import UserError
from ftloop.task import Task
from ftloop.tasks import TextClassification

TEXT = ("text",)
SINGLE = "single_label_classification"


def splits(**texts: list[str]) -> dict[str, Dataset]:
    return {split: Dataset.from_dict({"text": cells}) for split, cells in texts.items()}


def texts_of(findings: Iterable[checks.Finding]) -> list[str]:
    return [finding.text for finding in findings]


def task_of(file: str, model: str, **options: Any) -> TextClassification:
    return TextClassification(model=model, data=Data(path=file, validation=0), **options)


@pytest.fixture
def command(tmp_path: Path, tiny: Callable[[str], str]) -> Callable[..., list[str]]:
    """Return `command(train=[(text, label), ...], test=...)`, which writes files and a command.

    Each split has forty more rows in which nothing is wrong.
    """

    def make(**pairs_by_split: list[tuple[str, str]]) -> list[str]:
        usual = [(row["text"], row["colour"]) for row in sentences(80)]
        files = []
        for split, rest in (("train", usual[:40]), ("test", usual[40:])):
            pairs = [*pairs_by_split.get(split, ()), *rest]
            rows = [{"text": text, "label": label} for text, label in pairs]
            files += [split, write_csv(tmp_path / f"{split}.csv", rows)]
        return (
            f"configs/text.py --model {tiny('bert')} --max-length 32 "
            f"--data.files {' '.join(files)} --data.validation 0 "
            f"--max-steps 1 --run-dir {tmp_path / 'run'}"
        ).split()

    return make


def check(command: list[str], *options: str) -> Result:
    return run_script("train.py", *command, "--check", *options)


# Rows


def test_repeated_rows_are_identical_to_the_letter():
    data = splits(train=["a", "b", "a", "A", "a "], test=["c", "a", "b"])
    assert checks.find_repeated_rows(data, TEXT) == [
        [("train", 0), ("train", 2), ("test", 1)],
        [("train", 1), ("test", 2)],
    ]


def test_a_pair_repeats_only_as_a_pair():
    rows = Dataset.from_dict({"one": ["a", "a", "a"], "two": ["b", "c", "b"]})
    repeated = checks.find_repeated_rows({"train": rows}, ("one", "two"))
    assert repeated == [[("train", 0), ("train", 2)]]


def test_images_are_the_same_if_their_bytes_are(tmp_path):
    from PIL import Image as Picture

    buffer = io.BytesIO()
    Picture.new("RGB", (4, 4), "red").save(buffer, "PNG")
    Picture.new("RGB", (4, 4), "blue").save(tmp_path / "blue.png")
    (tmp_path / "red.png").write_bytes(buffer.getvalue())
    cells = [
        str(tmp_path / "red.png"),
        str(tmp_path / "blue.png"),
        {"bytes": buffer.getvalue(), "path": None},
    ]
    for decode in (False, True):
        rows = Dataset.from_dict({"image": cells}, Features({"image": Image(decode=decode)}))
        data = {"train": rows}
        repeated = checks.find_repeated_rows(data, ("image",))
        assert repeated == [[("train", 0), ("train", 2)]]
        examples = checks.format_examples(data, ("image",), repeated)
        assert "red.png' (train 0, train 2)" in examples
        assert checks.disable_decoding(rows)[0]["image"]["path"] == cells[0]


def test_rows_in_two_splits_are_counted_for_the_later_one():
    data = splits(train=["a", "b", "c", "a"], validation=["a", "a", "x"], test=["x", "b", "y", "a"])
    repeated = checks.find_repeated_rows(data, TEXT)
    assert texts_of(checks.find_overlaps(data, TEXT, repeated)) == [
        "rows are in two splits (--data.drop-duplicates drops them): "
        "2 of the 3 rows of validation are in train too, "
        "2 of the 4 rows of test are in train too, "
        "2 of the 4 rows of test are in validation too; for example "
        "'a' (train 0, validation 0, test 3), 'b' (train 1, test 1), 'x' (validation 2, test 0)"
    ]
    data = splits(train=["a", "a"], test=["b", "b"])
    repeated = checks.find_repeated_rows(data, TEXT)
    assert not list(checks.find_overlaps(data, TEXT, repeated))


def test_the_same_input_with_different_labels_is_more_than_a_repetition():
    data = splits(train=["a", "b", "a", "b"], test=["a", "long " * 20])
    repeated = checks.find_repeated_rows(data, TEXT)
    labels = {
        ("train", 0): "joy",
        ("train", 2): "joy",
        ("test", 0): "anger",
        ("train", 1): "joy",
        ("train", 3): "joy",
    }
    assert texts_of(checks.find_contradictions(data, TEXT, repeated, labels)) == [
        "the same input has different labels: 1 input(s), 3 rows; for example "
        "'a' (train 0 joy, train 2 joy, test 0 anger)"
    ]
    same = dict.fromkeys(labels, "joy")
    assert not list(checks.find_contradictions(data, TEXT, repeated, same))


def test_examples_are_few_and_short():
    data = splits(train=[f"{number} {'word ' * 20}" for number in range(5)] * 6)
    repeated = checks.find_repeated_rows(data, TEXT)
    text = checks.format_examples(data, TEXT, repeated)
    assert text.count("...'") == 3
    beginning = ("word " * 20)[:55]
    assert text.startswith(f"'0 {beginning}...' (train 0, train 5, train 10, 3 more), '1 ")
    assert text.endswith("3 more), ...")


# Labels and lengths


def test_names_that_differ_only_in_case_or_space_are_similar():
    names = ["Joy", "joy ", "joy", "anger", "no label", "No  Label"]
    (finding,) = checks.find_similar_names(names)
    assert finding.text.endswith(
        "2, for example 'Joy' and 'joy' and 'joy ', 'No  Label' and 'no label'"
    )
    assert finding.is_mistake
    (ignored,) = checks.find_similar_names(["joy ", "joy"])  # one label in training
    assert not ignored.is_mistake
    assert not list(checks.find_similar_names(["joy", "joys", "anger"]))


def test_rows_of_each_class_are_counted_by_split():
    finding = checks.summarize_labels(
        {"train": [0, 1, 1, 1], "test": [2, 1]}, Labels(SINGLE, ("a", "b", "c"))
    )
    assert (
        finding.text == "rows of each class in train, test\n    b: 3, 1\n    a: 1, 0\n    c: 0, 1"
    )
    finding = checks.summarize_labels(
        {"train": [[1.0, 1.0], [0.0, 1.0]]}, Labels("multi_label_classification", ("a", "b"))
    )
    assert finding.text.endswith("train\n    b: 2\n    a: 1")
    finding = checks.summarize_labels({"train": [0.5, 4.0, 1.0]}, Labels("regression", ()))
    assert finding.text == "values\n    train: minimum 0.5, median 1, maximum 4"


def test_lengths_of_prepared_rows():
    prepared = Dataset.from_dict({"length": [*range(1, 101), 300]})
    finding = checks.summarize_lengths("train", prepared)
    assert finding.text == (
        "train: 101 rows of length 51 (median), 91 (90 %), 100 (99 %), 300 (longest)"
    )
    without_lengths = Dataset.from_dict({"pixels": [1, 2]})
    assert checks.summarize_lengths("test", without_lengths).text == "test: 2 rows"


@pytest.mark.parametrize(
    ("cells", "options", "example"),
    [
        ([0.5, 1.5, 0.5, 2.5], {}, "train 0 0.5, train 1 1.5"),
        (["a,b", "b", "b,a", "a"], {"label_separator": ","}, "train 0 a+b, train 1 b"),
    ],
)
def test_labels_of_any_kind_contradict_each_other(tmp_path, tiny, cells, options, example):
    # The labels of the first two rows differ; those of the third and the first are the same.
    texts = ["x", "x", "x", "y"]
    rows = [{"text": text, "label": cell} for text, cell in zip(texts, cells, strict=True)]
    file = write_csv(tmp_path / "rows.csv", rows)
    (finding,) = checks.check_rows(task_of(file, tiny("bert"), **options))
    assert finding.text.startswith(
        "the same input has different labels: 1 input(s), 3 rows; for example 'x' (" + example
    )
    data = Data(path=file, validation=0, limit=1)
    one_row = TextClassification(model=tiny("bert"), data=data, **options)
    assert one_row.rows["train"].num_rows == 1
    assert not list(checks.find_overlaps(one_row.rows, TEXT, []))


def test_many_rows_are_compared_by_check_only(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(checks, "QUICK_ROWS", 5)
    rows = [{"text": text, "label": text} for text in "abcaba"]
    task = task_of(write_csv(tmp_path / "rows.csv", rows), tiny("bert"))
    assert texts_of(checks.check_rows(task)) == [
        "rows are not searched for duplicates, which takes a while; --check does it"
    ]


def test_a_stream_is_not_compared(tmp_path, tiny):
    rows = [{"text": text, "label": text} for text in "abca"]
    task = task_of(write_csv(tmp_path / "rows.csv", rows), tiny("bert"))
    assert task.labels.names == ("a", "b", "c")
    vars(task)["rows"] = {"train": iter(()), "validation": task.rows["train"]}
    first, *others = texts_of(checks.check_rows(task, full=True))
    assert first == "train is a stream: its rows are neither compared nor counted"
    assert others[0].startswith("rows of each class in validation\n    a: 2")


def test_a_task_without_a_check_of_its_data_is_an_error():
    job = Job(task=Task(), run_dir="run", check=True)
    with pytest.raises(UserError, match=r"Task has no method check_data\(\)"):
        check_data(job)


# On the command line


def test_check_reports_everything_and_writes_nothing(command, tmp_path):
    same = "the sky is so red"
    train = [(same, "red"), ("a red " * 40, "Red"), (same, "green")]
    result = check(command(train=train, test=[(same, "red")]))
    assert result.code == 1, result.err
    assert "1 of the 41 rows of test are in train too; for example" in result.err
    contradiction = "1 input(s), 3 rows; for example"
    assert f"{contradiction} {same!r} (train 0 red, train 2 green, test 0 red)" in result.err
    assert "unites them): 1, for example 'Red' and 'red'" in result.err
    assert "rows of each class in train, test\n" in result.err
    assert "\n    Red: 1, 0\n" in result.err
    assert "1 of 43 texts are longer than" in result.err
    assert "train: 43 rows of length" in result.err
    assert "train has fewer than 5 rows of 1 of the 4 classes ('Red' 1)" in result.err
    assert "test has fewer than 5 rows of 1 of the 4 classes ('Red' 0)" in result.err
    assert "check: 5 finding(s)" in result.err
    assert "million parameters" not in result.err
    assert not (tmp_path / "run").exists()


def test_data_without_findings_is_reported_by_check_only(command, tmp_path):
    result = check(command())
    assert result.code == 0, result.err
    assert "check: nothing" in result.err
    assert "warning" not in result.err
    trained = run_script("train.py", *command())
    assert trained.code == 0, trained.err
    assert "warning" not in trained.err
    assert "check" not in trained.err.partition("train: ")[0]
    # A finished run is neither looked at nor touched.
    run = tmp_path / "run"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert check(command(), "--learning-rate", "1").code == 0
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_training_warns_and_continues(command, tmp_path):
    same = "the sky is so red"
    result = run_script("train.py", *command(train=[(same, "red")], test=[(same, "green")]))
    assert result.code == 0, result.err
    assert "warning: data: rows are in two splits" in result.err
    contradiction = "the same input has different labels: 1 input(s), 2 rows"
    assert f"warning: data: {contradiction}" in result.err
    assert "rows of each class" not in result.err
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["check"] is False


def test_rows_that_would_stop_training_do_not_hide_the_rest(command):
    train = [("", "red"), ("the sky", ""), (" ", "red"), ("rose", "red")]
    words = command(train=train, test=[("", "red"), ("rose", "red")])
    result = check(words)
    assert result.code == 1, result.err
    stops = "training would stop (this check continues without such rows)"
    assert f"{stops}: --data: the split 'train' has 2 empty" in result.err
    assert "dropped 2 empty text (rows 0, 2) and 1 missing label (rows 1)" in result.err
    assert "data: test: dropped 1 empty text (rows 0)" in result.err
    overlap = "1 of the 41 rows of test are in train too; for example 'rose' (train 0, test 0)"
    assert overlap in result.err
    assert "check: 2 finding(s)" in result.err
    assert "check: 1 finding(s)" in check(words, "--data.drop-empty").err


def test_labels_that_would_stop_training_are_a_finding(command):
    result = check(command(test=[("the sky", "RED"), ("rose", "purple")]))
    assert result.code == 1, result.err
    assert "for example 'RED' and 'red'" in result.err
    stops = "training would stop, and this check stops too"
    assert f"{stops}: --label-column 'label': test has 2 label(s)" in result.err
    assert "check: 2 finding(s)" in result.err


def test_data_that_cannot_be_read_is_an_error_as_in_training(command, tmp_path):
    result = check(command(), "--data.files", "train", str(tmp_path / "none.csv"))
    assert result.code == 2
    assert result.err.startswith("error: --data.files")
    result = check(command(), "--label-column", "colour")
    assert result.code == 2
    assert "has no column 'colour'" in result.err


def test_one_process_of_several_checks(command):
    result = ranks(2, "train.py", *command(test=[("the sky", "RED")]), "--check")
    assert result.code == 1
    assert result.err.count("training would stop") == 1
