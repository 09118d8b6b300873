"""How long it takes from the command to the first optimizer step, beside a script with the Trainer; and to --help.

    python -m benchmarks.startup
    python -m benchmarks.startup --rounds 10 --json startup.json

Rows are tokenised and cached before it begins (the Trainer's by `datasets.map`, as its scripts do it). A hook ends the
process after the first step of MiniLM on 8 sentence pairs; what is timed is the life of the process.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks import speed
from benchmarks.speed import WORKS, Common, Goal

# The hook of the other benchmarks; what it imports is the standard library's.
RUNNER = """
import os, runpy, sys
from benchmarks.speed import Clock
Clock(lambda clock: os._exit(0))
script, sys.argv = sys.argv[1], sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(script))
runpy.run_path(script, run_name="__main__")
sys.exit("error: no optimizer step was done")
"""
# As in the documentation of transformers, without what this measures not: evaluation, saving.
SCRIPT = """
import sys
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

model, train, folder = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
rows = load_dataset("csv", data_files=train, split="train")


def tokenize(batch):
    return tokenizer(batch["sentence1"], batch["sentence2"], truncation=True, max_length=128)


rows = rows.map(tokenize, batched=True).class_encode_column("label")
arguments = TrainingArguments(folder, per_device_train_batch_size=8, save_strategy="no", report_to="none")
Trainer(
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=2),
    arguments,
    train_dataset=rows,
    processing_class=tokenizer,
).train()
"""
RIVALS = ("torch", "trainer", "ftloop", "ftloop-default-kernels", "help")


@dataclass(frozen=True)
class Options(Common):
    """What is started, and how often."""

    rounds: int = 10  # each rival once in each; one more before them fills the caches, unless there is one alone
    rivals: tuple[str, ...] = RIVALS  # torch: its import alone
    rows: int = 3_672  # of train, sentence pairs


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.startup", description=__doc__)
    seen = speed.begin(given)
    with speed.workplace() as folder:
        work = replace(WORKS["pairs"], batch_size=8, steps=given.rows // 8)
        job = speed.prepare("pairs", given, Path(folder), work)
        script = Path(folder, "trainer.py")
        script.write_text(SCRIPT)
        runner = [sys.executable, "-c", RUNNER]

        def words(rival: str) -> list[str]:
            if rival == "torch":
                return [sys.executable, "-c", "import torch"]
            if rival == "help":
                return [sys.executable, "train.py", "configs/text.py", "--help"]
            if rival == "trainer":
                return [*runner, str(script), job.model, job.train, f"{folder}/trainer"]
            own = speed.variant(job, rival)
            return [*runner, "train.py", *speed.words_of_ftloop(own), *own.options["words"]]

        def measure(rival: str) -> dict[str, float | str]:
            places = {"PYTHONPATH": str(speed.ROOT), "HF_DATASETS_CACHE": f"{folder}/cache"}
            own = {**os.environ, **speed.ENVIRONMENT, **speed.NO_GPU, **places, "OMP_NUM_THREADS": str(given.threads)}
            command = words(rival)
            for run in Path(job.folder).glob("*/run"):  # of the round before
                shutil.rmtree(run)
            began = time.perf_counter()
            result = subprocess.run(command, cwd=speed.ROOT, env=own, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            if result.returncode:
                return {"failed": speed.why(result.stdout + result.stderr)}
            return {"s": seconds}

        if given.rounds > 1:
            speed.in_rounds(given.rivals, 1, measure)
        measured = speed.in_rounds(given.rivals, given.rounds, measure)
    lines = []
    for rival in given.rivals:
        said = speed.failure(measured, rival)
        against = speed.ratio(measured, rival, "trainer", "s")
        shown = f"failed: {said}" if said else speed.spread(speed.values_of(measured, rival, "s")).shown()
        lines.append([rival, shown, against.shown() if against else "-"])
    print(f"\n## Start, {job.rows} rows cached\n")
    print(speed.markdown(("rival", "seconds", "time, of trainer"), lines))
    goal = Goal("ftloop", ("trainer",), "time", 0.8).verdict(measured, "s")
    print(f"\n{goal}")
    speed.report(given, {"measured": measured, "goals": [goal]}, seen)


if __name__ == "__main__":
    main()
