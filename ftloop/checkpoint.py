"""Checkpoints: saved atomically, verified by a manifest, found again, pruned.

A checkpoint is a folder `step-000460` with the files

    weights.pt      the state_dict of the model, by its names in memory
    training.pt     the state_dicts of optimizer, scheduler, gradient scaler, and registered objects
    manifest.json   size and sha256 of these two, and the environment that wrote them
    state.json      TrainState, with its own sha256; it alone is replaced, when the step is evaluated

It is written to `step-000460.tmp`, synced to disk and renamed: a folder without `.tmp` is complete,
whenever the process was killed. `torch.load(weights_only=True)` reads it, so that a checkpoint from
elsewhere cannot run code.
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
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ftloop.errors import TrainingError, UserError
from ftloop.state import TrainState

logger = logging.getLogger("ftloop")


def save_checkpoint(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Any],
    training: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Path:
    """Write the checkpoint folder/step-NNNNNN and return its path.

    If that checkpoint exists and is intact, only its state is written. Raises TrainingError when the
    disk is full or read-only; earlier checkpoints stay as they are.
    """
    final = folder / checkpoint_name(state.step)
    temporary = final.with_name(final.name + ".tmp")
    size = tensor_bytes(weights) + tensor_bytes(training)
    try:
        if final.exists():  # the run resumed from this step, or has evaluated it now
            if damage(final) is None:
                write_state(final, state)
                return final
            remove_checkpoint(final)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, "No space left on device")
        torch.save(dict(weights), temporary / "weights.pt")
        torch.save(dict(training), temporary / "training.pt")
        files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        manifest = {"files": files, "environment": environment}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        write_state(temporary, state)
        for path in (*temporary.iterdir(), temporary):
            _fsync(path)
        temporary.rename(final)
        _fsync(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        raise TrainingError(
            f"cannot save the checkpoint {final}: {error}. It needs {size / 1e6:.1f} MB, and "
            f"{free / 1e6:.1f} MB are free. The previous checkpoint is intact: free some space and run the "
            "same command again to resume."
        ) from error
    logger.debug("saved %s", final)
    return final


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def write_state(checkpoint: Path, state: TrainState) -> None:
    """Write or replace the state of a checkpoint atomically."""
    values = asdict(state)
    text = json.dumps({"state": values, "sha256": _sha256(values)})
    write_text(checkpoint / "state.json", text)


def write_text(file: Path, text: str) -> None:
    """Replace a small file atomically: it has the old content or the new one."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    _fsync(temporary)
    temporary.replace(file)


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, the oldest first."""
    paths = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(paths, key=step_of)


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of a checkpoint: "step-000460"."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that no incomplete folder keeps its name."""
    temporary = checkpoint.with_name(checkpoint.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.rename(temporary)
    shutil.rmtree(temporary)


def discard_after(folder: Path, step: int) -> None:
    """Delete checkpoints after `step`, which a resumed run writes anew, and incomplete ones."""
    for checkpoint in find_checkpoints(folder):
        if step_of(checkpoint) > step:
            remove_checkpoint(checkpoint)
    for temporary in folder.glob("step-*.tmp"):
        shutil.rmtree(temporary)


def damage(checkpoint: Path) -> str | None:
    """Describe what is wrong with a checkpoint, by its manifest; None if it is intact."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        files, _ = dict(manifest["files"]), dict(manifest["environment"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"manifest.json is unreadable ({error})"
    for name in ("weights.pt", "training.pt"):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _fingerprint(checkpoint / name) != files.get(name):
            return f"{name} has changed since it was written"
    try:
        record = json.loads((checkpoint / "state.json").read_text())
        is_unchanged = _sha256(record["state"]) == record["sha256"]
        TrainState(**record["state"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"state.json is unreadable ({error})"
    return None if is_unchanged else "state.json has changed since it was written"


def newest_intact(folder: Path) -> Path | None:
    """Return the newest intact checkpoint of a folder. Damaged ones are logged and passed over."""
    for checkpoint in reversed(find_checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("checkpoint %s is damaged (%s): trying the previous one", checkpoint, problem)
    return None


def load_state(checkpoint: Path) -> TrainState:
    """Read the TrainState of a checkpoint."""
    values = json.loads((checkpoint / "state.json").read_text())["state"]
    return TrainState(**{item.name: values[item.name] for item in fields(TrainState)})


def load_environment(checkpoint: Path) -> dict[str, Any]:
    """Read the environment that wrote a checkpoint; see `distributed.environment_info`."""
    return json.loads((checkpoint / "manifest.json").read_text())["environment"]


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the state_dict of the model, on the CPU."""
    return _load_tensors(checkpoint / "weights.pt")


def load_training(checkpoint: Path) -> dict[str, Any]:
    """Read the state_dicts of optimizer, scheduler, gradient scaler and registered objects."""
    return _load_tensors(checkpoint / "training.pt")


def _load_tensors(file: Path) -> dict[str, Any]:
    """Read tensors and plain values. Raises UserError for a file with anything else, which is not run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds Python objects besides tensors. None of its code was run."
        ) from error


def prune(folder: Path, keep_last: int, keep_best: int, metric: str, direction: str) -> None:
    """Delete all checkpoints except the newest `keep_last` and the best `keep_best` (ties: the older)."""
    checkpoints = find_checkpoints(folder)
    values = {}
    for checkpoint in checkpoints:
        state = load_state(checkpoint)
        scores = state.scores if state.last_eval_step == state.step else None
        if scores and not math.isnan(scores.get(metric, math.nan)):
            values[checkpoint] = scores[metric] if direction == "min" else -scores[metric]
    best = sorted(values, key=values.__getitem__)[:keep_best]
    for checkpoint in checkpoints[:-keep_last]:
        if checkpoint not in best:
            remove_checkpoint(checkpoint)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _sha256(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
