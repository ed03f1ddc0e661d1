"""Content that an option or argument names: a file, or standard input."""

import errno
import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from balenaflash.cli.confirmation import take_standard_input
from balenaflash.errors import EditError
from balenaflash.units import GIB, MIB, format_size

STANDARD_INPUT = "-"

_MAX_SIZE = GIB
"""Bytes taken of a file; boot partitions have 40 to 100 MiB."""

_MAX_TEXT_SIZE = MIB
"""Bytes taken of a text; a key, a passphrase or a list has a few KiB."""


def complete_file(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete the names of files, for an option or argument that names one."""
    return [CompletionItem(incomplete, type="file")]


def read_given(name: str, *, limit: int = _MAX_SIZE) -> bytes:
    """The content of the file at ``name``, or of standard input for ``-``, up to ``limit`` bytes.

    Raises:
        EditError: it cannot be read, or is too large.
    """
    try:
        if name == STANDARD_INPUT:
            take_standard_input()
            content = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(limit + 1)
    except OSError as error:
        fact = f"cannot be read: {error.strerror}"
        if error.errno == errno.EBADF:
            fact = "standard input cannot be read because it is closed"
        raise EditError(f"{name}: {fact}", code="source-unreadable") from error
    if len(content) > limit:
        raise EditError(f"{name}: has more than {format_size(limit)}", code="source-too-large")
    return content


def read_given_text(name: str) -> str:
    """The text in it, without the line end that editors put after the last line.

    Raises:
        EditError: it cannot be read, or is not UTF-8.
    """
    from balenaflash.edits.given_text import given_text

    text = given_text(read_given(name, limit=_MAX_TEXT_SIZE), name)
    return text.removesuffix("\n").removesuffix("\r")


def require_one_standard_input(names: "list[str | None]") -> None:
    """Refuse a command line that reads standard input for several things."""
    if names.count(STANDARD_INPUT) > 1:
        raise click.UsageError("Standard input (-) can be used for one thing only.")
