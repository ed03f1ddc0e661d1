"""Files and texts that a user gives: size limits, UTF-8, no byte order mark."""

import codecs
from pathlib import Path

from balenaflash.errors import EditError
from balenaflash.units import MIB, format_size

BYTE_ORDER_MARK = "\ufeff"
"""The character that some editors write before a text; Windows PowerShell 5 does."""

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""The first bytes of UTF-16 and UTF-32; little-endian UTF-32 begins like UTF-16."""

_MAX_TEXT_SIZE = MIB  # bytes; a key, a passphrase or a list has a few KiB


def without_mark(text: str) -> str:
    """``text`` without a leading byte order mark."""
    return text.removeprefix(BYTE_ORDER_MARK)


def unreadable(name: object, error: OSError | ValueError) -> EditError:
    """The error for the local file ``name`` that cannot be read.

    A `ValueError` is Python's answer to a path with a NUL character.
    """
    reason = error.strerror if isinstance(error, OSError) else "no file can have such a name"
    return EditError(f"{name}: cannot be read: {reason}", code="source-unreadable")


def read_content(path: Path, *, limit: int) -> bytes:
    """The content of the file at ``path``, up to ``limit`` bytes.

    Raises:
        EditError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if len(content) > limit:
        raise EditError(f"{path}: has more than {format_size(limit)}", code="source-too-large")
    return content


def read_text(path: Path) -> str:
    """The text in the file at ``path``, without the last line end.

    Raises:
        EditError: it cannot be read, or is not UTF-8.
    """
    text = given_text(read_content(path, limit=_MAX_TEXT_SIZE), str(path))
    return text.removesuffix("\n").removesuffix("\r")


def given_bytes(data: bytes, name: str, *, code: str = "source-encoding") -> bytes:
    """The bytes of a text file without its byte order mark; ``name`` is its name in messages.

    Raises:
        EditError: it is UTF-16 or UTF-32.
    """
    if data.startswith(_WIDE_MARKS) or _is_wide(data):
        raise EditError(
            f"{name}: is UTF-16 text, not UTF-8",
            code=code,
            hint="Save it as UTF-8; in Windows PowerShell with: | Out-File -Encoding utf8 FILE",
        )
    return data.removeprefix(codecs.BOM_UTF8)


def given_text(data: bytes, name: str, *, code: str = "source-encoding") -> str:
    """The text in ``data``; ``name`` is its name in messages.

    Raises:
        EditError: it is not UTF-8.
    """
    content = given_bytes(data, name, code=code)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = len(data) - len(content) + error.start
        raise EditError(
            f"{name}: is not UTF-8 text, at byte {at}", code=code, hint="Save it as UTF-8."
        ) from error


def _is_wide(data: bytes) -> bool:
    """True for UTF-16 without a mark: every second byte of its first characters is zero."""
    start = data[:16]
    return len(data) % 2 == 0 and any(start[0::2]) != any(start[1::2])
