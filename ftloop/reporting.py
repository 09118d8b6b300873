"""The report of a run is written by a process of its own: what fails there, or fills the memory, does not hurt the run.

Where ftloop/report was deleted, nothing is started.
"""

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("ftloop")

# What a launcher tells the processes of a run: with it, the report would wait for the others.
OF_SEVERAL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
OF_LAUNCHERS = ("MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "SLURM_", "OMPI_", "PMI_")
KEPT = ("ACCELERATE_USE_CPU",)  # on which device


class Reporter:
    """Starts the command `python -m ftloop report RUN` for a run, one at a time."""

    def __init__(self, folder: Path, every: int | None):
        """`every`: optimizer steps between live reports; None: there are none."""
        self.folder, self.every, self.written_at = folder, every, 0
        self.running: subprocess.Popen | None = None
        self.available = importlib.util.find_spec("ftloop.report") is not None

    @property
    def command(self) -> str:
        return f"{os.path.relpath(sys.executable)} -m ftloop report {self.folder}"

    def start(self) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in KEPT or not (name in OF_SEVERAL or name.startswith(OF_LAUNCHERS))
        }
        place = str(Path(__file__).resolve().parent.parent)  # this very ftloop, from whatever folder it is run
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
        self.said = tempfile.TemporaryFile()
        # In a session of its own: Ctrl-C in a terminal is heard by the run, which ends it.
        self.running = subprocess.Popen(
            [sys.executable, "-m", "ftloop", "report", str(self.folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def while_training(self, step: int) -> None:
        """Start a live report if one is due and none is being written. Training does not wait for it."""
        due = self.every is not None and step - self.written_at >= self.every
        if due and self.available and (self.running is None or self.running.poll() is not None):
            self.written_at = step
            self.start()

    def at_the_end(self, stopped: Callable[[], bool] = lambda: False) -> int | None:
        """Write the report and wait for it: the exit code of its command, or None if given up because `stopped`. A
        failure is one line."""
        if not self.available:
            return 0
        self.stop()
        began = time.monotonic()
        self.start()
        try:
            while self.running.poll() is None:
                if stopped():
                    return None
                time.sleep(0.05)
        finally:
            code = self.running.poll()
            self.stop()
        if code == 0:
            page = self.folder / "report.html"
            size, seconds = page.stat().st_size / 1e6, time.monotonic() - began
            logger.info("report      %s (%.1f MB, %.0f s)", page, size, seconds)
        else:
            self.said.seek(0)
            lines = self.said.read().decode(errors="replace").split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), f"it ended with {code}")
            logger.error("report      could not be written: %s. To try again: %s", reason, self.command)
        return code

    def stop(self) -> None:
        """End what is being written: the page before it stays."""
        if self.running is not None and self.running.poll() is None:
            self.running.kill()
            self.running.wait()
