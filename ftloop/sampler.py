"""Which rows form a batch, in which order: pure functions of the seed and of counters.

The position of a run is its optimizer step. `TrainSampler.plan(step)` computes the rows of any step
directly, so that resuming at step one million costs as much as starting at step 0.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from sys import maxsize as UNBOUNDED  # the length of a dataset without end (a stream)
from typing import TYPE_CHECKING, Any

import numpy

from ftloop.errors import UserError
from ftloop.state import fold_in

if TYPE_CHECKING:
    from ftloop.config import Config
    from ftloop.task import Task

BLOCK_SIZE = 65_536  # positions of an epoch whose rows are computed and cached together
# Tokens of one forward pass on a CPU, after padding. 32 texts of up to 512 tokens in one pass took 1.8
# times as long as in pieces of 4096 tokens, and twice the memory.
MAX_TOKENS_ON_CPU = 4096
STEPS_PER_GROUP = 50  # sorted by length together: leaves 2 to 5 % padding instead of 33 to 74 %
FEISTEL_ROUNDS = 8  # 4 rounds look random to statistical tests; 8 for datasets of a few rows


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


class RandomOrder(Sequence[int]):
    """A random permutation of the rows of an epoch that is computed where it is read.

    A Feistel network (Luby and Rackoff, 1988) permutes the numbers with the smallest even number of bits
    that holds all rows. A number that is not a row is permuted again until it is one, at most four
    times on average (cycle walking; Black and Rogaway, 2002). No table of all rows is needed.
    """

    def __init__(self, num_rows: int, seed: int, epoch: int):
        self.num_rows, self.seed, self.epoch = num_rows, seed, epoch

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            position = range(self.num_rows)[index]
            return self[position : position + 1][0]
        start, stop, step = index.indices(self.num_rows)
        rows: list[int] = []
        for block in range(start // BLOCK_SIZE, ceil_div(stop, BLOCK_SIZE)):
            first = block * BLOCK_SIZE
            permuted = _permuted_block(self.num_rows, self.seed, self.epoch, block)
            rows += permuted[max(0, start - first) : stop - first].tolist()
        return rows[::step]


@functools.lru_cache(maxsize=8)  # data workers run up to one epoch ahead of the loop
def _permuted_block(num_rows: int, seed: int, epoch: int, block: int) -> numpy.ndarray:
    """Return the rows at BLOCK_SIZE positions of an epoch, uint64: 0.15 us each, alone 0.5 ms."""
    half_bits = max(1, ceil_div((num_rows - 1).bit_length(), 2))
    keys = [numpy.uint64(fold_in(seed, "order", epoch, i)) for i in range(FEISTEL_ROUNDS)]
    stop = min((block + 1) * BLOCK_SIZE, num_rows)
    rows = numpy.arange(block * BLOCK_SIZE, stop, dtype=numpy.uint64)
    walking = numpy.arange(len(rows))
    while len(walking):
        rows[walking] = _feistel_permutation(rows[walking], keys, half_bits)
        walking = walking[rows[walking] >= num_rows]
    return rows


def _feistel_permutation(
    numbers: numpy.ndarray, keys: list[numpy.uint64], half_bits: int
) -> numpy.ndarray:
    """Permute the numbers below 2 ** (2 * half_bits), uint64."""
    bits, mask = numpy.uint64(half_bits), numpy.uint64((1 << half_bits) - 1)
    left, right = numbers >> bits, numbers & mask
    for key in keys:
        left, right = right, left ^ (splitmix64(right ^ key) & mask)
    return (left << bits) | right


def splitmix64(numbers: numpy.ndarray) -> numpy.ndarray:
    """Hash 64-bit numbers to 64-bit numbers (Steele, Lea and Flood, 2014)."""
    numbers = (numbers ^ (numbers >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> numpy.uint64(31))


def random_order(dataset: Any, seed: int, epoch: int) -> Sequence[int]:
    """Return the default row order of an epoch: a random permutation drawn from (seed, epoch)."""
    return RandomOrder(len(dataset), seed, epoch)


def shard(row_ids: list[int], num_processes: int) -> list[list[int]]:
    """Divide rows into one micro-batch for each rank, all of the same size.

    Ranks take rows in turn, so that all get similar ones if the rows are sorted by length. Padding rows
    have the id ~row (negative): the row is computed again and counts nowhere.
    """
    num_padding_rows = -len(row_ids) % num_processes
    padded = row_ids + [~row_ids[-1]] * num_padding_rows
    return [padded[rank::num_processes] for rank in range(num_processes)]


def split_rows(
    row_ids: list[int],
    size: int,
    num_processes: int,
    lengths: Sequence[int] | None = None,
    max_tokens: int | None = None,
) -> list[list[int]]:
    """Split rows into pieces of at most `size` rows per rank.

    With `lengths` and `max_tokens`, a piece also has at most that many tokens per rank after padding,
    or a single row per rank. The rows must then be sorted by length, the longest first.
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
    ends_epoch: bool


class TrainSampler:
    """Batch sampler of a whole training: yields micro-batches of (epoch, row id), for the ranks in turn.

    Of each step, rank 0 gets the first micro-batch, rank 1 the second, and so on, then rank 0 again.
    Every rank gets equally many micro-batches of equally many rows, because DDP would hang otherwise.

    It has no attribute `batch_size` on purpose: with `even_batches=False`, accelerate then hands the
    micro-batches to the ranks as they are. With that attribute it would divide them anew.
    """

    def __init__(
        self, dataset: Any, config: "Config", num_processes: int = 1, device_type: str = ""
    ):
        self.dataset, self.seed, self.num_processes = dataset, config.seed, num_processes
        self.rows_per_step = config.batch_size
        lengths = getattr(dataset, "lengths", None)
        self.lengths = None if lengths is None else numpy.asarray(lengths).astype(numpy.int32)

        # A dataset may have an order of its own (a stream). The config decides over it.
        own_order = ask_dataset if hasattr(dataset, "row_order") else random_order
        self.row_order = config.row_order or own_order
        self.num_rows = len(self.row_order(dataset, self.seed, 0))  # in an epoch
        self.steps_per_epoch = ceil_div(self.num_rows, self.rows_per_step)
        self.total_steps = config.max_steps or config.epochs * self.steps_per_epoch
        self.group_by_length = config.group_by_length
        if config.group_by_length is None:
            self.group_by_length = lengths is not None and self.row_order is random_order

        # Limits of one forward pass on each rank
        size = config.micro_batch_size
        share = ceil_div(self.rows_per_step, num_processes)
        self.micro_batch_size = min(size, share) if isinstance(size, int) else share
        self.max_tokens = config.max_tokens
        if self.max_tokens is None and size is None and device_type == "cpu":
            self.max_tokens = MAX_TOKENS_ON_CPU if config.task.independent_rows else None
        self.start_step = 0  # read once, when iteration begins: data workers run ahead of the loop
        # Two of each are cached, since data workers may be one group or epoch ahead of the loop.
        self._order = functools.lru_cache(maxsize=2)(self._compute_order)
        self._group = functools.lru_cache(maxsize=2)(self._compute_group)

    def plan(self, step: int) -> StepPlan:
        """Compute the rows of an optimizer step; steps count from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self.group_by_length:
            group, position = divmod(index, STEPS_PER_GROUP)
            row_ids = self._group(epoch, group)[position]
        else:
            start = index * self.rows_per_step
            row_ids = list(self._order(epoch)[start : start + self.rows_per_step])
        return StepPlan(epoch, index, row_ids, ends_epoch=index == self.steps_per_epoch - 1)

    def micro_batches(self, plan: StepPlan) -> list[list[int]]:
        """Divide the rows of a step into micro-batches, for the ranks in turn."""
        pieces = split_rows(
            row_ids=plan.row_ids,
            size=self.micro_batch_size,
            num_processes=self.num_processes,
            lengths=self.lengths if self.group_by_length else None,
            max_tokens=self.max_tokens,
        )
        return [rows for piece in pieces for rows in shard(piece, self.num_processes)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_step, self.total_steps):
            plan = self.plan(step)
            for row_ids in self.micro_batches(plan):
                yield [(plan.epoch, row) for row in row_ids]

    def epochs_done(self, step: int) -> float:
        """Return how many epochs `step` optimizer steps are, for example 1.5."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch + index * self.rows_per_step / self.num_rows

    def longest_rows(self, count: int) -> list[int]:
        """Return the ids of the longest rows, or of the first ones if rows have no lengths."""
        count = min(count, self.num_rows)
        if self.lengths is None:
            return list(range(count))
        return self.lengths.argsort(kind="stable")[::-1][:count].tolist()

    def describe(self) -> str:
        """Describe the order and the division of rows in one line, for the log."""
        rows = "a stream" if self.num_rows == UNBOUNDED else f"{self.num_rows} rows"
        order = " grouped by length" if self.group_by_length else ""
        accumulation = ceil_div(self.rows_per_step, self.micro_batch_size * self.num_processes)
        division = f"{self.num_processes} process(es) x {accumulation} micro-batch(es)"
        limit = f"at most {self.micro_batch_size} rows"
        if self.group_by_length and self.max_tokens is not None:
            limit += f" and {self.max_tokens} tokens"
        return (
            f"{rows}{order}, {self.total_steps} optimizer steps of {self.rows_per_step} rows, "
            f"{division} of {limit}"
        )

    def _compute_order(self, epoch: int) -> Sequence[int]:
        order = self.row_order(self.dataset, self.seed, epoch)
        if len(order) != self.num_rows:
            raise UserError(
                f"returned {self.num_rows} rows for epoch 0, but {len(order)} for epoch {epoch}; every "
                "epoch must have the same number.",
                field="row_order",
            )
        return order

    def _compute_group(self, epoch: int, group: int) -> list[list[int]]:
        """Return the row ids of each step of a group.

        The rows of STEPS_PER_GROUP steps of the epoch's order are sorted by length and cut into steps,
        which come in a random order. The last step of an epoch, if it has fewer rows, stays the last
        and has rows of all lengths. The first step of a run holds the longest row: if memory is too
        small, it fails at once.
        """
        size = STEPS_PER_GROUP * self.rows_per_step
        rows = numpy.array(self._grouped_order(epoch, group * size, (group + 1) * size))
        num_full_steps = len(rows) // self.rows_per_step
        full, rest = numpy.split(rows, [num_full_steps * self.rows_per_step])
        if not num_full_steps:
            return [self._longest_first(rest)]
        steps = split_rows(self._longest_first(full), self.rows_per_step, num_processes=1)
        shuffled = RandomOrder(num_full_steps, fold_in(self.seed, "steps", epoch), group)[:]
        if epoch == group == 0:
            shuffled = [0, *(step for step in shuffled if step != 0)]
        return [steps[step] for step in shuffled] + (
            [self._longest_first(rest)] if len(rest) else []
        )

    def _grouped_order(self, epoch: int, start: int, stop: int) -> list[int]:
        """Return a part of the epoch's order; in epoch 0, the longest row and the first change places."""
        rows = list(self._order(epoch)[start:stop])
        if epoch > 0 or self.row_order is not random_order or self.lengths is None:
            return rows
        first, longest = self._order(0)[0], int(self.lengths.argmax())
        exchanged = {first: longest, longest: first}
        return [exchanged.get(row, row) for row in rows]

    def _longest_first(self, rows: numpy.ndarray) -> list[int]:
        assert self.lengths is not None
        return rows[numpy.argsort(-self.lengths[rows], kind="stable")].tolist()


def check_division(task: "Task", model: Any, sampler: TrainSampler) -> None:
    """Raise UserError if a batch would be divided although the task or the model does not allow it.

    That are tasks whose rows depend on each other (in-batch negatives), and models with running
    statistics (BatchNorm), which each rank and micro-batch would compute from its own rows.
    """
    share = ceil_div(sampler.rows_per_step, sampler.num_processes)
    is_divided = sampler.num_processes > 1 or sampler.micro_batch_size < share
    if sampler.max_tokens is not None and sampler.group_by_length and sampler.lengths is not None:
        is_divided = is_divided or share * int(max(sampler.lengths)) > sampler.max_tokens
    reason = (
        None if task.independent_rows else f"the loss of {type(task).__name__} compares its rows"
    )
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            reason = f"{name} keeps running statistics of it (BatchNorm)"
    if is_divided and reason is not None:
        raise UserError(
            f"a batch must not be divided, since {reason}. Use one process, and neither micro_batch_size "
            "nor max_tokens below the whole batch.",
            field="micro_batch_size",
        )


def ask_dataset(dataset: Any, seed: int, epoch: int) -> Sequence[int]:
    """Return the row order that a dataset defines itself."""
    return dataset.row_order(seed, epoch)


class EvalSampler:
    """Batch sampler of an evaluation: every row once, the longest first, for the ranks in turn.

    Sorting by length saves padding, and if memory is too small, the first batch fails. Like
    `TrainSampler`, it has no attribute `batch_size`.
    """

    def __init__(
        self, dataset: Any, micro_batch_size: int, num_processes: int, max_tokens: int | None
    ):
        self.dataset, self.micro_batch_size = dataset, micro_batch_size
        self.num_processes, self.max_tokens = num_processes, max_tokens

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        lengths = getattr(self.dataset, "lengths", None)
        row_ids = list(range(len(self.dataset)))
        if lengths is not None:
            lengths = numpy.asarray(lengths).astype(numpy.int32)
            row_ids = numpy.argsort(-lengths, kind="stable").tolist()
        pieces = split_rows(
            row_ids=row_ids,
            size=self.micro_batch_size,
            num_processes=self.num_processes,
            lengths=lengths,
            max_tokens=self.max_tokens,
        )
        for piece in pieces:
            for rows in shard(piece, self.num_processes):
                yield [(0, row) for row in rows]
