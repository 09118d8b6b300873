"""Some rows of a split: which ones, and a dataset of them."""

from collections.abc import Sequence
from typing import Any

import numpy


def sample_rows(num_rows: int, max_rows: int | None, seed: int) -> numpy.ndarray:
    """Return the ids of at most `max_rows` random rows in ascending order; None: of all rows."""
    if max_rows is None or num_rows <= max_rows:
        return numpy.arange(num_rows)
    generator = numpy.random.default_rng([seed, num_rows])
    return numpy.sort(generator.choice(num_rows, max_rows, replace=False))


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
