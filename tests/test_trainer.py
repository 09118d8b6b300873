"""The Trainer as an oracle: without accumulation, with the same rows in the same order, its losses
and weights are those of the loop.
"""

import json

import pytest
import torch
from conftest import sentences
from torch.utils.data import DataLoader
from toy import read_values
from transformers import Trainer, TrainingArguments

from ftloop import Config, train
from ftloop.checkpoint import load_weights, newest_intact
from ftloop.data import Data
from ftloop.sampler import random_order
from ftloop.state import fold_in, set_seed
from ftloop.tasks import TextClassification

NUM_ROWS, BATCH_SIZE, EPOCHS, STEPS = 43, 8, 3, 18
SETTINGS = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": 0.5, "seed": 7}
# Both multiply matrices with torch's default. With another library, Adam makes steps of the noise
# in gradients that are truly 0, those of key biases.


class RecordingTrainer(Trainer):
    """The Trainer with the order of rows of the loop. It records the loss of each step."""

    def get_train_dataloader(self):
        epochs = iter(range(EPOCHS))

        class Batches:
            def __len__(self):
                return STEPS // EPOCHS

            def __iter__(self):
                order = random_order(range(NUM_ROWS), SETTINGS["seed"], next(epochs)).tolist()
                for start in range(0, NUM_ROWS, BATCH_SIZE):
                    yield order[start : start + BATCH_SIZE]

        collate = self.data_collator
        return DataLoader(self.train_dataset, batch_sampler=Batches(), collate_fn=collate)

    def compute_loss(self, *arguments, **options):
        loss = super().compute_loss(*arguments, **options)
        self.losses.append(loss.item())
        return loss


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_losses_and_weights_equal_those_of_the_trainer(tiny, tmp_path, schedule):
    file, run = tmp_path / "train.jsonl", tmp_path / "run"
    file.write_text("".join(json.dumps(row) + "\n" for row in sentences(NUM_ROWS)))
    task = TextClassification(
        model=tiny("bert"),
        data=Data(files={"train": str(file)}, validation=0),
        label_column=("colour",),
        max_length=32,
        dropout=0.0,
    )
    config = Config(
        task=task,
        run_dir=str(run),
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        group_by_length=False,
        warmup=0.2,
        schedule=schedule,
        **SETTINGS,
    )
    train(config)

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=EPOCHS,
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
    set_seed(fold_in(SETTINGS["seed"], "init"))
    model, rows = task.build_model(), task.load_datasets()["train"]
    trainer = RecordingTrainer(model, arguments, data_collator=task.collate, train_dataset=rows)
    trainer.losses = []
    trainer.train()

    losses, weights = read_values(run, "loss"), load_weights(newest_intact(run / "checkpoints"))
    assert len(losses) == STEPS
    assert losses == pytest.approx(trainer.losses, rel=1e-6)
    assert sum(losses[-6:]) < sum(losses[:6])
    for name, value in trainer.model.state_dict().items():
        assert torch.allclose(weights[name], value.cpu(), rtol=0, atol=1e-6), name
