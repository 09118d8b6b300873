"""Columns, map, join, filter and duplicates, for tables and streams, with their log messages."""

import dataclasses
import functools
import importlib
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run_script, sentences, write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from ftloop.data import Data
from ftloop.data.shape import cell_digest, drop_duplicates, shape_rows
from ftloop.errors import UserError

ROWS = [
    {"title": "Sky", "body": "It is blue.", "note": None, "stars": 5, "id": "a"},
    {"title": "Sea", "body": None, "note": "", "stars": 1, "id": "b"},
    {"title": None, "body": "  ", "note": None, "stars": 3, "id": "a"},
]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """Return a function that returns the log lines of ftloop so far, joined by newlines."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def table(rows: list[dict[str, Any]] = ROWS, **splits: list[dict[str, Any]]) -> DatasetDict:
    return DatasetDict(
        {split: Dataset.from_list(part) for split, part in {"train": rows, **splits}.items()}
    )


def streamed(data: DatasetDict) -> dict[str, Any]:
    """Return the same splits with train as a stream, as `Data(streaming=True)` reads it."""
    return {**data, "train": data["train"].to_iterable_dataset()}


def shape_train(data: Any = None, **options: Any) -> list[dict[str, Any]]:
    """Return the shaped rows of train, after checking that a stream gives the same ones."""
    data = data or table()
    rows = shape_rows(data, Data(path="-", **options))["train"]
    expected = rows.to_list()
    stream = shape_rows(streamed(data), Data(path="-", **options))["train"]
    assert list(stream) == expected
    assert stream.features == rows.features
    if is_picklable(options):
        stream = pickle.loads(pickle.dumps(stream))
    tables = stream.with_format("arrow").iter(2)  # as training reads it
    assert [row for part in tables for row in part.to_pylist()] == expected
    return expected


def is_picklable(options: dict[str, Any]) -> bool:
    """Tell whether the functions can be sent to a worker process: no lambda, no lock."""
    functions = [getattr(value, "func", value) for value in options.values() if callable(value)]
    module = sys.modules[__name__]
    return all(hasattr(module, getattr(function, "__name__", "")) for function in functions)


def shout(row: dict[str, Any]) -> dict[str, Any]:
    return {"title": (row["title"] or "").upper(), "letters": len(row["title"] or "")}


def liked(row: dict[str, Any], least: int = 3) -> bool:
    return row["stars"] >= least


def add_star_in_place(row: dict[str, Any]) -> dict[str, Any]:
    row["stars"] += 1
    return row


def broken(row: dict[str, Any]) -> Any:
    return {"body": row["body"].strip()}


def returns_nothing(row: dict[str, Any]) -> None:
    row["stars"] = 0


class Locked:
    """A function that cannot be pickled, so that `datasets` cannot cache its result."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, row: dict[str, Any]) -> Any:
        return {"long": len(row["id"]) > 1}


# Columns


def test_columns_are_selected_and_renamed():
    assert shape_train(columns={"text": "title", "label": "stars"}) == [
        {"text": row["title"], "label": row["stars"]} for row in ROWS
    ]
    swapped = {"title": "body", "body": "title", "id": "id"}
    assert shape_train(columns=swapped)[0] == {"title": "It is blue.", "body": "Sky", "id": "a"}
    numbered = table([{"0": "sky", "5": "x"}])
    assert shape_train(numbered, columns={"text": 0, "label": 5}) == [{"text": "sky", "label": "x"}]


def test_an_unknown_column_gets_a_suggestion():
    message = (
        r"--data.columns: the split 'train' has no column 'tilte' \(did you mean 'title'\?\)\. "
        "Its columns are 'title', 'body'"
    )
    with pytest.raises(UserError, match=message):
        shape_train(columns={"text": "tilte"})
    message = "--data.columns: the column 'title' of the source has two names"
    with pytest.raises(UserError, match=message):
        shape_train(columns={"text": "title", "label": "title"})


def test_a_test_split_may_lack_the_labels():
    data = table(test=[{"title": "Rose", "body": "red"}])
    shaped = shape_rows(data, Data(path="-", columns={"text": "title", "label": "stars"}))
    assert shaped["test"].to_list() == [{"text": "Rose"}]


# Map


def test_rows_are_mapped_before_they_are_filtered():
    assert shape_train(map=shout) == [{**row, **shout(row)} for row in ROWS]
    assert shape_train(map=add_star_in_place) == [
        {**row, "stars": row["stars"] + 1} for row in ROWS
    ]
    assert [row["stars"] for row in shape_train(map=add_star_in_place, filter=liked)] == [6, 4]


def test_partials_lambdas_and_unpicklable_objects_are_functions_too():
    assert [row["stars"] for row in shape_train(filter=functools.partial(liked, least=4))] == [5]
    assert [row["stars"] for row in shape_train(filter=lambda row: row["stars"] < 4)] == [1, 3]
    assert shape_train(map=Locked()) == [{**row, "long": False} for row in ROWS]


def test_a_mapped_stream_keeps_the_names_of_its_classes():
    features = Features({"title": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"title": ["Sky", "Sea"], "label": [1, 0]}, features=features)
    shaped = shape_rows(streamed(DatasetDict(train=rows)), Data(path="-", map=shout))["train"]
    assert shaped.features["label"] == features["label"]
    assert list(shaped) == [
        {"title": "SKY", "label": 1, "letters": 3},
        {"title": "SEA", "label": 0, "letters": 3},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"map": broken},
            r"--data.map broken: row 1 \(counted from 0\): AttributeError: 'NoneType' .*"
            r"\(test_shape.py, line \d+\)",
        ),
        (
            {"filter": broken},
            r"--data.filter broken: row 1 \(counted from 0\): AttributeError: 'NoneType' object",
        ),
        (
            {"map": returns_nothing},
            r"--data.map returns_nothing: row 0 \(counted from 0\): the function must return a "
            "dictionary, not None",
        ),
        (
            {"map": liked},
            r"--data.map liked: row 0 \(counted from 0\): the function must return a dictionary, "
            "not True",
        ),
        (
            {"filter": lambda row: row["stars"] > 5},
            "--data.filter .*<lambda> removes every row of the split 'train'",
        ),
    ],
)
def test_an_error_in_a_function_is_reported_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        shape_rows(table(), Data(path="-", **options))


def test_an_error_in_a_function_of_a_stream_is_reported_in_one_line():
    for options in ({"map": broken}, {"filter": broken}):
        message = r"--data.(map|filter) broken: AttributeError: 'NoneType'"
        with pytest.raises(UserError, match=message):
            list(shape_rows(streamed(table()), Data(path="-", **options))["train"])


def test_a_changed_function_is_called_again(tmp_path, monkeypatch):
    """The cache of `datasets` knows an imported function by its name only."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = write_csv(tmp_path / "rows.csv", ROWS)
    for number in (1, 2, 2):
        code = f"def f(row):\n    return {{'n': {number}}}{' ' * number}\n"
        (tmp_path / "changing_functions.py").write_text(code)
        sys.modules.pop("changing_functions", None)
        importlib.invalidate_caches()
        function = importlib.import_module("changing_functions").f
        rows = shape_rows(Data(path=file).read(), Data(path="-", map=function))["train"]
        assert rows["n"][:] == [number] * 3


def test_shaped_rows_are_cached(tmp_path):
    rows = [{**row, "body": row["body"] or "", "note": ""} for row in ROWS]
    data = Data(
        path=write_csv(tmp_path / "rows.csv", rows),
        columns={"text": "title", "body": "body", "stars": "stars"},
        map=add_star_in_place,
        join={"text": "text,body"},
        filter=functools.partial(liked, least=3),
    )
    first = shape_rows(data.read(), data)["train"]
    assert first["stars"][:] == [6, 4]
    data = dataclasses.replace(data, filter=functools.partial(liked, least=3))
    again = shape_rows(data.read(), data)["train"]
    assert again._fingerprint == first._fingerprint
    assert again.cache_files == first.cache_files


# Join


def test_columns_are_joined_with_their_names_and_without_missing_cells():
    first = {"stars": 5, "id": "a", "text": "title: Sky\nbody: It is blue."}
    for parts in (
        "title,body,note",
        " title, body ,note",
        ["title", "body", "note"],
        ("title", "body", "note"),
    ):
        rows = shape_train(join={"text": parts})
        assert rows[0] == first
        assert [row["text"] for row in rows[1:]] == ["title: Sea", ""]
    assert [row["text"] for row in shape_train(join={"text": "stars,title"})] == [
        "stars: 5\ntitle: Sky",
        "stars: 1\ntitle: Sea",
        "stars: 3",
    ]


def test_the_joined_column_may_have_the_name_of_a_part():
    titles = [row["title"] for row in shape_train(join={"title": "title,body"})]
    assert titles[:2] == ["title: Sky\nbody: It is blue.", "title: Sea"]


def test_a_star_joins_the_text_columns_that_are_not_named_elsewhere(messages):
    """A column without any value is one of texts; numbers, such as labels, are not."""
    rows = [{**row, "empty": None} for row in ROWS]
    joined = shape_train(table(rows), join={"report": "*"}, split_group="id")
    assert joined[0] == {"stars": 5, "id": "a", "report": "title: Sky\nbody: It is blue."}
    assert "data: the column report joins title, body, note, empty" in messages()
    joined = shape_train(join={"report": "*", "code": "id,stars"})
    assert joined[0] == {"report": "title: Sky\nbody: It is blue.", "code": "id: a\nstars: 5"}


@pytest.mark.parametrize(
    ("join", "message"),
    [
        (
            {"text": "title,bdoy"},
            r"--data.join: the split 'train' has no column 'bdoy' \(did you mean 'body'\?\)",
        ),
        (
            {"stars": "title,body"},
            "--data.join stars: the source has a column of this name, which is not one of those",
        ),
        (
            {"text": "*", "rest": "title,body,note,id"},
            r"--data.join text \*: train has no remaining column of texts\. Its columns are title",
        ),
    ],
)
def test_columns_that_cannot_be_joined_are_named(join, message):
    with pytest.raises(UserError, match=message):
        shape_rows(table(), Data(path="-", join=join))


# Filter


def test_filtered_rows_are_counted_by_split(messages):
    data = table(test=[{**ROWS[0], "stars": 4}])
    filtered = shape_rows(data, Data(path="-", filter=liked))
    assert [row["stars"] for row in filtered["train"]] == [5, 3]
    assert messages() == "data: train: --data.filter liked removed 1 of 3 rows"
    message = "--data.filter liked removes every row of the split 'test'"
    with pytest.raises(UserError, match=message):
        shape_rows(table(test=[{**ROWS[0], "stars": 2}]), Data(path="-", filter=liked))


# Duplicates


def test_duplicates_are_dropped_within_and_between_splits(messages):
    def part(*texts: str) -> list[dict[str, Any]]:
        return [{"text": text[0], "label": text[1:]} for text in texts]

    data = table(
        part("a1", "b1", "a1", "c1", "b2", "d1", "e1"),
        validation=part("b1", "f1", "e1", "f1"),
        test=part("e2", "g1", "g1"),
    )
    unique = drop_duplicates(data, ("text",), ("label",))
    assert {split: rows["text"][:] for split, rows in unique.items()} == {
        "train": ["a", "c", "d"],
        "validation": ["b", "f"],
        "test": ["e", "g"],
    }
    assert messages().splitlines() == [
        "data: test: dropped 1 of 3 rows as duplicates "
        "(0 of a row in another split, 0 with a different label)",
        "data: validation: dropped 2 of 4 rows as duplicates "
        "(1 of a row in another split, 1 with a different label)",
        "data: train: dropped 4 of 7 rows as duplicates "
        "(3 of a row in another split, 2 with a different label)",
    ]
    message = "--data.drop-duplicates: every row of the split 'train' is in validation or test too"
    with pytest.raises(UserError, match=message):
        drop_duplicates(table(part("a1"), test=part("a1")), ("text",), ("label",))


def test_a_pair_is_a_duplicate_if_both_texts_are():
    rows = [{"one": one, "two": two, "label": 0} for one, two in ("ab", "ba", "ab", "aa")]
    unique = drop_duplicates(table(rows), ("one", "two"), ("label",))
    assert unique["train"].num_rows == 3


def test_images_are_compared_by_their_bytes_wherever_they_are(tmp_path: Path):
    import PIL.Image

    for name, colour in {"red": "red", "also_red": "red", "blue": "blue"}.items():
        PIL.Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    cells = [
        {"bytes": None, "path": str(tmp_path / "red.png")},
        {"bytes": None, "path": str(tmp_path / "also_red.png")},
        {"bytes": (tmp_path / "red.png").read_bytes(), "path": None},
        {"bytes": None, "path": str(tmp_path / "blue.png")},
    ]
    are_equal = [cell_digest(cell) == cell_digest(cells[0]) for cell in cells]
    assert are_equal == [True, True, True, False]
    features = Features({"image": Image(), "label": Value("int64")})
    rows = Dataset.from_dict({"image": cells, "label": [0, 0, 1, 1]}, features=features)
    unique = drop_duplicates(DatasetDict(train=rows), ("image",), ("label",))
    assert unique["train"]["label"][:] == [0, 1]


# On the command line


def test_options_of_the_command_line_shape_a_table(tiny, tmp_path):
    """Functions by name, a column of the table that joins in, and duplicates."""
    rows = [
        {"id": str(number), "head": "the sky", **row, "stars": 5}
        for number, row in enumerate(sentences(30))
    ]
    rows += [{**row, "id": "again"} for row in rows[:4]]
    rows += [{**rows[0], "id": "bad", "stars": 1}]
    file = write_csv(tmp_path / "rows.csv", rows)
    command = (
        f"configs/text.py --model {tiny('bert')} --max-length 32 --label-column label "
        f"--data.path {file} --data.drop-duplicates --data.limit 25 "
        "--data.columns head head review text label colour stars stars id id "
        "--data.join text head,review --data.filter test_shape:liked "
        "--data.split-hash id --data.validation 0.3 "
        f"--max-steps 1 --run-dir {tmp_path / 'run'}"
    )
    result = run_script("train.py", *command.split())
    assert result.code == 0, result.err
    output = result.out + result.err
    for message in (
        "data: train: --data.filter liked removed 1 of 35 rows",
        "data: train: dropped 4 of 34 rows as duplicates",
        "were cut from train, by hash (seed 42)",
    ):
        assert message in output
