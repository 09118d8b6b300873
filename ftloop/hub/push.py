"""Push a run to the Hub: `python -m ftloop.cli push RUN REPOSITORY`, and --push-to-hub in training.

A push is one commit: all of it arrives, or nothing. If one is interrupted, the Hub keeps the files
that had arrived, and the same push again sends only what is missing.
"""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ftloop.checkpoint import load_weights
from ftloop.errors import UserError, root_cause
from ftloop.extensions import Observer
from ftloop.files import refuse_links, write_text
from ftloop.hub.card import CARD, build_card
from ftloop.hub.repository import (
    REPORT,
    BackgroundCall,
    explain,
    list_ordinary_files,
    prepare_repository,
    require_ordinary_file,
    upload_folder,
    without_token,
)
from ftloop.metric_log import json_scores

if TYPE_CHECKING:
    from ftloop.run import Run

logger = logging.getLogger("ftloop")


def push(
    run_dir: Path,
    repository: str,
    private: bool = False,
    revision: str | None = None,
    report: bool = True,
    overwrite_card: bool = False,
) -> list[str]:
    """Upload model/ of a finished run, and report.html if there is one. Return lines about it.

    `repository` ("name" or "namespace/name") is created if it does not exist, as a private one with
    `private`; so is the branch `revision`. `overwrite_card` replaces a model card that was edited
    on the Hub. Raises UserError.
    """
    refuse_links(run_dir)
    folder = run_dir / "model"
    if not folder.is_dir():
        raise UserError(
            f"{str(run_dir)!r} has no folder model/ to push: its training is not finished, or it "
            "is no run."
        )
    list_ordinary_files(folder)  # before anything is created on the Hub
    name = prepare_repository(repository, private, revision)
    report_file = run_dir / REPORT if report and (run_dir / REPORT).is_file() else None
    if report_file is not None:
        require_ordinary_file(report_file, run_dir)
    message = f"{run_dir.resolve().name}, trained with ftloop"
    try:
        return upload_folder(folder, name, revision, message, report_file, overwrite_card)
    except Exception as error:  # the Hub's client raises dozens of kinds
        raise UserError(
            f"cannot push to {repository!r}: {explain(error)}. "
            "The same command again sends only what is missing."
        ) from error


def push_command(run_dir: Path, repository: str, private: bool, revision: str | None) -> str:
    """Return the command that pushes a finished run."""
    arguments = [str(run_dir), repository]
    if private:
        arguments.append("--private")
    if revision is not None:
        arguments += ["--revision", revision]
    python = shlex.quote(os.path.relpath(sys.executable))
    return f"{python} -m ftloop.cli push {shlex.join(arguments)}"


class Pusher(Observer):
    """Pushes the finished run and, with every="save", the weights of its checkpoints.

    The weights of a checkpoint are exported at once and uploaded in a thread while training
    continues. Checkpoints that are saved during an upload are not pushed. At the end, training
    waits for the last push. A push that fails is only logged.
    """

    def __init__(
        self,
        run_dir: str | Path,
        repository: str,
        private: bool = False,
        revision: str | None = None,
        every: Literal["end", "save"] = "end",
    ):
        """Check that pushing will be possible. Raises UserError, before anything is trained."""
        self.run_dir, self.repository = Path(run_dir), repository
        self.private, self.revision, self.every = private, revision, every
        self.live_folder = self.run_dir / "pushed"  # the exported weights of a checkpoint
        self.upload: BackgroundCall | None = None
        if os.environ.get("RANK", "0") != "0":
            return
        if (self.run_dir / "scores.json").exists():
            command = push_command(self.run_dir, repository, private, revision)
            logger.info("The run is finished. To push it: %s", command)
            return
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # they would break into the progress bar of training
        try:
            self.repository = prepare_repository(repository, private, revision)
        except UserError as error:
            raise UserError(str(error), field="push_to_hub") from error

    def on_save(self, run: "Run", checkpoint: Path) -> None:
        if not run.is_main_process or self.every != "save":
            return
        if self.upload is not None and not self.upload.is_done():
            return
        self._log_failed_upload()
        state = run.state
        scores = {}
        if state.scores and state.last_eval_step == state.step:
            scores = {"validation": json_scores(state.scores)}
        try:
            run.export(self.live_folder, load_weights(checkpoint), run.model)
            card = build_card(self.live_folder, run.config, run.task, scores, step=state.step)
            write_text(self.live_folder / CARD, card)
        except Exception as error:  # a failed push must not end training
            reason = without_token(root_cause(error))
            logger.error("The weights of step %d are not pushed: %s", state.step, reason)
            return
        message = f"step {state.step}"
        if scores:
            shown = [f"{name} {value:.4f}" for name, value in state.scores.items()]
            message += f": {'  '.join(shown)}"
        self.upload = BackgroundCall(
            lambda: upload_folder(self.live_folder, self.repository, self.revision, message)
        )

    def on_finish(self, run: "Run", scores: dict[str, dict[str, float]]) -> None:
        if run.is_main_process:
            self.push_finished_run(lambda: run.stop_signals.reason is not None)

    def push_finished_run(self, is_stopped: Callable[[], bool]) -> None:
        """Push model/ and wait until it is done, or until `is_stopped` (a signal) returns True."""
        command = push_command(self.run_dir, self.repository, self.private, self.revision)
        if self.upload is not None and wait(self.upload, is_stopped):
            self._log_failed_upload()
        if self.upload is None:
            shutil.rmtree(self.live_folder, ignore_errors=True)
            self.upload = BackgroundCall(
                lambda: push(self.run_dir, self.repository, self.private, self.revision)
            )
        if not wait(self.upload, is_stopped):
            logger.error("The push was stopped. The run is finished; to push it: %s", command)
        elif self.upload.error is not None:
            logger.error("The push failed: %s", explain(self.upload.error))
            logger.error("The run is finished; to push it: %s", command)
        else:
            for line in self.upload.result:
                logger.info("pushed      %s", line)

    def _log_failed_upload(self) -> None:
        """Log the error of the last upload of a checkpoint, if there is one, and forget it."""
        if self.upload is not None and self.upload.error is not None:
            logger.error(
                "The push of a checkpoint failed: %s. The next one will be tried.",
                explain(self.upload.error),
            )
        self.upload = None


def wait(call: BackgroundCall, is_stopped: Callable[[], bool]) -> bool:
    """Wait until a call has ended (True) or until `is_stopped` returns True (False)."""
    while not call.is_done(timeout=0.2):
        if is_stopped():
            return False
    return True
