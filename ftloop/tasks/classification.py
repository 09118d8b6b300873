"""Classification: what text and image classification share, from the labels to the metrics."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftloop.data import checks
from ftloop.data.findings import log_findings
from ftloop.data.labels import (
    Labels,
    ProblemType,
    encode_labels,
    infer_labels,
    is_missing,
    label_name,
    log_labels,
    read_label_cells,
    resolve_columns,
)
from ftloop.data.relabel import relabel_rows
from ftloop.errors import UserError
from ftloop.task import Batch
from ftloop.tasks import metrics
from ftloop.tasks.heads import Outputs, head_kind
from ftloop.tasks.predictor import ClassificationPredictor, Predictor
from ftloop.tasks.pretrained import PretrainedTask, explain_loading
from ftloop.tasks.rows import UnusableRows

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import PretrainedConfig

logger = logging.getLogger("ftloop")


@dataclass(frozen=True)
class Classification(PretrainedTask):
    """Labels of any kind for rows of any modality: one class, any number of labels, or a number.

    A modality adds `input_columns`, `processor`, `prepare` and `collate`.
    """

    label_column: tuple[str, ...] = ("label",)
    """Column of the labels, or several columns of 0 and 1, one per label. code_* stands for the
    columns that match, * for all that the model does not read."""
    label_separator: str | None = None  # splits a text into several labels, such as ","
    label_lower: bool = False  # write labels in lower case, so that Joy and joy are one class
    label_merge: dict[str, Any] = field(default_factory=dict)
    """Labels and what they become: grief sadness annoyance anger."""
    label_min_rows: int = 0
    """Training rows that a class must have. Rows of rarer classes are dropped or, with label_rare,
    relabelled. 0: any number."""
    label_rare: str | None = None  # the label that classes below label_min_rows get: other
    label_names: tuple[str, ...] = ()
    """Label names in the order of their ids, or one file with a name per line. Default: those of
    the training rows, in the order of the model if it was trained for the same labels."""
    problem_type: ProblemType | None = None
    """Kind of problem. Default: multi-label for lists, regression for decimals, else
    single-label."""
    metrics: tuple[str, ...] = ()
    """Scores of ftloop/tasks/metrics.py, or hub:NAME for a metric of the Hub. Default: accuracy
    and f1_macro, or the usual ones of the other kinds of problems."""
    threshold: float = 0.5
    """Probability from which a label is predicted, with several labels per row."""

    predictor_class: ClassVar[type[Predictor]] = ClassificationPredictor

    def validate(self) -> None:
        super().validate()
        if not 0 < self.threshold < 1:
            raise UserError(f"--threshold {self.threshold} is not a probability between 0 and 1.")
        if not self.label_column:
            raise UserError("--label-column must name at least one column.")
        shared = sorted(set(self.label_column) & set(self.input_columns))
        if shared:
            raise UserError(
                f"--label-column {shared[0]} is also in {self.input_option}: the model would read "
                "the label."
            )
        if self.label_separator == "":
            raise UserError("--label-separator is empty. Give the text between two labels.")
        if self.label_rare is not None and self.label_min_rows < 1:
            raise UserError(
                f"--label-rare {self.label_rare} has no effect without --label-min-rows, which "
                "decides which classes are rare."
            )
        for name in ("label_lower", "label_merge", "label_min_rows"):
            option = f"--{name.replace('_', '-')}"
            if getattr(self, name) and self.data.streaming:
                raise UserError(
                    f"{option} needs all rows at once, which --data.streaming does not have. "
                    "Change labels row by row with --data.map."
                )
            if getattr(self, name) and self.problem_type == "regression":
                raise UserError(f"{option} has no effect with --problem-type regression.")

    def from_finished_run(self, model_folder: str) -> "Classification":
        """Return this task with the exported model and its labels, which are not inferred again."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
        except Exception as error:
            raise UserError(
                f"the model of the run, {model_folder!r}, cannot be read: {explain_loading(error)}"
            ) from error
        names: tuple[str, ...] = ()
        if config.problem_type != "regression":
            names = tuple(config.id2label[number] for number in range(config.num_labels))
        task = super().from_finished_run(model_folder)
        vars(task)["labels"] = Labels(config.problem_type, names)  # fills the cached property
        return task

    # Labels

    @cached_property
    def label_columns(self) -> tuple[str, ...]:
        """`label_column` with its patterns, such as code_*, replaced by what they match."""
        excluded = (*self.input_columns, self.data.split_group, *self.data.split_hash)
        return resolve_columns(self.label_column, self.source["train"].column_names, excluded)

    @cached_property
    def labels(self) -> Labels:
        """The problem type and the label names, inferred from train and the options.

        A model that was trained for the same labels keeps their order, unless `label_names` gives
        another one.
        """
        names = read_label_names(self.label_names)
        train = self.rows["train"]
        if self.data.streaming:
            train = train.head(self.data.shuffle_buffer)
            if not names:
                logger.info("data: labels are inferred from the first %d rows", len(train))
        labels = infer_labels(
            train, self.label_columns, self.label_separator, self.problem_type, names
        )
        found = None if names else self.checkpoint_outputs
        if found is not None and found.fits(self.describe_outputs(labels)):
            labels = replace(labels, names=found.names)
        if not labels.is_multi_label and self.threshold != type(self).threshold:
            logger.warning("--threshold %g has no effect: a row has one label", self.threshold)
        return labels

    def describe_outputs(self, labels: Labels) -> Outputs:
        return Outputs(head_kind(self.model_class), labels.problem_type, labels.names)

    @property
    def outputs(self) -> Outputs:
        return self.describe_outputs(self.labels)

    def encode_labels(self, rows: "Dataset", split: str) -> list[Any]:
        return encode_labels(rows, self.label_columns, self.label_separator, self.labels, split)

    def change_labels(self, data: "DatasetDict") -> "DatasetDict":
        return relabel_rows(
            data,
            self.label_columns,
            self.label_separator,
            lower=self.label_lower,
            merge=self.label_merge,
            min_rows=self.label_min_rows,
            rare=self.label_rare,
        )

    def classes_to_stratify(self, train: "Dataset") -> list[Any] | None:
        """Return the classes of the rows if each row has one; None for lists and decimals."""
        is_single = len(self.label_columns) == 1 and self.label_separator is None
        if not is_single or self.problem_type == "regression":
            return None
        cells = read_label_cells(train, self.label_columns, None)
        is_class = not isinstance(cells[0], list) and (
            self.problem_type is not None or not isinstance(cells[0], float)
        )
        return cells if is_class else None

    def has_labels(self, test: "Dataset") -> bool:
        if not super().has_labels(test):
            return False
        cells = read_label_cells(test, self.label_columns, self.label_separator)
        return not all(is_missing(cell) or cell == -1 for cell in cells)

    def find_unusable_rows(self, rows: "Dataset") -> list[UnusableRows]:
        (empty,) = super().find_unusable_rows(rows)
        cells = read_label_cells(rows, self.label_columns, self.label_separator)
        missing = {row for row, cell in enumerate(cells) if is_missing(cell)} - empty.rows
        return [empty, UnusableRows("missing label", missing, "drop_empty")]

    # Datasets and model

    def load_datasets(self) -> dict[str, Any]:
        self.validate_metrics()
        return super().load_datasets()

    def report_on_data(self, labels: dict[str, Any]) -> None:
        log_labels(self.labels, labels["train"])
        self.check_data(full=False)

    def check_data(self, full: bool) -> int:
        """Log what looks like a mistake in the data; return how many mistakes were found.

        `full` logs everything that is known about the data, as --check does.
        """
        findings = checks.check_everything(self) if full else checks.check_rows(self)
        return log_findings(findings)

    def example_settings(self) -> dict[str, Any]:
        labels = {"problem_type": self.labels.problem_type, "names": self.labels.names}
        return {**super().example_settings(), "labels": labels}

    def configure_model(self, config: "PretrainedConfig") -> None:
        super().configure_model(config)
        config.problem_type = self.labels.problem_type
        config.num_labels = self.labels.num_outputs
        if self.labels.names:
            config.id2label = dict(enumerate(self.labels.names))
            config.label2id = {name: number for number, name in enumerate(self.labels.names)}

    # Losses and scores

    def losses(self, outputs: Any, batch: Batch) -> "torch.Tensor":
        """Return cross-entropy, binary cross-entropy (the mean over labels), or squared error."""
        import torch.nn.functional as F

        logits, labels = outputs.logits, batch["labels"]  # logits are float32 in every precision
        if self.labels.is_multi_label:
            losses = F.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="none"
            )
            return losses.mean(dim=-1)
        if self.labels.problem_type == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")
        return F.cross_entropy(logits, labels, reduction="none")

    def predict(self, outputs: Any, batch: Batch) -> "dict[str, torch.Tensor]":
        """Return "predictions" and, for classes and labels, "probabilities" (rows, labels).

        Predictions are class ids (rows,), 0 or 1 (rows, labels), or numbers (rows,). For metrics,
        "prediction_scores" are the probabilities or, with two classes, that of class 1, (rows,).
        """
        logits = outputs.logits
        if self.labels.problem_type == "regression":
            return {"predictions": logits.squeeze(-1)}
        if self.labels.is_multi_label:
            probabilities = logits.sigmoid()
            return {
                "predictions": (probabilities >= self.threshold).long(),
                "prediction_scores": probabilities,
                "probabilities": probabilities,
            }
        probabilities = logits.softmax(dim=-1)
        has_two_classes = len(self.labels.names) == 2
        return {
            "predictions": logits.argmax(dim=-1),
            "prediction_scores": probabilities[:, 1] if has_two_classes else probabilities,
            "probabilities": probabilities,
        }

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to compute: those of the option, or the default ones of the problem type."""
        return self.metrics or metrics.DEFAULTS[self.labels.problem_type]

    def score_names(self) -> tuple[str, ...] | None:
        return metrics.score_names(self.metric_names, self.labels.names)

    def validate_metrics(self) -> None:
        """Raise UserError for a metric that does not fit or that the Hub does not have."""
        metrics.validate(self.metric_names, self.labels.problem_type, self.labels.names)
        if any(name.startswith(metrics.HUB) for name in self.metric_names):
            self.build_metrics()

    def build_metrics(self) -> list[Any]:
        labels = self.labels
        return [
            metrics.build(name, labels.problem_type, labels.names) for name in self.metric_names
        ]


def read_label_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `--label-names`; a single name is a file with one name per line. Raises UserError."""
    if len(names) != 1:
        return tuple(map(label_name, names))
    file = Path(names[0]).expanduser()
    if not file.is_file():
        raise UserError(
            f"--label-names {names[0]!r}: give all names, or an existing file with one name per "
            "line."
        )
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(label_name(line) for line in lines if label_name(line))
