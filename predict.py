"""Label new rows or images with a finished run.

python predict.py runs/quickstart "Return the mean of an array along an axis."
python predict.py runs/mrpc "He left." "He went away."                          a pair task takes two texts a row
python predict.py runs/digits a.png scans/*.jpg                                 an image run takes files of images
python predict.py runs/quickstart --file new.csv --out labelled.csv             any format that training reads
python predict.py runs/quickstart --file new.jsonl.gz --out labelled.jsonl
"""

import csv
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro

from ftloop.errors import UserError, exit_code_of
from ftloop.options import LogLevel, Pairs, least_said, no_pairs

if TYPE_CHECKING:
    from datasets import Dataset

RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Inputs = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT|IMAGE ...]")]


@dataclass(frozen=True)
class Options:
    """Label new rows with a finished run: those of the command line to the terminal, or a file to a file."""

    run: RunFolder  # folder of the run
    inputs: Inputs = ()  # texts, one per row, two for sentence pairs; or image files
    file: str | None = None  # rows in any format that training reads, with the columns of the task
    format: str | None = None  # of the file; left out: by its ending
    options: Pairs = no_pairs()  # for the reader of the file: sep ; quoting 3
    field: tuple[str, ...] = ()  # as --task.data.field, of nested JSON and pickled dictionaries
    query: str | None = None  # of an SQLite file
    trust_pickle: bool = False  # read a pickled file, which runs code of whoever wrote it
    out: str | None = None  # .csv or .jsonl; left out: the terminal, as JSON lines
    batch_size: int = 64  # rows per forward pass
    log_level: LogLevel = "info"  # the least that is said besides the predictions
    quiet: bool = False  # only the predictions, warnings and errors: --log-level warning


def main() -> None:
    options = tyro.cli(Options, prog="predict.py")
    if bool(options.inputs) == bool(options.file):
        raise UserError("give texts, or a file by --file, one of the two (of an image run: images)")
    if options.out is not None and not options.out.endswith((".csv", ".jsonl")):
        raise UserError(f"--out {options.out!r}: its ending must be .csv or .jsonl")
    if options.out is not None and not Path(options.out).absolute().parent.is_dir():
        raise UserError(f"--out {options.out!r}: there is no folder {str(Path(options.out).parent)!r}")
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: at least 1 is needed")

    from datasets import Dataset

    from ftloop import predict
    from ftloop.config import read_record
    from ftloop.tracking import set_up_logging

    set_up_logging(is_main_process=True, level=least_said(options.log_level, options.quiet))
    task, given = read_record(Path(options.run)).task, options.inputs
    if options.file:
        rows = task.place(read_rows(options), Path(options.file).expanduser().parent)
    else:  # what the model sees, as it is
        columns = task.input_columns
        if len(given) % len(columns):
            raise UserError(f"{len(given)} text(s), but the run reads {len(columns)} a row: {', '.join(columns)}")
        rows = Dataset.from_dict({name: list(given[place :: len(columns)]) for place, name in enumerate(columns)})
    predictions = predict(options.run, rows, options.batch_size)
    replaced = sorted(set(rows.column_names) & predictions[0].keys())
    if replaced:
        print(f"of the file, {', '.join(map(repr, replaced))} gave way to the prediction", file=sys.stderr)
    labelled = [
        {name: shown(cell) for name, cell in (row | prediction).items()}
        for row, prediction in zip(rows, predictions, strict=True)
    ]
    if options.out is None:
        write_jsonl(labelled, sys.stdout)
        return
    with open(options.out, "w", encoding="utf-8", newline="") as stream:
        (write_csv if options.out.endswith(".csv") else write_jsonl)(labelled, stream)
    logging.getLogger("ftloop").info("%d rows labelled in %s", len(labelled), options.out)


def read_rows(options: Options) -> "Dataset":
    """The rows of the file. Raises UserError."""
    from ftloop.data.formats import read_files

    try:
        how = {"field": options.field, "query": options.query, "trust_pickle": options.trust_pickle}
        rows = read_files({"new": options.file}, options.format, options.options, **how)["new"]
    except UserError as error:  # the reader names the options of training
        text = str(error).replace("--task.data.files", "--file").replace("--task.data:", "--file:")
        raise UserError(text.replace("--task.data.", "--")) from error
    if len(rows) == 0:
        raise UserError(f"--file {options.file!r} has no rows")
    return rows


def shown(cell: Any) -> Any:
    """Of a file within a cell, its name or size, not its bytes."""
    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:
        return cell["path"] or shown(cell["bytes"])
    return f"{len(cell)} bytes" if isinstance(cell, bytes) else cell


def write_jsonl(rows: list[dict[str, Any]], stream: TextIO) -> None:
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def write_csv(rows: list[dict[str, Any]], stream: TextIO) -> None:
    """One column per probability ("probability_joy"); several labels of a row are joined by a comma."""
    flat = []
    for row in rows:
        probabilities = {f"probability_{name}": value for name, value in row.get("probabilities", {}).items()}
        kept = {name: value for name, value in row.items() if name != "probabilities"}
        flat.append(
            {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in kept.items()}
            | probabilities
        )
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
