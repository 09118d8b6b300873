"""Your own images. Every option can be given on the command line.

    python train.py configs/image.py --data photos
    python train.py configs/image.py --data labels.csv --image file --label species
    python train.py configs/image.py --data photos --model microsoft/resnet-50 --image-size 384
    python train.py configs/image.py --data photos --augment crop=0.5 flip randaugment mixup=0.2
    python train.py configs/image.py --data photos --init random --model vit \
        --model-options hidden_size=192 num_hidden_layers=6 num_attention_heads=3

A folder holds one folder per class, or train/ and test/ with one folder per class each. A table has
a column of paths or of encoded images. Labels may be names, ids, lists (multi-label) or decimal
numbers (regression).

Augmentations, each with the meaning of its strength and the default: crop=0.08 (smallest share of
the area), flip=0.5 and vertical-flip=0.5 (probability), rotation=15 (degrees), jitter=0.4 (of
brightness, contrast and saturation), randaugment=9 (magnitude), trivialaugment, erasing=0.25
(probability), mixup=0.2 and cutmix=1 (alpha; each row is mixed with a second one, which is decoded
as well). They are applied in this order.
"""

from ftloop.cli import Job
from ftloop.data import Data
from ftloop.tasks import ImageClassification

config = Job(
    task=ImageClassification(model="google/vit-base-patch16-224", data=Data()),
    run_dir="runs/image",
    best_metric="loss",
    warmup=0.06,
)
