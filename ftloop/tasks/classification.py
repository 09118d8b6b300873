"""What is learned: Task, six methods to write and some with defaults, and Classification, what text and image share.

The task computes, the loop drives: devices, precision, accumulation, processes and checkpoints are not its business.
A task is a frozen dataclass whose fields are its options on the command line (`--task.max-length 64`), each explained
by the comment beside it. What is expensive to derive from them (rows, labels, tokenizer) is a cached property.

torch and the libraries are imported where they are used: `--help` and a mistyped option answer in about a second.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftloop.tasks import metrics
from ftloop.data import Data, checks, labels
from ftloop.data.labels import Labels, ProblemType
from ftloop.data.relabel import relabel_rows
from ftloop.data.shape import (
    TEXT_TYPES,
    code_digest,
    drop_duplicates,
    parse_join,
    require_columns,
    shape_rows,
)
from ftloop.data.splits import cut_splits, limit_rows, warn_about_unused_options
from ftloop.errors import UserError, nearest, root_cause

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("ftloop")

Batch = dict[str, "torch.Tensor"]


class Task:
    """The protocol between a task and the loop: load, build_model, collate, losses, predict and build_metrics are to be
    written, or inherited from Classification and changed: until then they raise NotImplementedError. The others have
    defaults that do for training."""

    def check(self) -> None:
        """Raise UserError for options that contradict each other: called before anything is read or written."""

    def in_few_shapes(self) -> "Task":
        """This task with batches of few shapes: --compile makes new kernels for each."""
        return self

    def load(self) -> "DatasetDict":
        """The splits "train", "validation" and maybe "test": rows as `collate` takes them, with a column "length"
        (tokens; any unit of cost) where rows differ in it. On a CPU, rows of like length are computed 4096 of these at
        once, unless --micro-batch-size is given; in evaluation, always."""
        raise NotImplementedError

    def check_data(self, full: bool) -> int:
        """Log what looks like a mistake in the data, with `full` all there is to say of it; how many mistakes."""
        if full:
            raise UserError(f"--check: {type(self).__name__} has no check_data() to look at its data")
        return 0

    def build_model(self) -> "PreTrainedModel":
        """The model to train, in float32, on the CPU: from a Hub id, a folder, or from scratch."""
        raise NotImplementedError

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Rows to one batch: "labels", and the model's inputs under the names of its `forward`."""
        raise NotImplementedError

    def losses(self, outputs: Any, targets: "torch.Tensor") -> "torch.Tensor":
        """One loss per row, shape (rows,), not reduced, from what the model returned and the batch's "labels"."""
        raise NotImplementedError

    def predict(self, outputs: Any) -> Batch:
        """What metrics compare, one entry per row: "predictions", and "prediction_scores" for those that rank."""
        raise NotImplementedError

    def build_metrics(self) -> list[Any]:
        """`evaluate.Metric` objects (add_batch, compute), fed by the names of their features; called on one process."""
        raise NotImplementedError

    def score_names(self) -> tuple[str, ...]:
        """The scores that `best_metric` may name, besides "loss"."""
        return ()

    def of_run(self, model: str) -> "Task":
        """This task with the weights of a finished run (the folder `model`) in its field `model`."""
        if not hasattr(self, "model"):
            raise UserError(
                f"{type(self).__name__} has no field `model` that a run's weights could take, and no of_run()"
            )
        return replace(self, model=model)

    @property
    def processor(self) -> Any:
        """The tokenizer or image processor that is saved beside the model, if there is one."""
        return None

    # For predict.py alone:

    def place(self, rows: "Dataset", folder: Path) -> "Dataset":
        """New rows in the shape that those of training were given; relative paths in them start at `folder`."""
        return rows

    def given(self, words: Sequence[str]) -> Sequence[str]:
        """What the words of the command line stand for: themselves, or the files in a folder."""
        return words

    def prepare_new(self, rows: "Dataset", first: int = 0) -> "Dataset":
        """A block of rows without labels, as `collate` takes them; `first` is the number of its first row."""
        raise UserError(f"{type(self).__name__} has no prepare_new() and describe(): predict needs them")

    def say_of_new(self) -> None:
        """Log what `prepare_new` counted in all blocks: after the last of them."""

    def describe(self, values: Batch) -> list[dict[str, Any]]:
        """What `predict` gave for some rows, in words: one dictionary a row. A task with `prepare_new` has it too."""
        raise NotImplementedError


@dataclass(frozen=True)
class Classification(Task):
    """Labels of any kind on rows of any modality: single-label, multi-label and regression heads, their losses,
    predictions and metrics. A modality adds `processor`, `prepare` (rows to model inputs) and `collate`."""

    model: str = ""  # a Hub id or a folder that from_pretrained reads
    init: Literal["pretrained", "random"] = "pretrained"  # random: the architecture, also by its type alone (vit, bert)
    model_options: dict[str, Any] = field(default_factory=dict)  # changes of the model's configuration: hidden_size 192
    data: Data = field(default_factory=Data)
    label_column: tuple[str, ...] = ("label",)  # one; or several columns of 0/1, one per label; code_*, * all others
    label_separator: str | None = None  # splits the text of the label column into several labels: ","
    label_lower: bool = False  # labels in lower case, so that Joy and joy are one
    label_merge: dict[str, Any] = field(default_factory=dict)  # label and what it becomes: grief sadness annoyance anger
    label_min_rows: int = 0  # rows that a class must have; those of rarer classes are dropped, or renamed:
    label_rare: str | None = None  # what the classes below --task.label-min-rows become: other
    label_names: tuple[str, ...] = ()  # in the order of the ids, or one file with a name a line; left out: from train
    problem_type: ProblemType | None = None  # left out: multi-label for lists, regression for decimals
    dropout: float | None = None  # sets every dropout probability of the model; left out: the model's own
    metrics: tuple[str, ...] = ()  # of ftloop/tasks/metrics.py, or hub:NAME; left out: usual ones
    threshold: float = 0.5  # probability from which a label of a multi-label task is predicted

    model_class: ClassVar[Any] = None  # builds the model with its head: a class, or the name of one in transformers
    input_option: ClassVar[str]  # how the command line names `input_columns`

    def __post_init__(self) -> None:
        for option in fields(self):  # label_column="label" in a config file means ("label",)
            if str(option.type).startswith("tuple") and isinstance(getattr(self, option.name), str):
                object.__setattr__(self, option.name, (getattr(self, option.name),))

    def check(self) -> None:
        if not self.model:
            raise UserError("--task.model is missing: a Hub id or a folder that from_pretrained reads")
        folder = Path(self.model)
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise UserError(f"--task.model {self.model!r} holds no config.json: it is no folder of a pretrained model")
        if not folder.is_dir() and (self.model.startswith((".", "/", "~")) or self.model.count("/") > 1):
            raise UserError(f"--task.model {self.model!r}: no such folder")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--task.dropout {self.dropout}: a probability from 0 to below 1 is needed")
        if not 0 < self.threshold < 1:
            raise UserError(f"--task.threshold {self.threshold}: a probability between 0 and 1 is needed")
        if not self.label_column:
            raise UserError("--task.label-column: name at least one column")
        seen = sorted(set(self.label_column) & set(self.input_columns))
        if seen:
            raise UserError(
                f"--task.label-column {seen[0]} is in {self.input_option} too: the model would read the answer"
            )
        if self.label_separator == "":
            raise UserError("--task.label-separator is empty: give the text between two labels")
        if self.label_rare is not None and self.label_min_rows < 1:
            raise UserError(f"--task.label-rare {self.label_rare}: --task.label-min-rows says which classes are rare")
        for name in ("label_lower", "label_merge", "label_min_rows"):
            if self.data.streaming and getattr(self, name):
                raise UserError("--task.data.streaming: labels are changed row by row, by --task.data.map")
            if self.problem_type == "regression" and getattr(self, name):
                raise UserError(f"--task.{name.replace('_', '-')} has no effect with --task.problem-type regression")
        self.data.validate()

    def of_run(self, model: str) -> "Classification":
        """With the labels of the run's model: what its logits mean is not decided a second time."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(model)
        except Exception as error:
            raise UserError(f"the model of the run, {model!r}, cannot be read: {root_cause(error)}") from error
        regression = config.problem_type == "regression"
        names = () if regression else tuple(config.id2label[number] for number in range(config.num_labels))
        task = replace(self, model=model, init="pretrained", model_options={}, dropout=None)
        vars(task)["labels"] = Labels(config.problem_type, names)  # the cached property is decided
        return task

    # ---- data

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns of the source that hold what the model sees."""
        raise NotImplementedError

    def prepare(self, rows: "Dataset") -> "Dataset":
        """Rows of the source to rows with the model's inputs (and "length") alone."""
        raise NotImplementedError

    @cached_property
    def source(self) -> "DatasetDict":
        """What the source holds, in the shape that the options of `data` give it."""
        data = shape_rows(self.data.read(), self.data)
        require_columns(data, self.input_columns, self.input_option)
        return data

    @cached_property
    def label_columns(self) -> tuple[str, ...]:
        """`label_column` with its patterns resolved: `code_*`, or `*` for all columns that the model does not read."""
        aside = (*self.input_columns, self.data.split_group, *self.data.split_hash)
        return labels.resolve_columns(self.label_column, self.source["train"].column_names, aside)

    @cached_property
    def rows(self) -> "DatasetDict":
        """The rows to learn and to score, by split: cleaned, cut, with all columns, in the order of the row ids."""
        data, columns = self.source, self.label_columns
        if self.data.streaming:
            return self._streamed(data)
        learned = {split: rows for split, rows in data.items() if split != "test"}
        require_columns(learned, columns, "--task.label-column")
        data = type(data)({split: rows for split, rows in data.items() if split != "test" or self._labelled(rows)})
        data = type(data)({split: self._without_faults(split, rows) for split, rows in data.items()})
        data = relabel_rows(
            data,
            columns,
            self.label_separator,
            lower=self.label_lower,
            merge=self.label_merge,
            min_rows=self.label_min_rows,
            rare=self.label_rare,
        )
        if self.data.drop_duplicates:
            data = drop_duplicates(data, self.input_columns, columns)
        single = len(columns) == 1 and self.label_separator is None
        classes = labels.read_label_cells(data["train"], columns, None) if single else None
        kind = self.problem_type or ("regression" if classes and isinstance(classes[0], float) else None)
        if classes and (isinstance(classes[0], list) or kind == "regression"):
            classes = None
        data = limit_rows(cut_splits(data, self.data, classes), self.data)
        if "validation" not in data:
            logger.info("data: no validation split: nothing is evaluated while training, and the last weights are kept")
        return data

    def _streamed(self, data: dict[str, Any]) -> dict[str, Any]:
        """As `rows`, with train as a stream; a split that the source lacks is the first rows of train."""
        from datasets.fingerprint import Hasher

        from ftloop.data.stream import Stream, file_stamps

        learned = {split: rows for split, rows in data.items() if split != "test"}
        require_columns(learned, self.label_columns, "--task.label-column")
        data = {split: rows for split, rows in data.items() if split != "test" or self._labelled(rows)}
        warn_about_unused_options(data, self.data)
        code = (code_digest(self.data.map), code_digest(self.data.filter))
        decides = (self.data, file_stamps(self.data), code, self.input_columns, self.label_columns, self.label_separator)
        stream = Stream(
            data.pop("train"),
            buffer_size=self.data.shuffle_buffer,
            drop_unusable=partial(self._without_faults, "train"),
            prepare=self.prepare_some,
            fingerprint=Hasher.hash(decides),
        )
        data = {split: self._without_faults(split, rows) for split, rows in data.items()}
        for split, count in (("test", self.data.test), ("validation", self.data.validation)):
            if count and split not in data:
                data[split] = stream.hold_out(count, split)
        return {**data, "train": stream}

    @cached_property
    def labels(self) -> Labels:
        """Decided once, from train and the options; those of a finished run are its model's (see `of_run`)."""
        names = self.label_names
        if len(names) == 1:
            file = Path(names[0]).expanduser()
            if not file.is_file():
                raise UserError(
                    f"--task.label-names {names[0]!r}: give all names, or an existing file with a name a line"
                )
            names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
        train = self.rows["train"]
        if self.data.streaming:
            train = train.head(self.data.shuffle_buffer)
            if not names:
                logger.info("data: the labels are those of the first %d rows of the stream", len(train))
        decided = labels.infer_labels(train, self.label_columns, self.label_separator, self.problem_type, names)
        if not decided.is_multi_label and self.threshold != type(self).threshold:
            logger.warning("--task.threshold %g has no effect: a row has one label", self.threshold)
        return decided

    def load(self) -> "DatasetDict":
        from datasets import DatasetDict

        self.check_metrics()
        data = dict(self.rows)
        stream = data["train"] if self.data.streaming else None
        if stream is not None:  # its first rows stand for it in what is said of the data
            data["train"] = stream.head(self.data.shuffle_buffer)
        encoded = {split: self.encoded(rows, split) for split, rows in data.items()}
        labels.log_labels(self.labels, encoded["train"])
        self.check_data(full=False)
        # Labels are joined after the cached preparation: another label option does not prepare the inputs again.
        prepared = {split: self.prepare(rows).add_column("labels", encoded[split]) for split, rows in data.items()}
        return DatasetDict(prepared) if stream is None else {**prepared, "train": stream}

    def prepare_some(self, rows: "Dataset") -> Sequence[dict[str, Any]]:
        """Some rows of a stream as `collate` takes them. Raises UserError for a label that its first rows lack."""
        return self.prepare(rows).add_column("labels", self.encoded(rows, "train"))

    def encoded(self, rows: "Dataset", split: str) -> list[Any]:
        """The labels of rows of the source, as `ftloop/data/labels.py` encodes them."""
        return labels.encode_labels(rows, self.label_columns, self.label_separator, self.labels, split)

    def check_data(self, full: bool) -> int:
        return checks.log_findings(checks.check_everything(self) if full else checks.check_rows(self))

    def place(self, rows: "Dataset", folder: Path) -> "Dataset":
        """New rows of a file as `source` has those of training: columns renamed, map, join; no row is filtered out.

        Columns that have our names keep them, and a join whose parts are gone was done before; `map` is done always:
        of rows that are what the model sees (texts of the command line) this is not asked. Of a run with `sources`, it
        is as with the one whose options fit the columns of the file; if several do, or none, as `data` itself says.
        """
        for source in (*self._fitting(rows), self.data):
            rows = self._shaped(rows, source)
        return rows

    def _shaped(self, rows: "Dataset", source: Data) -> "Dataset":
        """New rows by the options of one source."""
        names, wanted = rows.column_names, {our: str(their) for our, their in source.columns.items()}.items()
        columns = {our: their if their in names else our for our, their in wanted if {our, their} & set(names)}
        rows = shape_rows({"train": rows}, Data(columns=columns))["train"]
        lacking = sorted(set(self.label_column) - set(rows.column_names))
        try:
            rows = shape_rows({"train": rows}, Data(map=source.map))["train"]
        except UserError as error:
            if not lacking:
                raise
            text = f"{error}; the file has no column {', '.join(lacking)}: map must do without labels there"
            raise UserError(text) from error
        texts = {name for name, kind in rows.features.items() if getattr(kind, "dtype", None) in TEXT_TYPES}
        join = {}
        for name, parts in source.join.items():
            found = (texts if "*" in parse_join(parts) else set()) | (set(parse_join(parts)) & set(rows.column_names))
            if name not in rows.column_names or found - {name}:
                join[name] = parts
        return shape_rows({"train": rows}, replace(source, columns={}, map=None, join=join, filter=None))["train"]

    def _fitting(self, rows: "Dataset") -> list[Data]:
        """The source of several whose options fit the columns of new rows, in a list; an empty one if none, or more."""
        found: list[Data] = []
        for source in self.data.sources:
            parts = [part for name in self.input_columns for part in parse_join(source.join.get(name, name)) if part != "*"]
            options = Data(columns=source.columns, map=source.map, join=source.join)
            theirs = {str(source.columns.get(part, part)) for part in parts}
            if theirs <= set(rows.column_names) and options not in found:
                found.append(options)
        if self.data.sources and len(found) != 1:
            logger.info("data: %d of the run's sources fit the columns of the new rows: left as they are", len(found))
        return found if len(found) == 1 else []

    def prepare_new(self, rows: "Dataset", first: int = 0) -> "Dataset":
        require_columns({"new": rows}, self.input_columns, self.input_option)
        for column in self.input_columns:
            empty = [row for row, cell in enumerate(rows[column], first) if cell is None]
            if empty:
                raise UserError(
                    f"{len(empty)} row(s) have no {column!r}, counted from 0: {', '.join(map(str, empty[:10]))}"
                )
        return self.prepare(rows)

    def _labelled(self, rows: "Dataset") -> bool:
        """False for a test split without labels (no column, or no row with one), as the Hub's benchmarks have."""
        columns = self.label_columns
        known = set(columns) <= set(rows.column_names) and not all(
            labels.is_missing(cell) or cell == -1 for cell in labels.read_label_cells(rows, columns, self.label_separator)
        )
        if not known:
            logger.info("data: test has no labels, so it is not scored (%d rows)", len(rows))
        return known

    def faults(self, rows: "Dataset") -> list[tuple[str, set[int], str]]:
        """What makes rows unusable: (what, which rows, the option of `data` that leaves them out). A row has one."""
        empty = {
            row
            for column in self.input_columns
            for row, cell in enumerate(rows[column])
            if cell is None or (isinstance(cell, str) and not cell.strip())
        }
        found = labels.read_label_cells(rows, self.label_columns, self.label_separator)
        unlabelled = {row for row, cell in enumerate(found) if labels.is_missing(cell)} - empty
        return [
            (f"empty {' or '.join(self.input_columns)}", empty, "drop_empty"),
            ("missing label", unlabelled, "drop_empty"),
        ]

    def _without_faults(self, split: str, rows: "Dataset", shard: int | None = None, first: int = 0) -> "Dataset":
        """Without the rows that options allow to drop, which are counted. Raises UserError if there are others.

        Of a stream, some rows at once: those of a `shard` from its row `first` on. The stream counts what is dropped.
        """
        faults = [fault for fault in self.faults(rows) if fault[1]]
        if not faults:
            return rows
        for dropping in (False, True):
            chosen = [fault for fault in faults if getattr(self.data, fault[2]) == dropping]
            counts = [
                f"{len(bad)} {what} (rows {', '.join(str(first + row) for row in sorted(bad)[:10])}"
                f"{', ...' if len(bad) > 10 else ''})"
                for what, bad, _ in chosen
            ]
            if chosen and not dropping:
                options = sorted({f"--task.data.{option.replace('_', '-')}" for _, _, option in chosen})
                raise UserError(
                    f"--task.data: the split {split!r} has {' and '.join(counts)}, counted from 0"
                    f"{'' if shard is None else f' in shard {shard}'}; "
                    f"mend the file, or leave these rows out by {' '.join(options)}"
                )
        if shard is None:
            logger.warning("data: %s: dropped %s", split, " and ".join(counts))
        dropped = {row for _, bad, _ in faults for row in bad}
        kept = [row for row in range(len(rows)) if row not in dropped]
        if not kept and shard is None:
            raise UserError(f"--task.data: the split {split!r} is empty without its dropped rows")
        return rows.select(kept)

    # ---- model

    @property
    def by_type(self) -> bool:
        """Whether `model` is a type of model, for random weights, and no place that has files."""
        from transformers import CONFIG_MAPPING

        return self.init == "random" and self.model in CONFIG_MAPPING and not Path(self.model).is_dir()

    def read_config(self) -> "PretrainedConfig":
        """The configuration of `model`, changed by `model_options`. Raises UserError."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.for_model(self.model) if self.by_type else AutoConfig.from_pretrained(self.model)
            known = {*config.to_dict(), *config.attribute_map}
            for name, value in self.model_options.items():
                if name not in known:
                    raise UserError(
                        f"--task.model-options: a {config.model_type} has no {name!r}{nearest(name, known)}; "
                        f"it has {', '.join(sorted(known))}"
                    )
                setattr(config, name, value)
            if self.by_type:  # built anew, for some values (Swin's) are derived from others when it is built
                # Where a type has several classes (DeiT), transformers looks into `architectures`, and finds None.
                config = AutoConfig.for_model(self.model, **self.model_options, architectures=[])
            return config
        except UserError:
            raise
        except Exception as error:  # hub, file and json errors, and values that the configuration refuses
            raise UserError(f"--task.model {self.model!r} cannot be loaded: {root_cause(error)}") from error

    def configure(self, config: "PretrainedConfig") -> None:
        """Change the model's configuration before it is built."""
        names = self.labels.names
        config.problem_type = self.labels.problem_type
        config.num_labels = self.labels.num_outputs
        if names:
            config.id2label = dict(enumerate(names))
            config.label2id = {name: number for number, name in enumerate(names)}
        if self.dropout is not None:
            # "classifier_dropout", "attn_pdrop", "drop_path_rate": every architecture has its own names.
            probabilities = [
                name for name in vars(config) if "drop" in name and not isinstance(getattr(config, name), bool)
            ]
            for name in probabilities:
                setattr(config, name, self.dropout)

    def build_model(self) -> "PreTrainedModel":
        import torch
        import transformers

        made_by = getattr(transformers, self.model_class) if isinstance(self.model_class, str) else self.model_class
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # its table of new weights is replaced by the lines below
        try:
            config = self.read_config()
            self.configure(config)
            if self.init == "random":
                logger.info(
                    "model: %s with random weights, %s", type(config).__name__.removesuffix("Config"), self.model
                )
                return made_by.from_config(config) if hasattr(made_by, "from_config") else made_by(config)
            model, found = made_by.from_pretrained(
                self.model,
                config=config,
                dtype=torch.float32,  # a checkpoint in half precision would else be trained in it
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except UserError:
            raise
        except Exception as error:  # hub, file, json, safetensors and torch errors: all mean an unreadable model
            raise UserError(f"--task.model {self.model!r} cannot be loaded: {root_cause(error)}") from error
        finally:
            transformers.logging.set_verbosity(verbosity)
        resized = sorted(key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"])
        missing = sorted(set(found["missing_keys"]) - set(resized))
        logger.info("model: %s, %.1f million parameters", self.model, sum(p.numel() for p in model.parameters()) / 1e6)
        if resized:
            logger.info("model: of another size in the checkpoint, so new and random: %s", ", ".join(resized))
        if missing:
            shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
            logger.info("model: not in the checkpoint, so new and random: %s", shown)
        return model

    # ---- learning and scoring

    def losses(self, outputs: Any, targets: "torch.Tensor") -> "torch.Tensor":
        """Cross-entropy; binary cross-entropy, averaged over the labels of a row; squared error."""
        import torch.nn.functional as F

        logits = outputs.logits  # in float32, whatever the precision: accelerate converts what a model returns
        if self.labels.is_multi_label:
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(dim=-1)
        if self.labels.problem_type == "regression":
            return F.mse_loss(logits.squeeze(-1), targets.to(logits.dtype), reduction="none")
        return F.cross_entropy(logits, targets, reduction="none")

    def predict(self, outputs: Any) -> Batch:
        """ids (rows,) and probabilities (rows, labels); 0/1 and probabilities (rows, labels); values (rows,).

        "prediction_scores" are the probabilities as `evaluate`'s metrics want them: of class 1 alone, if there are two.
        """
        logits = outputs.logits
        if self.labels.problem_type == "regression":
            return {"predictions": logits.squeeze(-1)}
        if self.labels.is_multi_label:
            scores = probabilities = logits.sigmoid()
            predictions = (probabilities >= self.threshold).long()
        else:
            probabilities = logits.softmax(dim=-1)
            scores = probabilities[:, 1] if len(self.labels.names) == 2 else probabilities
            predictions = logits.argmax(dim=-1)
        return {"predictions": predictions, "prediction_scores": scores, "probabilities": probabilities}

    def describe(self, values: Batch) -> list[dict[str, Any]]:
        """{"label", "probability", "probabilities"}; {"labels", "probabilities"}; {"value"}."""
        if self.labels.problem_type == "regression":
            return [{"value": value} for value in values["predictions"].tolist()]
        names, described = self.labels.names, []
        for found, scores in zip(values["predictions"].tolist(), values["probabilities"].tolist(), strict=True):
            if self.labels.is_multi_label:
                answer = {"labels": [name for name, present in zip(names, found, strict=True) if present]}
            else:
                answer = {"label": names[found], "probability": scores[found]}
            described.append({**answer, "probabilities": dict(zip(names, scores, strict=True))})
        return described

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.metrics or metrics.DEFAULTS[self.labels.problem_type]

    def score_names(self) -> tuple[str, ...]:
        found: list[str] = []
        for name in self.metric_names:
            ratio, per_class, _ = name.partition("_per_class")
            found += [f"{ratio}[{label}]" for label in self.labels.names] if per_class else [name]
        return tuple(found)

    def check_metrics(self) -> None:
        """Raise UserError for a metric that does not fit, or that the Hub does not give: before training."""
        metrics.check(self.metric_names, self.labels.problem_type, self.labels.names)
        if any(name.startswith(metrics.HUB) for name in self.metric_names):
            self.build_metrics()

    def build_metrics(self) -> list[Any]:
        return [metrics.build(name, self.labels.problem_type, self.labels.names) for name in self.metric_names]
