"""TextClassification: a text, or a pair of texts, to labels; long texts can be read in windows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftloop.errors import UserError
from ftloop.task import Batch
from ftloop.tasks import tokenization
from ftloop.tasks.classification import Classification
from ftloop.tasks.predictor import Predictor, TextClassificationPredictor
from ftloop.tasks.text import TextTask, TruncationCounts

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

logger = logging.getLogger("ftloop")

TOKENIZE_FUNCTIONS = {
    "truncate": tokenization.tokenize_texts,
    "head-tail": tokenization.tokenize_head_and_tail,
    "windows": tokenization.tokenize_windows,
}


@dataclass(frozen=True)
class TextClassification(TextTask, Classification):
    """A text, or a pair of texts, to a class, several labels, or a number.

    A `pipeline` on the exported model knows neither head-tail nor windows: with truncation=True it
    reads the beginning of a text. predict.py reads texts as training did.
    """

    long_text: Literal["truncate", "head-tail", "windows"] = "truncate"
    """How to read texts longer than max_length: only the beginning; the beginning and the end, half
    and half (Sun et al. 2019, arXiv:1905.05583); or everything, in overlapping windows whose logits
    are averaged."""
    window_overlap: int | None = None
    """Tokens that neighbouring windows share. Default: a quarter of max_length."""
    max_windows: int = 16  # windows per text; the text beyond them is truncated and counted

    model_class = "AutoModelForSequenceClassification"
    predictor_class: ClassVar[type[Predictor]] = TextClassificationPredictor

    def validate(self) -> None:
        super().validate()
        if self.long_text != "truncate" and len(self.text_columns) > 1:
            raise UserError(f"--long-text {self.long_text} takes one text column, not a pair.")
        if self.max_windows < 1:
            raise UserError(f"--max-windows {self.max_windows} is not at least 1.")
        if self.window_overlap is not None and self.window_overlap < 0:
            raise UserError(f"--window-overlap {self.window_overlap} is negative.")
        for name in ("window_overlap", "max_windows"):
            value = getattr(self, name)
            if self.long_text != "windows" and value != getattr(type(self), name):
                raise UserError(
                    f"--{name.replace('_', '-')} {value} has no effect with --long-text "
                    f"{self.long_text}."
                )

    def build_model(self) -> "PreTrainedModel":
        model = super().build_model()
        if self.long_text == "windows":
            WindowPooling(model)
        return model

    # Rows to token ids

    @property
    def tokenize_function(self) -> Callable[..., dict[str, list[Any]]]:
        return TOKENIZE_FUNCTIONS[self.long_text]

    @property
    def tokenize_options(self) -> dict[str, Any]:
        options = super().tokenize_options
        if self.long_text != "windows":
            return options
        overlap = self.window_overlap
        if overlap is None:
            overlap = self.max_length // 4
        new_tokens = self.max_length - self.processor.num_special_tokens_to_add()
        if overlap >= new_tokens:
            raise UserError(
                f"--window-overlap {overlap}: a window of --max-length {self.max_length} holds "
                f"{new_tokens} tokens besides the special ones. The overlap must be smaller."
            )
        return {**options, "overlap": overlap, "max_windows": self.max_windows}

    @property
    def has_equal_lengths(self) -> bool:
        return super().has_equal_lengths and self.long_text != "windows"

    def count_truncation(self, tokenized: "Dataset") -> TruncationCounts:
        counts = super().count_truncation(tokenized)
        if self.long_text != "windows":
            return counts
        import pyarrow.compute

        windows = pyarrow.compute.list_value_length(tokenized.data.column("input_ids")).to_numpy()
        return TruncationCounts(
            texts=counts.texts,
            truncated=counts.truncated,
            windows=int(windows.sum()),
            max_windows=int(windows.max()),
        )

    def log_truncation(self, counts: TruncationCounts) -> None:
        if self.long_text == "windows":
            logger.info(
                "data: %d texts in %d windows of at most %d tokens, at most %d windows per text",
                counts.texts,
                counts.windows,
                self.max_length,
                counts.max_windows,
            )
        if not counts.truncated:
            return
        if self.long_text == "windows":
            logger.warning(
                "data: %d of %d texts have more than --max-windows %d windows and were truncated",
                counts.truncated,
                counts.texts,
                self.max_windows,
            )
            return
        logger.warning(
            "data: %d of %d texts are longer than --max-length %d and %s%s",
            counts.truncated,
            counts.texts,
            self.max_length,
            "were truncated" if self.long_text == "truncate" else "lost their middle",
            "; --long-text windows reads them whole" if len(self.text_columns) == 1 else "",
        )

    # Rows to a batch

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Return the model's inputs (rows, tokens), "labels", and "weights" if rows have them.

        With windows, the inputs are (windows, tokens), those of all rows one after another, and
        "windows", int64 (rows, most windows of a row), has the numbers of the windows of each row,
        and -1 where a row has fewer.

        A micro-batch has a fixed number of rows but not of windows: in the worst case, it needs
        `max_windows` times the memory of one with short texts. A smaller micro-batch size gives the
        same result in less memory.
        """
        if self.long_text != "windows":
            return super().collate(examples)
        import torch

        inputs = [name for name in examples[0] if name not in ("labels", "weights")]
        windows, numbers = [], []
        for example in examples:
            count = len(example["input_ids"])
            numbers.append(torch.arange(len(windows), len(windows) + count))
            for index in range(count):
                windows.append({name: example[name][index] for name in inputs})
        batch = super().collate(windows)
        for name in ("labels", "weights"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        batch["windows"] = torch.nn.utils.rnn.pad_sequence(
            numbers, batch_first=True, padding_value=-1
        )
        return batch


class WindowPooling:
    """Makes a model return the mean logits of the windows of each text.

    Loop, losses and metrics thus see texts. Its two hooks run with the bare model, inside whatever
    wraps it (DDP, autocast), and are not saved with it. Without "windows", the model returns the
    logits of its inputs as usual.
    """

    def __init__(self, model: "PreTrainedModel"):
        self.windows: torch.Tensor | None = None
        model.register_forward_pre_hook(self.take_windows, with_kwargs=True)
        model.register_forward_hook(self.pool_logits)

    def take_windows(
        self, model: "PreTrainedModel", args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Remove "windows", see `TextClassification.collate`, from the arguments of the model."""
        self.windows = kwargs.pop("windows", None)
        return args, kwargs

    def pool_logits(self, model: "PreTrainedModel", args: tuple, outputs: Any) -> None:
        """Replace logits (windows, labels) by (texts, labels).

        Gathering and summing a padded tensor does not synchronize with the GPU, and the order of
        summation is fixed. `index_add` would be shorter, but resuming would not be exact on GPUs.
        """
        if self.windows is None:
            return
        is_missing = (self.windows < 0).unsqueeze(-1)
        logits = outputs.logits[self.windows.clamp(min=0)]  # (texts, most windows, labels)
        logits = logits.masked_fill(is_missing, 0)
        outputs.logits = logits.sum(dim=1) / (~is_missing).sum(dim=1)
        self.windows = None
