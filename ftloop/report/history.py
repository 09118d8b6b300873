"""What a run wrote while it trained: metrics.jsonl as columns, and the last link of its ledger. Also of a run that is
not finished yet."""

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

MOST_POINTS = 1000  # of a curve: more than a screen has pixels for


@dataclass
class Series:
    """The values of one score over steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)  # None: not finite

    def thinned(self, most: int = MOST_POINTS) -> "Series":
        """At most so many points: each the mean of as many neighbours, at the step of the last of them."""
        size = -(-len(self.steps) // most)
        if size <= 1:
            return self
        known = numpy.array([numpy.nan if value is None else value for value in self.values])
        means = [known[begin : begin + size] for begin in range(0, len(known), size)]
        values = [float(numpy.nanmean(part)) if numpy.isfinite(part).any() else None for part in means]
        ends = [min(begin + size, len(known)) - 1 for begin in range(0, len(known), size)]
        return Series([self.steps[end] for end in ends], values)

    def smooth(self, share: float = 0.04) -> "Series":
        """The running mean over this share of the curve, to both sides as far as there are values."""
        known = numpy.array([numpy.nan if value is None else value for value in self.values])
        reach, fine = max(1, round(len(known) * share / 2)), numpy.isfinite(known)
        sums = numpy.concatenate([[0], numpy.cumsum(numpy.where(fine, known, 0))])
        counts = numpy.concatenate([[0], numpy.cumsum(fine)])
        places = numpy.arange(len(known))
        low, high = (places - reach).clip(0), (places + reach + 1).clip(max=len(known))
        counted = counts[high] - counts[low]
        means = (sums[high] - sums[low]) / counted.clip(1)
        return Series(self.steps, [float(mean) if count else None for mean, count in zip(means, counted, strict=True)])


@dataclass
class History:
    """metrics.jsonl by split and name, and what was measured of the speed."""

    scores: dict[tuple[str, str], Series]
    speed: dict[str, Series]  # rows_per_second, tokens_per_second, padding, data_wait, peak_memory_mb
    seconds: float  # from the first to the last line
    steps: int
    epochs: float

    @classmethod
    def read(cls, run_dir: Path) -> "History":
        scores: dict[tuple[str, str], Series] = defaultdict(Series)
        speed: dict[str, Series] = defaultdict(Series)
        times, steps, epochs = [], 0, 0.0
        for line in lines_of(run_dir / "metrics.jsonl"):
            series = scores[line["split"], line["name"]]
            series.steps.append(line["step"])
            series.values.append(line["value"])
            times.append(line["time"])
            if line["split"] == "train":
                steps, epochs = line["step"], line["epoch"]
            if "speed" in line and line["name"] == "loss":
                for name, value in {"rows_per_second": line["items_per_second"], **line["speed"]}.items():
                    speed[name].steps.append(line["step"])
                    speed[name].values.append(value)
        return cls(dict(scores), dict(speed), max(times) - min(times) if times else 0.0, steps, epochs)

    def of(self, split: str) -> dict[str, Series]:
        """The scores of a split by name, without those of single classes."""
        return {name: series for (of, name), series in self.scores.items() if of == split and "[" not in name}


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSON Lines file; none if there is no such file. The last may be half written just now."""
    if file.is_file():
        with file.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield json.loads(line)


def ledger_digest(run_dir: Path) -> str | None:
    """The last link of the ledger's chain, which stands for all that the run did; None without a ledger."""
    last = deque(lines_of(run_dir / "ledger.jsonl"), maxlen=1)
    return last[0]["chain"] if last else None
