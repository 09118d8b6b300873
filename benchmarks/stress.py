"""Is a run that was killed anywhere, and started again, the run that was not? Hundreds of SIGKILLs, one table.

    python -m benchmarks.stress --kills 200                                          every cell, some 25 minutes
    python -m benchmarks.stress --kills 3 --modalities text --workers 2 --processes 2 --accumulation 3

A cell is {text, image} x {workers 0, 2} x {1, 2 processes} x {accumulation 1, 3}: tiny random models with dropout and
augmentation, ragged tails, a checkpoint every two steps. Its undisturbed run is the command as a user types it, without
workers. A trial is the same command killed at drawn instants and started again until it ends: one of two processes or
both, anywhere in training, inside a save, in start-up. A trial also draws whether it runs in bf16, and whether it stops
early; its undisturbed run does likewise. Then these must be equal, byte for byte: the weights and the training state of
the last checkpoint, model/, scores.json, the log without its clock, the names of all files. Exit status 1 if anything
differs.

Importing the libraries takes seconds. So this process imports them once, and most starts are forks of it that run
train.py; a share (`typed`) are new processes by `python` and `torchrun`. It stays free of threads, or no fork is sound.
The seed decides what is drawn, not where a kill hits: that is up to the machine. Linux only (it reads /proc).
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
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator: no thread when it is imported
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the same bits on any machine
    "ACCELERATE_USE_CPU": "1",
}
WORDS = ["the", "a", "sky", "grass", "sea", "rose", "is", "was", "very", "quite", "not", "pale", "red", "green", "blue"]
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
ROWS = {"train": 43, "validation": 11, "test": 11}  # in batches of 10: the last of an epoch has 3 rows
SIZES = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64"]
MICRO_BATCH = {(1, 1): 10, (1, 3): 4, (2, 1): 5, (2, 3): 2}  # rows, by processes and accumulation; 4 + 4 + 2: ragged
# Where a kill is meant to hit, and how often: any instant of training; a save; model/ and scores.json being written;
# the folder being opened or brought back to its checkpoint; any instant before.
PLANS = {"training": 6, "save": 3, "ending": 1, "opening": 1, "start-up": 1}
# What a trial may have besides. With patience, evaluations are close together, and one that is not better ends the run.
DRAWN = {"bf16": ["--precision", "bf16"], "patience": ["--patience", "2", "--eval-every", "4"]}
MOMENT = 0.01  # seconds, about as long as a save lasts: a kill falls somewhere in it
LONGEST = 300  # seconds of one start; more is a hang
PATIENCE = {False: 2, True: 40}  # seconds in which the others may notice that one is gone; torchrun waits 30 itself
MOST_KILLS = 8  # of one trial


@dataclass(frozen=True)
class Options:
    """How much is killed, and in which cells."""

    kills: int = 200  # that hit a running training, in all; those in start-up are counted apart
    seed: int = 0  # of what is drawn: where each kill is meant to hit, and which process
    jobs: int = 2  # trials at once
    typed: float = 0.1  # share of starts in a new process, by python or torchrun; 0: undisturbed runs are forks, too
    modalities: tuple[Literal["text", "image"], ...] = ("text", "image")  # these and the next three make the cells
    workers: tuple[int, ...] = (0, 2)  # of a process: what loads and collates
    processes: tuple[Literal[1, 2], ...] = (1, 2)  # that train together
    accumulation: tuple[Literal[1, 3], ...] = (1, 3)  # micro-batches in an optimizer step
    drawn: tuple[Literal["bf16", "patience"], ...] = (
        "bf16",
        "patience",
    )  # what half of the trials have, each by itself
    epochs: int = 8  # of 5 optimizer steps
    out: Path | None = None  # the table and every kill, as JSON


class Cell(NamedTuple):
    """What is trained, and how it is cut up."""

    modality: str
    workers: int
    processes: int
    accumulation: int

    def __str__(self) -> str:
        return f"{self.modality}, workers {self.workers}, processes {self.processes}, accumulation {self.accumulation}"


class Kind(NamedTuple):
    """What a trial runs: a cell, and what it drew of DRAWN."""

    cell: Cell
    drawn: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join([str(self.cell), *self.drawn])

    @property
    def undisturbed(self) -> "Kind":
        """What this must equal: workers change the speed, nothing else."""
        return self._replace(cell=self.cell._replace(workers=0))


@dataclass
class Whole:
    """An undisturbed run: what it left, and the seconds it took."""

    digest: dict[str, str]
    last: str  # the name of its last checkpoint
    training: float  # from the first step to the end


@dataclass
class Tally:
    """What came out, by cell."""

    counts: dict[Cell, Counter[str]]
    failures: list[str] = field(default_factory=list)
    kills: list[dict[str, Any]] = field(default_factory=list)

    def total(self, what: str) -> int:
        return sum(count[what] for count in self.counts.values())

    def table(self) -> str:
        """Markdown: kills that hit a running training, and those of them with two processes, in a save, in bf16, with
        patience; those in start-up are counted apart; resumes with steps left to do."""
        heads = ("trials", "kills", "two processes", "inside a save", "during start-up", *DRAWN, "resumes", "equal")
        lines = [f"| cell | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
        rows = {str(cell): count for cell, count in self.counts.items()}
        rows["**all**"] = Counter({head: self.total(head) for head in heads})
        for name, count in rows.items():
            cells = [str(count[head]) for head in heads[:-1]] + [f"{count['equal']} of {count['trials']}"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)


# ---- what is trained


def make_data(folder: Path) -> None:
    """Tables of sentences with a colour in each, a tokenizer and a model's configuration; folders of coloured images.

    Writes text/train.csv, ..., bert/, and images/train/red/0.png, ...
    """
    import numpy
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, PreTrainedTokenizerFast

    draw, noise = random.Random(0), numpy.random.default_rng(0)
    (folder / "text").mkdir(parents=True)
    for split, count in ROWS.items():
        lines = ["text,label"]
        for row in range(count):
            colour = draw.choice(list(COLOURS))
            words = draw.choices(WORDS, k=draw.randint(2, 11))
            lines.append(f"{' '.join([*words[:2], colour, *words[2:]])},{colour}")
            pixels = numpy.array(COLOURS[colour]) + noise.integers(-90, 91, (20, 24, 3))
            image = folder / "images" / split / colour / f"{row}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(image)
        (folder / "text" / f"{split}.csv").write_text("\n".join(lines) + "\n")

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **names).save_pretrained(folder / "bert")
    AutoConfig.for_model("bert", vocab_size=len(vocabulary), pad_token_id=0).save_pretrained(folder / "bert")


def command_of(kind: Kind, data: Path, run: Path, epochs: int) -> list[str]:
    """`train.py configs/text.py ...`, relative to the root of the project."""
    cell = kind.cell
    if cell.modality == "text":
        files = [word for split in ROWS for word in (split, str(data / "text" / f"{split}.csv"))]
        source = ["configs/text.py", "--task.data.files", *files, "--task.max-length", "32"]
        source += ["--task.model", str(data / "bert"), "--task.model-options", *SIZES]
    else:
        source = ["configs/image.py", "--task.data.path", str(data / "images"), "--task.image-size", "16"]
        source += ["--task.augment", "crop", "flip", "mixup"]
        source += ["--task.model", "vit", "--task.model-options", *SIZES, "patch_size=4"]
    micro_batch = MICRO_BATCH[cell.processes, cell.accumulation]
    return [
        *("train.py", *source, "--task.init", "random", "--task.dropout", "0.1", "--no-report", "--run-dir", str(run)),
        *("--batch-size", "10", "--micro-batch-size", str(micro_batch), "--workers", str(cell.workers)),
        *("--epochs", str(epochs), "--learning-rate", "5e-3", "--log-every", "1", "--eval-every", "7"),
        *("--save-every", "2", "--keep", "last=2,best=1", *itertools.chain(*(DRAWN[name] for name in kind.drawn))),
    ]


def newest(run: Path) -> str:
    """The name of the newest whole checkpoint; step-000000 if there is none."""
    return max(path.name for path in (Path("step-000000"), *(run / "checkpoints").glob("step-*[0-9]")))


def digest(run: Path) -> dict[str, str]:
    """What two runs must share: sha256 of the weights and the training state; scores, log without clock, file names."""
    last = run / "checkpoints" / newest(run)
    weights = (last / "weights.pt", last / "training.pt", run / "model" / "model.safetensors")
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in weights}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "items_per_second", "speed")
    found["metrics.jsonl"] = json.dumps(
        [{name: value for name, value in line.items() if name not in clock} for line in lines]
    )
    found |= {name: (run / name).read_text() for name in ("scores.json", "ledger.jsonl")}
    found["names of files"] = " ".join(sorted(str(path.relative_to(run)) for path in run.rglob("*")))
    return found


# ---- processes


def processes() -> dict[int, tuple[int, int]]:
    """Parent and session of every process of this machine; those that have ended and were not waited for are left
    out."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):  # it has just ended
            continue
        if state not in "ZX":
            found[int(stat.parent.name)] = (int(parent), int(session))
    return found


class Job:
    """One start of a command, in one process or two, with its own log and all that it starts."""

    def __init__(self, words: list[str], processes: int, typed: bool, log: Path):
        self.log, self.processes, self.typed = log, processes, typed
        self.began = time.monotonic()
        environment = {"HF_DATASETS_CACHE": str(log.parent / "cache")}
        if typed:
            launcher = [f"-mtorch.distributed.run --standalone --nproc_per_node {processes}".split()] * (processes > 1)
            self.pids = [self._fork([sys.executable, *itertools.chain(*launcher), *words], environment)]
        else:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
            ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
            self.pids = [self._fork(words, {**environment, **(rank if processes > 1 else {})}) for rank in ranks]
        self.codes: dict[int, int] = {}  # of those that have ended
        self.known = set(self.pids)  # and what they started, as far as it was seen

    def _fork(self, words: list[str], environment: dict[str, str]) -> int:
        """The id of a new process that runs the words, in a session of its own."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(ROOT)
            os.environ.update(environment)
            if self.typed:
                os.execv(words[0], words)
            import datasets

            datasets.config.HF_DATASETS_CACHE = Path(environment["HF_DATASETS_CACHE"])  # was read at import
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:  # never back into the harness
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def running(self) -> bool:
        """Whether any of the processes started here runs. Raises TimeoutError for one that does not end."""
        for pid in self.pids:
            if pid not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                self.codes |= {pid: os.waitstatus_to_exitcode(status)} if ended else {}
        if time.monotonic() > self.began + LONGEST:
            raise TimeoutError(f"no end after {LONGEST} s")
        return len(self.codes) < len(self.pids)

    def says(self, start_of_line: str) -> bool:
        """Whether a line of the log starts so (a regular expression)."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return re.search(rf"^(?:{start_of_line})", text, re.MULTILINE) is not None

    def trainers(self) -> list[int]:
        """The processes that train, by rank."""
        if not (self.typed and self.processes > 1):
            return self.pids
        found = {}
        for pid, (parent, _) in processes().items():
            with contextlib.suppress(OSError):  # it has just ended
                if parent == self.pids[0]:
                    environment = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
                    found |= {int(word[5:]): pid for word in environment if word.startswith(b"RANK=")}
        return [found[rank] for rank in sorted(found)]

    def left(self) -> set[int]:
        """All that runs of this job: its processes, what these started, and what is in their sessions."""
        alive = processes()
        while True:
            new = {pid for pid, above in alive.items() if self.known.intersection(above)} - self.known
            if not new:
                return self.known & alive.keys()
            self.known |= new

    def end(self) -> None:
        """Kill what is left, and wait until nothing is."""
        while left := self.left():
            kill(left)
            time.sleep(0.001)
        for pid in set(self.pids) - self.codes.keys():
            self.codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pids: set[int] | list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A port for the processes of a job to meet; below those that the system gives to others meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


# ---- trials: generators that yield wherever they wait, so that one process without threads drives several


def run_whole(
    kind: Kind, options: Options, home: Path, found: dict[Kind, Whole | None]
) -> Generator[None, None, Whole]:
    """Run it as a user types it, undisturbed, unless it was; wait for another trial that does. Raises SystemExit if it
    fails."""
    if kind in found:
        while (whole := found[kind]) is None:
            yield
        return whole
    found[kind] = None
    folder = home / whole_of(kind)
    folder.mkdir()
    words, scores = command_of(kind, home, folder / "run", options.epochs), folder / "run" / "scores.json"
    job = Job(words, kind.cell.processes, options.typed > 0, folder / "log")
    try:
        while job.running() and not job.says("train: "):
            yield
        began = time.monotonic()
        while job.running() and not scores.exists():
            yield
        training = time.monotonic() - began
        while job.running():
            yield
    finally:
        job.end()
    if any(job.codes.values()) or not scores.exists():
        raise SystemExit(f"the undisturbed run of {kind} failed: see {folder / 'log'}")
    found[kind] = whole = Whole(digest(folder / "run"), newest(folder / "run"), training)
    seconds = f"{time.monotonic() - job.began:.1f} s, training {training:.1f} of them"
    print(f"undisturbed: {kind}: to {whole.last}, {seconds}", flush=True)
    return whole


def whole_of(kind: Kind) -> str:
    """The folder of an undisturbed run."""
    return f"whole-{'-'.join(map(str, (*kind.cell, *kind.drawn)))}"


def run_trial(
    number: int, cell: Cell, options: Options, home: Path, wholes: dict[Kind, Whole | None], most: int, tally: Tally
) -> Iterator[None]:
    """Start, kill, start again until it ends, and compare."""
    draw = random.Random(f"{options.seed} {number}")
    kind = Kind(cell, tuple(name for name in options.drawn if draw.random() < 0.5))
    whole = yield from run_whole(kind.undisturbed, options, home, wholes)
    folder = home / f"trial-{number:03d}"
    folder.mkdir()
    run, count, here = folder / "run", tally.counts[cell], Counter()
    words = command_of(kind, home, run, options.epochs)
    problem = ""
    for start in itertools.count():
        typed = draw.random() < options.typed
        # A run that is trained to its end is killed no more: what is left to do would show little.
        goes_on = here["kills"] < most and newest(run) != whole.last
        plan = draw.choices(list(PLANS), list(PLANS.values()))[0] if goes_on else "none"
        job = Job(words, cell.processes, typed, folder / f"log-{start:02d}")
        try:
            yield from wait_for_instant(job, plan, run, whole, draw)
            killed = plan != "none" and job.running()
            if killed:
                event = yield from strike(job, plan, run, draw)
                here[event["hit"]] += 1
                here["inside a save"] += event["inside a save"]
                tally.kills.append(
                    {"trial": number, "cell": [*cell, *kind.drawn], "start": start, "typed": typed, **event}
                )
            while job.running():
                yield
        except TimeoutError as error:
            problem = f"{error} of start {start}"
            break
        finally:
            job.end()
            here["resumes"] += job.says(f"resume: from (?!.*{whole.last})")
        finished = (run / "scores.json").exists()
        if not killed and (any(job.codes.values()) or not finished):
            (*_, last) = ["", *job.log.read_text(errors="replace").splitlines()]
            problem = f"start {start} failed by itself: {last}"
        if problem or finished:
            break
    if not problem:
        found = digest(run)
        problem = ", ".join(name for name in whole.digest if found.get(name) != whole.digest[name])
    here |= {"trials": 1, "equal": int(not problem), "two processes": here["kills"] if cell.processes > 1 else 0}
    here |= dict.fromkeys(kind.drawn, here["kills"])
    count.update(here)
    if problem:
        tally.failures.append(
            f"trial {number} ({kind}): {problem}; see {folder} and {home / whole_of(kind.undisturbed)}"
        )
    else:
        shutil.rmtree(folder)
    shown = ", ".join(f"{here[what]} {what}" for what in ("kills", "inside a save", "during start-up", "resumes"))
    verdict = f"DIFFERS: {problem}" if problem else "equal"
    print(f"{tally.total('kills'):4d} kills  trial {number}: {kind}: {shown}: {verdict}", flush=True)


def wait_for_instant(job: Job, plan: str, run: Path, whole: Whole, draw: random.Random) -> Iterator[None]:
    """Wait until the instant to kill, or the end of the job."""
    is_new, now, until = not run.exists(), time.time(), float("inf")
    if plan in ("training", "save"):
        while job.running() and not job.says("train: "):
            yield
        steps_left = 1 - int(newest(run)[5:]) / int(whole.last[5:])
        until = time.monotonic() + whole.training * steps_left * draw.random() ** 2  # mostly early: many kills a run
    elif plan == "start-up":
        until = job.began + draw.uniform(0, 6 if job.typed else 0.7)
    reached = {
        "save": lambda: time.monotonic() > until and half_saved(run),
        "ending": lambda: modified(run / "model.tmp") > now,
        "opening": lambda: (is_new and run.exists()) or job.says("resume: from|train: "),
    }.get(plan, lambda: time.monotonic() > until)
    while job.running() and not reached():
        yield
    until = time.monotonic() + (MOMENT * draw.random() ** 2 if plan in ("save", "ending", "opening") else 0)
    while time.monotonic() < until:
        time.sleep(0.0002)


def strike(job: Job, plan: str, run: Path, draw: random.Random) -> Generator[None, None, dict[str, Any]]:
    """Kill a process of the job, or all, and wait until all are gone. Returns what was hit."""
    hit = "kills" if job.says("train: ") else "during start-up"
    trainers = job.trainers()
    victims, who = job.left(), "all"
    if len(trainers) > 1 and draw.random() < 0.6:
        rank = 0 if plan == "save" else draw.randrange(len(trainers))  # the first one saves
        victims, who = {trainers[rank]}, f"rank {rank}"
    kill(victims)
    seconds = time.monotonic() - job.began
    until = time.monotonic() + PATIENCE[job.typed]
    while job.running() and time.monotonic() < until:
        yield
    by_itself = not job.running()
    job.end()
    if (run / "scores.json").exists():
        hit = "after the end"
    checkpoints = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    inside = hit == "kills" and half_saved(run)
    return {
        **{"meant for": plan, "hit": hit, "inside a save": inside, "who": who, "seconds": round(seconds, 3)},
        **{"others ended by themselves": by_itself, "checkpoints": checkpoints},
    }


def modified(path: Path) -> float:
    """When it was, in seconds since 1970; 0 for what does not exist."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


def half_saved(run: Path) -> bool:
    """Whether a checkpoint is being written. (An older one that is being deleted has the same ending.)"""
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return bool(names) and names[-1].endswith(".tmp")


def drive(tasks: Iterator[Iterator[None]], at_once: int) -> None:
    """Run generators to their ends, some at once, and look at each every millisecond."""
    active: list[Any] = []
    try:
        while True:
            active += itertools.islice(tasks, at_once - len(active))
            if not active:
                return
            active = [task for task in active if next(task, "ended") != "ended"]
            time.sleep(0.001)
    finally:
        for task in active:
            task.close()


def import_all() -> None:
    """Import once what every start needs, and let tyro read the options once."""
    import accelerate
    import datasets
    import evaluate
    import torch
    import torchvision.transforms.v2
    from transformers import BertForSequenceClassification, ViTForImageClassification

    import ftloop.tasks.image
    import ftloop.loop
    import ftloop.tasks.text
    from ftloop.cli.config_file import from_command_line

    for config in ("text", "image"):
        from_command_line([str(ROOT / "configs" / f"{config}.py")])
    torch.set_num_threads(1)
    del accelerate, datasets, evaluate, torchvision, BertForSequenceClassification, ViTForImageClassification, ftloop


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.stress")
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(ROOT))
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="ftloop-stress-"))
    tempfile.tempdir = os.environ["TMPDIR"] = str(home)  # what killed processes leave behind goes with it
    import_all()
    make_data(home)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise SystemExit(f"{threads} threads run here after the imports: a fork would lose all but one of them")

    cells = [
        Cell(*cell)
        for cell in itertools.product(options.modalities, options.workers, options.processes, options.accumulation)
    ]
    wholes: dict[Kind, Whole | None] = {}  # None: it runs
    tally = Tally({cell: Counter() for cell in cells})
    most = min(max(1, options.kills // len(cells)), MOST_KILLS)

    def trials() -> Iterator[Iterator[None]]:
        """Over all cells in turn, until enough kills have hit."""
        for number, cell in enumerate(itertools.cycle(cells)):
            if number >= len(cells) and tally.total("kills") >= options.kills:
                return
            yield run_trial(number, cell, options, home, wholes, most, tally)

    drive(trials(), options.jobs)
    seconds = time.monotonic() - began
    print(f"\n{tally.table()}\n\n{seconds:.0f} s, {seconds / max(tally.total('kills'), 1):.1f} s a kill")
    if options.out is not None:
        table = [{**cell._asdict(), **count} for cell, count in tally.counts.items()]
        found = {"seed": options.seed, "seconds": round(seconds), "failures": tally.failures, "cells": table}
        options.out.write_text(json.dumps({**found, "every kill": tally.kills}, indent=1) + "\n")
    if tally.failures:
        print("\n".join(tally.failures))
        sys.exit(1)
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
