"""The gradient of a step does not depend on how it is divided into micro-batches and over ranks.

Nor do the scores of an evaluation.
"""

import json

import pytest
from conftest import ARCHITECTURES, COLOURS, ranks, run_command, sentences

DIVISIONS = ("16 rows x 1", "4 rows x 1", "5 rows x 1", "2 rows x 2", "3 rows x 3")


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """What division.py writes for one, two and three processes, merged."""
    folder = tmp_path_factory.mktemp("division")
    rows = folder / "rows.jsonl"
    with rows.open("w") as stream:
        for row in sentences(66):
            words = row["text"].split()
            labels = [colour for colour in COLOURS if colour in words]
            labels += ["blue"] if "sky" in words else []
            stream.write(json.dumps({**row, "colours": labels}) + "\n")
    models = json.dumps({architecture: tiny(architecture) for architecture in ARCHITECTURES})
    merged = {"loss": {}, "grad_norm": {}, "validation": {}}
    for processes in (1, 2, 3):
        out = folder / f"{processes}.json"
        arguments = ["tests/division.py", out, rows, models]
        # A new process also for one: the number of threads is set when torch is imported.
        if processes == 1:
            result = run_command("python", *arguments, PYTHONPATH=".:tests", timeout=480)
        else:
            result = ranks(processes, *arguments, PYTHONPATH=".:tests", timeout=480)
        assert result.code == 0, result.err
        written = json.loads(out.read_text())
        assert written["num_processes"] == processes
        for name, values in merged.items():
            values |= written[name]
    return merged


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["grad_norm", "loss"])
def test_the_first_step_is_the_same_for_every_division(results, name, architecture, problem):
    values = [results[name][f"{architecture} {problem} {division}"] for division in DIVISIONS]
    assert values[0] > 1e-3
    assert values == pytest.approx([values[0]] * len(DIVISIONS), rel=1e-5)


def test_three_epochs_give_the_same_validation_losses_for_every_division(results):
    curves = [results["validation"][division] for division in DIVISIONS]
    assert len(curves[0]) == 3
    assert curves[0][-1] < curves[0][0]
    for curve in curves:
        assert curve == pytest.approx(curves[0], rel=1e-5)
