"""Data from anywhere: every format, packed or not, from disk, memory or a web server, gives the same rows."""

import bz2
import functools
import gzip
import http.server
import io
import json
import logging
import lzma
import pickle
import sqlite3
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import COLOURS, run_script, sentences, write_csv

from ftloop import Config, Data, TextClassification, UserError, evaluate, train
from ftloop.data.formats import read_files
from ftloop.data.tables import stored

ROWS = [{"text": text, "label": "ab"[number % 2], "size": number} for number, text in enumerate(("NA", "é ü", "1e5"))]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()`: the log lines of ftloop so far, one below the other."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zipped(content: bytes, name: str = "rows.jsonl") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.compress(content)


PACKERS = {"gz": gzip.compress, "zip": zipped, "zst": zstd, "xz": lzma.compress, "bz2": bz2.compress}


def file(folder: Path, name: str, content: bytes) -> str:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return str(place)


def sqlite(place: Path, rows: list[dict[str, Any]]) -> str:
    connection = sqlite3.connect(place)
    kinds = {str: "TEXT", int: "INTEGER", float: "REAL"}
    columns = [f"{name} {kinds[type(value)]}" for name, value in rows[0].items()]
    connection.execute(f"CREATE TABLE notes ({', '.join(columns)})")
    marks = ", ".join("?" * len(columns))
    connection.executemany(f"INSERT INTO notes VALUES ({marks})", [tuple(row.values()) for row in rows])
    connection.commit()
    connection.close()
    return str(place)


def pickled(place: Path, value: Any) -> str:
    place.write_bytes(pickle.dumps(value))
    return str(place)


def read(path: str, split: str = "train", **options: Any) -> list[dict[str, Any]]:
    return Data(path=path, **options).read()[split].to_list()


# ---- one data set in every format


def labelled(count: int) -> list[dict[str, Any]]:
    """Rows with a text and a list of label ids; a few have none."""
    return [
        {"text": row["text"], "labels": [number for number in range(3) if (place + number) % 4 and place % 7]}
        for place, row in enumerate(sentences(count))
    ]


def in_every_format(folder: Path) -> dict[str, tuple[Data, dict[str, Any]]]:
    """The same 60 rows, and the options of the task that read them."""
    rows = labelled(60)
    joined = [{"text": row["text"], "labels": ",".join(map(str, row["labels"]))} for row in rows]
    bits = [{"text": row["text"], **{f"is_{n}": int(n in row["labels"]) for n in range(3)}} for row in rows]
    table = datasets.Dataset.from_list(rows)
    frame = pd.DataFrame(rows)
    tsv = "text\tlabels\n" + "".join(f"{row['text']}\t{row['labels']}\n" for row in joined)
    table.to_parquet(folder / "rows.parquet")
    table.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "saved_splits")
    split, columns = {"label_separator": ","}, {"label_column": "is_*", "label_names": ("0", "1", "2")}
    data = {
        "tsv": (file(folder, "rows.tsv", tsv.encode()), {}, split),
        "jsonl": (file(folder, "rows.jsonl", jsonl(rows)), {}, {}),
        "parquet": (str(folder / "rows.parquet"), {}, {}),
        "columns": (write_csv(folder / "bits.csv", bits), {}, columns),
        "pickle": (pickled(folder / "rows.pkl", frame), {"trust_pickle": True}, {}),
        "pickled columns": (pickled(folder / "bits.pkl", pd.DataFrame(bits)), {"trust_pickle": True}, columns),
        "arrow": (str(next((folder / "saved").glob("*.arrow"))), {}, {}),
        "sqlite": (sqlite(folder / "rows.db", joined), {"query": "SELECT * FROM notes"}, split),
        "saved": (str(folder / "saved"), {}, {}),
        "saved splits": (str(folder / "saved_splits"), {}, {}),
        "nested": (file(folder, "nested.json", json.dumps({"a": {"b": rows}}).encode()), {"field": ("a.b",)}, {}),
    }
    for ending, pack in PACKERS.items():
        data[ending] = (file(folder, f"rows.jsonl.{ending}", pack(jsonl(rows))), {}, {})
    made = {name: (Data(path=path, validation=12, **options), task) for name, (path, options, task) in data.items()}
    memory = {"frame": frame, "dataset": table, "splits": {"train": frame}}
    return made | {name: (Data.of(rows, validation=12), {}) for name, rows in memory.items()}


def test_the_same_rows_in_every_format_give_the_same_labels_and_inputs(tiny, tmp_path):
    found = {}
    for name, (data, options) in in_every_format(tmp_path).items():
        options = {"label_column": "labels", "problem_type": "multi_label_classification", **options}
        loaded = TextClassification(model=tiny("bert"), data=data, **options).load()
        found[name] = {split: (rows["input_ids"][:], rows["labels"][:]) for split, rows in loaded.items()}
    first = found.pop("tsv")
    assert {split: len(ids) for split, (ids, _) in first.items()} == {"train": 48, "validation": 12}
    assert [0.0, 0.0, 0.0] in first["train"][1]
    for name, loaded in found.items():
        assert loaded == first, name


@pytest.mark.parametrize("ending", list(PACKERS))
@pytest.mark.parametrize("kind", ["csv", "json", "txt", "pkl"])
def test_files_are_read_packed(tmp_path, kind, ending):
    csv = "".join(",".join(map(str, row)) + "\n" for row in [list(ROWS[0]), *(row.values() for row in ROWS)])
    texts = [{"text": row["text"]} for row in ROWS]
    content = {
        "csv": (csv.encode(), ROWS),
        "json": (json.dumps(ROWS).encode(), ROWS),
        "txt": ("".join(row["text"] + "\n" for row in ROWS).encode(), texts),
        "pkl": (pickle.dumps(pd.DataFrame(ROWS)), ROWS),
    }
    written, expected = content[kind]
    packed = zipped(written, f"rows.{kind}") if ending == "zip" else PACKERS[ending](written)
    path = file(tmp_path, f"rows.{kind}.{ending}", packed)
    assert read(path, **({"trust_pickle": True} if kind == "pkl" else {})) == expected


@pytest.mark.parametrize("kind", ["h5", "arrow", "db"])
def test_what_cannot_be_packed_is_refused(tmp_path, kind):
    options = {"query": "SELECT 1"} if kind == "db" else {}
    with pytest.raises(UserError, match=rf"rows.{kind}.gz': unpack it first"):
        read(file(tmp_path, f"rows.{kind}.gz", b"packed"), **options)


def test_hdf5_is_read(tmp_path):
    import h5py

    with h5py.File(tmp_path / "rows.h5", "w") as stream:
        stream["text"] = [row["text"].encode() for row in ROWS]
        stream["size"] = [row["size"] for row in ROWS]
    assert read(str(tmp_path / "rows.h5")) == [{"text": row["text"], "size": row["size"]} for row in ROWS]


def test_the_elements_of_an_xml_file_are_its_rows(tmp_path):
    rows = "".join(f'<row label="{row["label"]}"><text>{row["text"]}</text></row>' for row in ROWS)
    expected = [{"label": row["label"], "text": row["text"]} for row in ROWS]
    assert read(file(tmp_path, "a.xml", f"<rows>{rows}</rows>".encode())) == expected
    assert read(file(tmp_path, "a.xml.xz", lzma.compress(f"<rows>{rows}</rows>".encode()))) == expected
    for content, words in {
        b"<rows/>": "no elements below its root",
        b"<rows>": "cannot read train file .*ParseError",
        b"<rows><row><l>a</l><l>b</l></row></rows>": "row 0, from 0, has two elements of one name",
    }.items():
        with pytest.raises(UserError, match=words):
            read(file(tmp_path, "b.xml", content))


# ---- globs, folders, URLs


def test_globs_and_lists_are_read_in_order(tmp_path):
    for number, row in enumerate(ROWS):
        file(tmp_path, f"part-{number}.jsonl", jsonl([row]))
    assert read(str(tmp_path / "part-*.jsonl")) == ROWS
    names = [str(tmp_path / f"part-{number}.jsonl") for number in (2, 0)]
    assert Data(files={"train": names}).read()["train"].to_list() == [ROWS[2], ROWS[0]]
    with pytest.raises(UserError, match=r"train file '.*no-\*.jsonl' does not exist"):
        Data(files={"train": str(tmp_path / "no-*.jsonl")}).read()
    file(tmp_path, "part-3.csv", b"text\na\n")
    with pytest.raises(UserError, match=r"train file '.*no.jsonl' does not exist"):
        Data(files={"train": [*names, str(tmp_path / "no.jsonl")]}).read()
    with pytest.raises(UserError, match=r"files of several formats: csv, jsonl"):
        read(str(tmp_path / "part-*"))


def test_several_pickles_and_databases_are_one_split(tmp_path):
    for number, row in enumerate(ROWS):
        pickled(tmp_path / f"{number}.pkl", pd.DataFrame([row]))
        sqlite(tmp_path / f"{number}.db", [row])
    assert read(str(tmp_path / "*.pkl"), trust_pickle=True) == ROWS
    assert read(str(tmp_path / "*.db"), query="SELECT * FROM notes") == ROWS


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a web server over `tmp_path`."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


def test_urls_are_read(tmp_path, server):
    file(tmp_path, "rows.jsonl.gz", gzip.compress(jsonl(ROWS)))
    file(tmp_path, "rows.json", json.dumps({"data": ROWS}).encode())
    assert read(f"{server}/rows.jsonl.gz") == ROWS
    assert read(f"{server}/rows.json?raw=true", field=("data",)) == ROWS
    with pytest.raises(UserError, match=r"cannot read train file 'http.*no.csv'"):
        read(f"{server}/no.csv")


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    file(tmp_path, "deep/rows.csv", b"text\na\n")
    file(tmp_path, "notes.md", b"text\na\n")
    with pytest.raises(UserError, match=r"holds no train.csv, .*; it holds deep/, notes.md"):
        read(str(tmp_path))


def test_a_copy_of_a_hub_data_set_is_read_by_its_configuration(tmp_path):
    card = (
        "---\nconfigs:\n- config_name: small\n  data_files: a.jsonl\n- config_name: big\n  data_files: b.jsonl\n---\n"
    )
    file(tmp_path, "README.md", card.encode())
    file(tmp_path, "a.jsonl", jsonl(ROWS[:1]))
    file(tmp_path, "b.jsonl", jsonl(ROWS))
    assert read(str(tmp_path), name="small") == ROWS[:1]
    assert read(str(tmp_path), name="big") == ROWS
    with pytest.raises(UserError, match=r"--task.data.name and --task.data.revision have no effect on files"):
        read(str(tmp_path / "a.jsonl"), revision="main")
    with pytest.raises(UserError, match=r"--task.data.name and --task.data.revision have no effect on files"):
        read(str(tmp_path / "a.jsonl"), name="small")


# ---- pickles


def pathology(rows: int) -> dict[str, Any]:
    texts = pd.DataFrame({"gross": ["big", np.nan, "red"] * rows, "note": [np.nan, None, "x"] * rows}, dtype=object)
    codes = pd.DataFrame({"8000": [0, 1, 1] * rows, "8010": [1, 1, 0] * rows})
    texts.index, codes.index = texts.index + 7, codes.index[::-1]  # joined by position, whatever the index
    return {"total": {"X": texts}, "y": codes}


def test_a_pickle_is_read_only_with_trust(tmp_path):
    path = pickled(tmp_path / "rows.pkl", pd.DataFrame(ROWS))
    for refused in (Data(path=path).check, Data(path=path).read):
        with pytest.raises(UserError, match=r"runs code of whoever wrote it: --task.data.trust-pickle"):
            refused()
    assert read(path, trust_pickle=True) == ROWS


def test_the_tables_of_a_pickled_dictionary_are_joined_side_by_side(tmp_path):
    path = pickled(tmp_path / "rows.pkl", pathology(2))
    rows = read(path, trust_pickle=True, field=("total.X", "y"))
    one = [
        {"gross": "big", "note": None, "8000": 0, "8010": 1},
        {"gross": None, "note": None, "8000": 1, "8010": 1},
        {"gross": "red", "note": "x", "8000": 1, "8010": 0},
    ]
    assert rows == one * 2
    assert read(path, trust_pickle=True, field="y") == [{name: row[name] for name in ("8000", "8010")} for row in rows]


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({}, (), r"field is missing: '.*' holds total.X \(6, 2\), y \(6, 2\)"),
        (
            {},
            ("total.Y", "y"),
            r"field 'total.Y': .* no such key \(did you mean 'total.X'\?\); it holds total.X \(6, 2\)",
        ),
        ({"y": [0, 1]}, ("total.X", "y"), "total.X has 6 rows, y has 2 rows"),
        ({"y": pd.DataFrame({"note": ["a"] * 6})}, ("total.X", "y"), r"duplicated columns .*'note'"),
        ({"y": pd.Series([1, "a"] * 3, name="code")}, ("y",), "the column 'code' is not of one type"),
        ({"y": 3}, ("y",), "'y' holds no rows, but int"),
    ],
)
def test_what_does_not_fit_in_a_pickle_is_said(tmp_path, change, field, words):
    path = pickled(tmp_path / "rows.pkl", {**pathology(2), **change})
    with pytest.raises(UserError, match=words):
        read(path, trust_pickle=True, field=field)


def test_pickles_hold_tables_of_many_kinds(tmp_path):
    frame = pd.DataFrame({"kind": pd.Categorical(["a", "b"]), "labels": [["x"], ["y", "z"]], "number": [1, None]})
    tables = {
        "frame": frame,
        "series": pd.Series(["a", "b"], name="named"),
        "array": np.arange(4).reshape(2, 2),
        "list": ["p", "q"],
        "rows": [{"one": 1}, {"two": "2"}],
    }
    path = pickled(tmp_path / "rows.pkl", tables)
    assert read(path, trust_pickle=True, field=tuple(tables)) == [
        {"kind": "a", "labels": ["x"], "number": 1.0, "named": "a"}
        | {"array_0": 0, "array_1": 1, "list": "p", "one": 1, "two": None},
        {"kind": "b", "labels": ["y", "z"], "number": None, "named": "b"}
        | {"array_0": 2, "array_1": 3, "list": "q", "one": None, "two": "2"},
    ]


def test_a_pickled_dictionary_of_splits_is_read_as_such(tmp_path):
    frame = pd.DataFrame(ROWS)
    path = pickled(tmp_path / "rows.pkl", {"train": frame, "dev": frame[:1]})
    data = Data(path=path, trust_pickle=True).read()
    assert {split: rows.to_list() for split, rows in data.items()} == {"train": ROWS, "validation": ROWS[:1]}


# ---- SQLite and nested JSON


def test_an_sqlite_query_keeps_the_types_of_the_columns(tmp_path):
    path = sqlite(
        tmp_path / "rows.sqlite", [{"text": "a", "label": 1, "tone": 2.0}, {"text": "b", "label": 0, "tone": 1.5}]
    )
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO notes VALUES (NULL, NULL, NULL)")
    connection.commit()
    connection.close()
    rows = Data(path=path, query="SELECT text, label, tone FROM notes ORDER BY label DESC").read()["train"]
    assert [feature.dtype for feature in rows.features.values()] == ["string", "int64", "float64"]
    assert rows["label"][:] == [1, 0, None]
    for query, words in {
        None: "--task.data.query is missing: SELECT ... FROM one of the tables of .*: notes",
        "SELECT * FROM note": "no such table: note",
        "SELECT * FROM notes WHERE label = 7": "the split 'train' is empty",
        "SELECT text, text FROM notes": "two columns are named 'text'",
        "DELETE FROM notes": "attempt to write a readonly database",
    }.items():
        with pytest.raises(UserError, match=words):
            read(path, query=query)


def test_rows_of_json_lie_under_a_dotted_key(tmp_path):
    path = file(tmp_path, "rows.json", json.dumps({"version": 2, "data": {"rows": ROWS}}).encode())
    assert read(path, field="data.rows") == ROWS
    with pytest.raises(
        UserError, match=r"no such key \(did you mean 'data.rows'\?\); it holds version int, data.rows list"
    ):
        read(path, field="data.row")


# ---- options without effect


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "a.csv", "field": "rows"}, r"--task.data.field has no effect on csv: it is for json, pkl"),
        ({"path": "a.jsonl", "query": "SELECT 1"}, r"--task.data.query has no effect on jsonl: it is for sqlite"),
        ({"files": {"train": "a.csv"}, "trust_pickle": True}, r"--task.data.trust-pickle has no effect on csv"),
        ({"path": "a.db", "options": {"sep": ";"}}, r"--task.data.options .*: db takes none"),
        ({"path": "a.json", "field": ("a", "b")}, "of JSON, one key is read"),
        ({"path": "a", "format": "parqet"}, r"--task.data.format 'parqet' is none of .*\(did you mean 'parquet'\?\)"),
        ({"path": "a", "streaming": True, "split_group": "id"}, "--task.data.split-group needs all rows at once"),
        ({"sources": (Data(path="a"),), "path": "b"}, "path and files are theirs"),
        ({"sources": (Data(path="a"), Data(path="b")), "probabilities": (1.0,)}, "one above 0 for each"),
        ({"sources": (Data(path="a"), Data(path="b", limit=3))}, "source 1: limit has no effect there"),
        ({"path": "a", "probabilities": (1.0,)}, "one above 0 for each of `sources`"),
        (
            {"path": "a", "streaming": True, "limit": 3},
            "--task.data.limit 3: a stream has no limit of rows; --max-steps",
        ),
        ({"path": "a", "shuffle_buffer": 5}, "--task.data.shuffle-buffer 5: it is for --task.data.streaming"),
    ],
)
def test_options_without_effect_are_errors(options, words):
    if isinstance(options.get("field"), str):
        options["field"] = (options["field"],)
    with pytest.raises(UserError, match=words):
        Data(**options).check()


# ---- images


def photo(folder: Path, name: str, colour: str) -> None:
    from PIL import Image

    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(place, format="JPEG")


def test_images_lie_in_class_folders(tmp_path, messages):
    for place in ("train/red/a.jpg", "train/red/B.JPG", "train/blue/c.Jpeg", "train/green/d.jpg", "test/red/e.jpg"):
        photo(tmp_path, place, place.split("/")[1])
    for place in ("LICENSE", "README.md", "train/Thumbs.db", "train/red/Thumbs.db"):
        file(tmp_path, place, b"no image")
    data = Data(path=str(tmp_path)).read()
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "test": 1}
    for rows in data.values():
        assert rows.features["label"].names == ["blue", "green", "red"]
        assert rows.features["image"].decode is False
    assert data["test"]["label"][:] == [2]
    for row in data["train"]:
        assert Path(row["image"]["path"]).parent.name == ["blue", "green", "red"][row["label"]]
    assert "train: 1 file(s) or folder(s) in class folders are no images, and left out: Thumbs.db" in messages()
    photo(tmp_path, "train/red/.hidden.jpg", "red")
    photo(tmp_path, "train/__MACOSX/a.jpg", "red")
    alone = Data(path=str(tmp_path / "train")).read()
    assert {split: len(rows) for split, rows in alone.items()} == {"train": 4}
    files = Data(files={"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}).read()
    assert files["test"]["label"][:] == [2]


def test_what_a_folder_of_images_holds_besides_is_said(tmp_path, messages):
    for place in ("Train/red/a.jpg", "Train/blue/b.jpg", "Test/red/c.jpg", "more/red/d.jpg"):
        photo(tmp_path, place, "red")
    file(tmp_path, "Train/labels.csv", b"x")
    (tmp_path / "Train" / "green").mkdir()
    data = Data(path=str(tmp_path)).read()
    assert {split: len(rows) for split, rows in data.items()} == {"train": 2, "test": 1}
    assert f"of the folder {tmp_path}, 1 are left out: more/" in messages()
    assert f"of the folder {tmp_path / 'Train'}, 2 are left out: green/, labels.csv" in messages()


def test_class_folders_are_not_mixed_and_know_few_options(tmp_path):
    photo(tmp_path, "photos/red/a.jpg", "red")
    table = file(tmp_path, "rows.csv", b"image,label\n")
    with pytest.raises(UserError, match="cannot be mixed with other formats: train csv, test imagefolder"):
        Data(files={"train": table, "test": str(tmp_path / "photos")}).read()
    with pytest.raises(UserError, match=r"cannot read train file '.*photos': TypeError: .*unexpected keyword argument"):
        read(str(tmp_path / "photos"), options={"sep": "x"})


# ---- numbers and codes in CSV


def test_empty_cells_among_numbers_are_missing_values(tmp_path, messages):
    path = file(tmp_path, "a.csv", b"text,id,tone,known,none,code\nNA,1,0.5,true,,\n,,,,,01\nnull,-3,1e2,False,,10\n")
    other = file(tmp_path, "b.csv", b"text,id,tone,known,none,code\n5,1,2,true,x,1\n,2,,true,,2\n")
    assert read(path) == [
        {"text": "NA", "id": 1, "tone": 0.5, "known": True, "none": "", "code": ""},
        {"text": "", "id": None, "tone": None, "known": None, "none": "", "code": "01"},
        {"text": "null", "id": -3, "tone": 100.0, "known": False, "none": "", "code": "10"},
    ]
    assert "data: train: empty cells among numbers are missing values: id, tone, known" in messages()
    both = Data(files={"train": path, "test": other}).read()
    assert both["test"]["text"][:] == ["5", ""]  # texts in train are texts
    assert both["test"]["code"][:] == ["1", "2"]


def test_an_empty_label_among_decimals_is_missing_and_they_are_regression(tmp_path):
    path = file(tmp_path, "a.csv", b"text,label\na,0.5\nb,\nc,1.5\nd,2.5\n")
    task = TextClassification(model="-", data=Data(path=path, validation=0))
    with pytest.raises(UserError, match=r"has 1 missing label \(rows 1\)"):
        _ = task.rows
    dropping = TextClassification(model="-", data=Data(path=path, validation=0, drop_empty=True))
    assert dropping.labels.problem_type == "regression"


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_with_leading_zeros_stay_as_they_are_written(tmp_path, messages, streaming):
    path = file(tmp_path, "a.tsv.gz", gzip.compress(b"text\tcode\tid\na\t000\t0\nb\t001\t10\n"))
    rows = Data(path=path, streaming=streaming, options={"quoting": 3}).read()["train"]
    assert list(rows) == [{"text": "a", "code": "000", "id": 0}, {"text": "b", "code": "001", "id": 10}]
    assert "numbers with leading zeros are kept as texts: code" in messages()


# ---- rows in memory


def test_rows_in_memory_are_stored_once_by_their_content():
    frame = pd.DataFrame(ROWS)
    data = Data.of(frame, validation=0)
    assert data.read()["train"].to_list() == ROWS
    assert Data.of(frame.copy(), validation=0) == data
    assert Data.of(frame[:2]).path != data.path
    both = Data.of(
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])})
    )
    assert {split: rows.to_list() for split, rows in both.read().items()} == {"train": ROWS, "test": ROWS[:1]}
    assert not list(Path(data.path).parent.glob("aside-*"))


def test_a_run_on_rows_in_memory_is_evaluated_later(tiny, tmp_path):
    data = Data.of({split: pd.DataFrame(sentences(count)) for split, count in (("train", 24), ("validation", 8))})
    task = TextClassification(model=tiny("bert"), data=data, label_column="colour", max_length=16)
    train(Config(task=task, run_dir=str(tmp_path / "run"), max_steps=1, report=False))
    assert 0 <= evaluate(str(tmp_path / "run"))["accuracy"] <= 1


def test_rows_are_stored_whole_by_several_processes_at_once(tmp_path):
    table = datasets.Dataset.from_list(ROWS * 500)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: stored({"train": table}), range(8)))
    assert len(folders) == 1
    assert datasets.load_from_disk(folders.pop())["train"].to_list() == ROWS * 500


def test_rows_with_a_transform_are_not_stored():
    with pytest.raises(UserError, match=r"transform cannot be stored: give the function as Data\(map="):
        Data.of(datasets.Dataset.from_list(ROWS).with_transform(dict))


# ---- several sources


def two_sources(folder: Path) -> tuple[Data, Data]:
    first = write_csv(folder / "a.csv", [{"review": f"a{number}", "label": "x"} for number in range(20)])
    second = file(folder, "b.jsonl", jsonl([{"label": "y", "text": f"b{number}", "more": 1} for number in range(10)]))
    return (
        Data(path=first, columns={"text": "review", "label": "label"}),
        Data(path=second, columns={"text": "text", "label": "label"}),
    )


def test_sources_follow_each_other_or_are_interleaved(tmp_path, caplog):
    caplog.set_level("INFO", "ftloop")
    sources = two_sources(tmp_path)
    rows = Data(sources=sources).read()["train"]
    expected = [f"a{number}" for number in range(20)] + [f"b{number}" for number in range(10)]
    assert rows["text"][:] == expected
    drawn = [
        Data(sources=sources, probabilities=(0.3, 0.7), split_seed=seed).read()["train"]["text"][:]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == len(drawn[0]) < 30  # no row twice; it ends when one source has no more
    assert [text for text in drawn[0] if text[0] == "a"] == expected[: sum(text[0] == "a" for text in drawn[0])]
    assert sum(text[0] == "b" for text in drawn[0]) == 10
    assert "of the 30 rows of the sources are drawn for train" in caplog.text


def test_sources_that_differ_are_named(tmp_path):
    first, second = two_sources(tmp_path)
    with pytest.raises(
        UserError, match=r"source 1 differs from source 0 in train, in the columns 'more' \(Value\('int64'\), None\)"
    ):
        Data(sources=(first, Data(path=second.path))).read()


# ---- streams


def test_train_is_streamed_and_the_other_splits_are_read(tmp_path):
    path = file(tmp_path, "a.jsonl.gz", gzip.compress(jsonl(ROWS)))
    table = write_csv(tmp_path / "b.csv", ROWS)
    data = Data(files={"train": path, "dev": table}, streaming=True).read()
    assert isinstance(data["train"], datasets.IterableDataset)
    assert list(data["train"]) == data["validation"].to_list() == ROWS
    assert list(Data(path=path, streaming=True, validation=2).read()) == ["train"]
    with pytest.raises(UserError, match=r"pkl cannot be streamed; csv, tsv, json, jsonl, parquet, .* can"):
        read_files({"train": pickled(tmp_path / "a.pkl", 1)}, None, {}, trust_pickle=True, streaming=True)
    file(tmp_path, "hub/train.jsonl", jsonl(ROWS))
    file(tmp_path, "hub/test.jsonl", jsonl(ROWS[:2]))
    data = Data(path=str(tmp_path / "hub"), name="default", streaming=True, validation=0).read()
    assert isinstance(data["train"], datasets.IterableDataset)
    assert data["test"].to_list() == ROWS[:2]


# ---- by the command line


def test_a_pickled_dictionary_trains_by_the_command_line(tiny, tmp_path):
    rows = sentences(40)
    labels = pd.DataFrame({colour: [int(row["colour"] == colour) for row in rows] for colour in COLOURS})
    path = pickled(tmp_path / "job.pkl", {"total": {"X": pd.DataFrame(rows)[["text"]]}, "y": labels})
    words = ["configs/text.py", "--task.model", tiny("bert"), "--task.data.path", path, "--task.label-column", *COLOURS]
    words += ["--task.data.field", "total.X", "y", "--run-dir", tmp_path / "run", "--max-steps", "1"]
    words += ["--task.max-length", "32"]
    refused = run_script("train.py", *words)
    assert refused.code == 2
    assert "--task.data.trust-pickle" in refused.err
    assert run_script("train.py", *words, "--task.data.trust-pickle").code == 0
    assert run_script("evaluate.py", tmp_path / "run", "--split", "validation").code == 0
