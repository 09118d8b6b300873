"""How often do intervals hold the true value? By simulation, from populations whose true scores are known.

    python -m benchmarks.coverage                    some minutes on one core
    python -m benchmarks.coverage --sets 200         quicker, and rougher

Draws many data sets of each size, makes the 95 % intervals of ftloop/report/bootstrap.py of each, and prints the share
that holds the true value: of accuracy, macro F1 and loss, and of the difference of two models on the same rows, whose
intervals are paired. With 1 000 sets, a share of 0.95 is known to 0.014. "three even": 3 classes of equal size. "ten
skewed": 10 classes of which the largest has 34 % of the rows and the smallest 3 %.
"""

import time
from dataclasses import dataclass

import numpy
import tyro

from ftloop.tasks import metrics
from ftloop.report.bootstrap import intervals, paired_differences
from ftloop.report.scored import ScoredSplit

SIZES = (100, 400, 2000)
MEAN_LOSS = 0.4


@dataclass(frozen=True)
class Population:
    """Classes with known shares, and two models whose mistakes are known: they tend to make them on the same rows."""

    shares: numpy.ndarray  # [classes]
    right: tuple[float, float]  # how often each model is right
    shared: float = 0.5  # of the rows, in which both are right or wrong together, as far as they can be

    def draw(self, rows: int, random: numpy.random.Generator) -> list[ScoredSplit]:
        """The same rows as both models see them. Who errs says one of the other classes, each as likely as its share
        (so that false alarms are in rare classes too)."""
        names = tuple(map(str, range(len(self.shares))))
        truth = random.choice(len(names), rows, p=self.shares)
        together, luck = random.random(rows) < self.shared, random.random(rows)
        models = []
        for right in self.right:
            correct = numpy.where(together, luck, random.random(rows)) < right
            predictions = numpy.where(correct, truth, self.mistake(truth, random))
            losses = random.exponential(MEAN_LOSS, rows)
            models.append(ScoredSplit("test", metrics.SINGLE, names, truth, predictions, None, losses))
        return models

    def mistake(self, truth: numpy.ndarray, random: numpy.random.Generator) -> numpy.ndarray:
        """Another class for each row."""
        cumulated = self.confusions.cumsum(axis=1)[truth]
        return (cumulated[:, :-1] < random.random((len(truth), 1))).sum(axis=1)

    @property
    def confusions(self) -> numpy.ndarray:
        """[classes, classes]: of a mistake in a class, the share of each other one."""
        others = numpy.where(numpy.eye(len(self.shares)) > 0, 0, self.shares)
        return others / others.sum(axis=1, keepdims=True)

    def truths(self) -> list[dict[str, float]]:
        """The scores of each model on rows without end."""
        found = []
        for right in self.right:
            predicted = right * self.shares + (1 - right) * self.shares @ self.confusions
            f1 = 2 * right * self.shares / (self.shares + predicted)
            found.append({"loss": MEAN_LOSS, "accuracy": right, "f1_macro": float(f1.mean())})
        return found


def zipf(classes: int) -> numpy.ndarray:
    shares = 1 / numpy.arange(1, classes + 1)
    return shares / shares.sum()


POPULATIONS = {
    "three even": Population(numpy.full(3, 1 / 3), (0.90, 0.87)),
    "ten skewed": Population(zipf(10), (0.80, 0.77)),
}


def main(sets: int = 1000, resamples: int = 1000, seed: int = 0) -> None:
    """Print the coverage of intervals.

    Args:
        sets: data sets of each size
        resamples: of each interval
        seed: of everything that is drawn
    """
    heads = f"{'coverage':>10}{'too low':>9}{'too high':>9}{'width':>8}"
    print(f"{'population':<12}{'rows':>6}  {'score':<16}{'true':>6}{heads}")
    for name, population in POPULATIONS.items():
        for rows in SIZES:
            began, found = time.perf_counter(), {}
            for number in range(sets):
                one, other = population.draw(rows, numpy.random.default_rng([seed, rows, number]))
                (true, lesser), how = population.truths(), {"resamples": resamples, "seed": number}
                for score, interval in intervals(one, ("accuracy", "f1_macro"), **how).items():
                    found.setdefault(score, []).append((true[score], interval.low, interval.high))
                for score, paired in paired_differences(one, other, ("accuracy", "f1_macro"), **how).items():
                    found.setdefault(f"{score}, a - b", []).append(
                        (true[score] - lesser[score], paired.low, paired.high)
                    )
            for score, drawn in found.items():
                true, low, high = numpy.array(drawn).T
                shares = [((low <= true) & (true <= high)).mean(), (high < true).mean(), (low > true).mean()]
                said = f"{shares[0]:>10.3f}{shares[1]:>9.3f}{shares[2]:>9.3f}{(high - low).mean():>8.3f}"
                print(f"{name:<12}{rows:>6}  {score:<16}{true[0]:>6.3f}{said}", flush=True)
            print(f"{'':<20}{sets} sets in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.coverage", description=__doc__)
