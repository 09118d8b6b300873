"""The speed benchmarks on tiny workloads: each prints a line per rival and writes what it measured.

The figures are not tested. With --preload, the processes are forks of one that has imported the
libraries.
"""

import io
import json
import runpy
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import pytest

from benchmarks import speed, step_clock


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """`run("train_speed", *words)`: what `python -m benchmarks.train_speed WORDS` prints, and its
    JSON."""
    sizes = {**speed.DEIT, **speed.TINY, "num_hidden_layers": 1}
    images = replace(speed.WORKLOADS["images"], sizes=sizes)
    monkeypatch.setitem(speed.WORKLOADS, "images", images)

    def run_benchmark(module: str, *words: str) -> tuple[str, dict]:
        out, file = io.StringIO(), tmp_path / "results.json"
        common = ["--threads", "1", "--model", tiny("bert"), "--json", str(file), "--preload"]
        common += ["--max-length", "32"]
        monkeypatch.setattr(sys, "argv", [module, *words, *common])
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            runpy.run_module(f"benchmarks.{module}", run_name="__main__")
        return out.getvalue(), json.loads(file.read_text())

    return run_benchmark


def table_lines(output: str) -> dict[str, str]:
    """Return the rest of each table line by its first cell."""
    lines = {}
    for line in output.splitlines():
        if line.startswith("| "):
            first, _, rest = line.strip("| ").partition(" | ")
            lines[first] = rest
    return lines


def failures(measurements: dict) -> dict[str, str]:
    """Return why each rival failed that failed in any round."""
    reasons = {}
    for rival, results in measurements.items():
        for result in results:
            if "failed" in result:
                reasons[rival] = result["failed"]
    return reasons


SHORT = ("--steps", "2", "--epochs", "1")


def test_a_loop_beside_the_limit_in_one_process(run):
    rivals = ("limit", "ftloop-random", "trainer+kernels")
    output, results = run("loop_cost", "--steps", "20", "--rounds", "1", "--rivals", *rivals)
    measurements = results["measurements"]
    assert failures(measurements) == {}
    for rival in rivals:
        (result,) = measurements[rival]
        assert table_lines(output)[rival].split(" | ")[2] == f"{result['ratio']:.3f}"
        assert min(result["ms"], result["limit ms"]) > 0


def test_training_for_a_gpu(run, monkeypatch):
    """On the CPU, and with small models."""
    rivals = ("limit-bf16", "trainer-bf16", "ftloop-bf16", "ftloop-packing-bf16")
    prepare_training = speed.prepare_training

    def prepare_on_cpu(*arguments):
        return replace(prepare_training(*arguments), gpu=False)

    monkeypatch.setattr(speed, "find_gpu", lambda: "none")
    monkeypatch.setattr(speed, "prepare_training", prepare_on_cpu)
    for name, workload in speed.GPU_WORKLOADS.items():
        sizes = {**workload.sizes, **speed.TINY, "num_hidden_layers": 1}
        small = replace(workload, sizes=sizes, batch_size=4)
        monkeypatch.setitem(speed.GPU_WORKLOADS, name, small)
    output, results = run("gpu", "bert", "vit", *SHORT, "--rounds", "1", "--rivals", *rivals)
    assert table_lines(output).keys() >= set(rivals)
    assert results["machine"]["gpu"] == "none"
    for name, failing in (("bert", set()), ("vit", {"ftloop-packing-bf16"})):
        measurements = results["workloads"][name]["measurements"]
        assert failures(measurements).keys() == failing
        assert all(measurements[rival][0]["of peak"] > 0 for rival in rivals[:3])
        assert 0 <= measurements["ftloop-bf16"][0]["data wait"] < 1


def test_training(run):
    rivals = ("limit", "course", "trainer", "ftloop", "ftloop:--no-such-option")
    command = ("tiny", "images", *SHORT, "--rounds", "1", "--rivals", *rivals)
    output, results = run("train_speed", *command)
    lines = table_lines(output)
    assert lines.keys() >= set(rivals)
    assert lines["ftloop:--no-such-option"].startswith("failed: ")
    assert "--no-such-option" in lines["ftloop:--no-such-option"]
    for name in ("tiny", "images"):
        measurements = results["workloads"][name]["measurements"]
        assert failures(measurements).keys() == {"ftloop:--no-such-option"}
        for rival in rivals[:-1]:
            assert all(result["ms"] > 0 for result in measurements[rival])
        assert results["workloads"][name]["goals"]
    assert results["machine"]["threads"] == 1
    assert results["machine"]["torch"] in output


def test_all_rivals_of_the_tables_train(run):
    output, results = run("train_speed", "pairs", *SHORT, "--rounds", "1")
    measurements = results["workloads"]["pairs"]["measurements"]
    assert table_lines(output).keys() >= set(measurements)
    assert len(measurements) >= 11
    assert failures(measurements) == {}


def test_texts_with_several_labels_and_a_second_round(run):
    options = ("--rivals", "trainer", "ftloop:--log-every 1", "--rounds", "2")
    _, results = run("train_speed", "tweets", *SHORT, *options)
    assert failures(results["workloads"]["tweets"]["measurements"]) == {}


def test_evaluation(run):
    options = ("--rows", "16", "--passes", "1", "--rounds", "2", "--rivals", "trainer", "ftloop")
    output, results = run("eval_speed", "pairs", *options)
    measurements = results["workloads"]["pairs"]["measurements"]
    assert table_lines(output).keys() >= {"trainer", "ftloop"}
    assert failures(measurements) == {}
    ours, theirs = (measurements[rival][0] for rival in ("ftloop", "trainer"))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["accuracy"] == theirs["accuracy"]


def test_startup(run):
    rivals = ("help", "trainer", "ftloop")
    output, results = run("startup", "--rows", "16", "--rounds", "1", "--rivals", *rivals)
    assert table_lines(output).keys() >= set(rivals)
    assert failures(results["measurements"]) == {}


def test_scaling(run):
    options = ["--rows", "40", "400", "--steps", "4", "--slope-steps", "8"]
    options += ["--process-steps", "2", "--rounds", "1"]
    output, results = run("scaling", *options)
    expected = {"40 rows, first start", "400 rows, second start", "resident", "own"}
    assert table_lines(output).keys() >= expected | {"two processes"}
    assert [failures(part) for part in results["parts"].values()] == [{}, {}, {}]
    assert results["parts"]["rows"]["400 rows, second start"][0]["peak"] > 0


def test_quality(run):
    options = ("--rows", "64", "--validation", "16", "--seeds", "1", "2")
    output, results = run("quality", "pairs", *options, "--rivals", "trainer", "ftloop")
    assert table_lines(output).keys() >= {"trainer", "ftloop"}
    assert "accuracy, the mean of ftloop is " in output
    measurements = results["workloads"]["pairs"]["measurements"]
    assert [len(measurements[rival]) for rival in ("trainer", "ftloop")] == [2, 2]
    assert failures(measurements) == {}


def test_two_versions_train_in_turns(run):
    """The other version is this one."""
    options = ["--steps", "4", "--steps-per-turn", "2", "--rounds", "2"]
    output, results = run("beside_first_edition", ".", "tiny", *options)
    ratio = table_lines(output)["tiny BERT, batch 8"].split(" | ")[-1]
    assert float(ratio.split()[0]) > 0
    rounds = results["workloads"]["tiny"]
    assert [len(result[name]) for result in rounds for name in ("ours", "other")] == [4] * 4


# What is computed


def test_ratios_are_computed_within_a_round_and_failed_rounds_are_left_out():
    measurements = {
        "limit": [{"ms": 10.0}, {"ms": 20.0}, {"ms": 30.0}],
        "trainer": [{"ms": 20.0}, {"failed": "no memory"}, {"ms": 30.0}],
        "broken": [{"failed": "no such option"}] * 3,
    }
    assert speed.compute_ratio(measurements, "trainer", "limit", "ms") == (1.5, 1.0, 2.0)
    assert speed.compute_ratio(measurements, "broken", "limit", "ms") is None
    lines = table_lines(speed.format_table(measurements))
    assert lines["trainer"] == "25.0 (20.0 to 30.0) | 1.50 (1.00 to 2.00) | 1.00"
    assert lines["broken"] == "failed: no such option | - | -"

    goal = speed.Goal("limit", ("broken", "trainer"), "speed", 1.2)
    expected = "speed, limit / trainer: 1.500 (1.000 to 2.000), at least 1.2 is the goal"
    assert goal.verdict(measurements) == expected
    assert goal._replace(bound=2).verdict(measurements).endswith("NOT REACHED")
    assert goal._replace(others=("broken",)).verdict(measurements).endswith("not measured")


def test_each_round_begins_with_another_rival():
    measured = []
    speed.measure_in_rounds("abc", 2, lambda rival: measured.append(rival) or {})
    assert "".join(measured) == "abcbca"


def test_the_clock_records_each_step_and_nothing_before_the_first():
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clock = step_clock.StepClock()
    try:
        began = time.perf_counter()
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    finally:
        clock.remove()
    assert [began, *clock.times] == sorted({began, *clock.times})
    assert len(clock.times) == 4
    assert clock not in sys.meta_path


@pytest.mark.parametrize(("version", "prefix"), [("0.1.7", "task."), ("0.2.0", "")])
def test_options_are_spelled_as_the_other_version_reads_them(tmp_path, version, prefix):
    from benchmarks.beside_first_edition import task_prefix

    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "ftloop"\nversion = "{version}"\n')
    assert task_prefix(tmp_path) == prefix
