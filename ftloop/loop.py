"""The training loop. `train` reads from top to bottom; what it calls is below it or one file away.

Its laws (each is a test): the loss is a sum over rows divided once by the rows of the optimizer step, however these are
cut into micro-batches and processes; order and dropout are functions of the seed and of counters; the position, the
weights, the optimizer and the schedule are all there is to save.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ftloop import checkpoint, tracking
from ftloop.checkpoint import TrainState
from ftloop.config import Config, differences, encode, read_encoded, validate, validate_scores, write_record
from ftloop.data.loader import build_loader
from ftloop.data.order import TrainOrder, Window, mix, seed_all
from ftloop.devices import start_accelerator
from ftloop.errors import UserError
from ftloop.evaluation import evaluate_split, evaluation_loader
from ftloop.optim import build_schedule

logger = logging.getLogger("ftloop")

Scores = dict[str, dict[str, float]]  # by split


def train(config: Config) -> Scores:
    """Train what `config` describes, and return the scores of the kept weights: {"validation": {...}, "test": {...}}.

    Leaves in `config.run_dir`: config.json, metrics.jsonl, checkpoints/, model/, scores.json. Goes on where an
    unfinished run of the same config stopped; a finished one is left as it is. Run it in one process, or in several by
    `accelerate launch`, torchrun or `notebook_launcher`. Raises UserError, before training, for what cannot work.
    """
    validate(config)
    accelerator = start_accelerator(config.precision)
    tracking.set_up_logging(accelerator.is_main_process)
    folder, task = Path(config.run_dir), config.task
    resumed = find_run(config)
    if (folder / "scores.json").exists():
        logger.info("%s is finished already: nothing to do", folder)
        return json.loads((folder / "scores.json").read_text())

    # What is learned, and from what. One process of a machine prepares the rows, the others read its cache.
    with accelerator.local_main_process_first():
        data = task.load()
    validate_scores(config, data)
    seed_all(mix(config.seed, "model"))
    model = task.build_model().to(accelerator.device)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = config.optimizer(model, config)

    # In which order, for how long.
    rows, processes = len(data["train"]), accelerator.num_processes
    total_steps = config.max_steps or config.epochs * math.ceil(rows / config.batch_size)
    micro_batch_size = config.micro_batch_size or math.ceil(config.batch_size / processes)
    state = TrainState()
    order = TrainOrder(rows, config.batch_size, micro_batch_size, processes, total_steps, config.seed, state)
    loader = build_loader(data["train"], order, task.collate, config.seed, config.workers)
    schedule = build_schedule(optimizer, config, total_steps)

    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    loaders = {
        split: evaluation_loader(data[split], task, accelerator, config.eval_batch_size, config.workers)
        for split in ("validation", "test")
        if split in data
    }
    if resumed is not None:
        restore(resumed, state, model, optimizer, schedule, accelerator)
    log = open_run(config, accelerator, state, resumed)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    logger.info("train: %s, %s on %s, into %s", order, precision, accelerator.device.type, folder)

    model.train()
    with closing(log), tracking.progress_bar(total_steps, state.step, accelerator.is_main_process) as bar:
        steps = tracking.StepLog(log, bar, accelerator)
        for window, micro_batches in windows(loader, order):
            if config.patience is not None and state.evaluations_since_best >= config.patience:
                logger.info("stopped early: %d evaluations without a better %s", config.patience, config.best_metric)
                break

            losses, last = [], order.rounds(len(window.rows)) - 1
            for number, batch in enumerate(micro_batches):
                seed_all(mix(config.seed, "dropout", state.step, number, accelerator.process_index))
                ids, targets = batch.pop("rows"), batch.pop("labels")
                # Processes exchange gradients once a step, with the last micro-batch.
                with nullcontext() if number == last else accelerator.no_sync(model):
                    loss = task.losses(model(**batch), targets) * (ids >= 0)  # an empty seat counts nothing
                    # Processes average their gradients: times their number, the average is a sum.
                    accelerator.backward(loss.sum() * processes / len(window.rows))
                losses.append((ids, loss.detach()))

            gradient_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            state.advance(window)

            epoch = order.epochs_after(window)
            steps.add(tracking.Step(state.step, epoch, len(window.rows), losses, gradient_norm, learning_rate))
            ends = state.step == total_steps
            evaluates = ends or (
                window.ends_epoch if config.eval_every == "epoch" else state.step % config.eval_every == 0
            )
            saves = evaluates or (config.save_every is not None and state.step % config.save_every == 0)
            if saves or state.step % config.log_every == 0:
                steps.flush()
            if evaluates and "validation" in loaders:
                scores = score("validation", epoch, state, model, loaders, task, accelerator, log)
                state.judge(scores, config.best_metric, config.direction)
                best = "  (best so far)" if state.best_step == state.step else ""
                logger.info("step %d, epoch %.2f: validation %s%s", state.step, epoch, tracking.shown(scores), best)
            if saves:
                save(config, state, model, optimizer, schedule, accelerator, log)
                steps.restart_clock()

        bar.close()
        return finish(config, state, order, model, loaders, accelerator, log)


def find_run(config: Config) -> Path | None:
    """The checkpoint to go on from; None starts anew. Raises UserError rather than mix two runs in one folder."""
    folder = Path(config.run_dir)
    source = folder
    if config.resume not in ("auto", "none"):
        source = Path(config.resume)
        if source.name.startswith("step-"):
            problem = checkpoint.damage(source)
            if problem is not None:
                raise UserError(f"--resume {config.resume!r} is no intact checkpoint: {problem}")
            source = source.parent.parent
        if not (source / "config.json").is_file():
            raise UserError(
                f"--resume {config.resume!r}: no run there; give auto, none, or the path of a checkpoint or run"
            )
    for place in {source, folder}:
        if not (place / "config.json").is_file():
            if place.exists() and (not place.is_dir() or any(place.iterdir())):
                raise UserError(f"--run-dir {str(place)!r} is not empty and holds no run: choose another")
            continue
        if config.resume == "none":
            raise UserError(
                f"--run-dir {str(place)!r} holds a run already, and --resume none starts anew: choose another"
            )
        changed = differences(read_encoded(place)["config"], encode(config))
        if changed:
            raise UserError(
                f"--run-dir {str(place)!r} holds another run, with {'; '.join(changed)}: choose another --run-dir"
            )
    if Path(config.resume).name.startswith("step-"):
        return Path(config.resume)
    return checkpoint.newest_intact(source / "checkpoints")


def restore(
    found: Path, state: TrainState, model: Any, optimizer: Any, schedule: Any, accelerator: Accelerator
) -> None:
    """Bring everything to where a checkpoint was written: strictly, no key missing and none left over."""
    accelerator.unwrap_model(model).load_state_dict(checkpoint.load_weights(found))
    training = checkpoint.load_training(found)
    optimizer.load_state_dict(training["optimizer"])
    schedule.load_state_dict(training["schedule"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(training["scaler"])
    vars(state).update(vars(checkpoint.load_state(found)))
    logger.info("resume: from %s", found)


def open_run(
    config: Config, accelerator: Accelerator, state: TrainState, resumed: Path | None
) -> tracking.MetricLog | tracking.NoMetricLog:
    """Write the record, and open the metric log at the position of `state`."""
    if not accelerator.is_main_process:
        return tracking.NoMetricLog()
    folder = Path(config.run_dir)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_record(config, folder / "config.json")
    except OSError as error:
        raise UserError(f"--run-dir {config.run_dir!r} cannot be written: {error}") from error
    if resumed is not None and resumed.parent.resolve() != (folder / "checkpoints").resolve():
        # By --resume PATH from another folder: what this run will need of the other comes along.
        for step in {state.step, state.best_step or state.step}:
            name = f"step-{step:06d}"
            shutil.copytree(resumed.parent / name, folder / "checkpoints" / name, dirs_exist_ok=True)
        shutil.copy(resumed.parent.parent / "metrics.jsonl", folder / "metrics.jsonl")
    return tracking.MetricLog(folder / "metrics.jsonl", state.log_bytes)


def windows(loader: Any, order: TrainOrder) -> Iterator[tuple[Window, Iterator[dict[str, Any]]]]:
    """Each optimizer step with this process's micro-batches of it, from the position of the state to the last step."""
    batches = iter(loader)
    for window in order.windows():
        yield (
            window,
            (next(batches) for _ in range(order.rounds(len(window.rows)))),
        )  # a missing batch is a RuntimeError


def score(
    split: str, epoch: float, state: TrainState, model: Any, loaders: Any, task: Any, accelerator: Accelerator, log: Any
) -> dict[str, float]:
    """Evaluate a split, and log its scores."""
    began = time.perf_counter()
    scores = evaluate_split(model, loaders[split], task, accelerator)
    log.write(state.step, epoch, split, scores, len(loaders[split].dataset) / (time.perf_counter() - began))
    return scores


def save(
    config: Config, state: TrainState, model: Any, optimizer: Any, schedule: Any, accelerator: Accelerator, log: Any
) -> None:
    """Write a checkpoint on the main process, then delete those it replaces."""
    state.log_bytes = log.durable()
    if accelerator.is_main_process:
        training = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        if accelerator.scaler is not None:
            training["scaler"] = accelerator.scaler.state_dict()
        folder = Path(config.run_dir) / "checkpoints"
        checkpoint.save(folder, state, accelerator.unwrap_model(model).state_dict(), training)
        checkpoint.prune(folder, config.keep_last, config.keep_best, config.best_metric, config.direction)
    accelerator.wait_for_everyone()


def finish(
    config: Config,
    state: TrainState,
    order: TrainOrder,
    model: Any,
    loaders: dict[str, Any],
    accelerator: Accelerator,
    log: Any,
) -> Scores:
    """Take the best weights, score them on test, write model/ and scores.json, and say where everything is."""
    folder, task = Path(config.run_dir), config.task
    bare = accelerator.unwrap_model(model)
    kept = state.best_step or state.step
    if kept != state.step:
        bare.load_state_dict(checkpoint.load_weights(folder / "checkpoints" / f"step-{kept:06d}"))
    scores = {"validation": state.best_scores} if state.best_scores else {}
    if "test" in loaders:
        epoch = state.epoch + state.window * order.step_size / order.rows
        scores["test"] = score("test", epoch, state, model, loaders, task, accelerator, log)
    if accelerator.is_main_process:
        aside = folder / "model.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        bare.save_pretrained(aside)
        task.processor.save_pretrained(aside)
        shutil.rmtree(folder / "model", ignore_errors=True)
        aside.rename(folder / "model")
        (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")  # the sign of a finished run
        say_where(folder, state, scores, config)
    accelerator.wait_for_everyone()
    return scores


def say_where(folder: Path, state: TrainState, scores: Scores, config: Config) -> None:
    """The last lines on the terminal: how good it is, where everything lies, what to try next."""
    kept = f"step {state.best_step}, best {config.best_metric}" if state.best_step else f"step {state.step}, the last"
    logger.info("")
    logger.info("kept        %s of %d steps", kept, state.step)
    for split, values in scores.items():
        logger.info("%-11s %s", split, tracking.shown(values))
    logger.info("model       %s (from_pretrained and pipeline load it)", folder / "model")
    logger.info("record      %s, %s, %s", *(folder / name for name in ("config.json", "metrics.jsonl", "scores.json")))
    logger.info("next        python evaluate.py %s --split %s", folder, list(scores)[-1] if scores else "train")
    logger.info("            python predict.py %s --help", folder)
