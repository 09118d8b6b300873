"""The last lines of a run on the terminal: the weights that were kept, files, and commands."""

import logging
from typing import Any

from ftloop.extensions import Observer
from ftloop.metric_log import format_scores

logger = logging.getLogger("ftloop")

RECORDS = ("config.json", "metrics.jsonl", "scores.json")


class Summary(Observer):
    """Logs where a finished run left its files, and commands that continue from there."""

    def on_finish(self, run: Any, scores: dict[str, dict[str, float]]) -> None:
        """Log the summary."""
        state, folder = run.state, run.folder
        step, reason = state.best_step, f"the best {run.config.best_metric}"
        if step is None:
            step, reason = state.step, "the last, since there is no validation split"
        split = list(scores)[-1] if scores else "train"
        card = folder / "model" / "README.md"
        logger.info("")
        for name, values in scores.items():
            logger.info("%-11s %s", name, format_scores(values))
        logger.info("weights     of step %d of %d (%s)", step, state.step, reason)
        logger.info("model       %s", folder / "model")
        if card.is_file():
            logger.info("card        %s (fill in what is marked [to be filled])", card)
        logger.info("record      %s", ", ".join(str(folder / name) for name in RECORDS))
        logger.info("next        python evaluate.py %s --split %s", folder, split)
        logger.info("            python predict.py %s --help", folder)
