"""A run and its folder: opened, resumed, logged, saved, finished. Only the main process writes and speaks.

config.json      the record (ftloop/config.py)          checkpoints/   ftloop/checkpoint.py
metrics.jsonl    the metric log (ftloop/logs/terminal.py)    model/         the kept weights, by save_pretrained; a card
ledger.jsonl     the rows of each step (ftloop/provenance/ledger.py), and lengths.npy, from which their order follows
scores.json      their scores by split; written last: the sign of a finished run
"""

import fcntl
import hashlib
import importlib.util
import json
import logging
import math
import os
import shlex
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from ftloop import __version__, checkpoint
from ftloop.distributed import sharding
from ftloop.logs import terminal as tracking
from ftloop.checkpoint import TrainState
from ftloop.config import Config, differences, encode, read_encoded, record_of
from ftloop.loader import TOKENS, batch_of
from ftloop.sampler import TrainOrder
from ftloop.errors import Stopped, TrainingError, UserError, root_cause
from ftloop.evaluation import Interrupted, evaluate_split
from ftloop.provenance.ledger import Ledger
from ftloop.cli.options import import_name
from ftloop.stopping import Stop

logger = logging.getLogger("ftloop")

Scores = dict[str, dict[str, float]]  # by split


class Run:
    """What `train` keeps of a run besides the loop itself. Its state is `state`; the rest is said once, by `start`."""

    def __init__(self, config: Config, accelerator: Accelerator):
        """Look at the folder. Raises UserError rather than mix two runs in it; changes nothing but its lock."""
        self.config, self.accelerator, self.task = config, accelerator, config.task
        self.stop = Stop(config.max_minutes)
        self.folder = Path(config.run_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.state = TrainState()
        self.lock: int | None = None
        if accelerator.is_main_process and (self.folder / "config.json").is_file() and not self.finished:
            self.lock = lock(self.folder)  # first of all: whoever trains there deletes checkpoints
        self.resumed = find_checkpoint(config)
        self.recorded = checkpoint.load_made_by(self.resumed) if self.resumed else {}
        self.matmul = "default"  # what fp32 products are computed with (ftloop/devices/kernels.py)
        self.log: Any = tracking.NoMetricLog()
        reports = beside("report.reporter")
        self.reporter = reports.Reporter(self.folder, config.report_every) if reports else Nothing()
        self.pushes: Any = Nothing()
        if config.push_to_hub is not None and accelerator.is_main_process and not self.finished:
            self.pushes = beside("hub.push", "--push-to-hub").Pushes(config)
        self.table = tracking.ScoreTable(config.best_metric)

    @property
    def finished(self) -> bool:
        return (self.folder / "scores.json").exists()

    def read_scores(self) -> Scores:
        """The scores of a finished run."""
        logger.info("%s is finished already: nothing to do", self.folder)
        if self.config.push_to_hub is not None:
            logger.info("to push it: python -m ftloop push %s %s", self.folder, self.config.push_to_hub)
        return json.loads((self.folder / "scores.json").read_text())

    def start(
        self, data: Any, order: TrainOrder, model: Any, optimizer: Any, schedule: Any, loaders: dict[str, DataLoader]
    ) -> None:
        """Take what was prepared, bring it to where the run stopped, and open the folder for writing."""
        self.model, self.optimizer, self.schedule, self.loaders = model, optimizer, schedule, loaders
        self.state.data_digest = digest(data["train"])
        self.ledger = Ledger(self.accelerator, model, self.config.digest_every)
        if self.accelerator.num_processes > 2 and not self.accelerator.is_fsdp2:
            self._settle(data["train"])
        if self.resumed is not None:
            self._restore(self.resumed)
        if len({*gather_object([self.state.step])}) > 1:
            raise UserError(
                f"the machines do not share --run-dir {self.config.run_dir!r}: they begin at different steps"
            )
        weights = self.ledger.weights_after(self.state.step)  # all processes take part
        if not self.accelerator.is_main_process:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.lock is None:
                self.lock = lock(self.folder)
            checkpoint.write_text(self.folder / "config.json", record_of(self.config))
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"--run-dir {self.config.run_dir!r} cannot be written: {error}") from error
        if self.resumed is not None and self.resumed.parent.resolve() != self.checkpoints.resolve():
            # By --resume PATH from another folder: what this run will need of the other comes along.
            best = self.state.best_step
            if best is not None and not (self.resumed.parent / checkpoint.name_of(best)).is_dir():
                logger.warning("resume: the best weights so far, of step %d, are gone: later ones will be kept", best)
                self.state.best_step = self.state.best_scores = best = None
            for step in {self.state.step, best or self.state.step}:
                name = checkpoint.name_of(step)
                shutil.copytree(self.resumed.parent / name, self.checkpoints / name, dirs_exist_ok=True)
            for name in ("metrics.jsonl", "ledger.jsonl", "lengths.npy"):
                if (self.resumed.parent.parent / name).is_file():
                    shutil.copy(self.resumed.parent.parent / name, self.folder / name)
        checkpoint.discard_after(self.checkpoints, self.state.step)
        self._prune()  # a run may have been killed between its last save and this
        kept = self.folder / "metrics.jsonl", self.state.log_bytes
        if self.config.track:
            self.log = import_name("ftloop.logs.trackers:TrackedLog")(*kept, self.config, self.state)
        else:
            self.log = tracking.MetricLog(*kept)
        plan = {"train_rows": order.rows, "batch_size": order.step_size, "seed": order.seed, "grouped": order.grouped}
        if order.grouped:  # the order of rows follows from them: `python -m ftloop verify` does without the data
            numpy.save(self.folder / "lengths.npy", order.lengths)
        self.ledger.open(self.folder / "ledger.jsonl", self.state.ledger_bytes, self.state.step, plan, weights)

    def _settle(self, rows: Any) -> None:
        """One backward pass without gradients. After its first one, DistributedDataParallel divides the parameters anew
        for its sums; between three processes or more, that changes their order, and a resumed run would differ."""
        batch = batch_of(rows, [(0, 0)], self.task.collate, self.config.seed)
        batch = {
            name: value.to(self.accelerator.device) for name, value in batch.items() if name not in ("rows", TOKENS)
        }
        targets = batch.pop("labels")
        self.model.eval()  # running means stay as they are; the loop turns training on
        self.accelerator.backward(self.task.losses(self.model(**batch), targets).sum() * 0)
        self.optimizer.zero_grad()

    def close(self) -> None:
        """Let go of the log, the ledger and the folder."""
        self.log.close()
        self.ledger.close()
        self.reporter.stop()
        if self.lock is not None:
            os.close(self.lock)

    def _restore(self, found: Path) -> None:
        """Load a checkpoint strictly, no key missing and none left over. Raises UserError if the data changed."""
        state = checkpoint.load_state(found)
        if state.data_digest != self.state.data_digest:
            raise UserError(
                f"the rows of train or their labels are not those that {found} was trained on: "
                "bring the data back, or train anew in another --run-dir"
            )
        vars(self.state).update(vars(state))
        if self.config.allow_changes and differences(read_encoded(found.parent.parent)[1], encode(self.config)):
            self.state.at_once = None  # only where options do change: in the run that follows, it is part of the state
        sharding.load_weights(self.model, checkpoint.load_weights(found), self.accelerator)
        training = checkpoint.load_training(found)
        sharding.load_optimizer(self.optimizer, training["optimizer"], self.accelerator)
        self.schedule.load_state_dict(training["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        logger.info("resume: from %s", found)
        before, now = self.recorded, made_by(self.accelerator, self.matmul)
        changed = [f"{name} {value} -> {now[name]}" for name, value in before.items() if now.get(name) != value]
        if changed:
            logger.warning(
                "resume: not on what the run began on (%s): the same rows in each step; results equal up to rounding, "
                "without dropout",
                ", ".join(changed),
            )

    def evaluate(self, split: str, epoch: float) -> dict[str, float]:
        """Score a split, and log the scores."""
        began = time.perf_counter()
        try:
            asked = partial(self.stop.asked, self.accelerator)
            see = partial(self.log.see, split)
            scores = evaluate_split(self.model, self.loaders[split], self.task, self.accelerator, asked, see)
        except Interrupted:
            if split == "validation":  # not evaluated: a run that goes on from here evaluates first
                self.save()
            raise self.stopped() from None
        seconds = time.perf_counter() - began
        self.log.write(self.state.step, epoch, split, scores, len(self.loaders[split].dataset) / seconds)
        self.log.append()
        return scores

    def owes_evaluation(self, total_steps: int) -> bool:
        """Whether the run was stopped between a step and the evaluation after it."""
        state = self.state
        due = self.config.evaluates_after(state.step, ends_epoch=state.window == 0) or state.step == total_steps
        return "validation" in self.loaders and state.step > 0 and state.scores is None and due

    def judge(self, scores: dict[str, float], epoch: float) -> None:
        """Take the scores on validation: are these weights the best so far?"""
        state, before = self.state, self.state.judged_step
        state.judge(scores, self.config.best_metric, self.config.direction)
        if self.accelerator.is_main_process:
            is_best = state.best_step == state.step
            self.table.add(state.step, epoch, self.ledger.mean_loss(after=before), scores, is_best)

    def stops_early(self) -> bool:
        """Whether to stop early. Asked before each step: a run that had stopped does not go on when resumed."""
        out = self.config.patience is not None and self.state.evaluations_since_best >= self.config.patience
        if out:
            logger.info(
                "stopped early: %d evaluations without a better %s", self.config.patience, self.config.best_metric
            )
        return out

    def stopped(self) -> Stopped:
        """What ends a run that was asked to stop, and is saved."""
        done, command = f"{self.stop.reason}: stopped after step {self.state.step}, and saved.", shlex.join(sys.argv)
        return Stopped(f"{done} To go on, run the same command again: python {command}", self.stop.code)

    def takes(self, gradient_norm: Any) -> bool:
        """Whether the optimizer may step: not with gradients that are not finite, if these are to be skipped. Asking
        waits for the device; all processes have the same gradients, and so the same answer."""
        if self.config.on_nan == "stop" or math.isfinite(float(gradient_norm)):
            return True
        self.state.skipped_steps += 1
        logger.warning(
            "step %d is skipped: its gradient norm is %f (%d step(s) skipped so far)",
            *(self.state.step + 1, gradient_norm, self.state.skipped_steps),
        )
        return False

    def save(self) -> None:
        """Write a checkpoint on the main process, then delete those it replaces; and a live report where one is due."""
        try:
            self._save()
        except TrainingError as error:
            if self.config.on_save_error == "stop":
                raise
            logger.error("%s (--on-save-error continue: training goes on)", error)
        if self.accelerator.is_main_process:
            self.reporter.while_training(self.state.step)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        self.state.log_bytes, self.state.ledger_bytes = self.log.durable(), self.ledger.durable()
        # All processes take part, for each may have a part of the weights.
        weights = sharding.weights_of(self.model, self.accelerator)
        training = {"optimizer": sharding.gathered(self.optimizer.state_dict(), self.accelerator)}
        if self.accelerator.is_main_process:
            training["schedule"] = self.schedule.state_dict()
            if self.accelerator.scaler is not None:
                training["scaler"] = self.accelerator.scaler.state_dict()
            checkpoint.save(self.checkpoints, self.state, weights, training, made_by(self.accelerator, self.matmul))
            self._prune()
            self.pushes.saved(self.state, self.task, partial(self._export, weights))

    def _export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Write weights as from_pretrained reads them, with the tokenizer or image processor; replaces the folder."""
        aside = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(aside, state_dict=weights)
        if self.task.processor is not None:
            self.task.processor.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)

    def _prune(self) -> None:
        """Delete the checkpoints that newer or better ones have replaced."""
        kept, config = self.config.kept, self.config
        checkpoint.prune(self.checkpoints, kept["last"], kept["best"], config.best_metric, config.direction)

    def finish(self, epoch: float) -> Scores:
        """Take the best weights, score them on test, write model/ and scores.json, and say where everything is."""
        state = self.state
        best = self.checkpoints / checkpoint.name_of(state.best_step or state.step)
        if state.best_step and not best.is_dir():  # by --on-save-error continue
            logger.error("the best weights, of step %s, could not be saved: the last are kept", state.best_step)
            state.best_step, state.best_scores = state.step, state.scores
        if (state.best_step or state.step) != state.step:
            sharding.load_weights(self.model, checkpoint.load_weights(best), self.accelerator)
        scores = {"validation": state.best_scores} if state.best_scores else {}
        if "test" in self.loaders:
            scores["test"] = self.evaluate("test", epoch)
        weights = sharding.weights_of(self.model, self.accelerator)
        if self.accelerator.is_main_process:
            self._export(weights, self.folder / "model")
            finite = {split: tracking.finite(values) for split, values in scores.items()}
            self._describe(finite)
            checkpoint.write_text(self.folder / "scores.json", json.dumps(finite, indent=1) + "\n")
            self._say_where(scores)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:  # the others need not wait: the run is finished, and whole
            self._share(finite)
        return scores

    def _share(self, scores: dict[str, Any]) -> None:
        """Report, card and pushing, as the config asks for them. Raises Stopped if a signal cuts the report short."""
        if self.config.report and beside("report.reporter") is not None:
            torch.cuda.empty_cache()  # another process needs the memory now; nothing where there is no GPU
            if self.reporter.at_the_end(self.stop.heard) is None:
                done = f"{self.stop.reason}: the run is finished, its report is not written."
                raise Stopped(f"{done} To write it: {self.reporter.command}", self.stop.code)
        if (self.folder / "outputs").is_dir():
            self._describe(scores)  # now with intervals: a report has looked at each row
        self.pushes.finish(lambda: self.stop.reason is not None)

    def _describe(self, scores: dict[str, Any]) -> None:
        """Write the model card, if the part that does it was not deleted; a run is finished without it too."""
        card = beside("hub.card")
        try:
            if card is not None:
                card.write(self.folder, self.config, self.task, scores)
        except Exception as error:  # whatever a fork's task, or a disk, makes of it
            logger.error("the model card: %s (python -m ftloop card %s tries again)", root_cause(error), self.folder)

    def _say_where(self, scores: Scores) -> None:
        """The last lines on the terminal: how good it is, where everything lies, what to try next."""
        state, folder, python = self.state, self.folder, os.path.relpath(sys.executable)
        which = (
            f"step {state.best_step}, best {self.config.best_metric}"
            if state.best_step
            else f"step {state.step}, the last"
        )
        logger.info("")
        logger.info("kept        %s of %d steps", which, state.step)
        for split, values in scores.items():
            logger.info("%-11s %s", split, tracking.shown(values))
        logger.info("model       %s (from_pretrained and pipeline load it)", folder / "model")
        if (folder / "model" / "README.md").is_file():
            logger.info("card        %s ([to be filled: ...] is for you)", folder / "model" / "README.md")
        logger.info(
            "record      %s, %s, %s", *(folder / name for name in ("config.json", "metrics.jsonl", "scores.json"))
        )
        logger.info("next        %s evaluate.py %s --split %s", python, folder, list(scores)[-1] if scores else "train")
        logger.info("            %s predict.py %s --help", python, folder)
        if self.config.push_to_hub is None and beside("hub.push") is not None:
            logger.info("            %s -m ftloop push %s NAMESPACE/NAME", python, folder)


class Nothing:
    """Takes the place of a part that was deleted, or that nobody asked for: it does nothing, whatever it is told."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def beside(module: str, option: str | None = None) -> Any:
    """A module that the core does without; None where it was deleted. Raises UserError if `option` needs it."""
    if importlib.util.find_spec(f"ftloop.{module.partition('.')[0]}") is not None:
        return importlib.import_module(f"ftloop.{module}")
    if option is not None:
        raise UserError(f"{option}: ftloop.{module}, which it needs, was deleted")
    return None


def made_by(accelerator: Accelerator, matmul: str) -> dict[str, Any]:
    """What may change the bits of a result, besides the config: recorded in each checkpoint, compared when resuming."""
    device = accelerator.device
    return {
        "ftloop": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "matmul": matmul,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "weights": "sharded" if accelerator.is_fsdp2 else "whole",
    }


def lock(folder: Path) -> int:
    """Hold the folder of a run for this process; the kernel lets go of it when the process ends, however it ends.

    Not `flock`, which the workers of a DataLoader would inherit and hold on to. Raises UserError if another holds it.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"--run-dir {str(folder)!r} cannot be written: {error}") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"--run-dir {str(folder)!r}: another process is training in this folder") from error
    return descriptor


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint to go on from; None starts anew. Raises UserError if that would mix two runs in one folder."""
    folder = source = Path(config.run_dir)
    chosen = None
    if config.resume not in ("auto", "none"):
        source = Path(config.resume)
        if source.name.startswith("step-"):
            chosen, source = source, source.parent.parent
            problem = checkpoint.damage(chosen)
            if problem is not None:
                raise UserError(f"--resume {config.resume!r} is no intact checkpoint: {problem}")
        if not (source / "config.json").is_file():
            raise UserError(
                f"--resume {config.resume!r}: no run there; give auto, none, or the path of a checkpoint or run"
            )
    for place in {source, folder}:
        if not (place / "config.json").is_file():
            begun = {"lock", "config.json.tmp"}  # by a run that was killed while it opened the folder
            if place.exists() and (not place.is_dir() or {path.name for path in place.iterdir()} - begun):
                raise UserError(f"--run-dir {str(place)!r} is not empty and holds no run: choose another")
            continue
        if config.resume == "none":
            raise UserError(
                f"--run-dir {str(place)!r} holds a run already, and --resume none starts anew: choose another"
            )
        changed = differences(read_encoded(place)[1], encode(config))
        if changed and config.allow_changes and place == source:
            logger.warning("resume: with other options than before: %s", "; ".join(changed))
        elif changed:
            raise UserError(
                f"--run-dir {str(place)!r} holds another run, with {'; '.join(changed)}: choose another --run-dir"
            )
    own = checkpoint.newest_intact(folder / "checkpoints")
    if own is not None and source != folder:
        return own  # begun from PATH before, and interrupted since
    if chosen is not None and own is not None and chosen.name != own.name:
        raise UserError(
            f"--resume {config.resume!r}: {own} is newer in the same folder; branch off into another --run-dir"
        )
    return chosen or own or checkpoint.newest_intact(source / "checkpoints")


def digest(rows: Any) -> str:
    """What must not change while a run is interrupted: how many rows train has, their labels, their lengths; of a
    stream, its source."""
    found = hashlib.sha256(getattr(rows, "identity", str(len(rows))).encode())
    for column in ("labels", "length"):
        if column in rows.column_names:
            found.update(rows.select_columns(column).with_format("numpy")[:][column].tobytes())
    return found.hexdigest()
