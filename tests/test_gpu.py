"""On a GPU, where there is one: the laws hold there too, and each option that is meant for it works. Else skipped.

python -m pytest tests/test_gpu.py -n 6
"""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import run_command
from safetensors.torch import load_file
from test_image import TINY, draw

pytestmark = pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="there is no GPU")

# conftest.py hides the GPU from all other tests.
on_gpu = partial(run_command, CUDA_VISIBLE_DEVICES="0", ACCELERATE_USE_CPU="false")


@pytest.fixture
def words(tiny, colours):
    options = ("--task.metrics", "accuracy", "--log-every", "1")
    return ["configs/text.py", "--task.model", tiny("bert"), *colours, *options]


def train(*words, run: Path | None = None):
    result = on_gpu("python", "train.py", *words, *(("--run-dir", run) if run else ()))
    assert result.code == 0, result.err[-3000:]
    assert " on cuda, into" in result.err
    return result


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")]
    assert found
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_that_was_cut_ends_with_the_same_bits(words, tmp_path, precision):
    """Dropout too. The second stops after its third step; whatever a GPU adds up in any order is ruled out."""
    words = [*words, "--precision", precision, "--deterministic", "--micro-batch-size", "3"]
    train(*words, run=tmp_path / "whole")
    for steps in range(3):
        cut = on_gpu("python", "train.py", *words, "--max-minutes", "0.00001", "--run-dir", tmp_path / "cut")
        assert cut.code == 143, (steps, cut.err)
    train(*words, run=tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_a_gpu_learns_what_a_cpu_learns(words, tmp_path):
    words = [*words, "--task.dropout", "0"]
    train(*words, run=tmp_path / "gpu")
    assert run_command("python", "train.py", *words, "--run-dir", tmp_path / "cpu").code == 0
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "within"),
    [
        (("--micro-batch-size", "3"), 1e-4),
        (("--task.packing",), 1e-4),
        (("--gradient-checkpointing",), 1e-4),
        (("--micro-batch-size", "auto"), 1e-4),
        (("--batching", "tokens", "--max-tokens", "64"), 1e-4),
        (("--compile",), 1e-4),
        (("--compile", "--precision", "bf16"), 0.05),
        (("--matmul", "tf32"), 0.02),
        (("--precision", "bf16"), 0.05),
        (("--task.packing", "--precision", "bf16"), 0.05),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else f"within {value}",
)
def test_an_option_learns_the_same(words, tmp_path, options, within):
    """Without dropout, whose draws differ. The order of the rows is that of --batching length in all of them."""
    words = [*words, "--task.dropout", "0"]
    train(*words, run=tmp_path / "plain")
    train(*words, *options, run=tmp_path / "option")
    assert losses(tmp_path / "option") == pytest.approx(losses(tmp_path / "plain"), rel=within)


def test_workers_that_decode_images_change_no_bit(tmp_path):
    for number in range(24):
        colour = ("red", "green", "blue")[number % 3]
        draw(tmp_path / "photos" / ("train" if number < 18 else "test") / colour / f"{number}.png", colour, number)
    words = [
        *("configs/image.py", "--task.model", "vit", "--task.init", "random", "--task.image-size", "32"),
        *("--task.model-options", *(f"{name}={value}" for name, value in TINY.items()), "--batch-size", "6"),
        *("--task.data.path", tmp_path / "photos", "--epochs", "2", "--deterministic", "--task.data.validation", "0"),
    ]
    train(*words, run=tmp_path / "auto")
    train(*words, "--workers", "0", run=tmp_path / "none")
    auto, none = weights(tmp_path / "auto"), weights(tmp_path / "none")
    assert all(torch.equal(auto[name], none[name]) for name in auto)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_and_prediction(words, tmp_path, precision):
    """The scores of the run again, and the same labels from the GPU and from the CPU."""
    train(*words, "--precision", precision)
    run = tmp_path / "run"
    scored = on_gpu("python", "evaluate.py", run, "--split", "test", "--json")
    assert scored.code == 0, scored.err
    expected = json.loads((run / "scores.json").read_text())["test"]
    assert json.loads(scored.out)["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    texts = ("the sky is blue", "grass is green", "the rose is red")
    found = [
        on_gpu("python", "predict.py", run, *texts, "--device", device, "--precision", "fp32")
        for device in ("cuda", "cpu")
    ]
    assert [one.code for one in found] == [0, 0], found
    labels = [[line.split()[0] for line in one.out.splitlines()] for one in found]
    assert labels[0] == labels[1]


MEMORY = """
import runpy, sys, torch
torch.cuda.set_per_process_memory_fraction(float(sys.argv[1]))
sys.argv = sys.argv[2:]
sys.path[0] = "."
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("asked", ["auto", "43"])
def test_memory_that_is_really_short(tiny, colours, tmp_path, asked):
    """A process that may have 2.6 GB of the GPU computes fewer rows at once, and learns what one with all of it does:
    found before the first step, or when a step has run out of memory."""
    script = tmp_path / "short.py"
    script.write_text(MEMORY)
    wide = ("hidden_size=1024", "intermediate_size=4096", "num_hidden_layers=8", "num_attention_heads=2")
    words = [
        *("train.py", "configs/text.py", "--task.model", tiny("bert"), *colours, "--task.dropout", "0"),
        *("--task.init", "random", "--task.model-options", *wide, "--batch-size", "43", "--max-steps", "3"),
        *("--task.pad-to", "max", "--task.max-length", "64", "--learning-rate", "1e-5", "--log-every", "1"),
    ]
    found = on_gpu("python", str(script), str(2.6e9 / memory_of_gpu()), *words, "--micro-batch-size", asked)
    assert found.code == 0, found.err[-3000:]
    whole = on_gpu("python", *words, "--run-dir", tmp_path / "whole")
    assert whole.code == 0, whole.err[-3000:]
    how = r"micro-batch\(es\) of at most (\d+)" if asked == "auto" else r"at most (\d+), as all after it"
    said = re.findall(how, found.err)
    assert said, found.err
    assert 1 <= int(said[-1]) < 43
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def memory_of_gpu() -> int:
    """Bytes."""
    asked = on_gpu("python", "-c", "import torch; print(torch.cuda.get_device_properties(0).total_memory)")
    return int(asked.out)


WAITING = """
import runpy, sys, torch
from ftloop.logs import terminal as tracking
add, flush = tracking.StepLog.add, tracking.StepLog.flush
def adds(log, step):
    torch.cuda.set_sync_debug_mode("error")  # from the first step on
    return add(log, step)
def flushes(log):
    torch.cuda.set_sync_debug_mode("default")
    return flush(log)
tracking.StepLog.add, tracking.StepLog.flush = adds, flushes
sys.argv = sys.argv[1:]
sys.path[0] = "."
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("options", [(), ("--precision", "bf16"), ("--batching", "random")], ids=" ".join)
def test_between_log_points_nobody_waits_for_the_gpu(words, tmp_path, options):
    """Whoever did would raise an error."""
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    result = on_gpu("python", str(script), "train.py", *words, *options, "--log-every", "1000", PYTHONPATH=".")
    assert result.code == 0, result.err[-3000:]
