"""Parts that only observe a run can be deleted: training, evaluation and prediction still work."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, run_command, sentences, write_csv

OPTIONAL = ("provenance", "report", "hub", "logs/trackers.py")
# Files in the run folder that a part writes by default.
WRITTEN_BY = {"provenance": "ledger.jsonl", "report": "report.html", "hub": "model/README.md"}
# Options that need a part. Without it, they are errors before anything is trained.
NEEDED_BY = {
    "provenance": ["--digest-every", "1"],
    "report": ["--report-every", "1"],
    "hub": ["--push-to-hub", "name"],
    "logs/trackers.py": ["--track", "tensorboard"],
}
# All commands run in one process, since importing the libraries is most of their time.
RUN_COMMANDS = """
import json, os, runpy, sys
os.chdir(sys.argv[1])
sys.path[0] = sys.argv[1]
codes = []
for command in json.loads(sys.argv[2]):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
        codes.append(0)
    except SystemExit as error:
        codes.append(error.code or 0)
import ftloop
print(ftloop.__file__)
print(codes)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the three commands need."""
    project = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ftloop", project / "ftloop", ignore=ignore)
    shutil.copytree(ROOT / "configs", project / "configs", ignore=ignore)
    for script in ("train.py", "evaluate.py", "predict.py"):
        shutil.copy(ROOT / script, project)
    return project


def delete(project: Path, part: str) -> None:
    path = project / "ftloop" / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("deleted", [*([part] for part in OPTIONAL), [*OPTIONAL]], ids="+".join)
def test_training_evaluation_and_prediction_work_without(tmp_path, project, tiny, deleted):
    for part in deleted:
        delete(project, part)
    data, run = write_csv(tmp_path / "rows.csv", sentences(40)), tmp_path / "run"
    train = ["train.py", "configs/text.py", "--model", tiny("bert"), "--data", data]
    train += ["--label", "colour", "--max-length", "32", "--max-steps", "2"]
    train += ["--best-metric", "accuracy"]
    commands = [
        [*train, "--run-dir", str(run)],
        ["evaluate.py", str(run), "--json"],
        ["predict.py", str(run), "the sky is blue", "--batch-size", "1"],
    ]
    for part in deleted:
        commands.append([*train, "--run-dir", str(tmp_path / "refused"), *NEEDED_BY[part]])
    (tmp_path / "commands.py").write_text(RUN_COMMANDS, encoding="utf-8")
    script = str(tmp_path / "commands.py")
    result = run_command("python", script, str(project), json.dumps(commands))

    assert result.code == 0, result.err
    *output, imported_from, codes = result.out.splitlines()
    assert imported_from == str(project / "ftloop" / "__init__.py")
    assert json.loads(codes) == [0, 0, 0] + [2] * len(deleted), result.err
    assert set(json.loads(output[-2])) == {"loss", "accuracy", "f1_macro"}
    assert json.loads(output[-1])["label"] in ("red", "green", "blue")
    for part, file in WRITTEN_BY.items():
        assert (run / file).exists() == (part not in deleted), file
    for part in deleted:
        option, module = NEEDED_BY[part][0], part.removesuffix(".py").replace("/", ".")
        assert option in result.err
        assert f"this copy of ftloop has no ftloop.{module}" in result.err
    assert not (tmp_path / "refused" / "checkpoints").exists()
