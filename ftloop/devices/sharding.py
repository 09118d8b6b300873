"""FSDP2, by accelerate's own plugin: each process holds a part of every weight, gradient and moment of the optimizer.

What differs from whole copies is here, and the loop does not know it. Checkpoints, digests and model/ hold whole
tensors by plain names, those that whole copies have: either kind of run goes on with a checkpoint of the other. The
price is that a save gathers one tensor after another, and that the main process holds them all in its CPU memory.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, convert_to_fp32

from ftloop.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# What `accelerate launch` tells its processes by the environment, and why no training runs under it.
REFUSED = {
    ("ACCELERATE_USE_DEEPSPEED", "true"): (
        "DeepSpeed's engine takes its optimizer step inside backward, after each micro-batch; here a step has several. "
        "To shard, take FSDP2: --use_fsdp --fsdp_version 2"
    ),
    ("FSDP_VERSION", "1"): (
        "FSDP 1 packs parameters into flat ones, which have no decay and no checkpoint of their own: take "
        "--fsdp_version 2"
    ),
    ("FSDP_ACTIVATION_CHECKPOINTING", "true"): (
        "fsdp_activation_checkpointing draws another dropout when it computes anew: turn it off, and take ftloop's "
        "--gradient-checkpointing"
    ),
    ("FSDP_OFFLOAD_PARAMS", "true"): "fsdp_offload_params was never tried with ftloop: turn it off",
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"): (
        "a parallelism config divides more than rows between the processes: take --use_fsdp --fsdp_version 2 alone"
    ),
}


class Shards(FullyShardedDataParallelPlugin):
    """accelerate's plugin, but for two choices of its own that it has no option for."""

    def set_auto_wrap_policy(self, model: Any) -> None:
        """Which modules are gathered one at a time: left out, the layers, which are the longest list of modules. The
        model's `_no_split_modules` may be none, or name the embeddings, which accelerate shards already (an error)."""
        if self.transformer_cls_names_to_wrap is None:
            lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
            self.transformer_cls_names_to_wrap = sorted(
                {type(layer).__name__ for layer in max(lists, key=len, default=[])}
            )
        if self.mixed_precision_policy is not None:  # accelerate asks twice; what is float32 already stays as it is
            model.register_forward_hook(lambda _model, _inputs, outputs: convert_to_fp32(outputs))
        super().set_auto_wrap_policy(model)

    def set_mixed_precision(self, mixed_precision: Any, buffer_autocast: bool = False, override: bool = False) -> None:
        """As with whole copies, gradients are added up in float32, and (above) a model returns float32."""
        super().set_mixed_precision(mixed_precision, buffer_autocast, override)
        self.mixed_precision_policy = replace(
            self.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def asked_for() -> Shards | None:
    """The plugin, if the launcher asks for shards. Raises UserError for a kind under which a law would not hold."""
    told = {name: os.environ.get(name, "").lower() for name, _ in REFUSED}
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    for (name, value), reason in REFUSED.items():
        if told[name] == value and (sharded or not name.startswith("FSDP")):
            raise UserError(f"accelerate launch: {reason}")
    if not sharded:
        return None
    # Left on, as the launcher has it, all but one process would begin with empty weights and rely on `prepare`, which
    # an evaluation does not call.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    return Shards(fsdp_version=2)


def check(accelerator: "Accelerator") -> None:
    """Raise UserError where accelerate runs whole copies in silence, and for what was never tried."""
    if not accelerator.is_fsdp2:
        raise UserError(
            f"accelerate launch --use_fsdp: shards need GPUs, and accelerate sees {accelerator.device.type} "
            f"({accelerator.distributed_type}). Without it (--multi_gpu, torchrun), each process has a whole copy"
        )
    if accelerator.mixed_precision == "fp16":
        raise UserError("--precision fp16 was never tried with FSDP2: take bf16 or fp32")


def whole(tensor: Any) -> Any:
    """A sharded tensor put together, on its device and on all processes, which must all ask; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(values: Any, accelerator: "Accelerator") -> Any:
    """Nested dictionaries and lists with each sharded tensor whole, on the CPU of the main process; None on the others.

    All processes must call it. Without shards these are the `values` themselves: nothing is copied.
    """
    if not accelerator.is_fsdp2:
        return values
    if isinstance(values, Mapping):
        return {name: gathered(value, accelerator) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [gathered(value, accelerator) for value in values]
    tensor = whole(values)
    return tensor if tensor is values else tensor.cpu() if accelerator.is_main_process else None


def weights_of(model: Any, accelerator: "Accelerator") -> dict[str, Any]:
    """The state_dict of a prepared model, whole. All processes must call it; of shards, only the main one has it."""
    return gathered(accelerator.unwrap_model(model).state_dict(), accelerator)


def load_weights(model: Any, weights: dict[str, Any], accelerator: "Accelerator") -> None:
    """Load a whole state_dict, strictly, into a prepared model: each process takes its part."""
    bare = accelerator.unwrap_model(model)
    if accelerator.is_fsdp2:
        parts = bare.state_dict()
        weights = {name: _part(value, parts.get(name)) for name, value in weights.items()}
    bare.load_state_dict(weights)


def load_optimizer(optimizer: Any, state: dict[str, Any], accelerator: "Accelerator") -> None:
    """Load a whole state_dict into a prepared optimizer: what has the shape of a weight is divided as the weight is."""
    if accelerator.is_fsdp2:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        divided = {
            number: {name: _part(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        state = {**state, "state": divided}
    optimizer.load_state_dict(state)


def _part(value: Any, like: Any) -> Any:
    """A whole tensor divided as another of the same shape. Nothing is sent: each process has read the whole."""
    if not hasattr(like, "full_tensor") or getattr(value, "shape", None) != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
