"""TokenClassification: a tag for each word of a sentence, as in named-entity recognition.

Rows have a list of words and a list of tags. The first token of a word has the label of the word;
other tokens have the label -100 and weight 0. The loss of a step is the mean over all labelled
tokens of the step, so that it does not depend on how the step is divided into micro-batches.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from ftloop.data.labels import is_missing, label_name
from ftloop.errors import UserError, did_you_mean
from ftloop.task import Batch
from ftloop.tasks import metrics, tokenization
from ftloop.tasks.classification import read_label_names
from ftloop.tasks.heads import Outputs, head_kind
from ftloop.tasks.metrics import IGNORED
from ftloop.tasks.predictor import Predictor, TokenPredictor
from ftloop.tasks.pretrained import explain_loading
from ftloop.tasks.rows import UnusableRows
from ftloop.tasks.text import TextTask

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig

    from ftloop.data.prepared import PreparedDataset

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class TokenClassification(TextTask):
    """Words to tags. A row has a list of words, and a list of as many tags: names, or ids.

    A tag of None or -100 is unknown: its word is read but does not count.
    """

    text_columns: tuple[str, ...] = ("tokens",)  # column of the lists of words
    label_column: tuple[str, ...] = ("tags",)  # column of the lists of tags
    label_names: tuple[str, ...] = ()
    """Names of the tags in the order of their ids, or one file with a name per line. Default: those
    of the column, or all tags of the training rows, in the order of the model if it was trained for
    the same tags."""
    metrics: tuple[str, ...] = ("accuracy", "f1_macro")
    """Scores over all tokens with a tag; see ftloop/tasks/metrics.py."""

    model_class = "AutoModelForTokenClassification"
    predictor_class: ClassVar[type[Predictor]] = TokenPredictor
    has_token_labels: ClassVar[bool] = True

    def validate(self) -> None:
        super().validate()
        for option, columns in (
            ("--text-columns", self.text_columns),
            ("--label-column", self.label_column),
        ):
            if len(columns) != 1:
                raise UserError(f"{option} {' '.join(columns)}: give one column of lists.")

    def from_finished_run(self, model_folder: str) -> "TokenClassification":
        """Return this task with the exported model and its tags, which are not read again."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
        except Exception as error:
            raise UserError(
                f"the model of the run, {model_folder!r}, cannot be read: {explain_loading(error)}"
            ) from error
        task = super().from_finished_run(model_folder)
        names = tuple(config.id2label[number] for number in range(config.num_labels))
        vars(task)["tag_names"] = names  # fills the cached property
        return task

    # Tags

    @property
    def label_columns(self) -> tuple[str, ...]:
        return self.label_column

    @cached_property
    def tag_names(self) -> tuple[str, ...]:
        """The names of the tags in the order of their ids."""
        (column,) = self.label_column
        train = self.rows["train"]
        if self.data.streaming:
            train = train.head(self.data.shuffle_buffer)
        names = read_label_names(self.label_names) or class_names(train.features[column])
        names = tuple(dict.fromkeys(names))  # the column may have a name in two Unicode forms
        if not names:
            tags = {label_name(tag) for tags in train[column] for tag in tags if is_known(tag)}
            is_number = all(tag.isdecimal() for tag in tags)
            names = tuple(sorted(tags, key=int) if is_number else sorted(tags))
        if len(names) < 2:
            raise UserError(f"--label-column {column!r}: train has fewer than two tags: {names}.")
        found = None if self.label_names else self.checkpoint_outputs
        if found is not None and found.fits(self.describe_outputs(names)):
            return found.names
        return names

    def describe_outputs(self, names: tuple[str, ...]) -> Outputs:
        return Outputs(head_kind(self.model_class), None, names)

    @property
    def outputs(self) -> Outputs:
        return self.describe_outputs(self.tag_names)

    def find_unusable_rows(self, rows: "Dataset") -> list[UnusableRows]:
        """Return rows without words or tags. Raises UserError unless each word has a tag."""
        (column,), (label_column,) = self.text_columns, self.label_column
        self.validate_column(column, rows.features[column])
        sizes = [None if words is None else len(words) for words in rows[column]]
        tag_lists = rows[label_column][:]
        empty = {row for row, size in enumerate(sizes) if not size}
        missing = {row for row, tags in enumerate(tag_lists) if tags is None} - empty
        for row, (size, tags) in enumerate(zip(sizes, tag_lists, strict=True)):
            if row not in empty | missing and len(tags) != size:
                raise UserError(
                    f"--label-column {label_column!r}: row {row} (from 0) has {size} words but "
                    f"{len(tags)} tags."
                )
        return [
            UnusableRows(f"empty {column}", empty, "drop_empty"),
            UnusableRows("missing label", missing, "drop_empty"),
        ]

    def has_labels(self, test: "Dataset") -> bool:
        (column,) = self.label_column
        if not super().has_labels(test):
            return False
        return any(is_known(tag) for tags in test[column] if tags is not None for tag in tags)

    def example_settings(self) -> dict[str, Any]:
        return {**super().example_settings(), "tags": self.tag_names}

    def encode_labels(self, rows: "Dataset", split: str) -> list[list[int]]:
        """Return the id of each tag, by row and word; -100 if it is unknown. Raises UserError."""
        (column,) = self.label_column
        own_names = class_names(rows.features[column])
        ids = {name: number for number, name in enumerate(self.tag_names)}
        if not own_names:  # integers may be ids
            numbers = {str(number): number for number in range(len(self.tag_names))}
            ids = {**numbers, **ids} if not any(name.isdecimal() for name in ids) else ids
        encoded = []
        for row, tags in enumerate(rows[column]):
            names = [own_names[tag] if own_names and is_known(tag) else tag for tag in tags]
            names = [label_name(name) if is_known(name) else None for name in names]
            unknown = [name for name in names if name is not None and name not in ids]
            if unknown:
                raise UserError(
                    f"--label-column {column!r}: {split} has the tag {unknown[0]!r} in row {row} "
                    f"(from 0), which is not one of {', '.join(map(repr, self.tag_names[:20]))}"
                    f"{did_you_mean(unknown[0], self.tag_names)}."
                )
            encoded.append([IGNORED if name is None else ids[name] for name in names])
        return encoded

    def report_on_data(self, labels: dict[str, Any]) -> None:
        counts = [0] * len(self.tag_names)
        for tags in labels["train"]:
            for tag in tags:
                if tag != IGNORED:
                    counts[tag] += 1
        sizes = [f"{name} {count}" for name, count in zip(self.tag_names, counts, strict=True)]
        logger.info("labels: %d tags; words of train: %s", len(sizes), ", ".join(sizes))

    # Words to tokens

    def validate_column(self, column: str, feature: Any) -> None:
        if getattr(getattr(feature, "feature", None), "dtype", None) not in (
            "string",
            "large_string",
        ):
            raise UserError(
                f"--text-columns: the column {column!r} holds {feature}, not lists of words."
            )

    def tokenizer_options(self) -> dict[str, Any]:
        # Byte-level tokenizers (RoBERTa, GPT-2) take lists of words only with this option.
        return {"add_prefix_space": True}

    @property
    def tokenize_function(self) -> Callable[..., dict[str, list[Any]]]:
        return tokenization.tokenize_words

    def build_dataset(
        self, prepared: "Dataset", labels: list[Any] | None, split: str
    ) -> "PreparedDataset":
        """Label the first token of each word with the word's label, all other tokens with -100.

        Rows to predict have no labels: each word gets the placeholder 0, so that `predict` finds
        word starts where the label is not -100.
        """
        starting_words = prepared["starting_words"][:]
        if labels is None:
            labels = [[0] * (max(words) + 1) for words in starting_words]
        token_labels = list(map(align_labels, starting_words, labels))
        prepared = prepared.remove_columns("starting_words")
        return super().build_dataset(prepared, token_labels, split)

    def prepare_block(self, rows: "Dataset") -> Sequence[dict[str, Any]]:
        examples = super().prepare_block(rows)
        for example in examples:
            example["labels"] = align_labels(example.pop("starting_words"), example["labels"])
        return examples

    # Model, losses and scores

    def configure_model(self, config: "PretrainedConfig") -> None:
        super().configure_model(config)
        config.num_labels = len(self.tag_names)
        config.id2label = dict(enumerate(self.tag_names))
        config.label2id = {name: number for number, name in enumerate(self.tag_names)}

    def losses(self, outputs: Any, batch: Batch) -> "torch.Tensor":
        """Return the cross-entropy of each token, (rows, tokens); 0 where the label is -100."""
        import torch.nn.functional as F

        logits = outputs.logits.transpose(1, 2)  # (rows, tags, tokens)
        return F.cross_entropy(logits, batch["labels"], ignore_index=IGNORED, reduction="none")

    def predict(self, outputs: Any, batch: Batch) -> "dict[str, torch.Tensor]":
        """Return "predictions", tag ids, and their "probabilities", both (rows, tokens).

        The prediction of a token that has no label is -100.
        """
        probabilities, predictions = outputs.logits.softmax(dim=-1).max(dim=-1)
        predictions = predictions.masked_fill(batch["labels"] == IGNORED, IGNORED)
        return {"predictions": predictions, "probabilities": probabilities}

    def score_names(self) -> tuple[str, ...] | None:
        return metrics.score_names(self.metrics, self.tag_names)

    def load_datasets(self) -> dict[str, Any]:
        metrics.validate_token_metrics(self.metrics, self.tag_names)
        return super().load_datasets()

    def build_metrics(self) -> list[Any]:
        return [metrics.TokenMetric(name, self.tag_names) for name in self.metrics]


def align_labels(starting_words: list[int], labels: list[int]) -> list[int]:
    """Return a label for each token: that of the word that starts there, or -100.

    `starting_words` has for each token the number of the word that starts there, or -1.
    """
    return [IGNORED if word < 0 else labels[word] for word in starting_words]


def is_known(tag: Any) -> bool:
    """Return whether a tag is not None, empty, or -100."""
    return not is_missing(tag) and tag != IGNORED


def class_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a column of lists of ClassLabel ids; () for other columns."""
    names = getattr(getattr(feature, "feature", None), "names", None) or ()
    return tuple(map(label_name, names))
