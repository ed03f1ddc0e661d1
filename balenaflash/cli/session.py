"""Options that every command has, and what they say about this run."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Concatenate, ParamSpec

import click

from balenaflash.cli.output import Answer

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
