"""Images in tables and folders: found, decoded, checked."""

import glob
import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict

logger = logging.getLogger("ftloop")


# ---- images in class folders


def images(folder: Path, pattern: str = "*/*") -> Iterable[Path]:
    """The images in the class folders of a folder, without those that `datasets` would not see: .name and __name."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    endings = set(ImageFolder.EXTENSIONS)  # in lower case
    for file in folder.glob(pattern):
        inner = file.relative_to(folder).parent.name
        if file.suffix.lower() in endings and not file.name.startswith(".") and not inner.startswith((".", "__")):
            yield file


def images_of(folder: str) -> list[str]:
    """The images in a folder and in its class folders, sorted by path. Raises UserError if there are none."""
    place, patterns = Path(folder), ("*", "*/*")
    found = sorted(str(file) for pattern in patterns for file in images(place, pattern) if file.is_file())
    if not found:
        raise UserError(f"the folder {folder!r} holds no images, nor do the folders in it")
    others = {str(file) for pattern in patterns for file in place.glob(pattern) if file.is_file()} - set(found)
    if others or next(place.glob("*/*/*"), None):
        logger.info(
            "data: of the folder %s, %d images; %d other file(s), and deeper folders, are left out",
            folder,
            len(found),
            len(others),
        )
    return found


def read_images(folders: dict[str, list[str]], options: dict[str, Any]) -> "DatasetDict":
    """Columns "image" ({"bytes", "path"}, not decoded) and "label" (a ClassLabel, the same in all splits).

    All splits are read at once: a class that one of them lacks does not shift the ids of the others.
    """
    import datasets

    patterns, found, left_out = {}, {}, {}
    for split, places in folders.items():
        patterns[split], found[split], left_out[split] = [], 0, []
        for place in map(Path, places):
            endings = Counter(file.suffix for file in images(place))
            if not endings:
                raise UserError(f"--task.data: {split} folder {str(place)!r} holds no images in class folders")
            # Globs, for a list of a million names takes `datasets` minutes; by ending, whatever its capitals.
            patterns[split] += [f"{glob.escape(str(place.absolute()))}/*/*{ending}" for ending in sorted(endings)]
            found[split] += endings.total()
            left_out[split] += [entry.name for entry in place.glob("*/[!.]*") if entry.suffix not in endings]
    chosen = {"drop_labels": False, "drop_metadata": True, **options}
    data = datasets.load_dataset("imagefolder", data_files=patterns, **chosen)
    for split, names in left_out.items():
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            logger.warning(
                "data: %s: %d file(s) or folder(s) in class folders are no images, and left out: %s",
                *(split, len(names), shown),
            )
        if len(data[split]) != found[split]:
            raise UserError(f"--task.data: {split} has {found[split]} images, but {len(data[split])} were read")
    return data.cast_column("image", datasets.Image(decode=False))


# ---- pixels


class Unreadable(UserError):
    """An image that cannot be decoded. The text names it and says why."""


def decode(cell: Any) -> "torch.Tensor":
    """The pixels of an image as its author saw it, uint8 RGB (3, height, width). Raises Unreadable.

    `cell`: a path, the bytes of a file, or both as {"bytes", "path"}. Turned as its EXIF says; of several frames the
    first. Transparency becomes white, the page on which drawings and scans are seen. Values are brought to 0..255:

    - 16-bit integers are divided by 257 in every file alike: 12 bits stored in 16 come out dark, and equally so;
    - 32-bit integers, in which writers store 8 or 16 bits, are as they are if the file has none above 255, else divided
      by 257; above 65 535 the file is unreadable;
    - decimals are times 255 if all of the file are in 0..1, else as they are; outside of 0..255 it is unreadable.

    The whole file is decoded, also of a large JPEG that is needed small: decoders that skip (PIL's draft) give other
    pixels than a pipeline sees. 3024 x 3024 take 0.1 s, and 27 MB until the next image.
    """
    with warnings.catch_warnings():  # of a damaged EXIF block, of more than 89 million pixels: the image is readable
        warnings.simplefilter("ignore")
        return _decode(cell)


def _decode(cell: Any) -> "torch.Tensor":
    import numpy
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional as F

    cell = cell if isinstance(cell, dict) else {"bytes" if isinstance(cell, bytes) else "path": cell}
    encoded, path = cell.get("bytes"), cell.get("path")
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            ImageOps.exif_transpose(image, in_place=True)  # else it copies every image
            image.load()
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            values = numpy.asarray(image).astype(numpy.float64)
            if not numpy.isfinite(values).all():
                raise ValueError("its values are not all finite")
            least, most, ranges = values.min(), values.max(), (1, 255) if image.mode == "F" else (255, 65535)
            if least < 0 or most > ranges[1]:
                raise ValueError(f"values from {least:g} to {most:g}; 0..{ranges[0]} or 0..{ranges[1]} are read")
            # All modes but I and F are I;16 in some byte order.
            known = ranges[0] if image.mode in ("I", "F") and most <= ranges[0] else ranges[1]
            image = Image.fromarray((values * (255 / known)).round().astype(numpy.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return F.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # each of PIL's readers has its own: OSError, SyntaxError, struct.error, zlib.error, ...
        cause = f"{type(error).__name__}: {error}" if encoded is None else f"{type(error).__name__} in its bytes"
        raise Unreadable(f"image {path or 'without a path'}: {cause}") from error


# ---- images in tables


def encoded_images(rows: "Dataset", column: str) -> "Dataset":
    """Rows whose images are {"bytes", "path"}, whatever they were, and stay encoded when they are read."""
    from datasets import Image

    feature = rows.features[column]
    kind = getattr(feature, "dtype", None)
    both = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    if not both and not isinstance(feature, Image) and kind not in ("string", "large_string", "binary", "large_binary"):
        raise UserError(f"--task.image-column: {column!r} holds {feature}; paths or encoded images are needed")
    return rows.cast_column(column, Image(decode=False))


def relative_paths(rows: "Dataset", column: str) -> list[str]:
    """The relative paths, empty ones too, of encoded images that are in files of their own."""
    import pyarrow.compute

    cells = rows.data.column(column)  # as they are stored: bytes are not copied
    paths, encoded = (pyarrow.compute.struct_field(cells, name) for name in ("path", "bytes"))
    return [
        path for path in paths.filter(encoded.is_null()).to_pylist() if path is not None and not os.path.isabs(path)
    ]


def start_at(rows: "Dataset", column: str, folder: Path) -> "Dataset":
    """Rows whose relative paths started at a folder, and start at the working folder now; empty ones are None."""
    start = "" if folder == Path() else str(folder)
    if not start and all(path.strip() for path in relative_paths(rows, column)):
        return rows
    options = {"column": column, "folder": start}
    return rows.map(join_paths, batched=True, fn_kwargs=options, features=rows.features, desc="paths")


def join_paths(rows: dict[str, list[Any]], column: str, folder: str) -> dict[str, list[Any]]:
    def joined(cell: Any) -> Any:
        if cell is None or cell["bytes"] is not None:
            return cell
        path = cell["path"]
        return {"bytes": None, "path": os.path.join(folder, path)} if path and path.strip() else None

    return {column: [joined(cell) for cell in rows[column]]}


def unreadable(rows: "Dataset", column: str) -> dict[int, str]:
    """Row and fault of the images that cannot be decoded. Each is decoded completely: on one core, 1.5 s for 1 000 JPEG
    files of 500 x 500 pixels, 75 s for 1 000 of 3024 x 3024.

    Kept in the cache of `datasets` for rows from files, under the sizes and times of the image files too: the next
    run, and the other processes of this one, take 0.03 s for 1 000.
    """
    rows = rows.select_columns([column])
    stamps = [stamp(cell) for cell in rows[column]]
    faults = rows.map(
        faults_of,
        batched=True,
        batch_size=256,
        fn_kwargs={"column": column, "stamps": stamps},
        remove_columns=[column],
        desc="checking images",
    )
    return {row: fault for row, fault in enumerate(faults["fault"]) if fault}


def stamp(cell: Any) -> tuple[int, int] | None:
    """Size and time of the last change of the file that a cell names; None if it names none that exists."""
    path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else cell
    try:
        found = os.stat(path) if isinstance(path, str) else None
    except (OSError, ValueError):
        return None
    return found and (found.st_size, found.st_mtime_ns)


def faults_of(rows: dict[str, list[Any]], column: str, stamps: list[Any]) -> dict[str, list[str]]:
    """The "fault" of each image, "" for none. `stamps` are there for the cache's key alone."""
    from concurrent.futures import ThreadPoolExecutor

    def fault_of(cell: Any) -> str:
        try:
            _decode(cell)
        except Unreadable as error:
            return str(error)
        return ""

    # Threads, for PIL's decoders let others run. The warnings are set aside here: that is no matter of one thread.
    with warnings.catch_warnings(), ThreadPoolExecutor() as threads:
        warnings.simplefilter("ignore")
        return {"fault": list(threads.map(fault_of, rows[column]))}


def listed(faults: dict[int, str]) -> str:
    """The first five faults, in words."""
    return "; ".join([*list(faults.values())[:5], *(["..."] if len(faults) > 5 else [])])
