"""The two ways in which parts reach a run: setups, which change how it computes, and observers.

`run` is a `ftloop.run.Run`, `steps` are `ftloop.metric_log.StepRecord` objects, and `sampler` is a
`ftloop.sampler.TrainSampler`. Importing their types here would close an import cycle.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


class Setup:
    """Changes how training is computed, before it starts. `Config.setups()` lists those of a run.

    Override the methods that you need; the others do nothing.
    """

    def accelerator_options(self) -> dict[str, Any]:
        """Return keyword arguments for `Accelerator`. Lists of `kwargs_handlers` are joined."""
        return {}

    def resume(self, environment: dict[str, Any]) -> None:
        """Receive the environment that is recorded in the checkpoint to resume from."""

    def prepare_model(self, model: "torch.nn.Module", accelerator: "Accelerator") -> None:
        """Change the model in place. It is on its device; the optimizer does not exist yet."""

    def choose_micro_batch_size(
        self, model: "torch.nn.Module", sampler: Any, task: Any, accelerator: "Accelerator"
    ) -> int | None:
        """Return the rows per forward pass on each rank, or None for no opinion.

        Called for micro_batch_size="auto" in a new run. `model` is not wrapped by DDP.
        """
        return None

    def wrap_for_checkpointing(self, objects: dict[str, Any]) -> dict[str, Any]:
        """Return the registered objects by name, some of them wrapped; see the FSDP2 setup."""
        return objects

    def environment(self) -> dict[str, Any]:
        """Return what may change the bits of a result. It is recorded, and compared on resume."""
        return {}

    def undo(self) -> None:
        """Restore the global state that the setup changed. Called when the run ends in any way."""


class Observer:
    """Is told what happened, on every rank, and cannot change it. `Config.observers()` lists them.

    Override the methods that you need; the others do nothing.
    """

    def on_start(self, run: Any) -> None:
        """Called before the first step; the run starts or resumes at `run.state`."""

    def on_log(self, run: Any, steps: list[Any], speed: dict[str, float]) -> None:
        """Called when the values of some steps are known, in order, every `log_every` steps.

        `speed` holds rows_per_second, and data_wait: the share of the time that the loop waited for
        batches.
        """

    def on_scores(self, run: Any, split: str, scores: dict[str, float], epoch: float) -> None:
        """Called after an evaluation."""

    def sync(self) -> None:
        """Make durable what was written so far: a checkpoint is about to be saved."""

    def on_save(self, run: Any, checkpoint: Path) -> None:
        """Called after a checkpoint was saved. All ranks wait for the main process."""

    def on_finish(self, run: Any, scores: dict[str, dict[str, float]]) -> None:
        """Called when the run is finished: model/ and scores.json are written."""

    def close(self, run: Any) -> None:
        """Called when the run ends, however it ends."""


def apply_setups(
    setups: Sequence[Setup], model: Any, accelerator: Any, environment: dict[str, Any] | None
) -> None:
    """Let each setup change the model. `environment`: that of the checkpoint to resume from."""
    for setup in setups:
        if environment is not None:
            setup.resume(environment)
        setup.prepare_model(model, accelerator)


def undo_setups(setups: Sequence[Setup]) -> None:
    """Undo what setups changed, the last one first."""
    for setup in reversed(setups):
        setup.undo()


def choose_micro_batch_size(
    setups: Sequence[Setup], model: Any, sampler: Any, task: Any, accelerator: Any
) -> int:
    """Return the smallest micro-batch size that a setup chooses. Raises UserError if none does."""
    sizes = [setup.choose_micro_batch_size(model, sampler, task, accelerator) for setup in setups]
    if not any(sizes):
        raise UserError("'auto' needs a setup that measures it.", field="micro_batch_size")
    return min(size for size in sizes if size)
