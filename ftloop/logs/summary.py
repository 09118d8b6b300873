"""The last lines of a run on the terminal: the weights that were kept, files, and commands."""

import logging
from typing import Any

from ftloop.extensions import Observer
from ftloop.sampler import UNBOUNDED

logger = logging.getLogger("ftloop")

RECORDS = ("config.json", "metrics.jsonl", "scores.json")


class Summary(Observer):
    """Logs what will be trained; at the end, where the files are, and commands that continue."""

    def on_start(self, run: Any) -> None:
        """Log the numbers of steps, rows and processes, and the limits of a forward pass."""
        sampler = run.sampler
        rows = "a stream" if sampler.num_rows == UNBOUNDED else f"{sampler.num_rows} rows"
        limit = f"{sampler.micro_batch_size} rows"
        if sampler.group_by_length and sampler.max_tokens is not None:
            limit += f" and {sampler.max_tokens} tokens"
        count = sampler.num_processes
        logger.info(
            "training    %d optimizer steps of %d rows, from %s; at most %s per forward pass%s",
            sampler.total_steps,
            sampler.rows_per_step,
            rows,
            limit,
            f" on each of {count} processes" if count > 1 else "",
        )

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


def format_scores(scores: dict[str, float]) -> str:
    """Format scores for a log line: "loss 0.3121  accuracy 0.8912"."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
