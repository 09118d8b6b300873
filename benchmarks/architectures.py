"""Train tiny random models of many architectures; compare their predictions in several ways.

    python -m benchmarks.architectures

Each model is trained for four steps and exported. The table shows the largest difference of a
probability between batches of 1 row (unpadded) and of 64 rows (padded), and between predict.py and
a `pipeline` of a fresh process, in batches of 1 and of 64 rows. tests/test_architectures.py checks
the same without training.
"""

import contextlib
import io
import json
import logging
import random
import subprocess
import sys
import tempfile
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
    "deberta": ("bert", {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": ("bert", {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "distilbert": ("bert", {**SIZES, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    "electra": ("bert", {**SIZES, "embedding_size": 32}),
    "esm": ("bert", {**SIZES, "position_embedding_type": "rotary", "mask_token_id": 5}),
    "longformer": ("roberta", {**SIZES, "attention_window": 8}),
    "mobilebert": ("bert", {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 32}),
    "modernbert": ("bert", {**SIZES, "local_attention": 8}),
    "mpnet": ("roberta", SIZES),
    "roberta": ("roberta", SIZES),
    "roformer": ("bert", {**SIZES, "embedding_size": 32}),
    "squeezebert": ("bert", {**SIZES, "embedding_size": 32}),
    "xlm-roberta": ("roberta", SIZES),
    "xlnet": (
        "xlnet",
        {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.2},
    ),
    "bart": ("roberta", SEQ2SEQ),
    "t5": ("t5", {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2}),
    "bloom": ("decoder", {**SIZES, "n_layer": 2, "n_head": 2}),
    "falcon": ("decoder", SIZES),
    "gemma": ("decoder", ROPE),
    "gpt2": ("decoder", {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neo": (
        "decoder",
        {**SIZES, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "gptj": ("decoder", {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}),
    "llama": ("decoder", ROPE),
    "mistral": ("decoder", ROPE),
    "opt": ("decoder", {**SIZES, "word_embed_proj_dim": 32, "ffn_dim": 64}),
    "phi": ("decoder", SIZES),
    "qwen3": ("decoder", ROPE),
}
# Near relatives of those above. The tests, which are to be fast, leave them out.
RELATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "data2vec-text": ("roberta", SIZES),
    "ernie": ("bert", SIZES),
    "ibert": ("roberta", SIZES),
    "layoutlm": ("bert", SIZES),
    "megatron-bert": ("bert", SIZES),
    "rembert": ("bert", {**SIZES, "input_embedding_size": 32}),
    "mbart": ("roberta", SEQ2SEQ),
    "gpt_neox": ("decoder", SIZES),
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
    "funnel": ("bert", {"block_sizes": [1, 2], "d_model": 32, "n_head": 2, "d_head": 16}),
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

    _, sizes = {**TEXT, **RELATIVES, **REFUSED}[architecture]
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    sizes = {"vocab_size": 5 + len(WORDS), "architectures": [], **tokens, **sizes, **changes}
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
    family, _ = {**TEXT, **RELATIVES, **REFUSED}[architecture]
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer(family)).save_pretrained(folder)
    return str(folder)


def make_image_model(
    folder: Path, architecture: str, head: str = "AutoModel", **changes: Any
) -> str:
    """Save an image model with random weights to a new folder; return its path."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(architecture, **{**IMAGE[architecture], **changes})
    getattr(transformers, head).from_config(config).save_pretrained(folder)
    return str(folder)


def words(count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count))


TEXTS = [words(count, seed=count) for count in (1, 9, 2, 14, 5, 11, 20, 3)]


def draw_images(folder: Path, count: int = 8) -> list[str]:
    """Write random images; return their files."""
    import numpy
    from PIL import Image

    draw = numpy.random.default_rng(0)
    files = [str(folder / f"{number}.png") for number in range(count)]
    for file in files:
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), numpy.uint8)).save(file)
    return files


def predict_by_pipelines(folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the predictions of benchmarks/pipelines.py, by job and model, from a fresh process."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(Path(__file__).with_name("pipelines.py"))]
    result = subprocess.run(
        [*command, str(folder / "jobs.json")], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def difference(predictions: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """Return the largest difference of a probability."""
    return max(
        abs(scores[label] - row[label])
        for row, scores in zip(predictions, expected, strict=True)
        for label in row
    )


def train_and_predict(task: Any, new: Any, run_dir: Path, batch_sizes: tuple[int, ...]) -> Any:
    """Train a task; return the probabilities of new rows for each batch size."""
    from ftloop import Config, train
    from ftloop.runs.finished import predict_rows

    train(Config(task=task, run_dir=str(run_dir), batch_size=4, max_steps=4, learning_rate=1e-3))
    return [
        [row["probabilities"] for row in predict_rows(run_dir, new, size)] for size in batch_sizes
    ]


def main() -> None:
    import datasets
    import transformers

    from ftloop import UserError
    from ftloop.data import Data
    from ftloop.tasks import ImageClassification, TextClassification

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("ftloop").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        images = draw_images(home)
        kinds = []
        for column, inputs in (("text", TEXTS), ("image", images)):
            rows = [
                {column: cell, "label": "abc"[number % 3]} for number, cell in enumerate(inputs)
            ]
            file = home / f"{column}.jsonl"
            file.write_text("\n".join(map(json.dumps, rows)))
            new = datasets.Dataset.from_dict({column: inputs})
            kinds.append((Data(path=str(file), validation=0), new))
        found: dict[str, Any] = {}
        (texts, new_texts), (pictures, new_images) = kinds
        for architecture in (*TEXT, *RELATIVES, *REFUSED, *IMAGE):
            folder, run = home / architecture, home / f"{architecture}-run"
            with contextlib.redirect_stderr(io.StringIO()):
                if architecture in IMAGE:
                    path = make_image_model(folder, architecture)
                    image_task = ImageClassification(model=path, data=pictures, augment=())
                    found[architecture] = train_and_predict(image_task, new_images, run, (1, 4))
                    continue
                path = make_model(folder, architecture)
                task = TextClassification(model=path, data=texts, max_length=32)
                try:
                    found[architecture] = train_and_predict(task, new_texts, run, (1, 64))
                except UserError as error:
                    found[architecture] = str(error).replace(path, architecture)
        jobs = []
        for kind, inputs, names in (
            ("text-classification", TEXTS, {**TEXT, **RELATIVES, **REFUSED}),
            ("image-classification", images, IMAGE),
        ):
            trained = [name for name in names if not isinstance(found[name], str)]
            models = {name: f"{home / name}-run/model" for name in trained}
            jobs.append({"kind": kind, "rows": inputs, "models": models})
        by_text, by_image = predict_by_pipelines(home, jobs)
    print("architecture     padded/unpadded  pipeline, 1  pipeline, 64")
    for architecture, result in found.items():
        if isinstance(result, str):
            print(f"{architecture:16} refused: {result}")
            continue
        alone, together = result
        pipelines = {**by_text, **by_image}[architecture]
        numbers = [difference(other, alone) for other in (together, *pipelines)]
        print(f"{architecture:16} {numbers[0]:15.1e}  {numbers[1]:11.1e}  {numbers[2]:12.1e}")


if __name__ == "__main__":
    main()
