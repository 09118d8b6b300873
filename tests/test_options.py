"""Options that no other test is about: each does what --help says."""

import dataclasses
import json
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_script, sentences, write_csv
from datasets import Dataset, DatasetDict
from test_train import values
from transformers import PretrainedConfig, PreTrainedModel

from ftloop import Config, Data, Task, TextClassification, UserError, checkpoint, evaluate
from ftloop import train as train_config


def train(words: list[str], *more: str) -> Path:
    """Run `configs/text.py` and return its folder."""
    words = [*words, *more]
    result = run_script("train.py", "configs/text.py", *words)
    assert result.code == 0, result.err
    return Path(words[words.index("--run-dir") + 1])


@pytest.fixture
def words(tiny, colours) -> list[str]:
    return ["--task.model", tiny("bert"), *colours]


@pytest.fixture
def task(tiny, tmp_path) -> TextClassification:
    data = Data(path=write_csv(tmp_path / "rows.csv", sentences(30)))
    return TextClassification(model=tiny("bert"), data=data, label_column="colour", max_length=32)


def test_gradient_checkpointing_changes_nothing_but_memory(words, tmp_path):
    plain = train(words)
    saving = train([*words[:-1], str(tmp_path / "saving")], "--gradient-checkpointing")
    assert dict(values(saving, "train", "loss")) == pytest.approx(dict(values(plain, "train", "loss")), rel=1e-6)


def test_bf16_is_near_fp32_and_not_equal(words, tmp_path):
    plain = values(train(words, "--task.dropout", "0"), "train", "loss")
    half = [*words[:-1], str(tmp_path / "half"), "--task.dropout", "0", "--precision", "bf16"]
    half = values(train(half), "train", "loss")
    assert half != plain
    assert dict(half) == pytest.approx(dict(plain), abs=0.05)
    weights = torch.load(checkpoint.find(tmp_path / "half" / "checkpoints")[-1] / "weights.pt", weights_only=True)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_evaluations_come_when_asked_and_at_the_end(words):
    assert [step for step, _ in values(train(words, "--eval-every", "5"), "validation", "loss")] == [5, 10, 12]


def test_max_steps_decides_instead_of_epochs(words):
    run = train(words, "--max-steps", "15")
    assert len(values(run, "train", "loss")) == 15
    rates = [value for _, value in values(run, "train", "learning_rate")]
    assert rates[1:] == pytest.approx([5e-3 * (15 - step) / 14 for step in range(1, 15)])  # the schedule ends there


def test_warmup_and_schedule_options_reach_the_schedule(words):
    options = ("--warmup", "3", "--schedule", "cosine_with_min_lr", "--schedule-options", "min_lr=0.001")
    rates = [value for _, value in values(train(words, *options), "train", "learning_rate")]
    assert rates[:4] == pytest.approx([0, 5e-3 / 3, 5e-3 * 2 / 3, 5e-3])
    assert rates[-1] >= 1e-3
    assert sorted(rates[3:], reverse=True) == rates[3:]


def test_clipping_scales_the_gradient_and_zero_means_no_clipping(words, tmp_path):
    """With SGD, the first step is the learning rate times the clipped gradient."""
    norms = {}
    for limit in ("0", "0.01"):
        run = train(
            [*words[:-1], str(tmp_path / f"limit{limit}")],
            *("--max-grad-norm", limit, "--max-steps", "2", "--optimizer", "test_options:sgd", "--task.dropout", "0"),
            *("--schedule", "constant", "--save-every", "1", "--keep", "last=2,best=1"),
        )
        first, second = (
            torch.load(path / "weights.pt", weights_only=True) for path in checkpoint.find(run / "checkpoints")
        )
        moved = sum(((second[name] - first[name]).double() ** 2).sum() for name in first).sqrt().item()
        norms[limit] = moved / 5e-3, values(run, "train", "gradient_norm")[1][1]
    assert norms["0"][0] == pytest.approx(norms["0"][1], rel=1e-3)
    assert norms["0.01"][0] == pytest.approx(0.01, rel=1e-3)
    assert norms["0.01"][1] > 0.1


def sgd(model, config):
    return torch.optim.SGD(model.parameters(), config.learning_rate)


def test_workers_change_nothing(words, tmp_path):
    plain = values(train(words), "train", "loss")
    assert values(train([*words[:-1], str(tmp_path / "two")], "--workers", "2"), "train", "loss") == plain


def test_the_seed_decides_and_nothing_else_does(words, tmp_path):
    first = values(train(words), "train", "loss")
    torch.manual_seed(12345)
    assert values(train([*words[:-1], str(tmp_path / "again")], "--log-every", "3"), "train", "loss") == first
    assert values(train([*words[:-1], str(tmp_path / "other")], "--seed", "7"), "train", "loss") != first


def test_the_best_direction_can_be_turned(words):
    run = train(words, "--best-metric", "loss", "--best-direction", "max", "--eval-every", "2")
    losses = values(run, "validation", "loss")
    highest = max(value for _, value in losses)
    assert json.loads((run / "scores.json").read_text())["validation"]["loss"] == highest
    assert highest > min(value for _, value in losses)


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

    AutoModelForSequenceClassification.from_pretrained(task.model, num_labels=7).save_pretrained(tmp_path / "seven")
    task.processor.save_pretrained(tmp_path / "seven")
    with caplog.at_level(logging.INFO, "ftloop"):
        model = dataclasses.replace(task, model=str(tmp_path / "seven")).build_model()
    assert model.classifier.weight.shape == (3, 32)
    assert "of another size in the checkpoint, so new and random: classifier.bias, classifier.weight" in caplog.text


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
        name: value for name, value in vars(model.config).items() if "drop" in name and isinstance(value, float)
    }
    assert probabilities
    assert set(probabilities.values()) == {0.25}


def test_padding_to_the_longest_to_a_multiple_or_to_the_maximum(task):
    rows = list(task.load()["train"])[:4]
    longest = max(len(row["input_ids"]) for row in rows)
    assert task.collate(rows)["input_ids"].shape == (4, longest)
    eights = dataclasses.replace(task, pad_to_multiple_of=8).collate(rows)
    assert eights["input_ids"].shape == (4, -(-longest // 8) * 8)
    assert dataclasses.replace(task, pad_to="max").collate(rows)["input_ids"].shape == (4, 32)
    expected = task.collate(rows)
    assert all(torch.equal(eights[name][:, :longest], expected[name]) for name in ("input_ids", "attention_mask"))


def test_the_threshold_decides_what_a_multi_label_task_predicts(task):
    from ftloop.data.labels import Labels

    multi = dataclasses.replace(task, threshold=0.8)
    vars(multi)["labels"] = Labels("multi_label_classification", ("a", "b"))
    outputs = SimpleNamespace(logits=torch.tensor([[0.1, 3.0], [1.0, -1.0]]))
    assert multi.predict(outputs)["predictions"].tolist() == [[0, 1], [0, 0]]


def test_the_precision_of_the_launcher_is_recorded_and_used_in_evaluation(words, monkeypatch):
    with monkeypatch.context() as launcher:
        launcher.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        run = train(words)
    assert json.loads((run / "config.json").read_text())["config"]["precision"] == "bf16"
    evaluated = run_script("evaluate.py", run, "--json")
    assert json.loads(evaluated.out) == pytest.approx(json.loads((run / "scores.json").read_text())["test"], rel=1e-6)


@pytest.mark.parametrize(
    ("precision", "device", "multiple"), [("bf16", "cuda", 8), ("bf16", "cpu", 1), ("no", "cuda", 1)]
)
def test_half_precision_pads_to_multiples_of_eight_where_there_are_tensor_cores(
    task, monkeypatch, precision, device, multiple
):
    state = SimpleNamespace(mixed_precision=precision, device=torch.device(device))
    monkeypatch.setattr("accelerate.state.is_initialized", lambda: True)
    monkeypatch.setattr("accelerate.state.AcceleratorState", lambda: state)
    assert dataclasses.replace(task).collator.pad_to_multiple_of == multiple


def test_a_task_goes_to_worker_processes_with_its_collator(task, monkeypatch):
    rows = list(task.load()["train"])[:4]
    sent = pickle.dumps(task.collate)
    # A spawned worker knows nothing of the precision; what it pads to was decided before.
    monkeypatch.setattr("accelerate.state.is_initialized", lambda: pytest.fail("the worker asked for the precision"))
    received = pickle.loads(sent)(rows)
    expected = task.collate(rows)
    assert all(torch.equal(received[name], expected[name]) for name in expected)


def test_a_task_of_its_own_needs_the_six_methods_alone(tmp_path):
    run = tmp_path / "run"
    config = Config(task=Halves(), run_dir=str(run), epochs=30, batch_size=8, learning_rate=0.1, report=False)
    scores = train_config(config)
    assert scores["validation"]["loss"] < 1
    assert (run / "model" / "model.safetensors").is_file()
    with pytest.raises(UserError, match="Halves has no field `model`"):
        evaluate(run)


class Line(PreTrainedModel):
    """y = a x + b, as a model that transformers can save."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.line(x).squeeze(-1)


@dataclasses.dataclass(frozen=True)
class Halves(Task):
    """Numbers to their halves."""

    def load(self):
        numbers = Dataset.from_list([{"x": float(x), "labels": x / 2} for x in range(-8, 8)])
        return DatasetDict(train=numbers, validation=numbers)

    def build_model(self):
        return Line(PretrainedConfig())

    def collate(self, examples):
        return {
            "x": torch.tensor([[example["x"]] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    def losses(self, outputs, targets):
        return (outputs - targets) ** 2

    def predict(self, outputs):
        return {"predictions": outputs}

    def build_metrics(self):
        return []
