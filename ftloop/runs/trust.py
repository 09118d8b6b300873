"""Which code the record of a run may name, and what a person permits on the command line.

A run folder may come from a stranger. By itself, its record names only

    classes     Config, Task, Data and their subclasses of ftloop
    functions   of LIBRARY_MODULES, which compute and neither read nor write files
    both        of a file in configs/ or recipes/ of the project that is running

`Permissions` allow more. They come from the command line, or in Python from `allow`, never from a
record.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ftloop.config import qualified_name
from ftloop.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the project that is running
OWN_FOLDERS = ("configs", "recipes")
LIBRARIES = ("ftloop", "torch", "transformers")
LIBRARY_MODULES = (
    *("ftloop.optim", "ftloop.sampler"),
    *("torch.nn", "torch.optim", "transformers.optimization"),
)
HUB_METRIC = "hub:"  # see ftloop/tasks/metrics.py


@dataclasses.dataclass(frozen=True)
class Permissions:
    """What a run may do besides what is safe. A field `trust_NAME` of a record needs NAME."""

    code: bool = False  # import whatever its record names, and load its metrics of the Hub
    pickle: bool = False  # read pickled data


_granted: ContextVar[Permissions] = ContextVar("granted")


def granted() -> Permissions:
    """Return the permissions that hold here."""
    return _granted.get(Permissions())


@contextlib.contextmanager
def allow(*, code: bool = False, pickle: bool = False) -> Iterator[None]:
    """Within the block, load runs with these permissions: --trust-code and --trust-pickle."""
    token = _granted.set(Permissions(code, pickle))
    try:
        yield
    finally:
        _granted.reset(token)


# Records


def require_permissions(encoded: Any, needs_data: bool) -> None:
    """Raise UserError if an encoded config needs a permission that was not given. Imports nothing.

    Metrics of the Hub and pickles need one only if the data of the run will be used.
    """
    names = find_untrusted(encoded)
    if needs_data and not granted().code:
        names += [name for name in _values_of(encoded, "metrics") if name.startswith(HUB_METRIC)]
    refuse(names)
    if needs_data and "True" in _values_of(encoded, "trust_pickle") and not granted().pickle:
        raise UserError(
            "the data of this run is pickled, and reading a pickle runs code of whoever wrote it. "
            "Use --trust-pickle to read it."
        )


def refuse(names: list[str]) -> None:
    """Raise UserError if there are names of code that may not run."""
    if names:
        is_library = all(_package(name) in LIBRARIES for name in names)
        what = (
            "library code that is not made for configs" if is_library else "code outside of ftloop"
        )
        shown = ", ".join(name if name.isprintable() else ascii(name) for name in names)
        raise UserError(f"this run names {what}: {shown}. Use --trust-code to run it.")


def find_untrusted(encoded: Any) -> list[str]:
    """Return the names of the classes and functions in an encoded config that may not run."""
    if granted().code:
        return []
    names = [name for kind, name in recorded_names(encoded) if not is_trusted(name, kind)]
    return list(dict.fromkeys(names))


def recorded_names(encoded: Any) -> Iterator[tuple[str, str]]:
    """Yield ("class" or "function", "module:name") for all that an encoded config names."""
    if isinstance(encoded, dict):
        for kind in ("class", "function"):
            if kind in encoded:
                yield kind, str(encoded[kind])
        encoded = list(encoded.values())
    if isinstance(encoded, list):
        for item in encoded:
            yield from recorded_names(item)


def withdraw(value: Any) -> Any:
    """Return a decoded object, its fields `trust_NAME` False without the permission NAME."""
    if isinstance(value, tuple):
        return tuple(withdraw(item) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = [field.name for field in dataclasses.fields(value) if field.init]
    changed = {name: withdraw(getattr(value, name)) for name in names}
    for name in names:
        if name.startswith("trust_"):
            changed[name] &= getattr(granted(), name.removeprefix("trust_"), False)
    return dataclasses.replace(value, **changed)


def _values_of(encoded: Any, field: str) -> list[str]:
    """Return the values of all fields of a name in an encoded config, as texts."""
    values = []
    if isinstance(encoded, dict):
        found = encoded.get(field, [])
        values = [str(value) for value in (found if isinstance(found, list) else [found])]
        encoded = list(encoded.values())
    if isinstance(encoded, list):
        for item in encoded:
            values += _values_of(item, field)
    return values


# Names


def name_of(value: Any) -> str:
    """Return "module:name" by which an imported object knows itself, "" if it has no such name."""
    try:
        return qualified_name(value)
    except (UserError, AttributeError):
        return ""


def is_trusted(name: str, kind: str) -> bool:
    """Tell whether a record may name a class or function "module:name" by itself. Imports nothing.

    Components of the module's path are compared whole: `ftloop_tools` is not ftloop.
    """
    module = name.partition(":")[0]
    if kind == "class" and _package(name) == "ftloop":
        return True
    is_library = any(module == known or module.startswith(f"{known}.") for known in LIBRARY_MODULES)
    return (kind == "function" and is_library) or is_own_module(module)


def is_own_module(module: str) -> bool:
    """Tell whether a module is a file in configs/ or recipes/ of this project. Imports nothing."""
    if _package(module) not in OWN_FOLDERS:
        return False
    if str(ROOT) not in sys.path:  # a command that was started in another folder
        sys.path.append(str(ROOT))
    folder, files = ROOT / _package(module), module_files(module)
    return bool(files) and all(is_inside(file, folder) for file in files)


def module_files(module: str) -> list[str]:
    """Return the files that importing a module executes: its packages and itself. Imports nothing.

    The list is empty if there is no such module.
    """
    files, search_path, name = [], None, ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        if name in sys.modules:
            file, search_path = _loaded(name)
        else:
            spec = PathFinder.find_spec(name, search_path)
            if spec is None:
                return []
            file, search_path = spec.origin, spec.submodule_search_locations
        if file is not None:  # a folder without __init__.py has none
            files.append(file)
        if search_path is None and name != module:
            return []
    return files


def _loaded(name: str) -> tuple[str | None, Any]:
    module = sys.modules[name]
    return getattr(module, "__file__", None), getattr(module, "__path__", None)


def is_inside(path: str | Path, folder: Path) -> bool:
    """Tell whether a path, with its links resolved, is a folder or lies inside it."""
    return Path(path).resolve().is_relative_to(folder.resolve())


def _package(name: str) -> str:
    return name.partition(":")[0].partition(".")[0]
