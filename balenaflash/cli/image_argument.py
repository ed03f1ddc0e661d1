"""The IMAGE argument of commands that read an image from anywhere."""

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from balenaflash.errors import ImageError

if TYPE_CHECKING:
    from balenaflash.image.container.location import ImageLocation

    _ParamType = click.ParamType["ImageLocation"]
else:
    _ParamType = click.ParamType  # generic only in the newest click


class ImageArgument(_ParamType):
    """A path, ``-`` for standard input, or an ``http(s)://`` address.

    `click.Path` does not do: a `pathlib.Path` makes one slash of the two in an address.
    """

    name = "image"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> "ImageLocation":
        """Where the image is; nothing is opened. A value that is a location already stays."""
        from balenaflash.image.container.location import parse_location

        if not isinstance(value, str):
            return value  # type: ignore[return-value]  # click hands on what it got from here
        try:
            return parse_location(value)
        except ImageError as error:
            self.fail(f"{error}. {error.hint}", param, ctx)

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
