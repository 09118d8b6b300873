"""Read images from folders: CLASS/photo.jpg, or CLASS/PATIENT/photo.jpg."""

import glob
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.data.splits import SPLIT_ALIASES, SPLITS
from ftloop.data.tables import store_splits
from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger("ftloop")

NESTED_PATTERNS = ("*/*/*", "*/*/*/*")  # with one or two folders between the class and the image
IMAGE_DEPTHS = ("*", "*/*", *NESTED_PATTERNS)


def iterate_images(folder: Path, pattern: str = "*/*") -> Iterator[Path]:
    """Yield the images that match a pattern in a folder, by default those in its class folders.

    Hidden files, and files in folders named .NAME or __NAME, are skipped, because the builder of
    `datasets` does not see them either.
    """
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    extensions = set(ImageFolder.EXTENSIONS)  # in lower case
    for file in folder.glob(pattern):
        *parents, name = file.relative_to(folder).parts
        hidden = name.startswith(".") or any(part.startswith((".", "__")) for part in parents)
        if file.suffix.lower() in extensions and not hidden:
            yield file


def has_class_folders(folder: Path) -> bool:
    """Tell whether a folder has images in CLASS/photo.jpg or CLASS/FOLDER/photo.jpg."""
    return next(iterate_images(folder), None) is not None or bool(find_nested_images(folder))


def find_nested_images(folder: Path) -> list[Path]:
    """Return the images in folders within class folders, sorted: CLASS/PATIENT/photo.jpg.

    A folder that contains class folders of splits, DATA/train/CLASS/photo.jpg, has none.
    """
    images = []
    for pattern in NESTED_PATTERNS:
        for image in iterate_images(folder, pattern):
            parents = image.relative_to(folder).parts[:-1]
            if any(part.lower() in (*SPLITS, *SPLIT_ALIASES) for part in parents):
                return []
            images.append(image)
    return sorted(images)


def list_images(folder: str) -> list[str]:
    """Return the images in a folder and its subfolders, sorted by path.

    Raises UserError if there are none.
    """
    root, patterns = Path(folder), ("*", "*/*")
    images, files = set(), set()
    for pattern in patterns:
        images |= {str(file) for file in iterate_images(root, pattern) if file.is_file()}
        files |= {str(file) for file in root.glob(pattern) if file.is_file()}
    if not images:
        raise UserError(f"the folder {folder!r} and its subfolders contain no images.")
    ignored = len(files - images)
    if ignored or next(root.glob("*/*/*"), None):
        logger.info(
            "data: found %d images in %s; %d other file(s) and all deeper folders are ignored",
            len(images),
            folder,
            ignored,
        )
    return sorted(images)


def read_image_folders(folders: dict[str, list[str]], options: dict[str, Any]) -> "DatasetDict":
    """Read class folders (CLASS/photo.jpg) as the columns "image" and "label".

    `folders` maps each split to its folders. An image is {"bytes", "path"}, a label a ClassLabel.
    All splits are read together, so that they share one list of classes even where a split lacks
    some of them. Raises UserError if a folder has no images.

    If the images of a folder are in folders within the class folders (CLASS/PATIENT/photo.jpg), the
    column "folder" has the path of these.
    """
    import datasets

    paths = [Path(name) for names in folders.values() for name in names]
    if not all(next(iterate_images(path), None) for path in paths):
        return read_nested_folders(folders, options)
    patterns: dict[str, list[str]] = {}
    num_images: Counter[str] = Counter()
    for split, names in folders.items():
        patterns[split], ignored = [], []
        for folder in map(Path, names):
            counts = Counter(file.suffix for file in iterate_images(folder))
            if not counts:
                raise UserError(
                    f"--data: the {split} folder {str(folder)!r} has no images in class folders."
                )
            # Pass one glob per extension, as it is spelled in the folder: for a list of a million
            # file names, `datasets` takes minutes.
            root = glob.escape(str(folder.absolute()))
            patterns[split] += [f"{root}/*/*{extension}" for extension in sorted(counts)]
            num_images[split] += counts.total()
            ignored += [
                entry.name for entry in folder.glob("*/[!.]*") if entry.suffix not in counts
            ]
        if ignored:
            names = ", ".join(sorted(ignored)[:3]) + (", ..." if len(ignored) > 3 else "")
            logger.warning(
                "data: %s: ignored in the class folders, because not an image (%d): %s",
                split,
                len(ignored),
                names,
            )
    options = {"drop_labels": False, "drop_metadata": True, **options}
    data = datasets.load_dataset("imagefolder", data_files=patterns, **options)
    for split, expected in num_images.items():
        if len(data[split]) != expected:
            raise UserError(
                f"--data: {split} has {expected} images, but only {len(data[split])} were read."
            )
    return data.cast_column("image", datasets.Image(decode=False))


def read_nested_folders(folders: dict[str, list[str]], options: dict[str, Any]) -> "DatasetDict":
    """Read images at any depth below their class folders, as `read_image_folders` does."""
    import datasets

    if options:
        raise UserError(
            f"--data.options {options} has no effect on images in folders within class folders."
        )
    columns: dict[str, dict[str, list[Any]]] = {}
    for split, names in folders.items():
        cells: dict[str, list[Any]] = {"image": [], "label": [], "folder": []}
        for folder in map(Path, names):
            images = sorted([*iterate_images(folder), *find_nested_images(folder)])
            if not images:
                raise UserError(
                    f"--data: the {split} folder {str(folder)!r} has no images in class folders."
                )
            for image in images:
                label, *between, _ = image.relative_to(folder).parts
                cells["image"].append(str(image.absolute()))
                cells["label"].append(label)
                cells["folder"].append("/".join(between))
        columns[split] = cells
    classes = sorted({label for cells in columns.values() for label in cells["label"]})
    rows = {split: datasets.Dataset.from_dict(cells) for split, cells in columns.items()}
    logger.info(
        "data: images are in folders within the class folders; the column 'folder' says in which "
        "(--data.split-group folder keeps the images of a folder in one split)"
    )
    data = datasets.load_from_disk(str(store_splits(rows)))  # whose maps are cached
    data = data.cast_column("label", datasets.ClassLabel(names=classes))
    return data.cast_column("image", datasets.Image(decode=False))
