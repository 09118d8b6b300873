"""A tokenizer and a model that fit each other.

They share the padding token and its side, token types, end-of-sequence tokens, the size of the
vocabulary, and a maximal length. Where a folder of a model contradicts itself in these, results
depend on the batch in which a text is computed, or training ends in the middle. What has only one
meaning is corrected and logged; everything else is an error before training.
"""

import inspect
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError, root_cause

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("ftloop")

MAX_DIFFERENCE = 1e-4  # of logits, relative to the largest one if that is above 1


def unusable(model: str, reason: str) -> UserError:
    return UserError(f"--model {model!r}: {reason}")


# Before texts are tokenized


def choose_padding_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Pad with the end-of-sequence token if the tokenizer has no padding token."""
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise unusable(tokenizer.name_or_path, "its tokenizer has no token to pad with.")
    tokenizer.pad_token = tokenizer.eos_token
    logger.info("model: its tokenizer has no padding token; %r is used", tokenizer.eos_token)


def fit_token_types(
    tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig", model_class: Any
) -> None:
    """Leave out the token types of pairs if the model has no more than one."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return
    size = getattr(config, "type_vocab_size", None)
    reason = None
    if size == 1:
        reason = "the model has only one"
    elif size is None and not takes_token_types(config, model_class):
        reason = "the model takes none"
    if reason is not None:
        logger.info("model: the token types of its tokenizer are left out, since %s", reason)
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        set_option(tokenizer, "model_input_names", names)


def set_option(tokenizer: "PreTrainedTokenizerBase", name: str, value: Any) -> None:
    """Set an option of a tokenizer so that save_pretrained writes it."""
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value


def takes_token_types(config: "PretrainedConfig", model_class: Any) -> bool:
    """Return whether the forward method of a model has an argument for token types."""
    if hasattr(model_class, "_model_mapping"):  # AutoModelFor...
        if type(config) not in model_class._model_mapping:
            return True  # building the model will raise the error
        model_class = model_class._model_mapping[type(config)]
    forward = getattr(model_class, "forward", None)  # a task may build its model in its own way
    return forward is None or "token_type_ids" in inspect.signature(forward).parameters


# Before the model is built


def find_end_token(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the end-of-sequence token that the tokenizer gives each text. Raises UserError."""
    given = tokenizer("a")["input_ids"]
    for token_id in (config.eos_token_id, tokenizer.eos_token_id):
        if token_id in given:
            return token_id
    raise unusable(
        tokenizer.name_or_path,
        f"its tokenizer does not end a text with the end-of-sequence token {config.eos_token_id}, "
        "by which the model finds the end.",
    )


def fit_config(
    config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase", end_token: int | None
) -> None:
    """Give the configuration the special tokens of the tokenizer that it lacks.

    end_token: see `find_end_token`; None for a model that does not look for it. Raises UserError
    for tokens and token types that the model does not have.
    """
    text_config = config.get_text_config()
    size = getattr(text_config, "vocab_size", None)
    highest = max(tokenizer.get_vocab().values())
    if size is not None and highest >= size:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise unusable(
            tokenizer.name_or_path,
            f"its tokenizer has ids up to {highest} ({token!r}), but the model has vocab_size "
            f"{size}. Call resize_token_embeddings({highest + 1}) on the model and save it or, to "
            f"train from random weights, add --model-options vocab_size={highest + 1}.",
        )
    num_types = getattr(config, "type_vocab_size", None)
    highest_type = max(tokenizer("a", "b").get("token_type_ids", [0]))
    if num_types and highest_type >= num_types:
        raise unusable(
            tokenizer.name_or_path,
            f"its tokenizer gives the token type {highest_type}, but the model has "
            f"type_vocab_size {num_types}.",
        )
    if getattr(text_config, "pad_token_id", None) is None:
        set_padding_token(config, tokenizer.pad_token_id)
    if hasattr(config, "use_mems_eval"):  # XLNet returns it beside the logits, not by rows, and a
        config.use_mems_eval = False  # pipeline fails to divide it
    if end_token not in (None, config.eos_token_id):
        log_correction("eos_token_id", config.eos_token_id, end_token)
        config.eos_token_id = end_token


def set_padding_token(config: "PretrainedConfig", token_id: int) -> None:
    config.pad_token_id = config.get_text_config().pad_token_id = token_id


def log_correction(name: str, configured: Any, value: Any) -> None:
    logger.info(
        "model: its configuration has %s %s, but its tokenizer has %s, which is used",
        name,
        configured,
        value,
    )


def fit_attention(config: "PretrainedConfig", max_length: int, is_padded_to_max: bool) -> None:
    """Choose the attention of BigBird, which would choose anew, for good, at its first short batch.

    Raises UserError for lengths that may be above and below its limit.
    """
    if getattr(config, "attention_type", None) != "block_sparse":
        return
    limit = (5 + 2 * config.num_random_blocks) * config.block_size
    if max_length <= limit:
        config.attention_type = "original_full"
        logger.info("model: block-sparse attention is for more than %d tokens; it is off", limit)
    elif not is_padded_to_max:
        raise unusable(
            config.name_or_path,
            f"its block-sparse attention is for batches of more than {limit} tokens, so a result "
            "would depend on the other texts of a batch. Add --model-options "
            "attention_type=original_full, or --pad-to max.",
        )


def require_equal_ends(
    tokenizer: "PreTrainedTokenizerBase",
    end_token: int,
    columns: dict[str, Sequence[str]],
    input_ids: Iterable[list[Any]],
) -> None:
    """Raise UserError for texts that hold the end-of-sequence token themselves.

    Models that find the end of a text by it (BART, T5) take only batches with equally many in each
    row. Each cell of `input_ids` is a list of ids, or of windows.
    """
    expected = tokenizer(*["a"] * len(columns))["input_ids"].count(end_token)
    found = []
    for row, ids in enumerate(input_ids):
        windows = ids if ids and isinstance(ids[0], list) else [ids]
        if any(window.count(end_token) != expected for window in windows):
            found.append(row)
    if found:
        token = tokenizer.convert_ids_to_tokens(end_token)
        texts = " ".join(cells[found[0]] for cells in columns.values())
        place = max(texts.find(token), 0)
        raise UserError(
            f"--text-columns {' '.join(columns)}: {len(found)} row(s) hold the characters "
            f"{token!r}, by which this model finds the end of a text; the first one has "
            f"{texts[max(place - 20, 0) : place + 20]!r}. Remove them from the texts, for example "
            "with --data.map."
        )


# After the model is built


def fit_max_length(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> None:
    """Raise UserError if a model takes fewer than `max_length` tokens.

    The tokenizer is given the limit of the model, if it has a higher one or none: pipelines
    truncate texts by it. Relative positions have no limit (T5), also where the tokenizer has one.
    """
    limit = find_max_positions(model)
    if limit is None:
        tokenizer.model_max_length = max(tokenizer.model_max_length, max_length)
        return
    tokenizer.model_max_length = limit = min(limit, tokenizer.model_max_length)
    if max_length > limit:
        raise UserError(
            f"--max-length {max_length}: the model {tokenizer.name_or_path!r} takes at most "
            f"{limit} tokens."
        )


def find_max_positions(model: "PreTrainedModel") -> int | None:
    """Return the most tokens that a model has positions for; None without a limit.

    Some models count positions from the padding id on (RoBERTa) or from 2 on (BART): the first rows
    of their embeddings are for no token.
    """
    import torch

    sizes = []
    configured = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if configured is not None and configured > 0:  # -1 and 0 stand for no limit
        sizes.append(configured)
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, torch.nn.Embedding) and ("position" in leaf or leaf == "wpe"):
            first = getattr(module, "offset", 0)
            if module.padding_idx is not None:
                first = module.padding_idx + 1
            sizes.append(module.num_embeddings - first)
    return min(sizes, default=None)


def fit_padding_token(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make the padding token of the tokenizer that of the configuration.

    Models for decoding find the last token of a text by it. It is left as it is where it decides at
    which position a text begins, as in RoBERTa: there, only the mask tells what is padding.
    """
    import torch

    configured = model.config.get_text_config().pad_token_id
    if configured == tokenizer.pad_token_id:
        return
    for name, module in model.named_modules():
        is_positions = isinstance(module, torch.nn.Embedding) and "position" in name
        if is_positions and module.padding_idx is not None:
            return
    log_correction("pad_token_id", configured, tokenizer.pad_token_id)
    set_padding_token(model.config, tokenizer.pad_token_id)


def require_independence_of_padding(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", pair: bool, max_length: int
) -> None:
    """Raise UserError unless two texts have the same logits alone and beside a longer text.

    If they have them only with padding on the other side, the tokenizer is changed to pad there.
    The model computes in float32, without dropout, and is left as it was.
    """
    import torch

    examples = tokenize_texts_of_known_words(tokenizer, pair, max_length)
    configured = tokenizer.padding_side
    numbers = {}
    for side in (configured, "left" if configured == "right" else "right"):
        tokenizer.padding_side = side
        alone, padded = compute_with_and_without(model, tokenizer, examples)
        place = int((alone - padded).abs().argmax())
        numbers[side] = f"{alone[place]:.6g} alone and {padded[place]:.6g} beside a longer one"
        limit = MAX_DIFFERENCE * max(1.0, float(alone.abs().max()))
        if torch.allclose(padded, alone, rtol=0, atol=limit, equal_nan=True):
            break
    else:
        tokenizer.padding_side = configured
        raise unusable(
            tokenizer.name_or_path,
            f"its results depend on padding. The same text has the output {numbers[configured]}, "
            "in float32 and without dropout. Either its tokenizer and its config.json do not fit "
            "each other, or it computes with padding as if it were text. --pad-to max pads all "
            "texts alike.",
        )
    if side != configured:
        set_option(tokenizer, "padding_side", side)
        logger.info(
            "model: texts are padded on the %s, since on the %s, as its tokenizer has it, the same "
            "text has the output %s",
            side,
            configured,
            numbers[configured],
        )


def tokenize_texts_of_known_words(
    tokenizer: "PreTrainedTokenizerBase", pair: bool, max_length: int
) -> list[dict[str, list[int]]]:
    """Return the tokens of texts, or pairs of texts, of 1, 2 and 16 words.

    Models that join every two tokens (Funnel) may depend on padding for odd or even lengths only.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = [number for number in range(len(tokenizer)) if number not in special]
    words = [tokenizer.decode(ids[len(ids) * place // 48]).strip() for place in range(48)]
    words = [word for word in words if word.isalnum()] or ["a"]
    texts = [" ".join((words * 16)[:count]) for count in (1, 2, 16)]
    encoded = tokenizer(*[texts] * (1 + pair), truncation=True, max_length=max_length)
    return [{name: cells[row] for name, cells in encoded.items()} for row in range(3)]


def compute_with_and_without(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: list[dict[str, list[int]]],
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the logits of all but the last example alone, and beside all others, both flat.

    Of logits per token, those of padding are left out.
    """
    import torch

    from ftloop.data.tokens import PaddingCollator
    from ftloop.state import temporary_seed

    pad = PaddingCollator(tokenizer)
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), temporary_seed(0):
            batch = pad(examples)
            padded = list(model(**batch).logits)
            alone = [model(**pad([example])).logits[0] for example in examples[:-1]]
    except Exception as error:  # from torch and from any model of transformers
        raise unusable(
            tokenizer.name_or_path,
            f"it cannot compute a short text beside a longer one: {root_cause(error)}",
        ) from error
    finally:
        for module in was_training:
            module.training = True
    for row, logits in enumerate(alone):
        if padded[row].shape != logits.shape:
            padded[row] = padded[row][batch["attention_mask"][row].bool()]
    padded = padded[: len(alone)]
    return torch.cat([*map(torch.flatten, alone)]), torch.cat([*map(torch.flatten, padded)])
