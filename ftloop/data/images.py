"""Read images from tables, decode them, and find the unreadable ones."""

import hashlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.data.encodings import find_spelling
from ftloop.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import torch
    from datasets import Dataset
    from PIL.Image import Image as PILImage

logger = logging.getLogger("ftloop")


# Pixels


class UnreadableImage(UserError):
    """An image that cannot be decoded. The message names the image and the reason."""


def decode_image(cell: Any) -> "torch.Tensor":
    """Decode an image to uint8 RGB pixels (3, height, width). Raises UnreadableImage.

    `cell` is a path, the bytes of a file, or both as {"bytes", "path"}. The EXIF orientation is
    applied, only the first frame of an animation is used, and transparent pixels are laid over
    white. Values are scaled to 0..255 as follows:

    - 16-bit integers are divided by 257 in every file, so that 12-bit data stored in 16 bits comes
      out dark, but equally dark in all files;
    - 32-bit integers are used as they are if the file has no value above 255, else they are
      divided by 257; a value above 65 535 makes the file unreadable;
    - floats are multiplied by 255 if all values of the file are in 0..1, else used as they are; a
      value outside of 0..255 makes the file unreadable.

    Large JPEGs are decoded at full size, because decoding at a reduced size (PIL's draft mode)
    gives other pixels than a transformers pipeline sees. 3024 x 3024 pixels take 0.1 s and 27 MB.
    """
    # PIL warns of a damaged EXIF block and of very many pixels, but reads the image.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decode_image(cell)


def _decode_image(cell: Any) -> "torch.Tensor":
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional as F

    if not isinstance(cell, dict):
        cell = {"bytes": cell} if isinstance(cell, bytes) else {"path": cell}
    encoded, path = cell.get("bytes"), cell.get("path")
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            ImageOps.exif_transpose(image, in_place=True)  # in place, or it copies every image
            image.load()
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            image = _scale_to_8_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return F.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    # PIL's readers raise many kinds of errors: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = type(error).__name__
        # For encoded bytes, PIL's message holds the address of a buffer, which differs every time.
        reason += f": {error}" if encoded is None else " in its bytes"
        raise UnreadableImage(f"image {path or 'without a path'}: {reason}") from error


def _scale_to_8_bits(image: "PILImage") -> "PILImage":
    """Scale an image of 16-bit integers, 32-bit integers or floats to 8 bits. Raises ValueError."""
    import numpy
    from PIL import Image

    values = numpy.asarray(image).astype(numpy.float64)
    if not numpy.isfinite(values).all():
        raise ValueError("its values are not all finite")
    lowest, highest = values.min(), values.max()
    small_range, large_range = (1, 255) if image.mode == "F" else (255, 65535)
    if lowest < 0 or highest > large_range:
        raise ValueError(
            f"its values are from {lowest:g} to {highest:g}, but must be in 0..{small_range} "
            f"or 0..{large_range}"
        )
    # All modes but I and F are 16-bit integers in some byte order.
    is_small = image.mode in ("I", "F") and highest <= small_range
    scale = 255 / (small_range if is_small else large_range)
    return Image.fromarray((values * scale).round().astype(numpy.uint8))


# Images in tables


def keep_images_encoded(rows: "Dataset", column: str) -> "Dataset":
    """Cast a column of paths or encoded images to {"bytes", "path"} cells.

    Reading a cell then does not decode the image. Raises UserError if the column holds anything
    else.
    """
    from datasets import Image

    feature = rows.features[column]
    is_pair = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    dtype = getattr(feature, "dtype", None)
    castable = dtype in ("string", "large_string", "binary", "large_binary")
    if not (is_pair or castable or isinstance(feature, Image)):
        raise UserError(
            f"--image-column: the column {column!r} holds {feature}, but must hold paths or "
            "encoded images."
        )
    return rows.cast_column(column, Image(decode=False))


def list_relative_paths(rows: "Dataset", column: str) -> list[str]:
    """Return the relative paths, including empty ones, of images in files of their own."""
    import pyarrow.compute

    cells = rows.data.column(
        column
    )  # the Arrow column itself: reading cells would copy the bytes of all images
    paths = pyarrow.compute.struct_field(cells, "path")
    encoded = pyarrow.compute.struct_field(cells, "bytes")
    external = paths.filter(encoded.is_null()).drop_null()
    return [path for path in external.to_pylist() if not os.path.isabs(path)]


def resolve_relative_paths(rows: "Dataset", column: str, folder: Path) -> "Dataset":
    """Prepend a folder to the relative paths of images. Cells with an empty path become None."""
    prefix = "" if folder == Path() else str(folder)
    if not prefix and all(path.strip() for path in list_relative_paths(rows, column)):
        return rows
    return rows.map(
        _prepend_folder,
        batched=True,
        fn_kwargs={"column": column, "folder": prefix},
        features=rows.features,
        desc="resolving image paths",
    )


def _prepend_folder(rows: dict[str, list[Any]], column: str, folder: str) -> dict[str, list[Any]]:
    cells = []
    for cell in rows[column]:
        if cell is not None and cell["bytes"] is None:
            path = cell["path"]
            is_empty = not path or not path.strip()
            if not is_empty:
                path = os.path.join(folder, path)
                path = path if path.isascii() else str(find_spelling(Path(path)))
            cell = None if is_empty else {"bytes": None, "path": path}
        cells.append(cell)
    return {column: cells}


def find_unreadable_images(rows: "Dataset", column: str) -> dict[int, str]:
    """Return the row numbers of images that cannot be decoded, each with its error message.

    Every image is decoded completely: on one core, 1 000 JPEG files take 1.5 s at 500 x 500 pixels,
    and 75 s at 3024 x 3024. The result is cached; see `map_images`.
    """
    checked = map_images(rows, column, _decode_errors, "checking images")
    return {row: message for row, message in enumerate(checked["error"]) if message}


def digest_images(rows: "Dataset", column: str) -> "pyarrow.ChunkedArray":
    """Return the SHA-256 of the bytes of each image, which a cell holds or its file; None for None.

    1 000 files of 100 kB take 0.1 s. The result is cached; see `map_images`.
    """
    return map_images(rows, column, _digest_cells, "hashing images").data.column("sha256")


def map_images(
    rows: "Dataset", column: str, function: Callable[..., Any], description: str
) -> "Dataset":
    """Map the encoded images of a column to other columns, which `datasets` caches.

    The sizes and times of change of the image files are part of the cache key. Later runs and
    other ranks then need a second for 100 000 images. A file is read again if its time of change
    differs; a change within the resolution of the clock of the file system, by a process that also
    keeps the size, is not noticed.
    """
    from datasets import Image

    rows = rows.select_columns([column]).cast_column(column, Image(decode=False))
    stamps = hashlib.sha256(repr(list_file_stamps(rows, column)).encode()).hexdigest()
    return rows.map(
        function,
        batched=True,
        batch_size=256,
        fn_kwargs={"column": column, "stamps": stamps},
        remove_columns=[column],
        desc=description,
    )


def list_file_stamps(rows: "Dataset", column: str) -> list[tuple[int, int, int] | None]:
    """Return a stamp of the file of each image; None for encoded bytes and where there is none."""
    import pyarrow.compute

    cells = rows.data.column(column)  # reading cells would copy the bytes of all images
    paths = pyarrow.compute.struct_field(cells, "path")
    encoded = pyarrow.compute.struct_field(cells, "bytes")
    paths = pyarrow.compute.if_else(encoded.is_null(), paths, None)
    if rows._indices is not None:
        paths = paths.take(rows._indices.column(0))
    return [None if path is None else file_stamp(path) for path in paths.to_pylist()]


def file_stamp(path: str) -> tuple[int, int, int] | None:
    """Return size, modification time and time of change of a file; None if there is none.

    Unlike the modification time, the time of change (ctime) cannot be set back.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest_cells(
    rows: dict[str, list[Any]], column: str, stamps: str
) -> dict[str, list[bytes | None]]:
    """Return the SHA-256 of each image. `stamps` is only there for the cache key."""

    def digest(cell: dict[str, Any] | None) -> bytes | None:
        if cell is None:
            return None
        encoded, path = cell["bytes"], cell["path"]
        try:
            content = Path(path).read_bytes() if encoded is None else encoded
        except OSError as error:
            raise UnreadableImage(f"image {path}: {error}") from error
        return hashlib.sha256(content).digest()

    with ThreadPoolExecutor() as threads:
        return {"sha256": list(threads.map(digest, rows[column]))}


def _decode_errors(rows: dict[str, list[Any]], column: str, stamps: str) -> dict[str, list[str]]:
    """Return the decoding error of each image, or "". `stamps` is only there for the cache key."""

    def decode_error(cell: Any) -> str:
        try:
            _decode_image(cell)
        except UnreadableImage as error:
            return str(error)
        return ""

    # PIL releases the interpreter lock while it decodes, so threads run in parallel. The filters of
    # warnings belong to the whole process, so they are set here and not in each thread.
    with warnings.catch_warnings(), ThreadPoolExecutor() as threads:
        warnings.simplefilter("ignore")
        return {"error": list(threads.map(decode_error, rows[column]))}


def format_errors(errors: dict[int, str]) -> str:
    """Join the first five error messages."""
    return "; ".join([*list(errors.values())[:5], *(["..."] if len(errors) > 5 else [])])
