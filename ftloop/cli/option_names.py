"""The names of the options of a job: short forms, unknown names, and names of other libraries."""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tyro

from ftloop.cli.options import option_name
from ftloop.cli.trainer_names import explain_other_names
from ftloop.errors import UserError, did_you_mean

SHORT_FORMS = {  # short form: the option that it stands for
    "--data": "--data.path",
    "--text": "--text-columns",
    "--label": "--label-column",
    "--image": "--image-column",
}
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
Words = list[tuple[str, list[str]]]  # options as they were typed, each with its values


@dataclass(frozen=True)
class OptionNames:
    """The names of the options of a job."""

    fields: dict[str, str]  # option -> path of its field: "--data.format" -> "task.data.format"
    negations: dict[str, str]  # option of a bool -> its negation: "--report" -> "--no-report"
    optional_flags: frozenset[str]  # options of the type bool | None: "--group-by-length"
    aliases: frozenset[str]  # other names that tyro knows: "--private"

    @classmethod
    def of(cls, job: Any) -> "OptionNames":
        """Collect the names of the options of a job. Raises UserError if two fields share one."""
        fields: dict[str, str] = {}
        negations: dict[str, str] = {}
        optional_flags: set[str] = set()
        aliases: set[str] = set()
        for path, field in option_fields(job):
            option = option_name(path)
            if option in fields:
                raise UserError(
                    f"the fields {fields[option]} and {path} would both be the option {option}: "
                    "rename the field of the task."
                )
            fields[option] = path
            types = member_types(field.type)
            if bool in types:
                prefix, dot, name = option.removeprefix("--").rpartition(".")
                negations[option] = f"--{prefix}{dot}no-{name}"
                if type(None) in types:
                    optional_flags.add(option)
            for marker in getattr(field.type, "__metadata__", ()):
                aliases.update(getattr(marker, "aliases", None) or ())
        return cls(fields, negations, frozenset(optional_flags), frozenset(aliases))

    def __contains__(self, option: str) -> bool:
        return (
            option in self.fields
            or option in self.negations.values()
            or option in self.aliases
            or option in self.short_forms()
        )

    def short_forms(self) -> dict[str, str]:
        """Return the short forms that this job has, and the options that they stand for."""
        return {
            short: option
            for short, option in SHORT_FORMS.items()
            if option in self.fields and short not in self.fields
        }


def option_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield the path and the field of each option: "task.data.path". Dataclasses are entered."""
    for field in dataclasses.fields(config):
        if tyro.conf.Suppress in getattr(field.type, "__metadata__", ()):  # for Python only
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from option_fields(value, f"{prefix}{field.name}.")
        elif prefix or field.name != "task":  # a task that is not a dataclass has no options
            yield f"{prefix}{field.name}", field


def member_types(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type alone, without what is said to tyro about it."""
    if hasattr(annotation, "__metadata__"):  # Annotated[bool, tyro.conf.arg(...)]
        annotation = annotation.__origin__
    return typing.get_args(annotation) or (annotation,)


def expand_short_forms(words: list[str], names: OptionNames) -> list[str]:
    """Write --data, --text, --label, --image and optional flags as tyro reads them.

    "--data FILE" becomes "--data.path FILE", "--no-group-by-length" "--group-by-length False".
    """
    short_forms = names.short_forms()
    flags = {option: [option, "True"] for option in names.optional_flags}
    flags |= {names.negations[option]: [option, "False"] for option in names.optional_flags}
    expanded = []
    for word in words:
        option, equals, value = word.partition("=")
        if word.replace("_", "-") in flags:
            expanded += flags[word.replace("_", "-")]
        else:
            expanded.append(short_forms.get(option, option) + equals + value)
    return expanded


def split_words(words: list[str]) -> Words:
    """Divide a command line into options and their values."""
    options: Words = []
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            options.append((option, [value] if equals else []))
        elif options:
            options[-1][1].append(word)
    return options


def reject_unknown_options(words: list[str], names: OptionNames) -> None:
    """Raise UserError for words that begin with -- and are not options.

    Options of the Trainer, its scripts and timm, and those of version 0.1, are answered with our
    option; for other words, the error suggests the nearest option.
    """
    unknown: Words = []
    for typed, values in split_words(words):
        option = typed.replace("_", "-")
        if option == "--push-to-hub" and not values:
            raise UserError("--push-to-hub needs a repository: NAME or NAMESPACE/NAME.")
        if option in names.negations and len(values) == 1 and values[0].lower() in BOOLEANS:
            meant = option if BOOLEANS[values[0].lower()] else names.negations[option]
            raise UserError(f"{typed} takes no value: write {meant}.")
        if option not in names:
            unknown.append((typed, values))
    if not unknown:
        return
    explanations = explain_other_names(unknown, names)
    if explanations:
        raise UserError(explanations)
    typed, _ = unknown[0]
    choices = [*names.fields, *names.negations.values(), *names.aliases, *names.short_forms()]
    suggestion = did_you_mean(typed.replace("_", "-"), choices)
    raise UserError(f"{typed} is not an option{suggestion}. --help-all lists all options.")
