"""Not a test: what tests/test_division.py runs in one process, and in several by torchrun. Writes JSON to OUT.

python tests/division.py OUT ROWS.jsonl '{"bert": "FOLDER", ...}'
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ftloop import Config, Data, TextClassification, train

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
PROBLEMS = {"single": "colour", "multi": "colours", "regression": "tone"}
# Micro-batch sizes for a batch of 16: (16,1,1), (4,4,1) and (5,4,1) in one process, (2,4,2) in two.
MICRO_BATCH_SIZES = {1: (16, 4, 5), 2: (2,), 3: (3,)}[PROCESSES]


def run(name: str, model: str, label_column: str, data: Data, **options: Any) -> list[dict[str, Any]]:
    """The metric log of a run in a folder of its own."""
    task = TextClassification(model=model, data=data, label_column=(label_column,), max_length=32, dropout=0.0)
    folder = Path(sys.argv[1]).with_suffix("") / name
    train(Config(task=task, run_dir=str(folder), batch_size=16, report=False, **options))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    logging.getLogger("ftloop").addHandler(logging.NullHandler())
    models, rows = json.loads(sys.argv[3]), sys.argv[2]
    found: dict[str, Any] = {"norms": {}, "losses": {}, "validation": {}}
    for architecture, model in models.items():
        for problem, column in PROBLEMS.items():
            for size in MICRO_BATCH_SIZES:
                key = f"{architecture}-{problem}-{size}x{PROCESSES}"
                options = {"micro_batch_size": size, "max_steps": 1, "max_grad_norm": 0.0}
                lines = run(key, model, column, Data(files={"train": rows}, validation=0), **options)
                values = {line["name"]: line["value"] for line in lines}
                found["norms"][key], found["losses"][key] = values["gradient_norm"], values["loss"]
    for size in MICRO_BATCH_SIZES:
        key = f"{size}x{PROCESSES}"
        options = {"micro_batch_size": size, "epochs": 3, "eval_every": 4, "eval_batch_size": 3, "learning_rate": 1e-3}
        lines = run(f"long-{key}", models["bert"], "colour", Data(files={"train": rows}, validation=19), **options)
        found["validation"][key] = [
            line["value"] for line in lines if line["split"] == "validation" and line["name"] == "loss"
        ]
    found["processes"] = PartialState().num_processes  # as training had set it up
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
