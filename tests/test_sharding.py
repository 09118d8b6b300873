"""FSDP2 keeps the laws: a run in shards is the run with whole copies, and leaves the same files.

accelerate shards on GPUs only. Here, its own FSDP2 path runs on two CPU processes: a driver tells its state that it is
to shard, as it does itself where it finds a GPU; all after that is what runs on GPUs, but for gloo in place of NCCL.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ranks, run_script
from safetensors.torch import load_file
from test_resume import digest

from ftloop import checkpoint

DRIVER = """
import accelerate, runpy, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from ftloop import distributed as devices

def accelerator(**arguments):
    made = accelerate.Accelerator(**arguments)
    plugin = arguments["fsdp_plugin"]
    if made.mixed_precision != "no":
        plugin.set_mixed_precision(made.mixed_precision)
    made.state.distributed_type, made.state.fsdp_plugin = DistributedType.FSDP, plugin
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return made

devices.Accelerator = accelerator
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SHARDS = {  # what configs/fsdp2.yaml makes `accelerate launch` tell its processes
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "PYTHONPATH": ".",
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    file = tmp_path_factory.mktemp("driver") / "driver.py"
    file.write_text(DRIVER)
    return str(file)


@pytest.fixture
def words(tiny, colours):
    # 4 micro-batches of 2 rows between two processes: two rounds a step; steps 6 and 12 have 3 rows.
    sizes = ("--micro-batch-size", "2", "--epochs", "2", "--digest-every", "4", "--save-every", "4")
    return [
        "train.py",
        "configs/text.py",
        "--task.model",
        tiny("bert"),
        *colours,
        *sizes,
        "--batching",
        "random",
        "--keep",
        "last=2,best=1",
    ]


def train(*words, processes: int = 2, **environment: str) -> str:
    result = ranks(processes, *map(str, words), **environment)
    assert result.code == 0, result.err
    return result.err


def values(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["name"] == name]


def last(run: Path) -> Path:
    return checkpoint.find(run / "checkpoints")[-1]


def cut(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run as it was when it was killed after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    (copy / "scores.json").unlink()
    for later in checkpoint.find(copy / "checkpoints"):
        if checkpoint.step_of(later) > step:
            checkpoint.remove(later)
    return copy


def test_shards_are_the_run_with_whole_copies_and_either_goes_on_with_the_other(words, driver, tmp_path):
    plain, shards = tmp_path / "plain", tmp_path / "shards"
    words += ["--task.dropout", "0"]
    train(*words, "--run-dir", plain)
    train(driver, *words, "--run-dir", shards, **SHARDS)
    resumed = cut(plain, 8, tmp_path / "plain, then shards")
    assert "(weights whole -> sharded)" in train(driver, *words, "--run-dir", resumed, **SHARDS)
    alone = cut(shards, 8, tmp_path / "shards, then one process")
    result = run_script(*words, "--run-dir", alone)
    assert result.code == 0, result.err
    assert "processes 2 -> 1, weights sharded -> whole" in result.err

    theirs = checkpoint.load_weights(last(plain))
    for run in (shards, resumed, alone):
        for name in ("loss", "gradient_norm", "accuracy"):
            assert values(run, name) == pytest.approx(values(plain, name), rel=1e-5), (run.name, name)
        assert len(values(run, "gradient_norm")) == 12
        ours = checkpoint.load_weights(last(run))
        assert list(ours) == list(theirs)
        assert {type(tensor) for tensor in ours.values()} == {torch.Tensor}
        assert {name: tensor.shape for name, tensor in ours.items()} == {
            name: tensor.shape for name, tensor in theirs.items()
        }


def test_shards_resume_with_the_same_bits_and_keep_the_best_weights(words, driver, tmp_path):
    run = tmp_path / "run"
    train(driver, *words, **SHARDS)
    resumed = cut(run, 8, tmp_path / "resumed")
    assert "resume: from" in train(driver, *words, "--run-dir", resumed, **SHARDS)
    assert digest(resumed) == digest(run)

    assert checkpoint.load_made_by(last(run))["weights"] == "sharded"
    whole = checkpoint.load_weights(last(run))
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    content = b"".join(tensor.numpy().tobytes() for tensor in whole.values())
    assert lines[-1]["weights"] == hashlib.sha256(content).hexdigest()

    best = checkpoint.load_state(last(run)).best_step
    assert best < 12  # it was loaded again
    kept = checkpoint.load_weights(run / "checkpoints" / checkpoint.name_of(best))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in load_file(run / "model/model.safetensors").items())
    assert json.loads((run / "model/config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    result = run_script("evaluate.py", run, "--split", "test", "--json")
    assert json.loads(result.out) == pytest.approx(json.loads((run / "scores.json").read_text())["test"], rel=1e-5)


def test_bf16_in_shards_has_losses_in_float32_and_goes_with_gradient_checkpointing(words, driver, tmp_path):
    words += ["--task.dropout", "0", "--max-steps", "3", "--precision", "bf16"]
    assert run_script(*words, "--run-dir", tmp_path / "plain").code == 0
    train(driver, *words, "--gradient-checkpointing", **SHARDS)
    for name in ("loss", "gradient_norm"):
        assert values(tmp_path / "run", name) == pytest.approx(values(tmp_path / "plain", name), rel=0.05), name
    losses = torch.tensor(values(tmp_path / "run", "loss")[:2]) * 8  # sums of 8 rows
    assert not torch.equal(losses, losses.bfloat16().float())


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({**SHARDS, "FSDP_VERSION": "1"}, "take --fsdp_version 2"),
        ({**SHARDS, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "take ftloop's --gradient-checkpointing"),
        ({**SHARDS, "FSDP_OFFLOAD_PARAMS": "true"}, "turn it off"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "step inside backward"),
        (SHARDS, "shards need GPUs, and accelerate sees cpu"),
    ],
)
def test_what_would_not_keep_the_laws_is_refused_in_words(told, reason, words, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    result = run_script(*words)
    assert result.code == 2
    assert reason in result.err
