"""Parameter groups, optimizer and schedules, each beside the one of transformers or torch."""

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
OPTIONS = {  # what a schedule cannot do without
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


def learning_rates(schedule, optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*rates, optimizer.param_groups[0]["lr"]]


@pytest.fixture
def model(tiny):
    return AutoModelForSequenceClassification.from_pretrained(tiny("bert"), num_labels=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_parameters_decay_as_in_the_trainer(tiny, tmp_path, architecture):
    model = AutoModelForSequenceClassification.from_pretrained(tiny(architecture), num_labels=3)
    trainer = Trainer(model, TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, other = optim.parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.1, 0.0)
    assert {names[id(parameter)] for parameter in decaying["params"]} == set(trainer.get_decay_parameter_names(model))
    assert len(decaying["params"]) + len(other["params"]) == len(names)


def test_frozen_parameters_are_left_out(model):
    for parameter in model.bert.parameters():
        parameter.requires_grad = False
    grouped = [parameter for group in optim.parameter_groups(model, 0.1) for parameter in group["params"]]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.classifier.parameters()}
    optimizer = optim.adamw(model, settings())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_every_schedule_of_transformers_is_known_or_refused_with_its_reason():
    assert {*optim.SCHEDULES, *optim.FOLLOW_SCORES} == {kind.value for kind in SchedulerType}
    for name in optim.SCHEDULES:
        optim.check_schedule(name)
    for name in optim.FOLLOW_SCORES:
        with pytest.raises(UserError, match=f"--schedule {name} follows the scores"):
            optim.check_schedule(name)


@pytest.mark.parametrize("warmup", [0.0, 0.13, 7.0])
@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_named_schedule_gives_the_learning_rates_of_transformers(name, warmup):
    steps, options = 37, OPTIONS.get(name, {})
    ours, theirs = torch.optim.SGD([parameter()], lr=1e-3), torch.optim.SGD([parameter()], lr=1e-3)
    config = settings(schedule=name, warmup=warmup, schedule_options=options)
    schedule = optim.build_schedule(ours, config, steps)
    # 0.13 of 37 steps: the fifth has begun.
    expected = get_scheduler(name, theirs, {0.0: 0, 0.13: 5, 7.0: 7}[warmup], steps, options)
    assert learning_rates(schedule, ours, steps) == learning_rates(expected, theirs, steps)


@pytest.mark.parametrize("total_steps", [1, 7, 10, 30, 99, 345])
@pytest.mark.parametrize("warmup", [0, 0.03, 0.06, 0.1, 0.5, 0.999, 1, 5, 100.0])
def test_warmup_is_rounded_as_in_the_trainer(tmp_path, warmup, total_steps):
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup, use_cpu=True)
    assert optim.warmup_steps(warmup, total_steps) == arguments.get_warmup_steps(total_steps)


def test_options_of_a_schedule_reach_it_and_wrong_ones_are_named():
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    config = settings(schedule="cosine", schedule_options={"num_cycles": 1.5})
    rates = learning_rates(optim.build_schedule(optimizer, config, 30), optimizer, 30)
    assert rates[10] == pytest.approx(0.0, abs=1e-12)
    assert rates[20] == pytest.approx(1.0)
    for schedule, options in {"linear": {"num_cycles": 2}, "warmup_stable_decay": {}}.items():
        with pytest.raises(UserError, match=f"--schedule {schedule} with --schedule-options"):
            optim.build_schedule(optimizer, settings(schedule=schedule, schedule_options=options), 30)


def test_a_function_is_a_schedule():
    def schedule(step, total_steps, warmup_steps):
        return (step + total_steps) / (10 * warmup_steps)

    optim.check_schedule(schedule)
    optimizer = torch.optim.SGD([parameter()], lr=2.0)
    built = optim.build_schedule(optimizer, settings(schedule=schedule, warmup=0.25), 8)
    assert learning_rates(built, optimizer, 3) == [2.0 * (step + 8) / 20 for step in range(4)]
    # The function itself is no state: what a checkpoint holds must be plain values.
    assert built.state_dict()["lr_lambdas"] == [None]


@pytest.mark.parametrize("name", ["cosin", "none", "", 3])
def test_an_unknown_schedule_is_refused(name):
    with pytest.raises(UserError, match=r"--schedule .* is unknown.*choose one of linear, cosine"):
        optim.check_schedule(name)


@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.9), "eps": 1e-6}], ids=["default", "changed"])
def test_adamw_steps_as_the_unfused_one_of_torch(tiny, options):
    load = functools.partial(AutoModelForSequenceClassification.from_pretrained, tiny("bert"), num_labels=3)
    torch.manual_seed(0)
    ours, theirs = load(), load()
    theirs.load_state_dict(ours.state_dict())
    optimizer = optim.adamw(ours, settings(), **options)
    assert optimizer.defaults["fused"]
    oracle = torch.optim.AdamW(optim.parameter_groups(theirs, 0.01), lr=1e-3, fused=False, foreach=False, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        optimizer.step()
        oracle.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


def halved(step, total_steps, warmup_steps):
    return 0.5


@pytest.mark.parametrize("schedule", ["constant", "linear", halved])
def test_options_that_a_schedule_would_not_read_are_refused(schedule):
    with pytest.raises(UserError, match=r"--schedule-options .* takes none"):
        optim.check_schedule(schedule, {"num_cycles": 2})
