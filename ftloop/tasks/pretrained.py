"""PretrainedTask: read, configure and build a model of transformers."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftloop.errors import UserError, did_you_mean, root_cause
from ftloop.tasks.heads import Outputs, fit_head, head_kind, read_outputs
from ftloop.tasks.predictor import Predictor
from ftloop.tasks.rows import DataTask

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("ftloop")


def explain_loading(error: BaseException) -> str:
    """Return in one line why transformers cannot load a model, a tokenizer or a processor."""
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    # The advice of both errors would run the code of a stranger.
    if "trust_remote_code" in str(innermost):
        return "it comes with Python code of its own, and such models are not supported"
    if "weights_only" in str(innermost):
        return "its weights are pickled Python objects besides tensors; none was run"
    return root_cause(error)


@dataclass(frozen=True)
class PretrainedTask(DataTask):
    """A task whose model comes from transformers, with the head that `model_class` gives it."""

    model: str = ""  # Hub id, or folder that from_pretrained reads
    init: Literal["pretrained", "random"] = "pretrained"
    """Initial weights. With 'random', only the architecture is read, and model may also be a type
    such as bert or vit."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Changes of the model's configuration: hidden_size=192 num_hidden_layers=6."""
    dropout: float | None = None
    """Probability for all dropout layers of the model. Default: the model's own probabilities."""

    model_class: ClassVar[Any] = None  # a class, or the name of one in transformers
    predictor_class: ClassVar[type[Predictor]] = Predictor  # predicts new rows; predict.py uses it
    is_finished: ClassVar[bool] = False  # True for what `from_finished_run` returns

    def validate(self) -> None:
        super().validate()
        if not self.model:
            raise UserError("--model is missing: give a Hub id, or a folder with a model.")
        folder = Path(self.model)
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise UserError(
                f"--model {self.model!r} is not a folder of a pretrained model: it has no "
                "config.json."
            )
        looks_like_path = self.model.startswith((".", "/", "~")) or self.model.count("/") > 1
        if looks_like_path and not folder.is_dir():
            raise UserError(f"--model {self.model!r}: there is no such folder.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout} is not a probability from 0 to below 1.")

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor, which is saved beside the model; None without one."""
        return None

    def from_finished_run(self, model_folder: str) -> "PretrainedTask":
        """Return this task with the exported model of a finished run."""
        task = replace(self, model=model_folder, init="pretrained", model_options={}, dropout=None)
        vars(task)["is_finished"] = True
        return task

    def with_few_batch_shapes(self) -> "PretrainedTask":
        """Return this task with batches of few shapes: torch.compile makes kernels for each."""
        return self

    # Configuration

    @property
    def is_model_type(self) -> bool:
        """Whether `model` is a type, such as bert, and neither a Hub id nor a folder."""
        from transformers import CONFIG_MAPPING

        is_type = self.init == "random" and self.model in CONFIG_MAPPING
        return is_type and not Path(self.model).is_dir()

    def read_config(self) -> "PretrainedConfig":
        """Return the configuration of `self.model`, a checkpoint or a model type such as "bert".

        It is changed by `model_options`. Raises UserError.
        """
        from transformers import AutoConfig

        try:
            if self.is_model_type:
                config = AutoConfig.for_model(self.model)
            else:
                config = AutoConfig.from_pretrained(self.model, trust_remote_code=False)
            self.apply_model_options(config)
            self.refuse_attention_kernels(config)
            if self.is_model_type:
                # Some values are derived in __init__ (Swin's hidden_size), so the options are
                # passed there. AutoModel reads config.architectures to choose among the model
                # classes of DeiT; None would fail.
                config = AutoConfig.for_model(self.model, **self.model_options, architectures=[])
            return config
        except UserError:
            raise
        except Exception as error:  # from the Hub, files, JSON parsing or checks of the config
            raise self.loading_error(error) from error

    def refuse_attention_kernels(self, config: "PretrainedConfig") -> None:
        """Raise UserError if a configuration names code of the Hub, which would be imported."""
        parts = [getattr(config, name, None) for name in config.sub_configs]
        for part in (config, *parts):
            kernel = str(getattr(part, "_attn_implementation", None))
            if "/" in kernel:
                raise UserError(
                    f"--model {self.model!r}: its config.json asks for {kernel!r}, an attention "
                    "kernel of the Hub. Such kernels are code, and are not supported."
                )

    def apply_model_options(self, config: "PretrainedConfig") -> None:
        """Change a configuration by `model_options`. Raises UserError for unknown names."""
        known = {*config.to_dict(), *config.attribute_map}
        for name, value in self.model_options.items():
            if name not in known:
                raise UserError(
                    f"--model-options: the configuration of a {config.model_type} has no {name!r}"
                    f"{did_you_mean(name, known)}. It has {', '.join(sorted(known))}."
                )
            setattr(config, name, value)

    def configure_model(self, config: "PretrainedConfig") -> None:
        """Change the configuration of the model before the model is built."""
        if self.dropout is None:
            return
        # Architectures have names of their own: "classifier_dropout", "attn_pdrop".
        for name, value in list(vars(config).items()):
            if "drop" in name and not isinstance(value, bool):
                setattr(config, name, self.dropout)

    @property
    def outputs(self) -> Outputs | None:
        """What the outputs of the head must mean; None: any head of the checkpoint is kept."""
        return None

    @cached_property
    def checkpoint_outputs(self) -> Outputs | None:
        """What the outputs of the checkpoint's head mean; None for random weights."""
        if self.init == "random":
            return None
        return read_outputs(self.read_config(), head_kind(self.model_class))

    def loading_error(self, error: Exception) -> UserError:
        return UserError(f"--model {self.model!r} cannot be loaded: {explain_loading(error)}")

    # Model

    def build_model(self) -> "PreTrainedModel":
        import transformers

        model_class = self.load_model_class()
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # our log lines replace its table of new weights
        try:
            config = self.read_config()
            self.configure_model(config)
            if self.init == "random":
                return self.initialize_model(model_class, config)
            return self.load_pretrained(model_class, config)
        except UserError:
            raise
        except Exception as error:  # from the Hub, files, JSON, safetensors or torch
            raise self.loading_error(error) from error
        finally:
            transformers.logging.set_verbosity(verbosity)

    def load_model_class(self) -> Any:
        import transformers

        named = isinstance(self.model_class, str)
        return getattr(transformers, self.model_class) if named else self.model_class

    def initialize_model(self, model_class: Any, config: "PretrainedConfig") -> "PreTrainedModel":
        """Return a model with random weights."""
        name = type(config).__name__.removesuffix("Config")
        logger.info("model: %s with random weights, %s", name, self.model)
        if hasattr(model_class, "from_config"):
            return model_class.from_config(config, trust_remote_code=False)
        return model_class(config)

    def load_pretrained(self, model_class: Any, config: "PretrainedConfig") -> "PreTrainedModel":
        """Load the pretrained model, and log which of its weights are newly initialized."""
        import torch

        model, info = model_class.from_pretrained(
            self.model,
            config=config,
            dtype=torch.float32,  # even if the checkpoint has half precision
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        logger.info("model: %s, %.1f million parameters", self.model, millions)
        mismatched = info["mismatched_keys"]  # names, or tuples of a name and its shapes
        resized = sorted(key[0] if isinstance(key, tuple) else key for key in mismatched)
        missing = sorted(set(info["missing_keys"]) - set(resized))
        if resized:
            logger.info(
                "model: these weights have another size in the checkpoint, so they are new and "
                "random: %s",
                ", ".join(resized),
            )
        if missing:
            more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
            logger.info(
                "model: these weights are not in the checkpoint, so they are new and random: %s%s",
                ", ".join(missing[:6]),
                more,
            )
        if self.outputs is not None and not self.is_finished:
            fit_head(model, self.checkpoint_outputs, self.outputs, {*missing, *resized})
        return model

    def export(self, model: Any, state_dict: dict[str, Any], folder: Path) -> None:
        super().export(model, state_dict, folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
