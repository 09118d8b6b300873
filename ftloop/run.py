"""The run folder: lock, resume, checkpoints, logs, export.

config.json      the record of the config         checkpoints/   see ftloop/checkpoint.py
metrics.jsonl    see ftloop/metric_log.py         model/         the best weights, exported
scores.json      the final scores by split; it is written last and marks a finished run

Only the main process writes. All ranks call the methods of `Run` that the loop calls.
"""

import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ftloop import checkpoint as checkpoints, distributed
from ftloop.config import Config, record_text
from ftloop.errors import UserError, read_json
from ftloop.evaluation import evaluate
from ftloop.extensions import Setup, wrap_objects
from ftloop.metric_log import MetricLog, json_scores
from ftloop.optim import restore_hyperparameters
from ftloop.sampler import TrainSampler
from ftloop.state import TrainState

logger = logging.getLogger("ftloop")

Scores = dict[str, dict[str, float]]
"""Scores by split: {"validation": {"loss": 0.31, "accuracy": 0.89}, "test": {...}}."""


class Run:
    """The bookkeeping of a run, so that the loop contains only training."""

    def __init__(self, config: Config, accelerator: Accelerator, setups: list[Setup]):
        """Lock the run folder, then look for a checkpoint in it."""
        self.config, self.accelerator, self.setups = config, accelerator, setups
        self.task, self.is_main_process = config.task, accelerator.is_main_process
        self.folder = Path(config.run_dir)
        self.checkpoint_folder = self.folder / "checkpoints"
        checkpoints.check_run_folder(self.folder)
        self.lock: int | None = None
        if self.is_main_process and not self.is_finished:
            self.lock = checkpoints.lock_run_folder(self.folder)
        accelerator.wait_for_everyone()  # all ranks look at the folder after it is locked
        self.resumed_from = checkpoints.find_resume_checkpoint(config)
        self.state = TrainState()
        if self.resumed_from is not None:
            self.state = checkpoints.load_state(self.resumed_from)
        self.state.seed, self.start_step = config.seed, self.state.step
        self.observers = config.observers()
        self.log = MetricLog(accelerator)
        self.stop_signals = distributed.StopSignals(config.max_minutes)
        self.saved_position = (0, 0)  # (step, last_eval_step) of the newest checkpoint

    @property
    def is_finished(self) -> bool:
        """Whether the run has nothing left to do."""
        return (self.folder / "scores.json").exists()

    def load_scores(self) -> Scores:
        """Return the scores of a finished run."""
        if self.config.allow_changes:
            raise UserError("has no effect on a finished run.", field="allow_changes")
        logger.info("%s is finished already: nothing to do", self.folder)
        return read_json(self.folder / "scores.json", dict[str, dict[str, float | None]])

    # Before the first step

    def prepare_model(self, model: torch.nn.Module) -> None:
        """Let the setups change the model. They know the environment of the resumed checkpoint."""
        for setup in self.setups:
            if self.resumed_from is not None:
                setup.resume(checkpoints.load_environment(self.resumed_from))
            setup.prepare_model(model, self.accelerator)

    def choose_micro_batch_size(self, model: torch.nn.Module, sampler: TrainSampler) -> None:
        """Set the micro-batch size, as configured or as a setup chooses it."""
        arguments = (model, sampler, self.task, self.accelerator)
        sizes = [setup.choose_micro_batch_size(*arguments) for setup in self.setups]
        if self.config.micro_batch_size == "auto" and not any(sizes):
            raise UserError("'auto' needs a setup that measures it.", field="micro_batch_size")
        sampler.micro_batch_size = min(filter(None, [sampler.micro_batch_size, *sizes]))
        for name in ("micro_batch_size", "max_tokens"):
            before, now = getattr(self.state, name), getattr(sampler, name)
            if self.resumed_from is not None and before != now:
                message = "resume: %s %s -> %s. Without dropout, only rounding differs."
                logger.warning(message, name, before, now)
            setattr(self.state, name, now)

    def register_for_checkpointing(self, **objects: Any) -> None:
        """Save and restore the state_dict of these objects with each checkpoint, by their names.

        "model", "optimizer" and "scheduler" are needed. Add what else has a state: an average of
        the weights, a queue, a momentum teacher.
        """
        self.model, self.optimizer = objects["model"], objects["optimizer"]
        self.scheduler = objects["scheduler"].scheduler  # without accelerate's wrapper
        self.registered = wrap_objects(self.setups, objects, self.accelerator)

    def start(self, sampler: TrainSampler, eval_loaders: dict[Any, Any]) -> TrainState:
        """Restore the checkpoint, if there is one, and open the run folder for writing.

        Returns the state from which training continues: step 0 in a new run.
        """
        self.sampler, self.eval_loaders = sampler, eval_loaders
        self.total_steps, folder = sampler.total_steps, self.checkpoint_folder
        if self.resumed_from is not None:
            groups = [dict(group) for group in self.optimizer.param_groups]
            checkpoints.load_objects(self.registered, self.resumed_from)
            if self.config.allow_changes:
                restore_hyperparameters(self.optimizer, self.scheduler, groups)
            self.saved_position = (self.state.step, self.state.last_eval_step)
            logger.info("resuming from %s", self.resumed_from)
        if self.is_main_process:
            # config.json first: a folder without it that holds other files is refused.
            checkpoints.write_text(self.folder / "config.json", record_text(self.config))
            folder.mkdir(exist_ok=True)
            checkpoints.discard_after(folder, self.state.step)
            checkpoints.prune(folder, self.config)  # the run may have been killed before it could
            self.log.open(self.folder / "metrics.jsonl", self.state)
        self.notify("on_start")
        self.stop_signals.install()
        self.log.restart_clock()
        return self.state

    # In the loop

    def should_evaluate(self, state: TrainState) -> bool:
        """Whether to evaluate now: due at this step, and not done yet."""
        is_done = state.last_eval_step == state.step or "validation" not in self.eval_loaders
        return state.step > 0 and not is_done and self._evaluation_is_due(state.step)

    def should_save(self, state: TrainState) -> bool:
        """Whether to save a checkpoint now: due at this step, and not done yet."""
        is_done = self.saved_position == (state.step, state.last_eval_step)
        return state.step > 0 and not is_done and self._save_is_due(state.step)

    def training_is_complete(self, state: TrainState) -> bool:
        """Whether the last step is done, or early stopping ends the training."""
        patience = self.config.patience or math.inf
        if state.evaluations_since_best >= patience:
            logger.info("stopped early: no better score in %d evaluations", patience)
        return state.step >= self.total_steps or state.evaluations_since_best >= patience

    def stop_requested(self) -> bool:
        """Whether a signal or the time limit asks any rank to stop. All ranks get the same answer.

        Several GPUs agree only at steps that wait for the GPU anyway; at others the answer is no.
        """
        may_wait = self._log_is_due(self.state.step)
        # A time limit that is shorter than the start of the run must not stop it for ever.
        has_advanced = self.state.step > self.start_step
        is_stopping = self.stop_signals.agree(self.accelerator, may_wait, has_advanced)
        if is_stopping:
            self.flush_log()
        return is_stopping

    def log_step(self, *values: Any) -> None:
        """Buffer the values of a step; see `MetricLog.add_step`. At log steps, write them."""
        self.log.add_step(self.state.step, self.sampler, *values)
        if self._log_is_due(self.state.step):
            self.flush_log()

    def flush_log(self) -> None:
        """Write the buffered steps. Raises TrainingError for a loss that is not finite."""
        records, speed = self.log.flush()
        if records:
            self.notify("on_log", records, speed)

    def log_scores(self, scores: dict[str, float] | None, split: str = "validation") -> None:
        """Record scores and, if they are on validation, update the best checkpoint.

        None stands for an evaluation that was stopped: the resumed run evaluates again.
        """
        if scores is None:
            return
        if split == "validation":
            self.state.update_best(scores, self.config.best_metric, self.config.direction)
        epoch = self.sampler.epochs_done(self.state.step)
        rate = round(len(self.eval_loaders[split].dataset) / self.log.seconds(), 2)
        self.log.write(self.state.step, epoch, split, scores, rate)
        self.log.sync(wait_for_disk=False)
        self.notify("on_scores", split, scores, epoch)
        self.log.restart_clock()

    def save_checkpoint(self, state: TrainState) -> None:
        """Save a checkpoint, unless it exists already, and delete those that it replaces."""
        if self.saved_position == (state.step, state.last_eval_step) and state.step > 0:
            return
        for observer in self.observers:
            observer.sync()
        state.log_bytes, state.log_checksum = self.log.sync(), self.log.checksum
        # All ranks take part: a sharded model gathers its weights.
        state_dicts = {name: value.state_dict() for name, value in self.registered.items()}
        if self.is_main_process:
            environment = {k: v for setup in self.setups for k, v in setup.environment().items()}
            folder = self.checkpoint_folder
            path = checkpoints.save_checkpoint(folder, state, state_dicts, environment)
            checkpoints.prune(folder, self.config)
            self.notify("on_save", path)
        self.saved_position = (state.step, state.last_eval_step)
        self.accelerator.wait_for_everyone()
        self.log.restart_clock()

    def notify(self, event: str, *values: Any) -> None:
        """Call the method of this name of each observer."""
        for observer in self.observers:
            getattr(observer, event)(self, *values)

    def _evaluation_is_due(self, step: int) -> bool:
        every = self.config.eval_every
        every = self.sampler.steps_per_epoch if every == "epoch" else every
        return step % every == 0 or step == self.total_steps

    def _save_is_due(self, step: int) -> bool:
        every = self.config.save_every
        return self._evaluation_is_due(step) or (every is not None and step % every == 0)

    def _log_is_due(self, step: int) -> bool:
        return self._save_is_due(step) or step % self.config.log_every == 0

    # After the last step

    def finish(self, model: torch.nn.Module, eval_loaders: dict[Any, Any]) -> Scores:
        """Load the best weights, score them on test, write model/ and scores.json."""
        state = self.state
        if state.best_step not in (None, state.step):
            best = self.checkpoint_folder / checkpoints.checkpoint_name(state.best_step)
            not_needed = ("optimizer", "scheduler", "scaler")
            checkpoints.load_objects(self.registered, best, without=not_needed)
        scores: Scores = {"validation": state.best_scores} if state.best_scores else {}
        if "test" in eval_loaders:
            loader, stop_requested = eval_loaders["test"], self.stop_requested
            self.log.restart_clock()
            test_scores = evaluate(model, loader, self.task, self.accelerator, stop_requested)
            if test_scores is None:
                raise self.stop_signals.exception(state.step)
            self.log_scores(test_scores, "test")
            scores["test"] = test_scores
        wrapped = wrap_objects(self.setups, {"model": model}, self.accelerator)
        weights = wrapped["model"].state_dict()  # all ranks take part
        if self.is_main_process:
            self.export(self.folder / "model", weights, model)
            self.notify("on_export", scores)  # before scores.json: a killed run repeats it
            finite = {split: json_scores(values) for split, values in scores.items()}
            checkpoints.write_text(self.folder / "scores.json", json.dumps(finite, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        self.notify("on_finish", scores)
        return scores

    def export(self, folder: Path, weights: dict[str, Any], model: torch.nn.Module) -> None:
        """Let the task write these weights into a folder, which is replaced as a whole."""
        temporary = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.task.export(self.accelerator.unwrap_model(model), weights, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    def close(self) -> None:
        """Release what the run holds, however it ends: signal handlers, logs, the lock."""
        self.stop_signals.restore()
        self.log.close()
        self.notify("close")
        if self.lock is not None:
            os.close(self.lock)
