"""Streams: every row once an epoch, the same rows for any process, worker and resumed run, and little memory."""

import gzip
import json
from pathlib import Path

import pytest
from conftest import ranks, run_script, sentences, write_csv

from ftloop import UserError
from ftloop.loader import build_loader
from ftloop.sampler import UNBOUNDED, TrainOrder, rows_served
from ftloop.data.stream import Stream


def write_shards(folder: Path, sizes: tuple[int, ...]) -> list[str]:
    """JSON Lines files of so many rows {"id", "text"}, the ids counted through."""
    names, first = [], 0
    for number, size in enumerate(sizes):
        rows = [{"id": row, "text": f"row {row}"} for row in range(first, first + size)]
        file = folder / f"part-{number}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        names.append(str(file))
        first += size
    return names


def listed(rows):
    return rows.to_list()


def stream_of(files: list[str], buffer: int = 7, usable=lambda rows, shard, first: rows, identity: str = "") -> Stream:
    from datasets import load_dataset

    source = load_dataset("json", data_files=files, split="train", streaming=True)
    return Stream(source, buffer, usable, listed, identity or str(abs(hash((*files, buffer)))))


def ids(stream: Stream, first: int, stop: int, seed: int = 1) -> list[int]:
    return [row["id"] for row in stream.read(list(range(first, stop)), seed)]


def test_an_epoch_has_every_row_once_and_each_epoch_has_its_own_order(tmp_path):
    stream = stream_of(write_shards(tmp_path, (10, 3, 25, 0, 12)))
    first, second = ids(stream, 0, 50), ids(stream, 50, 100)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != list(range(50))
    assert len(stream) == UNBOUNDED


def test_the_row_at_a_position_does_not_depend_on_what_was_read_before(tmp_path):
    files = write_shards(tmp_path, (10, 3, 25, 12))
    expected = ids(stream_of(files, identity="one"), 0, 120)
    for cut in (1, 6, 7, 8, 20, 49, 50, 51, 99, 119):
        assert ids(stream_of(files, identity=f"anew{cut}"), cut, 120) == expected[cut:]  # sizes are not known yet
        assert ids(stream_of(files, identity="one"), cut, 120) == expected[cut:]  # sizes are known from a file
    stream = stream_of(files, identity="two")
    assert ids(stream, 60, 70) == expected[60:70]
    assert ids(stream, 5, 15) == expected[5:15]  # going back begins anew
    assert [row["id"] for row in stream.read([9, 4, 9], 1)] == [expected[9], expected[4], expected[9]]


def test_a_stream_that_fits_the_buffer_is_in_the_order_of_a_table(tmp_path):
    stream = stream_of(write_shards(tmp_path, (40,)), buffer=50)
    for epoch in range(3):
        assert ids(stream, 40 * epoch, 40 * epoch + 40) == rows_served(40, 1, epoch, 0, 40)


def test_another_seed_shuffles_shards_and_blocks_in_another_way(tmp_path):
    files = write_shards(tmp_path, (10, 10, 10))
    assert ids(stream_of(files), 0, 30, seed=1) != ids(stream_of(files), 0, 30, seed=2)


def test_shards_that_lie_before_are_skipped_without_being_read(tmp_path, caplog):
    files = write_shards(tmp_path, (10, 10, 10, 10))
    expected = ids(stream_of(files, identity="sized"), 0, 40)
    stream, read = stream_of(files, identity="sized"), []
    inner = stream._shard
    stream._shard = lambda shard, held_out: read.append(shard) or inner(shard, held_out)
    with caplog.at_level("INFO", "ftloop"):
        assert ids(stream, 29, 40) == expected[29:]
    assert len(read) == 2  # row 29 lies in the block that begins at 28, in the third shard
    assert "shard" in caplog.text
    assert "(up to 8) are read again" in caplog.text


def test_rows_that_are_held_out_are_the_first_and_are_never_trained_on(tmp_path):
    stream = stream_of(write_shards(tmp_path, (5, 20, 5)))
    assert stream.hold_out(8, "validation")["id"][:] == list(range(8))
    assert stream.hold_out(2, "test")["id"][:] == [8, 9]
    assert stream.head(3)["id"][:] == [10, 11, 12]
    assert sorted(ids(stream, 0, 20)) == list(range(10, 30))
    with pytest.raises(UserError, match=r"--task.data.validation 21: the stream has 20 rows"):
        stream.hold_out(21, "validation")


def test_unusable_rows_are_left_out_and_counted(tmp_path, caplog):
    def even(rows, shard, first):
        return rows.select([row for row, number in enumerate(rows["id"]) if number % 2 == 0])

    stream = stream_of(write_shards(tmp_path, (10, 20)), usable=even, identity="even")
    assert sorted(ids(stream, 0, 15)) == list(range(0, 30, 2))
    ids(stream, 15, 45)
    assert caplog.text.count("5 of the 10 rows of shard 0 are unusable") == 1
    assert caplog.text.count("10 of the 20 rows of shard 1 are unusable") == 1


def test_errors_name_the_shard_and_the_change_of_type(tmp_path):
    files = write_shards(tmp_path, (5, 5))
    Path(files[1]).write_text('{"id": "six", "text": "x"}\n')
    with pytest.raises(UserError, match=r"shard . of the stream cannot be read|changes its type"):
        ids(stream_of(files, identity="types"), 0, 6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_see_disjoint_rows_and_together_the_same_as_one(tmp_path, processes, workers):
    files = write_shards(tmp_path, (40, 33))
    expected = ids(stream_of(files, 16, identity="one"), 0, 60)
    from ftloop.checkpoint import TrainState

    served: dict[int, list[int]] = {}
    order = TrainOrder(UNBOUNDED, 6, 2, processes, 10, 1, TrainState())
    stream = stream_of(files, 16, identity="one")
    loader = build_loader(stream, order, collate_ids, seed=1, workers=workers)
    for batch in loader:
        for position, number in zip(batch["rows"].tolist(), batch["ids"].tolist(), strict=True):
            if position >= 0:
                served.setdefault(position, []).append(number)
    assert served == {position: [number] for position, number in enumerate(expected)}


def collate_ids(examples):
    import torch

    return {"ids": torch.tensor([example["id"] for example in examples])}


# ---- whole runs


@pytest.fixture
def words(tiny, tmp_path):
    """Options for a training of ten steps on a stream of 60 rows in three files: two epochs and a bit."""
    for number in range(3):
        rows = sentences(25 if number == 0 else 20, seed=number)
        lines = [json.dumps({"text": row["text"], "label": row["colour"]}) for row in rows]
        (tmp_path / f"part-{number}.jsonl").write_text("\n".join(lines) + "\n")
    return [
        *("configs/text.py", "--task.model", tiny("bert"), "--task.data.path", str(tmp_path / "part-*.jsonl")),
        *("--task.data.streaming", "--task.data.validation", "5", "--task.data.shuffle-buffer", "16"),
        *("--task.max-length", "32", "--batch-size", "12", "--micro-batch-size", "4", "--max-steps", "10"),
        *("--learning-rate", "5e-3", "--log-every", "1", "--eval-every", "5", "--save-every", "1"),
    ]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["split"] == "train" and line["name"] == "loss"]


class Cut(BaseException):
    """Stands for the end of the process."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the cut leaves its file open
def test_a_stream_that_was_cut_goes_on_as_if_it_had_not_been(words, tmp_path, monkeypatch):
    assert run_script("train.py", *words, "--run-dir", tmp_path / "whole").code == 0
    from ftloop.logs import terminal as tracking

    original, calls = tracking.StepLog.add, []

    def cut(self, step):
        calls.append(step)
        if len(calls) == 8:
            raise Cut
        original(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(tracking.StepLog, "add", cut)
        with pytest.raises(Cut):
            run_script("train.py", *words, "--run-dir", tmp_path / "cut")
    resumed = run_script("train.py", *words, "--run-dir", tmp_path / "cut", "--workers", "2")
    assert resumed.code == 0, resumed.err
    assert "resume: from" in resumed.err
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("cut", "whole")]
    assert weights[0] == weights[1]
    evaluated = run_script("evaluate.py", tmp_path / "whole", "--json")
    recorded = json.loads((tmp_path / "whole" / "scores.json").read_text())["validation"]
    assert json.loads(evaluated.out) == pytest.approx(recorded, rel=1e-6)


def test_two_processes_on_a_stream_are_one(words, tmp_path):
    words = [*words, "--task.dropout", "0"]
    assert run_script("train.py", *words, "--run-dir", tmp_path / "one").code == 0
    result = ranks(2, "train.py", *words, "--run-dir", str(tmp_path / "two"))
    assert result.code == 0, result.err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_a_stream_that_fits_the_buffer_trains_as_the_file_does(tiny, tmp_path):
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(40)]
    write_csv(tmp_path / "validation.csv", rows[:10])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    common = ["configs/text.py", "--task.model", tiny("bert"), "--task.max-length", "32", "--log-every", "1"]
    common += ["--batching", "random"]  # of a stream, nobody knows the lengths beforehand
    common += ["--batch-size", "10", "--max-steps", "8", "--task.data.files", "validation", tmp_path / "validation.csv"]
    assert run_script("train.py", *common, "train", tmp_path / "train.jsonl", "--run-dir", tmp_path / "table").code == 0
    streamed = [
        *common,
        "train",
        tmp_path / "train.jsonl.gz",
        "--task.data.streaming",
        "--run-dir",
        tmp_path / "stream",
    ]
    assert run_script("train.py", *streamed).code == 0
    assert losses(tmp_path / "stream") == losses(tmp_path / "table")


@pytest.mark.parametrize(
    ("options", "words_of_error"),
    [
        (["--task.data.streaming", "--task.data.validation", "0"], "--task.data.streaming needs --max-steps"),
        (["--task.data.streaming"], "--task.data.validation 0.1: nobody knows how many rows"),
        (["--task.data.streaming", "--task.label-lower"], "labels are changed row by row, by --task.data.map"),
    ],
)
def test_what_a_stream_cannot_do_is_said(options, words_of_error, tiny, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "red", "label": "a"}\n{"text": "blue", "label": "b"}\n' * 20)
    source = ["--task.model", tiny("bert"), "--task.data.path", tmp_path / "rows.jsonl", "--task.max-length", "8"]
    result = run_script("train.py", "configs/text.py", *source, *options, "--run-dir", tmp_path / "run")
    assert result.code == 2
    assert words_of_error in result.err


def rows_of_colours(file: Path, count: int, label: bool = True) -> str:
    rows = [{"text": row["text"], **({"label": row["colour"]} if label else {})} for row in sentences(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def streamed(*train: str, **options):
    from ftloop import Data, TextClassification

    files = {"train": list(train), **options.pop("files", {})}
    return TextClassification(model="-", data=Data(files=files, streaming=True, **{"validation": 0, **options}))


def test_only_test_may_lack_labels_beside_a_stream(tmp_path):
    train = rows_of_colours(tmp_path / "train.jsonl", 20)
    bare = rows_of_colours(tmp_path / "bare.jsonl", 5, label=False)
    with pytest.raises(UserError, match=r"--task.label-column: the split 'validation' has no column 'label'"):
        _ = streamed(train, files={"validation": bare}).rows
    assert list(streamed(train, files={"test": bare}).rows) == ["train"]
    with pytest.raises(UserError, match=r"--task.data.test 0.1: nobody knows how many rows a stream has"):
        _ = streamed(train, files={"test": bare}, test=0.1).rows


def test_rows_of_a_stream_are_named_by_shard(tmp_path):
    files = [rows_of_colours(tmp_path / f"{number}.jsonl", 1500) for number in range(2)]
    lines = Path(files[1]).read_text().splitlines()
    lines[1200] = '{"text": "", "label": "red"}'
    Path(files[1]).write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"1 empty text \(rows 1200\), counted from 0 in shard 1; mend"):
        streamed(*files).rows["train"].head(3000)


def test_what_is_known_of_shards_is_forgotten_with_the_code_of_a_function(tmp_path, monkeypatch):
    import sys

    train = rows_of_colours(tmp_path / "train.jsonl", 20)
    code = "def keeps(row):\n    return {}\n"
    (tmp_path / "stream_functions.py").write_text(code.format("True"))
    monkeypatch.syspath_prepend(str(tmp_path))
    from stream_functions import keeps

    known = [streamed(train, filter=keeps).rows["train"].sizes_file for _ in range(2)]
    (tmp_path / "stream_functions.py").write_text(code.format("len(row) > 0"))
    known.append(streamed(train, filter=keeps).rows["train"].sizes_file)
    del sys.modules["stream_functions"]
    assert known[0] == known[1] != known[2]


def test_the_record_of_a_stream_of_several_files_names_the_same_shards(tmp_path):
    from ftloop import Data
    from ftloop.data.stream import signature

    files = write_shards(tmp_path, (3, 4))
    assert len(signature(Data(files={"train": files}))) == 2
    assert signature(Data(files={"train": files})) == signature(Data(files={"train": tuple(files)}))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # datasets leaves the file to be collected
def test_csv_is_streamed_though_its_columns_are_not_known_before(tiny, tmp_path):
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(40)]
    source = ["--task.data.path", write_csv(tmp_path / "rows.csv", rows), "--task.data.streaming"]
    words = [*source, "--task.data.validation", "5", "--max-steps", "2", "--task.max-length", "32"]
    result = run_script(
        "train.py", "configs/text.py", "--task.model", tiny("bert"), *words, "--run-dir", tmp_path / "r"
    )
    assert result.code == 0, result.err
