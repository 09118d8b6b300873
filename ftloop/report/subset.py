"""Some rows of a dataset, for passes over a part of a split."""

from collections.abc import Sequence
from typing import Any

import numpy


class Subset:
    """Rows of a dataset of the core, numbered from 0 in the order of `row_ids`."""

    def __init__(self, dataset: Any, row_ids: Sequence[int]):
        self.dataset = dataset
        self.row_ids = numpy.asarray(row_ids, dtype=numpy.int64)
        self.is_deterministic = bool(getattr(dataset, "is_deterministic", False))
        lengths = getattr(dataset, "lengths", None)
        if lengths is not None:
            self.lengths = numpy.asarray(lengths)[self.row_ids]

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, row: int) -> Any:
        return self.dataset[int(self.row_ids[row])]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        return self.dataset.__getitems__([int(row) for row in self.row_ids[rows]])
