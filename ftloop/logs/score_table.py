"""The table of validation scores: a header, then one line for each evaluation."""

import logging
import math
from typing import Any

from ftloop.extensions import Observer
from ftloop.files.metric_lines import read_metric_lines

logger = logging.getLogger("ftloop")

MAX_METRICS = 8  # columns; metrics.jsonl has all
MIN_WIDTH = 7  # of a column, in characters


class ScoreTable(Observer):
    """Logs a line for each evaluation on validation, with the mean training loss before it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.losses: list[tuple[int, float]] = []  # (rows, loss) of the steps since the last line

    def on_start(self, run: Any) -> None:
        """Read the losses of the steps between the last evaluation and the resumed step."""
        file = run.folder / "metrics.jsonl"
        if not run.is_main_process or run.state.step == 0 or not file.is_file():
            return
        for line in read_metric_lines(file):
            is_loss = line["split"] == "train" and line["name"] == "loss"
            is_new = run.state.last_eval_step < line["step"] <= run.state.step
            if is_loss and is_new and line["value"] is not None:
                rows = len(run.sampler.plan(line["step"] - 1).row_ids)
                self.losses.append((rows, line["value"]))

    def on_log(self, run: Any, steps: list[Any], speed: dict[str, float]) -> None:
        """Remember the losses of the steps."""
        self.losses += [(len(record.plan.row_ids), record.loss) for record in steps]

    def on_scores(self, run: Any, split: str, scores: dict[str, float], epoch: float) -> None:
        """Log a line, and before the first one a header."""
        if split != "validation":
            return
        rows = sum(count for count, _ in self.losses)
        total = sum(count * loss for count, loss in self.losses)
        self.losses = []
        if not self.names:
            self._log_header(scores, run.config.best_metric)
        values = [total / rows if rows else math.nan, *(scores[name] for name in self.names)]
        cells = [str(run.state.step), f"{epoch:.2f}", *(f"{value:.4f}" for value in values)]
        widths = [max(len(title), MIN_WIDTH) for title in self._titles()]
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        if run.state.best_step == run.state.step:
            logger.info("%s  best", line, extra={"highlighted": "best"})
        else:
            logger.info("%s", line)

    def _log_header(self, scores: dict[str, float], best_metric: str) -> None:
        metrics = [name for name in scores if name != "loss"]
        shown = {*metrics[:MAX_METRICS], best_metric}
        self.names = ["loss", *(name for name in metrics if name in shown)]
        num_hidden = len(scores) - len(self.names)
        note = f"  ({num_hidden} more in metrics.jsonl)" if num_hidden else ""
        logger.info("%s%s", "  ".join(title.rjust(MIN_WIDTH) for title in self._titles()), note)

    def _titles(self) -> list[str]:
        titles = ["Step", "Epoch", "Training Loss", "Validation Loss"]
        return titles + [format_title(name) for name in self.names[1:]]


def format_title(name: str) -> str:
    """Return the title of a score: "f1_macro" becomes "F1 Macro"; a label in brackets is kept."""
    score, bracket, label = name.partition("[")
    return " ".join(word.capitalize() for word in score.split("_")) + bracket + label
