"""What the speed benchmarks share: workloads, rivals, processes, rounds, and tables of ratios.

Each rival of a round trains in a process of its own. Every round begins with another rival, and
ratios are computed within a round, so that whatever else the machine does affects all rivals. A
rival that fails is a line of the table that says why.

benchmarks/step_clock.py times the optimizer steps, by the same hook of torch for all loops. What
counts is the time of whole epochs over the same rows, because grouping by length changes the cost
of a step. It contains neither evaluation nor saving. The rivals (benchmarks/speed_loops.py):

limit      forward, backward, clipping and AdamW on batches that were collated before
course     the accelerate loop of the Hugging Face course
trainer    the Trainer with its defaults, in the random order of ftloop
ftloop     train.py with its defaults

Importing this module imports only the standard library: benchmarks/startup.py measures the rest.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from benchmarks.speed_data import SEED, load_texts, write_bert, write_csv, write_images

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
CPU_ONLY = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
MAX_SECONDS = 1800  # of one process; one that takes longer hangs
# With --preload, these are imported in a process without threads, from which the rivals are forked.
PRELOADED_MODULES = (
    *("torch", "datasets", "accelerate", "safetensors.torch", "torchvision.transforms.v2"),
    *("transformers.trainer", "transformers.models.bert.modeling_bert"),
    *("transformers.models.deit.modeling_deit", "ftloop.loop", "sklearn.metrics"),
)
NEVER = 10**9  # optimizer steps


# What is trained


@dataclass(frozen=True)
class Workload:
    """A model, rows and batches."""

    title: str
    source: str  # of the rows: pairs, tweets, docstrings, images
    batch_size: int
    steps: int  # optimizer steps per epoch; as many full batches of rows are taken from the source
    epochs: int  # that are timed
    # Epochs before them. 0 where an epoch takes a minute: the clock starts with the first forward
    # pass.
    warmup_epochs: int = 1
    max_length: int = 128  # tokens
    # Sizes of the model. For texts: of a random BERT instead of the text model.
    sizes: dict[str, int] | None = None
    image_model: str = "deit"  # its type; the weights are random


WorkloadName = Literal["tiny", "pairs", "tweets", "docstrings", "images"]
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
VIT = {**BASE, "image_size": 224, "patch_size": 16}
DEIT = {**VIT, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
WORKLOADS = {
    "tiny": Workload("tiny BERT, batch 8", "pairs", 8, steps=150, epochs=4, sizes=TINY),
    "pairs": Workload("MiniLM, sentence pairs, batch 32", "pairs", 32, steps=16, epochs=2),
    "tweets": Workload("MiniLM, tweets, batch 32", "tweets", 32, steps=24, epochs=2),
    "docstrings": Workload(
        "MiniLM, docstrings to 512 tokens, batch 32",
        "docstrings",
        32,
        steps=10,
        epochs=1,
        warmup_epochs=0,
        max_length=512,
    ),
    "images": Workload(
        "DeiT-tiny, JPEGs of 460 x 391, batch 8", "images", 8, steps=20, epochs=2, sizes=DEIT
    ),
}
GPU_WORKLOADS = {
    "bert": Workload(
        "BERT-base, sentence pairs, batch 32", "pairs", 32, steps=140, epochs=2, sizes=BASE
    ),
    "bert-long": Workload(
        "BERT-base, docstrings to 512 tokens, batch 32",
        "docstrings",
        32,
        steps=100,
        epochs=1,
        max_length=512,
        sizes=BASE,
    ),
    "vit": Workload(
        "ViT-base, JPEGs of 460 x 391, batch 64",
        "images",
        64,
        steps=24,
        epochs=2,
        sizes=VIT,
        image_model="vit",
    ),
}


@dataclass(frozen=True)
class Training:
    """One training by one rival. A child process gets it as JSON."""

    kind: str  # limit, course, trainer or ftloop
    options: dict[str, Any]  # of the rival; see RIVALS
    model: str  # folder or Hub id; for images the type, and the weights are random
    train: str  # a CSV file, or a folder of class folders
    folder: str  # for what the rival writes
    rows: int
    batch_size: int
    epochs: int  # in all
    text_columns: list[str] = field(default_factory=lambda: ["text"])  # empty for images
    validation: str | None = None  # a CSV file
    max_length: int = 128
    label_separator: str | None = None
    label_names: str | None = None  # a file
    seed: int = SEED
    sizes: dict[str, int] = field(default_factory=dict)  # of the image model
    max_steps: int | None = None  # instead of epochs
    more_options: list[str] = field(default_factory=list)  # of ftloop's command line
    memory_every: int | None = None  # optimizer steps between measurements of the memory
    gpu: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return -(-self.rows // self.batch_size)


@dataclass(frozen=True)
class CommonOptions:
    """The options of all speed benchmarks."""

    rounds: int = 3  # each rival trains once per round
    threads: int = 2  # per process
    data: Path | None = None
    """Folder with banking77/train.csv and goemotions/. Default: texts of similar lengths are
    generated."""
    model: str | None = None  # folder or Hub id of the text model. Default: MiniLM from PyPI
    max_length: int | None = None  # tokens. Default: that of the workload
    json: Path | None = None  # file for all measurements
    preload: bool = False
    """Fork the rivals from a process that has imported the libraries. For a quick try."""
    gpu: ClassVar[bool] = False  # whether to train on the GPU (benchmarks/gpu.py)


def prepare_training(
    name: str,
    options: CommonOptions,
    folder: Path,
    workload: Workload | None = None,
    num_validation: int = 0,
) -> Training:
    """Write the rows of a workload and describe its training, without a rival yet."""
    workload = workload or WORKLOADS[name]
    num_rows, data_folder = workload.steps * workload.batch_size, folder / name
    data_folder.mkdir(parents=True)
    training = Training(
        kind="",
        options={},
        model=workload.image_model,
        train=str(data_folder / "images"),
        folder=str(data_folder),
        rows=num_rows,
        batch_size=workload.batch_size,
        epochs=workload.warmup_epochs + workload.epochs,
        max_length=options.max_length or workload.max_length,
        gpu=options.gpu,
    )
    if workload.source == "images":
        write_images(data_folder / "images", num_rows)
        return replace(training, text_columns=[], sizes=workload.sizes or {})
    model = options.model
    if model is None:
        from ftloop.data.samples import find_minilm

        model = find_minilm()
    if workload.sizes:
        model = write_bert(model, workload.sizes, data_folder / "model")
    splits = load_texts(workload.source, options.data, num_rows, num_validation)
    write_csv(data_folder / "train.csv", splits["train"])
    if num_validation:
        write_csv(data_folder / "validation.csv", splits["validation"])
    is_multi_label = workload.source == "tweets"
    if is_multi_label:
        (data_folder / "labels.txt").write_text("".join(f"{name}\n" for name in splits["labels"]))
    return replace(
        training,
        model=model,
        train=str(data_folder / "train.csv"),
        validation=str(data_folder / "validation.csv") if num_validation else None,
        text_columns=[column for column in splits["train"][0] if column != "label"],
        label_separator="," if is_multi_label else None,
        label_names=str(data_folder / "labels.txt") if is_multi_label else None,
    )


# By whom


class Rival(NamedTuple):
    """A loop and its options: of ftloop {"words": command line}, of the Trainer TrainingArguments.

    {"kernels": True} makes the others use the matrix backend that ftloop chooses, and keep freed
    memory as ftloop does.
    """

    kind: str
    options: dict[str, Any]


def ftloop(*words: str) -> Rival:
    return Rival("ftloop", {"words": list(words)})


DEFAULT_KERNELS = ("--matmul", "default", "--no-keep-memory")
RANDOM_ORDER = ("--no-group-by-length",)
GROUPED = {"train_sampling_strategy": "group_by_length"}
RIVALS = {
    "limit": Rival("limit", {}),
    "limit+kernels": Rival("limit", {"kernels": True}),
    "limit-bf16": Rival("limit", {"bf16": True}),
    "course": Rival("course", {}),
    "trainer": Rival("trainer", {}),
    "trainer+kernels": Rival("trainer", {"kernels": True}),
    "trainer-workers1": Rival("trainer", {"dataloader_num_workers": 1}),
    "trainer-workers2": Rival("trainer", {"dataloader_num_workers": 2}),
    "trainer-bf16": Rival("trainer", {"bf16": True}),
    "trainer-grouped": Rival("trainer", GROUPED),
    "trainer-grouped+kernels": Rival("trainer", {**GROUPED, "kernels": True}),
    "trainer-grouped-bf16": Rival("trainer", {**GROUPED, "bf16": True}),
    "trainer-grouped-bf16+kernels": Rival("trainer", {**GROUPED, "bf16": True, "kernels": True}),
    "trainer-compile-bf16": Rival("trainer", {"bf16": True, "torch_compile": True}),
    "trainer-workers8-bf16": Rival("trainer", {"bf16": True, "dataloader_num_workers": 8}),
    "ftloop": ftloop(),
    "ftloop-default-kernels": ftloop(*DEFAULT_KERNELS),
    "ftloop-random": ftloop(*RANDOM_ORDER, *DEFAULT_KERNELS),  # the same work as `limit`
    "ftloop-random+kernels": ftloop(*RANDOM_ORDER),
    "ftloop-bf16": ftloop("--precision", "bf16"),
    "ftloop-random-bf16": ftloop(*RANDOM_ORDER, "--precision", "bf16"),
    "ftloop-compile-bf16": ftloop("--precision", "bf16", "--compile"),
    "ftloop-packing-bf16": ftloop("--precision", "bf16", "--packing"),
    "ftloop-packing": ftloop("--packing"),
    "ftloop-workers0": ftloop("--workers", "0"),
}


def find_rival(name: str) -> Rival:
    """Return a rival by name, or NAME:OPTIONS with further options.

    "ftloop:--max-tokens 4096", "trainer:dataloader_num_workers=4 bf16=true"
    """
    base, colon, more = name.partition(":")
    if base not in RIVALS:
        choices = ", ".join(RIVALS)
        raise SystemExit(f"{name!r} is not a rival. Choose from {choices}, or use NAME:OPTIONS.")
    rival = RIVALS[base]
    if not colon:
        return rival
    if rival.kind == "ftloop":
        return ftloop(*rival.options["words"], *more.split())
    pairs = (word.partition("=") for word in more.split())
    options = {key: json.loads(value or "true") for key, _, value in pairs}
    return Rival(rival.kind, rival.options | options)


def train_options(training: Training, task_prefix: str = "") -> list[str]:
    """Return the words after `train.py`, without the options of the rival.

    `task_prefix` is "task." for version 0.1, which spelled --max-length as --task.max-length.
    """
    task = f"--{task_prefix}"
    words = ["--run-dir", f"{training.folder}/run", "--seed", str(training.seed), "--no-report"]
    words += [] if training.validation else [f"{task}data.validation", "0"]
    words += ["--batch-size", str(training.batch_size), "--epochs", str(training.epochs)]
    words += ["--eval-every", str(NEVER), "--warmup", "0", f"{task}model", training.model]
    words += ["--max-steps", str(training.max_steps)] if training.max_steps else []
    if not training.text_columns:
        words += [f"{task}data.path", training.train, f"{task}init", "random"]
        sizes = [f"{name}={value}" for name, value in training.sizes.items()]
        return ["configs/image.py", *words, f"{task}model-options", *sizes]
    words += [f"{task}max-length", str(training.max_length)]
    if training.label_separator:
        words += [f"{task}label-separator", training.label_separator]
        words += [f"{task}label-names", str(training.label_names)]
    words += [f"{task}text-columns", *training.text_columns]
    words += [f"{task}data.files", "train", training.train]
    words += ["validation", training.validation] if training.validation else []
    return ["configs/text.py", *words]


# Processes


Measurements = dict[str, list[dict[str, Any]]]
"""By rival, a result for each round; {"failed": reason} where there is none."""
TRAIN_AND_TIME = "benchmarks.speed_loops:train_and_time"


def run_child(
    function: str, folder: Path, options: CommonOptions, *arguments: Any, num_processes: int = 1
) -> dict[str, Any]:
    """Call a function (MODULE:NAME) with JSON arguments in a process of its own.

    With several processes, which train together, returns the result of the first one. Returns
    {"failed": reason} if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "run", ignore_errors=True)  # of the previous round
    call, out = folder / "call.json", folder / "result.json"
    call.write_text(json.dumps([function, arguments]))
    out.unlink(missing_ok=True)
    threads = max(1, options.threads // num_processes)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    environment |= {} if options.gpu else CPU_ONLY
    environment["HF_DATASETS_CACHE"] = str(folder / "cache")
    if num_processes > 1:
        environment |= {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1"}
        environment["MASTER_PORT"] = str(free_port())
    processes = []
    for rank in map(str, range(num_processes)):
        own = {"RANK": rank, "LOCAL_RANK": rank} if num_processes > 1 else {}
        log = folder / f"log{rank}.txt"
        log.write_text("")
        processes.append(start_child(call, out, log, environment | own, options.preload))
    deadline = time.monotonic() + MAX_SECONDS
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    is_late = False
    for process in processes:
        if is_running(process):
            process.kill()
            is_late = True
    if is_late:
        return {"failed": f"it took more than {MAX_SECONDS} s"}
    if not out.exists():
        return {"failed": find_reason((folder / "log0.txt").read_text())}
    return json.loads(out.read_text())


def is_running(process: Any) -> bool:
    if isinstance(process, subprocess.Popen):
        return process.poll() is None
    return process.is_alive()


def start_child(
    call: Path, out: Path, log: Path, environment: dict[str, str], preload: bool
) -> Any:
    """Start a new process, or fork one from the process that has imported the libraries."""
    if preload:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED_MODULES))
        process = context.Process(target=respond_in_fork, args=(call, out, log, environment))
        process.start()
        return process
    command = [sys.executable, "-m", "benchmarks.speed", str(call), str(out)]
    environment = {**os.environ, **environment}
    with log.open("w") as stream:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )


def respond_in_fork(call: Path, out: Path, log: Path, environment: dict[str, str]) -> None:
    import datasets
    import torch

    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ |= environment
    # datasets and torch read the variables when they were imported.
    datasets.config.HF_DATASETS_CACHE = Path(environment["HF_DATASETS_CACHE"])
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    respond(call, out)


def respond(call: Path, out: Path) -> None:
    """Call a function in this child process, and write its result."""
    name, arguments = json.loads(call.read_text())
    module, _, function = name.partition(":")
    result = getattr(importlib.import_module(module), function)(*arguments)
    if os.environ.get("RANK", "0") == "0":
        temporary = out.with_suffix(".tmp")
        temporary.write_text(json.dumps(result))
        temporary.rename(out)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def find_reason(log: str) -> str:
    """Return the line of a log that says best why a process failed."""
    lines = [line.strip(" │╭╰─╮╯") for line in log.splitlines()]
    lines = [line for line in lines if line and "%|" not in line]  # no progress bars
    errors = [line for line in lines if "rror" in line or "nrecognized" in line]
    return (errors or lines or ["it ended without a message"])[-1].replace("|", "/")[:160]


# Rounds


def measure_in_rounds(
    rivals: Sequence[str], rounds: int, measure: Callable[[str], dict[str, Any]]
) -> Measurements:
    """Measure each rival once per round, beginning with another one in each round."""
    measurements: Measurements = {rival: [] for rival in rivals}
    for number in range(rounds):
        start = number % len(rivals)
        for rival in (*rivals[start:], *rivals[:start]):
            began = time.perf_counter()
            result = measure(rival)
            measurements[rival].append(result)
            seconds = time.perf_counter() - began
            outcome = f"failed: {result['failed']}" if "failed" in result else "done"
            message = f"round {number + 1}/{rounds}, {rival}: {outcome} in {seconds:.0f} s"
            print(message, file=sys.stderr, flush=True)
    return measurements


def for_rival(training: Training, name: str) -> Training:
    """Return a prepared training for a rival, in a folder of its own."""
    rival = find_rival(name)
    folder = "".join(letter if letter.isalnum() else "_" for letter in name)
    return replace(
        training, kind=rival.kind, options=rival.options, folder=str(Path(training.folder, folder))
    )


def measure_rivals(
    training: Training, options: CommonOptions, workload: Workload, rivals: Sequence[str]
) -> Measurements:
    """Train with each rival. "ms": milliseconds per step, the median of the timed epochs."""

    def measure(name: str) -> dict[str, Any]:
        own = for_rival(training, name)
        result = run_child(TRAIN_AND_TIME, Path(own.folder), options, asdict(own))
        if "failed" not in result:
            seconds = statistics.median(result["epochs"][workload.warmup_epochs :])
            result |= {"ms": 1000 * seconds / own.steps, "rows per second": own.rows / seconds}
        return result

    return measure_in_rounds(rivals, options.rounds, measure)


# Tables


class Spread(NamedTuple):
    """Median, minimum and maximum of some values."""

    median: float
    minimum: float
    maximum: float

    def format(self, digits: int = 2) -> str:
        if self.minimum == self.maximum:
            return f"{self.median:.{digits}f}"
        spread = f"{self.minimum:.{digits}f} to {self.maximum:.{digits}f}"
        return f"{self.median:.{digits}f} ({spread})"


def compute_spread(values: Sequence[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def get_values(measurements: Measurements, rival: str, name: str) -> list[float]:
    """Return a value of a rival from all rounds in which it did not fail."""
    return [result[name] for result in measurements.get(rival, []) if name in result]


def compute_ratio(
    measurements: Measurements, numerator: str, denominator: str, name: str
) -> Spread | None:
    """Divide a value of two rivals round by round. Rounds in which one failed are left out."""
    pairs = zip(measurements.get(numerator, []), measurements.get(denominator, []), strict=False)
    ratios = [
        first[name] / second[name] for first, second in pairs if name in first and name in second
    ]
    return compute_spread(ratios)


def get_failure(measurements: Measurements, rival: str) -> str | None:
    """Return why a rival failed in every round, or None if it succeeded in one."""
    reasons = [result.get("failed") for result in measurements[rival]]
    return reasons[0] if reasons and all(reasons) else None


def format_markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def format_table(measurements: Measurements) -> str:
    """Return a table: milliseconds, time relative to the limit, speed relative to the Trainer."""
    rows = []
    for rival in measurements:
        reason = get_failure(measurements, rival)
        ms = compute_spread(get_values(measurements, rival, "ms"))
        time_ratio = compute_ratio(measurements, rival, "limit", "ms")
        speed_ratio = compute_ratio(measurements, "trainer", rival, "ms")
        first = f"failed: {reason}" if reason else format_spread(ms, 1)
        rows.append([rival, first, format_spread(time_ratio), format_spread(speed_ratio)])
    return format_markdown(("rival", "ms per step", "time / limit", "speed / trainer"), rows)


def format_spread(spread: Spread | None, digits: int = 2) -> str:
    return "-" if spread is None else spread.format(digits)


class Goal(NamedTuple):
    """A ratio to reach. `quantity` is "time" (ours / theirs, at most `bound`) or "speed" (theirs /
    ours, at least `bound`). Of several others, the fastest one counts."""

    ours: str
    others: tuple[str, ...]
    quantity: str
    bound: float

    def verdict(self, measurements: Measurements, name: str = "ms") -> str:
        others = [rival for rival in self.others if get_values(measurements, rival, name)]
        if not others or not get_values(measurements, self.ours, name):
            return f"{self.quantity}, {self.ours} / {' or '.join(self.others)}: not measured"

        def median(rival: str) -> float:
            return statistics.median(get_values(measurements, rival, name))

        fastest = min(others, key=median)
        if self.quantity == "time":
            ratio = compute_ratio(measurements, self.ours, fastest, name)
        else:
            ratio = compute_ratio(measurements, fastest, self.ours, name)
        if ratio is None:  # they never succeeded in the same round
            return f"{self.quantity}, {self.ours} / {fastest}: not measured"
        is_time = self.quantity == "time"
        is_reached = ratio.median <= self.bound if is_time else ratio.median >= self.bound
        goal = f"{'at most' if is_time else 'at least'} {self.bound} is the goal"
        failed = "" if is_reached else " - NOT REACHED"
        return f"{self.quantity}, {self.ours} / {fastest}: {ratio.format(3)}, {goal}{failed}"


# Begin and end of a benchmark


def describe_machine(options: CommonOptions) -> dict[str, Any]:
    """Return on what is measured, and with which versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    machine = {
        "cpu": names[0] if names else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 1),  # of other programs, before the benchmark
    }
    if options.gpu:
        machine["gpu"] = find_gpu()
    machine["python"] = sys.version.split()[0]
    return machine | {library: version(library) for library in LIBRARIES}


def find_gpu() -> str:
    """Return the name of the GPU. Raises SystemExit without one."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU on this machine.")
    return torch.cuda.get_device_name()


def print_machine(options: CommonOptions) -> dict[str, Any]:
    """Print and return the description of the machine."""
    machine = describe_machine(options)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    return machine


def write_json(options: CommonOptions, results: dict[str, Any], machine: dict[str, Any]) -> None:
    """Write all measurements, if --json is given."""
    if options.json is not None:
        content = {"machine": machine, "options": asdict(options), **results}
        options.json.write_text(json.dumps(content, indent=1, default=str) + "\n")


def temporary_folder() -> tempfile.TemporaryDirectory:
    """Return a folder that is deleted at the end, on the disk that TMPDIR names."""
    return tempfile.TemporaryDirectory(prefix="ftloop-speed-")


if __name__ == "__main__":
    respond(Path(sys.argv[1]), Path(sys.argv[2]))
