"""A repository on the Hub: check that it can be written, upload a folder, explain what failed.

The Hub's client reads the token from HF_TOKEN or from `hf auth login`. It is never in a config, a
record or a message: messages about errors pass through `without_token`.
"""

import re
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftloop.errors import UserError, root_cause
from ftloop.hub.card import CARD, card_for_repository, is_edited

ANSWER_TIMEOUT = 60  # seconds for `prepare_repository`; the Hub's client would wait for ever
REPORT = "report.html"


class BackgroundCall:
    """A function call in a thread. The process does not wait for it when it exits."""

    def __init__(self, function: Callable[[], Any]):
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self.thread.start()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self.result = function()
        except BaseException as error:  # the thread that waits looks at it
            self.error = error

    def is_done(self, timeout: float = 0) -> bool:
        """Wait for at most `timeout` seconds and tell whether the call has ended."""
        self.thread.join(timeout)
        return not self.thread.is_alive()


def prepare_repository(repository: str, private: bool, revision: str | None) -> str:
    """Create a repository and a branch if they do not exist, and return the full name.

    Raises UserError if a push would fail: for a name that the Hub refuses, in offline mode, without
    a token or network, with a token that is not accepted or may not write there, and with `private`
    for a repository that is public.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    problem = f"cannot push to {repository!r}"
    try:
        validate_repo_id(repository)
        has_token = get_token() is not None
    except HFValidationError as error:
        raise UserError(without_token(f"{problem}: {error}")) from error
    except Exception as error:  # an expired login, or an OpenID Connect login that the Hub refuses
        raise UserError(without_token(f"{problem}: {root_cause(error)}")) from error
    if constants.is_offline_mode():
        raise UserError(
            f"{problem}: the Hub's client is in offline mode. Unset HF_HUB_OFFLINE and "
            "TRANSFORMERS_OFFLINE."
        )
    if not has_token:
        raise UserError(
            f"{problem}: there is no token. Set HF_TOKEN, or log in once with `hf auth login`."
        )
    call = BackgroundCall(lambda: _create_repository(repository, private, revision))
    if not call.is_done(ANSWER_TIMEOUT):
        raise UserError(
            f"{problem}: {constants.ENDPOINT} did not answer within {ANSWER_TIMEOUT} seconds."
        )
    if isinstance(call.error, UserError):
        raise call.error
    if call.error is not None:
        raise UserError(f"{problem}: {explain(call.error)}.") from call.error
    return call.result


def _create_repository(repository: str, private: bool, revision: str | None) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    name = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
    api.auth_check(name, write=True)  # an existing repository may belong to somebody else
    if private and not api.model_info(name).private:
        raise UserError(
            f"cannot push to {repository!r}: --private is given, but {name} exists and is public. "
            "Make it private on its page, or choose another name."
        )
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    return name


def upload_folder(
    folder: Path,
    repository: str,
    revision: str | None,
    message: str,
    report: Path | None = None,
    overwrite_card: bool = False,
) -> list[str]:
    """Upload the files of a folder, and a report, in one commit. Return lines about what was done.

    A model card that was edited on the Hub is replaced only by one that was edited here too, or
    with `overwrite_card`. Files that the Hub has already are not sent again, and without a change
    there is no commit. Raises the exceptions of the Hub's client.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    lines = []
    files: dict[str, Path | bytes] = {}
    for file in list_ordinary_files(folder):
        files[str(file.relative_to(folder))] = file
    if report is not None:
        files[REPORT] = report
        note = "shows rows of the data and the command with its paths (--no-report leaves it out)"
        lines.append(f"{REPORT} is included and {note}")
    if (folder / CARD).is_file():
        card = card_for_repository((folder / CARD).read_text(encoding="utf-8"), repository)
        card_on_hub = _download_card(api, repository, revision)
        keep_card = card_on_hub is not None and is_edited(card_on_hub) and not is_edited(card)
        if keep_card and not overwrite_card:
            del files[CARD]
            lines.append(
                "the model card on the Hub was edited and is not changed (use --overwrite-card)"
            )
        else:
            files[CARD] = card.encode()
    lines.append(f"files: {', '.join(sorted(files))}")
    operations = [CommitOperationAdd(path, files[path]) for path in sorted(files)]
    commit = api.create_commit(repository, operations, commit_message=message, revision=revision)
    branch = revision or "main"
    return [*lines, f"{api.endpoint}/{repository}, branch {branch}, commit {commit.oid[:10]}"]


def list_ordinary_files(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders, sorted. Raises UserError for others."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():  # rglob does not follow links to folders
            require_ordinary_file(path, folder)
            files.append(path)
    return files


def require_ordinary_file(file: Path, folder: Path) -> None:
    """Raise UserError for a file in a folder that should not be published with a model.

    Links are refused because their content lies elsewhere: a folder from somebody else could
    publish a private file of this machine. A hard link to such a file, which an archive can hold,
    has more than one name. Hidden files, such as those of .git, may hold passwords.
    """
    status = file.lstat()
    if stat.S_ISLNK(status.st_mode):
        problem = "is a symbolic link"
    elif not stat.S_ISREG(status.st_mode):
        problem = "is not an ordinary file"
    elif status.st_nlink > 1:
        problem = "has another name (a hard link)"
    elif any(part.startswith(".") for part in file.relative_to(folder).parts):
        problem = "is hidden"
    else:
        return
    raise UserError(
        f"{str(file)!r} {problem} and is not pushed. Delete it, or replace it by an ordinary copy."
    )


def _download_card(api: Any, repository: str, revision: str | None) -> str | None:
    """Return the text of the model card in a repository; None if it has none."""
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            file = api.hf_hub_download(repository, CARD, revision=revision, local_dir=folder)
        except EntryNotFoundError:
            return None
        return Path(file).read_text(encoding="utf-8")


def explain(error: BaseException) -> str:
    """Explain an exception of the Hub's client in one line, without the token."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, UserError):
        return without_token(str(error))
    # A bare RuntimeError names the file that failed, and its cause names the reason.
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())[:300].rstrip(".")
    if not isinstance(error, HfHubHTTPError):
        return without_token(f"{constants.ENDPOINT}: {type(error).__name__}: {text}")
    answer = " ".join((error.server_message or text).split())[:300]
    status = error.response.status_code
    meanings = {
        401: "the token (HF_TOKEN, else that of `hf auth login`) is not accepted",
        403: "the token may not write there: it needs the right to write to this namespace",
    }
    return without_token(f"{meanings.get(status, 'the Hub refused it')} ({status}: {answer})")


def without_token(text: str) -> str:
    """Replace the token in use, and everything that looks like a token, by stars."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "***")
    return re.sub(r"hf_\w{6,}", "hf_***", text)
