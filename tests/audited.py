"""Run commands one after the other in this process, and note what they did that none may do.

    python tests/audited.py PLAN.json RESULTS.json

The plan has "commands" (script, words, input), the "writable" folders and files, and the
"addresses" to which sockets may connect. The results list, for each command, its exit code, its
output, its traceback if it has one, and its violations. An audit hook (`sys.addaudithook`) notes:

    code        the file of a module or of other code that lies outside of Python, its installed
                packages and the project; code from a text, unless a library makes it
    processes   programs that are started, forks, and libraries in C from outside
    network     connections to any other address
    files       opening to write, creating, renaming, deleting or changing outside of "writable",
                after links have been resolved

Files that a library opens in C or Rust raise no event: compare the surroundings as well.
"""

import functools
import io
import json
import os
import runpy
import signal
import site
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sorted(
    {os.path.realpath(path) for path in (*site.getsitepackages(), *sysconfig.get_paths().values())}
    - {os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)}
)
PROJECT = [str(ROOT / name) for name in ("ftloop", "configs", "recipes")]
SCRIPTS = [str(ROOT / name) for name in ("train.py", "evaluate.py", "predict.py")]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Where a pickle must not lead: names of these modules start programs, run texts or change files.
DANGEROUS = {"os", "posix", "subprocess", "pty", "shutil", "runpy", "importlib", "ctypes", "code"}
DANGEROUS_BUILTINS = {"exec", "eval", "compile", "__import__", "open", "getattr", "breakpoint"}

# Programs that libraries ask about fonts and about where the system has libraries
PROGRAMS = {"fc-list", "/sbin/ldconfig"}
SECONDS = 120  # that a command may take


class Audit:
    """An audit hook that notes violations. `writable` and `addresses` say what is allowed."""

    def __init__(self, writable: list[str], addresses: list[str]):
        self.writable = [os.path.realpath(path) for path in writable]
        self.addresses = addresses
        self.violations: list[str] = []
        self.is_busy = False
        self.checks: dict[str, Callable[..., None]] = {
            "open": self.check_open,
            "exec": self.check_exec,
            "compile": self.check_compile,
            "subprocess.Popen": self.check_program,
            "ctypes.dlopen": self.check_library,
            "pickle.find_class": self.check_pickled_name,
            "socket.connect": self.check_connection,
            "socket.sendto": self.check_connection,
            "os.rename": self.check_rename,
            "os.link": self.check_rename,
            "os.symlink": lambda source, target, folder: self.check_change("os.symlink", target),
            "os.truncate": lambda path, length: self.check_change("os.truncate", path),
        }
        for event in ("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.utime"):
            self.checks[event] = self.check_for_event(event)
        for event in ("os.setxattr", "os.removexattr"):
            self.checks[event] = self.check_for_event(event)
        for event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn"):
            self.checks[event] = self.note_for_event(event)
        for event in ("os.fork", "os.forkpty", "pty.spawn"):
            self.checks[event] = self.note_for_event(event)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an event of Python. What the checks themselves do is not checked."""
        check = self.checks.get(event)
        if check is None or self.is_busy:
            return
        self.is_busy = True
        try:
            check(*arguments)
        finally:
            self.is_busy = False

    def note(self, text: str) -> None:
        """Note a violation, with the innermost line of this project that led to it."""
        frame, place = sys._getframe(), ""
        while frame is not None and not place:
            file = frame.f_code.co_filename
            if file.startswith((*PROJECT, *SCRIPTS)):
                place = f" ({os.path.relpath(file, ROOT)}:{frame.f_lineno})"
            frame = frame.f_back
        self.violations.append(text[:300] + place)

    def note_for_event(self, event: str) -> Callable[..., None]:
        return lambda *arguments: self.note(f"{event} {arguments!r}")

    # Code

    def check_exec(self, code: CodeType) -> None:
        self.check_code(code.co_filename, sys._getframe(2).f_code.co_filename)

    def check_compile(self, source: Any, file: Any) -> None:
        name = file.decode() if isinstance(file, bytes) else str(file)
        self.check_code(name, sys._getframe(2).f_code.co_filename)

    def check_code(self, file: str, caller: str) -> None:
        """Note code from an unknown file, and code from a text that no library executes."""
        if file.startswith("<frozen ") or is_known(file):
            return
        is_generated = file.startswith("<")  # "<string>", "<template>", ...
        if not (is_generated and (caller.startswith("<frozen ") or is_known(caller, PYTHON))):
            self.note(f"code of {file!r}, run by {caller}")

    def check_program(self, program: Any, words: Any, *_: Any) -> None:
        if not isinstance(words, list) or words[0] not in PROGRAMS:
            self.note(f"subprocess.Popen {words!r}")

    def check_library(self, name: Any) -> None:
        if isinstance(name, str) and os.path.isabs(name) and not is_known(name):
            self.note(f"ctypes.dlopen {name}")

    def check_pickled_name(self, module: str, name: str) -> None:
        package = module.partition(".")[0]
        is_dangerous = package in DANGEROUS or name in DANGEROUS_BUILTINS
        if is_dangerous or not module_is_known(module):
            self.note(f"pickle.find_class {module}.{name}")

    # Network

    def check_connection(self, socket: Any, address: Any) -> None:
        text = ":".join(map(str, address[:2])) if isinstance(address, tuple) else str(address)
        if text not in self.addresses:
            self.note(f"a connection to {text}")

    # Files

    def check_open(self, path: Any, mode: str | None, flags: int) -> None:
        if not isinstance(path, int) and flags & WRITING:
            self.check_change("open", path, follow=True)

    def check_rename(self, source: Any, target: Any, *folders: int) -> None:
        for path, folder in zip((source, target), folders, strict=True):
            self.check_change("os.rename", path, folder)

    def check_for_event(self, event: str) -> Callable[..., None]:
        def check(path: Any, *arguments: Any) -> None:
            folder = arguments[-1] if arguments and event not in ("os.chown",) else -1
            self.check_change(event, path, folder if isinstance(folder, int) else -1)

        return check

    def check_change(self, event: str, path: Any, folder: int = -1, follow: bool = False) -> None:
        """Note a change of a path outside of the writable places. `follow` resolves a last link."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        name = os.fsdecode(path)
        if folder >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        if follow:
            place = os.path.realpath(name)
        else:
            parent, last = os.path.split(os.path.abspath(name))
            place = os.path.join(os.path.realpath(parent), last)
        if not is_below(place, self.writable):
            self.note(f"{event} {place}")


def is_below(path: str, places: list[str]) -> bool:
    return any(path == place or path.startswith(place + os.sep) for place in places)


@functools.cache
def resolve(file: str) -> str:
    return os.path.realpath(file)


def is_known(file: str, places: list[str] | None = None) -> bool:
    """Tell whether a file is Python's, an installed package's or, by default, the project's."""
    if places is None:
        places = [*PYTHON, *PROJECT, *SCRIPTS, str(Path(__file__).resolve())]
    return is_below(resolve(file), places)


def module_is_known(name: str) -> bool:
    """Tell whether a module that was imported is known: built in, or by its file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or not os.path.exists(file) or is_known(file)  # torch.ops has no real file


# Commands


def stop(*_: Any) -> None:
    raise TimeoutError(f"the command does not end within {SECONDS} seconds")


def run(script: str, words: list[str], text: str | None, audit: Audit) -> dict[str, Any]:
    """Run `python SCRIPT WORDS` here, with a text as its standard input."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):  # they outlive an Accelerator
            state._reset_state()
    out, err = io.StringIO(), io.StringIO()
    sys.argv, code, trace = [str(ROOT / script), *words], 0, ""
    sys.stdin = io.TextIOWrapper(io.BytesIO((text or "").encode()), encoding="utf-8")
    start, began = len(audit.violations), time.monotonic()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        code, trace = 1, traceback.format_exc()
    signal.alarm(0)
    left = sys.stdin.read() if text is not None else ""
    return {
        "code": code,
        "seconds": round(time.monotonic() - began, 2),
        "out": out.getvalue(),
        "err": err.getvalue(),
        "traceback": trace,
        "unread_input": left,
        "violations": audit.violations[start:],
    }


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    results = Path(sys.argv[2])
    audit = Audit([*plan["writable"], str(results)], plan["addresses"])
    sys.addaudithook(audit)
    answers = [
        run(command["script"], command["words"], command.get("input"), audit)
        for command in plan["commands"]
    ]
    modules = [name for name in sys.modules if not module_is_known(name)]
    results.write_text(json.dumps({"commands": answers, "foreign_modules": modules}))


if __name__ == "__main__":
    main()
