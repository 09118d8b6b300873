"""ViT-large on breast ultrasound: is a lesion benign, malignant or not there?

    python train.py configs/breast_ultrasound.py --data FOLDER

FOLDER holds train/ and test/, each with benign/, malignant/ and normal/: the 780 images of
Al-Dhabyani et al. (2020). A quarter of train becomes the validation split. That is as many images
as test has, if test has a fifth of all images; otherwise, give a number of rows by
`--data.validation 156`. Expected on test: accuracy 0.910; recall 0.90 (benign), 0.86 (malignant),
0.78 (normal). 40 epochs, on a GPU. Needs the Hub.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import ImageClassification

config = Job(
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
