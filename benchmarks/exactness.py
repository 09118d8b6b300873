"""The Hugging Face Trainer and accelerate's own recipes beside ftloop, where results should not depend on the division
of a batch, on the number of processes, or on an interruption. One table: the peer's difference, and ours.

    python -m benchmarks.exactness                                 all of it, on one core of a CPU, some 4 minutes
    python -m benchmarks.exactness --facts F1 F5 --out table.json

F1  the loss and the gradient norm of one optimizer step, however it is divided into micro-batches (transformers#47688)
F2  ViT: the weights after `load_best_model_at_end`, and after a resumed training (transformers#43701, #40187)
F3  the evaluation loss of two processes, by batch size (transformers#39241); F1's factor comes on top with the defaults
F4  accelerate's documented resume: which rows are served after it (accelerate#2016)
F5  the Trainer's resume in the middle of an epoch: killed, with rows changed at random, and after SIGTERM
F7  accelerate's recipes of resuming, with random augmentation of images, and without: then the order alone counts

Each run is a process of its own, and both sides take the same tiny random model, rows, collator and settings. A run
is interrupted by a signal in the forward pass of its eleventh step, from a hook that does not know whose loop it is in.
Exit status 1 if a value of ftloop's is off by more than rounding. All is measured with the versions installed.
"""

import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ftloop import Config
from ftloop.data import Data
from ftloop.data.prepared import PreparedDataset
from ftloop.tasks import Classification, ImageClassification, TextClassification

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's allocator: no thread in a process that forks
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the same bits on any machine
    "ACCELERATE_USE_CPU": "1",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # what is killed leaves a semaphore of tqdm behind
}
# Imported once, in a process without threads from which those of the runs are forked: seconds less for each of them.
IMPORTS = (
    *(
        "torch",
        "datasets",
        "accelerate",
        "safetensors.torch",
        "torchvision.transforms.v2",
        "transformers.trainer",
    ),
    *(
        "transformers.models.bert.modeling_bert",
        "transformers.models.vit.modeling_vit",
        "ftloop.loop",
    ),
)
LIBRARIES = ("torch", "transformers", "accelerate")
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
WORDS = ["the", "a", "sky", "grass", "sea", "rose", "is", "was", "very", "quite", "not", "pale"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
ROWS = {"train": 43, "validation": 43}  # no batch size used here divides it
BATCH_SIZE, EPOCHS, LEARNING_RATE, SEED = 8, 3, 5e-3, 7
EPOCH = math.ceil(ROWS["train"] / BATCH_SIZE)  # optimizer steps
SAVE_EVERY = 4  # optimizer steps
END_IN = 11  # the optimizer step in which a run is ended: it goes on from step 8, in the middle of an epoch
NOTICE = 4  # seconds that this step lasts then: the Trainer heeds a SIGTERM after three, and its steps are long
EVAL_BATCH_SIZES = (4, 5, 7, 16)
ROUNDING = 1e-5  # relative, of float32


@dataclass(frozen=True)
class Options:
    """What is compared."""

    facts: tuple[str, ...] = ("F1", "F2", "F3", "F4", "F5", "F7")
    out: Path | None = None  # the table as JSON


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fact: str
    peer: str
    done: str
    measured: str
    right: float
    peers: float  # value
    ours: float
    rounding: float = 0.0  # relative difference that is none

    @property
    def differences(self) -> tuple[float, float]:
        """The peer's and ours, from the right value."""
        return abs(self.peers - self.right), abs(self.ours - self.right)

    @property
    def exact(self) -> bool:
        """Whether ftloop has the right value."""
        return self.differences[1] <= self.rounding * abs(self.right)


def table(rows: list[Row]) -> str:
    """Markdown."""
    heads = (
        "what was done",
        "measured",
        "right",
        "peer",
        "the peer's",
        "difference",
        "ftloop's",
        "difference",
    )
    lines = [f"| | {' | '.join(heads)} |", "|---|---|---|---:|---|---:|---:|---:|---:|"]
    for row in rows:
        theirs, ours = map(shown, row.differences)
        cells = [row.fact, row.done, row.measured, shown(row.right), row.peer]
        lines.append(f"| {' | '.join([*cells, shown(row.peers), theirs, shown(row.ours), ours])} |")
    return "\n".join(lines)


def shown(value: float) -> str:
    return f"{value:.5g}" if abs(value) >= 1e-3 else f"{value:.1e}" if value else "0"


# ---- what is trained


def make_data(folder: Path) -> None:
    """Sentences with a colour each, a tiny BERT for them, and coloured images, into data/ beside the folder.

    The labels of train are the colours, those of validation are drawn at random: the more a model learns, the greater
    its loss there, so that the best checkpoint is the first one and the losses of the rows differ widely.
    """
    import numpy
    import torch
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    draw, noise, data = random.Random(0), numpy.random.default_rng(0), folder.parent / "data"
    data.mkdir()
    for split, count in ROWS.items():
        rows = []
        for number in range(count):
            colour = list(COLOURS)[number % 3]
            label = colour if split == "train" else draw.choice(list(COLOURS))
            words = draw.sample(WORDS, draw.randint(3, 11))
            rows.append({"text": " ".join([*words[:2], colour, *words[2:]]), "label": label})
            pixels = numpy.array(COLOURS[colour]) + noise.integers(-90, 91, (20, 24, 3))
            image = data / "images" / split / label / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(image)
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "sixteen.jsonl").write_text(
        "".join((data / "train.jsonl").read_text().splitlines(keepends=True)[:16])
    )

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS, *COLOURS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **names).save_pretrained(
        data / "bert"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), pad_token_id=0, num_labels=3, initializer_range=0.1, **SIZES
    )
    BertForSequenceClassification(config).save_pretrained(data / "bert")


@dataclass(frozen=True)
class HiddenWords(TextClassification):
    """Texts in which a fifth of the words is hidden, drawn anew whenever a row is read."""

    def build_dataset(self, prepared: Any, labels: list[Any] | None, split: str) -> PreparedDataset:
        dataset = super().build_dataset(prepared, labels, split)
        options = {"transform": hide_words, "is_deterministic": False}
        return PreparedDataset(dataset.table, dataset.lengths, **options)


def hide_words(example: dict[str, Any]) -> dict[str, Any]:
    """Replace a random fifth of the words by the unknown token."""
    import torch

    ids = torch.tensor(example["input_ids"])
    is_hidden = (torch.rand(ids.shape) < 0.2) & (ids > 3)  # no special token
    return {**example, "input_ids": ids.masked_fill(is_hidden, 1).tolist()}


def task_of(kind: str, data: Path) -> Classification:
    """The task that both sides learn: the Trainer and accelerate take its rows, its collator and its model."""
    train, bert = {"train": str(data / "train.jsonl")}, str(data / "bert")
    if kind == "sixteen rows":
        source = Data(files={"train": str(data / "sixteen.jsonl")}, validation=0)
        return TextClassification(model=bert, data=source, max_length=32, dropout=0.0)
    if kind == "texts with validation":
        source = Data(files={**train, "validation": str(data / "validation.jsonl")})
        return TextClassification(model=bert, data=source, max_length=32)
    if kind in ("texts", "hidden words"):
        made_by = HiddenWords if kind == "hidden words" else TextClassification
        return made_by(model=bert, data=Data(files=train, validation=0), max_length=32, dropout=0.1)
    source = Data(path=str(data / "images")) if kind == "images with validation" else None
    return ImageClassification(
        model="vit",
        init="random",
        model_options={**SIZES, "patch_size": 4},
        image_size=16,
        data=source or Data(path=str(data / "images" / "train"), validation=0),
        augment=("crop", "flip") if kind == "augmented images" else (),
        dropout=0.0,
    )


def watch(end: str | None) -> list[list[str]]:
    """Record what each training step of a classifier is given from now on: a digest for each row of the forward pass,
    in whatever loop that is. `end`: the name of a signal to send to this process in the forward pass of step END_IN."""
    from transformers import BertForSequenceClassification, ViTForImageClassification

    served: list[list[str]] = []

    def watched(forward: Callable) -> Callable:
        @functools.wraps(forward)  # the Trainer reads its signature
        def recorded(self: "torch.nn.Module", *arguments: Any, **inputs: Any) -> Any:
            if self.training:
                rows = inputs.get("pixel_values")
                if rows is None:  # texts are what they are without their padding
                    pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
                    rows = [ids[mask.bool()] for ids, mask in pairs]
                served.append(
                    [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in rows]
                )
                if end is not None and len(served) == END_IN:
                    os.kill(os.getpid(), signal.Signals[end])
                    time.sleep(NOTICE)
            return forward(self, *arguments, **inputs)

        return recorded

    for classifier in (BertForSequenceClassification, ViTForImageClassification):
        classifier.forward = watched(classifier.forward)
    return served


def save_weights(model: "torch.nn.Module | dict[str, torch.Tensor]", folder: Path) -> None:
    """The final weights, by their names in memory."""
    from safetensors.torch import save_file

    weights = model if isinstance(model, dict) else model.state_dict()
    save_file(
        {name: value.contiguous() for name, value in weights.items()},
        folder / "weights.safetensors",
    )


def count_differing(
    weights: dict[str, "torch.Tensor"], others: dict[str, "torch.Tensor"]
) -> list[int]:
    """How many tensors are not the same, and of how many."""
    import torch

    assert weights.keys() == others.keys()
    return [sum(not torch.equal(weights[name], others[name]) for name in weights), len(weights)]


# ---- one run, by each of the three loops. Every function from here to the experiments runs in a process of its own,
# takes its folder and returns what JSON can hold; the data lie beside the folder.


def build_trainer(task: Classification, folder: Path, splits: Any, **options: Any) -> "Trainer":
    """The Trainer with the settings of `train_ours`, unless `options` say otherwise."""
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(SEED)
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder / "trainer"),
            "per_device_train_batch_size": BATCH_SIZE,
            "num_train_epochs": EPOCHS,
            "learning_rate": LEARNING_RATE,
            "weight_decay": 0.01,
            "seed": SEED,
            "save_strategy": "steps",
            "save_steps": SAVE_EVERY,
            "logging_steps": 1,
            "enable_jit_checkpoint": True,  # a checkpoint at SIGTERM
            "remove_unused_columns": False,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        }
    )
    return Trainer(
        task.build_model(),
        arguments,
        data_collator=task.collate,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
    )


def train_trainer(folder: Path, kind: str, end: str | None = None) -> dict[str, Any]:
    """Train by the Trainer, from the last checkpoint in the folder if there is one."""
    from transformers.trainer_utils import get_last_checkpoint

    task, served = task_of(kind, folder.parent / "data"), watch(end)
    trainer = build_trainer(task, folder, task.load_datasets())
    before = folder / "trainer"
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(str(before)) if before.is_dir() else None
    )
    save_weights(trainer.model, folder)
    return {"served": served}


def train_ours(folder: Path, kind: str, end: str | None = None, **options: Any) -> dict[str, Any]:
    """Train by ftloop; the same call goes on with what the folder holds."""
    from ftloop import checkpoint, train

    served = watch(end)
    settings = {
        "batch_size": BATCH_SIZE,
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
    }
    settings |= {"save_every": SAVE_EVERY, **options}
    train(
        Config(task=task_of(kind, folder.parent / "data"), run_dir=str(folder / "run"), **settings)
    )
    save_weights(
        checkpoint.load_weights(checkpoint.find_checkpoints(folder / "run" / "checkpoints")[-1]),
        folder,
    )
    return {"served": served}


def train_accelerate(
    folder: Path, kind: str, seedable: bool, skip: bool, end: str | None = None
) -> dict[str, Any]:
    """Train as accelerate's guide to checkpoints and its examples do: save_state every few steps, and load_state.

    `seedable`: with use_seedable_sampler and set_epoch. `skip`: the batches before the checkpoint by
    skip_first_batches, else by going through them (examples/by_feature/checkpointing.py).
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    task, served = task_of(kind, folder.parent / "data"), watch(end)
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable)
    )
    set_seed(SEED)
    rows, model = task.load_datasets()["train"], task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(rows, shuffle=True, batch_size=BATCH_SIZE, collate_fn=task.collate)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, EPOCHS * EPOCH)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    step, starting_epoch, resume_step = 0, 0, 0
    saved = sorted(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name.removeprefix("step_"))
        starting_epoch, resume_step = divmod(step, len(loader))
    for epoch in range(starting_epoch, EPOCHS):
        model.train()
        active, passed = loader, resume_step if epoch == starting_epoch else 0
        if passed and skip:
            active, passed = accelerator.skip_first_batches(loader, passed), 0
        if seedable:
            active.set_epoch(epoch)
        for number, batch in enumerate(active):
            if number < passed:
                continue
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % SAVE_EVERY == 0:
                accelerator.save_state(str(folder / f"step_{step}"))
    save_weights(accelerator.unwrap_model(model), folder)
    return {"served": served}


# ---- F1: one optimizer step on sixteen rows, {"4x4": [loss, gradient norm]} for 4 rows at once, 4 times


def true_step(folder: Path) -> list[float]:
    """The mean loss of the rows, and the norm of its gradient, in float64."""
    import torch
    from transformers import AutoModelForSequenceClassification

    task = task_of("sixteen rows", folder.parent / "data")
    dataset = task.load_datasets()["train"]
    batch = task.collate([dataset[row] for row in range(len(dataset))])
    model = AutoModelForSequenceClassification.from_pretrained(task.model).double().eval()
    labels = batch.pop("labels")
    loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
    loss.backward()
    return [
        loss.item(),
        math.sqrt(sum(weight.grad.square().sum().item() for weight in model.parameters())),
    ]


def first_step_trainer(folder: Path, sizes: list[int]) -> dict[str, list[float]]:
    task, found = task_of("sixteen rows", folder.parent / "data"), {}
    for size in sizes:
        division = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
        trainer = build_trainer(
            task, folder, task.load_datasets(), max_steps=1, save_strategy="no", **division
        )
        trainer.train()
        log = trainer.state.log_history[0]
        found[f"{size}x{16 // size}"] = [log["loss"], log["grad_norm"]]
    return found


def first_step_ours(folder: Path, sizes: list[int]) -> dict[str, list[float]]:
    from ftloop import train

    found = {}
    for size in sizes:
        place = folder / str(size)
        options = {"batch_size": 16, "micro_batch_size": size, "max_steps": 1, "log_every": 1}
        config = Config(
            task=task_of("sixteen rows", folder.parent / "data"), run_dir=str(place), **options
        )
        train(config)
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        values = {line["name"]: line["value"] for line in lines if line["step"] == 1}
        found[f"{size}x{16 // size}"] = [values["loss"], values["grad_norm"]]
    return found


def compare_divisions(home: Path) -> list[Row]:
    """F1."""
    right = call(true_step, home / "true-step")
    peers = call(first_step_trainer, home / "first-step-trainer", sizes=[16, 4])
    ours = call(first_step_ours, home / "first-step-ours", sizes=[16, 4])
    names = ("loss of the step", "gradient norm")
    return [
        Row("F1", "Trainer", f"16 rows as {division}, BERT", measured, *values, ROUNDING)
        for division in peers
        for measured, *values in zip(names, right, peers[division], ours[division], strict=True)
    ]


# ---- F2: the best weights of a ViT


def best_trainer(folder: Path) -> dict[str, Any]:
    """Tensors of the model after `load_best_model_at_end` that are not those of the best checkpoint."""
    from transformers import AutoModelForImageClassification

    task = task_of("images with validation", folder.parent / "data")
    keeping = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = build_trainer(task, folder, task.load_datasets(), **keeping)
    trainer.train()
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    return {
        "differing": count_differing(trainer.model.state_dict(), best.state_dict()),
        "best": trainer.state.best_global_step,
    }


def best_ours(folder: Path) -> dict[str, Any]:
    """Tensors of model/ that are not those of the best checkpoint."""
    from transformers import AutoModelForImageClassification

    from ftloop import checkpoint

    train_ours(folder, "images with validation", save_every=None)
    checkpoints = folder / "run" / "checkpoints"
    best = checkpoint.load_state(checkpoint.find_checkpoints(checkpoints)[-1]).best_step
    kept = AutoModelForImageClassification.from_pretrained(folder / "run" / "model").state_dict()
    weights = checkpoint.load_weights(checkpoints / checkpoint.checkpoint_name(best))
    return {"differing": count_differing(kept, weights), "best": best}


def compare_best_weights(home: Path) -> list[Row]:
    """F2."""
    peers, ours = call(best_trainer, home / "best-trainer"), call(best_ours, home / "best-ours")
    if EPOCHS * EPOCH in (peers["best"], ours["best"]):
        raise RuntimeError(
            "the last checkpoint is the best one: loading it changes nothing, and shows nothing"
        )
    (theirs, count), (own, _) = peers["differing"], ours["differing"]
    what = "ViT, the best weights loaded at the end"
    rows = [
        Row(
            "F2",
            "Trainer",
            what,
            f"tensors that are not the best checkpoint's, of {count}",
            0,
            theirs,
            own,
        )
    ]
    peers, ours = (
        interrupted(train_trainer, home, "SIGKILL", kind="images"),
        interrupted(train_ours, home, "SIGKILL", kind="images"),
    )
    measured = f"final tensors that are not the uninterrupted run's, of {peers.tensors}"
    return [
        *rows,
        Row(
            "F2", "Trainer", "ViT, killed and resumed", measured, 0, peers.differing, ours.differing
        ),
    ]


# ---- F3: the loss on validation, by two processes


def true_loss(folder: Path, run: str) -> float:
    """The mean loss of the rows, each alone in its batch, in float64."""
    import torch
    from transformers import AutoModelForSequenceClassification

    task = task_of("texts with validation", folder.parent / "data")
    model = AutoModelForSequenceClassification.from_pretrained(run + "/model").double().eval()
    losses = []
    dataset = task.load_datasets()["validation"]
    for row in range(len(dataset)):
        batch = task.collate([dataset[row]])
        labels = batch.pop("labels")
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(**batch).logits, labels).item())
    return math.fsum(losses) / len(losses)


def loss_trainer(folder: Path, run: str, **options: Any) -> list[float]:
    """By the batch sizes per process."""
    task, found = task_of("texts with validation", folder.parent / "data"), []
    splits, kept = task.load_datasets(), task.from_finished_run(run + "/model")
    for size in EVAL_BATCH_SIZES:
        trainer = build_trainer(kept, folder, splits, per_device_eval_batch_size=size, **options)
        found.append(trainer.evaluate()["eval_loss"])
    return found


def loss_ours(folder: Path, run: str) -> list[float]:
    """As evaluate.py has it, by the batch sizes per process."""
    from ftloop.runs.finished import evaluate_run

    return [evaluate_run(run, "validation", size)["loss"] for size in EVAL_BATCH_SIZES]


def compare_evaluations(home: Path) -> list[Row]:
    """F3."""
    # The weights with the greatest loss are those that are most sure of themselves: the rows differ most in theirs.
    call(train_ours, home / "scored", kind="texts with validation", epochs=10, best_direction="max")
    run = str(home / "scored" / "run")
    right, ours = (
        call(true_loss, home / "true-loss", run=run),
        call(loss_ours, home / "loss-ours", 2, run=run),
    )
    # Both in one table: by default, the loss of a head that ignores num_items_in_batch is also multiplied by the
    # number of processes. That is F1, has nothing to do with the batch size, and would hide what has.
    ways = {
        "average_tokens_across_devices=False": {"average_tokens_across_devices": False},
        "defaults": {},
    }
    rows = []
    for way, options in ways.items():
        peers = call(loss_trainer, home / f"loss-trainer-{way}", 2, run=run, **options)
        for size, theirs, own in zip(EVAL_BATCH_SIZES, peers, ours, strict=True):
            what = f"BERT, {ROWS['validation']} rows scored by 2 processes, batch size {size}; Trainer: {way}"
            rows.append(Row("F3", "Trainer", what, "loss", right, theirs, own, ROUNDING))
    return rows


# ---- F4, F5, F7: interrupted and resumed


@dataclass(frozen=True)
class Interrupted:
    """A run that was interrupted and resumed, beside the one that was not."""

    whole: list[list[str]]  # what each step was given
    later: list[list[str]]  # the steps after the resume
    weights: float  # greatest difference of the final ones
    differing: int  # tensors of the final weights
    tensors: int

    @property
    def other_batches(self) -> int:
        """How many steps after the resume were not given what the uninterrupted run gave them."""
        return sum(
            mine != theirs
            for mine, theirs in zip(self.later, self.whole[-len(self.later) :], strict=True)
        )

    @property
    def repeated_rows(self) -> int:
        """How many rows were seen twice in the epoch that was interrupted, in place of as many that never were."""
        before = len(self.whole) - len(self.later)
        first = before // EPOCH * EPOCH
        seen = self.whole[first:before] + self.later[: first + EPOCH - before]
        rows = [row for batch in seen for row in batch]
        return len(rows) - len(set(rows))


@functools.cache  # several facts look at the same runs
def interrupted(train: Callable, home: Path, end: str, **options: Any) -> Interrupted:
    """Run a training whole, and once more with an end in its eleventh step, and the same call again."""
    from numpy import abs as magnitude
    from safetensors.numpy import load_file

    name = "-".join(
        [train.__name__, end, *(str(value).replace(" ", "_") for value in options.values())]
    )
    whole, cut = home / f"{name}-whole", home / f"{name}-cut"
    undisturbed = call(train, whole, **options)["served"]
    call(train, cut, end=end, **options)
    resumed = call(train, cut, **options)["served"]
    if not 0 < len(resumed) < len(undisturbed):
        raise RuntimeError(
            f"{train.__name__} was not resumed: {len(resumed)} steps after {len(undisturbed)}"
        )
    weights, expected = (
        load_file(cut / "weights.safetensors"),
        load_file(whole / "weights.safetensors"),
    )
    greatest = [float(magnitude(weights[key] - expected[key]).max()) for key in expected]
    return Interrupted(
        undisturbed, resumed, max(greatest), sum(value > 0 for value in greatest), len(greatest)
    )


def compare_orders(home: Path) -> list[Row]:
    """F4."""
    rows, ours = [], interrupted(train_ours, home, "SIGKILL", kind="texts")
    recipes = {
        "skip_first_batches": False,
        "skip_first_batches, use_seedable_sampler, set_epoch": True,
    }
    for recipe, seedable in recipes.items():
        peers = interrupted(
            train_accelerate, home, "SIGKILL", kind="texts", seedable=seedable, skip=True
        )
        what, later = f"killed and resumed: save_state, {recipe}", len(peers.later)
        measured = f"batches after it that are others, of {later}"
        rows.append(
            Row("F4", "accelerate", what, measured, 0, peers.other_batches, ours.other_batches)
        )
        measured = f"rows repeated in that epoch, of {ROWS['train']}"
        rows.append(
            Row("F4", "accelerate", what, measured, 0, peers.repeated_rows, ours.repeated_rows)
        )
    return rows


def compare_resumes(home: Path) -> list[Row]:
    """F5."""
    rows, measured = [], "greatest difference of the final weights"
    cases = {
        "killed and resumed, nothing drawn but dropout": ("SIGKILL", "texts"),
        "killed and resumed, words hidden at random": ("SIGKILL", "hidden words"),
        "SIGTERM in a forward pass and resumed, nothing drawn but dropout": ("SIGTERM", "texts"),
    }
    for what, (end, kind) in cases.items():
        peers, ours = (
            interrupted(train, home, end, kind=kind) for train in (train_trainer, train_ours)
        )
        rows.append(Row("F5", "Trainer", what, measured, 0, peers.weights, ours.weights))
    return rows


def compare_augmentations(home: Path) -> list[Row]:
    """F7. Recipes with the default sampler are left out: they differ without augmentation too, and that is F4."""
    rows, measured = [], "greatest difference of the final weights"
    recipes = {"skip_first_batches": True, "batches passed over in the loop": False}
    for kind, seen in {"images": "no augmentation", "augmented images": "crop and flip"}.items():
        ours = interrupted(train_ours, home, "SIGKILL", kind=kind)
        for recipe, skip in recipes.items():
            peers = interrupted(
                train_accelerate, home, "SIGKILL", kind=kind, seedable=True, skip=skip
            )
            what = (
                f"{seen}, killed and resumed: save_state, use_seedable_sampler, set_epoch, {recipe}"
            )
            rows.append(Row("F7", "accelerate", what, measured, 0, peers.weights, ours.weights))
            batches = f"batches after it that are others, of {len(peers.later)}"
            rows.append(
                Row("F7", "accelerate", what, batches, 0, peers.other_batches, ours.other_batches)
            )
    return rows


EXPERIMENTS = {
    "F1": compare_divisions,
    "F2": compare_best_weights,
    "F3": compare_evaluations,
    "F4": compare_orders,
    "F5": compare_resumes,
    "F7": compare_augmentations,
}


# ---- processes


def call(function: Callable, folder: Path, processes: int = 1, **options: Any) -> Any:
    """Run a function of this module in a process of its own, or in several by torchrun; what it returned, or None if it
    was told to end before. Raises RuntimeError, with the end of its log, if it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    answer, words = folder / "answer.json", (function.__name__, str(folder), json.dumps(options))
    answer.unlink(missing_ok=True)
    if processes > 1:
        code = "import sys; from benchmarks.exactness import respond; respond(*sys.argv[1:])"
        launcher = (
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            "--no-python",
        )
        command = [sys.executable, *launcher, sys.executable, "-c", code, *words]
        with (folder / "log").open("ab") as log:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
    else:
        process = multiprocessing.get_context("forkserver").Process(target=respond, args=words)
        process.start()
        process.join()
    if answer.exists():
        return json.loads(answer.read_text())
    if "end" not in options:
        raise RuntimeError(
            f"{function.__name__} failed:\n{(folder / 'log').read_text(errors='replace')[-3000:]}"
        )
    return None


def respond(name: str, folder: str, options: str) -> None:
    """What such a process does: the function, with its words in the log and its value in answer.json."""
    from ftloop.cli.exit_codes import run_main

    log = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(ROOT)

    def work() -> None:
        value = globals()[name](Path(folder), **json.loads(options))
        if os.environ.get("RANK", "0") == "0":
            (Path(folder) / "answer.json").write_text(json.dumps(value))

    sys.exit(run_main(work))


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.exactness")
    unknown = [fact for fact in options.facts if fact not in EXPERIMENTS]
    if unknown:
        sys.exit(f"error: --facts {unknown[0]!r} is none of {', '.join(EXPERIMENTS)}")
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({**ENVIRONMENT, "HF_DATASETS_CACHE": str(Path(folder) / "cache")})
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTS))
        call(make_data, Path(folder) / "make-data")
        for fact in options.facts:
            rows += EXPERIMENTS[fact](Path(folder))
            print(f"{fact}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    versions = {name: version(name) for name in LIBRARIES}
    print(table(rows))
    print("\n" + ", ".join(f"{name} {number}" for name, number in versions.items()))
    if options.out is not None:
        seconds = round(time.monotonic() - began, 1)
        found = [
            {**asdict(row), "differences": row.differences, "exact": row.exact} for row in rows
        ]
        options.out.write_text(
            json.dumps({"versions": versions, "seconds": seconds, "rows": found}, indent=1) + "\n"
        )
    sys.exit(0 if all(row.exact for row in rows) else 1)


if __name__ == "__main__":
    from benchmarks import (
        exactness,
    )  # by its own name: the processes find its functions, and records its classes

    exactness.main()
