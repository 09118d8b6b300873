"""Your own images: every option on the command line.

    python train.py configs/image.py --task.data.path photos
    python train.py configs/image.py --task.data.path labels.csv --task.image-column file --task.label-column species
    python train.py configs/image.py --task.data.path photos --task.model microsoft/resnet-50 --task.image-size 384
    python train.py configs/image.py --task.data.path photos --task.augment crop=0.5 flip randaugment mixup=0.2
    python train.py configs/image.py --task.data.path photos --task.init random --task.model vit \
        --task.model-options hidden_size=192 num_hidden_layers=6 num_attention_heads=3 intermediate_size=768

A folder holds one folder per class, or train/ and test/ with these; a table has a column of paths or encoded images.
Labels may be names, ids, lists (multi-label) or decimals (regression).

Augmentations, each with what its strength is and the one it has if none is given: crop=0.08 (smallest share of the
area), flip=0.5 and vertical-flip=0.5 (probability), rotation=15 (degrees), jitter=0.4 (of brightness, contrast and
saturation), randaugment=9 (magnitude), trivialaugment, erasing=0.25 (probability), mixup=0.2 and cutmix=1 (alpha; each
row is mixed with a second one, which is decoded too). They are applied in this order.
"""

from ftloop import Config, Data, ImageClassification

config = Config(
    task=ImageClassification(model="google/vit-base-patch16-224", data=Data()),
    run_dir="runs/image",
    best_metric="loss",
    warmup=0.06,
)
