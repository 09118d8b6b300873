"""The two ways in which parts reach a run: setups, which change how it computes, and observers.

`run` is a `ftloop.run.Run`, `steps` are `ftloop.metric_log.StepRecord` objects, and `sampler` is a
`ftloop.sampler.TrainSampler`. Importing their types here would close an import cycle.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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

        `model` is not wrapped by DDP. A setup that measures the size returns it again when the run
        resumes: it can record it in its environment.
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

    def on_export(self, run: Any, scores: dict[str, dict[str, float]]) -> None:
        """Called on the main process after model/ was written and before scores.json is.

        Write files that belong to a finished run here: a run that is killed before scores.json
        exists resumes and exports again.
        """

    def on_finish(self, run: Any, scores: dict[str, dict[str, float]]) -> None:
        """Called when the run is finished: model/ and scores.json are written."""

    def close(self, run: Any) -> None:
        """Called when the run ends, however it ends."""


def wrap_objects(setups: list[Setup], objects: dict[str, Any], accelerator: Any) -> dict[str, Any]:
    """Return the objects by name whose state_dict a checkpoint holds, instead of prepared ones."""
    objects = {**objects, "model": accelerator.unwrap_model(objects["model"])}
    if accelerator.scaler is not None:
        objects["scaler"] = accelerator.scaler
    for setup in setups:
        objects = setup.wrap_for_checkpointing(objects)
    return objects
