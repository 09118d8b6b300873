"""Change labels of banking77 at random, fine-tune on them, and count how many of them are found.

    python -m benchmarks.label_noise --data banking77              folder with train.csv
    python -m benchmarks.label_noise --data banking77 --epochs 8   the model memorizes many of them

train.csv has the columns text and category. A changed label is drawn evenly from the other classes.
The benchmark prints, for each ranking of the rows, the recall of the changed labels among equally
many first rows, and then how many labels are estimated to be wrong. Labels that were wrong before
count as right, although banking77 has errors of its own.
"""

import csv
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy
import tyro

from ftloop.cli.exit_codes import run_main

if TYPE_CHECKING:
    from ftloop.report.scored import ScoredSplit


@dataclass(frozen=True)
class Options:
    """Change labels, fine-tune MiniLM on them, and rank the rows by doubt."""

    data: Path  # folder with train.csv
    share: float = 0.05  # of the rows, whose labels are changed
    epochs: int = 3
    learning_rate: float = 2e-4
    seed: int = 0  # of the changed labels
    folder: Path | None = None  # for the run, which is resumed if it exists. Default: temporary


def change_labels(source: Path, changed: Path, share: float, seed: int) -> None:
    """Write a file with a share of its labels changed, and a column "changed" of 0 and 1."""
    with source.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names, rng = sorted({row["category"] for row in rows}), numpy.random.default_rng(seed)
    chosen = set(rng.choice(len(rows), round(share * len(rows)), replace=False).tolist())
    for number, row in enumerate(rows):
        row["changed"] = int(number in chosen)
        if number in chosen:
            row["category"] = rng.choice([name for name in names if name != row["category"]])
    with changed.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def train_and_rank(options: Options, folder: Path) -> list[str]:
    """Return the lines to print."""
    from ftloop.config import Config
    from ftloop.data import Data
    from ftloop.data.samples import find_minilm
    from ftloop.loop import train
    from ftloop.report.features import extract_features, initial_task
    from ftloop.report.label_errors import predict_out_of_fold
    from ftloop.report.scored import score_split
    from ftloop.runs.finished import load_run
    from ftloop.tasks import TextClassification

    # Train
    folder.mkdir(parents=True, exist_ok=True)
    file, run_dir = folder / "train.csv", folder / "run"
    if not file.exists():
        change_labels(options.data / "train.csv", file, options.share, options.seed)
    data = Data(files={"train": str(file)})
    task = TextClassification(
        model=find_minilm(), data=data, label_column=("category",), max_length=64
    )
    config = Config(task, str(run_dir), epochs=options.epochs, learning_rate=options.learning_rate)
    train(config)

    # Outputs of the run, and two second opinions: a linear classifier on the features of a model
    _, finished_task, model = load_run(run_dir)
    scored = score_split(run_dir, "train", finished_task, model)
    is_changed = numpy.array(finished_task.rows["train"]["changed"][:], bool)
    began = time.perf_counter()
    start = initial_task(config, finished_task)
    features = {
        "pretrained": extract_features(config, start, start.build_model(), "train")[1],
        "fine-tuned": extract_features(config, finished_task, model, "train")[1],
    }
    feature_seconds = time.perf_counter() - began
    began = time.perf_counter()
    opinions = {name: predict_out_of_fold(values, scored) for name, values in features.items()}
    fit_seconds = time.perf_counter() - began
    lines = [
        *describe_rankings(scored, is_changed, opinions),
        *describe_memorization(scored, is_changed, opinions["pretrained"], options.seed),
        *describe_estimate(scored, is_changed, opinions["pretrained"]),
    ]
    seconds = f"{feature_seconds:.0f} s, 5 logistic regressions on each {fit_seconds:.0f} s"
    return [f"after {options.epochs} epochs:", *lines, f"features of both models {seconds}"]


def describe_rankings(
    scored: "ScoredSplit", is_changed: numpy.ndarray, opinions: dict[str, numpy.ndarray]
) -> list[str]:
    """Return the recall of each ranking of the rows."""
    from ftloop.report.label_errors import rank_by_doubt

    rankings = {"loss of the run": numpy.argsort(-scored.losses, kind="stable")}
    for name, probabilities in opinions.items():
        rankings[f"out of fold, {name} features"] = rank_by_label(probabilities, scored)
        ranking = rank_by_doubt(scored, probabilities).places
        rankings[f"the run and out of fold, {name} features"] = ranking
    num_changed, is_right = int(is_changed.sum()), ~scored.wrong
    lines = [
        f"{num_changed} of {len(is_changed)} labels are changed. The run predicts "
        f"{is_right[is_changed].mean():.3f} of them, and {is_right[~is_changed].mean():.3f} of the "
        "others."
    ]
    for name, ranking in rankings.items():
        lines.append(f"{name:<48} recall {is_changed[ranking[:num_changed]].mean():.3f}")
    return lines


def describe_memorization(
    scored: "ScoredSplit", is_changed: numpy.ndarray, opinion: numpy.ndarray, seed: int
) -> list[str]:
    """Return the recall if the run had memorized some of all labels."""
    from ftloop.report.label_errors import rank_by_doubt

    lines = ["if the run had memorized some of all labels (0.9 of the probability moved to them):"]
    num_changed = int(is_changed.sum())
    for share in (0.25, 0.5, 0.75):
        memorized = memorize(scored, share, seed)
        alone = rank_by_label(memorized.probabilities, memorized)
        with_opinion = rank_by_doubt(memorized, opinion).places
        recalls = [is_changed[order[:num_changed]].mean() for order in (alone, with_opinion)]
        lines.append(
            f"    {share:.0%} of them: the run alone {recalls[0]:.3f}, with the second opinion "
            f"{recalls[1]:.3f}"
        )
    return lines


def describe_estimate(
    scored: "ScoredSplit", is_changed: numpy.ndarray, opinion: numpy.ndarray
) -> list[str]:
    """Return how many labels are estimated to be wrong, and how many of them were changed."""
    from ftloop.report.label_errors import rank_by_doubt

    errors = rank_by_doubt(scored, opinion)
    hits = is_changed[errors.places[: errors.estimate]]
    precision, recall = hits.mean(), hits.sum() / is_changed.sum()
    return [
        f"estimated to be wrong: {errors.estimate}, precision {precision:.3f}, recall {recall:.3f}"
    ]


def rank_by_label(probabilities: numpy.ndarray, scored: "ScoredSplit") -> numpy.ndarray:
    """Return the rows by the probability of their own label, the lowest first."""
    own = probabilities[numpy.arange(scored.rows), scored.references]
    return numpy.argsort(own, kind="stable")


def memorize(scored: "ScoredSplit", share: float, seed: int) -> "ScoredSplit":
    """Return the rows with the outputs of a model that has memorized a share of the labels."""
    rows = numpy.flatnonzero(numpy.random.default_rng(seed).random(scored.rows) < share)
    assert scored.probabilities is not None  # they are classes
    probabilities = scored.probabilities.copy()
    probabilities[rows] *= 0.1
    probabilities[rows, scored.references[rows]] += 0.9
    return replace(scored, probabilities=probabilities)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.label_noise", description=__doc__)
    with TemporaryDirectory() as folder:
        print("\n".join(train_and_rank(options, options.folder or Path(folder))))


if __name__ == "__main__":
    sys.exit(run_main(main))
