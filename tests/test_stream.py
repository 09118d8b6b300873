"""Streams: every row once per epoch, and the same rows for any number of ranks and data workers."""

import gzip
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ranks, run_script, sentences, write_csv

from ftloop import Config, Task
from ftloop.data import Data
from ftloop.data.stream import Stream, file_stamps
from ftloop.errors import UserError
from ftloop.loader import build_dataloader
from ftloop.sampler import UNBOUNDED, TrainSampler, random_permutation
from ftloop.tasks import TextClassification


def write_shards(folder: Path, sizes: Sequence[int]) -> list[str]:
    """Write JSON Lines files of so many rows {"id", "text"}, numbered through all files."""
    files, first = [], 0
    for number, size in enumerate(sizes):
        rows = [{"id": row, "text": f"row {row}"} for row in range(first, first + size)]
        file = folder / f"part-{number}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(str(file))
        first += size
    return files


def to_list(rows):
    return rows.to_list()


def build_stream(
    files: list[str],
    buffer_size: int = 7,
    drop_unusable: Callable[..., Any] = lambda rows, shard, first: rows,
    cache_key: str = "",
    seed: int = 1,
) -> Stream:
    from datasets import load_dataset

    stream = Stream(
        source=load_dataset("json", data_files=files, split="train", streaming=True),
        buffer_size=buffer_size,
        drop_unusable=drop_unusable,
        prepare=to_list,
        cache_key=cache_key or str(abs(hash((*files, buffer_size)))),
    )
    stream.set_seed(seed)
    return stream


def ids(stream: Stream, start: int, stop: int) -> list[int]:
    """Return the ids of the rows at the positions from `start` to before `stop`."""
    return [row["id"] for row in stream.__getitems__(range(start, stop))]


def test_an_epoch_has_every_row_once_and_each_epoch_has_its_own_order(tmp_path):
    stream = build_stream(write_shards(tmp_path, (10, 3, 25, 0, 12)))
    first, second = ids(stream, 0, 50), ids(stream, 50, 100)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != list(range(50))


def test_a_stream_follows_the_dataset_protocol_of_the_core(tmp_path):
    stream = build_stream(write_shards(tmp_path, (10,)), cache_key="protocol")
    assert len(stream) == len(stream.row_order(1, 0)) == UNBOUNDED
    assert list(stream.row_order(1, 0)[5:8]) == [5, 6, 7]
    assert stream.is_deterministic
    assert stream[4] == stream.__getitems__([4])[0]


def test_the_row_at_a_position_does_not_depend_on_what_was_read_before(tmp_path):
    files = write_shards(tmp_path, (10, 3, 25, 12))
    expected = ids(build_stream(files, cache_key="one"), 0, 120)
    for start in (1, 6, 7, 8, 20, 49, 50, 51, 99, 119):
        unknown_sizes = build_stream(files, cache_key=f"new {start}")
        assert ids(unknown_sizes, start, 120) == expected[start:]
        known_sizes = build_stream(files, cache_key="one")
        assert ids(known_sizes, start, 120) == expected[start:]
    stream = build_stream(files, cache_key="two")
    assert ids(stream, 60, 70) == expected[60:70]
    assert ids(stream, 5, 15) == expected[5:15]  # going back starts anew
    rows = stream.__getitems__([9, 4, 9])
    assert [row["id"] for row in rows] == [expected[9], expected[4], expected[9]]


def test_a_stream_that_fits_into_the_buffer_has_the_order_of_a_table(tmp_path):
    stream = build_stream(write_shards(tmp_path, (40,)), buffer_size=50)
    for epoch in range(3):
        assert ids(stream, 40 * epoch, 40 * epoch + 40) == random_permutation(40, 1, epoch).tolist()


def test_another_seed_shuffles_shards_and_blocks_differently(tmp_path):
    files = write_shards(tmp_path, (10, 10, 10))
    stream = build_stream(files, seed=1)
    first = ids(stream, 0, 30)
    stream.set_seed(2)
    second = ids(stream, 0, 30)
    assert first != second
    assert second == ids(build_stream(files, seed=2), 0, 30)


def test_shards_before_a_position_are_skipped_without_being_read(tmp_path, caplog):
    files = write_shards(tmp_path, (10, 10, 10, 10))
    expected = ids(build_stream(files, cache_key="sized"), 0, 40)
    stream, shards_read = build_stream(files, cache_key="sized"), []
    read_shard = stream._read_shard
    stream._read_shard = lambda shard: shards_read.append(shard) or read_shard(shard)
    with caplog.at_level("INFO", "ftloop"):
        assert ids(stream, 29, 40) == expected[29:]
    assert len(shards_read) == 2  # position 29 is in the block from 28 on, in the third shard
    assert "stream: resuming in shard" in caplog.text
    assert "(up to 8) are read again and skipped" in caplog.text


def test_held_out_rows_are_the_first_and_are_never_trained_on(tmp_path):
    stream = build_stream(write_shards(tmp_path, (5, 20, 5)))
    assert stream.hold_out(8, "validation")["id"][:] == list(range(8))
    assert stream.hold_out(2, "test")["id"][:] == [8, 9]
    assert stream.head(3)["id"][:] == [10, 11, 12]
    assert sorted(ids(stream, 0, 20)) == list(range(10, 30))
    message = "--data.validation 21: the stream has only 20 rows"
    with pytest.raises(UserError, match=message):
        stream.hold_out(21, "validation")


def test_unusable_rows_are_dropped_and_counted(tmp_path, caplog):
    def keep_even(rows, shard, first):
        return rows.select([row for row, number in enumerate(rows["id"]) if number % 2 == 0])

    files = write_shards(tmp_path, (10, 20))
    stream = build_stream(files, drop_unusable=keep_even, cache_key="even")
    assert sorted(ids(stream, 0, 15)) == list(range(0, 30, 2))
    ids(stream, 15, 45)
    assert caplog.text.count("dropped 5 of the 10 rows of shard 0, which are unusable") == 1
    assert caplog.text.count("dropped 10 of the 20 rows of shard 1, which are unusable") == 1


def test_errors_name_the_shard_or_the_column_that_changes_its_type(tmp_path):
    files = write_shards(tmp_path, (5, 5))
    Path(files[1]).write_text('{"id": "six", "text": "x"}\n')
    message = "shard . of the stream cannot be read|does not have the same type everywhere"
    with pytest.raises(UserError, match=message):
        ids(build_stream(files, cache_key="types"), 0, 6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_ranks_read_disjoint_rows_and_together_those_of_one_rank(tmp_path, num_processes, workers):
    files = write_shards(tmp_path, (40, 33))
    expected = ids(build_stream(files, buffer_size=16, cache_key="one"), 0, 60)
    stream = build_stream(files, buffer_size=16, cache_key="one")
    config = Config(
        task=Task(), run_dir="run", batch_size=6, micro_batch_size=2, max_steps=10, seed=1
    )
    sampler = TrainSampler(stream, config, num_processes)
    ids_by_position: dict[int, list[int]] = {}
    for batch in build_dataloader(stream, sampler, collate_ids, seed=1, workers=workers):
        pairs = zip(batch["row_ids"].tolist(), batch["ids"].tolist(), strict=True)
        for position, number in pairs:
            if position >= 0:
                ids_by_position.setdefault(position, []).append(number)
    assert ids_by_position == {position: [number] for position, number in enumerate(expected)}


def collate_ids(examples):
    import torch

    return {"ids": torch.tensor([example["id"] for example in examples])}


# Whole runs


@pytest.fixture
def options(tiny, tmp_path):
    """Return options for ten steps on a stream of 60 rows in three files: a bit over two epochs."""
    for number, size in enumerate((25, 20, 20)):
        rows = [
            {"text": row["text"], "label": row["colour"]} for row in sentences(size, seed=number)
        ]
        write_jsonl(tmp_path / f"part-{number}.jsonl", rows)
    return (
        f"configs/text.py --model {tiny('bert')} --max-length 32 "
        f"--data.path {tmp_path}/part-*.jsonl --data.streaming "
        "--data.validation 5 --data.shuffle-buffer 16 "
        "--batch-size 12 --micro-batch-size 4 --max-steps 10 --learning-rate 5e-3 "
        "--log-every 1 --eval-every 5 --save-every 1"
    ).split()


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["split"] == "train" and line["name"] == "loss"]


class Killed(BaseException):
    """Stands for the end of the process."""


# The killed run leaves its source file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_run_on_a_stream_resumes_to_the_same_bits(options, tmp_path, monkeypatch):
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    assert run_script("train.py", *options, "--run-dir", complete).code == 0
    from ftloop.run import Run

    log_step, calls = Run.log_step, []

    def kill_at_step_8(run, *arguments, **keywords):
        calls.append(run)
        if len(calls) == 8:
            raise Killed
        log_step(run, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "log_step", kill_at_step_8)
        with pytest.raises(Killed):
            run_script("train.py", *options, "--run-dir", killed)
    resumed = run_script("train.py", *options, "--run-dir", killed, "--workers", "2")
    assert resumed.code == 0, resumed.err
    assert "resuming from" in resumed.err
    assert losses(killed) == losses(complete)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (killed, complete)]
    assert weights[0] == weights[1]
    evaluated = run_script("evaluate.py", complete, "--json")
    scores = json.loads((complete / "scores.json").read_text())["validation"]
    assert json.loads(evaluated.out) == pytest.approx(scores, rel=1e-6)


def test_two_processes_on_a_stream_equal_one(options, tmp_path):
    options = [*options, "--dropout", "0"]
    assert run_script("train.py", *options, "--run-dir", tmp_path / "one").code == 0
    result = ranks(2, "train.py", *options, "--run-dir", str(tmp_path / "two"))
    assert result.code == 0, result.err
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_a_stream_that_fits_into_the_buffer_trains_as_the_file_does(tiny, tmp_path):
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(40)]
    validation = write_csv(tmp_path / "validation.csv", rows[:10])
    plain = write_jsonl(tmp_path / "train.jsonl", rows)
    compressed = tmp_path / "train.jsonl.gz"
    compressed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    command = (
        f"configs/text.py --model {tiny('bert')} --max-length 32 --batch-size 10 --max-steps 8 "
        "--log-every 1 --no-group-by-length "  # the rows of a stream have no known lengths
        f"--data.files validation {validation} train"
    ).split()
    table, stream = tmp_path / "table", tmp_path / "stream"
    assert run_script("train.py", *command, plain, "--run-dir", table).code == 0
    command += [compressed, "--data.streaming"]
    assert run_script("train.py", *command, "--run-dir", stream).code == 0
    assert losses(stream) == losses(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.streaming --data.validation 0", "max-steps"),
        ("--data.streaming --max-steps 1", "--data.validation 0.1: a stream has no known number"),
        (
            "--data.streaming --max-steps 1 --label-lower",
            "--label-lower needs all rows at once, which --data.streaming does not have",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_an_error(options, message, tiny, tmp_path):
    rows = [{"text": "red", "label": "a"}, {"text": "blue", "label": "b"}] * 20
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    command = (
        f"configs/text.py --model {tiny('bert')} --max-length 8 --data.path {file} {options} "
        f"--run-dir {tmp_path / 'run'}"
    )
    result = run_script("train.py", *command.split())
    assert result.code == 2
    assert message in result.err


# datasets leaves the CSV file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_csv_is_streamed_although_its_columns_are_not_known_before(tiny, tmp_path):
    rows = [{"text": row["text"], "label": row["colour"]} for row in sentences(40)]
    file = write_csv(tmp_path / "rows.csv", rows)
    command = (
        f"configs/text.py --model {tiny('bert')} --max-length 32 --data.path {file} "
        f"--data.streaming --data.validation 5 --max-steps 2 --run-dir {tmp_path / 'run'}"
    )
    result = run_script("train.py", *command.split())
    assert result.code == 0, result.err


# Tasks on streams


def write_colours(file: Path, count: int, with_label: bool = True) -> str:
    rows = []
    for row in sentences(count):
        label = {"label": row["colour"]} if with_label else {}
        rows.append({"text": row["text"], **label})
    return write_jsonl(file, rows)


def task_on(files: dict[str, Any], **options: Any) -> TextClassification:
    data = Data(files=files, streaming=True, **{"validation": 0, **options})
    return TextClassification(model="-", data=data)


def test_only_test_may_lack_labels_beside_a_stream(tmp_path):
    train = write_colours(tmp_path / "train.jsonl", 20)
    unlabelled = write_colours(tmp_path / "unlabelled.jsonl", 5, with_label=False)
    message = "--label-column: the split 'validation' has no column 'label'"
    with pytest.raises(UserError, match=message):
        _ = task_on({"train": [train], "validation": unlabelled}).rows
    assert list(task_on({"train": [train], "test": unlabelled}).rows) == ["train"]
    message = "--data.test 0.1: a stream has no known number of rows"
    with pytest.raises(UserError, match=message):
        _ = task_on({"train": [train], "test": unlabelled}, test=0.1).rows


def test_unusable_rows_of_a_stream_are_named_by_shard(tmp_path):
    files = [write_colours(tmp_path / f"{number}.jsonl", 1500) for number in range(2)]
    lines = Path(files[1]).read_text().splitlines()
    lines[1200] = '{"text": "", "label": "red"}'
    Path(files[1]).write_text("\n".join(lines) + "\n")
    message = r"1 empty text \(rows 1200\), counted from 0 in shard 1\. Correct the file"
    with pytest.raises(UserError, match=message):
        task_on({"train": files}).rows["train"].head(3000)


def test_known_shard_sizes_are_forgotten_when_the_code_of_a_function_changes(tmp_path, monkeypatch):
    train = write_colours(tmp_path / "train.jsonl", 20)
    code = "def keeps(row):\n    return {}\n"
    module = tmp_path / "stream_functions.py"
    module.write_text(code.format("True"))
    monkeypatch.syspath_prepend(str(tmp_path))
    from stream_functions import keeps

    def sizes_file() -> Path:
        return task_on({"train": [train]}, filter=keeps).rows["train"].shard_sizes_file

    first, second = sizes_file(), sizes_file()
    module.write_text(code.format("len(row) > 0"))
    third = sizes_file()
    del sys.modules["stream_functions"]
    assert first == second != third


def test_the_record_of_a_stream_of_several_files_names_the_same_shards(tmp_path):
    files = write_shards(tmp_path, (3, 4))
    stamps = file_stamps(Data(files={"train": files}))
    assert [Path(file).name for file, _, _ in stamps] == ["part-0.jsonl", "part-1.jsonl"]
    assert stamps == file_stamps(Data(files={"train": tuple(files)}))
