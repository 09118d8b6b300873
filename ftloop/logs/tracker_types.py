"""What is particular to each tracker: how it continues, and how it works offline.

accelerate knows the libraries, and this module configures them for a run that may be interrupted,
may have no network, and has nobody who could answer a question.
"""

import contextlib
import io
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftloop.errors import UserError, read_json, root_cause
from ftloop.files import write_text

logger = logging.getLogger("ftloop")

PROJECT = "ftloop"  # the project of a run, for trackers that have projects


class Tracker:
    """A tracker of accelerate, started for one run. It gets the numbers, without other settings."""

    def __init__(self, name: str, folder: Path, run_name: str):
        """`folder`: RUN/trackers, in which a tracker may keep files of its name."""
        self.name, self.folder, self.run_name = name, folder, run_name
        self.location = ""  # where a person finds the record
        self.id_file, self.sent_file = folder / f"{name}.id", folder / f"{name}.sent"
        self.is_new = not self.id_file.is_file()
        self.id = secrets.token_hex(16) if self.is_new else self.id_file.read_text()
        self.sent_step, self.sent_splits = 0, []
        if not self.is_new and self.sent_file.is_file():
            with contextlib.suppress(UserError, ValueError):  # damaged: all is sent again
                step, splits = read_json(self.sent_file, list[int | list[str]])
                self.sent_step, self.sent_splits = step, splits

    def options(self) -> dict[str, Any]:
        """Return arguments for accelerate's class: those of the library, and perhaps "project"."""
        return {}

    def start(self, settings: dict[str, Any]) -> None:
        """Start a record with these settings, or continue it. Raises what the library raises."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        tracker_class, options = LOGGER_TYPE_TO_CLASS[self.name], self.options()
        if tracker_class.requires_logging_directory:
            options = {"logging_dir": str(self.folder), **options}
        self.tracker = tracker_class(options.pop("project", PROJECT), **options)
        with redirect_stdout_to_log():
            self.tracker.start()
        self.read_location()
        write_text(self.id_file, self.id)
        if self.is_new:
            self.tracker.store_init_configuration(settings)

    def read_location(self) -> None:
        """Ask the library for the id and the location of the record that was started."""

    def send(self, step: int, split: str, values: dict[str, float]) -> None:
        """Send the values of a step and a split, unless they were sent before."""
        is_same_step = step == self.sent_step
        if step < self.sent_step or (is_same_step and split in self.sent_splits):
            return
        self.tracker.log(values, step=step)
        self.sent_splits = [*self.sent_splits, split] if is_same_step else [split]
        self.sent_step = step
        write_text(self.sent_file, json.dumps([self.sent_step, self.sent_splits]))

    def send_report(self, file: Path, step: int) -> None:
        """Send a page of HTML, if the tracker can show it."""

    def finish(self) -> None:
        """Wait until everything is sent, and end the record."""
        with redirect_stdout_to_log():
            self.tracker.finish()


class TensorBoard(Tracker):
    """Writes files into RUN/trackers/tensorboard."""

    def options(self) -> dict[str, Any]:
        self.location = f"tensorboard --logdir {self.folder / self.name}"
        return {"project": self.name}  # also the name of the folder


class WeightsAndBiases(Tracker):
    """Works offline without a login, or if the server does not answer, unless WANDB_MODE is set."""

    def options(self) -> dict[str, Any]:
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")  # it would print into the progress bar
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        return {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "mode": mode,
            "name": self.run_name,
            "id": self.id,
            "resume": "allow",
            "dir": str(self.folder),
            # Its copy of the terminal would hold every drawing of the progress bar.
            "settings": wandb.Settings(init_timeout=20, console="off"),
        }

    def start(self, settings: dict[str, Any]) -> None:
        import wandb

        try:
            super().start(settings)
        except wandb.errors.CommError as error:
            if "WANDB_MODE" in os.environ:
                raise
            wandb.teardown()  # otherwise its service keeps the run that could not start
            message = "track: wandb works offline, since its server does not answer (%s)"
            logger.warning(message, root_cause(error))
            os.environ["WANDB_MODE"] = "offline"
            try:
                super().start(settings)
            finally:
                del os.environ["WANDB_MODE"]

    def read_location(self) -> None:
        run = self.tracker.run
        # Each start of an offline run has a folder of its own, beside the earlier ones.
        folder = Path(run.dir).parent.parent
        self.location = run.url or f"offline: wandb sync {folder}/offline-run-*"

    def send_report(self, file: Path, step: int) -> None:
        import wandb

        page = wandb.Html(file.read_text(encoding="utf-8"), inject=False)
        self.tracker.log({"report": page}, step=step)


class Trackio(Tracker):
    """Stores locally, in TRACKIO_DIR, or where its environment variables say. Needs no login."""

    def options(self) -> dict[str, Any]:
        self.location = f"trackio show --project {PROJECT}"
        name = f"{self.run_name}-{self.id[:8]}"
        # These would start threads and a server beside the training.
        extras = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        return {"name": name, "resume": "allow", **extras}

    def finish(self) -> None:
        import trackio

        super().finish()
        with redirect_stdout_to_log():
            trackio.finish()  # otherwise it finishes again, and prints, when the process ends


class MLflow(Tracker):
    """Stores at MLFLOW_TRACKING_URI, or else in a database in RUN/trackers/mlflow."""

    def options(self) -> dict[str, Any]:
        import mlflow

        server, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        self.is_local = server is None
        if server is None:
            folder = (self.folder / self.name).absolute()
            folder.mkdir(exist_ok=True)
            server, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        else:  # by default it tries for minutes
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(server)
        self.location = f"mlflow ui --backend-store-uri {server}"
        run_id = None if self.is_new else self.id
        return {"logging_dir": artifacts, "run_name": self.run_name, "run_id": run_id}

    def read_location(self) -> None:
        self.id = self.tracker.tracker.info.run_id

    def send(self, step: int, split: str, values: dict[str, float]) -> None:
        super().send(step, split, {mlflow_name(name): value for name, value in values.items()})

    def send_report(self, file: Path, step: int) -> None:
        self.tracker.log_artifact(str(file))

    def finish(self) -> None:
        super().finish()
        if self.is_local:  # set by set_tracking_uri; the next run in this process has its own
            os.environ.pop("MLFLOW_TRACKING_URI", None)


def mlflow_name(name: str) -> str:
    """Return a name that MLflow accepts: "test/f1[joy!]" becomes "test/f1/joy-21-".

    It refuses most characters besides letters and digits, and a label may have any.
    """
    score, bracket, label = name.partition("[")
    if not bracket:
        return name
    label = label.removesuffix("]")
    return f"{score}/{re.sub(r'[^a-zA-Z0-9 _]', lambda match: f'-{ord(match[0]):x}-', label)}"


class Comet(Tracker):
    """Writes archives into RUN/trackers/comet_ml, unless COMET_API_KEY or COMET_START_ONLINE is
    set."""

    def options(self) -> dict[str, Any]:
        import comet_ml

        is_offline = not {"COMET_API_KEY", "COMET_START_ONLINE"} & os.environ.keys()
        folder = str(self.folder / self.name)
        config = comet_ml.ExperimentConfig(name=self.run_name, offline_directory=folder)
        if is_offline and not self.is_new:
            # The archive is written at the end. A killed process has none: send all points again.
            self.id, self.is_new = secrets.token_hex(16), True
            self.sent_step, self.sent_splits = 0, []
        if is_offline:
            self.location = f"offline: comet upload {folder}/{self.id}-*.zip"
        return {
            "online": False if is_offline else None,
            "experiment_key": self.id,
            "mode": "get_or_create",
            "experiment_config": config,
        }


class SwanLab(Tracker):
    """Writes into RUN/trackers/swanlab without SWANLAB_API_KEY, unless SWANLAB_MODE is set."""

    def options(self) -> dict[str, Any]:
        mode = os.environ.get("SWANLAB_MODE")
        if mode is None:
            mode = "online" if "SWANLAB_API_KEY" in os.environ else "offline"
        folder = str(self.folder / self.name)
        if mode == "offline":
            self.location = f"swanlab sync {folder}/run-*"
        options = {"mode": mode, "log_dir": folder, "name": self.run_name}
        return {**options, "id": self.id, "resume": "allow"}


class ClearML(Tracker):
    """Works offline if no server is configured."""

    def options(self) -> dict[str, Any]:
        has_variables = os.environ.keys() & {"CLEARML_API_HOST", "CLEARML_CONFIG_FILE"}
        if not has_variables and not Path("~/clearml.conf").expanduser().exists():
            os.environ.setdefault("CLEARML_OFFLINE_MODE", "1")  # read when clearml is imported
        options = {} if self.is_new else {"continue_last_task": self.id}
        return {"task_name": self.run_name, "auto_connect_frameworks": False, **options}

    def read_location(self) -> None:
        task = self.tracker.task
        self.id, self.location = task.id, task.get_output_log_web_page()
        if task.is_offline():
            self.location = f"offline: {task.get_offline_mode_folder()}"


class DVCLive(Tracker):
    """Writes plain files into RUN/trackers/dvclive."""

    def options(self) -> dict[str, Any]:
        self.location = str(self.folder / self.name)
        options = {"save_dvc_exp": False, "dvcyaml": None}
        return {"dir": self.location, "resume": not self.is_new, **options}


class Aim(Tracker):
    """Writes a repository into RUN/trackers."""

    def options(self) -> dict[str, Any]:
        self.location = f"aim up --repo {self.folder}"
        return {} if self.is_new else {"run_hash": self.id}

    def read_location(self) -> None:
        self.id = self.tracker.writer.hash


# Others, which a fork registers with accelerate, are started as a plain `Tracker`.
TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": MLflow,
    "comet_ml": Comet,
    "swanlab": SwanLab,
    "clearml": ClearML,
    "dvclive": DVCLive,
    "aim": Aim,
}


@contextlib.contextmanager
def redirect_stdout_to_log() -> Iterator[None]:
    """Log what a library prints at level debug. Its location is printed at the end of the run."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        yield
    for line in output.getvalue().splitlines():
        logger.debug("track: %s", line)
