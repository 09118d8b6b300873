"""Exceptions whose message is all that a user needs, and `run_main`, which prints it without a traceback."""

import contextlib
import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType


class UserError(Exception):
    """A mistake in an option, a file or the data. Raised before training starts.

    `field` is the name of the config field that is wrong. It stands before the message:
    UserError("must be at least 1, but is 0.", field="batch_size"). The command line spells it as
    an option, --batch-size.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message if field is None else f"{field}: {message}")
        self.message, self.field = message, field


class TrainingError(Exception):
    """A run that cannot continue, for example because its loss is NaN."""


class Stopped(Exception):
    """A run that saved its state and ended because of a signal or its time limit."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run_main(main: Callable[[], None]) -> int:
    """Run the main function of a script, print the message of an expected error, return the exit code.

    0: success. 1: TrainingError, or a part of the run died. 2: UserError. 130: SIGINT.
    143: another signal. An unexpected exception passes through, with its traceback.
    """
    is_first_rank = os.environ.get("LOCAL_RANK", "0") == "0"  # one process of each machine prints
    try:
        with _exit_on_signals():
            main()
    except (UserError, TrainingError) as error:
        if is_first_rank:
            print_error(str(error))
        return 2 if isinstance(error, UserError) else 1
    except Stopped as stopped:
        if is_first_rank:
            print(stopped, file=sys.stderr)
        return stopped.exit_code
    except BrokenPipeError:  # `... --help | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if is_first_rank:
            print("Interrupted before the first step: nothing was trained.", file=sys.stderr)
        return 130
    except Exception as error:
        # torch's handler of SIGCHLD raises for a dead data worker in whatever code runs then.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        explanation = explain_failure(error)
        if explanation is None:
            raise
        print_error(f"{explanation} (rank {os.environ.get('RANK', '0')})")  # every rank prints
        return 1
    return 0


def print_error(message: str) -> None:
    """Print "error: message" on standard error, "error:" in red on a terminal."""
    print(f"{colored('error:', 'red', sys.stderr)} {message}", file=sys.stderr)


def colored(text: str, color: str, stream: object) -> str:
    """Return `text` in red, yellow or green if `stream` is a terminal with colors (no-color.org)."""
    is_terminal = getattr(stream, "isatty", lambda: False)()
    if not is_terminal or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    code = {"red": 31, "green": 32, "yellow": 33}[color]
    return f"\033[{code}m{text}\033[0m"


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exit with a message on SIGTERM and SIGUSR1 while no training loop handles them."""

    def exit_now(number: int, frame: FrameType | None) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            name = signal.Signals(number).name
            print(
                f"{name}: stopped outside of the training loop. The checkpoints are unchanged; run the "
                "same command again to resume.",
                file=sys.stderr,
            )
        raise SystemExit(143)  # not an Exception, which the libraries catch in many places

    with signals_to(exit_now):
        yield


@contextlib.contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send SIGTERM and SIGUSR1 to a handler within the block, and restore the handlers after it."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def explain_failure(error: Exception) -> str | None:
    """Explain a dead rank, a dead data worker, a full disk or a lack of memory; None for other errors."""
    text = root_cause(error)
    disk_errors = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    disk_is_full = isinstance(error, OSError) and error.errno in disk_errors
    if disk_is_full or "No space left on device" in text:
        return (
            f"cannot write to disk: {text}. Free some space and run the same command again: it resumes "
            "from the newest checkpoint."
        )
    # A worker that dies while it sends a batch closes its socket; that error does not name the DataLoader.
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if "DataLoader worker" in text or any(file.endswith("resource_sharer.py") for file in files):
        return f"a data loading worker died: {text}. If memory is short, use workers=0."
    backends = ("gloo", "NCCL", "DistBackendError", "DistNetworkError", "DistStoreError")
    if any(backend in text for backend in backends):
        return (
            "another rank of this run died, or did not answer within the number of seconds in "
            f"timeout: {text}"
        )
    if is_out_of_memory(error):
        return (
            f"out of memory: {text}. A smaller micro_batch_size (in evaluation: eval_batch_size) needs "
            "less and gives the same result. The same command with it resumes the run."
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that a device, or the CPU, has no memory left."""
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'f1_macro'?)" for the nearest choice, or "" if none is near."""
    nearest = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def root_cause(error: BaseException) -> str:
    """Return the innermost cause in one line: `datasets` wraps errors in others that do not name it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
