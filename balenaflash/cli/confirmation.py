"""The question before something is erased or changed."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from balenaflash.cli.answer import printable
from balenaflash.errors import TargetRefusedError, refusal

if TYPE_CHECKING:
    from balenaflash.targets.disks import Disk

_TAKEN = f"{__name__}: standard input is taken"


def take_standard_input() -> None:
    """Note that the command reads its standard input: a question is then asked at /dev/tty."""
    if (context := click.get_current_context(silent=True)) is not None:
        context.meta[_TAKEN] = True


def confirm_erasing(disks: "Sequence[Disk]", *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees that all of ``disks`` is lost.

    Those that can be unplugged are one question. One that cannot is named by typing its name;
    the default is always No.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    plain = [disk for disk in disks if _is_plain(disk)]
    if plain:
        names = _listed([str(disk.node) for disk in plain])
        what = "it" if len(plain) == 1 else "them"
        confirm(f"Erase all of {names}?", f"{names}: erasing {what}", yes=yes)
    for disk in disks:
        if disk not in plain and not yes:
            _confirm_by_name(disk, "erase all of it", f"{disk.node}: erasing it")


def confirm_changing(disk: "Disk", *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees that files on ``disk`` change; as for erasing."""
    subject = f"{disk.node}: changing it"
    if yes or _is_plain(disk):
        confirm(f"Change the boot partition of {disk.node}?", subject, yes=yes)
    else:
        _confirm_by_name(disk, "change its boot partition", subject)


def confirm(question: str, subject: str, *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees; ``subject`` is what was not confirmed if not.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    if not yes and _ask(f"{question} [y/N]: ", subject).casefold() not in {"y", "yes"}:
        raise _not_confirmed(subject)


def _confirm_by_name(disk: "Disk", deed: str, subject: str) -> None:
    question = f"{disk.node} is built in. Type its name ({disk.node.name}) to {deed}: "
    if _ask(question, subject) not in {disk.node.name, str(disk.node)}:
        raise _not_confirmed(subject)


def _is_plain(disk: "Disk") -> bool:
    """Whether yes is enough of an answer."""
    return disk.is_external or disk.is_virtual


def _ask(question: str, subject: str) -> str:
    """What the user types, without blanks around it; empty at the end of the input too."""
    with _terminal(subject) as (reading, writing):
        click.echo(printable(question), nl=False, file=writing)
        try:
            answer = reading.readline()
        except (OSError, UnicodeDecodeError):
            answer = ""  # EIO: the terminal has gone
        if not answer.endswith("\n"):
            click.echo(file=writing)
        return printable(answer.strip())


@contextmanager
def _terminal(subject: str) -> Iterator[tuple[TextIO, TextIO]]:
    """Where to read the answer and where to ask.

    Raises:
        TargetRefusedError: there is no terminal to ask at.
    """
    if sys.stdin.isatty():
        yield sys.stdin, sys.stderr
        return
    context = click.get_current_context(silent=True)
    if context is None or _TAKEN not in context.meta:
        raise _nobody_there(subject)
    with ExitStack() as opened:
        try:
            # Two, for Python opens a terminal for both only where it can seek.
            streams = [
                opened.enter_context(open(os.ctermid(), mode, encoding="utf-8"))  # noqa: PTH123
                for mode in ("r", "w")
            ]
        except OSError as error:  # ENXIO: the process has no terminal
            raise _nobody_there(subject) from error
        yield streams[0], streams[1]


def _nobody_there(subject: str) -> TargetRefusedError:
    return refusal(
        "not-confirmed",
        f"{subject} was not confirmed, and nobody is there to ask",
        "Add --yes to answer the question beforehand.",
        lifted_by="--yes",
    )


def _not_confirmed(subject: str) -> TargetRefusedError:
    return refusal("not-confirmed", f"{subject} was not confirmed")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
