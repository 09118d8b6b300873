"""A run's model/ on the Hub: `python -m ftloop push RUN REPO`, and --push-to-hub, when a training ends or at its saves.

A push is one commit, with everything or nothing in it. What an interrupted one had uploaded is in the Hub's storage:
the same push again sends only what is missing, and if nothing has changed, no commit is made.

The token is the Hub client's own business: from HF_TOKEN, or of `hf auth login`. It is never in a config, a record or a
line of text: what is said of an error goes through `without_token`.
"""

import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError, root_cause
from ftloop.hub import card

if TYPE_CHECKING:
    from ftloop.config import Config

logger = logging.getLogger("ftloop")

PATIENCE = 60  # seconds that the Hub has to answer the questions before a training; its client would wait for ever
REPORT = "report.html"


def push(
    run_dir: Path,
    repo: str,
    private: bool = False,
    revision: str | None = None,
    report: bool = True,
    overwrite_card: bool = False,
) -> list[str]:
    """Upload model/ of a finished run, with report.html if there is one (and `report`): what was done, in lines.

    `repo` ("name" or "namespace/name") is made if it does not exist, private if so asked; `revision` is a branch, made
    likewise. A model card that somebody changed on the Hub stays, unless that of the run was changed too, or
    `overwrite_card`. Raises UserError.
    """
    folder = run_dir / "model"
    if not folder.is_dir():
        raise UserError(f"{str(run_dir)!r} has no model/ to push: its training is not finished, or it is no run")
    asked = f"push {repo!r}"
    try:
        name = prepare(asked, repo, private, revision)
        files = {REPORT: run_dir / REPORT} if report and (run_dir / REPORT).is_file() else {}
        return upload(folder, name, revision, f"{run_dir.resolve().name}, by ftloop", files, overwrite_card)
    except UserError:
        raise
    except Exception as error:  # the Hub's client raises dozens of kinds: see in_words
        raise UserError(f"{asked}: {in_words(error)}. The same command again sends only what is missing") from error


def command(run_dir: Path, repo: str, private: bool, revision: str | None) -> str:
    """The command that pushes a finished run."""
    options = [*(["--private"] if private else []), *(["--revision", revision] if revision else [])]
    return shlex.join([os.path.relpath(sys.executable), "-m", "ftloop", "push", str(run_dir), repo, *options])


def prepare(asked: str, repo: str, private: bool, revision: str | None) -> str:
    """See that a push will be possible, and return the full name of the repository, which is made if need be.

    `asked` is what errors begin with. Raises UserError: for a name that the Hub refuses, offline, without a token, with
    one that is not accepted or may not write there, without a network, for a repository that is public if `private`.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(without_token(f"{asked}: {error}")) from error
    if constants.is_offline_mode():
        raise UserError(f"{asked}: the Hub's client is told to be offline (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)")
    try:
        token = get_token()
    except Exception as error:  # a login that has run out, or one by OpenID Connect that the Hub refuses
        raise UserError(f"{asked}: {root_cause(error)}") from error
    if token is None:
        raise UserError(f"{asked}: there is no token: set HF_TOKEN, or log in once with `hf auth login`")
    questions = InBackground(lambda: _make_sure(asked, repo, private, revision))
    if not questions.wait(PATIENCE):
        raise UserError(f"{asked}: {constants.ENDPOINT} did not answer within {PATIENCE} seconds")
    if questions.error is None:
        return questions.result
    if isinstance(questions.error, UserError):
        raise questions.error
    raise UserError(f"{asked}: {in_words(questions.error)}") from questions.error


def _make_sure(asked: str, repo: str, private: bool, revision: str | None) -> str:
    """The questions of `prepare` that the Hub answers."""
    from huggingface_hub import HfApi

    api = HfApi()
    name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
    api.auth_check(name, write=True)  # a repository that exists already may be somebody else's
    if private and not api.model_info(name).private:
        raise UserError(f"{asked}: --private, but {name} exists and is public; change it on its page, or name another")
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    return name


def upload(
    folder: Path, name: str, revision: str | None, message: str, besides: dict[str, Path], overwrite_card: bool = False
) -> list[str]:
    """One commit with the files of a folder and some besides, by their names there; what was done, in lines. Raises
    what the Hub's client raises."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    files: dict[str, Any] = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    files |= besides
    said = []
    if card.NAME in files:
        ours = card.for_repository(files[card.NAME].read_text(encoding="utf-8"), name)
        theirs = _card_there(api, name, revision)
        if theirs is None or not card.is_edited(theirs) or card.is_edited(ours) or overwrite_card:
            files[card.NAME] = ours.encode()
        else:
            del files[card.NAME]
            said.append("the model card there was edited, and stays (push ... --overwrite-card replaces it)")
    operations = [CommitOperationAdd(path, files[path]) for path in sorted(files)]
    commit = api.create_commit(name, operations, commit_message=message, revision=revision)
    if REPORT in besides:
        said.append(f"{REPORT} is there too; it shows rows of the data (push ... --no-report leaves it out)")
    return [*said, f"{api.endpoint}/{name}, branch {revision or 'main'}, commit {commit.oid[:10]}"]


def _card_there(api: Any, name: str, revision: str | None) -> str | None:
    """The text of the model card in a repository; None if it has none."""
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory() as place:
        try:
            file = api.hf_hub_download(name, card.NAME, revision=revision, local_dir=place)
        except EntryNotFoundError:
            return None
        return Path(file).read_text(encoding="utf-8")


def in_words(error: BaseException) -> str:
    """What the Hub's client said, for a person, and without the token."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    while type(error) is RuntimeError and error.__cause__ is not None:  # of one file: it says nothing of the reason
        error = error.__cause__
    text = " ".join(str(error).split())[:300].rstrip(".")  # its causes say less: an HTTP status, and a link
    if not isinstance(error, HfHubHTTPError):
        return without_token(f"{constants.ENDPOINT}: {type(error).__name__}: {text}")
    answer = error.server_message or text
    meaning = {
        401: "the token (HF_TOKEN, else that of `hf auth login`) is not accepted",
        403: "the token may not write there: it needs the right to write, and the namespace must be yours",
    }.get(error.response.status_code, "the Hub refused it")
    return without_token(f"{meaning} ({error.response.status_code}: {' '.join(answer.split())[:300]})")


def without_token(text: str) -> str:
    """With stars in the place of the token in use, and of what looks like one."""
    from huggingface_hub import get_token

    token = get_token()
    return re.sub(r"hf_\w{6,}", "hf_***", text.replace(token, "***") if token else text)


class InBackground:
    """A function that runs in a thread of its own. The process does not wait for it when it ends."""

    def __init__(self, function: Callable[[], Any]):
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self.thread.start()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self.result = function()
        except BaseException as error:  # given to whoever waits
            self.error = error

    def wait(self, seconds: float) -> bool:
        """Whether it is done, within so many seconds."""
        self.thread.join(seconds)
        return not self.thread.is_alive()


class Pushes:
    """The pushes of a training: at its saves, if so asked, and at its end. On the main process alone.

    A push at a save goes on beside the training: the weights of the step are exported at once, and the upload is left
    to a thread. One is under way at a time; a save that comes meanwhile is not pushed, and the next one after it is. At
    its end, a training waits for the last push. What fails is said, and stops no training.
    """

    def __init__(self, config: "Config"):
        """Make sure that pushing will be possible. Raises UserError, before anything is read or trained."""
        from huggingface_hub.utils import disable_progress_bars

        self.config, self.run_dir = config, Path(config.run_dir)
        assert config.push_to_hub is not None
        disable_progress_bars()  # they would break into the one of the training
        asked = f"--push-to-hub {config.push_to_hub!r}"
        self.name = prepare(asked, config.push_to_hub, config.push_private, config.push_revision)
        self.folder = self.run_dir / "pushed"  # what a push at a save uploads
        self.running: InBackground | None = None

    def saved(self, state: Any, task: Any, export: Callable[[Path], None]) -> None:
        """Push the weights of a save: `export` writes them into a folder, as model/ will hold the best ones."""
        if self.config.push_every != "save" or (self.running is not None and not self.running.wait(0)):
            return
        self._say_failure()
        try:
            export(self.folder)
            scores = {"validation": state.scores} if state.scores else {}
            text = card.card(self.run_dir, self.config, task, scores, step=state.step)
            (self.folder / card.NAME).write_text(text, encoding="utf-8")
        except Exception as error:  # training is worth more than this push
            logger.error("step %d is not pushed: %s", state.step, without_token(root_cause(error)))
            return
        shown = "".join(f", {name} {value:.4f}" for name, value in (state.scores or {}).items())
        message = f"step {state.step}{shown}"
        self.running = InBackground(lambda: upload(self.folder, self.name, self.config.push_revision, message, {}))

    def _say_failure(self) -> None:
        if self.running is not None and self.running.error is not None:
            logger.error("the push of a save failed: %s; the next one is tried", in_words(self.running.error))
        self.running = None

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Push model/ of the finished run, and say where it is. `stopped`: whether a signal asks to leave it."""
        again = command(self.run_dir, self.name, self.config.push_private, self.config.push_revision)
        while self.running is not None and not self.running.wait(0.2):
            if stopped():
                break
        else:
            self._say_failure()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.running = InBackground(
                lambda: push(self.run_dir, self.name, self.config.push_private, self.config.push_revision)
            )
            while not self.running.wait(0.2) and not stopped():
                pass
        if not self.running.wait(0):
            logger.error("the push was left: the run is finished and whole, and this pushes it: %s", again)
        elif self.running.error is not None:
            logger.error("the push failed: %s", without_token(root_cause_or_text(self.running.error)))
            logger.error("the run is finished and whole, and this pushes it: %s", again)
        else:
            for line in self.running.result:
                logger.info("pushed      %s", line)


def root_cause_or_text(error: BaseException) -> str:
    """The text of a UserError, which is for a person; of others, their innermost cause."""
    return str(error) if isinstance(error, UserError) else root_cause(error)
