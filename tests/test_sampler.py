"""Which rows form a step and a micro-batch: functions of the seed and of counters.

Every division of a step has the same rows, and every row comes once in an epoch.
"""

import itertools
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from toy import Rows

from ftloop import Task
from ftloop.loader import build_dataloader, make_batch
from ftloop.sampler import (
    STEPS_PER_GROUP,
    UNBOUNDED,
    EvalSampler,
    StepPlan,
    TrainSampler,
    ceil_div,
    random_order,
    random_permutation,
    shard,
    split_rows,
)
from ftloop.state import fold_in, set_seed, temporary_seed

ROWS, BATCH = 43, 8
LENGTHS = numpy.random.default_rng(0).integers(3, 40, 1003)


def dataset_of(rows: int, lengths: Sequence[int] | None = None) -> Any:
    """Return a dataset of which only the number of rows, and perhaps their lengths, matter."""
    dataset = Rows([{"x": row} for row in range(rows)])
    if lengths is not None:
        dataset.lengths = lengths
    return dataset


def config_of(**options: Any) -> Any:
    defaults = {
        "task": Task(),
        "seed": 3,
        "batch_size": BATCH,
        "micro_batch_size": None,
        "max_tokens": None,
        "epochs": 3,
        "max_steps": None,
        "row_order": None,
        "group_by_length": None,
    }
    return SimpleNamespace(**{**defaults, **options})


def sampler_of(rows: int = ROWS, num_processes: int = 1, **options: Any) -> TrainSampler:
    """Return the sampler of three epochs of 43 rows: 5 steps of 8 rows, and one of 3."""
    return TrainSampler(dataset_of(rows), config_of(**options), num_processes)


def grouped(num_processes: int = 1, **options: Any) -> TrainSampler:
    """Return a sampler of three epochs of 126 steps: groups of 50, 50 and 26 steps.

    The last step of an epoch has 3 rows.
    """
    dataset = dataset_of(len(LENGTHS), LENGTHS)
    return TrainSampler(dataset, config_of(**options), num_processes)


def plans_of(sampler: TrainSampler) -> list[StepPlan]:
    return [sampler.plan(step) for step in range(sampler.total_steps)]


def real_rows(micro_batches: Sequence[Sequence[int]]) -> list[int]:
    """Return the row ids without padding rows, sorted."""
    return sorted(row for rows in micro_batches for row in rows if row >= 0)


# Seeds


def test_seeds_of_similar_counters_are_unrelated():
    seeds = {
        fold_in(seed, purpose, step)
        for seed in range(10)
        for purpose in ("order", "dropout")
        for step in range(100)
    }
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def draw_from_each_generator() -> list[float]:
    return [torch.rand(1).item(), random.random(), numpy.random.rand()]


def test_a_temporary_seed_restores_the_generators():
    set_seed(1)
    expected = draw_from_each_generator() + draw_from_each_generator()
    set_seed(1)
    first = draw_from_each_generator()
    with temporary_seed(5):
        inside = draw_from_each_generator()
    assert first + draw_from_each_generator() == expected
    with temporary_seed(5):
        assert draw_from_each_generator() == inside


# The order of an epoch


@pytest.mark.parametrize("rows", [1, 2, 3, 43, 70_000])
def test_an_order_is_a_permutation(rows):
    assert sorted(random_permutation(rows, 3, 5).tolist()) == list(range(rows))


def test_each_epoch_is_another_permutation_and_a_function_of_seed_and_epoch():
    dataset = dataset_of(ROWS)
    orders = [list(random_order(dataset, 3, epoch)) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    set_seed(99)
    assert list(random_order(dataset, 3, 1)) == orders[1]
    assert list(random_order(dataset, 4, 1)) != orders[1]


def test_the_order_is_the_same_in_every_version():
    """Numpy promises it for RandomState. A change here changes the results of all runs."""
    assert random_permutation(10, 42, 0).tolist() == [3, 6, 0, 4, 8, 5, 1, 2, 9, 7]


def test_every_row_comes_to_every_place_equally_often():
    """Chi-square of (place, row) over 4 000 epochs of 43 rows, by degree of freedom."""
    counts = numpy.zeros((43, 43))
    for epoch in range(4000):
        counts[range(43), random_permutation(43, 1, epoch)] += 1
    expected = 4000 / 43
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square / (42 * 42) == pytest.approx(1, abs=0.15)


def test_an_epoch_has_every_row_once_and_ends_with_the_smaller_step():
    sampler = sampler_of()
    plans = plans_of(sampler)
    assert [len(plan.row_ids) for plan in plans] == [8, 8, 8, 8, 8, 3] * 3
    assert [(plan.epoch, plan.index) for plan in plans] == [*itertools.product(range(3), range(6))]
    for epoch in range(3):
        rows = [row for plan in plans if plan.epoch == epoch for row in plan.row_ids]
        assert rows == list(random_order(sampler.dataset, 3, epoch))
    assert sampler.epochs_done(6) == 1
    assert sampler.epochs_done(8) == 1 + 16 / 43


def test_max_steps_decides_instead_of_epochs():
    assert sampler_of(max_steps=4).total_steps == 4
    assert sampler_of(max_steps=100).plan(99).epoch == 16


@pytest.mark.parametrize("build", [sampler_of, grouped])
def test_a_plan_does_not_depend_on_those_before_it(build):
    plans = plans_of(build())
    for step in {0, 1, 5, 6, 49, 50, 125, 126, 200, len(plans) - 1} & set(range(len(plans))):
        assert build().plan(step) == plans[step]


def test_iteration_begins_at_the_start_step():
    expected = list(sampler_of())
    sampler = sampler_of()
    sampler.start_step = 8
    assert list(sampler) == expected[8:]


def test_a_late_step_needs_no_step_before_it():
    sampler = sampler_of(rows=1_000_000, max_steps=5_000_001, batch_size=32)
    assert len(sampler.plan(5_000_000).row_ids) == 32


class CountingStream:
    """A dataset without end, whose rows have an order of their own."""

    is_deterministic = True

    def __len__(self):
        return UNBOUNDED

    def row_order(self, seed, epoch):
        return range(UNBOUNDED)


def test_a_stream_has_one_epoch_without_end():
    sampler = TrainSampler(CountingStream(), config_of(max_steps=10))
    assert sampler.plan(5).row_ids == list(range(40, 48))
    assert sampler.plan(10**9).epoch == 0


def last_rows_first(dataset, seed, epoch):
    return range(len(dataset) - 1, -1, -1)


def test_a_function_orders_the_rows():
    sampler = sampler_of(row_order=last_rows_first)
    assert sampler.plan(0).row_ids == [42, 41, 40, 39, 38, 37, 36, 35]
    assert sampler.plan(6) == StepPlan(1, 0, sampler.plan(0).row_ids)
    dataset = dataset_of(len(LENGTHS), LENGTHS)
    sampler = TrainSampler(dataset, config_of(row_order=last_rows_first))
    assert not sampler.group_by_length


# Micro-batches and ranks


@pytest.mark.parametrize(("a", "b", "expected"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2)])
def test_ceil_div(a, b, expected):
    assert ceil_div(a, b) == expected


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_ranks_get_equally_many_rows_and_every_row_comes_once(size, num_processes):
    for count in range(1, 20):
        for piece in split_rows(list(range(count)), size, num_processes):
            micro_batches = shard(piece, num_processes)
            assert len(micro_batches) == num_processes
            assert len({len(rows) for rows in micro_batches}) == 1
            assert 1 <= len(micro_batches[0]) <= size
            assert real_rows(micro_batches) == piece
            # A padding row repeats a row of its micro-batches; fewer of them than ranks.
            padding = [~row for rows in micro_batches for row in rows if row < 0]
            assert len(padding) < num_processes
            assert set(padding) <= set(piece)
        pieces = split_rows(list(range(count)), size, num_processes)
        assert list(itertools.chain(*pieces)) == list(range(count))


@pytest.mark.parametrize(
    ("size", "num_processes"), [(8, 1), (4, 1), (3, 1), (5, 1), (4, 2), (2, 2), (1, 3), (8, 4)]
)
def test_every_division_has_the_same_rows_in_each_step(size, num_processes):
    undivided = sampler_of()
    sampler = sampler_of(num_processes=num_processes, micro_batch_size=size)
    yielded = iter(sampler)
    for step, expected in enumerate(plans_of(undivided)):
        plan = sampler.plan(step)
        assert plan == expected
        micro_batches = sampler.micro_batches(plan)
        assert len(micro_batches) % num_processes == 0
        assert real_rows(micro_batches) == sorted(plan.row_ids)
        # Iteration yields the same, with the epoch.
        for rows in micro_batches:
            assert next(yielded) == [(plan.epoch, row) for row in rows]
    assert next(yielded, None) is None


def test_the_samplers_have_no_attribute_by_which_accelerate_would_divide_their_batches_anew():
    assert not hasattr(sampler_of(), "batch_size")
    assert not hasattr(EvalSampler(dataset_of(3), 4, 1), "batch_size")


# Grouping by length


def padded_tokens(sampler: TrainSampler, plan: StepPlan) -> list[int]:
    """Return the tokens of each micro-batch of a step, padded to its longest row."""
    micro_batches = [[max(row, ~row) for row in rows] for rows in sampler.micro_batches(plan)]
    return [int(LENGTHS[rows].max()) * len(rows) for rows in micro_batches]


def test_rows_of_similar_length_form_a_step_and_every_row_comes_once():
    sampler = grouped()
    assert sampler.group_by_length
    plans = plans_of(sampler)
    for epoch in range(3):
        of_epoch = [plan.row_ids for plan in plans if plan.epoch == epoch]
        assert [len(rows) for rows in of_epoch] == [8] * 125 + [3]
        assert sorted(itertools.chain(*of_epoch)) == list(range(len(LENGTHS)))
        longest = [LENGTHS[rows].max() for rows in of_epoch[:STEPS_PER_GROUP]]
        assert longest not in (sorted(longest), sorted(longest, reverse=True))
    first_epochs = [[plan.row_ids for plan in plans if plan.epoch == epoch] for epoch in (0, 1)]
    assert first_epochs[0] != first_epochs[1]


def test_grouping_by_length_saves_most_of_the_padding():
    shares = {}
    for group_by_length in (True, False):
        sampler = grouped(group_by_length=group_by_length)
        tokens = sum(sum(padded_tokens(sampler, plan)) for plan in plans_of(sampler))
        shares[group_by_length] = tokens / (3 * LENGTHS.sum())
    assert shares[True] < 1.04 < 1.5 < shares[False]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [40, 64, 200, 10_000])
def test_a_limit_of_tokens_divides_a_step_and_does_not_change_it(max_tokens, num_processes):
    undivided = grouped()
    sampler = grouped(num_processes, max_tokens=max_tokens)
    for step, expected in enumerate(plans_of(undivided)):
        plan = sampler.plan(step)
        assert plan == expected
        micro_batches = sampler.micro_batches(plan)
        assert real_rows(micro_batches) == sorted(plan.row_ids)
        assert max(padded_tokens(sampler, plan)) <= max_tokens
        for start in range(0, len(micro_batches), num_processes):
            assert len({len(rows) for rows in micro_batches[start : start + num_processes]}) == 1


@pytest.mark.parametrize("num_processes", [1, 2])
def test_rows_and_tokens_of_a_forward_pass_can_both_be_limited(num_processes):
    """A row that is longer than the limit is computed alone."""
    rows = list(range(100))
    lengths = numpy.random.default_rng(0).integers(1, 60, 100)
    rows.sort(key=lambda row: -lengths[row])
    pieces = split_rows(rows, 8, num_processes, lengths, max_tokens=50)
    assert list(itertools.chain(*pieces)) == rows
    for piece in pieces:
        for micro_batch in shard(piece, num_processes):
            longest = max(lengths[max(row, ~row)] for row in micro_batch)
            assert len(micro_batch) <= 8
            assert len(micro_batch) == 1 or len(micro_batch) * longest <= 50


# Evaluation


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_evaluation_has_every_row_once_the_longest_first(rows, num_processes):
    lengths = [(row * 7) % 5 for row in range(rows)]
    sampler = EvalSampler(dataset_of(rows, lengths), 4, num_processes)
    micro_batches = [[row for _, row in keys] for keys in sampler]
    assert real_rows(micro_batches) == list(range(rows))
    # The ranks take rows in turn: together, their micro-batches are sorted by length.
    in_order = []
    for start in range(0, len(micro_batches), num_processes):
        of_ranks = micro_batches[start : start + num_processes]
        assert len({len(batch) for batch in of_ranks}) == 1
        in_order += [row for batch in zip(*of_ranks, strict=True) for row in batch if row >= 0]
    assert [lengths[row] for row in in_order] == sorted(lengths, reverse=True)


def test_evaluation_without_lengths_keeps_the_order_of_the_rows():
    assert list(EvalSampler(dataset_of(5), 2, 1)) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


def test_evaluation_limits_the_tokens_of_a_forward_pass():
    lengths = numpy.random.default_rng(0).integers(1, 60, 100)
    batches = [[row for _, row in keys] for keys in EvalSampler(dataset_of(100, lengths), 8, 1, 50)]
    assert real_rows(batches) == list(range(100))
    for rows in batches:
        assert len(rows) <= 8
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= 50


# From row ids to batches


class NoisyRows:
    """Draws from each generator when a row is read, as a random augmentation does."""

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return {"label": row, "noise": draw_from_each_generator()}


def collate(examples):
    labels = torch.tensor([example["label"] for example in examples])
    return {"noise": torch.tensor([example["noise"] for example in examples]), "labels": labels}


def read_batches(workers: int = 0, start_step: int = 0) -> list[dict[str, Any]]:
    sampler = TrainSampler(NoisyRows(), config_of())
    sampler.start_step = start_step
    return list(build_dataloader(NoisyRows(), sampler, collate, seed=3, workers=workers))


def assert_same_batches(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in ("noise", "labels", "weights", "row_ids"):
            assert torch.equal(batch[name], other[name])


@pytest.mark.parametrize("workers", [1, 2])
def test_random_changes_of_rows_are_the_same_in_any_worker(workers):
    assert_same_batches(read_batches(workers), read_batches())


@pytest.mark.parametrize("start_step", [1, 8, 17])
def test_random_changes_of_rows_are_the_same_after_resuming(start_step):
    assert_same_batches(read_batches(start_step=start_step), read_batches()[start_step:])


def test_a_row_has_its_own_noise_in_each_epoch_whatever_is_read_with_it():
    def noise(*keys):
        return make_batch(NoisyRows(), list(keys), collate, seed=3)["noise"]

    (expected,) = noise((0, 5))
    assert torch.equal(noise((0, 1), (0, 5))[1], expected)
    assert torch.equal(noise((0, ~5))[0], expected)
    for other in (noise((1, 5))[0], noise((0, 6))[0]):
        assert not (other == expected).any()


class CountedRows(Rows):
    """Reads a batch of rows at once, since nothing is drawn at random."""

    is_deterministic = True

    def __getitems__(self, rows):
        self.calls = [*getattr(self, "calls", []), rows]
        return [self.examples[row] for row in rows]


def test_deterministic_rows_are_read_a_batch_at_a_time():
    dataset = CountedRows([{"label": row, "noise": [0.0]} for row in range(ROWS)])
    batch = make_batch(dataset, [(0, 3), (0, 5), (0, ~5)], collate, seed=3)
    assert dataset.calls == [[3, 5, 5]]
    assert batch["labels"].tolist() == [3, 5, 5]
    assert batch["weights"].tolist() == [1, 1, 0]


class SeededStream(CountingStream):
    def set_seed(self, seed):
        self.seed = seed

    def __getitems__(self, rows):
        return [{"label": row, "noise": [0.0]} for row in rows]


def test_a_stream_gets_the_seed_of_the_run():
    stream = SeededStream()
    make_batch(stream, [(0, 1)], collate, seed=11)
    assert stream.seed == 11
