"""Text in, labels out: tokenizer, padding, AutoModelForSequenceClassification."""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ftloop.errors import UserError, root_cause
from ftloop.task import Batch, Classification

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class TextClassification(Classification):
    """A sentence, or a pair of sentences, to a class, several labels, or a number."""

    text_columns: tuple[str, ...] = ("text",)  # one column, or the two of a sentence pair
    max_length: int = 128  # tokens of a row, special tokens included; longer texts are cut, and counted
    pad_to: Literal["longest", "max"] = "longest"  # of the micro-batch; max: every row to max_length (TPUs, compilers)
    pad_to_multiple_of: int | None = None  # tokens; left out: 8 under bf16 and fp16, for tensor cores, else 1

    model_class = "AutoModelForSequenceClassification"
    input_option = "--task.text-columns"

    @property
    def input_columns(self) -> tuple[str, ...]:
        return self.text_columns

    def check(self) -> None:
        super().check()
        if not 1 <= len(self.text_columns) <= 2:
            raise UserError(f"--task.text-columns {' '.join(self.text_columns)}: one column, or the two of a pair")
        if len(set(self.text_columns)) < len(self.text_columns):
            raise UserError(f"--task.text-columns {' '.join(self.text_columns)}: the same column twice is no pair")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise UserError(f"--task.pad-to-multiple-of {self.pad_to_multiple_of}: at least 1 token is needed")
        if self.max_length < 4:
            raise UserError(f"--task.max-length {self.max_length}: at least 4 tokens are needed")

    @cached_property
    def processor(self) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
        except Exception as error:  # hub, file, json and conversion errors: all mean an unreadable tokenizer
            raise UserError(
                f"--task.model {self.model!r}: its tokenizer cannot be loaded: {root_cause(error)}"
            ) from error
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # from_pretrained makes up an empty one
            raise UserError(f"--task.model {self.model!r}: its tokenizer knows no words; are its files missing?")
        if not tokenizer.is_fast:
            raise UserError(
                f"--task.model {self.model!r}: its tokenizer is written in Python; one of `tokenizers` is needed"
            )
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise UserError(f"--task.model {self.model!r}: its tokenizer has no token to pad with")
            tokenizer.pad_token = tokenizer.eos_token
            logger.info("model: its tokenizer has no padding token: %r is used", tokenizer.eos_token)
        return tokenizer

    def configure(self, config: "PretrainedConfig") -> None:
        super().configure(config)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = self.processor.pad_token_id
        positions = getattr(config, "max_position_embeddings", None) or self.max_length
        if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            positions -= config.pad_token_id + 1  # they count from the padding id on: 514 positions hold 512 tokens
        limit = min(positions, self.processor.model_max_length)
        if self.max_length > limit:
            raise UserError(
                f"--task.max-length {self.max_length}: the model {self.model!r} takes {limit} tokens at most"
            )

    def prepare(self, rows: "Dataset") -> "Dataset":
        for column in self.text_columns:
            if getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
                raise UserError(f"--task.text-columns: {column!r} holds {rows.features[column]}, not text")
        # A first call sets the truncation inside the tokenizer, which is part of the cache's key: without it, the key
        # would differ between a run that tokenises and the next one, which finds the first split in the cache.
        tokenize({column: ["a"] for column in self.text_columns}, self.processor, self.text_columns, self.max_length)
        arguments = {"tokenizer": self.processor, "text_columns": self.text_columns, "max_length": self.max_length}
        rows = rows.map(
            tokenize, batched=True, fn_kwargs=arguments, remove_columns=rows.column_names, desc="tokenising"
        )
        cut = sum(rows["truncated"])
        if cut:
            logger.warning(
                "data: %d of %d texts are longer than --task.max-length %d and were cut",
                cut,
                len(rows),
                self.max_length,
            )
        _ = self.collator  # made here: a worker process gets it with the task, and asks nobody for the precision
        return rows.remove_columns("truncated")

    @cached_property
    def collator(self) -> "DataCollatorWithPadding":
        from accelerate.state import AcceleratorState, is_initialized
        from transformers import DataCollatorWithPadding

        multiple = self.pad_to_multiple_of
        if multiple is None:
            half = is_initialized() and AcceleratorState().mixed_precision in ("bf16", "fp16")
            multiple = 8 if half else 1
        if self.pad_to == "max":
            return DataCollatorWithPadding(self.processor, "max_length", self.max_length)
        return DataCollatorWithPadding(self.processor, pad_to_multiple_of=multiple)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        names = [name for name in examples[0] if name != "length"]
        return self.collator([{name: example[name] for name in names} for example in examples]).data


def tokenize(
    rows: dict[str, list[Any]], tokenizer: "PreTrainedTokenizerBase", text_columns: tuple[str, ...], max_length: int
) -> dict[str, list[Any]]:
    """A batch of rows to token ids, their number ("length"), and whether the text was cut ("truncated").

    A function of the module, not a method: the cache of `datasets` knows it again in the next process.
    """
    encoded = tokenizer(*(rows[column] for column in text_columns), truncation=True, max_length=max_length)
    return {
        **encoded,
        "length": [len(ids) for ids in encoded["input_ids"]],
        "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
    }
