"""From a config file and the words of a command line to a Job.

A config file is a Python module with a variable `config`. It may define losses, models and
optimizers. Precedence: the defaults of the dataclasses < the config file < the command line.
"""

import dataclasses
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import tyro

from ftloop.cli.help import print_help
from ftloop.cli.job import Job, validate_job, validate_track
from ftloop.cli.option_names import OptionNames, expand_short_forms, reject_unknown_options
from ftloop.cli.options import REGISTRY
from ftloop.config import Config
from ftloop.errors import UserError, did_you_mean
from ftloop.runs.record import add_to_path
from ftloop.runs.shape import check_numbers


def from_command_line(words: list[str]) -> Job:
    """Return the Job for `configs/mrpc.py --learning-rate 3e-5`.

    Exits after printing the help if one of the words is --help, -h or --help-all. Raises UserError
    for an option that does not exist; for a value that does not fit, tyro prints why and exits with
    2.
    """
    file, *words = words
    job = load_config_file(file)
    prog = f"train.py {file}"
    if "--help-all" in words:
        words = ["--help"]
    elif {"-h", "--help"} & {*words}:
        print_help(job, file)
        sys.exit(0)
    else:
        names = OptionNames.of(job)
        reject_unknown_options(words, names)
        words = expand_short_forms(words, names)
    job = tyro.cli(type(job), default=job, args=words, prog=prog, registry=REGISTRY)
    check_numbers(job.task)
    validate_job(job)
    validate_track(job)
    return job


def load_config_file(name: str) -> Job:
    """Import a config file and return its `config`, a Config as a Job. Raises UserError."""
    file = Path(name)
    if not file.is_file():
        folder = file.parent
        choices = sorted(map(str, folder.glob("*.py"))) if folder.is_dir() else []
        raise UserError(
            f"config file {name!r} does not exist{did_you_mean(name, choices)}. "
            f"Files in its folder: {', '.join(choices) or 'none'}."
        )
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UserError(
            f"config file {name!r}: rename it to a Python identifier followed by .py, because a "
            "run imports it by that name."
        )
    module = import_config_module(file.resolve(), name)
    config = getattr(module, "config", None)
    if type(config) is Config:  # not a Job: its other options have their defaults
        fields = dataclasses.fields(Config)
        config = Job(**{field.name: getattr(config, field.name) for field in fields})
    if not isinstance(config, Job):
        raise UserError(f"config file {name!r} has no variable `config` that is an ftloop.cli.Job.")
    return config


def import_config_module(file: Path, name: str) -> Any:
    """Import a file as a module that other processes can import by the same name.

    It is `configs.mrpc` if the folder above is on sys.path (the root of the project), else `mrpc`.
    Raises UserError that names the line of the file where the import failed.
    """
    parent = file.parent
    is_in_package = parent.name.isidentifier() and any(
        parent.parent == Path(entry).resolve() for entry in sys.path
    )
    module_name = f"{parent.name}.{file.stem}" if is_in_package else file.stem
    add_to_path(parent.parent if is_in_package else parent)
    try:
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:  # a config file can raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
        # A file with a syntax error runs no line; the error itself has the number.
        line = lines[-1] if lines else getattr(error, "lineno", None)
        raise UserError(
            f"config file {name!r}, line {line}: {type(error).__name__}: {error}"
        ) from error
    if Path(module.__file__ or "").resolve() != file:
        raise UserError(
            f"config file {name!r}: another module is named {module_name} ({module.__file__}). "
            "Rename the file."
        )
    return module
