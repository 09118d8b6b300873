"""The exact pass over a split: every row once, whatever the batch size and the number of processes. And what a finished
run can do: be evaluated, and predict.

Per-row values are gathered together with their row ids, empty seats are dropped, and the ids are counted. The loss is
summed in float64 by row id, so that it does not depend on the order in which rows were served.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader

from ftloop import checkpoint, startup
from ftloop.distributed import kernels
from ftloop.tasks import metrics
from ftloop.logs import terminal as tracking
from ftloop.config import read_record
from ftloop.loader import TOKENS, build_loader
from ftloop.sampler import TOKENS_ON_CPU, UNBOUNDED, EvaluationOrder
from ftloop.distributed import start_accelerator
from ftloop.errors import UserError, nearest
from ftloop.tasks.classification import Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import PreTrainedModel

BLOCK = 4096  # new rows that are read, sorted by length and labelled together


class Interrupted(Exception):
    """An evaluation that was asked to stop: it has no scores."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def evaluation_loader(
    rows: Any, task: Task, accelerator: "Accelerator", batch_size: int, workers: int = 0
) -> DataLoader:
    """A prepared loader over all `rows` of a split, long ones first where they have a "length"."""
    lengths = rows["length"][:] if "length" in rows.column_names else [0] * len(rows)
    most_tokens = TOKENS_ON_CPU if accelerator.device.type == "cpu" else None
    order = EvaluationOrder(lengths, batch_size, accelerator.num_processes, most_tokens)
    return accelerator.prepare(build_loader(rows, order, task.collate, workers=workers))


@torch.no_grad()
def evaluate_split(
    model: torch.nn.Module,
    loader: DataLoader,
    task: Task,
    accelerator: "Accelerator",
    asked: Callable[[], bool] = never,
    see: Callable[[dict[str, torch.Tensor]], None] = lambda values: None,
) -> dict[str, float]:
    """The scores of a prepared model on a split: "loss", the mean of the per-row losses, and the task's metrics.

    Called by all processes, and the same on all of them: the main process streams batches into the metrics and tells
    the others. `asked` is put after each batch: whether to leave, by raising Interrupted. `see` gets what the metrics
    get, on the main process. Raises RuntimeError unless every row was seen exactly once.
    """
    scorers = task.build_metrics() if accelerator.is_main_process else []
    losses = torch.zeros(len(loader.dataset), dtype=torch.float64)
    for values in outputs_by_row(model, loader, task, accelerator, asked):
        losses[values["rows"]] = values.pop("losses").double()
        for scorer in scorers:
            metrics.add(scorer, values)
        see(values)
    scores = {"loss": losses.mean().item()}
    for scorer in scorers:
        scores |= metrics.compute(scorer)
    return _from_main(scores, accelerator)


@torch.no_grad()
def outputs_by_row(
    model: torch.nn.Module,
    loader: DataLoader,
    task: Task,
    accelerator: "Accelerator",
    asked: Callable[[], bool] = never,
) -> Iterator[dict[str, torch.Tensor]]:
    """What `task.predict` makes of each batch, on the CPU of the main process, with "rows" (the ids, in no order), and
    for labelled rows "references" and "losses". Other processes take part and yield nothing."""
    model.eval()
    seen = torch.zeros(len(loader.dataset), dtype=torch.int64)
    for batch in loader:
        values, targets = {"rows": batch.pop("rows")}, batch.pop("labels", None)
        batch.pop(TOKENS, None)
        outputs = model(**batch)
        values |= task.predict(outputs)
        if targets is not None:
            values |= {"references": targets, "losses": task.losses(outputs, targets)}
        values = accelerator.gather(values)  # whole rounds of equal seats: nothing is padded, nothing repeated
        if accelerator.is_main_process:
            real = values["rows"] >= 0
            # Here the device is waited for: metrics live on the CPU.
            values = {name: value[real].cpu() for name, value in values.items()}
            seen[values["rows"]] += 1
            yield values
        if asked():
            model.train()
            raise Interrupted
    model.train()
    if accelerator.is_main_process and not bool((seen == 1).all()):
        raise RuntimeError(f"{int((seen != 1).sum())} of {len(seen)} rows were not evaluated exactly once")


def _from_main(value: Any, accelerator: "Accelerator") -> Any:
    """The main process's value, on every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


# ---- a finished run


def load_run(run_dir: str | Path) -> tuple[Task, "PreTrainedModel"]:
    """The task and the kept model of a finished run, with the labels it was trained with. Raises UserError."""
    config = read_record(Path(run_dir))
    folder = Path(run_dir) / "model"
    if not folder.is_dir():
        raise UserError(
            f"{str(run_dir)!r} has no model/ yet: its training is not finished (run the same command again)"
        )
    task = config.task.of_run(str(folder))
    return task, task.build_model()


def adapt(model: "PreTrainedModel", run_dir: str | Path, accelerator: "Accelerator") -> None:
    """Bring a run's model to the device, to compute as in the run: without its checkpoints, fp32 products as torch."""
    recorded = "default"
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):  # only model/ is needed
        recorded = checkpoint.load_made_by(checkpoint.find(Path(run_dir) / "checkpoints")[-1])["matmul"]
    asked = recorded if recorded == "tf32" and accelerator.device.type == "cuda" else "auto"
    kernels.adapt(model.to(accelerator.device), kernels.settle(asked, recorded, accelerator))
    if read_record(Path(run_dir)).keep_memory:
        kernels.keep_memory(accelerator.device)
    startup.done()


def evaluate(run_dir: str | Path, split: str | None = None, batch_size: int | None = None) -> dict[str, float]:
    """The scores of a finished run on a split of its data: the same numbers as its training printed for that split.

    `split`: train, validation or test; left out, test where the data has it, else validation. `batch_size`: rows per
    process and forward pass (of texts on a CPU, 4096 tokens at most); left out, that of the run. Raises UserError.
    """
    config = read_record(Path(run_dir))
    accelerator = start_accelerator(config.precision)
    tracking.set_up_logging(accelerator.is_main_process)
    task, model = load_run(run_dir)
    adapt(model, run_dir, accelerator)
    with accelerator.local_main_process_first():
        data = task.load()
    split = split or ("test" if "test" in data else "validation")
    if split not in data:
        raise UserError(f"--split {split!r} is not in the data{nearest(split, data)}; the splits are {', '.join(data)}")
    if len(data[split]) == UNBOUNDED:
        whole = [name for name, rows in data.items() if len(rows) != UNBOUNDED]
        raise UserError(f"--split {split}: a stream has no end; what can be scored: {', '.join(whole) or 'nothing'}")
    loader = evaluation_loader(data[split], task, accelerator, batch_size or config.eval_batch_size)
    return evaluate_split(
        accelerator.prepare_model(model, device_placement=True, evaluation_mode=True), loader, task, accelerator
    )


def predict(run_dir: str | Path, rows: "Dataset", batch_size: int = 64) -> list[dict[str, Any]]:
    """What a finished run says of new rows, in their order: dictionaries as `task.describe` makes them.

    `rows` has the columns that the task reads (`task.input_columns`); labels are not needed. Runs in one process.
    """
    answers = predict_blocks(run_dir, blocks_of(rows, BLOCK), batch_size)
    return [description for _, described in answers for description in described]


def blocks_of(rows: "Dataset", size: int) -> Iterator["Dataset"]:
    """Blocks of `size` rows that are in memory: of what is made of these, `datasets` keeps nothing on disk."""
    from datasets import Dataset, DatasetInfo

    stored = rows.with_format("arrow")
    for start in range(0, len(rows), size):
        yield Dataset(stored[start : start + size], DatasetInfo(features=rows.features))


def predict_blocks(
    run_dir: str | Path,
    blocks: Iterable["Dataset"],
    batch_size: int = 64,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
) -> Iterator[tuple["Dataset", list[dict[str, Any]]]]:
    """As `predict`, for rows without end: each block with its answers, and no other is in memory.

    Within a block, rows are batched by length, as `evaluate` does it: of a split that is one block, the numbers are
    the same to the bit; of other batches, up to rounding. `precision`: left out, that of the run.
    """
    accelerator = start_accelerator(precision or read_record(Path(run_dir)).precision)
    if accelerator.num_processes > 1:
        raise UserError("predict runs in one process: start it without torchrun or accelerate launch")
    tracking.set_up_logging(accelerator.is_main_process)
    task, model = load_run(run_dir)
    adapt(model, run_dir, accelerator)
    model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
    first = 0  # row of the block
    for block in blocks:
        loader = evaluation_loader(task.prepare_new(block, first), task, accelerator, batch_size)
        described: list[Any] = [None] * len(block)
        for values in outputs_by_row(model, loader, task, accelerator):
            ids = values.pop("rows").tolist()
            for row, description in zip(ids, task.describe(values), strict=True):
                described[row] = description
        accelerator._dataloaders.clear()  # it would hold all blocks
        yield block, described
        first += len(block)
    task.say_of_new()
