"""A run's report is written by a process of its own: what fails there, or fills the memory, does not hurt the run."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("ftloop")


class Reporter:
    """Starts `python -m ftloop report RUN`, one at a time, in a session of its own: Ctrl-C is for the run alone."""

    def __init__(self, folder: Path, every: int | None = None):
        """`every`: optimizer steps between live reports; None: there are none."""
        self.folder, self.every, self.written_at = folder, every, 0
        self.running: subprocess.Popen | None = None
        self.command = f"{os.path.relpath(sys.executable)} -m ftloop report {folder}"

    def start(self) -> None:
        self.stop()
        here = str(Path(__file__).resolve().parents[2])  # this very ftloop, whatever the working folder
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        words = [sys.executable, "-m", "ftloop", "report", str(self.folder)]
        how = {"stdin": subprocess.DEVNULL, "stdout": self.said, "stderr": subprocess.STDOUT, "start_new_session": True}
        self.running = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, **how)

    def while_training(self, step: int) -> None:
        """Start a live report if one is due and none is being written. Training does not wait for it."""
        free = self.running is None or self.running.poll() is not None
        if free and self.every is not None and step - self.written_at >= self.every:
            self.written_at = step
            self.start()

    def at_the_end(self, stopped: Callable[[], bool] = lambda: False) -> int | None:
        """Write the report and wait: its exit code, None if `stopped` ended it. A failure is one line."""
        began = time.monotonic()
        logger.info("report      is being written: baselines, intervals, doubtful labels (the run itself is whole)")
        self.start()
        try:
            while self.running.poll() is None:
                if stopped():
                    return None
                time.sleep(0.05)
            if self.running.returncode == 0:
                page, seconds = self.folder / "report.html", time.monotonic() - began
                logger.info("report      %s (%.1f MB, %.0f s)", page, page.stat().st_size / 1e6, seconds)
            else:
                self.said.seek(0)
                reason = self.said.read().decode(errors="replace").strip().rpartition("\n")[2]
                logger.error("report      not written: %s. To try again: %s", reason or "it was killed", self.command)
            return self.running.returncode
        finally:
            self.stop()

    def stop(self) -> None:
        """End what is being written: the page before it stays."""
        if self.running is not None:
            self.running.kill()  # nothing, if it has ended
            self.running.wait()
            self.said.close()
