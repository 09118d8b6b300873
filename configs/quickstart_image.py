"""A small ViT from scratch on real handwritten digits. No network, a minute on two cores.

    python train.py configs/quickstart_image.py
    python train.py configs/quickstart_image.py --task.augment crop=0.6 mixup=0.2 --run-dir runs/digits_mixup

Expected: accuracy at least 0.95 on test; chance is 0.1. The images are scikit-learn's, 1 797 of 8 x 8 pixels.
"""

from ftloop import Config, ImageClassification
from ftloop.data.samples import Digits

config = Config(
    task=ImageClassification(
        model="vit",
        init="random",
        model_options={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "patch_size": 4,
            "initializer_range": 0.1,  # so small a model begins to learn at once; with ViT's 0.02, after some epochs
        },
        data=Digits(),
        image_size=16,
        augment=("crop=0.8",),  # no flip: a mirrored digit is none
        metrics=("accuracy", "f1_macro"),
    ),
    run_dir="runs/quickstart_image",
    epochs=10,
    batch_size=32,
    learning_rate=2e-3,
    warmup=0.1,
    best_metric="accuracy",
)
