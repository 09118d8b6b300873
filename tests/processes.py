"""Not a test: runs of train.py in the background, to stop, suspend or kill while they run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import ROOT, quick

from ftloop.checkpoint import find_checkpoints

TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait until a condition is true. Fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} seconds"
        time.sleep(0.005)


class Background:
    """`python [LAUNCHER] train.py OPTIONS` in the background. It is killed when the test ends.

    Its standard error goes to a file, so that it never waits for a reader.
    """

    def __init__(self, options: list[str], log: Path, *launcher: str, **environment: str):
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *quick(("train.py", *options))],
                cwd=ROOT,
                env={**os.environ, **environment},
                stderr=stream,
            )

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for pid in (*self.children(), self.process.pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def err(self) -> str:
        """What it has written to standard error."""
        return self.log.read_text()

    def children(self) -> list[int]:
        """The process ids of its ranks, if a launcher was given, or of its data workers."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(word) for word in text.split()]

    def rank_pids(self) -> dict[str, int]:
        """The process ids of the ranks that a launcher has started."""
        return {read_environment(pid)["RANK"]: pid for pid in self.children()}

    def wait_until_it_trains(self, run: Path) -> None:
        """Wait until it has saved a checkpoint; from then on, it also handles signals."""
        wait_until(lambda: self.process.poll() is not None or find_checkpoints(run / "checkpoints"))
        assert self.process.poll() is None, self.err

    def wait(self, seconds: float = 60) -> int:
        """Wait until it ends, and return its exit code."""
        return self.process.wait(seconds)


def read_environment(pid: int) -> dict[str, str]:
    """Read the environment variables of a process."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def is_running(pid: int) -> bool:
    """Tell whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
