"""A small ViT from random weights on handwritten digits. Needs no network.

    python train.py configs/quickstart_image.py
    python train.py configs/quickstart_image.py --augment crop=0.6 mixup=0.2 --run-dir runs/mixup

Takes a minute on two CPU cores. Expected: accuracy of at least 0.95 on test; chance is 0.1. The
images are scikit-learn's: 1 797 of 8 x 8 pixels.
"""

from ftloop.cli import Job
from ftloop.data.samples import Digits
from ftloop.tasks import ImageClassification

config = Job(
    task=ImageClassification(
        model="vit",
        init="random",
        model_options={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "patch_size": 4,
            # With the default of 0.02, a model of this size starts to learn after some epochs.
            "initializer_range": 0.1,
        },
        data=Digits(),
        image_size=16,
        augment=("crop=0.8",),  # no flip: a mirrored digit is not that digit
        metrics=("accuracy", "f1_macro"),
    ),
    run_dir="runs/quickstart_image",
    epochs=10,
    batch_size=32,
    learning_rate=2e-3,
    warmup=0.1,
    best_metric="accuracy",
)
