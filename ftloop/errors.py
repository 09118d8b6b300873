"""The exceptions whose text is all that a person needs: the entry points print it alone, without a traceback."""

import contextlib
import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TextIO

from ftloop import startup


class UserError(Exception):
    """A mistake in an option, a file or the data. The text names the option, the value and the choices."""


class TrainingError(Exception):
    """A run that cannot go on: a loss that is not a number, say. The text names the step and the rows."""


class Stopped(Exception):
    """A run that was asked to stop, and did. The text says by what and how to go on; `code` is its exit status."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """`text` in red, yellow or green, if `stream` is a terminal that shows colours (https://no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{ {'red': 31, 'green': 32, 'yellow': 33}[colour] }m{text}\033[0m"


def exit_code_of(main: Callable[[], None]) -> int:
    """Run the main function of a script: 0; 2 after a UserError, 1 after a TrainingError, 130 after SIGINT, 143 after
    another signal, and their texts are printed."""
    startup.begin()
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process of each machine
    try:
        with _signals_in_words():
            main()
    except (UserError, TrainingError) as error:
        if speaks:
            print(f"{coloured('error:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Stopped as stopped:
        if speaks:
            print(stopped, file=sys.stderr)
        return stopped.code
    except BrokenPipeError:  # `... --help | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises, for a dead worker, wherever we are
        lost = what_was_lost(error)
        if lost is None:
            raise
        print(f"error: {lost} (process {os.environ.get('RANK', '0')})", file=sys.stderr)  # each process that noticed
        return 1
    except KeyboardInterrupt:  # before the first step: nothing was trained
        if speaks:
            print("interrupted before the first step", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _signals_in_words() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the process in words where nobody else hears them: while rows are prepared, or scored."""

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.environ.get("LOCAL_RANK", "0") == "0":
            text = f"{name}: stopped outside of training. What was saved stays; the same command goes on"
            print(text, file=sys.stderr)
        raise SystemExit(143)  # no Exception: the libraries catch those wherever they read

    with signals_to(leave):
        yield


@contextlib.contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGTERM and SIGUSR1 go to a handler, and back to who had them before."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def what_was_lost(error: Exception) -> str | None:
    """In words, if another process of the run, or a worker, is dead or hangs, as the libraries say in many ways, if the
    disk cannot be written, or memory runs out."""
    text = root_cause(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    if full or "No space left on device" in text:
        return f"nothing can be written: {text}. Make room, and the same command goes on from the newest checkpoint"
    # A worker that dies while it hands over a batch closes its socket, and no error names the DataLoader.
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if "DataLoader worker" in text or any(file.endswith("resource_sharer.py") for file in files):
        return f"a process that loads data died: {text}. Memory may be short: --workers 0 loads in the training process"
    if any(sign in text for sign in ("gloo", "NCCL", "DistBackendError", "DistNetworkError", "DistStoreError")):
        return f"another process of this run is dead, or did not answer within --timeout seconds: {text}"
    if "out of memory" in text or "can't allocate memory" in text:
        return f"{text}. Less is needed with a smaller --eval-batch-size (of evaluate.py: --batch-size), or micro-batch"
    return None


def nearest(word: str, choices: Iterable[str]) -> str:
    """`" (did you mean 'f1_macro'?)"`, or nothing when no choice is near: for the end of an error's first sentence."""
    found = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def root_cause(error: BaseException) -> str:
    """The innermost cause in one line: `datasets` wraps what went wrong in errors that do not say it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
