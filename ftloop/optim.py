"""Parameter groups, optimizers and schedules: plain functions, to be copied, changed and passed by a config.

An optimizer is `f(model, config) -> torch.optim.Optimizer`, and may read a fork's own fields of `config`; a schedule is
`f(step, total_steps, warmup_steps) -> factor` of the learning rate.
"""

import math
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

# transformers.get_scheduler has two more. They follow the scores, not the step: with them, the learning rate would no
# longer be a function of the position.
FOLLOW_SCORES = ("reduce_lr_on_plateau", "greedy")
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)


def parameter_groups(model: "torch.nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases and the weights of norms (one dimension) do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(model: "torch.nn.Module", config: Any, **options: Any) -> "torch.optim.Optimizer":
    """AdamW (Loshchilov and Hutter, 2019), fused where torch has it: 1.03 to 1.7 times faster steps on a CPU."""
    import torch

    fused = all(parameter.device.type in ("cpu", "cuda", "xpu", "mps") for parameter in model.parameters())
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.learning_rate, fused=fused, **options
    )


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Steps of warmup from an option that is a number of steps or, below 1, a share of all (rounded up)."""
    return math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)


def build_schedule(optimizer: "torch.optim.Optimizer", config: Any, total_steps: int) -> Any:
    """The learning-rate scheduler for `config.schedule`: a name of `transformers.get_scheduler`, or a function."""
    import torch
    from transformers import get_scheduler

    warmup = warmup_steps(config.warmup, total_steps)
    if callable(config.schedule):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.schedule(step, total_steps, warmup))
    try:
        return get_scheduler(config.schedule, optimizer, warmup, total_steps, dict(config.schedule_options))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--schedule {config.schedule} with --schedule-options {config.schedule_options}: {error}"
        ) from error


def check_schedule(name: Any, options: dict[str, Any] | None = None) -> None:
    """Raise UserError for a name that is no schedule, and for options that nothing would read."""
    if options and (callable(name) or name in ("linear", "constant", "constant_with_warmup")):
        raise UserError(f"--schedule-options {options}: {'a function' if callable(name) else name} takes none")
    if callable(name) or name in SCHEDULES:
        return
    if name in FOLLOW_SCORES:
        raise UserError(
            f"--schedule {name} follows the scores, and here a schedule is a function of the step; "
            f"choose one of {', '.join(SCHEDULES)}, or a function MODULE:NAME"
        )
    raise UserError(
        f"--schedule {name!r} is unknown{nearest(str(name), SCHEDULES)}; "
        f"choose one of {', '.join(SCHEDULES)}, or a function MODULE:NAME"
    )
