"""Run the main function of a script: exit codes, and errors without a traceback."""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from ftloop.cli.options import option_name
from ftloop.cli.standard_error import standard_error_may_close
from ftloop.errors import Stopped, TrainingError, UserError, root_cause
from ftloop.escape import for_terminal


def run_main(main: Callable[[], None]) -> int:
    """Run a main function, print the message of an expected error, and return the exit code.

    0: success. 1: TrainingError, a dead rank or data worker, a full disk, or out of memory. 2:
    UserError. 130: SIGINT. 141: a closed pipe. 143: another signal. An unexpected exception passes
    through, with its traceback.
    """
    with standard_error_may_close():
        return _run_main(main)


def _run_main(main: Callable[[], None]) -> int:
    is_first_rank = os.environ.get("LOCAL_RANK", "0") == "0"  # one process per machine prints
    try:
        with _exit_on_signals():
            main()
    except UserError as error:
        if is_first_rank:  # names the option of a field: "--batch-size: must be at least 1"
            option = f"{option_name(error.field)}: " if error.field else ""
            print_error(option + error.message)
        return 2
    except TrainingError as error:
        if is_first_rank:
            print_error(str(error))
        return 1
    except Stopped as stopped:
        if is_first_rank:
            print(for_terminal(stopped), file=sys.stderr)
        return stopped.exit_code
    except BrokenPipeError:  # `... --help | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if is_first_rank:
            print("Interrupted before the first step: nothing was trained.", file=sys.stderr)
        return 130
    except Exception as error:
        # When a data worker dies, torch's SIGCHLD handler raises in whatever code is running.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        explanation = explain_failure(error)
        if explanation is None:
            raise
        print_error(f"{explanation} (rank {os.environ.get('RANK', '0')})")  # every rank prints
        return 1
    return 0


def print_error(message: str) -> None:
    """Print "error: message" on standard error, "error:" in red on a terminal."""
    from ftloop.logs.terminal import colored

    text = for_terminal(message)  # it may quote texts of the data or of a record
    print(f"{colored('error:', 'red', sys.stderr)} {text}", file=sys.stderr)


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exit with a message on signals while no training loop handles them.

    A library that is interrupted by SIGINT while it reads may take that for a damaged file: its
    error becomes KeyboardInterrupt again.
    """
    interrupts = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    def exit_now(number: int, frame: FrameType | None) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            name = signal.Signals(number).name
            print(
                f"{name}: stopped outside of the training loop. The checkpoints are unchanged; "
                "run the same command again to resume.",
                file=sys.stderr,
            )
        raise SystemExit(143)  # not an Exception, which the libraries catch in many places

    handler = signal.getsignal(signal.SIGINT)
    is_interruptible = handler is signal.default_int_handler  # not in the background of a shell
    with signals_to(exit_now), signals_to(interrupt, (signal.SIGINT,) if is_interruptible else ()):
        try:
            yield
        except (UserError, TrainingError) as error:
            if interrupts:
                raise KeyboardInterrupt from error
            raise


@contextlib.contextmanager
def signals_to(
    handler: Callable[[int, FrameType | None], None],
    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP),
) -> Iterator[None]:
    """Send signals to a handler within the block, and restore the handlers after it.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def explain_failure(error: Exception) -> str | None:
    """Explain a dead rank or data worker, a full disk or a lack of memory; else return None."""
    text = root_cause(error)
    disk_errors = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    disk_is_full = isinstance(error, OSError) and error.errno in disk_errors
    if disk_is_full or "No space left on device" in text:
        return (
            f"cannot write to disk: {text}. Free some space and run the same command again: it "
            "resumes from the newest checkpoint."
        )
    # A worker that dies while it sends a batch closes its socket, and that error does not name
    # the DataLoader.
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if "DataLoader worker" in text or any(file.endswith("resource_sharer.py") for file in files):
        return f"a data loading worker died: {text}. If memory is short, use --workers 0."
    backends = ("gloo", "NCCL", "DistBackendError", "DistNetworkError", "DistStoreError")
    if any(backend in text for backend in backends):
        return (
            "another rank of this run died, or did not answer within the seconds of --timeout: "
            f"{text}"
        )
    if "out of memory" in text or "can't allocate memory" in text:
        return (
            f"out of memory: {text}. A smaller --micro-batch-size (in evaluation, a smaller "
            "--eval-batch-size; in evaluate.py and predict.py, --batch-size) needs less and gives "
            "the same result. The same command with it resumes the run."
        )
    return None
