"""What a run says of its speed, and the options that only change it."""

import ctypes
import functools
import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import run_command, run_script
from safetensors.torch import load_file

from ftloop import TextClassification, evaluation, loop, startup
from ftloop.distributed import kernels
from ftloop.loader import workers_of


@pytest.fixture
def words(tiny, colours):
    return ["configs/text.py", "--task.model", tiny("bert"), *colours, "--max-steps", "7", "--log-every", "3"]


def losses_and_speeds(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train" and line["name"] == "loss"]


def losses(run: Path) -> list[float]:
    return [line["value"] for line in losses_and_speeds(run)]


def speeds(run: Path) -> list[dict]:
    return [line["speed"] for line in losses_and_speeds(run) if "speed" in line]


def test_the_metric_log_has_tokens_padding_waits_and_memory(words, tmp_path):
    for batching in ("random", "length"):
        result = run_script("train.py", *words, "--batching", batching, "--run-dir", tmp_path / batching)
        assert result.code == 0, result.err
        found = speeds(tmp_path / batching)
        assert len(found) == 3  # after steps 3, 6 and 7
        for speed in found:
            assert 0 <= speed["data_wait"] < 1
            assert speed["tokens_per_second"] > 0
            assert speed["peak_memory_mb"] > 100
    random, grouped = (speeds(tmp_path / batching)[0]["padding"] for batching in ("random", "length"))
    assert 0 < grouped < random < 1


def test_padding_is_counted_where_it_is_made(words, tmp_path):
    """Of rows that are padded to 32 tokens."""
    assert run_script("train.py", *words, "--task.pad-to", "max").code == 0
    # 3 to 12 words and two special tokens
    assert all(1 - 14 / 32 <= speed["padding"] <= 1 - 5 / 32 for speed in speeds(tmp_path / "run"))


def test_a_profile_of_some_steps_is_written_and_shown(words, tmp_path):
    result = run_script("train.py", *words, "--profile", "2")
    assert result.code == 0, result.err
    assert "Self CPU" in result.err
    assert "aten::" in result.err
    trace = json.loads((tmp_path / "run" / "profile.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("ProfilerStep")}
    assert len(steps) == 2


def test_a_profile_of_more_steps_than_there_are_has_those_that_were(words, tmp_path):
    assert run_script("train.py", *words, "--profile", "100").code == 0
    assert (tmp_path / "run" / "profile.json").stat().st_size > 1000


def test_workers_are_for_rows_that_are_made_while_a_gpu_computes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    images, texts, gpu, cpu = [{"x": 1}], FakeTable(), torch.device("cuda"), torch.device("cpu")
    assert workers_of("auto", images, gpu) == 8
    assert workers_of("auto", images, cpu) == 0
    assert workers_of("auto", texts, gpu) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers_of("auto", images, gpu) == 2
    assert workers_of(3, texts, cpu) == 3


class FakeTable:
    def __getitems__(self, rows):
        """A plain table reads many rows at once."""


@pytest.mark.parametrize(
    ("options", "words_of_error"),
    [
        (["--batching", "tokens"], "--batching tokens and --max-tokens N belong together"),
        (["--max-tokens", "100"], "--batching tokens and --max-tokens N belong together"),
        (
            ["--batching", "tokens", "--max-tokens", "100", "--micro-batch-size", "2"],
            "--micro-batch-size and --max-tokens both say how much is computed at once",
        ),
        (["--batching", "tokens", "--max-tokens", "9"], "--max-tokens 9: the longest row of train has 14 tokens"),
        (["--batching", "length", "--task.pad-to", "max"], "--batching length: the rows of this task do not differ"),
        (["--matmul", "tf32"], "--matmul tf32: for GPUs only"),
        (["--matmul", "onednn", "--precision", "bf16"], "--matmul onednn: for fp32 on a CPU only"),
        (["--profile", "-1"], "--profile -1: a finite number from 0 on is needed"),
    ],
)
def test_options_of_speed_that_cannot_be_are_refused(words, options, words_of_error):
    result = run_script("train.py", *words, *options)
    assert result.code == 2
    assert words_of_error in result.err


def test_batches_by_tokens_give_the_losses_of_batches_by_length(words, tmp_path):
    words = [*words, "--task.dropout", "0", "--log-every", "1"]
    assert run_script("train.py", *words, "--run-dir", tmp_path / "length").code == 0
    tokens = ("--batching", "tokens", "--max-tokens", "40", "--run-dir", tmp_path / "tokens")
    result = run_script("train.py", *words, *tokens)
    assert result.code == 0, result.err
    assert "micro-batches of at most 40 tokens" in result.err
    assert losses(tmp_path / "tokens") == pytest.approx(losses(tmp_path / "length"), rel=1e-5)


def test_cheaper_dropout_trains_with_other_draws_and_is_scored_as_it_was(words, tmp_path):
    for name in ("usual", "cheaper"):
        cheaper = ["--cheaper-dropout"] if name == "cheaper" else []
        given = [*words, *cheaper, "--precision", "bf16", "--run-dir", tmp_path / name]
        assert run_script("train.py", *given).code == 0
        assert (torch.nn.functional.dropout is kernels.cheap_dropout) == bool(cheaper)
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("usual", "cheaper")]
    assert scores[0] != scores[1]
    again = run_script("evaluate.py", tmp_path / "cheaper", "--split", "validation", "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out.splitlines()[-1])
    assert found.get("validation", found) == scores[1]["validation"]
    assert torch.nn.functional.dropout is kernels.torchs_dropout


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_long_texts_are_computed_fewer_at_once_on_a_cpu(words, tmp_path, monkeypatch):
    """The same steps, evaluations too, unless a division is asked for."""
    words = [*words, "--task.dropout", "0", "--log-every", "1"]
    plain = run_script("train.py", *words)
    assert "1 process(es) x 1 micro-batch(es) of at most 8, fp32" in plain.err
    monkeypatch.setattr(loop, "TOKENS_ON_CPU", 40)
    monkeypatch.setattr(evaluation, "TOKENS_ON_CPU", 40)
    divided = run_script("train.py", *words, "--run-dir", tmp_path / "divided")
    assert "1 process(es), micro-batches of at most 8 rows and 40 tokens, fp32" in divided.err
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "run"), rel=1e-5)
    scores = [json.loads((tmp_path / run / "scores.json").read_text()) for run in ("run", "divided")]
    assert scores[1]["test"]["loss"] == pytest.approx(scores[0]["test"]["loss"], rel=1e-5)
    asked = run_script("train.py", *words, "--micro-batch-size", "8", "--run-dir", tmp_path / "asked")
    assert "1 process(es) x 1 micro-batch(es) of at most 8, fp32" in asked.err


# One tensor that has gone may not be enough: an aligned block is asked for with room to spare, and in one run of six
# something small comes to lie in it when it is free, so that the next of its size does not fit.
FAULTS = """
import resource, torch
from ftloop.distributed import kernels
def faults():
    "Pages that the system cleared for a tensor of 64 MB, made when others like it have gone."
    for _ in range(4):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), kernels.keep_memory(torch.device("cuda")), faults(), kernels.keep_memory(torch.device("cpu")), faults())
"""


def test_memory_that_is_kept_is_not_asked_for_again():
    first, on_gpu, second, kept, third = run_command("python", "-c", FAULTS).out.split()
    assert (on_gpu, kept) == ("False", str(hasattr(ctypes.CDLL(None), "mallopt")))
    if kept == "True":
        assert int(first) > 20  # pages, of 2 MB where the system gives huge ones
        assert int(third) < int(first) // 10 < int(second)


def test_kept_memory_changes_no_bit(words, tmp_path):
    for name, more in (("kept", ()), ("given", ("--no-keep-memory",))):
        assert run_command("python", "train.py", *words, *more, "--run-dir", str(tmp_path / name)).code == 0
    kept, given = weights(tmp_path / "kept"), weights(tmp_path / "given")
    assert all(torch.equal(kept[name], given[name]) for name in kept)


def test_the_kernels_of_a_run_are_recorded(words, tmp_path):
    assert run_script("train.py", *words, "--matmul", "default").code == 0
    manifest = next((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))
    assert json.loads(manifest.read_text())["made_by"]["matmul"] == "default"


def test_a_compiled_model_learns_the_same_and_keeps_its_names(words, tmp_path, monkeypatch):
    """Traced as --compile does it; that quicker kernels are written then is the compiler's part, and takes a minute."""
    shapes = []

    def traced(graph, inputs):
        shapes.append(tuple(max((value.shape for value in inputs if value.dim() == 2), key=len, default=())))
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend=traced))
    words = [*words, "--task.dropout", "0", "--task.pad-to-multiple-of", "32"]
    assert run_script("train.py", *words).code == 0
    assert not shapes
    result = run_script("train.py", *words, "--compile", "--run-dir", tmp_path / "compiled")
    assert result.code == 0, result.err
    assert "--compile on a CPU" in result.err
    assert shapes
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "run"), rel=1e-5)
    saved = [weights(tmp_path / run) for run in ("run", "compiled")]
    assert saved[0].keys() == saved[1].keys()


@pytest.mark.parametrize(("longest", "step"), [(512, 64), (128, 64), (100, 50), (32, 32), (127, 127)])
def test_compiled_texts_come_in_few_lengths(longest, step):
    task = TextClassification(model="x", max_length=longest)
    assert task.in_few_shapes().pad_to_multiple_of == step
    assert replace(task, pad_to_multiple_of=16).in_few_shapes().pad_to_multiple_of == 16


def test_packed_texts_cannot_be_compiled(words):
    result = run_script("train.py", *words, "--compile", "--task.packing", "--check")
    assert result.code == 2
    assert "--compile with --task.packing: each batch would be compiled anew; choose one of the two" in result.err


def test_the_collector_of_garbage_is_ours_only_from_begin_to_done(monkeypatch):
    usual, frozen = gc.get_threshold(), []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.get_threshold()))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: len(frozen))
    monkeypatch.setattr(startup, "USUAL", usual)
    startup.done()  # in a notebook nobody began
    assert (gc.get_threshold(), frozen) == (usual, [])
    startup.begin()
    assert gc.get_threshold() == startup.STARTING
    startup.done()
    startup.begin()  # another run in the same process
    startup.done()
    assert (gc.get_threshold(), frozen) == (usual, [usual])
