"""Kernels: products stay fp32, settings come back, a run keeps its choice; attention and dropout mean the same."""

import copy
import json
import math
import tempfile
import time
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionMaskInterface, AutoModelForSequenceClassification
from transformers.masking_utils import sdpa_mask

from ftloop.distributed import kernels
from ftloop.errors import UserError
from ftloop.devices.kernels import Choice, cheap_dropout, choose, choose_attention, choose_dropout, probe, use
from ftloop.tasks.packing import Packing


@pytest.fixture(autouse=True)
def as_found():
    before = kernels.settings()
    yield
    assert kernels.settings() == before
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def probed(monkeypatch, tmp_path):
    """`probed(choice)`: what a probe would find on another machine."""

    def say(choice: Choice | None) -> None:
        monkeypatch.setattr(kernels, "probe", lambda: choice)
        monkeypatch.setenv("XDG_CACHE_HOME", tempfile.mkdtemp(dir=tmp_path))  # nothing was found before

    return say


QUICK = Choice("onednn", speed=1.66, error=1.4)
SLOW = Choice("default", speed=0.9, error=1.4)
BF16 = Choice("default", speed=3.0, error=8000)


def test_a_probe_is_short_and_leaves_torch_as_it_is():
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    began = time.process_time()
    choice = probe()
    assert time.process_time() - began < 1  # a quarter second of a machine without other work
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert choice.matmul == "default" or (choice.speed > kernels.WORTH and choice.error <= kernels.FP32)


@pytest.mark.parametrize(("rows", "width", "out"), [(1024, 384, 1536), (33, 1536, 384)])
def test_products_of_what_is_chosen_are_fp32(rows, width, out):
    left, right = torch.randn(rows, width), torch.randn(width, out)
    exact = left.double() @ right.double()
    with kernels.restored():
        use(probe().matmul)
        found = left @ right
    assert float((found - exact).norm() / exact.norm()) < 2e-6  # fp32: 3e-7, TF32: 2e-4, bf16: 3e-3


def test_products_that_are_not_fp32_are_told_from_those_that_are():
    factors = ((torch.randn(64, 384), torch.randn(384, 128)),)
    true, half = ([(left.to(kind) @ right.to(kind)).float() for left, right in factors] for kind in KINDS)
    assert kernels.error_of(half, factors) > 100 * kernels.FP32 * kernels.error_of(true, factors)


KINDS = (torch.float32, torch.bfloat16)


def test_default_changes_no_setting_and_takes_back_what_onednn_did():
    before = kernels.settings()
    use("default")
    assert kernels.settings() == before
    use("onednn")
    assert torch.get_float32_matmul_precision() == "medium"
    use("default")
    assert kernels.settings() == before
    torch.set_float32_matmul_precision("high")
    probe()
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    kernels.set_back(before)


def test_what_is_asked_for_wins_then_what_is_recorded_then_the_probe(probed):
    probed(None)  # not asked
    assert choose("default") == choose("default", "onednn") == choose("auto", "default") == "default"
    probed(SLOW)
    assert choose("auto") == "default"
    assert choose("auto", "onednn") == choose("onednn") == choose("onednn", "default") == "onednn"
    probed(QUICK)
    assert choose("auto") == "onednn"
    assert choose("auto", "default") == "default"


def test_what_was_found_once_is_taken_again(probed, monkeypatch):
    probed(Choice("onednn", 1.7, 2.0))
    assert choose("auto") == "onednn"
    monkeypatch.setattr(kernels, "probe", lambda: pytest.fail("it was probed before"))
    assert choose("auto") == "onednn"


def test_nothing_but_fp32_is_chosen(probed):
    probed(BF16)
    assert choose("auto") == choose("auto", "onednn") == "default"
    with pytest.raises(UserError, match=r"--matmul onednn: its products are not fp32 on this machine \(8000 times"):
        choose("onednn")


def test_the_choice_is_one_line(probed, caplog):
    probed(QUICK)
    with caplog.at_level("INFO", "ftloop"):
        choose("auto")
    assert caplog.messages == ["matmul: onednn (onednn: 1.66 x the speed, 1.4 x the error of the default)"]


def model_of(tiny, **options):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny("bert"), **options)


BATCH = {"input_ids": torch.randint(5, 20, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.int64)}
BATCH["attention_mask"][1:, 5:] = 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_with_onednn_computes_the_same_and_drops_the_same(tiny, dropout, tmp_path):
    sdpa = model_of(tiny, attention_probs_dropout_prob=dropout)
    eager = copy.deepcopy(sdpa)
    choose_attention(eager, "default")
    assert eager.config._attn_implementation == "sdpa"
    choose_attention(eager, "onednn")
    assert eager.config._attn_implementation == "eager"
    for mode in (False, True):
        logits = []
        for model in (sdpa.train(mode), eager.train(mode)):
            torch.manual_seed(1)
            logits.append(model(**BATCH).logits)
        torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    eager.save_pretrained(tmp_path)
    assert "eager" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_another_kind_of_attention_stays(tiny):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("of_a_fork", sdpa_attention_forward)
    model = model_of(tiny)
    model.set_attn_implementation("of_a_fork")
    choose_attention(model, "onednn")
    assert model.config._attn_implementation == "of_a_fork"


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3, 1e-4, 0.999])
def test_cheaper_dropout_keeps_as_many_as_it_should(p):
    """Within 4.5 standard deviations of a binomial, in all and in each quarter of the bits drawn at once."""
    torch.manual_seed(0)
    dropped, count = round(p * 2**16) / 2**16, 1_000_003
    found = cheap_dropout(torch.ones(count), p)
    for start, step in [(0, 1), *((start, 4) for start in range(4))]:
        part = found[start::step]
        kept = int((part != 0).sum())
        assert abs(kept - len(part) * (1 - dropped)) < 4.5 * math.sqrt(len(part) * dropped * (1 - dropped))
    # What is kept makes up for what is dropped: the expectation of a 1 is 1.
    assert found.max().item() == pytest.approx(1 / (1 - dropped), rel=1e-7)
    assert set(found.unique().tolist()) == {0.0, found.max().item()}
    assert abs(dropped - p) <= 2**-17


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (cheap_dropout(torch.ones(1_000_000), 0.5) != 0).double() * 2 - 1
    for distance in (1, 2, 3, 4, 5, 8, 384):
        assert abs(float((kept[:-distance] * kept[distance:]).mean())) < 4.5 / 1000


def test_cheaper_dropout_is_a_function_of_the_seed_alone():
    states, dropout = torch.randn(7, 13, 5), partial(cheap_dropout, p=0.2)

    def drop(seed: int, threads: int = 1) -> torch.Tensor:
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            return dropout(states.clone())
        finally:
            torch.set_num_threads(1)

    assert torch.equal(drop(1), drop(1, threads=2))
    assert not torch.equal(drop(1), drop(2))
    torch.manual_seed(1)
    assert not torch.equal(dropout(states), dropout(states))


def test_gradients_pass_what_is_kept_and_nothing_else():
    torch.manual_seed(0)
    states = torch.randn(3, 50, requires_grad=True)
    found = cheap_dropout(states, 0.25)
    found.sum().backward()
    torch.testing.assert_close(states.grad, torch.where(found != 0, 4 / 3, 0.0))


def test_cheaper_dropout_where_there_is_nothing_to_draw():
    states = torch.randn(4, 4)
    assert torch.equal(cheap_dropout(states, 0.3, training=False), states)
    assert torch.equal(cheap_dropout(states, 0.0), states)
    assert torch.equal(cheap_dropout(states, 1e-6) != 0, torch.ones(4, 4, dtype=torch.bool))
    assert torch.equal(cheap_dropout(states, 1.0), torch.zeros(4, 4))
    assert cheap_dropout(states[:0], 0.3).shape == (0, 4)


def test_cheap_dropout_refuses_what_torchs_does():
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        cheap_dropout(input=torch.ones(3), p=1.5)


@pytest.fixture
def drawn(monkeypatch):
    """How many numbers were drawn by each call of the cheap dropout."""
    calls, own = [], kernels.cheap_dropout

    def counted(input, p=0.5, training=True, inplace=False):
        calls.extend([input.numel()] * (training and p > 0))
        return own(input, p, training, inplace)

    monkeypatch.setattr(kernels, "cheap_dropout", counted)
    return calls


ATTENTION_DROPS = {"bert": "attention_probs_dropout_prob", "roberta": "attention_probs_dropout_prob"}
ATTENTION_DROPS |= {"distilbert": "attention_dropout", "modernbert": "attention_dropout"}


@pytest.mark.parametrize("architecture", ATTENTION_DROPS)
@pytest.mark.parametrize("kind", ["sdpa", "eager", "packed"])
def test_all_dropout_of_a_model_draws_cheaply_until_another_does_not(tiny, drawn, architecture, kind):
    """In modules and in attention; torch is not asked to draw."""
    options = {ATTENTION_DROPS[architecture]: 0.1, "attn_implementation": "eager" if kind == "eager" else "sdpa"}
    model = AutoModelForSequenceClassification.from_pretrained(tiny(architecture), **options).train()
    if kind == "packed":
        Packing(model)
    choose_dropout(cheaper=True)
    state = torch.get_rng_state()
    model(**BATCH)
    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    rows, longest = BATCH["input_ids"].shape
    assert drawn.count(rows * heads * longest**2) == layers
    words = sum(-(-numbers // 4) for numbers in drawn)  # of 64 bits: as many as the generator has given
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.empty(words, dtype=torch.int64).random_(-(2**63), None)
    assert torch.equal(torch.get_rng_state(), after)
    model.eval()(**BATCH)
    assert torch.equal(torch.get_rng_state(), after)
    seen = len(drawn)
    choose_dropout(cheaper=False)
    model.train()(**BATCH)
    assert len(drawn) == seen


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
def test_cheap_attention_is_attention(mask, monkeypatch):
    """What it gives with dropout that drops nothing, and its gradients, are SDPA's; nothing but dropout was changed."""
    states = [torch.randn(3, 2, 7, 8, generator=torch.Generator().manual_seed(n), requires_grad=True) for n in range(3)]
    seen = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    seen[1, :, :, 4:] = False
    given = {"none": None, "bool": seen, "added": torch.zeros(3, 1, 7, 7).masked_fill(~seen, -1e9)}[mask]
    expected = kernels.torchs_attention(*states, given, scale=0.3)
    monkeypatch.setattr(kernels, "cheap_dropout", lambda weights, p: weights)
    found = kernels.cheap_attention(*states, given, dropout_p=0.1, scale=0.3)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(result.square().sum(), states) for result in (expected, found)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one)


def test_cheap_attention_drops_as_many_weights_as_it_should():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 2, 300, 8)
    weights = kernels.cheap_attention(query, key, torch.eye(300).expand(4, 2, 300, 300), dropout_p=0.1)
    kept = weights != 0
    count, dropped = kept.numel(), round(0.1 * 2**16) / 2**16
    assert abs(int(kept.sum()) - count * (1 - dropped)) < 4.5 * math.sqrt(count * dropped * (1 - dropped))
    whole = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(8), dim=-1)
    torch.testing.assert_close(weights[kept], whole[kept] / (1 - dropped))


def test_causal_attention_is_torchs():
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    torch.manual_seed(0)
    found = kernels.cheap_attention(query, key, value, dropout_p=0.1, is_causal=True)
    torch.manual_seed(0)
    assert torch.equal(found, kernels.torchs_attention(query, key, value, dropout_p=0.1, is_causal=True))


def test_a_model_with_cheaper_dropout_works_under_autocast(tiny, drawn):
    model = model_of(tiny)
    expected = model.eval()(**BATCH).logits
    choose_dropout(cheaper=True)
    assert torch.equal(model.eval()(**BATCH).logits, expected)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**BATCH).logits.float().sum()
    assert drawn
    loss.backward()
    assert torch.isfinite(loss)
    half = cheap_dropout(torch.ones(100, dtype=torch.bfloat16), 0.5)
    assert half.dtype == torch.bfloat16
    assert set(half.unique().tolist()) == {0.0, 2.0}


class Asked(TorchDispatchMode):
    """Counts the times that Python asks a tensor for its value: on a GPU, waits."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.times += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "modernbert"])
def test_no_mask_is_waited_for(tiny, architecture):
    """As `adapt` sees to on a GPU; the logits are the same."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny(architecture), attn_implementation="sdpa").eval()
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[0, 4:] = 0
    batches = [{"input_ids": torch.randint(5, 20, (3, 9)), "attention_mask": some} for some in (mask, mask[1:])]
    batches[1]["input_ids"] = batches[1]["input_ids"][1:]
    expected = [model(**batch).logits for batch in batches]
    with Asked() as before:
        model(**batches[0])
    assert before.times > 0  # else transformers has changed, and `always_mask` can go
    try:
        kernels.always_mask()
        with Asked() as asked:
            found = [model(**batch).logits for batch in batches]
            found[0].sum().backward()
        assert asked.times == 0
    finally:
        AttentionMaskInterface.register("sdpa", sdpa_mask)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))
