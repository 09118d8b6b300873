"""The Trainer as an oracle: on the same order, model and settings, at accumulation 1, its losses are ours."""

import json

import pytest
import torch
from conftest import sentences
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from ftloop import Config, Data, TextClassification, train
from ftloop.sampler import mix, rows_served, seed_all

SETTINGS = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": 0.5, "seed": 7}
# The same products for both: with others, Adam makes steps of the noise in gradients that are truly 0 (of key biases).
OURS = {"batch_size": 8, "batching": "random", "warmup": 0.2, "matmul": "default"}


class Recorder(Trainer):
    """The Trainer with our order of rows; it keeps the loss of each step."""

    def get_train_dataloader(self):
        rows = [row for epoch in range(3) for row in rows_served(43, SETTINGS["seed"], epoch, 0, 43)]
        batches = [rows[epoch * 43 :][:43][start : start + 8] for epoch in range(3) for start in range(0, 43, 8)]
        one_epoch = len(batches) // 3
        served = iter(range(3))

        class Epoch(list):
            def __iter__(self):
                epoch = next(served)
                return iter(batches[epoch * one_epoch : (epoch + 1) * one_epoch])

        return DataLoader(self.train_dataset, batch_sampler=Epoch(batches[:one_epoch]), collate_fn=self.data_collator)

    def compute_loss(self, *arguments, **options):
        loss = super().compute_loss(*arguments, **options)
        self.seen.append(loss.item())
        return loss


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_loss_curve_and_the_weights_equal_the_trainers(tiny, tmp_path, schedule):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sentences(43)))
    data = Data(files={"train": str(file)}, validation=0)
    task = TextClassification(model=tiny("bert"), data=data, label_column="colour", max_length=32, dropout=0.0)
    config = Config(task=task, run_dir=str(tmp_path / "run"), report=False, schedule=schedule, **OURS, **SETTINGS)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ours = [line["value"] for line in lines if line["name"] == "loss"]
    weights = torch.load(next((tmp_path / "run" / "checkpoints").glob("step-*")) / "weights.pt", weights_only=True)

    seed_all(mix(SETTINGS["seed"], "model"))
    model = task.build_model()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=8,
        num_train_epochs=3,
        warmup_steps=4,  # a fifth of 18, rounded up
        lr_scheduler_type=schedule,
        optim="adamw_torch_fused",
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        **SETTINGS,
    )
    rows = task.load()["train"].remove_columns("length")
    trainer = Recorder(model, arguments, data_collator=task.collate, train_dataset=rows)
    trainer.seen = []
    trainer.train()
    assert len(ours) == 18
    assert ours == pytest.approx(trainer.seen, rel=1e-6)
    assert sum(ours[-6:]) < sum(ours[:6])
    for name, value in trainer.model.state_dict().items():
        assert torch.allclose(weights[name], value.cpu(), rtol=0, atol=1e-6), name
