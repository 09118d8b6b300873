"""Time the optimizer steps of a training script, whatever its loop looks like.

A hook of torch records when the first forward pass begins and when each optimizer step ends, the
same hook for all loops. Nothing of ftloop is patched, and only the standard library is imported.

    python benchmarks/step_clock.py OUT.json STEPS TURN_IN TURN_OUT train.py configs/text.py ...

As a script, it runs another script in the working folder, which may be another version of ftloop,
in turns with a second process: after every STEPS optimizer steps it hands the turn over, and waits
until it gets it back. TURN_IN and TURN_OUT are file descriptors of pipes. OUT.json gets the seconds
of each block of steps, without the waiting.
"""

import contextlib
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class StepClock:
    """Records the time of the first forward pass and of the end of each optimizer step.

    It does not import torch, because a script may set environment variables before it does. Instead
    it stands among the finders of modules, finds nothing, and is asked for every module that is
    imported, until torch is there.
    """

    def __init__(
        self,
        after_step: Callable[["StepClock"], None] | None = None,
        before_first_step: Callable[[], None] | None = None,
        synchronize_every: int | None = None,
    ):
        """`synchronize_every`: steps between waits for the GPU, which lags behind. None: never."""
        self.times: list[float] = []  # of the first forward pass, and of the end of each step
        self.after_step, self.before_first_step = after_step, before_first_step
        self.synchronize_every = synchronize_every
        self.handles: list[Any] = []
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        self.find_spec("")  # torch may be there already

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Register the hooks as soon as torch has them. Called by Python's import system."""
        modules = [sys.modules.get("torch.nn.modules.module")]
        modules += [sys.modules.get("torch.optim.optimizer")]
        names = ("register_module_forward_pre_hook", "register_optimizer_step_post_hook")
        hooks = [getattr(module, name, None) for module, name in zip(modules, names, strict=True)]
        if None not in hooks:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            register_forward, register_step = hooks
            self.handles = [register_forward(self.begin), register_step(self.end_step)]

    def begin(self, module: Any, inputs: Any) -> None:
        """Record the first forward pass."""
        self.handles[0].remove()
        if self.before_first_step is not None:
            self.before_first_step()
        self.times.append(time.perf_counter())

    def end_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        """Record the end of an optimizer step."""
        if self.synchronize_every and len(self.times) % self.synchronize_every == 0:
            sys.modules["torch"].cuda.synchronize()
        self.times.append(time.perf_counter())
        if self.after_step is not None:
            self.after_step(self)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


class Turns:
    """Takes turns with another process, by a pipe in each direction."""

    def __init__(self, steps_per_turn: int, turn_in: int, turn_out: int):
        self.steps_per_turn, self.turn_in, self.turn_out = steps_per_turn, turn_in, turn_out
        self.block_seconds: list[float] = []
        self.began = 0.0

    def wait(self) -> None:
        """Wait for the turn, or until the other process has ended."""
        os.read(self.turn_in, 1)
        self.began = time.perf_counter()

    def after_step(self, clock: StepClock) -> None:
        """Hand the turn over at the end of a block of steps, and wait for the next turn."""
        num_steps = len(clock.times) - 1
        if num_steps % self.steps_per_turn:
            return
        self.block_seconds.append(clock.times[-1] - self.began)
        with contextlib.suppress(BrokenPipeError):  # the other process has ended
            os.write(self.turn_out, b".")
        self.wait()


def ready_file(out: Path) -> Path:
    """Return the file that exists when a script is ready for its first optimizer step."""
    return out.with_suffix(".ready")


def main() -> None:
    out, steps_per_turn, turn_in, turn_out, *command = sys.argv[1:]
    turns = Turns(int(steps_per_turn), int(turn_in), int(turn_out))

    def wait_for_first_turn() -> None:
        ready_file(Path(out)).touch()
        turns.wait()

    StepClock(after_step=turns.after_step, before_first_step=wait_for_first_turn)
    sys.argv, sys.path[0] = command, os.getcwd()
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        Path(out).write_text(json.dumps(turns.block_seconds))


if __name__ == "__main__":
    main()
