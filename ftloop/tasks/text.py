"""Text in, labels out: tokenizer, padding, AutoModelForSequenceClassification."""

import hashlib
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import add
from typing import TYPE_CHECKING, Any, Literal

from ftloop.errors import UserError, root_cause
from ftloop.tasks.packing import Packing, check_packing, places_of
from ftloop.tasks.classification import Batch, Classification

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class TextClassification(Classification):
    """A sentence, or a pair of sentences, to a class, several labels, or a number.

    Of a text longer than `max_length`, `long_text` keeps the beginning (truncate); the beginning and the end, half and
    half (head-tail: Sun et al. 2019, arXiv:1905.05583, who keep 128 + 382 of 512 tokens); or all of it, in overlapping
    windows, whose logits are averaged to those of the text. A `pipeline` on the run's model/ knows neither head-tail
    nor windows: with truncation=True it sees the beginning alone. predict.py does as training did.
    """

    text_columns: tuple[str, ...] = ("text",)  # one column, or the two of a sentence pair
    max_length: int = 128  # tokens that the model sees at once, special ones included; longer texts are counted
    long_text: Literal["truncate", "head-tail", "windows"] = "truncate"  # what becomes of texts beyond max_length
    window_overlap: int | None = None  # tokens that neighbouring windows share; left out: a quarter of max_length
    max_windows: int = 16  # of a text; what is beyond is cut, and counted
    pad_to: Literal["longest", "max"] = "longest"  # of the micro-batch; max: every row to max_length (TPUs, compilers)
    pad_to_multiple_of: int | None = None  # tokens; left out: 8 under bf16 and fp16 on GPUs (tensor cores), else 1
    packing: bool = False  # compute without padding (BERT, RoBERTa, ModernBERT, ..): the same logits and gradients

    model_class = "AutoModelForSequenceClassification"
    input_option = "--task.text-columns"

    @property
    def input_columns(self) -> tuple[str, ...]:
        return self.text_columns

    def check(self) -> None:
        super().check()
        if self.data.drop_unreadable:
            raise UserError("--task.data.drop-unreadable has no effect on texts: it is for images")
        if not 1 <= len(self.text_columns) <= 2:
            raise UserError(f"--task.text-columns {' '.join(self.text_columns)}: one column, or the two of a pair")
        if len(set(self.text_columns)) < len(self.text_columns):
            raise UserError(f"--task.text-columns {' '.join(self.text_columns)}: the same column twice is no pair")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise UserError(f"--task.pad-to-multiple-of {self.pad_to_multiple_of}: at least 1 token is needed")
        if self.packing and self.pad_to == "max":
            raise UserError("--task.packing with --task.pad-to max: one leaves padding out, the other asks for it")
        if self.max_length < 4:
            raise UserError(f"--task.max-length {self.max_length}: at least 4 tokens are needed")
        if self.long_text != "truncate" and len(self.text_columns) > 1:
            raise UserError(f"--task.long-text {self.long_text} takes one text column: a pair can be truncated only")
        if self.max_windows < 1:
            raise UserError(f"--task.max-windows {self.max_windows}: at least 1 is needed")
        if self.window_overlap is not None and self.window_overlap < 0:
            raise UserError(f"--task.window-overlap {self.window_overlap}: 0 tokens or more are needed")
        for name in ("window_overlap", "max_windows"):
            if self.long_text != "windows" and getattr(self, name) != getattr(type(self), name):
                option = f"--task.{name.replace('_', '-')} {getattr(self, name)}"
                raise UserError(f"{option} has no effect with --task.long-text {self.long_text}")

    def in_few_shapes(self) -> "TextClassification":
        """Padded to multiples of a divisor of `max_length`, 64 tokens or less: of 512, there are eight lengths. Raises
        UserError for packed texts, of which each batch has a shape of its own."""
        if self.packing:
            raise UserError("--compile with --task.packing: each batch would be compiled anew; choose one of the two")
        longest = self.max_length
        step = next((size for size in range(min(64, longest), 15, -1) if longest % size == 0), longest)
        return replace(self, pad_to_multiple_of=self.pad_to_multiple_of or step)

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
        if self.packing:
            check_packing(config, self.processor.padding_side)
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
        rows = rows.map(
            tokenize,
            batched=True,
            fn_kwargs=self.tokenising,
            remove_columns=rows.column_names,
            new_fingerprint=self.fingerprint(rows),
            desc="tokenising",
        )
        self.count_what_was_cut(rows)
        _ = self.collator  # made here: a worker process gets it with the task, and asks nobody for the precision
        # Padded to --task.max-length, all rows cost the same: none is longer than others. Windows may be more, or less.
        alike = self.pad_to == "max" and self.long_text != "windows"
        return rows.remove_columns(["windows", "truncated", *(["length"] if alike else [])])

    def prepare_some(self, rows: "Dataset") -> Sequence[dict[str, Any]]:
        """As `prepare`, without a cache and without a word: a block of a stream."""
        columns = tokenize(rows[:], **self.tokenising) | {"labels": self.encoded(rows, "train")}
        names = [name for name in columns if name not in ("windows", "truncated")]
        return [dict(zip(names, cells, strict=True)) for cells in zip(*(columns[name] for name in names), strict=True)]

    @cached_property
    def tokenising(self) -> dict[str, Any]:
        """The arguments of `tokenize` besides the rows. Raises UserError for windows that would not get on."""
        overlap = self.max_length // 4 if self.window_overlap is None else self.window_overlap
        room = self.max_length - self.processor.num_special_tokens_to_add()
        if self.long_text == "windows" and overlap >= room:
            raise UserError(
                f"--task.window-overlap {overlap}: --task.max-length {self.max_length} leaves a window room for {room} "
                "tokens besides the special ones, and it must not begin where the one before it did"
            )
        return {
            "tokenizer": self.processor,
            "text_columns": self.text_columns,
            "max_length": self.max_length,
            "long_text": self.long_text,
            "overlap": overlap,
            "max_windows": self.max_windows,
        }

    def fingerprint(self, rows: "Dataset") -> str:
        """The key of tokenised rows in the cache of `datasets`: of the rows, the tokenizer, the options and the code.

        Their own key hashes the tokenizer object, whose state and place differ between a run that tokenises, the next
        one, and the evaluation of a finished run from its model/; and it would not see that `tokenize` was changed.
        """
        options = {**self.tokenising}
        tokenizer = options.pop("tokenizer")
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # the state that the last call left
        backend.no_padding()
        sides = (tokenizer.model_input_names, tokenizer.truncation_side, tokenizer.split_special_tokens)
        parts = (rows._fingerprint, backend.to_str(), sides, options, inspect.getsource(tokenize))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def prepare_new(self, rows: "Dataset", first: int = 0) -> "Dataset":
        vars(self).setdefault("counted", (0, 0, 0, 0))  # from here on, what was cut is counted, and said of all blocks
        return super().prepare_new(rows, first)

    def say_of_new(self) -> None:
        self.say_what_was_cut(*vars(self).pop("counted", (0, 0, 0, 0)))

    def count_what_was_cut(self, rows: "Dataset") -> None:
        """Log it or, of new rows, add it up."""
        windows = rows["windows"][:]
        found = (len(rows), sum(rows["truncated"][:]), sum(windows), max(windows))
        if "counted" in vars(self):
            *sums, most = vars(self)["counted"]
            vars(self)["counted"] = (*map(add, sums, found), max(most, found[-1]))
        else:
            self.say_what_was_cut(*found)

    def say_what_was_cut(self, texts: int, cut: int, windows: int, most: int) -> None:
        """Log how many texts lost something, and how many windows there are, in all and of one text at most."""
        if self.long_text == "windows":
            message = "data: %d texts in %d windows of at most %d tokens, at most %d windows a text"
            logger.info(message, texts, windows, self.max_length, most)
        if not cut:
            return
        if self.long_text == "windows":
            message = "data: %d of %d texts have more than --task.max-windows %d windows, and what is beyond was cut"
            logger.warning(message, cut, texts, self.max_windows)
            return
        lost = "were cut" if self.long_text == "truncate" else "lost their middle"
        advice = "; --task.long-text windows reads them whole" if len(self.text_columns) == 1 else ""
        message = "data: %d of %d texts are longer than --task.max-length %d and %s%s"
        logger.warning(message, cut, texts, self.max_length, lost, advice)

    @cached_property
    def collator(self) -> "DataCollatorWithPadding":
        from accelerate.state import AcceleratorState, is_initialized

        from ftloop.data.tokens import PaddingCollator

        multiple = self.pad_to_multiple_of
        if multiple is None:
            state = AcceleratorState() if is_initialized() else None
            tensor_cores = state and state.mixed_precision in ("bf16", "fp16") and state.device.type != "cpu"
            multiple = 8 if tensor_cores else 1
        if self.pad_to == "max":
            return PaddingCollator(self.processor, "max_length", self.max_length)
        return PaddingCollator(self.processor, pad_to_multiple_of=multiple)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """The model's inputs, shape (rows, tokens), "labels" and, to be packed, "places".

        With windows, the inputs are (windows, tokens), those of all rows one after another, and "windows", int64 (rows,
        most windows of a row), says which are whose: their numbers in the batch, and -1 where a row has no more.

        The rows of a micro-batch are fixed, its windows are not: in the worst case it takes `max_windows` times the
        memory of one with short texts. If that does not fit, a lower --micro-batch-size gives the same result in less.
        """
        if self.long_text != "windows":
            from ftloop.data.tokens import without

            return self.with_places(self.collator(without("length", examples)).data)
        import torch

        names = [name for name in examples[0] if name != "length"]
        inputs = [name for name in names if name != "labels"]
        windows, numbers = [], []
        for example in examples:
            count = len(example["input_ids"])
            numbers.append(torch.arange(len(windows), len(windows) + count))
            windows += [{name: example[name][window] for name in inputs} for window in range(count)]
        batch = self.collator(windows).data
        if "labels" in names:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        batch = self.with_places(batch)
        return {**batch, "windows": torch.nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=-1)}

    def with_places(self, batch: Batch) -> Batch:
        """With "places", int64 (tokens,), if it is to be packed: they are found here, where no device is waited for."""
        return {**batch, "places": places_of(batch["attention_mask"])} if self.packing else batch

    def build_model(self) -> "PreTrainedModel":
        model = super().build_model()
        if self.packing:
            Packing(model)
        if self.long_text == "windows":
            WindowPooling(model)
        return model


class WindowPooling:
    """Makes a model return one row of logits for each text: the mean of its windows'. Loop, losses and metrics thus see
    texts. Its two hooks run with the bare model, within whatever wraps it (DDP, autocast), and are not saved with it.

    Called without "windows", the model returns the logits of its inputs, as ever.
    """

    def __init__(self, model: "PreTrainedModel"):
        self.windows: torch.Tensor | None = None
        model.register_forward_pre_hook(self.take, with_kwargs=True)
        model.register_forward_hook(self.pool)

    def take(self, model: "PreTrainedModel", inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Take "windows" (see `TextClassification.collate`) from the arguments of the forward pass."""
        self.windows = options.pop("windows", None)
        return inputs, options

    def pool(self, model: "PreTrainedModel", inputs: tuple, outputs: Any) -> None:
        """Logits (windows, labels) to (texts, labels). Neither waits for the device nor sums in an order of its own
        choice, as `index_add` would: the number of texts is a shape, and resuming stays exact on GPUs."""
        if self.windows is not None:
            absent = (self.windows < 0).unsqueeze(-1)
            logits = outputs.logits[self.windows.clamp(min=0)].masked_fill(absent, 0)  # (texts, most windows, labels)
            outputs.logits = logits.sum(dim=1) / (~absent).sum(dim=1)
            self.windows = None


def tokenize(
    rows: dict[str, list[Any]],
    tokenizer: "PreTrainedTokenizerBase",
    text_columns: tuple[str, ...],
    max_length: int,
    long_text: str,
    overlap: int,
    max_windows: int,
) -> dict[str, list[Any]]:
    """A batch of rows to token ids, their number ("length"), how many "windows" they are, and whether some are missing
    ("truncated"). With windows, the ids of a row are a list for each window, and "length", what it costs, is their sum.

    A function of the module, whose result `datasets` can cache; `TextClassification.fingerprint` is the key.
    """
    texts = [rows[column] for column in text_columns]
    cutting = {"truncation": True, "max_length": max_length}
    if long_text == "truncate":
        encoded = tokenizer(*texts, **cutting)
        truncated = [bool(encoding.overflowing) for encoding in encoded.encodings]
        columns = dict(encoded)
    elif long_text == "head-tail":
        encoded = tokenizer(*texts, verbose=False)  # or it warns that the model cannot take so many
        truncated = [len(ids) > max_length for ids in encoded["input_ids"]]
        front, back = max_length // 2, max_length - max_length // 2  # special tokens are at the ends, and stay
        columns = {
            name: [row[:front] + row[-back:] if cut else row for row, cut in zip(column, truncated, strict=True)]
            for name, column in encoded.items()
        }
    else:
        encoded = tokenizer(*texts, **cutting, stride=overlap, return_overflowing_tokens=True)
        owners = encoded.pop("overflow_to_sample_mapping")
        columns = {name: [[] for _ in texts[0]] for name in encoded}
        for name, column in columns.items():
            for row, window in zip(owners, encoded[name], strict=True):
                column[row].append(window)
        truncated = [len(windows) > max_windows for windows in columns["input_ids"]]
        columns = {name: [windows[:max_windows] for windows in column] for name, column in columns.items()}
    in_windows = long_text == "windows"
    return {
        **columns,
        "length": [sum(map(len, ids)) if in_windows else len(ids) for ids in columns["input_ids"]],
        "windows": [len(ids) if in_windows else 1 for ids in columns["input_ids"]],
        "truncated": truncated,
    }
