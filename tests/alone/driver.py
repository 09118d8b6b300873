"""Train the runs that the first argument describes, one after the other."""

import json
import logging
import os
import signal
import sys

from points import PointTask

from ftloop import Config, train
from ftloop.errors import run_main


def kill_in_micro_batch(number):
    """Kill this process in the middle of a step: in its forward pass of this number."""
    compute_losses, calls = PointTask.compute_losses, []

    def compute_or_die(self, model, batch):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute_losses(self, model, batch)

    PointTask.compute_losses = compute_or_die


def main():
    logging.basicConfig(level="INFO")
    for options in json.loads(sys.argv[1]):
        if "kill_in" in options:
            kill_in_micro_batch(options.pop("kill_in"))
        task = PointTask(**options.pop("task", {}))
        train(Config(task=task, **options))


code = run_main(main)
names = [name for name in sys.modules if name.partition(".")[0] == "ftloop"]
folder = os.path.dirname(os.path.abspath(__file__))
for name in names:
    assert os.path.dirname(sys.modules[name].__file__) == os.path.join(folder, "ftloop"), name
sys.exit(code)
