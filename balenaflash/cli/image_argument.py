"""The IMAGE argument of commands that read an image from anywhere."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from balenaflash.cli.invocation import as_called
from balenaflash.errors import ImageError

if TYPE_CHECKING:
    from balenaflash.source.location import ImageLocation

    _ParamType = click.ParamType["ImageLocation"]
else:
    _ParamType = click.ParamType  # generic since click 8.4


class ImageArgument(_ParamType):
    """A path, ``-`` for standard input, or an ``http(s)://`` address.

    `click.Path` does not do: a `pathlib.Path` makes one slash of the two in an address.
    """

    name = "image"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> "ImageLocation":
        """Where the image is; nothing is opened. A value that is a location already stays."""
        from balenaflash.cli.confirmation import take_standard_input
        from balenaflash.source.location import StandardInput, parse_location

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
    """Return if ``text``, of which there is no file, was not meant for a disk.

    Raises:
        ImageError: it was; with the right spelling.
    """
    from balenaflash.targets.names import find_spelling

    spelling = find_spelling(text)
    if spelling is None:
        return
    node = spelling if spelling.startswith("/dev/") else "its node; see balenaflash devices"
    raise ImageError(
        f"{text}: cannot be opened: {os.strerror(errno.ENOENT)}",
        code="image-unreadable",
        hint=f"Here a disk is named by {node}",
    )
