"""Read the file of predict.py --file by the options with which the run read its own files."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ftloop.data.formats import READERS, detect_format
from ftloop.data.source import Data

if TYPE_CHECKING:
    from ftloop.cli.predict_options import PredictOptions

logger = logging.getLogger("ftloop")

# Options of pandas.read_csv, and of the readers of texts and JSON, that say how a file is written.
# What they do to a file is all that they do: they choose no other file, place or code.
OPTIONS_OF_FILES = (
    "comment",
    "decimal",
    "delimiter",
    "doublequote",
    "encoding",
    "encoding_errors",
    "escapechar",
    "header",
    "keep_default_na",
    "lineterminator",
    "na_values",
    "names",
    "on_bad_lines",
    "quotechar",
    "quoting",
    "sep",
    "skip_blank_lines",
    "skipinitialspace",
    "skiprows",
    "thousands",
)


def add_options_of_run(options: "PredictOptions", data: Any) -> "PredictOptions":
    """Return the options with those by which the run read files of the same format.

    Options of the command line replace them. Permissions, such as --trust-pickle, are never taken
    from a run. The options of several sources must agree.
    """
    if not isinstance(data, Data):
        return options
    sources = data.sources or (data,)
    is_stdin = options.file == "-"
    if options.format is None and not is_stdin:
        options = replace(options, format=format_of_run(str(options.file), sources))
    format = options.format or ("text" if is_stdin else detect_format(str(options.file)))

    settings: list[dict[str, Any]] = []  # of the sources, without repeats
    for source in sources:
        if format == (source.format or detect_format(first_file(source))):
            recorded = recorded_settings(source, options, is_stdin)
            settings += [recorded] if recorded not in settings else []
    if len(settings) != 1 or not settings[0]:
        return options
    words = " ".join(f"--{name} {format_option(value)}" for name, value in settings[0].items())
    logger.info("The file is read by these options of the run: %s", words)
    if "options" in settings[0]:
        settings[0]["options"] |= options.options
    return replace(options, **settings[0])


def format_of_run(file: str, sources: Sequence[Data]) -> str | None:
    """Return the --data.format of a run if the ending of a file needs it as well, else None."""
    ending = detect_format(file)
    formats = {
        source.format
        for source in sources
        if ending not in READERS or ending == detect_format(first_file(source))
    }
    return formats.pop() if len(formats) == 1 else None


def recorded_settings(
    source: Data, options: "PredictOptions", is_stdin: bool
) -> dict[str, dict[str, Any] | tuple[str, ...] | str]:
    """Return the fields of `options` that a run has set and the command line has not."""
    given = set(options.options)
    if given & {"sep", "delimiter"}:  # two names of one option
        given |= {"sep", "delimiter"}
    reader_options = {}
    for name, value in source.options.items():
        is_plain = isinstance(value, str | int | float | list | tuple | None)
        if name in OPTIONS_OF_FILES and is_plain and name not in given:
            reader_options[name] = value
    settings: dict[str, Any] = {"options": reader_options}
    if not is_stdin:
        settings["field"] = () if options.field else source.field
        settings["query"] = None if options.query else source.query
    return {name: value for name, value in settings.items() if value}


def format_option(value: Any) -> str:
    """Return the value of an option as it is typed."""
    if isinstance(value, dict):
        return " ".join(repr(f"{name}={item}") for name, item in value.items())
    return " ".join(value) if isinstance(value, tuple) else repr(value)


def first_file(source: Data) -> str:
    """Return the first file of train, or "" for a source without files."""
    names = (
        source.files.get(source.splits.get("train", "train"), "") if source.files else source.path
    )
    return str(names[0] if isinstance(names, list | tuple) else names or "")
