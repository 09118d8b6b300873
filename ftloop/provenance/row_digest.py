"""A digest of the rows of a step that does not depend on their order."""

from collections.abc import Iterable

import numpy

OFFSET = numpy.uint64(0x9E3779B97F4A7C15)  # added before hashing: otherwise row 0 would add nothing


def hash_rows(row_ids: Iterable[int]) -> numpy.ndarray:
    """Return a 64-bit hash of each row id (splitmix64; Steele, Lea and Flood, 2014)."""
    numbers = numpy.asarray(row_ids, numpy.int64).astype(numpy.uint64) + OFFSET
    numbers = (numbers ^ (numbers >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> numpy.uint64(31))


def digest_rows(row_ids: Iterable[int]) -> int:
    """Return the sum of the hashes of some rows, modulo 2 ** 64.

    A sum can be added up over micro-batches and ranks in any order. Two sets of rows have the same
    digest by chance once in 2 ** 64.
    """
    return int(hash_rows(row_ids).sum(dtype=numpy.uint64))


def format_digest(digest: int) -> str:
    """Format a digest as sixteen hexadecimal digits."""
    return f"{digest % 2**64:016x}"
