"""What the speed benchmarks share: what is trained, by whom, in which order they are measured, and tables of ratios.

Each rival of a round is a process of its own (`python -m benchmarks.speed TASK.json OUT.json`): the flags of one are
not those of another. Rounds follow each other, each begins with another rival, and ratios are taken within a round:
what else the machine does meets all of them. A rival that fails is a line of the table that says why.

Nothing of ftloop is patched: a hook of torch notes when the first forward pass begins and when each optimizer step has
ended, the same hook for all. What counts is the time of whole epochs over the same rows, for grouping by length changes
what a step costs. Neither evaluation nor saving falls into them. Beside it stand the rivals: `limit` has its batches
collated in memory before the clock starts; `course` is the accelerate loop of the Hugging Face course; `trainer` is the
Trainer with its defaults, in ftloop's random order.

Only the standard library is imported with this module: `startup` measures what is imported after it.
"""

import contextlib
import csv
import importlib
import itertools
import json
import multiprocessing
import os
import random
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}  # unless asked for
SEED = 1
LIMIT = 1800  # seconds of one process; more is a hang
# What --preload imports, in a process without threads.
IMPORTS = (
    *("torch", "datasets", "accelerate", "safetensors.torch", "torchvision.transforms.v2", "transformers.trainer"),
    *("transformers.models.bert.modeling_bert", "transformers.models.deit.modeling_deit", "ftloop.loop"),
    *("benchmarks.beside_trainer", "sklearn.metrics"),
)
NEVER = 10**9  # optimizer steps


# ---- what is trained


@dataclass(frozen=True)
class Work:
    title: str
    source: str  # of the rows: pairs, tweets, docstrings, images
    batch_size: int
    steps: int  # optimizer steps of an epoch: so many batches of rows are taken from the source
    epochs: int  # that are timed
    warm_up: int = 1  # epochs before them; 0 where one takes a minute, and the clock starts with its first forward pass
    max_length: int = 128  # tokens
    shape: dict[str, int] | None = None  # texts: of a random BERT with the tokenizer of the text model, instead of it
    image_model: str = "deit"  # its type; its weights are random


Name = Literal["tiny", "pairs", "tweets", "docstrings", "images"]  # of WORKS
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VIT = {**BASE, "image_size": 224, "patch_size": 16}
DEIT = {**VIT, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
WORKS = {
    "tiny": Work("tiny BERT, batch 8", "pairs", 8, 150, 4, shape=TINY),
    "pairs": Work("MiniLM, sentence pairs, batch 32", "pairs", 32, 16, 2),
    "tweets": Work("MiniLM, tweets, batch 32", "tweets", 32, 24, 2),
    "docstrings": Work("MiniLM, docstrings to 512 tokens, batch 32", "docstrings", 32, 10, 1, 0, max_length=512),
    "images": Work("DeiT-tiny, JPEGs of 460 x 391, batch 8", "images", 8, 20, 2, shape=DEIT),
}
# For a GPU.
LARGE_WORKS = {
    "bert": Work("BERT-base, sentence pairs, batch 32", "pairs", 32, 140, 2, shape=BASE),
    "bert-long": Work("BERT-base, docstrings to 512 tokens, batch 32", "docstrings", 32, 100, 1, 1, 512, BASE),
    "vit": Work("ViT-base, JPEGs of 460 x 391, batch 64", "images", 64, 24, 2, shape=VIT, image_model="vit"),
}
# One piece of a WordPiece vocabulary each, so that texts that are made have the lengths that were drawn for them.
WORDS = """
the of and to in is was for on that with as it his be at by had not are but from or have an they which one you were her
all she there would their we him been has when who will more no if out so said what up its about into than them can only
other new some could time these two may then do first any my now such like our over man me even most made after also
""".split()  # noqa: SIM905 - a hundred words in quotes would read worse


@dataclass(frozen=True)
class Job:
    """One rival at work. What a child process gets as JSON."""

    kind: str  # limit, course, trainer or ftloop
    options: dict[str, Any]  # what makes the variant: see RIVALS
    model: str  # folder or Hub id; for images the type, and the weights are random
    train: str  # a CSV file, or a folder of class folders
    folder: str  # for what the rival writes
    rows: int
    batch_size: int
    epochs: int  # in all
    text_columns: list[str] = field(default_factory=lambda: ["text"])  # none: images
    validation: str | None = None  # a CSV file
    max_length: int = 128
    label_separator: str | None = None
    label_names: str | None = None  # a file
    seed: int = SEED
    shape: dict[str, int] = field(default_factory=dict)  # of the image model
    max_steps: int | None = None  # instead of epochs
    words: list[str] = field(default_factory=list)  # more options of ftloop's command line
    rss_every: int | None = None  # optimizer steps between looks at the memory
    gpu: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.rows // self.batch_size)


@dataclass(frozen=True)
class Common:
    """Where things come from, and how often they are measured: the options of every module."""

    rounds: int = 3  # each rival once in each
    threads: int = 2  # of each process
    data: Path | None = None  # folder with banking77/train.csv, goemotions/*; left out: texts of like lengths are made
    model: str | None = None  # folder or Hub id of the text model; left out: MiniLM of ftloop.data.samples
    max_length: int | None = None  # tokens; left out: as the work has it
    json: Path | None = None  # file for all that was measured
    preload: bool = False  # for a quick try: fork the rivals from a process that has imported the libraries
    gpu: ClassVar[bool] = False  # True: train on the GPU (benchmarks/gpu.py)


def prepare(name: str, given: Common, folder: Path, work: Work | None = None, validation: int = 0) -> Job:
    """Write the rows of a work, so many that an epoch has `work.steps` full batches, and say how it is trained."""
    work = work or WORKS[name]
    rows, place = work.steps * work.batch_size, folder / name
    place.mkdir(parents=True)
    common = {"kind": "", "options": {}, "folder": str(place), "rows": rows, "batch_size": work.batch_size}
    common |= {"epochs": work.warm_up + work.epochs, "max_length": given.max_length or work.max_length}
    common |= {"gpu": given.gpu}
    if work.source == "images":
        write_images(place / "images", rows)
        return Job(model=work.image_model, train=str(place / "images"), text_columns=[], shape=work.shape, **common)
    model = given.model
    if model is None:
        from ftloop.data.samples import find_minilm

        model = find_minilm()
    if work.shape:
        model = make_bert(model, work.shape, place / "model")
    source = texts_of(work.source, given.data, rows, validation)
    write_rows(place / "train.csv", source["train"])
    if validation:
        write_rows(place / "validation.csv", source["validation"])
    several = work.source == "tweets"
    if several:
        (place / "labels.txt").write_text("".join(f"{label}\n" for label in source["labels"]))
    return Job(
        model=model,
        train=str(place / "train.csv"),
        validation=str(place / "validation.csv") if validation else None,
        text_columns=[column for column in source["train"][0] if column != "label"],
        label_separator="," if several else None,
        label_names=str(place / "labels.txt") if several else None,
        **common,
    )


def texts_of(source: str, data: Path | None, rows: int, validation: int) -> dict[str, Any]:
    """So many rows of "train" and "validation", drawn at random, as dictionaries of texts; of tweets, "labels" too."""
    if source == "docstrings":
        from ftloop.data.samples import build_docstrings

        found = {split: _json_lines(build_docstrings() / f"{split}.jsonl") for split in ("train", "validation")}
        found = {
            split: [{"text": row["text"], "label": row["library"]} for row in part] for split, part in found.items()
        }
    elif source == "tweets":
        found = _tweets(data) if data else made_tweets(rows, validation)
    else:
        found = _pairs(data) if data else made_pairs(rows, validation)
    for split, count in (("train", rows), ("validation", validation)):
        if count > len(found[split]):
            raise SystemExit(f"{source}: {count} rows of {split} are wanted, and there are {len(found[split])}")
        found[split] = random.Random(SEED).sample(found[split], count)
    return found


def _json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _pairs(data: Path) -> dict[str, Any]:
    """The sentence pairs of benchmarks/pairs.py."""
    from benchmarks import pairs

    rng = random.Random(pairs.SEED)
    parts = pairs.split(pairs.read_intents(data / "banking77" / "train.csv"), rng)
    names = ("sentence1", "sentence2", "label")
    return {
        split: [dict(zip(names, row, strict=True)) for row in pairs.make_pairs(intents, pairs.SIZES[split], rng)]
        for split, intents in parts.items()
    }


def _tweets(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"labels": (data / "goemotions" / "labels.txt").read_text().split()}
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        lines = (data / "goemotions" / file).read_text(encoding="utf-8").splitlines()
        cells = [line.split("\t") for line in lines]
        found[split] = [{"text": text, "label": labels} for text, labels, _ in cells]
    return found


def made_text(rng: random.Random, tokens: float) -> str:
    return " ".join(rng.choices(WORDS, k=max(2, round(tokens))))


def made_pairs(train: int, validation: int) -> dict[str, Any]:
    """Pairs of 53 tokens, and a third of padding in random batches of 32, as MRPC's. The label is in the first word."""
    rng, found = random.Random(SEED), {}
    for split, count in (("train", train), ("validation", validation)):
        texts = [(made_text(rng, rng.gauss(25, 9)), made_text(rng, rng.gauss(25, 9))) for _ in range(count)]
        found[split] = [
            {"sentence1": one, "sentence2": two, "label": ("same", "different")[WORDS.index(one.split()[0]) % 2]}
            for one, two in texts
        ]
    return found


def made_tweets(train: int, validation: int) -> dict[str, Any]:
    """Texts of 22 tokens, and 57 % of padding in random batches of 32. The labels are in the first two words."""
    rng, found = random.Random(SEED), {"labels": [f"label{number}" for number in range(28)]}
    for split, count in (("train", train), ("validation", validation)):
        texts = [made_text(rng, rng.lognormvariate(2.9, 0.5)) for _ in range(count)]
        labels = [{WORDS.index(word) % 28 for word in text.split()[:2]} for text in texts]
        found[split] = [
            {"text": text, "label": ",".join(map(str, sorted(of)))} for text, of in zip(texts, labels, strict=True)
        ]
    return found


def lengths_of(job: Job) -> list[int]:
    """The tokens of each row, in the order of the file; of images, none."""
    if not job.text_columns:
        return []
    from transformers import AutoTokenizer

    with Path(job.train).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    texts = [[row[column] for row in rows] for column in job.text_columns]
    encoded = AutoTokenizer.from_pretrained(job.model)(*texts, truncation=True, max_length=job.max_length)
    return [len(ids) for ids in encoded["input_ids"]]


def tokens_of(job: Job) -> str:
    """The mean number of tokens of a row, and how much of a random batch is padding: what grouping has to gain from."""
    lengths = lengths_of(job)
    if not lengths:
        return ""
    batches = [lengths[start : start + job.batch_size] for start in range(0, len(lengths), job.batch_size)]
    padding = 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
    return f", {sum(lengths) / len(lengths):.0f} tokens a row, {padding:.0%} of a random batch is padding"


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_images(folder: Path, rows: int) -> None:
    """JPEGs with the detail of photographs (some 60 KB), half of them in each of two class folders."""
    import numpy
    from PIL import Image

    rng = numpy.random.default_rng(SEED)
    for number in range(rows):
        small = Image.fromarray(rng.integers(0, 256, (13, 15, 3), numpy.uint8))
        pixels = numpy.asarray(small.resize((460, 391), Image.Resampling.BICUBIC)) + rng.normal(0, 12, (391, 460, 3))
        file = folder / ("one", "two")[number % 2] / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(file, quality=90)


def make_bert(model: str, shape: dict[str, int], folder: Path) -> str:
    """A folder with a random BERT of this shape and the tokenizer of a text model."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(SEED)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# ---- by whom


class Rival(NamedTuple):
    kind: str
    options: dict[str, Any]  # of ftloop: {"words": command line}; of the Trainer: TrainingArguments, and "kernels"


def ftloop(*words: str) -> Rival:
    return Rival("ftloop", {"words": list(words)})


DEFAULT_KERNELS = ("--matmul", "default", "--no-keep-memory")
GROUPED = {"train_sampling_strategy": "group_by_length"}
RIVALS = {
    "limit": Rival("limit", {}),
    "limit+kernels": Rival("limit", {"kernels": True}),  # what ftloop does on this kind of machine, set by hand
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
    "ftloop-random": ftloop("--batching", "random", *DEFAULT_KERNELS),  # like for like
    "ftloop-random+kernels": ftloop("--batching", "random"),
    "ftloop-bf16": ftloop("--precision", "bf16"),
    "ftloop-random-bf16": ftloop("--batching", "random", "--precision", "bf16"),
    "ftloop-compile-bf16": ftloop("--precision", "bf16", "--compile"),
    "ftloop-packing-bf16": ftloop("--precision", "bf16", "--task.packing"),
    "ftloop-packing": ftloop("--task.packing"),
    "ftloop-workers0": ftloop("--workers", "0"),
}


def rival_of(name: str) -> Rival:
    """A name of RIVALS, or one with options of its own: "ftloop:--batching tokens --max-tokens 4096",
    "trainer:dataloader_num_workers=4 bf16=true"."""
    base, colon, more = name.partition(":")
    if base not in RIVALS:
        raise SystemExit(f"{name!r} is no rival; there are {', '.join(RIVALS)}, or NAME:OPTIONS")
    rival = RIVALS[base]
    if not colon:
        return rival
    if rival.kind == "ftloop":
        return ftloop(*rival.options["words"], *more.split())
    pairs = (word.partition("=") for word in more.split())
    return Rival(rival.kind, rival.options | {key: json.loads(value or "true") for key, _, value in pairs})


class Clock:
    """Notes when the first forward pass begins and when each optimizer step ends, in whatever loop.

    It must not import torch itself, for a program may set things before it does. So it stands among the finders of
    modules, finds nothing, and is asked for each module that is imported, until torch is there.
    """

    def __init__(self, after_step: Callable[["Clock"], None] = lambda clock: None, waits_every: int | None = None):
        self.instants: list[float] = []  # of the first forward pass, and of the end of each step
        self.after_step = after_step
        self.waits_every = waits_every  # steps between waits for the GPU, which is behind by some; none: never
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        self.find_spec("")  # torch may be there already

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        module, optimizer = (sys.modules.get(f"torch.{name}") for name in ("nn.modules.module", "optim.optimizer"))
        names = ("register_module_forward_pre_hook", "register_optimizer_step_post_hook")
        if hasattr(module, names[0]) and hasattr(optimizer, names[1]):
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            self.handles = [getattr(module, names[0])(self.begin), getattr(optimizer, names[1])(self.step)]

    def begin(self, module: Any, inputs: Any) -> None:
        self.instants.append(time.perf_counter())
        self.handles[0].remove()

    def step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        if self.waits_every and len(self.instants) % self.waits_every == 0:
            sys.modules["torch"].cuda.synchronize()
        self.instants.append(time.perf_counter())
        self.after_step(self)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def memory() -> dict[str, float]:
    """Megabytes of this process: all that is resident, at most so far, and what is its own (no file, no library)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident": "VmRSS", "peak": "VmHWM", "own": "RssAnon"}
    return {name: round(int(lines[key].split()[0]) / 1024, 1) for name, key in names.items()}


WORK_OFF = "benchmarks.speed:work_off"


def work_off(options: dict[str, Any]) -> dict[str, Any]:
    """Train in this process, as the fields of a Job say: the seconds of each epoch and each step, and the memory."""
    job = Job(**options)
    seen: list[tuple[int, dict[str, float]]] = []

    def look(clock: Clock) -> None:
        if job.rss_every and (len(clock.instants) - 1) % job.rss_every == 0:
            seen.append((len(clock.instants) - 1, memory()))

    clock = Clock(look, waits_every=job.steps if job.gpu else None)
    run(job)
    total = job.max_steps or job.epochs * job.steps
    if len(clock.instants) != total + 1:
        raise RuntimeError(f"{len(clock.instants) - 1} optimizer steps, and {total} were to be done")
    ends = clock.instants[:: job.steps] if job.max_steps is None else [clock.instants[0], clock.instants[-1]]
    return {
        "epochs": [after - before for before, after in itertools.pairwise(ends)],
        "steps": [after - before for before, after in itertools.pairwise(clock.instants)],
        "memory": memory(),
        "memory by step": seen,
    }


def run(job: Job) -> None:
    """Train as a rival does."""
    {"limit": run_limit, "course": run_course, "trainer": run_trainer, "ftloop": run_ftloop}[job.kind](job)


def use_kernels(model: Any, bf16: bool = False) -> None:
    """What ftloop does on this machine by itself."""
    from ftloop.devices.attention import use_eager_attention
    from ftloop.devices.keep_memory import keep_freed_memory
    from ftloop.devices.matmul_probe import fastest_backend
    from ftloop.devices.matmul_settings import set_matmul_backend

    device = next(model.parameters()).device
    keep_freed_memory(device)
    backend = "default" if bf16 or device.type != "cpu" else fastest_backend()
    set_matmul_backend(backend)
    if backend == "onednn":
        use_eager_attention(model)


def words_of_ftloop(job: Job) -> list[str]:
    """The command line of train.py, without options of the variant."""
    words = ["--run-dir", f"{job.folder}/run", "--seed", str(job.seed), "--no-report"]
    words += [] if job.validation else ["--task.data.validation", "0"]
    words += ["--batch-size", str(job.batch_size), "--epochs", str(job.epochs), "--eval-every", str(NEVER)]
    words += ["--max-steps", str(job.max_steps)] if job.max_steps else []
    words += ["--warmup", "0", "--task.model", job.model]
    if not job.text_columns:
        options = [f"{name}={value}" for name, value in job.shape.items()]
        return [
            *("configs/image.py", "--task.init", "random", "--task.model-options", *options),
            *("--task.data.path", job.train, *words),
        ]
    words += ["--task.text-columns", *job.text_columns, "--task.max-length", str(job.max_length)]
    if job.label_separator:
        words += ["--task.label-separator", job.label_separator, "--task.label-names", str(job.label_names)]
    validation = ["validation", job.validation] if job.validation else []
    return ["configs/text.py", "--task.data.files", "train", job.train, *validation, *words]


def run_script(script: str, words: list[str]) -> None:
    """`python SCRIPT WORDS` in this process, at the root of the project. Raises SystemExit unless it ends well."""
    os.chdir(ROOT)
    sys.argv = [script, *words]
    sys.path[0] = str(ROOT)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as leaving:
        if leaving.code:
            raise


def run_ftloop(job: Job) -> None:
    run_script("train.py", [*words_of_ftloop(job), *job.options["words"], *job.words])


# ---- the peers, as their users write them


def peers_rows(job: Job, train: str | None = None) -> tuple[Any, Any, list[str]]:
    """The rows as a peer has them (a Dataset, of images with a transform), its collator, the names of the labels."""
    from datasets import Dataset, load_dataset
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from benchmarks import beside_trainer

    train = train or job.train
    if job.text_columns:
        several = job.label_separator is not None
        source = beside_trainer.Job(
            *(job.model, train, train),
            problem="multi" if several else "single",
            label_separator=job.label_separator or ",",
            label_names=job.label_names,
        )
        cells, tokenizer = beside_trainer.read(source, train), AutoTokenizer.from_pretrained(job.model)
        texts = [cells[column].tolist() for column in job.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=job.max_length)
        names = beside_trainer.name_labels(source, beside_trainer.read(source, job.train)["label"])
        labels = beside_trainer.encode_labels(source, cells["label"], names)
        return Dataset.from_dict({**encoded, "labels": labels}), DataCollatorWithPadding(tokenizer), names

    rows = load_dataset("imagefolder", data_dir=train, split="train")
    return rows.with_transform(Pixels(job.shape["image_size"])), stack, list(rows.features["label"].names)


class Pixels:
    """The transform of a set of images; its workers may be processes that get it by pickle."""

    def __init__(self, size: int):
        import torch
        from torchvision.transforms import v2

        self.change = v2.Compose(
            [
                v2.RGB(),
                v2.RandomResizedCrop(size),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixel_values": [self.change(image) for image in batch["image"]], "labels": batch["label"]}


def stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixels, "labels": torch.tensor([example["labels"] for example in examples])}


def peers_model(job: Job, names: list[str]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    torch.manual_seed(job.seed)
    if job.text_columns:
        problem = "multi_label_classification" if job.label_separator else "single_label_classification"
        model = AutoModelForSequenceClassification.from_pretrained(
            job.model, dtype=torch.float32, num_labels=len(names), problem_type=problem
        )
    else:
        config = AutoConfig.for_model(job.model, **job.shape, num_labels=len(names))
        if job.model == "deit":
            config.architectures = ["DeiTForImageClassification"]  # of two that there are, the one without a teacher
        model = AutoModelForImageClassification.from_config(config)
    if job.options.get("kernels"):
        use_kernels(model, bool(job.options.get("bf16")))
    return model


class SameOrder:
    """A sampler with ftloop's random order: of batches drawn otherwise, another share would be padding."""

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed, self.epoch = rows, seed, 0

    def __len__(self) -> int:
        return self.rows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        from ftloop.sampler import rows_served

        served = rows_served(self.rows, self.seed, self.epoch, 0, self.rows)
        self.epoch += 1
        return iter(served)


def run_limit(job: Job) -> None:
    for _ in limit_steps(job):
        pass


def limit_steps(job: Job) -> Iterator[None]:
    """Forward, backward, clip and fused AdamW, on batches of tensors: all is ready, and then one step at each turn."""
    import torch

    rows, collate, names = peers_rows(job)
    device = "cuda" if job.gpu else "cpu"
    model, order = peers_model(job, names).to(device), SameOrder(job.rows, job.seed)
    epochs = [list(order) for _ in range(job.epochs)]
    batches = [
        {name: value.to(device) for name, value in collate([rows[row] for row in served[start:end]]).items()}
        for served in epochs
        for start, end in itertools.pairwise([*range(0, job.rows, job.batch_size), job.rows])
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    model.train()
    half = torch.autocast(device, torch.bfloat16, enabled=bool(job.options.get("bf16")))
    yield
    for batch in batches:
        with half:
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


def run_course(job: Job) -> None:
    """https://huggingface.co/learn/llm-course/chapter3/4, with accelerate."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm
    from transformers import get_scheduler

    rows, collate, names = peers_rows(job)
    if job.text_columns:
        rows.set_format("torch")
    accelerator, model = Accelerator(), peers_model(job, names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    loader = DataLoader(rows, job.batch_size, sampler=SameOrder(job.rows, job.seed), collate_fn=collate)
    loader, model, optimizer = accelerator.prepare(loader, model, optimizer)
    steps = job.epochs * len(loader)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    bar = tqdm(range(steps))
    model.train()
    for _ in range(job.epochs):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update(1)


def run_trainer(job: Job) -> None:
    """The Trainer with its defaults: in random order, that of SameOrder. Grouping by length, it gets mega-batches of 50
    batches, as on any set of 200 batches and more: on the few rows of an epoch here it would sort four at a time."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_pt_utils import get_length_grouped_indices

    rows, collate, names = peers_rows(job)
    grouped = "train_sampling_strategy" in job.options

    class ByLength(SameOrder):
        def __iter__(self) -> Iterator[int]:
            return iter(get_length_grouped_indices(lengths, job.batch_size, mega_batch_mult=50))

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return (ByLength if grouped else SameOrder)(job.rows, job.seed)

    lengths = [len(ids) for ids in rows["input_ids"]] if grouped else []
    arguments = TrainingArguments(
        f"{job.folder}/trainer",
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        remove_unused_columns=bool(job.text_columns),
        use_cpu=not job.gpu,  # or it refuses bf16
        save_strategy="no",
        report_to="none",
        seed=job.seed,
        **{name: value for name, value in job.options.items() if name != "kernels"},
    )
    Ordered(peers_model(job, names), arguments, data_collator=collate, train_dataset=rows).train()


# ---- in which order


Measured = dict[str, list[dict[str, Any]]]  # by rival, a result for each round; {"failed": why} where there is none


def run_child(function: str, folder: Path, given: Common, *arguments: Any, processes: int = 1) -> dict[str, Any]:
    """What a function (MODULE:NAME) returns, called with arguments of JSON in a process of its own, or in several that
    train together: then that of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "run", ignore_errors=True)  # of the round before
    task, out = folder / "task.json", folder / "out.json"
    task.write_text(json.dumps([function, arguments]))
    out.unlink(missing_ok=True)
    own = {**ENVIRONMENT, "OMP_NUM_THREADS": str(max(1, given.threads // processes)), "PYTHONPATH": str(ROOT)}
    own |= {} if given.gpu else NO_GPU
    own["HF_DATASETS_CACHE"] = str(folder / "cache")
    if processes > 1:
        own |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = []
    for rank in map(str, range(processes)):
        ranks = {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        said = folder / f"said{rank}.txt"
        said.write_text("")
        running.append(start(task, out, said, own | ranks, given.preload))
    ended = time.monotonic() + LIMIT
    while any(alive(process) for process in running) and time.monotonic() < ended:
        time.sleep(0.05)
    for process in running:
        if alive(process):
            process.kill()
            return {"failed": f"it took more than {LIMIT} s"}
    return json.loads(out.read_text()) if out.exists() else {"failed": why((folder / "said0.txt").read_text())}


def alive(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def start(task: Path, out: Path, said: Path, own: dict[str, str], preload: bool) -> Any:
    """A new process, or one forked from that which has imported the libraries."""
    if preload:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTS))
        process = context.Process(target=forked, args=(task, out, said, own))
        process.start()
        return process
    with said.open("w") as words:
        command = [sys.executable, "-m", "benchmarks.speed", str(task), str(out)]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, stdout=words, stderr=subprocess.STDOUT)


def forked(task: Path, out: Path, said: Path, own: dict[str, str]) -> None:
    import datasets
    import torch

    with said.open("w") as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
    os.environ |= own
    datasets.config.HF_DATASETS_CACHE = Path(own["HF_DATASETS_CACHE"])
    torch.set_num_threads(int(own["OMP_NUM_THREADS"]))
    respond(task, out)


def respond(task: Path, out: Path) -> None:
    """What a child process does."""
    (name, arguments), rank = json.loads(task.read_text()), os.environ.get("RANK", "0")
    module, _, function = name.partition(":")
    result = getattr(importlib.import_module(module), function)(*arguments)
    if rank == "0":
        aside = out.with_suffix(".tmp")
        aside.write_text(json.dumps(result))
        aside.rename(out)


def free_port() -> int:
    import socket

    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def why(said: str) -> str:
    """The line that tells most of what a process said before it failed."""
    lines = [line.strip(" │╭╰─╮╯") for line in said.splitlines()]
    lines = [line for line in lines if line and "%|" not in line]
    telling = [line for line in lines if "rror" in line or "nrecognized" in line]
    return (telling or lines or ["it ended without a word"])[-1].replace("|", "/")[:160]


def in_rounds(rivals: Sequence[str], rounds: int, measure: Callable[[str], dict[str, Any]]) -> Measured:
    """Measure each rival once a round; each round begins with the next one. What is measured is said as it comes."""
    found: Measured = {rival: [] for rival in rivals}
    for number in range(rounds):
        start = number % len(rivals)
        for rival in (*rivals[start:], *rivals[:start]):
            began = time.perf_counter()
            result = measure(rival)
            found[rival].append(result)
            seconds = time.perf_counter() - began
            said = f"failed: {result['failed']}" if "failed" in result else "done"
            print(f"round {number + 1}/{rounds}, {rival}: {said} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def variant(job: Job, name: str) -> Job:
    """A prepared work, as a rival does it, in a folder of its own."""
    rival, folder = rival_of(name), "".join(letter if letter.isalnum() else "_" for letter in name)
    return replace(job, kind=rival.kind, options=rival.options, folder=str(Path(job.folder, folder)))


def measure_work(job: Job, given: Common, work: Work, rivals: Sequence[str]) -> Measured:
    """The rivals on a prepared work: "ms", the median over its timed epochs of the milliseconds per step."""

    def measure(name: str) -> dict[str, Any]:
        own = variant(job, name)
        result = run_child(WORK_OFF, Path(own.folder), given, asdict(own))
        if "failed" not in result:
            seconds = statistics.median(result["epochs"][work.warm_up :])
            result |= {"ms": 1000 * seconds / own.steps, "rows per second": own.rows / seconds}
        return result

    return in_rounds(rivals, given.rounds, measure)


# ---- tables


class Spread(NamedTuple):
    median: float
    least: float
    most: float

    def shown(self, digits: int = 2) -> str:
        if self.least == self.most:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def values_of(measured: Measured, rival: str, name: str) -> list[float]:
    """A value in each round in which the rival did not fail."""
    return [result[name] for result in measured.get(rival, []) if name in result]


def ratio(measured: Measured, above: str, below: str, name: str) -> Spread | None:
    """Of a value, round by round; none where one of the two failed or was not measured."""
    pairs = zip(measured.get(above, []), measured.get(below, []), strict=False)
    return spread([one[name] / other[name] for one, other in pairs if name in one and name in other])


def failure(measured: Measured, rival: str) -> str | None:
    """Why a rival failed in every round, or none."""
    said = [result.get("failed") for result in measured[rival]]
    return said[0] if said and all(said) else None


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def table(measured: Measured, name: str = "ms", unit: str = "ms a step", digits: int = 1) -> str:
    """A line for each rival: the value, as a time of the limit's, and as a speed of the Trainer's (both by time)."""
    rows = []
    for rival in measured:
        said = failure(measured, rival)
        cells = [spread(values_of(measured, rival, name))]
        cells += [ratio(measured, rival, "limit", name), ratio(measured, "trainer", rival, name)]
        shown = ["-" if cell is None else cell.shown(digits if not number else 2) for number, cell in enumerate(cells)]
        rows.append([rival, f"failed: {said}" if said else shown[0], *shown[1:]])
    return markdown(("rival", unit, "time, of limit", "speed, of trainer"), rows)


class Goal(NamedTuple):
    """A figure to beat: `quantity` is time (ours / theirs, at most) or speed (theirs / ours, at least). Of several
    rivals, the fastest counts."""

    ours: str
    theirs: tuple[str, ...]
    quantity: str
    bound: float

    def verdict(self, measured: Measured, name: str = "ms") -> str:
        others = [rival for rival in self.theirs if values_of(measured, rival, name)]
        if not others or not values_of(measured, self.ours, name):
            return f"{self.quantity}, {self.ours} / {' or '.join(self.theirs)}: not measured"
        best = min(others, key=lambda rival: statistics.median(values_of(measured, rival, name)))
        pair = (self.ours, best) if self.quantity == "time" else (best, self.ours)
        found = ratio(measured, *pair, name)
        reached = found.median <= self.bound if self.quantity == "time" else found.median >= self.bound
        word = "at most" if self.quantity == "time" else "at least"
        return (
            f"{self.quantity}, {self.ours} / {best}: {found.shown(3)}, {word} {self.bound} wanted"
            f"{'' if reached else ' - NOT REACHED'}"
        )


def machine(given: Common) -> dict[str, Any]:
    """What is measured on, and with which versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "threads": given.threads,
        "load": round(os.getloadavg()[0], 1),  # of others, before it begins
        **({"gpu": gpu()} if given.gpu else {}),
        "python": sys.version.split()[0],
        **{library: version(library) for library in LIBRARIES},
    }


def gpu() -> str:
    """Its name, or an error: without one there is nothing to measure."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here that torch can use")
    return torch.cuda.get_device_name()


def report(given: Common, found: dict[str, Any], seen: dict[str, Any]) -> None:
    """Write the JSON, if asked for."""
    if given.json is not None:
        whole = {"machine": seen, "options": asdict(given), **found}
        given.json.write_text(json.dumps(whole, indent=1, default=str) + "\n")


def begin(given: Common) -> dict[str, Any]:
    """Say on what is measured; the machine, for `report`."""
    seen = machine(given)
    print(", ".join(f"{name} {value}" for name, value in seen.items()), flush=True)
    return seen


def workplace() -> tempfile.TemporaryDirectory:
    """A folder that goes when all is measured; it is on the disk that TMPDIR names."""
    return tempfile.TemporaryDirectory(prefix="ftloop-speed-")


if __name__ == "__main__":
    respond(*map(Path, sys.argv[1:]))
