"""How a run was made: its options, command, seed, ledger digest and versions."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from ftloop.config import Config, encode, read_record
from ftloop.report.history import ledger_digest
from ftloop.report.page import Column, Html, Page, key_figures, paragraph, preformatted, table
from ftloop.report.sections import installed_versions
from ftloop.runs.finished import recorded_environment


def add_config(page: Page, run_dir: Path, config: Config) -> None:
    """Add the section "Options and versions"."""
    page.add_section("Options and versions")
    page.add(key_figures({"seed": config.seed, "run folder": run_dir.resolve().name}))
    command = read_record(run_dir).get("command")
    if command:
        page.add(paragraph("The command that started or last resumed the run:", "soft"))
        page.add(preformatted(command))
    digest = ledger_digest(run_dir)
    if digest:
        page.add(
            paragraph(
                "The ledger digest: the last link of a chain of digests over the rows, the loss "
                "and the weights of every step. Two runs with the same digest computed the same; "
                "`python -m ftloop.cli verify` checks it.",
                "soft",
            ),
            preformatted(digest),
        )
    changed, defaults = split_options(config)
    page.add_heading("Options that differ from their defaults")
    page.add(option_table(changed))
    details = f"<summary>All other options</summary>{option_table(defaults)}"
    page.add(Html(f"<details>{details}</details>\n"))
    page.add_heading("Versions and devices")
    page.add(version_table(recorded_environment(run_dir)))


def version_table(training: dict[str, Any]) -> Html:
    """Return a table of the training's environment and of the versions that wrote this page."""
    current = installed_versions()
    names = list(dict.fromkeys([*training, *current]))
    return table(
        [
            Column("", names),
            Column("training", [str(training.get(name, "")) for name in names]),
            Column("this page", [current.get(name, "") for name in names]),
        ]
    )


def option_table(options: dict[str, str]) -> Html:
    """Return a table of options and their values."""
    return table([Column("option", list(options)), Column("value", list(options.values()), "text")])


def split_options(config: Any, prefix: str = "") -> tuple[dict[str, str], dict[str, str]]:
    """Return two dicts of option name to formatted value.

    First the options that differ from their defaults, then those that do not.
    """
    changed: dict[str, str] = {}
    defaults: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), option_name(prefix + field.name)
        if dataclasses.is_dataclass(value):
            # A nested config, such as the task: record its class, then its fields.
            changed[field.name] = type(value).__name__
            nested_changed, nested_defaults = split_options(value, f"{prefix}{field.name}.")
            changed |= nested_changed
            defaults |= nested_defaults
        elif value == default_of(field):
            defaults[option] = format_option(value)
        else:
            changed[option] = format_option(value)
    return changed, defaults


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a field."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def option_name(field: str) -> str:
    """Return how the command line spells a field: "--max-length" for "task.max_length"."""
    return "--" + field.removeprefix("task.").replace("_", "-")


def format_option(value: Any) -> str:
    """Return the value of an option, as far as possible as it is typed."""
    encoded = encode(value)
    if isinstance(encoded, str):
        return encoded
    if isinstance(encoded, dict):
        if encoded.keys() == {"function"}:
            return encoded["function"]
        if encoded.keys() & {"function", "pairs", "class"}:
            return json.dumps(encoded, ensure_ascii=False)
        encoded = [
            f"{key}={item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)}"
            for key, item in encoded.items()
        ]
    is_list_of_text = isinstance(encoded, list) and all(isinstance(item, str) for item in encoded)
    if is_list_of_text:  # "" if it is empty
        return shlex.join(encoded)
    if encoded is None or isinstance(encoded, bool):
        return str(encoded)
    return json.dumps(encoded, ensure_ascii=False)
