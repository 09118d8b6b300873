"""Count how often 95 % intervals contain the true score, in simulated populations.

    python -m benchmarks.coverage                    some minutes on one core
    python -m benchmarks.coverage --sets 200         faster and less precise

Draws many data sets of each size and computes the intervals of ftloop/report/bootstrap.py for each.
Prints the share that contains the true value: of accuracy, macro F1 and loss, and of the difference
of two models on the same rows, whose intervals are paired. With 1 000 sets, the standard error of a
share of 0.95 is 0.007. "three even" has 3 classes of equal size. "ten skewed" has 10 classes: the
largest has 34 % of the rows and the smallest 3 %.
"""

import time
from dataclasses import dataclass

import numpy
import tyro

from ftloop.report.bootstrap import intervals, paired_differences
from ftloop.report.scored import ScoredSplit
from ftloop.tasks import metrics

SIZES = (100, 400, 2000)
MEAN_LOSS = 0.4
METRICS = ("accuracy", "f1_macro")


@dataclass(frozen=True)
class Options:
    """How much is simulated."""

    sets: int = 1000  # data sets of each size
    resamples: int = 1000  # per interval
    seed: int = 0


@dataclass(frozen=True)
class Population:
    """Classes with known shares, and two models that tend to make mistakes on the same rows."""

    shares: numpy.ndarray  # [classes]
    accuracies: tuple[float, float]  # of the two models
    shared: float = 0.5  # share of the rows whose difficulty is the same for both models

    def draw(self, num_rows: int, rng: numpy.random.Generator) -> list[ScoredSplit]:
        """Return the same rows with the outputs of each model.

        A wrong prediction is another class with a probability in proportion to its share, so that
        false positives occur in rare classes too.
        """
        names = tuple(map(str, range(len(self.shares))))
        references = rng.choice(len(names), num_rows, p=self.shares)
        is_shared, difficulty = rng.random(num_rows) < self.shared, rng.random(num_rows)
        models = []
        for accuracy in self.accuracies:
            own_difficulty = numpy.where(is_shared, difficulty, rng.random(num_rows))
            mistakes = self.draw_mistakes(references, rng)
            predictions = numpy.where(own_difficulty < accuracy, references, mistakes)
            models.append(
                ScoredSplit(
                    split="test",
                    problem_type=metrics.SINGLE,
                    names=names,
                    references=references,
                    predictions=predictions,
                    probabilities=None,
                    losses=rng.exponential(MEAN_LOSS, num_rows),
                )
            )
        return models

    def draw_mistakes(
        self, references: numpy.ndarray, rng: numpy.random.Generator
    ) -> numpy.ndarray:
        """Return another class for each row."""
        cumulative = self.confusions.cumsum(axis=1)[references]
        return (cumulative[:, :-1] < rng.random((len(references), 1))).sum(axis=1)

    @property
    def confusions(self) -> numpy.ndarray:
        """[classes, classes]: the shares of the other classes among the mistakes in a class."""
        others = numpy.where(numpy.eye(len(self.shares)) > 0, 0, self.shares)
        return others / others.sum(axis=1, keepdims=True)

    def true_scores(self) -> list[dict[str, float]]:
        """Return the scores of each model on infinitely many rows."""
        scores = []
        for accuracy in self.accuracies:
            predicted = accuracy * self.shares + (1 - accuracy) * self.shares @ self.confusions
            f1 = 2 * accuracy * self.shares / (self.shares + predicted)
            scores.append({"loss": MEAN_LOSS, "accuracy": accuracy, "f1_macro": float(f1.mean())})
        return scores


def zipf(num_classes: int) -> numpy.ndarray:
    """Return shares in proportion to 1, 1/2, 1/3, ..."""
    shares = 1 / numpy.arange(1, num_classes + 1)
    return shares / shares.sum()


POPULATIONS = {
    "three even": Population(numpy.full(3, 1 / 3), (0.90, 0.87)),
    "ten skewed": Population(zipf(10), (0.80, 0.77)),
}


def simulate(
    population: Population, num_rows: int, options: Options
) -> dict[str, list[tuple[float, float, float]]]:
    """Return (true value, low, high) of each data set, by score."""
    results: dict[str, list[tuple[float, float, float]]] = {}
    first_scores, second_scores = population.true_scores()
    for number in range(options.sets):
        rng = numpy.random.default_rng([options.seed, num_rows, number])
        first, second = population.draw(num_rows, rng)
        settings = {"resamples": options.resamples, "seed": number}
        for score, interval in intervals(first, METRICS, **settings).items():
            values = (first_scores[score], interval.low, interval.high)
            results.setdefault(score, []).append(values)
        for score, difference in paired_differences(first, second, METRICS, **settings).items():
            true = first_scores[score] - second_scores[score]
            values = (true, difference.low, difference.high)
            results.setdefault(f"{score}, a - b", []).append(values)
    return results


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.coverage", description=__doc__)
    titles = f"{'coverage':>10}{'too low':>9}{'too high':>9}{'width':>8}"
    print(f"{'population':<12}{'rows':>6}  {'score':<16}{'true':>6}{titles}")
    for name, population in POPULATIONS.items():
        for num_rows in SIZES:
            began = time.perf_counter()
            for score, values in simulate(population, num_rows, options).items():
                true, low, high = numpy.array(values).T
                coverage = ((low <= true) & (true <= high)).mean()
                too_low, too_high = (high < true).mean(), (low > true).mean()
                cells = f"{coverage:>10.3f}{too_low:>9.3f}{too_high:>9.3f}"
                cells += f"{(high - low).mean():>8.3f}"
                line = f"{name:<12}{num_rows:>6}  {score:<16}{true[0]:>6.3f}{cells}"
                print(line, flush=True)
            seconds = time.perf_counter() - began
            print(f"{'':<20}{options.sets} sets in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
