"""Token datasets: the rows of the table, the tensors of DataCollatorWithPadding, fingerprints."""

import json
import pickle
import random

import pyarrow
import pytest
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import AutoTokenizer, DataCollatorWithPadding

from ftloop.data.prepared import PreparedDataset, fingerprint_table
from ftloop.data.tokens import LazyExamples, PaddingCollator, TokenDataset, build_token_dataset

TOKENS = {"input_ids": "int32", "token_type_ids": "int8", "attention_mask": "int8"}


def make_table(count=50, seed=0, labels="int64", segments=True, folder=None, chunk_size=7):
    """Prepared rows of random lengths; with a `folder`, in a memory-mapped file with chunks."""
    draw = random.Random(seed)
    kind = List(Value(labels.removesuffix("s"))) if labels.endswith("s") else Value(labels)
    rows = []
    for _ in range(count):
        length = draw.randint(1, 40)
        label = draw.randrange(5)
        if labels == "float64s":
            label = [draw.random() for _ in range(3)]
        elif labels == "float64":
            label /= 7
        ids = [draw.randrange(5, 24) for _ in range(length)]
        row = {"input_ids": ids, "attention_mask": [1] * length, "labels": label}
        if segments:
            row["token_type_ids"] = [draw.randrange(2) for _ in range(length)]
        rows.append(row)
    features = {name: List(Value(dtype)) for name, dtype in TOKENS.items() if name in rows[0]}
    table = Dataset.from_list(rows, features=Features({**features, "labels": kind}))
    if folder is None:
        return table
    return table.map(
        lambda batch: batch,
        batched=True,
        batch_size=3,
        writer_batch_size=chunk_size,
        cache_file_name=str(folder / "a.arrow"),
    )


@pytest.fixture
def tokenizer(tiny):
    def load(architecture="bert", side="right"):
        return AutoTokenizer.from_pretrained(tiny(architecture), padding_side=side)

    return load


def assert_same_batch(ours, theirs):
    assert type(ours) is type(theirs)
    assert list(ours) == list(theirs)
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture
def no_dictionaries(monkeypatch):
    """Fail if rows are read as dictionaries instead of views."""

    def forbid(self):
        pytest.fail("rows were read as dictionaries")

    monkeypatch.setattr(LazyExamples, "data", property(forbid))


# Rows and batches


@pytest.mark.usefixtures("no_dictionaries")
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
def test_tensors_equal_those_of_the_library(
    tokenizer, architecture, side, options, labels, tmp_path
):
    rows = make_table(labels=labels, segments=architecture == "bert", folder=tmp_path)
    rows = rows.add_column("weights", [row / 3 for row in range(len(rows))])
    assert rows.data.table.column("input_ids").num_chunks > 1
    tokenizer, dataset = tokenizer(architecture, side), build_token_dataset(rows)
    ours = PaddingCollator(tokenizer, **options)
    theirs = DataCollatorWithPadding(tokenizer, **options)
    draw = random.Random(1)
    for count in (1, 2, 8, 33):
        chosen = [draw.randrange(len(rows)) for _ in range(count)]
        assert_same_batch(ours(dataset.__getitems__(chosen)), theirs(rows.__getitems__(chosen)))


def table_variants(folder):
    rows, more = make_table(folder=folder), make_table(20, seed=1)
    numbers = [row / 3 for row in range(len(rows))]
    labelled = rows.remove_columns("labels").add_column("labels", numbers)
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
    large = pyarrow.array([[1], [2, 3], []], pyarrow.large_list(pyarrow.int64()))
    large = pyarrow.table({"input_ids": large}).slice(1)
    yield "large lists", Dataset(large.append_column("attention_mask", pyarrow.array([[1, 1], []])))
    yield (
        "a mask that differs",
        more.map(lambda row: {"attention_mask": [1, *row["attention_mask"][1:-1], 0]}),
    )


def test_rows_are_those_of_the_table_however_it_was_made(tokenizer, tmp_path):
    ours, theirs = PaddingCollator(tokenizer()), DataCollatorWithPadding(tokenizer())
    for name, rows in table_variants(tmp_path):
        dataset, every = build_token_dataset(rows), list(range(len(rows)))
        assert isinstance(dataset, TokenDataset), name
        assert len(dataset) == len(rows)
        assert list(dataset.__getitems__(every)) == list(rows), name
        cells = dataset.__getitems__(every).read_cells()
        for column in rows.column_names:
            found = cells[column]
            if not isinstance(found, list):
                arrays = found.arrays
                if found.constant is not None:
                    arrays = [[found.constant] * length for length in found.lengths]
                found = [list(array) for array in arrays]
            assert found == rows[column][:], (name, column)
        if name != "a mask that differs":
            assert_same_batch(ours(dataset.__getitems__(every)), theirs(rows.__getitems__(every)))


def test_examples_are_a_list_of_dictionaries_that_may_be_changed(tokenizer):
    rows = make_table()
    examples = build_token_dataset(rows).__getitems__([4, 2])
    assert isinstance(examples, list)
    assert len(examples) == 2
    assert not examples.was_read
    assert examples[0] == rows[4]
    assert type(examples[0]["input_ids"]) is list
    assert examples == rows.__getitems__([4, 2])
    assert examples[1:] + examples[:1] == rows.__getitems__([2, 4])
    assert pickle.loads(pickle.dumps(examples)) == examples
    examples[0]["input_ids"][0] = 23
    examples.append(rows[7])
    changed = rows.__getitems__([4, 2, 7])
    changed[0]["input_ids"][0] = 23
    expected = DataCollatorWithPadding(tokenizer())(changed)
    assert_same_batch(PaddingCollator(tokenizer())(examples), expected)


def test_any_collator_takes_the_examples(tokenizer):
    rows = make_table()
    collator = DataCollatorWithPadding(tokenizer())
    examples = build_token_dataset(rows).__getitems__([4, 2])
    assert_same_batch(collator(examples), collator(rows.__getitems__([4, 2])))


def test_the_column_length_becomes_an_attribute():
    rows = make_table()
    assert not hasattr(build_token_dataset(rows), "lengths")
    lengths = list(map(len, rows["input_ids"]))
    rows = rows.add_column("length", lengths)
    backwards = list(range(len(rows)))[::-1]
    variants = {
        "all": (rows, lengths),
        "a range": (rows.select(range(5, 20)), lengths[5:20]),
        "reversed": (rows.select(backwards), lengths[::-1]),
        "not numeric": (rows.add_column("id", list("abcde" * 10)), lengths),
    }
    for name, (table, expected) in variants.items():
        dataset = build_token_dataset(table)
        assert dataset.lengths.tolist() == expected, name
        assert "length" not in dataset[3]
        assert "length" not in dataset.__getitems__([3])[0]


def test_other_tables_are_left_to_the_libraries(tokenizer):
    rows = make_table()
    words = rows.add_column("id", [str(row) for row in range(len(rows))])
    windows = Dataset.from_dict({"input_ids": [[[1, 2], [3]]], "labels": [1]})
    missing = Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [1, None]})
    inside = Dataset.from_dict({"input_ids": [[1, None], [3]]})
    plain = rows.remove_columns("input_ids")
    fewer = rows.with_format(None, columns=["labels", "input_ids"])
    for other in (words, windows, missing, inside, plain, fewer, rows.with_format("torch")):
        assert type(build_token_dataset(other)) is PreparedDataset
    without_mask = build_token_dataset(rows.remove_columns("attention_mask"))
    examples, expected = without_mask.__getitems__([3, 1]), without_mask.table.__getitems__([3, 1])
    batch = PaddingCollator(tokenizer())(examples)
    assert_same_batch(batch, DataCollatorWithPadding(tokenizer())(expected))
    too_short = {"padding": "max_length", "max_length": 3}
    for collator in (PaddingCollator, DataCollatorWithPadding):
        examples = build_token_dataset(rows).__getitems__(list(range(9)))
        with pytest.raises(ValueError, match="Unable to create tensor"):
            collator(tokenizer(), **too_short)(examples)


def test_a_process_makes_its_own_views(tokenizer, tmp_path):
    dataset = build_token_dataset(make_table(folder=tmp_path).shuffle(seed=3))
    expected = PaddingCollator(tokenizer())(dataset.__getitems__([5, 6]))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5000  # the name of a file, not its content; and the order
    examples = pickle.loads(pickled).__getitems__([5, 6])
    assert_same_batch(PaddingCollator(tokenizer())(examples), expected)


def test_a_transform_is_applied_to_each_row():
    rows = make_table()
    dataset = PreparedDataset(rows, transform=lambda row: {"labels": row["labels"] + 10})
    expected = [{"labels": label + 10} for label in rows["labels"]]
    assert [dataset[row] for row in range(len(rows))] == expected
    assert dataset.__getitems__([7, 3]) == [expected[7], expected[3]]


# Labels of tokens


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("read_first", [False, True], ids=["views", "dictionaries"])
def test_labels_of_tokens_are_padded(tokenizer, side, read_first):
    rows = make_table(5).remove_columns("labels")
    labels = [[token % 3 for token in ids] for ids in rows["input_ids"]]
    weights = [[token / 10 for token in ids] for ids in rows["input_ids"]]
    rows = rows.add_column("labels", labels).add_column("weights", weights)
    examples = build_token_dataset(rows).__getitems__([4, 2, 0])
    if read_first:
        list(examples)
    tokenizer = tokenizer(side=side)
    padding = {"labels": -100, "weights": 0}
    batch = PaddingCollator(tokenizer, pad_to_multiple_of=8, extra_padding=padding)(examples)
    is_token = batch["attention_mask"] == 1
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"].dtype == torch.int64
    assert torch.equal(batch["labels"][is_token], batch["input_ids"][is_token] % 3)
    assert (batch["labels"][~is_token] == -100).all()
    assert batch["weights"].dtype == torch.float32
    assert torch.allclose(batch["weights"], batch["input_ids"] / 10 * is_token)


# Fingerprints


def mixed_rows() -> Dataset:
    """50 rows with cells of all kinds, some of them missing."""
    draw = random.Random(0)
    rows = []
    for row in range(50):
        rows.append(
            {
                "input_ids": [draw.randrange(9) for _ in range(row % 6)],
                "labels": None if row % 7 == 0 else row % 5,
                "text": None if row % 5 == 4 else f"text {row}",
                "image": {"bytes": b"x" * row if row % 2 else None, "path": str(row)},
                "nested": [[token] * (row % 3) for token in range(row % 4)],
                "tone": row / 7,
                "flag": row % 2 == 0,
            }
        )
    return Dataset.from_list(rows)


def test_equal_content_has_an_equal_fingerprint_however_it_is_stored(tmp_path):
    rows = mixed_rows()
    expected = fingerprint_table(rows)
    backwards = list(range(len(rows)))[::-1]
    chunks = [rows.select(range(0, 3)), rows.select(range(3, 40)), rows.select(range(40, 50))]
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    variants = {
        "made again": mixed_rows(),
        "in chunks": concatenate_datasets(chunks),
        "reversed twice": rows.select(backwards).select(backwards),
        "read from files": Dataset.load_from_disk(tmp_path / "saved"),
        "pickled": pickle.loads(pickle.dumps(rows)),
    }
    for name, variant in variants.items():
        assert fingerprint_table(variant) == expected, name
    assert PreparedDataset(rows).fingerprint == expected


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": [1, 2]},
        {"input_ids": []},
        {"labels": 7},
        {"labels": None},
        {"text": "another"},
        {"text": None},
        {"image": {"bytes": b"other", "path": "3"}},
        {"image": {"bytes": None, "path": "3"}},
        {"nested": [[1], [2]]},
        {"tone": 0.5},
        {"flag": True},
    ],
    ids=str,
)
def test_another_cell_gives_another_fingerprint(change):
    rows = mixed_rows()
    cells = rows.to_list()
    cells[3] |= change
    changed = Dataset.from_list(cells, features=rows.features)
    assert fingerprint_table(changed) != fingerprint_table(rows)


def test_moving_values_gives_another_fingerprint():
    for one, two in ([[[1, 2], [3]], [[1], [2, 3]]], [[0, 1], [1, 0]], [["ab", "c"], ["a", "bc"]]):
        tables = [Dataset.from_dict({"labels": cells}) for cells in (one, two)]
        assert fingerprint_table(tables[0]) != fingerprint_table(tables[1])
