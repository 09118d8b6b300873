"""Starting quickly: while a million objects of libraries are made, which all stay, Python's collector need not look.

Looking cost one second of the five until the first step (torch, transformers and datasets on two cores). From the first
step on it works as ever, for what it frees may hold memory of the device; what was there before is left out of its
rounds, each of which would take a quarter of a second for that alone.

For our own scripts, once a process: a notebook, or whoever else imports ftloop, keeps its collector as it is.
"""

import atexit
import gc

USUAL = gc.get_threshold()
STARTING = (100_000, 50, 50)  # objects made, and rounds of each generation, until the next one


def begin() -> None:
    """At the start of a program."""
    if not gc.get_freeze_count():
        gc.set_threshold(*STARTING)


def done() -> None:
    """When all is imported, read and built."""
    if gc.get_threshold() == STARTING:
        gc.set_threshold(*USUAL)
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries complain, when all ends, of what was not freed
