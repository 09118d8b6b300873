"""A model that was fine-tuned before: its head is kept for the same labels, and is new for others.

The order of the labels is then that of the model, whatever order the data has.
"""

import json
import logging
from dataclasses import replace
from typing import ClassVar

import numpy
import pytest
import torch
from conftest import run_script, write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from benchmarks.architectures import make_image_model, make_model, words
from ftloop.data import Data
from ftloop.data.labels import Labels
from ftloop.state import set_seed
from ftloop.tasks import ImageClassification, TextClassification, TokenClassification

MODEL_ORDER = ("pos", "neu", "neg")
SENTIMENTS = ["neg", "neu", "pos", "neu"]
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


class Rows(Data):
    """Rows with a text and the labels that `use` gives."""

    columns_of: ClassVar[dict] = {}
    features: ClassVar[Features | None] = None

    def read(self) -> DatasetDict:
        texts = [words(4, seed=number) for number in range(len(type(self).columns_of["label"]))]
        columns = {"text": texts, **type(self).columns_of}
        return DatasetDict({"train": Dataset.from_dict(columns, type(self).features)})


@pytest.fixture
def use(monkeypatch):
    """Return a function that sets the labels of the rows and returns their source."""

    def set_columns(labels, features=None, **columns):
        monkeypatch.setattr(Rows, "columns_of", {"label": labels, **columns})
        monkeypatch.setattr(Rows, "features", features)
        return Rows(validation=0)

    return set_columns


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "ftloop")
    return caplog


@pytest.fixture
def fine_tuned(tmp_path):
    """Return a function that saves a BERT with the labels (pos, neu, neg)."""

    def make(names=MODEL_ORDER, problem_type=SINGLE, kind="Sequence", architecture="bert"):
        return make_model(
            tmp_path / f"model{len(list(tmp_path.iterdir()))}",
            architecture,
            f"AutoModelFor{kind}Classification",
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
            problem_type=problem_type,
        )

    return make


def head(model):
    return {name: value for name, value in model.state_dict().items() if "classifier" in name}


def saved_weights(folder, kind="Sequence"):
    import transformers

    auto = getattr(transformers, f"AutoModelFor{kind}Classification")
    return auto.from_pretrained(folder).state_dict()


def assert_kept(task, kind="Sequence"):
    model, saved = task.build_model(), saved_weights(task.model, kind)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    return model


def assert_new(task, kind="Sequence"):
    model, saved = task.build_model(), saved_weights(task.model, kind)
    assert not torch.equal(head(model)["classifier.weight"], saved["classifier.weight"])
    assert head(model)["classifier.weight"].std() == pytest.approx(0.2, rel=0.4)
    assert (head(model)["classifier.bias"] == 0).all()
    for name, value in saved.items():
        if "classifier" not in name:
            assert torch.equal(value, model.state_dict()[name])
    return model


def task_on(folder, data, **options):
    return TextClassification(model=folder, data=data, max_length=16, **options)


def test_the_same_labels_keep_the_head_and_the_order_of_the_model(fine_tuned, use, log, tmp_path):
    task = task_on(fine_tuned(), use(SENTIMENTS))
    assert task.labels == Labels(SINGLE, MODEL_ORDER)
    assert task.encode_labels(task.rows["train"], "train") == [2, 1, 0, 1]
    model = assert_kept(task)
    assert model.config.id2label == {0: "pos", 1: "neu", 2: "neg"}
    assert model.config.label2id == {"pos": 0, "neu": 1, "neg": 2}
    assert "head is kept, since it is for the same outputs: 'pos', 'neu', 'neg'" in log.text
    (tmp_path / "exported").mkdir()
    task.export(model, model.state_dict(), tmp_path / "exported")
    log.clear()
    finished = task.from_finished_run(str(tmp_path / "exported"))
    finished.build_model()
    assert finished.labels == task.labels
    assert finished.encode_labels(finished.rows["train"], "train") == [2, 1, 0, 1]
    assert "head" not in log.text


def test_class_labels_in_another_order_are_mapped_by_name(fine_tuned, use):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "neu", "pos"])})
    task = task_on(fine_tuned(), use([0, 1, 2, 1], features))
    assert task.encode_labels(task.rows["train"], "train") == [2, 1, 0, 1]
    assert_kept(task)


@pytest.mark.parametrize(
    "names",
    [
        ("sad", "so-so", "happy"),
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ("Pos", "Neu", "Neg"),
        ("0", "1", "2"),
    ],
)
def test_the_head_is_new_for_other_labels(fine_tuned, use, log, names):
    task = task_on(fine_tuned(names), use(SENTIMENTS))
    assert task.labels.names == ("neg", "neu", "pos")
    model = assert_new(task)
    assert model.config.id2label == {0: "neg", 1: "neu", 2: "pos"}
    assert (
        f"its head is for {', '.join(map(repr, names))} ({SINGLE}) and not for 'neg', 'neu', 'pos'"
        f" ({SINGLE}), so these weights are new and random: classifier.bias, classifier.weight"
    ) in log.text


def test_a_new_head_is_a_function_of_the_seed(fine_tuned, use):
    task = task_on(fine_tuned(("x", "y", "z")), use(SENTIMENTS))
    heads = []
    for _ in range(2):
        set_seed(5)
        heads.append(head(task.build_model()))
    assert torch.equal(heads[0]["classifier.weight"], heads[1]["classifier.weight"])


@pytest.mark.parametrize(("labels", "kept"), [([0, 1, 2], True), (["a", "b", "c"], False)])
def test_numbers_are_names_too(fine_tuned, use, labels, kept):
    task = task_on(fine_tuned(("2", "0", "1")), use(labels))
    if kept:
        assert task.encode_labels(task.rows["train"], "train") == [1, 2, 0]
        assert_kept(task)
    else:
        assert_new(task)


def test_other_kinds_of_problems_have_a_new_head(fine_tuned, use, log):
    """The same names, but probabilities of one class against those of any number of labels."""
    lists = use([["pos"], ["neu", "neg"], []])
    assert_new(task_on(fine_tuned(problem_type=SINGLE), lists))
    assert_kept(task_on(fine_tuned(problem_type=MULTI), lists))
    assert_kept(task_on(fine_tuned(problem_type=None), lists))
    single = use(SENTIMENTS)
    assert_new(task_on(fine_tuned(problem_type=MULTI), single))
    numbers = use([0.5, 1.25, 2.5])
    log.clear()
    assert_kept(task_on(fine_tuned(("LABEL_0",), "regression"), numbers))
    assert_kept(task_on(fine_tuned(("LABEL_0",), None), numbers))
    assert log.text.count("its head is kept, since it is for the same outputs: a number") == 2
    one = use([["toxic"], []])
    assert_new(task_on(fine_tuned(("LABEL_0",), "regression"), one))


def test_columns_of_0_and_1_are_mapped_by_name(fine_tuned, use):
    columns = {"pos": [1, 0, 0], "neg": [0, 1, 0], "neu": [0, 0, 0]}
    data = use([0, 0, 0], **columns)
    task = task_on(fine_tuned(problem_type=MULTI), data, label_column=("neg", "neu", "pos"))
    encoded = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert task.labels.names == MODEL_ORDER
    assert task.encode_labels(task.rows["train"], "train") == encoded
    assert_kept(task)
    given = replace(task, label_names=("bad", "so-so", "good"))  # names in the order of columns
    assert given.encode_labels(given.rows["train"], "train")[0] == [0.0, 0.0, 1.0]


def test_label_names_decide_the_order_and_the_head_follows(fine_tuned, use, log):
    """Ids in the data are places in --label-names, so the outputs of the head change places."""
    names = ("neg", "neu", "pos")
    task = task_on(fine_tuned(), use([0, 1, 2, 1]), label_names=names)
    assert task.encode_labels(task.rows["train"], "train") == [0, 1, 2, 1]
    model, saved = task.build_model(), saved_weights(task.model)
    for name, value in head(model).items():
        assert torch.equal(value, saved[name].flip(0))
    assert model.config.id2label == dict(enumerate(names))
    assert "its head is kept, in another order of the labels: 'neg', 'neu', 'pos'" in log.text


@pytest.mark.parametrize("architecture", ["bart", "xlnet", "gpt2"])
def test_heads_of_all_architectures_are_found(fine_tuned, use, log, architecture):
    task = task_on(fine_tuned(("x", "y", "z"), None, architecture=architecture), use(SENTIMENTS))
    task.build_model()
    assert "so these weights are new and random" in log.text
    log.clear()
    task = task_on(fine_tuned(architecture=architecture), use(SENTIMENTS))
    task.build_model()
    assert "its head is kept" in log.text


def test_tags_keep_the_head_and_the_order_of_the_model(fine_tuned, use, log):
    features = {"text": [["red", "sky"], ["sea"]], "tags": [["PER", "O"], ["LOC"]]}
    data = use([0, 0], **features)

    def build(names, kind="Token"):
        folder = fine_tuned(names, None, kind)
        return TokenClassification(
            model=folder, data=data, text_columns="text", label_column="tags", max_length=16
        )

    kept = build(("O", "PER", "LOC"))
    assert kept.tag_names == ("O", "PER", "LOC")
    assert kept.encode_labels(kept.rows["train"], "train") == [[1, 0], [2]]
    assert_kept(kept, "Token")
    other = build(("O", "PER", "MISC"))
    assert other.tag_names == ("LOC", "O", "PER")
    assert_new(other, "Token")
    of_texts = build(("O", "PER", "LOC"), "Sequence")  # the same labels, but of whole texts
    log.clear()
    of_texts.build_model()
    assert "its head is for a BertForSequenceClassification and not for" in log.text


def test_an_image_model_keeps_its_head_and_its_order(tmp_path, log):
    rows = []
    for number, label in enumerate(["neg", "neu", "pos"]):
        file = tmp_path / f"{number}.png"
        Image.fromarray(numpy.full((32, 32, 3), 60 * number, numpy.uint8)).save(file)
        rows.append({"image": str(file), "label": label})
    data = Data(path=write_csv(tmp_path / "images.csv", rows), validation=0)
    for names, fate in ((MODEL_ORDER, "is kept"), (("x", "y", "z"), "weights are new and random")):
        folder = make_image_model(
            tmp_path / f"{names[0]}",
            "vit",
            "AutoModelForImageClassification",
            id2label=dict(enumerate(names)),
        )
        log.clear()
        task = ImageClassification(model=folder, data=data)
        task.build_model()
        assert fate in log.text
        assert task.labels.names == (MODEL_ORDER if fate == "is kept" else ("neg", "neu", "pos"))


def test_further_training_begins_where_the_first_ended(tiny, colours, tmp_path):
    """With a learning rate of almost 0, the scores are those of the first run."""
    from transformers import AutoModelForSequenceClassification

    command = ["train.py", "configs/text.py", *colours]
    result = run_script(*command, "--model", tiny("bert"), "--epochs", "6")
    assert result.code == 0, result.err
    first = read_scores(tmp_path / "run")
    folder = tmp_path / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    order = [2, 0, 1]
    for parameter in model.classifier.parameters():
        parameter.data = parameter.data[order].contiguous()
    model.config.id2label = {0: "red", 1: "blue", 2: "green"}
    model.save_pretrained(folder)
    second = ["--model", str(folder), "--run-dir", str(tmp_path / "second"), "--max-steps", "1"]
    result = run_script(*command, *second, "--learning-rate", "1e-12")
    assert result.code == 0, result.err
    assert "its head is kept" in result.err
    assert read_scores(tmp_path / "second") == {
        split: pytest.approx(scores, rel=1e-4) for split, scores in first.items()
    }
    assert first["test"]["accuracy"] > 0.6
    evaluated = run_script("evaluate.py", str(tmp_path / "second"))
    assert evaluated.code == 0, evaluated.err
    assert f"{first['test']['loss']:.4f}"[:5] in evaluated.out + evaluated.err


def read_scores(run):
    return json.loads((run / "scores.json").read_text())
