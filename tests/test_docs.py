"""docs/: what the pages show is run.

Each source in the table of data.md is read, each whole config is trained, each change of the loop
is applied and trained. Of other commands, the options are checked.
"""

import functools
import http.server
import json
import re
import shlex
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
import tyro
from conftest import ROOT, run_script, sentences, write_csv
from interrupt import read_results, train_until_step
from safetensors.torch import load_file
from snippets import blocks, commands, load_patched_loop, read_pages

import ftloop
from docs import generate
from ftloop import Config, UserError
from ftloop.cli import __main__
from ftloop.cli.config_file import from_command_line
from ftloop.cli.options import REGISTRY
from ftloop.cli.predict_options import PredictOptions
from ftloop.config import validate
from ftloop.data import Data
from ftloop.runs.finished import evaluate_run
from ftloop.runs.trust import allow

PAGES = read_pages()
SOURCES = re.findall(r"^\| ([^|]+) \| `(--data.+)` \|$", PAGES["data.md"], flags=re.MULTILINE)
MY_FUNCTIONS = """
import html

def label_from_text(row):
    return {"label": row["text"].split()[-1]}

def unescaped(row):
    return {"text": html.unescape(row["text"])}

def is_long(row):
    return len(row["text"].split()) > 5
"""


# The sources of data.md


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that the table names: the same sixty rows in many formats, and sixty images."""
    folder = tmp_path_factory.mktemp("docs")
    rows = [
        {
            "text": row["text"],
            "label": row["colour"],
            "patient": f"p{number % 20}",
            "tone": row["tone"],
        }
        for number, row in enumerate(sentences(60))
    ]
    write_text_files(folder, rows)
    write_other_formats(folder, rows)
    write_tables_to_clean(folder, rows)
    write_images(folder)
    (folder / "my_functions.py").write_text(MY_FUNCTIONS)
    return folder


def write_text_files(folder: Path, rows: list[dict]) -> None:
    for name in ("reviews.csv", "a.csv", "b.csv", "c.csv", "reviews.data", "tones.csv"):
        write_csv(folder / name, rows)
    stars = [{"review": row["text"], "stars": row["label"]} for row in rows]
    write_csv(folder / "stars.csv", stars)
    frame = pandas.DataFrame(rows)
    german = frame.assign(text="schön " + frame["text"])
    german.to_csv(folder / "german.csv", sep=";", encoding="latin-1", index=False)
    lists = [[row["label"], "any"][: 1 + number % 2] for number, row in enumerate(rows)]
    emotions = [
        f"{row['text']}\t{','.join(labels)}\t{number}"
        for number, (row, labels) in enumerate(zip(rows, lists, strict=True))
    ]
    (folder / "emotions.tsv").write_text("\n".join(emotions) + "\n")
    labelled = [
        json.dumps({"text": row["text"], "labels": labels})
        for row, labels in zip(rows, lists, strict=True)
    ]
    (folder / "emotions.jsonl").write_text("\n".join(labelled))
    lines = [f"{row['text']} {row['label']}" for row in rows]
    (folder / "lines.txt").write_text("\n".join(lines))
    (folder / "folder").mkdir()
    for split, name in (("train", "a.csv"), ("validation", "b.csv"), ("test", "c.csv")):
        shutil.copy(folder / name, folder / "folder" / f"{split}.csv")


def write_other_formats(folder: Path, rows: list[dict]) -> None:
    from datasets import Dataset

    frame, table = pandas.DataFrame(rows), Dataset.from_list(rows)
    (folder / "parts").mkdir()
    for name in ("reviews.jsonl", "parts/one.jsonl", "parts/two.jsonl"):
        table.to_json(folder / name)
    frame.to_json(folder / "reviews.jsonl.gz", orient="records", lines=True)
    (folder / "export.json").write_text(json.dumps({"data": {"rows": rows}}))
    table.to_parquet(folder / "reviews.parquet")
    table.save_to_disk(folder / "saved")
    next((folder / "saved").glob("*.arrow")).rename(folder / "reviews.arrow")
    table.save_to_disk(folder / "saved")
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "reviews.h5", "w") as file:
        for name in ("text", "label"):
            file[name] = [row[name].encode() for row in rows]
    with sqlite3.connect(folder / "reviews.sqlite") as database:
        frame.to_sql("reviews", database, index=False)
    database.close()


def write_tables_to_clean(folder: Path, rows: list[dict]) -> None:
    frame = pandas.DataFrame(rows)
    frame.to_pickle(folder / "frame.pkl")
    names = ("C18", "C19")
    bits = {name: [(row + shift) % 2 for row in range(60)] for shift, name in enumerate(names)}
    codes = pandas.DataFrame(bits)
    pandas.to_pickle({"total": {"X": frame[["text"]]}, "y": codes}, folder / "tables.pkl")
    body = frame["text"].where(frame.index % 3 > 0)
    sections = pandas.DataFrame({"title": frame["label"], "body": body})
    sections.assign(label=frame["label"]).to_csv(folder / "sections.csv", index=False)
    sections.join(codes).to_csv(folder / "sections_and_codes.csv", index=False)
    holes = frame.assign(text=frame["text"].where(frame.index % 7 > 0))
    holes.to_csv(folder / "holes.csv", index=False)
    pairs = [
        {"first": row["text"], "second": row["label"], "label": number % 2}
        for number, row in enumerate(rows)
    ]
    write_csv(folder / "pairs.csv", pairs)
    ids = [{"text": row["text"], "label": number % 3} for number, row in enumerate(rows)]
    write_csv(folder / "ids.csv", ids)
    (folder / "names.txt").write_text("red\ngreen\nblue\n")
    rare = [
        {**row, "label": row["label"] if number > 2 else f"rare{number}"}
        for number, row in enumerate(rows)
    ]
    write_csv(folder / "rare.csv", rare)


def write_images(folder: Path) -> None:
    from datasets import Dataset, Image
    from PIL import Image as Pillow

    paths = []
    for split, count in (("train", 24), ("test", 4)):
        for number in range(count):
            colour = ("red", "green")[number % 2]
            file = Path(split, colour, f"{number}.png")
            for home in ("photos", "damaged"):
                (folder / home / file).parent.mkdir(parents=True, exist_ok=True)
                Pillow.new("RGB", (20, 16), colour).save(folder / home / file)
            paths.append({"file": str(file), "label": colour})
    (folder / "damaged" / "train" / "red" / "0.png").write_text("no image")
    write_csv(folder / "photos.csv", paths)
    images = []
    for row in paths:
        image = {"bytes": (folder / "photos" / row["file"]).read_bytes(), "path": None}
        images.append({"image": image, "label": row["label"]})
    table = Dataset.from_list(images).cast_column("image", Image(decode=False))
    table.to_parquet(folder / "photos.parquet")


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(("source", "options"), SOURCES, ids=[name[:40] for name, _ in SOURCES])
def test_a_line_of_the_table_reads_its_source(source, options, in_folder, folder, tiny):
    if "localhost" in options:
        serve(folder)
        pytest.skip("the libraries are offline in tests; tests/test_formats.py reads a URL")
    is_image = "photos" in options or "damaged" in options
    model = ["--model", "vit", "--init", "random"] if is_image else ["--model", tiny("bert")]
    file = ROOT / "configs" / ("image.py" if is_image else "text.py")
    config = from_command_line([str(file), *model, *shlex.split(options)])
    validate(config)
    if "Hub" in source:
        with pytest.raises(UserError, match="could not be read as a Hub dataset"):
            config.task.load_datasets()
        return
    train = config.task.load_datasets()["train"]
    assert len(train) >= 8
    example = train[0]
    assert ("pixel_values" if is_image else "input_ids") in example
    assert "labels" in example


def serve(folder: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def test_the_sources_in_python_are_read(in_folder):
    (code,) = blocks(PAGES["data.md"])
    frame = pandas.read_csv("reviews.csv")
    names = {"frame": frame, "other": frame, "Data": Data}
    for line in code.splitlines():
        if line.startswith("Data"):
            data = eval(line, dict(names))
            data.validate()
            assert len(data.read()["train"]) > 20


def test_the_table_has_a_line_for_most_sources():
    assert len(SOURCES) >= 50


# All pages


def test_the_reference_of_options_is_what_the_generator_writes():
    assert PAGES["config.md"] == generate.build_config_page(), "run: python -m docs.generate"


@pytest.mark.parametrize("config", ["text", "image"])
def test_the_reference_has_every_option_of_the_help(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        from_command_line([str(ROOT / "configs" / f"{config}.py"), "--help-all"])
    text = capsys.readouterr().out
    options = set(re.findall(r"(?<!\S)--(?!help)(?!(?:[\w-]+\.)?no-)[a-z][\w.-]*\w", text))
    assert len(options) > 70
    assert options <= set(re.findall(r"--[a-z][\w.-]*\w", PAGES["config.md"]))


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_to_files(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    missing = [link for link in links if not (folder / link.partition("#")[0]).is_file()]
    assert not missing


def test_every_page_is_linked_from_the_readme():
    pages = [page for page in PAGES if page != "README.md"]
    assert not [page for page in pages if f"docs/{page}" not in PAGES["README.md"]]


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_names_exist(page):
    for file, name in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", PAGES[page]):
        assert (ROOT / file).is_file(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


CONFIG_FILES = ("configs/endings.py", "configs/mine.py")  # blocks of the pages
COMMANDS = sorted({command for page in PAGES.values() for command in commands(page)})
COMMANDS = [
    command
    for command in COMMANDS
    if not command.startswith(("-m benchmarks", "-m docs"))
    and not set(CONFIG_FILES) & {*command.split()}
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_options_that_exist(command, monkeypatch, tmp_path):
    """The command line is read; nothing is run."""
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command, comments=True) if word != "--help"]
    if words[0] == "train.py":
        assert isinstance(from_command_line(words[1:]), Config)
    elif words[0] == "predict.py":
        options = tyro.cli(PredictOptions, args=words[1:], registry=REGISTRY)
        assert options.run.startswith("runs/")
    elif words[0] == "evaluate.py":
        monkeypatch.chdir(tmp_path)  # at the root, there may be a run of this name
        result = run_script("evaluate.py", *words[1:])
        assert "holds no run" in result.err, result.err
    else:
        assert words[:2] == ["-m", "ftloop.cli"]
        check_command(words[2:], monkeypatch)


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the options of a command of `python -m ftloop.cli` without calling it."""
    name, calls = words[0], []
    command = functools.wraps(__main__.COMMANDS[name])(
        lambda *args, **kwargs: calls.append(kwargs) or 0
    )
    monkeypatch.setitem(__main__.COMMANDS, name, command)
    monkeypatch.setattr(sys, "argv", ["ftloop", *words])
    with pytest.raises(SystemExit) as leaving:
        __main__.main()
    assert leaving.value.code in (0, None)
    if name in __main__.TAKES_JOB_OPTIONS and words[1].startswith("configs/"):
        from_command_line([words[1], *calls[0]["job_options"]])


def test_the_list_of_files_names_every_file_of_the_core_and_every_part():
    names = set(re.findall(r"^      (\w+\.py|\w+/) ", PAGES["forking.md"], flags=re.MULTILINE))
    files = {file.name for file in (ROOT / "ftloop").glob("*.py")} - {"__init__.py"}
    parts = {f"{file.parent.name}/" for file in (ROOT / "ftloop").glob("*/__init__.py")}
    assert names == files | parts


# Whole configs


def find_configs() -> dict[str, str]:
    """The blocks that are config files, by the name of their run folder."""
    configs = {}
    for page in ("tasks.md", "forking.md"):
        for block in blocks(PAGES[page]):
            configs[re.search(r'run_dir="runs/(\w+)"', block)[1]] = block
    return configs


CONFIGS = find_configs()
Trained = Callable[..., tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], str]) -> Trained:
    """`trained("lora", *options)`: the folder and the command of a run on tiny rows."""
    folder = tmp_path_factory.mktemp("configs_of_docs")
    rows = sentences(30)
    data = {"endings": write_endings(folder, rows)}
    others = write_csv(folder / "rows.csv", rows)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(folder))

    def run(name: str, *options: str, train: Callable = run_script) -> tuple[Path, list[str]]:
        config = folder / f"docs_{name}.py"
        config.write_text(CONFIGS[name])
        run_dir = folder / f"{name}{len(list(folder.iterdir()))}"
        command = [str(config), "--run-dir", str(run_dir), "--batch-size", "8"]
        if name != "squares":
            command += ["--data", data.get(name, others)]
        command += ["--model", tiny("bert"), "--data.validation", "0.2", "--max-length", "32"]
        if name not in ("endings", "masked_words", "squares"):
            command += ["--label", "colour"]
        command += options
        result = train("train.py", *command)
        assert result.code == 0, result.err
        return run_dir, command

    yield run
    monkeypatch.undo()


def write_endings(folder: Path, rows: list[dict]) -> str:
    endings = []
    for number, row in enumerate(rows):
        names = ("ending1", "ending0") if number % 2 else ("ending0", "ending1")
        ending = dict(zip(names, (row["colour"], "grass"), strict=True))
        endings.append({"text": row["text"], **ending, "label": number % 2})
    return write_csv(folder / "endings.csv", endings)


def evaluate_own(run: Path) -> dict[str, float]:
    """Evaluate a run whose config is not in configs/."""
    with allow(code=True):
        return evaluate_run(run, "validation")


def read_scores(run: Path) -> dict[str, float]:
    return json.loads((run / "scores.json").read_text())["validation"]


def read_logged_names(run: Path) -> set[str]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {json.loads(line)["name"] for line in lines}


def test_the_pages_have_the_configs_that_are_tested_here():
    assert list(CONFIGS) == [
        *("masked_words", "endings"),
        *("distilled", "contrastive", "weighted", "squares", "masked_inputs", "head_only", "lora"),
        *("layerwise", "observed"),
    ]


@pytest.mark.parametrize("name", ["weighted", "squares", "masked_inputs", "head_only", "layerwise"])
def test_a_config_trains_and_is_evaluated(name, trained):
    run, _ = trained(name, "--max-steps", "2")
    assert evaluate_own(run) == pytest.approx(read_scores(run))


def test_the_weights_of_the_first_class_change_the_loss(trained):
    options = ("--max-steps", "1", "--dropout", "0")
    losses = []
    for weight in ("1", "5"):
        run, _ = trained("weighted", *options, "--first-weight", weight)
        losses += [
            json.loads(line)["value"]
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if '"split": "train", "name": "loss"' in line
        ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_teacher_is_distilled(trained):
    teacher, _ = trained("layerwise", "--max-steps", "2")
    run, _ = trained("distilled", "--max-steps", "2", "--teacher", str(teacher / "model"))
    assert "divergence" in read_logged_names(run)
    assert evaluate_own(run) == pytest.approx(read_scores(run))


def test_a_contrastive_loss_is_never_divided(trained):
    run, command = trained("contrastive", "--max-steps", "2")
    assert "contrastive" in read_logged_names(run)
    result = run_script("train.py", *command, "--run-dir", f"{run}2", "--micro-batch-size", "4")
    assert result.code == 2
    assert "must not be divided" in result.err


def test_lora_changes_what_it_says_and_exports_a_plain_model(trained, tiny):
    from transformers import AutoModelForSequenceClassification

    run, _ = trained("lora", "--max-steps", "3", "--rank", "2")
    before = load_file(Path(tiny("bert")) / "model.safetensors")
    after = load_file(run / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[f"bert.{name}"])}
    assert changed == {
        f"encoder.layer.{layer}.attention.self.{name}.weight"
        for layer in (0, 1)
        for name in ("query", "value")
    }
    for name in changed:
        change = after[f"bert.{name}"] - before[name]
        assert torch.linalg.matrix_rank(change, tol=1e-6) <= 2
    _, info = AutoModelForSequenceClassification.from_pretrained(
        run / "model", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert evaluate_own(run) == pytest.approx(read_scores(run))


def test_an_observer_is_told_of_every_step(trained):
    run, _ = trained("observed", "--max-steps", "3")
    lines = (run / "grad_norms.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["masked_words", "endings"])
def test_a_new_task_trains_and_resumes_to_the_same_bits(name, trained):
    options = ("--max-steps", "4", "--save-every", "1", "--learning-rate", "1e-3")
    whole, command = trained(name, *options)
    interrupted = [*command, "--run-dir", f"{whole}_interrupted"]
    train_until_step(2, *interrupted)
    result = run_script("train.py", *interrupted)
    assert result.code == 0, result.err
    assert "resuming from" in result.err
    assert read_results(Path(f"{whole}_interrupted")) == read_results(whole)
    assert evaluate_own(whole) == pytest.approx(read_scores(whole))


def test_the_task_with_its_own_batches_predicts(trained):
    run, command = trained("endings", "--max-steps", "2")
    rows = command[command.index("--data") + 1]
    result = run_script("predict.py", run, "--file", rows, "--trust-code")
    assert result.code == 0, result.err
    predictions = [json.loads(line) for line in result.out.splitlines()]
    assert len(predictions) == 30
    assert {row["predictions"] for row in predictions} <= {0, 1}


def test_a_copy_of_a_run_continues(trained):
    """As docs/runs.md says: without scores.json, and with more epochs."""
    run, command = trained("weighted", "--epochs", "1")
    copy = Path(f"{run}_more")
    shutil.copytree(run, copy)
    (copy / "scores.json").unlink()
    options = ["--run-dir", str(copy), "--epochs", "2", "--allow-changes"]
    result = run_script("train.py", *command, *options)
    assert result.code == 0, result.err
    assert "with other options than before: epochs: 1 -> 2" in result.err
    before, after = (read_results(folder)["train loss"] for folder in (run, copy))
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    result = run_script(
        "train.py", *command, "--run-dir", f"{run}_again", "--model", f"{run}/model"
    )
    assert result.code == 0, result.err


# Changes of the loop


def test_adversarial_training_changes_the_gradient_of_a_step(tiny, colours, tmp_path):
    (patch,) = blocks(PAGES["forking.md"], "diff")
    loop = load_patched_loop(patch, "", tmp_path, "adversarial_loop")
    command = [str(ROOT / "configs" / "text.py"), "--model", tiny("bert"), *colours]
    command += ["--max-steps", "3", "--no-report", "--dropout", "0"]
    results = {}
    divisions = {
        "plain": (ftloop.train, "8"),
        "whole": (loop.train, "8"),
        "divided": (loop.train, "3"),
    }
    for name, (train, size) in divisions.items():
        run_dir = tmp_path / name
        options = ["--run-dir", str(run_dir), "--micro-batch-size", size]
        train(from_command_line([*command, *options]))
        results[name] = read_results(run_dir)["train grad_norm"]
    assert results["whole"] != pytest.approx(results["plain"], rel=1e-3)
    assert results["divided"] == pytest.approx(results["whole"], rel=1e-4)


# Lines of Python in other pages


def test_the_lines_about_reports_run(trained, capsys):
    run, _ = trained("weighted", "--max-steps", "2")
    (code,) = blocks(PAGES["reports.md"])
    code = code.replace('"runs/quickstart", "test"', f'"{run}", "validation"')
    assert str(run) in code
    with allow(code=True):  # this config is not in configs/
        exec(code, {})
    assert "accuracy" in capsys.readouterr().out


def test_the_notebook_launcher_is_called_as_shown(monkeypatch):
    """tests/test_launch.py starts processes with it."""
    import accelerate

    monkeypatch.chdir(ROOT)
    calls = []
    monkeypatch.setattr(
        accelerate, "notebook_launcher", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    (code,) = blocks(PAGES["devices.md"])
    exec(code, {})
    (((function, (config,)), kwargs),) = calls
    assert (function, config.run_dir, kwargs) == (ftloop.train, "runs/mrpc", {"num_processes": 2})
