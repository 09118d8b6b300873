"""The encodings of text files: which one a file has, and signs that it was read in a wrong one."""

import codecs
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftloop.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# UTF-32 comes first, because its little-endian mark begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
EXAMINED_BYTES = 10_000_000  # of a file that cannot be decoded

# Control characters other than tab and line breaks, and the replacement character. 0x80 to 0x9f are
# printable characters in cp1252, such as the euro sign, but control characters in latin-1.
CONTROL_CHARACTERS = r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x{9f}\x{fffd}]"  # for pyarrow


def open_decompressed(name: str) -> Any:
    """Open a file or URL to read bytes. It is decompressed as its extension says."""
    import fsspec

    return fsspec.open(name, "rb", compression="infer")


def detect_encoding(content: bytes) -> str | None:
    """Return the encoding that the first bytes of a file show; None if none is found."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return encoding
    if content.count(0) > len(content) / 4:  # of ASCII in UTF-16, every second byte is zero
        return "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
    for encoding in ("utf-8", "cp1252"):
        try:
            codecs.getincrementaldecoder(encoding)().decode(content)  # may end within a character
            return encoding
        except UnicodeDecodeError:
            continue
    return None


def refuse_wide_characters(split: str, names: list[str]) -> None:
    """Raise UserError for a local file in UTF-16 or UTF-32, which may be read without an error."""
    for name in names:
        if "://" in name:
            continue
        try:
            with open_decompressed(name) as stream:
                beginning = stream.read(1000)
        except Exception:  # reading the whole file raises the same error, which is then reported
            continue
        if (detect_encoding(beginning) or "").startswith(("utf-16", "utf-32")):
            raise UserError(f"--data: cannot read the {split} file. {advise_encoding([name])}")


def advise_encoding(names: list[str]) -> str:
    """Return a sentence with the option that reads the first of these files that is not UTF-8."""
    for name in names:
        try:
            with open_decompressed(name) as stream:
                encoding = detect_encoding(stream.read(EXAMINED_BYTES))
        except Exception:  # of the file system, the network or the decompression
            continue
        if encoding not in ("utf-8", None):
            return (
                f"The bytes of {name!r} are not UTF-8 but fit {encoding}: add --data.options "
                f"encoding={encoding}."
            )
    return "Another encoding is set by --data.options encoding=NAME; cp1252 does not fit."


def require_utf8(rows: "Dataset") -> None:
    """Raise UnicodeDecodeError for texts that are not UTF-8, which pyarrow's JSON reader accepts.

    This takes a second per gigabyte.
    """
    import pyarrow

    for column in rows.data.columns:
        for chunk in column.chunks:
            try:
                chunk.validate(full=True)
            except pyarrow.ArrowInvalid as error:
                raise UnicodeDecodeError("utf-8", b"", 0, 1, str(error)) from None


# The byte-order mark, zero-width characters and marks of the direction of writing, for a regex.
INVISIBLE = "\ufeff\u200b-\u200f\u2060\u00ad\u202a-\u202e\u2066-\u2069"


def normalize_name(name: str) -> str:
    """Return a name in the Unicode form NFC, without spaces and invisible characters around it.

    Names of files from a Mac are in the form NFD: an accent is a character of its own there.
    """
    if name.isascii():
        return name.strip()
    return _strip_characters(unicodedata.normalize("NFC", name), rf"\s{INVISIBLE}")


def normalize_column(name: str) -> str:
    """Return the name of a column in the form NFC, without invisible characters around it."""
    if name.isascii():
        return name
    return _strip_characters(unicodedata.normalize("NFC", name), INVISIBLE)


def find_spelling(path: Path) -> Path:
    """Return a path in the Unicode forms that its names have on disk, or as it is if there is none.

    What is typed and what is written in tables is usually in NFC, names of files from a Mac in NFD.
    """
    if str(path).isascii() or path.exists():
        return path
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if not (found / part).exists():
            names = os.listdir(found) if found.is_dir() else []
            same = [name for name in names if normalize_column(name) == normalize_column(part)]
            if len(same) != 1:
                return path
            (part,) = same
        found /= part
    return found


def _strip_characters(text: str, characters: str) -> str:
    return re.sub(f"^[{characters}]+|[{characters}]+$", "", text)
