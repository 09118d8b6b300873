"""Use a finished run: load its model, evaluate it on a split of its data, and predict new rows."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftloop.config import Config
from ftloop.errors import UserError, did_you_mean, root_cause
from ftloop.runs.record import load_config

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from datasets import Dataset

logger = logging.getLogger("ftloop")

BLOCK_SIZE = 4096  # new rows that are read, sorted by length and predicted together


def load_run(run_dir: str | Path, needs_data: bool = True) -> tuple[Config, Any, "torch.nn.Module"]:
    """Return the config, the task and the exported model of a finished run.

    The task has the labels that the model was trained with. The model is on the CPU; see
    `prepare_for_inference`. Without `needs_data`, the task can only predict rows that have the
    shape of the training rows. Raises UserError if the run is not finished, and for code that may
    not run; see `load_config`.
    """
    config = load_config(run_dir, needs_data=needs_data, shapes_rows=needs_data)
    task = load_task(config)
    return config, task, load_model(task, model_folder(run_dir))


def model_folder(run_dir: str | Path) -> Path:
    """Return the folder model/ of a finished run. Raises UserError if it does not exist yet."""
    folder = Path(run_dir) / "model"
    if not folder.is_dir():
        raise UserError(
            f"{str(run_dir)!r} has no folder model/: its training is not finished. Run its command "
            "again to resume it."
        )
    return folder


def load_task(config: Config) -> Any:
    """Return the task of a finished run, with the exported model and its labels if it has any."""
    from_finished_run = getattr(config.task, "from_finished_run", None)
    folder = model_folder(config.run_dir)
    return config.task if from_finished_run is None else from_finished_run(str(folder))


def load_model(task: Any, folder: Path) -> "torch.nn.Module":
    """Return the exported model of a finished run; `task` comes from `load_task`."""
    model = task.build_model()
    if hasattr(task, "from_finished_run"):  # build_model() has read the exported weights
        return model
    try:
        if hasattr(model, "from_pretrained"):
            return type(model).from_pretrained(folder)
        from safetensors.torch import load_model as load_safetensors

        load_safetensors(model, folder / "model.safetensors")
    except Exception as error:  # the libraries raise many kinds of exceptions
        raise UserError(
            f"the model in {str(folder)!r} cannot be read: {root_cause(error)}"
        ) from error
    return model


@contextlib.contextmanager
def prepare_for_inference(
    config: Config,
    model: "torch.nn.Module",
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
) -> Iterator[tuple["Accelerator", "torch.nn.Module"]]:
    """Prepare the model of a finished run to compute as it did in training, within the block.

    Yields the accelerator and the prepared model. The setups of the run that apply to inference are
    told the environment of its newest checkpoint, for example the matrix backend, and are undone
    after the block. `precision` defaults to that of the run.
    """
    from ftloop.devices.inference import inference_setups
    from ftloop.distributed import build_accelerator

    setups = inference_setups(config.setups())
    environment = recorded_environment(config.run_dir)
    try:
        for setup in setups:
            setup.resume(environment)
        # The launcher may have chosen the precision of the run.
        precision = precision or config.precision or environment.get("precision")
        accelerator = build_accelerator(precision, config.timeout, setups)
        model.to(accelerator.device)
        for setup in setups:
            setup.prepare_model(model, accelerator)
        yield accelerator, accelerator.prepare_model(model, evaluation_mode=True)
    finally:
        for setup in reversed(setups):
            setup.undo()


def recorded_environment(run_dir: str | Path) -> dict[str, Any]:
    """Return the environment of a run's newest checkpoint; {} if there is no readable one."""
    from ftloop.checkpoint import find_checkpoints, load_environment

    checkpoints = find_checkpoints(Path(run_dir) / "checkpoints")
    with contextlib.suppress(UserError):
        return load_environment(checkpoints[-1]) if checkpoints else {}
    return {}  # a finished run needs only its folder model/


def evaluate_run(
    run_dir: str | Path, split: str | None = None, batch_size: int | None = None
) -> dict[str, float]:
    """Return the scores of a finished run on a split of its data.

    They equal those that its training printed for that split. `split` defaults to "test" or, if
    the data has none, "validation". `batch_size` is rows per forward pass on each rank (texts on a
    CPU: at most 4096 tokens) and defaults to that of the run. Raises UserError for an unknown split
    and for a stream, which has no end.
    """
    from ftloop.evaluation import build_eval_loader, evaluate

    config, task, model = load_run(run_dir)
    with prepare_for_inference(config, model) as (accelerator, model):
        with accelerator.local_main_process_first():
            datasets = task.load_datasets()
        split = split or ("test" if "test" in datasets else "validation")
        check_split(split, datasets)
        warn_about_changed_rows(run_dir, split, datasets[split])
        size = batch_size or config.eval_batch_size
        loader = build_eval_loader(datasets[split], task, accelerator, size)
        return evaluate(model, loader, task, accelerator)


def warn_about_changed_rows(run_dir: str | Path, split: str, dataset: Any) -> None:
    """Log that the rows of a split are not those with which the run was trained, if so."""
    from ftloop.checkpoint import find_checkpoints, load_state

    recorded = None  # a finished run needs only its folder model/
    with contextlib.suppress(UserError, IndexError):
        newest = find_checkpoints(Path(run_dir) / "checkpoints")[-1]
        recorded = load_state(newest).fingerprints.get(split)
    if recorded not in (None, fingerprint_of(dataset)):
        logger.warning(
            "the rows of %s are not those with which the run was trained: its scores are of other "
            "rows",
            split,
        )


def fingerprint_of(dataset: Any) -> str:
    """Return the digest of the rows of a split as it is recorded in the checkpoints of a run."""
    return getattr(dataset, "fingerprint", None) or f"{len(dataset)} rows"


def check_split(split: str, datasets: dict[str, Any]) -> None:
    """Raise UserError if a split cannot be evaluated."""
    from ftloop.sampler import UNBOUNDED

    if split not in datasets:
        raise UserError(
            f"the data has no split {split!r}{did_you_mean(split, datasets)}. "
            f"Its splits are {', '.join(datasets)}.",
            field="split",
        )
    if len(datasets[split]) == UNBOUNDED:
        finite = [name for name, dataset in datasets.items() if len(dataset) != UNBOUNDED]
        raise UserError(
            f"{split!r} is a stream, which has no end. Splits that can be evaluated: "
            f"{', '.join(finite) or 'none'}.",
            field="split",
        )


def predict_rows(
    run_dir: str | Path, rows: "Dataset", batch_size: int = 64
) -> list[dict[str, Any]]:
    """Predict new rows with a finished run, in one process: one dictionary per row, in their order.

    `rows` has the columns that the task reads (`task.input_columns`); labels are not needed.
    `Predictor.format_predictions` makes the dictionaries.
    """
    predictions = predict_blocks(run_dir, split_into_blocks(rows, BLOCK_SIZE), batch_size)
    return [prediction for _, block in predictions for prediction in block]


def split_into_blocks(rows: "Dataset", size: int) -> Iterator["Dataset"]:
    """Yield blocks of `size` rows in memory: `datasets` does not cache their maps on disk."""
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
    """Predict any number of rows block by block; yield each block with its predictions.

    Only one block is in memory. Within a block, rows are batched by length as in `evaluate_run`:
    for a split that is one block, the outputs are the same bits; for other batches, they are the
    same up to rounding. `precision` defaults to that of the run.
    """
    from ftloop.evaluation import build_eval_loader, iterate_predictions
    from ftloop.tasks.predictor import build_predictor

    config, task, model = load_run(run_dir, needs_data=False)
    if not hasattr(task, "predictor_class") and not hasattr(task, "build_dataset"):
        raise UserError(
            f"{type(task).__name__} cannot predict new rows: it has no predictor_class, and no "
            "methods prepare and build_dataset. See ftloop/tasks/predictor.py."
        )
    with prepare_for_inference(config, model, precision) as (accelerator, model):
        if accelerator.num_processes > 1:
            raise UserError(
                "prediction runs in one process: start it without torchrun or accelerate launch."
            )
        predictor = build_predictor(task)
        first_row = 0
        for block in blocks:
            dataset = predictor.prepare(block, first_row)
            loader = build_eval_loader(dataset, task, accelerator, batch_size)
            predictions: list[Any] = [None] * len(block)
            for values in iterate_predictions(model, loader, task, accelerator):
                row_ids = values.pop("row_ids").tolist()
                formatted = predictor.format_predictions(values)
                for row, prediction in zip(row_ids, formatted, strict=True):
                    predictions[row] = prediction
            accelerator._dataloaders.clear()  # it would keep every block in memory
            yield block, predictions
            first_row += len(block)
        predictor.log_summary()
