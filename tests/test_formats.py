"""Every format gives the same rows, compressed or not: on disk, in memory or on a web server."""

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

from ftloop import Config, UserError, train
from ftloop.data import Data
from ftloop.data.formats import read_files
from ftloop.data.tables import store_splits
from ftloop.runs.finished import evaluate_run
from ftloop.tasks import TextClassification

ROWS = [
    {"text": "NA", "label": "a", "size": 0},
    {"text": "é ü", "label": "b", "size": 1},
    {"text": "1e5", "label": "a", "size": 2},
]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()` returns the lines that ftloop has logged so far."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


# Writing files


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def compress_zip(content: bytes, name: str = "rows.jsonl") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def compress_zst(content: bytes) -> bytes:
    import zstandard

    return zstandard.compress(content)


COMPRESSORS = {
    "gz": gzip.compress,
    "zip": compress_zip,
    "zst": compress_zst,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


def write_bytes(folder: Path, name: str, content: bytes) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return str(file)


def write_sqlite(file: Path, rows: list[dict[str, Any]]) -> str:
    """Write the table `notes` of an SQLite database."""
    connection = sqlite3.connect(file)
    types = {str: "TEXT", int: "INTEGER", float: "REAL"}
    columns = ", ".join(f"{name} {types[type(value)]}" for name, value in rows[0].items())
    connection.execute(f"CREATE TABLE notes ({columns})")
    marks = ", ".join("?" * len(rows[0]))
    cells = [tuple(row.values()) for row in rows]
    connection.executemany(f"INSERT INTO notes VALUES ({marks})", cells)
    connection.commit()
    connection.close()
    return str(file)


def write_pickle(file: Path, value: Any) -> str:
    file.write_bytes(pickle.dumps(value))
    return str(file)


def read(path: str, split: str = "train", **options: Any) -> list[dict[str, Any]]:
    return Data(path=path, **options).read()[split].to_list()


# One dataset in every format


def build_multi_label_rows(count: int) -> list[dict[str, Any]]:
    """Rows with a text and a list of label ids, which is empty in some rows."""
    rows = []
    for index, row in enumerate(sentences(count)):
        labels = [label for label in range(3) if (index + label) % 4 and index % 7]
        rows.append({"text": row["text"], "labels": labels})
    return rows


def write_every_format(folder: Path) -> dict[str, tuple[Data, dict[str, Any]]]:
    """Write the same 60 rows in every format; return the data and task options that read them."""
    rows = build_multi_label_rows(60)
    joined = [{"text": row["text"], "labels": ",".join(map(str, row["labels"]))} for row in rows]
    bits = [
        {"text": row["text"], **{f"is_{label}": int(label in row["labels"]) for label in range(3)}}
        for row in rows
    ]
    table = datasets.Dataset.from_list(rows)
    frame = pd.DataFrame(rows)
    tsv = "text\tlabels\n" + "".join(f"{row['text']}\t{row['labels']}\n" for row in joined)
    table.to_parquet(folder / "rows.parquet")
    table.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "saved_splits")
    separated = {"label_separator": ","}
    columns = {"label_column": "is_*", "label_names": ("0", "1", "2")}
    arrow_file = str(next((folder / "saved").glob("*.arrow")))
    nested = json.dumps({"a": {"b": rows}}).encode()
    source = functools.partial(Data, validation=12)
    pickled = functools.partial(Data, validation=12, trust_pickle=True)
    memory = functools.partial(Data.from_memory, validation=12)
    sources = {
        "tsv": (source(path=write_bytes(folder, "rows.tsv", tsv.encode())), separated),
        "jsonl": (source(path=write_bytes(folder, "rows.jsonl", to_jsonl(rows))), {}),
        "parquet": (source(path=str(folder / "rows.parquet")), {}),
        "columns": (source(path=write_csv(folder / "bits.csv", bits)), columns),
        "pickle": (pickled(path=write_pickle(folder / "rows.pkl", frame)), {}),
        "pickled columns": (
            pickled(path=write_pickle(folder / "bits.pkl", pd.DataFrame(bits))),
            columns,
        ),
        "arrow": (source(path=arrow_file), {}),
        "sqlite": (
            source(path=write_sqlite(folder / "rows.db", joined), query="SELECT * FROM notes"),
            separated,
        ),
        "saved": (source(path=str(folder / "saved")), {}),
        "saved splits": (source(path=str(folder / "saved_splits")), {}),
        "nested": (source(path=write_bytes(folder, "nested.json", nested), field="a.b"), {}),
        "data frame": (memory(frame), {}),
        "dataset": (memory(table), {}),
        "dictionary of splits": (memory({"train": frame}), {}),
    }
    for extension, compress in COMPRESSORS.items():
        path = write_bytes(folder, f"rows.jsonl.{extension}", compress(to_jsonl(rows)))
        sources[extension] = (source(path=path), {})
    return sources


def test_the_same_rows_in_every_format_give_the_same_labels_and_inputs(tiny, tmp_path):
    results = {}
    for name, (data, options) in write_every_format(tmp_path).items():
        options = {
            "label_column": "labels",
            "problem_type": "multi_label_classification",
            **options,
        }
        loaded = TextClassification(model=tiny("bert"), data=data, **options).load_datasets()
        results[name] = {
            split: (dataset.table["input_ids"][:], dataset.table["labels"][:])
            for split, dataset in loaded.items()
        }
    expected = results.pop("tsv")
    sizes = {split: len(input_ids) for split, (input_ids, _) in expected.items()}
    assert sizes == {"train": 48, "validation": 12}
    assert [0.0, 0.0, 0.0] in expected["train"][1]
    for name, result in results.items():
        assert result == expected, name


@pytest.mark.parametrize("extension", list(COMPRESSORS))
@pytest.mark.parametrize("kind", ["csv", "json", "txt", "pkl"])
def test_compressed_files_are_read(tmp_path, kind, extension):
    lines = [list(ROWS[0]), *(row.values() for row in ROWS)]
    csv = "".join(",".join(map(str, cells)) + "\n" for cells in lines)
    texts = [{"text": row["text"]} for row in ROWS]
    contents = {
        "csv": (csv.encode(), ROWS),
        "json": (json.dumps(ROWS).encode(), ROWS),
        "txt": ("".join(row["text"] + "\n" for row in ROWS).encode(), texts),
        "pkl": (pickle.dumps(pd.DataFrame(ROWS)), ROWS),
    }
    content, expected = contents[kind]
    if extension == "zip":
        compressed = compress_zip(content, f"rows.{kind}")
    else:
        compressed = COMPRESSORS[extension](content)
    path = write_bytes(tmp_path, f"rows.{kind}.{extension}", compressed)
    assert read(path, trust_pickle=kind == "pkl") == expected


@pytest.mark.parametrize("kind", ["h5", "arrow", "db"])
def test_formats_that_cannot_be_read_compressed_are_refused(tmp_path, kind):
    path = write_bytes(tmp_path, f"rows.{kind}.gz", b"compressed")
    options = {"query": "SELECT 1"} if kind == "db" else {}
    message = rf"decompress the train file '.*rows.{kind}.gz' first: it holds {kind}"
    with pytest.raises(UserError, match=message):
        read(path, **options)


def test_hdf5_is_read(tmp_path):
    import h5py

    with h5py.File(tmp_path / "rows.h5", "w") as stream:
        stream["text"] = [row["text"].encode() for row in ROWS]
        stream["size"] = [row["size"] for row in ROWS]
    expected = [{"text": row["text"], "size": row["size"]} for row in ROWS]
    assert read(str(tmp_path / "rows.h5")) == expected


def test_the_elements_of_an_xml_file_are_its_rows(tmp_path):
    rows = "".join(f'<row label="{row["label"]}"><text>{row["text"]}</text></row>' for row in ROWS)
    content = f"<rows>{rows}</rows>".encode()
    expected = [{"label": row["label"], "text": row["text"]} for row in ROWS]
    assert read(write_bytes(tmp_path, "a.xml", content)) == expected
    assert read(write_bytes(tmp_path, "a.xml.xz", lzma.compress(content))) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<rows/>", "has no rows: there are no elements below its root"),
        (b"<rows>", "cannot read the train file .*ParseError"),
        (
            b"<rows><row><l>a</l><l>b</l></row></rows>",
            r"row 0 \(counted from 0\) has two elements of the same name",
        ),
    ],
)
def test_an_xml_file_that_is_not_a_table_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(write_bytes(tmp_path, "b.xml", content))


# Globs, folders and URLs


def test_globs_and_lists_are_read_in_order(tmp_path):
    for number, row in enumerate(ROWS):
        write_bytes(tmp_path, f"part-{number}.jsonl", to_jsonl([row]))
    assert read(str(tmp_path / "part-*.jsonl")) == ROWS
    names = [str(tmp_path / f"part-{number}.jsonl") for number in (2, 0)]
    assert Data(files={"train": names}).read()["train"].to_list() == [ROWS[2], ROWS[0]]
    with pytest.raises(UserError, match=r"the train file '.*no-\*.jsonl' does not exist"):
        Data(files={"train": str(tmp_path / "no-*.jsonl")}).read()
    write_bytes(tmp_path, "part-3.csv", b"text\na\n")
    with pytest.raises(UserError, match=r"the train file '.*no.jsonl' does not exist"):
        Data(files={"train": [*names, str(tmp_path / "no.jsonl")]}).read()
    with pytest.raises(UserError, match=r"must have one format, but have csv, jsonl"):
        read(str(tmp_path / "part-*"))


def test_several_pickles_and_databases_are_one_split(tmp_path):
    for number, row in enumerate(ROWS):
        write_pickle(tmp_path / f"{number}.pkl", pd.DataFrame([row]))
        write_sqlite(tmp_path / f"{number}.db", [row])
    assert read(str(tmp_path / "*.pkl"), trust_pickle=True) == ROWS
    assert read(str(tmp_path / "*.db"), query="SELECT * FROM notes") == ROWS


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The URL of a web server for the files in `tmp_path`."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http_server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()
    thread.join()


def test_urls_are_read(tmp_path, server):
    write_bytes(tmp_path, "rows.jsonl.gz", gzip.compress(to_jsonl(ROWS)))
    write_bytes(tmp_path, "rows.json", json.dumps({"data": ROWS}).encode())
    assert read(f"{server}/rows.jsonl.gz") == ROWS
    assert read(f"{server}/rows.json?raw=true", field=("data",)) == ROWS
    with pytest.raises(UserError, match=r"cannot read the train file 'http.*no.csv'"):
        read(f"{server}/no.csv")


def test_the_error_for_a_folder_without_data_lists_its_content(tmp_path):
    write_bytes(tmp_path, "deep/rows.csv", b"text\na\n")
    write_bytes(tmp_path, "notes.md", b"text\na\n")
    with pytest.raises(UserError, match=r"has no train.csv, .* It contains deep/, notes.md\."):
        read(str(tmp_path))


def test_a_copy_of_a_hub_dataset_is_read_by_its_configuration(tmp_path):
    card = [
        "---",
        "configs:",
        "- config_name: small",
        "  data_files: a.jsonl",
        "- config_name: big",
        "  data_files: b.jsonl",
        "---",
    ]
    write_bytes(tmp_path, "README.md", "\n".join([*card, ""]).encode())
    write_bytes(tmp_path, "a.jsonl", to_jsonl(ROWS[:1]))
    write_bytes(tmp_path, "b.jsonl", to_jsonl(ROWS))
    assert read(str(tmp_path), name="small") == ROWS[:1]
    assert read(str(tmp_path), name="big") == ROWS
    for options in ({"revision": "main"}, {"name": "small"}):
        message = r"--data.name and --data.revision have no effect on files"
        with pytest.raises(UserError, match=message):
            read(str(tmp_path / "a.jsonl"), **options)


# Pickles


def build_tables(repeats: int) -> dict[str, Any]:
    """Two tables with 3 * `repeats` rows each, whose pandas indices do not match."""
    texts = pd.DataFrame(
        {"gross": ["big", np.nan, "red"] * repeats, "note": [np.nan, None, "x"] * repeats},
        dtype=object,
    )
    codes = pd.DataFrame({"8000": [0, 1, 1] * repeats, "8010": [1, 1, 0] * repeats})
    texts.index, codes.index = texts.index + 7, codes.index[::-1]  # rows are joined by position
    return {"total": {"X": texts}, "y": codes}


def test_a_pickle_is_read_only_with_trust(tmp_path):
    path = write_pickle(tmp_path / "rows.pkl", pd.DataFrame(ROWS))
    message = r"runs code of whoever wrote it. If you trust the file, add --data.trust-pickle"
    for method in (Data(path=path).validate, Data(path=path).read):
        with pytest.raises(UserError, match=message):
            method()
    assert read(path, trust_pickle=True) == ROWS


def test_the_tables_of_a_pickled_dictionary_are_joined_side_by_side(tmp_path):
    path = write_pickle(tmp_path / "rows.pkl", build_tables(2))
    rows = read(path, trust_pickle=True, field=("total.X", "y"))
    expected = [
        {"gross": "big", "note": None, "8000": 0, "8010": 1},
        {"gross": None, "note": None, "8000": 1, "8010": 1},
        {"gross": "red", "note": "x", "8000": 1, "8010": 0},
    ]
    assert rows == expected * 2
    codes = [{name: row[name] for name in ("8000", "8010")} for row in rows]
    assert read(path, trust_pickle=True, field="y") == codes


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({}, (), r"--data.field is missing: '.*' holds total.X \(6, 2\), y \(6, 2\)"),
        (
            {},
            ("total.Y", "y"),
            r"--data.field 'total.Y': .* no such key \(did you mean 'total.X'\?\); "
            r"it holds total.X \(6, 2\)",
        ),
        ({"y": [0, 1]}, ("total.X", "y"), "total.X has 6 rows, y has 2 rows"),
        (
            {"y": pd.DataFrame({"note": ["a"] * 6})},
            ("total.X", "y"),
            r"duplicated columns .*'note'",
        ),
        (
            {"y": pd.Series([1, "a"] * 3, name="code")},
            ("y",),
            "the values of column 'code' cannot be stored as one type",
        ),
        ({"y": 3}, ("y",), "'y' is int, which holds no rows"),
    ],
)
def test_a_pickle_that_does_not_fit_is_refused(tmp_path, change, field, message):
    path = write_pickle(tmp_path / "rows.pkl", {**build_tables(2), **change})
    with pytest.raises(UserError, match=message):
        read(path, trust_pickle=True, field=field)


def test_pickles_hold_tables_of_many_kinds(tmp_path):
    frame = pd.DataFrame(
        {"kind": pd.Categorical(["a", "b"]), "labels": [["x"], ["y", "z"]], "number": [1, None]}
    )
    tables = {
        "frame": frame,
        "series": pd.Series(["a", "b"], name="named"),
        "array": np.arange(4).reshape(2, 2),
        "list": ["p", "q"],
        "rows": [{"one": 1}, {"two": "2"}],
    }
    path = write_pickle(tmp_path / "rows.pkl", tables)
    assert read(path, trust_pickle=True, field=tuple(tables)) == [
        {"kind": "a", "labels": ["x"], "number": 1.0, "named": "a"}
        | {"array_0": 0, "array_1": 1, "list": "p", "one": 1, "two": None},
        {"kind": "b", "labels": ["y", "z"], "number": None, "named": "b"}
        | {"array_0": 2, "array_1": 3, "list": "q", "one": None, "two": "2"},
    ]


def test_a_pickled_dictionary_of_splits_is_read_as_such(tmp_path):
    frame = pd.DataFrame(ROWS)
    path = write_pickle(tmp_path / "rows.pkl", {"train": frame, "dev": frame[:1]})
    data = Data(path=path, trust_pickle=True).read()
    rows = {split: table.to_list() for split, table in data.items()}
    assert rows == {"train": ROWS, "validation": ROWS[:1]}


# SQLite and nested JSON


def test_an_sqlite_query_keeps_the_types_of_the_columns(tmp_path):
    path = write_sqlite(
        tmp_path / "rows.sqlite",
        [{"text": "a", "label": 1, "tone": 2.0}, {"text": "b", "label": 0, "tone": 1.5}],
    )
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO notes VALUES (NULL, NULL, NULL)")
    connection.commit()
    connection.close()
    query = "SELECT text, label, tone FROM notes ORDER BY label DESC"
    rows = Data(path=path, query=query).read()["train"]
    dtypes = [feature.dtype for feature in rows.features.values()]
    assert dtypes == ["string", "int64", "float64"]
    assert rows["label"][:] == [1, 0, None]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (None, "--data.query is missing: .* SELECT ... FROM one of its tables: notes"),
        ("SELECT * FROM note", "no such table: note"),
        ("SELECT * FROM notes WHERE label = 7", "the split 'train' is empty"),
        ("SELECT text, text FROM notes", "two columns are named 'text'"),
        ("DELETE FROM notes", "attempt to write a readonly database"),
        ("ATTACH DATABASE 'written.db' AS other", "not authorized"),
        ("VACUUM INTO 'written.db'", "authorization denied"),
    ],
)
def test_an_sqlite_query_that_gives_no_table_is_refused(tmp_path, query, message):
    path = write_sqlite(tmp_path / "rows.sqlite", [{"text": "a", "label": 1}])
    with pytest.raises(UserError, match=message):
        read(path, query=query)


def test_rows_of_json_are_found_under_a_dotted_key(tmp_path):
    content = json.dumps({"version": 2, "data": {"rows": ROWS}}).encode()
    path = write_bytes(tmp_path, "rows.json", content)
    assert read(path, field="data.rows") == ROWS
    message = r"no such key \(did you mean 'data.rows'\?\); it holds version int, data.rows list"
    with pytest.raises(UserError, match=message):
        read(path, field="data.row")


# Options without effect


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"path": "a.csv", "field": "rows"},
            "--data.field has no effect on csv: it is for json, pkl",
        ),
        (
            {"path": "a.jsonl", "query": "SELECT 1"},
            "--data.query has no effect on jsonl: it is for sqlite",
        ),
        (
            {"files": {"train": "a.csv"}, "trust_pickle": True},
            "--data.trust-pickle has no effect on csv",
        ),
        (
            {"path": "a.db", "options": {"sep": ";"}},
            "--data.options .* has no effect: db takes no options",
        ),
        ({"path": "a.json", "field": ("a", "b")}, "JSON files take one key only"),
        (
            {"path": "a", "format": "parqet"},
            r"--data.format 'parqet' is not one of .*\(did you mean 'parquet'\?\)",
        ),
        (
            {"path": "a", "streaming": True, "split_group": "id"},
            "--data.split-group needs all rows",
        ),
        ({"sources": (Data(path="a"),), "path": "b"}, "path cannot be combined with `sources`"),
        (
            {"sources": (Data(path="a"), Data(path="b")), "probabilities": (1.0,)},
            "must have one number above 0 for each",
        ),
        ({"sources": (Data(path="a"), Data(path="b", limit=3))}, "limit has no effect in source 1"),
        (
            {"path": "a", "probabilities": (1.0,)},
            "must have one number above 0 for each of `sources`",
        ),
        (
            {"path": "a", "streaming": True, "limit": 3},
            "--data.limit 3 cannot be combined with --data.streaming; --max-steps",
        ),
        ({"path": "a", "shuffle_buffer": 5}, "--data.shuffle-buffer 5 needs --data.streaming"),
    ],
)
def test_options_without_effect_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        Data(**options).validate()


# Images


def write_photo(folder: Path, name: str, colour: str) -> None:
    from PIL import Image

    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(file, format="JPEG")


def test_images_are_read_from_class_folders(tmp_path, messages):
    for name in (
        "train/red/a.jpg",
        "train/red/B.JPG",
        "train/blue/c.Jpeg",
        "train/green/d.jpg",
        "test/red/e.jpg",
    ):
        write_photo(tmp_path, name, name.split("/")[1])
    for name in ("LICENSE", "README.md", "train/Thumbs.db", "train/red/Thumbs.db"):
        write_bytes(tmp_path, name, b"no image")
    data = Data(path=str(tmp_path)).read()
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "test": 1}
    for rows in data.values():
        assert rows.features["label"].names == ["blue", "green", "red"]
        assert rows.features["image"].decode is False
    assert data["test"]["label"][:] == [2]
    for row in data["train"]:
        assert Path(row["image"]["path"]).parent.name == ["blue", "green", "red"][row["label"]]
    warning = "train: ignored in the class folders, because not an image (1): Thumbs.db"
    assert warning in messages()
    write_photo(tmp_path, "train/red/.hidden.jpg", "red")
    write_photo(tmp_path, "train/__MACOSX/a.jpg", "red")
    alone = Data(path=str(tmp_path / "train")).read()
    assert {split: len(rows) for split, rows in alone.items()} == {"train": 4}
    files = Data(files={"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}).read()
    assert files["test"]["label"][:] == [2]


def test_ignored_entries_of_a_folder_of_images_are_logged(tmp_path, messages):
    for name in ("Train/red/a.jpg", "Train/blue/b.jpg", "Test/red/c.jpg", "more/red/d.jpg"):
        write_photo(tmp_path, name, "red")
    write_bytes(tmp_path, "Train/labels.csv", b"x")
    (tmp_path / "Train" / "green").mkdir()
    data = Data(path=str(tmp_path)).read()
    assert {split: len(rows) for split, rows in data.items()} == {"train": 2, "test": 1}
    assert f"ignored in the folder {tmp_path} (1): more/" in messages()
    folder = tmp_path / "Train"
    assert f"ignored in the folder {folder} (2): green/, labels.csv" in messages()


def test_class_folders_are_not_mixed_with_tables(tmp_path):
    write_photo(tmp_path, "photos/red/a.jpg", "red")
    table = write_bytes(tmp_path, "rows.csv", b"image,label\n")
    message = "cannot be mixed with other formats: train csv, test imagefolder"
    with pytest.raises(UserError, match=message):
        Data(files={"train": table, "test": str(tmp_path / "photos")}).read()


def test_an_unknown_option_for_class_folders_is_an_error(tmp_path):
    write_photo(tmp_path, "photos/red/a.jpg", "red")
    message = r"cannot read the train file '.*photos': --data.options sep: .* no such option"
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "photos"), options={"sep": "x"})


# Numbers and codes in CSV


def test_empty_cells_among_numbers_are_missing_values(tmp_path, messages):
    header = b"text,id,tone,known,none,code\n"
    path = write_bytes(
        tmp_path, "a.csv", header + b"NA,1,0.5,true,,\n,,,,,01\nnull,-3,1e2,False,,10\n"
    )
    other = write_bytes(tmp_path, "b.csv", header + b"5,1,2,true,x,1\n,2,,true,,2\n")
    assert read(path) == [
        {"text": "NA", "id": 1, "tone": 0.5, "known": True, "none": "", "code": ""},
        {"text": "", "id": None, "tone": None, "known": None, "none": "", "code": "01"},
        {"text": "null", "id": -3, "tone": 100.0, "known": False, "none": "", "code": "10"},
    ]
    message = "train: empty cells of the number columns id, tone, known are missing values"
    assert message in messages()
    both = Data(files={"train": path, "test": other}).read()
    assert both["test"]["text"][:] == ["5", ""]  # texts, because train has texts in this column
    assert both["test"]["code"][:] == ["1", "2"]


def test_decimals_with_an_empty_label_are_regression_with_a_missing_label(tmp_path):
    path = write_bytes(tmp_path, "a.csv", b"text,label\na,0.5\nb,\nc,1.5\nd,2.5\n")
    task = TextClassification(model="-", init="random", data=Data(path=path, validation=0))
    with pytest.raises(UserError, match=r"has 1 missing label \(rows 1\)"):
        _ = task.rows
    data = Data(path=path, validation=0, drop_empty=True)
    task = TextClassification(model="-", init="random", data=data)
    assert task.labels.problem_type == "regression"


@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_with_leading_zeros_stay_as_they_are_written(tmp_path, messages, streaming):
    content = b"text\tcode\tid\na\t000\t0\nb\t001\t10\n"
    path = write_bytes(tmp_path, "a.tsv.gz", gzip.compress(content))
    rows = Data(path=path, streaming=streaming, options={"quoting": 3}).read()["train"]
    expected = [{"text": "a", "code": "000", "id": 0}, {"text": "b", "code": "001", "id": 10}]
    assert list(rows) == expected
    assert "numbers with leading zeros are kept as texts: code" in messages()


# Rows in memory


def test_rows_in_memory_are_stored_once_by_their_content():
    frame = pd.DataFrame(ROWS)
    data = Data.from_memory(frame, validation=0)
    assert data.read()["train"].to_list() == ROWS
    assert Data.from_memory(frame.copy(), validation=0) == data
    assert Data.from_memory(frame[:2]).path != data.path
    assert not list(Path(data.path).parent.glob("partial-*"))


def test_a_dataset_dict_in_memory_keeps_its_splits():
    splits = {"train": ROWS, "test": ROWS[:1]}
    tables = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
    data = Data.from_memory(datasets.DatasetDict(tables)).read()
    assert {split: rows.to_list() for split, rows in data.items()} == splits


def test_a_run_on_rows_in_memory_is_evaluated_later(tiny, tmp_path):
    frames = {"train": pd.DataFrame(sentences(24)), "validation": pd.DataFrame(sentences(8))}
    data = Data.from_memory(frames)
    task = TextClassification(model=tiny("bert"), data=data, label_column="colour", max_length=16)
    train(Config(task=task, run_dir=str(tmp_path / "run"), max_steps=1))
    assert 0 <= evaluate_run(str(tmp_path / "run"))["accuracy"] <= 1


def test_rows_are_stored_completely_by_several_threads_at_once():
    table = datasets.Dataset.from_list(ROWS * 500)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: store_splits({"train": table}), range(8)))
    assert len(folders) == 1
    assert datasets.load_from_disk(folders.pop())["train"].to_list() == ROWS * 500


def test_rows_with_a_transform_are_not_stored():
    rows = datasets.Dataset.from_list(ROWS).with_transform(dict)
    message = r"transform cannot be stored; pass the function as Data\(map="
    with pytest.raises(UserError, match=message):
        Data.from_memory(rows)


# Several sources


def write_two_sources(folder: Path) -> tuple[Data, Data]:
    """A CSV file with the texts a0 to a19, and a JSON Lines file with b0 to b9."""
    first = [{"review": f"a{number}", "label": "x"} for number in range(20)]
    second = [{"label": "y", "text": f"b{number}", "more": 1} for number in range(10)]
    return (
        Data(path=write_csv(folder / "a.csv", first), columns={"text": "review", "label": "label"}),
        Data(
            path=write_bytes(folder, "b.jsonl", to_jsonl(second)),
            columns={"text": "text", "label": "label"},
        ),
    )


def test_sources_follow_one_another(tmp_path):
    rows = Data(sources=write_two_sources(tmp_path)).read()["train"]
    expected = [f"a{number}" for number in range(20)] + [f"b{number}" for number in range(10)]
    assert rows["text"][:] == expected


def test_sources_are_drawn_with_probabilities(tmp_path, messages):
    sources = write_two_sources(tmp_path)
    results = []
    for seed in (1, 1, 2):
        data = Data(sources=sources, probabilities=(0.3, 0.7), split_seed=seed)
        results.append(data.read()["train"]["text"][:])
    texts = results[0]
    assert results[1] == texts != results[2]
    assert len(set(texts)) == len(texts) < 30  # no row twice, and it ends when one source does
    first = [text for text in texts if text[0] == "a"]
    second = [text for text in texts if text[0] == "b"]
    assert first == [f"a{number}" for number in range(len(first))]  # in the order of the source
    assert second == [f"b{number}" for number in range(10)]
    assert f"train uses {len(texts)} of the 30 rows of the sources" in messages()


def test_columns_that_differ_between_sources_are_named(tmp_path):
    first, second = write_two_sources(tmp_path)
    message = (
        "source 1 differs from source 0 in the columns of train: "
        r"'more' \(Value\('int64'\), None\)"
    )
    with pytest.raises(UserError, match=message):
        Data(sources=(first, Data(path=second.path))).read()


# Streams


def test_train_is_streamed_and_the_other_splits_are_read(tmp_path):
    path = write_bytes(tmp_path, "a.jsonl.gz", gzip.compress(to_jsonl(ROWS)))
    table = write_csv(tmp_path / "b.csv", ROWS)
    data = Data(files={"train": path, "dev": table}, streaming=True).read()
    assert isinstance(data["train"], datasets.IterableDataset)
    assert list(data["train"]) == data["validation"].to_list() == ROWS
    assert list(Data(path=path, streaming=True, validation=2).read()) == ["train"]


def test_the_train_split_of_a_copy_of_a_hub_dataset_is_streamed(tmp_path):
    write_bytes(tmp_path, "train.jsonl", to_jsonl(ROWS))
    write_bytes(tmp_path, "test.jsonl", to_jsonl(ROWS[:2]))
    data = Data(path=str(tmp_path), name="default", streaming=True, validation=0).read()
    assert isinstance(data["train"], datasets.IterableDataset)
    assert data["test"].to_list() == ROWS[:2]


def test_formats_that_cannot_be_streamed_are_refused(tmp_path):
    files = {"train": write_pickle(tmp_path / "a.pkl", 1)}
    message = "pkl cannot be streamed. The formats that can are csv, tsv, json, jsonl, parquet, "
    with pytest.raises(UserError, match=message):
        read_files(files, None, {}, trust_pickle=True, streaming=True)


# On the command line


def test_a_pickled_dictionary_trains_on_the_command_line(tiny, tmp_path):
    rows = sentences(40)
    labels = pd.DataFrame(
        {colour: [int(row["colour"] == colour) for row in rows] for colour in COLOURS}
    )
    tables = {"total": {"X": pd.DataFrame(rows)[["text"]]}, "y": labels}
    path = write_pickle(tmp_path / "job.pkl", tables)
    run_dir = tmp_path / "run"
    words = ["configs/text.py", "--model", tiny("bert"), "--max-length", "32", "--max-steps", "1"]
    words += ["--data.path", path, "--data.field", "total.X", "y", "--label-column", *COLOURS]
    words += ["--run-dir", run_dir]
    refused = run_script("train.py", *words)
    assert refused.code == 2
    assert "--data.trust-pickle" in refused.err
    assert run_script("train.py", *words, "--data.trust-pickle").code == 0
    words = ["evaluate.py", run_dir, "--split", "validation"]
    assert run_script(*words).code == 2  # the record gives no permission
    assert run_script(*words, "--trust-pickle").code == 0
