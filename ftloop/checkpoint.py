"""Checkpoints: saved atomically, verified by a manifest, found again, pruned. Plain files, no pickled code.

A checkpoint is a folder `step-000460` with the files

    weights.pt      the model's state_dict, by the names in memory (save_pretrained renames some: it is for export)
    training.pt     state_dicts of optimizer, schedule and gradient scaler
    manifest.json   size and sha256 of these two; versions, threads and processes that made them
    state.json      TrainState, with its own sha256: it alone may be written anew, when the step is evaluated later

It is written aside as `step-000460.tmp`, synced to disk and renamed: a folder without `.tmp` is whole, whenever the
process was killed. `torch.load(weights_only=True)` reads it: a checkpoint from elsewhere runs no code.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ftloop.errors import TrainingError, UserError, nearest

logger = logging.getLogger("ftloop")


@dataclass
class TrainState:
    """The whole position of a training, besides the tensors."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # of the next window
    window: int = 0  # the next window in that epoch
    scores: dict[str, float] | None = None  # on validation at this step; None where it was not evaluated
    best_step: int | None = None
    best_scores: dict[str, float] | None = None  # on validation at best_step
    evaluations_since_best: int = 0  # what patience counts
    judged_step: int = 0  # of the last evaluation
    skipped_steps: int = 0  # whose gradients were not finite
    at_once: int | None = None  # rows (with --batching tokens: tokens) of one forward pass that fitted into memory
    data_digest: str = ""  # of the rows of train: a run goes on with the same ones
    log_bytes: int = 0  # length of metrics.jsonl at this step: what came after it is cut off when resuming
    ledger_bytes: int = 0  # likewise of ledger.jsonl

    def advance(self, window: Any) -> None:
        """Move behind a window (`ftloop.sampler.Window`)."""
        self.step += 1
        self.epoch, self.window = (window.epoch + 1, 0) if window.ends_epoch else (window.epoch, window.index + 1)
        self.scores = None

    def judge(self, scores: dict[str, float], metric: str, direction: str) -> None:
        """Take the scores of an evaluation, and see whether `metric` is the best so far (ties: the first is)."""
        if metric not in scores:
            raise UserError(
                f"--best-metric {metric!r} was not computed{nearest(metric, scores)}; there are {', '.join(scores)}"
            )
        self.scores, self.judged_step = scores, self.step
        best = math.nan if self.best_scores is None else self.best_scores[metric]
        # Nothing is better than NaN but a number.
        if math.isnan(best) or (scores[metric] > best if direction == "max" else scores[metric] < best):
            self.best_scores, self.best_step, self.evaluations_since_best = scores, self.step, 0
        else:
            self.evaluations_since_best += 1


def save(
    folder: Path, state: TrainState, weights: Mapping[str, Any], training: Mapping[str, Any], made_by: Mapping[str, Any]
) -> Path:
    """Write the checkpoint `folder/step-NNNNNN` and return it. Raises TrainingError when the disk is full or read-only;
    the checkpoints before it stay as they are."""
    final = folder / name_of(state.step)
    aside = final.with_name(final.name + ".tmp")
    needed = size_of(weights) + size_of(training)
    try:
        if final.exists():  # a resumed run is at a step that was saved before, or has evaluated it now
            if damage(final) is None:
                write_state(final, state)
                return final
            remove(final)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, "No space left on device")
        torch.save(dict(weights), aside / "weights.pt")
        torch.save(dict(training), aside / "training.pt")
        files = {file.name: _fingerprint(file) for file in sorted(aside.iterdir())}
        (aside / "manifest.json").write_text(json.dumps({"files": files, "made_by": made_by}, indent=1))
        write_state(aside, state)
        for path in (*aside.iterdir(), aside):
            _sync(path)
        aside.rename(final)
        _sync(folder)
        logger.debug("saved %s", final)
    except (OSError, RuntimeError) as error:  # a full disk is an OSError or, from torch.save, a RuntimeError
        with contextlib.suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        raise TrainingError(
            f"cannot save the checkpoint {final}: {error}. It needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are "
            "free there. The checkpoint before it is whole: make room, and the same command goes on from it"
        ) from error
    return final


def size_of(value: Any) -> int:
    """The bytes of all tensors in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(size_of, values))


def write_state(checkpoint: Path, state: TrainState) -> None:
    """Write or replace the state of a checkpoint, whenever the process is killed the old one or the new one."""
    values = asdict(state)
    write_text(checkpoint / "state.json", json.dumps({"state": values, "sha256": _sha256(values)}))


def find(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; what was being written when a process died is not among them."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=step_of)


def name_of(step: int) -> str:
    """The name of a checkpoint's folder: "step-000460"."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: it is renamed first, so that a process killed here leaves no half of it."""
    aside = checkpoint.with_name(checkpoint.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def discard_after(folder: Path, step: int) -> None:
    """Delete what a run that goes on from `step` will write anew: later checkpoints (damaged ones), and half a one."""
    for checkpoint in find(folder):
        if step_of(checkpoint) > step:
            remove(checkpoint)
    for aside in folder.glob("step-*.tmp"):
        shutil.rmtree(aside)


def write_text(file: Path, text: str) -> None:
    """Replace a small file as a whole: it is the old one or the new one, whenever the process is killed."""
    aside = file.with_name(file.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.replace(file)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if it is as it was written."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest = {"files": dict(manifest["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, fingerprint in manifest["files"].items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _fingerprint(checkpoint / name) != fingerprint:
            return f"{name} is not what was written"
    try:
        written = json.loads((checkpoint / "state.json").read_text())
        known = _sha256(written["state"]) == written["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"state.json cannot be read ({error})"
    return None if known else "state.json is not what was written"


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are named and passed over."""
    for checkpoint in reversed(find(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("checkpoint %s is damaged: %s; trying the one before it", checkpoint, problem)
    return None


def load_state(checkpoint: Path) -> TrainState:
    return TrainState(**json.loads((checkpoint / "state.json").read_text())["state"])


def load_made_by(checkpoint: Path) -> dict[str, Any]:
    """Versions, threads and processes that made a checkpoint."""
    return json.loads((checkpoint / "manifest.json").read_text())["made_by"]


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return _load(checkpoint / "weights.pt")


def load_training(checkpoint: Path) -> dict[str, Any]:
    return _load(checkpoint / "training.pt")


def _load(file: Path) -> dict[str, Any]:
    """Tensors and plain values. Raises UserError for a file with anything else in it, of which no code is run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} holds more than tensors: none of its code was run") from error


def prune(folder: Path, keep_last: int, keep_best: int, metric: str, direction: str) -> None:
    """Delete all checkpoints but the newest `keep_last` and the `keep_best` with the best scores (ties: the older)."""
    checkpoints = find(folder)
    scores = {checkpoint: load_state(checkpoint).scores for checkpoint in checkpoints}
    scored = [
        checkpoint for checkpoint in checkpoints if scores[checkpoint] and not math.isnan(scores[checkpoint][metric])
    ]
    best = sorted(scored, key=lambda checkpoint: scores[checkpoint][metric] * (-1 if direction == "max" else 1))
    for checkpoint in checkpoints[:-keep_last]:
        if checkpoint not in best[:keep_best]:
            remove(checkpoint)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _sha256(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
