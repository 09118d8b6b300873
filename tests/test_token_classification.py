"""Tags of words: labels, weights, losses and scores of tokens, and runs that train on them."""

import json
import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import pytest
import torch
from conftest import COLOURS, ranks, run_script, sentences
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from interrupt import Interrupted, interrupt_at_step, read_log, read_results
from sklearn.metrics import f1_score

from ftloop import Config, UserError, model_inputs, train
from ftloop.data import Data
from ftloop.data.prepared import PreparedDataset
from ftloop.loader import make_batch
from ftloop.runs.finished import evaluate_run, load_run, predict_rows
from ftloop.state import fold_in, set_seed
from ftloop.tasks import TextTask, TokenClassification, build_predictor

TAGS = ("other", "colour", "noun")
NOUNS = ("sky", "grass", "sea", "rose")


def tagged_sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of words and tags: colours, nouns and others."""
    rows = []
    for row in sentences(count, seed):
        words = row["text"].split()
        tags = [
            "colour" if word in COLOURS else "noun" if word in NOUNS else "other" for word in words
        ]
        rows.append({"tokens": words, "tags": tags})
    return rows


def write_rows(file, rows: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture
def make_task(tiny, tmp_path):
    """`make_task(rows, **options)`: a task on a file of rows, of which 10 are for validation."""

    def make(rows: list[dict[str, Any]], architecture: str = "bert", **options: Any):
        files = {"train": write_rows(tmp_path / "train.jsonl", rows)}
        files["validation"] = write_rows(
            tmp_path / "validation.jsonl", tagged_sentences(10, seed=7)
        )
        options = {"max_length": 32, "data": Data(files=files), **options}
        return TokenClassification(model=tiny(architecture), **options)

    return make


@pytest.fixture(scope="module")
def tokenizer_with_pieces(tiny, tmp_path_factory):
    """A model folder whose tokenizer splits words into letters, and drops spaces."""
    import shutil

    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("pieces") / "model"
    shutil.copytree(tiny("bert"), folder)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*specials, *"abcdef"])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    letters.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, model_max_length=64, **names)
    tokenizer.save_pretrained(folder)
    return str(folder)


# Labels and weights


def test_the_first_token_of_a_word_has_its_label(tokenizer_with_pieces, tmp_path):
    rows = [
        {"tokens": ["abc", "d", "ef"], "tags": ["x", "y", "z"]},
        {"tokens": ["a", " ", "bb"], "tags": ["z", "y", None]},  # a space has no tokens
    ]
    data = Data(path=write_rows(tmp_path / "rows.jsonl", rows), validation=0)
    task = TokenClassification(model=tokenizer_with_pieces, data=data, max_length=16)
    dataset = task.load_datasets()["train"]
    assert task.tag_names == ("x", "y", "z")
    letters = task.processor.convert_ids_to_tokens
    assert letters(dataset[0]["input_ids"]) == ["[CLS]", *"abcdef", "[SEP]"]
    assert dataset[0]["labels"] == [-100, 0, -100, -100, 1, 2, -100, -100]
    assert letters(dataset[1]["input_ids"])[1:3] == ["a", "[UNK]"]
    assert [label for label in dataset[1]["labels"] if label >= 0] == [2, 1]
    assert dataset.lengths.tolist() == [8, len(dataset[1]["input_ids"])]
    batch = task.collate(dataset.__getitems__([0, 1]))
    assert batch["labels"].shape == batch["weights"].shape == batch["input_ids"].shape
    assert torch.equal(batch["weights"], (batch["labels"] != -100).float())
    assert "starting_words" not in batch


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_labels_align_with_words(architecture, make_task):
    rows = tagged_sentences(20)
    task = make_task(rows, architecture)
    datasets = task.load_datasets()
    assert task.tag_names == ("colour", "noun", "other")
    for row, example in enumerate(datasets["train"].table):
        labels = [task.tag_names[label] for label in example["labels"] if label != -100]
        assert labels == rows[row]["tags"]
        assert example["labels"][0] == example["labels"][-1] == -100  # special tokens
    batch = task.collate(datasets["train"].__getitems__(list(range(8))))
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_tags_may_be_ids_names_or_class_labels(make_task, tiny, monkeypatch):
    rows = tagged_sentences(12)
    task = make_task(rows, label_names=TAGS)
    expected = [[TAGS.index(tag) for tag in row["tags"]] for row in rows]
    train, name = task.rows["train"], "tags"
    assert task.encode_labels(train, "train") == expected
    ids = train.remove_columns(name).add_column(name, expected)
    assert task.encode_labels(ids, "train") == expected
    class_labels = List(ClassLabel(names=["noun", "other", "colour"]))
    features = Features({"tokens": List(Value("string")), "tags": class_labels})
    other = Dataset.from_list(rows, features=features)
    assert task.encode_labels(other, "train") == expected
    monkeypatch.setattr(Data, "read", lambda self: DatasetDict(train=other))
    named = TokenClassification(model=tiny("bert"), data=Data(path="-", validation=0))
    assert named.tag_names == ("noun", "other", "colour")


def test_unknown_tags_do_not_count(make_task):
    rows = tagged_sentences(12)
    rows[3]["tags"][1] = None
    task = make_task(rows)
    dataset = task.load_datasets()["train"]
    counted = sum(label != -100 for label in dataset[3]["labels"])
    assert counted == len(rows[3]["tags"]) - 1


def test_longer_rows_are_truncated_and_counted(make_task, caplog):
    rows = tagged_sentences(12)
    task = make_task(rows, max_length=8)
    with caplog.at_level("INFO", "ftloop"):
        dataset = task.load_datasets()["train"]
    longer = sum(len(row["tokens"]) > 6 for row in rows)
    assert 0 < longer < 12
    expected = f"data: {longer} of 12 texts are longer than --max-length 8 and were truncated"
    assert expected in caplog.text
    for row, example in zip(rows, dataset.table, strict=True):
        labels = [label for label in example["labels"] if label != -100]
        assert len(labels) == min(6, len(row["tokens"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["other"]}, "row 3 (from 0) has 2 words but 1 tags"),
        ({"tags": None}, "1 missing label (rows 3), counted from 0"),
        ({"tokens": [], "tags": []}, "1 empty tokens (rows 3), counted from 0"),
    ],
)
def test_rows_that_cannot_be_used_are_named(make_task, change, message):
    rows = tagged_sentences(12)
    rows[3] = {"tokens": ["red", "sky"], "tags": ["colour", "noun"], **change}
    with pytest.raises(UserError) as error:
        make_task(rows).load_datasets()
    assert message in str(error.value)


def test_rows_without_tags_are_dropped_on_request(make_task):
    rows = tagged_sentences(12)
    rows[3]["tags"] = None
    task = make_task(rows)
    data = Data(files=task.data.files, drop_empty=True)
    dataset = make_task(rows, data=data).load_datasets()["train"]
    assert len(dataset) == 11


def test_a_stream_gives_the_examples_of_a_table(make_task):
    rows = tagged_sentences(12)
    task = make_task(rows)
    table = task.load_datasets()["train"].table.to_list()
    data = Data(files=task.data.files, streaming=True)
    streamed = make_task(rows, data=data).load_datasets()["train"]
    streamed.set_seed(0)
    examples = streamed.__getitems__(list(range(12)))

    def key(example):
        return example["input_ids"]

    assert sorted(examples, key=key) == sorted(table, key=key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ("a", "b")}, "--text-columns a b: give one column of lists"),
        ({"label_column": ("a", "b")}, "--label-column a b: give one column of lists"),
    ],
)
def test_options_are_validated(make_task, options, message):
    with pytest.raises(UserError, match=message):
        make_task(tagged_sentences(3), **options).validate()


def test_texts_and_unknown_tags_are_refused(make_task):
    texts = make_task([{"tokens": "red sky", "tags": ["colour", "noun"]}])
    with pytest.raises(UserError, match=r"holds .*, not lists of words"):
        texts.load_datasets()
    unknown = make_task([{"tokens": ["red", "sky"], "tags": ["colour", "noun"]}])
    with pytest.raises(UserError, match="validation has the tag 'other' in row 0"):
        unknown.load_datasets()


# Losses and scores


def test_losses_and_scores_are_those_of_labelled_tokens(make_task):
    task = make_task(tagged_sentences(20))
    dataset, model = task.load_datasets()["train"], task.build_model().eval()
    batch = make_batch(dataset, [(0, row) for row in range(6)], task.collate, seed=0)
    with torch.no_grad():
        outputs = model(**model_inputs(batch))
    losses = task.losses(outputs, batch)
    is_labelled = batch["labels"] != -100
    expected = torch.nn.functional.cross_entropy(
        outputs.logits[is_labelled], batch["labels"][is_labelled], reduction="none"
    )
    assert losses.shape == batch["labels"].shape == batch["weights"].shape
    assert torch.allclose(losses[is_labelled], expected)
    assert (losses[~is_labelled] == 0).all()
    values = task.predict(outputs, batch)
    assert torch.equal(values["predictions"] == -100, ~is_labelled)
    accuracy, f1 = task.build_metrics()
    for metric in (accuracy, f1):
        for rows in (slice(0, 2), slice(2, 6)):
            metric.add_batch(
                predictions=values["predictions"][rows], references=batch["labels"][rows]
            )
    references = batch["labels"][is_labelled].numpy()
    predictions = values["predictions"][is_labelled].numpy()
    assert accuracy.compute() == {"accuracy": pytest.approx((references == predictions).mean())}
    expected = f1_score(references, predictions, labels=[0, 1, 2], average="macro", zero_division=0)
    assert f1.compute() == {"f1_macro": pytest.approx(expected)}
    assert task.score_names() == ("accuracy", "f1_macro")


def test_the_weight_of_a_row_is_that_of_its_tokens(make_task):
    task = make_task(tagged_sentences(12))
    dataset = task.load_datasets()["train"]
    weights = [row / 4 for row in range(len(dataset))]
    weighted = task.build_dataset(
        task.prepare(task.rows["train"]).add_column("weights", weights),
        task.encode_labels(task.rows["train"], "train"),
        "train",
    )
    batch = task.collate(weighted.__getitems__([0, 3, 9]))
    expected = (batch["labels"] != -100) * torch.tensor([[0.0], [0.75], [2.25]])
    assert torch.equal(batch["weights"], expected)


def test_the_fingerprint_is_of_the_content(make_task):
    rows = tagged_sentences(12)
    prints = [make_task(rows).load_datasets()["train"].fingerprint for _ in range(2)]
    assert prints[0] == prints[1]
    rows[5]["tags"] = rows[5]["tags"][1:] + rows[5]["tags"][:1]
    assert make_task(rows).load_datasets()["train"].fingerprint != prints[0]


# Runs


def config_of(task, run_dir, **options: Any) -> Config:
    defaults = {"batch_size": 8, "max_steps": 6, "learning_rate": 5e-3, "log_every": 1}
    return Config(task=task, run_dir=str(run_dir), **{**defaults, **options})


def test_a_step_is_a_mean_over_its_tokens_however_it_is_divided(make_task, tmp_path):
    task = make_task(tagged_sentences(16), dropout=0.0)
    logs = {}
    for size in (16, 4, 5):
        sizes = {"batch_size": 16, "micro_batch_size": size, "max_steps": 2, "max_grad_norm": 0.0}
        train(config_of(task, tmp_path / str(size), **sizes))
        logs[size] = read_log(tmp_path / str(size))
    # The first loss is the mean over all labelled tokens, and not a mean of the means of rows.
    set_seed(fold_in(42, "init"))
    model, dataset = task.build_model(), task.load_datasets()["train"]
    batch = task.collate(dataset.__getitems__(list(range(16))))
    losses = task.losses(model(**model_inputs(batch)), batch)
    counts = batch["weights"].sum(dim=1)
    mean, mean_of_means = losses.sum() / counts.sum(), (losses.sum(dim=1) / counts).mean()
    assert logs[16]["train", "loss"][0] == pytest.approx(mean.item(), rel=1e-5)
    assert abs(mean - mean_of_means) > 1e-3 * mean
    for size in (4, 5):
        for name in ("loss", "grad_norm"):
            found, expected = logs[size]["train", name], logs[16]["train", name]
            assert found[0] == pytest.approx(expected[0], rel=1e-5), (size, name)


def test_a_run_learns_is_evaluated_and_predicts(make_task, tmp_path):
    task = make_task(tagged_sentences(60))
    scores = train(config_of(task, tmp_path / "run", max_steps=60, best_metric="accuracy"))
    assert scores["validation"]["accuracy"] > 0.95
    run = str(tmp_path / "run")
    for batch_size in (None, 3):
        evaluated = evaluate_run(run, "validation", batch_size)
        assert evaluated == pytest.approx(scores["validation"], rel=1e-5)

    # The loss is the mean over all tokens, and the exported model gives it.
    _, finished, model = load_run(run)
    assert finished.tag_names == ("colour", "noun", "other")
    assert model.config.id2label == dict(enumerate(finished.tag_names))
    dataset = finished.load_datasets()["validation"]
    batch = finished.collate(dataset.__getitems__(list(range(10))))
    with torch.no_grad():
        losses = finished.losses(model.eval()(**model_inputs(batch)), batch)
    mean = losses.sum() / (batch["labels"] != -100).sum()
    assert mean.item() == pytest.approx(scores["validation"]["loss"], rel=1e-5)

    rows = tagged_sentences(9, seed=3)
    new = Dataset.from_list([{"tokens": row["tokens"]} for row in rows])
    predictions = predict_rows(run, new, batch_size=4)
    assert [len(row["tags"]) for row in predictions] == [len(row["tokens"]) for row in rows]
    pairs = [
        (tag, other)
        for row, prediction in zip(rows, predictions, strict=True)
        for tag, other in zip(row["tags"], prediction["tags"], strict=True)
    ]
    assert numpy.mean([one == other for one, other in pairs]) > 0.9
    for prediction in predictions:
        assert len(prediction["probabilities"]) == len(prediction["tags"])
        assert all(0 < probability <= 1 for probability in prediction["probabilities"])


def test_an_interrupted_run_resumes_to_the_same_bits(make_task, tmp_path, monkeypatch):
    task = make_task(tagged_sentences(30))
    options = {"save_every": 2, "micro_batch_size": 3, "eval_every": 3}
    train(config_of(task, tmp_path / "whole", **options))
    with monkeypatch.context() as patched:
        interrupt_at_step(patched, 5)
        with pytest.raises(Interrupted):
            train(config_of(task, tmp_path / "parts", **options))
    train(config_of(task, tmp_path / "parts", **options))
    assert read_results(tmp_path / "parts") == read_results(tmp_path / "whole")


CONFIG = """
from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TokenClassification

task = TokenClassification(data=Data(), max_length=32)
config = Job(task=task, run_dir="runs/tags", best_metric="f1_macro")
"""


def test_from_the_command_line_in_one_process_and_in_two(tiny, tmp_path):
    (tmp_path / "tagged.py").write_text(CONFIG)
    files = {
        split: write_rows(tmp_path / f"{split}.jsonl", tagged_sentences(count, seed))
        for seed, (split, count) in enumerate({"train": 26, "validation": 7, "test": 7}.items())
    }
    data = ("--data.files", *(word for pair in files.items() for word in pair))
    sizes = ("--batch-size", "8", "--max-steps", "3", "--dropout", "0", "--log-every", "1")
    words = (str(tmp_path / "tagged.py"), "--model", tiny("bert"), *data, *sizes, "--run-dir")
    one = run_script("train.py", *words, str(tmp_path / "one"))
    assert one.code == 0, one.err
    two = ranks(2, "train.py", *words, str(tmp_path / "two"))
    assert two.code == 0, two.err
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    assert logs[0].keys() == logs[1].keys()
    for name, values in logs[0].items():
        assert logs[1][name] == pytest.approx(values, rel=1e-4), name
    predicted = run_script("predict.py", str(tmp_path / "one"), "the red sky", "a rose")
    assert predicted.code == 0, predicted.err
    rows = [json.loads(line) for line in predicted.out.splitlines()]
    assert [len(row["tags"]) for row in rows] == [3, 2]


def test_texts_of_the_command_line_are_split_into_words(make_task):
    task = make_task(tagged_sentences(12))
    texts = Dataset.from_dict({"tokens": ["the red sky", " a  rose "]})
    words = Dataset.from_dict({"tokens": [["the", "red", "sky"], ["a", "rose"]]})
    datasets = [build_predictor(task).prepare(rows) for rows in (texts, words)]
    assert datasets[0].table["input_ids"][:] == datasets[1].table["input_ids"][:]
    assert [label for label in datasets[0][1]["labels"] if label >= 0] == [0, 0]


# Other labels of tokens need few lines


@dataclass(frozen=True)
class MaskedWords(TextTask):
    """Predict masked words, as BERT does, from texts without labels."""

    share: float = 0.3  # of the tokens that are masked

    model_class = "AutoModelForMaskedLM"
    has_token_labels: ClassVar[bool] = True

    def build_dataset(self, prepared, labels, split):
        dataset = super().build_dataset(prepared, labels, split)
        return PreparedDataset(dataset.table, dataset.lengths, self.mask, is_deterministic=False)

    def mask(self, example):
        """Mask random tokens; the loader seeds the draw by (seed, epoch, row)."""
        ids, labels = list(example["input_ids"]), [-100] * len(example["input_ids"])
        for place in random.sample(range(1, len(ids) - 1), max(1, int(self.share * len(ids)))):
            ids[place], labels[place] = self.processor.mask_token_id, ids[place]
        return {**example, "input_ids": ids, "labels": labels}

    def losses(self, outputs, batch):
        logits = outputs.logits.transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")

    def predict(self, outputs, batch):
        return {"predictions": outputs.logits.argmax(-1)}


def test_masked_words_inherit_rows_and_batches(tiny, tmp_path, monkeypatch):
    rows = [{"text": row["text"]} for row in sentences(24)]
    data = Data(path=write_rows(tmp_path / "rows.jsonl", rows), validation=6)
    task = MaskedWords(model=tiny("bert"), data=data, max_length=32)
    options = {"save_every": 2, "eval_every": 2, "micro_batch_size": 3}
    scores = train(config_of(task, tmp_path / "whole", **options))
    assert scores["validation"]["loss"] > 0
    with monkeypatch.context() as patched:
        interrupt_at_step(patched, 3)
        with pytest.raises(Interrupted):
            train(config_of(task, tmp_path / "parts", **options))
    train(config_of(task, tmp_path / "parts", **options))
    assert read_results(tmp_path / "parts") == read_results(tmp_path / "whole")
