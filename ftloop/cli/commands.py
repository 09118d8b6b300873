"""The commands of `python -m ftloop.cli`. Their docstrings are their help.

Each imports the part that it needs when it is called, so that --help answers at once and a part
that was deleted takes only its own command away.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import tyro

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
RunFolders = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")]
OtherRun = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OTHER]")]
ConfigFile = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
ConfigOrRun = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG|RUN")]
Repository = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
JobOptions = Annotated[tuple[str, ...], tyro.conf.Suppress]  # words that are options of the config


def configure_logging(level: str = "info") -> None:
    """Show the messages of ftloop, as training does."""
    from ftloop.logs.terminal import configure_logging

    configure_logging(level)


def print_lines(lines: Iterable[object]) -> None:
    """Print lines on standard output. They may name what a data set or a record holds."""
    from ftloop.escape import for_terminal

    for line in lines:
        print(for_terminal(line))


def report(
    run: RunFolder,
    out: Path | None = None,
    search: int | None = None,
    trust_code: bool = False,
    trust_pickle: bool = False,
) -> int:
    """Write the report of a run: scores, curves, errors, data and config on one HTML page.

    For a run that is still training, the report has its curves, data and config.

    Args:
        run: Folder of the run.
        out: File to write. Default: report.html in the folder of the run.
        search: Training rows to search for label errors. Default: as many as take some seconds.
        trust_code: Run code outside of ftloop that the record of the run names, such as a task of
            your own.
        trust_pickle: Read pickled data. This runs code that the author of the file chose.
    """
    from ftloop.report.run_report import write_report
    from ftloop.runs.trust import allow

    configure_logging()
    with allow(code=trust_code, pickle=trust_pickle):
        print_lines([write_report(run, out, search)])
    return 0


def compare(
    runs: RunFolders,
    out: Path = Path("compare.html"),
    trust_code: bool = False,
    trust_pickle: bool = False,
) -> int:
    """Write a page about several runs: differences in config, curves, scores and predictions.

    Args:
        runs: Folders of the runs. Each is compared with the first.
        out: File to write.
        trust_code: Run code outside of ftloop that the record of a run names, such as a task of
            your own.
        trust_pickle: Read pickled data. This runs code that the author of the file chose.
    """
    from ftloop.report.compare import write_comparison
    from ftloop.runs.trust import allow

    configure_logging()
    with allow(code=trust_code, pickle=trust_pickle):
        print_lines([write_comparison(runs, out)])
    return 0


def explore(config: ConfigFile, out: Path | None = None, job_options: JobOptions = ()) -> int:
    """Write a page about the data of a config, before training: classes, sizes, rows, mistakes.

    Options that are not listed below are options of the config, as for train.py.

    Args:
        config: A config file.
        out: File to write. Default: NAME-explore.html beside the folder of the run.
    """
    from ftloop.cli.config_file import from_command_line
    from ftloop.report.explore import write_data_page

    job = from_command_line([config, *job_options])
    configure_logging(job.effective_log_level)
    print_lines([write_data_page(job, out)])
    return 0


def features(
    source: ConfigOrRun,
    out: Path,
    split: tuple[str, ...] = ("train", "validation"),
    pooling: Literal["first", "mean"] = "mean",
    at_most: int | None = None,
    pretrained: bool = False,
    probe: bool = False,
    trust_code: bool = False,
    trust_pickle: bool = False,
    job_options: JobOptions = (),
) -> int:
    """Write the features of each row to a Parquet file: split, row, label, features.

    Features are the pooled last hidden states of a model without its head: the pretrained model of
    a config, or the best weights of a finished run. Options that are not listed below are options
    of the config, as for train.py.

    Args:
        source: A config file, or the folder of a finished run.
        out: File to write, NAME.parquet.
        split: Splits to write.
        pooling: State of the first token (or class token), or mean over all tokens but padding.
        at_most: Maximum number of rows per split, chosen by the seed. Default: all rows.
        pretrained: Use the model with which the training of the run started.
        probe: Fit a logistic regression and a majority baseline on train, and print their scores.
        trust_code: Run code outside of ftloop that the record of the run names, such as a task of
            your own.
        trust_pickle: Read pickled data. This runs code that the author of the file chose.
    """
    from ftloop.cli.config_file import from_command_line
    from ftloop.errors import UserError
    from ftloop.report.features import write_features
    from ftloop.runs.trust import allow

    run_dir = Path(source) if (Path(source) / "config.json").is_file() else None
    if run_dir is not None and job_options:
        raise UserError(f"{job_options[0]} is not an option of a finished run.")
    job = None if run_dir is not None else from_command_line([source, *job_options])
    configure_logging("info" if job is None else job.effective_log_level)
    with allow(code=trust_code, pickle=trust_pickle):
        lines = write_features(
            run_dir or job,
            out,
            splits=split,
            pooling=pooling,
            at_most=at_most,
            pretrained=pretrained,
            probe=probe,
        )
    print_lines(lines)
    return 0


def verify(
    run: RunFolder, other: OtherRun = None, trust_code: bool = False, trust_pickle: bool = False
) -> int:
    """Verify the ledger of a run, or find the first step at which two runs differ.

    One run: every step used the rows that the seed determines, so every row was used once per
    epoch. Two runs: did the data, the loss or the weights differ first? Weights are compared if
    both runs had --digest-every. The exit code is 1 if something is wrong or differs.

    Args:
        run: Folder of the run.
        other: Folder of another run, to compare.
        trust_code: Run code outside of ftloop that the record of the run names, such as a row order
            of your own.
        trust_pickle: Read pickled data. This runs code that the author of the file chose.
    """
    from ftloop.provenance.compare import compare_runs
    from ftloop.provenance.verify import verify_run
    from ftloop.runs.trust import allow

    with allow(code=trust_code, pickle=trust_pickle):
        is_correct, lines = verify_run(run) if other is None else compare_runs(run, other)
    print_lines(lines)
    return 0 if is_correct else 1


def card(
    run: RunFolder, overwrite: bool = False, trust_code: bool = False, trust_pickle: bool = False
) -> int:
    """Write the model card of a finished run, with 95 % intervals and the confusion matrix.

    The card is RUN/model/README.md. Training writes it as well. What only a person knows is marked
    [to be filled: ...]. A card that was edited is kept.

    Args:
        run: Folder of the run.
        overwrite: Replace a card that was edited.
        trust_code: Run code outside of ftloop that the record of the run names, such as a task of
            your own.
        trust_pickle: Read pickled data. This runs code that the author of the file chose.
    """
    from ftloop.hub.card import write_card
    from ftloop.runs.trust import allow

    configure_logging()
    with allow(code=trust_code, pickle=trust_pickle):
        print_lines([write_card(run, compute=True, overwrite=overwrite)])
    return 0


def push(
    run: RunFolder,
    repository: Repository,
    private: bool = False,
    revision: str | None = None,
    report: bool = True,
    overwrite_card: bool = False,
) -> int:
    """Upload model/ of a finished run to the Hub in one commit, with report.html if there is one.

    The token comes from HF_TOKEN or `hf auth login`; it is neither stored nor printed. Run the
    command again after an interruption: it uploads only what is missing.

    Args:
        run: Folder of the run.
        repository: NAME or NAMESPACE/NAME. It is created if it does not exist.
        private: Create a private repository. An existing repository has to be private.
        revision: Branch. Default: main. It is created if it does not exist.
        report: Upload report.html, which shows rows of the data.
        overwrite_card: Replace a model card that was edited on the Hub.
    """
    from ftloop.hub.push import push as push_run

    configure_logging()
    lines = push_run(
        run,
        repository,
        private=private,
        revision=revision,
        report=report,
        overwrite_card=overwrite_card,
    )
    print_lines(lines)
    return 0
