"""Label new rows with a finished run.

python predict.py runs/quickstart "Return the mean of an array along an axis."
python predict.py runs/mrpc "He left." "He went away."                          a pair task takes two texts a row
python predict.py runs/quickstart --file new.csv --out labelled.csv             any format that training reads
python predict.py runs/quickstart --file new.jsonl.gz --out labelled.jsonl
"""

import csv
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import tyro

from ftloop.data.pairs import Pairs
from ftloop.errors import UserError, exit_code_of


@dataclass(frozen=True)
class Options:
    """Label new rows with a finished run: texts of the command line to the terminal, or a file to a file."""

    run: Annotated[str, tyro.conf.Positional]  # folder of the run
    texts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # one per row; two per row for sentence pairs
    file: str | None = None  # rows in any format that training reads, with the columns of the task
    format: str | None = None  # of the file; left out: by its ending
    options: Pairs = field(default_factory=dict)  # for the reader of the file: sep ; quoting 3
    out: str | None = None  # .csv or .jsonl; left out: the terminal, as JSON lines
    batch_size: int = 64  # rows per forward pass


def main() -> None:
    options = tyro.cli(Options, prog="predict.py")
    if bool(options.texts) == bool(options.file):
        raise UserError("give texts, or a file by --file, one of the two")
    if options.out is not None and not options.out.endswith((".csv", ".jsonl")):
        raise UserError(f"--out {options.out!r}: its ending must be .csv or .jsonl")

    from datasets import Dataset

    from ftloop import predict
    from ftloop.config import read_record
    from ftloop.data.source import read_files

    if options.file:
        rows = read_files({"new": options.file}, options.format, options.options)["new"]
    else:
        columns = read_record(Path(options.run)).task.input_columns
        if len(options.texts) % len(columns):
            raise UserError(
                f"{len(options.texts)} text(s), but the run reads {len(columns)} a row: {', '.join(columns)}"
            )
        rows = Dataset.from_dict(
            {name: list(options.texts[place :: len(columns)]) for place, name in enumerate(columns)}
        )
    predictions = predict(options.run, rows, options.batch_size)
    labelled = [{**row, **prediction} for row, prediction in zip(rows, predictions, strict=True)]
    if options.out is None:
        write_jsonl(labelled, sys.stdout)
        return
    with open(options.out, "w", encoding="utf-8", newline="") as stream:
        (write_csv if options.out.endswith(".csv") else write_jsonl)(labelled, stream)
    print(f"{len(labelled)} rows labelled in {options.out}", file=sys.stderr)


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
            {name: ",".join(value) if isinstance(value, list) else value for name, value in kept.items()}
            | probabilities
        )
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
