"""Kill training runs at random moments, resume them, and compare each with one never killed.

    python -m benchmarks.stress --kills 200                              all cells, some 25 minutes
    python -m benchmarks.stress --kills 3 --modalities text --workers 2 --processes 2 \
        --accumulation 3

A cell is {text, image} x {0, 2 data workers} x {1, 2 processes} x {1, 3 micro-batches per step}:
tiny random models with dropout and augmentation, batches that no split divides evenly, a checkpoint
every two steps. A trial starts the command of its cell, kills it with SIGKILL at a random moment
(one of two processes, or all of them; while it starts, trains, saves a checkpoint or exports the
model), starts it again, and so on until it finishes. At random, it also trains in bf16 or with
early stopping.

Its reference is the same command without data workers, never killed. These must be equal, byte for
byte: the weights and the training state of the last checkpoint, model/, scores.json, ledger.jsonl,
metrics.jsonl without its times, and the names of all files. The exit code is 1 if anything differs.

Importing the libraries takes seconds. This process therefore imports them once, and most starts
are forks of it that run train.py; the share `--launched` are new processes of `python` and
`torchrun`. A fork is only sound in a process without threads, so this one drives several trials as
generators. The seed decides what is drawn, but not what exactly a kill hits: that depends on the
machine. Linux only, since it reads /proc.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The allocator of pyarrow would otherwise start a thread on import.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "1",
}
WORDS = [
    *("the", "a", "sky", "grass", "sea", "rose", "is", "was", "very", "quite", "not", "pale"),
    *("red", "green", "blue"),
]
COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
# Rows per split. In batches of 10, the last batch of an epoch has 3 rows.
NUM_ROWS = {"train": 43, "validation": 11, "test": 11}
MODEL_SIZES = [
    "hidden_size=32",
    "num_hidden_layers=1",
    "num_attention_heads=2",
    "intermediate_size=64",
]
# By number of processes and of micro-batches. With 4, a step of 10 rows is 4 + 4 + 2.
MICRO_BATCH_SIZES = {(1, 1): 10, (1, 3): 4, (2, 1): 5, (2, 3): 2}
# What a kill aims at, with its weight in the draw: any moment of training; while a checkpoint is
# being saved; while model/ is exported; while the run folder is opened or restored; before that.
TARGETS = {"training": 6, "save": 3, "export": 1, "opening": 1, "startup": 1}
# Options that half of the trials have, each drawn by itself. With patience, evaluations are close
# together, and the run ends early.
VARIATIONS = {"bf16": ["--precision", "bf16"], "patience": ["--patience", "2", "--eval-every", "4"]}
SAVE_SECONDS = 0.01  # about as long as saving takes: a kill falls somewhere into it
MAX_SECONDS = 600  # of one start; one that takes longer hangs
# Seconds in which the other rank may notice that one was killed; torchrun waits for 30 seconds.
GRACE_SECONDS = {"forked": 2, "launched": 40}
# How log lines of a run begin, as regular expressions
FIRST_STEP_LINE = r"training    \d+ optimizer steps of "
RESUME_LINE = "resuming from "
MAX_KILLS = 8  # per trial


@dataclass(frozen=True)
class Options:
    """How many kills, and in which cells."""

    kills: int = 200  # kills while a run trains, in all; those before its first step are extra
    seed: int = 0  # of what is drawn: what each kill aims at, and which process it hits
    jobs: int = 2  # trials at the same time
    launched: float = 0.1  # share of starts by python or torchrun; 0: references are forks too
    modalities: tuple[Literal["text", "image"], ...] = ("text", "image")
    workers: tuple[int, ...] = (0, 2)  # data workers per process
    processes: tuple[Literal[1, 2], ...] = (1, 2)
    accumulation: tuple[Literal[1, 3], ...] = (1, 3)  # micro-batches per optimizer step
    variations: tuple[Literal["bf16", "patience"], ...] = ("bf16", "patience")
    epochs: int = 8  # of 5 optimizer steps
    out: Path | None = None  # JSON file for the table and all kills


class Cell(NamedTuple):
    """What is trained, and how its batches are divided."""

    modality: str
    workers: int
    processes: int
    accumulation: int

    def __str__(self) -> str:
        division = f"processes {self.processes}, accumulation {self.accumulation}"
        return f"{self.modality}, workers {self.workers}, {division}"


class Variant(NamedTuple):
    """The command of a trial: its cell, and the variations that were drawn for it."""

    cell: Cell
    variations: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join([str(self.cell), *self.variations])

    @property
    def reference(self) -> "Variant":
        """The command to compare with: data workers must not change any result."""
        return self._replace(cell=self.cell._replace(workers=0))

    @property
    def folder_name(self) -> str:
        return f"reference-{'-'.join(map(str, (*self.cell, *self.variations)))}"


@dataclass
class Reference:
    """A run that was not killed."""

    digests: dict[str, str]
    last_checkpoint: str
    training_seconds: float


@dataclass
class Tally:
    """The results by cell."""

    counts: dict[Cell, Counter[str]]
    failures: list[str] = field(default_factory=list)
    kills: list[dict[str, Any]] = field(default_factory=list)

    def total(self, name: str) -> int:
        return sum(count[name] for count in self.counts.values())

    def table(self) -> str:
        """Return a Markdown table: kills while a run trained, and those of them with two processes,
        during a save, in bf16 and with patience; kills before the first step; resumed starts."""
        names = ("trials", "kills", "two processes", "during a save", "before the first step")
        names = (*names, *VARIATIONS, "resumes")
        lines = [f"| cell | {' | '.join([*names, 'equal'])} |"]
        lines.append(f"|---|{'---:|' * (len(names) + 1)}")
        rows = {str(cell): count for cell, count in self.counts.items()}
        rows["**all**"] = Counter({name: self.total(name) for name in (*names, "equal")})
        for title, count in rows.items():
            cells = [str(count[name]) for name in names]
            cells.append(f"{count['equal']} of {count['trials']}")
            lines.append(f"| {title} | {' | '.join(cells)} |")
        return "\n".join(lines)


# What is trained


def write_data(folder: Path) -> None:
    """Write text/train.csv, ..., images/train/red/0.png, ..., and the text model, bert/.

    Each sentence contains a color, which is its label. Each image has the color of its label.
    """
    import numpy
    from PIL import Image

    rng, noise = random.Random(0), numpy.random.default_rng(0)
    (folder / "text").mkdir(parents=True)
    for split, num_rows in NUM_ROWS.items():
        lines = ["text,label"]
        for row in range(num_rows):
            color = rng.choice(list(COLORS))
            words = rng.choices(WORDS, k=rng.randint(2, 11))
            lines.append(f"{' '.join([*words[:2], color, *words[2:]])},{color}")
            pixels = numpy.array(COLORS[color]) + noise.integers(-90, 91, (20, 24, 3))
            image = folder / "images" / split / color / f"{row}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(image)
        (folder / "text" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    write_text_model(folder / "bert")


def write_text_model(folder: Path) -> None:
    """Write a word-level tokenizer and the config of a BERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, PreTrainedTokenizerFast

    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special_tokens, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    fast_tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model("bert", vocab_size=len(vocabulary), pad_token_id=0)
    config.save_pretrained(folder)


def train_command(variant: Variant, data: Path, run: Path, epochs: int) -> list[str]:
    """Return `train.py configs/text.py ...`, to be run in the root folder of the project."""
    cell = variant.cell
    if cell.modality == "text":
        command = ["train.py", "configs/text.py", "--max-length", "32", "--data.files"]
        for split in NUM_ROWS:
            command += [split, str(data / "text" / f"{split}.csv")]
        command += ["--model", str(data / "bert"), "--model-options", *MODEL_SIZES]
    else:
        command = ["train.py", "configs/image.py", "--data.path", str(data / "images")]
        command += ["--image-size", "16", "--augment", "crop", "flip", "mixup"]
        command += ["--model", "vit", "--model-options", *MODEL_SIZES, "patch_size=4"]
    size = MICRO_BATCH_SIZES[cell.processes, cell.accumulation]
    command += ["--init", "random", "--dropout", "0.1", "--no-report", "--run-dir", str(run)]
    command += ["--batch-size", "10", "--micro-batch-size", str(size)]
    command += ["--workers", str(cell.workers), "--epochs", str(epochs), "--learning-rate", "5e-3"]
    command += ["--log-every", "1", "--eval-every", "7", "--save-every", "2"]
    command += ["--keep-last", "2", "--keep-best", "1"]
    for name in variant.variations:
        command += VARIATIONS[name]
    return command


# What must be equal


def newest_checkpoint(run: Path) -> str:
    """Return the name of the newest complete checkpoint, or step-000000 if there is none."""
    paths = (Path("step-000000"), *(run / "checkpoints").glob("step-*[0-9]"))
    return max(path.name for path in paths)


def digest_run(run: Path) -> dict[str, str]:
    """Return what must be equal: files as they are or as sha256, logs without times, file names."""
    checkpoint = run / "checkpoints" / newest_checkpoint(run)
    model = run / "model" / "model.safetensors"
    digests = {}
    for file in (checkpoint / "weights.pt", checkpoint / "training.pt", model):
        digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    state = json.loads((checkpoint / "manifest.json").read_text())["state"]
    for name in ("log_bytes", "log_checksum"):  # metrics.jsonl holds times
        state.pop(name, None)
    digests["manifest.json"] = json.dumps(state)
    lines = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        times = ("time", "items_per_second", "speed")
        lines.append({name: value for name, value in line.items() if name not in times})
    digests["metrics.jsonl"] = json.dumps(lines)
    digests |= {name: (run / name).read_text() for name in ("scores.json", "ledger.jsonl")}
    digests["file names"] = " ".join(sorted(str(path.relative_to(run)) for path in run.rglob("*")))
    return digests


# Processes


def running_processes() -> dict[int, tuple[int, int]]:
    """Return (parent, session) of each process of this machine that has not ended, by its id."""
    processes = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):  # it has just ended
            continue
        if state not in "ZX":
            processes[int(stat.parent.name)] = (int(parent), int(session))
    return processes


class Start:
    """One start of a command, in one process or two, with its log and all that it starts."""

    def __init__(self, command: list[str], num_processes: int, is_launched: bool, log: Path):
        self.log, self.num_processes, self.is_launched = log, num_processes, is_launched
        self.began = time.monotonic()
        environment = {"HF_DATASETS_CACHE": str(log.parent / "cache")}
        if is_launched:
            launcher = [sys.executable]
            if num_processes > 1:
                launcher += ["-mtorch.distributed.run", "--standalone"]
                launcher += ["--nproc_per_node", str(num_processes)]
            self.process_ids = [self._fork([*launcher, *command], environment)]
        else:
            if num_processes > 1:
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
                environment |= {"WORLD_SIZE": str(num_processes)}
            self.process_ids = []
            for rank in map(str, range(num_processes)):
                own = {"RANK": rank, "LOCAL_RANK": rank} if num_processes > 1 else {}
                self.process_ids.append(self._fork(command, {**environment, **own}))
        self.exit_codes: dict[int, int] = {}  # of the processes that have ended
        self.seen = set(self.process_ids)  # also what they started, as far as it was seen

    def _fork(self, command: list[str], environment: dict[str, str]) -> int:
        """Run a command in a new process with a session of its own, and return its id."""
        process_id = os.fork()
        if process_id:
            return process_id
        code = 1
        try:
            os.setsid()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(ROOT)
            os.environ.update(environment)
            if self.is_launched:
                os.execv(command[0], command)
            import datasets

            # datasets read the variable when it was imported.
            datasets.config.HF_DATASETS_CACHE = Path(environment["HF_DATASETS_CACHE"])
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:  # the code of the parent process must never run here
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def is_running(self) -> bool:
        """Tell whether any process that was started here runs. Raises TimeoutError if one hangs."""
        for process_id in self.process_ids:
            if process_id not in self.exit_codes:
                ended, status = os.waitpid(process_id, os.WNOHANG)
                if ended:
                    self.exit_codes[process_id] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > self.began + MAX_SECONDS:
            raise TimeoutError(f"did not end within {MAX_SECONDS} seconds")
        return len(self.exit_codes) < len(self.process_ids)

    def has_logged(self, line_start: str) -> bool:
        """Tell whether a line of the log starts with a regular expression."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return re.search(rf"^(?:{line_start})", text, re.MULTILINE) is not None

    def is_training(self) -> bool:
        """Tell whether the run has reached its first optimizer step."""
        return self.has_logged(FIRST_STEP_LINE)

    def trainers(self) -> list[int]:
        """Return the ids of the processes that train, by rank."""
        if not (self.is_launched and self.num_processes > 1):
            return self.process_ids
        by_rank = {}
        for process_id, (parent, _) in running_processes().items():
            with contextlib.suppress(OSError):  # it has just ended
                if parent == self.process_ids[0]:
                    content = (Path("/proc") / str(process_id) / "environ").read_bytes()
                    for word in content.split(b"\0"):
                        if word.startswith(b"RANK="):
                            by_rank[int(word[5:])] = process_id
        return [by_rank[rank] for rank in sorted(by_rank)]

    def remaining(self) -> set[int]:
        """Return all processes that still run: those started here, their children and sessions."""
        processes = running_processes()
        while True:
            new = set()
            for process_id, parent_and_session in processes.items():
                if self.seen.intersection(parent_and_session):
                    new.add(process_id)
            if new <= self.seen:
                return self.seen & processes.keys()
            self.seen |= new

    def kill_all(self) -> None:
        """Kill what still runs, and wait until nothing does."""
        while remaining := self.remaining():
            kill(remaining)
            time.sleep(0.001)
        for process_id in set(self.process_ids) - self.exit_codes.keys():
            status = os.waitpid(process_id, 0)[1]
            self.exit_codes[process_id] = os.waitstatus_to_exitcode(status)


def kill(process_ids: set[int]) -> None:
    for process_id in process_ids:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(process_id, signal.SIGKILL)


def free_port() -> int:
    """Return a port for the ranks to meet, below the range that the system gives out by itself."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


# Trials: generators that yield wherever they wait, so that one process without threads drives many


def get_reference(
    variant: Variant, options: Options, home: Path, references: dict[Variant, Reference | None]
) -> Generator[None, None, Reference]:
    """Run a command without killing it, or wait for the trial that does so already.

    Raises SystemExit if the command fails.
    """
    if variant in references:
        while (reference := references[variant]) is None:
            yield
        return reference
    references[variant] = None  # it runs
    folder = home / variant.folder_name
    folder.mkdir()
    command = train_command(variant, home, folder / "run", options.epochs)
    scores = folder / "run" / "scores.json"
    start = Start(command, variant.cell.processes, options.launched > 0, folder / "log")
    try:
        while start.is_running() and not start.is_training():
            yield
        began = time.monotonic()
        while start.is_running() and not scores.exists():
            yield
        training_seconds = time.monotonic() - began
        while start.is_running():
            yield
    finally:
        start.kill_all()
    if any(start.exit_codes.values()) or not scores.exists():
        raise SystemExit(f"the reference run of {variant} failed: see {folder / 'log'}")
    if not start.is_training():
        raise SystemExit(f"no line of {folder / 'log'} starts with {FIRST_STEP_LINE!r}")
    last_checkpoint = newest_checkpoint(folder / "run")
    reference = Reference(digest_run(folder / "run"), last_checkpoint, training_seconds)
    references[variant] = reference
    seconds = time.monotonic() - start.began
    message = f"{last_checkpoint}, {seconds:.1f} s, {training_seconds:.1f} s of them training"
    print(f"reference: {variant}: {message}", flush=True)
    return reference


def run_trial(
    number: int,
    cell: Cell,
    options: Options,
    home: Path,
    references: dict[Variant, Reference | None],
    max_kills: int,
    tally: Tally,
) -> Iterator[None]:
    """Start a command and kill it until it finishes, and compare the run with its reference."""
    rng = random.Random(f"{options.seed} {number}")
    variations = tuple(name for name in options.variations if rng.random() < 0.5)
    variant = Variant(cell, variations)
    reference = yield from get_reference(variant.reference, options, home, references)
    folder = home / f"trial-{number:03d}"
    folder.mkdir()
    run, counts = folder / "run", Counter()
    command = train_command(variant, home, run, options.epochs)
    problem = ""
    for index in itertools.count():
        is_launched = rng.random() < options.launched
        # A run with its last checkpoint is not killed again: there is little left to do wrong.
        has_steps_left = newest_checkpoint(run) != reference.last_checkpoint
        target = "none"
        if counts["kills"] < max_kills and has_steps_left:
            target = rng.choices(list(TARGETS), list(TARGETS.values()))[0]
        start = Start(command, cell.processes, is_launched, folder / f"log-{index:02d}")
        try:
            yield from wait_for_target(start, target, run, reference, rng)
            is_killed = target != "none" and start.is_running()
            if is_killed:
                event = yield from kill_start(start, target, run, rng)
                counts[event["hit"]] += 1
                counts["during a save"] += event["during a save"]
                position = {"trial": number, "cell": [*cell, *variations], "start": index}
                tally.kills.append({**position, "launched": is_launched, **event})
            while start.is_running():
                yield
        except TimeoutError as error:
            problem = f"start {index} {error}"
            break
        finally:
            start.kill_all()
            last = reference.last_checkpoint
            counts["resumes"] += start.has_logged(f"{RESUME_LINE}(?!.*{last})")
        is_finished = (run / "scores.json").exists()
        if not is_killed and (any(start.exit_codes.values()) or not is_finished):
            last_line = ["", *start.log.read_text(errors="replace").splitlines()][-1]
            problem = f"start {index} failed by itself: {last_line}"
        if problem or is_finished:
            break
    if not problem:
        digests = digest_run(run)
        differing = [name for name in digests if digests[name] != reference.digests[name]]
        problem = ", ".join(differing)

    # Count and report
    counts.update(trials=1, equal=int(not problem))
    counts["two processes"] = counts["kills"] if cell.processes > 1 else 0
    counts.update(dict.fromkeys(variations, counts["kills"]))
    tally.counts[cell].update(counts)
    if problem:
        folders = f"see {folder} and {home / variant.reference.folder_name}"
        tally.failures.append(f"trial {number} ({variant}): {problem}; {folders}")
    else:
        shutil.rmtree(folder)
    names = ("kills", "during a save", "before the first step", "resumes")
    summary = ", ".join(f"{counts[name]} {name}" for name in names)
    verdict = f"DIFFERS: {problem}" if problem else "equal"
    total = tally.total("kills")
    print(f"{total:4d} kills  trial {number}: {variant}: {summary}: {verdict}", flush=True)


def wait_for_target(
    start: Start, target: str, run: Path, reference: Reference, rng: random.Random
) -> Iterator[None]:
    """Wait for the moment to kill, or for the end of the command."""
    now, until = time.time(), float("inf")
    # A new run creates its folder before it reads the data, and the rest after that.
    opened = rng.choice([run, run / "checkpoints"])
    is_new = not opened.exists()
    if target in ("training", "save"):
        while start.is_running() and not start.is_training():
            yield
        share_left = 1 - int(newest_checkpoint(run)[5:]) / int(reference.last_checkpoint[5:])
        # Mostly early, so that many kills hit one run.
        until = time.monotonic() + reference.training_seconds * share_left * rng.random() ** 2
    elif target == "startup":
        until = start.began + rng.uniform(0, 6 if start.is_launched else 0.7)

    def is_reached() -> bool:
        if target == "save":
            return time.monotonic() > until and is_saving(run)
        if target == "export":
            return modification_time(run / "model.tmp") > now
        if target == "opening":
            is_opened = is_new and opened.exists()
            return is_opened or start.has_logged(f"{RESUME_LINE}|{FIRST_STEP_LINE}")
        return time.monotonic() > until

    while start.is_running() and not is_reached():
        yield
    if target in ("save", "export", "opening"):
        until = time.monotonic() + SAVE_SECONDS * rng.random() ** 2
        while time.monotonic() < until:
            time.sleep(0.0002)


def kill_start(
    start: Start, target: str, run: Path, rng: random.Random
) -> Generator[None, None, dict[str, Any]]:
    """Kill one process of a start, or all, wait until all are gone, and describe what was hit."""
    hit = "kills" if start.is_training() else "before the first step"
    trainers = start.trainers()
    victims, victim_names = start.remaining(), "all"
    if len(trainers) > 1 and rng.random() < 0.6:
        rank = 0 if target == "save" else rng.randrange(len(trainers))  # rank 0 saves
        victims, victim_names = {trainers[rank]}, f"rank {rank}"
    kill(victims)
    seconds = time.monotonic() - start.began
    until = time.monotonic() + GRACE_SECONDS["launched" if start.is_launched else "forked"]
    while start.is_running() and time.monotonic() < until:
        yield
    others_ended = not start.is_running()
    start.kill_all()
    if (run / "scores.json").exists():
        hit = "after the end"
    return {
        "target": target,
        "hit": hit,
        "during a save": hit == "kills" and is_saving(run),
        "victims": victim_names,
        "seconds": round(seconds, 3),
        "others ended by themselves": others_ended,
        "checkpoints": sorted(path.name for path in (run / "checkpoints").glob("step-*")),
    }


def modification_time(path: Path) -> float:
    """Return when a path was modified, in seconds since 1970; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


def is_saving(run: Path) -> bool:
    """Tell whether a checkpoint is being written. An older one that is being deleted is not meant,
    although its name ends in .tmp too."""
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return bool(names) and names[-1].endswith(".tmp")


def drive(trials: Iterator[Iterator[None]], num_jobs: int) -> None:
    """Run generators to their ends, `num_jobs` at the same time, each once per millisecond."""
    active: list[Any] = []
    try:
        while True:
            active += itertools.islice(trials, num_jobs - len(active))
            if not active:
                return
            active = [trial for trial in active if next(trial, "ended") != "ended"]
            time.sleep(0.001)
    finally:
        for trial in active:
            trial.close()


def import_libraries() -> None:
    """Import what every start needs, and read the options once, which imports more."""
    import importlib

    names = "accelerate datasets evaluate torch torchvision.transforms.v2 ftloop.loop"
    for name in names.split():
        importlib.import_module(name)
    from transformers import BertForSequenceClassification, ViTForImageClassification

    from ftloop.cli.config_file import from_command_line

    del BertForSequenceClassification, ViTForImageClassification
    for config in ("text", "image"):
        from_command_line([str(ROOT / "configs" / f"{config}.py")])
    sys.modules["torch"].set_num_threads(1)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.stress", description=__doc__)
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(ROOT))
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="ftloop-stress-"))
    # What killed processes leave behind is deleted together with this folder.
    tempfile.tempdir = os.environ["TMPDIR"] = str(home)
    import_libraries()
    write_data(home)
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    if num_threads > 1:
        raise SystemExit(f"{num_threads} threads run after the imports, and a fork would lose them")

    dimensions = (options.modalities, options.workers, options.processes, options.accumulation)
    cells = [Cell._make(values) for values in itertools.product(*dimensions)]
    references: dict[Variant, Reference | None] = {}
    tally = Tally({cell: Counter() for cell in cells})
    max_kills = min(max(1, options.kills // len(cells)), MAX_KILLS)

    def trials() -> Iterator[Iterator[None]]:
        """Go through all cells in turn, until there were enough kills."""
        for number, cell in enumerate(itertools.cycle(cells)):
            if number >= len(cells) and tally.total("kills") >= options.kills:
                return
            yield run_trial(number, cell, options, home, references, max_kills, tally)

    drive(trials(), options.jobs)
    seconds = time.monotonic() - began
    per_kill = seconds / max(tally.total("kills"), 1)
    print(f"\n{tally.table()}\n\n{seconds:.0f} s, {per_kill:.1f} s per kill")
    if options.out is not None:
        table = [{**cell._asdict(), **count} for cell, count in tally.counts.items()]
        results = {"seed": options.seed, "seconds": round(seconds), "failures": tally.failures}
        results |= {"cells": table, "kills": tally.kills}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if tally.failures:
        print("\n".join(tally.failures))
        sys.exit(1)
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
