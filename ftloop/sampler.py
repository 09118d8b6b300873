"""In what order rows are served: pure functions of (seed, epoch), and the samplers that deal rows to the processes.

Nothing here has a state worth saving. The order of an epoch, the dropout of a micro-batch and the random choices of a
collator are functions of counters, so the position (epoch, window) is all that a checkpoint needs to go on exactly.
"""

import contextlib
import functools
import hashlib
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch

if TYPE_CHECKING:
    from ftloop.checkpoint import TrainState


UNBOUNDED = sys.maxsize  # what len() says of a stream: it is one epoch without end (ftloop/data/stream.py shuffles it)


BLOCK = 65_536  # places of an epoch that are computed and remembered together
GROUP = 50  # windows that are sorted by length together: 2 to 5 % of padding is left, where random order has 33 to 74
FEISTEL_ROUNDS = 8  # four give an order that no statistics tell from a random one; eight for sets of a few rows


def mix(*counters: int | str) -> int:
    """A 63-bit seed from any counters: `mix(seed, "order", epoch)`. Near counters give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(counters).encode(), digest_size=8).digest(), "little") >> 1


def seed_all(seed: int) -> None:
    """Seed torch (every device), random and numpy."""
    # Without a GPU not torch.manual_seed: it records its caller for one to come, a quarter of a millisecond each time.
    (torch.manual_seed if _has_accelerator() else torch.default_generator.manual_seed)(seed)
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)


_has_accelerator = functools.cache(torch.accelerator.is_available)  # asked in each step
SPARE: list[Any] = []  # generators of numpy, for `seeded`


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all within the block and put the caller's states back: without workers, the caller is the training."""
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_bit_generator()
    # Another generator takes the place of numpy's: to copy its state there and back would take 30 times as long.
    own = SPARE.pop() if SPARE else numpy.random.MT19937()
    numpy.random.set_bit_generator(own)
    # Not seed_all: it would also seed the GPU, whose state belongs to dropout and is not put back here.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_bit_generator(states[2])
        SPARE.append(own)


def rows_served(rows: int, seed: int, epoch: int, start: int, stop: int) -> list[int]:
    """The row ids at the places from `start` to before `stop` of an epoch; of a stream, the positions themselves.

    The order is a permutation drawn by (seed, epoch) that needs no table: the row at a place is computed by itself, by
    a Feistel network (Luby and Rackoff, 1988) on the smallest even number of bits that holds all places; a number that
    is no row is put through it again until it is one, four times at most on average (Black and Rogaway, 2002). So a run
    of ten million rows goes on in the middle of an epoch as quickly as one of ten.
    """
    if rows == UNBOUNDED:
        return list(range(start, stop))
    stop = min(stop, rows)
    served: list[int] = []
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        first = block * BLOCK
        served += _order_of_block(rows, seed, epoch, block)[max(0, start - first) : stop - first].tolist()
    return served


@functools.lru_cache(maxsize=8)  # the sampler and the loop both ask; at an epoch's end the sampler is one epoch ahead
def _order_of_block(rows: int, seed: int, epoch: int, block: int) -> numpy.ndarray:
    """The row ids at BLOCK places of an epoch, uint64: together 0.15 us each, alone 0.5 ms."""
    half = max(1, -(-(rows - 1).bit_length() // 2))
    keys = [numpy.uint64(mix(seed, "order", epoch, number)) for number in range(FEISTEL_ROUNDS)]
    found = numpy.arange(block * BLOCK, min((block + 1) * BLOCK, rows), dtype=numpy.uint64)
    walking = numpy.arange(len(found))
    while len(walking):
        found[walking] = _feistel(found[walking], keys, half)
        walking = walking[found[walking] >= rows]
    return found


def _feistel(numbers: numpy.ndarray, keys: list[numpy.uint64], half: int) -> numpy.ndarray:
    """A permutation of the numbers below 2 ** (2 * half), uint64."""
    bits, mask = numpy.uint64(half), numpy.uint64((1 << half) - 1)
    left, right = numbers >> bits, numbers & mask
    for key in keys:
        left, right = right, left ^ (splitmix(right ^ key) & mask)
    return (left << bits) | right


def splitmix(numbers: numpy.ndarray) -> numpy.ndarray:
    """Sixty-four bits in, sixty-four unrelated ones out (splitmix64; Steele, Lea and Flood, 2014)."""
    numbers = (numbers ^ (numbers >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> numpy.uint64(31))


def deal(rounds: Iterable[list[int]], processes: int) -> Iterator[list[int]]:
    """Deal the rows of each round out as micro-batches: to process 0, process 1, ..., process 0, ...

    Within a round every process gets equally many seats, so that what is computed from them can be gathered as it is,
    and rows in turn: of rows sorted by length, all get like ones. A seat that stays empty holds `~row` (a negative
    number): the row is computed again, and counts nowhere.
    """
    for served in rounds:
        empty = -len(served) % processes
        seats = served + [~served[-1]] * empty
        for process in range(processes):
            yield seats[process::processes]


def cut(
    rows: list[int], size: int, processes: int = 1, lengths: Sequence[int] = (), tokens: int | None = None
) -> list[list[int]]:
    """Rows in pieces of `size` for each process; the last may be smaller. With `tokens`, where the longest of the rows
    come first: pieces of at most so many tokens for each process, padded to the longest, or of one row."""
    found, start = [], 0
    while start < len(rows):
        fit = size if tokens is None else min(size, max(1, tokens // max(1, int(lengths[rows[start]]))))
        found.append(rows[start : start + fit * processes])
        start += fit * processes
    return found


@dataclass(frozen=True)
class Window:
    """The rows of one optimizer step over all processes and micro-batches."""

    epoch: int  # from 0
    index: int  # of the window in its epoch, from 0
    rows: list[int]  # row ids; their number is what the loss is divided by
    ends_epoch: bool


# The samplers have no attribute `batch_size` on purpose: accelerate deals out the micro-batches of such a sampler
# one by one, as they come, to process 0, 1, ... (with even_batches=False). With that attribute it would re-cut them.


@dataclass
class TrainOrder:
    """Batch sampler of a whole training: yields the micro-batches of all processes in turn, as keys (epoch, row).

    It begins at the position of `state`: seeking costs the same, whatever the position.

    With `grouped`, the rows of a window are of like length, which saves most of the padding: each GROUP windows of the
    epoch's random order are sorted by length, cut anew, and come in a random order. In the first epoch the longest
    window of the first group comes first, and in it the longest row of all: memory that is short fails early. Where an
    epoch does not divide, its last window has rows of all lengths.
    """

    rows: int
    step_size: int  # rows of an optimizer step over all processes
    at_once: int  # of one process in one forward pass: rows or, with `by_tokens`, tokens with their padding
    processes: int
    total_steps: int
    seed: int
    state: "TrainState"
    lengths: numpy.ndarray | None = None  # of each row, where they differ: tokens
    grouped: bool = False  # windows of rows of like length
    by_tokens: bool = False
    most_tokens: int | None = None  # and where they are grouped, so many tokens with their padding

    def __post_init__(self) -> None:
        if self.lengths is not None:  # signed: sorting goes by their negatives
            self.lengths = numpy.asarray(self.lengths).astype(numpy.int32, copy=False)
        self._groups: dict[tuple[int, int], list[list[int]]] = {}  # by epoch and number: the windows of the newest two
        self._exchanged: dict[int, int] | None = None  # the first row of the first epoch and the longest

    def windows(self) -> Iterator[Window]:
        """The windows from the position of `state` to the last step."""
        epoch, index = self.state.epoch, self.state.window
        for _ in range(self.state.step, self.total_steps):
            ends_epoch = (index + 1) * self.step_size >= self.rows
            yield Window(epoch, index, self._rows_of(epoch, index), ends_epoch)
            epoch, index = (epoch + 1, 0) if ends_epoch else (epoch, index + 1)

    def _rows_of(self, epoch: int, index: int) -> list[int]:
        """The rows of a window."""
        if not self.grouped:
            return self._served(epoch, index * self.step_size, (index + 1) * self.step_size)
        number, place = divmod(index, GROUP)
        if (epoch, number) not in self._groups:
            if len(self._groups) == 2:  # the loop is in one, and the sampler, which is ahead of it, may be in the next
                del self._groups[min(self._groups)]
            self._groups[epoch, number] = self._group_of(epoch, number)
        return self._groups[epoch, number][place]

    def _served(self, epoch: int, start: int, stop: int) -> list[int]:
        """As `rows_served`; where rows are grouped, the longest row and the first change places in the first epoch."""
        rows = rows_served(self.rows, self.seed, epoch, start, stop)
        if not self.grouped or epoch > 0:
            return rows
        if self._exchanged is None:
            (first,), longest = rows_served(self.rows, self.seed, 0, 0, 1), int(self.lengths.argmax())
            self._exchanged = {first: longest, longest: first}
        return [self._exchanged.get(row, row) for row in rows]

    def _group_of(self, epoch: int, number: int) -> list[list[int]]:
        """The windows of one group, in their order."""
        size = GROUP * self.step_size
        rows = numpy.array(self._served(epoch, number * size, (number + 1) * size))
        whole = len(rows) // self.step_size  # windows that are full; what is left over is the last of the epoch
        parts = rows[: whole * self.step_size], rows[whole * self.step_size :]
        full, rest = (part[numpy.argsort(-self.lengths[part], kind="stable")].tolist() for part in parts)
        shuffled = rows_served(whole, mix(self.seed, "windows", epoch), number, 0, whole) if whole else []
        if epoch == number == 0 and whole:  # the longest first
            shuffled = [0, *(place for place in shuffled if place)]
        windows = cut(full, self.step_size)
        return [windows[place] for place in shuffled] + ([rest] if rest else [])

    def rounds(self, window: Window) -> list[list[int]]:
        """The rows of a window as all processes compute them together, round after round."""
        if self.by_tokens:
            return cut(window.rows, self.step_size, self.processes, self.lengths, self.at_once)
        most = self.most_tokens if self.grouped else None
        return cut(window.rows, self.at_once, self.processes, self.lengths, most)

    def computed_at_once(self) -> int:
        """The most rows (with `by_tokens`, tokens) of a process in the window at the position of `state`."""
        rows = max(map(len, self.rounds(next(self.windows()))))
        return self.at_once if self.by_tokens else -(-rows // self.processes)

    def micro_batches(self, window: Window) -> Iterator[list[int]]:
        """The rows of each micro-batch of a window, of all processes in turn."""
        return deal(self.rounds(window), self.processes)

    def __str__(self) -> str:
        rows = "a stream" if self.rows == UNBOUNDED else f"{self.rows} rows"
        order = "grouped by length" if self.grouped else "in random order"
        if self.by_tokens:
            division = f"{self.processes} process(es), micro-batches of at most {self.at_once} tokens"
        elif self.grouped and self.most_tokens and self.most_tokens < self.at_once * int(self.lengths.max()):
            most = f"{self.at_once} rows and {self.most_tokens} tokens"
            division = f"{self.processes} process(es), micro-batches of at most {most}"
        else:
            rounds = -(-self.step_size // (self.at_once * self.processes))
            division = f"{self.processes} process(es) x {rounds} micro-batch(es) of at most {self.at_once}"
        return f"{rows} {order}, {self.total_steps} steps of {self.step_size} rows in {division}"

    def epochs_done(self) -> float:
        """How many times train was seen at the position of `state`."""
        return self.state.epoch + self.state.window * self.step_size / self.rows

    def epochs_after(self, window: Window) -> float:
        """How many times train was seen when a window is done."""
        return window.epoch + min(1.0, (window.index + 1) * self.step_size / self.rows)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for window in self.windows():
            for seats in self.micro_batches(window):
                yield [(window.epoch, row) for row in seats]


# Of a forward pass on a CPU, unless a division was asked for: 32 texts of up to 512 tokens, all at once, took 1.8 times
# as long, and twice the memory. With another number, a run that goes on would cut its windows in another way.
TOKENS_ON_CPU = 4096


def batching_of(rows: Any, batching: str | None) -> dict[str, Any]:
    """The fields of a TrainOrder that say what is batched together: by `batching` or, left out, by length where the
    rows of train have lengths."""
    if "length" not in getattr(rows, "column_names", ()):
        return {}
    lengths = numpy.asarray(rows.select_columns("length").with_format("numpy")["length"][:])
    return {"lengths": lengths, "grouped": batching != "random", "by_tokens": batching == "tokens"}


@dataclass
class EvaluationOrder:
    """Batch sampler of a split: every row once, as keys (0, row), long rows first: less padding, memory fails early."""

    lengths: list[int]  # one per row, in any unit
    micro_batch_size: int  # rows of one process in one forward pass
    processes: int
    most_tokens: int | None = None  # and with their padding, at most so many tokens of it

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = sorted(range(len(self.lengths)), key=self.lengths.__getitem__, reverse=True)
        pieces = cut(rows, self.micro_batch_size, self.processes, self.lengths, self.most_tokens)
        for seats in deal(pieces, self.processes):
            yield [(0, row) for row in seats]
