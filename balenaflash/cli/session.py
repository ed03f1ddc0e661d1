"""What one run of the command line was asked to be like, and the options that say so."""

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
    """How long work shows how far it is."""

    AUTO = "auto"
    BAR = "bar"
    JSON = "json"
    NONE = "none"


@dataclass(slots=True)
class EditOptions:
    """How a command that edits the boot partition is to do it."""

    dry_run: bool = False
    show_secrets: bool = False
    """Whether ``--dry-run`` masks no secret."""

    keep_fingerprint: bool = False
    yes: bool = False
    """Answer the question that is asked before a card is changed."""

    allow_internal: bool = False
    unmount: bool = False
    output: Path | None = None
    """Where the edited image goes, while IMAGE stays as it is; ``None``: into IMAGE."""

    overwrite: bool = False
    """Replace what is there already."""

    no_repair: bool = False
    """Refuse a damaged boot partition also where it could be repaired without a loss."""


@dataclass(slots=True)
class Session:
    """Filled in while click parses; read by whatever shows something."""

    command: str = ""
    json: bool = False
    quiet: bool = False
    progress: ProgressStyle = ProgressStyle.AUTO
    member: str | None = None
    """Which image is meant, where IMAGE holds several."""

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
    help="How to show progress on stderr; auto is a bar on a terminal, else a line now and then.",
)


def with_session(
    function: Callable[Concatenate[Session, P], Answer],
) -> Callable[P, Answer]:
    """Options every command has, and the session they fill as first argument."""

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
