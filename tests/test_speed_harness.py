"""The speed benchmarks at a size of seconds: each prints a line for each of its rivals, and writes what it measured.

What the figures are is not tested here. The processes are forked from one that has imported the libraries (--preload).
"""

import io
import json
import runpy
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import pytest

from benchmarks import speed


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """`run("train_speed", *words)`: what `python -m benchmarks.train_speed WORDS` prints, and its JSON."""
    small = {**speed.DEIT, **speed.TINY, "num_hidden_layers": 1}
    monkeypatch.setitem(speed.WORKS, "images", replace(speed.WORKS["images"], shape=small))

    def started(module: str, *words: str) -> tuple[str, dict]:
        out, file = io.StringIO(), tmp_path / "found.json"
        common = ["--threads", "1", "--model", tiny("bert"), "--json", str(file), "--preload", "--max-length", "32"]
        monkeypatch.setattr(sys, "argv", [module, *words, *common])
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            runpy.run_module(f"benchmarks.{module}", run_name="__main__")
        return out.getvalue(), json.loads(file.read_text())

    return started


def lines_of(printed: str) -> dict[str, str]:
    """The rest of each line of the tables, by its first cell."""
    cells = [line.strip("| ").partition(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {first: rest for first, _, rest in cells}


def failed(measured: dict) -> dict[str, str]:
    """Why each rival failed that did so in any round."""
    return {rival: one["failed"] for rival, rounds in measured.items() for one in rounds if "failed" in one}


SHORT = ("--steps", "2", "--epochs", "1")


def test_a_loop_beside_the_limit_in_one_process(run):
    rivals = ("limit", "ftloop-random", "trainer+kernels")
    printed, found = run("loop_cost", "--steps", "20", "--rounds", "1", "--rivals", *rivals)
    assert not failed(found["measured"])
    for rival in rivals:
        (one,) = found["measured"][rival]
        assert lines_of(printed)[rival].split(" | ")[2] == f"{one['ratio']:.3f}"
        assert min(one["ms"], one["limit ms"]) > 0


def test_training_on_a_gpu(run, monkeypatch):
    """On the CPU, and small."""
    prepare, rivals = speed.prepare, ("limit-bf16", "trainer-bf16", "ftloop-bf16", "ftloop-packing-bf16")
    monkeypatch.setattr(speed, "gpu", lambda: "none")
    monkeypatch.setattr(speed, "prepare", lambda *arguments: replace(prepare(*arguments), gpu=False))
    for name, work in speed.LARGE_WORKS.items():
        small = {**work.shape, **speed.TINY, "num_hidden_layers": 1}
        monkeypatch.setitem(speed.LARGE_WORKS, name, replace(work, shape=small, batch_size=4))
    printed, found = run("gpu", "bert", "vit", *SHORT, "--rounds", "1", "--rivals", *rivals)
    assert lines_of(printed).keys() >= set(rivals)
    assert found["machine"]["gpu"] == "none"
    for work, without in (("bert", set()), ("vit", {"ftloop-packing-bf16"})):
        measured = found["works"][work]["measured"]
        assert failed(measured).keys() == without
        assert all(measured[rival][0]["of peak"] > 0 for rival in rivals[:3])
        assert 0 <= measured["ftloop-bf16"][0]["data wait"] < 1


def test_training(run):
    rivals = ("limit", "course", "trainer", "ftloop", "ftloop:--no-such-option")
    printed, found = run("train_speed", "tiny", "images", *SHORT, "--rounds", "1", "--rivals", *rivals)
    assert lines_of(printed).keys() >= set(rivals)
    assert lines_of(printed)["ftloop:--no-such-option"].startswith("failed: Unrecognized options: --no-such-option")
    for work in ("tiny", "images"):
        measured = found["works"][work]["measured"]
        assert failed(measured).keys() == {"ftloop:--no-such-option"}
        assert all(one["ms"] > 0 for rival in rivals[:-1] for one in measured[rival])
        assert found["works"][work]["goals"]
    assert found["machine"]["threads"] == 1
    assert found["machine"]["torch"] in printed


def test_every_variant_of_the_tables_trains(run):
    printed, found = run("train_speed", "pairs", *SHORT, "--rounds", "1")
    measured = found["works"]["pairs"]["measured"]
    assert lines_of(printed).keys() >= set(measured)
    assert len(measured) >= 11
    assert failed(measured) == {}


def test_texts_with_several_labels_and_a_second_round(run):
    options = ("--rivals", "trainer", "ftloop:--log-every 1", "--rounds", "2")
    _, found = run("train_speed", "tweets", *SHORT, *options)
    assert failed(found["works"]["tweets"]["measured"]) == {}


def test_evaluation(run):
    sizes = ("--rows", "16", "--passes", "1", "--rounds", "2", "--rivals", "trainer", "ftloop")
    printed, found = run("eval_speed", "pairs", *sizes)
    measured = found["works"]["pairs"]["measured"]
    assert lines_of(printed).keys() >= {"trainer", "ftloop"}
    assert failed(measured) == {}
    ours, theirs = (measured[rival][0] for rival in ("ftloop", "trainer"))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["accuracy"] == theirs["accuracy"]


def test_start(run):
    printed, found = run("startup", "--rows", "16", "--rounds", "1", "--rivals", "help", "trainer", "ftloop")
    assert lines_of(printed).keys() >= {"help", "trainer", "ftloop"}
    assert failed(found["measured"]) == {}


def test_growth(run):
    sizes = ("--rows", "40", "400", "--steps", "4", "--slope-steps", "8", "--process-steps", "2", "--rounds", "1")
    printed, found = run("scaling", *sizes)
    lines = lines_of(printed)
    assert lines.keys() >= {"40 rows, first start", "400 rows, second start", "resident", "own", "two processes"}
    assert [failed(part) for part in found["parts"].values()] == [{}, {}, {}]
    assert found["parts"]["rows"]["400 rows, second start"][0]["peak"] > 0


def test_quality(run):
    sizes = ("--rows", "64", "--validation", "16", "--seeds", "1", "2")
    printed, found = run("quality", "pairs", *sizes, "--rivals", "trainer", "ftloop")
    assert lines_of(printed).keys() >= {"trainer", "ftloop"}
    assert "accuracy, ftloop's mean" in printed
    measured = found["works"]["pairs"]["measured"]
    assert [len(measured[rival]) for rival in ("trainer", "ftloop")] == [2, 2]
    assert failed(measured) == {}


# ---- what is counted


def test_ratios_are_taken_within_a_round_and_those_that_failed_are_left_out():
    measured = {
        "limit": [{"ms": 10.0}, {"ms": 20.0}, {"ms": 30.0}],
        "trainer": [{"ms": 20.0}, {"failed": "no memory"}, {"ms": 30.0}],
        "broken": [{"failed": "no such option"}] * 3,
    }
    assert speed.ratio(measured, "trainer", "limit", "ms") == (1.5, 1.0, 2.0)
    assert speed.ratio(measured, "broken", "limit", "ms") is None
    lines = lines_of(speed.table(measured))
    assert lines["trainer"] == "25.0 (20.0 to 30.0) | 1.50 (1.00 to 2.00) | 1.00"
    assert lines["broken"] == "failed: no such option | - | -"
    goal = speed.Goal("limit", ("broken", "trainer"), "speed", 1.2)
    assert goal.verdict(measured) == "speed, limit / trainer: 1.500 (1.000 to 2.000), at least 1.2 wanted"
    assert goal._replace(bound=2).verdict(measured).endswith("NOT REACHED")
    assert goal._replace(theirs=("broken",)).verdict(measured).endswith("not measured")


def test_each_round_begins_with_another_rival():
    asked = []
    speed.in_rounds("abc", 2, lambda rival: asked.append(rival) or {})
    assert "".join(asked) == "abcbca"


def test_the_clock_sees_each_step_and_leaves_out_what_comes_before():
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clock = speed.Clock()
    try:
        began = time.perf_counter()
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    finally:
        clock.remove()
    assert began < clock.instants[0] < clock.instants[1] < clock.instants[2] < clock.instants[3] < time.perf_counter()
    assert len(clock.instants) == 4
    assert clock not in sys.meta_path
