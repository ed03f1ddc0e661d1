"""The TARGET argument of commands that write or compare a disk or a file, and OUT, a file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from balenaflash.cli.answer import printable

_INERT = re.compile(r"(/dev/)?[\w.:-]+", re.ASCII)
"""Words that a shell takes as they are: a USB device is free to send commands as its serial."""

if TYPE_CHECKING:
    import os

    from balenaflash.targets.names import TargetName

    _ParamType = click.ParamType["TargetName"]
else:
    _ParamType = click.ParamType  # generic since click 8.4


class TargetArgument(_ParamType):
    """A path, or ``serial:``, ``port:`` or ``slot:`` and what names a disk in that way."""

    name = "target"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002 - click's interface
        ctx: click.Context | None,
    ) -> "TargetName":
        """What the text names; it is not looked for. A value that is a name already stays.

        Raises:
            TargetRefusedError: the text names a file, but looks like the name of a disk.
        """
        from balenaflash.targets.names import parse_target

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
        """The nodes and names of disks that begin so, or else files for the shell to complete."""
        found = [
            CompletionItem(name, help=printable(about))
            for name, about in _list_targets(with_names=bool(incomplete)).items()
            if name.startswith(incomplete) and _INERT.fullmatch(name)
        ]
        if not incomplete:
            from balenaflash.targets.names import NameKind

            found += [CompletionItem(f"{kind}:") for kind in NameKind]
        return found or [CompletionItem(incomplete, type="file")]


def _list_targets(*, with_names: bool) -> dict[str, str]:
    """The nodes of disks that may be written, and the names of disks, and which disk each is."""
    from balenaflash.errors import BalenaflashError
    from balenaflash.targets.disks import list_disks
    from balenaflash.targets.names import describe_shortly, list_names
    from balenaflash.targets.safety import assess_all

    found = {}
    try:
        for item in assess_all(list_disks()):
            # Under sudo the shell completes as the user, who may not open it.
            if {problem.code for problem in item.problems} <= {"target-no-permission"}:
                found[str(item.disk.node)] = describe_shortly(item.disk)
        if with_names:
            found |= list_names()
    except BalenaflashError:
        pass  # nothing is to be told in the middle of a command line
    return found


TARGET = TargetArgument()
"""The type to give to ``click.argument("target", ...)``."""


class OutArgument(click.Path):
    """The path of a file that is made."""

    def __init__(self) -> None:
        super().__init__(readable=False, path_type=Path)

    def convert(
        self,
        value: "str | os.PathLike[str]",
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> "str | bytes | os.PathLike[str]":
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
    from balenaflash.cli.session import Session  # which imports this module
    from balenaflash.targets.names import check_file_name

    if context is not None:
        context.ensure_object(Session).command = context.command_path.partition(" ")[2]
    check_file_name(text)
