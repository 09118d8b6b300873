"""Setups for memory, compiling and determinism: same results, and each undoes its changes."""

import ctypes
import functools
import os

import pytest
import torch
from accelerate import Accelerator
from conftest import run_command
from torch import nn
from transformers import AutoModelForSequenceClassification

from ftloop.devices.compile import RECOMPILE_LIMIT, Compile
from ftloop.devices.deterministic import CUBLAS_WORKSPACE, Deterministic
from ftloop.devices.environment import RecordEnvironment
from ftloop.devices.gradient_checkpointing import GradientCheckpointing
from ftloop.devices.inference import inference_setups
from ftloop.devices.keep_memory import KeepMemory, keep_freed_memory
from ftloop.devices.matmul import MatmulBackend
from ftloop.devices.micro_batch_size import AutoMicroBatchSize
from ftloop.errors import UserError

BATCH = {"input_ids": torch.tensor([[2, 6, 7, 8, 3], [2, 9, 10, 11, 3]])}


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def model(tiny):
    folder = tiny("bert")
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients of one backward pass with a fixed seed."""
    model.zero_grad()
    torch.manual_seed(1)
    model.train()(**BATCH).logits.square().sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


# Deterministic


def test_deterministic_algorithms_are_used_until_the_run_ends(accelerator, monkeypatch):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    setup = Deterministic()
    setup.undo()  # a run may end before the model is built
    setup.prepare_model(nn.Linear(2, 2), accelerator)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"
    setup.undo()
    assert not torch.are_deterministic_algorithms_enabled()
    assert CUBLAS_WORKSPACE not in os.environ


def test_a_deterministic_mode_of_the_user_comes_back(accelerator, monkeypatch):
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        setup = Deterministic()
        setup.prepare_model(nn.Linear(2, 2), accelerator)
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ[CUBLAS_WORKSPACE] == ":16:8"
        setup.undo()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ[CUBLAS_WORKSPACE] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


# Gradient checkpointing


def test_gradient_checkpointing_gives_the_same_gradients_and_dropout(model, accelerator):
    expected = gradients(model)
    calls = []
    model.bert.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    setup = GradientCheckpointing()
    setup.prepare_model(model, accelerator)
    found = gradients(model)
    setup.undo()
    assert len(calls) == 2  # forward, and again in the backward pass
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_gradient_checkpointing_of_a_plain_module_is_an_error(accelerator):
    message = "--gradient-checkpointing is not supported by Linear: "
    with pytest.raises(UserError, match=message):
        GradientCheckpointing().prepare_model(nn.Linear(2, 2), accelerator)


# Compiling


@pytest.fixture
def traced_shapes(monkeypatch):
    """The input shapes that were compiled. The compiler only traces: a real one takes long."""
    shapes = []

    def backend(graph, inputs):
        shapes.append([tuple(value.shape) for value in inputs if value.dim() == 2])
        return graph.forward

    traced = functools.partialmethod(nn.Module.compile, backend=backend)
    monkeypatch.setattr(nn.Module, "compile", traced)
    return shapes


def test_compiling_keeps_names_and_gradients(model, accelerator, traced_shapes, caplog):
    import torch._dynamo

    names, expected = list(model.state_dict()), gradients(model)
    limit = torch._dynamo.config.recompile_limit
    setup = Compile()
    setup.undo()
    setup.prepare_model(model, accelerator)
    assert "--compile is slow on a CPU" in caplog.text
    assert torch._dynamo.config.recompile_limit == RECOMPILE_LIMIT > limit
    found = gradients(model)
    setup.undo()
    assert torch._dynamo.config.recompile_limit == limit
    assert traced_shapes
    assert list(model.state_dict()) == names
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


# Kept memory

# Several tensors are freed first: an aligned block is allocated with room to spare, and a small
# block may lie in it when it is free, so that the next tensor of its size does not fit.
PAGE_FAULTS = """
import resource, torch
from ftloop.devices.keep_memory import keep_freed_memory
def page_faults():
    "Pages that the system cleared for a tensor of 64 MB, made after others like it were freed."
    for _ in range(40):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(page_faults(), keep_freed_memory(torch.device("cuda")), page_faults())
print(keep_freed_memory(torch.device("cpu")), page_faults())
"""


def test_kept_memory_is_not_requested_again():
    result = run_command("python", "-c", PAGE_FAULTS)
    assert result.code == 0, result.err
    first, kept_on_gpu, second, kept_on_cpu, third = result.out.split()
    assert kept_on_gpu == "False"
    assert kept_on_cpu == str(hasattr(ctypes.CDLL(None), "mallopt"))
    if kept_on_cpu == "True":
        assert int(first) > 20  # pages, of 2 MB where the system has huge ones
        assert int(third) < int(first) // 10 < int(second)


def test_memory_is_kept_from_the_model_on(accelerator, monkeypatch):
    devices = []
    monkeypatch.setattr("ftloop.devices.keep_memory.keep_freed_memory", devices.append)
    setup = KeepMemory()
    assert setup.accelerator_options() == setup.environment() == {}
    assert devices == []
    setup.prepare_model(nn.Linear(2, 2), accelerator)
    assert devices == [torch.device("cpu")]
    assert not keep_freed_memory(torch.device("mps"))


# The environment


def test_a_changed_environment_is_reported_once_with_what_other_setups_record(accelerator, caplog):
    matmul = MatmulBackend("default")
    setup = RecordEnvironment([matmul])
    setup.prepare_model(nn.Linear(2, 2), accelerator)
    assert setup.environment()["num_processes"] == 1
    assert setup.environment()["device"] == "cpu"
    recorded = {**setup.environment(), **matmul.environment()}
    setup.resume(recorded)
    setup.prepare_model(nn.Linear(2, 2), accelerator)
    assert caplog.messages == []
    setup.resume({**recorded, "num_processes": 4, "matmul_backend": "onednn"})
    setup.prepare_model(nn.Linear(2, 2), accelerator)
    (message,) = caplog.messages
    changes = "num_processes 4 -> 1, matmul_backend onednn -> default"
    assert message.startswith(f"resume: the environment has changed ({changes}). Each step uses")


# Finished runs


def test_setups_of_training_alone_are_left_out_of_evaluation(accelerator):
    keep_memory, deterministic = KeepMemory(), Deterministic()
    training = [deterministic, GradientCheckpointing(), Compile(), AutoMicroBatchSize()]
    training.append(RecordEnvironment())
    setups = inference_setups([*training, keep_memory, MatmulBackend("default")])
    assert setups[0] is keep_memory
    assert isinstance(setups[1], MatmulBackend)
    assert setups[1].requested == "auto"
    assert len(setups) == 2
