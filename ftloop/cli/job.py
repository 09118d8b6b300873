"""Job: a run with the options of the parts, which become its setups and observers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from ftloop.cli.options import LogLevel, effective_log_level
from ftloop.config import Config
from ftloop.errors import UserError
from ftloop.extensions import Observer, Setup
from ftloop.files import refuse_links
from ftloop.task import Task


@dataclass(frozen=True)
class Job(Config):
    """Everything about a run: the fields of Config, and the options of the parts.

    A part is imported when one of its options asks for it. The folders provenance/, report/ and
    hub/ may be deleted: what they do by default is then left out, and an option that needs one of
    them is an error.
    """

    # The fields of the task are options without a prefix: --max-length.
    task: Annotated[Task, tyro.conf.arg(name="")]

    # Speed and memory: ftloop/devices/
    matmul: Literal["auto", "default", "onednn", "tf32"] = "auto"
    """Library or format of fp32 matrix products. Default: on a CPU, the faster one of MKL and
    oneDNN among those with fp32 precision. 'tf32' is for NVIDIA GPUs; it is faster and less
    precise."""
    compile: bool = False
    """Compile the model with torch.compile. Batches are then padded to a few lengths. Meant for
    GPUs: on a CPU it is slower."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them. Needs less memory, but a
    step takes about a third longer."""
    keep_memory: bool = True
    """On a CPU, keep freed memory for the next step. Faster, but the process may use up to half
    more memory."""
    deterministic: bool = False
    """Use only algorithms that give the same bits every time. GPUs become slower; CPUs always use
    them."""

    # Logging: ftloop/logs/
    track: tuple[str, ...] = ()
    """Trackers besides metrics.jsonl: tensorboard, wandb, trackio, mlflow, or others of accelerate.
    Default: none."""
    log_level: LogLevel = "info"
    """Lowest level of the messages on the terminal. From 'info' on, there is also a progress bar
    and a table of scores."""
    quiet: bool = False  # Print only warnings and errors. Short for --log-level warning.
    digest_every: int | None = None
    """Optimizer steps between digests of the weights in ledger.jsonl. Default: none. Each digest
    synchronizes with the GPU."""

    # Report and Hub: ftloop/report/, ftloop/hub/
    report: bool = True  # Write report.html into the run folder when training ends.
    report_every: int | None = None
    """Optimizer steps between reports while the run trains. Default: only at the end. A process of
    its own writes them."""
    push_to_hub: str | None = None
    """Repository on the Hugging Face Hub, NAME or NAMESPACE/NAME, to which model/ is uploaded at
    the end. Default: no upload."""
    push_private: Annotated[bool, tyro.conf.arg(aliases=["--private"])] = False
    """Create the repository as a private one. An existing repository has to be private."""
    push_revision: Annotated[str | None, tyro.conf.arg(aliases=["--revision"])] = None
    """Branch to upload to. Default: main. It is created if it does not exist."""
    push_every: Literal["end", "save"] = "end"
    """When to upload. 'save' also uploads the weights of each checkpoint while the run trains."""

    check: bool = False
    """Look for mistakes in the data and exit without training. The exit code is 1 if there are
    any."""

    may_change: ClassVar[frozenset[str]] = Config.may_change | {
        *("keep_memory", "track", "log_level", "quiet", "digest_every", "report", "report_every"),
        *("push_to_hub", "push_private", "push_revision", "push_every", "check"),
    }

    def __post_init__(self) -> None:
        if self.compile and not getattr(self.task, "packing", False):
            with_few_batch_shapes = getattr(self.task, "with_few_batch_shapes", None)
            if with_few_batch_shapes is not None:  # every shape is compiled once
                object.__setattr__(self, "task", with_few_batch_shapes())

    @property
    def effective_log_level(self) -> LogLevel:
        """The level of the log, from `log_level` and `quiet`."""
        return effective_log_level(self.log_level, self.quiet)

    def setups(self) -> list[Setup]:
        """Return what the options change about how training is computed."""
        validate_job(self)
        from ftloop.devices.environment import RecordEnvironment
        from ftloop.devices.fsdp import FSDP2
        from ftloop.devices.matmul import MatmulBackend
        from ftloop.logs.terminal import TerminalSetup

        setups: list[Setup] = [TerminalSetup(self.effective_log_level)]
        if self.deterministic:
            from ftloop.devices.deterministic import Deterministic

            setups.append(Deterministic())
        # Also without shards: it refuses settings of the launcher that are not supported.
        setups += [FSDP2(), MatmulBackend(self.matmul)]
        if self.keep_memory:
            from ftloop.devices.keep_memory import KeepMemory

            setups.append(KeepMemory())
        if self.gradient_checkpointing:
            from ftloop.devices.gradient_checkpointing import GradientCheckpointing

            setups.append(GradientCheckpointing())
        if self.compile:
            from ftloop.devices.compile import Compile

            setups.append(Compile())
        if self.micro_batch_size == "auto":
            from ftloop.devices.micro_batch_size import AutoMicroBatchSize

            setups.append(AutoMicroBatchSize())
        return [*setups, RecordEnvironment(setups)]

    def observers(self) -> list[Observer]:
        """Return what the options add to a run. They are told of the end of a run in this order."""
        from ftloop.runs.record import RecordImportFolders

        observers: list[Observer] = [RecordImportFolders()]
        if self.effective_log_level in ("debug", "info"):
            from ftloop.logs.progress_bar import ProgressBar
            from ftloop.logs.score_table import ScoreTable
            from ftloop.logs.summary import Summary

            observers += [ProgressBar(), ScoreTable()]
        if self.effective_log_level == "debug":
            from ftloop.logs.debug_log import DebugLog

            observers.append(DebugLog())
        if self.track:
            with part_needed_by("track"):
                from ftloop.logs.trackers import Trackers

                validate_track(self)
                observers.append(Trackers(self.track))
        with part_needed_by("digest_every", is_explicit=self.digest_every is not None):
            from ftloop.provenance.ledger import Ledger

            observers.append(Ledger(self.digest_every))
        if self.effective_log_level in ("debug", "info"):
            observers.append(Summary())
        if self.report or self.report_every is not None:
            with part_needed_by("report_every", is_explicit=self.report_every is not None):
                from ftloop.report.reporter import Reporter

                observers.append(Reporter(at_end=self.report, every=self.report_every))
        with part_needed_by("push_to_hub", is_explicit=False):
            from ftloop.hub.card import CardWriter

            observers.append(CardWriter())  # after the report, which computes its intervals
        if self.push_to_hub is not None:
            with part_needed_by("push_to_hub"):
                from ftloop.hub.push import Pusher

                pusher = Pusher(
                    run_dir=self.run_dir,
                    repository=self.push_to_hub,
                    private=self.push_private,
                    revision=self.push_revision,
                    every=self.push_every,
                )
                observers.append(pusher)
        return observers


@contextlib.contextmanager
def part_needed_by(field: str, is_explicit: bool = True) -> Iterator[None]:
    """Import a part within the block, which may have been deleted.

    Raises UserError if the option that needs the part was given. If the part is only needed by
    default, the block is left without an error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        is_deleted = (error.name or "").startswith("ftloop.")
        if is_deleted and not is_explicit:
            return
        missing = f"this copy of ftloop has no {error.name}" if is_deleted else str(error)
        raise UserError(f"cannot be used: {missing}.", field=field) from error


def validate_track(job: Job) -> None:
    """Raise UserError for trackers that training cannot use. Evaluating a run needs none."""
    if job.track:
        with part_needed_by("track"):
            from ftloop.logs.trackers import validate_trackers

            validate_trackers(job.track)


def validate_job(job: Job) -> None:
    """Raise UserError for options of the parts that cannot work."""
    effective_log_level(job.log_level, job.quiet)
    if job.run_dir:  # otherwise the config is refused later
        refuse_links(Path(job.run_dir))
        refuse_links(Path(job.run_dir) / "checkpoints")
    for name in ("digest_every", "report_every"):
        value = getattr(job, name)
        if value is not None and value < 1:
            raise UserError(f"must be at least 1, but is {value}.", field=name)
    for name in ("push_private", "push_revision", "push_every"):
        if job.push_to_hub is None and getattr(job, name) != getattr(Job, name):
            raise UserError("has no effect without --push-to-hub REPOSITORY.", field=name)
    if job.compile and getattr(job.task, "packing", False):
        raise UserError(
            "cannot be combined with --packing: every batch would be compiled anew.",
            field="compile",
        )
