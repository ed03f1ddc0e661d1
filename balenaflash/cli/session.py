"""What all commands share: one run of the command line, common options, groups of commands."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from balenaflash.cli.output import Answer
from balenaflash.errors import ConfigError, EditError, SeveralProblemsError, closest


class WrongUsageError(SeveralProblemsError):
    """Wrong usage that click does not detect. Nothing was touched."""

    exit_status = 2


@contextmanager
def words_of_command_line() -> Iterator[None]:
    """Report an `EditError` or `ConfigError` of the block as wrong usage, with its codes.

    Raises:
        WrongUsageError: in place of that error.
    """
    try:
        yield
    except (ConfigError, EditError) as error:
        raise WrongUsageError(error.problems) from error


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

    A module is loaded when its command runs. ``summaries`` has the line that the help of the group
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
F = TypeVar("F", bound=Callable[..., object])


class ProgressStyle(StrEnum):
    """The way progress is shown."""

    AUTO = "auto"
    BAR = "bar"
    JSON = "json"
    NONE = "none"


@dataclass(slots=True)
class Session:
    """One run of the command line, and the options that commands share; click fills them in."""

    command: str = ""
    json: bool = False
    quiet: bool = False
    progress: str = ProgressStyle.AUTO
    member: str | None = None
    """Name of the image in a zip file that holds several."""

    dry_run: bool = False
    show_secrets: bool = False
    """With ``dry_run``: do not mask secrets."""

    keep_fingerprint: bool = False
    no_repair: bool = False
    """Refuse a damaged boot partition even if it can be repaired without loss."""

    output: Path | None = None
    """The new file for the edited image; ``None`` to edit IMAGE in place."""

    overwrite: bool = False
    """Replace an existing file."""

    yes: bool = False
    """Skip the confirmation prompt."""

    allow_internal: bool = False
    unmount: bool = False
    max_size: int | None = None
    """In bytes; ``None`` if the option was not given."""

    fix_gpt: bool = False
    eject: bool = False
    signal: int | None = None
    """Number of the signal that interrupted the run, if one did."""


def _store(context: click.Context, parameter: click.Parameter, value: object) -> None:
    # A flag that a command lacks may have been given to its group.
    if value is not False:
        setattr(context.ensure_object(Session), parameter.name or "", value)


def shared_option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option that is stored in the field of its name of the `Session`."""
    return click.option(*names, expose_value=False, callback=_store, **attributes)


def with_options(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Give a command ``options``, which its help shows in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_OPTIONS = (
    shared_option("--json", is_flag=True, help="Print one JSON object instead of text."),
    shared_option("-q", "--quiet", is_flag=True, help="Print only the result and errors."),
)

progress_option = shared_option(
    "--progress",
    type=click.Choice([style.value for style in ProgressStyle]),
    default=ProgressStyle.AUTO.value,
    show_default=True,
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

    return with_options(_OPTIONS)(wrapped)
