"""FSDP2 keeps the laws: a sharded run equals a replicated one and leaves the same files.

accelerate shards on GPUs only. Here its FSDP2 code runs on two CPU processes: a driver sets the
state that accelerate itself sets where it finds a GPU. All that follows runs as on GPUs, with gloo
in place of NCCL.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import ranks, run_script
from safetensors.torch import load_file
from torch import nn

from ftloop import checkpoint
from ftloop.devices.fsdp import FSDP2, FSDP2Plugin
from ftloop.errors import UserError

DRIVER = """
import accelerate, runpy, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from ftloop import distributed

def sharding_accelerator(**options):
    accelerator = accelerate.Accelerator(**options)
    plugin = options["fsdp_plugin"]
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator

distributed.Accelerator = sharding_accelerator
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LAUNCHER = {  # what `accelerate launch` with configs/fsdp2.yaml sets
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


# The setup by itself


@pytest.fixture
def environment(monkeypatch):
    """`environment(**variables)`: what the launcher sets. Nothing else of FSDP is set."""
    for name in (*LAUNCHER, "FSDP_AUTO_WRAP_POLICY"):
        monkeypatch.delenv(name, raising=False)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_without_the_launcher_nothing_is_sharded_and_nothing_changes(environment):
    before = dict(os.environ)
    setup = FSDP2()
    assert setup.accelerator_options() == {}
    setup.prepare_model(nn.Linear(2, 2), Accelerator(cpu=True))
    assert dict(os.environ) == before
    setup.undo()
    assert dict(os.environ) == before


def test_the_launcher_gets_the_plugin_and_its_environment_back(environment):
    environment(**LAUNCHER)
    before = dict(os.environ)
    setup = FSDP2()
    options = setup.accelerator_options()
    assert list(options) == ["fsdp_plugin"]
    assert isinstance(options["fsdp_plugin"], FSDP2Plugin)
    assert options["fsdp_plugin"].fsdp_version == 2
    # Otherwise all ranks but one would load empty weights.
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"].lower() == "false"
    setup.undo()
    setup.undo()
    assert dict(os.environ) == before


def test_the_layers_of_a_model_are_sharded_one_by_one(environment):
    environment(**LAUNCHER)
    setup = FSDP2()
    plugin = setup.accelerator_options()["fsdp_plugin"]
    model = nn.ModuleDict({"heads": nn.ModuleList([nn.Linear(2, 2)]), "layers": nn.ModuleList()})
    model["layers"].extend(nn.TransformerEncoderLayer(4, 2) for _ in range(3))
    plugin.set_auto_wrap_policy(model)
    setup.undo()
    assert plugin.transformer_cls_names_to_wrap == ["TransformerEncoderLayer"]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({**LAUNCHER, "FSDP_VERSION": "1"}, "FSDP 1 is not supported: .* Use --fsdp_version 2"),
        (
            {**LAUNCHER, "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "fsdp_activation_checkpointing is not supported: .* ftloop's --gradient-checkpointing",
        ),
        (
            {**LAUNCHER, "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params is not supported: .* Turn it off",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported: its engine takes the"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
            "a parallelism config is not supported: it divides more than rows",
        ),
    ],
)
def test_settings_under_which_a_law_would_not_hold_are_refused(environment, variables, reason):
    environment(**variables)
    with pytest.raises(UserError, match=f"^accelerate launch: {reason}"):
        FSDP2().accelerator_options()


def test_shards_on_a_cpu_are_refused_since_accelerate_would_silently_not_shard(environment):
    environment(**LAUNCHER)
    message = "accelerate launch --use_fsdp needs GPUs, but the device is 'cpu'"
    with pytest.raises(UserError, match=message):
        FSDP2().prepare_model(nn.Linear(2, 2), Accelerator(cpu=True))


def test_fp16_is_refused(environment):
    class Sharded:
        is_fsdp2, mixed_precision = True, "fp16"

    environment(**LAUNCHER)
    with pytest.raises(UserError, match="--precision fp16 was never tested with FSDP2"):
        FSDP2().prepare_model(nn.Linear(2, 2), Sharded())


# Whole runs


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    file = tmp_path_factory.mktemp("driver") / "driver.py"
    file.write_text(DRIVER)
    return str(file)


@pytest.fixture
def command(tiny, colours):
    # 4 micro-batches of 2 rows, on two ranks two each; steps 6 and 12 have 3 rows.
    sizes = ["--micro-batch-size", "2", "--epochs", "2", "--no-group-by-length"]
    saving = ["--save-every", "4", "--keep-last", "2", "--keep-best", "1"]
    logging = ["--log-every", "4", "--digest-every", "4"]
    options = [*colours, *sizes, *saving, *logging]
    return ["train.py", "configs/text.py", "--model", tiny("bert"), *options]


def train(*words: Any, sharded: bool = False) -> str:
    """Train on two ranks, and return what was logged."""
    variables = {**LAUNCHER, "PYTHONPATH": "."} if sharded else {}
    result = ranks(2, *map(str, words), **variables)
    assert result.code == 0, result.err
    return result.err


def values(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["name"] == name]


def last_checkpoint(run: Path) -> Path:
    return checkpoint.find_checkpoints(run / "checkpoints")[-1]


def digest(run: Path) -> dict[str, Any]:
    """Return the bytes that a run leaves, and its metrics without their times."""
    files = [last_checkpoint(run) / name for name in ("weights.pt", "training.pt")]
    files += [run / name for name in ("model/model.safetensors", "scores.json", "ledger.jsonl")]
    contents = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("time", "items_per_second", "speed"):
            line.pop(name, None)
    return {**contents, "metrics": lines}


def interrupt(run: Path, step: int, copy: Path) -> Path:
    """Copy a run as it was when it was killed after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    (copy / "scores.json").unlink()
    for later in checkpoint.find_checkpoints(copy / "checkpoints"):
        if checkpoint.step_of(later) > step:
            shutil.rmtree(later)
    return copy


def test_sharded_and_replicated_runs_are_equal_and_resume_each_other(command, driver, tmp_path):
    replicated, sharded = tmp_path / "replicated", tmp_path / "sharded"
    command += ["--dropout", "0"]
    train(*command, "--run-dir", replicated)
    train(driver, *command, "--run-dir", sharded, sharded=True)
    resumed = interrupt(replicated, 8, tmp_path / "replicated, then sharded")
    log = train(driver, *command, "--run-dir", resumed, sharded=True)
    assert "resume: the environment has changed (is_sharded False -> True)" in log
    alone = interrupt(sharded, 8, tmp_path / "sharded, then one process")
    result = run_script(*command, "--run-dir", alone)
    assert result.code == 0, result.err
    for change in ("num_processes 2 -> 1", "is_sharded True -> False"):
        assert change in result.err

    expected = checkpoint.load_weights(last_checkpoint(replicated))
    for run in (sharded, resumed, alone):
        for name in ("loss", "grad_norm", "accuracy"):
            assert values(run, name) == pytest.approx(values(replicated, name), rel=1e-5), name
        assert len(values(run, "grad_norm")) == 12
        weights = checkpoint.load_weights(last_checkpoint(run))
        assert list(weights) == list(expected)
        for name, tensor in weights.items():
            assert type(tensor) is torch.Tensor
            assert tensor.shape == expected[name].shape


def test_a_sharded_run_resumes_to_the_same_bits_and_exports_the_best_weights(
    command, driver, tmp_path
):
    run = tmp_path / "run"
    train(driver, *command, sharded=True)
    resumed = interrupt(run, 8, tmp_path / "resumed")
    log = train(driver, *command, "--run-dir", resumed, sharded=True)
    assert "resuming from" in log
    assert digest(resumed) == digest(run)

    assert checkpoint.load_environment(last_checkpoint(run))["is_sharded"] is True
    full = checkpoint.load_weights(last_checkpoint(run))
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    content = b"".join(tensor.numpy().tobytes() for tensor in full.values())
    assert lines[-1]["weights"] == hashlib.sha256(content).hexdigest()

    best_step = checkpoint.load_state(last_checkpoint(run)).best_step
    assert best_step < 12  # so finishing loads weights into the sharded model
    best = checkpoint.load_weights(run / "checkpoints" / checkpoint.checkpoint_name(best_step))
    exported = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in exported.items())
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    result = run_script("evaluate.py", run, "--split", "test", "--json")
    scores = json.loads((run / "scores.json").read_text())["test"]
    assert json.loads(result.out) == pytest.approx(scores, rel=1e-5)


def test_bf16_shards_have_float32_losses_and_work_with_gradient_checkpointing(
    command, driver, tmp_path
):
    command += ["--dropout", "0", "--max-steps", "3", "--precision", "bf16"]
    assert run_script(*command, "--run-dir", tmp_path / "replicated").code == 0
    train(driver, *command, "--gradient-checkpointing", sharded=True)
    for name in ("loss", "grad_norm"):
        expected = pytest.approx(values(tmp_path / "replicated", name), rel=0.05)
        assert values(tmp_path / "run", name) == expected, name
    losses = torch.tensor(values(tmp_path / "run", "loss")[:2]) * 8  # sums of 8 rows
    assert not torch.equal(losses, losses.bfloat16().float())


def test_a_refusal_ends_a_run_with_an_error_of_the_user(command, environment):
    environment(**LAUNCHER)
    result = run_script(*command)
    assert result.code == 2
    assert "error: accelerate launch --use_fsdp needs GPUs, but the device is 'cpu'" in result.err
