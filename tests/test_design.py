"""recipes/: four research ideas, each a small file or a patch of the loop, keep the laws of it.

Each of them trains on a tiny model, is killed in the middle of a step, resumes to the same bits,
and computes the same first step whether a step is divided into micro-batches, over two processes,
or not at all.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import ROOT, Result, quick, ranks, run_script, run_script_of_ftloop, sentences
from interrupt import read_log
from safetensors.torch import load_file, save_file
from test_core_alone import flatten
from test_ledger import read_lines, write_ledger
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy

from ftloop import checkpoint as checkpoints
from ftloop.cli.config_file import from_command_line
from ftloop.config import validate
from ftloop.loader import make_batch
from ftloop.runs.finished import evaluate_run
from ftloop.sampler import TrainSampler
from ftloop.state import fold_in, set_seed
from ftloop.task import model_inputs
from recipes.balanced_order import balanced_order

CONFIGS = {
    "r_drop": "recipes/r_drop.py",
    "token_classification": "recipes/token_classification.py",
    "ema": "configs/text.py",  # of a project to which recipes/ema.patch was applied
    "balanced_order": "recipes/balanced_order.py",
}
RECIPES = list(CONFIGS)
DECAY = 0.999  # of recipes/ema.patch
# 43 rows in two epochs: each has 5 steps of 3 micro-batches and a step of one.
OPTIONS = [
    *("--batch-size", "8", "--micro-batch-size", "3", "--epochs", "2", "--learning-rate", "5e-3"),
    *("--max-length", "32", "--save-every", "2", "--keep-last", "9", "--log-every", "1"),
]
STEPS = 12
KILLED_IN = 5 * 3 + 1 + 3 + 2  # the second micro-batch of the eighth step
SIZES = {"train": 43, "validation": 11}
# R-Drop whose two passes differ without dropout, so that they do not depend on the division.
TWO_MASKS = """
import itertools
import torch
from ftloop.cli import Job
from recipes.r_drop import RDrop

class TwoMasks(RDrop):
    def build_model(self):
        model, passes = super().build_model(), itertools.count()
        masks = torch.rand(2, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        model.dropout.register_forward_hook(lambda *values: values[-1] * masks[next(passes) % 2])
        return model

config = Job(task=TwoMasks(model=""), run_dir="runs/two_masks")
"""


class Recipe:
    """A recipe with tiny data and a tiny model. Its runs are folders by their names."""

    def __init__(self, config: str, project: Path, folder: Path, options: list[str]):
        self.config, self.project, self.folder = config, project, folder
        self.options = [*options, *OPTIONS]

    def command(self, run: str, *options: str) -> list[str]:
        """Return the words after train.py, which train into the folder of this name."""
        return [self.config, *self.options, "--run-dir", str(self.folder / run), *options]

    def train(self, run: str, *options: str) -> Path:
        """Train a run, and return its folder."""
        command = self.command(run, *options)
        if self.project == ROOT:
            result = run_script("train.py", *command)
            assert result.code == 0, result.err
        else:
            reset_accelerate()
            self.loop.train(from_command_line([*command, "--no-report"]))
        return self.folder / run

    @functools.cached_property
    def loop(self) -> ModuleType:
        """The changed loop of the project. In this process, it trains with the rest of ftloop."""
        file = self.project / "ftloop" / "loop.py"
        spec = importlib.util.spec_from_file_location("changed_loop", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def train_in_two_processes(self, run: str, *options: str) -> Path:
        """Train a run in two processes, and return its folder."""
        command = ["train.py", *self.command(run, *options)]
        if self.project == ROOT:
            result = ranks(2, *command)
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            result = self.run(*launcher, *command)
        assert result.code == 0, result.err
        return self.folder / run

    def run(self, *words: str) -> Result:
        """Run a Python command in a new process, in the folder of the project."""
        command = [sys.executable, *quick(words)]
        result = subprocess.run(
            command, cwd=self.project, capture_output=True, text=True, timeout=240, check=False
        )
        return Result(result.returncode, result.stdout, result.stderr)


def reset_accelerate() -> None:
    for state in (AcceleratorState, GradientState, PartialState):  # they outlive an Accelerator
        state._reset_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all rows and runs. A red sentence is more frequent than a green or a blue."""
    folder = tmp_path_factory.mktemp("design")
    for seed, (split, size) in enumerate(SIZES.items()):
        rows = sentences(3 * size, seed)
        rows = [row for index, row in enumerate(rows) if row["colour"] == "red" or index % 4 == 0]
        lines = []
        for row in rows[:size]:
            words = row["text"].split()
            tags = ["COLOUR" if word == row["colour"] else "O" for word in words]
            lines.append(json.dumps({**row, "tokens": words, "tags": tags}))
        assert len(lines) == size
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def apply_patch(project: Path, *options: str) -> bool:
    """Run `git apply` with recipes/ema.patch, and return whether it succeeded."""
    command = ["git", "apply", *options, str(ROOT / "recipes" / "ema.patch")]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(project.parent)}
    return subprocess.run(command, cwd=project, env=environment, check=False).returncode == 0


@pytest.fixture(scope="module")
def patched_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with an average of the weights."""
    project = tmp_path_factory.mktemp("patched") / "project"
    for name in ("ftloop", "configs"):
        shutil.copytree(ROOT / name, project / name)
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    is_applied = apply_patch(ROOT, "--reverse", "--check")  # by someone who trains with it
    assert is_applied or apply_patch(project)
    assert "AveragedModel" in (project / "ftloop" / "loop.py").read_text()
    return project


@pytest.fixture(scope="module")
def recipes(
    folder: Path, tiny: Callable[[str], str], patched_project: Path
) -> Callable[[str], Recipe]:
    @functools.cache
    def build(name: str) -> Recipe:
        (folder / name).mkdir()
        files = [word for split in SIZES for word in (split, str(folder / f"{split}.jsonl"))]
        options = ["--model", tiny("bert"), "--data.files", *files]
        if name != "token_classification":
            options += ["--label", "colour"]
        project = patched_project if name == "ema" else ROOT
        return Recipe(CONFIGS[name], project, folder / name, options)

    config = folder / "two_masks.py"
    config.write_text(TWO_MASKS)
    CONFIGS["two_masks"] = str(config)

    return build


@pytest.fixture(scope="module")
def train_once() -> Callable[[Recipe], Path]:
    """`train_once(recipe)`: the folder of a run without interruption."""
    return functools.cache(lambda recipe: recipe.train("straight/run"))


def digest(run: Path) -> dict[str, str]:
    """Return the sha256 of each file of model/, of all weights and states, and of the values."""
    digests = {}
    for file in sorted((run / "model").iterdir()):
        digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    saved = checkpoints.find_checkpoints(run / "checkpoints")
    assert checkpoints.step_of(saved[-1]) == STEPS
    for checkpoint in saved:
        content = hashlib.sha256()
        for name, value in flatten(checkpoints.load_state_dicts(checkpoint)):
            value = value.numpy().tobytes() if torch.is_tensor(value) else value
            content.update(repr((name, value)).encode())
        digests[checkpoint.name] = content.hexdigest()
    return {**digests, "values": repr(read_log(run)), "scores": (run / "scores.json").read_text()}


def first_step(run: Path) -> dict[str, float]:
    """Return the logged values of the first step in training, by name."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if (line["step"], line["split"]) == (1, "train")]
    return {line["name"]: line["value"] for line in lines}


def first_batch(recipe: Recipe, *options: str):
    """Return the job, the new model, and the rows of the first step as one batch."""
    job = from_command_line(recipe.command("unused", *options))
    dataset = job.task.load_datasets()["train"]
    row_ids = TrainSampler(dataset, job).plan(0).row_ids
    batch = make_batch(dataset, [(0, row) for row in row_ids], job.task.collate, job.seed)
    set_seed(fold_in(job.seed, "init"))
    return job, job.task.build_model().train(), batch


def gradient_norm(model: torch.nn.Module) -> float:
    squares = [
        weight.grad.square().sum() for weight in model.parameters() if weight.grad is not None
    ]
    return torch.stack(squares).sum().sqrt().item()


# Each recipe


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/*.py")), ids=lambda file: file.stem)
def test_a_recipe_names_its_source_and_commands_that_are_understood(file):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert "Source: " in docstring
    commands = [line.split() for line in docstring.splitlines() if "python train.py" in line]
    assert [command[2] for command in commands] == [f"recipes/{file.name}"]
    validate(from_command_line([str(ROOT / file), *commands[0][3:]]))


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_resumes_to_the_same_bits(name, recipes, train_once):
    recipe = recipes(name)
    straight = train_once(recipe)
    script = [str(ROOT / "tests" / "kill.py"), str(KILLED_IN), "train.py"]
    killed = recipe.run(*script, *recipe.command("killed/run"))
    assert killed.code == -signal.SIGKILL, killed.err
    saved = checkpoints.find_checkpoints(recipe.folder / "killed" / "run" / "checkpoints")
    assert checkpoints.step_of(saved[-1]) == 6
    assert digest(recipe.train("killed/run")) == digest(straight)


@pytest.mark.parametrize("name", ["two_masks", *RECIPES[1:]])
def test_the_division_does_not_change_the_first_step(name, recipes):
    recipe, options = recipes(name), ["--dropout", "0", "--max-steps", "1"]
    whole = first_step(recipe.train("whole", *options, "--micro-batch-size", "8"))
    divided = first_step(recipe.train("divided", *options))
    in_two_processes = first_step(recipe.train_in_two_processes("two_processes", *options))
    assert {"loss", "grad_norm"} <= whole.keys()
    assert name != "two_masks" or whole["kl"] > 1e-3
    for values in (divided, in_two_processes):
        assert values == pytest.approx(whole, rel=1e-4)


# R-Drop


def r_drop_by_hand(recipe: Recipe, *options: str) -> dict[str, float]:
    """Compute the first step as the paper writes it: -log p - log q + alpha / 2 (KL + KL)."""
    job, model, batch = first_batch(recipe, *options)
    set_seed(fold_in(job.seed, "dropout", 0, 0, 0))
    first, second = (model(**model_inputs(batch)).logits for _ in range(2))
    p, q = Categorical(logits=first), Categorical(logits=second)
    kl = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
    labels = batch["labels"]
    loss = cross_entropy(first, labels) + cross_entropy(second, labels) + job.task.alpha * kl.mean()
    loss.backward()
    values = {"loss": loss, "kl": kl.mean(), "grad_norm": gradient_norm(model)}
    return {name: torch.as_tensor(value).item() for name, value in values.items()}


@pytest.mark.parametrize("alpha", ["0", "0.5", "3"])
def test_r_drop_is_the_loss_of_the_paper(alpha, recipes):
    options = ["--alpha", alpha, "--max-steps", "1", "--micro-batch-size", "8"]
    expected = r_drop_by_hand(recipes("r_drop"), *options)
    assert expected["kl"] > 1e-3
    values = first_step(recipes("r_drop").train(f"alpha_{alpha}", *options))
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_kl_divergence_is_logged_for_each_step(recipes, train_once):
    lines = (train_once(recipes("r_drop")) / "metrics.jsonl").read_text().splitlines()
    values = [line["value"] for line in map(json.loads, lines) if line["name"] == "kl"]
    assert len(values) == STEPS
    assert min(values) > 0


# Token classification


def test_the_loss_of_a_step_is_the_mean_over_all_its_tokens(recipes):
    options = ["--dropout", "0", "--max-steps", "1"]
    recipe = recipes("token_classification")
    _, model, batch = first_batch(recipe, *options)
    logits, labels = model(**model_inputs(batch)).logits, batch["labels"]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    values = first_step(recipe.train("mean", *options))
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert values["grad_norm"] == pytest.approx(gradient_norm(model), rel=1e-4)

    # The mean of the means of the micro-batches, which have different numbers of tokens
    means = [
        cross_entropy(logits[part].flatten(0, 1), labels[part].flatten(), ignore_index=-100)
        for part in torch.arange(8).split(3)
    ]
    assert values["loss"] != pytest.approx(sum(means).item() / len(means), rel=1e-3)


def test_a_trained_model_tags_the_words_of_a_sentence(recipes, train_once):
    result = run_script("predict.py", train_once(recipes("token_classification")), "the red sky")
    assert result.code == 0, result.err
    assert len(json.loads(result.out)["tags"]) == 3


# EMA


def test_the_patch_can_be_taken_back(patched_project, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(patched_project, project)
    assert apply_patch(project, "--reverse")
    loops = [folder / "ftloop" / "loop.py" for folder in (project, patched_project)]
    assert "AveragedModel" not in loops[0].read_text()
    assert apply_patch(project)
    assert loops[0].read_text() == loops[1].read_text()


def test_the_average_is_evaluated_and_exported(recipes, tmp_path):
    recipe = recipes("ema")
    run = recipe.train("every_step", "--save-every", "1", "--keep-last", "99")
    saved = checkpoints.find_checkpoints(run / "checkpoints")
    assert len(saved) == STEPS
    average: dict[str, torch.Tensor] = {}
    for checkpoint in saved:
        weights = checkpoints.load_weights(checkpoint)
        for name, weight in weights.items():
            before = average.get(name, weight)
            average[name] = (
                DECAY * before + (1 - DECAY) * weight if before.is_floating_point() else weight
            )
    assert checkpoints.load_state(saved[-1]).best_step == STEPS
    exported = load_file(run / "model" / "model.safetensors")
    assert exported.keys() <= average.keys()
    for name, weight in exported.items():
        torch.testing.assert_close(weight, average[name], rtol=1e-5, atol=1e-7)
    is_raw = [torch.equal(weight, weights[name]) for name, weight in exported.items()]
    assert not any(is_raw)

    logged = read_log(run)["validation", "loss"][-1]
    assert evaluate_run(run, "validation")["loss"] == pytest.approx(logged, rel=1e-5)
    raw = tmp_path / "raw"
    shutil.copytree(run, raw)
    save_file(
        {name: weights[name] for name in exported},
        raw / "model" / "model.safetensors",
        {"format": "pt"},
    )
    assert evaluate_run(raw, "validation")["loss"] != pytest.approx(logged, rel=1e-3)


# A row order of one's own


def test_each_class_is_drawn_equally_often():
    labels = [0] * 9000 + [1] * 900 + [2] * 100
    dataset = SimpleNamespace(table={"labels": labels})
    order = balanced_order(dataset, 42, 0)
    assert len(order) == len(labels)
    drawn = torch.tensor(labels)[torch.from_numpy(order)].bincount() / len(labels)
    assert drawn.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert (balanced_order(dataset, 42, 0) == order).all()
    for seed, epoch in ((42, 1), (43, 0)):
        assert (balanced_order(dataset, seed, epoch) != order).any()


def test_the_order_is_verified(recipes, train_once):
    run = train_once(recipes("balanced_order"))
    verified = run_script_of_ftloop("verify", run)
    assert verified.code == 0, verified.out
    assert "in the order of recipes.balanced_order:balanced_order" in verified.out
    assert "rows      steps 1 to 12 used the 86 rows of the plan" in verified.out


def swap_two_steps(lines: list[dict]) -> None:
    """Exchange the rows of the steps 3 and 4, of which the ledger has digests."""
    digests = [line["row_digest"] for line in lines[3:5]]
    assert digests[0] != digests[1]
    lines[3]["row_digest"], lines[4]["row_digest"] = reversed(digests)


@pytest.mark.parametrize(
    ("has_correct_chain", "message"),
    [(False, "breaks the chain"), (True, "step 3 used other rows than those of the plan")],
)
def test_an_altered_ledger_is_not_verified(
    has_correct_chain, message, recipes, train_once, tmp_path
):
    run = tmp_path / "altered"
    shutil.copytree(train_once(recipes("balanced_order")), run)
    lines = read_lines(run)
    swap_two_steps(lines)
    if has_correct_chain:
        write_ledger(run, lines)
    else:
        (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    verified = run_script_of_ftloop("verify", run)
    assert verified.code == 1
    assert message in verified.out
