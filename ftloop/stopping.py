"""Leaving in good order: a signal to one process, or the time limit, is agreed by all at the end of a step."""

import os
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

# SIGUSR1 is what SLURM sends before its time limit (--signal=USR1@120).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Hears signals while it is entered; a signal waits for the end of the step, or of a batch of the evaluation. A
    second signal ends the process at once: what is on disk is whole. (Before the first step, while rows are prepared,
    there is nothing to save: a signal ends the process in words, by ftloop/errors.py.)
    """

    def __init__(self, minutes: float | None = None):
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.reason: str | None = None
        self.code = 143
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        for number in SIGNALS:
            try:
                self.before[number] = signal.signal(number, self.hear)
            except ValueError:  # not the main thread, as in some notebooks: whoever runs it hears the signals
                break
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        code = 130 if number == signal.SIGINT else 143
        if self.reason is not None:
            os._exit(code)
        self.reason, self.code = signal.Signals(number).name, code

    def heard(self) -> bool:
        """Whether this process was asked to stop, or its time is over."""
        if self.reason is None and self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = "--max-minutes"
        return self.reason is not None

    def asked(self, accelerator: "Accelerator", may_wait: bool = True) -> bool:
        """Whether any process was asked to stop: the same answer on all. On a GPU the question waits for the device,
        and is put only where the caller waits anyway (`may_wait`); on CPUs, and alone, it is put each time."""
        if accelerator.num_processes == 1:
            return self.heard()
        if not may_wait and accelerator.device.type != "cpu":
            return False
        import torch

        code = torch.tensor(self.code if self.heard() else 0, device=accelerator.device)
        agreed = int(accelerator.gather(code.reshape(1)).max())
        if agreed and self.reason is None:
            self.reason, self.code = "another process", agreed
        return agreed > 0
