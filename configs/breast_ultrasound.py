"""ViT-large on breast ultrasound: benign, malignant or normal?

    python train.py configs/breast_ultrasound.py --task.data.path FOLDER

FOLDER holds train/ and test/, each with benign/, malignant/ and normal/: the 780 images of Al-Dhabyani et al. (2020).
The validation split is a quarter of train: as large as test, if that is a fifth of the images (else give its rows by
`--task.data.validation 156`). Expected on test: accuracy 0.910; recall 0.90 (benign), 0.86 (malignant), 0.78 (normal).
40 epochs, for a GPU. Needs the Hub.
"""

from ftloop import Config, Data, ImageClassification

config = Config(
    task=ImageClassification(
        model="google/vit-large-patch16-224",
        data=Data(path="breast_ultrasound", validation=0.25),
        metrics=("accuracy", "recall_per_class", "f1_macro"),
    ),
    run_dir="runs/breast_ultrasound",
    epochs=40,
    batch_size=10,
    learning_rate=2e-5,
    best_metric="accuracy",
)
