"""Turn what readers of files raise into errors that say what a user can do."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator

from ftloop.data.encodings import advise_encoding
from ftloop.errors import UserError, did_you_mean, root_cause

# What readers raise for a file without rows.
NO_ROWS_ERRORS = (
    "corresponds to no data",
    "No columns to parse",
    "at least one example",
    "StopIteration",
)
# What helps against other errors of the readers.
HINTS = {
    "ParserError": (
        "Another separator is set by --data.options sep=';', and quoting=3 reads quotes as "
        "ordinary characters."
    ),
    "Length of header or names": (
        "Rows have more cells than the header. --data.options names=a,b,c names all columns."
    ),
    "as a scalar of type": "A column of numbers holds something else in a later row.",
    "Schema at index": "A column holds texts in one file and numbers in another.",
    "no such table": "Without --data.query, the error lists the tables.",
    "No module named 'h5py'": "Install it: pip install h5py.",
}


@contextlib.contextmanager
def raise_user_errors(split: str, paths: list[str]) -> Iterator[None]:
    """Turn any error of a reader into a UserError that names the files, and silence `datasets`."""
    import datasets

    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    names = ", ".join(map(repr, paths[:3])) + more
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs errors before raising them
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pandas, pyarrow and datasets raise errors of many types
        cause = root_cause(error)
        if any(text in cause for text in NO_ROWS_ERRORS):
            raise UserError(
                f"--data: the split {split!r} is empty: there are no rows in {names}."
            ) from error
        explained = explain_error(error)
        if "UnicodeDecodeError" in cause:
            explained += f" {advise_encoding(paths)}"
        raise UserError(f"--data: cannot read the {split} file {names}: {explained}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def explain_error(error: BaseException) -> str:
    """Return the cause of a reader's error, with the option that helps."""
    explained = explain_other_columns(error) or explain_unknown_option(root_cause(error))
    if explained:
        return explained
    cause = root_cause(error)
    return " ".join([cause.rstrip(".") + ".", *(HINTS[text] for text in HINTS if text in cause)])


def explain_other_columns(error: BaseException) -> str:
    """Explain the CastError of `datasets` for files of a split with different columns, else ""."""
    while error.__cause__ is not None:
        error = error.__cause__
    later = getattr(error, "table_column_names", None)
    first = getattr(error, "requested_column_names", None)
    if later is None or first is None:
        return ""
    return (
        "the files of a split must have the same columns, but compared with the first one, a later "
        f"one {describe_other_columns(later, first)}."
    )


def describe_other_columns(columns: Iterable[str], expected: Iterable[str]) -> str:
    """Return "has 'colour' and lacks 'label'", or "" for equal names."""
    new, missing = set(columns) - set(expected), set(expected) - set(columns)
    parts = [
        f"{verb} {', '.join(map(repr, sorted(names)))}"
        for verb, names in (("has", new), ("lacks", missing))
        if names
    ]
    return " and ".join(parts)


def explain_unknown_option(cause: str) -> str:
    """Explain an option that a reader of `datasets` does not have, and list those it has."""
    from datasets import BuilderConfig

    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", cause)
    readers = {reader.__name__: reader for reader in BuilderConfig.__subclasses__()}
    if match is None or match[1] not in readers:
        return ""
    option = match[2]
    shared = {field.name for field in dataclasses.fields(BuilderConfig)}  # they choose files
    names = {field.name for field in dataclasses.fields(readers[match[1]])} - shared
    return (
        f"--data.options {option}: the reader of this format has no such option"
        f"{did_you_mean(option, names)}. It has {', '.join(sorted(names))}."
    )
