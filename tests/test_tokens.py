"""Rows of a table as views, padded in numpy: the rows that the table gives, the tensors of DataCollatorWithPadding."""

import json
import pickle
import random

import pyarrow
import pytest
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import AutoTokenizer, DataCollatorWithPadding

from ftloop.data.tokens import Examples, PaddingCollator, Tokens, without

TOKENS = {"input_ids": "int32", "token_type_ids": "int8", "attention_mask": "int8"}


def table(count=50, seed=0, labels="int64", segments=True, folder=None, of_chunk=7):
    """Prepared rows of random lengths; written to a file, in several chunks that stay there, if `folder` is given."""
    draw = random.Random(seed)
    kind = List(Value(labels.removesuffix("s"))) if labels.endswith("s") else Value(labels)
    rows = []
    for _ in range(count):
        length = draw.randint(1, 40)
        label = [draw.random() for _ in range(3)] if labels.endswith("s") else draw.randrange(5)
        row = {"input_ids": [draw.randrange(5, 24) for _ in range(length)], "attention_mask": [1] * length}
        segment = {"token_type_ids": [draw.randrange(2) for _ in range(length)]} if segments else {}
        rows.append({**row, **segment, "length": length, "labels": label / 7 if labels == "float64" else label})
    features = {name: List(Value(kind)) for name, kind in TOKENS.items() if segments or name != "token_type_ids"}
    rows = Dataset.from_list(rows, features=Features({**features, "length": Value("int64"), "labels": kind}))
    if folder is None:
        return rows
    return rows.map(
        lambda batch: batch,
        batched=True,
        batch_size=3,
        writer_batch_size=of_chunk,
        cache_file_name=str(folder / "a.arrow"),
    )


@pytest.fixture
def tokenizer(tiny):
    def load(architecture="bert", side="right"):
        return AutoTokenizer.from_pretrained(tiny(architecture), padding_side=side)

    return load


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture
def no_slow_path(monkeypatch):
    """The table is not asked for Python lists: what is compared with it must come from the views."""

    def forbid(self):
        pytest.fail("the rows were made")

    monkeypatch.setattr(Examples, "data", property(forbid))


@pytest.mark.usefixtures("no_slow_path")
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 48},
        {"padding": "max_length", "max_length": 41, "pad_to_multiple_of": 4},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("labels", ["int64", "float64", "float32", "float64s"])
def test_the_tensors_are_those_of_the_library(tokenizer, architecture, side, options, labels, tmp_path):
    rows = table(labels=labels, segments=architecture == "bert", folder=tmp_path)
    assert rows.data.table.column("input_ids").num_chunks > 1
    tokenizer, tokens, draw = tokenizer(architecture, side), Tokens.of(rows), random.Random(1)
    ours, theirs = PaddingCollator(tokenizer, **options), DataCollatorWithPadding(tokenizer, **options)
    for count in (1, 2, 8, 33):
        chosen = [draw.randrange(len(rows)) for _ in range(count)]
        examples = tokens.__getitems__(chosen)
        for column in ("length", "none"):  # with the lengths too, as any number
            expected = theirs(without(column, rows.__getitems__(chosen)))
            assert_same(ours(without(column, examples)), expected)


def variants(folder):
    rows, more = table(folder=folder), table(20, seed=1)
    labelled = rows.remove_columns("labels").add_column("labels", [row / 3 for row in range(len(rows))])
    yield "in memory", more
    yield "shuffled", rows.shuffle(seed=1)
    yield "chosen twice", rows.select([3, 1, 4, 1, 5, 9, 2, 6]).select([7, 0, 3, 3])
    yield "a range", rows.select(range(11, 31))
    yield "a shuffled range", rows.select(range(11, 31)).shuffle(seed=1)
    yield "two tables", concatenate_datasets([rows, more])
    yield "labels of their own", labelled
    yield "a range of those", labelled.select(range(5, 45))
    yield "a shard", labelled.shard(3, 1)
    rows.save_to_disk(folder / "saved", num_shards=3)
    yield "several files", Dataset.load_from_disk(folder / "saved")
    large = pyarrow.table({"input_ids": pyarrow.array([[1], [2, 3], []], pyarrow.large_list(pyarrow.int64()))})
    yield "large lists", Dataset(large.slice(1).append_column("attention_mask", pyarrow.array([[1, 1], []])))
    yield "a mask that differs", more.map(lambda row: {"attention_mask": [1, *row["attention_mask"][1:-1], 0]})


def test_the_rows_are_those_of_the_table_however_it_came_about(tokenizer, tmp_path):
    ours, theirs = PaddingCollator(tokenizer()), DataCollatorWithPadding(tokenizer())
    for name, rows in variants(tmp_path):
        tokens, every = Tokens.of(rows), list(range(len(rows)))
        assert isinstance(tokens, Tokens), name
        assert len(tokens) == len(rows)
        assert list(tokens.__getitems__(every)) == list(rows), name
        cells = tokens.__getitems__(every).cells()
        for column in rows.column_names:
            found = cells[column]
            if not isinstance(found, list):
                constant = found.constant
                arrays = [[constant] * length for length in found.lengths] if constant is not None else found.arrays
                found = [list(array) for array in arrays]
            assert found == rows[column][:], (name, column)
        if name != "a mask that differs":
            assert_same(ours(tokens.__getitems__(every)), theirs(rows.__getitems__(every)))


def test_who_looks_sees_a_list_of_dictionaries_and_may_change_it(tokenizer):
    rows = table()
    examples = Tokens.of(rows).__getitems__([4, 2])
    assert isinstance(examples, list)
    assert len(examples) == 2
    assert not examples.seen
    assert examples[0] == rows[4]
    assert type(examples[0]["input_ids"]) is list
    assert examples == rows.__getitems__([4, 2])
    assert examples[1:] + examples[:1] == rows.__getitems__([2, 4])
    assert pickle.loads(pickle.dumps(examples)) == examples
    examples[0]["input_ids"][0] = 23
    examples.append(rows[7])
    changed = rows.__getitems__([4, 2, 7])
    changed[0]["input_ids"][0] = 23
    assert_same(PaddingCollator(tokenizer())(examples), DataCollatorWithPadding(tokenizer())(changed))
    assert without("length", examples) == [{k: v for k, v in row.items() if k != "length"} for row in changed]
    assert without("length", Tokens.of(rows).__getitems__([1])) == without("length", [rows[1]])


def test_any_collator_takes_the_rows(tokenizer):
    rows = table()
    collator = DataCollatorWithPadding(tokenizer())
    assert_same(collator(Tokens.of(rows).__getitems__([4, 2])), collator(rows.__getitems__([4, 2])))


def test_what_is_not_known_is_left_to_the_libraries(tokenizer):
    rows = table()
    words = rows.add_column("id", [str(row) for row in range(len(rows))])
    windows = Dataset.from_dict({"input_ids": [[[1, 2], [3]]], "labels": [1]})
    missing = Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [1, None]})
    inside = Dataset.from_dict({"input_ids": [[1, None], [3]]})
    plain = rows.remove_columns("input_ids")
    fewer = rows.with_format(None, columns=["labels", "input_ids"])
    for other in (words, windows, missing, inside, plain, fewer, rows.with_format("torch"), [1, 2]):
        assert Tokens.of(other) is other
    left_out = Tokens.of(rows.remove_columns("attention_mask"))
    examples, expected = left_out.__getitems__([3, 1]), left_out.table.__getitems__([3, 1])
    assert_same(PaddingCollator(tokenizer())(examples), DataCollatorWithPadding(tokenizer())(expected))
    short = {"padding": "max_length", "max_length": 3}
    for collator in (PaddingCollator, DataCollatorWithPadding):
        with pytest.raises(ValueError, match="Unable to create tensor"):
            collator(tokenizer(), **short)(Tokens.of(rows).__getitems__(list(range(9))))


def test_a_process_makes_its_own_views(tokenizer, tmp_path):
    tokens = Tokens.of(table(folder=tmp_path).shuffle(seed=3))
    expected = PaddingCollator(tokenizer())(tokens.__getitems__([5, 6]))
    sent = pickle.dumps(tokens)
    assert len(sent) < 5000  # the name of a file, not what it holds; and the order
    assert_same(PaddingCollator(tokenizer())(pickle.loads(sent).__getitems__([5, 6])), expected)
