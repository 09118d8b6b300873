"""Read what a run wrote while it trained: metrics.jsonl as series, and the last link of its ledger.

A run that is still training can be read too.
"""

import contextlib
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from ftloop.errors import UserError, read_json
from ftloop.files.metric_lines import read_metric_lines

MAX_POINTS = 1000  # of a curve: more than a screen has pixels for


@dataclass
class Series:
    """The values of one score by optimizer step."""

    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)  # None: not finite

    def downsample(self, max_points: int = MAX_POINTS) -> "Series":
        """Return at most `max_points` points: means of neighbors, at the last of their steps."""
        size = math.ceil(len(self.steps) / max_points)
        if size <= 1:
            return self
        values = self.as_array()
        downsampled = Series()
        for start in range(0, len(values), size):
            group = values[start : start + size]
            has_value = numpy.isfinite(group).any()
            downsampled.steps.append(self.steps[start + len(group) - 1])
            downsampled.values.append(float(numpy.nanmean(group)) if has_value else None)
        return downsampled

    def smooth(self, share: float = 0.04) -> "Series":
        """Return the centered running mean over this share of the curve."""
        values = self.as_array()
        is_known = numpy.isfinite(values)
        radius = max(1, round(len(values) * share / 2))
        # Sums over windows are differences of cumulative sums.
        sums = numpy.concatenate([[0], numpy.cumsum(numpy.where(is_known, values, 0))])
        counts = numpy.concatenate([[0], numpy.cumsum(is_known)])
        places = numpy.arange(len(values))
        start = (places - radius).clip(0)
        end = (places + radius + 1).clip(max=len(values))
        window_counts = counts[end] - counts[start]
        means = (sums[end] - sums[start]) / window_counts.clip(1)
        smoothed = [
            float(mean) if count else None for mean, count in zip(means, window_counts, strict=True)
        ]
        return Series(self.steps, smoothed)

    def as_array(self) -> numpy.ndarray:
        """Return the values as float64, with NaN for those that are not finite."""
        return numpy.array([numpy.nan if value is None else value for value in self.values])


@dataclass
class History:
    """metrics.jsonl by split and name, and what was measured of the speed."""

    scores: dict[tuple[str, str], Series]  # by split and name
    speed: dict[str, Series]  # rows_per_second, data_wait, ...: the names of Observer.on_log
    seconds: float  # from the first line to the last one
    steps: int
    epochs: float

    @classmethod
    def read(cls, run_dir: Path) -> "History":
        """Read the history of a run. It is empty for a run that logged nothing yet."""
        scores: dict[tuple[str, str], Series] = defaultdict(Series)
        speed: dict[str, Series] = defaultdict(Series)
        times, steps, epochs = [], 0, 0.0
        for line in read_metric_lines(run_dir / "metrics.jsonl"):
            series = scores[line["split"], line["name"]]
            series.steps.append(line["step"])
            series.values.append(line["value"])
            times.append(line["time"])
            if line["split"] == "train":
                steps, epochs = line["step"], line["epoch"]
            if "speed" in line and line["name"] == "loss":
                measured = {"rows_per_second": line["items_per_second"], **line["speed"]}
                for name, value in measured.items():
                    speed[name].steps.append(line["step"])
                    speed[name].values.append(value)
        seconds = max(times) - min(times) if times else 0.0
        return cls(dict(scores), dict(speed), seconds, steps, epochs)

    def of_split(self, split: str) -> dict[str, Series]:
        """Return the scores of a split by name, without those of one class ("recall[benign]")."""
        return {
            name: series
            for (of_split, name), series in self.scores.items()
            if of_split == split and "[" not in name
        }


def ledger_digest(run_dir: Path) -> str | None:
    """Return the last link of the ledger's chain, a digest of all steps.

    None without a ledger, and for one whose last line is not that of a ledger.
    """
    file = run_dir / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)[-2:] if file.is_file() else []
    complete = [line for line in lines if line.endswith(b"\n")]
    with contextlib.suppress(UserError, IndexError):
        return str(read_json(file, dict[str, Any], complete[-1]).get("chain"))
    return None
