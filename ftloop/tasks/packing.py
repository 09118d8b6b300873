"""Padding-free text: the rows of a micro-batch are computed one after another, (1, tokens) instead of (rows, longest).

Only attention, where a token must see its own row and no other, gets them padded; embeddings, projections, feed-forward
layers, norms and dropout do no work for padding. Batches, losses and metrics stay those of the padded model, and so do
logits and gradients, to rounding; with dropout, the draws are others of the same distribution.

What it leaves: attention costs rows x longest^2. On GPUs, in half precision and where flash-attn is installed, its
kernel of variable length attends, and nothing is padded at all.
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

# By type of model: the part of the base model whose output is made (rows, longest) again, before any pooler.
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


def check_packing(config: "PretrainedConfig", padding_side: str) -> None:
    """Raise UserError for a model that cannot, or whose tokenizer pads where heads look for the first token."""
    if config.model_type not in ENCODERS or getattr(config, "is_decoder", False):
        kind = "decoder" if config.model_type in ENCODERS else "model"
        raise UserError(
            f"--task.packing: a {kind} of type {config.model_type!r} cannot do without padding; those that can are of "
            f"type {', '.join(ENCODERS)}"
        )
    if padding_side != "right":
        raise UserError(f"--task.packing: this tokenizer pads on the {padding_side}; the right is needed")


def places_of(mask: "torch.Tensor") -> "torch.Tensor":
    """int64 (tokens,): which cells of an attention mask (rows, longest), counted row by row, hold a token. To be called
    where the mask is on the CPU: on a GPU, it would wait for it."""
    return mask.flatten().nonzero().squeeze(1)


def starts_of(mask: "torch.Tensor") -> "torch.Tensor":
    """int32 (rows + 1,): where each row of an attention mask begins among its tokens, and where the last one ends."""
    import torch

    return torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)


class Layout(NamedTuple):
    """Where the tokens of a packed batch are in the padded one."""

    places: "torch.Tensor"
    rows: int
    longest: int
    starts: "torch.Tensor | None" = None  # for flash-attn: see `starts_of`; else SDPA attends

    def pack(self, states: "torch.Tensor") -> "torch.Tensor":
        """(rows, longest, ...) to (1, tokens, ...)."""
        return states.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def pad(self, states: "torch.Tensor") -> "torch.Tensor":
        """(1, tokens, ...) to (rows, longest, ...), 0 where there is no token."""
        # Each cell is written once, so that the backward pass only reads: it is exact and quick on any device.
        cells = states.new_zeros(self.rows * self.longest, *states.shape[2:]).index_copy_(0, self.places, states[0])
        return cells.unflatten(0, (self.rows, self.longest))


class Packing:
    """Makes a model compute without padding. It is called as ever, with a right-padded batch, and may be given the
    "places" of its tokens (see `places_of`), without which it looks at the mask itself. A model around the base model
    must hand on such keywords, as those of transformers do.

    Its hooks run with the bare model, within whatever wraps it (DDP, autocast), keep nothing from one call to the next,
    and are not saved with it. `output_hidden_states` would give packed ones.
    """

    def __init__(self, model: "PreTrainedModel"):
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(ATTENTION, packed_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
        base = model.base_model
        base.register_forward_pre_hook(self.pack, with_kwargs=True)
        base.get_submodule(ENCODERS[model.config.model_type]).register_forward_hook(self.pad, with_kwargs=True)

    def pack(self, base: "PreTrainedModel", inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Arguments of the base model for a padded batch, to those for the packed one and its "layout". A batch that
        has no padding is left as it is."""
        options = dict(zip(("input_ids", "attention_mask"), inputs, strict=False)) | options
        places, ids, mask = options.pop("places", None), options.get("input_ids"), options.get("attention_mask")
        if ids is None or mask is None:
            return (), options
        places = places_of(mask) if places is None else places
        if len(places) == ids.numel():
            return (), options
        flash = flash_attends(base)
        layout = Layout(places, *ids.shape, starts=starts_of(mask) if flash else None)
        packed = {"input_ids": layout.pack(ids), "layout": layout}
        packed["attention_mask"] = masks(base.config, ids, None if flash else mask)
        if options.get("token_type_ids") is not None:
            packed["token_type_ids"] = layout.pack(options["token_type_ids"])
        if hasattr(base.embeddings, "create_position_ids_from_input_ids"):  # RoBERTa's kind count from the padding id
            positions = base.embeddings.create_position_ids_from_input_ids(ids, base.embeddings.padding_idx)
            packed["position_ids"] = layout.pack(positions)
        else:
            packed["position_ids"] = (layout.places % layout.longest).unsqueeze(0)
        return (), options | packed

    def pad(self, encoder: "torch.nn.Module", inputs: tuple, options: dict[str, Any], outputs: Any) -> None:
        if layout := options.get("layout"):
            outputs.last_hidden_state = layout.pad(outputs.last_hidden_state)


def masks(config: "PretrainedConfig", ids: "torch.Tensor", mask: "torch.Tensor | None") -> Any:
    """What the padded model would make of its attention mask: bool (rows, 1, longest, longest), or one for each kind of
    layer; none of none. Base models take it as it is."""
    from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

    slides = getattr(config, "sliding_window", None) is not None
    if mask is None:
        return {"full_attention": None, "sliding_attention": None} if slides else None
    # Not skipped if nothing is masked: that would be a look at the mask, which a GPU has to be waited for.
    options = {"config": config, "inputs_embeds": ids, "attention_mask": mask, "allow_is_bidirectional_skip": False}
    full = create_bidirectional_mask(**options)
    if not slides:
        return full
    return {"full_attention": full, "sliding_attention": create_bidirectional_sliding_window_mask(**options)}


def packed_attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    layout: Layout | None = None,
    **options: Any,
) -> tuple["torch.Tensor", None]:
    """Attention of queries, keys and values (1, heads, tokens, width): (1, tokens, heads, width), no weights. For SDPA
    they are padded. Without a layout, (rows, heads, longest, width) give (rows, longest, heads, width)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if layout.starts is not None:
        tokens = (states[0].transpose(0, 1) for states in (query, key, value))
        return flash_attention(*tokens, layout=layout, **options).unsqueeze(0), None
    query, key, value = (layout.pad(states.transpose(1, 2)).transpose(1, 2) for states in (query, key, value))
    return layout.pack(sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]), None


def flash_attention(*states: "torch.Tensor", layout: Layout, **options: Any) -> "torch.Tensor":
    """By flash-attn: queries, keys and values, (tokens, heads, width) each and in return. Of `options`, "dropout",
    "scaling" and "sliding_window": n lets a token see n - 1 others on each side."""
    import torch
    from flash_attn import flash_attn_varlen_func

    window = (options.get("sliding_window") or 0) - 1  # -1: none
    return flash_attn_varlen_func(
        *(*states, layout.starts, layout.starts, layout.longest, layout.longest),
        dropout_p=options.get("dropout", 0.0),
        softmax_scale=options.get("scaling"),
        window_size=(window, window),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def flash_attends(base: "PreTrainedModel") -> bool:
    """Whether flash-attn attends in this pass: on a GPU, in half precision (also by autocast), where it can."""
    import torch

    device, dtype = base.device.type, base.dtype
    if device == "cuda" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return flash(device, dtype, base.config.hidden_size // base.config.num_attention_heads)


@functools.cache
def flash(device: str, dtype: "torch.dtype", width: int) -> bool:
    """Whether flash-attn is installed, and attends with heads of this width as SDPA does: tried once on two short rows,
    and said. If not (it was built for other cards, or another torch), a warning says why."""
    import torch

    if importlib.util.find_spec("flash_attn") is None:
        return False
    # Nothing of the run may change: neither its draws, nor that it may be within an evaluation.
    devices = [device] if device == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        states = torch.randn(3, 8, 2, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        states.requires_grad_()
        layout = Layout(states, 2, 5, torch.tensor([0, 5, 8], dtype=torch.int32, device=device))
        rows = (states[:, start:end].transpose(1, 2) for start, end in ((0, 5), (5, 8)))
        expected = [torch.nn.functional.scaled_dot_product_attention(*row).transpose(0, 1) for row in rows]
        try:
            error = float((flash_attention(*states, layout=layout) - torch.cat(expected)).detach().abs().max())
            flash_attention(*states, layout=layout, dropout=0.1, sliding_window=2).sum().backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as failure:  # whatever a library of kernels does on a card that it does not know
            problem = f"{type(failure).__name__}: {failure}"
        else:
            problem = None if error < 0.02 else f"it errs by {error:.2g}"
    if problem:
        logger.warning("packing: flash-attn is installed, and not used: %s", problem)
        return False
    logger.info("packing: attention by flash-attn %s", getattr(sys.modules["flash_attn"], "__version__", ""))
    return True
