"""Plant wrong labels in banking77's train, fine-tune on them, and see how many of them are found.

    python -m benchmarks.label_noise --data banking77                  the folder with train.csv (text, category)
    python -m benchmarks.label_noise --data banking77 --epochs 8       trained until it knows many of them by heart

Prints, for each ranking of the rows, the recall of the planted ones among as many of the first rows; then how many are
said to be wrong. A planted label is drawn evenly from the other classes. What was wrong before counts as right: the
labels of banking77 have errors of their own.
"""

import csv
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
import tyro

from ftloop.cli.exit_codes import run_main


@dataclass(frozen=True)
class Options:
    """Plant wrong labels, fine-tune MiniLM on them, and rank the rows by doubt."""

    data: Path  # folder with train.csv
    share: float = 0.05  # of the rows, whose labels are made wrong
    epochs: int = 3
    learning_rate: float = 2e-4
    seed: int = 0  # of what is planted
    folder: Path | None = None  # for the run, which is gone on with if it is there; left out: a temporary one


def plant(source: Path, planted: Path, share: float, seed: int) -> None:
    """The file with `share` of its labels changed, and a column "planted"."""
    with source.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names, draw = sorted({row["category"] for row in rows}), numpy.random.default_rng(seed)
    chosen = set(draw.choice(len(rows), round(share * len(rows)), replace=False).tolist())
    for number, row in enumerate(rows):
        row["planted"] = int(number in chosen)
        if number in chosen:
            row["category"] = draw.choice([name for name in names if name != row["category"]])
    with planted.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(options: Options, folder: Path) -> list[str]:
    from ftloop.config import Config
    from ftloop.data import Data
    from ftloop.data.samples import find_minilm
    from ftloop.loop import train
    from ftloop.report.features import extract_features, without_augmentation
    from ftloop.report.label_errors import predict_out_of_fold, rank_by_doubt
    from ftloop.report.scored import score_split
    from ftloop.runs.finished import load_run
    from ftloop.tasks import TextClassification

    folder.mkdir(parents=True, exist_ok=True)
    file, run_dir = folder / "train.csv", folder / "run"
    if not file.exists():
        plant(options.data / "train.csv", file, options.share, options.seed)
    data = Data(files={"train": str(file)})
    task = TextClassification(model=find_minilm(), data=data, label_column=("category",), max_length=64)
    config = Config(task, str(run_dir), epochs=options.epochs, learning_rate=options.learning_rate)
    train(config)
    _, kept, model = load_run(run_dir)
    scored = score_split(run_dir, "train", kept, model)
    planted = numpy.array(kept.rows["train"]["planted"][:], bool)
    began = time.perf_counter()
    untrained = without_augmentation(task)
    features = {
        "pretrained": extract_features(config, untrained, untrained.build_model(), "train")[1],
        "fine-tuned": extract_features(config, kept, model, "train")[1],
    }
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    opinions = {name: predict_out_of_fold(of, scored) for name, of in features.items()}
    fitting = time.perf_counter() - began
    rankings = {
        "loss of the run": numpy.argsort(-scored.losses, kind="stable"),
        **{f"out of fold, {name} features, alone": doubtful(one, scored) for name, one in opinions.items()},
        "the run and out of fold, fine-tuned features": rank_by_doubt(scored, opinions["fine-tuned"]).places,
        "the run and out of fold, pretrained features": rank_by_doubt(scored, opinions["pretrained"]).places,
    }
    count, lines = int(planted.sum()), []
    right = ~scored.wrong
    lines.append(f"{count} of {len(planted)} labels are planted. After {options.epochs} epochs, the run predicts")
    lines.append(f"{right[planted].mean():.3f} of the planted ones, and {right[~planted].mean():.3f} of the others")
    lines += [f"{name:<48} recall {planted[order[:count]].mean():.3f}" for name, order in rankings.items()]
    lines.append("as if the run knew some of all labels by heart (nine tenths of its probability moved to them):")
    for known in (0.25, 0.5, 0.75):
        changed = by_heart(scored, known, options.seed)
        both = rank_by_doubt(changed, opinions["pretrained"]).places
        alone = doubtful(changed.probabilities, changed)
        hits = [planted[order[:count]].mean() for order in (alone, both)]
        lines.append(f"    {known:.0%} of them: the run alone {hits[0]:.3f}, with the second opinion {hits[1]:.3f}")
    found = rank_by_doubt(scored, opinions["pretrained"])
    hits = planted[found.places[: found.estimate]]
    lines.append(f"said to be wrong: {found.estimate}, precision {hits.mean():.3f}, recall {hits.sum() / count:.3f}")
    lines.append(f"features of both models {seconds:.0f} s, both times 5 logistic regressions {fitting:.0f} s")
    return lines


def doubtful(probabilities: numpy.ndarray, scored) -> numpy.ndarray:
    """Rows by the probability of their own label, the lowest first."""
    return numpy.argsort(probabilities[numpy.arange(scored.rows), scored.references], kind="stable")


def by_heart(scored, share: float, seed: int):
    """The rows as a model would see them that has learned some of the labels by heart."""
    rows = numpy.flatnonzero(numpy.random.default_rng(seed).random(scored.rows) < share)
    probabilities = scored.probabilities.copy()
    probabilities[rows] *= 0.1
    probabilities[rows, scored.references[rows]] += 0.9
    return replace(scored, probabilities=probabilities)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.label_noise", description=__doc__)
    with TemporaryDirectory() as aside:
        print("\n".join(run(options, options.folder or Path(aside))))


if __name__ == "__main__":
    sys.exit(run_main(main))
