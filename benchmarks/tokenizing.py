"""Time reading and tokenizing a table: the first time, the second time, and by two processes.

    python -m benchmarks.tokenizing MODEL train.tsv --options quoting=3 names=text,labels,id

Each time is that of a new process which has imported the libraries. The cache is empty at first.
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

TIMED_SCRIPT = """
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
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@dataclass(frozen=True)
class Options:
    """What is tokenized, and by which tokenizer."""

    model: Annotated[str, tyro.conf.Positional]  # a Hub id or a folder
    path: Annotated[str, tyro.conf.Positional]  # a file that training can read
    options: dict[str, Any] = field(default_factory=dict)  # of its reader
    text_columns: tuple[str, ...] = ("text",)  # one, or the two of a pair
    max_length: int = 128  # tokens


def main() -> None:
    options = tyro.cli(
        Options, prog="python -m benchmarks.tokenizing", description=__doc__, registry=REGISTRY
    )
    task = {
        "model": options.model,
        "text_columns": options.text_columns,
        "max_length": options.max_length,
    }
    data = {"path": options.path, "options": options.options}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "timed.py")
        script.write_text(TIMED_SCRIPT)
        cases = [
            ("first", "first-cache", ()),
            ("second", "first-cache", ()),
            ("two processes, first", "second-cache", TWO_PROCESSES),
        ]
        for name, cache, launcher in cases:
            environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "PYTHONPATH": os.getcwd()}
            environment["HF_DATASETS_CACHE"] = str(Path(folder, cache))
            arguments = json.dumps({"task": task, "data": data})
            command = [sys.executable, *launcher, str(script), arguments]
            result = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            print(f"{name}: {'; '.join(result.stdout.splitlines())}")


if __name__ == "__main__":
    main()
