"""Files that would be read wrongly end with one clear error, or with a line that --check counts."""

import csv
import io
import logging
import re
import sqlite3
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from conftest import run_script, sentences, write_csv
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from ftloop.cli.predict_options import PredictOptions
from ftloop.cli.predict_reader import add_options_of_run
from ftloop.data import Data, checks, label_checks as labels_of, text_checks as texts_of
from ftloop.data.csv_structure import check_csv
from ftloop.data.encodings import detect_encoding, find_spelling, normalize_column, normalize_name
from ftloop.data.images import _prepend_folder
from ftloop.data.labels import Labels, encode_labels, infer_labels, label_name
from ftloop.data.shape import shape_rows
from ftloop.errors import UserError
from ftloop.tasks import TextClassification

COMPOSED, DECOMPOSED = "été", unicodedata.normalize("NFD", "été")
SINGLE = "single_label_classification"


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    """`messages()` returns the lines that ftloop has logged so far."""
    logger = logging.getLogger("ftloop")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "ftloop"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


def write(folder: Path, content: str | bytes, name: str = "rows.csv") -> str:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


def read(path: str, **options: Any) -> list[dict[str, Any]]:
    data = Data(path=path, **options)
    return list(shape_rows(data.read(), data)["train"])


def findings(found: Any) -> list[str]:
    return [finding.text for finding in found if finding.is_mistake]


# Rows and their header


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            "text,label\na,b,c\nd,e,f\n",
            {},
            "the row in line 2 has 3 cells, but the header has 2: 'a', 'b', 'c'. 2 of 2 rows .* "
            "--data.options header=0 names=row,text,label",
        ),
        (
            'text,label\n"a\nb",x\n\na,b,\nd,e,f\n',
            {},
            "the row in line 6 has 3 cells, but .*1 of 3 rows .*--data.options sep=';'",
        ),
        ("text,label\na,b\nd,e,f\n", {"usecols": "text,label"}, "in line 3 has 3 cells"),
        ("a,b\nd,e\n", {"names": "text"}, "in line 1 has 2 cells.* names=a,b,c names all columns"),
        ("#\ntext,label\na,b,c\n", {"skiprows": 1}, "in line 3 has 3 cells, but the header has 2"),
        ("x\ntext,label\na,b,c\n", {"header": 1}, "in line 3 has 3 cells, but the header has 2"),
        ("text;label\na, b;x\n", {}, "2 cells, but the header has 1: .*--data.options 'sep=;'"),
        ("text,label\na,b,c\n", {"comment": "#"}, "Rows have more cells than the header"),
    ],
)
def test_a_row_with_more_cells_than_the_header_is_an_error(tmp_path, content, options, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message):
        read(path, options=options)


def test_the_columns_of_tsv_files_and_streams_do_not_move_either(tmp_path):
    for name, streaming in (("rows.tsv", False), ("rows.csv", True)):
        content = "text,label\na,b,c\n".replace(",", "\t" if name.endswith("tsv") else ",")
        with pytest.raises(UserError, match="in line 2 has 3 cells, but the header has 2"):
            read(write(tmp_path, content, name), streaming=streaming)


@pytest.mark.parametrize("ends", ["", ","])
def test_separators_at_the_end_of_rows_are_no_cells(tmp_path, messages, ends):
    path = write(tmp_path, f"text,label{ends}\na,007,\nb,1,\n")
    assert [(row["text"], row["label"]) for row in read(path)] == [("a", "007"), ("b", "1")]
    assert "cells" not in messages()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            "text,label\na\nb,x\n",
            {},
            "1 row(s) have fewer cells than the header, which has 2: the first is in line 2",
        ),
        ("text,text\na,b\n", {}, "several columns are named 'text'"),
        (
            'text,label\n"big,x\nsmall,y\nred"ish,x\n',
            {},
            "2 line break(s) are inside quotes, the first in line 2",
        ),
        (
            "text,label\na,b\nc,d,e\n",
            {"on_bad_lines": "skip"},
            "1 of 2 rows have more cells than the header and are skipped (on_bad_lines=skip)",
        ),
    ],
)
def test_other_rows_that_do_not_fit_are_reported(tmp_path, messages, content, options, message):
    read(write(tmp_path, content), options=options)
    assert message in messages()


def test_texts_of_several_lines_are_no_joined_rows(tmp_path, messages):
    path = write(tmp_path, 'text,label\n"a rose, red,\nis a rose\n, blue",x\nb,y\n')
    assert len(read(path)) == 2
    assert messages() == ""


def test_the_limit_of_the_csv_module_is_restored_and_wide_cells_are_read(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path, f"text,label\n{'a' * (limit + 1)},x\nb,y,z\n")
    with pytest.raises(UserError, match="in line 3"):
        read(path)
    assert csv.field_size_limit() == limit
    assert not check_csv("train", path, {"sep": "::"})  # pandas decides


def test_a_missing_header_and_another_separator_are_named(tmp_path):
    for content, message in (
        ("the sky is so blue,red\na,b\n", "is no header, .*--data.options names=text,label"),
        ("text;label\na;b\n", "another separator .*'sep=;'"),
        ("text\tlabel\na\tb\n", r"another separator .*'sep=\\t'"),
    ):
        data = Data(path=write(tmp_path, content), validation=0)
        with pytest.raises(UserError, match=f"(?i)has no column 'text'.*{message}"):
            _ = TextClassification(model="-", init="random", data=data).source


def test_files_with_other_columns_are_named(tmp_path):
    write(tmp_path, "text,label\na,b\n", "a.csv")
    for content, difference in (
        ("text,colour\nc,d\n", "b.csv' has 'colour' and lacks 'label'"),
        ("label,text\nd,c\n", "b.csv' has another order"),
        ("text,label\nc,1\n", "A column holds texts in one file and numbers in another"),
    ):
        write(tmp_path, content, "b.csv")
        with pytest.raises(UserError, match=difference):
            read(str(tmp_path / "*.csv"))
    for name, column in (("a", "label"), ("b", "colour")):
        Dataset.from_dict({"text": ["a"], column: ["b"]}).to_parquet(tmp_path / f"{name}.parquet")
    message = "compared with the first one, a later one has 'colour' and lacks 'label'"
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "*.parquet"))


def test_an_option_that_a_reader_lacks_is_named_with_those_it_has(tmp_path):
    message = r"--data.options seperator: the reader of this format has no such option.* sep, "
    path = write(tmp_path, "text,label\na,b\n")
    with pytest.raises(UserError, match=message):
        read(path, options={"seperator": ";"})
    path = write(tmp_path, '{"text": "a"}\n', "rows.jsonl")
    with pytest.raises(UserError, match="dtype: the reader of this format has no such option"):
        read(path, options={"dtype": "str"})


# Encodings


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("5 €".encode("cp1252"), "cp1252"),
        ("5 €".encode("utf-16"), "utf-16"),
        ("5 €".encode("utf-32"), "utf-32"),
        (b"\xfe\xff" + "5 €".encode("utf-16-be"), "utf-16"),
        ("text".encode("utf-16-le"), "utf-16-le"),
        ("text".encode("utf-16-be"), "utf-16-be"),
        (b"\x81", None),
        ("5 €".encode()[:-1], "utf-8"),
    ],
)
def test_the_encoding_is_detected(content, encoding):
    assert detect_encoding(content) == encoding


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.txt"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le"])
def test_the_option_of_the_error_reads_the_file(tmp_path, name, encoding):
    content = {"rows.csv": "text,label\n5 €,b\n", "rows.tsv": "text\tlabel\n5 €\tb\n"}
    content |= {"rows.jsonl": '{"text": "5 €"}\n', "rows.txt": "5 €\n"}
    path = write(tmp_path, content[name].encode(encoding), name)
    with pytest.raises(UserError, match=f"--data.options encoding={encoding}\\."):
        read(path)
    assert read(path, options={"encoding": encoding})[0]["text"] == "5 €"


def test_the_file_with_another_encoding_is_named(tmp_path):
    write(tmp_path, "5 €\n", "a.txt")
    write(tmp_path, "5 €\n".encode("cp1252"), "b.txt")
    with pytest.raises(UserError, match=r"bytes of '.*b\.txt' are not UTF-8 but fit cp1252"):
        read(str(tmp_path / "*.txt"))


def test_a_byte_order_mark_is_no_part_of_a_name_or_text(tmp_path):
    assert read(write(tmp_path, "\ufefftext,label\na,b\n"))[0]["text"] == "a"
    assert read(write(tmp_path, '\ufeff"text",label\na,b\n', "quoted.csv"))[0]["text"] == "a"
    assert read(write(tmp_path, "\ufeffa\n", "a.txt"))[0]["text"] == "a"
    Dataset.from_dict({"\ufefftext": ["a"]}).to_parquet(tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5 \x80", r"such as '\x80' in row 1. .*--data.options encoding=cp1252"),
        ("5 \ufffd", "bytes that could not be decoded"),
        ("5 \0", r"such as '\x00' in row 1. .*encoding=utf-16-le"),
    ],
)
def test_control_characters_are_found(text, message):
    rows = Dataset.from_dict({"text": ["a\tb\n é", text, None]})
    (found,) = findings(texts_of.find_control_characters("train", rows, ("text",)))
    assert found.startswith("1 of 3 texts of train in 'text' have control characters")
    assert all(part in found for part in message.split(".*"))
    rows = Dataset.from_dict({"text": ["a\tb\r\n é € 😀"]})
    assert not list(texts_of.find_control_characters("train", rows, ("text",)))


# Names


def test_names_are_the_same_whatever_their_unicode_form_and_invisible_characters():
    for name in (DECOMPOSED, f"\u00a0{COMPOSED}\u200b", f"\ufeff{COMPOSED} "):
        assert normalize_name(name) == label_name(name) == COMPOSED
    assert normalize_name(" joy\t") == "joy"
    assert normalize_name("\u0646\u200c\u0645") == "\u0646\u200c\u0645"  # within a word it counts
    assert normalize_column(f"\ufeff{DECOMPOSED}") == COMPOSED
    assert normalize_column(" a") == " a"


@pytest.mark.parametrize("kind", ["names", "lists", "ClassLabel", "columns"])
def test_labels_in_two_unicode_forms_are_one_class(tmp_path, messages, kind):
    texts = ["a", "b", "c", "d"]
    spelled = [COMPOSED, DECOMPOSED, "joy", "joy\u200b"]
    rows: dict[str, Any] = {"text": texts, "label": spelled}
    features, options = None, {}
    if kind == "lists":
        rows["label"] = [[name] for name in spelled]
        features = Features({"text": Value("string"), "label": List(Value("string"))})
    elif kind == "ClassLabel":
        rows["label"] = [0, 1, 2, 3]
        features = Features({"text": Value("string"), "label": ClassLabel(names=spelled)})
    elif kind == "columns":
        rows = {"text": texts, DECOMPOSED: [1, 0, 0, 1], "joy": [0, 1, 1, 0]}
        options = {"label_column": (COMPOSED, "joy")}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "rows.parquet")
    data = Data(path=str(tmp_path / "rows.parquet"), validation=0)
    task = TextClassification(model="-", init="random", data=data, **options)
    assert sorted(task.labels.names) == ["joy", COMPOSED]
    encoded = task.encode_labels(task.rows["train"], "train")
    if kind != "columns":
        assert encoded[0] == encoded[1] != encoded[2] == encoded[3]
    assert ascii(DECOMPOSED).strip("'") in messages()


def test_label_names_and_groups_may_be_in_another_form(tmp_path):
    rows = [{"text": "a", "label": COMPOSED, "group": COMPOSED}]
    rows += [{"text": "b", "label": "joy", "group": DECOMPOSED}] * 2
    rows += [{"text": "b", "label": "joy", "group": "x"}]
    file = write_csv(tmp_path / "rows.csv", rows)
    data = Data(path=file, validation=0.5, split_group="group")
    names = write(tmp_path, f"\ufeff{DECOMPOSED}\njoy\n", "names.txt")
    task = TextClassification(model="-", init="random", data=data, label_names=(names,))
    assert sorted(map(len, task.rows.values())) == [1, 3]  # one group in two forms
    cells = Dataset.from_dict({"label": [COMPOSED, "joy"]})
    labels = infer_labels(cells, ("label",), None, None, (DECOMPOSED, "joy"))
    assert labels.names == (COMPOSED, "joy")


def test_files_are_found_whatever_the_unicode_form_of_their_names(tmp_path):
    folder = tmp_path / DECOMPOSED
    folder.mkdir()
    write(folder, "text,label\na,b\n", f"{COMPOSED}.csv")
    assert read(f"{tmp_path}/{COMPOSED}/{DECOMPOSED}.csv")[0]["text"] == "a"
    files = {"train": f"{tmp_path}/{COMPOSED}/{COMPOSED}.csv"}
    assert Data(files=files).read()["train"].num_rows == 1
    (cells,) = _prepend_folder({"i": [{"bytes": None, "path": COMPOSED}]}, "i", str(tmp_path))["i"]
    assert cells == {"bytes": None, "path": str(folder)}
    assert find_spelling(tmp_path / "\u00e0") == tmp_path / "\u00e0"


def test_an_older_model_may_have_a_label_in_another_form():
    rows = Dataset.from_dict({"label": [COMPOSED, "joy"]})
    labels = Labels(SINGLE, (DECOMPOSED, "joy"))
    assert encode_labels(rows, ("label",), None, labels, "test") == [0, 1]


# What --check finds


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["same", "same"], "all 2 texts of train in 'text' are 'same'"),
        (["2024-01-01", "3,5", "12:30"], "3 of 3 texts .* are numbers or dates"),
        (["a", "b", "cc"], "half of the 3 texts .* have at most 1 characters"),
        (["schön", "schÃ¶n"], "1 of 2 texts .* UTF-8 that was read as cp1252.*encoding=utf-8"),
        (["itâ€™s", "good"], "1 of 2 texts .* UTF-8 that was read as cp1252"),
    ],
)
def test_texts_that_no_model_should_read_are_found(texts, message):
    (found,) = findings(texts_of.check_texts("train", Dataset.from_dict({"text": texts}), "text"))
    assert re.search(message, found)
    usual = Dataset.from_dict({"text": ["the sky", "Ärger, it\u2019s 5 €"]})
    assert not list(texts_of.check_texts("train", usual, "text"))


def test_many_truncated_texts_are_found_with_the_length_that_helps(tiny):
    task = TextClassification(model=tiny("bert"), max_length=8)
    rows = Dataset.from_dict({"text": ["the sky"] * 2 + ["the sky is so red today " * 4] * 8})
    (found,) = findings(texts_of.find_truncation(task, "train", rows))
    assert found == (
        "8 of 10 texts of train are truncated at --max-length 8: --max-length 32 reads 100% of "
        "them whole, and --long-text windows reads all of them in pieces"
    )
    rare = Dataset.from_dict({"text": ["the sky"] * 99 + ["sky " * 40]})
    assert not list(texts_of.find_truncation(task, "train", rare))
    windows = TextClassification(
        model=tiny("bert"), max_length=8, long_text="windows", max_windows=2
    )
    assert (
        "--max-windows 2: give a larger"
        in next(texts_of.find_truncation(windows, "train", rows)).text
    )


@pytest.mark.parametrize(
    ("sizes", "names", "expected"),
    [
        ({"train": (50, 50), "test": (9, 3)}, ("a", "b"), ["test has fewer than 5 rows of 1 of"]),
        ({"train": (50, 50), "test": (9, 0)}, ("a", "b"), ["('b' 0)"]),
        ({"train": (50, 4)}, ("a", "b"), ["--label-min-rows 5 drops them"]),
        ({"train": (980, 20)}, ("a", "b"), ["an accuracy of 0.98. .*--best-metric f1_macro"]),
        ({"train": (50, 50)}, ("a", "NA"), ["'NA' of 50 rows .*na_values=NA --data.drop-empty"]),
        ({"train": (9,) * 21}, range(21), ["21 different whole numbers.*--problem-type regress"]),
        ({"train": (9, 9)}, ("0,5", "1,5"), ["--data.options decimal=,"]),
        ({"train": (2,) * 30}, [f"id{n}" for n in range(30)], ["min-rows", "be identifiers"]),
        ({"train": (50, 50), "test": (5, 5)}, ("a", "b"), []),
    ],
)
def test_unusual_classes_are_found(sizes, names, expected):
    labels = Labels(SINGLE, tuple(map(str, names)))
    encoded = {
        split: [number for number, size in enumerate(counts) for _ in range(size)]
        for split, counts in sizes.items()
    }
    found = findings(labels_of.check_classes(encoded, labels, Data(test=0.1)))
    assert len(found) == len(expected)
    for text, message in zip(found, expected, strict=True):
        assert all(part in text for part in message.split(".*"))


def test_the_size_of_a_cut_split_is_given_that_has_enough_rows():
    encoded = {"test": [0] * 9 + [1] * 3}
    (found,) = labels_of.check_classes(encoded, Labels(SINGLE, ("a", "b")), Data(test=0.1))
    assert "(if it is cut from train: --data.test 0.17)" in found.text


def test_invisible_differences_of_names_are_shown():
    (found,) = labels_of.find_similar_names(["jo\u200by", "Joy", "sad", "\ufeffsad"])
    assert r"'Joy' and 'jo\u200by', 'sad' and '\ufeffsad'" in found.text


def test_repetitions_and_leaked_labels_are_found():
    data = {"train": Dataset.from_dict({"text": ["a", "a", "b", "c"]})}
    repeated = checks.find_repeated_rows(data, ("text",))
    assert findings(checks.find_repetitions(data, repeated)) == [
        "1 of the 4 rows of train repeat an earlier row of it (--data.drop-duplicates drops them)"
    ]
    rows = Dataset.from_dict({"text": ["label: Joy", "label: sad"]})
    (found,) = texts_of.find_label_names_in_texts(rows, ("text",), ["joy", "sad"])
    assert found.text.startswith("2 of 2 texts of train contain the name of their label")
    assert not list(texts_of.find_label_names_in_texts(rows, ("text",), ["sad", "joy"]))


def test_images_of_one_colour_are_found(tmp_path):
    from PIL import Image as Picture

    for number in range(2):
        picture = Picture.new("RGB", (4, 4), "red")
        picture.putpixel((0, 0), (0, 0, number * 255) if number else (255, 0, 0))
        picture.save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    rows = Dataset.from_dict({"image": files}, Features({"image": Image()}))
    (found,) = checks.find_blank_images("train", rows, ("image",))
    assert found.text.startswith("1 of the first 2 images of train have one colour only, the first")


def test_what_was_found_while_reading_is_counted(tmp_path, tiny):
    rows = sentences(60)
    path = write_csv(tmp_path / "rows.csv", rows)
    command = ["configs/text.py", "--model", tiny("bert"), "--max-length", "32", "--check"]
    command += ["--label", "colour", "--data.path", path, "--run-dir", str(tmp_path / "run")]
    command += ["--data.validation", "30"]
    assert "check: nothing" in run_script("train.py", *command).err
    swallowed = '"so red,red,0,1.5\na sky,red,0,1.5\nrose" is red,red,0,1.5\n'
    write(tmp_path, (tmp_path / "rows.csv").read_text() + swallowed + "pale\n")
    result = run_script("train.py", *command, "--data.drop-empty")
    assert result.code == 1, result.err
    assert "--data.options quoting=3" in result.err
    assert "1 row(s) have fewer cells" in result.err
    assert "check: 2 finding(s)" in result.err


def test_a_decimal_comma_is_named(tmp_path):
    path = write(tmp_path, "text;label\na;0,5\nb;1,5\nc;\nd;2\ne;-,5\n")
    data = Data(path=path, validation=0, options={"sep": ";"}, drop_empty=True)
    task = TextClassification(model="-", init="random", data=data, problem_type="regression")
    with pytest.raises(UserError, match=r"needs numbers\..*--data.options decimal=,$"):
        _ = task.labels
    options = {"sep": ";", "decimal": ","}
    data = Data(path=path, validation=0, options=options, drop_empty=True)
    task = TextClassification(model="-", init="random", data=data)
    assert task.labels.problem_type == "regression"
    assert task.rows["train"]["label"][:] == [0.5, 1.5, 2.0, -0.5]


# Images in nested folders, and folders with the configuration of a Hub dataset


def test_folders_within_class_folders_become_a_column(tmp_path, messages):
    from PIL import Image as Picture

    for name in ("a/p/1", "a/q/2", f"{DECOMPOSED}/p/3", f"{COMPOSED}/r/s/4", "a/.hidden/5"):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Picture.new("RGB", (4, 4), "red").save(file)
    data = Data(path=str(tmp_path / "photos"), validation=0).read()
    rows = data["train"]
    assert sorted(rows["folder"]) == ["p", "p", "q", "r/s"]
    assert rows.features["label"].names == sorted(["a", COMPOSED, DECOMPOSED])
    labels = infer_labels(rows, ("label",), None, None, ())
    assert labels.names == ("a", COMPOSED)
    assert all(Path(row["image"]["path"]).is_file() for row in rows)
    assert "--data.split-group folder" in messages()
    with pytest.raises(UserError, match="has no effect on images in folders within class folders"):
        Data(path=str(tmp_path / "photos"), options={"x": 1}).read()
    # The folders of splits are no classes, wherever they are.
    (tmp_path / "deep" / "set" / "train" / "a").mkdir(parents=True)
    Picture.new("RGB", (4, 4), "red").save(tmp_path / "deep" / "set" / "train" / "a" / "6.png")
    message = r"no images in CLASS/\*.jpg, .*elsewhere, for example in set/train/a/6.png"
    with pytest.raises(UserError, match=message):
        Data(path=str(tmp_path / "deep")).read()
    (tmp_path / "data").mkdir()
    (tmp_path / "photos").rename(tmp_path / "data" / "train")
    assert len(Data(path=str(tmp_path / "data")).read()["train"]) == 4


def test_a_configuration_of_the_hub_in_the_way_of_a_folder_is_named(tmp_path):
    write(tmp_path, "text,label\na,b\n", "train.csv")
    command = ["configs/mrpc.py", "--data.path", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    result = run_script("train.py", *command)
    assert result.code == 2
    assert "--data.name 'mrpc': the folder" in result.err
    assert "--data.name None" in result.err
    result = run_script("train.py", *command, "--data.name", "None")
    assert "has no column 'sentence1'" in result.err


# New files are read as those of training


DATA = Data(
    path="a.csv",
    options={"sep": ";", "encoding": "cp1252", "cache_dir": "/tmp/x", "header": 1},
    trust_pickle=True,
)


@pytest.mark.parametrize(
    ("given", "data", "expected"),
    [
        ({"file": "b.csv"}, DATA, {"sep": ";", "encoding": "cp1252", "header": 1}),
        (
            {"file": "b.csv", "options": {"delimiter": "|"}},
            DATA,
            {"delimiter": "|", "encoding": "cp1252", "header": 1},
        ),
        ({"file": "b.tsv"}, DATA, {}),
        ({"file": "-", "format": "csv"}, DATA, {"sep": ";", "encoding": "cp1252", "header": 1}),
        ({"file": "-"}, DATA, {}),
        ({"file": "b.csv"}, Data(sources=(DATA, Data(path="c.csv"))), {}),
        ({"file": "b.csv"}, Data(sources=(DATA, Data(path="c.jsonl"))), {"sep": ";"}),
    ],
)
def test_the_reader_options_of_the_run_are_added(given, data, expected):
    options = add_options_of_run(PredictOptions("run", **given), data)
    assert expected.items() <= options.options.items()
    assert len(expected) in (len(options.options), 1)
    assert "cache_dir" not in options.options
    assert not options.trust_pickle


def test_format_field_and_query_of_the_run_are_added():
    named = Data(path="rows.dat", format="csv")
    assert add_options_of_run(PredictOptions("run", file="new.dat"), named).format == "csv"
    assert add_options_of_run(PredictOptions("run", file="new.csv"), named).format is None
    nested = Data(path="rows.json", field="data.rows")
    options = add_options_of_run(PredictOptions("run", file="new.json"), nested)
    assert options.field == ("data.rows",)
    given = PredictOptions("run", file="new.json", field=("x",))
    assert add_options_of_run(given, nested).field == ("x",)
    table = Data(path="rows.db", query="SELECT 1")
    assert add_options_of_run(PredictOptions("run", file="new.db"), table).query == "SELECT 1"


def test_a_query_opens_no_other_database(tmp_path):
    sqlite3.connect(tmp_path / "rows.db").executescript("CREATE TABLE notes (text TEXT)")
    query = f"ATTACH DATABASE '{tmp_path}/other.db' AS other"
    with pytest.raises(UserError, match="not authorized"):
        read(str(tmp_path / "rows.db"), query=query)
    assert not (tmp_path / "other.db").exists()


def test_a_new_file_is_read_as_in_training_and_empty_texts_are_reported(tmp_path, tiny):
    rows = sentences(24)
    lines = [f"{row['text']} €;{row['colour']}\n" for row in rows]
    train = write(tmp_path, "".join(["text;label\n", *lines]).encode("cp1252"), "train.csv")
    command = ["configs/text.py", "--model", tiny("bert"), "--max-length", "32", "--max-steps", "1"]
    command += ["--data.options", "sep=;", "encoding=cp1252", "--data.path", train]
    run = str(tmp_path / "run")
    assert run_script("train.py", *command, "--data.validation", "0", "--run-dir", run).code == 0
    new = write(tmp_path, "text;x\na €;1\n;2\n\u00a0;3\n".encode("cp1252"), "new.csv")
    result = run_script("predict.py", run, "--file", new)
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 3
    assert "read by these options of the run: --options 'sep=;' 'encoding=cp1252'" in result.err
    assert "2 of 3 rows have an empty text, counted from 0: 1, 2. Their" in result.err
    given = run_script("predict.py", run, "--file", new, "--options", "encoding=latin-1")
    assert "'sep=;'" in given.err
    assert "cp1252" not in given.err
    words = run_script("predict.py", run, "red", "")
    assert "1 of 2 rows have an empty text, counted from 0: 1." in words.err


def test_standard_input_with_too_many_cells_is_an_error(tmp_path, monkeypatch):
    from ftloop.cli.predict_input import read_csv_blocks

    content = b"text,label\na,b,c\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UserError, match=r"cannot be read as CSV: .*more cells than the header"):
        list(read_csv_blocks(10, {"sep": ","}))


# Tokenizers


def test_a_tokenizer_of_sentencepiece_is_read(tmp_path):
    import sentencepiece
    from transformers import T5Config

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(row["text"] for row in sentences(100)),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    write(tmp_path, model.getvalue(), "spiece.model")
    T5Config(vocab_size=60).save_pretrained(tmp_path)
    tokenizer = TextClassification(model=str(tmp_path)).processor
    assert tokenizer.tokenize("the sky is red") == ["▁the", "▁sky", "▁is", "▁red"]
