"""docs/: what the pages show is run. Every line of the table of data.md as it is written, on small files of the names
that it gives; whole configs as trainings; other commands as far as their options go."""

import functools
import http.server
import json
import re
import shlex
import shutil
import sqlite3
import sys
import threading
from pathlib import Path

import pandas
import pytest
import torch
import tyro
from conftest import ROOT, run_script, sentences, write_csv
from safetensors.torch import load_file

import ftloop
import predict
from docs import generate
from ftloop import Config, Data, UserError
from ftloop.cli import __main__
from ftloop.cli.config_file import from_command_line
from ftloop.config import validate

PAGES = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
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
    first = data["train"][0]
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
            data.validate()
            assert len(data.read()["train"]) > 20
        else:
            exec(line, names)


def test_the_table_is_long_enough_to_find_ones_own_case():
    assert len(TABLE) >= 50


# ---- all pages


def test_the_reference_of_options_is_what_the_generator_writes():
    assert PAGES["config.md"] == generate.page(), "python -m docs.generate"


def test_the_reference_has_every_option_of_the_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("text", "image"):
        with pytest.raises(SystemExit):
            from_command_line([str(ROOT / "configs" / f"{name}.py"), "--help"])
        options = set(re.findall(r"--(?!help|[\w.]*no-)[a-z][\w.-]*\w", capsys.readouterr().out))
        assert len(options) > 80
        assert options <= set(re.findall(r"--[a-z][\w.-]*\w", PAGES["config.md"]))


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_to_files(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    assert all((folder / link.partition("#")[0]).is_file() for link in links), links


def test_every_page_can_be_found_from_the_readme():
    assert all(f"docs/{page}" in PAGES["README.md"] for page in PAGES if page != "README.md")


COMMANDS = sorted(
    {
        line
        for page, text in PAGES.items()
        for line in re.findall(r"^    (?:\w+ \S+ \| )?(?:\S*/)?python ((?:-m ftloop )?\w+(?:\.py)? .*)$", text, re.M)
        if not line.startswith(("-m benchmarks", "-m docs")) and "configs/endings.py" not in line
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_options_that_exist(command, monkeypatch, tmp_path):
    """Each is understood; nothing is run."""
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command.split("    ")[0], comments=True) if word != "--help"]
    if words[0] == "train.py":
        assert isinstance(from_command_line(words[1:]), Config)
    elif words[0] == "predict.py":
        assert tyro.cli(predict.Options, args=words[1:]).run.startswith("runs/")
    elif words[0] == "evaluate.py":
        monkeypatch.chdir(tmp_path)  # at the root, there may be a run of this name
        result = run_script("evaluate.py", *words[1:])
        assert "holds no run" in result.err, result.err
    else:
        name, called = words[2], []
        assert words[:2] == ["-m", "ftloop"]
        understood = functools.wraps(__main__.COMMANDS[name])(lambda *given, **named: called.append(named) or 0)
        monkeypatch.setitem(__main__.COMMANDS, name, understood)
        monkeypatch.setattr(sys, "argv", ["ftloop", *words[2:]])
        with pytest.raises(SystemExit) as leaving:
            __main__.main()
        assert leaving.value.code in (0, None)
        if name in __main__.OF_A_CONFIG and words[3].startswith("configs/"):  # what it leaves to the config
            from_command_line([words[3], *called[0]["words"]])


# ---- whole configs


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


CONFIGS = {
    re.search(r'run_dir="runs/(\w+)"', block)[1]: block for page in ("tasks.md", "forking.md") for block in blocks(page)
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    """`trained("lora", words)`: the folder of a run of the config of that name, on tiny rows, and its command."""
    place = tmp_path_factory.mktemp("configs_of_docs")
    endings = [
        {"text": row["text"], "ending0": row["colour"], "ending1": "grass", "label": n % 2}
        | ({"ending0": "grass", "ending1": row["colour"]} if n % 2 else {})
        for n, row in enumerate(sentences(30))
    ]
    files = {"endings": write_csv(place / "endings.csv", endings)}
    rows = write_csv(place / "rows.csv", sentences(30))
    sys.path.append(str(place))

    def run(name: str, *words: str) -> tuple[Path, list[str]]:
        config = place / f"docs_{name}.py"
        config.write_text(CONFIGS[name])
        folder = place / f"{name}{len(list(place.iterdir()))}"
        command = [str(config), "--task.model", tiny("bert"), "--task.data.path", files.get(name, rows), "--batch-size"]
        command += ["8", "--task.data.validation", "0.2", "--task.max-length", "32", "--run-dir", str(folder), *words]
        if name not in files:
            command += ["--task.label-column", "colour"]
        result = run_script("train.py", *command)
        assert result.code == 0, result.err
        return folder, command

    yield run
    sys.path.remove(str(place))


def test_each_page_shows_what_it_says():
    assert list(CONFIGS) == ["endings", "weighted", "layerwise", "averaged", "lora"]


def scores_of(run: Path) -> dict[str, float]:
    return json.loads((run / "scores.json").read_text())["validation"]


def test_the_new_task_trains_resumes_and_predicts(trained):
    words = ("--max-steps", "4", "--save-every", "1", "--keep", "last=9", "--learning-rate", "1e-3")
    run, command = trained("endings", *words)
    scores = scores_of(run)
    assert set(scores) == {"loss", "accuracy"}
    assert ftloop.evaluate(run, "validation") == pytest.approx(scores)
    weights = (run / "model" / "model.safetensors").read_bytes()
    # As after a kill: two steps are gone.
    (run / "scores.json").unlink()
    for gone in ("model", "checkpoints/step-000003", "checkpoints/step-000004"):
        shutil.rmtree(run / gone)
    again = run_script("train.py", *command)
    assert "resume: from" in again.err, again.err
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    rows = Path(command[command.index("--task.data.path") + 1])
    predicted = run_script("predict.py", run, "--file", rows)
    assert predicted.code == 0, predicted.err
    answers = [json.loads(line) for line in predicted.out.splitlines()]
    assert len(answers) == 30
    assert {answer["ending"] for answer in answers} <= {"ending0", "ending1"}


@pytest.mark.parametrize("name", ["weighted", "layerwise"])
def test_a_fork_of_the_page_trains(name, trained):
    run, _ = trained(name, "--max-steps", "2")
    assert ftloop.evaluate(run, "validation") == pytest.approx(scores_of(run))


def test_the_average_of_the_weights_is_what_is_scored_and_kept(trained):
    sizes = ("--max-steps", "3", "--learning-rate", "1e-2")
    run, _ = trained("averaged", *sizes, "--task.decay", "0.5")
    kept = load_file(run / "model" / "model.safetensors")
    assert not any(name.startswith("average_") for name in kept)
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    weights = torch.load(checkpoint / "weights.pt", weights_only=True)
    names = [name for name in weights if name in kept]
    assert len(names) == len(kept)
    for number, name in enumerate(names):
        assert torch.equal(kept[name], weights[f"average_{number}"])
    assert not torch.equal(kept["classifier.weight"], weights["classifier.weight"])
    assert ftloop.evaluate(run, "validation") == pytest.approx(scores_of(run))
    # An average that forgets at once is the weights themselves.
    run, _ = trained("averaged", *sizes, "--task.decay", "0")
    kept = load_file(run / "model" / "model.safetensors")
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    weights = torch.load(checkpoint / "weights.pt", weights_only=True)
    assert all(torch.equal(kept[name], weights[name]) for name in kept)


def test_lora_changes_what_it_says_and_leaves_a_plain_model(trained, tiny):
    from transformers import AutoModelForSequenceClassification

    run, _ = trained("lora", "--max-steps", "3", "--task.rank", "2")
    before = load_file(Path(tiny("bert")) / "model.safetensors")
    kept = load_file(run / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], kept[f"bert.{name}"])}
    assert changed == {
        f"encoder.layer.{layer}.attention.self.{name}.weight" for layer in (0, 1) for name in ("query", "value")
    }
    for name in changed:
        assert torch.linalg.matrix_rank(kept[f"bert.{name}"] - before[name], tol=1e-6) <= 2
    _, found = AutoModelForSequenceClassification.from_pretrained(run / "model", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert ftloop.evaluate(run, "validation") == pytest.approx(scores_of(run))


def test_the_lines_of_the_reports_run(trained, capsys):
    run, _ = trained("weighted", "--max-steps", "2")
    (code,) = blocks("reports.md")
    code = code.replace('"runs/quickstart", "test"', f'"{run}", "validation"')
    assert str(run) in code
    exec(code, {})
    assert "accuracy" in capsys.readouterr().out


def test_the_notebook_of_the_page_is_started_as_it_says(monkeypatch):
    import accelerate

    monkeypatch.chdir(ROOT)
    started = []
    # tests/test_launch.py starts one.
    monkeypatch.setattr(accelerate, "notebook_launcher", lambda *given, **named: started.append((given, named)))
    (code,) = blocks("devices.md")
    exec(code, {})
    ((function, (config,)), named) = started[0]
    assert (function, config.run_dir, named) == (ftloop.train, "runs/mrpc", {"num_processes": 2})
