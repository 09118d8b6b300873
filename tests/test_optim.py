"""Parameter groups, AdamW and schedules, each compared with the one of transformers or torch."""

import functools
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer_utils import SchedulerType

from ftloop import UserError, optim

ARCHITECTURES = ("bert", "distilbert", "roberta", "electra", "modernbert")
SCHEDULES = optim.SCHEDULES.split()
OPTIONS = {  # those that a schedule needs
    "warmup_stable_decay": {"num_decay_steps": 10},
    "cosine_with_min_lr": {"min_lr": 1e-5},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
}


def settings(**values):
    return SimpleNamespace(
        **{
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup": 0.0,
            "schedule": "linear",
            "schedule_options": {},
            **values,
        }
    )


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2, 2))


def learning_rates(scheduler, optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*rates, optimizer.param_groups[0]["lr"]]


@pytest.fixture
def model(tiny):
    return AutoModelForSequenceClassification.from_pretrained(tiny("bert"), num_labels=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_parameters_decay_as_in_the_trainer(tiny, tmp_path, architecture):
    model = AutoModelForSequenceClassification.from_pretrained(tiny(architecture), num_labels=3)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, other = optim.parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.1, 0.0)
    decaying_names = {names[id(parameter)] for parameter in decaying["params"]}
    assert decaying_names == set(trainer.get_decay_parameter_names(model))
    assert len(decaying["params"]) + len(other["params"]) == len(names)


def test_frozen_parameters_are_left_out(model):
    for parameter in model.bert.parameters():
        parameter.requires_grad = False
    groups = optim.parameter_groups(model, 0.1)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.classifier.parameters()}
    optimizer = optim.adamw(model, settings())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_every_schedule_of_transformers_is_known_unless_it_follows_the_scores():
    follow_scores = {"reduce_lr_on_plateau", "greedy"}
    assert {*SCHEDULES, *follow_scores} == {kind.value for kind in SchedulerType}
    for name in SCHEDULES:
        optim.validate_schedule(name)
    for name in follow_scores:
        with pytest.raises(UserError, match=f"schedule: '{name}' is not supported"):
            optim.validate_schedule(name)


@pytest.mark.parametrize("warmup", [0.0, 0.13, 7.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_named_schedule_gives_the_learning_rates_of_transformers(name, warmup):
    steps, options = 37, OPTIONS.get(name, {})
    ours, theirs = torch.optim.SGD([parameter()], lr=1e-3), torch.optim.SGD([parameter()], lr=1e-3)
    config = settings(schedule=name, warmup=warmup, schedule_options=options)
    scheduler = optim.build_scheduler(ours, config, steps)
    # 0.13 of 37 steps are 4.81, rounded up to 5.
    expected = get_scheduler(name, theirs, {0.0: 0, 0.13: 5, 7.0: 7}[warmup], steps, options)
    assert learning_rates(scheduler, ours, steps) == learning_rates(expected, theirs, steps)


@pytest.mark.parametrize("total_steps", [1, 7, 10, 30, 99, 345])
@pytest.mark.parametrize("warmup", [0, 0.03, 0.06, 0.1, 0.5, 0.999, 1, 5, 100.0])
def test_warmup_is_rounded_as_in_the_trainer(tmp_path, warmup, total_steps):
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup, use_cpu=True)
    assert optim.count_warmup_steps(warmup, total_steps) == arguments.get_warmup_steps(total_steps)


def test_options_of_a_schedule_reach_it_and_wrong_ones_are_named():
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    config = settings(schedule="cosine", schedule_options={"num_cycles": 1.5})
    rates = learning_rates(optim.build_scheduler(optimizer, config, 30), optimizer, 30)
    assert rates[10] == pytest.approx(0.0, abs=1e-12)
    assert rates[20] == pytest.approx(1.0)
    for schedule, options in {"linear": {"num_cycles": 2}, "warmup_stable_decay": {}}.items():
        config = settings(schedule=schedule, schedule_options=options)
        message = f"schedule_options: .* do not fit the schedule {schedule}"
        with pytest.raises(UserError, match=message):
            optim.build_scheduler(optimizer, config, 30)


def test_a_function_is_a_schedule(tmp_path):
    def schedule(step, total_steps, warmup_steps):
        return (step + total_steps) / (10 * warmup_steps)

    optim.validate_schedule(schedule)
    optimizer = torch.optim.SGD([parameter()], lr=2.0)
    scheduler = optim.build_scheduler(optimizer, settings(schedule=schedule, warmup=0.25), 8)
    assert learning_rates(scheduler, optimizer, 3) == [2.0 * (step + 8) / 20 for step in range(4)]
    # A checkpoint holds plain values: the function is not part of the state.
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt")
    state_dict = torch.load(tmp_path / "scheduler.pt", weights_only=True)
    assert state_dict["last_epoch"] == 3


@pytest.mark.parametrize("name", ["cosin", "none", "", 3])
def test_an_unknown_schedule_is_refused(name):
    message = r"schedule: .* is not supported.*Choose one of linear, cosine"
    with pytest.raises(UserError, match=message):
        optim.validate_schedule(name)


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.8, 0.9), "eps": 1e-6}], ids=["default", "changed"]
)
def test_adamw_steps_as_the_unfused_one_of_torch(tiny, options):
    load = functools.partial(
        AutoModelForSequenceClassification.from_pretrained, tiny("bert"), num_labels=3
    )
    torch.manual_seed(0)
    ours, theirs = load(), load()
    theirs.load_state_dict(ours.state_dict())
    optimizer = optim.adamw(ours, settings(), **options)
    assert optimizer.defaults["fused"]
    groups = optim.parameter_groups(theirs, 0.01)
    oracle = torch.optim.AdamW(groups, lr=1e-3, fused=False, foreach=False, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        optimizer.step()
        oracle.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-7), name


def halved(step, total_steps, warmup_steps):
    return 0.5


@pytest.mark.parametrize("schedule", ["constant", "linear", halved])
def test_options_that_a_schedule_would_not_read_are_refused(schedule):
    with pytest.raises(UserError, match=r"schedule_options: .* has no effect on"):
        optim.validate_schedule(schedule, {"num_cycles": 2})


# A factor per parameter group


def two_layers() -> tuple[torch.nn.Parameter, torch.nn.Parameter, torch.optim.Optimizer]:
    first, second = parameter(), parameter()
    groups = [{"params": [first], "lr": 2.0}, {"params": [second], "lr": 3.0}]
    return first, second, torch.optim.SGD(groups)


def unfreeze_second_group(step, total_steps, warmup_steps):
    return 0.5, float(step >= 2)


def test_a_function_may_return_a_factor_per_group():
    _, _, optimizer = two_layers()
    config = settings(schedule=unfreeze_second_group)
    scheduler = optim.build_scheduler(optimizer, config, 4)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates == [[1, 0], [1, 0], [1, 3], [1, 3]]


@pytest.mark.parametrize("factors", [[1.0], [1.0, 0.5, 0.1], ()])
def test_another_number_of_factors_than_groups_is_refused(factors):
    _, _, optimizer = two_layers()
    message = f"returned {len(factors)} factors, but the optimizer has 2 parameter groups"
    with pytest.raises(UserError, match=message):
        optim.build_scheduler(optimizer, settings(schedule=lambda *_: factors), 4)


def test_gradients_of_frozen_groups_are_deleted_while_others_train():
    first, second, optimizer = two_layers()
    for rates, has_gradient in {(1, 0): (True, False), (0, 0): (True, True)}.items():
        first.grad, second.grad = torch.ones(2, 2), torch.ones(2, 2)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optim.drop_frozen_gradients(optimizer)
        assert (first.grad is not None, second.grad is not None) == has_gradient
