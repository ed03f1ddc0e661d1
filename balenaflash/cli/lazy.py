"""A group of commands whose modules are loaded when one of them is asked for.

``--help`` of the whole has to be there in a tenth of a second.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import IO, Any

import click

from balenaflash.errors import closest


class MissingCommandError(click.UsageError):
    """A group was called without a command: its help is the answer, the status is 2.

    click 8.2 does the same; 8.1 ends in 0.
    """

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the help of the group to standard error."""
        help_text = self.message if self.ctx is None else self.ctx.get_help()
        click.echo(help_text, file=file, err=True)


class LazyGroup(click.Group):
    """A group of commands named by ``module:attribute``, the module below ``balenaflash.cli``."""

    def __init__(self, *args: Any, places: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._places = places

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with status 2 where there is no command."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            raise MissingCommandError("Missing command.", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; of a name that is mistyped the right one is told."""
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            near = closest(name, self.list_commands(ctx))
            if near is not None:
                ctx.fail(f"No such command {name!r}. Did you mean {near!r}?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, loaded or not."""
        return sorted({*super().list_commands(ctx), *self._places})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, loaded."""
        if cmd_name not in self.commands and cmd_name in self._places:
            module, _, attribute = self._places[cmd_name].partition(":")
            command = getattr(import_module(f"balenaflash.cli.{module}"), attribute)
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)


def lazy_group(places: Mapping[str, str]) -> Callable[[Callable[[], None]], LazyGroup]:
    """Make a function a group of the commands at ``places`` (name to ``module:attribute``)."""

    def decorate(function: Callable[[], None]) -> LazyGroup:
        group: LazyGroup = click.group(cls=LazyGroup, places=places)(function)
        return group

    return decorate
