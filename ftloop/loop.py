"""The training loop. Read `train_step` and `train` from top to bottom.

`Run` (ftloop/run.py) keeps the folder of the run: lock, resume, logs, checkpoints. `TrainSampler`
(ftloop/sampler.py) decides the rows of each step, and a `Task` (ftloop/task.py) the loss.

The laws of the loop, each of which is a test (docs/exactness.md):

- The gradient of an optimizer step is a weighted sum over its items (rows or tokens), divided once
  by the sum of their weights. Apart from rounding and dropout masks, it does not depend on how the
  step is divided into micro-batches and over ranks.
- The order of rows, random changes of rows, and dropout are functions of the seed and of counters.
- Progress is counted in optimizer steps only. A run that is killed at any point resumes and ends
  with the same bits.
"""

from contextlib import ExitStack, closing, nullcontext

import torch
from accelerate import Accelerator

from ftloop.config import Config, validate, validate_with_datasets
from ftloop.distributed import build_accelerator, check_rows, full_tensor, warm_up_ddp_buckets
from ftloop.evaluation import build_eval_loaders, evaluate
from ftloop.loader import build_dataloader, check_collate, count_workers, optimizer_steps
from ftloop.metric_log import weighted_sum
from ftloop.optim import build_scheduler, drop_frozen_gradients
from ftloop.run import Run, Scores
from ftloop.sampler import TrainSampler, check_division
from ftloop.state import TrainState, fold_in, set_seed
from ftloop.task import Batch, Losses, Task


def train_step(
    task: Task,
    model: torch.nn.Module,
    micro_batches: list[Batch],
    total_weight: float | torch.Tensor,
    state: TrainState,
    accelerator: Accelerator,
) -> list[Losses]:
    """Accumulate the gradient of one optimizer step. Change this function for FGM or SAM.

    micro_batches: those of this rank. total_weight: the sum of the weights of all items of the
    step, over all micro-batches and ranks. Returns the losses of each micro-batch, without their
    graph.
    """
    outputs = []
    for index, batch in enumerate(micro_batches):
        # Dropout masks are a function of (seed, step, micro-batch, rank), so that a run can resume.
        set_seed(fold_in(state.seed, "dropout", state.step, index, accelerator.process_index))
        is_last = index == len(micro_batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(model):  # one all-reduce per step
            with accelerator.autocast():
                output = task.compute_losses(model, batch)  # one loss per item, not reduced
            loss = weighted_sum(output.losses, batch["weights"])  # items of weight 0 are masked
            # DDP averages gradients over ranks; num_processes turns the average back into a sum.
            accelerator.backward(loss * accelerator.num_processes / total_weight)
        outputs.append(output.detach())
    return outputs


def train(config: Config) -> Scores:
    """Train the model that `config` describes; return the scores of its best weights by split.

    Writes config.json, metrics.jsonl, checkpoints/, model/ and scores.json to `config.run_dir`. An
    unfinished run of the same config resumes; a finished one is left as it is. Run it in one
    process, or in several by `accelerate launch`, torchrun or `notebook_launcher`. Raises
    UserError, before training, if the config or the data is invalid, and Stopped after a signal.
    """
    validate(config)
    setups = config.setups()  # compile, matrix backend, ...: applied below, undone at the end
    with ExitStack() as at_end:  # cleans up on return and on exceptions
        for setup in setups:
            at_end.callback(setup.undo)
        accelerator = build_accelerator(
            config.precision, config.timeout, setups, config.find_unused_parameters
        )
        # Locks the run folder first, so that two runs cannot write to it at the same time.
        run = at_end.enter_context(closing(Run(config, accelerator, setups)))
        if run.is_finished:
            return run.load_scores()

        # Data and model. One process per machine prepares the data; the others read its cache.
        task = config.task
        with accelerator.local_main_process_first():
            datasets = task.load_datasets()
        check_rows(datasets, run.state, config.allow_changes)  # the same on all ranks and as before
        train_dataset = datasets["train"]
        validate_with_datasets(config, datasets)
        check_collate(train_dataset, task.collate, config.seed)
        set_seed(fold_in(config.seed, "init"))
        model = task.build_model().to(accelerator.device)
        run.prepare_model(model)
        optimizer = config.optimizer(model, config)

        # Order of the rows, number of steps, learning-rate schedule
        device = accelerator.device
        sampler = TrainSampler(train_dataset, config, accelerator.num_processes, device.type)
        run.choose_micro_batch_size(model, sampler)
        check_division(task, model, sampler)
        scheduler = build_scheduler(optimizer, config, sampler.total_steps)
        workers = count_workers(config.workers, train_dataset, device)
        train_loader = build_dataloader(train_dataset, sampler, task.collate, config.seed, workers)
        model, optimizer, train_loader, scheduler = accelerator.prepare(
            model, optimizer, train_loader, scheduler
        )
        eval_batch_size = config.eval_batch_size
        eval_loaders = build_eval_loaders(datasets, task, accelerator, eval_batch_size, workers)
        warm_up_ddp_buckets(model, task, sampler, accelerator)

        # Resume
        run.register_for_checkpointing(model=model, optimizer=optimizer, scheduler=scheduler)
        state = run.start(sampler, eval_loaders)  # step 0 in a new run

        max_grad_norm = config.max_grad_norm or float("inf")  # 0: no clipping
        model.train()
        steps = optimizer_steps(train_loader, sampler, state.step, accelerator, run.log)
        while True:
            # A run that was stopped between a step and its evaluation resumes here: evaluate first.
            if run.should_evaluate(state):
                loader = eval_loaders["validation"]
                scores = evaluate(model, loader, task, accelerator, run.stop_requested)
                run.log_scores(scores)  # None if a stop was requested
            if run.should_save(state):
                run.save_checkpoint(state)
            if run.stop_requested():  # a signal or the time limit, agreed by all ranks
                run.save_checkpoint(state)
                raise run.stop_signals.exception(state.step)
            if run.training_is_complete(state):  # the last step, or early stopping
                break

            micro_batches, total_weight = next(steps)
            outputs = train_step(task, model, micro_batches, total_weight, state, accelerator)
            drop_frozen_gradients(optimizer)
            grad_norm = full_tensor(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
            learning_rate = scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            state.step += 1
            run.log_step(micro_batches, outputs, total_weight, grad_norm, learning_rate)
        return run.finish(model, eval_loaders)  # best weights, test scores, model/
