"""The order of rows: pure functions of (seed, epoch), the same rows in each step however it is divided."""

import itertools
import random

import numpy
import pytest
import torch

from ftloop.checkpoint import TrainState
from ftloop.loader import build_loader
from ftloop.sampler import EvaluationOrder, TrainOrder, Window, _order_of_block, cut, deal, mix, rows_served, seeded

ROWS, BATCH = 43, 8


def train_order(
    micro_batch_size: int = 8, processes: int = 1, state: TrainState | None = None, steps: int = 18
) -> TrainOrder:
    return TrainOrder(ROWS, BATCH, micro_batch_size, processes, steps, seed=3, state=state or TrainState())


def test_each_epoch_is_another_permutation_and_a_function_of_seed_and_epoch():
    orders = [rows_served(ROWS, 3, epoch, 0, ROWS) for epoch in range(3)]
    assert all(sorted(order) == list(range(ROWS)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    _order_of_block.cache_clear()
    torch.manual_seed(99)
    assert rows_served(ROWS, 3, 1, 0, ROWS) == orders[1]
    assert rows_served(ROWS, 4, 1, 0, ROWS) != orders[1]


def test_seeds_of_near_counters_are_unrelated():
    seeds = {mix(seed, purpose, step) for seed in range(10) for purpose in ("order", "dropout") for step in range(100)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 8])
def test_dealing_gives_whole_rounds_of_equal_seats_and_every_row_once(micro_batch_size, processes):
    for count in range(1, 20):
        dealt = list(deal(cut(list(range(count)), micro_batch_size * processes), processes))
        assert len(dealt) % processes == 0
        for start in range(0, len(dealt), processes):
            assert len({len(seats) for seats in dealt[start : start + processes]}) == 1
            assert 1 <= len(dealt[start]) <= micro_batch_size
        assert sorted(row for seats in dealt for row in seats if row >= 0) == list(range(count))
        # An empty seat repeats a row of its own round, and there are fewer of them than processes.
        assert sum(row < 0 for seats in dealt for row in seats) < processes
        assert all(~row in range(count) for seats in dealt for row in seats if row < 0)


@pytest.mark.parametrize(
    ("micro_batch_size", "processes"), [(8, 1), (4, 1), (3, 1), (5, 1), (4, 2), (2, 2), (1, 3), (8, 4)]
)
def test_every_division_serves_the_same_rows_in_each_step(micro_batch_size, processes):
    order, whole = train_order(micro_batch_size, processes), train_order()
    dealt = iter(order)
    for window, expected in zip(order.windows(), whole.windows(), strict=True):
        assert window == expected
        served = [next(dealt) for _ in range(len(order.rounds(window)) * processes)]
        assert sorted(row for seats in served for _, row in seats if row >= 0) == sorted(window.rows)
        assert {epoch for seats in served for epoch, _ in seats} == {window.epoch}
    assert next(dealt, None) is None


LENGTHS = numpy.random.default_rng(0).integers(3, 40, 1003)


def grouped(at_once: int = 8, processes: int = 1, state: TrainState | None = None, **fields) -> TrainOrder:
    """Three epochs of 126 windows: groups of 50, 50 and 26, the last window with 3 rows."""
    return TrainOrder(1003, 8, at_once, processes, 3 * 126, 3, state or TrainState(), LENGTHS, True, **fields)


def computed(order: TrainOrder, window: Window) -> list[int]:
    """How many tokens each micro-batch of a window has, padded to its longest row."""
    micro_batches = [[row if row >= 0 else ~row for row in seats] for seats in order.micro_batches(window)]
    return [int(LENGTHS[rows].max()) * len(rows) for rows in micro_batches]


def test_rows_of_like_length_come_together_and_every_row_once_an_epoch():
    windows = list(grouped().windows())
    for epoch in range(3):
        served = [window for window in windows if window.epoch == epoch]
        assert [len(window.rows) for window in served] == [8] * 125 + [3]
        assert sorted(row for window in served for row in window.rows) == list(range(1003))
        firsts = [LENGTHS[window.rows].max() for window in served[:50]]
        assert firsts != sorted(firsts)
        assert firsts != sorted(firsts, reverse=True)
    assert [window.rows for window in windows[:126]] != [window.rows for window in windows[126:252]]
    assert windows[0].rows[0] == LENGTHS.argmax()  # memory that is short fails in the first step
    padded = {
        kind: sum(sum(computed(order, window)) for window in order.windows()) / (3 * LENGTHS.sum())
        for kind, order in (
            ("grouped", grouped()),
            ("random", TrainOrder(1003, 8, 8, 1, 378, 3, TrainState(), LENGTHS)),
        )
    }
    assert padded["grouped"] < 1.04 < 1.5 < padded["random"]


@pytest.mark.parametrize("step", [0, 1, 49, 50, 125, 126, 200, 377])
def test_a_grouped_order_goes_on_from_any_position(step):
    whole = list(grouped().windows())
    state = TrainState(step=step, epoch=step // 126, window=step % 126)
    assert list(grouped(state=state).windows()) == whole[step:]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("budget", [40, 64, 200, 10_000])
def test_micro_batches_within_a_budget_of_tokens_are_equal_work(budget, processes):
    order, whole = grouped(budget, processes, by_tokens=True), grouped()
    dealt = iter(order)
    for window, expected in zip(order.windows(), whole.windows(), strict=True):
        assert window == expected  # however it is cut
        rounds = order.rounds(window)
        served = [[row for _, row in next(dealt)] for _ in range(len(rounds) * processes)]
        assert sorted(row for seats in served for row in seats if row >= 0) == sorted(window.rows)
        assert max(computed(order, window)) <= budget
        for start in range(0, len(served), processes):  # of one round: as many rows, of neighbouring lengths
            assert len({len(seats) for seats in served[start : start + processes]}) == 1
    assert next(dealt, None) is None


def test_an_epoch_serves_every_row_once_and_ends_with_the_ragged_window():
    windows = list(train_order().windows())
    assert [len(window.rows) for window in windows] == [8, 8, 8, 8, 8, 3] * 3
    assert [window.ends_epoch for window in windows] == [False] * 5 + [True] + ([False] * 5 + [True]) * 2
    for epoch in range(3):
        assert sorted(row for window in windows if window.epoch == epoch for row in window.rows) == list(range(ROWS))


def test_the_order_goes_on_from_any_position():
    whole, state = list(train_order().windows()), TrainState()
    for step, window in enumerate(whole):
        assert list(train_order(state=state).windows()) == whole[step:]
        state.advance(window)


def test_seeking_does_not_depend_on_the_position():
    late = TrainState(step=5_000_000, epoch=15, window=312_500 // 2)
    order = TrainOrder(10_000_000, 32, 32, 1, total_steps=5_000_001, seed=1, state=late)
    assert len(list(order.windows())) == 1


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_evaluation_serves_every_row_once_long_rows_first(rows, processes):
    lengths = [(row * 7) % 5 for row in range(rows)]
    dealt = [[row for _, row in seats if row >= 0] for seats in EvaluationOrder(lengths, 4, processes)]
    assert sorted(itertools.chain(*dealt)) == list(range(rows))
    # In a round, the processes take the rows in turn.
    rounds = [itertools.chain(*dealt[start : start + processes]) for start in range(0, len(dealt), processes)]
    served = [length for served in rounds for length in sorted((lengths[row] for row in served), reverse=True)]
    assert served == sorted(lengths, reverse=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_long_rows_are_computed_fewer_at_once(processes):
    """The windows stay what they are; rows that are longer than the bound are computed alone."""
    lengths = numpy.random.default_rng(0).integers(1, 60, 100)
    orders = [
        TrainOrder(100, 16, 8, processes, 14, 3, TrainState(), lengths=lengths, grouped=True, most_tokens=most)
        for most in (None, 50)
    ]
    assert [sorted(window.rows) for window in orders[1].windows()] == [sorted(one.rows) for one in orders[0].windows()]
    for window in orders[1].windows():
        dealt = list(orders[1].micro_batches(window))
        assert sorted(row for seats in dealt for row in seats if row >= 0) == sorted(window.rows)
        assert len(dealt) == processes * len(orders[1].rounds(window))
        sizes = [(len(seats), max(lengths[max(row, ~row)] for row in seats)) for seats in dealt]
        assert all(rows <= 8 and (rows == 1 or rows * longest <= 50) for rows, longest in sizes)
    evaluated = list(EvaluationOrder(lengths.tolist(), 8, processes, 50))
    assert sorted(row for seats in evaluated for _, row in seats if row >= 0) == list(range(100))
    assert all(len(seats) == 1 or len(seats) * lengths[seats[0][1]] <= 50 for seats in evaluated)


def test_the_samplers_have_no_attribute_by_which_accelerate_would_cut_their_batches_anew():
    assert not hasattr(train_order(), "batch_size")
    assert not hasattr(EvaluationOrder([1], 4, 1), "batch_size")


def test_seeding_a_block_leaves_the_callers_streams_as_they_were():
    def draw() -> list[float]:
        return [torch.rand(1).item(), random.random(), numpy.random.rand()]

    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    expected = draw() + draw()
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    first = draw()
    with seeded(5):
        inside = draw()
    assert first + draw() == expected
    with seeded(5):
        assert draw() == inside


def noisy_collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """A collator that draws, as random masking does."""
    noise = [random.random() + numpy.random.rand() for _ in examples]
    return {
        "inputs": torch.rand(len(examples)) + torch.tensor(noise),
        "labels": torch.tensor([row["x"] for row in examples]),
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_random_collators_draw_the_same_in_any_worker_and_after_any_resume(workers):
    dataset = [{"x": row} for row in range(ROWS)]

    def batches(workers: int, state: TrainState) -> list[dict[str, torch.Tensor]]:
        return list(build_loader(dataset, train_order(state=state), noisy_collate, seed=3, workers=workers))

    whole = batches(0, TrainState())
    for got, expected in zip(batches(workers, TrainState()), whole, strict=True):
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    resumed = batches(0, TrainState(step=8, epoch=1, window=2))
    for got, expected in zip(resumed, whole[8:], strict=True):
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert not torch.equal(whole[0]["inputs"], whole[6]["inputs"])


@pytest.mark.parametrize("rows", [1, 2, 3, 43, 65_536, 65_537, 200_001])
def test_an_order_is_a_permutation_however_it_is_cut(rows):
    whole = rows_served(rows, 3, 5, 0, rows)
    assert sorted(whole) == list(range(rows))
    cuts = [0, rows // 3, rows // 2, rows]
    assert [row for first, stop in itertools.pairwise(cuts) for row in rows_served(rows, 3, 5, first, stop)] == whole
    assert rows_served(rows, 3, 5, rows - 1, rows + 9) == whole[-1:]


def test_every_row_comes_to_every_place_equally_often():
    """Chi-square of (place, row) over 4 000 epochs of 43 rows: 42 * 42 degrees of freedom, and one number over them."""
    counts = numpy.zeros((43, 43))
    for epoch in range(4000):
        counts[range(43), rows_served(43, 1, epoch, 0, 43)] += 1
    expected = 4000 / 43
    assert ((counts - expected) ** 2 / expected).sum() / (42 * 42) == pytest.approx(1, abs=0.15)
