"""Token ids from a table to a padded batch without a Python object per token: the tensors of DataCollatorWithPadding.

A prepared table of `datasets` lies in memory, or in a file that is mapped into it. Reading rows from it through Arrow
makes a list for each cell and an integer for each token, which padding and torch then go through again: for 32 rows, a
millisecond and a half. Here the columns are numpy views of the table's own memory, and a batch is copied once.

`Tokens` gives rows as `Examples`: to whoever looks into it, a list of dictionaries as the table itself gives it; to
`PaddingCollator`, the columns. A fork that changes rows in its `collate` thus loses the speed, and nothing else.
"""

from collections import UserList
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import pyarrow
import torch
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedTokenizerBase

Cells = "Lists | list[Any]"  # of some rows: arrays, or numbers


class Tokens:
    """The rows of a table, and the columns of some of them as views that copy nothing.

    Only what was read of a mapped file is in memory, and the system may take it back. A process that gets a copy by
    pickling makes its own views.
    """

    def __init__(self, table: Any):
        self.table = table

    @classmethod
    def of(cls, table: Any) -> Any:
        """Tokens over a `datasets.Dataset` whose columns are numbers and lists of numbers, none missing, among them
        "input_ids"; anything else as it is."""
        from datasets import Dataset

        plain = isinstance(table, Dataset) and table.format["type"] is None and "input_ids" in table.column_names
        whole = plain and set(table.format["columns"]) == set(table.data.column_names)
        return cls(table) if whole and all(map(_is_known, table.data.table.columns)) else table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.table[row]

    def __getitems__(self, rows: list[int]) -> "Examples":
        return Examples(rows, self, list(self._columns))

    def __getstate__(self) -> dict[str, Any]:
        return {"table": self.table}

    @cached_property
    def _columns(self) -> dict[str, "Column"]:
        """The views. Columns whose cells have equal places (as token ids and their mask) share them."""
        stored, columns = self.table.data.table, {}
        for name in stored.column_names:
            column = Column(stored.column(name))
            for other in columns.values():
                column.share(other)
            columns[name] = column
        return columns

    @cached_property
    def _indices(self) -> "Column | None":
        """Where in the stored table the rows are, if some were chosen, or shuffled."""
        indices = self.table._indices
        return None if indices is None else Column(indices.table.column(0))

    def cells(self, rows: Sequence[int], names: Sequence[str]) -> dict[str, Cells]:
        """The columns of some rows."""
        if self._indices is not None:
            rows = self._indices.cells(self._indices.places(rows))
        found, starts, offsets = {}, None, None
        for name in names:
            column = self._columns[name]
            if column.starts is not starts:
                starts, offsets, places = column.starts, None, column.places(rows)
            if column.offsets is None:
                found[name] = column.cells(places)
                continue
            if column.offsets is not offsets:
                offsets = column.offsets
                spans = [(chunk, offsets[chunk][row], offsets[chunk][row + 1]) for chunk, row in places]
                lengths = [stop - start for _, start, stop in spans]
            values, constant = column.values, column.constant
            arrays = [values[chunk][start:stop] for chunk, start, stop in spans] if constant is None else []
            found[name] = Lists(arrays, lengths, constant)
        return found


@dataclass
class Lists:
    """The cells of a column of lists: an array for each row, and how long they are; or the number they all hold."""

    arrays: list[numpy.ndarray]
    lengths: list[int]
    constant: int | None


class Column:
    """Views of a column, chunk by chunk: `datasets` writes a thousand rows a chunk.

    What single numbers are taken from is a memoryview: it gives Python's, three times as fast as numpy its own.
    """

    def __init__(self, column: pyarrow.ChunkedArray):
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.starts = numpy.cumsum([0, *map(len, chunks)])  # of the chunks, in rows
        self.offsets: list[memoryview] | None = None  # in the values of a chunk, where each list begins
        if _is_list(column.type):
            self.offsets = [memoryview(chunk.offsets.to_numpy()) for chunk in chunks]
            self.values = [chunk.values.to_numpy() for chunk in chunks]
        else:
            self.values = [memoryview(chunk.to_numpy()) for chunk in chunks]

    @cached_property
    def constant(self) -> int | None:
        """The integer that all lists hold, as masks do before padding; None if they differ. A column that does is read
        to its end once."""
        first = next((values[0] for values in self.values if len(values)), None)
        if first is None or first.dtype.kind != "i":
            return None
        return int(first) if all((values == first).all() for values in self.values) else None

    def share(self, other: "Column") -> None:
        """Take the objects of another column that are equal to those of this one."""
        if numpy.array_equal(self.starts, other.starts):
            self.starts = other.starts
            if self.offsets is not None and other.offsets is not None:
                equal = all(map(numpy.array_equal, self.offsets, other.offsets))
                self.offsets = other.offsets if equal else self.offsets

    def places(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """The chunk of each row, and which row of it that is."""
        if len(self.values) == 1:
            return [(0, row) for row in rows]
        chunks = self.starts.searchsorted(rows, side="right") - 1
        return list(zip(chunks.tolist(), (rows - self.starts[chunks]).tolist(), strict=True))

    def cells(self, places: list[tuple[int, int]]) -> list[Any]:
        """The numbers at some places."""
        values = self.values
        return [values[chunk][row] for chunk, row in places]


def _is_list(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)


def _is_known(column: pyarrow.ChunkedArray) -> bool:
    """Whether a column has numbers, or lists of them, and none is missing: what numpy sees without copying."""
    kind = column.type.value_type if _is_list(column.type) else column.type
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)) or column.null_count:
        return False
    return not _is_list(column.type) or not any(chunk.values.null_count for chunk in column.chunks)


class Examples(UserList, list):
    """Some rows, as the list of dictionaries that the table gives; it is read from there when somebody looks.

    A UserList, so that each way to look goes through `data`; a list, for libraries that ask for one.
    """

    def __init__(self, rows: Sequence[Any], tokens: Tokens | None = None, columns: Sequence[str] = ()):
        """The `columns` of the rows with these numbers; without `tokens`, a list of dictionaries (UserList needs it for
        slices and sums)."""
        self.rows, self.tokens, self.columns = rows, tokens, columns

    @cached_property
    def data(self) -> list[dict[str, Any]]:
        if self.tokens is None:
            return list(self.rows)
        return self.tokens.table.select_columns(list(self.columns)).__getitems__(self.rows)

    @property
    def seen(self) -> bool:
        """Whether somebody looked, who may have changed them."""
        return "data" in vars(self) or self.tokens is None

    def __len__(self) -> int:
        return len(self.data if self.seen else self.rows)

    def __iter__(self) -> Any:
        return iter(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.data,)

    def cells(self) -> dict[str, Cells]:
        return self.tokens.cells(self.rows, self.columns)


def without(column: str, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows without a column; those of a table that nobody looked into stay there."""
    if isinstance(examples, Examples) and not examples.seen:
        return Examples(examples.rows, examples.tokens, [name for name in examples.columns if name != column])
    return [{name: cell for name, cell in example.items() if name != column} for example in examples]


class PaddingCollator(DataCollatorWithPadding):
    """A DataCollatorWithPadding that pads rows of `Tokens` in numpy: the same tensors, in some seventeenth of the
    time for 32 rows."""

    def __call__(self, features: list[dict[str, Any]]) -> BatchEncoding:
        batch = self._pad(features) if isinstance(features, Examples) and not features.seen else None
        return super().__call__(features) if batch is None else BatchEncoding(batch)

    @cached_property
    def _padding(self) -> dict[str, int] | None:
        """What each column is padded with, looked up once; None for a tokenizer that pads in a way of its own."""
        tokenizer = self.tokenizer
        usual = (
            type(tokenizer).pad is PreTrainedTokenizerBase.pad
            and type(tokenizer)._pad is PreTrainedTokenizerBase._pad
            and tokenizer.model_input_names[0] == "input_ids"
            and tokenizer.pad_token_id is not None
            and self.return_tensors == "pt"
        )
        ids = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        return {**ids, "attention_mask": 0, "special_tokens_mask": 1} if usual else None

    def _pad(self, examples: Examples) -> dict[str, torch.Tensor] | None:
        """The batch; None for what is left to `transformers`, also where that raises an error."""
        tokenizer, names, padding = self.tokenizer, examples.columns, self._padding
        if padding is None or "input_ids" not in names or not len(examples):
            return None
        if ("attention_mask" in names) != ("attention_mask" in tokenizer.model_input_names):
            return None
        if "label" in names or "label_ids" in names:
            return None
        cells = examples.cells()
        lengths = cells["input_ids"].lengths
        count, width = len(lengths), self._width(max(lengths))
        if not width:
            return None
        places, counts = numpy.arange(width), numpy.array(lengths)[:, None]
        real = places < counts if tokenizer.padding_side == "right" else places >= width - counts  # where tokens are
        batch = {}
        for name, column in cells.items():
            if not isinstance(column, Lists):
                batch[name] = _as_of_lists(numpy.array(column))
            elif name in padding:
                if column.lengths != lengths or (column.arrays and column.arrays[0].dtype.kind != "i"):
                    return None
                if (column.constant, padding[name]) == (1, 0):  # a mask
                    padded = real.astype(numpy.int64)
                else:
                    padded = numpy.empty((count, width), numpy.int64)
                    padded.fill(padding[name])
                    tokens = column.constant
                    padded[real] = numpy.concatenate(column.arrays) if tokens is None else tokens
                batch[name] = torch.from_numpy(padded)
            elif column.arrays and len(set(column.lengths)) == 1:
                batch[name] = _as_of_lists(numpy.stack(column.arrays))
            else:
                return None
        return batch

    def _width(self, longest: int) -> int | None:
        """What rows are padded to; None if that is for `transformers` to decide."""
        if self.padding is True or self.padding == "longest":
            width = longest
        elif self.padding == "max_length" and self.max_length is not None:
            width = self.max_length
        else:
            return None
        multiple = self.pad_to_multiple_of or 1
        width = -(-width // multiple) * multiple
        return width if longest <= width else None


def _as_of_lists(values: numpy.ndarray) -> torch.Tensor:
    """What torch makes of the same numbers in lists."""
    if values.dtype.kind == "f":
        return torch.from_numpy(values).to(torch.get_default_dtype())
    return torch.from_numpy(values.astype(numpy.int64))
