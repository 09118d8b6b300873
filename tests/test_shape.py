"""Rows brought into shape: columns, map, join, filter, duplicates; of tables and of streams, said and counted."""

import dataclasses
import functools
import importlib
import logging
import pickle
import sys
import threading
from typing import Any

import pytest
from conftest import run_script, sentences, write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from ftloop import Data
from ftloop.data.shape import drop_duplicates, key, shape
from ftloop.errors import UserError

ROWS = [
    {"title": "Sky", "body": "It is blue.", "note": None, "stars": 5, "id": "a"},
    {"title": "Sea", "body": None, "note": "", "stars": 1, "id": "b"},
    {"title": None, "body": "  ", "note": None, "stars": 3, "id": "a"},
]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()`: the log lines of ftloop so far, one below the other."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def table(rows: list[dict[str, Any]] = ROWS, **splits: list[dict[str, Any]]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_list(part) for name, part in {"train": rows, **splits}.items()})


def streamed(data: DatasetDict) -> dict[str, Any]:
    """The same with train as a stream, as `Data(streaming=True)` reads it."""
    return {**data, "train": data["train"].to_iterable_dataset()}


def shaped(data: Any = None, **options: Any) -> list[dict[str, Any]]:
    """The rows of train, which are those of the stream too."""
    data = data or table()
    found = shape(data, Data(path="-", **options))["train"].to_list()
    stream = shape(streamed(data), Data(path="-", **options))["train"]
    assert list(stream) == found
    assert stream.features == shape(data, Data(path="-", **options))["train"].features
    stream = pickle.loads(pickle.dumps(stream)) if data_can_travel(options) else stream
    read = [row for part in stream.with_format("arrow").iter(2) for row in part.to_pylist()]  # as training reads it
    assert read == found
    return found


def data_can_travel(options: dict[str, Any]) -> bool:
    """Whether a worker process that is spawned can be given the functions: no lambda, no lock."""
    functions = [getattr(value, "func", value) for value in options.values() if callable(value)]
    return all(hasattr(sys.modules[__name__], getattr(function, "__name__", "")) for function in functions)


def shout(row: dict[str, Any]) -> dict[str, Any]:
    return {"title": (row["title"] or "").upper(), "letters": len(row["title"] or "")}


def liked(row: dict[str, Any], least: int = 3) -> bool:
    return row["stars"] >= least


def changed_in_place(row: dict[str, Any]) -> dict[str, Any]:
    row["stars"] += 1
    return row


def broken(row: dict[str, Any]) -> Any:
    return {"body": row["body"].strip()}


def forgetful(row: dict[str, Any]) -> None:
    row["stars"] = 0


class Locked:
    """A function that cannot be pickled, so that no cache can know it again."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, row: dict[str, Any]) -> Any:
        return {"long": len(row["id"]) > 1}


# ---- columns


def test_columns_are_chosen_and_renamed():
    assert shaped(columns={"text": "title", "label": "stars"}) == [
        {"text": row["title"], "label": row["stars"]} for row in ROWS
    ]
    swapped = {"title": "body", "body": "title", "id": "id"}
    assert shaped(columns=swapped)[0] == {"title": "It is blue.", "body": "Sky", "id": "a"}
    numbered = [{"0": "sky", "5": "x"}]
    assert shaped(table(numbered), columns={"text": 0, "label": 5}) == [{"text": "sky", "label": "x"}]


def test_an_unknown_column_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"--task.data.columns: the split 'train' has no column 'tilte' \(did you mean"):
        shaped(columns={"text": "tilte"})
    with pytest.raises(UserError, match=r"--task.data.columns: a column of the source has two names"):
        shaped(columns={"text": "title", "label": "title"})


def test_a_test_split_may_lack_the_labels():
    data = table(test=[{"title": "Rose", "body": "red"}])
    found = shape(data, Data(path="-", columns={"text": "title", "label": "stars"}))
    assert found["test"].to_list() == [{"text": "Rose"}]


# ---- map


def test_a_row_is_mapped_before_it_is_filtered():
    assert shaped(map=shout) == [{**row, **shout(row)} for row in ROWS]
    assert shaped(map=changed_in_place) == [{**row, "stars": row["stars"] + 1} for row in ROWS]
    assert [row["stars"] for row in shaped(map=changed_in_place, filter=liked)] == [6, 4]


def test_a_partial_a_lambda_and_what_cannot_be_pickled_are_functions_too():
    assert [row["stars"] for row in shaped(filter=functools.partial(liked, least=4))] == [5]
    assert [row["stars"] for row in shaped(filter=lambda row: row["stars"] < 4)] == [1, 3]
    assert shaped(map=Locked()) == [{**row, "long": False} for row in ROWS]


def test_a_stream_keeps_the_names_of_its_classes():
    features = Features({"title": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"title": ["Sky", "Sea"], "label": [1, 0]}, features=features)
    found = shape(streamed(DatasetDict(train=rows)), Data(path="-", map=shout))["train"]
    assert found.features["label"] == features["label"]
    assert list(found) == [{"title": "SKY", "label": 1, "letters": 3}, {"title": "SEA", "label": 0, "letters": 3}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"map": broken},
            r"--task.data.map broken: row 1, counted from 0: AttributeError: 'NoneType' .*\(test_shape.py, line \d+\)",
        ),
        ({"filter": broken}, r"--task.data.filter broken: row 1, counted from 0: AttributeError: 'NoneType' object"),
        ({"map": forgetful}, r"--task.data.map forgetful: row 0, counted from 0: a dictionary is needed, not None"),
        ({"map": liked}, r"--task.data.map liked: row 0, counted from 0: a dictionary is needed, not True"),
        ({"filter": lambda row: row["stars"] > 5}, r"--task.data.filter .*<lambda> leaves no row of the split 'train'"),
    ],
)
def test_what_a_function_does_wrong_is_said_in_a_line(options, words):
    with pytest.raises(UserError, match=words):
        shape(table(), Data(path="-", **options))


def test_an_error_in_a_stream_is_said_in_a_line():
    for options in ({"map": broken}, {"filter": broken}):
        with pytest.raises(UserError, match=r"--task.data.(map|filter) broken: AttributeError: 'NoneType'"):
            list(shape(streamed(table()), Data(path="-", **options))["train"])


def test_a_changed_function_is_called_anew(tmp_path, monkeypatch):
    """The cache of `datasets` knows an imported function by its name alone."""
    monkeypatch.syspath_prepend(tmp_path)
    data = Data(path="-")
    for number in (1, 2, 2):
        (tmp_path / "functions_of_mine.py").write_text(f"def f(row):\n    return {{'n': {number}}}{' ' * number}\n")
        sys.modules.pop("functions_of_mine", None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        function = importlib.import_module("functions_of_mine").f
        data = Data(path="-", map=function)
        file = write_csv(tmp_path / "rows.csv", ROWS)
        rows = shape(Data(path=file).read(), data)["train"]
        assert rows["n"][:] == [number] * 3


def test_what_was_done_is_found_in_the_cache(tmp_path):
    file = write_csv(tmp_path / "rows.csv", [{**row, "body": row["body"] or "", "note": ""} for row in ROWS])
    data = Data(path=file, columns={"text": "title", "body": "body", "stars": "stars"}, join={"text": "text,body"})
    data = dataclasses.replace(data, map=changed_in_place, filter=functools.partial(liked, least=3))
    first = shape(data.read(), data)["train"]
    assert first["stars"][:] == [6, 4]
    again = shape(data.read(), data)["train"]
    assert again._fingerprint == first._fingerprint
    assert again.cache_files == first.cache_files


# ---- join


def test_columns_are_joined_with_their_names_and_missing_ones_left_out():
    whole = [{"stars": 5, "id": "a", "text": "title: Sky\nbody: It is blue."}, "title: Sea", ""]
    for parts in ("title,body,note", " title, body ,note", ["title", "body", "note"], ("title", "body", "note")):
        found = shaped(join={"text": parts})
        assert found[0] == whole[0]
        assert [row["text"] for row in found[1:]] == whole[1:]
    assert [row["text"] for row in shaped(join={"text": "stars,title"})] == [
        "stars: 5\ntitle: Sky",
        "stars: 1\ntitle: Sea",
        "stars: 3",
    ]


def test_a_part_may_give_its_name_to_the_whole():
    assert [row["title"] for row in shaped(join={"title": "title,body"})][:2] == whole_titles()


def whole_titles() -> list[str]:
    return ["title: Sky\nbody: It is blue.", "title: Sea"]


def test_a_star_joins_all_texts_but_those_that_decide_on_the_split(messages):
    """A column with nothing in it is one of texts; numbers, such as labels, are not."""
    rows = [{**row, "empty": None} for row in ROWS]
    found = shaped(table(rows), join={"report": "*"}, split_group="id")
    assert found[0] == {"stars": 5, "id": "a", "report": "title: Sky\nbody: It is blue."}
    assert "data: report joins the columns title, body, note, empty" in messages()
    found = shaped(join={"report": "*", "code": "id,stars"})
    assert found[0] == {"report": "title: Sky\nbody: It is blue.", "code": "id: a\nstars: 5"}


@pytest.mark.parametrize(
    ("join", "words"),
    [
        ({"text": "title,bdoy"}, r"--task.data.join: the split 'train' has no column 'bdoy' \(did you mean 'body'\?\)"),
        ({"stars": "title,body"}, r"--task.data.join stars: there is a column of this name already"),
        ({"text": "*", "rest": "title,body,note,id"}, r"--task.data.join text \*: train has no column of texts among"),
    ],
)
def test_columns_that_cannot_be_joined_are_named(join, words):
    with pytest.raises(UserError, match=words):
        shape(table(), Data(path="-", join=join))


# ---- filter


def test_rows_that_a_filter_leaves_out_are_counted_by_split(messages):
    data = table(test=[{**ROWS[0], "stars": 4}])
    found = shape(data, Data(path="-", filter=liked))
    assert [row["stars"] for row in found["train"]] == [5, 3]
    assert messages() == "data: train: liked left out 1 of 3 rows"
    with pytest.raises(UserError, match=r"--task.data.filter liked leaves no row of the split 'test'"):
        shape(table(test=[{**ROWS[0], "stars": 2}]), Data(path="-", filter=liked))


# ---- duplicates


def test_duplicates_are_dropped_within_and_between_splits(messages):
    def part(*texts: str) -> list[dict[str, Any]]:
        return [{"text": text[0], "label": text[1:]} for text in texts]

    data = table(
        part("a1", "b1", "a1", "c1", "b2", "d1", "e1"),
        validation=part("b1", "f1", "e1", "f1"),
        test=part("e2", "g1", "g1"),
    )
    found = drop_duplicates(data, ("text",), ("label",))
    assert {split: rows["text"][:] for split, rows in found.items()} == {
        **{"train": ["a", "c", "d"], "validation": ["b", "f"], "test": ["e", "g"]}
    }
    assert messages().splitlines() == [
        "data: test: dropped 1 of 3 rows as duplicates (0 of another split's row, 0 with another label)",
        "data: validation: dropped 2 of 4 rows as duplicates (1 of another split's row, 1 with another label)",
        "data: train: dropped 4 of 7 rows as duplicates (3 of another split's row, 2 with another label)",
    ]
    with pytest.raises(
        UserError, match=r"--task.data.drop-duplicates: all rows of the split 'train' are in validation"
    ):
        drop_duplicates(table(part("a1"), test=part("a1")), ("text",), ("label",))


def test_a_pair_is_a_duplicate_if_both_texts_are():
    rows = [{"one": one, "two": two, "label": 0} for one, two in ("ab", "ba", "ab", "aa")]
    assert drop_duplicates(table(rows), ("one", "two"), ("label",))["train"].num_rows == 3


def test_images_are_compared_by_their_bytes_wherever_they_are(tmp_path):
    import PIL.Image

    for name, colour in {"red": "red", "also_red": "red", "blue": "blue"}.items():
        PIL.Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    cells = [
        {"bytes": None, "path": str(tmp_path / "red.png")},
        {"bytes": None, "path": str(tmp_path / "also_red.png")},
        {"bytes": (tmp_path / "red.png").read_bytes(), "path": None},
        {"bytes": None, "path": str(tmp_path / "blue.png")},
    ]
    assert [key(cell) == key(cells[0]) for cell in cells] == [True, True, True, False]
    features = Features({"image": Image(), "label": Value("int64")})
    rows = Dataset.from_dict({"image": cells, "label": [0, 0, 1, 1]}, features=features)
    assert drop_duplicates(DatasetDict(train=rows), ("image",), ("label",))["train"]["label"][:] == [0, 1]


# ---- through a command


def test_options_of_the_command_line_bring_a_table_into_shape(tiny, tmp_path):
    """The functions by name; a column of the table that joins in; the duplicates of a row."""
    rows = [{"id": str(number), "head": "the sky", **row, "stars": 5} for number, row in enumerate(sentences(30))]
    rows += [{**row, "id": "again"} for row in rows[:4]] + [{**rows[0], "id": "bad", "stars": 1}]
    result = run_script(
        *("train.py", "configs/text.py", "--task.model", tiny("bert"), "--task.label-column", "label"),
        *("--task.data.path", write_csv(tmp_path / "rows.csv", rows), "--task.data.drop-duplicates"),
        *("--task.data.columns", "head", "head", "review", "text", "label", "colour", "stars", "stars", "id", "id"),
        *("--task.data.join", "text", "head,review", "--task.data.filter", "test_shape:liked"),
        *("--task.data.split-hash", "id", "--task.data.validation", "0.3", "--task.data.limit", "25"),
        *("--max-steps", "1", "--task.max-length", "32", "--run-dir", str(tmp_path / "run")),
    )
    assert result.code == 0, result.err
    said = result.out + result.err
    for words in (
        "data: train: liked left out 1 of 35 rows",
        "data: train: dropped 4 of 34 rows as duplicates",
        "cut from train, by hash (seed 42)",
    ):
        assert words in said
