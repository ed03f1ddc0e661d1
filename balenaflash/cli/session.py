"""What all commands share: one run of the command line, common options, groups of commands."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec

import click
from click.shell_completion import CompletionItem

from balenaflash.cli.output import Answer
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


P = ParamSpec("P")


class ProgressStyle(StrEnum):
    """The way progress is shown."""

    AUTO = "auto"
    BAR = "bar"
    JSON = "json"
    NONE = "none"


@dataclass(slots=True)
class EditOptions:
    """Options of commands that edit the boot partition."""

    dry_run: bool = False
    show_secrets: bool = False
    """With ``--dry-run``: do not mask secrets."""

    keep_fingerprint: bool = False
    yes: bool = False
    """Skip the confirmation prompt before a card is changed."""

    allow_internal: bool = False
    unmount: bool = False
    output: Path | None = None
    """The new file for the edited image; ``None`` to edit IMAGE in place."""

    overwrite: bool = False
    """Replace an existing file."""

    no_repair: bool = False
    """Refuse a damaged boot partition even if it can be repaired without loss."""


@dataclass(slots=True)
class Session:
    """One run of the command line; filled in while click parses."""

    command: str = ""
    json: bool = False
    quiet: bool = False
    progress: ProgressStyle = ProgressStyle.AUTO
    member: str | None = None
    """Name of the image in a zip file that holds several."""

    edit: EditOptions = field(default_factory=EditOptions)
    signal: int | None = None
    """Number of the signal that interrupted the run, if one did."""


def _store_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it so
    context.ensure_object(Session).json |= value


def _store_quiet(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it so
    context.ensure_object(Session).quiet |= value


def _store_progress(context: click.Context, _parameter: click.Parameter, value: str) -> None:
    context.ensure_object(Session).progress = ProgressStyle(value)


_OPTIONS = (
    click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_store_json,
        help="Print one JSON object instead of text.",
    ),
    click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_store_quiet,
        help="Print only the result and errors.",
    ),
)

progress_option = click.option(
    "--progress",
    type=click.Choice([style.value for style in ProgressStyle]),
    default=ProgressStyle.AUTO.value,
    show_default=True,
    expose_value=False,
    callback=_store_progress,
    help="Progress on stderr; auto: a bar on a terminal, otherwise an occasional line.",
)


def with_session(
    function: Callable[Concatenate[Session, P], Answer],
) -> Callable[P, Answer]:
    """Give a command the common options, and the session they fill as first argument."""

    @click.pass_context
    @functools.wraps(function)
    def wrapped(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        session = context.ensure_object(Session)
        session.command = context.command_path.partition(" ")[2]
        return function(session, *args, **kwargs)

    command: Callable[P, Answer] = wrapped
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
