"""Count images that a pipeline of transformers decodes differently than `decode_image`."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ftloop.data.images import file_stamp

if TYPE_CHECKING:
    from datasets import Dataset


def count_special_images(rows: "Dataset", column: str) -> int:
    """Return how many images are transparent, or have more than 8 bits per channel.

    `column` holds {"bytes", "path"} cells. Only the headers of the images are read, and `datasets`
    caches the result.
    """
    import pyarrow.compute

    rows = rows.select_columns([column])
    # The table itself: reading cells would copy the bytes of all images.
    paths = pyarrow.compute.struct_field(rows.data.column(column), "path").drop_null()
    checked = rows.map(
        _are_special,
        batched=True,
        batch_size=256,
        fn_kwargs={"column": column, "stamps": [file_stamp(path) for path in paths.to_pylist()]},
        remove_columns=[column],
        desc="reading image headers",
    )
    return sum(checked["is_special"][:])


def _are_special(
    rows: dict[str, list[Any]], column: str, stamps: list[Any]
) -> dict[str, list[bool]]:
    """Tell which images are special. `stamps` is only there for the cache key."""
    with warnings.catch_warnings(), ThreadPoolExecutor() as threads:
        warnings.simplefilter("ignore")  # of a damaged EXIF block and of very many pixels
        return {"is_special": list(threads.map(_is_special, rows[column]))}


def _is_special(cell: Any) -> bool:
    from PIL import Image

    encoded, path = cell["bytes"], cell["path"]
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            has_more_bits = image.mode.startswith("I;16") or image.mode in ("I", "F")
            return has_more_bits or image.has_transparency_data
    except Exception:  # PIL raises many kinds of errors; unreadable images are found elsewhere
        return False
