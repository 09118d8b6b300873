"""predict.py and evaluate.py on finished runs: the answers of a transformers pipeline, in the order of the rows."""

import csv
import gzip
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
from conftest import COLOURS, run_script, sentences, write_csv
from datasets import Dataset

from ftloop import Data, TextClassification, UserError

ROWS = sentences(30, seed=5)
TEXTS = [row["text"] for row in ROWS]


@pytest.fixture(scope="module")
def make_run(tiny, tmp_path_factory):
    """`make_run(rows, *options)`: the folder of a run of 60 steps on these rows."""

    def make(rows: list[dict], *options: str) -> str:
        folder = tmp_path_factory.mktemp("run")
        command = ["configs/text.py", "--task.model", tiny("bert"), "--run-dir", folder / "run"]
        data = ["--task.data.path", write_jsonl(folder / "rows.jsonl", rows), "--task.data.validation", "10"]
        sizes = ["--task.max-length", "32", "--batch-size", "16", "--max-steps", "60", "--learning-rate", "5e-3"]
        result = run_script("train.py", *command, *data, *sizes, *options)
        assert result.code == 0, result.err
        return str(folder / "run")

    return make


@pytest.fixture(scope="module")
def single(make_run):
    return make_run(sentences(100), "--task.label-column", "colour")


@pytest.fixture(scope="module")
def pair(make_run):
    rows = [
        {"first": one["text"], "second": other["text"], "same": "yes" if one["colour"] == other["colour"] else "no"}
        for one, other in zip(sentences(100), sentences(100, seed=1), strict=True)
    ]
    return make_run(rows, "--task.text-columns", "first", "second", "--task.label-column", "same")


@pytest.fixture(scope="module")
def multi(make_run):
    rows = [{**row, "found": [name for name in (*COLOURS, "sky") if name in row["text"]]} for row in sentences(100)]
    return make_run(rows, "--task.label-column", "found", "--task.threshold", "0.4")


@pytest.fixture(scope="module")
def regression(make_run):
    return make_run(sentences(100), "--task.label-column", "tone")


def predict(*words: str) -> list[dict]:
    result = run_script("predict.py", *words)
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def write_jsonl(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pipeline_answers(run: str, inputs: list) -> list[list[dict]]:
    """All labels with their scores for each input, by the pipeline that the issue promises works on a run's model/."""
    from transformers import pipeline

    # A quiet logger: the pipeline warns of one input after the other, which is for GPUs.
    logging.getLogger("transformers.pipelines.base").setLevel(logging.ERROR)
    return [pipeline("text-classification", f"{run}/model", device="cpu")(one, top_k=None) for one in inputs]


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
    words = ["the sky is blue", "the sea is blue", "red rose", "green grass", "never", "always green"]
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
        assert answer["labels"] == [name for name, chance in answer["probabilities"].items() if chance >= 0.4]


def test_regression_gives_a_value(regression):
    answers = predict(regression, *TEXTS)
    expected = [answers[0]["score"] for answers in pipeline_answers(regression, TEXTS)]
    assert [answer["value"] for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert set(answers[0]) == {"text", "value"}


@pytest.mark.parametrize("batch_size", ["1", "7", "64"])
def test_the_order_of_rows_is_kept_whatever_the_batch_size(single, tmp_path, batch_size):
    rows = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
    answers = predict(single, "--file", write_jsonl(tmp_path / "new.jsonl", rows), "--batch-size", batch_size)
    assert [(answer["text"], answer["id"]) for answer in answers] == [(row["text"], row["id"]) for row in rows]
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
    assert f"30 rows labelled in {out}" in result.err

    expected = predict(single, *TEXTS)
    if ending == "csv":
        with out.open(newline="", encoding="utf-8") as stream:
            written = list(csv.DictReader(stream))
        chances = [{name: float(row[f"probability_{name}"]) for name in COLOURS} for row in written]
    else:
        written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        chances = [row["probabilities"] for row in written]
    assert [(int(row["id"]), row["text"]) for row in written] == [(row["id"], row["text"]) for row in rows]
    assert [row["label"] for row in written] == [row["label"] for row in expected]
    for one, other in zip(chances, expected, strict=True):
        assert one == pytest.approx(other["probabilities"], abs=1e-5)


def test_several_labels_in_a_csv_are_joined_by_commas(multi, tmp_path):
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": text, "numbers": [1, 2]} for text in TEXTS])
    result = run_script("predict.py", multi, "--file", source, "--out", tmp_path / "out.csv")
    assert result.code == 0, result.err
    with (tmp_path / "out.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["labels"] for row in written] == [",".join(row["labels"]) for row in predict(multi, *TEXTS)]
    assert {row["numbers"] for row in written} == {"1,2"}


def test_reader_options_are_those_of_training(single, tmp_path):
    (tmp_path / "new.dat").write_text("text;id\nthe sky is blue;1\n", encoding="latin-1")
    options = ["--format", "csv", "--options", "sep", ";", "encoding", "latin-1"]
    (answer,) = predict(single, "--file", tmp_path / "new.dat", *options)
    assert (answer["text"], answer["id"]) == ("the sky is blue", 1)


def test_a_column_that_gives_way_to_the_prediction_is_named(single, tmp_path):
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": "red", "label": "mine"}])
    result = run_script("predict.py", single, "--file", source)
    assert json.loads(result.out)["label"] in COLOURS
    assert "'label' gave way to the prediction" in result.err


# ---- new rows are brought into the shape of training


@pytest.fixture
def text_task():
    """`text_task(**options)`: a task on texts with these options of Data."""
    return lambda **options: TextClassification(model="m", data=Data(**options))


def texts_of(task, **columns):
    return task.place(Dataset.from_dict({name: [cell] for name, cell in columns.items()}), Path())["text"][:]


@pytest.mark.parametrize("parts", ["title,text", ["title", "text"], "*"])
def test_a_join_into_one_of_its_parts_is_done_unless_it_was(text_task, parts):
    task = text_task(join={"text": parts})
    assert texts_of(task, title="a", text="b") == ["title: a\ntext: b"]
    assert texts_of(task, text="title: a\ntext: b", id=3) == ["title: a\ntext: b"]


def test_what_is_joined_is_said(make_run, tmp_path):
    rows = [{"title": row["text"], "body": "sky", "label": row["number"]} for row in sentences(60)]
    run = make_run(rows, "--task.data.join", "text", "*")
    result = run_script("predict.py", run, "--file", write_jsonl(tmp_path / "new.jsonl", [{"body": "b", "title": "a"}]))
    assert json.loads(result.out)["text"] == "body: b\ntitle: a"
    assert "data: text joins the columns body, title" in result.err


def shouted(row):
    return {"text": row["text"].upper()}


def with_label(row):
    return {"text": row["label"]}


def test_map_is_for_files_and_must_do_without_labels(text_task):
    assert texts_of(text_task(map=shouted), text="a") == ["A"]
    with pytest.raises(UserError, match="the file has no column label: map must do without labels there"):
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
    assert "0 of the run's sources fit the columns of the new rows" in caplog.text


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN", "give texts, or a file by --file, one of the two"),
        ("RUN red --file new.csv", "give texts, or a file by --file, one of the two"),
        ("RUN red --out labels.txt", "its ending must be one of .csv, .csv.gz, .jsonl"),
        ("RUN red --out nowhere/labels.csv", "there is no folder 'nowhere'"),
        ("RUN red --batch-size 0", "--batch-size 0: at least 1 is needed"),
        ("RUN --file nothing.csv", "--file: new file 'nothing.csv' does not exist"),
        ("RUN --file FOLDER/new.xyz", "--format: cannot tell how to read"),
        ("RUN --file FOLDER/empty.csv", "--file:"),
        ("RUN --file FOLDER/head.csv", "rows"),
        ("RUN --file FOLDER/null.jsonl", "2 row(s) have no 'text', counted from 0: 1, 3"),
        ("RUN --file FOLDER/other.jsonl", "no column 'text' (did you mean 'texts'?)"),
        ("RUN --file FOLDER/number.jsonl", "not text"),
        ("PAIR one two three", "3 text(s), but the run reads 2 a row: first, second"),
        ("UNFINISHED red", "has no model/ yet: its training is not finished"),
        ("BROKEN red", "cannot be read"),
        ("FOLDER/rn red", "holds no run (no config.json)"),
    ],
)
def test_bad_input_to_predict_is_one_clear_error(single, pair, unfinished, broken, tmp_path, words, message):
    (tmp_path / "new.xyz").write_text("text\nred\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("text,id\n")
    write_jsonl(tmp_path / "null.jsonl", [{"text": text} for text in ("red", None, "blue", None)])
    write_jsonl(tmp_path / "other.jsonl", [{"texts": "red"}])
    write_jsonl(tmp_path / "number.jsonl", [{"text": 3}])
    places = {"RUN": single, "PAIR": pair, "UNFINISHED": unfinished, "BROKEN": broken, "FOLDER": str(tmp_path)}
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
        ("PARENT/rum", "holds no run (no config.json) (did you mean 'run'?)"),
        ("RUN --split test", "--split 'test' is not in the data; the splits are train, validation"),
        ("RUN --batch-size 0", "--batch-size 0: at least 1 is needed"),
        ("UNFINISHED", "has no model/ yet"),
    ],
)
def test_bad_input_to_evaluate_is_one_clear_error(single, unfinished, words, message):
    for name, place in {"RUN": single, "PARENT": str(Path(single).parent), "UNFINISHED": unfinished}.items():
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
