"""Write files of a run, a cache or a user: atomically, and never through a link.

A run folder, or a folder that others can write, may hold links to files of the user. Temporary
files therefore have random names and are created exclusively. The core writes its own files by
`ftloop.checkpoint.write_text`, under the lock of the run.
"""

import contextlib
import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ftloop.errors import UserError

LEFTOVER_SECONDS = 86_400  # a temporary file that was not written for so long has no process


@contextlib.contextmanager
def replace_file(file: Path, is_locked: bool = False) -> Iterator[BinaryIO]:
    """Yield a new binary file that replaces `file` if the block succeeds: atomic and durable.

    If `file` is a link, the link itself is replaced. The temporary file NAME.RANDOM.tmp is deleted
    after an error; one that a killed process left is deleted when NAME is written a day later, or
    the next time if `is_locked`: no other process writes the file then.
    """
    for leftover in file.parent.glob(f"{glob.escape(file.name)}.{'[0-9a-f]' * 16}.tmp"):
        if is_locked or is_leftover(leftover):
            with contextlib.suppress(OSError):  # it may belong to another user
                leftover.unlink()
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.tmp")
    with temporary.open("xb") as stream:  # fails if the name exists, also as a dangling link
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder NAME-RANDOM.tmp in `parent`, which is deleted after the block.

    What is built in it can be renamed. The folder of a killed process is deleted a day later.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{glob.escape(name)}-????????.tmp"):
        if is_leftover(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{name}-", suffix=".tmp") as folder:
        yield Path(folder)


def is_leftover(path: Path) -> bool:
    """Return whether a temporary file or folder is so old that its process must have died."""
    try:
        return time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS
    except OSError:  # deleted meanwhile
        return False


def write_text(file: Path, text: str) -> None:
    """Replace a text file atomically; see `replace_file`."""
    with replace_file(file) as stream:
        stream.write(text.encode())


def refuse_links(folder: Path) -> None:
    """Raise UserError for a symbolic link in a folder of a run: it could lead anywhere.

    The run folder itself may be a link, since a person has named it.
    """
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} cannot be read: {error}.") from error
    for path in paths:
        if path.is_symlink():
            raise UserError(
                f"{str(path)!r} is a symbolic link, and nothing is written through a link in a "
                "run folder: replace it by what it points to."
            )
