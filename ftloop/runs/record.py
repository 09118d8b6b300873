"""Rebuild the Config of a run from its record, config.json.

The record is data: values, and qualified names of classes and functions ("package.module:name").
The names are imported from ftloop, from installed packages and from the folders where the run found
them ("import_from"), but never from the run folder: nothing in a run folder is executed.
"""

import dataclasses
import functools
import importlib
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.config import Config, read_record
from ftloop.errors import UserError
from ftloop.extensions import Observer
from ftloop.runs.shape import check_config
from ftloop.task import Task

if TYPE_CHECKING:
    from ftloop.run import Run


class RecordImportFolders(Observer):
    """Adds to config.json the folders from which the modules of the config were imported.

    Without them, a finished run whose config file lies elsewhere needs PYTHONPATH to be evaluated.
    """

    def on_start(self, run: "Run") -> None:
        if run.is_main_process:
            add_import_folders(run.folder)


def add_import_folders(run_dir: Path) -> None:
    """Write "import_from" into the record of a run that this process has started."""
    from ftloop.checkpoint import write_text

    record = read_record(run_dir)
    record["import_from"] = import_folders(record["config"])
    write_text(run_dir / "config.json", json.dumps(record, indent=1) + "\n")


def load_config(run_dir: str | Path) -> Config:
    """Return the config of a run, with `run_dir` set to where the run is now.

    Raises UserError if the folder holds no run, if the code of the run cannot be imported, or if
    its record names a file of the run folder.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    for folder in record.get("import_from", ()):
        if not is_inside(folder, run_dir):
            add_to_path(folder)
    for module in sorted(recorded_modules(record["config"])):
        if is_module_inside(module, run_dir):
            raise UserError(
                f"the record of {str(run_dir)!r} names the module {module}, which is a file of the "
                "run folder. Nothing in a run folder is executed: move the module elsewhere."
            )
    config = decode(record["config"])
    if not isinstance(config, Config):
        raise UserError(f"{run_dir / 'config.json'} holds no ftloop.Config.")
    check_config(config, run_dir / "config.json")
    return dataclasses.replace(config, run_dir=str(run_dir))


def decode(value: Any) -> Any:
    """Return what `ftloop.config.encode` encoded. Lists become tuples: configs are immutable.

    Raises UserError for a name that cannot be imported and for a field that a class does not have.
    """
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" in value:
        return _decode_object(value)
    if "function" in value:
        function = _import_recorded(value["function"])
        if "arguments" not in value:
            return function
        return functools.partial(
            function, *decode(value["arguments"]), **decode(value.get("options", {}))
        )
    if "pairs" in value:  # a dictionary that has one of these words among its keys
        return {key: decode(item) for key, item in value["pairs"]}
    return {key: decode(item) for key, item in value.items()}


def _decode_object(value: dict[str, Any]) -> Any:
    """Rebuild a dataclass from its fields, or a task that is not a dataclass without arguments."""
    name, cls = value["class"], _import_recorded(value["class"])
    fields = {field: decode(item) for field, item in value.items() if field != "class"}
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        unknown = fields.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise UserError(
                f"the record has fields that {name} lacks: {', '.join(sorted(unknown))}. "
                "It was written by another version of this code."
            )
        return cls(**fields)
    try:
        if isinstance(cls, type) and issubclass(cls, Task) and not fields:
            return cls()
    except TypeError as error:
        raise UserError(
            f"{name} cannot be rebuilt from the record of the run: {error}. Make it a dataclass, "
            "whose fields are recorded."
        ) from error
    raise UserError(f"the record names {name}, which is neither a dataclass nor a Task.")


def _import_recorded(name: str) -> Any:
    """Import a name of a record. Names of the standard library are refused: a record could combine
    `exec`, also as "ftloop.module:os.system", with arguments of its own."""
    value = import_name(name)
    module = getattr(value, "__module__", None) or "builtins"
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(
            f"the record names {name} of Python's standard library. Records may name "
            "only code of ftloop, of installed packages and of your own modules."
        )
    return value


def import_name(name: str) -> Any:
    """Return the function or class named "package.module:name". Raises UserError."""
    module, colon, path = str(name).partition(":")
    if not colon:
        raise UserError(f"{name!r} is not a qualified name: write MODULE:NAME.")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except Exception as error:  # a module can raise anything while it is imported
        raise UserError(f"{name!r} cannot be imported: {error}") from error


def recorded_modules(encoded: Any) -> set[str]:
    """Return the modules outside ftloop whose classes and functions an encoded config names."""
    if isinstance(encoded, list):
        return set().union(*map(recorded_modules, encoded))
    if not isinstance(encoded, dict):
        return set()
    modules = set().union(*map(recorded_modules, encoded.values()))
    for kind in ("class", "function"):
        name = encoded.get(kind)
        if isinstance(name, str) and name.partition(":")[0].partition(".")[0] != "ftloop":
            modules.add(name.partition(":")[0])
    return modules


def import_folders(encoded: Any) -> list[str]:
    """Return the folders from which this process imported the modules that a config names."""
    folders = set()
    for module in recorded_modules(encoded):
        # A script is recorded by the name of its file, but imported as __main__.
        imported = sys.modules.get(module) or sys.modules["__main__"]
        if getattr(imported, "__file__", None) is not None:
            file = Path(imported.__file__).resolve()
            depth = module.count(".") + (file.stem == "__init__")
            folders.add(str(file.parents[depth]))
    return sorted(folders)


def add_to_path(folder: str | Path) -> None:
    """Make the modules of a folder importable, also in data workers, which inherit sys.path."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def is_inside(path: str | Path, folder: Path) -> bool:
    """Tell whether a path, with its links resolved, is a folder or lies inside it."""
    return Path(path).resolve().is_relative_to(folder.resolve())


def is_module_inside(module: str, folder: Path) -> bool:
    """Tell whether importing a module would execute a file inside a folder. Imports nothing.

    The module may be in a package: with runs/ in the working directory, `runs.mrpc.task` is a file
    of the run folder runs/mrpc.
    """
    search_path = None  # sys.path for the first part, then the folders of each package
    for part in module.split("."):
        spec = PathFinder.find_spec(part, search_path)
        if spec is None:
            return False
        if spec.origin is not None and is_inside(spec.origin, folder):
            return True
        search_path = spec.submodule_search_locations
    return False
