"""Checkpoints: saved atomically, verified by a manifest, found again, pruned.

A checkpoint is a folder `step-000460` with the files

    weights.pt      the state_dict of the model, by its names in memory
    training.pt     the state_dicts of optimizer, scheduler, scaler, and other registered objects
    manifest.json   TrainState, the environment that wrote it, size and sha256 of the other files,
                    and a sha256 of all this

It is written to `step-000460.tmp`, synced to disk and renamed: a folder without `.tmp` is complete,
whenever the process was killed. `torch.load(weights_only=True)` reads it, so that a checkpoint from
elsewhere cannot run code.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch

from ftloop.config import Config, differences, encode, read_record
from ftloop.errors import TrainingError, UserError, read_json
from ftloop.state import TrainState

logger = logging.getLogger("ftloop")

FILES = ("weights.pt", "training.pt")
Values = Mapping[str, Any]  # a state_dict, or other values by name


# mypy wants a literal.
State = TypedDict("State", get_type_hints(TrainState), total=False)  # type: ignore[misc]


class Manifest(TypedDict):
    """The content of manifest.json."""

    state: State
    environment: dict[str, bool | int | float | str | None]
    files: dict[str, dict[str, int | str]]
    sha256: str


def save_checkpoint(folder: Path, state: TrainState, objects: Values, environment: Values) -> Path:
    """Write the checkpoint folder/step-NNNNNN of the state_dicts of `objects`; return its path.

    If that checkpoint exists and is intact, only its manifest is replaced: its step was evaluated.
    Raises TrainingError when the disk is full or read-only; earlier checkpoints stay as they are.
    """
    final = folder / checkpoint_name(state.step)
    temporary = final.with_name(final.name + ".tmp")
    try:
        if final.exists() and damage(final) is None:
            write_manifest(final, state, environment)
            return final
        if final.exists():
            remove_checkpoint(final)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        others = {name: value for name, value in objects.items() if name != "model"}
        torch.save(dict(objects["model"]), temporary / "weights.pt")
        torch.save(others, temporary / "training.pt")
        write_manifest(temporary, state, environment)
        for path in (*temporary.iterdir(), temporary):
            _fsync(path)
        temporary.rename(final)
        _fsync(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        message = f"cannot save the checkpoint {final}: {error}. The previous one is intact: free "
        raise TrainingError(f"{message}some space and run the same command again.") from error
    return final


def write_manifest(checkpoint: Path, state: TrainState, environment: Values) -> None:
    """Write or replace the manifest of a checkpoint atomically."""
    files = {name: _fingerprint(checkpoint / name) for name in FILES}
    content = {"state": asdict(state), "environment": dict(environment), "files": files}
    write_text(checkpoint / "manifest.json", json.dumps({**content, "sha256": _sha256(content)}))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint. Raises UserError if it was changed."""
    content = read_json(checkpoint / "manifest.json", Manifest)
    is_changed = content.pop("sha256") != _sha256(content)
    if is_changed or content["state"].get("step") != step_of(checkpoint):
        raise UserError("manifest.json has changed since it was written")
    return content


def write_text(file: Path, text: str) -> None:
    """Replace a small file atomically: it has the old content or the new one.

    The temporary file is created exclusively, so that nothing is written through a link.
    """
    temporary = file.with_name(file.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8") as stream:
        stream.write(text)
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
        recorded = read_manifest(checkpoint)["files"]
        changed = [name for name in FILES if _fingerprint(checkpoint / name) != recorded.get(name)]
    except (OSError, UserError) as error:
        return str(error)
    return f"{changed[0]} has changed since it was written" if changed else None


def newest_intact(folder: Path) -> Path | None:
    """Return the newest intact checkpoint of a folder. Damaged ones are logged and passed over."""
    for checkpoint in reversed(find_checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("checkpoint %s is damaged (%s): trying an older one", checkpoint, problem)
    return None


def load_state(checkpoint: Path) -> TrainState:
    """Read the TrainState of a checkpoint."""
    return TrainState(**read_manifest(checkpoint)["state"])


def load_environment(checkpoint: Path) -> dict[str, Any]:
    """Read the environment that wrote a checkpoint; see `Setup.environment`."""
    return read_manifest(checkpoint)["environment"]


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the state_dict of the model, on the CPU."""
    return _load_tensors(checkpoint / "weights.pt")


def load_state_dicts(checkpoint: Path) -> dict[str, Any]:
    """Read the state_dicts of all registered objects by name, on the CPU."""
    return {"model": load_weights(checkpoint), **_load_tensors(checkpoint / "training.pt")}


def load_objects(objects: Values, checkpoint: Path, without: tuple[str, ...] = ()) -> None:
    """Load the state_dicts of an intact checkpoint into the registered objects, strictly."""
    problem = damage(checkpoint)
    if problem is not None:
        raise TrainingError(f"the checkpoint {checkpoint} is damaged ({problem}): start a new run.")
    try:
        state_dicts = load_state_dicts(checkpoint)
        for name, value in objects.items():
            if name not in without:
                value.load_state_dict(state_dicts[name])
    except Exception as error:  # each object raises its own kinds
        message = f"{checkpoint} does not fit this run ({error!r:.500}). Has the code changed?"
        raise UserError(message) from error


def _load_tensors(file: Path) -> dict[str, Any]:
    """Read tensors and plain values. Raises UserError for a file that holds anything else."""
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} holds Python objects besides tensors; none was run.") from error


def prune(folder: Path, config: Config) -> None:
    """Delete all checkpoints except the newest and the best ones."""
    checkpoints, values = find_checkpoints(folder), {}
    for checkpoint in checkpoints:
        try:
            state = load_state(checkpoint)
        except UserError:  # a damaged one is not the best
            continue
        scores = state.scores if state.last_eval_step == state.step else None
        value = (scores or {}).get(config.best_metric, math.nan)
        if not math.isnan(value):
            values[checkpoint] = value if config.direction == "min" else -value
    best = sorted(values, key=values.__getitem__)[: config.keep_best]
    for checkpoint in sorted({*checkpoints[: -config.keep_last]} - {*best}):
        remove_checkpoint(checkpoint)


# The run folder, before a run starts


def check_run_folder(folder: Path) -> None:
    """Raise UserError for a folder that holds something other than a run."""
    own_files = {"lock", "config.json.tmp"}  # of a run that was killed while it opened the folder
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} cannot be used: {error}.", field="run_dir") from error
    if "config.json" not in names and names - own_files:
        message = f"{str(folder)!r} is not empty and holds no run; choose another."
        raise UserError(message, field="run_dir")


def lock_run_folder(folder: Path) -> int:
    """Lock a run folder until this process ends or closes the descriptor that is returned.

    Uses lockf: data workers would inherit a flock and hold it after this process has ended. Raises
    UserError if another process holds the lock. Warns about a file system without locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"another process is training in {str(folder)!r}."
        raise UserError(message, field="run_dir") from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", 0) not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            message = f"{str(folder)!r} cannot be written or locked: {error}."
            raise UserError(message, field="run_dir") from error
        logger.warning("%s: this file system has no locks; start one command at a time", folder)
    return descriptor


def find_resume_checkpoint(config: Config) -> Path | None:
    """Return the checkpoint to resume from, or None for a new run.

    Raises UserError if the folder holds a run with other options, which would be mixed with this
    one.
    """
    folder = Path(config.run_dir)
    if not (folder / "config.json").is_file():
        return None
    if config.resume == "none":
        message = f"{str(folder)!r} holds a run already; choose another, or resume=auto."
        raise UserError(message, field="run_dir")
    changes = differences(read_record(folder)["config"], encode(config), config.may_change)
    if changes and not config.allow_changes:
        message = f"{str(folder)!r} holds a run with other options: {'; '.join(changes)}."
        raise UserError(f"{message} Choose another folder.", field="run_dir")
    if changes:
        logger.warning("resume: with other options than before: %s", "; ".join(changes))
    return newest_intact(folder / "checkpoints")


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
