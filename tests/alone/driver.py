"""Train the runs that the first argument describes, one after the other."""

import json
import logging
import os
import signal
import sys

from points import PointTask

from ftloop import Config, UserError, train


def kill_in_micro_batch(number):
    """Kill this process in the middle of a step: in its forward pass of this number."""
    compute_losses, calls = PointTask.compute_losses, []

    def compute_or_die(self, model, batch):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute_losses(self, model, batch)

    PointTask.compute_losses = compute_or_die


def check_modules():
    """Check that every module of ftloop was imported from the copy of the core."""
    core = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ftloop")
    for name, module in sys.modules.items():
        if name.partition(".")[0] == "ftloop":
            assert os.path.dirname(module.__file__) == core, name


logging.basicConfig(level="INFO")
for options in json.loads(sys.argv[1]):
    if "kill_in" in options:
        kill_in_micro_batch(options.pop("kill_in"))
    task = PointTask(**options.pop("task", {}))
    try:
        train(Config(task=task, **options))
    except UserError as error:
        sys.exit(f"UserError: {error}")
check_modules()
