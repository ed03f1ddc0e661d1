"""Arguments of commands: images, targets, files, paths in the boot partition."""

import errno
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from balenaflash.cli.asking import take_standard_input
from balenaflash.cli.output import as_called, printable
from balenaflash.cli.session import Session
from balenaflash.edits.given_text import given_text
from balenaflash.errors import BalenaflashError, EditError, ImageError
from balenaflash.source.location import ImageLocation, StandardInput, parse_location
from balenaflash.targets.disk_names import (
    NameKind,
    TargetName,
    check_file_name,
    describe_shortly,
    find_spelling,
    list_names,
    parse_target,
)
from balenaflash.targets.disks import list_disks
from balenaflash.targets.safety import assess_all
from balenaflash.units import GIB, MIB, format_size

if TYPE_CHECKING:
    _ImageType = click.ParamType[ImageLocation]
    _TargetType = click.ParamType[TargetName]
else:
    _ImageType = _TargetType = click.ParamType  # generic since click 8.4


STANDARD_INPUT = "-"

_MAX_SIZE = GIB
"""Largest file that is read, in bytes; boot partitions have 40 to 100 MiB."""

_MAX_TEXT_SIZE = MIB
"""Largest text that is read, in bytes; a key, a passphrase or a list has a few KiB."""


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
    """The text in the file at ``name``, without the line end after the last line.

    Raises:
        EditError: it cannot be read, or is not UTF-8.
    """
    text = given_text(read_given(name, limit=_MAX_TEXT_SIZE), name)
    return text.removesuffix("\n").removesuffix("\r")


def require_one_standard_input(names: list[str | None]) -> None:
    """Refuse a command line that reads standard input for several things."""
    if names.count(STANDARD_INPUT) > 1:
        raise click.UsageError("Standard input (-) can be used for one thing only.")


class ImageArgument(_ImageType):
    """A path, ``-`` for standard input, or an ``http(s)://`` address.

    `click.Path` does not fit: a `pathlib.Path` turns the two slashes of an address into one.
    """

    name = "image"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> ImageLocation:
        """The location of the image, which is not opened. A location is returned as it is."""
        if not isinstance(value, str):
            return value  # type: ignore[return-value]  # click hands on what it got from here
        try:
            location = parse_location(value)
        except ImageError as error:
            self.fail(f"{error}. {as_called(error.hint or '')}", param, ctx)
        if isinstance(location, StandardInput):
            take_standard_input()
        if isinstance(location, Path) and not os.path.lexists(location):
            _check_spelling(value)
        return location

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  # click's interface
        param: click.Parameter,  # noqa: ARG002  # click's interface
        incomplete: str,
    ) -> list[CompletionItem]:
        """Let the shell complete the names of files."""
        return [CompletionItem(incomplete, type="file")]


IMAGE = ImageArgument()
"""The type to give to ``click.argument("image", ...)``."""


def _check_spelling(text: str) -> None:
    """Check that ``text``, which names no file, is not a misspelt name of a disk.

    Raises:
        ImageError: it is one; the hint has the right spelling.
    """
    spelling = find_spelling(text)
    if spelling is None:
        return
    node = spelling if spelling.startswith("/dev/") else "its node; see balenaflash devices"
    raise ImageError(
        f"{text}: cannot be opened: {os.strerror(errno.ENOENT)}",
        code="image-unreadable",
        hint=f"Here a disk is named by {node}",
    )


_INERT = re.compile(r"(/dev/)?[\w.:-]+", re.ASCII)
"""Words without meaning to a shell: a USB device can present a command as its serial number."""


class TargetArgument(_TargetType):
    """A path, or ``serial:``, ``port:`` or ``slot:`` and what names a disk in that way."""

    name = "target"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002 - click's interface
        ctx: click.Context | None,
    ) -> TargetName:
        """The name in the text; the target is not looked up. A name is returned as it is.

        Raises:
            TargetRefusedError: the text names a file, but looks like the name of a disk.
        """
        if not isinstance(value, str):
            return value  # type: ignore[return-value]  # click hands on what it got from here
        target = parse_target(value)
        if isinstance(target, Path):
            _check_file_name(value, ctx)
        return target

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's interface
        param: click.Parameter,  # noqa: ARG002 - click's interface
        incomplete: str,
    ) -> list[CompletionItem]:
        """Nodes and names of disks that begin with ``incomplete``, otherwise files."""
        found = [
            CompletionItem(name, help=printable(about))
            for name, about in _list_targets(with_names=bool(incomplete)).items()
            if name.startswith(incomplete) and _INERT.fullmatch(name)
        ]
        if not incomplete:
            found += [CompletionItem(f"{kind}:") for kind in NameKind]
        return found or [CompletionItem(incomplete, type="file")]


def _list_targets(*, with_names: bool) -> dict[str, str]:
    """Nodes and names of disks that may be written, each with a description of the disk."""
    found = {}
    try:
        for item in assess_all(list_disks()):
            # Under sudo the shell completes as the user, who may not open it.
            if {problem.code for problem in item.problems} <= {"target-no-permission"}:
                found[str(item.disk.node)] = describe_shortly(item.disk)
        if with_names:
            found |= list_names()
    except BalenaflashError:
        pass  # an error message would end up in the middle of a command line
    return found


TARGET = TargetArgument()
"""The type to give to ``click.argument("target", ...)``."""


class OutArgument(click.Path):
    """The path of a file to create."""

    def __init__(self) -> None:
        super().__init__(readable=False, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """The path in the text.

        Raises:
            TargetRefusedError: the text looks like the name of a disk.
        """
        if isinstance(value, str):
            _check_file_name(value, ctx)
        return super().convert(value, param, ctx)


OUT = OutArgument()
"""The type to give to ``click.argument("out", ...)``; it gives a `pathlib.Path`."""


def _check_file_name(text: str, context: click.Context | None) -> None:
    if context is not None:
        context.ensure_object(Session).command = context.command_path.partition(" ")[2]
    check_file_name(text)
