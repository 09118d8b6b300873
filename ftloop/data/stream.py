"""A source that is read while training: a dataset of positions in an endless shuffled sequence.

An epoch visits the shards (files) of the source in an order drawn by (seed, epoch), cuts their rows
into blocks of `buffer_size` rows, and shuffles each block by (seed, epoch, block). The row at a
position is thus a pure function of the seed and the source, and a stream has no state to save.
Every process and data worker reads the whole source but prepares only the rows of its own batches:
reading takes 3 microseconds per row, preparing a text about fifty times as long.

A run that resumes skips the shards whose number of rows is known, from this run or an earlier one,
and reads the shard that holds the position from its beginning. With many files, resuming is thus
cheap; with one large file it is not.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import get_worker_info

from ftloop.data.csv_structure import pandas_warnings
from ftloop.data.formats import expand_paths
from ftloop.data.prepared import fingerprint_table
from ftloop.data.reader_errors import explain_error
from ftloop.errors import UserError
from ftloop.files import write_text
from ftloop.sampler import UNBOUNDED, random_permutation
from ftloop.state import fold_in, temporary_seed

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, IterableDataset

    from ftloop.data.source import Data

logger = logging.getLogger("ftloop")

ROWS_PER_READ = 1000  # 10 or 10 000 read no faster
BYTES_PER_EDGE = 2**16  # of each end of a shard; a Parquet file ends with statistics of its rows
NO_ROWS = "--data: the split 'train' is empty: the stream has no rows."


class Stream:
    """The rows of train that never lie in memory together, by their position in the sequence.

    Its length is UNBOUNDED: one epoch of the core that never ends.

    source: the rows, in shards.
    buffer_size: rows that are held in memory and shuffled together.
    drop_unusable: called with some rows, their shard and the number of the first of them in the
        shard; returns the rows to train on.
    prepare: makes rows the examples that the task's collate takes.
    cache_key: a digest of the source and of the options that decide which rows it has, under which
        the sizes of the shards are cached.
    shards: the names and sizes of its files, as far as they are files; see `describe_shards`.
    """

    is_deterministic = True  # the row at a position never changes

    def __init__(
        self,
        source: "IterableDataset",
        buffer_size: int,
        drop_unusable: Callable[["Dataset", int, int], "Dataset"],
        prepare: Callable[["Dataset"], Sequence[dict[str, Any]]],
        cache_key: str,
        shards: Sequence[Any] = (),
    ):
        from datasets import config

        self.source, self.buffer_size, self.shards = source, buffer_size, shards
        self.settings = ""  # what else decides the examples: the tokenizer, the names of the labels
        self.drop_unusable, self.prepare = drop_unusable, prepare
        self.seed = 0
        self.held_out: dict[int, int] = {}  # by shard: rows at its beginning that are not for train
        self.shard_sizes: dict[int, int] = {}  # rows of train in the shards that were read whole
        cache = Path(config.HF_DATASETS_CACHE) / "ftloop"
        self.shard_sizes_file = cache / f"stream-{cache_key}.json"
        self.blocks: Iterator[tuple[int, pyarrow.Table]] | None = None
        self.start = 0  # the position of the first row of `block`
        self.block: pyarrow.Table | None = None  # the one that was read last

    # The protocol of datasets with an order of their own

    def __len__(self) -> int:
        return UNBOUNDED

    def row_order(self, seed: int, epoch: int) -> Sequence[int]:
        """Return the positions: the stream itself shuffles the rows."""
        return range(UNBOUNDED)

    def set_seed(self, seed: int) -> None:
        """Set the seed that decides which row is at a position."""
        if seed != self.seed:
            self.seed, self.blocks, self.block = seed, None, None

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return the examples at some positions, each read with a seed of its own."""
        examples, remaining = {}, sorted(set(positions))
        while remaining:
            self._seek(remaining[0])
            end = self.start + len(self.block)
            in_block = [position for position in remaining if position < end]
            rows = self.block.take([position - self.start for position in in_block])
            prepared = self.prepare(_to_dataset(rows))
            for number, position in enumerate(in_block):
                with temporary_seed(fold_in(self.seed, "row", 0, position)):
                    examples[position] = prepared[number]
            remaining = remaining[len(in_block) :]
        return [examples[position] for position in positions]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "blocks": None, "block": None}  # a data worker reads for itself

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 digest of what is known without reading all rows: `settings`, the shards, and
        the first rows.
        """
        first_rows = fingerprint_table(self.head(ROWS_PER_READ), self.settings)
        return hashlib.sha256(repr((self.shards, first_rows)).encode()).hexdigest()

    # The first rows, in the order of the source

    def head(self, count: int) -> "Dataset":
        """Return the first rows of train, from which the labels are inferred."""
        return _to_dataset(self._read_first(count)[0])

    def hold_out(self, count: float, split: str) -> "Dataset":
        """Return the first rows of train as another split, and never train on them."""
        if count < 1:
            raise UserError(
                f"--data.{split} {count}: a stream has no known number of rows to take a share of. "
                f"Give a number of rows: --data.{split} 1000."
            )
        count = int(count)
        table, rows_by_shard = self._read_first(count)
        if len(table) < count:
            raise UserError(f"--data.{split} {count}: the stream has only {len(table)} rows.")
        for shard, num_rows in rows_by_shard.items():
            self.held_out[shard] = self.held_out.get(shard, 0) + num_rows
        logger.info("data: %s: the first %d rows of the stream", split, count)
        return _to_dataset(table)

    def _read_first(self, count: int) -> tuple["pyarrow.Table", dict[int, int]]:
        """Return up to `count` first rows of train, and how many of them are in each shard."""
        tables, rows_by_shard, missing = [], {}, count
        for shard in range(self.source.num_shards):
            for table in self._read_shard(shard):
                tables.append(table.slice(0, missing))
                rows_by_shard[shard] = rows_by_shard.get(shard, 0) + len(tables[-1])
                missing -= len(tables[-1])
                if missing == 0:
                    return _concatenate(tables), rows_by_shard
        if not tables:
            raise UserError(NO_ROWS)
        return _concatenate(tables), rows_by_shard

    # The shuffled sequence

    def _seek(self, position: int) -> None:
        """Make the block that holds a position the current one."""
        if self.block is None or position < self.start:  # going back starts anew
            if self.shard_sizes_file.exists():
                sizes = json.loads(self.shard_sizes_file.read_text())
                self.shard_sizes = {int(shard): size for shard, size in sizes.items()}
            epoch_size = sum(self.shard_sizes.values())
            all_sizes_known = len(self.shard_sizes) == self.source.num_shards
            epoch = position // epoch_size if all_sizes_known else 0
            epoch_start = epoch * epoch_size
            first_block = (position - epoch_start) // self.buffer_size
            self.blocks = self._iterate_blocks(epoch, epoch_start, first_block)
            self.start, self.block = next(self.blocks)
        while position >= self.start + len(self.block):
            self.start, self.block = next(self.blocks)

    def _iterate_blocks(
        self, epoch: int, epoch_start: int, first_block: int
    ) -> Iterator[tuple[int, "pyarrow.Table"]]:
        """Yield (position of its first row, shuffled rows) of each block, without end.

        The first block is number `first_block` of the epoch, which begins at `epoch_start`.
        """
        while True:
            index, buffer, num_buffered = first_block, [], 0
            for table in self._read_epoch(epoch, num_skipped=first_block * self.buffer_size):
                buffer.append(table)
                num_buffered += len(table)
                while num_buffered >= self.buffer_size:
                    rows = _concatenate(buffer)
                    block = rows.slice(0, self.buffer_size)
                    yield epoch_start + index * self.buffer_size, self._shuffle(block, epoch, index)
                    buffer, index = [rows.slice(self.buffer_size)], index + 1
                    num_buffered -= self.buffer_size
            if num_buffered:  # the last block of an epoch is smaller
                block = _concatenate(buffer)
                yield epoch_start + index * self.buffer_size, self._shuffle(block, epoch, index)
            epoch_size = sum(self.shard_sizes.values())
            if epoch_size == 0:
                raise UserError(NO_ROWS)
            epoch, epoch_start, first_block = epoch + 1, epoch_start + epoch_size, 0

    def _shuffle(self, block: "pyarrow.Table", epoch: int, index: int) -> "pyarrow.Table":
        # The first block has the order of a table of its size: a stream that fits into the buffer
        # trains on the same batches as a dataset in memory.
        seed = fold_in(self.seed, "block", index) if index else self.seed
        return block.take(random_permutation(len(block), seed, epoch))

    def _read_epoch(self, epoch: int, num_skipped: int) -> Iterator["pyarrow.Table"]:
        """Yield the rows of train in an epoch's shard order, without the first `num_skipped`."""
        num_shards = self.source.num_shards
        for shard in random_permutation(num_shards, fold_in(self.seed, "shards"), epoch).tolist():
            if self.shard_sizes.get(shard, UNBOUNDED) <= num_skipped:
                num_skipped -= self.shard_sizes[shard]
                continue
            if num_skipped and (get_worker_info() is None or get_worker_info().id == 0):
                logger.info(
                    "stream: resuming in shard %d of %d: its first rows (up to %d) are read again "
                    "and skipped",
                    shard,
                    num_shards,
                    num_skipped,
                )
            size = 0
            for table in self._read_shard(shard):
                size += len(table)
                if num_skipped < len(table):
                    yield table.slice(num_skipped)
                num_skipped = max(0, num_skipped - len(table))
            self._remember_size(shard, size)

    def _read_shard(self, shard: int) -> Iterator["pyarrow.Table"]:
        """Yield the rows of a shard that are usable and not held out."""
        from datasets import Dataset

        shard_source = self.source.shard(self.source.num_shards, shard)
        num_held_out = self.held_out.get(shard, 0)
        num_rows = num_usable = 0
        try:
            tables = shard_source.with_format("arrow").iter(ROWS_PER_READ)
            while True:
                with pandas_warnings(is_checked=True):
                    table = next(tables, None)
                if table is None:
                    break
                usable = self.drop_unusable(Dataset(table), shard, num_rows)
                usable = usable.with_format("arrow")[:]
                num_rows, num_usable = num_rows + len(table), num_usable + len(usable)
                if num_held_out < len(usable):
                    yield usable.slice(num_held_out)
                num_held_out = max(0, num_held_out - len(usable))
        except UserError:
            raise
        except Exception as error:  # of readers, the network, and functions that map and filter
            raise UserError(
                f"--data: shard {shard} of the stream cannot be read: {explain_error(error)}"
            ) from error
        if num_usable < num_rows and shard not in self.shard_sizes:
            logger.warning(
                "stream: dropped %d of the %d rows of shard %d, which are unusable",
                num_rows - num_usable,
                num_rows,
                shard,
            )

    def _remember_size(self, shard: int, size: int) -> None:
        """Record the number of rows of a shard, also in the cache for later runs."""
        if self.shard_sizes.get(shard) == size:
            return
        self.shard_sizes[shard] = size
        self.shard_sizes_file.parent.mkdir(parents=True, exist_ok=True)
        # Atomic: other processes write the same sizes.
        write_text(self.shard_sizes_file, json.dumps(self.shard_sizes))


def _to_dataset(table: "pyarrow.Table") -> "Dataset":
    from datasets import Dataset

    return Dataset(table)


def _concatenate(tables: list["pyarrow.Table"]) -> "pyarrow.Table":
    """Concatenate tables. Raises UserError if a column changes its type between them."""
    import pyarrow

    try:  # columns without any value take the type of the others
        return pyarrow.concat_tables(tables, promote_options="default")
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"--data: a column of the stream does not have the same type everywhere: {error}"
        ) from error


def describe_shards(source: "Data") -> list[tuple[str, int, str]]:
    """Return (name, size, digest of the beginning and the end) of each local file of train.

    Neither its folder nor its times count: copies on two machines have the same description. A
    change in the middle of a file that keeps its size is not noticed.
    """
    names = source.split_files.get(source.splits.get("train", "train"), [])
    shards = []
    for path in expand_paths("train", names):
        if Path(path).is_file():
            with open(path, "rb") as stream:
                edges = stream.read(BYTES_PER_EDGE)
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(len(edges), size - BYTES_PER_EDGE))
                edges += stream.read()
            shards.append((Path(path).name, size, hashlib.sha256(edges).hexdigest()))
    return shards


def file_stamps(source: "Data") -> tuple[Any, ...]:
    """Return (path, size, modification time) of each local file of a source.

    The sizes of shards are known for these files only. Other sources have no local files.
    """
    if source.sources:
        return tuple(map(file_stamps, source.sources))
    patterns: list[Any] = []
    for names in source.files.values() if source.files else [source.path]:
        patterns += names if isinstance(names, list | tuple) else [names]
    stamps = []
    for pattern in patterns:
        for match in map(Path, glob.glob(str(Path(pattern).expanduser()))):
            for file in [match] if match.is_file() else match.rglob("*"):
                stamps.append((str(file), file.stat().st_size, file.stat().st_mtime_ns))
    return tuple(sorted(stamps))
