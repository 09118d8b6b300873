"""Law 1: a step's gradient does not depend on how it is divided into micro-batches and processes. Law 4 likewise."""

import json

import pytest
from conftest import ARCHITECTURES, COLOURS, ranks, run_command, sentences


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    """{processes: what division.py wrote}, for one, two and three processes, of 16 rows a step."""
    folder = tmp_path_factory.mktemp("division")
    rows = folder / "rows.jsonl"
    with rows.open("w") as stream:
        for row in sentences(66):
            colours = [colour for colour in COLOURS if colour in row["text"].split()]
            stream.write(
                json.dumps({**row, "colours": [*colours, *(["blue"] if "sky" in row["text"].split() else [])]}) + "\n"
            )
    models = json.dumps({architecture: tiny(architecture) for architecture in ARCHITECTURES})
    results = {}
    for processes in (1, 2, 3):
        # In a new process also for one: the thread count and the state of accelerate are set when torch is imported.
        words = ("tests/division.py", folder / f"{processes}.json", rows, models)
        environment = {"PYTHONPATH": "."}
        result = (
            ranks(processes, *words, **environment) if processes > 1 else run_command("python", *words, **environment)
        )
        assert result.code == 0, result.err
        results[processes] = json.loads((folder / f"{processes}.json").read_text())
        assert results[processes]["processes"] == processes
    return results


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("what", ["norms", "losses"])
def test_the_first_step_is_the_same_for_every_division(found, what, architecture, problem):
    values = {
        key: value
        for result in found.values()
        for key, value in result[what].items()
        if key.startswith(f"{architecture}-{problem}")
    }
    assert len(values) == 5
    expected = values[f"{architecture}-{problem}-16x1"]
    assert expected > 1e-3
    assert list(values.values()) == pytest.approx([expected] * 5, rel=1e-5)


def test_three_epochs_give_the_same_validation_losses_for_every_division(found):
    curves = {key: value for result in found.values() for key, value in result["validation"].items()}
    assert len(curves) == 5
    expected = curves["16x1"]
    assert len(expected) == 3
    assert expected[-1] < expected[0]
    for curve in curves.values():
        assert curve == pytest.approx(expected, rel=1e-5)
