"""Starting quickly: while a million objects of libraries are made, which all stay, Python's collector need not look.

Looking cost one second of the five until the first step (torch, transformers and datasets on two cores). From the first
step on it works as ever, for what it frees may hold memory of the device; what was there before is left out of its
rounds, each of which would take a quarter of a second for that alone.
"""

import atexit
import gc

USUAL = (700, 10, 10)  # Python's own thresholds


def begin() -> None:
    """At the start of a program."""
    gc.set_threshold(100_000, 50, 50)


def done() -> None:
    """When all is imported, read and built."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries complain, when all ends, of what was not freed
    gc.set_threshold(*USUAL)
