"""Experiment trackers by `--track`: TensorBoard, W&B, trackio, MLflow and others of accelerate.

A tracker gets what metrics.jsonl gets: for each step and split a point with values such as
"train/loss" and "test/accuracy". After an interruption it continues its own record, by the id in
RUN/trackers/NAME.id. Steps that are trained again give the same values, so no point is sent twice:
RUN/trackers/NAME.sent holds the last one. A tracker that is added later gets all earlier points.
(If the process is killed, trackio loses what its thread has not stored, half a second at most.)

Nothing here waits for the GPU or for a person. A tracker that cannot start is an error before the
first step. One that fails later gets no more points, and training continues.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ftloop.config import Config, encode
from ftloop.errors import UserError, did_you_mean, root_cause
from ftloop.extensions import Observer
from ftloop.files import refuse_links
from ftloop.files.metric_lines import parse_metric_lines
from ftloop.logs.tracker_types import TRACKERS, Tracker

if TYPE_CHECKING:
    from ftloop.run import Run

logger = logging.getLogger("ftloop")

MAX_SETTING_LENGTH = 250  # characters of the value of an option, which some trackers limit


def validate_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that accelerate does not know, or that is not installed.

    accelerate itself would leave it out. No tracker is imported.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {str(name) for name in get_available_trackers()}
    if find_spec("tensorboard") is None:
        installed.discard("tensorboard")  # accelerate also accepts tensorboardX
    for name in names:
        if name not in known:
            suggestion = did_you_mean(name, known)
            message = f"{name!r} is not a tracker{suggestion}. Choose from {', '.join(known)}."
            raise UserError(message, field="track")
        is_own_class = LOGGER_TYPE_TO_CLASS[name].__module__ != "accelerate.tracking"
        if name not in installed and not is_own_class:
            package = name.replace("_", "-")
            raise UserError(f"{name} is not installed: pip install {package}", field="track")
    if len(set(names)) < len(names):
        raise UserError(f"{' '.join(names)} names a tracker twice.", field="track")


class Trackers(Observer):
    """Sends the points of metrics.jsonl to trackers, from the main process."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.trackers: list[Tracker] = []
        self.metrics_file: TextIO | None = None

    def on_start(self, run: "Run") -> None:
        """Start the trackers, and send what they do not have yet. Raises UserError."""
        if not run.is_main_process:
            return
        folder = run.folder / "trackers"
        folder.mkdir(exist_ok=True)
        refuse_links(folder)
        for name in self.names:
            tracker = TRACKERS.get(name, Tracker)(name, folder, run.folder.absolute().name)
            try:
                tracker.start(flatten_config(run.config))
            except Exception as error:  # each library raises its own
                message = f"{name} cannot start: {root_cause(error)}"
                raise UserError(message, field="track") from error
            self.trackers.append(tracker)
        self.metrics_file = (run.folder / "metrics.jsonl").open(encoding="utf-8")
        self._send_new_points()

    def on_log(self, run: "Run", steps: list[Any], speed: dict[str, float]) -> None:
        self._send_new_points()

    def on_scores(self, run: "Run", split: str, scores: dict[str, float], epoch: float) -> None:
        self._send_new_points()

    def close(self, run: "Run") -> None:
        """Send the report of a finished run, and log where the records are."""
        report = run.folder / "report.html"
        if run.is_finished and report.is_file():
            self._for_each(lambda tracker: tracker.send_report(report, run.state.step))
        self._for_each(lambda tracker: tracker.finish())
        for tracker in self.trackers:
            location = tracker.location or "as it is configured"
            logger.info("tracked     %s: %s", tracker.name, location)
        if self.metrics_file is not None:
            self.metrics_file.close()

    def _send_new_points(self) -> None:
        """Send the lines that were written to metrics.jsonl since the last call."""
        if self.metrics_file is not None:
            for step, split, values in read_points(self.metrics_file.readlines()):
                self._for_each(lambda tracker, point=(step, split, values): tracker.send(*point))

    def _for_each(self, action: Callable[[Tracker], None]) -> None:
        """Call a function with each tracker, and leave out those for which it fails."""
        for tracker in list(self.trackers):
            try:
                action(tracker)
            except Exception as error:  # a failure elsewhere must not end the training
                message = "track: %s failed and gets no more values (%s); metrics.jsonl has them"
                logger.error(message, tracker.name, root_cause(error))
                self.trackers.remove(tracker)


def read_points(lines: Iterable[str]) -> Iterator[tuple[int, str, dict[str, float]]]:
    """Yield (step, split, values) for lines of metrics.jsonl. Values of None are left out."""
    records = parse_metric_lines(lines, Path("metrics.jsonl"))
    by_point = itertools.groupby(records, key=lambda record: (record["step"], record["split"]))
    for (step, split), group in by_point:
        values = {}
        for record in group:
            values |= {record["name"]: record["value"], "epoch": record["epoch"]}
            values |= {"rows_per_second": record["items_per_second"], **record.get("speed", {})}
        finite = {name: value for name, value in values.items() if value is not None}
        yield step, split, {f"{split}/{name}": value for name, value in finite.items()}


def flatten_config(config: Config) -> dict[str, bool | int | float | str]:
    """Return the options of a run as scalars: {"learning_rate": 5e-5, "task.max_length": 128}."""
    settings: dict[str, Any] = {}

    def flatten(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                flatten(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, bool | int | float):
            settings[name] = value
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            settings[name] = text[:MAX_SETTING_LENGTH]

    flatten(encode(config), "")
    return settings
