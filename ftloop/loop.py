"""The training loop. `train` reads from top to bottom; what it calls is one file away.

Its laws (each is a test): the loss is a sum over rows divided once by the rows of the optimizer step, however these are
cut into micro-batches and processes; order and dropout are functions of the seed and of counters; the position, the
weights, the optimizer and the schedule are all there is to save.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

from ftloop import startup
from ftloop.distributed import kernels
from ftloop.logs import terminal as tracking
from ftloop.config import Config, validate, validate_with_data
from ftloop.loader import build_loader, workers_of
from ftloop.sampler import TOKENS_ON_CPU, TrainOrder, Window, batching_of, mix, seed_all
from ftloop.distributed import precision_of, start_accelerator
from ftloop.evaluation import evaluation_loader
from ftloop.devices.memory import Memory, save_memory
from ftloop.optim import build_schedule
from ftloop.run import Run, Scores
from ftloop.devices.sharding import whole

logger = logging.getLogger("ftloop")


def train(config: Config) -> Scores:
    """Train what `config` describes, and return the scores of the kept weights: {"validation": {...}, "test": {...}}.

    Leaves in `config.run_dir`: config.json, metrics.jsonl, ledger.jsonl, checkpoints/, model/, scores.json. Goes on
    where an unfinished run of the same config stopped; a finished one is left as it is. Run it in one process, or in
    several by `accelerate launch`, torchrun or `notebook_launcher`. Raises UserError, before training, for what cannot
    work.
    """
    validate(config)
    accelerator = start_accelerator(config.precision, config.timeout, config.deterministic)
    tracking.set_up_logging(accelerator.is_main_process, config.least_said)
    config = dataclasses.replace(config, precision=precision_of(accelerator))  # recorded, also if the launcher chose it
    if config.compile:
        config = dataclasses.replace(config, task=config.task.in_few_shapes())
    task, run = config.task, Run(config, accelerator)
    if run.finished:
        return run.read_scores()
    run.matmul = kernels.settle(config.matmul, run.recorded.get("matmul"), accelerator)

    # What is learned, and from what. One process of a machine prepares the rows, the others read its cache.
    with accelerator.local_main_process_first():
        data = task.load()
    validate_with_data(config, data)
    seed_all(mix(config.seed, "model"))
    model = task.build_model().to(accelerator.device)
    kernels.adapt(model, run.matmul, config.cheaper_dropout, config.compile)
    if config.gradient_checkpointing:
        save_memory(model)
    if config.keep_memory:  # not before: what preparing the rows took is given back
        kernels.keep_memory(accelerator.device)
    optimizer = config.optimizer(model, config)

    # In which order, for how long.
    rows, processes = len(data["train"]), accelerator.num_processes
    total_steps = config.max_steps or config.epochs * math.ceil(rows / config.batch_size)
    at_once = config.at_once(processes)
    most_tokens = TOKENS_ON_CPU if accelerator.device.type == "cpu" and config.micro_batch_size is None else None
    order = TrainOrder(
        *(rows, config.batch_size, at_once, processes, total_steps, config.seed, run.state),
        **batching_of(data["train"], config.batching),
        most_tokens=most_tokens,
    )
    workers = workers_of(config.workers, data["train"], accelerator.device)
    loader = build_loader(data["train"], order, task.collate, config.seed, workers)
    schedule = build_schedule(optimizer, config, total_steps)

    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    loaders = {
        split: evaluation_loader(data[split], task, accelerator, config.eval_batch_size, workers)
        for split in ("validation", "test")
        if split in data
    }
    memory = Memory(config, order, run.state, accelerator)
    run.start(data, order, model, optimizer, schedule, loaders)
    state = run.state

    startup.done()
    model.train()
    parameters = list(model.parameters())
    bar = tracking.progress_bar(total_steps, state.step, accelerator.is_main_process)
    served, profile = tracking.Served(loader), tracking.Profile(config.profile, run.folder, accelerator)
    with closing(run), bar, closing(profile), run.stop as stop:
        memory.divide(model, data["train"])
        logger.info("train: %s, %s on %s, into %s", order, config.precision, accelerator.device.type, run.folder)
        steps = tracking.StepLog(run.log, run.ledger, bar, served, accelerator, config.on_nan)
        if run.owes_evaluation(total_steps):
            run.judge(run.evaluate("validation", order.epochs_done()), order.epochs_done())
            run.save()
        for window, micro_batches in windows(served, order):
            if run.stops_early():
                break

            losses = []
            with memory:
                for number, (batch, is_last) in enumerate(micro_batches):
                    seed_all(mix(config.seed, "dropout", state.step, number, accelerator.process_index))
                    ids, targets = batch.pop("rows"), batch.pop("labels")
                    # Processes exchange gradients once a step, with the last micro-batch.
                    with nullcontext() if is_last else accelerator.no_sync(model):
                        loss = task.losses(model(**batch), targets) * (ids >= 0)  # an empty seat counts nothing
                        # Processes average their gradients: times their number, the average is a sum.
                        accelerator.backward(loss.sum() * processes / len(window.rows))
                    losses.append((ids, loss.detach()))
            if memory.ran_out:  # the window comes again, in smaller micro-batches
                batch = targets = loss = None  # or they would keep what did not fit
                optimizer.zero_grad()
                memory.release()
                continue

            gradient_norm = whole(accelerator.clip_grad_norm_(parameters, config.max_grad_norm or math.inf))
            learning_rate = schedule.get_last_lr()[0]
            if run.takes(gradient_norm):
                optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            state.advance(window)

            profile.step()
            epoch = order.epochs_after(window)
            steps.add(tracking.Step(state.step, epoch, window, losses, gradient_norm, learning_rate))
            evaluates = config.evaluates_after(state.step, window.ends_epoch) or state.step == total_steps
            logs = evaluates or config.saves_after(state.step) or state.step % config.log_every == 0
            stops = stop.asked(accelerator, may_wait=logs)
            if logs or stops:
                steps.flush()  # the device is waited for
            if evaluates and not stops and "validation" in loaders:
                run.judge(run.evaluate("validation", epoch), epoch)
            if evaluates or stops or config.saves_after(state.step):
                run.save()
                steps.restart_clock()
            if stops:
                raise run.stopped()

        bar.close()
        return run.finish(order.epochs_done())


def windows(loader: Any, order: TrainOrder) -> Iterator[tuple[Window, Iterator[tuple[dict[str, Any], bool]]]]:
    """Each optimizer step from the position of the state on: its window, and this process's micro-batches of it, each
    with whether it is the last. A loader that ends too early is a RuntimeError, not a step without gradients.

    A step that was not done comes again, where what is computed at once was made smaller."""
    while order.state.step < order.total_steps:
        batches, at_once = iter(loader), order.at_once
        for window in order.windows():
            rounds = len(order.rounds(window))
            yield window, ((next(batches), number == rounds) for number in range(1, rounds + 1))
            if order.at_once != at_once:
                break
