"""Packing: compute the rows of a micro-batch one after another, without padding.

The inputs are (1, tokens) instead of (rows, longest). Only attention, where a token must see its
own row and no other, gets them padded; embeddings, projections, feed-forward layers, norms and
dropout do no work for padding. Batches, losses and metrics are those of the padded model. So are
logits and gradients, up to rounding; dropout draws other values from the same distribution.

Attention still costs rows x longest^2. On GPUs, in half precision and where flash-attn is
installed, its kernel for rows of different lengths computes attention without any padding.
"""

import functools
import importlib.util
import logging
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ftloop.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("ftloop")

# By model type: the module of the base model whose output is padded again, before any pooler.
ENCODERS = {
    "bert": "encoder",
    "camembert": "encoder",
    "distilbert": "transformer",
    "electra": "encoder",
    "modernbert": "",  # the base model itself
    "roberta": "encoder",
    "xlm-roberta": "encoder",
}
ATTENTION = "ftloop_packed"
MAX_FLASH_ERROR = 0.02  # against SDPA, in half precision


def validate_packing(config: "PretrainedConfig", padding_side: str) -> None:
    """Raise UserError for a model that cannot be packed, or a tokenizer that pads on the left.

    Heads look for the first token of a row on the left.
    """
    is_decoder = getattr(config, "is_decoder", False)
    if config.model_type not in ENCODERS or is_decoder:
        kind = "decoder" if config.model_type in ENCODERS else "model"
        raise UserError(
            f"--packing does not work with a {kind} of type {config.model_type!r}. Types that can "
            f"be packed: {', '.join(ENCODERS)}."
        )
    if padding_side != "right":
        raise UserError(
            f"--packing needs a tokenizer that pads on the right, but this one pads on the "
            f"{padding_side}."
        )


def locate_tokens(mask: "torch.Tensor") -> "torch.Tensor":
    """Return the flat indices of the real tokens in an attention mask (rows, longest).

    int64, (tokens,). Call it where the mask is on the CPU: a GPU would have to be waited for.
    """
    return mask.flatten().nonzero().squeeze(1)


def row_boundaries(mask: "torch.Tensor") -> "torch.Tensor":
    """Return where each row begins among the tokens of a mask, and where the last ends.

    int32, (rows + 1,), as flash-attn takes it.
    """
    import torch

    return torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)


class Layout(NamedTuple):
    """Where the tokens of a packed batch are in the padded one."""

    places: "torch.Tensor"  # see `locate_tokens`
    rows: int
    longest: int
    boundaries: "torch.Tensor | None" = None  # see `row_boundaries`; None: SDPA, not flash-attn

    def pack(self, states: "torch.Tensor") -> "torch.Tensor":
        """Return (rows, longest, ...) as (1, tokens, ...)."""
        return states.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def pad(self, states: "torch.Tensor") -> "torch.Tensor":
        """Return (1, tokens, ...) as (rows, longest, ...), 0 where there is no token."""
        # index_copy writes each place once, so the backward pass only reads: exact on any device.
        padded = states.new_zeros(self.rows * self.longest, *states.shape[2:])
        padded = padded.index_copy_(0, self.places, states[0])
        return padded.unflatten(0, (self.rows, self.longest))


class Packing:
    """Makes a model compute without padding.

    It is called as usual, with a batch padded on the right, and may be given the "places" of its
    tokens; otherwise it looks at the mask. A model around the base model must pass on such keyword
    arguments, as those of transformers do.

    The hooks run with the bare model, inside whatever wraps it (DDP, autocast), keep no state, and
    are not saved with it. `output_hidden_states` would return packed states.
    """

    def __init__(self, model: "PreTrainedModel"):
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(ATTENTION, packed_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
        base = model.base_model
        encoder = base.get_submodule(ENCODERS[model.config.model_type])
        base.register_forward_pre_hook(self.pack_inputs, with_kwargs=True)
        encoder.register_forward_hook(self.pad_outputs, with_kwargs=True)

    def pack_inputs(
        self, base: "PreTrainedModel", args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Remove the padding: join the real tokens of all rows into one sequence.

        A forward pre-hook of the base model. It adds the "layout" needed to undo this, and returns
        all arguments as keywords. Without padding, or without ids or a mask, it packs nothing.
        """
        inputs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        places = inputs.pop("places", None)
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None or mask is None:
            return (), inputs
        if places is None:
            places = locate_tokens(mask)
        if len(places) == ids.numel():
            return (), inputs
        flash = uses_flash_attention(base)  # it takes row boundaries instead of a mask
        rows, longest = ids.shape
        layout = Layout(places, rows, longest, row_boundaries(mask) if flash else None)
        packed = {
            "input_ids": layout.pack(ids),
            "attention_mask": build_masks(base.config, ids, None if flash else mask),
            "layout": layout,
        }
        if inputs.get("token_type_ids") is not None:
            packed["token_type_ids"] = layout.pack(inputs["token_type_ids"])
        embeddings = base.embeddings
        if hasattr(embeddings, "create_position_ids_from_input_ids"):
            # RoBERTa-like models number positions from padding_idx + 1.
            positions = embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx)
            packed["position_ids"] = layout.pack(positions)
        else:  # a token's position is its column in the padded batch
            packed["position_ids"] = (layout.places % layout.longest).unsqueeze(0)
        return (), inputs | packed

    def pad_outputs(
        self, encoder: "torch.nn.Module", args: tuple, kwargs: dict[str, Any], outputs: Any
    ) -> None:
        """Pad the last hidden states of the encoder. A forward hook of it."""
        if layout := kwargs.get("layout"):
            outputs.last_hidden_state = layout.pad(outputs.last_hidden_state)


def build_masks(
    config: "PretrainedConfig", ids: "torch.Tensor", mask: "torch.Tensor | None"
) -> Any:
    """Return what the padded model makes of its attention mask; base models take it as it is.

    bool, (rows, 1, longest, longest), or a dictionary with one per kind of layer. None without a
    mask.
    """
    from transformers.masking_utils import (
        create_bidirectional_mask,
        create_bidirectional_sliding_window_mask,
    )

    has_windows = getattr(config, "sliding_window", None) is not None
    if mask is None:
        return {"full_attention": None, "sliding_attention": None} if has_windows else None
    # A mask that masks nothing is not skipped: finding that out would synchronize with the GPU.
    options = {
        "config": config,
        "inputs_embeds": ids,
        "attention_mask": mask,
        "allow_is_bidirectional_skip": False,
    }
    full = create_bidirectional_mask(**options)
    if not has_windows:
        return full
    sliding = create_bidirectional_sliding_window_mask(**options)
    return {"full_attention": full, "sliding_attention": sliding}


def packed_attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    layout: Layout | None = None,
    **options: Any,
) -> tuple["torch.Tensor", None]:
    """Attend within the rows of a packed batch.

    (1, heads, tokens, width) become (1, tokens, heads, width); for SDPA, the states are padded.
    Without a layout, (rows, heads, longest, width) become (rows, longest, heads, width). No
    attention weights are returned.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if layout.boundaries is not None:
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        return flash_attention(query, key, value, layout, **options).unsqueeze(0), None
    query, key, value = (
        layout.pad(states.transpose(1, 2)).transpose(1, 2) for states in (query, key, value)
    )
    padded, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return layout.pack(padded), None


# flash-attn


def flash_attention(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    layout: Layout,
    **options: Any,
) -> "torch.Tensor":
    """Attend by flash-attn; states and result are (tokens, heads, width).

    Of `options`, it uses "dropout", "scaling" and "sliding_window": with n, a token sees n - 1
    others on each side.
    """
    import torch
    from flash_attn import flash_attn_varlen_func

    window = (options.get("sliding_window") or 0) - 1  # -1: no window
    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=layout.boundaries,
        cu_seqlens_k=layout.boundaries,
        max_seqlen_q=layout.longest,
        max_seqlen_k=layout.longest,
        dropout_p=options.get("dropout", 0.0),
        softmax_scale=options.get("scaling"),
        window_size=(window, window),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def uses_flash_attention(base: "PreTrainedModel") -> bool:
    """Return whether flash-attn computes this forward pass.

    It does on a GPU and in half precision, also that of autocast, if it works there.
    """
    import torch

    device, dtype = base.device.type, base.dtype
    if device == "cuda" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    width = base.config.hidden_size // base.config.num_attention_heads
    return flash_attention_works(device, dtype, width)


@functools.cache
def flash_attention_works(device: str, dtype: "torch.dtype", width: int) -> bool:
    """Return whether flash-attn is installed and attends as SDPA does, with heads of this width.

    It is tried once, and the log says the result. Where it fails (built for other GPUs, or for
    another torch), a warning gives the reason.
    """
    if importlib.util.find_spec("flash_attn") is None:
        return False
    problem = try_flash_attention(device, dtype, width)
    if problem:
        logger.warning("packing: flash-attn is installed but not used: %s", problem)
        return False
    version = getattr(sys.modules["flash_attn"], "__version__", "")
    logger.info("packing: flash-attn %s computes attention", version)
    return True


def try_flash_attention(device: str, dtype: "torch.dtype", width: int) -> str | None:
    """Compare flash-attn with SDPA on rows of 5 and 3 tokens; return what is wrong, or None."""
    import torch

    # The trial may be inside an evaluation, and must not change the random state of the run.
    devices = [device] if device == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        states = torch.randn(3, 8, 2, width, generator=torch.Generator().manual_seed(0))
        states = states.to(device, dtype).requires_grad_()
        query, key, value = states
        boundaries = torch.tensor([0, 5, 8], dtype=torch.int32, device=device)
        layout = Layout(places=states, rows=2, longest=5, boundaries=boundaries)
        expected = []
        for start, end in ((0, 5), (5, 8)):
            row = (part[start:end].transpose(0, 1) for part in (query, key, value))
            attended = torch.nn.functional.scaled_dot_product_attention(*row)
            expected.append(attended.transpose(0, 1))
        try:
            attended = flash_attention(query, key, value, layout)
            error = float((attended - torch.cat(expected)).detach().abs().max())
            options = {"dropout": 0.1, "sliding_window": 2}
            flash_attention(query, key, value, layout, **options).sum().backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as failure:  # libraries of kernels raise errors of many types
            return f"{type(failure).__name__}: {failure}"
    return None if error < MAX_FLASH_ERROR else f"its error is {error:.2g}"
