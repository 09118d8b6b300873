"""Image processors that show a model what evaluation shows it, and models for other image sizes."""

import copy
import logging
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ViTImageProcessor

logger = logging.getLogger("ftloop")

DEFAULT_SIZE = 224  # pixels of a side, for a model that does not say its size
# Settings of image processors that have no counterpart here.
IGNORED_SETTINGS = ("do_flip_channel_order", "include_top", "rescale_offset")


def side_of(size: Any) -> int | None:
    """Return the side of a size that is written as a number or as (height, width)."""
    return size[0] if isinstance(size, list | tuple) else size


def build_image_processor(
    original: Any, model_size: int | None, image_size: int | None, model: str
) -> "ViTImageProcessor":
    """Return an image processor that resizes the shorter side, crops the center and normalizes.

    Mean, standard deviation and interpolation are those of `original`, the processor of the model;
    of its sizes, the ratio of resizing to cropping is kept. Some processors (ViT's) squash an image
    to a square. Here its center is cropped instead: shapes are kept, but the margins are not seen.

    original: may be None.
    model_size: pixels of a side in the model's configuration, used if there is no original.
    image_size: pixels of a side, from `--image-size`. Default: that of the model.
    """
    from transformers import ViTImageProcessor

    settings: dict[str, Any]
    if original is None:
        cropped = resized = model_size or DEFAULT_SIZE
        settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        logger.info("model: %r has no image processor; mean and standard deviation are 0.5", model)
    else:
        cropped, resized = read_sizes(original)
        settings = {"resample": original.resample, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        if original.do_normalize:
            settings["image_mean"] = list(original.image_mean)
            settings["image_std"] = list(original.image_std)
        ignored = [name for name in IGNORED_SETTINGS if getattr(original, name, False)]
        if ignored:
            logger.warning(
                "model: the setting %s of its image processor is ignored, so pixels differ from "
                "those of the original",
                ignored[0],
            )
    size = image_size or cropped
    return ViTImageProcessor(
        size={"shortest_edge": max(round(resized * size / cropped), size)},
        crop_size={"height": size, "width": size},
        do_center_crop=True,
        do_convert_rgb=True,
        **settings,
    )


def read_sizes(processor: Any) -> tuple[int, int]:
    """Return the pixels of a side that a processor crops, and those that it resizes to before."""
    size = processor.size
    cropped = resized = size.get("shortest_edge") or size.get("height")
    if getattr(processor, "crop_pct", None) and resized < 384:  # the rule of ConvNeXT's processor
        resized = int(cropped / processor.crop_pct)
    elif processor.do_center_crop and processor.crop_size:
        cropped = processor.crop_size["height"]
    return cropped, resized


def resize_positions(model: "PreTrainedModel", old_size: int, new_size: int) -> "PreTrainedModel":
    """Return the model for images of another size: position embeddings are interpolated, bicubic.

    It is done once, so that the exported model takes the new size in a pipeline too. Sizes are
    pixels of a side. Raises UserError for a model whose other weights depend on the size.
    """
    import torch.nn.functional as F

    config = copy.deepcopy(model.config)
    config.image_size = new_size
    resized, weights = type(model)(config), model.state_dict()
    patch = side_of(getattr(config, "patch_size", None)) or 1
    old_side, new_side = old_size // patch, new_size // patch
    for name, new in resized.state_dict().items():
        old = weights[name]
        if old.shape == new.shape:
            continue
        # Tokens before the grid of patches: the class token of ViT, the distillation token of DeiT.
        num_prefix = old.shape[1] - old_side**2
        if "position_embeddings" not in name or num_prefix < 0:
            raise UserError(
                f"--image-size {new_size}: this model only takes images of {old_size} pixels, "
                f"because {name} depends on the size."
            )
        grid = old[:, num_prefix:].unflatten(1, (old_side, -1)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (new_side, new_side), mode="bicubic", align_corners=False)
        weights[name] = old.new_empty(new.shape)
        weights[name][:, :num_prefix] = old[:, :num_prefix]
        weights[name][:, num_prefix:] = grid.flatten(2).transpose(1, 2)
    resized.load_state_dict(weights)
    return resized
