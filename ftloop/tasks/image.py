"""ImageClassification: an image to labels.

An image is decoded, to uint8 pixels, when its row is read. Random changes are made then and are
seeded by (seed, epoch, row), so that every data worker, rank and resumed run gets the same pixels.
`collate` scales and normalizes a batch as a whole.
"""

import glob
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftloop.data import Data
from ftloop.data.images import (
    find_unreadable_images,
    format_errors,
    keep_images_encoded,
    list_relative_paths,
    resolve_relative_paths,
)
from ftloop.data.prepared import PreparedDataset
from ftloop.data.shape import require_columns, shape_rows
from ftloop.data.special_images import count_special_images
from ftloop.data.splits import SPLIT_ALIASES
from ftloop.errors import UserError
from ftloop.task import Batch
from ftloop.tasks.augmentation import MIXING, ImageTransform, build_transform, parse_augmentations
from ftloop.tasks.classification import Classification
from ftloop.tasks.image_models import build_image_processor, resize_positions, side_of
from ftloop.tasks.predictor import ImagePredictor, Predictor
from ftloop.tasks.pretrained import explain_loading
from ftloop.tasks.rows import UnusableRows

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from datasets import Dataset, DatasetDict
    from transformers import PretrainedConfig, PreTrainedModel, ViTImageProcessor

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class ImageClassification(Classification):
    """An image to a class, several labels, or a number."""

    image_column: str = "image"  # column of paths or encoded images
    image_folder: str | None = None
    """Folder at which relative paths start. Default: the folder of the table."""
    image_size: int | None = None  # pixels of a side as the model sees it. Default: the model's own
    augment: tuple[str, ...] = ("crop", "flip")
    """Random changes of training images, as NAME or NAME=STRENGTH: crop, flip, vertical-flip,
    rotation, jitter, randaugment, trivialaugment, erasing, mixup, cutmix."""

    model_class = "AutoModelForImageClassification"
    predictor_class: ClassVar[type[Predictor]] = ImagePredictor
    input_option: ClassVar[str] = "--image-column"

    @property
    def input_columns(self) -> tuple[str, ...]:
        return (self.image_column,)

    def validate(self) -> None:
        super().validate()
        if self.data.streaming:
            raise UserError(
                "--data.streaming is for texts. Images are read one by one in any case."
            )
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image-size {self.image_size} is not at least 1 pixel.")
        if self.image_folder is not None and not Path(self.image_folder).expanduser().is_dir():
            raise UserError(f"--image-folder {self.image_folder!r}: there is no such folder.")
        parse_augmentations(self.augment)

    def from_finished_run(self, model_folder: str) -> "ImageClassification":
        """Return this task without augmentation, with the exported model and its image size."""
        task = replace(self, augment=(), image_size=None)
        return super(ImageClassification, task).from_finished_run(model_folder)

    # Rows of the source

    @cached_property
    def source(self) -> "DatasetDict":
        data = self.data
        if data.sources and self.image_folder is None:  # relative to their source
            data = replace(data, sources=tuple(map(self.resolve_source, data.sources)))
        splits = shape_rows(data.read(), data)
        require_columns(splits, self.input_columns, self.input_option)
        return self.resolve_paths(splits, self.data, self.image_column)

    def resolve_source(self, source: Data) -> "ShapedSource":
        """Read one of several sources, with the paths of its images resolved."""
        column = str(self.data.columns.get(self.image_column, self.image_column))
        splits = shape_rows(source.read(), source)
        return ShapedSource(splits_read=self.resolve_paths(splits, source, column))

    def resolve_paths(self, splits: "DatasetDict", source: Data, column: str) -> "DatasetDict":
        """Keep images encoded; make their relative paths relative to the working directory."""
        resolved = dict(splits)
        for split, rows in splits.items():
            if column not in rows.column_names:
                continue
            resolved[split] = rows = keep_images_encoded(rows, column)
            if list_relative_paths(rows, column):
                folder = self.find_image_folder(split, source)
                resolved[split] = resolve_relative_paths(rows, column, folder)
        return type(splits)(resolved)

    def find_image_folder(self, split: str, source: Data) -> Path:
        """Return the folder at which the relative paths of a split start.

        It is `image_folder`, the folder of the table, or the working directory for rows that come
        from memory or the Hub. Raises UserError for tables in several folders.
        """
        import datasets

        if self.image_folder is not None:
            return Path(self.image_folder).expanduser()
        files = source.files
        if not source.splits:
            files = {SPLIT_ALIASES.get(name, name): file for name, file in files.items()}
        names = files.get(source.splits.get(split, split), source.path) or ""
        folders = set()
        for name in names if isinstance(names, list | tuple) else [names]:
            pattern = str(Path(str(name)).expanduser())
            for path in map(Path, glob.glob(pattern, recursive=True) or [pattern]):
                folders.add(path if path.is_dir() else path.parent)
        if len(folders) > 1:
            listed = ", ".join(sorted(map(str, folders)))
            raise UserError(
                f"--image-folder is needed: the files of {split} are in several folders ({listed}),"
                " so it is not clear where their relative paths start."
            )
        (folder,) = folders
        cache = Path(datasets.config.HF_DATASETS_CACHE).resolve()  # has the rows from memory
        is_cached = folder.resolve().is_relative_to(cache)
        return folder if folder.is_dir() and not is_cached else Path()

    def find_unusable_rows(self, rows: "Dataset") -> list[UnusableRows]:
        empty, missing = super().find_unusable_rows(rows)
        errors = find_unreadable_images(rows, self.image_column)
        errors = {row: error for row, error in errors.items() if row not in empty.rows}
        missing = missing._replace(rows=missing.rows - errors.keys())
        reason = f"unreadable image(s): {format_errors(errors)}"
        return [empty, missing, UnusableRows(reason, set(errors), "drop_unreadable")]

    def report_on_data(self, labels: dict[str, Any]) -> None:
        super().report_on_data(labels)
        for split, rows in self.rows.items():
            count = count_special_images(rows, self.image_column)
            if count:
                logger.info(
                    "data: %s: %d of %d images are transparent or have more than 8 bits per "
                    "channel: a pipeline of transformers decodes these differently than training",
                    split,
                    count,
                    len(rows),
                )

    # Rows to examples

    def prepare(self, rows: "Dataset") -> "Dataset":
        return rows.select_columns([self.image_column])

    def load_datasets(self) -> dict[str, Any]:
        """Return datasets of "pixel_values", (3, size, size), and "labels".

        Pixels are uint8. With mixup or cutmix, a training example is made of two images and takes
        twice the time; its pixels may be float, and its label is float, (labels,).
        """
        mixing = set(MIXING) & parse_augmentations(self.augment).keys()
        if mixing and self.labels.problem_type == "regression":
            raise UserError(
                f"--augment {' '.join(sorted(mixing))} mixes classes or labels; a regression has "
                "neither."
            )
        datasets = super().load_datasets()
        for dataset in datasets.values():  # other processes find the digests of the files cached
            _ = getattr(dataset, "fingerprint", None)
        logger.info(
            "data: images of %d x %d pixels: the shorter side is resized to %d and the center is "
            "cropped%s",
            self.size,
            self.size,
            self.resized,
            f"; training images are changed by {' '.join(self.augment)}" if self.augment else "",
        )
        return datasets

    def build_dataset(
        self, prepared: "Dataset", labels: list[Any] | None, split: str
    ) -> PreparedDataset:
        table = super().build_dataset(prepared, labels, split).table
        strengths = parse_augmentations(self.augment) if split == "train" else {}
        mixing = {name: strengths.pop(name) for name in MIXING if name in strengths}
        transform = ImageTransform(self.image_column, self.build_transform(strengths))
        if mixing:
            transform.mixing, transform.partners = mixing, table
            transform.num_labels = self.labels.num_outputs
        # Decoding takes long: a row is read on its own, by data workers where a GPU trains.
        return PreparedDataset(table, transform=transform, is_deterministic=False)

    def build_transform(
        self, strengths: dict[str, float]
    ) -> "Callable[[torch.Tensor], torch.Tensor]":
        """Return a function of pixels with some augmentations; {}: the view of evaluation."""
        return build_transform(
            strengths,
            size=self.size,
            resized=self.resized,
            interpolation=self.processor.resample,
            mean=self.processor.image_mean,
        )

    def example_settings(self) -> dict[str, Any]:
        processor = self.processor
        view = {"size": self.size, "resized": self.resized, "resample": int(processor.resample)}
        view |= {"mean": list(processor.image_mean), "std": list(processor.image_std)}
        return {**super().example_settings(), "view": view}

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Return "pixel_values", float32 (rows, 3, size, size), "labels", and "weights" if given.

        Labels are int64 (rows,) for classes, and float for several labels, numbers and mixed rows.
        """
        import torch
        from torchvision.transforms.v2 import functional as F

        pixels = torch.stack([example["pixel_values"] for example in examples])
        mean = [255 * value for value in self.processor.image_mean]
        std = [255 * value for value in self.processor.image_std]
        normalized = F.normalize(pixels.to(torch.float32), mean, std, inplace=True)
        batch = {"pixel_values": normalized.contiguous()}
        for name in ("labels", "weights"):
            if name in examples[0]:
                cells = [example[name] for example in examples]
                is_tensor = isinstance(cells[0], torch.Tensor)
                batch[name] = torch.stack(cells) if is_tensor else torch.tensor(cells)
        return batch

    # Image processor and model

    @property
    def size(self) -> int:
        """Pixels of a side as the model sees it."""
        return self.processor.crop_size["height"]

    @property
    def resized(self) -> int:
        """Pixels of the shorter side before the center is cropped."""
        return self.processor.size["shortest_edge"]

    @cached_property
    def processor(self) -> "ViTImageProcessor":
        """The view of evaluation as an image processor; see `build_image_processor`."""
        original = self.load_original_processor()
        model_size = None
        if original is None:
            model_size = side_of(getattr(self.read_config(), "image_size", None))
        return build_image_processor(original, model_size, self.image_size, self.model)

    def load_original_processor(self) -> Any:
        """Return the model's own image processor, or None if it has no files of one."""
        from transformers import AutoImageProcessor

        folder = Path(self.model)
        files = ("preprocessor_config.json", "processor_config.json")
        has_files = not folder.is_dir() or any((folder / name).is_file() for name in files)
        if self.is_model_type or not has_files:
            return None
        try:
            processor = AutoImageProcessor.from_pretrained(self.model, trust_remote_code=False)
            size = processor.size
            _ = int(size.get("shortest_edge") or size.get("height"))
            _ = processor.resample, processor.do_center_crop
        except Exception as error:  # of the Hub, files, JSON, and processors of other kinds
            raise UserError(
                f"--model {self.model!r}: its image processor cannot be loaded: "
                f"{explain_loading(error)}"
            ) from error
        return processor

    def configure_model(self, config: "PretrainedConfig") -> None:
        super().configure_model(config)
        if getattr(config, "num_channels", 3) != 3:
            raise UserError(
                f"--model {self.model!r} takes {config.num_channels} channels, but images have 3."
            )
        patch = side_of(getattr(config, "patch_size", None))
        if patch and self.size % patch:
            raise UserError(
                f"--image-size {self.size} is not a multiple of {patch} pixels, the patches of the "
                "model."
            )
        if self.init == "random" and hasattr(config, "image_size"):
            config.image_size = self.size

    def build_model(self) -> "PreTrainedModel":
        model = super().build_model()
        # Models without this argument take images of any size as they are.
        has_positions = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        model_size = side_of(getattr(model.config, "image_size", None))
        if not has_positions or model_size in (None, self.size):
            return model
        logger.info(
            "model: made for images of %d pixels, now of %d: its positions are interpolated",
            model_size,
            self.size,
        )
        return resize_positions(model, model_size, self.size)


@dataclass(frozen=True)
class ShapedSource(Data):
    """A source that was read and shaped already."""

    splits_read: Any = None  # DatasetDict

    def read(self) -> "DatasetDict":
        return self.splits_read
