"""Tiny random models of many architectures, each with a tokenizer as its family has it."""

import random
from pathlib import Path
from typing import Any

WORDS = [
    "red",
    "green",
    "blue",
    "the",
    "a",
    "this",
    "sky",
    "grass",
    "sea",
    "rose",
    "is",
    "was",
    "looks",
    "very",
    "quite",
    "never",
    "deep",
]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
}
SEQ2SEQ = {
    "d_model": 32,
    "d_ff": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 80,
    "init_std": 0.2,
}
ROPE = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
# How a tokenizer marks a text and a pair of texts, and which token it pads with.
FAMILIES = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
    "decoder": ("$A", "$A $B"),
    "xlnet": ("$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2"),
}
# By model type: the family of its tokenizer, and its sizes.
TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("bert", {**SIZES, "embedding_size": 16}),
    "bert": ("bert", SIZES),
    "big_bird": ("bert", {**SIZES, "attention_type": "original_full"}),
    "camembert": ("roberta", SIZES),
    "data2vec-text": ("roberta", SIZES),
    "deberta": ("bert", {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": ("bert", {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "distilbert": ("bert", {**SIZES, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    "electra": ("bert", {**SIZES, "embedding_size": 32}),
    "ernie": ("bert", SIZES),
    "esm": ("bert", {**SIZES, "position_embedding_type": "rotary", "mask_token_id": 5}),
    "ibert": ("roberta", SIZES),
    "layoutlm": ("bert", SIZES),
    "longformer": ("roberta", {**SIZES, "attention_window": 8}),
    "megatron-bert": ("bert", SIZES),
    "mobilebert": ("bert", {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 32}),
    "modernbert": ("bert", {**SIZES, "local_attention": 8}),
    "mpnet": ("roberta", SIZES),
    "rembert": ("bert", {**SIZES, "input_embedding_size": 32}),
    "roberta": ("roberta", SIZES),
    "roformer": ("bert", {**SIZES, "embedding_size": 32}),
    "squeezebert": ("bert", {**SIZES, "embedding_size": 32}),
    "xlm-roberta": ("roberta", SIZES),
    "xlnet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
    "bart": ("roberta", SEQ2SEQ),
    "mbart": ("roberta", SEQ2SEQ),
    "t5": ("t5", {**SEQ2SEQ, "d_kv": 16, "num_layers": 2, "num_heads": 2}),
    "bloom": ("decoder", {**SIZES, "n_layer": 2, "n_head": 2}),
    "falcon": ("decoder", SIZES),
    "gemma": ("decoder", ROPE),
    "gpt2": ("decoder", {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neo": (
        "decoder",
        {**SIZES, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": ("decoder", SIZES),
    "gptj": ("decoder", {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}),
    "llama": ("decoder", ROPE),
    "mistral": ("decoder", ROPE),
    "opt": ("decoder", {**SIZES, "word_embed_proj_dim": 32, "ffn_dim": 64}),
    "phi": ("decoder", SIZES),
    "qwen3": ("decoder", ROPE),
}
IMAGES = {"image_size": 32, "patch_size": 8, "initializer_range": 0.2}
STAGES = {**IMAGES, "depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2}
VIT = {**SIZES, **IMAGES}
IMAGE: dict[str, dict[str, Any]] = {
    "beit": VIT,
    "convnext": {**STAGES, "patch_size": 4},
    "convnextv2": {**STAGES, "patch_size": 4},
    "deit": VIT,
    "dinov2": {**VIT, "mlp_ratio": 2},
    "swin": {
        **IMAGES,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "vit": VIT,
}
# These compute with padding as if it were text: a run is refused before training.
REFUSED = {
    "convbert": ("bert", {**SIZES, "embedding_size": 32, "conv_kernel_size": 3}),
    "fnet": ("bert", SIZES),
    "funnel": ("bert", {"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16}),
    "nystromformer": ("bert", {**SIZES, "num_landmarks": 4, "segment_means_seq_len": 16}),
}


def make_tokenizer(family: str, **options: Any) -> Any:
    """Return a tokenizer of words; `options` are those of PreTrainedTokenizerFast."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    is_bert = family in ("bert", "xlnet")
    cls, sep = ("[CLS]", "[SEP]") if is_bert else ("<s>", "</s>")
    specials = ["[PAD]", "[UNK]", cls, sep, "[MASK]"]
    ids = {word: number for number, word in enumerate([*specials, *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair = FAMILIES[family]
    words.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(cls, 2), (sep, 3)]
    )
    named = (
        {"cls_token": cls, "sep_token": sep} if is_bert else {"bos_token": cls, "eos_token": sep}
    )
    types = ["token_type_ids"] if is_bert else []
    defaults = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
        "model_max_length": 64,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "padding_side": "left" if family == "xlnet" else "right",
        **named,
    }
    return PreTrainedTokenizerFast(tokenizer_object=words, **{**defaults, **options})


def make_config(architecture: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    _, sizes = {**TEXT, **REFUSED}[architecture]
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    sizes = {"vocab_size": 5 + len(WORDS), **tokens, **sizes, **changes}
    return AutoConfig.for_model(architecture, **sizes)


def make_model(
    folder: Path,
    architecture: str,
    head: str = "AutoModel",
    *,
    tokenizer: Any = None,
    **changes: Any,
) -> str:
    """Save a model with random weights and its tokenizer to a new folder; return its path."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = make_config(architecture, **changes)
    model = getattr(transformers, head).from_config(config)
    family, _ = {**TEXT, **REFUSED}[architecture]
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer(family)).save_pretrained(folder)
    return str(folder)


def make_image_model(folder: Path, architecture: str) -> str:
    """Save an image model with random weights to a new folder; return its path."""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(
        AutoConfig.for_model(architecture, **IMAGE[architecture])
    ).save_pretrained(folder)
    return str(folder)


def words(count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count))
