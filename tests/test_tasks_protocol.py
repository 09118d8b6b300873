"""What a task may do, and what the loop makes of it: weights, named scalars, losses that use the
model, rows that depend on each other, orders of rows, and schedules per parameter group.

The tasks and models are those of tests/toy.py, in float64: equal means equal to nine digits.
"""

import itertools
import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy import (
    Points,
    Tokens,
    first_step_by_hand,
    read_lines,
    read_values,
    toy_config,
    train_toy,
    train_toys_in_ranks,
)

from ftloop import Config, Losses, Observer, Task, TrainingError, UserError, model_inputs
from ftloop.loader import make_batch
from ftloop.metric_log import (
    MAX_SKIPPED_STEPS,
    MetricLog,
    StepRecord,
    find_cause,
    sum_losses,
    weighted_sum,
)
from ftloop.optim import adamw
from ftloop.sampler import StepPlan, TrainSampler
from ftloop.state import fold_in, set_seed

EXACT = {"rel": 1e-9, "abs": 1e-12}
DIVISIONS = {"one batch": 16, "four": 4, "ragged": 5}  # rows per micro-batch


class RecordRows(Observer):
    """Records the rows of each step, and what was logged."""

    def __init__(self):
        self.rows, self.records = [], []

    def on_log(self, run, steps, speed):
        self.records += steps
        self.rows += [torch.cat(record.row_ids).tolist() for record in steps]


@pytest.fixture
def recorder(monkeypatch):
    recorder = RecordRows()
    monkeypatch.setattr(Config, "observers", lambda config: [recorder])
    return recorder


# Tasks


@dataclass(frozen=True)
class Scalars(Tokens):
    """Logs the losses of the items again: each of them, and their mean in the micro-batch."""

    def compute_losses(self, model, batch):
        losses, weights = self.losses(model(**model_inputs(batch)), batch), batch["weights"]
        mean = (losses * weights).sum() / weights.sum()
        return Losses(losses, {"of_items": losses, "of_micro_batch": mean})


@dataclass(frozen=True)
class RDrop(Points):
    """R-Drop (Liang et al., 2021): two passes with their own dropout should agree."""

    is_mirrored: bool = False  # the second pass sees the numbers in reverse order

    def compute_losses(self, model, batch):
        inputs = model_inputs(batch)
        first = model(**inputs)
        if self.is_mirrored:
            inputs = {"input": inputs["input"].flip(1)}
        second = model(**inputs)
        losses = self.losses(first, batch) + self.losses(second, batch)
        difference = (first.log_softmax(-1) - second.log_softmax(-1)).square().sum(-1)
        return Losses(losses + 0.3 * difference, {"difference": difference})


@dataclass(frozen=True)
class Draws(Points):
    """Logs a number that is drawn where dropout would be."""

    def compute_losses(self, model, batch):
        draw = torch.rand((), dtype=torch.float64)
        return Losses(self.losses(model(**model_inputs(batch)), batch), {"draw": draw})


@dataclass(frozen=True)
class InBatchNegatives(Points):
    """The loss of a row compares it with all rows of the batch."""

    independent_rows = False

    def compute_losses(self, model, batch):
        outputs = model(**model_inputs(batch))
        targets = torch.arange(len(outputs))
        similarity = outputs @ outputs.detach().T
        return Losses(nn.functional.cross_entropy(similarity, targets, reduction="none"))


@dataclass(frozen=True)
class NothingCounts(Points):
    """All rows weigh 0 from the third row of train on."""

    def draw_example(self, draw, row):
        return {**super().draw_example(draw, row), "weights": float(row < 3)}


@dataclass(frozen=True)
class WrongShape(Points):
    """One loss for the whole batch, as the models of transformers return it."""

    def losses(self, outputs, batch):
        return super().losses(outputs, batch).mean()


@dataclass(frozen=True)
class Normalized(Points):
    """A model with running statistics."""

    def build_model(self):
        layers = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        return nn.Sequential(*layers).double()


class WithUnusedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, input):
        return self.used(input)


@dataclass(frozen=True)
class Unused(Points):
    def build_model(self):
        return WithUnusedHead().double()


@dataclass(frozen=True)
class Sorted(Points):
    """Rows know how long they are: row 0 is the shortest."""

    def load_datasets(self):
        datasets = super().load_datasets()
        for rows in datasets.values():
            rows.lengths = list(range(1, len(rows) + 1))
        return datasets


def balanced(dataset, seed, epoch):
    """Return ten rows of each class, drawn with replacement."""
    draw, by_label = numpy.random.RandomState(seed + epoch), {}
    for row, example in enumerate(dataset.examples):
        by_label.setdefault(example["labels"], []).append(row)
    rows = numpy.concatenate([draw.choice(by_label[label], 10) for label in range(3)])
    return draw.permutation(rows)


# Runs of one step in two processes, all in one launch

ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0}
IN_TWO_RANKS = {
    "weighted": {
        "task": "toy:Points",
        "task_options": {"is_weighted": True},
        "micro_batch_size": 2,
    },
    # The last step of the epoch has 11 rows: 4, 4 and 3, of which one rank gets a padding row.
    "tokens": {"task": "toy:Tokens", "micro_batch_size": 2, "max_steps": 3},
    "scalars": {"task": "test_tasks_protocol:Scalars", "micro_batch_size": 2, "max_steps": 3},
    # One row remains for two ranks: a micro-batch of one of them has a padding row alone.
    "lonely": {
        "task": "test_tasks_protocol:Scalars",
        "task_options": {"sizes": [17, 5]},
        "max_steps": 2,
    },
    "twice": {
        "task": "test_tasks_protocol:RDrop",
        "task_options": {"is_mirrored": True},
        "micro_batch_size": 4,
    },
    "draws": {"task": "test_tasks_protocol:Draws", "micro_batch_size": 4, "max_steps": 2},
    "unused": {"task": "test_tasks_protocol:Unused", "find_unused_parameters": True},
    "balanced": {
        "task": "toy:Points",
        "row_order": "test_tasks_protocol:balanced",
        "micro_batch_size": 3,
        "epochs": 2,
        "max_steps": None,
        "max_grad_norm": 0.5,
    },
    "frozen": {
        "task": "toy:Points",
        "optimizer": "test_tasks_protocol:adamw_per_layer",
        "schedule": "test_tasks_protocol:head_first",
        "max_steps": 4,
        "max_grad_norm": 0.1,
    },
    "in_batch_negatives": {"task": "test_tasks_protocol:InBatchNegatives"},
    "batch_norm": {"task": "test_tasks_protocol:Normalized"},
    "nothing_counts": {
        "task": "test_tasks_protocol:NothingCounts",
        "batch_size": 3,
        "max_steps": 9,
    },
    "wrong_shape": {"task": "test_tasks_protocol:WrongShape"},
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """The folder with a run, or the text of its error, for each entry of IN_TWO_RANKS."""
    folder = tmp_path_factory.mktemp("two_ranks")
    runs = [
        {**ONE_STEP, **options, "run_dir": str(folder / name)}
        for name, options in IN_TWO_RANKS.items()
    ]
    train_toys_in_ranks(2, *runs)
    return folder


# Weights


@pytest.mark.parametrize("size", DIVISIONS.values(), ids=DIVISIONS)
@pytest.mark.parametrize("task", [Points(), Points(is_weighted=True), Tokens()], ids=str)
def test_a_step_is_the_weighted_mean_over_all_its_items(tmp_path, task, size):
    """Neither a mean over micro-batches nor over rows: every item counts by its weight."""
    train_toy(task, tmp_path / "run", micro_batch_size=size, **ONE_STEP)
    for name, value in first_step_by_hand(task).items():
        assert read_values(tmp_path / "run", name) == [pytest.approx(value, **EXACT)]


@pytest.mark.parametrize(
    ("run", "task"), [("weighted", Points(is_weighted=True)), ("tokens", Tokens())]
)
def test_two_processes_compute_the_same_weighted_mean(two_ranks, run, task):
    for name, value in first_step_by_hand(task).items():
        assert read_values(two_ranks / run, name)[0] == pytest.approx(value, **EXACT)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_padding_row_of_two_processes_counts_nowhere(two_ranks, tmp_path, name):
    """An epoch in one process has no padding rows, and the same losses and gradients."""
    train_toy(Tokens(), tmp_path / "run", **{**ONE_STEP, "max_steps": 3})
    expected = read_values(tmp_path / "run", name)
    assert len(expected) == 3
    assert read_values(two_ranks / "tokens", name) == pytest.approx(expected, **EXACT)


def test_rows_without_weights_weigh_one_and_padding_rows_nothing():
    task = Points()
    batch = make_batch(task.load_datasets()["train"], [(0, 4), (0, ~4)], task.collate, seed=1)
    assert batch["weights"].tolist() == [1, 0]
    assert batch["row_ids"].tolist() == [4, ~4]
    assert torch.equal(batch["input"][0], batch["input"][1])
    assert batch["weight_sum"] == 1
    tokens = Tokens()
    batch = make_batch(tokens.load_datasets()["train"], [(0, 4), (0, ~4)], tokens.collate, seed=1)
    assert torch.equal(batch["weights"][0], (batch["labels"][0] != -100).float())
    assert batch["weights"][1].tolist() == [0] * len(batch["labels"][1])


def test_the_losses_of_items_that_weigh_nothing_are_never_looked_at():
    losses = torch.tensor([2.0, math.nan, math.inf], requires_grad=True)
    total = weighted_sum(losses, torch.tensor([0.5, 0.0, 0.0]))
    total.backward()
    assert total.item() == 1
    assert losses.grad.tolist() == [0.5, 0, 0]


def test_evaluation_weighs_rows_and_tokens_as_training_does(tmp_path):
    """The learning rate is 0, so that the weights stay those of the first step."""
    for task in (Points(sizes=(16, 16), is_weighted=True), Tokens(sizes=(16, 16))):
        run = tmp_path / type(task).__name__
        train_toy(task, run, learning_rate=0.0, batch_size=16, epochs=1, eval_batch_size=5)
        splits = task.load_datasets()
        on_validation = toy_validation(task, splits)
        assert read_values(run, "loss", "validation") == [pytest.approx(on_validation, **EXACT)]


def toy_validation(task, splits) -> float:
    """Return the weighted loss on validation of the model before the first step."""
    rows = [(0, row) for row in range(len(splits["validation"]))]
    batch = make_batch(splits["validation"], rows, task.collate, seed=0)
    set_seed(fold_in(toy_config(task, "unused").seed, "init"))
    losses = task.losses(task.build_model()(**model_inputs(batch)), batch)
    return ((losses * batch["weights"]).sum() / batch["weights"].double().sum()).item()


def test_a_step_in_which_nothing_counts_is_an_error(tmp_path, two_ranks):
    message = "the weights of all items of optimizer step [12] are 0"
    with pytest.raises(TrainingError, match=message):
        train_toy(NothingCounts(), tmp_path / "run", batch_size=3)
    assert (
        "TrainingError: the weights of all items of optimizer step"
        in (two_ranks / "nothing_counts.error").read_text()
    )


def test_losses_of_another_shape_than_the_weights_are_an_error(tmp_path, two_ranks):
    message = r"the losses have shape \(\), but batch\['weights'\] has shape \(16,\)"
    with pytest.raises(TrainingError, match=message):
        train_toy(WrongShape(), tmp_path / "run")
    error = (two_ranks / "wrong_shape.error").read_text()
    assert "the losses have shape (), but batch['weights'] has shape (8,)" in error


# Named scalars


@pytest.mark.parametrize("name", ["of_items", "of_micro_batch"])
@pytest.mark.parametrize("size", DIVISIONS.values(), ids=DIVISIONS)
def test_named_scalars_are_averaged_by_weight_as_the_loss_is(tmp_path, recorder, size, name):
    train_toy(Scalars(), tmp_path / "run", micro_batch_size=size, epochs=1)
    losses = read_values(tmp_path / "run", "loss")
    assert len(losses) == 3
    assert read_values(tmp_path / "run", name) == pytest.approx(losses, **EXACT)
    assert [record.scalars[name] for record in recorder.records] == pytest.approx(losses, **EXACT)


@pytest.mark.parametrize("name", ["of_items", "of_micro_batch"])
@pytest.mark.parametrize("run", ["scalars", "lonely"])
def test_named_scalars_are_averaged_over_ranks(two_ranks, run, name):
    losses = read_values(two_ranks / run, "loss")
    assert len(losses) == IN_TWO_RANKS[run]["max_steps"]
    assert read_values(two_ranks / run, name) == pytest.approx(losses, **EXACT)


# Losses that use the model


def test_a_loss_that_uses_the_model_twice_has_its_gradient_divided_alike(tmp_path, two_ranks):
    task = RDrop(is_mirrored=True)
    train_toy(task, tmp_path / "run", micro_batch_size=5, **ONE_STEP)
    for name, value in first_step_by_hand(task).items():
        assert read_values(tmp_path / "run", name) == [pytest.approx(value, **EXACT)]
        assert read_values(two_ranks / "twice", name) == [pytest.approx(value, **EXACT)]
    (difference,) = read_values(tmp_path / "run", "difference")
    assert difference > 0.1
    assert read_values(two_ranks / "twice", "difference") == [pytest.approx(difference, **EXACT)]


def test_both_passes_of_r_drop_have_a_dropout_of_their_own(tmp_path):
    train_toy(RDrop(dropout=0.5), tmp_path / "with", max_steps=1)
    assert read_values(tmp_path / "with", "difference")[0] > 0.01
    train_toy(RDrop(), tmp_path / "without", max_steps=1)
    assert read_values(tmp_path / "without", "difference") == [0]


def test_dropout_is_a_function_of_seed_step_micro_batch_and_rank(tmp_path, two_ranks):
    """Each step has 4 micro-batches of 4 rows: four on one rank, or two on each of two ranks."""
    train_toy(Draws(), tmp_path / "run", micro_batch_size=4, max_steps=2)
    for run, num_processes in {tmp_path / "run": 1, two_ranks / "draws": 2}.items():
        expected = []
        for step in range(2):
            draws = []
            for index, rank in itertools.product(range(4 // num_processes), range(num_processes)):
                set_seed(fold_in(7, "dropout", step, index, rank))
                draws.append(torch.rand((), dtype=torch.float64).item())
            assert len(set(draws)) == 4
            expected.append(sum(draws) / 4)
        assert read_values(run, "draw") == pytest.approx(expected, **EXACT)


def test_unused_parameters_are_found_if_wanted(two_ranks, tmp_path):
    train_toy(Unused(), tmp_path / "run", **ONE_STEP)
    expected = read_values(tmp_path / "run", "grad_norm")
    assert read_values(two_ranks / "unused", "grad_norm") == pytest.approx(expected, **EXACT)


# Batches that must not be divided

DIVIDED = "a batch must not be divided, because "


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (InBatchNegatives(), "the loss compares its rows"),
        (Normalized(), "1 keeps running statistics of it (BatchNorm)"),
    ],
)
def test_a_batch_that_must_not_be_divided_is_refused(tmp_path, two_ranks, task, reason):
    with pytest.raises(UserError) as refused:
        train_toy(task, tmp_path / "run", micro_batch_size=8)
    assert refused.value.field == "micro_batch_size"
    assert refused.value.message.startswith(DIVIDED + reason)
    assert not list((tmp_path / "run").glob("*.jsonl"))
    run = "in_batch_negatives" if isinstance(task, InBatchNegatives) else "batch_norm"
    error = (two_ranks / f"{run}.error").read_text()
    assert error.startswith(f"UserError: micro_batch_size: {DIVIDED}{reason}")


@pytest.mark.parametrize("task", [InBatchNegatives(), Normalized()])
def test_an_undivided_batch_trains(tmp_path, task):
    train_toy(task, tmp_path / "run", learning_rate=0.01)
    losses = read_values(tmp_path / "run", "loss")
    assert losses[-1] < losses[0]


@dataclass(frozen=True)
class NegativesOfLengths(InBatchNegatives, Sorted):
    """Rows of an in-batch loss that have lengths."""


def test_the_limit_of_tokens_on_a_cpu_divides_no_batch_of_dependent_rows(tmp_path):
    task = NegativesOfLengths()
    dataset = task.load_datasets()["train"]
    sampler = TrainSampler(dataset, toy_config(task, "run"), device="cpu")
    assert sampler.max_tokens is None
    assert TrainSampler(dataset, toy_config(Sorted(), "run"), device="cpu").max_tokens == 4096
    with pytest.raises(UserError, match=DIVIDED):
        train_toy(task, tmp_path / "run", max_tokens=100)


# Draws of collators


def draw_with_torch():
    return torch.rand(()).item()


def draw_with_numpy():
    return numpy.random.rand()


@dataclass(frozen=True)
class Jitter(Points):
    """Draws while it makes a batch."""

    draw: str = "torch"

    def collate(self, examples):
        draws = {"torch": draw_with_torch, "numpy": draw_with_numpy, "random": random.random}
        batch = super().collate(examples)
        return {**batch, "input": batch["input"] + draws[self.draw]()}


@pytest.mark.parametrize("library", ["torch", "numpy", "random"])
def test_a_collator_that_draws_at_random_is_refused(tmp_path, library):
    with pytest.raises(UserError, match=r"task\.collate: draws at random"):
        train_toy(Jitter(draw=library), tmp_path / "run")


def test_random_changes_of_rows_are_seeded_by_epoch_and_row(tmp_path):
    """The division, and the workers that read the rows, do not change them."""
    logs = []
    for run, options in {"one": {}, "divided": {"micro_batch_size": 5, "workers": 2}}.items():
        train_toy(Points(noise=0.5), tmp_path / run, epochs=2, **options)
        logs.append(read_values(tmp_path / run, "loss"))
    assert logs[0] == pytest.approx(logs[1], **EXACT)
    assert logs[0][:3] != logs[0][3:]


# The order of rows


def test_a_function_orders_the_rows_of_each_epoch(tmp_path, recorder, two_ranks):
    task = Points()
    train_toy(task, tmp_path / "run", row_order=balanced, epochs=2, micro_batch_size=5)
    dataset, seed = task.load_datasets()["train"], toy_config(task, "unused").seed
    expected = []
    for epoch in range(2):
        rows = balanced(dataset, seed, epoch).tolist()
        expected += [rows[:16], rows[16:]]
    assert recorder.rows == expected
    assert len({*expected[0], *expected[1]}) < 30  # some rows come more than once
    for name in ("loss", "grad_norm"):
        one, two = read_values(tmp_path / "run", name), read_values(two_ranks / "balanced", name)
        assert len(one) == 4
        assert two == pytest.approx(one, **EXACT)


def test_a_function_that_orders_rows_and_lengths_can_be_combined(tmp_path, recorder):
    """The rows of some steps of the function's order are grouped by length."""
    train_toy(Sorted(), tmp_path / "run", row_order=balanced, group_by_length=True, epochs=1)
    served = [row for rows in recorder.rows for row in rows]
    order = balanced(Sorted().load_datasets()["train"], 7, 0).tolist()
    assert sorted(served) == sorted(order)
    assert recorder.rows[0] == sorted(recorder.rows[0], reverse=True)


def shrinking(dataset, seed, epoch):
    return range(20 - epoch)


def out_of_range(dataset, seed, epoch):
    return [0, 1, len(dataset)]


def negative(dataset, seed, epoch):
    return [0, 1, -1]  # which would stand for a padding row


@pytest.mark.parametrize(
    ("row_order", "message"),
    [
        (shrinking, "row_order: returned 20 rows for epoch 0, but 19 for 1"),
        (out_of_range, "row_order: returned rows below 0 or above 42 for epoch 0"),
        (negative, "row_order: returned rows below 0 or above 42 for epoch 0"),
    ],
)
def test_an_impossible_order_of_rows_is_refused(tmp_path, row_order, message):
    with pytest.raises(UserError, match=message):
        train_toy(Points(), tmp_path / "run", row_order=row_order)


def test_a_limit_of_tokens_that_an_order_would_ignore_is_refused(tmp_path):
    """Rows in the order of a function are not grouped by length unless the options say so."""
    options = {"row_order": balanced, "max_tokens": 100}
    with pytest.raises(UserError, match="max_tokens: needs rows that are grouped by length"):
        train_toy(Sorted(), tmp_path / "run", **options)
    train_toy(Sorted(), tmp_path / "grouped", group_by_length=True, epochs=1, **options)


# Schedules with a factor per parameter group


def adamw_per_layer(model, config):
    """AdamW with the first and the last layer in groups of their own."""
    layers = [model[0].parameters(), model[3].parameters()]
    groups = [{"params": list(parameters), "lr": config.learning_rate} for parameters in layers]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.1)


def head_first(step, total_steps, warmup_steps):
    """Train the last layer alone for two steps, then both."""
    return [0.0 if step < 2 else 0.5, 1.0]


def test_frozen_groups_take_no_part_in_clipping_and_in_the_step(tmp_path, monkeypatch):
    seen = []
    original = torch.optim.AdamW.step

    def step(optimizer, *arguments, **options):
        first, last = (group["params"] for group in optimizer.param_groups)
        seen.append(([weight.clone() for weight in first], len(optimizer.state)))
        assert [weight.grad is None for weight in first] == [len(seen) <= 2] * 2
        norm = torch.cat([p.grad.flatten() for p in (*first, *last) if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(0.01, rel=1e-5)  # clipped to it, whichever groups train
        return original(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    options = {"optimizer": adamw_per_layer, "schedule": head_first, "max_steps": 4}
    train_toy(Points(), tmp_path / "run", max_grad_norm=0.01, **options)
    weights, sizes = zip(*seen, strict=True)
    assert sizes == (0, 2, 2, 4)  # Adam has no moments of the frozen group
    for before, after in zip(weights[0], weights[2], strict=True):
        assert torch.equal(before, after)  # not even decayed
    assert not torch.equal(weights[2][0], weights[3][0])
    assert read_values(tmp_path / "run", "learning_rate") == [0, 0, 0.025, 0.025]


def test_two_processes_unfreeze_alike(tmp_path, two_ranks):
    options = {"optimizer": adamw_per_layer, "schedule": head_first, "max_steps": 4}
    train_toy(Points(), tmp_path / "run", max_grad_norm=0.1, **options)
    for name in ("loss", "grad_norm"):
        expected = read_values(tmp_path / "run", name)
        assert read_values(two_ranks / "frozen", name) == pytest.approx(expected, **EXACT)


def one_factor_too_many(step, total_steps, warmup_steps):
    return [1.0, 0.5, 0.1]


def test_factors_that_do_not_fit_the_groups_are_refused(tmp_path):
    message = "schedule: returned 3 factors, but the optimizer has 2 parameter groups"
    with pytest.raises(UserError, match=message):
        train_toy(Points(), tmp_path / "run", optimizer=adamw, schedule=one_factor_too_many)


# What a task may leave out


@dataclass(frozen=True)
class TrainOnly(Points):
    sizes: tuple[int, ...] = (43,)


def test_neither_validation_nor_metrics_are_needed(tmp_path):
    scores = train_toy(TrainOnly(), tmp_path / "run", epochs=1)
    assert scores == {}
    assert {line["split"] for line in read_lines(tmp_path / "run")} == {"train"}
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert set(weights) == set(TrainOnly().build_model().state_dict())


def test_the_default_losses_are_those_of_the_outputs():
    task, model = Points(), Points().build_model()
    batch = make_batch(task.load_datasets()["train"], [(0, 1), (0, 2)], task.collate, seed=1)
    output = task.compute_losses(model, batch)
    assert torch.equal(output.losses, task.losses(model(batch["input"]), batch))
    assert output.scalars == {}
    assert output.detach().losses.grad_fn is None
    assert set(model_inputs({**batch, "attention_mask": 1})) == {"input", "attention_mask"}


def test_a_score_that_no_metric_computes_cannot_decide(tmp_path):
    class Named(Points):
        def score_names(self):
            return ("accuracy",)

    with pytest.raises(UserError, match=r"best_metric: 'acuracy' is not computed \(did you mean"):
        train_toy(Named(), tmp_path / "named", best_metric="acuracy")
    with pytest.raises(UserError, match="best_metric: 'accuracy' was not computed"):
        train_toy(Points(), tmp_path / "unnamed", best_metric="accuracy")


# Losses that are not finite


@dataclass(frozen=True)
class NaNInRow(Points):
    """The loss of row 5 is NaN."""

    def compute_losses(self, model, batch):
        losses = self.losses(model(**model_inputs(batch)), batch)
        return Losses(torch.where(batch["row_ids"] == 5, math.nan, losses))


def test_a_loss_that_is_not_finite_names_its_row_and_is_never_saved(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is nan .* rows 5 of train") as stopped:
        train_toy(NaNInRow(), tmp_path / "run", micro_batch_size=4, log_every=100, save_every=1)
    step = int(str(stopped.value).split(":")[0].removeprefix("step "))
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert all(int(name.removeprefix("step-")) < step for name in saved)
    logged = read_values(tmp_path / "run", "loss")
    assert len(logged) == step - 1
    assert all(map(math.isfinite, logged))


def test_the_cause_is_a_row_that_counts():
    """A row, or a token, of weight 0 may have any loss."""
    record = SimpleNamespace()
    record.row_ids = [torch.tensor([3, 4, ~4])]
    record.weights = [torch.tensor([0.0, 1.0, 0.0])]
    record.outputs = [Losses(torch.tensor([math.nan, math.inf, math.inf]))]
    record.total_weight = 1.0
    assert find_cause(record) == "rows 4 of train (counted from 0)"
    record.outputs = [Losses(torch.tensor([math.nan, 1.0, 1.0]))]
    assert "not the loss of a row" in find_cause(record)


def test_steps_that_the_scaler_of_fp16_skips_are_logged_and_limited(caplog):
    """The scale is too large at first: some steps in a row may overflow, but not all."""
    log = MetricLog(SimpleNamespace(scaler="a scaler"))
    fields = {"epoch": 0.1, "plan": StepPlan(0, 0, [1]), "learning_rate": 0.1, "loss": 0.5}
    fields |= {"row_ids": [], "weights": [], "outputs": [], "total_weight": 1.0}
    fields |= {"grad_norm_tensor": None}
    skipped = StepRecord(step=3, grad_norm=math.inf, **fields)
    for _ in range(MAX_SKIPPED_STEPS):
        log._check_finite(skipped)
    assert "step 3 was skipped: its gradient overflows in fp16 (20 in a row)" in caplog.text
    log._check_finite(StepRecord(step=4, grad_norm=0.5, **fields))
    for _ in range(MAX_SKIPPED_STEPS):
        log._check_finite(skipped)
    with pytest.raises(TrainingError, match=r"step 3: .* gradient norm is inf"):
        log._check_finite(skipped)
    with pytest.raises(TrainingError, match=r"step 3: .* gradient norm is inf"):
        MetricLog(SimpleNamespace(scaler=None))._check_finite(skipped)


def test_scalars_of_other_names_than_before_are_an_error():
    record = SimpleNamespace()
    record.weights = [torch.ones(2)]
    record.outputs = [Losses(torch.ones(2), {"agreement": torch.tensor(1.0)})]
    assert sum_losses(record, ["agreement"]).tolist() == [2, 2]
    with pytest.raises(TrainingError, match=r"scalars .*agreement.*disagreement"):
        sum_losses(record, ["disagreement"])


def test_nothing_of_the_core_logs_to_another_logger(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):  # the second time, it says that the run is finished
            train_toy(Points(), tmp_path / "run", epochs=1)
    ours = {record.name for record in caplog.records if "ftloop" in record.pathname}
    assert ours == {"ftloop"}


def test_a_task_is_a_class_with_defaults():
    task = Task()
    assert task.validate() is None
    assert task.build_metrics() == []
    assert task.score_names() is None
    assert task.independent_rows
