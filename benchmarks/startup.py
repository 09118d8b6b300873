"""Measure the time from the command to the end of the first optimizer step, and to --help.

    python -m benchmarks.startup
    python -m benchmarks.startup --rounds 10 --json startup.json

The rows are tokenized and cached before (those of the Trainer by `datasets.map`, as its scripts
do). A hook ends the process after the first step of MiniLM on 8 sentence pairs. What is timed is
the life of the process.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks import speed
from benchmarks.speed import WORKLOADS, CommonOptions, Goal, Training

# Runs a script until the end of its first optimizer step. Imports only the standard library.
RUNNER = """
import os, runpy, sys
from benchmarks.step_clock import StepClock
StepClock(lambda clock: os._exit(0))
script, sys.argv = sys.argv[1], sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(script))
runpy.run_path(script, run_name="__main__")
sys.exit("error: the script ended without an optimizer step")
"""
# As in the documentation of transformers, without evaluation and saving
TRAINER_SCRIPT = """
import sys
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
)

model, train, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
dataset = load_dataset("csv", data_files=train, split="train")


def tokenize(batch):
    return tokenizer(batch["sentence1"], batch["sentence2"], truncation=True, max_length=128)


dataset = dataset.map(tokenize, batched=True).class_encode_column("label")
arguments = TrainingArguments(
    folder, per_device_train_batch_size=8, save_strategy="no", report_to="none"
)
Trainer(
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=2),
    arguments,
    train_dataset=dataset,
    processing_class=tokenizer,
).train()
"""
RIVALS = ("torch", "trainer", "ftloop", "ftloop-default-kernels", "help")


@dataclass(frozen=True)
class Options(CommonOptions):
    """What is started, and how often."""

    rounds: int = 10  # each rival once per round. One round before them fills the caches
    rivals: tuple[str, ...] = RIVALS  # torch: only its import
    rows: int = 3_672  # sentence pairs in train


def build_command(rival: str, training: Training, folder: str) -> list[str]:
    """Return the command of a rival, to be run in the root folder of the project."""
    if rival == "torch":
        return [sys.executable, "-c", "import torch"]
    if rival == "help":
        return [sys.executable, "train.py", "configs/text.py", "--help"]
    runner = [sys.executable, "-c", RUNNER]
    if rival == "trainer":
        output = f"{folder}/trainer"
        return [*runner, f"{folder}/trainer.py", training.model, training.train, output]
    own = speed.for_rival(training, rival)
    return [*runner, "train.py", *speed.train_options(own), *own.options["words"]]


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.startup", description=__doc__)
    machine = speed.print_machine(options)
    with speed.temporary_folder() as folder:
        workload = replace(WORKLOADS["pairs"], batch_size=8, steps=options.rows // 8)
        training = speed.prepare_training("pairs", options, Path(folder), workload)
        Path(folder, "trainer.py").write_text(TRAINER_SCRIPT)
        environment = {**os.environ, **speed.ENVIRONMENT, **speed.CPU_ONLY}
        environment |= {"PYTHONPATH": str(speed.ROOT), "OMP_NUM_THREADS": str(options.threads)}
        environment["HF_DATASETS_CACHE"] = f"{folder}/cache"

        def measure(rival: str) -> dict[str, Any]:
            command = build_command(rival, training, folder)
            for run in Path(training.folder).glob("*/run"):  # of the previous round
                shutil.rmtree(run)
            began = time.perf_counter()
            result = subprocess.run(
                command, cwd=speed.ROOT, env=environment, capture_output=True, text=True
            )
            seconds = time.perf_counter() - began
            if result.returncode:
                return {"failed": speed.find_reason(result.stdout + result.stderr)}
            return {"s": seconds}

        if options.rounds > 1:
            speed.measure_in_rounds(options.rivals, 1, measure)
        measurements = speed.measure_in_rounds(options.rivals, options.rounds, measure)
    lines = []
    for rival in options.rivals:
        reason = speed.get_failure(measurements, rival)
        seconds = speed.compute_spread(speed.get_values(measurements, rival, "s"))
        ratio = speed.compute_ratio(measurements, rival, "trainer", "s")
        first = f"failed: {reason}" if reason else speed.format_spread(seconds)
        lines.append([rival, first, speed.format_spread(ratio)])
    goal = Goal("ftloop", ("trainer",), "time", 0.8).verdict(measurements, "s")
    print(f"\n## Start, {training.rows} cached rows\n")
    print(speed.format_markdown(("rival", "seconds", "time / trainer"), lines))
    print(f"\n{goal}")
    speed.write_json(options, {"measurements": measurements, "goals": [goal]}, machine)


if __name__ == "__main__":
    main()
