"""How to use a model: the example of a model card, and where a pipeline differs from training."""

import logging
from pathlib import Path
from typing import Any

from ftloop.escape import code_span
from ftloop.hub.metadata import pipeline_task

logger = logging.getLogger("ftloop")

LOCAL_MODEL = 'model = "."  # this folder'  # a push puts the name of the repository in its place
ADAPTER = "adapter_config.json"  # what the library peft writes instead of a complete model
OWN_METHODS = ("build_model", "collate", "compute_losses", "predict", "prepare", "export")
SPECIAL_IMAGES = (
    "A pipeline decodes some images differently than training did. It drops the transparency of an "
    "image, where training laid it over white, and cuts off the values of 16-bit and float images, "
    "where training scaled them to 8 bits. ftloop's predict.py decodes them as training did."
)
TOKENS_OF_WORDS = (
    "In training, words were separated before they were tokenized, and the first token of a word "
    "had its label. A pipeline finds the words itself, and may separate punctuation that belonged "
    "to a word in training."
)


def usage_example(task: Any, model_config: dict[str, Any], folder: Path | None = None) -> str:
    """Return code that runs in the folder of the model, or why a pipeline does not load it."""
    if folder is not None and (folder / ADAPTER).is_file():
        logger.warning(
            "%s holds only an adapter, which neither from_pretrained nor a pipeline of "
            "transformers loads without the library peft and the base model",
            folder,
        )
        return (
            "This folder holds only an adapter: the changes to the weights of the base model. With "
            "the library peft and the base model, `peft.PeftModel.from_pretrained` loads it. To "
            "get a model that a pipeline of transformers loads, merge the adapter "
            "(`merge_and_unload`) and save the result."
        )
    pipeline = pipeline_task(model_config)
    if pipeline is None:
        return describe_without_pipeline(task, model_config)
    is_multi_label = model_config.get("problem_type") == "multi_label_classification"
    arguments = ['"photo.jpg"'] if pipeline == "image-classification" else ['"a new text"']
    if len(getattr(task, "input_columns", ())) == 2:
        arguments = ['{"text": "a new text", "text_pair": "its second text"}']
    if pipeline == "text-classification":
        max_length = getattr(task, "max_length", None) or 512
        arguments += ["truncation=True", f"max_length={max_length}"]
    if is_multi_label:
        arguments.append("top_k=None")
    options = ', aggregation_strategy="first"' if pipeline == "token-classification" else ""
    code = (
        f"from transformers import pipeline\n\n{LOCAL_MODEL}\n"
        f'classify = pipeline("{pipeline}", model=model{options})\n'
        f"print(classify({', '.join(arguments)}))"
    )
    return "\n\n".join([f"```python\n{code}\n```", *pipeline_differences(task, model_config)])


def describe_without_pipeline(task: Any, model_config: dict[str, Any]) -> str:
    """Tell how to load a model for which no example with a pipeline is known."""
    architectures = model_config.get("architectures")
    if not architectures:
        return (
            "The weights are in `model.safetensors`. They fit the module that "
            f"`{type(task).__name__}.build_model` returns, in the code that trained it."
        )
    import transformers

    name = architectures[0]
    load, predict = code_span(f"{name}.from_pretrained"), "`python predict.py RUN`"
    if hasattr(transformers, name):
        return f"{load} of transformers loads the model, and {predict} predicts new rows."
    return (
        f"The model is a {code_span(name)}, which is not a class of transformers. With the code "
        f"that trained it, {load} loads it, and {predict} predicts new rows."
    )


def pipeline_differences(task: Any, model_config: dict[str, Any]) -> list[str]:
    """Return paragraphs on what a pipeline does differently than training and predict.py."""
    paragraphs = []
    if model_config.get("problem_type") == "multi_label_classification":
        threshold = getattr(task, "threshold", 0.5)
        paragraphs.append(f"A label is predicted if its score is at least {threshold:g}.")
    if getattr(task, "long_text", "truncate") != "truncate":
        paragraphs.append(describe_long_text(task))
    if pipeline_task(model_config) == "image-classification":
        paragraphs.append(SPECIAL_IMAGES)
    if pipeline_task(model_config) == "token-classification":
        paragraphs.append(TOKENS_OF_WORDS)
    data = getattr(task, "data", None)
    sources = [data, *getattr(data, "sources", ())]
    changing = [
        name for name in ("map", "join") if any(getattr(one, name, None) for one in sources)
    ]
    if changing:
        options = " and ".join(f"`{name}`" for name in changing)
        paragraphs.append(
            f"In training, options of the data ({options}) changed the rows. A pipeline does not "
            "apply them: give it rows that are changed already. `predict.py --file` applies them."
        )
    own_classes = [cls for cls in type(task).__mro__ if not is_known(cls)]
    changed = [name for name in OWN_METHODS if any(name in vars(cls) for cls in own_classes)]
    if changed:
        methods = ", ".join(f"`{name}`" for name in changed)
        paragraphs.append(
            f"The task `{type(task).__name__}` has methods of its own ({methods}), of which a "
            "pipeline knows nothing. [to be filled: whether they change what the model predicts]"
        )
    return paragraphs


def is_known(cls: type) -> bool:
    """Return whether a class belongs to ftloop or to Python, and not to a config file."""
    return cls is object or cls.__module__.partition(".")[0] == "ftloop"


def describe_long_text(task: Any) -> str:
    """Tell that a pipeline reads less of a long text than the model did in training."""
    if task.long_text == "windows":
        parts = "all of a long text, in overlapping windows whose logits are averaged"
    else:
        parts = "the beginning and the end of a long text"
    return (
        f"In training, the model read {parts}. A pipeline reads only the first {task.max_length} "
        "tokens, and the scores below do not hold for it; ftloop's predict.py reads long texts as "
        "training did."
    )
