"""Which rows form a batch, in which order: pure functions of the seed and of counters.

The position of a run is its optimizer step. `TrainSampler.plan(step)` computes the rows of any
step, so that nothing has to be replayed when a run resumes.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from ftloop.config import Config, require
from ftloop.errors import UserError
from ftloop.state import fold_in

if TYPE_CHECKING:
    from ftloop.task import Task

UNBOUNDED = sys.maxsize  # the length of a dataset without end (a stream)
STEPS_PER_GROUP = 50  # sorted by length together: leaves 2 to 5 % padding instead of 33 to 74 %
# Tokens of one forward pass on a CPU, after padding. 32 texts of up to 512 tokens in one pass took
# 1.8 times as long as in pieces of 4096 tokens, and twice the memory.
MAX_TOKENS_ON_CPU = 4096


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def random_permutation(count: int, seed: int, epoch: int) -> numpy.ndarray:
    """Return the numbers below `count` in an order drawn from (seed, epoch).

    RandomState is numpy's only generator whose numbers never change between versions.
    """
    return numpy.random.RandomState(fold_in(seed, "order", epoch) % 2**32).permutation(count)


def random_order(dataset: Any, seed: int, epoch: int) -> Sequence[int]:
    """Return the row ids of an epoch in the default order: a random permutation."""
    return random_permutation(len(dataset), seed, epoch)  # type: ignore[return-value]


def own_order(dataset: Any, seed: int, epoch: int) -> Sequence[int]:
    """Return the row ids of an epoch in the order that a dataset (a stream) defines itself."""
    return dataset.row_order(seed, epoch)


def shard(row_ids: list[int], num_processes: int) -> list[list[int]]:
    """Divide rows into one micro-batch for each rank, all of the same size.

    Ranks take rows in turn, so that all get similar ones if the rows are sorted by length. Padding
    rows have the id ~row (negative): the row is computed again and counts nowhere.
    """
    num_padding_rows = -len(row_ids) % num_processes
    padded = row_ids + [~row_ids[-1]] * num_padding_rows
    return [padded[rank::num_processes] for rank in range(num_processes)]


def split_rows(
    row_ids: list[int], size: int, num_processes: int, lengths: Any = None, max_tokens: Any = None
) -> list[list[int]]:
    """Split rows into pieces of at most `size` rows per rank.

    With `lengths` and `max_tokens`, a piece also has at most that many tokens per rank after
    padding, or a single row per rank. The rows must then be sorted by length, the longest first.
    """
    pieces, start = [], 0
    while start < len(row_ids):
        rows_per_rank = size
        if lengths is not None and max_tokens is not None:
            longest = max(1, int(lengths[row_ids[start]]))
            rows_per_rank = min(size, max(1, max_tokens // longest))
        stop = start + rows_per_rank * num_processes
        pieces.append(row_ids[start:stop])
        start = stop
    return pieces


@dataclass(frozen=True)
class StepPlan:
    """The rows of one optimizer step, over all ranks and micro-batches."""

    epoch: int  # from 0
    index: int  # of the step within its epoch, from 0
    row_ids: list[int]


class TrainSampler:
    """Batch sampler of a whole training: yields micro-batches of (epoch, row id), for the ranks in
    turn.

    Of each step, rank 0 gets the first micro-batch, rank 1 the second, and so on, then rank 0
    again. Every rank gets equally many micro-batches of equally many rows, because DDP would hang
    otherwise.

    It has no attribute `batch_size` on purpose: with `even_batches=False`, accelerate then hands
    the micro-batches to the ranks as they are. With that attribute it would divide them anew.
    """

    def __init__(self, dataset: Any, config: Config, num_processes: int = 1, device: str = ""):
        self.dataset, self.seed, self.num_processes = dataset, config.seed, num_processes
        self.rows_per_step = config.batch_size
        lengths = getattr(dataset, "lengths", None)
        self.lengths = None if lengths is None else numpy.asarray(lengths).astype(numpy.int32)

        # Order of the rows, and number of steps
        default_order = own_order if hasattr(dataset, "row_order") else random_order
        self.row_order = config.row_order or default_order
        self.num_rows = len(self.row_order(dataset, self.seed, 0))  # in an epoch
        require(self.num_rows > 0, "row_order", "returned no rows for epoch 0.")
        self.steps_per_epoch = ceil_div(self.num_rows, self.rows_per_step)
        self.total_steps = config.max_steps or config.epochs * self.steps_per_epoch
        has_default_order = lengths is not None and self.row_order is random_order
        grouping = config.group_by_length
        self.group_by_length = has_default_order if grouping is None else grouping

        # Limits of one forward pass on each rank
        size, share = config.micro_batch_size, ceil_div(self.rows_per_step, num_processes)
        self.micro_batch_size = min(size, share) if isinstance(size, int) else share
        has_limit = device == "cpu" and size is None and config.task.independent_rows
        self.max_tokens = config.max_tokens or (MAX_TOKENS_ON_CPU if has_limit else None)

        self.start_step = 0  # read once, when iteration begins: data workers run ahead of the loop
        # Two of each are cached, since data workers may be one group or epoch ahead of the loop.
        self._order = functools.lru_cache(maxsize=2)(self._compute_order)
        self._group = functools.lru_cache(maxsize=2)(self._compute_group)

    def plan(self, step: int) -> StepPlan:
        """Compute the rows of an optimizer step; steps count from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self.group_by_length:
            group, position = divmod(index, STEPS_PER_GROUP)
            return StepPlan(epoch, index, self._group(epoch, group)[position])
        start = index * self.rows_per_step
        row_ids = self._order(epoch)[start : start + self.rows_per_step]
        return StepPlan(epoch, index, [int(row) for row in row_ids])

    def micro_batches(self, plan: StepPlan) -> list[list[int]]:
        """Divide the rows of a step into micro-batches, for the ranks in turn."""
        lengths = self.lengths if self.group_by_length else None
        size, num_processes = self.micro_batch_size, self.num_processes
        pieces = split_rows(plan.row_ids, size, num_processes, lengths, self.max_tokens)
        return [row_ids for piece in pieces for row_ids in shard(piece, num_processes)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.total_steps):
            plan = self.plan(step)
            for row_ids in self.micro_batches(plan):
                yield [(plan.epoch, row) for row in row_ids]

    def epochs_done(self, step: int) -> float:
        """Return how many epochs `step` optimizer steps are, for example 1.5."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch + index * self.rows_per_step / self.num_rows

    def _compute_order(self, epoch: int) -> Sequence[int]:
        order = self.row_order(self.dataset, self.seed, epoch)
        if len(order) != self.num_rows:
            message = f"returned {self.num_rows} rows for epoch 0, but {len(order)} for {epoch}."
            raise UserError(message, field="row_order")
        is_custom = self.row_order not in (random_order, own_order)
        if is_custom and not 0 <= min(order) <= max(order) < len(self.dataset):
            message = f"returned rows below 0 or above {len(self.dataset) - 1} for epoch {epoch}."
            raise UserError(message, field="row_order")
        return order

    def _compute_group(self, epoch: int, group: int) -> list[list[int]]:
        """Return the row ids of each step of a group.

        The rows of STEPS_PER_GROUP steps of the epoch's order are sorted by length and cut into
        steps, which come in a random order. The last step of an epoch, if it has fewer rows, stays
        the last and has rows of all lengths.
        """
        assert self.lengths is not None
        size = STEPS_PER_GROUP * self.rows_per_step
        rows = numpy.array(self._order(epoch)[group * size : (group + 1) * size])
        num_full_steps = len(rows) // self.rows_per_step
        parts = numpy.split(rows, [num_full_steps * self.rows_per_step])
        by_length = [part[numpy.argsort(-self.lengths[part], kind="stable")] for part in parts]
        full_rows, last_rows = (part.tolist() for part in by_length)
        steps = split_rows(full_rows, self.rows_per_step, num_processes=1)
        seed = fold_in(self.seed, "steps", group)
        shuffled = [steps[step] for step in random_permutation(num_full_steps, seed, epoch)]
        return [*shuffled, last_rows] if last_rows else shuffled


class EvalSampler:
    """Batch sampler of an evaluation: every row once, the longest first, for the ranks in turn.

    Sorting by length saves padding, and if memory is too small, the first batch fails. Like
    `TrainSampler`, it has no attribute `batch_size`.
    """

    def __init__(self, dataset: Any, size: int, num_processes: int, max_tokens: int | None = None):
        """Take the rows, and optionally the tokens, of one forward pass on each rank."""
        self.dataset, self.size = dataset, size
        self.num_processes, self.max_tokens = num_processes, max_tokens

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        lengths, row_ids = getattr(self.dataset, "lengths", None), list(range(len(self.dataset)))
        if lengths is not None:
            lengths = numpy.asarray(lengths).astype(numpy.int32)
            row_ids = numpy.argsort(-lengths, kind="stable").tolist()
        for piece in split_rows(row_ids, self.size, self.num_processes, lengths, self.max_tokens):
            for rows in shard(piece, self.num_processes):
                yield [(0, row) for row in rows]


def check_division(task: "Task", model: Any, sampler: TrainSampler) -> None:
    """Raise UserError if a batch would be divided although the task or the model does not allow it.

    This concerns tasks whose rows depend on each other (in-batch negatives), and models with
    running statistics (BatchNorm), which each part of the batch would compute for itself.
    """
    is_divided = sampler.num_processes > 1 or sampler.micro_batch_size < sampler.rows_per_step
    is_divided = is_divided or (sampler.group_by_length and sampler.max_tokens is not None)
    reason = None if task.independent_rows else "the loss compares its rows"
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            reason = f"{name} keeps running statistics of it (BatchNorm)"
    if is_divided and reason is not None:
        message = f"a batch must not be divided, because {reason}. Use one process, no max_tokens, "
        raise UserError(f"{message}and micro_batch_size = batch_size.", field="micro_batch_size")
