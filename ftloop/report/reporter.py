"""Write the report of a run in a process of its own, whose errors cannot harm the run."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ftloop.config import Config
from ftloop.distributed import StopSignals
from ftloop.errors import Stopped
from ftloop.extensions import Observer
from ftloop.runs.record import options_needed

if TYPE_CHECKING:
    from ftloop.run import Run

logger = logging.getLogger("ftloop")

RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"}
LAUNCHER_PREFIXES = ("MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "OMPI_", "PMI_")


class Reporter(Observer):
    """Writes report.html when a run is finished and, if asked to, while it trains."""

    def __init__(self, at_end: bool = True, every: int | None = None):
        """`every`: optimizer steps between live reports; None: no live reports."""
        self.at_end, self.every = at_end, every
        self.last_step = 0  # of the newest live report
        self.live_report: ReportProcess | None = None

    def on_save(self, run: "Run", checkpoint: Path) -> None:
        """Start a live report if one is due and none is being written. Training does not wait."""
        is_due = self.every is not None and run.state.step - self.last_step >= self.every
        is_writing = self.live_report is not None and self.live_report.is_running
        if run.is_main_process and is_due and not is_writing:
            self.last_step = run.state.step
            self.close(run)
            self.live_report = ReportProcess(run.config)

    def on_finish(self, run: "Run", scores: dict[str, dict[str, float]]) -> None:
        """Write the final report. Raises Stopped if a signal interrupts it."""
        self.close(run)
        if self.at_end and run.is_main_process:
            import torch

            torch.cuda.empty_cache()  # the report's process needs the memory now
            write_report_and_wait(run.config)

    def close(self, run: "Run") -> None:
        """End a live report that is being written."""
        if self.live_report is not None:
            self.live_report.kill()
            self.live_report = None


def write_report_and_wait(config: Config) -> bool:
    """Write the report of a finished run in another process; return whether it was written.

    A failure is logged. Raises Stopped if a signal arrives while the report is being written, or if
    that takes longer than `config.max_minutes`.
    """
    start = time.monotonic()
    logger.info("Writing the report (baselines, intervals, label errors). The run is complete.")
    report, signals = ReportProcess(config), StopSignals(config.max_minutes)
    signals.install()
    try:
        while report.is_running:
            if signals.reason is not None:
                raise Stopped(
                    f"{signals.reason}: the run is finished, but its report is not written. "
                    f"To write it: {report.command}",
                    signals.exit_code,
                )
            time.sleep(0.05)
        if report.exit_code == 0:
            page, seconds = Path(config.run_dir) / "report.html", time.monotonic() - start
            megabytes = page.stat().st_size / 1e6
            logger.info("The report is %s (%.1f MB, %.0f s).", page, megabytes, seconds)
        else:
            logger.error(
                "The report could not be written: %s. To try again: %s",
                report.last_line() or "its process was killed",
                report.command,
            )
        return report.exit_code == 0
    finally:
        signals.restore()
        report.kill()


class ReportProcess:
    """A running `python -m ftloop.report RUN`. The page is replaced when it is complete.

    It may run the code that this process has run already, to train or to evaluate.
    """

    def __init__(self, config: Config):
        arguments = [config.run_dir, *options_needed(config)]
        python = os.path.relpath(sys.executable)
        self.command = f"{python} -m ftloop.cli report {' '.join(arguments)}"  # to try again
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        self._process = subprocess.Popen(
            # -P: without the working directory on sys.path, which may hold files of anybody
            [sys.executable, "-P", "-m", __package__, *arguments],
            env=report_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the run only
        )

    @property
    def is_running(self) -> bool:
        """Whether the page is still being written."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process, or None while it is running."""
        return self._process.poll()

    def last_line(self) -> str:
        """Return the last line that the process printed: after a failure, its reason."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip().rpartition("\n")[2]

    def kill(self) -> None:
        """End the process if it is running. An earlier page stays as it is."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def report_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a single process that imports this very ftloop.

    The variables of a launcher are left out, or accelerate would wait for other ranks. Only
    ACCELERATE_USE_CPU, which chooses the device, is kept.
    """
    result = {
        name: value
        for name, value in environment.items()
        if name == "ACCELERATE_USE_CPU"
        or not (name in RANK_VARIABLES or name.startswith(LAUNCHER_PREFIXES))
    }
    root = str(Path(__file__).resolve().parents[2])
    result["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return result
