"""The notebook in examples/: its cells run in order, on rows and weights of installed packages."""

import json

import pytest
from conftest import ROOT, sentences, write_csv

NOTEBOOK = json.loads((ROOT / "examples" / "emotion.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
JOB = CODE[0]  # the cell that is to be changed for another job


def run_cells(cells: list[str]) -> tuple[dict, list]:
    """Run cells; return their names, and what Jupyter shows: the values of last expressions."""
    import ast

    names, shown = {"__name__": "__main__"}, []
    for number, cell in enumerate(cells):
        tree = ast.parse(cell, f"cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    return names, shown


def figures_in(shown: list) -> int:
    return sum("<svg" in value._repr_html_() for value in shown if type(value).__name__ == "Figure")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working folder, in which the notebook leaves its run. sys.path is restored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert NOTEBOOK["cells"][0]["source"][0].startswith("# ")  # a heading


def test_the_notebook_runs_on_the_embedded_rows_and_weights(elsewhere, capsys):
    small = JOB.replace("ROWS, STEPS = 240, 20", "ROWS, STEPS = 80, 2")
    assert small != JOB
    names, shown = run_cells([small, *CODE[1:]])
    assert (elsewhere / "runs" / "emotion_notebook" / "model" / "model.safetensors").is_file()
    assert figures_in(shown) == 7
    assert set(names["scores"]) == {"validation", "test"}
    tables = [
        table for table in shown if list(getattr(table, "columns", []))[:2] == ["loss", "label"]
    ]
    losses = [table["loss"].tolist() for table in tables]
    assert losses[0] == sorted(losses[0], reverse=True)
    assert losses[1] == sorted(losses[1])
    assert losses[0][0] == pytest.approx(names["fine_tuned"].losses.max(), abs=1e-3)
    # The pipeline of transformers, and ours
    assert shown[-1][0]["label"] == names["answer"]["label"]
    assert shown[-1][0]["score"] == pytest.approx(names["answer"]["probability"], abs=1e-5)


def test_the_cells_run_on_another_job_when_the_first_alone_is_changed(elsewhere, tiny, capsys):
    data = write_csv(elsewhere / "rows.csv", sentences(60))
    job = f"""
from ftloop import train
from ftloop.cli import Job
from ftloop.data import Data
from ftloop.runs.finished import evaluate_run, load_run, predict_rows
from ftloop.tasks import TextClassification
RUN, new_text = "runs/colours", "the sky is blue"
task = TextClassification(
    model={tiny("bert")!r}, data=Data({data!r}), label_column="colour", max_length=32
)
config = Job(task, RUN, max_steps=2)
"""
    names, shown = run_cells([job, *CODE[1:]])
    assert figures_in(shown) == 7
    assert set(names["scores"]) == {"validation"}


def test_the_job_on_the_hub_is_the_recipe(elsewhere):
    from dataclasses import replace

    from ftloop.cli.config_file import load_config_file

    job = JOB.replace("ON_THE_HUB = False", "ON_THE_HUB = True")
    assert job != JOB
    names, _ = run_cells([job])
    recipe = load_config_file(str(ROOT / "configs" / "emotion.py"))
    assert replace(names["config"], run_dir=recipe.run_dir) == recipe
