"""Options about the disk that is written: what lifts a refusal, and what is done at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.session import ALLOW_INTERNAL_HELP, UNMOUNT_HELP, YES_HELP
from balenaflash.units import parse_size

if TYPE_CHECKING:
    from balenaflash.targets.safety import Permissions

    _ParamType = click.ParamType[int]
else:
    _ParamType = click.ParamType  # generic since click 8.4

P = ParamSpec("P")


@dataclass(slots=True)
class DiskOptions:
    """What the user said about disks; filled in while click parses."""

    yes: bool = False
    allow_internal: bool = False
    unmount: bool = False
    max_size: int | None = None
    """Bytes; ``None`` where the option was not given."""

    fix_gpt: bool = False
    eject: bool = False

    @property
    def permissions(self) -> "Permissions":
        """Which refusals are lifted."""
        from balenaflash.targets.safety import NO_PERMISSIONS, Permissions

        limit = NO_PERMISSIONS.max_size if self.max_size is None else self.max_size
        return Permissions(internal=self.allow_internal, unmount=self.unmount, max_size=limit)


class SizeType(_ParamType):
    """A size in bytes, as people write it."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The bytes; wrong usage if ``value`` is no size."""
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
    """What was said on the command line that is being run."""
    options: DiskOptions = click.get_current_context().meta.setdefault(__name__, DiskOptions())
    return options


_FLAGS = (
    ("-y", "--yes", YES_HELP),
    ("--allow-internal", ALLOW_INTERNAL_HELP),
    ("--unmount", UNMOUNT_HELP),
    (
        "--fix-gpt",
        "On a disk larger than IMAGE, move the backup GPT to its end.",
    ),
    ("--eject", "Switch the disk off when all went well, so that it can be unplugged."),
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
