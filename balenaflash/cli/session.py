"""What one run of the command line was asked to be like, and the options that say so."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Concatenate, ParamSpec

import click

from balenaflash.cli.answer import Answer, printable
from balenaflash.cli.target_argument import OUT
from balenaflash.progress import listen

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


def _store_edit_option(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it so
    options, name = context.ensure_object(Session).edit, parameter.name or ""
    setattr(options, name, getattr(options, name) or value)


def _store_old_overwrite(
    context: click.Context,
    _parameter: click.Parameter,
    value: bool,  # noqa: FBT001 - click calls it so
) -> None:
    context.ensure_object(Session).edit.overwrite |= value


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

YES_HELP = "Answer the question beforehand; it lifts no refusal."
ALLOW_INTERNAL_HELP = "Allow a disk that is built in, virtual, or possibly the system's."
UNMOUNT_HELP = "Unmount what is mounted of a disk before it is changed."
NO_REPAIR_HELP = "Refuse a damaged boot partition that could be repaired without a loss."
_DRY_RUN_HELP = "Do everything but the writing, and show what it would be."

progress_option = click.option(
    "--progress",
    type=click.Choice([style.value for style in ProgressStyle]),
    default=ProgressStyle.AUTO.value,
    show_default=True,
    expose_value=False,
    callback=_store_progress,
    help="How to show progress on stderr; auto is a bar on a terminal, else a line now and then.",
)

no_repair_option = click.option(
    "--no-repair",
    is_flag=True,
    expose_value=False,
    callback=_store_edit_option,
    help=NO_REPAIR_HELP,
)
"""Goes into the session, as in `edit_options`."""

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
    help="Write the edited image, raw, to the new file OUT, and leave IMAGE as it is.",
)

_EDIT_OPTIONS = (
    ("-n", "--dry-run", _DRY_RUN_HELP),
    ("--show-secrets", "With --dry-run: do not mask keys and passwords."),
    ("--keep-fingerprint", "Leave balenaos.fingerprint as it is, untrue of what is changed."),
    ("--no-repair", NO_REPAIR_HELP),
    ("-y", "--yes", YES_HELP),
    ("--allow-internal", ALLOW_INTERNAL_HELP),
    ("--unmount", UNMOUNT_HELP),
    ("--overwrite", "Replace OUT where it exists."),
)


def edit_options(command: Callable[P, Answer]) -> Callable[P, Answer]:
    """Options of every command that edits the boot partition; they go into the session."""
    for *names, text in reversed(_EDIT_OPTIONS):
        option = click.option(
            *names, is_flag=True, expose_value=False, callback=_store_edit_option, help=text
        )
        command = option(command)
    # Its name of earlier versions.
    command = click.option(
        "--overwrite-output",
        is_flag=True,
        hidden=True,
        expose_value=False,
        callback=_store_old_overwrite,
    )(command)
    return _output_option(command)


def _show_waiting(session: Session, text: str) -> None:
    from balenaflash.cli.progress_display import show_line

    if not session.quiet:
        show_line(f"balenaflash: {printable(text)}")


def with_session(
    function: Callable[Concatenate[Session, P], Answer],
) -> Callable[P, Answer]:
    """Options every command has, and the session they fill as first argument."""

    @click.pass_context
    @functools.wraps(function)
    def wrapped(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        session = context.ensure_object(Session)
        session.command = context.command_path.partition(" ")[2]
        listen(functools.partial(_show_waiting, session))
        return function(session, *args, **kwargs)

    command: Callable[P, Answer] = wrapped
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
