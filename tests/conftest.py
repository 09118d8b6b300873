"""Tiny models, tiny tables, and commands run as a user types them. No test reaches a network."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# The same tests on any machine.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
# For tiny models, a second thread costs more time than it saves, and it sums in another order.
os.environ["OMP_NUM_THREADS"] = "1"

import csv
import io
import itertools
import multiprocessing
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
COLOURS = ("red", "green", "blue")
WORDS = [
    *COLOURS,
    *("the", "a", "this", "that", "sky", "grass", "sea", "rose", "is", "was", "looks", "seems"),
    *("very", "quite", "so", "not", "never", "deep", "pale", "bright"),
]
SIZES = {
    "initializer_range": 0.1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "roberta": SIZES,
    "electra": {**SIZES, "embedding_size": 32},
    "modernbert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8},
}


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the libraries the caches of this session, which are empty at its start."""
    import datasets

    folder = tmp_path_factory.mktemp("cache")
    os.environ["HF_DATASETS_CACHE"] = os.environ["XDG_CACHE_HOME"] = str(folder)
    datasets.config.HF_DATASETS_CACHE = folder


@pytest.fixture(autouse=True)
def unchanged_torch() -> Iterator[None]:
    """What a run in this process changes in torch ends with the run: its setups undo it."""
    yield
    if torch := sys.modules.get("torch"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_deterministic_debug_mode() == 0


@pytest.fixture
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test imports from its own folders: two tests may name their files alike."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.endswith(".py") and "site-packages" not in file and not file.startswith(str(ROOT)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`tiny("bert")` returns a folder with a random two-layer model and a small tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    home = tmp_path_factory.mktemp("models")

    def make(architecture: str) -> str:
        folder = home / architecture
        if folder.exists():
            return str(folder)
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        segments = ["token_type_ids"] if architecture in ("bert", "electra") else []
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_input_names=["input_ids", *segments, "attention_mask"],
            model_max_length=64,
        )
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            architecture,
            vocab_size=len(vocabulary),
            max_position_embeddings=80,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            cls_token_id=2,
            sep_token_id=3,
            **ARCHITECTURES[architecture],
        )
        AutoModel.from_config(config).save_pretrained(folder)
        return str(folder)

    return make


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows: `text` of 3 to 12 words, labels `colour` and `number`, decimal `tone`."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        colour = draw.choice(COLOURS)
        words = [draw.choice(WORDS[3:]) for _ in range(draw.randint(2, 11))]
        words.insert(draw.randint(0, len(words)), colour)
        number = COLOURS.index(colour)
        tone = number + len(words) / 20 + 0.01
        rows.append({"text": " ".join(words), "colour": colour, "number": number, "tone": tone})
    return rows


def write_csv(file: Path, rows: list[dict[str, Any]]) -> str:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


@pytest.fixture
def colours(tmp_path: Path) -> list[str]:
    """Options for `configs/text.py`: 43 + 11 + 11 rows that a tiny model can learn."""
    files = {
        split: write_csv(tmp_path / f"{split}.csv", sentences(count, seed))
        for seed, (split, count) in enumerate({"train": 43, "validation": 11, "test": 11}.items())
    }
    return [
        *("--data.files", *(word for pair in files.items() for word in pair)),
        *("--label", "colour", "--max-length", "32"),
        *("--batch-size", "8", "--learning-rate", "5e-3", "--epochs", "2"),
        *("--run-dir", str(tmp_path / "run")),
    ]


def quick(words: tuple[Any, ...]) -> list[str]:
    """Add --no-report to a command that trains: a report takes longer than a tiny training.

    Tests of reports write --report.
    """
    words = [str(word) for word in words]
    trains = any(
        Path(script).name == "train.py" and not config.startswith("-")
        for script, config in itertools.pairwise(words)
    )
    if trains and not {"--report", "--no-report"} & {*words}:
        return [*words, "--no-report"]
    return words


@dataclass
class Result:
    code: int
    out: str
    err: str


def run_script(script: str, *words: str) -> Result:
    """Run `python SCRIPT WORDS` in this process, which saves the seconds of starting a new one."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [str(ROOT / script), *quick((script, *words))[1:]]
    for state in (AcceleratorState, GradientState, PartialState):  # they outlive an Accelerator
        state._reset_state()
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        sys.argv = argv
    return Result(code, out.getvalue(), err.getvalue())


def run_script_of_ftloop(*words: str) -> Result:
    """Run `python -m ftloop.cli WORDS` in this process."""
    return run_script("ftloop/cli/__main__.py", *words)


def run_command(*words: str, timeout: int = 240, **environment: str) -> Result:
    """Run a command in a new process at the root of the project, with the Python of the tests."""
    command = [sys.executable if word == "python" else word for word in quick(words)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Result(result.returncode, result.stdout, result.stderr)


IMPORTED = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
)


def ranks(processes: int, *words: str, timeout: int = 240, **environment: str) -> Result:
    """Run WORDS in several processes, as torchrun does, and end all of them if one fails.

    They are forked from a process that has imported the libraries, which saves most of their time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("out", "err")]
        running = []
        for rank in range(processes):
            own = {**environment, **shared, "RANK": rank, "LOCAL_RANK": rank}
            own = {name: str(value) for name, value in own.items()}
            running.append(context.Process(target=run_rank, args=(quick(words), own, files)))
            running[-1].start()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and any(process.is_alive() for process in running):
            if any(process.exitcode for process in running):
                time.sleep(1)  # so that the others can print what they notice
                break
            time.sleep(0.05)
        for process in running:
            process.kill()
            process.join()
        out, err = (Path(file).read_text() if os.path.exists(file) else "" for file in files)
        return Result(int(any(process.exitcode for process in running)), out, err)


def run_rank(words: list[str], environment: dict[str, str], files: list[str]) -> None:
    """Run `python WORDS` as one of the processes of `ranks`."""
    os.environ |= environment
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), *environment.get("PYTHONPATH", "").split(":")]
    sys.argv = [str(ROOT / words[0]), *words[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def torchrun(processes: int, *words: str, **environment: str) -> Result:
    """Run `torchrun --nproc_per_node PROCESSES WORDS` with one thread per process."""
    torchrun = ("python", "-m", "torch.distributed.run", "--standalone")
    return run_command(*torchrun, "--nproc_per_node", str(processes), *words, **environment)


def is_untouched(run: Path) -> bool:
    """Tell whether a run folder is missing, or holds only the empty lock that a run takes first."""
    files = [(file.name, file.stat().st_size) for file in run.iterdir()] if run.exists() else []
    return files in ([], [("lock", 0)])
