"""Write files of a run, a cache or a user: atomically, and never through a link.

A run folder, or a folder that others can write, may hold links to files of the user. Temporary
files therefore have random names and are created exclusively. The core writes its own files by
`ftloop.checkpoint.write_text`, under the lock of the run.
"""

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ftloop.errors import UserError

LEFTOVER_SECONDS = 86_400  # a temporary file that was not written for so long has no process


@contextlib.contextmanager
def replace_file(file: Path) -> Iterator[BinaryIO]:
    """Yield a new binary file that replaces `file` if the block succeeds: atomic and durable.

    If `file` is a link, the link itself is replaced. The temporary file NAME.RANDOM.tmp is deleted
    after an error; one that a killed process left is deleted when NAME is written a day later.
    """
    for leftover in file.parent.glob(f"{glob.escape(file.name)}.{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # of another user, or deleted meanwhile
            if time.time() - leftover.lstat().st_mtime > LEFTOVER_SECONDS:
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
