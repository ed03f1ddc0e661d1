"""A group of commands whose modules are loaded when one of them is asked for.

``--help`` of the whole has to be there in a tenth of a second.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """A group of commands named by ``module:attribute``, the module below ``balenaflash.cli``."""

    def __init__(self, *args: Any, places: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._places = places

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
