"""A tokenizer and a model that do not fit each other: corrected and logged, or one clear error."""

import json
import logging
import random
from dataclasses import replace

import numpy
import pytest
import torch
from conftest import is_untouched, run_script, write_csv
from datasets import Dataset, DatasetDict

from benchmarks.architectures import make_model, make_tokenizer, words
from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.tasks import TextClassification, TextTask, TokenClassification

TEXTS = [words(count, seed=count) for count in (3, 9, 2, 14, 5, 11)]
ROWS = {
    "text": TEXTS,
    "other": TEXTS[::-1],
    "words": [text.split() for text in TEXTS],
    "label": ["a", "b", "c"] * 2,
    "labels": [["a"], ["a", "b"], []] * 2,
    "number": [0.5, 1.5, 2.25] * 2,
    "tags": [["x", "y", *["x"] * (len(text.split()) - 2)] for text in TEXTS],
}


class InMemory(Data):
    """The rows above."""

    def read(self) -> DatasetDict:
        return DatasetDict({"train": Dataset.from_dict(ROWS)})


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "ftloop")
    return caplog


@pytest.fixture
def build(tmp_path):
    """Return a function that saves a model and returns a task on it."""

    def make(architecture, tokenizer=None, task_class=TextClassification, **options):
        changes = options.pop("changes", {})
        head = options.pop("head", "AutoModel")
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        make_model(folder, architecture, head, tokenizer=tokenizer, **changes)
        defaults = {"data": InMemory(validation=0), "max_length": 32}
        return task_class(model=str(folder), **{**defaults, **options})

    return make


def logits(task, model, texts):
    rows = [dict(task.processor(text)) for text in texts]
    with torch.no_grad():
        return model.eval()(**task.collate(rows)).logits


def assert_independent_of_padding(task, model):
    together = logits(task, model, TEXTS)
    for number, text in enumerate(TEXTS):
        assert torch.allclose(logits(task, model, [text])[0], together[number], atol=1e-5)


def export(task, model, folder):
    folder.mkdir()
    task.export(model, model.state_dict(), folder)
    return task.from_finished_run(str(folder))


# Padding


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_the_padding_token_of_the_tokenizer_is_used(build, log, tmp_path, architecture):
    family = {"bert": "bert", "t5": "t5"}.get(architecture, "decoder")
    task = build(architecture, make_tokenizer(family, pad_token="never"))
    model = task.build_model()
    pad = task.processor.pad_token_id
    assert model.config.pad_token_id == pad != 0
    assert f"its configuration has pad_token_id 0, but its tokenizer has {pad}" in log.text
    assert_independent_of_padding(task, model)
    exported = export(task, model, tmp_path / "exported")
    assert_independent_of_padding(exported, exported.build_model())


def test_roberta_keeps_the_padding_id_from_which_it_counts_positions(build):
    task = build("roberta", make_tokenizer("roberta", pad_token="never"))
    model = task.build_model()
    assert model.config.pad_token_id == 0
    assert_independent_of_padding(task, model)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_model_without_a_padding_token_is_padded_with_its_end_token(build, log, architecture):
    tokenizer = make_tokenizer("decoder", pad_token=None)
    task = build(architecture, tokenizer, changes={"pad_token_id": None})
    model = task.build_model()
    assert model.config.pad_token_id == task.processor.eos_token_id == 3
    assert "its tokenizer has no padding token; '</s>' is used" in log.text
    assert_independent_of_padding(task, model)


@pytest.mark.parametrize(
    ("architecture", "family", "wrong", "right"),
    [
        ("bert", "bert", "left", "right"),
        ("roberta", "roberta", "left", "right"),
        ("gpt2", "decoder", "left", "right"),
        ("t5", "t5", "left", "right"),  # its decoder attends to padding
        ("xlnet", "xlnet", "right", "left"),
    ],
)
def test_texts_are_padded_where_the_model_allows_it(
    build, log, tmp_path, architecture, family, wrong, right
):
    task = build(architecture, make_tokenizer(family, padding_side=wrong))
    model = task.build_model()
    assert task.processor.padding_side == right
    assert f"texts are padded on the {right}, since on the {wrong}" in log.text
    assert_independent_of_padding(task, model)
    exported = export(task, model, tmp_path / "exported")
    assert exported.processor.padding_side == right
    assert_independent_of_padding(exported, exported.build_model())


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_relative_positions_allow_padding_on_the_left(build, log, architecture):
    task = build(architecture, make_tokenizer("decoder", padding_side="left"))
    model = task.build_model()
    assert task.processor.padding_side == "left"
    assert "padded on the" not in log.text
    assert_independent_of_padding(task, model)


KINDS = {
    "classes": {},
    "pairs": {"text_columns": ("text", "other")},
    "windows": {"long_text": "windows", "max_length": 8},
    "head-tail": {"long_text": "head-tail", "max_length": 8},
    "labels": {"label_column": "labels"},
    "number": {"label_column": "number"},
    "multiple": {"pad_to_multiple_of": 32},
    "tags": {"task_class": TokenClassification, "text_columns": "words", "label_column": "tags"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_checked(build, kind):
    task = build("convbert", **KINDS[kind])
    with pytest.raises(UserError, match=r"results depend on padding.* alone and .* beside"):
        task.build_model()


@pytest.mark.parametrize("kind", [*KINDS, "packing"])
def test_every_kind_of_task_passes_the_check(build, kind, log):
    options = {"packing": True} if kind == "packing" else KINDS[kind]
    build("bert", **options).build_model()
    assert "padded on" not in log.text


def test_padding_to_one_length_is_independent_of_the_batch(build):
    task = build("convbert", pad_to="max")
    model = task.build_model()
    assert_independent_of_padding(task, model)


def test_the_check_leaves_no_trace(build):
    """Modes of modules, random states and options of the tokenizer are as without it."""
    task = build("bert", init="random")

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state())

    class Unchecked(TextClassification):
        def check_padding(self, model):
            pass

    results = []
    for variant in (task, Unchecked(**vars(task))):
        torch.manual_seed(3)
        model = variant.build_model()
        modes = [module.training for module in model.modules()]
        results.append((states(), modes, variant.cache_key(Dataset.from_dict({"text": ["a"]}))))
        assert all(modes)  # random weights are in training mode
    assert results[0][:2] == results[1][:2]


def test_finished_runs_and_other_tasks_are_not_checked(build, monkeypatch, tmp_path):
    task = build("bert")
    exported = export(task, task.build_model(), tmp_path / "exported")
    monkeypatch.setattr("ftloop.tasks.agreement.compute_with_and_without", None)
    exported.build_model()

    class Own(TextTask):
        model_class = "AutoModelForMaskedLM"

    build("bert", task_class=Own).build_model()


def test_a_refused_model_ends_a_run_before_it_begins(tmp_path):
    folder = make_model(tmp_path / "model", "convbert")
    rows = [{"text": text, "label": "ab"[row % 2]} for row, text in enumerate(TEXTS)]
    file = write_csv(tmp_path / "rows.csv", rows)
    command = ["--model", folder, "--data", file, "--data.validation", "0", "--max-length", "32"]
    run = tmp_path / "run"
    result = run_script("train.py", "configs/text.py", *command, "--run-dir", str(run))
    assert result.code == 2
    assert "its results depend on padding. The same text has the output" in result.err
    assert "Traceback" not in result.err
    assert is_untouched(run)


# Token types


def test_token_types_of_pairs_are_left_out_if_the_model_has_one(build, log, tmp_path):
    options = {"text_columns": ("text", "other")}
    task = build("roberta", make_tokenizer("bert"), changes={"type_vocab_size": 1}, **options)
    model = task.build_model()
    example = task.load_datasets()["train"][0]
    assert set(example) == {"input_ids", "attention_mask", "labels"}
    assert "token types of its tokenizer are left out, since the model has only one" in log.text
    assert torch.isfinite(model(**{k: torch.tensor([example[k]]) for k in example}).logits).all()
    exported = export(task, model, tmp_path / "exported")
    assert exported.processor.model_input_names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert", "llama"])
def test_token_types_are_left_out_if_the_model_takes_none(build, log, architecture):
    task = build(architecture, make_tokenizer("bert"))
    task.build_model()
    assert "token_type_ids" not in task.processor.model_input_names
    assert "are left out, since the model takes none" in log.text


def test_a_token_type_that_the_model_does_not_have_is_an_error(build):
    task = build("bert", make_tokenizer("xlnet", padding_side="right"))
    with pytest.raises(UserError, match="gives the token type 2, but the model has type_vocab_s"):
        task.build_model()


# End-of-sequence tokens


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_a_text_must_not_hold_the_token_that_ends_texts(build, architecture, monkeypatch):
    task = build(architecture)
    texts = [*TEXTS[:3], "the sky </s> is blue", *TEXTS[4:]]
    monkeypatch.setitem(ROWS, "text", texts)
    with pytest.raises(UserError) as caught:
        task.load_datasets()
    assert str(caught.value) == (
        "--text-columns text: 1 row(s) hold the characters '</s>', by which this model finds the "
        "end of a text; the first one has 'the sky </s> is blue'. Remove them from the texts, for "
        "example with --data.map."
    )
    other = replace(task, long_text="windows", max_length=6)
    with pytest.raises(UserError, match=r"1 row\(s\) hold the characters"):
        other.load_datasets()
    pairs = replace(task, text_columns=("other", "text"))
    with pytest.raises(UserError, match=r"1 row\(s\) hold the characters"):
        pairs.load_datasets()
    with pytest.raises(UserError, match=r"1 row\(s\) hold the characters"):
        task.prepare_block(Dataset.from_dict(ROWS))
    build("roberta").load_datasets()  # only one token per row matters to other models


def test_new_rows_must_not_hold_it_either(tmp_path):
    folder = make_model(tmp_path / "model", "bart")
    rows = [{"text": text, "label": "ab"[row % 2]} for row, text in enumerate(TEXTS)]
    file = write_csv(tmp_path / "rows.csv", rows)
    command = ["--model", folder, "--data", file, "--data.validation", "0", "--max-length", "32"]
    run = ["--run-dir", str(tmp_path / "run"), "--max-steps", "1"]
    assert run_script("train.py", "configs/text.py", *command, *run).code == 0
    result = run_script("predict.py", str(tmp_path / "run"), "sky", "the sky </s> is blue")
    assert result.code == 2
    assert "1 row(s) hold the characters '</s>'" in result.err


def test_the_end_token_of_the_tokenizer_is_used(build, log):
    task = build("bart", changes={"eos_token_id": 4, "forced_eos_token_id": None})
    model = task.build_model()
    assert model.config.eos_token_id == 3
    assert "its configuration has eos_token_id 4, but its tokenizer has 3" in log.text


def test_a_tokenizer_may_end_texts_with_another_token(build, monkeypatch):
    """BERT's tokenizer has no end-of-sequence token, but its [SEP] has the id of the model's."""
    task = build("bart", make_tokenizer("bert"))
    assert task.build_model().config.eos_token_id == task.processor.sep_token_id == 3
    monkeypatch.setitem(ROWS, "text", [*TEXTS[:5], "the [SEP] sky"])
    with pytest.raises(UserError, match=r"1 row\(s\) hold the characters '\[SEP\]'"):
        replace(task).load_datasets()


def test_a_tokenizer_that_ends_no_text_is_an_error(build):
    task = build("bart", make_tokenizer("decoder"))
    with pytest.raises(UserError, match="does not end a text with the end-of-sequence token 3"):
        task.build_model()


# Vocabulary and lengths


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(build):
    task = build("bert", changes={"vocab_size": 20})
    with pytest.raises(UserError) as caught:
        task.build_model()
    assert "its tokenizer has ids up to 21 ('deep'), but the model has vocab_size 20" in str(
        caught.value
    )
    random_weights = replace(task, init="random", model_options={"vocab_size": 22})
    assert random_weights.build_model().config.vocab_size == 22


@pytest.mark.parametrize(
    ("architecture", "changes", "limit"),
    [
        ("bert", {}, 80),
        ("roberta", {}, 79),  # positions begin after the padding id, 0
        ("longformer", {}, 79),
        ("esm", {"position_embedding_type": "absolute"}, 79),
        ("bart", {}, 80),  # two more positions, of which the first two are for no token
        ("opt", {}, 80),
        ("gpt2", {}, 80),
        ("gpt_neo", {}, 80),
        ("roformer", {}, 80),
        ("llama", {}, 80),
        ("t5", {}, None),
        ("xlnet", {}, None),
        ("bloom", {"max_position_embeddings": -1}, None),
    ],
)
def test_the_limit_of_lengths_is_that_of_the_positions(build, architecture, changes, limit):
    task = build(architecture, changes=changes)
    tokenizer = task.processor
    for sentinel in (int(1e30), 10**9):
        tokenizer.model_max_length = sentinel
        longest = replace(task, max_length=limit or 500)
        vars(longest)["processor"] = tokenizer
        model = longest.build_model()
        ids = torch.full((1, longest.max_length), 7)
        ids[:, -1] = 3
        model(input_ids=ids)
        assert tokenizer.model_max_length == (limit or sentinel)
        if limit:
            tokenizer.model_max_length = sentinel
            longer = replace(task, max_length=limit + 1)
            vars(longer)["processor"] = tokenizer
            with pytest.raises(UserError, match=f"takes at most {limit} tokens"):
                longer.build_model()


def test_relative_positions_go_beyond_the_limit_of_the_tokenizer(build):
    task = build("t5", max_length=100)  # the tokenizer has 64
    task.build_model()
    assert task.processor.model_max_length == 100


def test_block_sparse_attention_does_not_depend_on_the_batch(build, log):
    sparse = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
    task = build("big_bird", changes=sparse, max_length=14)
    model = task.build_model()
    assert model.config.attention_type == "original_full"
    assert "block-sparse attention is for more than 14 tokens; it is off" in log.text
    with pytest.raises(UserError, match="model-options attention_type=original_full, or --pad-to"):
        replace(task, max_length=15).build_model()
    assert replace(task, max_length=15, pad_to="max").build_model() is not None


def test_the_changes_are_saved_in_the_exported_folder(build, tmp_path):
    task = build("distilbert", make_tokenizer("bert", padding_side="left"))
    export(task, task.build_model(), tmp_path / "exported")
    saved = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
    assert saved["padding_side"] == "right"
    assert saved["model_input_names"] == ["input_ids", "attention_mask"]
