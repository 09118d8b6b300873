"""Not a test: runs `python SCRIPT OPTIONS` and kills it by SIGKILL in its Nth backward pass.

    python tests/kill.py N SCRIPT OPTIONS...

The script and its modules are those of the current folder.
"""

import itertools
import os
import runpy
import signal
import sys

from accelerate import Accelerator


def kill_in_backward(number: int) -> None:
    """Make the call of this number of `Accelerator.backward` end the process."""
    backward, calls = Accelerator.backward, itertools.count(1)

    def backward_or_die(self, loss, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        backward(self, loss, **options)

    Accelerator.backward = backward_or_die


if __name__ == "__main__":
    kill_in_backward(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name="__main__")
