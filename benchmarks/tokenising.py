"""Seconds to read and tokenise a table: the first time, the second time, and by two processes at once.

    python -m benchmarks.tokenising MODEL train.tsv --options quoting=3 names=text,labels,id

Each time is that of a new process which has imported the libraries; the cache is empty at first.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ftloop.cli.options import REGISTRY

MEASURED = """
import json, sys, time
import datasets
from accelerate import Accelerator
from ftloop.data import Data
from ftloop.tasks import TextClassification
options, accelerator = json.loads(sys.argv[1]), Accelerator(cpu=True)
task = TextClassification(**options["task"], data=Data(**options["data"]))
task.processor
datasets.disable_progress_bars()
began = time.perf_counter()
with accelerator.local_main_process_first():
    rows = task.prepare(task.source["train"])
print(f"{len(rows)} rows in {time.perf_counter() - began:.2f} s", flush=True)
"""


@dataclass(frozen=True)
class Options:
    """What is tokenised, and by which model's tokenizer."""

    model: Annotated[str, tyro.conf.Positional]  # a Hub id or a folder
    path: Annotated[str, tyro.conf.Positional]  # a file that training reads
    options: dict[str, Any] = field(default_factory=dict)  # of its reader
    text_columns: tuple[str, ...] = ("text",)  # one, or the two of a pair
    max_length: int = 128  # tokens


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.tokenising", registry=REGISTRY)
    task = {
        "model": given.model,
        "text_columns": given.text_columns,
        "max_length": given.max_length,
    }
    words = json.dumps({"task": task, "data": {"path": given.path, "options": given.options}})
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "measured.py")
        script.write_text(MEASURED)
        two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        for name, cache, launcher in (
            ("first", "a", ()),
            ("second", "a", ()),
            ("two at once, first", "b", two),
        ):
            places = {"HF_DATASETS_CACHE": str(Path(folder, cache)), "PYTHONPATH": os.getcwd()}
            result = subprocess.run(
                [sys.executable, *launcher, str(script), words],
                env={**os.environ, **places, "ACCELERATE_USE_CPU": "1"},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            print(f"{name}: {'; '.join(result.stdout.splitlines())}")


if __name__ == "__main__":
    main()
