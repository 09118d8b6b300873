"""Train a small ViT from scratch with the Trainer, on the rows, pixels and settings of ftloop.

    python -m benchmarks.images_beside_trainer sign_language_digits --epochs 10

The folder holds train/CLASS/*.jpg and test/CLASS/*.jpg. Rows, transforms, collation and the model
are those of ImageClassification. The loop, the order, the schedule and the optimizer are those of
the Trainer. Prints the accuracy on test.
"""

import tempfile
from dataclasses import dataclass
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Options:
    """The settings of the comparison in docs/speed.md."""

    path: Annotated[str, tyro.conf.Positional]  # a folder of class folders
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.06  # fraction of all steps
    weight_decay: float = 0.01
    image_size: int = 64  # pixels
    augment: tuple[str, ...] = ("crop", "flip")  # like --augment of train.py
    seed: int = 42


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.images_beside_trainer")

    import numpy
    from transformers import Trainer, TrainingArguments, set_seed

    from ftloop.data import Data
    from ftloop.tasks import ImageClassification

    task = ImageClassification(
        model="vit",
        init="random",
        model_options={
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "patch_size": 8,
        },
        image_size=options.image_size,
        augment=options.augment,
        data=Data(path=options.path),
    )
    datasets = task.load_datasets()
    set_seed(options.seed)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits, labels = prediction
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            warmup_steps=options.warmup,  # below 1: a fraction
            max_grad_norm=1.0,
            seed=options.seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            # It would restore only a third of the tensors of a ViT (transformers#43701).
            load_best_model_at_end=False,
            remove_unused_columns=False,
            report_to=[],
        )
        trainer = Trainer(
            task.build_model(),
            arguments,
            data_collator=task.collate,
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            compute_metrics=compute_metrics,
        )
        trainer.train()
        prediction = trainer.predict(datasets["test"])
    accuracy = numpy.mean(prediction.predictions.argmax(-1) == prediction.label_ids)
    print(f"accuracy on test {accuracy:.4f} ({len(datasets['test'])} images, the last weights)")


if __name__ == "__main__":
    main()
