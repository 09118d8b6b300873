"""The head of a checkpoint: what its outputs mean, and whether a task can train it further.

A head that was trained for other labels starts from wrong answers, although its weights may have
the right shape. It is kept only if its outputs mean what the task needs.
"""

import copy
import logging
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftloop.data.labels import label_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class Outputs:
    """What the outputs of a head mean."""

    kind: str  # "ForSequenceClassification", or the whole name of a class with another head
    problem_type: str | None  # None: not known
    names: tuple[str, ...]  # the labels in the order of their ids; () for a number

    def fits(self, needed: "Outputs") -> bool:
        """Return whether these outputs mean what is needed, in whatever order."""
        problem_types = {self.problem_type, needed.problem_type} - {None}
        same_names = sorted(self.names) == sorted(needed.names)
        return self.kind == needed.kind and len(problem_types) < 2 and same_names

    def __str__(self) -> str:
        if not self.names:
            return "a number" if self.problem_type == "regression" else f"a {self.kind}"
        listed = ", ".join(map(repr, self.names[:6]))
        listed += f" and {len(self.names) - 6} more" if len(self.names) > 6 else ""
        return f"{listed} ({self.problem_type})" if self.problem_type else listed


def head_kind(model_class: Any) -> str:
    """Return "ForTokenClassification" for a class, or the name of a class, of transformers."""
    name = model_class if isinstance(model_class, str) else getattr(model_class, "__name__", "")
    return name[name.index("For") :] if "For" in name else name


def read_outputs(config: "PretrainedConfig", kind: str) -> Outputs:
    """Return what the outputs of a checkpoint mean, from its configuration.

    By the rule of transformers, a single output of no known kind is a number.
    """
    architectures = config.architectures or [kind]
    if not any(kind in name for name in architectures):
        return Outputs(", ".join(architectures), None, ())
    ids = config.id2label
    names = [unicodedata.normalize("NFC", label_name(ids[number])) for number in sorted(ids)]
    problem_type = getattr(config, "problem_type", None)
    if problem_type == "regression" or (problem_type is None and len(names) == 1):
        return Outputs(kind, "regression", ())
    return Outputs(kind, problem_type, tuple(names))


def fit_head(
    model: "PreTrainedModel", found: Outputs, needed: Outputs, new_weights: set[str]
) -> None:
    """Keep the head of a checkpoint if it fits, in the order that is needed; else make it new.

    new_weights: the weights that the checkpoint did not have, or had in another size.
    """
    weights = find_output_weights(model)
    if not weights or weights.keys() & new_weights:
        return  # the log says already that they are new
    if not found.fits(needed):
        renew_weights(model, list(weights))
        logger.info(
            "model: its head is for %s and not for %s, so these weights are new and random: %s",
            found,
            needed,
            ", ".join(sorted(weights)),
        )
    elif found.names == needed.names:
        logger.info("model: its head is kept, since it is for the same outputs: %s", needed)
    else:
        import torch

        order = [found.names.index(name) for name in needed.names]
        for name, dimension in weights.items():
            parameter = model.get_parameter(name)
            with torch.no_grad():
                parameter.copy_(parameter.index_select(dimension, torch.tensor(order)))
        logger.info("model: its head is kept, in another order of the labels: %s", needed)


def find_output_weights(model: "PreTrainedModel") -> dict[str, int]:
    """Return the weights whose size depends on the number of labels, and in which dimension."""
    import torch

    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        other = type(model)(config)
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    weights = {}
    for name, parameter in model.named_parameters():
        sizes = list(zip(parameter.shape, shapes.get(name, parameter.shape), strict=True))
        dimensions = [place for place, (own, changed) in enumerate(sizes) if own != changed]
        if dimensions:
            weights[name] = dimensions[0]
    return weights


def renew_weights(model: "PreTrainedModel", names: list[str]) -> None:
    """Initialize some weights as the architecture initializes those that a checkpoint lacks."""
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        # transformers marks what must not be initialized again.
        module._is_hf_initialized = model.get_parameter(name)._is_hf_initialized = False
    model.initialize_weights()
