"""Labels and texts are shown as they are and do nothing; links in a run folder are not followed."""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
from conftest import run_script, run_script_of_ftloop, sentences
from markdown_it import MarkdownIt

from ftloop import files
from ftloop.data.special_images import count_special_images
from ftloop.escape import FORMULA, code_span, for_csv, for_markdown, for_terminal, printable
from ftloop.hub import card, markdown, metadata
from ftloop.logs.tracker_types import mlflow_name
from ftloop.report.page import escape, to_csv

LABELS = {
    "red": "`](https://evil.example)<b>x</b>|y\\|z ``` --- # www.evil.example",
    "green": "=cmd|' /C calc'!A0",
    "blue": "\x1b[31mred\nerror: the disk is full\r\x9b2J\u202eabc\u2028# x",
}
# A terminal obeys these; a line feed is what ends our own lines.
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULAS = ["=1+1", "+49 30 1", "-x", "@me", "\t=1", "\r=1", " =1", "'=1", "''=1", "\uff1d1"]
ORDINARY = ["-1.5", "+4e3", "-12%", "x=1", "'x", "", "\U0001f468\u200d\U0001f469"]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A finished run on hostile labels; RUN.log is what it printed."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [{"text": row["text"], "label": LABELS[row["colour"]]} for row in sentences(40)]
    file = folder / "rows `x`](y).jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train.py", "configs/text.py", "--model", tiny("bert"), "--data", str(file)]
    command += ["--data.validation", "10", "--max-length", "32", "--batch-size", "8"]
    command += ["--metrics", "accuracy", "f1_per_class", "--max-steps", "1"]
    result = run_script(*command, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    (folder / "run.log").write_text(result.err + result.out)
    return folder / "run"


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder of the user, with a file in it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("mine")
    return tmp_path / "outside"


def is_untouched(outside: Path) -> bool:
    return {file.name: file.read_text() for file in outside.iterdir()} == {"mine": "mine"}


# The terminal


def test_the_log_of_a_run_holds_nothing_that_a_terminal_obeys(run):
    log = run.with_suffix(".log").read_text()
    assert not OBEYED.search(log)
    assert not re.search(r"^error:", log, re.MULTILINE)
    assert r"f1[\x1b[31mred\nerror: the disk is full\r\x9b2J\u202eabc\u2028# x]" in log


def test_scores_are_printed_on_one_line(run):
    result = run_script("evaluate.py", run, "--split", "validation", "--quiet")
    assert result.code == 0, result.err
    assert not OBEYED.search(result.out)
    assert len(result.out.splitlines()) == 1


def test_a_message_of_several_lines_is_indented():
    assert for_terminal("a\nerror: b\n  c") == "a\n    error: b\n  c"
    assert for_terminal("a\x1b[2J\rb\u202e\ud800\tc") == r"a\x1b[2J\rb\u202e\ud800\tc"
    assert for_terminal("Żółć \u00a0é\u200d \U0001f600") == "Żółć \u00a0é\u200d \U0001f600"
    assert printable("a\nb") == r"a\nb"


def test_errors_quote_texts_without_obeying_them(run, tmp_path):
    (tmp_path / "new.csv").write_text("a\x1b[31m,b\n1,2\n")
    result = run_script("predict.py", run, "--file", tmp_path / "new.csv")
    assert result.code == 2
    assert not OBEYED.search(result.err)


# Predictions


def test_predictions_on_the_terminal_are_lossless_json(run):
    text = "red \x9b2J \u202e sky"
    result = run_script("predict.py", run, text, "--quiet")
    assert result.code == 0, result.err
    assert not OBEYED.search(result.out)
    row = json.loads(result.out)
    assert row["text"] == text
    assert list(row["probabilities"]) == sorted(LABELS.values())


def test_no_cell_of_a_csv_is_a_formula_and_all_can_be_restored(run, tmp_path):
    texts = [text for text in FORMULAS + ORDINARY if text.strip()]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    command = ["predict.py", run, "--file", tmp_path / "new.jsonl", "--quiet", "--out"]
    assert run_script(*command, tmp_path / "out.csv").code == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    restored = [re.sub(f"^'(?={FORMULA.pattern})", "", row["text"]) for row in rows]
    assert restored == texts
    for row in rows:
        for cell in row.values():
            assert not re.match(r"\s*[=+@\uff1d]|[\t\r]", cell) or re.match(r"[+-]?[\d.]", cell)


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_get_an_apostrophe(text):
    assert for_csv(text) == f"'{text}"


@pytest.mark.parametrize("cell", [*ORDINARY, -1.5, 3, None, True])
def test_numbers_and_other_texts_are_left_as_they_are(cell):
    assert for_csv(cell) == cell


# The card and the pages


def test_a_label_cannot_break_out_of_the_card(run):
    text = (run / "model" / "README.md").read_text()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    flat = [child for token in tokens for child in [token, *(token.children or [])]]
    assert not any(token.type == "link_open" for token in flat)
    html = {token.content.strip() for token in flat if token.type.startswith("html")}
    assert all(line.startswith("<!--") for line in html)
    spans = {token.content for token in flat if token.type == "code_inline"}
    assert {printable(label) for label in LABELS.values()} <= spans
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert not card.is_edited(text)


@pytest.mark.parametrize("text", ["a`b", "`", "``a", " ", "", "<b>", "_x_", "www.evil.example"])
def test_a_text_in_markdown_is_shown_as_it_is(text):
    (paragraph,) = MarkdownIt("commonmark").parseInline(f"x {for_markdown(text)} y")
    shown = "".join(child.content for child in paragraph.children)
    assert " ".join(shown.split()) == " ".join(f"x {text} y".split())
    assert code_span(text).startswith("`")


def test_a_pipe_does_not_end_a_cell():
    lines = markdown.table([["a|b\\|c", "d"], ["1", "2"]]).splitlines()
    rendered = MarkdownIt("commonmark").enable("table").render("\n".join(lines))
    assert rendered.count("<th>") == 2
    assert r"<code>a|b\x5c|c</code>" in rendered


def test_a_card_names_a_file_without_the_secrets_of_its_address():
    assert metadata.file_name("https://user:secret@host/rows.csv?token=secret") == "rows.csv"
    assert metadata.file_name("https://user:secret@host") == ""
    assert metadata.file_name("/home/me/rows.csv") == "rows.csv"


def test_pages_hold_no_control_characters():
    assert escape("<b>\x1b\x9b\u202e") == "&lt;b&gt;\ufffd\ufffd\ufffd"
    assert to_csv({"=a": ["-x", -1.5, "-1.5"]}) == "'=a\n'-x\n-1.5\n-1.5\n"


def test_names_for_mlflow_differ_if_labels_do():
    assert mlflow_name("test/accuracy") == "test/accuracy"
    assert mlflow_name("test/f1[a.b]") == "test/f1/a-2e-b"
    assert len({mlflow_name(f"f1[{label}]") for label in ("a!", "a?", "a", "a-21-")}) == 4


# Links in a run folder


@pytest.mark.parametrize("name", ["model", "outputs", "report.html", "checkpoints"])
@pytest.mark.parametrize("command", ["card", "report", "push", "train"])
def test_nothing_is_written_through_a_link(command, name, copy, outside):
    if (copy / name).is_dir():
        shutil.rmtree(copy / name)
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(outside)
    words = [command, copy, *(["name"] if command == "push" else [])]
    if command == "train":
        (copy / "scores.json").unlink()
        words = shlex.split(json.loads((copy / "config.json").read_text())["command"])[1:]
        result = run_script(*words, "--run-dir", copy)
    else:
        result = run_script_of_ftloop(*words)
    assert result.code == 2
    assert f"{str(copy / name)!r} is a symbolic link" in result.err
    assert is_untouched(outside)


def test_links_in_the_folder_of_the_model_are_replaced(copy, outside):
    for name in ("README.md", "README.md.tmp", "confusion_matrix.png"):
        (copy / "model" / name).unlink(missing_ok=True)
        (copy / "model" / name).symlink_to(outside / "mine")
    card.write_card(copy, overwrite=True)
    assert is_untouched(outside)
    assert not (copy / "model" / "README.md").is_symlink()


def test_a_file_of_the_user_with_a_name_like_ours_is_kept(run, tmp_path):
    (tmp_path / "out.csv.tmp").write_text("mine")
    result = run_script("predict.py", run, "red", "--quiet", "--out", tmp_path / "out.csv")
    assert result.code == 0, result.err
    assert (tmp_path / "out.csv.tmp").read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"out.csv", "out.csv.tmp"}


def test_a_planted_temporary_file_is_not_written(tmp_path, outside, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f"a.txt.{'0' * 16}.tmp").symlink_to(outside / "mine")
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "a.txt", "ours")
    assert is_untouched(outside)
    assert not (tmp_path / "a.txt").exists()


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    old, new = tmp_path / f"a.txt.{'a' * 16}.tmp", tmp_path / f"a.txt.{'b' * 16}.tmp"
    others = [tmp_path / "a.txt.tmp", tmp_path / f"b.txt.{'a' * 16}.tmp"]
    for file in (old, new, *others):
        file.write_text("")
        if file != new:
            os.utime(file, (time.time() - 90_000,) * 2)
    with contextlib.suppress(ZeroDivisionError), files.replace_file(tmp_path / "a.txt"):
        raise ZeroDivisionError
    assert {*tmp_path.iterdir()} == {new, *others}
    files.write_text(tmp_path / "a.txt", "ours")
    assert {*tmp_path.iterdir()} == {new, *others, tmp_path / "a.txt"}
    with files.replace_file(tmp_path / "a.txt", is_locked=True):
        pass
    assert {*tmp_path.iterdir()} == {*others, tmp_path / "a.txt"}


def test_a_folder_that_a_killed_process_left_is_removed_a_day_later(tmp_path):
    old, new = tmp_path / "rows-aaaaaaaa.tmp", tmp_path / "rows-bbbbbbbb.tmp"
    for folder in (old, new):
        (folder / "rows").mkdir(parents=True)
    os.utime(old, (time.time() - 90_000,) * 2)
    with files.temporary_folder(tmp_path, "rows") as folder:
        assert folder.is_dir()
    assert [*tmp_path.iterdir()] == [new]


# Images that a pipeline decodes differently


def test_special_images_are_counted():
    import datasets
    from PIL import Image

    palette = Image.new("P", (8, 8))
    palette.info["transparency"] = 0
    pictures = [Image.new(mode, (8, 8)) for mode in ("RGB", "L", "RGBA", "LA", "I;16", "I", "F")]
    cells = []
    for picture in (*pictures, palette):
        stream = io.BytesIO()
        picture.save(stream, "TIFF" if picture.mode in ("I", "F") else "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    rows = datasets.Dataset.from_dict({"image": [*cells, {"bytes": b"broken", "path": None}]})
    assert count_special_images(rows, "image") == 6
