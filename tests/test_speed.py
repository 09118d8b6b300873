"""What a run reports about its speed, and the options that change speed and nothing else."""

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import run_command, run_script
from safetensors.torch import load_file

from ftloop import evaluation, sampler
from ftloop.loader import count_workers
from ftloop.tasks.text_classification import TextClassification


@pytest.fixture
def command(tiny, colours):
    steps = ["--max-steps", "7", "--log-every", "3"]
    return ["train.py", "configs/text.py", "--model", tiny("bert"), *colours, *steps]


def loss_lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train" and line["name"] == "loss"]


def losses(run: Path) -> list[float]:
    values = [line["value"] for line in loss_lines(run)]
    assert values
    return values


def speeds(run: Path) -> list[dict[str, float]]:
    return [line["speed"] for line in loss_lines(run) if "speed" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


# What is reported


def test_metrics_have_the_share_of_time_spent_waiting_for_data(command, tmp_path):
    result = run_script(*command, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    measured = speeds(tmp_path / "run")
    assert len(measured) == 3  # after steps 3, 6 and 7
    assert all(0 <= speed["data_wait"] < 1 < speed["rows_per_second"] for speed in measured)


def test_checkpoints_record_the_matrix_backend(command, tmp_path):
    assert run_script(*command, "--matmul", "default").code == 0
    manifest = next((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))
    assert json.loads(manifest.read_text())["environment"]["matmul_backend"] == "default"


# Data workers


def test_workers_are_used_for_rows_that_are_computed_while_a_gpu_trains(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    images, texts = SimpleNamespace(), SimpleNamespace(is_deterministic=True)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert count_workers("auto", images, gpu) == 8
    assert count_workers("auto", images, cpu) == 0
    assert count_workers("auto", texts, gpu) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_workers("auto", images, gpu) == 2
    assert count_workers(3, texts, cpu) == 3


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--max-tokens", "100", "--micro-batch-size", "2"],
            "--max-tokens: cannot be combined with",
        ),
        (["--max-tokens", "9"], "--max-tokens: is 9, but the longest training row has 14 tokens"),
        (
            ["--max-tokens", "100", "--no-group-by-length"],
            "--max-tokens: needs rows that are grouped by length",
        ),
        (
            ["--group-by-length", "--pad-to", "max"],
            "--group-by-length: the training rows have no lengths",
        ),
        (["--matmul", "tf32"], "--matmul tf32 needs an NVIDIA GPU, but the device is 'cpu'"),
        (["--matmul", "onednn", "--precision", "bf16"], "--matmul onednn is for fp32 on a CPU"),
        (
            ["--compile", "--packing", "--check"],
            "--compile: cannot be combined with --packing: every batch would be compiled anew",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(command, options, message):
    result = run_script(*command, *options)
    assert result.code == 2
    assert message in " ".join(result.err.split())


@pytest.fixture
def micro_batch_tokens(monkeypatch):
    """The tokens of each micro-batch of training, padding included."""
    tokens = []
    compute_losses = TextClassification.compute_losses

    def counting(task, model, batch):
        tokens.append(batch["input_ids"].numel())
        return compute_losses(task, model, batch)

    monkeypatch.setattr(TextClassification, "compute_losses", counting)
    return tokens


def test_batches_limited_by_tokens_have_the_same_losses(command, tmp_path, micro_batch_tokens):
    command += ["--dropout", "0", "--log-every", "1"]
    assert run_script(*command, "--run-dir", tmp_path / "rows").code == 0
    assert max(micro_batch_tokens) > 40
    micro_batch_tokens.clear()
    result = run_script(*command, "--max-tokens", "40", "--run-dir", tmp_path / "tokens")
    assert result.code == 0, result.err
    assert max(micro_batch_tokens) <= 40
    expected = pytest.approx(losses(tmp_path / "rows"), rel=1e-5)
    assert losses(tmp_path / "tokens") == expected


def test_long_texts_are_divided_on_a_cpu_by_default(
    command, tmp_path, monkeypatch, micro_batch_tokens
):
    """The same losses and scores, and no limit where a micro-batch size is given."""
    command += ["--dropout", "0", "--log-every", "1"]
    assert run_script(*command).code == 0
    monkeypatch.setattr(sampler, "MAX_TOKENS_ON_CPU", 40)
    monkeypatch.setattr(evaluation, "MAX_TOKENS_ON_CPU", 40)
    micro_batch_tokens.clear()
    assert run_script(*command, "--run-dir", tmp_path / "divided").code == 0
    assert max(micro_batch_tokens) <= 40
    expected = pytest.approx(losses(tmp_path / "run"), rel=1e-5)
    assert losses(tmp_path / "divided") == expected
    scores = [
        json.loads((tmp_path / name / "scores.json").read_text()) for name in ("run", "divided")
    ]
    assert scores[1]["test"]["loss"] == pytest.approx(scores[0]["test"]["loss"], rel=1e-5)
    sized = ["--micro-batch-size", "8", "--run-dir", tmp_path / "sized"]
    assert run_script(*command, *sized).code == 0
    assert max(micro_batch_tokens) > 40


def test_kept_memory_changes_no_bit(command, tmp_path):
    for name, option in (("kept", "--keep-memory"), ("returned", "--no-keep-memory")):
        result = run_command("python", *command, option, "--run-dir", str(tmp_path / name))
        assert result.code == 0, result.err
    kept, returned = weights(tmp_path / "kept"), weights(tmp_path / "returned")
    assert all(torch.equal(kept[name], returned[name]) for name in kept)


def test_a_compiled_model_learns_the_same_and_keeps_its_names(command, tmp_path, monkeypatch):
    """The model is only traced: generating faster code takes the compiler a minute."""
    import torch._dynamo

    compiled_shapes = []

    def backend(graph, inputs):
        compiled_shapes.append([tuple(value.shape) for value in inputs])
        return graph.forward

    traced = functools.partialmethod(torch.nn.Module.compile, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    limit = torch._dynamo.config.recompile_limit
    command += ["--dropout", "0", "--pad-to-multiple-of", "32"]
    assert run_script(*command).code == 0
    assert not compiled_shapes
    result = run_script(*command, "--compile", "--run-dir", tmp_path / "compiled")
    assert result.code == 0, result.err
    assert "--compile is slow on a CPU" in result.err
    assert compiled_shapes
    assert torch._dynamo.config.recompile_limit == limit
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "run"), rel=1e-5)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "run").keys()


def test_a_run_undoes_what_its_setups_changed(command, tmp_path):
    """However it ends: finished, or with an error in the options."""
    before = dict(os.environ)
    assert run_script(*command, "--deterministic").code == 0
    assert not torch.are_deterministic_algorithms_enabled()
    options = ["--deterministic", "--matmul", "tf32", "--run-dir", tmp_path / "refused"]
    assert run_script(*command, *options).code == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == before.get("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize(
    ("max_length", "multiple"), [(512, 64), (128, 64), (100, 50), (32, 32), (127, 127)]
)
def test_texts_are_padded_to_few_lengths_for_the_compiler(max_length, multiple):
    task = TextClassification(model="x", max_length=max_length)
    assert task.with_few_batch_shapes().pad_to_multiple_of == multiple
    task = TextClassification(model="x", max_length=max_length, pad_to_multiple_of=16)
    assert task.with_few_batch_shapes().pad_to_multiple_of == 16
