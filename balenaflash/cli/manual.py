"""``manual``: the man page, made from the commands themselves."""

import inspect
from collections.abc import Iterator

import click

import balenaflash
from balenaflash.cli.output import Answer
from balenaflash.cli.session import Session, with_session

_ENVIRONMENT = (
    ("NO_COLOR", "Where set and not empty, no colour is used."),
    (
        "XDG_STATE_HOME",
        "Where undo records of disks are kept; by root only if nobody else may write there.",
    ),
    ("BALENAFLASH_SLOTS", "The file that keeps names of USB ports, in place of those below."),
    ("SOURCE_DATE_EPOCH", "Seconds since 1970; the time given to files put into an image."),
)
_FILES = (
    (
        ".IMAGE.balenaflash-undo",
        "Beside an image while it is edited: the sectors as they were, for the next opening.",
    ),
    (
        "/var/lib/balenaflash, ~/.local/state/balenaflash",
        "The same for disks: of root, and of other users. XDG_STATE_HOME names another place.",
    ),
    (
        "/etc/balenaflash/slots.toml, ~/.config/balenaflash/slots.toml",
        "Names of USB ports, of the machine and of the user; XDG_CONFIG_HOME moves the latter.",
    ),
    ("/etc/udev/rules.d/60-balenaflash.rules", "Lets a group write removable disks."),
)


@click.command()
@with_session
def manual(_session: Session) -> Answer:
    """Print the manual page, balenaflash(1).

    \b
    Examples:
      balenaflash manual | man --local-file -
    """
    context = click.get_current_context().find_root()
    assert isinstance(context.command, click.Group)  # noqa: S101 - the root is main.app
    page = manual_page(context.command)
    return Answer({"page": page}, lines=page.splitlines())


def manual_page(app: click.Group) -> str:
    """The whole page in man(7) macros, from the help of every command of ``app``."""
    return "\n".join(_page(app)) + "\n"


def _page(app: click.Group) -> Iterator[str]:
    yield f'.TH BALENAFLASH 1 "" "balenaflash {balenaflash.__version__}" "User Commands"'
    yield ".SH NAME"
    yield r"balenaflash \- inspect, edit, write and verify balenaOS images"
    yield ".SH SYNOPSIS"
    yield ".B balenaflash"
    yield r".I COMMAND \fR[\fIOPTIONS\fR] [\fIARGUMENTS\fR]"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(app)
    yield ".SH COMMANDS"
    for path, command in _commands(app, ()):
        yield from _command(path, command)
    yield ".SH EXIT STATUS"
    yield from _literal((app.epilog or "").replace("\b", "").strip().splitlines())
    for title, entries in (("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        yield f".SH {title}"
        for name, text in entries:
            yield from (".TP", f".B {_escape(name)}", _escape(text))


def _commands(
    group: click.Group, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None  # noqa: S101 - it was listed just now
        if isinstance(command, click.Group) and command.invoke_without_command:
            yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _command(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    arguments = [
        piece
        for parameter in command.params
        if isinstance(parameter, click.Argument)
        for piece in parameter.get_usage_pieces(context)
    ]
    yield f".SS {_escape(' '.join((*path, *arguments)))}"
    yield from _paragraphs(command)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            names, text = record
            yield from (".TP", f".B {_escape(names)}", _escape(text))


def _paragraphs(command: click.Command) -> Iterator[str]:
    for block in inspect.cleandoc(command.help or "").split("\n\n"):
        yield ".PP"
        if block.startswith("\b"):
            yield from _literal(block.removeprefix("\b").strip("\n").splitlines())
        else:
            yield _escape(" ".join(block.split()))


def _literal(lines: list[str]) -> Iterator[str]:
    """Lines that stay as they are."""
    yield ".nf"
    yield from (_escape(line) for line in lines)
    yield ".fi"


def _escape(text: str) -> str:
    r"""``text`` for man(7): backslash and hyphen escaped, no line taken for a macro."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
