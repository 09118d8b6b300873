"""FSDP2, by accelerate's own plugin: each rank holds a shard of every weight, gradient and moment.

Checkpoints and model/ hold full tensors under plain names, so a run resumes with or without shards.
The price: a save gathers one tensor after another, and the main process holds all of them in CPU
memory.
"""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, convert_to_fp32
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from ftloop.errors import UserError
from ftloop.extensions import Setup

if TYPE_CHECKING:
    from accelerate import Accelerator

# Environment variables by which `accelerate launch` asks for what ftloop does not support, and why.
UNSUPPORTED_SETTINGS = {
    ("ACCELERATE_USE_DEEPSPEED", "true"): (
        "DeepSpeed is not supported: its engine takes the optimizer step inside the backward pass "
        "of each micro-batch, but a step may have several. To shard, use FSDP2: --use_fsdp "
        "--fsdp_version 2."
    ),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"): (
        "a parallelism config is not supported: it divides more than rows between the ranks. Use "
        "--use_fsdp --fsdp_version 2 alone."
    ),
    ("FSDP_VERSION", "1"): (
        "FSDP 1 is not supported: it flattens parameters, which then have no weight decay and no "
        "checkpoint of their own. Use --fsdp_version 2."
    ),
    ("FSDP_ACTIVATION_CHECKPOINTING", "true"): (
        "fsdp_activation_checkpointing is not supported: it draws another dropout when it computes "
        "activations again. Turn it off, and use ftloop's --gradient-checkpointing."
    ),
    ("FSDP_OFFLOAD_PARAMS", "true"): (
        "fsdp_offload_params is not supported: it was never tested with ftloop. Turn it off."
    ),
}


class FSDP2(Setup):
    """Shard the model if `accelerate launch` asks for it (--use_fsdp --fsdp_version 2)."""

    def __init__(self) -> None:
        self._previous_environment: dict[str, str | None] = {}

    def accelerator_options(self) -> dict[str, Any]:
        """Return the plugin, if the launcher asks for shards.

        Raises UserError for settings of the launcher under which a law of the loop would not hold.
        """
        for (name, value), reason in UNSUPPORTED_SETTINGS.items():
            applies = shards_are_requested() or not name.startswith("FSDP")
            if applies and _environment_value(name) == value:
                raise UserError(f"accelerate launch: {reason}")
        if not shards_are_requested():
            return {}
        # With CPU_RAM_EFFICIENT_LOADING, all ranks but one load empty weights and rely on
        # `accelerator.prepare` to fill them, which an evaluation does not call.
        self._set_environment("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
        if "FSDP_AUTO_WRAP_POLICY" not in os.environ:
            self._set_environment("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
        return {"fsdp_plugin": FSDP2Plugin(fsdp_version=2)}

    def prepare_model(self, model: "torch.nn.Module", accelerator: "Accelerator") -> None:
        """Raise UserError if shards were requested, but are not possible here."""
        if not shards_are_requested():
            return
        if not accelerator.is_fsdp2:
            raise UserError(
                "accelerate launch --use_fsdp needs GPUs, but the device is "
                f"{accelerator.device.type!r} ({accelerator.distributed_type}). Without --use_fsdp "
                "(--multi_gpu, torchrun) each rank has a full copy of the model."
            )
        if accelerator.mixed_precision == "fp16":
            raise UserError(
                "--precision fp16 was never tested with FSDP2. Use --precision bf16 or fp32."
            )

    def wrap_for_checkpointing(self, objects: dict[str, Any]) -> dict[str, Any]:
        """Wrap model and optimizer so that checkpoints hold full tensors, if they are sharded."""
        if not shards_are_requested():
            return objects
        wrapped = {**objects, "model": FullModel(objects["model"])}
        if "optimizer" in objects:
            wrapped["optimizer"] = FullOptimizer(objects["optimizer"].optimizer)
        return wrapped

    def environment(self) -> dict[str, Any]:
        """Return whether the weights are sharded, which changes the order of sums."""
        return {"is_sharded": shards_are_requested()}

    def undo(self) -> None:
        """Restore the environment variables."""
        for name, value in self._previous_environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._previous_environment = {}

    def _set_environment(self, name: str, value: str) -> None:
        self._previous_environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value


class FullModel:
    """A sharded model whose state_dict has full tensors, on the CPU of the main process."""

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """Gather the weights. All ranks must call it."""
        return get_model_state_dict(self.model, options=self.options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load full weights, which every rank has read; each keeps its shard."""
        set_model_state_dict(self.model, state_dict, options=self.options)


class FullOptimizer:
    """A sharded optimizer whose state_dict has full tensors, on the CPU of the main process.

    Parameters have numbers, as in `torch.optim.Optimizer.state_dict`, with and without shards: a
    run resumes from a checkpoint of either kind. torch's `get_optimizer_state_dict` uses names.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Gather the moments. All ranks must call it; on the others, gathered tensors are None."""
        state_dict = self.optimizer.state_dict()
        full_state = {
            number: {name: gather(value) for name, value in values.items()}
            for number, values in state_dict["state"].items()
        }
        return {**state_dict, "state": full_state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load full moments, which every rank has read; each keeps its shard."""
        groups = self.optimizer.param_groups
        weights = [weight for group in groups for weight in group["params"]]
        sharded_state = {
            number: {name: shard_like(value, weights[number]) for name, value in values.items()}
            for number, values in state_dict["state"].items()
        }
        self.optimizer.load_state_dict({**state_dict, "state": sharded_state})


def gather(value: Any) -> Any:
    """Gather a sharded tensor on the CPU of the main process; return other values as they are."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if torch.distributed.get_rank() == 0 else None


def shard_like(value: Any, weight: torch.Tensor) -> Any:
    """Return this rank's shard of a full tensor that has the shape of a sharded weight."""
    if not isinstance(weight, DTensor) or getattr(value, "shape", None) != weight.shape:
        return value
    # src_data_rank=None: nothing is sent, since every rank has read the full tensor.
    value, mesh = value.to(weight.device), weight.device_mesh
    return distribute_tensor(value, mesh, weight.placements, src_data_rank=None)


def shards_are_requested() -> bool:
    """Tell whether `accelerate launch` was called with --use_fsdp."""
    return _environment_value("ACCELERATE_USE_FSDP") == "true"


def _environment_value(name: str) -> str:
    return os.environ.get(name, "").lower()


class FSDP2Plugin(FullyShardedDataParallelPlugin):
    """accelerate's plugin with two other choices, for which it has no options."""

    def set_auto_wrap_policy(self, model: torch.nn.Module) -> None:
        """Choose the modules that are gathered one at a time: by default the model's layers.

        The layers are the longest ModuleList. The `_no_split_modules` of a model may be empty, or
        name the embeddings, which accelerate has sharded already (an error).
        """
        if self.transformer_cls_names_to_wrap is None:
            lists = [
                module for module in model.modules() if isinstance(module, torch.nn.ModuleList)
            ]
            layers = max(lists, key=len, default=[])
            self.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
        if self.mixed_precision_policy is not None:
            # accelerate calls this twice; outputs that are float32 already stay as they are.
            model.register_forward_hook(lambda _model, _inputs, outputs: convert_to_fp32(outputs))
        super().set_auto_wrap_policy(model)

    def set_mixed_precision(
        self, mixed_precision: Any, buffer_autocast: bool = False, override: bool = False
    ) -> None:
        """Sum gradients in float32, as without shards. The hook above makes outputs float32."""
        super().set_mixed_precision(mixed_precision, buffer_autocast, override)
        policy = self.mixed_precision_policy
        self.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)
