"""Stop a training run at an optimizer step, as a kill would, and compare what runs leave behind."""

import json
from pathlib import Path

import pytest
from conftest import run_script

from ftloop import loop


class Interrupted(BaseException):
    """Stands for the end of the process."""


def interrupt_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make training raise Interrupted when it is about to compute an optimizer step (from 0)."""
    train_step = loop.train_step

    def interrupted(task, model, micro_batches, total_weight, state, accelerator):
        if state.step == step:
            raise Interrupted
        return train_step(task, model, micro_batches, total_weight, state, accelerator)

    monkeypatch.setattr(loop, "train_step", interrupted)


def train_until_step(step: int, *options: str | Path) -> None:
    """Run train.py with some options, and interrupt it before an optimizer step (from 0)."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at_step(monkeypatch, step)
        with pytest.raises(Interrupted):
            run_script("train.py", *options)


def read_results(run: Path) -> dict[str, object]:
    """The exported weights of a run as bytes, and its logged values by split and name."""
    return {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        **{f"{split} {name}": values for (split, name), values in read_log(run).items()},
    }


def read_log(run: Path) -> dict[tuple[str, str], list[float]]:
    """The values of metrics.jsonl by split and name, without timings."""
    values: dict[tuple[str, str], list[float]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        values.setdefault((line["split"], line["name"]), []).append(line["value"])
    return {
        key: numbers
        for key, numbers in values.items()
        if key[1] in ("loss", "grad_norm", "learning_rate") or key[0] != "train"
    }
