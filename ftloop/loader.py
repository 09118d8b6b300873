"""From row ids to batches: the DataLoaders. Both kinds go through `accelerator.prepare` with `even_batches=False`."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ftloop.sampler import EvaluationOrder, TrainOrder, mix, seeded
from ftloop.data.stream import Stream

TOKENS = "tokens: real, computed"  # a key of batches that no input of a model can have
MOST_WORKERS = 8  # of a process, by --workers auto: more of them hold batches in memory, and rarely help


class Rows(Dataset):
    """Rows by their keys (epoch, row); an empty seat `~row` shows the row it repeats.

    Rows that are made when they are read (by `Dataset.with_transform`, or a map-style data set of torch) are read one
    by one, each seeded by (seed, epoch, row): an augmentation is the same in any worker, process or resumed run.
    """

    def __init__(self, dataset: Any, seed: int = 0):
        from ftloop.data.tokens import Tokens  # imports transformers

        self.dataset, self.seed = Tokens.of(dataset), seed
        # Rows of a plain table are read at once for the whole micro-batch, and draw nothing.
        self.plain = hasattr(dataset, "__getitems__") and getattr(dataset, "format", {}).get("type") != "custom"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[dict]]:
        rows = [row if row >= 0 else ~row for _, row in keys]
        if isinstance(self.dataset, Stream):
            return keys, self.dataset.read(rows, self.seed)
        if self.plain:
            return keys, self.dataset.__getitems__(rows)
        examples = []
        for (epoch, _), row in zip(keys, rows, strict=True):
            with seeded(mix(self.seed, "row", epoch, row)):
                examples.append(self.dataset[row])
        return keys, examples


class Collate:
    """Calls the task's collate and adds "rows", the ids (int64; negative: an empty seat that counts nowhere); of texts,
    TOKENS: how many there are without padding, and with it.

    What a collator draws at random (masking, cropping) is seeded by (seed, epoch, first row of the micro-batch), in
    whatever worker it runs: the cost is 30 microseconds a micro-batch.
    """

    def __init__(self, collate: Callable[[list[dict]], dict[str, torch.Tensor]], seed: int):
        self.collate, self.seed = collate, seed

    def __call__(self, keys_and_examples: tuple[list[tuple[int, int]], list[dict]]) -> dict[str, torch.Tensor]:
        keys, examples = keys_and_examples
        with seeded(mix(self.seed, "collate", *keys[0])):
            batch = dict(self.collate(examples))
        if "attention_mask" in batch:  # here, where it is on the CPU
            batch[TOKENS] = (int(batch["attention_mask"].sum()), batch["attention_mask"].numel())
        return {**batch, "rows": torch.tensor([row for _, row in keys])}


def batch_of(dataset: Any, keys: list[tuple[int, int]], collate: Callable, seed: int) -> dict[str, torch.Tensor]:
    """One batch, of the rows with these keys (epoch, row), as the loader would make it."""
    return Collate(collate, seed)(Rows(dataset, seed).__getitems__(keys))


def workers_of(workers: int | str, rows: Any, device: torch.device) -> int:
    """How many processes load: as asked or, for "auto", some where rows are made when they are read (images) and a GPU
    computes meanwhile, one for each core that the training processes leave. On a CPU they would take its cores away."""
    if workers != "auto":
        return int(workers)
    if device.type == "cpu" or Rows(rows).plain:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST_WORKERS, cores // processes - 1))


def build_loader(
    dataset: Any, order: TrainOrder | EvaluationOrder, collate: Callable, seed: int = 0, workers: int = 0
) -> DataLoader:
    """A DataLoader over `dataset` in the given order. Workers change the speed, never the batches."""
    if workers:  # the tokenizers' threads do not survive the fork, and say so in every worker
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return DataLoader(
        Rows(dataset, seed),
        batch_sampler=order,
        collate_fn=Collate(collate, seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),  # or the copy to the GPU waits, whatever `non_blocking` says
        # iter(loader) draws a base seed; from a generator of its own, it leaves the global stream alone.
        generator=torch.Generator(),
    )
