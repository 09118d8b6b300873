"""Datasets for the loop: prepared rows with their lengths and a fingerprint of their content.

docs/runs.md lists what is in a fingerprint.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy
import pyarrow
import pyarrow.compute

from ftloop.data.images import digest_images

Example = dict[str, Any]

ROWS_PER_TAKE = 10_000  # rows of a shuffled table that are gathered at a time


class PreparedDataset:
    """A `datasets.Dataset` whose rows `Task.collate` takes.

    A random transform draws from the global generators, which the loader seeds for each row.
    """

    def __init__(
        self,
        table: Any,
        lengths: Sequence[int] | None = None,
        transform: Callable[[Example], Example] | None = None,
        is_deterministic: bool = True,
    ):
        """Wrap a table.

        table: a `datasets.Dataset`. Reading rows needs only its `__len__`, `__getitem__` and
        `__getitems__`; the fingerprint needs its Arrow columns.
        lengths: number of tokens in each row, for batching by length. Without it, the attribute
        `lengths` is absent, as in any dataset whose rows are not to be grouped by length.
        transform: is applied to each row that is read.
        is_deterministic: whether the loader reads a micro-batch at once. If not, it reads one row
        at a time, each with a seed of its own, as a random transform needs.
        """
        self.table = table
        if lengths is not None:
            self.lengths = numpy.asarray(lengths, dtype=numpy.int64)
        self.transform = transform
        self.is_deterministic = is_deterministic
        self.settings = ""  # what else decides the examples, such as the names of the labels

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Example:
        example = self.table[row]
        return example if self.transform is None else self.transform(example)

    def __getitems__(self, rows: list[int]) -> list[Example]:
        examples = self.table.__getitems__(rows)
        return examples if self.transform is None else list(map(self.transform, examples))

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 digest of `settings` and of the rows before the transform."""
        return fingerprint_table(self.table, self.settings)


def fingerprint_table(table: Any, settings: str = "") -> str:
    """Return a SHA-256 digest of settings and of the names, types and cells of a `Dataset`.

    It does not depend on how the rows are divided into chunks or files, nor on whether they were
    selected from a larger table. Images count by the content of their files, not by their paths.
    """
    from datasets import Image

    digest = hashlib.sha256(repr((settings, len(table))).encode())
    for name, feature in table.features.items():
        is_image = isinstance(feature, Image)
        column = digest_images(table, name) if is_image else read_column(table, name)
        digest.update(repr(name).encode())
        digest.update(digest_column(column))
    return digest.hexdigest()


def read_column(table: Any, name: str) -> pyarrow.ChunkedArray:
    """Return a column of a `datasets.Dataset` in the order of its rows, copied only if needed."""
    column = table.data.column(name)
    if table._indices is None:
        return column
    indices = table._indices.column(0)
    taken = []
    for start in range(0, len(indices), ROWS_PER_TAKE):
        part = column.take(indices.slice(start, ROWS_PER_TAKE))
        taken += part.chunks if isinstance(part, pyarrow.ChunkedArray) else [part]
    return pyarrow.chunked_array(taken, type=column.type)


def digest_column(column: pyarrow.ChunkedArray) -> bytes:
    """Return a digest of the type and the cells of a column, whatever its chunks.

    Lists and texts are digested as their lengths followed by their values, so that neither
    pointers nor the offsets within a chunk matter.
    """
    kind = column.type
    if isinstance(kind, pyarrow.BaseExtensionType):
        kind = kind.storage_type
        column = pyarrow.chunked_array([chunk.storage for chunk in column.chunks], type=kind)
    digest = hashlib.sha256(f"{kind} {len(column)}".encode())
    if column.null_count:
        digest.update(digest_numbers(column.is_valid().cast(pyarrow.uint8())))
        column = column.drop_null()
    types = pyarrow.types
    if types.is_null(kind):
        pass
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        digest.update(digest_numbers(pyarrow.compute.list_value_length(column)))
        values = [chunk.flatten() for chunk in column.chunks]
        digest.update(digest_column(pyarrow.chunked_array(values, type=kind.value_type)))
    elif types.is_struct(kind):
        for index in range(kind.num_fields):
            digest.update(digest_column(pyarrow.compute.struct_field(column, index)))
    elif types.is_dictionary(kind):
        digest.update(digest_column(column.cast(kind.value_type)))
    elif is_text(kind):
        digest.update(digest_numbers(pyarrow.compute.binary_length(column)))
        digest.update(digest_text(column))
    else:
        digest.update(digest_numbers(column))
    return digest.digest()


def is_text(kind: pyarrow.DataType) -> bool:
    """Return whether a type is a text or bytes of any length."""
    types = pyarrow.types
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string,
            types.is_large_string,
            types.is_binary,
            types.is_large_binary,
        )
    )


def digest_numbers(column: pyarrow.ChunkedArray) -> bytes:
    """Return a digest of cells of a fixed width, none of them missing."""
    digest = hashlib.sha256()
    for chunk in column.chunks:
        cells = chunk.to_numpy(zero_copy_only=False)
        if cells.dtype == object:  # decimals and other rare types
            digest.update(repr(chunk.to_pylist()).encode())
        else:
            digest.update(numpy.ascontiguousarray(cells).view(numpy.uint8))
    return digest.digest()


def digest_text(column: pyarrow.ChunkedArray) -> bytes:
    """Return a digest of all characters or bytes of a column, none of its cells missing."""
    digest = hashlib.sha256()
    for chunk in column.chunks:
        large = pyarrow.types.is_large_string(chunk.type) or pyarrow.types.is_large_binary(
            chunk.type
        )
        _, offsets, values = chunk.buffers()
        if not len(chunk) or values is None:
            continue
        bounds = numpy.frombuffer(offsets, numpy.int64 if large else numpy.int32)
        start, stop = bounds[chunk.offset], bounds[chunk.offset + len(chunk)]
        digest.update(memoryview(values)[start:stop])
    return digest.digest()
