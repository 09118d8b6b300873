"""The Parquet file of features: columns split, row, label and features."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from ftloop.errors import UserError
from ftloop.files import replace_file


class FeatureWriter:
    """Writes blocks of rows, each as a row group. The file is replaced when all are written.

    Labels are names, lists of names, or numbers, by the problem type of `labels`.
    """

    def __init__(self, file: Path, labels: Any, metadata: dict[str, str]):
        import pyarrow

        self.file, self.labels = file, labels
        self.num_rows = self.width = 0
        if labels.is_multi_label:
            label_type = pyarrow.list_(pyarrow.string())
        else:
            label_type = pyarrow.string() if labels.names else pyarrow.float64()
        columns = {
            "split": pyarrow.string(),
            "row": pyarrow.int64(),
            "label": label_type,
            "features": pyarrow.list_(pyarrow.float32()),
        }
        self.schema = pyarrow.schema(columns).with_metadata(metadata)

    def __enter__(self) -> "FeatureWriter":
        from pyarrow import parquet

        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(replace_file(self.file))
            except OSError as error:
                raise UserError(f"--out: {self.file} cannot be written: {error}") from error
            self.parquet = stack.enter_context(parquet.ParquetWriter(stream, self.schema))
            self.stack = stack.pop_all()
        return self

    def write(
        self, split: str, row_ids: numpy.ndarray, labels: Sequence[Any], features: numpy.ndarray
    ) -> None:
        """Write a block: encoded labels, and features [rows, width]."""
        import pyarrow

        width = features.shape[1]
        offsets = numpy.arange(len(row_ids) + 1, dtype=numpy.int32) * width
        names = [self.decode_label(label) for label in labels]
        columns = [
            pyarrow.array([split] * len(row_ids)),
            pyarrow.array(row_ids),
            pyarrow.array(names, self.schema.field("label").type),
            pyarrow.ListArray.from_arrays(offsets, features.ravel()),  # no Python object per number
        ]
        self.parquet.write_table(pyarrow.Table.from_arrays(columns, schema=self.schema))
        self.num_rows, self.width = self.num_rows + len(row_ids), width

    def decode_label(self, label: Any) -> Any:
        """Return an encoded label as a name, a list of names, or a number."""
        names = self.labels.names
        if self.labels.is_multi_label:
            return [name for name, is_present in zip(names, label, strict=True) if is_present]
        return names[label] if names else float(label)

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)


def read_features(file: Path, split: str) -> tuple[list[Any], numpy.ndarray]:
    """Return the labels and the features, float32 [rows, width], of a split in a file."""
    from pyarrow import parquet

    table = parquet.read_table(file, columns=["label", "features"], filters=[("split", "=", split)])
    values = table["features"].combine_chunks().flatten().to_numpy()
    return table["label"].to_pylist(), values.reshape(len(table), -1)
