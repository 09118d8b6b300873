"""A finished run, as reports and comparisons read it."""

from functools import cached_property
from pathlib import Path
from typing import Any

from ftloop.config import Config
from ftloop.report.scored import ScoredSplit, score_split
from ftloop.runs.finished import load_task

MAX_TRAIN_ROWS = 5000  # of the training split that are scored: the model has learned them


class FinishedRun:
    """The config, scores and task of a finished run, and its splits scored row by row.

    A split is scored when it is asked for, and once.
    """

    def __init__(self, run_dir: Path, config: Config, scores: dict[str, dict[str, float | None]]):
        self.run_dir, self.config, self.scores = run_dir, config, scores
        self._scored: dict[str, ScoredSplit] = {}

    @cached_property
    def task(self) -> Any:
        """The task with the labels that the model was trained with."""
        return load_task(self.config)

    def score(self, split: str) -> ScoredSplit:
        """Return the rows of a split with the outputs of the model; of train, at most 5000 rows."""
        if split not in self._scored:
            max_rows = MAX_TRAIN_ROWS if split == "train" else None
            self._scored[split] = score_split(self.run_dir, split, self.task, max_rows=max_rows)
        return self._scored[split]

    @property
    def held_out_splits(self) -> list[str]:
        """The splits that the model was not trained on: test first."""
        return [split for split in ("test", "validation") if split in self.scores]

    @property
    def main_split(self) -> str:
        """The split that most figures show: test, else validation, else train."""
        return (self.held_out_splits or ["train"])[0]

    @property
    def main_metric(self) -> str:
        """The score that is shown first: the one that chose the best weights.

        If that is the loss, it is the first metric of the task.
        """
        names = [name for name in self.scores[self.main_split] if name != "loss"]
        best_metric = self.config.best_metric
        return best_metric if best_metric in names or not names else names[0]
