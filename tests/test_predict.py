"""predict.py and evaluate.py give the answers of a transformers pipeline, in the order of rows."""

import contextlib
import csv
import gzip
import io
import json
import logging
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import sqlite3
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import COLOURS, run_script, sentences, write_csv
from datasets import Dataset, config

from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.evaluation import build_eval_loader, iterate_predictions
from ftloop.report import plots
from ftloop.runs.finished import load_run, predict_blocks, prepare_for_inference, split_into_blocks
from ftloop.tasks import TextClassification, TokenClassification
from ftloop.tasks.predictor import build_predictor

ROWS = sentences(30, seed=5)
TEXTS = [row["text"] for row in ROWS]


@pytest.fixture(scope="module")
def make_run(tiny, tmp_path_factory):
    """`make_run(rows, *options)`: the folder of a run of 60 steps on these rows."""

    def make(rows: list[dict], *options: str) -> str:
        folder = tmp_path_factory.mktemp("run")
        command = ["configs/text.py", "--model", tiny("bert"), "--run-dir", folder / "run"]
        data = ["--data.path", write_jsonl(folder / "rows.jsonl", rows), "--data.validation", "10"]
        sizes = [
            "--max-length",
            "32",
            "--batch-size",
            "16",
            "--max-steps",
            "60",
            "--learning-rate",
            "5e-3",
        ]
        result = run_script("train.py", *command, *data, *sizes, *options)
        assert result.code == 0, result.err
        return str(folder / "run")

    return make


@pytest.fixture(scope="module")
def single(make_run):
    return make_run(sentences(100), "--label-column", "colour")


@pytest.fixture(scope="module")
def pair(make_run):
    rows = [
        {
            "first": one["text"],
            "second": other["text"],
            "same": "yes" if one["colour"] == other["colour"] else "no",
        }
        for one, other in zip(sentences(100), sentences(100, seed=1), strict=True)
    ]
    return make_run(rows, "--text-columns", "first", "second", "--label-column", "same")


@pytest.fixture(scope="module")
def multi(make_run):
    rows = [
        {**row, "found": [name for name in (*COLOURS, "sky") if name in row["text"]]}
        for row in sentences(100)
    ]
    return make_run(rows, "--label-column", "found", "--threshold", "0.4")


@pytest.fixture(scope="module")
def regression(make_run):
    return make_run(sentences(100), "--label-column", "tone")


def predict(*words: str) -> list[dict]:
    result = run_script("predict.py", *words)
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def write_jsonl(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pipeline_answers(run: str, inputs: list) -> list[list[dict]]:
    """Return all labels with their scores for each input, by a pipeline on the model/ of a run."""
    from transformers import pipeline

    # A quiet logger: the pipeline warns of one input after the other, which is for GPUs.
    logging.getLogger("transformers.pipelines.base").setLevel(logging.ERROR)
    return [
        pipeline("text-classification", f"{run}/model", device="cpu")(one, top_k=None)
        for one in inputs
    ]


def as_scores(answers: list[dict]) -> dict[str, float]:
    return {answer["label"]: answer["score"] for answer in answers}


def test_texts_of_the_command_line_get_a_label_and_probabilities(single):
    answers = predict(single, "the sky is blue", "red grass")
    assert [answer["text"] for answer in answers] == ["the sky is blue", "red grass"]
    for answer in answers:
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
        assert answer["probability"] == answer["probabilities"][answer["label"]]
        assert set(answer["probabilities"]) == set(COLOURS)


def test_the_answers_are_those_of_a_pipeline(single):
    answers = predict(single, *TEXTS)
    for answer, expected in zip(answers, pipeline_answers(single, TEXTS), strict=True):
        assert answer["label"] == expected[0]["label"]
        assert answer["probabilities"] == pytest.approx(as_scores(expected), abs=1e-5)


def test_pairs_take_two_texts_a_row(pair):
    words = [
        "the sky is blue",
        "the sea is blue",
        "red rose",
        "green grass",
        "never",
        "always green",
    ]
    answers = predict(pair, *words)
    given = list(zip(words[::2], words[1::2], strict=True))
    assert [(answer["first"], answer["second"]) for answer in answers] == given
    inputs = [{"text": answer["first"], "text_pair": answer["second"]} for answer in answers]
    for answer, expected in zip(answers, pipeline_answers(pair, inputs), strict=True):
        assert answer["probabilities"] == pytest.approx(as_scores(expected), abs=1e-5)
        assert answer["label"] in ("yes", "no")


def test_several_labels_are_those_above_the_threshold(multi):
    answers = predict(multi, *TEXTS)
    found = {len(answer["labels"]) for answer in answers}
    assert len(found) > 1, "the test needs rows with different numbers of labels"
    for answer, expected in zip(answers, pipeline_answers(multi, TEXTS), strict=True):
        assert answer["probabilities"] == pytest.approx(as_scores(expected), abs=1e-5)
        assert answer["labels"] == [
            name for name, chance in answer["probabilities"].items() if chance >= 0.4
        ]


def test_regression_gives_a_value(regression):
    answers = predict(regression, *TEXTS)
    expected = [answers[0]["score"] for answers in pipeline_answers(regression, TEXTS)]
    assert [answer["value"] for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert set(answers[0]) == {"text", "value"}


@pytest.mark.parametrize("batch_size", ["1", "7", "64"])
def test_the_order_of_rows_is_kept_whatever_the_batch_size(single, tmp_path, batch_size):
    rows = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
    answers = predict(
        single, "--file", write_jsonl(tmp_path / "new.jsonl", rows), "--batch-size", batch_size
    )
    assert [(answer["text"], answer["id"]) for answer in answers] == [
        (row["text"], row["id"]) for row in rows
    ]
    one_by_one = predict(single, *TEXTS, "--batch-size", "1")
    for answer, alone in zip(answers, one_by_one, strict=True):
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_becomes_a_file_with_its_columns_and_the_answers(single, tmp_path, ending, packed):
    rows = [{"id": number, "text": row["text"]} for number, row in enumerate(ROWS)]
    source = tmp_path / f"new.{ending}"
    (write_csv if ending == "csv" else write_jsonl)(source, rows)
    if packed:
        source = tmp_path / f"packed.{ending}.gz"
        source.write_bytes(gzip.compress((tmp_path / f"new.{ending}").read_bytes()))
    out = tmp_path / f"labelled.{ending}"
    result = run_script("predict.py", single, "--file", source, "--out", out)
    assert (result.code, result.out) == (0, ""), result.err
    assert f"30 rows were written to {out}." in result.err

    expected = predict(single, *TEXTS)
    if ending == "csv":
        with out.open(newline="", encoding="utf-8") as stream:
            written = list(csv.DictReader(stream))
        chances = [{name: float(row[f"probability_{name}"]) for name in COLOURS} for row in written]
    else:
        written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        chances = [row["probabilities"] for row in written]
    assert [(int(row["id"]), row["text"]) for row in written] == [
        (row["id"], row["text"]) for row in rows
    ]
    assert [row["label"] for row in written] == [row["label"] for row in expected]
    for one, other in zip(chances, expected, strict=True):
        assert one == pytest.approx(other["probabilities"], abs=1e-5)


def test_several_labels_in_a_csv_are_joined_by_commas(multi, tmp_path):
    source = write_jsonl(
        tmp_path / "new.jsonl", [{"text": text, "numbers": [1, 2]} for text in TEXTS]
    )
    result = run_script("predict.py", multi, "--file", source, "--out", tmp_path / "out.csv")
    assert result.code == 0, result.err
    with (tmp_path / "out.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["labels"] for row in written] == [
        ",".join(row["labels"]) for row in predict(multi, *TEXTS)
    ]
    assert {row["numbers"] for row in written} == {"1,2"}


def test_reader_options_are_those_of_training(single, tmp_path):
    (tmp_path / "new.dat").write_text("text;id\nthe sky is blue;1\n", encoding="latin-1")
    options = ["--format", "csv", "--options", "sep", ";", "encoding", "latin-1"]
    (answer,) = predict(single, "--file", tmp_path / "new.dat", *options)
    assert (answer["text"], answer["id"]) == ("the sky is blue", 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.json", ["--field", "data.rows"]),
        ("a.db", ["--query", "SELECT text FROM t"]),
        ("a.pkl", ["--trust-pickle"]),
    ],
)
def test_nested_files_and_tables_are_read_as_in_training(single, tmp_path, name, options):
    rows = [{"text": text} for text in TEXTS[:3]]
    if name == "a.json":
        (tmp_path / name).write_text(json.dumps({"data": {"rows": rows}}))
    elif name == "a.db":
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as connection, connection:
            connection.execute("CREATE TABLE t (text)")
            connection.executemany("INSERT INTO t VALUES (:text)", rows)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(rows))
    assert [
        answer["text"] for answer in predict(single, "--file", tmp_path / name, *options)
    ] == TEXTS[:3]


def test_a_column_that_gives_way_to_the_prediction_is_named(single, tmp_path):
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": "red", "label": "mine"}])
    result = run_script("predict.py", single, "--file", source)
    assert json.loads(result.out)["label"] in COLOURS
    assert "predictions replace these columns of the file: 'label'" in result.err


# ---- any number of rows


@pytest.fixture
def standard_input(monkeypatch):
    """`standard_input(lines)` sets what the next script reads: bytes, also of a generator."""
    return lambda lines: monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines))


def piped(text: str) -> io.BytesIO:
    return io.BytesIO(text.encode())


def test_the_numbers_are_those_of_evaluation(single, tmp_path):
    """The loss and the accuracy by what predict.py writes; of the same batches, the same bits."""
    config, task, model = load_run(single)
    rows = task.rows["validation"]
    source, out = tmp_path / "validation.jsonl", tmp_path / "labelled.jsonl"
    rows.to_json(source)
    for sizes in (["--batch-size", "4"], ["--batch-size", "3", "--block-size", "4"]):
        assert run_script("predict.py", single, "--file", source, "--out", out, *sizes).code == 0
        answers = [json.loads(line) for line in out.read_text().splitlines()]
        losses = [-math.log(answer["probabilities"][answer["colour"]]) for answer in answers]
        right = [answer["label"] == answer["colour"] for answer in answers]
        scores = json.loads(
            run_script("evaluate.py", single, "--split", "validation", "--json").out
        )
        assert sum(losses) / len(losses) == pytest.approx(scores["loss"], abs=1e-6)
        assert sum(right) / len(right) == scores["accuracy"]
        if "--block-size" not in sizes:
            same = answers

    expected = {}
    with prepare_for_inference(config, model) as (accelerator, model):
        dataset = task.load_datasets()["validation"]
        loader = build_eval_loader(dataset, task, accelerator, 4)
        for values in iterate_predictions(model, loader, task, accelerator):
            probabilities = values["probabilities"].tolist()
            expected |= dict(zip(values["row_ids"].tolist(), probabilities, strict=True))
    assert [list(answer["probabilities"].values()) for answer in same] == [
        expected[row] for row in range(len(rows))
    ]


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "tsv"])
def test_standard_input_is_read_in_blocks(single, standard_input, tmp_path, format):
    rows = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
    if format == "text":
        text = "".join(f"{text}\r\n" for text in TEXTS)
    elif format == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = Path(write_csv(tmp_path / "rows.csv", rows)).read_text()
        text = text.replace(",", "\t") if format == "tsv" else text
    standard_input(piped(text))
    answers = predict(single, "-", "--format", format, "--block-size", "7", "--batch-size", "5")
    assert [answer["text"] for answer in answers] == TEXTS
    if format != "text":
        assert [int(answer["id"]) for answer in answers] == list(range(len(TEXTS)))
    for answer, expected in zip(answers, predict(single, *TEXTS), strict=True):
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)


def test_a_row_is_answered_before_the_next_is_read(single, standard_input):
    written = []

    def lines():
        for text in TEXTS[:3]:
            written.append(sys.stdout.getvalue().count("\n"))
            yield f"{text}\n".encode()

    standard_input(lines())
    assert len(predict(single, "-", "--block-size", "1")) == 3
    assert written == [0, 1, 2]


def test_one_block_is_in_memory_and_nothing_stays_on_disk(single):
    before, alive, most = set(Path(config.HF_DATASETS_CACHE).rglob("*")), weakref.WeakSet(), []

    def blocks():
        for block in split_into_blocks(Dataset.from_dict({"text": TEXTS * 4}), 10):
            build_predictor(task).shape_rows(block, Path())
            alive.add(block)
            most.append(len(alive))
            yield block

    _, task, _ = load_run(single)
    count = sum(len(answers) for _, answers in predict_blocks(single, blocks()))
    assert (count, max(most)) == (120, 2)  # the one at hand, and the next
    assert set(Path(config.HF_DATASETS_CACHE).rglob("*")) == before


def test_what_was_cut_is_counted_over_all_blocks(single, standard_input):
    long = " ".join(["red"] * 40)
    standard_input(piped("".join(f"{text}\n" for text in ("blue", long, "green", long, long))))
    result = run_script("predict.py", single, "-", "--block-size", "2")
    assert result.err.count("longer than") == 1
    assert "data: 3 of 5 texts are longer than --max-length 32" in result.err


BROKEN_INPUT = [
    ("text", b"red\nblue\n\xff\n", "standard input: line 2 (counted from 0) is not valid UTF-8"),
    (
        "jsonl",
        b'{"text": "red"}\n{"text": "blue"}\n{"text"\n',
        "standard input: line 2 (counted from 0) is not valid JSON",
    ),
    (
        "jsonl",
        b'{"text": "red"}\n{"text": "blue"}\n3\n',
        "standard input: line 2 (counted from 0) is not a JSON object: 3",
    ),
    ("jsonl", b'{"text": "red"}\n{"text": "blue"}\n{"id": 3}\n', "no column 'text'"),
    (
        "jsonl",
        b'{"text": "red"}\n{"text": "blue"}\n{"text": null}\n',
        "1 row(s) have no 'text', counted from 0: 2",
    ),
    ("csv", b"text,id\nred,1\nblue,2\ngreen,3,4\n", "Expected 2 fields in line 4, saw 3"),
    ("text", b"", "standard input has no rows"),
]


@pytest.mark.parametrize(("format", "given", "message"), BROKEN_INPUT)
def test_a_broken_row_is_named_and_leaves_the_old_file(
    single, standard_input, tmp_path, format, given, message
):
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    standard_input(io.BytesIO(given))
    result = run_script(
        "predict.py", single, "-", "--format", format, "--out", out, "--block-size", "2"
    )
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"out.jsonl": "before"}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_in_words_and_leaves_the_old_file(single, standard_input, tmp_path, name):
    def lines():
        yield from (b"red\n", b"blue\n")
        os.kill(os.getpid(), getattr(signal, name))
        yield b"green\n"

    standard_input(lines())
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it for tests in the background
    try:
        result = run_script(
            "predict.py", single, "-", "--out", tmp_path / "out.csv", "--block-size", "1"
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert f"{name}: stopped after 2 rows. {tmp_path / 'out.csv'} is unchanged." in result.err
    assert not list(tmp_path.iterdir())


def unpacked(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode()


def test_packed_files_and_parquet_hold_the_same(single, standard_input, tmp_path):
    read = {
        ".jsonl.gz": lambda file: [json.loads(line) for line in unpacked(file).splitlines()],
        ".parquet": lambda file: Dataset.from_parquet(
            str(file), cache_dir=str(tmp_path / "cache")
        ).to_list(),
        ".csv.gz": lambda file: list(csv.DictReader(io.StringIO(unpacked(file), newline=""))),
    }
    found = {}
    for ending, reader in read.items():
        rows = [
            {"text": text, "note": None if number < 20 else "late"}
            for number, text in enumerate(TEXTS)
        ]
        standard_input(piped("".join(json.dumps(row) + "\n" for row in rows)))
        out = tmp_path / f"out{ending}"
        result = run_script(
            "predict.py", single, "-", "--format", "jsonl", "--out", out, "--block-size", "12"
        )
        assert result.code == 0, result.err
        found[ending] = reader(out)
    assert found[".parquet"] == found[".jsonl.gz"]
    assert [row["text"] for row in found[".csv.gz"]] == TEXTS
    assert [row["label"] for row in found[".csv.gz"]] == [row["label"] for row in found[".parquet"]]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_has_one_head(single, standard_input, tmp_path, ending):
    standard_input(piped('{"text": "red"}\n{"text": "blue", "id": 1}\n'))
    out = tmp_path / f"out.{ending}"
    result = run_script(
        "predict.py", single, "-", "--format", "jsonl", "--out", out, "--block-size", "1"
    )
    assert result.code == 2
    assert (
        "only some rows have the column(s) id, which a table cannot hold. Write a .jsonl file"
        in result.err
    )


def test_device_and_precision_are_options(single):
    expected = predict(single, *TEXTS)
    assert predict(single, *TEXTS, "--device", "cpu") == expected
    halved = predict(single, *TEXTS, "--precision", "bf16")
    assert halved != expected
    for answer, exact in zip(halved, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(exact["probabilities"], abs=0.05)


# ---- pictures


@pytest.mark.parametrize("kind", ["single", "pair", "multi", "regression"])
def test_a_plot_has_a_bar_for_each_probability(kind, request, tmp_path):
    run, out = request.getfixturevalue(kind), tmp_path / "bars.png"
    words = [*TEXTS[:26], "--plot", out]
    result = run_script("predict.py", run, *words)
    assert result.code == 0, result.err
    assert out.read_bytes().startswith(b"\x89PNG")
    assert f"12 of {13 if kind == 'pair' else 26} rows are plotted in {out}." in result.err
    answers = [json.loads(line) for line in result.out.splitlines()]
    figure = plots.draw_predictions(answers, load_run(run)[1])
    assert len(figure.axes) == 12
    for axes, answer in zip(figure.axes, answers, strict=False):
        widths = [bar.get_width() for bar in axes.patches]
        if kind == "regression":
            assert widths == [answer["value"]]
            continue
        assert widths == [100 * chance for chance in answer["probabilities"].values()]
        dark = [
            name
            for name, bar in zip(answer["probabilities"], axes.patches, strict=True)
            if bar.get_facecolor()[0] < 0.5
        ]
        assert dark == answer.get("labels", [answer.get("label")])


def test_a_plot_shows_texts_as_they_are_and_the_highest_of_many_labels(single, tmp_path):
    chances = {f"label {number}": number / 1000 for number in range(40)}
    row = {"text": "costs $5 or $6 " * 40 + "\n", "label": "label 39", "probabilities": chances}
    (axes,) = plots.draw_predictions([row], load_run(single)[1]).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        f"label {number}" for number in range(39, 29, -1)
    ]
    assert axes.get_xlabel() == "Class probability (%), the highest 10 of 40"
    assert axes.get_title().startswith('"costs $5 or $6 costs')
    assert axes.get_title().count("\n") == 2
    plots.save_predictions(
        [{**row, "text": "\u65e5\u672c $"}], load_run(single)[1], tmp_path / "bars.svg", "svg"
    )


def test_a_task_without_a_prediction_per_row_has_no_plot():
    assert not plots.can_draw(TokenClassification(model="bert"))
    assert plots.can_draw(TextClassification(model="bert"))


def test_without_plots_py_all_else_works(single, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftloop.report.plots", None)
    assert len(predict(single, "red")) == 1
    result = run_script("predict.py", single, "red", "--plot", "bars.png")
    assert (result.code, result.out) == (2, "")
    assert "--plot cannot be used: import of ftloop.report.plots" in result.err


# ---- new rows are brought into the shape of training


@pytest.fixture
def text_task():
    """`text_task(**options)`: a task on texts with these options of Data."""
    return lambda **options: TextClassification(model="m", data=Data(**options))


def texts_of(task, **columns):
    return build_predictor(task).shape_rows(
        Dataset.from_dict({name: [cell] for name, cell in columns.items()}), Path()
    )["text"][:]


@pytest.mark.parametrize("parts", ["title,text", ["title", "text"], "*"])
def test_a_join_into_one_of_its_parts_is_done_unless_it_was(text_task, parts):
    task = text_task(join={"text": parts})
    assert texts_of(task, title="a", text="b") == ["title: a\ntext: b"]
    assert texts_of(task, text="title: a\ntext: b", id=3) == ["title: a\ntext: b"]


def test_what_is_joined_is_said(make_run, tmp_path):
    rows = [{"title": row["text"], "body": "sky", "label": row["number"]} for row in sentences(60)]
    run = make_run(rows, "--data.join", "text", "*")
    result = run_script(
        "predict.py",
        run,
        "--file",
        write_jsonl(tmp_path / "new.jsonl", [{"body": "b", "title": "a"}]),
    )
    assert json.loads(result.out)["text"] == "body: b\ntitle: a"
    assert "data: the column text joins body, title" in result.err


def shouted(row):
    return {"text": row["text"].upper()}


def with_label(row):
    return {"text": row["label"]}


def test_map_is_for_files_and_must_do_without_labels(text_task):
    assert texts_of(text_task(map=shouted), text="a") == ["A"]
    with pytest.raises(
        UserError, match="The file has no column label; the function must work without labels"
    ):
        texts_of(text_task(map=with_label), text="a")


def test_texts_of_the_command_line_are_what_the_model_sees(make_run):
    run = make_run([{"text": row["text"], "label": row["number"]} for row in sentences(60)])
    record = json.loads((Path(run) / "config.json").read_text())
    record["config"]["task"]["data"]["map"] = {"function": "test_predict:shouted"}
    (Path(run) / "config.json").write_text(json.dumps(record))
    assert predict(run, "red sky")[0]["text"] == "red sky"


def test_new_rows_are_as_those_of_the_source_that_they_fit(text_task, caplog):
    task = text_task(
        sources=(
            Data(path="a.csv", columns={"text": "review", "label": "stars"}, map=shouted),
            Data(path="b.csv", join={"text": "title,body"}),
        )
    )
    assert texts_of(task, review="a") == ["A"]
    assert texts_of(task, title="a", body="b") == ["title: a\nbody: b"]
    with caplog.at_level("INFO", "ftloop"):
        assert texts_of(task, text="a") == ["a"]
    assert "0 of the sources of the run fit the columns of the new rows" in caplog.text


@pytest.fixture
def unfinished(single, tmp_path):
    folder = tmp_path / "unfinished"
    folder.mkdir()
    shutil.copy(Path(single) / "config.json", folder)
    return str(folder)


@pytest.fixture
def broken(single, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(single, folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "model" / "config.json").write_text("{")
    return str(folder)


def test_allow_changes_on_a_finished_run_is_an_error(single):
    command = json.loads((Path(single) / "config.json").read_text())["command"]
    result = run_script(*shlex.split(command)[1:], "--allow-changes")
    assert result.code == 2
    assert "--allow-changes: has no effect on a finished run" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN", "give either inputs (texts, or images for an image run) or a file by --file"),
        (
            "RUN red --file new.csv",
            "give either inputs (texts, or images for an image run) or a file by --file",
        ),
        ("RUN red --out labels.txt", "the ending must be one of .csv, .csv.gz, .jsonl"),
        ("RUN red --out nowhere/labels.csv", "the folder 'nowhere' does not exist"),
        ("RUN red --out FOLDER/folder.csv", "is a folder: give the name of a file"),
        ("RUN red --plot bars.gif", "the ending must be one of .png, .svg, .pdf"),
        ("RUN red --format csv", "--format has no effect without --file"),
        ("RUN red --options sep ;", "--options has no effect without --file"),
        ("RUN red --query SELECT", "--query has no effect without --file"),
        ("RUN red --block-size 0", "--block-size: must be at least 1, but is 0."),
        ("RUN red --device cuda:99", "--device 'cuda:99' does not exist here. Choices: auto, cpu"),
        ("RUN - red", "- stands for standard input and cannot be combined"),
        (
            "RUN - --format xml",
            "--format 'xml': standard input must be one of text, jsonl, csv, tsv",
        ),
        ("RUN - --options sep ;", "--options has no effect on standard input in the format text"),
        (
            "RUN - --format csv --query SELECT",
            "--query has no effect on standard input in the format csv",
        ),
        (
            "PAIR -",
            "a line is one text, but each row of this run has first, second. Use --format jsonl",
        ),
        ("RUN red --batch-size 0", "--batch-size: must be at least 1, but is 0."),
        ("RUN --file nothing.csv", "--file: the new file 'nothing.csv' does not exist"),
        ("RUN --file FOLDER/new.xyz", "--format: cannot tell the format of"),
        ("RUN --file FOLDER/empty.csv", "--file:"),
        ("RUN --file FOLDER/head.csv", "rows"),
        ("RUN --file FOLDER/null.jsonl", "2 row(s) have no 'text', counted from 0: 1, 3"),
        ("RUN --file FOLDER/other.jsonl", "no column 'text' (did you mean 'texts'?)"),
        ("RUN --file FOLDER/number.jsonl", "not text"),
        ("PAIR one two three", "3 texts were given, but each row of this run has 2: first, second"),
        ("UNFINISHED red", "has no folder model/: its training is not finished"),
        ("BROKEN red", "cannot be read"),
        ("FOLDER/rn red", "holds no run: it has no config.json"),
    ],
)
def test_bad_input_to_predict_is_one_clear_error(
    single, pair, unfinished, broken, tmp_path, words, message
):
    (tmp_path / "new.xyz").write_text("text\nred\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("text,id\n")
    write_jsonl(tmp_path / "null.jsonl", [{"text": text} for text in ("red", None, "blue", None)])
    write_jsonl(tmp_path / "other.jsonl", [{"texts": "red"}])
    write_jsonl(tmp_path / "number.jsonl", [{"text": 3}])
    (tmp_path / "folder.csv").mkdir()
    places = {
        "RUN": single,
        "PAIR": pair,
        "UNFINISHED": unfinished,
        "BROKEN": broken,
        "FOLDER": str(tmp_path),
    }
    for name, place in places.items():
        words = re.sub(rf"\b{name}\b", place, words)
    result = run_script("predict.py", *words.split())
    assert result.code == 2, result.err
    assert message in result.err
    assert result.err.count("error:") == 1
    assert result.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("PARENT/rum", "holds no run: it has no config.json (did you mean 'run'?)"),
        (
            "RUN --split test",
            "--split: the data has no split 'test'. Its splits are train, validation",
        ),
        ("RUN --batch-size 0", "--batch-size: must be at least 1, but is 0."),
        ("UNFINISHED", "has no folder model/"),
    ],
)
def test_bad_input_to_evaluate_is_one_clear_error(single, unfinished, words, message):
    for name, place in {
        "RUN": single,
        "PARENT": str(Path(single).parent),
        "UNFINISHED": unfinished,
    }.items():
        words = re.sub(rf"\b{name}\b", place, words)
    result = run_script("evaluate.py", *words.split())
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_a_split_that_no_data_has_is_answered_with_the_choices(single):
    result = run_script("evaluate.py", single, "--split", "tests")
    assert result.code == 2
    assert "validation" in result.err


@pytest.mark.parametrize("kind", ["single", "pair", "multi", "regression"])
def test_evaluate_gives_the_numbers_of_training_whatever_the_batch_size(kind, request):
    run = request.getfixturevalue(kind)
    scores = json.loads((Path(run) / "scores.json").read_text())["validation"]
    for options in ([], ["--split", "validation", "--batch-size", "3"]):
        result = run_script("evaluate.py", run, "--json", *options)
        assert result.code == 0, result.err
        assert json.loads(result.out) == pytest.approx(scores, rel=1e-5, abs=1e-7)
        assert result.out.count("\n") == 1


def test_evaluate_speaks_to_a_person_without_json(single):
    result = run_script("evaluate.py", single)
    assert re.fullmatch(r"loss \d\.\d{4}  accuracy \d\.\d{4}  f1_macro \d\.\d{4}\n", result.out)
