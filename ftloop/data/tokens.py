"""Read and pad tokenized rows without a Python object per token.

A prepared table lies in memory or in a memory-mapped file. Reading its rows as dictionaries makes
a list for each cell and an integer for each token, which padding and torch then go through again:
1.5 ms for 32 rows. Here columns are numpy views of the memory of the table, and making a batch
copies it once.

`TokenDataset` gives rows as `LazyExamples`. Code that looks into them sees a list of dictionaries,
as from the table itself; `PaddingCollator` takes the columns. A `collate` that changes rows
therefore loses the speed and nothing else.
"""

from collections import UserList
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy
import pyarrow
import torch
from datasets import Dataset
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedTokenizerBase

from ftloop.data.prepared import PreparedDataset


def build_token_dataset(table: Any) -> PreparedDataset:
    """Wrap a table of tokenized rows; its column "length" becomes the attribute `lengths`.

    The result is a `TokenDataset` if the columns are numbers or lists of numbers, none of them
    missing; else a plain `PreparedDataset`.
    """
    lengths = None
    if "length" in table.column_names:
        lengths = table.with_format("numpy", columns=["length"])["length"][:]
        table = table.remove_columns("length")
    dataset_class = TokenDataset if has_numeric_columns(table) else PreparedDataset
    return dataset_class(table, lengths)


def has_numeric_columns(table: Any) -> bool:
    """Return whether a table has "input_ids" and only columns that numpy sees without copying."""
    if not isinstance(table, Dataset) or "input_ids" not in table.column_names:
        return False
    stored, read_as = table.data.table, table.format
    if read_as["type"] is not None or set(read_as["columns"]) != set(stored.column_names):
        return False
    return all(map(is_numeric, stored.columns))


def is_list(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)


def is_numeric(column: pyarrow.ChunkedArray) -> bool:
    """Return whether a column holds numbers or lists of numbers, none of them missing."""
    ragged = is_list(column.type)
    kind = column.type.value_type if ragged else column.type
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)):
        return False
    if column.null_count:
        return False
    return not ragged or not any(chunk.values.null_count for chunk in column.chunks)


class TokenDataset(PreparedDataset):
    """Rows of token ids, read as views of the table's memory.

    Only what was read of a memory-mapped file occupies memory, and the system may reclaim it. A
    worker process that receives a pickled copy makes its own views.
    """

    def __getitems__(self, rows: list[int]) -> "LazyExamples":
        return LazyExamples(rows, self, self.table.column_names)

    def __getstate__(self) -> dict[str, Any]:
        views = ("columns", "indices")
        return {name: value for name, value in vars(self).items() if name not in views}

    @cached_property
    def columns(self) -> dict[str, "ColumnView"]:
        """The stored columns. Those with equal offsets, such as ids and their mask, share them."""
        stored, columns = self.table.data.table, {}
        for name in stored.column_names:
            column = ColumnView(stored.column(name))
            for other in columns.values():
                column.share_offsets(other)
            columns[name] = column
        return columns

    @cached_property
    def indices(self) -> "ColumnView | None":
        """The stored row of each row, if the table was shuffled or rows were selected."""
        indices = self.table._indices
        return None if indices is None else ColumnView(indices.table.column(0))

    def read_cells(self, rows: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
        """Return the named columns of some rows: `RaggedCells` for lists, or a list of numbers."""
        if self.indices is not None:
            rows = self.indices.read_numbers(self.indices.locate(rows))
        cells: dict[str, Any] = {}
        row_starts = offsets = None
        for name in names:
            column = self.columns[name]
            if column.row_starts is not row_starts:
                row_starts, offsets = column.row_starts, None
                places = column.locate(rows)
            if column.offsets is None:
                cells[name] = column.read_numbers(places)
                continue
            if column.offsets is not offsets:
                offsets = column.offsets
                spans = [
                    (chunk, offsets[chunk][row], offsets[chunk][row + 1]) for chunk, row in places
                ]
                lengths = [stop - start for _, start, stop in spans]
            arrays = []
            if column.constant is None:
                values = column.values
                arrays = [values[chunk][start:stop] for chunk, start, stop in spans]
            cells[name] = RaggedCells(arrays, lengths, column.constant)
        return cells


@dataclass
class RaggedCells:
    """Some cells of a column of lists: an array for each row, or the number that all lists hold."""

    arrays: list[numpy.ndarray]  # empty if `constant` is given
    lengths: list[int]
    constant: int | None


class ColumnView:
    """Views of a column, one per chunk: `datasets` writes chunks of a thousand rows.

    Single numbers are read from memoryviews, which return Python's numbers three times as fast as
    numpy returns its own.
    """

    def __init__(self, column: pyarrow.ChunkedArray):
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.row_starts = numpy.cumsum([0, *map(len, chunks)])  # the first row of each chunk
        self.offsets: list[memoryview] | None = (
            None  # where each list begins among a chunk's values
        )
        if is_list(column.type):
            self.offsets = [memoryview(chunk.offsets.to_numpy()) for chunk in chunks]
            self.values = [chunk.values.to_numpy() for chunk in chunks]
        else:
            self.values = [memoryview(chunk.to_numpy()) for chunk in chunks]

    @cached_property
    def constant(self) -> int | None:
        """The integer that all lists hold, as masks do before padding; None if they differ."""
        first = next((values[0] for values in self.values if len(values)), None)
        if first is None or first.dtype.kind != "i":
            return None
        return int(first) if all((values == first).all() for values in self.values) else None

    def share_offsets(self, other: "ColumnView") -> None:
        """Use the objects of another column where they equal those of this one."""
        if not numpy.array_equal(self.row_starts, other.row_starts):
            return
        self.row_starts = other.row_starts
        both_ragged = self.offsets is not None and other.offsets is not None
        if both_ragged and all(map(numpy.array_equal, self.offsets, other.offsets)):
            self.offsets = other.offsets

    def locate(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Return the chunk of each row and its position in that chunk."""
        if len(self.values) == 1:
            return [(0, row) for row in rows]
        chunks = self.row_starts.searchsorted(rows, side="right") - 1
        return list(zip(chunks.tolist(), (rows - self.row_starts[chunks]).tolist(), strict=True))

    def read_numbers(self, places: list[tuple[int, int]]) -> list[Any]:
        """Return the numbers at the places that `locate` found."""
        values = self.values
        return [values[chunk][row] for chunk, row in places]


class LazyExamples(UserList, list):
    """Some rows of a `TokenDataset` as a list of dictionaries, read when somebody looks at them.

    A UserList, so that every access goes through `data`; also a list, for libraries that check.
    """

    def __init__(
        self, rows: Sequence[Any], dataset: TokenDataset | None = None, columns: Sequence[str] = ()
    ):
        """`rows` are row numbers; without a dataset, dictionaries (UserList slices and sums so)."""
        self.rows, self.dataset, self.columns = rows, dataset, columns

    @cached_property
    def data(self) -> list[dict[str, Any]]:
        if self.dataset is None:
            return list(self.rows)
        return self.dataset.table.select_columns(list(self.columns)).__getitems__(self.rows)

    @property
    def was_read(self) -> bool:
        """Whether dictionaries were made, which the reader may have changed."""
        return "data" in vars(self) or self.dataset is None

    def __len__(self) -> int:
        return len(self.data if self.was_read else self.rows)

    def __iter__(self) -> Any:
        return iter(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.data,)

    def read_cells(self) -> dict[str, Any]:
        """Return the columns as `TokenDataset.read_cells` does, without making dictionaries."""
        return self.dataset.read_cells(self.rows, self.columns)


@dataclass
class PaddingCollator(DataCollatorWithPadding):
    """A `DataCollatorWithPadding` that pads rows of a `TokenDataset` in numpy.

    The tensors are the same; for 32 rows they take a seventeenth of the time. `extra_padding` maps
    further columns of lists, such as the labels of tokens, to the number that they are padded with.
    """

    extra_padding: dict[str, int] = field(default_factory=dict)

    def __call__(self, features: list[dict[str, Any]]) -> BatchEncoding:
        batch = None
        if isinstance(features, LazyExamples) and not features.was_read:
            batch = self.pad_views(features)
        return BatchEncoding(batch) if batch is not None else self.pad_dictionaries(features)

    def pad_dictionaries(self, features: list[dict[str, Any]]) -> BatchEncoding:
        """Make the batch as transformers does, and pad the extra columns of lists."""
        extra = [
            name for name in self.extra_padding if isinstance(features[0].get(name), list | tuple)
        ]
        plain = [
            {name: cell for name, cell in feature.items() if name not in extra}
            for feature in features
        ]
        batch = super().__call__(plain)
        width = batch["input_ids"].shape[1]
        for name in extra:
            arrays = [numpy.asarray(feature[name]) for feature in features]
            is_token = self.mark_tokens(list(map(len, arrays)), width)
            batch[name] = pad_arrays(arrays, is_token, self.extra_padding[name])
        return batch

    def pad_views(self, examples: LazyExamples) -> dict[str, torch.Tensor] | None:
        """Return the batch, or None where it is left to transformers, also to raise the error."""
        names, padding = examples.columns, self.padding_values
        if padding is None or "input_ids" not in names or not len(examples):
            return None
        if ("attention_mask" in names) != ("attention_mask" in self.tokenizer.model_input_names):
            return None
        if "label" in names or "label_ids" in names:  # transformers renames them
            return None
        cells = examples.read_cells()
        lengths = cells["input_ids"].lengths
        width = self.padded_width(max(lengths))
        if not width:
            return None
        is_token = self.mark_tokens(lengths, width)
        batch = {}
        for name, column in cells.items():
            if not isinstance(column, RaggedCells):
                batch[name] = as_torch(numpy.array(column))
            elif name in padding:
                if column.lengths != lengths:
                    return None
                batch[name] = pad_cells(column, is_token, padding[name])
            elif column.arrays and len(set(column.lengths)) == 1:
                batch[name] = as_torch(numpy.stack(column.arrays))
            else:
                return None
        return batch

    @cached_property
    def padding_values(self) -> dict[str, int] | None:
        """What each column is padded with; None if the tokenizer has its own padding method."""
        tokenizer = self.tokenizer
        pads_as_usual = (
            type(tokenizer).pad is PreTrainedTokenizerBase.pad
            and type(tokenizer)._pad is PreTrainedTokenizerBase._pad
            and tokenizer.model_input_names[0] == "input_ids"
            and tokenizer.pad_token_id is not None
            and self.return_tensors == "pt"
        )
        if not pads_as_usual:
            return None
        return {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            **self.extra_padding,
        }

    def padded_width(self, longest: int) -> int | None:
        """Return the width that rows are padded to; None where transformers decides."""
        if self.padding is True or self.padding == "longest":
            width = longest
        elif self.padding == "max_length" and self.max_length is not None:
            width = self.max_length
        else:
            return None
        multiple = self.pad_to_multiple_of or 1
        width += -width % multiple
        return width if longest <= width else None

    def mark_tokens(self, lengths: list[int], width: int) -> numpy.ndarray:
        """Return which places of the padded batch hold a token: bool, (rows, width)."""
        places, counts = numpy.arange(width), numpy.array(lengths)[:, None]
        return (
            places < counts if self.tokenizer.padding_side == "right" else places >= width - counts
        )


def pad_cells(column: RaggedCells, is_token: numpy.ndarray, padding: int) -> torch.Tensor:
    """Return the cells of a column of lists as a padded tensor, (rows, width)."""
    if column.constant is None:
        return pad_arrays(column.arrays, is_token, padding)
    if (column.constant, padding) == (1, 0):  # an attention mask
        return torch.from_numpy(is_token.astype(numpy.int64))
    padded = numpy.full(is_token.shape, padding, numpy.int64)
    padded[is_token] = column.constant
    return torch.from_numpy(padded)


def pad_arrays(arrays: list[numpy.ndarray], is_token: numpy.ndarray, padding: int) -> torch.Tensor:
    """Pad arrays of different lengths to one tensor, (rows, width).

    is_token: bool, of the same shape: where a token stands. Other positions get `padding`. The
    result is int64, or torch's default float type.
    """
    is_float = any(array.dtype.kind == "f" for array in arrays)
    padded = numpy.full(is_token.shape, padding, numpy.float64 if is_float else numpy.int64)
    padded[is_token] = numpy.concatenate(arrays)
    return as_torch(padded)


def as_torch(values: numpy.ndarray) -> torch.Tensor:
    """Return the tensor that torch makes of the same numbers in lists."""
    if values.dtype.kind == "f":
        return torch.from_numpy(values).to(torch.get_default_dtype())
    return torch.from_numpy(values.astype(numpy.int64, copy=False))
