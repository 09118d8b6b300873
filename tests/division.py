"""What tests/test_division.py runs in one process or in several. Writes results as JSON to OUT.

python tests/division.py OUT ROWS.jsonl '{"bert": "FOLDER", ...}'
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from toy import read_values

from ftloop import train
from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import TextClassification

LABEL_COLUMNS = {"single-label": "colour", "multi-label": "colours", "regression": "tone"}
NUM_PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
# Rows per forward pass, of 16 rows in a step. One process divides them as 16, 4+4+4+4 or 5+5+5+1,
# two as 2x(2+2+2+2), and three as 3x(3+3), the last time with two padding rows.
MICRO_BATCH_SIZES = {1: (16, 4, 5), 2: (2,), 3: (3,)}[NUM_PROCESSES]


def train_job(run_dir: Path, model: str, label_column: str, data: Data, **options: Any) -> None:
    task = TextClassification(
        model=model, data=data, label_column=(label_column,), max_length=32, dropout=0.0
    )
    options |= {"batch_size": 16, "report": False, "quiet": True}
    train(Job(task=task, run_dir=str(run_dir), **options))


def main() -> None:
    out, rows, models = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    folder, is_main_process = out.with_suffix(""), os.environ.get("RANK", "0") == "0"
    results: dict[str, Any] = {"loss": {}, "grad_norm": {}, "validation": {}}

    # The first step, for all models and kinds of labels
    data = Data(files={"train": rows}, validation=0)
    for architecture, model in models.items():
        for problem, column in LABEL_COLUMNS.items():
            for size in MICRO_BATCH_SIZES:
                key = f"{architecture} {problem} {size} rows x {NUM_PROCESSES}"
                options = {"micro_batch_size": size, "max_steps": 1, "max_grad_norm": 0.0}
                train_job(folder / key, model, column, data, **options)
                for name in ("loss", "grad_norm") if is_main_process else ():
                    (results[name][key],) = read_values(folder / key, name)

    # Three epochs of one of them
    data = Data(files={"train": rows}, validation=19)
    for size in MICRO_BATCH_SIZES:
        key = f"{size} rows x {NUM_PROCESSES}"
        options = {"epochs": 3, "eval_every": 4, "eval_batch_size": 3, "learning_rate": 1e-3}
        options["micro_batch_size"] = size
        train_job(folder / key, models["bert"], "colour", data, **options)
        if is_main_process:
            results["validation"][key] = read_values(folder / key, "loss", "validation")

    results["num_processes"] = PartialState().num_processes  # as training has set it up
    if is_main_process:
        out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
