"""Packing: less is computed, and logits and gradients are those of the padded model."""

import copy
import importlib.machinery
import itertools
import json
import sys
import types
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, SIZES, WORDS, run_script, sentences
from documents import documents, text_task
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from ftloop import UserError
from ftloop.devices.gradient_checkpointing import GradientCheckpointing
from ftloop.tasks import packing
from ftloop.tasks.packing import ENCODERS, Packing, locate_tokens, validate_packing
from ftloop.tasks.text_classification import WindowPooling

UNEQUAL = (3, 60, 7, 2, 20, 33)
VOCABULARY = 5 + len(WORDS)


def build(architecture: str, dropout: float = 0.0, **options: Any) -> PreTrainedModel:
    """A random classifier of three classes in training mode.

    Padding has the id 1, from which RoBERTa counts positions.
    """
    sizes = ARCHITECTURES.get(architecture, SIZES)
    specials = {
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    }
    config = AutoConfig.for_model(
        architecture,
        vocab_size=VOCABULARY,
        max_position_embeddings=80,
        num_labels=3,
        **specials,
        **sizes,
        **options,
    )
    for name in vars(config):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, dropout)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).train()


def batch_of(lengths: tuple[int, ...], width: int | None = None) -> dict[str, torch.Tensor]:
    """Random ids of some lengths, padded to the longest or to `width`."""
    mask = (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids.where(mask == 1, 1), "attention_mask": mask}


def with_segments(
    batch: dict[str, torch.Tensor], model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    if getattr(model.config, "type_vocab_size", 1) < 2:
        return batch
    mask = batch["attention_mask"]
    return {
        **batch,
        "token_type_ids": (torch.arange(mask.shape[1]) >= mask.sum(dim=1, keepdim=True) // 2)
        * mask,
    }


def logits_and_gradients(
    model: PreTrainedModel, batch: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(**batch).logits
    (logits.float() * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def assert_same(
    padded: PreTrainedModel, packed: PreTrainedModel, batch: dict[str, Any], tolerance: float = 1e-5
):
    """The two models on a batch, which the packed one gets with its places."""
    logits, gradients = logits_and_gradients(padded, batch)
    with_places = batch | {"places": locate_tokens(batch["attention_mask"])}
    packed_logits, packed_gradients = logits_and_gradients(packed, with_places)
    torch.testing.assert_close(packed_logits, logits, rtol=tolerance, atol=tolerance)
    assert any(
        gradient.abs().max() > 1e-2 for gradient in gradients.values() if gradient is not None
    )
    for name, gradient in gradients.items():
        if gradient is None:
            assert packed_gradients[name] is None
        else:
            torch.testing.assert_close(
                packed_gradients[name], gradient, rtol=tolerance, atol=tolerance, msg=name
            )


def pair_of(architecture: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    padded = build(architecture, **options)
    packed = copy.deepcopy(padded)
    Packing(packed)
    return padded, packed


def attend(query, key, value, **options):
    """What flash-attn's kernel of variable length computes, row by row and without dropout."""
    starts, longest = options["cu_seqlens_q"], options["max_seqlen_q"]
    assert torch.equal(starts, options["cu_seqlens_k"])
    assert longest == options["max_seqlen_k"] == int(starts.diff().max())
    (before, after), scale = options["window_size"], options["softmax_scale"]
    found = []
    for start, end in itertools.pairwise(starts.tolist()):
        row = (states[start:end].transpose(0, 1) for states in (query, key, value))
        distance = torch.arange(end - start) - torch.arange(end - start)[:, None]
        seen = (distance >= -before if before >= 0 else distance < 512) & (
            distance <= after if after >= 0 else True
        )
        found.append(
            torch.nn.functional.scaled_dot_product_attention(*row, attn_mask=seen, scale=scale)
        )
    return torch.cat([row.transpose(0, 1) for row in found])


@pytest.fixture
def flash_attn(monkeypatch):
    """A module flash_attn as if it were installed; tests replace `flash_attn_varlen_func` in it."""
    library = types.ModuleType("flash_attn")
    library.__spec__, library.flash_attn_varlen_func = (
        importlib.machinery.ModuleSpec("flash_attn", None),
        attend,
    )
    monkeypatch.setitem(sys.modules, "flash_attn", library)
    packing.flash_attention_works.cache_clear()
    yield library
    packing.flash_attention_works.cache_clear()


@pytest.mark.parametrize("architecture", ENCODERS)
def test_by_flash_attention_logits_and_gradients_are_those_of_the_padded_model(
    architecture, flash_attn, monkeypatch
):
    """As on a GPU in half precision, but in fp32 on the CPU, with the kernel written above."""
    calls = []
    flash_attn.flash_attn_varlen_func = lambda *states, **options: (
        calls.append(options) or attend(*states, **options)
    )
    padded, packed = pair_of(architecture)
    monkeypatch.setattr(packing, "uses_flash_attention", lambda base: True)
    monkeypatch.setattr(packing.Layout, "pad", unless_of_heads(packing.Layout.pad))
    assert_same(padded, packed, with_segments(batch_of(UNEQUAL), padded))
    assert len(calls) == packed.config.num_hidden_layers
    windows = {options["window_size"] for options in calls}
    half = getattr(packed.config, "sliding_window", None)
    assert windows == ({(-1, -1), (half, half)} if half else {(-1, -1)})
    assert {options["dropout_p"] for options in calls} == {0.0}
    assert not any(options["deterministic"] for options in calls)
    calls.clear()
    torch.use_deterministic_algorithms(True)
    try:
        GradientCheckpointing().prepare_model(packed, None)  # attention comes twice
        assert_same(padded, packed, with_segments(batch_of(UNEQUAL), padded))
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(calls) == 2 * packed.config.num_hidden_layers
    assert all(options["deterministic"] for options in calls)


def unless_of_heads(pad):
    def checked(layout, states):
        assert states.dim() == 3, "attention was to have no padding"
        return pad(layout, states)

    return checked


def test_flash_attention_is_given_dropout_in_training_only(flash_attn, monkeypatch):
    seen = []
    flash_attn.flash_attn_varlen_func = lambda *states, **options: (
        seen.append(options) or attend(*states, **options)
    )
    _, packed = pair_of("bert", dropout=0.25)
    monkeypatch.setattr(packing, "uses_flash_attention", lambda base: True)
    for training in (True, False):
        packed.train(training)(**batch_of(UNEQUAL))
    layers = packed.config.num_hidden_layers
    assert [options["dropout_p"] for options in seen] == [0.25] * layers + [0.0] * layers


TRIED = ("cpu", torch.bfloat16, 16)


def test_flash_attention_is_used_where_it_attends_as_sdpa(flash_attn, caplog):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    flash_attn.__version__ = "2.8"
    caplog.set_level("INFO", "ftloop")
    with torch.inference_mode():
        assert packing.flash_attention_works(*TRIED)
    assert [record.message for record in caplog.records] == [
        "packing: flash-attn 2.8 computes attention"
    ]
    assert torch.equal(torch.get_rng_state(), state)

    packing.flash_attention_works.cache_clear()
    flash_attn.flash_attn_varlen_func = lambda *states, **options: attend(*states, **options) * 1.1
    assert not packing.flash_attention_works(*TRIED)
    assert "packing: flash-attn is installed but not used: its error is 0." in caplog.text

    def refuses(*states, **options):
        if options["dropout_p"]:
            raise failure
        return attend(*states, **options)

    packing.flash_attention_works.cache_clear()
    flash_attn.flash_attn_varlen_func, failure = (
        refuses,
        RuntimeError("This flash attention build has no dropout."),
    )
    assert not packing.flash_attention_works(*TRIED)
    assert "RuntimeError: This flash attention build has no dropout." in caplog.text
    packing.flash_attention_works.cache_clear()
    failure = torch.OutOfMemoryError("for now")
    with pytest.raises(torch.OutOfMemoryError):
        packing.flash_attention_works(*TRIED)


@pytest.mark.parametrize(
    ("device", "dtype", "can", "expected"),
    [
        ("cuda", torch.bfloat16, True, True),
        ("cuda", torch.float16, True, True),
        ("cuda", torch.bfloat16, False, False),
        ("cuda", torch.float32, True, False),
        ("cpu", torch.bfloat16, True, False),
    ],
)
def test_flash_attention_is_for_gpus_in_half_precision(monkeypatch, device, dtype, can, expected):
    config = types.SimpleNamespace(hidden_size=768, num_attention_heads=12)
    monkeypatch.setattr(
        packing, "flash_attention_works", lambda *tried: can and tried == (device, dtype, 64)
    )
    assert (
        packing.uses_flash_attention(
            types.SimpleNamespace(device=torch.device(device), dtype=dtype, config=config)
        )
        is expected
    )


def test_without_flash_attention_sdpa_attends():
    packing.flash_attention_works.cache_clear()
    assert not packing.flash_attention_works(*TRIED)


def seen_by_layers(model: PreTrainedModel) -> set[tuple[int, ...]]:
    """A set that collects the shapes that linear layers of the base model see, without width."""
    shapes: set[tuple[int, ...]] = set()
    for name, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.Linear) and "pooler" not in name:
            module.register_forward_pre_hook(
                lambda _, inputs: shapes.add(tuple(inputs[0].shape[:-1]))
            )
    return shapes


# ---- equal to the padded model


@pytest.mark.parametrize(
    "lengths", [UNEQUAL, (9,), (12, 12, 12)], ids=["unequal", "one row", "equal"]
)
@pytest.mark.parametrize("architecture", ENCODERS)
def test_logits_and_gradients_are_those_of_the_padded_model(architecture, lengths):
    padded, packed = pair_of(architecture)
    assert_same(padded, packed, with_segments(batch_of(lengths), padded))


@pytest.mark.parametrize("architecture", ENCODERS)
def test_all_but_attention_sees_tokens_alone(architecture):
    _, packed = pair_of(architecture)
    shapes = seen_by_layers(packed)
    assert_same(build(architecture), packed, batch_of(UNEQUAL, width=64))
    assert shapes == {(1, sum(UNEQUAL))}


def test_the_mean_of_a_rows_tokens_is_that_of_the_padded_model():
    padded, packed = pair_of("modernbert", classifier_pooling="mean")
    assert_same(padded, packed, batch_of(UNEQUAL))


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_batch_without_places_is_packed_by_its_mask_and_one_without_a_mask_is_not(architecture):
    padded, packed = pair_of(architecture)
    batch = batch_of(UNEQUAL)
    torch.testing.assert_close(packed(**batch).logits, padded(**batch).logits, rtol=1e-5, atol=1e-5)
    ids = batch["input_ids"].clamp(min=5)
    torch.testing.assert_close(
        packed(input_ids=ids).logits, padded(input_ids=ids).logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_with_gradient_checkpointing(architecture):
    padded, packed = pair_of(architecture)
    GradientCheckpointing().prepare_model(packed, None)
    assert_same(padded, packed, batch_of(UNEQUAL))


@pytest.mark.parametrize("architecture", ENCODERS)
def test_under_bf16_to_its_precision(architecture):
    padded, packed = pair_of(architecture)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(padded, packed, batch_of(UNEQUAL), tolerance=5e-2)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_windows_of_long_texts_are_rows_like_others(architecture):
    padded, packed = pair_of(architecture)
    WindowPooling(padded)
    WindowPooling(packed)
    windows = torch.tensor([[0, 1, 2], [3, -1, -1], [4, 5, -1]])
    assert_same(padded, packed, batch_of(UNEQUAL) | {"windows": windows})
    assert packed(**batch_of(UNEQUAL), windows=windows).logits.shape == (3, 3)


@pytest.mark.parametrize("trained", [True, False])
def test_dropout_is_drawn_in_training_only_and_by_the_seed(trained):
    model = build("bert", dropout=0.5)
    Packing(model)
    batch, found = batch_of(UNEQUAL), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with nullcontext() if trained else torch.no_grad():
            found.append(model.train(trained)(**batch).logits.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) is not trained


# ---- what cannot


def test_what_cannot_be_packed_is_refused(tiny, tmp_path):
    with pytest.raises(
        UserError,
        match=r"--packing does not work with a model of type 'albert'.* bert, .*modernbert",
    ):
        validate_packing(AutoConfig.for_model("albert"), "right")
    with pytest.raises(UserError, match="--packing does not work with a decoder of type 'bert'"):
        validate_packing(AutoConfig.for_model("bert", is_decoder=True), "right")
    with pytest.raises(UserError, match="--packing needs a tokenizer that pads on the right"):
        validate_packing(AutoConfig.for_model("bert"), "left")
    task = text_task(tiny("bert"), tmp_path / "rows.csv", sentences(4), packing=True, pad_to="max")
    with pytest.raises(UserError, match="--packing leaves out padding, and --pad-to max adds it"):
        task.validate()


# ---- in a run


def test_a_batch_says_where_its_tokens_are(tiny, tmp_path):
    for name, options in {
        "rows": {},
        "windows": {"long_text": "windows", "max_length": 12},
    }.items():
        task = text_task(
            tiny("bert"), tmp_path / f"{name}.csv", documents(5), packing=True, **options
        )
        batch = task.collate([task.load_datasets()["train"][row] for row in range(5)])
        assert batch["places"].dtype == torch.int64
        cells = batch["input_ids"].flatten()
        assert (cells[batch["places"]] != 0).all()
        assert len(batch["places"]) == (cells != 0).sum()


def test_a_run_is_that_of_the_padded_model_and_leaves_the_same_model_folder(
    tiny, colours, tmp_path
):
    words = (
        "configs/text.py",
        "--model",
        tiny("bert"),
        *colours,
        "--dropout",
        "0",
        "--log-every",
        "1",
    )
    curves, folders = [], []
    for name, options in {"padded": (), "packed": ("--packing",)}.items():
        result = run_script("train.py", *words, *options, "--run-dir", str(tmp_path / name))
        assert result.code == 0, result.err
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        curves.append([line["value"] for line in lines if line["name"] == "loss"])
        folders.append(tmp_path / name / "model")
    assert len(curves[0]) > 8
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert (folders[0] / "config.json").read_text() == (folders[1] / "config.json").read_text()
    padded, packed = (load_file(folder / "model.safetensors") for folder in folders)
    assert {name: value.shape for name, value in padded.items()} == {
        name: value.shape for name, value in packed.items()
    }
    assert "ftloop" not in (folders[1] / "config.json").read_text()


def test_a_packed_run_with_dropout_trains_and_is_scored_and_used_as_any(tiny, colours, tmp_path):
    words = ("configs/text.py", "--model", tiny("modernbert"), *colours, "--dropout", "0.1")
    assert run_script("train.py", *words, "--packing").code == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    evaluated = run_script("evaluate.py", str(tmp_path / "run"))
    assert evaluated.code == 0, evaluated.err
    assert f"{scores['test']['accuracy']:.4f}"[:5] in evaluated.out
    assert (
        run_script(
            "predict.py", str(tmp_path / "run"), "the sky is red", "the red rose looks very pale"
        ).code
        == 0
    )
