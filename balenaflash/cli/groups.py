"""Groups of commands: modules that load with their command, suggestions for mistyped names."""

from collections.abc import Mapping
from importlib import import_module
from typing import IO, Any

import click
from click.shell_completion import CompletionItem

from balenaflash.errors import closest


class MissingCommandError(click.UsageError):
    """A group was called without a command: its help is the answer, the status is 2.

    click 8.2 does the same; 8.1 ends in 0.
    """

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the help of the group to standard error."""
        help_text = self.message if self.ctx is None else self.ctx.get_help()
        click.echo(help_text, file=file, err=True)


class Group(click.Group):
    """A group of commands that suggests one for a mistyped name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            raise MissingCommandError("Missing command.", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            near = closest(name, self.list_commands(ctx))
            if near is not None:
                ctx.fail(f"No such command {name!r}. Did you mean {near!r}?")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group whose commands are attributes of their name in modules of their name, in ``cli``.

    A module is loaded when its command runs; ``summaries`` has the line that the help of the group
    and a shell's completion show for each, so that both are there in a tenth of a second.
    """

    def __init__(self, *args: Any, summaries: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._summaries})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in self._summaries:
            module = import_module(f"balenaflash.cli.{cmd_name}")
            self.add_command(getattr(module, cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        limit = formatter.width - 6 - max(map(len, names))
        rows = [(name, self._stub(name).get_short_help_str(limit)) for name in names]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        own = [
            CompletionItem(name, help=self._stub(name).get_short_help_str())
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return [*own, *click.Command.shell_complete(self, ctx, incomplete)]

    def _stub(self, name: str) -> click.Command:
        """The command of that name, loaded or in its place one with the same summary."""
        return self.commands.get(name) or click.Command(name, help=self._summaries[name])
