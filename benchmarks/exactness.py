"""Compare ftloop with the Trainer and with the recipes of accelerate where results must not differ.

    python -m benchmarks.exactness                          everything, on one core, some 4 minutes
    python -m benchmarks.exactness --facts F1 F5 --out table.json

Results should not depend on the division of a batch, on the number of processes, or on an
interruption. The table shows by how much each side is off:

F1  loss and gradient norm of one optimizer step, by its division into micro-batches
    (transformers#47688)
F2  ViT: weights after `load_best_model_at_end`, and of a resumed training (transformers#43701,
    #40187)
F3  evaluation loss in two processes, by batch size (transformers#39241); with the defaults, the
    factor of F1 comes on top
F4  documented resume of accelerate: the rows that are read after it (accelerate#2016)
F5  resume of the Trainer in the middle of an epoch: after a kill, with random changes of rows, and
    after SIGTERM
F7  recipes of accelerate for resuming, with random augmentation of images, and without it

Each run is a process of its own. All sides take the same tiny random model, rows, collator and
settings. A run is interrupted by a signal in the forward pass of its eleventh step, which a hook
sends that does not know in whose loop it is. The exit code is 1 if a value of ftloop is off by more
than rounding.
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
    # The allocator of pyarrow would otherwise start a thread in a process that forks.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "1",
    # A killed process leaves a semaphore of tqdm behind.
    "PYTHONWARNINGS": "ignore:resource_tracker",
}
# Imported once, in a process without threads from which the runs are forked. Saves seconds per run.
PRELOADED_MODULES = (
    *("torch", "datasets", "accelerate", "safetensors.torch", "torchvision.transforms.v2"),
    *("transformers.trainer", "transformers.models.bert.modeling_bert"),
    *("transformers.models.vit.modeling_vit", "ftloop.loop"),
)
LIBRARIES = ("torch", "transformers", "accelerate")
COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
WORDS = ["the", "a", "sky", "grass", "sea", "rose", "is", "was", "very", "quite", "not", "pale"]
MODEL_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
NUM_ROWS = {"train": 43, "validation": 43}  # no batch size used here divides it
BATCH_SIZE, EPOCHS, LEARNING_RATE, SEED = 8, 3, 5e-3, 7
STEPS_PER_EPOCH = math.ceil(NUM_ROWS["train"] / BATCH_SIZE)
SAVE_EVERY = 4  # optimizer steps
INTERRUPTED_STEP = 11  # a run resumes from step 8, in the middle of its second epoch
# Length of that step: the Trainer reacts to SIGTERM after three seconds.
INTERRUPTED_STEP_SECONDS = 4
EVAL_BATCH_SIZES = (4, 5, 7, 16)
ROUNDING = 1e-5  # relative, of float32


@dataclass(frozen=True)
class Options:
    """What is compared."""

    facts: tuple[str, ...] = ("F1", "F2", "F3", "F4", "F5", "F7")
    out: Path | None = None  # JSON file for the table


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fact: str
    peer: str
    what_was_done: str
    quantity: str
    expected: float
    peer_value: float
    our_value: float
    tolerance: float = 0.0  # relative difference that is rounding

    @property
    def differences(self) -> tuple[float, float]:
        """The absolute differences of the peer and of ftloop from the expected value."""
        return abs(self.peer_value - self.expected), abs(self.our_value - self.expected)

    @property
    def is_exact(self) -> bool:
        """Whether ftloop has the expected value."""
        return self.differences[1] <= self.tolerance * abs(self.expected)


def format_table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    titles = ("", "what was done", "quantity", "expected", "peer", "peer's value", "difference")
    titles = (*titles, "ftloop's value", "difference")
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|---:|---|---:|---:|---:|---:|"]
    for row in rows:
        peer_difference, our_difference = map(format_number, row.differences)
        cells = [row.fact, row.what_was_done, row.quantity, format_number(row.expected), row.peer]
        cells += [format_number(row.peer_value), peer_difference]
        cells += [format_number(row.our_value), our_difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_number(value: float) -> str:
    """Return "0" only for 0."""
    if not value:
        return "0"
    return f"{value:.5g}" if abs(value) >= 1e-3 else f"{value:.1e}"


# What is trained


def write_data(folder: Path) -> None:
    """Write sentences and images, each with a color, and a tiny BERT, into data/ beside `folder`.

    The labels of train are the colors. Those of validation are random: the more a model learns, the
    larger its validation loss, so that the best checkpoint is the first one and the losses of the
    rows differ widely.
    """
    import numpy
    from PIL import Image

    rng, noise, data = random.Random(0), numpy.random.default_rng(0), folder.parent / "data"
    data.mkdir()
    for split, num_rows in NUM_ROWS.items():
        lines = []
        for number in range(num_rows):
            color = list(COLORS)[number % 3]
            label = color if split == "train" else rng.choice(list(COLORS))
            words = rng.sample(WORDS, rng.randint(3, 11))
            text = " ".join([*words[:2], color, *words[2:]])
            lines.append(json.dumps({"text": text, "label": label}) + "\n")
            pixels = numpy.array(COLORS[color]) + noise.integers(-90, 91, (20, 24, 3))
            image = data / "images" / split / label / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(image)
        (data / f"{split}.jsonl").write_text("".join(lines))
        if split == "train":
            (data / "sixteen.jsonl").write_text("".join(lines[:16]))
    write_text_model(data / "bert")


def write_text_model(folder: Path) -> None:
    """Write a random tiny BERT with a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special_tokens, *WORDS, *COLORS]
    vocabulary = {word: number for number, word in enumerate(words)}
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
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        pad_token_id=0,
        num_labels=3,
        initializer_range=0.1,
        **MODEL_SIZES,
    )
    BertForSequenceClassification(config).save_pretrained(folder)


@dataclass(frozen=True)
class HiddenWords(TextClassification):
    """Texts in which a fifth of the words is hidden, drawn anew whenever a row is read."""

    def build_dataset(self, prepared: Any, labels: list[Any] | None, split: str) -> PreparedDataset:
        dataset = super().build_dataset(prepared, labels, split)
        return PreparedDataset(
            dataset.table, dataset.lengths, transform=hide_words, is_deterministic=False
        )


def hide_words(example: dict[str, Any]) -> dict[str, Any]:
    """Replace a random fifth of the words by the unknown token."""
    import torch

    ids = torch.tensor(example["input_ids"])
    is_hidden = (torch.rand(ids.shape) < 0.2) & (ids > 3)  # no special token
    return {**example, "input_ids": ids.masked_fill(is_hidden, 1).tolist()}


def build_task(kind: str, data: Path) -> Classification:
    """Return the task of all sides. The peers take its datasets, its collator and its model."""
    train, bert = {"train": str(data / "train.jsonl")}, str(data / "bert")
    if kind == "sixteen rows":
        source = Data(files={"train": str(data / "sixteen.jsonl")}, validation=0)
        return TextClassification(model=bert, data=source, max_length=32, dropout=0.0)
    if kind == "texts with validation":
        source = Data(files={**train, "validation": str(data / "validation.jsonl")})
        return TextClassification(model=bert, data=source, max_length=32)
    if kind in ("texts", "hidden words"):
        task_class = HiddenWords if kind == "hidden words" else TextClassification
        source = Data(files=train, validation=0)
        return task_class(model=bert, data=source, max_length=32, dropout=0.1)
    if kind == "images with validation":
        source = Data(path=str(data / "images"))
    else:
        source = Data(path=str(data / "images" / "train"), validation=0)
    return ImageClassification(
        model="vit",
        init="random",
        model_options={**MODEL_SIZES, "patch_size": 4},
        image_size=16,
        data=source,
        augment=("crop", "flip") if kind == "augmented images" else (),
        dropout=0.0,
    )


def watch_forward(end: str | None) -> list[list[str]]:
    """Record the rows of each training step of a classifier from now on, in whatever loop it is.

    Returns a list that grows: for each forward pass, a digest of each row. `end` is the name of a
    signal to send to this process in the forward pass of step INTERRUPTED_STEP.
    """
    from transformers import BertForSequenceClassification, ViTForImageClassification

    steps: list[list[str]] = []

    def watch(forward: Callable) -> Callable:
        @functools.wraps(forward)  # the Trainer reads its signature
        def watched(self: "torch.nn.Module", *arguments: Any, **inputs: Any) -> Any:
            if self.training:
                rows = inputs.get("pixel_values")
                if rows is None:  # texts are compared without their padding
                    pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
                    rows = [ids[mask.bool()] for ids, mask in pairs]
                content = [row.numpy().tobytes() for row in rows]
                steps.append([hashlib.sha256(row).hexdigest()[:16] for row in content])
                if end is not None and len(steps) == INTERRUPTED_STEP:
                    os.kill(os.getpid(), signal.Signals[end])
                    time.sleep(INTERRUPTED_STEP_SECONDS)
            return forward(self, *arguments, **inputs)

        return watched

    for classifier in (BertForSequenceClassification, ViTForImageClassification):
        classifier.forward = watch(classifier.forward)
    return steps


def save_weights(state_dict: dict[str, "torch.Tensor"], folder: Path) -> None:
    """Save the final weights of a training."""
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in state_dict.items()}
    save_file(tensors, folder / "weights.safetensors")


def count_differing(
    weights: dict[str, "torch.Tensor"], others: dict[str, "torch.Tensor"]
) -> list[int]:
    """Return how many tensors differ, and how many there are."""
    import torch

    assert weights.keys() == others.keys()
    differing = [name for name in weights if not torch.equal(weights[name], others[name])]
    return [len(differing), len(weights)]


# One run, by each of the three loops. From here to the experiments, functions that take a folder
# run in processes of their own and return JSON values. The data lie in data/ beside the folder.


def build_trainer(task: Classification, folder: Path, datasets: Any, **options: Any) -> "Trainer":
    """Return a Trainer with the settings of `train_ftloop`, unless `options` differ."""
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(SEED)
    settings = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": BATCH_SIZE,
        "num_train_epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.01,
        "seed": SEED,
        "save_strategy": "steps",
        "save_steps": SAVE_EVERY,
        "logging_steps": 1,
        "enable_jit_checkpoint": True,  # a checkpoint after SIGTERM
        "remove_unused_columns": False,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        task.build_model(),
        TrainingArguments(**{**settings, **options}),
        data_collator=task.collate,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("validation"),
    )


def train_trainer(folder: Path, kind: str, end: str | None = None) -> dict[str, Any]:
    """Train with the Trainer, from the last checkpoint in the folder if there is one."""
    from transformers.trainer_utils import get_last_checkpoint

    task, steps = build_task(kind, folder.parent / "data"), watch_forward(end)
    trainer = build_trainer(task, folder, task.load_datasets())
    output = folder / "trainer"
    last_checkpoint = get_last_checkpoint(str(output)) if output.is_dir() else None
    trainer.train(resume_from_checkpoint=last_checkpoint)
    save_weights(trainer.model.state_dict(), folder)
    return {"steps": steps}


def train_ftloop(folder: Path, kind: str, end: str | None = None, **options: Any) -> dict[str, Any]:
    """Train with ftloop. The same call again resumes."""
    from ftloop import checkpoint, train

    steps = watch_forward(end)
    settings = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "learning_rate": LEARNING_RATE}
    settings |= {"seed": SEED, "save_every": SAVE_EVERY, **options}
    task = build_task(kind, folder.parent / "data")
    train(Config(task=task, run_dir=str(folder / "run"), **settings))
    last_checkpoint = checkpoint.find_checkpoints(folder / "run" / "checkpoints")[-1]
    save_weights(checkpoint.load_weights(last_checkpoint), folder)
    return {"steps": steps}


def train_accelerate(
    folder: Path, kind: str, seedable: bool, skip: bool, end: str | None = None
) -> dict[str, Any]:
    """Train as the checkpointing guide and the examples of accelerate do.

    seedable: with use_seedable_sampler and set_epoch. skip: with skip_first_batches; otherwise the
    batches before the checkpoint are passed over (examples/by_feature/checkpointing.py).
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    task, steps = build_task(kind, folder.parent / "data"), watch_forward(end)
    loader_config = DataLoaderConfiguration(use_seedable_sampler=seedable)
    accelerator = Accelerator(cpu=True, dataloader_config=loader_config)
    set_seed(SEED)
    dataset, model = task.load_datasets()["train"], task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(dataset, shuffle=True, batch_size=BATCH_SIZE, collate_fn=task.collate)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, EPOCHS * STEPS_PER_EPOCH)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    step, starting_epoch, resume_step = 0, 0, 0
    saved = sorted(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name.removeprefix("step_"))
        starting_epoch, resume_step = divmod(step, len(loader))
    for epoch in range(starting_epoch, EPOCHS):
        model.train()
        active_loader, num_passed = loader, resume_step if epoch == starting_epoch else 0
        if num_passed and skip:
            active_loader, num_passed = accelerator.skip_first_batches(loader, num_passed), 0
        if seedable:
            active_loader.set_epoch(epoch)
        for number, batch in enumerate(active_loader):
            if number < num_passed:
                continue
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step % SAVE_EVERY == 0:
                accelerator.save_state(str(folder / f"step_{step}"))
    save_weights(accelerator.unwrap_model(model).state_dict(), folder)
    return {"steps": steps}


# F1: one optimizer step of sixteen rows. {"4x4": [loss, gradient norm]} is 4 micro-batches of 4


def compute_true_step(folder: Path) -> list[float]:
    """Return the mean loss of the rows and the norm of its gradient, in float64."""
    import torch
    from transformers import AutoModelForSequenceClassification

    task = build_task("sixteen rows", folder.parent / "data")
    dataset = task.load_datasets()["train"]
    batch = task.collate([dataset[row] for row in range(len(dataset))])
    model = AutoModelForSequenceClassification.from_pretrained(task.model).double().eval()
    labels = batch.pop("labels")
    loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
    loss.backward()
    squares = sum(parameter.grad.square().sum().item() for parameter in model.parameters())
    return [loss.item(), math.sqrt(squares)]


def first_step_trainer(folder: Path, sizes: list[int]) -> dict[str, list[float]]:
    task, results = build_task("sixteen rows", folder.parent / "data"), {}
    for size in sizes:
        trainer = build_trainer(
            task,
            folder,
            task.load_datasets(),
            max_steps=1,
            save_strategy="no",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
        )
        trainer.train()
        log = trainer.state.log_history[0]
        results[f"{size}x{16 // size}"] = [log["loss"], log["grad_norm"]]
    return results


def first_step_ftloop(folder: Path, sizes: list[int]) -> dict[str, list[float]]:
    from ftloop import train

    results = {}
    for size in sizes:
        run = folder / str(size)
        config = Config(
            task=build_task("sixteen rows", folder.parent / "data"),
            run_dir=str(run),
            batch_size=16,
            micro_batch_size=size,
            max_steps=1,
            log_every=1,
        )
        train(config)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        values = {line["name"]: line["value"] for line in lines if line["step"] == 1}
        results[f"{size}x{16 // size}"] = [values["loss"], values["grad_norm"]]
    return results


def compare_divisions(home: Path) -> list[Row]:
    """F1."""
    expected = call(compute_true_step, home / "true-step")
    peer = call(first_step_trainer, home / "first-step-trainer", sizes=[16, 4])
    ours = call(first_step_ftloop, home / "first-step-ftloop", sizes=[16, 4])
    rows = []
    for division in peer:
        for index, quantity in enumerate(("loss of the step", "gradient norm")):
            row = Row(
                "F1",
                "Trainer",
                f"16 rows as {division}, BERT",
                quantity,
                expected[index],
                peer[division][index],
                ours[division][index],
                ROUNDING,
            )
            rows.append(row)
    return rows


# F2: the best weights of a ViT


def best_trainer(folder: Path) -> dict[str, Any]:
    """Compare the model after `load_best_model_at_end` with the best checkpoint."""
    from transformers import AutoModelForImageClassification

    task = build_task("images with validation", folder.parent / "data")
    trainer = build_trainer(
        task,
        folder,
        task.load_datasets(),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer.train()
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    differing = count_differing(trainer.model.state_dict(), best.state_dict())
    return {"differing": differing, "best": trainer.state.best_global_step}


def best_ftloop(folder: Path) -> dict[str, Any]:
    """Compare model/ with the best checkpoint."""
    from transformers import AutoModelForImageClassification

    from ftloop import checkpoint

    train_ftloop(folder, "images with validation", save_every=None)
    checkpoints = folder / "run" / "checkpoints"
    best = checkpoint.load_state(checkpoint.find_checkpoints(checkpoints)[-1]).best_step
    model = AutoModelForImageClassification.from_pretrained(folder / "run" / "model")
    weights = checkpoint.load_weights(checkpoints / checkpoint.checkpoint_name(best))
    return {"differing": count_differing(model.state_dict(), weights), "best": best}


def compare_best_weights(home: Path) -> list[Row]:
    """F2."""
    peer, ours = call(best_trainer, home / "best-trainer"), call(best_ftloop, home / "best-ftloop")
    if EPOCHS * STEPS_PER_EPOCH in (peer["best"], ours["best"]):
        raise RuntimeError("the last checkpoint is the best one: loading it would show nothing")
    (peer_count, num_tensors), (our_count, _) = peer["differing"], ours["differing"]
    what_was_done = "ViT, the best weights loaded at the end"
    quantity = f"tensors that differ from the best checkpoint, of {num_tensors}"
    rows = [Row("F2", "Trainer", what_was_done, quantity, 0, peer_count, our_count)]
    peer = interrupt_and_resume(train_trainer, home, "SIGKILL", kind="images")
    ours = interrupt_and_resume(train_ftloop, home, "SIGKILL", kind="images")
    what_was_done = "ViT, killed and resumed"
    quantity = f"final tensors that differ from the uninterrupted run, of {peer.num_tensors}"
    counts = (peer.num_differing, ours.num_differing)
    return [*rows, Row("F2", "Trainer", what_was_done, quantity, 0, counts[0], counts[1])]


# F3: the validation loss, by two processes


def compute_true_loss(folder: Path, run: str) -> float:
    """Return the mean loss of the rows, each alone in its batch, in float64."""
    import torch
    from transformers import AutoModelForSequenceClassification

    task = build_task("texts with validation", folder.parent / "data")
    model = AutoModelForSequenceClassification.from_pretrained(run + "/model").double().eval()
    losses = []
    dataset = task.load_datasets()["validation"]
    for row in range(len(dataset)):
        batch = task.collate([dataset[row]])
        labels = batch.pop("labels")
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(**batch).logits, labels).item())
    return math.fsum(losses) / len(losses)


def eval_loss_trainer(folder: Path, run: str, **options: Any) -> list[float]:
    """Return the losses by batch size per process."""
    task, losses = build_task("texts with validation", folder.parent / "data"), []
    datasets, trained_task = task.load_datasets(), task.from_finished_run(run + "/model")
    for size in EVAL_BATCH_SIZES:
        options["per_device_eval_batch_size"] = size
        trainer = build_trainer(trained_task, folder, datasets, **options)
        losses.append(trainer.evaluate()["eval_loss"])
    return losses


def eval_loss_ftloop(folder: Path, run: str) -> list[float]:
    """Return the losses by batch size per process, as evaluate.py computes them."""
    from ftloop.runs.finished import evaluate_run

    return [evaluate_run(run, "validation", size)["loss"] for size in EVAL_BATCH_SIZES]


def compare_evaluations(home: Path) -> list[Row]:
    """F3."""
    # The weights with the largest loss are the most confident: their losses by row differ most.
    kind = "texts with validation"
    call(train_ftloop, home / "evaluated", kind=kind, epochs=10, best_direction="max")
    run = str(home / "evaluated" / "run")
    expected = call(compute_true_loss, home / "true-loss", run=run)
    ours = call(eval_loss_ftloop, home / "eval-loss-ftloop", 2, run=run)
    # With the defaults, the loss of a head that ignores num_items_in_batch is also multiplied by
    # the number of processes. That is F1. It does not depend on the batch size, and would hide what
    # does.
    settings: dict[str, dict[str, Any]] = {
        "average_tokens_across_devices=False": {"average_tokens_across_devices": False},
        "defaults": {},
    }
    rows = []
    for name, options in settings.items():
        folder = home / f"eval-loss-trainer-{name}"
        peer = call(eval_loss_trainer, folder, 2, run=run, **options)
        for size, peer_loss, our_loss in zip(EVAL_BATCH_SIZES, peer, ours, strict=True):
            what_was_done = f"BERT, {NUM_ROWS['validation']} rows evaluated by 2 processes, "
            what_was_done += f"batch size {size}; Trainer: {name}"
            row = Row(
                "F3", "Trainer", what_was_done, "loss", expected, peer_loss, our_loss, ROUNDING
            )
            rows.append(row)
    return rows


# F4, F5, F7: interrupted and resumed


@dataclass(frozen=True)
class Interrupted:
    """A run that was interrupted and resumed, beside the uninterrupted one."""

    all_steps: list[list[str]]  # the rows of each step of the uninterrupted run
    resumed_steps: list[list[str]]  # the rows of the steps after the resume
    max_difference: float  # of the final weights
    num_differing: int  # tensors of the final weights
    num_tensors: int

    @property
    def num_other_batches(self) -> int:
        """How many steps after the resume had other rows than in the uninterrupted run."""
        expected = self.all_steps[-len(self.resumed_steps) :]
        pairs = zip(self.resumed_steps, expected, strict=True)
        return sum(resumed != uninterrupted for resumed, uninterrupted in pairs)

    @property
    def num_repeated_rows(self) -> int:
        """How many rows were read twice in the interrupted epoch, and as many others never."""
        resumed_at = len(self.all_steps) - len(self.resumed_steps)
        start = resumed_at // STEPS_PER_EPOCH * STEPS_PER_EPOCH
        steps = self.all_steps[start:resumed_at]
        steps = steps + self.resumed_steps[: start + STEPS_PER_EPOCH - resumed_at]
        rows = [row for batch in steps for row in batch]
        return len(rows) - len(set(rows))


@functools.cache  # several facts look at the same runs
def interrupt_and_resume(train: Callable, home: Path, end: str, **options: Any) -> Interrupted:
    """Run a training uninterrupted, and once more with an interruption, and the same call again."""
    from numpy import abs as absolute
    from safetensors.numpy import load_file

    words = [train.__name__, end, *(str(value).replace(" ", "_") for value in options.values())]
    uninterrupted = home / f"{'-'.join(words)}-uninterrupted"
    interrupted = home / f"{'-'.join(words)}-interrupted"
    all_steps = call(train, uninterrupted, **options)["steps"]
    call(train, interrupted, end=end, **options)
    resumed_steps = call(train, interrupted, **options)["steps"]
    if not 0 < len(resumed_steps) < len(all_steps):
        counts = f"{len(resumed_steps)} steps after {len(all_steps)}"
        raise RuntimeError(f"{train.__name__} did not resume: {counts}")
    weights = load_file(interrupted / "weights.safetensors")
    expected = load_file(uninterrupted / "weights.safetensors")
    differences = [float(absolute(weights[name] - expected[name]).max()) for name in expected]
    return Interrupted(
        all_steps=all_steps,
        resumed_steps=resumed_steps,
        max_difference=max(differences),
        num_differing=sum(value > 0 for value in differences),
        num_tensors=len(differences),
    )


def compare_orders(home: Path) -> list[Row]:
    """F4."""
    rows, ours = [], interrupt_and_resume(train_ftloop, home, "SIGKILL", kind="texts")
    recipes = {
        "skip_first_batches": False,
        "skip_first_batches, use_seedable_sampler, set_epoch": True,
    }
    for recipe, seedable in recipes.items():
        options = {"kind": "texts", "seedable": seedable, "skip": True}
        peer = interrupt_and_resume(train_accelerate, home, "SIGKILL", **options)
        what_was_done = f"killed and resumed: save_state, {recipe}"
        quantity = f"batches after it with other rows, of {len(peer.resumed_steps)}"
        counts = (peer.num_other_batches, ours.num_other_batches)
        rows.append(Row("F4", "accelerate", what_was_done, quantity, 0, counts[0], counts[1]))
        quantity = f"rows repeated in that epoch, of {NUM_ROWS['train']}"
        counts = (peer.num_repeated_rows, ours.num_repeated_rows)
        rows.append(Row("F4", "accelerate", what_was_done, quantity, 0, counts[0], counts[1]))
    return rows


def compare_resumes(home: Path) -> list[Row]:
    """F5."""
    rows, quantity = [], "largest difference of the final weights"
    cases = {
        "killed and resumed, only dropout is random": ("SIGKILL", "texts"),
        "killed and resumed, words hidden at random": ("SIGKILL", "hidden words"),
        "SIGTERM in a forward pass and resumed, only dropout is random": ("SIGTERM", "texts"),
    }
    for what_was_done, (end, kind) in cases.items():
        peer = interrupt_and_resume(train_trainer, home, end, kind=kind).max_difference
        ours = interrupt_and_resume(train_ftloop, home, end, kind=kind).max_difference
        rows.append(Row("F5", "Trainer", what_was_done, quantity, 0, peer, ours))
    return rows


def compare_augmentations(home: Path) -> list[Row]:
    """F7. Recipes with the default sampler are left out: they differ without augmentation (F4)."""
    rows = []
    recipes = {"skip_first_batches": True, "batches passed over in the loop": False}
    for kind, augmentation in {"images": "none", "augmented images": "crop and flip"}.items():
        ours = interrupt_and_resume(train_ftloop, home, "SIGKILL", kind=kind)
        for recipe, skip in recipes.items():
            options = {"kind": kind, "seedable": True, "skip": skip}
            peer = interrupt_and_resume(train_accelerate, home, "SIGKILL", **options)
            what_was_done = f"augmentation: {augmentation}; killed and resumed: save_state, "
            what_was_done += f"use_seedable_sampler, set_epoch, {recipe}"
            quantity = "largest difference of the final weights"
            values = (peer.max_difference, ours.max_difference)
            rows.append(Row("F7", "accelerate", what_was_done, quantity, 0, values[0], values[1]))
            quantity = f"batches after it with other rows, of {len(peer.resumed_steps)}"
            values = (peer.num_other_batches, ours.num_other_batches)
            rows.append(Row("F7", "accelerate", what_was_done, quantity, 0, values[0], values[1]))
    return rows


EXPERIMENTS = {
    "F1": compare_divisions,
    "F2": compare_best_weights,
    "F3": compare_evaluations,
    "F4": compare_orders,
    "F5": compare_resumes,
    "F7": compare_augmentations,
}


# Processes


def call(function: Callable, folder: Path, num_processes: int = 1, **options: Any) -> Any:
    """Call a function of this module in a process of its own, or in several by torchrun.

    Returns its result, or None if it was interrupted as `end` says. Raises RuntimeError with the
    end of its log if it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, arguments = (
        folder / "result.json",
        (function.__name__, str(folder), json.dumps(options)),
    )
    result.unlink(missing_ok=True)
    if num_processes > 1:
        code = "import sys; from benchmarks.exactness import respond; respond(*sys.argv[1:])"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(num_processes), "--no-python"]
        command += [sys.executable, "-c", code, *arguments]
        with (folder / "log").open("ab") as log:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
    else:
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=respond, args=arguments)
        process.start()
        process.join()
    if result.exists():
        return json.loads(result.read_text())
    if "end" not in options:
        log_end = (folder / "log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{function.__name__} failed:\n{log_end}")
    return None


def respond(name: str, folder: str, options: str) -> None:
    """Call a function of this module in this process; write its log and its result.json."""
    from ftloop.cli.exit_codes import run_main

    log = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(ROOT)

    def write_result() -> None:
        value = globals()[name](Path(folder), **json.loads(options))
        if os.environ.get("RANK", "0") == "0":
            (Path(folder) / "result.json").write_text(json.dumps(value))

    sys.exit(run_main(write_result))


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.exactness", description=__doc__)
    unknown = [fact for fact in options.facts if fact not in EXPERIMENTS]
    if unknown:
        sys.exit(f"error: --facts {unknown[0]!r} is not one of {', '.join(EXPERIMENTS)}")
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({**ENVIRONMENT, "HF_DATASETS_CACHE": str(Path(folder) / "cache")})
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED_MODULES))
        call(write_data, Path(folder) / "write-data")
        for fact in options.facts:
            rows += EXPERIMENTS[fact](Path(folder))
            print(f"{fact}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    versions = {name: version(name) for name in LIBRARIES}
    print(format_table(rows))
    print("\n" + ", ".join(f"{name} {number}" for name, number in versions.items()))
    if options.out is not None:
        results = {"versions": versions, "seconds": round(time.monotonic() - began, 1), "rows": []}
        for row in rows:
            values = {"differences": row.differences, "is_exact": row.is_exact}
            results["rows"].append({**asdict(row), **values})
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    inexact = [row for row in rows if not row.is_exact]
    for row in inexact:
        print(f"not exact: {row.fact}, {row.what_was_done}, {row.quantity}", file=sys.stderr)
    sys.exit(1 if inexact else 0)


if __name__ == "__main__":
    # By its own name: processes find the functions, and records the classes, in this module.
    from benchmarks import exactness

    exactness.main()
