"""Options that several commands share: about the image, the disk, and the edits of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from balenaflash.cli.arguments import OUT
from balenaflash.cli.output import Answer
from balenaflash.cli.session import Session
from balenaflash.targets.safety import NO_PERMISSIONS, Permissions
from balenaflash.units import parse_size

if TYPE_CHECKING:
    _SizeType = click.ParamType[int]
else:
    _SizeType = click.ParamType  # generic since click 8.4

P = ParamSpec("P")


def _store_edit_option(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it so
    options, name = context.ensure_object(Session).edit, parameter.name or ""
    setattr(options, name, getattr(options, name) or value)


def _store_old_overwrite(
    context: click.Context,
    _parameter: click.Parameter,
    value: bool,  # noqa: FBT001 - click calls it so
) -> None:
    context.ensure_object(Session).edit.overwrite |= value


YES_HELP = "Skip the confirmation prompt. No safety check is skipped."
ALLOW_INTERNAL_HELP = "Allow writing to a disk that is built in, virtual, or possibly the system's."
UNMOUNT_HELP = "Unmount the disk's filesystems first."
NO_REPAIR_HELP = "Refuse a damaged boot partition even if it can be repaired without loss."
_DRY_RUN_HELP = "Show what would be done, without writing anything."


no_repair_option = click.option(
    "--no-repair",
    is_flag=True,
    expose_value=False,
    callback=_store_edit_option,
    help=NO_REPAIR_HELP,
)
"""Stored in the session."""

dry_run_option = click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help=_DRY_RUN_HELP,
)


def _store_output(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    context.ensure_object(Session).edit.output = value


_output_option = click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=OUT,
    expose_value=False,
    callback=_store_output,
    help="Write the edited image, raw, to the new file OUT; IMAGE is not changed.",
)

_EDIT_OPTIONS = (
    ("-n", "--dry-run", _DRY_RUN_HELP),
    ("--show-secrets", "With --dry-run: show keys and passwords unmasked."),
    ("--keep-fingerprint", "Do not update balenaos.fingerprint, which then no longer matches."),
    ("--no-repair", NO_REPAIR_HELP),
    ("-y", "--yes", YES_HELP),
    ("--allow-internal", ALLOW_INTERNAL_HELP),
    ("--unmount", UNMOUNT_HELP),
    ("--overwrite", "Replace OUT if it exists."),
)


def edit_options(command: Callable[P, Answer]) -> Callable[P, Answer]:
    """Options of every command that edits the boot partition; stored in the session."""
    for *names, text in reversed(_EDIT_OPTIONS):
        option = click.option(
            *names, is_flag=True, expose_value=False, callback=_store_edit_option, help=text
        )
        command = option(command)
    # Name of the option in earlier versions.
    command = click.option(
        "--overwrite-output",
        is_flag=True,
        hidden=True,
        expose_value=False,
        callback=_store_old_overwrite,
    )(command)
    return _output_option(command)


def _store_member(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.ensure_object(Session).member = value


member_option = click.option(
    "--member",
    metavar="NAME",
    expose_value=False,
    callback=_store_member,
    help="The image to use from a zip file that holds several.",
)
"""Stored in the session."""


@dataclass(slots=True)
class DiskOptions:
    """Options about disks; filled in while click parses."""

    yes: bool = False
    allow_internal: bool = False
    unmount: bool = False
    max_size: int | None = None
    """In bytes; ``None`` if the option was not given."""

    fix_gpt: bool = False
    eject: bool = False

    @property
    def permissions(self) -> Permissions:
        """The refusals that the options lift."""
        limit = NO_PERMISSIONS.max_size if self.max_size is None else self.max_size
        return Permissions(internal=self.allow_internal, unmount=self.unmount, max_size=limit)


class SizeType(_SizeType):
    """A size such as 1T, 500GB or a number of bytes."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Size in bytes; wrong usage if ``value`` is not a size."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _store(context: click.Context, parameter: click.Parameter, value: bool | int | None) -> None:  # noqa: FBT001 - click calls it so
    options = context.meta.setdefault(__name__, DiskOptions())
    setattr(options, parameter.name or "", value)


def current_disk_options() -> DiskOptions:
    """The options of the command that is being run."""
    options: DiskOptions = click.get_current_context().meta.setdefault(__name__, DiskOptions())
    return options


_FLAGS = (
    ("-y", "--yes", YES_HELP),
    ("--allow-internal", ALLOW_INTERNAL_HELP),
    ("--unmount", UNMOUNT_HELP),
    (
        "--fix-gpt",
        "On a disk larger than IMAGE, move the backup GPT to the end of the disk.",
    ),
    ("--eject", "Power the disk off after a successful write."),
)


def disk_options(command: Callable[P, Answer]) -> Callable[P, Answer]:
    """Options of a command that writes whole disks; `current_disk_options` gives them."""
    command = click.option(
        "--max-size",
        type=SizeType(),
        metavar="SIZE",
        expose_value=False,
        callback=_store,
        help="Allow a disk of up to SIZE, such as 1T, 500GB or a number of bytes. [default: 256G]",
    )(command)
    for *names, text in reversed(_FLAGS):
        option = click.option(*names, is_flag=True, expose_value=False, callback=_store, help=text)
        command = option(command)
    return command
