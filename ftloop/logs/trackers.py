"""Trackers by `--track`: TensorBoard, Weights & Biases, trackio, MLflow and the others of `accelerate.tracking`, beside
metrics.jsonl. Delete this file, and all but `--track` works.

A tracker gets what metrics.jsonl gets, an entry for each step and split: the values as "train/loss", "test/accuracy".
Entries are numbered, and RUN/trackers/NAME.sent holds how many a tracker has: one that is resumed continues its own run
there (by the id in RUN/trackers/NAME.id) without an entry twice, though steps are trained again; one that is named
later gets all that was before. A resumed run gives the same values, so what was sent stays true. (What trackio's own
thread had not stored when the process was killed, half a second at most, is missing there.)

Nothing here waits for the device or for a person. A tracker that cannot start stops the run before training; one that
fails later is left out, in words, and training goes on: metrics.jsonl has it all.
"""

import contextlib
import io
import itertools
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.config import Config, encode
from ftloop.errors import UserError, nearest, root_cause
from ftloop.logs.terminal import MetricLog, finite

if TYPE_CHECKING:
    import numpy
    import torch

    from ftloop.checkpoint import TrainState

logger = logging.getLogger("ftloop")

PROJECT = "ftloop"  # under which services with projects file the runs
LONGEST = 250  # characters of an option's value, which some trackers limit
DIGITS = 12  # of a count of entries
WRITTEN = 30  # classes up to which the cells of a confusion matrix hold their shares


class Service:
    """A tracker of accelerate, started for a run. Subclasses know what is particular to one: how it goes on, where it
    works without a network or login, and what it can hold besides numbers."""

    package: str | None = None  # what is imported, where it is not the tracker's name

    def __init__(self, name: str, folder: Path, run_name: str):
        """`folder`: RUN/trackers, in which it may keep a folder or file of its name."""
        self.name, self.folder, self.run_name = name, folder, run_name
        self.place = ""  # for a person: where to look
        self.id_file = folder / f"{name}.id"
        self.is_new = not self.id_file.is_file()
        self.id = secrets.token_hex(16) if self.is_new else self.id_file.read_text()
        self.mark = folder / f"{name}.sent"
        if self.is_new:
            self.mark.write_bytes(b"0".rjust(DIGITS))
        self.sent = int(self.mark.read_bytes())  # entries

    def options(self) -> dict[str, Any]:
        """What accelerate's class is started with, besides the project."""
        return {}

    def start(self, settings: dict[str, Any]) -> None:
        """Begin, or go on with, this run's record. Raises whatever the library raises."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        made, options = LOGGER_TYPE_TO_CLASS[self.name], self.options()
        if made.requires_logging_directory:
            options = {"logging_dir": str(self.folder), **options}
        self.tracker = made(options.pop("project", PROJECT), **options)
        with muted():
            self.tracker.start()
        self.started()
        self.id_file.write_text(self.id)
        if self.is_new:
            self.tracker.store_init_configuration(settings)

    def started(self) -> None:
        """Learn from the library where the record lies."""

    def log(self, number: int, values: dict[str, float], step: int) -> None:
        """Send entry `number`, unless it was sent before."""
        if number > self.sent:
            self.tracker.log(values, step=step)
            self.sent = number
            with self.mark.open("r+b") as file:  # over the old digits: a kill leaves the one number or the other
                file.write(str(number).encode().rjust(DIGITS))

    def picture(self, title: str, file: Path, step: int) -> None:
        """Show a PNG, where the tracker can."""

    def report(self, file: Path, step: int) -> None:
        """Keep a page of HTML, where the tracker can."""

    def finish(self) -> None:
        with muted():
            self.tracker.finish()


class TensorBoard(Service):
    def options(self) -> dict[str, Any]:
        self.place = f"tensorboard --logdir {self.folder / self.name}"
        return {"project": self.name}  # the folder, too

    def picture(self, title: str, file: Path, step: int) -> None:
        self.tracker.log_images({title: pixels(file)[None]}, step=step, dataformats="NHWC")


class WeightsAndBiases(Service):
    """Offline without a login, and where its server does not answer; WANDB_MODE and WANDB_PROJECT decide, if given."""

    def options(self) -> dict[str, Any]:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")  # it would speak through the progress bar
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        # Its copy of what the terminal shows would hold each drawing of the progress bar.
        settings = wandb.Settings(init_timeout=20, console="off")
        how = {"name": self.run_name, "id": self.id, "resume": "allow", "dir": str(self.folder), "settings": settings}
        return {"project": os.environ.get("WANDB_PROJECT", PROJECT), "mode": mode, **how}

    def start(self, settings: dict[str, Any]) -> None:
        import wandb

        try:
            super().start(settings)
        except wandb.errors.CommError as error:
            if "WANDB_MODE" in os.environ:
                raise
            wandb.teardown()  # its service holds the run that did not come about
            logger.warning("track: wandb is offline, its server does not answer (%s)", root_cause(error))
            with contextlib.ExitStack() as after:
                os.environ["WANDB_MODE"] = "offline"
                after.callback(os.environ.pop, "WANDB_MODE")
                super().start(settings)

    def started(self) -> None:
        run = self.tracker.run
        self.place = run.url or f"offline: wandb sync {Path(run.dir).parent}"

    def picture(self, title: str, file: Path, step: int) -> None:
        from PIL import Image

        with Image.open(file) as image:
            self.tracker.log_images({title: [image]}, step=step)

    def report(self, file: Path, step: int) -> None:
        import wandb

        self.tracker.log({"report": wandb.Html(file.read_text(encoding="utf-8"), inject=False)}, step=step)


class Trackio(Service):
    """In trackio's own local store (TRACKIO_DIR), or as its environment says; no login is needed."""

    def options(self) -> dict[str, Any]:
        self.place = f"trackio show --project {PROJECT}"
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}  # threads beside the training
        return {"name": f"{self.run_name}-{self.id[:8]}", "resume": "allow", **quiet}

    def finish(self) -> None:
        import trackio

        super().finish()
        with muted():
            trackio.finish()  # else it finishes once more when the process ends, and says so

    def picture(self, title: str, file: Path, step: int) -> None:
        import trackio

        self.tracker.log({title: trackio.Image(str(file))}, step=step)


class MLflow(Service):
    """At MLFLOW_TRACKING_URI, else in a database in the run's folder."""

    def options(self) -> dict[str, Any]:
        import mlflow

        server, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        self.is_given = server is not None
        if server is None:
            folder = (self.folder / self.name).absolute()
            folder.mkdir(exist_ok=True)
            server, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        else:
            for name, value in (("MAX_RETRIES", "2"), ("TIMEOUT", "20")):  # else it asks for minutes
                os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(server)
        self.place = f"mlflow ui --backend-store-uri {server}"
        return {"logging_dir": artifacts, "run_name": self.run_name, "run_id": None if self.is_new else self.id}

    def started(self) -> None:
        self.id = self.tracker.tracker.info.run_id

    def finish(self) -> None:
        super().finish()
        if not self.is_given:  # set_tracking_uri has put it there: the next run of this process has a folder of its own
            os.environ.pop("MLFLOW_TRACKING_URI", None)

    def picture(self, title: str, file: Path, step: int) -> None:
        self.tracker.log_artifact(str(file))

    def report(self, file: Path, step: int) -> None:
        self.tracker.log_artifact(str(file))


class Comet(Service):
    """Offline, as archives in the run's folder, without COMET_API_KEY; COMET_START_ONLINE decides, if given."""

    def options(self) -> dict[str, Any]:
        import comet_ml

        online = None if {"COMET_API_KEY", "COMET_START_ONLINE"} & os.environ.keys() else False
        folder = str(self.folder / self.name)
        how = comet_ml.ExperimentConfig(name=self.run_name, offline_directory=folder)
        if online is False and not self.is_new:  # an archive is made at the end: of a killed process there is none
            self.id, self.sent, self.is_new = secrets.token_hex(16), 0, True
        self.place = f"offline: comet upload {folder}/{self.id}-*.zip" if online is False else ""
        return {"online": online, "experiment_key": self.id, "mode": "get_or_create", "experiment_config": how}


class SwanLab(Service):
    """Offline, in the run's folder, without SWANLAB_API_KEY; SWANLAB_MODE decides, if given."""

    def options(self) -> dict[str, Any]:
        mode = os.environ.get("SWANLAB_MODE") or ("online" if "SWANLAB_API_KEY" in os.environ else "offline")
        folder = str(self.folder / self.name)
        self.place = f"swanlab sync {folder}/run-*" if mode == "offline" else ""
        return {"mode": mode, "log_dir": folder, "name": self.run_name, "id": self.id, "resume": "allow"}


class ClearML(Service):
    """Offline where no server is configured."""

    def options(self) -> dict[str, Any]:
        configured = os.environ.keys() & {"CLEARML_API_HOST", "CLEARML_CONFIG_FILE"}
        if not configured and not Path("~/clearml.conf").expanduser().exists():
            os.environ.setdefault("CLEARML_OFFLINE_MODE", "1")  # read when it is imported
        going_on = {} if self.is_new else {"continue_last_task": self.id}
        return {"task_name": self.run_name, "auto_connect_frameworks": False, **going_on}

    def started(self) -> None:
        task = self.tracker.task
        self.id = task.id
        self.place = task.get_output_log_web_page()
        if task.is_offline():
            self.place = f"offline: {task.get_offline_mode_folder()}"


class DVCLive(Service):
    """Plain files in the run's folder."""

    def options(self) -> dict[str, Any]:
        self.place = str(self.folder / self.name)
        return {"dir": self.place, "resume": not self.is_new, "save_dvc_exp": False, "dvcyaml": None}


class Aim(Service):
    def options(self) -> dict[str, Any]:
        self.place = f"aim up --repo {self.folder}"
        return {} if self.is_new else {"run_hash": self.id}

    def started(self) -> None:
        self.id = self.tracker.writer.hash


SERVICES: dict[str, type[Service]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
    "comet_ml": Comet,
    "swanlab": SwanLab,
    "clearml": ClearML,
    "dvclive": DVCLive,
    "aim": Aim,
}  # one that a config registers is started as accelerate would, and gets the numbers


def check(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that accelerate does not know, or whose package is not installed: accelerate itself
    would leave it out without a word. Imports none."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, installed = sorted(LOGGER_TYPE_TO_CLASS), {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(f"--track {name!r} is not a tracker{nearest(name, known)}; choose from {', '.join(known)}")
        missing = name == "tensorboard" and find_spec("tensorboard") is None  # accelerate also takes tensorboardX
        builtin = LOGGER_TYPE_TO_CLASS[name].__module__ == "accelerate.tracking"  # a config may register its own
        if missing or (builtin and name not in installed):
            raise UserError(f"--track {name}: not installed: pip install {name.replace('_', '-')}")
    if len({*names}) < len(names):
        raise UserError(f"--track {' '.join(names)}: each tracker once")


class TrackedLog(MetricLog):
    """The metric log of a run with trackers; on the main process. Raises UserError if one cannot start."""

    def __init__(self, file: Path, keep_bytes: int, config: Config, state: "TrainState"):
        super().__init__(file, keep_bytes)
        self.run, self.config, self.state = file.parent, config, state
        self.folder = self.run / "trackers"
        self.folder.mkdir(exist_ok=True)
        self.rows: dict[str, list[Any]] = {}  # of the split that is being evaluated: references, predictions
        self.services: list[Service] = []
        before = list(entries(file))
        self.entries = len(before)
        for name in config.track:
            service = SERVICES.get(name, Service)(name, self.folder, file.absolute().parent.name)
            try:
                service.start(settings_of(config))
            except Exception as error:  # a library's own, of which there are many
                self.close()
                raise UserError(f"--track {name} cannot start: {root_cause(error)}") from error
            self.services.append(service)
        for number, (step, values) in enumerate(before, start=1):
            self._each(lambda service, n=number, v=values, s=step: service.log(n, v, s))

    def write(
        self, step: int, epoch: float, split: str, scores: dict[str, float], items_per_second: float, **speed: Any
    ) -> None:
        """As MetricLog does, and to the trackers."""
        super().write(step, epoch, split, scores, items_per_second, **speed)
        self.entries += 1
        values = named(split, epoch, scores, items_per_second, speed)
        self._each(lambda service: service.log(self.entries, values, step))
        if split in self.rows:
            self._keep_confusion(split, step)

    def _each(self, action: Callable[[Service], None]) -> None:
        for service in list(self.services):
            try:
                action(service)
            except Exception as error:  # whatever goes wrong elsewhere must not cost the training
                logger.error(
                    "track: %s failed and gets nothing more (%s); metrics.jsonl has it all",
                    *(service.name, root_cause(error)),
                )
                self.services.remove(service)

    def see(self, split: str, values: dict[str, "torch.Tensor"]) -> None:
        """Keep labels and predictions of single-label classification, for the confusion matrix."""
        labels, found = values.get("references"), values.get("predictions")
        columns = [column for column in (labels, found) if column is not None and column.ndim == 1]
        if len(columns) == 2 and not any(column.is_floating_point() for column in columns):
            self.rows.setdefault(split, []).append([column.numpy() for column in columns])

    def _keep_confusion(self, split: str, step: int) -> None:
        """On disk: the best step may be in the past of a run that is interrupted."""
        import numpy
        from sklearn.metrics import confusion_matrix

        labels, found = (numpy.concatenate(parts) for parts in zip(*self.rows.pop(split), strict=True))
        (self.folder / "confusion").mkdir(exist_ok=True)
        counts = confusion_matrix(labels, found, labels=range(len(self._names(labels, found))))
        numpy.save(self.folder / "confusion" / f"{split}-{step:06d}.npy", counts)

    def _names(self, *columns: "numpy.ndarray") -> list[str]:
        known = getattr(getattr(self.config.task, "labels", None), "names", None)
        return list(known or map(str, range(1 + max(int(column.max()) for column in columns))))

    def close(self) -> None:
        """Of a finished run, hand over the confusion matrices and the report; then say where each tracker is."""
        if (self.run / "scores.json").is_file():
            self._hand_over()
        self._each(lambda service: service.finish())
        for service in self.services:
            logger.info("tracked     %s: %s", service.name, service.place or "as it is set up")
        super().close()

    def _hand_over(self) -> None:
        import numpy

        best = self.state.best_step or self.state.step
        for split, step in (("validation", best), ("test", self.state.step)):
            counts = self.folder / "confusion" / f"{split}-{step:06d}.npy"
            if counts.is_file():
                picture, counted = self.folder / f"confusion-{split}.png", numpy.load(counts)
                names = self._names(numpy.array([len(counted) - 1]))
                draw_confusion(counted, names, f"{split}, step {best}", picture)
                self._each(lambda service, s=split, p=picture: service.picture(f"{s}/confusion", p, self.state.step))
        shutil.rmtree(self.folder / "confusion", ignore_errors=True)
        report = self.run / "report.html"
        if report.is_file():
            self._each(lambda service: service.report(report, self.state.step))


def named(
    split: str, epoch: float, scores: dict[str, float], items_per_second: float, speed: dict[str, Any]
) -> dict[str, float]:
    """An entry as trackers show it: "train/loss", and what is a number of the rest."""
    rest = {"epoch": epoch, "items_per_second": items_per_second, **speed}
    return {f"{split}/{name}": value for name, value in {**finite(scores), **rest}.items() if value is not None}


def entries(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """The entries of a metrics.jsonl: (step, values as `named` gives them)."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    for (step, split), group in itertools.groupby(lines, key=lambda line: (line["step"], line["split"])):
        first, *others = group
        scores = {line["name"]: line["value"] for line in (first, *others) if line["value"] is not None}
        yield step, named(split, first["epoch"], scores, first["items_per_second"], first.get("speed", {}))


def settings_of(config: Config) -> dict[str, bool | int | float | str]:
    """The options of a run as flat scalars: {"learning_rate": 5e-5, "task.max_length": 128}."""
    found: dict[str, Any] = {}

    def flatten(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                flatten(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, bool | int | float):
            found[name] = value
        else:
            found[name] = (value if isinstance(value, str) else json.dumps(value))[:LONGEST]

    flatten(encode(config), "")
    return found


def draw_confusion(counts: "numpy.ndarray", names: Sequence[str], title: str, file: Path) -> None:
    """A PNG of a confusion matrix int [labels, labels], each row divided by its sum: the recall is on the diagonal."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    size = min(4 + 0.3 * len(names), 20)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    shown = {"include_values": len(names) <= WRITTEN, "values_format": ".2f", "xticks_rotation": "vertical"}
    ConfusionMatrixDisplay(shares, display_labels=names).plot(ax=axes, cmap="Blues", colorbar=False, **shown)
    axes.set_title(title)
    figure.savefig(file, dpi=100)


def pixels(file: Path) -> "numpy.ndarray":
    """A picture as uint8 [height, width, 3]."""
    import numpy
    from PIL import Image

    with Image.open(file) as image:
        return numpy.asarray(image.convert("RGB"))


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """What a tracker prints on standard output is said by `place`, in our words."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        yield
    for line in said.getvalue().splitlines():
        logger.debug("track: %s", line)
