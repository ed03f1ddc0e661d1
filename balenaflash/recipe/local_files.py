"""Local files that a recipe names."""

from pathlib import Path

from balenaflash.boot.given_text import given_text
from balenaflash.errors import EditError
from balenaflash.extent import MIB, format_size

_MAX_SIZE = MIB
"""Bytes of a text; a key, a passphrase or a list has a few KiB."""


def read_content(path: Path, *, limit: int) -> bytes:
    """The content of the file at ``path``, of up to ``limit`` bytes.

    Raises:
        EditError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise EditError(f"{path}: cannot be read: {reason}", code="source-unreadable") from error
    if len(content) > limit:
        raise EditError(f"{path}: has more than {format_size(limit)}", code="source-too-large")
    return content


def read_text(path: Path) -> str:
    """The text in the file at ``path``, without the line end that editors put after the last line.

    Raises:
        EditError: it cannot be read, or is not UTF-8.
    """
    text = given_text(read_content(path, limit=_MAX_SIZE), str(path))
    return text.removesuffix("\n").removesuffix("\r")
