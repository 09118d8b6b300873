"""Images in, labels out: decoding, augmentation, AutoModelForImageClassification.

An image is decoded when its row is read, to uint8 pixels; what `augment` draws is seeded by (seed, epoch, row) in
ftloop/loader.py, so that the same pixels come from any worker, process or resumed run. A batch is scaled and
normalised as a whole, in `collate`.
"""

import glob
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftloop.data import Data
from ftloop.data.images import (
    decode_image,
    find_unreadable_images,
    format_errors,
    keep_images_encoded,
    list_images,
    list_relative_paths,
    resolve_relative_paths,
)
from ftloop.data.shape import shape_rows
from ftloop.data.splits import SPLIT_ALIASES
from ftloop.errors import UserError, nearest, root_cause
from ftloop.tasks.classification import Batch, Classification

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import PretrainedConfig, PreTrainedModel, ViTImageProcessor

logger = logging.getLogger("ftloop")


class Augmentation(NamedTuple):
    strength: float | None  # if none is given; None: it has none
    greatest: float
    meaning: str  # of the strength


# In the order in which they are applied, whatever the order of `augment`.
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


@dataclass(frozen=True)
class ImageClassification(Classification):
    """An image to a class, several labels, or a number."""

    image_column: str = "image"  # paths, or encoded bytes, or both as datasets.Image has them
    image_folder: str | None = None  # where relative paths start; left out: the folder of the table
    image_size: int | None = None  # pixels of a side, as the model sees it; left out: the model's own
    augment: tuple[str, ...] = ("crop", "flip")  # of train: words NAME or NAME=STRENGTH, as in configs/image.py

    model_class = "AutoModelForImageClassification"
    input_option = "--task.image-column"

    @property
    def input_columns(self) -> tuple[str, ...]:
        return (self.image_column,)

    def check(self) -> None:
        super().check()
        if self.data.streaming:
            raise UserError("--task.data.streaming: it is for texts; images are read when they are needed, as it is")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--task.image-size {self.image_size}: at least 1 pixel is needed")
        if self.image_folder is not None and not Path(self.image_folder).expanduser().is_dir():
            raise UserError(f"--task.image-folder {self.image_folder!r}: no such folder")
        parse_augment(self.augment)

    def of_run(self, model: str) -> "ImageClassification":
        """Without augmentation, and with the size of the run's own processor: scores are of the images as they are."""
        return Classification.of_run(replace(self, augment=(), image_size=None), model)

    # ---- data

    @cached_property
    def source(self) -> "DatasetDict":
        if self.data.sources and self.image_folder is None:  # each has a folder of its own
            column = str(self.data.columns.get(self.image_column, self.image_column))
            located = tuple(Shaped(rows=self._located(shape_rows(of.read(), of), of, column)) for of in self.data.sources)
            data = Classification.source.func(replace(self, data=replace(self.data, sources=located)))
        else:
            data = super().source
        return self._located(data, self.data, self.image_column)

    def _located(self, data: "DatasetDict", source: Data, column: str) -> "DatasetDict":
        """The splits of a source with its images encoded, and their relative paths from the working folder on."""
        located = dict(data)
        for split, rows in data.items():
            if column in rows.column_names:
                located[split] = rows = keep_images_encoded(rows, column)
                if list_relative_paths(rows, column):
                    located[split] = resolve_relative_paths(rows, column, self._folder(split, source))
        return type(data)(located)

    def _folder(self, split: str, source: Data) -> Path:
        """Where the relative paths of a split start: `image_folder`, the folder of its table, or the working folder for
        rows that were in memory or come from elsewhere. Raises UserError for tables in several folders."""
        import datasets

        if self.image_folder is not None:
            return Path(self.image_folder).expanduser()
        files = (
            source.files if source.splits else {SPLIT_ALIASES.get(name, name): of for name, of in source.files.items()}
        )
        names = files.get(source.splits.get(split, split), source.path) or ""
        folders = set()
        for name in names if isinstance(names, list | tuple) else [names]:
            named = str(Path(str(name)).expanduser())
            for place in map(Path, glob.glob(named, recursive=True) or [named]):
                folders.add(place if place.is_dir() else place.parent)
        if len(folders) > 1:
            raise UserError(
                f"--task.image-folder is needed: the files of {split} lie in {', '.join(sorted(map(str, folders)))}, "
                "and where their relative paths start is not clear"
            )
        folder = next(iter(folders))
        stored = folder.resolve().is_relative_to(Path(datasets.config.HF_DATASETS_CACHE).resolve())  # by Data.from_memory
        return folder if folder.is_dir() and not stored else Path()

    def faults(self, rows: "Dataset") -> list[tuple[str, set[int], str]]:
        empty, *others = super().faults(rows)
        found = {row: fault for row, fault in find_unreadable_images(rows, self.image_column).items() if row not in empty[1]}
        others = [(what, bad - found.keys(), option) for what, bad, option in others]  # a row has one fault
        return [empty, *others, (f"unreadable image(s): {format_errors(found)}", set(found), "drop_unreadable")]

    def prepare(self, rows: "Dataset") -> "Dataset":
        return rows.select_columns([self.image_column])

    def load(self) -> "DatasetDict":
        """Rows of "pixel_values", uint8 (3, size, size), and "labels", made when they are read. With mixup or cutmix,
        those of train are made of two images, at twice the cost: uint8 or float pixels, labels as float (labels,)."""
        data, strengths = super().load(), parse_augment(self.augment)
        mixing = {name: strengths.pop(name) for name in MIXING if name in strengths}
        if mixing and self.labels.problem_type == "regression":
            raise UserError(f"--task.augment {' '.join(mixing)}: numbers are not mixed; it is for classes and labels")
        view = View(self.image_column, self._pixels())
        views = {
            "train": View(self.image_column, self._pixels(strengths), data["train"], self.labels.num_outputs, mixing)
            if mixing
            else View(self.image_column, self._pixels(strengths))
        }
        logger.info(
            "data: images of %d x %d pixels: the shorter side resized to %d, the centre cut out%s",
            *(self.size, self.size, self.resized),
            f"; train: {' '.join(self.augment)}" if self.augment else "",
        )
        return type(data)({split: rows.with_transform(views.get(split, view)) for split, rows in data.items()})

    def place(self, rows: "Dataset", folder: Path) -> "Dataset":
        """Relative paths of which none exists in `folder` start at `image_folder`, where the run has one."""
        rows = super().place(rows, folder)
        if self.image_column not in rows.column_names:
            return rows
        rows = keep_images_encoded(rows, self.image_column)
        paths = list_relative_paths(rows, self.image_column)
        if self.image_folder is not None and not any((folder / path).is_file() for path in paths):
            folder = Path(self.image_folder).expanduser()
        return resolve_relative_paths(rows, self.image_column, folder) if paths else rows

    def given(self, words: Sequence[str]) -> Sequence[str]:
        """A folder stands for the images in it and in its class folders, sorted by path."""
        return [file for word in words for file in (list_images(word) if Path(word).is_dir() else [word])]

    def prepare_new(self, rows: "Dataset", first: int = 0) -> "Dataset":
        known = self.image_column in rows.column_names
        prepared = super().prepare_new(keep_images_encoded(rows, self.image_column) if known else rows, first)
        faults = find_unreadable_images(prepared, self.image_column)
        if faults:
            raise UserError(
                f"{len(faults)} unreadable image(s), the first in row {first + min(faults)}, from 0: {format_errors(faults)}"
            )
        return prepared.with_transform(View(self.image_column, self._pixels()))

    def _pixels(self, strengths: dict[str, float] | None = None) -> "Callable[[torch.Tensor], torch.Tensor]":
        """uint8 (3, height, width) -> uint8 (3, size, size): the view of evaluation, or an augmented one."""
        from torchvision.transforms import v2

        strengths, how = strengths or {}, v2.InterpolationMode.BILINEAR
        resample = {"interpolation": self.processor.resample, "antialias": True}
        mean = [round(255 * value) for value in self.processor.image_mean]  # what is erased becomes 0 when normalised
        build = {
            "flip": v2.RandomHorizontalFlip,
            "vertical-flip": v2.RandomVerticalFlip,
            "rotation": lambda degrees: v2.RandomRotation(degrees, how),
            "jitter": lambda change: v2.ColorJitter(change, change, change),
            "randaugment": lambda magnitude: v2.RandAugment(magnitude=int(magnitude), interpolation=how),
            "trivialaugment": lambda _: v2.TrivialAugmentWide(interpolation=how),
            "erasing": lambda probability: v2.RandomErasing(probability, value=mean),
        }
        if "crop" in strengths:
            crop = v2.RandomResizedCrop(self.size, (strengths["crop"], 1), **resample)
        else:
            crop = partial(resize_and_crop, resized=self.resized, size=self.size, **resample)
        return v2.Compose([crop, *(build[name](strength) for name, strength in strengths.items() if name in build)])

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """To "pixel_values", float32 (rows, 3, size, size), normalised, and "labels", int64 (rows,), or float for
        several labels, numbers, and mixed rows."""
        import torch
        from torchvision.transforms.v2 import functional as F

        pixels = torch.stack([example["pixel_values"] for example in examples])
        own = self.processor
        mean, std = [255 * value for value in own.image_mean], [255 * value for value in own.image_std]
        batch = {"pixel_values": F.normalize(pixels.to(torch.float32), mean, std, inplace=True).contiguous()}
        if "labels" in examples[0]:
            labels = [example["labels"] for example in examples]
            batch["labels"] = torch.stack(labels) if isinstance(labels[0], torch.Tensor) else torch.tensor(labels)
        return batch

    # ---- model

    @property
    def size(self) -> int:
        """Pixels of a side of what the model sees."""
        return self.processor.crop_size["height"]

    @property
    def resized(self) -> int:
        """Pixels of the shorter side before the centre is cut out."""
        return self.processor.size["shortest_edge"]

    @cached_property
    def processor(self) -> "ViTImageProcessor":
        """The evaluation view as an image processor: mean, standard deviation and interpolation are the model's own.

        Of its sizes, the ratio of resizing to cropping is taken. Some (ViT's) squash an image to a square: here its
        shorter side is resized and its centre cut out, so that shapes stay, and what lies beyond it is not seen.
        """
        from transformers import ViTImageProcessor

        own = self._own_processor()
        if own is None:
            cropped = resized = square(getattr(self.read_config(), "image_size", None)) or 224
            how: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
            logger.info("model: no image processor in %r: mean and standard deviation are 0.5", self.model)
        else:
            size = own.size
            cropped = resized = size.get("shortest_edge") or size.get("height")
            if getattr(own, "crop_pct", None) and resized < 384:  # as ConvNeXT's processor does it
                resized = int(cropped / own.crop_pct)
            elif own.do_center_crop and own.crop_size:
                cropped = own.crop_size["height"]
            how = {"resample": own.resample, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
            odd = [name for name in ("do_flip_channel_order", "include_top", "rescale_offset") if getattr(own, name, 0)]
            if odd:
                logger.warning("model: %s of its image processor is left out: pixels differ from its own", odd[0])
            if own.do_normalize:
                how |= {"image_mean": list(own.image_mean), "image_std": list(own.image_std)}
        wanted = self.image_size or cropped
        return ViTImageProcessor(
            size={"shortest_edge": max(round(resized * wanted / cropped), wanted)},
            crop_size={"height": wanted, "width": wanted},
            do_center_crop=True,
            do_convert_rgb=True,
            **how,
        )

    def _own_processor(self) -> Any:
        """The model's image processor, or None where there are no files of one."""
        from transformers import AutoImageProcessor

        folder = Path(self.model)
        files = ("preprocessor_config.json", "processor_config.json")
        if self.by_type or (folder.is_dir() and not any((folder / name).is_file() for name in files)):
            return None
        try:
            own = AutoImageProcessor.from_pretrained(self.model)
            _ = int(own.size.get("shortest_edge") or own.size.get("height")), own.resample, own.do_center_crop
        except Exception as error:  # hub, file, json errors, and processors of another kind
            raise UserError(
                f"--task.model {self.model!r}: its image processor cannot be loaded: {root_cause(error)}"
            ) from error
        return own

    def configure(self, config: "PretrainedConfig") -> None:
        super().configure(config)
        if getattr(config, "num_channels", 3) != 3:
            raise UserError(f"--task.model {self.model!r} reads {config.num_channels} channels; images have 3 here")
        patch = square(getattr(config, "patch_size", None))
        if patch and self.size % patch:
            raise UserError(f"--task.image-size {self.size}: the model's patches need a multiple of {patch} pixels")
        if self.init == "random" and hasattr(config, "image_size"):
            config.image_size = self.size

    def build_model(self) -> "PreTrainedModel":
        import inspect

        model = super().build_model()
        # Models without that argument of `forward` take images of any size as they are.
        fixed = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        own = square(getattr(model.config, "image_size", None))
        if not fixed or own in (None, self.size):
            return model
        logger.info("model: made for images of %d pixels, now of %d: positions are interpolated", own, self.size)
        return resize_positions(model, own, self.size)


@dataclass(frozen=True)
class Shaped(Data):
    """A source that is read and in shape."""

    rows: Any = None  # DatasetDict

    def read(self) -> "DatasetDict":
        return self.rows


# ---- options


def parse_augment(words: tuple[str, ...]) -> dict[str, float]:
    """("crop=0.5", "flip") -> {"crop": 0.5, "flip": 0.5}, in the order of AUGMENTATIONS. Raises UserError."""
    found: dict[str, float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in AUGMENTATIONS:
            raise UserError(
                f"--task.augment {word!r} is none of {', '.join(AUGMENTATIONS)}{nearest(name, AUGMENTATIONS)}"
            )
        if name in found:
            raise UserError(f"--task.augment: {name!r} is given twice")
        default, greatest, meaning = AUGMENTATIONS[name]
        if equals and default is None:
            raise UserError(f"--task.augment {word!r}: {name} takes no strength")
        try:
            strength = float(text) if equals else default or 0.0
        except ValueError:
            strength = math.nan
        whole = name == "randaugment"
        if equals and not (0 < strength <= greatest and (not whole or strength == int(strength))):
            bounds = f"a whole number from 1 to {greatest}" if whole else f"above 0 and up to {greatest}"
            raise UserError(f"--task.augment {word!r}: {name} takes its {meaning}, {bounds}")
        found[name] = strength
    return {name: found[name] for name in AUGMENTATIONS if name in found}


def square(size: Any) -> int | None:
    """The side of a size that may be written as a number or as (height, width)."""
    return size[0] if isinstance(size, list | tuple) else size


# ---- pixels


def resize_and_crop(
    image: "torch.Tensor", resized: int, size: int, interpolation: int, antialias: bool
) -> "torch.Tensor":
    """The shorter side resized, the centre cut out: to the pixel as the saved processor does it."""
    from torchvision.transforms.v2 import functional as F

    image = F.resize(image, [resized], interpolation, antialias=antialias)
    height, width = image.shape[-2:]
    return F.crop(image, (height - size) // 2, (width - size) // 2, size, size)


@dataclass
class View:
    """What rows look like when they are read: `Dataset.with_transform` calls it with a batch of rows."""

    column: str
    pixels: "Callable[[torch.Tensor], torch.Tensor]"
    partners: Any = None  # rows to mix with: the whole of train, so that no micro-batch or process decides
    outputs: int = 0  # how many labels there are
    mixing: dict[str, float] = field(default_factory=dict)  # "mixup", "cutmix" and their alpha

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if self.column not in rows:  # rows["labels"] asks for that column alone
            return rows
        others = {name: cells for name, cells in rows.items() if name != self.column}
        made = {"pixel_values": [self.pixels(decode_image(cell)) for cell in rows[self.column]], **others}
        if not self.mixing:
            return made
        mixed = [self.mix(*pair) for pair in zip(made["pixel_values"], made["labels"], strict=True)]
        return {"pixel_values": [pixels for pixels, _ in mixed], "labels": [target for _, target in mixed]}

    def mix(self, pixels: "torch.Tensor", label: Any) -> "tuple[torch.Tensor, torch.Tensor]":
        """An image and its label mixed with another row of train: MixUp (Zhang et al., 2018; pixels become float) or
        CutMix (Yun et al., 2019). Asked for both, one is drawn. The label's share is exactly that of the image."""
        name = random.choice(list(self.mixing))
        share = random.betavariate(self.mixing[name], self.mixing[name])
        other = self.partners[random.randrange(len(self.partners))]
        patch, target = self.pixels(decode_image(other[self.column])), self.target(label)
        if name == "mixup":
            pixels = share * pixels + (1 - share) * patch
        else:
            (height, width), side = pixels.shape[-2:], math.sqrt(1 - share)
            top, bottom = cut(height, side)
            left, right = cut(width, side)
            pixels = pixels.clone()
            pixels[:, top:bottom, left:right] = patch[:, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        return pixels, share * target + (1 - share) * self.target(other["labels"])

    def target(self, label: Any) -> "torch.Tensor":
        """A class or a list of 0.0 / 1.0 as float (labels,)."""
        import torch

        return torch.eye(self.outputs)[label] if isinstance(label, int) else torch.tensor(label)


def cut(length: int, share: float) -> tuple[int, int]:
    """(begin, end) of a stretch of that share around a random centre, as far as it lies within."""
    centre, half = random.randrange(length), int(length * share) // 2
    return max(centre - half, 0), min(centre + half, length)


# ---- models


def resize_positions(model: "PreTrainedModel", own: int, size: int) -> "PreTrainedModel":
    """The model for images of another size: its position embeddings are interpolated as a grid (bicubic), once, so
    that the saved model takes the new size in a pipeline too. Raises UserError for models with other such weights."""
    import copy

    import torch.nn.functional as F

    config = copy.deepcopy(model.config)
    config.image_size = size
    resized, weights = type(model)(config), model.state_dict()
    patch = square(getattr(config, "patch_size", None)) or 1
    for name, new in resized.state_dict().items():
        old = weights[name]
        if old.shape == new.shape:
            continue
        first = old.shape[1] - (own // patch) ** 2  # the tokens before the grid: ViT's class, DeiT's distillation
        if "position_embeddings" not in name or first < 0:
            raise UserError(f"--task.image-size {size}: this model is for {own} pixels alone ({name} has that size)")
        grid = old[:, first:].unflatten(1, (own // patch, -1)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (size // patch, size // patch), mode="bicubic", align_corners=False)
        weights[name] = old.new_empty(new.shape)
        weights[name][:, :first] = old[:, :first]
        weights[name][:, first:] = grid.flatten(2).transpose(1, 2)
    resized.load_state_dict(weights)
    return resized
