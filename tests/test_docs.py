"""docs/data.md: every line of its table is run as it is written, on small files of the names that it gives."""

import functools
import http.server
import json
import re
import shlex
import sqlite3
import threading
from pathlib import Path

import pandas
import pytest
from conftest import ROOT, sentences, write_csv

from ftloop import Data, UserError
from ftloop.config import from_command_line, validate

TABLE = re.findall(r"^\| ([^|]+) \| `(.+)` \|$", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.M)
MY_FUNCTIONS = """
import html

def label_from_text(row):
    return {"label": row["text"].split()[-1]}

def unescaped(row):
    return {"text": html.unescape(row["text"])}

def is_long(row):
    return len(row["text"].split()) > 5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All files that the table names: the same sixty rows in one shape or another, and sixty images."""
    from datasets import Dataset, Image
    from PIL import Image as Pillow

    place = tmp_path_factory.mktemp("docs")
    rows = [
        {"text": row["text"], "label": row["colour"], "patient": f"p{number % 20}", "tone": row["tone"]}
        for number, row in enumerate(sentences(60))
    ]
    frame, table = pandas.DataFrame(rows), Dataset.from_list(rows)
    write_csv(place / "reviews.csv", rows)
    for name in ("a.csv", "b.csv", "c.csv", "reviews.data", "tones.csv"):
        write_csv(place / name, rows)
    write_csv(place / "stars.csv", [{"review": row["text"], "stars": row["label"]} for row in rows])
    frame.assign(text="schön " + frame["text"]).to_csv(place / "german.csv", sep=";", encoding="latin-1", index=False)
    lists = [{"text": row["text"], "labels": [row["label"], "any"][: 1 + n % 2]} for n, row in enumerate(rows)]
    lines = [f"{row['text']}\t{','.join(row['labels'])}\t{n}" for n, row in enumerate(lists)]
    (place / "emotions.tsv").write_text("\n".join(lines) + "\n")
    Dataset.from_list(lists).to_json(place / "emotions.jsonl")
    for name in ("reviews.jsonl", "parts/one.jsonl", "parts/two.jsonl"):
        (place / name).parent.mkdir(exist_ok=True)
        table.to_json(place / name)
    frame.to_json(place / "reviews.jsonl.gz", orient="records", lines=True)
    (place / "export.json").write_text(json.dumps({"data": {"rows": rows}}))
    table.to_parquet(place / "reviews.parquet")
    table.save_to_disk(place / "saved")
    next((place / "saved").glob("*.arrow")).rename(place / "reviews.arrow")
    table.save_to_disk(place / "saved")
    (place / "lines.txt").write_text("".join(f"{row['text']} {row['label']}\n" for row in rows))
    h5py = pytest.importorskip("h5py")
    with h5py.File(place / "reviews.h5", "w") as file:
        for name in ("text", "label"):
            file[name] = [row[name].encode() for row in rows]
    with sqlite3.connect(place / "reviews.sqlite") as database:
        frame.to_sql("reviews", database, index=False)
    database.close()
    for split, name in (("train", "a.csv"), ("validation", "b.csv"), ("test", "c.csv")):
        (place / "folder").mkdir(exist_ok=True)
        (place / "folder" / f"{split}.csv").write_bytes((place / name).read_bytes())
    frame.to_pickle(place / "frame.pkl")
    codes = pandas.DataFrame({name: [(n + k) % 2 for n in range(60)] for k, name in enumerate(("C18", "C19"))})
    pandas.to_pickle({"total": {"X": frame[["text"]]}, "y": codes}, place / "tables.pkl")
    sections = pandas.DataFrame({"title": frame["label"], "body": frame["text"].where(frame.index % 3 > 0)})
    sections.assign(label=frame["label"]).to_csv(place / "sections.csv", index=False)
    sections.join(codes).to_csv(place / "sections_and_codes.csv", index=False)
    frame.assign(text=frame["text"].where(frame.index % 7 > 0)).to_csv(place / "holes.csv", index=False)
    write_csv(
        place / "pairs.csv",
        [{"first": row["text"], "second": row["label"], "label": n % 2} for n, row in enumerate(rows)],
    )
    write_csv(place / "ids.csv", [{"text": row["text"], "label": n % 3} for n, row in enumerate(rows)])
    (place / "names.txt").write_text("red\ngreen\nblue\n")
    write_csv(
        place / "rare.csv", [{**row, "label": row["label"] if n > 2 else f"rare{n}"} for n, row in enumerate(rows)]
    )
    paths = []
    for split, count in (("train", 24), ("test", 4)):
        for number in range(count):
            colour = ("red", "green")[number % 2]
            file = Path(split, colour, f"{number}.png")
            for home in ("photos", "damaged"):
                (place / home / file).parent.mkdir(parents=True, exist_ok=True)
                Pillow.new("RGB", (20, 16), colour).save(place / home / file)
            paths.append({"file": str(file), "label": colour})
    (place / "damaged" / "train" / "red" / "0.png").write_text("no image")
    write_csv(place / "photos.csv", paths)
    images = [
        {"image": {"bytes": (place / "photos" / row["file"]).read_bytes(), "path": None}, "label": row["label"]}
        for row in paths
    ]
    Dataset.from_list(images).cast_column("image", Image(decode=False)).to_parquet(place / "photos.parquet")
    (place / "my_functions.py").write_text(MY_FUNCTIONS)
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(("source", "line"), TABLE, ids=[source[:40] for source, _ in TABLE])
def test_a_line_of_the_table_reads_its_source(source, line, here, folder, tiny):
    images = "photos" in line or "damaged" in line
    base = ["--task.model", "vit", "--task.init", "random"] if images else ["--task.model", tiny("bert")]
    if "localhost" in line:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        handler.log_message = lambda *_: None
        server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pytest.skip("the libraries are told to be offline here; tests/test_formats.py reads from a local server")
    words = [str(ROOT / "configs" / ("image.py" if images else "text.py")), *base, *shlex.split(line)]
    config = from_command_line(words)
    validate(config)
    if source.startswith(("the Hub", "another split of the Hub")):
        with pytest.raises(UserError, match="as a data set of the Hub it could not be read"):
            config.task.load()
        return
    data = config.task.load()
    assert len(data["train"]) >= 8
    first = data["train"].read([0], seed=1)[0] if config.task.data.streaming else data["train"][0]
    assert ("pixel_values" if images else "input_ids") in first
    assert "labels" in first


def test_the_python_lines_run(here):
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    frame = pandas.read_csv("reviews.csv")
    names = {"frame": frame, "other": frame}
    for line in code.splitlines():
        if line.startswith("Data"):
            data = eval(line, {"Data": Data, **names})
            data.check()
            assert len(data.read()["train"]) > 20
        else:
            exec(line, names)


def test_the_table_is_long_enough_to_find_ones_own_case():
    assert len(TABLE) >= 50
