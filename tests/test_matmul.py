"""The matrix backend: fp32 stays fp32, torch's settings come back, and a run keeps its backend."""

import copy
import json
import os
import time
from dataclasses import asdict, replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForSequenceClassification

from ftloop.devices import matmul, matmul_probe
from ftloop.devices.attention import use_eager_attention
from ftloop.devices.inference import inference_setups
from ftloop.devices.matmul import ONEDNN_CACHE, MatmulBackend
from ftloop.devices.matmul_probe import (
    MAX_ERROR_RATIO,
    Measurement,
    fastest_backend,
    is_disturbed,
    measure,
    onednn_error_ratio,
    read_cache,
    write_cache,
)
from ftloop.devices.matmul_settings import MatmulSettings, set_matmul_backend
from ftloop.errors import UserError


@pytest.fixture(autouse=True)
def unchanged_settings():
    """Each test leaves torch's settings and the environment as it found them."""
    settings, cache = MatmulSettings.current(), os.environ.get(ONEDNN_CACHE)
    yield
    assert MatmulSettings.current() == settings
    assert os.environ.get(ONEDNN_CACHE) == cache


class FakeAccelerator:
    """A device and a precision; the choice of a backend needs nothing else."""

    is_main_process = True

    def __init__(self, device: str = "cpu", mixed_precision: str = "no"):
        self.device = torch.device(device)
        self.mixed_precision = mixed_precision


def choose(requested: str, recorded: str | None = None, device: str = "cpu", precision="no") -> str:
    """Return the backend that a run would use."""
    setup = MatmulBackend(requested)
    setup.resume({} if recorded is None else {"matmul_backend": recorded})
    setup.prepare_model(nn.Linear(2, 2), FakeAccelerator(device, precision))
    backend = setup.environment()["matmul_backend"]
    setup.undo()
    return backend


@pytest.fixture
def other_cpu(monkeypatch, tmp_path):
    """`other_cpu(measurement)`: what measuring finds on another machine; None if it must not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def pretend(measurement: Measurement | None) -> None:
        def measured() -> Measurement:
            assert measurement is not None, "measured in vain"
            return replace(measurement, measured_at=time.time())

        def error_ratio() -> float:
            return measured().error_ratio

        monkeypatch.setattr(matmul_probe, "measure", measured)
        monkeypatch.setattr(matmul, "onednn_error_ratio", error_ratio)

    return pretend


FASTER = Measurement(speedup=1.66, error_ratio=1.4)
SLOWER = Measurement(speedup=0.9, error_ratio=1.4)
NOT_FP32 = Measurement(speedup=3.0, error_ratio=8000)
CLOSE = Measurement(speedup=1.15, error_ratio=1.4)


# The measurement


def test_measuring_is_quick_and_changes_nothing_in_torch():
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    start = time.process_time()
    measurement = measure()
    assert time.process_time() - start < 1  # 0.3 seconds without other work on the machine
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert measurement.backend == "default" or measurement.is_fp32


def test_backends_are_timed_in_turns_if_both_are_fp32(monkeypatch):
    backends = []

    def multiply(backend, factors):
        backends.append(backend)
        return [left @ right + (backend == "onednn") * 1e-9 for left, right in factors]

    monkeypatch.setattr(matmul_probe, "_multiply", multiply)
    measurement = measure()
    assert len(backends) >= 2 * matmul_probe.MIN_ROUNDS
    assert backends[::2] == ["default"] * len(backends[::2])
    assert backends[1::2] == ["onednn"] * len(backends[1::2])
    assert 0.5 < measurement.speedup < 2
    assert measurement.error_ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("rows", "width", "out"), [(1024, 384, 1536), (33, 1536, 384)])
def test_products_of_the_chosen_backend_are_fp32(rows, width, out):
    left, right = torch.randn(rows, width), torch.randn(width, out)
    exact = left.double() @ right.double()
    setup = MatmulBackend("auto")
    setup.prepare_model(nn.Linear(2, 2), FakeAccelerator())
    product = left @ right
    setup.undo()
    # fp32: 3e-7, TF32: 2e-4, bf16: 3e-3
    assert float((product - exact).norm() / exact.norm()) < 2e-6


def test_errors_distinguish_bf16_from_fp32():
    factors = [(torch.randn(64, 384), torch.randn(384, 128))]
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        products = [(left.to(dtype) @ right.to(dtype)).float() for left, right in factors]
        errors[dtype] = matmul_probe.relative_error(products, factors)
    assert errors[torch.bfloat16] > 100 * MAX_ERROR_RATIO * errors[torch.float32]


def test_error_ratio_of_this_cpu_decides_whether_onednn_is_fp32():
    left, right = torch.randn(64, 384), torch.randn(384, 128)
    exact = left.double() @ right.double()
    settings = MatmulSettings.current()
    set_matmul_backend("onednn")
    error = float((left @ right - exact).norm() / exact.norm())
    settings.restore()
    assert (onednn_error_ratio() <= MAX_ERROR_RATIO) == (error < 2e-6)


# torch's settings


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_settings_are_restored_whatever_they_were(precision):
    before = MatmulSettings.current()
    torch.set_float32_matmul_precision(precision)
    users = MatmulSettings.current()
    for backend in ("onednn", "tf32", "default"):
        set_matmul_backend(backend)
        users.restore()
        assert MatmulSettings.current() == users
        assert torch.get_float32_matmul_precision() == precision
    measure()
    assert MatmulSettings.current() == users
    before.restore()


def test_default_means_the_settings_of_a_new_process():
    before = MatmulSettings.current()
    set_matmul_backend("default")
    assert MatmulSettings.current() == before
    set_matmul_backend("onednn")
    assert torch.get_float32_matmul_precision() == "medium"
    set_matmul_backend("default")
    assert MatmulSettings.current() == before


def test_undo_restores_torch_and_the_environment(other_cpu):
    other_cpu(FASTER)
    before = MatmulSettings.current()
    setup = MatmulBackend("auto")
    setup.undo()  # a run may end before the model is built
    setup.prepare_model(nn.Linear(2, 2), FakeAccelerator())
    assert torch.get_float32_matmul_precision() == "medium"
    assert os.environ[ONEDNN_CACHE] == "16384"
    setup.undo()
    setup.undo()
    assert MatmulSettings.current() == before
    assert ONEDNN_CACHE not in os.environ


def test_a_cache_size_of_the_user_is_kept(other_cpu, monkeypatch):
    other_cpu(FASTER)
    monkeypatch.setenv(ONEDNN_CACHE, "7")
    setup = MatmulBackend("auto")
    setup.prepare_model(nn.Linear(2, 2), FakeAccelerator())
    assert os.environ[ONEDNN_CACHE] == "7"
    setup.undo()
    assert os.environ[ONEDNN_CACHE] == "7"


# The choice


def test_the_option_decides_then_the_recorded_backend_then_the_measurement(other_cpu):
    other_cpu(None)
    assert (
        choose("default") == choose("default", "onednn") == choose("auto", "default") == "default"
    )
    other_cpu(SLOWER)
    assert choose("auto") == "default"
    assert choose("auto", "onednn") == choose("onednn") == choose("onednn", "default") == "onednn"
    other_cpu(replace(FASTER, speedup=2.0))
    assert choose("auto", "default") == "default"


def test_a_new_run_uses_the_faster_backend(other_cpu):
    other_cpu(FASTER)
    assert choose("auto") == "onednn"


def test_only_fp32_is_chosen(other_cpu):
    other_cpu(NOT_FP32)
    assert choose("auto") == choose("auto", "onednn") == "default"
    message = r"--matmul onednn does not multiply in fp32 on this CPU: its error is 8000 times"
    with pytest.raises(UserError, match=message):
        choose("onednn")


def test_half_precision_and_other_devices_use_the_default(other_cpu):
    other_cpu(None)
    assert choose("auto", precision="bf16") == "default"
    assert choose("auto", "onednn", precision="bf16") == "default"
    for device in ("cuda", "mps", "xla"):
        assert choose("auto", device=device) == choose("auto", "onednn", device=device) == "default"


def test_tf32_is_for_gpus(other_cpu):
    other_cpu(None)
    assert choose("tf32", device="cuda") == choose("auto", "tf32", device="cuda") == "tf32"
    for device in ("cpu", "mps", "xla"):
        with pytest.raises(
            UserError, match=f"--matmul tf32 needs an NVIDIA GPU, but .* '{device}'"
        ):
            choose("tf32", device=device)
    with pytest.raises(UserError, match=r"--matmul onednn is for fp32 on a CPU, .* 'bf16'"):
        choose("onednn", precision="bf16")
    with pytest.raises(UserError, match=r"--matmul onednn is for fp32 on a CPU, .* 'cuda'"):
        choose("onednn", device="cuda")


def test_a_model_that_was_trained_in_tf32_can_be_evaluated_on_a_cpu(other_cpu):
    other_cpu(SLOWER)
    (setup,) = inference_setups([MatmulBackend("tf32")])
    setup.resume({"matmul_backend": "tf32"})
    setup.prepare_model(nn.Linear(2, 2), Accelerator(cpu=True))
    assert setup.environment() == {"matmul_backend": "default"}
    setup.undo()


# The cache


def test_a_clear_measurement_is_made_once(other_cpu, caplog):
    other_cpu(FASTER)
    with caplog.at_level("INFO", "ftloop"):
        assert fastest_backend() == "onednn"
        other_cpu(None)
        assert fastest_backend() == "onednn"
    comparison = "oneDNN has 1.66 times the speed and 1.4 times the error of the default"
    assert caplog.messages == [
        f"matmul backend: onednn; {comparison} (measured now)",
        f"matmul backend: onednn; {comparison} (remembered in {matmul_probe.cache_file()})",
    ]


def test_a_measurement_on_a_busy_machine_is_not_remembered(other_cpu, caplog):
    other_cpu(replace(FASTER, is_busy=True))
    with caplog.at_level("INFO", "ftloop"):
        assert fastest_backend() == "onednn"  # a large difference counts all the same
    assert "(not remembered, because the machine is busy)" in caplog.text
    assert read_cache() is None
    other_cpu(replace(CLOSE, is_busy=True))
    assert fastest_backend() == "default"
    other_cpu(SLOWER)
    assert fastest_backend() == "default"
    assert read_cache().speedup == SLOWER.speedup


def test_a_close_measurement_is_repeated_and_replaced_by_a_clear_one(other_cpu):
    other_cpu(CLOSE)
    assert fastest_backend() == "onednn"
    other_cpu(replace(CLOSE, speedup=1.05))  # on the other side of the threshold, but close, too
    assert fastest_backend() == "onednn"
    other_cpu(replace(SLOWER, is_busy=True))
    assert fastest_backend() == "onednn"
    other_cpu(SLOWER)
    assert fastest_backend() == "default"
    other_cpu(None)
    assert fastest_backend() == "default"


def test_an_old_measurement_is_repeated(other_cpu):
    other_cpu(SLOWER)
    write_cache(replace(FASTER, measured_at=time.time() - 31 * 24 * 3600))
    assert fastest_backend() == "default"
    write_cache(replace(FASTER, measured_at=time.time() - 29 * 24 * 3600))
    other_cpu(None)
    assert fastest_backend() == "onednn"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '"onednn"', '{"matmul": "onednn", "speed": 1.7, "error": 2.0}']
    + [json.dumps({**asdict(FASTER), "speedup": wrong}) for wrong in ("fast", float("nan"), None)],
)
def test_a_cache_that_is_not_readable_is_replaced(other_cpu, content):
    other_cpu(SLOWER)
    file = matmul_probe.cache_file()
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    assert fastest_backend() == "default"
    assert read_cache().speedup == SLOWER.speedup


def test_a_cache_that_cannot_be_written_is_no_error(other_cpu, tmp_path):
    other_cpu(FASTER)
    (tmp_path / "ftloop").write_text("a file in place of the folder")
    assert fastest_backend() == "onednn"


def test_the_cache_distinguishes_cpus_and_thread_counts(other_cpu, monkeypatch):
    other_cpu(FASTER)
    file = matmul_probe.cache_file()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 1000)
        assert matmul_probe.cache_file() != file
    monkeypatch.setattr(matmul_probe, "describe_cpu", lambda: "another")
    assert matmul_probe.cache_file() != file


def test_contention_is_recognized_from_the_timings_and_from_the_load(monkeypatch):
    assert not is_disturbed([1.0, 1.02, 1.04, 1.06, 3.0])  # one interruption does not matter
    assert is_disturbed([1.0, 1.3, 1.3, 1.4, 1.5])
    assert is_disturbed([1.0, 1.0, 1.0])  # too slow for a processor of its own
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (4.5, 1.0, 1.0))
    assert matmul_probe.is_load_high()
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 9.0, 9.0))
    assert not matmul_probe.is_load_high()


def test_only_the_main_process_measures(other_cpu, monkeypatch):
    other_cpu(None)
    accelerator = FakeAccelerator()
    accelerator.is_main_process = False
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda _: [1.0, "onednn"])
    setup = MatmulBackend("auto")
    setup.prepare_model(nn.Linear(2, 2), accelerator)
    assert setup.environment() == {"matmul_backend": "onednn"}
    setup.undo()


# Attention


def build_model(tiny, **options):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny("bert"), **options)


BATCH = {
    "input_ids": torch.randint(5, 20, (4, 9)),
    "attention_mask": torch.ones(4, 9, dtype=torch.int64),
}
BATCH["attention_mask"][1:, 5:] = 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_eager_attention_computes_and_drops_the_same(tiny, dropout, tmp_path, other_cpu):
    sdpa = build_model(tiny, attention_probs_dropout_prob=dropout)
    eager = copy.deepcopy(sdpa)
    other_cpu(FASTER)
    setup = MatmulBackend("default")
    setup.prepare_model(eager, FakeAccelerator())
    assert eager.config._attn_implementation == "sdpa"
    setup = MatmulBackend("auto")
    setup.prepare_model(eager, FakeAccelerator())
    setup.undo()
    assert eager.config._attn_implementation == "eager"
    for training in (False, True):
        logits = []
        for model in (sdpa.train(training), eager.train(training)):
            torch.manual_seed(1)
            logits.append(model(**BATCH).logits)
        torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    eager.save_pretrained(tmp_path)
    assert "eager" not in (tmp_path / "config.json").read_text()


def test_another_attention_implementation_stays(tiny):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("of_a_fork", sdpa_attention_forward)
    model = build_model(tiny)
    model.set_attn_implementation("of_a_fork")
    use_eager_attention(model)
    assert model.config._attn_implementation == "of_a_fork"


def test_a_plain_module_needs_no_config(tiny):
    plain = nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(4, 2))
    plain.config = {"of": "the user"}
    use_eager_attention(plain)
    assert plain.config == {"of": "the user"}

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = build_model(tiny)

    wrapper = Wrapper()
    use_eager_attention(wrapper)
    assert wrapper.encoder.config._attn_implementation == "eager"
