"""TextTask: tokenize texts, pad batches and load a model, whatever the labels are."""

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftloop.errors import UserError
from ftloop.task import Batch
from ftloop.tasks import agreement, tokenization
from ftloop.tasks.heads import head_kind
from ftloop.tasks.metrics import IGNORED
from ftloop.tasks.packing import Packing, locate_tokens, validate_packing
from ftloop.tasks.predictor import Predictor, TextPredictor
from ftloop.tasks.pretrained import PretrainedTask, explain_loading

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ftloop.data.prepared import PreparedDataset
    from ftloop.data.tokens import PaddingCollator

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class TruncationCounts:
    """How many texts there were, and how many lost tokens."""

    texts: int
    truncated: int
    windows: int  # one per text, unless texts are read in windows
    max_windows: int  # of one text

    def __add__(self, other: "TruncationCounts") -> "TruncationCounts":
        return TruncationCounts(
            texts=self.texts + other.texts,
            truncated=self.truncated + other.truncated,
            windows=self.windows + other.windows,
            max_windows=max(self.max_windows, other.max_windows),
        )


@dataclass(frozen=True)
class TextTask(PretrainedTask):
    """A task on texts. A kind of task adds labels, `losses`, `predict` and `build_metrics`.

    Labels are per row or, with `has_token_labels`, per token. Those are padded with -100, and a
    token whose label is -100 gets weight 0.
    """

    text_columns: tuple[str, ...] = ("text",)  # column of the texts, or two columns of pairs
    max_length: int = 128
    """Tokens per text, including special tokens. Longer texts are truncated and counted."""
    pad_to: Literal["longest", "max"] = "longest"
    """Length to pad to: the longest row of the micro-batch, or always max_length."""
    pad_to_multiple_of: int = 1
    """Pad lengths up to a multiple of this number. 8 is faster on GPUs in half precision."""
    packing: bool = False
    """Compute without padding (BERT, RoBERTa, ModernBERT and others). Logits and gradients are the
    same up to rounding."""

    input_option: ClassVar[str] = "--text-columns"
    predictor_class: ClassVar[type[Predictor]] = TextPredictor
    has_token_labels: ClassVar[bool] = False

    @property
    def input_columns(self) -> tuple[str, ...]:
        return self.text_columns

    def validate(self) -> None:
        super().validate()
        if self.data.drop_unreadable:
            raise UserError("--data.drop-unreadable has no effect on texts: it is for images.")
        columns = f"--text-columns {' '.join(self.text_columns)}"
        if not 1 <= len(self.text_columns) <= 2:
            raise UserError(f"{columns}: give one column, or the two columns of a pair.")
        if len(set(self.text_columns)) < len(self.text_columns):
            raise UserError(f"{columns}: the two columns of a pair must differ.")
        if self.pad_to_multiple_of < 1:
            raise UserError(f"--pad-to-multiple-of {self.pad_to_multiple_of} is not at least 1.")
        if self.packing and self.pad_to == "max":
            raise UserError("--packing leaves out padding, and --pad-to max adds it: choose one.")
        if self.max_length < 4:
            raise UserError(f"--max-length {self.max_length} is not at least 4 tokens.")

    def with_few_batch_shapes(self) -> "TextTask":
        """Return this task with lengths padded to multiples of at most 64 tokens.

        The multiple divides `max_length`: there are eight lengths up to 512. Raises UserError for
        packed texts, each batch of which has a shape of its own.
        """
        if self.packing:
            raise UserError(
                "--compile cannot be combined with --packing: every batch would be compiled anew."
            )
        if self.pad_to_multiple_of > 1:
            return self
        candidates = range(min(64, self.max_length), 15, -1)
        step = next((size for size in candidates if self.max_length % size == 0), self.max_length)
        return replace(self, pad_to_multiple_of=step)

    # Tokenizer and model

    @cached_property
    def processor(self) -> "PreTrainedTokenizerBase":
        """The tokenizer. Raises UserError if it cannot be used."""
        from transformers import AutoTokenizer

        name = f"--model {self.model!r}: its tokenizer"
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.model, trust_remote_code=False, **self.tokenizer_options()
            )
        except Exception as error:  # of the Hub, files, JSON and conversion
            raise UserError(f"{name} cannot be loaded: {explain_loading(error)}") from error
        # Without files, from_pretrained makes an empty tokenizer.
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise UserError(f"{name} has no words. Are its files missing?")
        if not tokenizer.is_fast:
            raise UserError(
                f"{name} is written in Python; one of the library tokenizers is needed."
            )
        agreement.choose_padding_token(tokenizer)
        agreement.fit_token_types(tokenizer, self.read_config(), self.load_model_class())
        return tokenizer

    def tokenizer_options(self) -> dict[str, Any]:
        """Return further arguments of AutoTokenizer.from_pretrained."""
        return {}

    def configure_model(self, config: "PretrainedConfig") -> None:
        super().configure_model(config)
        if self.packing:
            validate_packing(config, self.processor.padding_side)
        agreement.fit_config(config, self.processor, self.end_token)
        agreement.fit_attention(config, self.max_length, self.pad_to == "max")

    @cached_property
    def end_token(self) -> int | None:
        """The token by which the model finds the end of a text (BART, T5); None for others."""
        config, kind = self.read_config(), head_kind(self.model_class)
        if config.is_encoder_decoder and kind == "ForSequenceClassification":
            return agreement.find_end_token(config, self.processor)
        return None

    def build_model(self) -> "PreTrainedModel":
        model = super().build_model()
        agreement.fit_max_length(model, self.processor, self.max_length)
        agreement.fit_padding_token(model, self.processor)
        if self.packing:
            Packing(model)
        self.check_padding(model)
        return model

    def check_padding(self, model: "PreTrainedModel") -> None:
        """Raise UserError if the model's results depend on the padding of a batch.

        Models of the user's own classes, and tasks that compute something else, are not checked. An
        exported model was checked before it was trained.
        """
        is_known = isinstance(self.model_class, str) and self.outputs is not None
        if self.is_finished or self.pad_to == "max" or not is_known:
            return
        agreement.require_independence_of_padding(
            model, self.processor, len(self.text_columns) > 1, self.max_length
        )

    def export(self, model: Any, state_dict: dict[str, Any], folder: Path) -> None:
        forget_last_call(self.processor)
        super().export(model, state_dict, folder)

    # Rows to token ids

    @property
    def tokenize_function(self) -> Callable[..., dict[str, list[Any]]]:
        """The function of tokenization.py, or one like it, that tokenizes a batch of rows."""
        return tokenization.tokenize_texts

    @property
    def tokenize_options(self) -> dict[str, Any]:
        """The arguments of `tokenize_function` besides the rows and the tokenizer."""
        return {"text_columns": self.text_columns, "max_length": self.max_length}

    def validate_column(self, column: str, feature: Any) -> None:
        """Raise UserError for an input column of a type that cannot be tokenized."""
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            raise UserError(f"--text-columns: the column {column!r} holds {feature}, not text.")

    def prepare(self, rows: "Dataset") -> "Dataset":
        prepared, counts = self.tokenize(rows)
        self.log_truncation(counts)
        return prepared

    def tokenize(self, rows: "Dataset") -> "tuple[Dataset, TruncationCounts]":
        """Return token ids and "length" of rows of the source, and what was truncated."""
        for column in self.text_columns:
            self.validate_column(column, rows.features[column])
        tokenized = rows.map(
            self.tokenize_function,
            batched=True,
            fn_kwargs={"tokenizer": self.processor, **self.tokenize_options},
            remove_columns=rows.column_names,
            new_fingerprint=self.cache_key(rows),
            desc="tokenizing",
        )
        self.check_ends(rows, tokenized["input_ids"])
        counts = self.count_truncation(tokenized)
        tokenized = tokenized.remove_columns("truncated")
        if self.has_equal_lengths:
            tokenized = tokenized.remove_columns("length")
        return tokenized, counts

    def check_ends(self, rows: "Dataset", input_ids: Iterable[list[Any]]) -> None:
        """Raise UserError for texts that hold the token by which the model finds their end."""
        if self.end_token is not None:
            texts = {column: rows[column] for column in self.text_columns}
            agreement.require_equal_ends(self.processor, self.end_token, texts, input_ids)

    @property
    def has_equal_lengths(self) -> bool:
        """Whether all rows cost the same, so that grouping by length would be useless."""
        return self.pad_to == "max"

    def cache_key(self, rows: "Dataset") -> str:
        """Return the key of the tokenized rows in the cache of `datasets`.

        It is made of the rows, the tokenizer, the options and the code. The key that `datasets`
        makes hashes the tokenizer object, whose state differs between the run that tokenizes, the
        next run, and the evaluation of a finished run; and it does not see changes of the code.
        """
        code = inspect.getsource(self.tokenize_function)
        parts = (rows._fingerprint, *self.describe_tokenizing(), code)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def describe_tokenizing(self) -> tuple[Any, ...]:
        """Return what decides the tokens of a text besides the code."""
        tokenizer = self.processor
        forget_last_call(tokenizer)
        settings = (
            tokenizer.model_input_names,
            tokenizer.truncation_side,
            tokenizer.split_special_tokens,
        )
        content = tokenizer.backend_tokenizer.to_str()
        return content, settings, self.tokenize_options

    def example_settings(self) -> dict[str, Any]:
        """Add a digest of the tokenizer for a stream, whose tokens are not known in advance."""
        settings = super().example_settings()
        if self.data.streaming:
            parts = repr(self.describe_tokenizing()).encode()
            settings["tokenizing"] = hashlib.sha256(parts).hexdigest()
        return settings

    def count_truncation(self, tokenized: "Dataset") -> TruncationCounts:
        """Return how many texts lost tokens."""
        texts = len(tokenized)
        return TruncationCounts(texts, sum(tokenized["truncated"][:]), texts, 1)

    def log_truncation(self, counts: TruncationCounts) -> None:
        """Log how many texts lost tokens, if any did."""
        if counts.truncated:
            logger.warning(
                "data: %d of %d texts are longer than --max-length %d and were truncated",
                counts.truncated,
                counts.texts,
                self.max_length,
            )

    def prepare_block(self, rows: "Dataset") -> Sequence[dict[str, Any]]:
        """Return rows of a stream as `collate` takes them, without caching them or logging.

        A task that changes examples in `build_dataset` changes them here too.
        """
        columns = self.tokenize_function(rows[:], self.processor, **self.tokenize_options)
        self.check_ends(rows, columns["input_ids"])
        del columns["truncated"], columns["length"]
        labels = self.encode_labels(rows, "train")
        if labels is not None:
            columns["labels"] = labels
        names = list(columns)
        cells = zip(*columns.values(), strict=True)
        return [dict(zip(names, row, strict=True)) for row in cells]

    def build_dataset(
        self, prepared: "Dataset", labels: list[Any] | None, split: str
    ) -> "PreparedDataset":
        from ftloop.data.tokens import build_token_dataset

        if labels is not None:
            prepared = prepared.add_column("labels", labels)
        return build_token_dataset(prepared)

    # Rows to a batch

    @cached_property
    def collator(self) -> "PaddingCollator":
        from ftloop.data.tokens import PaddingCollator

        padding = {"labels": IGNORED, "weights": 0} if self.has_token_labels else {}
        if self.pad_to == "max":
            return PaddingCollator(
                self.processor, "max_length", self.max_length, extra_padding=padding
            )
        return PaddingCollator(
            self.processor, pad_to_multiple_of=self.pad_to_multiple_of, extra_padding=padding
        )

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Return the model's inputs (rows, tokens), "labels", and "weights" if rows have them.

        Labels per token get weights (rows, tokens): 0 where the label is -100, else the weight of
        the row or 1. To be packed, a batch has "places", where its tokens are.
        """
        batch = dict(self.collator(examples))
        if self.has_token_labels and "labels" in batch:
            is_labelled = (batch["labels"] != IGNORED).float()
            weights = batch.get("weights")
            if weights is not None and weights.ndim == 1:  # one weight per row
                weights = weights[:, None]
            batch["weights"] = is_labelled if weights is None else is_labelled * weights
        if self.packing:
            batch["places"] = locate_tokens(batch["attention_mask"])  # no GPU waits for it here
        return batch


def forget_last_call(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Reset truncation and padding, which a call leaves in a tokenizer and in its tokenizer.json.

    A run that reads its tokens from the cache makes no such call.
    """
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
