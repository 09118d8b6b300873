"""A source that is read while training: rows by their position in an endless shuffled sequence.

An epoch takes the shards (files) of the source in an order drawn by (seed, epoch), cuts their rows into blocks of
`buffer` rows, and shuffles each block by (seed, epoch, block). The row at a position is thus a pure function of the
seed and the source, and nothing about the stream needs saving. Every process and worker reads the source, and prepares
the rows of its own seats alone: reading costs 3 microseconds a row, preparing a text some fifty times as much.

Whoever goes on in the middle skips the shards whose number of rows is known, from this run or an earlier one, and reads
the shard in which the position lies again from its beginning: many files make that cheap, one large file does not.
"""

import glob
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import get_worker_info

from ftloop.sampler import UNBOUNDED, mix, rows_served, seeded
from ftloop.errors import UserError, root_cause

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, IterableDataset

    from ftloop.data.source import Data

logger = logging.getLogger("ftloop")

READ_AT_ONCE = 1000  # rows of a table: 10 or 10 000 read no faster


class Stream:
    """Rows of train that are never held together. `len` is UNBOUNDED, and `column_names` is empty."""

    column_names = ()  # what is known of all rows at once (labels, lengths) is not known here

    def __init__(
        self,
        source: "IterableDataset",
        buffer: int,
        usable: Callable[["Dataset", int, int], "Dataset"],
        prepare: Callable[["Dataset"], Sequence[dict[str, Any]]],
        identity: str,
    ):
        """`usable` takes away the rows that cannot be used: it is given rows, their shard, and the number of the first
        in it; `prepare` makes rows what the task's collate takes; `identity` names the source and the options that
        decide on its rows."""
        from datasets import config

        self.source, self.buffer, self.usable, self.prepare, self.identity = source, buffer, usable, prepare, identity
        self.held_out: dict[int, int] = {}  # by shard: rows at its beginning that are not train's
        self.sizes: dict[int, int] = {}  # by shard: rows of train; those that were read to their end
        self.sizes_file = Path(config.HF_DATASETS_CACHE) / "ftloop" / f"stream-{identity}.json"
        self.blocks: Iterator[tuple[int, Any]] | None = None
        self.start, self.block = 0, None  # the position of the first row of the block at hand

    def __len__(self) -> int:
        return UNBOUNDED

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "blocks": None, "block": None}  # a worker process reads for itself

    def head(self, count: int) -> "Dataset":
        """The first rows of train in the order of the source, to decide from what the labels are."""
        return self._dataset(self._first(count)[0])

    def hold_out(self, count: float, split: str) -> "Dataset":
        """Take the first rows of the source away from train, into memory: a split that the source lacks."""
        if count < 1:
            raise UserError(
                f"--task.data.{split} {count}: nobody knows how many rows a stream has, to take a share of them; "
                f"give whole rows: --task.data.{split} 1000"
            )
        count = int(count)
        table, taken = self._first(count)
        if len(table) < count:
            raise UserError(f"--task.data.{split} {count}: the stream has {len(table)} rows")
        for shard, rows in taken.items():
            self.held_out[shard] = self.held_out.get(shard, 0) + rows
        logger.info("data: %s is the first %d rows of the stream", split, count)
        return self._dataset(table)

    def read(self, positions: list[int], seed: int) -> list[dict[str, Any]]:
        """The rows at some positions, ready to collate; what is drawn at random for one is seeded by its position."""
        found, waiting = {}, sorted(set(positions))
        while waiting:
            self._seek(waiting[0], seed)
            here = [position for position in waiting if position < self.start + len(self.block)]
            rows = self.prepare(self._dataset(self.block.take([position - self.start for position in here])))
            for number, position in enumerate(here):
                with seeded(mix(seed, "row", 0, position)):
                    found[position] = rows[number]
            waiting = waiting[len(here) :]
        return [found[position] for position in positions]

    def _seek(self, position: int, seed: int) -> None:
        """Make the block that holds a position the one at hand. Going back means to begin anew."""
        if self.block is None or position < self.start:
            if self.sizes_file.exists():
                self.sizes = {int(shard): rows for shard, rows in json.loads(self.sizes_file.read_text()).items()}
            known = len(self.sizes) == self.source.num_shards
            epoch = position // sum(self.sizes.values()) if known else 0
            base = epoch * sum(self.sizes.values())
            self.blocks = self._blocks(seed, epoch, base, (position - base) // self.buffer)
            self.start, self.block = next(self.blocks)
        while position >= self.start + len(self.block):
            self.start, self.block = next(self.blocks)

    def _blocks(self, seed: int, epoch: int, base: int, first: int) -> Iterator[tuple[int, "pyarrow.Table"]]:
        """(position of its first row, shuffled rows) of each block from the `first` of an epoch on, without end; the
        epoch begins at position `base`."""
        while True:
            waiting, index = [], first
            for table in self._epoch(seed, epoch, first * self.buffer):
                waiting.append(table)
                while sum(map(len, waiting)) >= self.buffer:
                    rows = self._joined(waiting)
                    yield base + index * self.buffer, self._shuffled(rows.slice(0, self.buffer), seed, epoch, index)
                    waiting, index = [rows.slice(self.buffer)], index + 1
            if sum(map(len, waiting)):
                yield base + index * self.buffer, self._shuffled(self._joined(waiting), seed, epoch, index)
            if sum(self.sizes.values()) == 0:
                raise UserError("--task.data: the split 'train' is empty: the stream has no rows")
            base, epoch, first = base + sum(self.sizes.values()), epoch + 1, 0

    @staticmethod
    def _shuffled(rows: "pyarrow.Table", seed: int, epoch: int, index: int) -> "pyarrow.Table":
        # The first block in the order of a table: a stream that fits the buffer trains as the table would at random.
        seed = mix(seed, "block", index) if index else seed
        return rows.take(rows_served(len(rows), seed, epoch, 0, len(rows)))

    def _epoch(self, seed: int, epoch: int, skipped: int) -> Iterator["pyarrow.Table"]:
        """The rows of train in the order of the epoch's shards, from row `skipped` on."""
        count = self.source.num_shards
        for shard in rows_served(count, mix(seed, "shards"), epoch, 0, count):
            if self.sizes.get(shard, UNBOUNDED) <= skipped:
                skipped -= self.sizes[shard]
                continue
            rows = 0
            if skipped and (get_worker_info() is None or get_worker_info().id == 0):
                logger.info(
                    "stream: goes on in shard %d of %d, whose first rows (up to %d) are read again to be skipped",
                    *(shard, count, skipped),
                )
            for table in self._shard(shard, self.held_out.get(shard, 0)):
                rows += len(table)
                if skipped < len(table):
                    yield table.slice(skipped)
                skipped = max(0, skipped - len(table))
            self._learn(shard, rows)

    def _shard(self, shard: int, held_out: int) -> Iterator["pyarrow.Table"]:
        """The usable rows of a shard, from row `held_out` on."""
        from datasets import Dataset

        tables = self.source.shard(self.source.num_shards, shard).with_format("arrow").iter(READ_AT_ONCE)
        seen = left = 0
        try:
            for table in tables:
                usable = self.usable(Dataset(table), shard, seen).with_format("arrow")[:]
                seen, left = seen + len(table), left + len(usable)
                if held_out < len(usable):
                    yield usable.slice(held_out)
                held_out = max(0, held_out - len(usable))
        except UserError:
            raise
        except Exception as error:  # of the readers, the network and the functions that map and filter
            raise UserError(f"--task.data: shard {shard} of the stream cannot be read: {root_cause(error)}") from error
        if left < seen and shard not in self.sizes:
            logger.warning("stream: %d of the %d rows of shard %d are unusable and left out", seen - left, seen, shard)

    def _learn(self, shard: int, rows: int) -> None:
        """Remember how many rows a shard has, also for later runs: a fact about the source, found by reading it."""
        if self.sizes.get(shard) == rows:
            return
        self.sizes[shard] = rows
        aside = self.sizes_file.with_suffix(f".{os.getpid()}.tmp")
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(self.sizes))
        aside.replace(self.sizes_file)  # several processes write the same facts

    def _first(self, count: int) -> tuple["pyarrow.Table", dict[int, int]]:
        """The first rows that are train's, in the order of the source, and how many of each shard they are."""
        tables, taken, missing = [], {}, count
        for shard in range(self.source.num_shards):
            for table in self._shard(shard, self.held_out.get(shard, 0)):
                tables.append(table.slice(0, missing))
                taken[shard] = taken.get(shard, 0) + len(tables[-1])
                missing -= len(tables[-1])
                if missing == 0:
                    return self._joined(tables), taken
        if not tables:
            raise UserError("--task.data: the split 'train' is empty: the stream has no rows")
        return self._joined(tables), taken

    @staticmethod
    def _joined(tables: list["pyarrow.Table"]) -> "pyarrow.Table":
        """One table. Raises UserError if the columns of the parts are of different types."""
        import pyarrow

        try:
            return pyarrow.concat_tables(tables, promote_options="default")  # all-null parts take the others' type
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"--task.data: a column of the stream changes its type on the way: {error}") from error

    @staticmethod
    def _dataset(table: "pyarrow.Table") -> "Dataset":
        from datasets import Dataset

        return Dataset(table)


def signature(source: "Data") -> tuple[Any, ...]:
    """The local files of a source with their sizes and times: what is known of its shards holds for these alone."""
    if source.sources:
        return tuple(map(signature, source.sources))
    places = [
        place for value in source.files.values() for place in (value if isinstance(value, list | tuple) else [value])
    ]
    found = [Path(name) for place in places or [source.path] for name in glob.glob(str(Path(place).expanduser()))]
    files = sorted(file for place in found for file in ([place] if place.is_file() else place.rglob("*")))
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
