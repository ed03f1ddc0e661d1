"""The TARGET argument of commands that write or compare a disk or a file."""

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from balenaflash.target.naming import TargetName

    _ParamType = click.ParamType["TargetName"]
else:
    _ParamType = click.ParamType  # generic only in the newest click


class TargetArgument(_ParamType):
    """A path, or ``serial:``, ``port:`` or ``slot:`` and what names a disk in that way."""

    name = "target"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002 - click's interface
        ctx: click.Context | None,  # noqa: ARG002 - click's interface
    ) -> "TargetName":
        """What the text names; it is not looked for. A value that is a name already stays."""
        from balenaflash.target.naming import parse_target

        if not isinstance(value, str):
            return value  # type: ignore[return-value]  # click hands on what it got from here
        return parse_target(value)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's interface
        param: click.Parameter,  # noqa: ARG002 - click's interface
        incomplete: str,
    ) -> list[CompletionItem]:
        """The names of disks that begin so, and files for the shell to complete."""
        from balenaflash.errors import BalenaflashError
        from balenaflash.target.naming import list_names

        try:
            names = list_names()
        except BalenaflashError:
            names = {}  # nothing is to be told in the middle of a command line
        found = [
            CompletionItem(name, help=about)
            for name, about in names.items()
            if incomplete and name.startswith(incomplete)
        ]
        return found or [CompletionItem(incomplete, type="file")]


TARGET = TargetArgument()
"""The type to give to ``click.argument("target", ...)``."""
