"""The laws and the options for GPUs, on a GPU. Skipped where there is none.

python -m pytest tests/test_gpu.py -n 6
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, run_command
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="there is no GPU")

# conftest.py hides the GPU from all other tests.
run_on_gpu = partial(run_command, CUDA_VISIBLE_DEVICES="0", ACCELERATE_USE_CPU="false")


@pytest.fixture
def command(tiny, colours):
    options = ["--metrics", "accuracy", "--log-every", "1"]
    return ["train.py", "configs/text.py", "--model", tiny("bert"), *colours, *options]


@pytest.fixture
def image_command(tmp_path):
    """A tiny ViT on 24 images of one color each."""
    folder = tmp_path / "images"
    for number in range(24):
        split, color = "train" if number < 18 else "test", ("red", "green", "blue")[number % 3]
        file = folder / split / color / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30 + number), color).save(file)
    size = ["hidden_size=16", "num_hidden_layers=2", "num_attention_heads=2"]
    size += ["intermediate_size=32", "patch_size=8"]
    model = ["--model", "vit", "--init", "random", "--image-size", "32", "--model-options", *size]
    data = ["--data", str(folder), "--data.validation", "0", "--run-dir", str(tmp_path / "run")]
    return ["train.py", "configs/image.py", *model, *data, "--batch-size", "6", "--epochs", "2"]


def train(*words: Any, run: Path | None = None) -> Result:
    folder = [] if run is None else ["--run-dir", run]
    result = run_on_gpu("python", *words, *folder)
    assert result.code == 0, result.err[-3000:]
    assert "training on cuda in " in result.err
    return result


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    expected, found = weights(one), weights(other)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")]
    assert values
    return values


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_interrupted_run_ends_with_the_same_bits(command, tmp_path, precision):
    """With dropout. It is interrupted after each of three steps; --deterministic fixes all sums."""
    command += ["--precision", precision, "--deterministic", "--micro-batch-size", "3"]
    train(*command, run=tmp_path / "whole")
    stop = ["--max-minutes", "0.00001", "--run-dir", tmp_path / "interrupted"]
    for step in range(3):
        result = run_on_gpu("python", *command, *stop)
        assert result.code == 143, (step, result.err)
    train(*command, run=tmp_path / "interrupted")
    assert_same_weights(tmp_path / "whole", tmp_path / "interrupted")
    assert losses(tmp_path / "whole") == losses(tmp_path / "interrupted")


def test_a_gpu_learns_what_a_cpu_learns(command, tmp_path):
    command += ["--dropout", "0"]
    train(*command, run=tmp_path / "gpu")
    assert run_command("python", *command, "--run-dir", tmp_path / "cpu").code == 0
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (("--micro-batch-size", "3"), 1e-4),
        (("--packing",), 1e-4),
        (("--gradient-checkpointing",), 1e-4),
        (("--micro-batch-size", "auto"), 1e-4),
        (("--max-tokens", "64"), 1e-4),
        (("--compile",), 1e-4),
        (("--compile", "--precision", "bf16"), 0.05),
        (("--matmul", "tf32"), 0.02),
        (("--precision", "bf16"), 0.05),
        (("--packing", "--precision", "bf16"), 0.05),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else f"within {value}",
)
def test_an_option_learns_the_same(command, tmp_path, options, tolerance):
    """Without dropout, whose draws differ. All runs group rows by length."""
    command += ["--dropout", "0"]
    train(*command, run=tmp_path / "plain")
    train(*command, *options, run=tmp_path / "option")
    assert losses(tmp_path / "option") == pytest.approx(losses(tmp_path / "plain"), rel=tolerance)


def test_data_workers_change_no_bit(image_command, tmp_path):
    image_command += ["--deterministic", "--log-every", "1"]
    train(*image_command, run=tmp_path / "auto")
    train(*image_command, "--workers", "0", run=tmp_path / "none")
    assert_same_weights(tmp_path / "auto", tmp_path / "none")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_and_prediction(command, tmp_path, precision):
    """The scores of the run again, and the same labels on the GPU and on the CPU."""
    train(*command, "--precision", precision)
    run = tmp_path / "run"
    result = run_on_gpu("python", "evaluate.py", run, "--split", "test", "--json")
    assert result.code == 0, result.err
    expected = json.loads((run / "scores.json").read_text())["test"]
    assert json.loads(result.out)["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    texts = ("the sky is blue", "grass is green", "the rose is red")
    labels = {}
    for device in ("cuda", "cpu"):
        options = ["--device", device, "--precision", "fp32"]
        result = run_on_gpu("python", "predict.py", run, *texts, *options)
        assert result.code == 0, result.err
        labels[device] = [line.split()[0] for line in result.out.splitlines()]
    assert labels["cuda"] == labels["cpu"]


LIMIT_MEMORY = """
import runpy, sys, torch
torch.cuda.set_per_process_memory_fraction(float(sys.argv[1]))
sys.argv = sys.argv[2:]
sys.path[0] = "."
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_gpu_that_is_out_of_memory(tiny, colours, tmp_path):
    """A process that may use 2.6 GB ends with an error that names the option.

    With --micro-batch-size auto it trains, and has the losses of a process with all the memory.
    """
    script = tmp_path / "limit.py"
    script.write_text(LIMIT_MEMORY)
    size = ["hidden_size=1024", "intermediate_size=4096", "num_hidden_layers=8"]
    size += ["num_attention_heads=2"]
    command = ["train.py", "configs/text.py", "--model", tiny("bert"), *colours, "--dropout", "0"]
    command += ["--init", "random", "--model-options", *size, "--batch-size", "43"]
    command += ["--max-steps", "3", "--pad-to", "max", "--max-length", "64"]
    command += ["--learning-rate", "1e-5", "--log-every", "1"]
    limited = partial(run_on_gpu, "python", str(script), str(2.6e9 / memory_of_gpu()), *command)

    result = limited("--micro-batch-size", "43")
    assert result.code == 1
    assert "error: out of memory" in result.err
    assert "smaller --micro-batch-size" in result.err

    auto = tmp_path / "auto"
    result = limited("--micro-batch-size", "auto", "--run-dir", auto)
    assert result.code == 0, result.err[-3000:]
    found = re.search(r"at most (\d+) row\(s\) per forward pass fit into memory", result.err)
    assert found, result.err
    assert 1 <= int(found[1]) < 43

    result = run_on_gpu("python", *command, "--run-dir", tmp_path / "unlimited")
    assert result.code == 0, result.err[-3000:]
    assert losses(auto) == pytest.approx(losses(tmp_path / "unlimited"), rel=1e-3)


def memory_of_gpu() -> int:
    """Return the memory of the GPU in bytes."""
    code = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    return int(run_on_gpu("python", "-c", code).out)


FORBID_WAITING = """
import runpy, sys, torch
from ftloop.metric_log import MetricLog
from ftloop.run import Run
log_step, flush = Run.log_step, MetricLog.flush
def log_step_and_forbid(run, *args, **kwargs):
    result = log_step(run, *args, **kwargs)
    torch.cuda.set_sync_debug_mode("error")  # from the first step on
    return result
def allow_and_flush(log):
    torch.cuda.set_sync_debug_mode("default")
    return flush(log)
Run.log_step, MetricLog.flush = log_step_and_forbid, allow_and_flush
sys.argv = sys.argv[1:]
sys.path[0] = "."
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("options", [(), ("--precision", "bf16")], ids=" ".join)
def test_the_loop_waits_for_the_gpu_only_to_log(image_command, tmp_path, options):
    """Images, since the attention masks of transformers wait for the GPU in each forward pass."""
    script = tmp_path / "forbid.py"
    script.write_text(FORBID_WAITING)
    command = [*image_command, *options, "--log-every", "1000"]
    result = run_on_gpu("python", str(script), *command, PYTHONPATH=".")
    assert result.code == 0, result.err[-3000:]
