"""Options that no other test is about: each does what --help says."""

import dataclasses
import json
import logging
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_script, sentences, write_csv
from toy import read_steps

from ftloop import Task, UserError, checkpoint, train as train_job
from ftloop.cli import Job
from ftloop.data import Data
from ftloop.runs.finished import evaluate_run
from ftloop.runs.trust import allow
from ftloop.sampler import ceil_div
from ftloop.tasks import TextClassification


def train(words: list[str], *more: str, run_dir: Path | None = None) -> Path:
    """Run `configs/text.py` and return its run folder, which `run_dir` replaces."""
    words = [*words, *more]
    if run_dir is not None:
        words += ["--run-dir", str(run_dir)]
    result = run_script("train.py", "configs/text.py", *words)
    assert result.code == 0, result.err
    return Path(run_dir or words[words.index("--run-dir") + 1])


def train_losses(words: list[str], *more: str, run_dir: Path | None = None) -> dict[int, float]:
    """Run `configs/text.py` and return the training loss of each step."""
    return dict(read_steps(train(words, *more, run_dir=run_dir), "loss"))


@pytest.fixture
def words(tiny, colours) -> list[str]:
    return ["--model", tiny("bert"), *colours]


@pytest.fixture
def task(tiny, tmp_path) -> TextClassification:
    data = Data(path=write_csv(tmp_path / "rows.csv", sentences(30)))
    return TextClassification(model=tiny("bert"), data=data, label_column="colour", max_length=32)


def test_gradient_checkpointing_changes_nothing_but_memory(words, tmp_path):
    plain = train_losses(words)
    checkpointed = train_losses(words, "--gradient-checkpointing", run_dir=tmp_path / "other")
    assert checkpointed == pytest.approx(plain, rel=1e-6)


def test_bf16_is_near_fp32_and_not_equal(words, tmp_path):
    words = [*words, "--dropout", "0"]
    plain = train_losses(words)
    half = train_losses(words, "--precision", "bf16", run_dir=tmp_path / "half")
    assert half != plain
    assert half == pytest.approx(plain, abs=0.05)
    newest = checkpoint.find_checkpoints(tmp_path / "half" / "checkpoints")[-1]
    weights = checkpoint.load_weights(newest).values()
    assert {value.dtype for value in weights if value.is_floating_point()} == {torch.float32}


def test_evaluations_come_when_asked_and_at_the_end(words):
    losses = read_steps(train(words, "--eval-every", "5"), "loss", "validation")
    assert [step for step, _ in losses] == [5, 10, 12]


def test_max_steps_decides_instead_of_epochs(words):
    run = train(words, "--max-steps", "15")
    assert len(read_steps(run, "loss")) == 15
    rates = [value for _, value in read_steps(run, "learning_rate")]
    # The schedule ends at the last step.
    assert rates[1:] == pytest.approx([5e-3 * (15 - step) / 14 for step in range(1, 15)])


def test_warmup_and_schedule_options_reach_the_schedule(words):
    options = "--warmup 3 --schedule cosine_with_min_lr --schedule-options min_lr=0.001"
    run = train(words, *options.split())
    rates = [value for _, value in read_steps(run, "learning_rate")]
    assert rates[:4] == pytest.approx([0, 5e-3 / 3, 5e-3 * 2 / 3, 5e-3])
    assert rates[-1] >= 1e-3
    assert sorted(rates[3:], reverse=True) == rates[3:]


@pytest.mark.parametrize("limit", ["0", "0.01"])
def test_clipping_scales_the_gradient_and_zero_means_no_clipping(words, limit):
    """With SGD, the first step is the learning rate times the clipped gradient."""
    options = "--max-steps 2 --optimizer test_options:sgd --dropout 0 --schedule constant"
    options += f" --save-every 1 --keep-last 2 --max-grad-norm {limit}"
    run = train(words, *options.split())
    before, after = map(checkpoint.load_weights, checkpoint.find_checkpoints(run / "checkpoints"))
    squares = [((after[name] - before[name]).double() ** 2).sum() for name in before]
    norm_of_step = sum(squares).sqrt().item() / 5e-3
    logged_norm = read_steps(run, "grad_norm")[1][1]
    if limit == "0":
        assert norm_of_step == pytest.approx(logged_norm, rel=1e-3)
    else:
        assert norm_of_step == pytest.approx(0.01, rel=1e-3)
        assert logged_norm > 0.1


def sgd(model, config):
    return torch.optim.SGD(model.parameters(), config.learning_rate)


def test_workers_change_nothing(words, tmp_path):
    plain = train_losses(words)
    assert train_losses(words, "--workers", "2", run_dir=tmp_path / "two") == plain


def test_the_seed_decides_and_nothing_else_does(words, tmp_path):
    first = train_losses(words)
    torch.manual_seed(12345)
    assert train_losses(words, "--log-every", "3", run_dir=tmp_path / "again") == first
    assert train_losses(words, "--seed", "7", run_dir=tmp_path / "other") != first


def test_the_best_direction_can_be_turned(words):
    run = train(words, "--best-metric", "loss", "--best-direction", "max", "--eval-every", "2")
    losses = [value for _, value in read_steps(run, "loss", "validation")]
    assert json.loads((run / "scores.json").read_text())["validation"]["loss"] == max(losses)
    assert max(losses) > min(losses)


def test_random_initialisation_takes_the_architecture_alone(task):
    torch.manual_seed(1)
    pretrained = task.build_model().state_dict()
    torch.manual_seed(1)
    random = dataclasses.replace(task, init="random").build_model().state_dict()
    assert {name: value.shape for name, value in random.items()} == {
        name: value.shape for name, value in pretrained.items()
    }
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(random[name], pretrained[name])


def test_a_head_of_another_size_is_replaced_and_said(task, tmp_path, caplog):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(task.model, num_labels=7).save_pretrained(
        tmp_path / "seven"
    )
    task.processor.save_pretrained(tmp_path / "seven")
    with caplog.at_level(logging.INFO, "ftloop"):
        model = dataclasses.replace(task, model=str(tmp_path / "seven")).build_model()
    assert model.classifier.weight.shape == (3, 32)
    assert (
        "another size in the checkpoint, so they are new and random: classifier.bias, classifier"
        in caplog.text
    )


def test_half_precision_weights_are_trained_in_float32(task, tmp_path):
    task.build_model().half().save_pretrained(tmp_path / "half")
    task.processor.save_pretrained(tmp_path / "half")
    model = dataclasses.replace(task, model=str(tmp_path / "half")).build_model()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "modernbert"])
def test_dropout_sets_every_dropout_module(tiny, task, architecture):
    model = dataclasses.replace(task, model=tiny(architecture), dropout=0.25).build_model()
    found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert found <= {0.25}
    probabilities = {
        name: value
        for name, value in vars(model.config).items()
        if "drop" in name and isinstance(value, float)
    }
    assert probabilities
    assert set(probabilities.values()) == {0.25}


def test_padding_to_the_longest_to_a_multiple_or_to_the_maximum(task):
    dataset = task.load_datasets()["train"]
    rows = [dataset[row] for row in range(4)]
    longest = max(len(row["input_ids"]) for row in rows)
    expected = task.collate(rows)
    assert expected["input_ids"].shape == (4, longest)
    eights = dataclasses.replace(task, pad_to_multiple_of=8).collate(rows)
    assert eights["input_ids"].shape == (4, 8 * ceil_div(longest, 8))
    assert dataclasses.replace(task, pad_to="max").collate(rows)["input_ids"].shape == (4, 32)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(eights[name][:, :longest], expected[name])


def test_the_threshold_decides_what_a_multi_label_task_predicts(task):
    from ftloop.data.labels import Labels

    multi = dataclasses.replace(task, threshold=0.8)
    vars(multi)["labels"] = Labels("multi_label_classification", ("a", "b"))
    outputs = SimpleNamespace(logits=torch.tensor([[0.1, 3.0], [1.0, -1.0]]))
    assert multi.predict(outputs, {})["predictions"].tolist() == [[0, 1], [0, 0]]


def test_the_precision_of_the_launcher_is_used_in_evaluation_too(words, monkeypatch):
    with monkeypatch.context() as launcher:
        launcher.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        run = train(words)
    environment = checkpoint.load_environment(checkpoint.find_checkpoints(run / "checkpoints")[-1])
    assert environment["precision"] == "bf16"
    evaluated = json.loads(run_script("evaluate.py", run, "--json").out)
    scores = json.loads((run / "scores.json").read_text())
    assert evaluated == pytest.approx(scores["test"], rel=1e-6)


def test_a_task_goes_to_worker_processes_with_its_collator(task):
    dataset = task.load_datasets()["train"]
    rows = [dataset[row] for row in range(4)]
    received = pickle.loads(pickle.dumps(task.collate))(rows)
    expected = task.collate(rows)
    assert all(torch.equal(received[name], expected[name]) for name in expected)


def test_a_compiled_run_pads_to_few_lengths(task):
    job = Job(task=task, run_dir="r", compile=True)
    assert job.task.pad_to_multiple_of == 32  # of max_length 32
    assert Job(task=task, run_dir="r").task.pad_to_multiple_of == 1
    chosen = dataclasses.replace(task, pad_to_multiple_of=8)
    assert Job(task=chosen, run_dir="r", compile=True).task.pad_to_multiple_of == 8


def test_options_become_setups_and_observers(task, monkeypatch):
    def names(items):
        return [type(item).__name__ for item in items]

    plain = Job(task=task, run_dir="r")
    assert names(plain.setups()) == [
        *("TerminalSetup", "FSDP2", "MatmulBackend", "KeepMemory", "RecordEnvironment")
    ]
    assert names(plain.observers())[0] == "RecordImportFolders"
    assert {"ProgressBar", "ScoreTable", "Ledger", "Summary", "Reporter"} < {
        *names(plain.observers())
    }

    class Pusher:  # the real one asks the Hub whether the repository can be written
        def __init__(self, **options):
            self.options = options

    monkeypatch.setattr("ftloop.hub.push.Pusher", Pusher)
    full = Job(
        task=task,
        run_dir="r",
        deterministic=True,
        keep_memory=False,
        gradient_checkpointing=True,
        compile=True,
        micro_batch_size="auto",
        quiet=True,
        report=False,
        track=("tensorboard",),
        push_to_hub="me/model",
    )
    assert names(full.setups())[1:] == [
        *("Deterministic", "FSDP2", "MatmulBackend"),
        *("GradientCheckpointing", "Compile", "AutoMicroBatchSize", "RecordEnvironment"),
    ]
    observers = names(full.observers())
    assert {"Trackers", "Pusher"} < {*observers}
    assert not {"ProgressBar", "ScoreTable", "Summary", "Reporter"} & {*observers}


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("ftloop.logs.trackers", {"track": ("wandb",)}, "ftloop.logs.trackers"),
        ("ftloop.provenance.ledger", {"digest_every": 5}, "ftloop.provenance.ledger"),
        ("ftloop.report.reporter", {"report_every": 5}, "ftloop.report.reporter"),
        ("ftloop.hub.push", {"push_to_hub": "me/model"}, "ftloop.hub.push"),
    ],
)
def test_an_option_whose_part_was_deleted_is_an_error_and_a_default_is_not(
    task, monkeypatch, module, options, message
):
    monkeypatch.setitem(sys.modules, module, None)  # importing it then fails
    Job(task=task, run_dir="r").observers()
    (field,) = options
    job = Job(task=task, run_dir="r", **options)
    with pytest.raises(UserError, match=f"{field}: cannot be used: .*{message}"):
        build_parts(job)


def build_parts(job):
    job.setups()
    job.observers()


def test_a_task_of_its_own_needs_the_six_methods_alone(tmp_path):
    run = tmp_path / "run"
    job = Job(
        task=Halves(), run_dir=str(run), epochs=30, batch_size=8, learning_rate=0.1, report=False
    )
    scores = train_job(job)
    assert scores["validation"]["loss"] < 1
    assert (run / "model" / "model.safetensors").is_file()
    with allow(code=True):
        assert evaluate_run(run) == pytest.approx(scores["validation"], rel=1e-6)


class Line(torch.nn.Module):
    """y = a x + b."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.line(x).squeeze(-1)


@dataclasses.dataclass(frozen=True)
class Halves(Task):
    """Numbers to their halves."""

    def load_datasets(self):
        numbers = [{"x": float(x), "y": x / 2} for x in range(-8, 8)]
        return {"train": numbers, "validation": numbers}

    def build_model(self):
        return Line()

    def collate(self, examples):
        return {
            "x": torch.tensor([[example["x"]] for example in examples]),
            "labels": torch.tensor([example["y"] for example in examples]),
        }

    def losses(self, outputs, batch):
        return (outputs - batch["labels"]) ** 2

    def predict(self, outputs, batch):
        return {"predictions": outputs}
