"""Standard error of a command, whose reader may go away before the command ends."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

NO_READER = (errno.EPIPE, errno.EIO)  # a closed pipe; a terminal that is gone


class StandardError:
    """Writes to a stream, and drops the output from when nobody reads it any more.

    A run must not end because `2>&1 | head` or a closed terminal takes away its messages: they are
    in metrics.jsonl as well, and training continues.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        with self._drop_without_reader():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what is in its buffer."""
        with self._drop_without_reader():
            self.stream.flush()

    @contextlib.contextmanager
    def _drop_without_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in NO_READER:
                raise
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


@contextlib.contextmanager
def standard_error_may_close() -> Iterator[None]:
    """Write standard error through `StandardError` within the block."""
    stream = sys.stderr
    sys.stderr = StandardError(stream)
    try:
        yield
    finally:
        sys.stderr = stream
