"""Train a small ViT from scratch by the Hugging Face Trainer, on the rows, pixels and settings that ftloop takes.

    python -m benchmarks.images_beside_trainer sign_language_digits --epochs 10

The folder holds train/CLASS/*.jpg and test/CLASS/*.jpg. Rows, transforms, collation and the model are those of
ImageClassification; the loop, the order, the schedule and the optimizer are the Trainer's. Prints the accuracy on test.
"""

import tempfile
from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """The same job as `python train.py configs/image.py`, with the defaults of the comparison in README.md."""

    path: Annotated[str, tyro.conf.Positional]  # a folder of class folders
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.06  # share of all steps
    weight_decay: float = 0.01
    image_size: int = 64  # pixels
    augment: tuple[str, ...] = ("crop", "flip")  # as --augment
    seed: int = 42


def main() -> None:
    given = tyro.cli(Options, prog="python -m benchmarks.images_beside_trainer")

    import numpy
    from transformers import Trainer, TrainingArguments, set_seed

    from ftloop.data import Data
    from ftloop.tasks import ImageClassification

    shape = {
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    }
    task = ImageClassification(
        model="vit",
        init="random",
        model_options={**shape, "patch_size": 8},
        image_size=given.image_size,
        augment=given.augment,
        data=Data(path=given.path),
    )
    data = task.load_datasets()
    set_seed(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=given.epochs,
            per_device_train_batch_size=given.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=given.learning_rate,
            weight_decay=given.weight_decay,
            warmup_steps=given.warmup,  # below 1: a share
            max_grad_norm=1.0,
            seed=given.seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=False,  # of ViT it restores a third of the tensors (transformers#43701)
            remove_unused_columns=False,
            report_to=[],
        )
        trainer = Trainer(
            task.build_model(),
            arguments,
            data_collator=task.collate,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            compute_metrics=lambda found: {
                "accuracy": float((found[0].argmax(-1) == found[1]).mean())
            },
        )
        trainer.train()
        logits = trainer.predict(data["test"]).predictions
    accuracy = numpy.mean(logits.argmax(-1) == numpy.array(data["test"].table["labels"][:]))
    print(f"accuracy on test {accuracy:.4f} ({len(data['test'])} images, the last weights)")


if __name__ == "__main__":
    main()
