"""Rebuild the Config of a run from its record, config.json.

The record is data: values, and qualified names of classes and functions ("package.module:name").
trust.py says which of them may run. With --trust-code, all are imported, also from the folders
where the run found them ("import_from"), but never from the run folder: nothing in a run folder is
executed.
"""

import dataclasses
import functools
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.config import Config, encode, read_record
from ftloop.data import Data
from ftloop.errors import UserError
from ftloop.extensions import Observer
from ftloop.runs import trust
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


def load_config(
    run_dir: str | Path,
    *,
    functions: tuple[str, ...] = (),
    needs_data: bool = True,
    shapes_rows: bool = True,
) -> Config:
    """Return the config of a run, with `run_dir` set to where the run is now.

    What the caller will not use needs no permission. Only training calls the functions of the
    config itself, such as its optimizer: those that may not run are not imported, except for the
    fields in `functions`; nor are those of the data without `shapes_rows`. Without `needs_data`,
    the metrics and the files of the run are not used.

    Raises UserError if the folder holds no run, if its record names code that may not run or cannot
    be imported, or if it names a file of the run folder.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    try:
        encoded = leave_out_functions(record["config"], functions)
        if not shapes_rows:
            encoded["task"] = leave_out_data_functions(encoded["task"])
        trust.require_permissions(encoded, needs_data)
        if trust.granted().code:
            import_from_recorded_folders(run_dir, record)
        config = decode(encoded)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{run_dir / 'config.json'} cannot be read: {error!r}.") from error
    if not isinstance(config, Config):
        raise UserError(f"{run_dir / 'config.json'} holds no ftloop.Config.")
    check_config(config, run_dir / "config.json")
    return dataclasses.replace(trust.withdraw(config), run_dir=str(run_dir))


class RecordedFunction:
    """A function of the record that may not run, and that nobody will call."""

    def __init__(self, name: str):
        self.__module__, _, self.__qualname__ = name.partition(":")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise UserError(f"{self.__module__}:{self.__qualname__} of the run was not imported.")


def leave_out_functions(encoded: dict[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """Replace the functions of an object that may not run, except for the fields in `used`."""
    result = dict(encoded)
    for field, value in encoded.items():
        is_function = isinstance(value, dict) and "function" in value
        if is_function and field not in used and trust.find_untrusted(value):
            function = RecordedFunction(str(value["function"]))
            arguments, options = value.get("arguments", ()), value.get("options", {})
            is_partial = "arguments" in value
            result[field] = (
                functools.partial(function, *arguments, **options) if is_partial else function
            )
    return result


def leave_out_data_functions(task: Any) -> Any:
    """Replace the functions of the data of a task, and of its sources, that may not run."""
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        return task
    data = leave_out_functions(task["data"], ())
    if isinstance(data.get("sources"), list):
        data["sources"] = [
            leave_out_functions(source, ()) if isinstance(source, dict) else source
            for source in data["sources"]
        ]
    return {**task, "data": data}


def options_needed(config: Config) -> list[str]:
    """Return the options that a command on a run of this config needs: ["--trust-code"]."""
    options = []
    for option, pickle in (("--trust-code", True), ("--trust-pickle", False)):
        with trust.allow(code=not pickle, pickle=pickle):
            try:
                trust.require_permissions(leave_out_functions(encode(config), ()), needs_data=True)
            except UserError:
                options.append(option)
    return options


def import_from_recorded_folders(run_dir: Path, record: dict[str, Any]) -> None:
    """Make the modules of a record importable from where the run found them.

    Raises UserError for a module that is a file of the run folder.
    """
    for folder in record.get("import_from", ()):
        if not trust.is_inside(folder, run_dir):
            add_to_path(folder)
    for module in sorted(recorded_modules(record["config"])):
        if any(trust.is_inside(file, run_dir) for file in trust.module_files(module)):
            raise UserError(
                f"the record of {str(run_dir)!r} names the module {module}, which is a file of the "
                "run folder. Nothing in a run folder is executed: move the module elsewhere."
            )


# Decoding


def decode(value: Any, takes_functions: bool = True) -> Any:
    """Return what `ftloop.config.encode` encoded. Lists become tuples: configs are immutable.

    Raises UserError for a name that may not run or cannot be imported, for a function where
    `takes_functions` is False, and for a field that a class does not have.
    """
    if isinstance(value, list):
        return tuple(decode(item, takes_functions) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" in value:
        return _decode_object(value)
    if "function" in value:
        name = str(value["function"])
        if not takes_functions:
            message = "in a field that takes no function: its annotation is no Callable."
            raise UserError(f"the record names {name} {message}")
        function = _import_recorded(name, "function")
        if "arguments" not in value:
            return function
        return functools.partial(
            function, *decode(value["arguments"]), **decode(value.get("options", {}))
        )
    # "pairs" is a dictionary that has one of these words among its keys.
    pairs = value["pairs"] if "pairs" in value else value.items()
    return {key: decode(item, takes_functions) for key, item in pairs}


def _decode_object(value: dict[str, Any]) -> Any:
    """Rebuild a dataclass from its fields, or a task that is not a dataclass without arguments."""
    name = str(value["class"])
    cls = _import_recorded(name, "class")
    is_dataclass = isinstance(cls, type) and dataclasses.is_dataclass(cls)
    is_library = name.partition(":")[0].partition(".")[0] in trust.LIBRARIES
    is_expected = isinstance(cls, type) and issubclass(cls, Config | Task | Data)
    if not is_expected and (is_library or not is_dataclass):  # a fork may nest its own dataclasses
        raise UserError(f"the record names {name}, which is no Config, Task or Data.")
    encoded = {field: item for field, item in value.items() if field != "class"}
    if not is_dataclass and encoded:
        raise UserError(f"the record has fields for {name}, which is no dataclass.")
    known = {field.name: field for field in dataclasses.fields(cls)} if is_dataclass else {}
    unknown = encoded.keys() - known.keys()
    if unknown:
        raise UserError(
            f"the record has fields that {name} lacks: {', '.join(sorted(unknown))}. "
            "It was written by another version of this code."
        )
    fields = {
        field: decode(item, takes_functions="Callable" in str(known[field].type))
        for field, item in encoded.items()
    }
    try:
        return cls(**fields)
    except TypeError as error:
        raise UserError(
            f"{name} cannot be rebuilt from the record of the run: {error}. A task that takes "
            "arguments must be a dataclass, whose fields are recorded."
        ) from error


def _import_recorded(name: str, kind: str) -> Any:
    """Import a class or function of a record. Raises UserError if it may not run.

    What a trusted module has imported is not trusted with it: "torch.optim:os.system".
    """
    if trust.granted().code:
        return import_name(name)
    trust.refuse([] if trust.is_trusted(name, kind) else [name])
    value = import_name(name)
    trust.refuse([] if trust.is_trusted(trust.name_of(value), kind) else [name])
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
    modules = {name.partition(":")[0] for _, name in trust.recorded_names(encoded)}
    return {module for module in modules if module.partition(".")[0] != "ftloop"}


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
