"""From row ids to batches: the DataLoaders, and the micro-batches of each optimizer step.

Data workers change the speed of loading, never the batches.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ftloop.errors import TrainingError, UserError
from ftloop.metric_log import MetricLog
from ftloop.sampler import TrainSampler
from ftloop.state import fold_in, temporary_seed
from ftloop.task import Batch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
MAX_WORKERS = 8  # per process, for workers="auto": more rarely help, and hold batches in memory
CollateFunction = Callable[[Any], Batch]
Keys = list[tuple[int, int]]  # (epoch, row id) of the rows of a micro-batch


class KeyedDataset(Dataset):
    """Reads the rows of a dataset by keys (epoch, row id). A padding row ~row reads `row`.

    Each row is read with its own seed, a function of (seed, epoch, row). A random augmentation is
    thus the same in any data worker, on any rank and in a resumed run.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed
        self.reads_batches = bool(getattr(dataset, "is_deterministic", False))
        if hasattr(dataset, "set_seed"):  # a stream, which shuffles itself
            dataset.set_seed(seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Keys) -> tuple[Keys, Any]:
        """Return the keys and examples of a micro-batch. torch calls this method."""
        rows = [row if row >= 0 else ~row for _, row in keys]
        if self.reads_batches:
            return keys, self.dataset.__getitems__(rows)
        examples = []
        for (epoch, _), row in zip(keys, rows, strict=True):
            with temporary_seed(fold_in(self.seed, "row", epoch, row)):
                examples.append(self.dataset[row])
        return keys, examples


class Collate:
    """Calls the collate method of a task and adds "row_ids", "weights" and "weight_sum"."""

    def __init__(self, collate: CollateFunction):
        self.collate = collate

    def __call__(self, keys_and_examples: Any) -> Batch:
        keys, examples = keys_and_examples
        batch = dict(self.collate(examples))
        row_ids = torch.tensor([row for _, row in keys])
        weights = batch.get("weights")
        weights = torch.ones(len(keys)) if weights is None else weights.float()
        is_padding_row = (row_ids < 0).reshape(-1, *[1] * (weights.ndim - 1))
        batch["weights"] = weights.masked_fill(is_padding_row, 0.0)
        batch["row_ids"] = row_ids
        # A number, which stays on the CPU when the tensors go to the GPU. The loop takes it out.
        batch["weight_sum"] = batch["weights"].double().sum().item()
        return batch


def make_batch(dataset: Any, keys: Keys, collate: CollateFunction, seed: int) -> Batch:
    """Make one batch of the rows with these keys, as the DataLoader would."""
    return Collate(collate)(KeyedDataset(dataset, seed).__getitems__(keys))


def check_collate(dataset: Any, collate: CollateFunction, seed: int) -> None:
    """Raise UserError if the collate method of a task draws at random."""
    keys_and_examples = KeyedDataset(dataset, seed).__getitems__([(0, 0)])
    before = random_states()
    Collate(collate)(keys_and_examples)
    if random_states() != before:
        message = "draws at random, which depends on how a batch is divided. Draw in __getitem__, "
        raise UserError(f"{message}seeded by (seed, epoch, row).", field="task.collate")


def random_states() -> tuple[Any, ...]:
    """Return the states of the random generators, to compare them."""
    state = numpy.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), state[1].tolist(), state[2]


def count_workers(workers: int | str, dataset: Any, device: torch.device) -> int:
    """Return the number of data workers; see `Config.workers`.

    For "auto", data workers are used if rows are computed when they are read (images) and a GPU
    trains: one for each CPU core that the training processes leave. On a CPU they would only take
    its cores.
    """
    if workers != "auto":
        return int(workers)
    is_needed = device.type != "cpu" and not getattr(dataset, "is_deterministic", False)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0))  # those that a job scheduler gave us
    return max(0, min(MAX_WORKERS, cores // processes - 1)) if is_needed else 0


def ignore_stop_signals(worker: int) -> None:
    """Let a data worker live until the training process, which gets the same signal, ends it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def build_dataloader(
    dataset: Any, sampler: Any, collate: CollateFunction, seed: int = 0, workers: int = 0
) -> DataLoader:
    """Build the DataLoader of a TrainSampler or an EvalSampler, to be prepared by accelerate."""
    if workers:  # the threads of the tokenizers do not survive a fork; each worker would warn
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return DataLoader(
        KeyedDataset(dataset, seed),
        batch_sampler=sampler,
        collate_fn=Collate(collate),
        num_workers=workers,
        worker_init_fn=ignore_stop_signals,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),  # otherwise copies to the GPU are not asynchronous
        generator=torch.Generator(),  # otherwise iter(loader) draws from the global generator
    )


def optimizer_steps(
    loader: DataLoader, sampler: TrainSampler, start: int, accelerator: Accelerator, log: MetricLog
) -> Iterator[tuple[list[Batch], float | torch.Tensor]]:
    """Yield (micro_batches, total_weight) for each optimizer step from `start` on.

    micro_batches: those of this rank. total_weight: the sum of the weights of the whole step over
    all ranks, in float64; on several GPUs a tensor, so that nothing waits for it. One reduction per
    step computes it. Raises TrainingError if it is 0.
    """
    sampler.start_step = start
    batches = iter(loader)
    for step in range(start, sampler.total_steps):
        count = len(sampler.micro_batches(sampler.plan(step))) // sampler.num_processes
        began = time.perf_counter()
        micro_batches = list(islice(batches, count))
        log.data_wait_seconds += time.perf_counter() - began
        if len(micro_batches) < count:
            raise RuntimeError(f"the DataLoader ended before optimizer step {step + 1}")
        total_weight: Any = sum(batch.pop("weight_sum") for batch in micro_batches)
        if accelerator.num_processes > 1:
            weight = torch.tensor(total_weight, dtype=torch.float64, device=accelerator.device)
            total_weight = accelerator.reduce(weight, reduction="sum")
            if accelerator.device.type == "cpu":
                total_weight = total_weight.item()
        # On several GPUs, the sum stays there and the loss becomes NaN instead.
        if isinstance(total_weight, float) and total_weight == 0:
            raise TrainingError(f"the weights of all items of optimizer step {step + 1} are 0.")
        yield micro_batches, total_weight
