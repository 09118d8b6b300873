"""Image augmentation: the options, the transforms of torchvision, and mixing two images.

Transforms draw from the global generators, which the loader seeds by (seed, epoch, row).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ftloop.data.images import decode_image
from ftloop.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch


class Augmentation(NamedTuple):
    """What the strength of an augmentation is."""

    default: float | None  # None: it has no strength
    maximum: float
    meaning: str


# In the order in which they are applied, whatever the order of the option.
AUGMENTATIONS = {
    "crop": Augmentation(0.08, 1, "smallest share of the area"),
    "flip": Augmentation(0.5, 1, "probability"),
    "vertical-flip": Augmentation(0.5, 1, "probability"),
    "rotation": Augmentation(15, 180, "degrees to either side"),
    "jitter": Augmentation(0.4, 1, "change of brightness, contrast and saturation"),
    "randaugment": Augmentation(9, 30, "magnitude of its two changes"),
    "trivialaugment": Augmentation(None, 0, ""),
    "erasing": Augmentation(0.25, 1, "probability"),
    "mixup": Augmentation(0.2, 100, "alpha of the Beta distribution"),
    "cutmix": Augmentation(1.0, 100, "alpha of the Beta distribution"),
}
MIXING = ("mixup", "cutmix")


def parse_augmentations(options: Sequence[str]) -> dict[str, float]:
    """Read ("crop=0.5", "flip") as {"crop": 0.5, "flip": 0.5}, in the order of AUGMENTATIONS.

    Raises UserError.
    """
    strengths: dict[str, float] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if name not in AUGMENTATIONS:
            raise UserError(
                f"--augment {option!r} is not one of {', '.join(AUGMENTATIONS)}"
                f"{did_you_mean(name, AUGMENTATIONS)}."
            )
        if name in strengths:
            raise UserError(f"--augment: {name!r} is given twice.")
        default = AUGMENTATIONS[name].default
        if equals and default is None:
            raise UserError(f"--augment {option!r}: {name} takes no strength.")
        strengths[name] = parse_strength(option, name, text) if equals else default or 0.0
    return {name: strengths[name] for name in AUGMENTATIONS if name in strengths}


def parse_strength(option: str, name: str, text: str) -> float:
    """Read the strength of an augmentation. Raises UserError."""
    _, maximum, meaning = AUGMENTATIONS[name]
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    is_whole = name == "randaugment"
    is_valid = 0 < strength <= maximum and (not is_whole or strength == int(strength))
    if not is_valid:
        bounds = f"above 0 and up to {maximum}"
        if is_whole:
            bounds = f"a whole number from 1 to {maximum}"
        raise UserError(f"--augment {option!r}: {name} takes its {meaning}, {bounds}.")
    return strength


def build_transform(
    strengths: dict[str, float],
    *,
    size: int,
    resized: int,
    interpolation: int,
    mean: Sequence[float],
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """Return a function of pixels, uint8 (3, height, width) to (3, size, size).

    strengths: augmentations, without those of MIXING; {} gives the view of evaluation.
    size, resized: pixels of a side, and of the shorter side before the center is cropped.
    mean: 0 to 1 per channel; erased pixels get this color, which normalization makes 0.
    """
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    builders = {
        "flip": v2.RandomHorizontalFlip,
        "vertical-flip": v2.RandomVerticalFlip,
        "rotation": lambda degrees: v2.RandomRotation(degrees, bilinear),
        "jitter": lambda change: v2.ColorJitter(change, change, change),
        "randaugment": lambda size: v2.RandAugment(magnitude=int(size), interpolation=bilinear),
        "trivialaugment": lambda _: v2.TrivialAugmentWide(interpolation=bilinear),
        "erasing": lambda probability: v2.RandomErasing(
            probability, value=[round(255 * value) for value in mean]
        ),
    }
    resampling = {"interpolation": interpolation, "antialias": True}
    if "crop" in strengths:
        first = v2.RandomResizedCrop(size, (strengths["crop"], 1), **resampling)
    else:
        first = partial(resize_and_crop, resized=resized, size=size, **resampling)
    others = [builders[name](value) for name, value in strengths.items() if name in builders]
    return v2.Compose([first, *others])


def resize_and_crop(
    image: "torch.Tensor", resized: int, size: int, interpolation: int, antialias: bool
) -> "torch.Tensor":
    """Resize the shorter side and crop the center: the same pixels as the saved processor gives."""
    from torchvision.transforms.v2 import functional as F

    image = F.resize(image, [resized], interpolation, antialias=antialias)
    height, width = image.shape[-2:]
    return F.crop(image, (height - size) // 2, (width - size) // 2, size, size)


@dataclass
class ImageTransform:
    """Makes a row with an encoded image an example with "pixel_values".

    With `mixing`, the image and its label are mixed with those of another row of train.
    """

    column: str  # of the encoded images
    transform: "Callable[[torch.Tensor], torch.Tensor]"  # see `build_transform`
    mixing: dict[str, float] = field(default_factory=dict)  # "mixup", "cutmix", and their alpha
    partners: Any = None  # all rows of train, so that the partner does not depend on the batch
    num_labels: int = 0

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        example = {name: cell for name, cell in row.items() if name != self.column}
        pixels = self.transform(decode_image(row[self.column]))
        if self.mixing:
            pixels, example["labels"] = self.mix(pixels, example["labels"])
        return {"pixel_values": pixels, **example}

    def mix(self, pixels: "torch.Tensor", label: Any) -> "tuple[torch.Tensor, torch.Tensor]":
        """Mix an image and its label with another row by MixUp or CutMix, one of them drawn.

        MixUp (Zhang et al. 2018, arXiv:1710.09412) makes pixels float; CutMix (Yun et al. 2019,
        arXiv:1905.04899) keeps uint8. The label is float, (labels,); each row has exactly the share
        of the label that it has of the image.
        """
        name = random.choice(list(self.mixing))
        share = random.betavariate(self.mixing[name], self.mixing[name])
        partner = self.partners[random.randrange(len(self.partners))]
        other = self.transform(decode_image(partner[self.column]))
        if name == "mixup":
            mixed = share * pixels + (1 - share) * other
        else:
            height, width = pixels.shape[-2:]
            side = math.sqrt(1 - share)
            top, bottom = draw_interval(height, side)
            left, right = draw_interval(width, side)
            mixed = pixels.clone()
            mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        target = share * self.encode_target(label)
        return mixed, target + (1 - share) * self.encode_target(partner["labels"])

    def encode_target(self, label: Any) -> "torch.Tensor":
        """Return a class id or a list of 0.0 and 1.0 as float (labels,)."""
        import torch

        if isinstance(label, int):
            return torch.eye(self.num_labels)[label]
        return torch.tensor(label)


def draw_interval(length: int, share: float) -> tuple[int, int]:
    """Draw (start, stop) of an interval around a random center, clipped to 0 and `length`."""
    center, half = random.randrange(length), int(length * share) // 2
    return max(center - half, 0), min(center + half, length)
