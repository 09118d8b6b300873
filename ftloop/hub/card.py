"""The model card of a run, model/README.md: metadata for the Hub, and what users of the model need.

What only a person knows is a field [to be filled: ...]. The last line of a card is a digest of its
text. A card that a person has edited does not match its digest and is never overwritten unasked.

Sources: Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv:1810.03993.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.config import Config
from ftloop.errors import UserError, read_json, root_cause
from ftloop.escape import for_markdown
from ftloop.extensions import Observer
from ftloop.files import refuse_links, write_text
from ftloop.hub import sections
from ftloop.hub.confusion_matrix import draw_confusion_matrix
from ftloop.hub.markdown import table
from ftloop.hub.metadata import Intervals, Scores, build_metadata
from ftloop.hub.usage import ADAPTER, LOCAL_MODEL, usage_example
from ftloop.metric_log import json_scores
from ftloop.runs.finished import load_task, recorded_environment
from ftloop.runs.record import load_config, options_needed

if TYPE_CHECKING:
    from ftloop.report.scored import ScoredSplit
    from ftloop.run import Run

logger = logging.getLogger("ftloop")

CARD = "README.md"
CONFUSION_MATRIX = "confusion_matrix.png"
SIGNATURE = re.compile(
    r"\n<!-- ftloop wrote this card; sha256 of the text above: ([0-9a-f]{64}) -->\n\Z"
)


class CardWriter(Observer):
    """Writes the model card when model/ is exported. A failure is only logged.

    When the run is finished, it writes the card again if there is a report, which computes the
    confidence intervals of the scores.
    """

    def on_finish(self, run: "Run", scores: dict[str, dict[str, float]]) -> None:
        if run.is_main_process and (run.folder / "outputs").is_dir():
            self.on_export(run, scores)

    def on_export(self, run: "Run", scores: dict[str, dict[str, float]]) -> None:
        valid_scores = {split: json_scores(values) for split, values in scores.items()}
        try:
            write_card(run.folder, run.config, run.task, valid_scores)
        except Exception as error:  # a task can raise anything, and so can a disk
            logger.error(
                "The model card could not be written: %s. Try again with "
                "python -m ftloop.cli card %s",
                root_cause(error),
                run.folder,
            )


def write_card(
    run_dir: Path,
    config: Config | None = None,
    task: Any = None,
    scores: Scores | None = None,
    *,
    compute: bool = False,
    overwrite: bool = False,
) -> str:
    """Write model/README.md of a finished run and its confusion matrix; return a line about it.

    `config`, `task` and `scores` are read from the run if they are not given. Intervals and the
    confusion matrix need the outputs of each row: those that the report left in RUN/outputs or,
    with `compute`, those of a new evaluation. An edited card is not changed, unless `overwrite`.
    Raises UserError if the run is not finished.
    """
    refuse_links(run_dir)
    folder = run_dir / "model"
    file = folder / CARD
    if scores is None:
        scores = read_scores(run_dir)
    if file.is_file() and is_edited(file.read_text(encoding="utf-8")) and not overwrite:
        return (
            f"{file} was edited and is not changed. To replace it: "
            f"python -m ftloop.cli card {run_dir} --overwrite"
        )
    config = config or load_config(run_dir)
    task = task or load_task(config)
    outputs = load_outputs(run_dir, task, scores, compute)
    if outputs:
        last_split = list(outputs)[-1]  # test, if there is one
        draw_confusion_matrix(outputs[last_split], folder / CONFUSION_MATRIX)
    write_text(file, build_card(folder, config, task, scores, outputs))
    if outputs or compute:
        return str(file)
    command = " ".join(["python -m ftloop.cli card", str(run_dir), *options_needed(config)])
    return f"{file} ({command} adds intervals and a confusion matrix)"


def read_scores(run_dir: Path) -> Scores:
    """Return the scores of a finished run. Raises UserError if it is not finished."""
    file = run_dir / "scores.json"
    if not file.is_file():
        raise UserError(
            f"{str(run_dir)!r} has no scores.json: its training is not finished, or it is no run."
        )
    return read_json(file, dict[str, dict[str, float | None]])


def build_card(
    folder: Path,
    config: Config,
    task: Any,
    scores: Scores,
    outputs: "dict[str, ScoredSplit] | None" = None,
    step: int | None = None,
) -> str:
    """Return the text of a card for the model in a folder.

    `outputs` are those of each row by split, for intervals. `step` is given for weights that are
    pushed before training has ended.
    """
    config_file = folder / "config.json"
    model_config = read_json(config_file, dict[str, Any]) if config_file.is_file() else {}
    run_dir = Path(config.run_dir)
    title = run_dir.resolve().name
    environment = recorded_environment(run_dir)
    intervals = compute_intervals(task, outputs or {})
    exported = scores.get("validation") if step is None else None
    versions = sections.library_versions(environment)
    parts = [
        build_metadata(
            title, config.task, model_config, scores, intervals, (folder / ADAPTER).is_file()
        ),
        f"# {for_markdown(title)}",
        sections.describe_model(config.task, model_config, step),
        "## Intended uses and limits",
        sections.INTENDED_USES,
        "## How to use it",
        usage_example(task, model_config, folder),
        "## Data",
        sections.describe_data(getattr(config.task, "data", None), task),
        "## Preprocessing",
        sections.describe_preprocessing(config.task, task),
        "## Training",
        "Trained with ftloop, a hand-written PyTorch training loop.",
        sections.describe_hyperparameters(config, environment),
        sections.training_table(sections.read_metric_log(run_dir), exported),
        "## Evaluation",
        sections.results_table(scores, intervals),
    ]
    if outputs and (folder / CONFUSION_MATRIX).is_file():
        parts.append(f"![Confusion matrix on {list(outputs)[-1]}]({CONFUSION_MATRIX})")
    parts += ["## Versions", table([["library", "version"], *map(list, versions.items())])]
    return sign("\n\n".join(part for part in parts if part) + "\n")


# The outputs of each row


def load_outputs(
    run_dir: Path, task: Any, scores: Scores, compute: bool
) -> "dict[str, ScoredSplit]":
    """Return the outputs of each row of the splits that have scores; with `compute`, compute them.

    A split is left out if its rows have no labels or its stored outputs belong to other weights.
    Without the part report/, there are none.
    """
    try:
        from ftloop.report import scored
    except ModuleNotFoundError:
        return {}
    outputs = {}
    for split in scores:
        file = run_dir / "outputs" / f"{split}.npz"
        try:
            if compute:
                outputs[split] = scored.score_split(run_dir, split)
            elif file.is_file():
                key = scored.storage_key(run_dir, split, scored.find_rows(task, split))
                outputs[split] = scored.ScoredSplit.load(file, key)
        except (UserError, ValueError) as error:
            logger.info("The model card has no intervals for %s: %s", split, error)
    return outputs


def compute_intervals(task: Any, outputs: "dict[str, ScoredSplit]") -> Intervals:
    """Return 95 % bootstrap intervals by split and score."""
    if not outputs:
        return {}
    from ftloop.report.bootstrap import intervals

    return {split: intervals(rows, task.metric_names) for split, rows in outputs.items()}


# The digest of a card


def sign(text: str) -> str:
    """Append the digest of a card's text as its last line."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- ftloop wrote this card; sha256 of the text above: {digest} -->\n"


def is_edited(text: str) -> bool:
    """Tell whether a card differs from what ftloop wrote, apart from its line endings."""
    text = text.replace("\r\n", "\n")
    signature = SIGNATURE.search(text)
    if signature is None:
        return True
    return hashlib.sha256(text[: signature.start()].encode()).hexdigest() != signature[1]


def card_for_repository(text: str, repository: str) -> str:
    """Return a card whose example loads the model from a repository."""
    changed = text.replace(LOCAL_MODEL, f'model = "{repository}"')
    return changed if is_edited(text) else sign(SIGNATURE.sub("", changed))
