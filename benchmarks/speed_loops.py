"""The four loops of the speed benchmarks: limit, course, Trainer and ftloop. See speed.py."""

import csv
import itertools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed import ROOT, Training, train_options
from benchmarks.step_clock import StepClock


def train_and_time(options: dict[str, Any]) -> dict[str, Any]:
    """Train in this process, given the fields of a Training.

    Returns the seconds of each epoch and of each step, and the memory.
    """
    training = Training(**options)
    memory_by_step: list[tuple[int, dict[str, float]]] = []

    def measure_memory_at_step(clock: StepClock) -> None:
        step = len(clock.times) - 1
        if training.memory_every and step % training.memory_every == 0:
            memory_by_step.append((step, measure_memory()))

    synchronize_every = training.steps if training.gpu else None
    clock = StepClock(measure_memory_at_step, synchronize_every=synchronize_every)
    train(training)
    total_steps = training.max_steps or training.epochs * training.steps
    if len(clock.times) != total_steps + 1:
        num_steps = len(clock.times) - 1
        raise RuntimeError(f"{num_steps} optimizer steps were done instead of {total_steps}")
    ends = clock.times[:: training.steps]
    if training.max_steps is not None:
        ends = [clock.times[0], clock.times[-1]]
    return {
        "epochs": [end - start for start, end in itertools.pairwise(ends)],
        "steps": [end - start for start, end in itertools.pairwise(clock.times)],
        "memory": measure_memory(),
        "memory by step": memory_by_step,
    }


def measure_memory() -> dict[str, float]:
    """Return megabytes of this process: "resident", "peak" (resident), "own" (no mapped files)."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    names = {"resident": "VmRSS", "peak": "VmHWM", "own": "RssAnon"}
    return {name: round(int(fields[key].split()[0]) / 1024, 1) for name, key in names.items()}


def train(training: Training) -> None:
    """Train with the loop of a rival."""
    if training.kind == "limit":
        for _ in limit_steps(training):
            pass
    elif training.kind == "course":
        train_course(training)
    elif training.kind == "trainer":
        train_trainer(training)
    else:
        train_ftloop(training)


def train_ftloop(training: Training) -> None:
    words = [*train_options(training), *training.options["words"], *training.more_options]
    run_script("train.py", words)


def run_script(script: str, words: list[str]) -> None:
    """Run `python SCRIPT WORDS` in this process. Raises SystemExit unless it succeeds."""
    os.chdir(ROOT)
    sys.argv = [script, *words]
    sys.path[0] = str(ROOT)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise


def limit_steps(training: Training) -> Iterator[None]:
    """Compute forward, backward, clipping and fused AdamW on batches of tensors.

    Yields once when everything is ready, and then after each optimizer step.
    """
    import torch

    dataset, collate, names = load_peer_dataset(training)
    device = "cuda" if training.gpu else "cpu"
    model, sampler = build_peer_model(training, names).to(device), SameOrder(training)
    batches = []
    for _ in range(training.epochs):
        order = list(sampler)
        for start in range(0, training.rows, training.batch_size):
            examples = [dataset[row] for row in order[start : start + training.batch_size]]
            batch = collate(examples)
            batches.append({name: value.to(device) for name, value in batch.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    model.train()
    is_bf16 = bool(training.options.get("bf16"))
    autocast = torch.autocast(device, torch.bfloat16, enabled=is_bf16)
    yield
    for batch in batches:
        with autocast:
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


def train_course(training: Training) -> None:
    """Train as https://huggingface.co/learn/llm-course/chapter3/4 does, with accelerate."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm
    from transformers import get_scheduler

    dataset, collate, names = load_peer_dataset(training)
    if training.text_columns:
        dataset.set_format("torch")
    accelerator, model = Accelerator(), build_peer_model(training, names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    sampler = SameOrder(training)
    loader = DataLoader(dataset, training.batch_size, sampler=sampler, collate_fn=collate)
    loader, model, optimizer = accelerator.prepare(loader, model, optimizer)
    num_steps = training.epochs * len(loader)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=num_steps)
    progress_bar = tqdm(range(num_steps))
    model.train()
    for _ in range(training.epochs):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            progress_bar.update(1)


def train_trainer(training: Training) -> None:
    """Train with the Trainer and its defaults, in random order, that of SameOrder.

    When it groups by length, it sorts 50 batches at a time, as it does with 200 batches or more. On
    the few rows of an epoch here, it would sort four batches at a time.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_pt_utils import get_length_grouped_indices

    dataset, collate, names = load_peer_dataset(training)
    is_grouped = "train_sampling_strategy" in training.options
    lengths = [len(ids) for ids in dataset["input_ids"]] if is_grouped else []

    class GroupedByLength(SameOrder):
        def __iter__(self) -> Iterator[int]:
            size = training.batch_size
            return iter(get_length_grouped_indices(lengths, size, mega_batch_mult=50))

    class OrderedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return GroupedByLength(training) if is_grouped else SameOrder(training)

    options = {name: value for name, value in training.options.items() if name != "kernels"}
    arguments = TrainingArguments(
        f"{training.folder}/trainer",
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        remove_unused_columns=bool(training.text_columns),
        use_cpu=not training.gpu,  # otherwise it refuses bf16
        save_strategy="no",
        report_to="none",
        seed=training.seed,
        **options,
    )
    model = build_peer_model(training, names)
    OrderedTrainer(model, arguments, data_collator=collate, train_dataset=dataset).train()


# The datasets and models of the peers, as their users write them


def load_peer_dataset(training: Training) -> tuple[Any, Any, list[str]]:
    """Return a `datasets.Dataset` (of images with a transform), its collator and label names."""
    from datasets import Dataset, load_dataset
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from benchmarks import beside_trainer

    train = training.train
    if not training.text_columns:
        dataset = load_dataset("imagefolder", data_dir=train, split="train")
        transform = TransformImages(training.sizes["image_size"])
        names = list(dataset.features["label"].names)
        return dataset.with_transform(transform), stack_images, names
    options = beside_trainer.Options(
        model=training.model,
        train=train,
        validation=train,
        problem="multi" if training.label_separator else "single",
        label_separator=training.label_separator or ",",
        label_names=training.label_names,
    )
    table = beside_trainer.read_table(options, train)
    tokenizer = AutoTokenizer.from_pretrained(training.model)
    texts = [table[column].tolist() for column in training.text_columns]
    encoded = tokenizer(*texts, truncation=True, max_length=training.max_length)
    names = beside_trainer.read_label_names(options, table["label"])
    labels = beside_trainer.encode_labels(options, table["label"], names)
    dataset = Dataset.from_dict({**encoded, "labels": labels})
    return dataset, DataCollatorWithPadding(tokenizer), names


class TransformImages:
    """The transform of an image dataset. A class, because data workers may get it by pickle."""

    def __init__(self, size: int):
        import torch
        from torchvision.transforms import v2

        self.transform = v2.Compose(
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
        pixels = [self.transform(image) for image in batch["image"]]
        return {"pixel_values": pixels, "labels": batch["label"]}


def stack_images(examples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    labels = torch.tensor([example["labels"] for example in examples])
    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixels, "labels": labels}


def build_peer_model(training: Training, names: list[str]) -> Any:
    import torch
    import transformers

    torch.manual_seed(training.seed)
    if training.text_columns:
        problem = "multi" if training.label_separator else "single"
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            training.model,
            dtype=torch.float32,
            num_labels=len(names),
            problem_type=f"{problem}_label_classification",
        )
    else:
        config = transformers.AutoConfig.for_model(
            training.model, **training.sizes, num_labels=len(names)
        )
        if training.model == "deit":  # there are two heads; this is the one without a teacher
            config.architectures = ["DeiTForImageClassification"]
        model = transformers.AutoModelForImageClassification.from_config(config)
    if training.options.get("kernels"):
        use_kernels(model, bool(training.options.get("bf16")))
    return model


def use_kernels(model: Any, is_bf16: bool = False) -> None:
    """Use the matrix backend that ftloop chooses on this machine, and keep freed memory."""
    from ftloop.devices.attention import use_eager_attention
    from ftloop.devices.keep_memory import keep_freed_memory
    from ftloop.devices.matmul_probe import fastest_backend
    from ftloop.devices.matmul_settings import set_matmul_backend

    device = next(model.parameters()).device
    keep_freed_memory(device)
    backend = "default" if is_bf16 or device.type != "cpu" else fastest_backend()
    set_matmul_backend(backend)
    if backend == "onednn":
        use_eager_attention(model)


class SameOrder:
    """A sampler with the random order of ftloop: another order would have other padding."""

    def __init__(self, training: Training):
        self.training, self.epoch = training, 0

    def __len__(self) -> int:
        return self.training.rows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        from ftloop.sampler import random_permutation

        order = random_permutation(self.training.rows, self.training.seed, self.epoch)
        self.epoch += 1
        return iter(order.tolist())


# Lengths of texts


def count_tokens(training: Training) -> list[int]:
    """Return the tokens of each row, in the order of the file; [] for images."""
    if not training.text_columns:
        return []
    from transformers import AutoTokenizer

    with Path(training.train).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    texts = [[row[column] for row in rows] for column in training.text_columns]
    tokenizer = AutoTokenizer.from_pretrained(training.model)
    encoded = tokenizer(*texts, truncation=True, max_length=training.max_length)
    return [len(ids) for ids in encoded["input_ids"]]


def describe_lengths(training: Training) -> str:
    """Describe the mean length, and the padding of random batches: what grouping can save."""
    lengths = count_tokens(training)
    if not lengths:
        return ""
    size = training.batch_size
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    padding = 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
    mean = sum(lengths) / len(lengths)
    return f", {mean:.0f} tokens per row, {padding:.0%} of random batches is padding"
