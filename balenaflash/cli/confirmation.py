"""The question before something is erased or changed."""

import sys
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import printable
from balenaflash.errors import Problem, TargetRefusedError

if TYPE_CHECKING:
    from balenaflash.target.discovery import Disk


def confirm_erasing(disk: "Disk", *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees that all of ``disk`` is lost.

    A disk that cannot be unplugged is named by typing its name; the default is always No.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    _confirm(disk, f"Erase all of {disk.node}?", "erase all of it", "erasing", yes=yes)


def confirm_changing(disk: "Disk", *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees that files on ``disk`` change; as for erasing."""
    question = f"Change the boot partition of {disk.node}?"
    _confirm(disk, question, "change its boot partition", "changing", yes=yes)


def confirm(question: str, subject: str, *, yes: bool) -> None:
    """Return when the user, or ``--yes``, agrees; ``subject`` is what was not confirmed if not.

    Raises:
        TargetRefusedError: the answer was no, or nobody is there to give one.
    """
    if yes:
        return
    _require_somebody(subject)
    if not click.confirm(printable(question), default=False, err=True):
        raise _not_confirmed(subject)


def _confirm(disk: "Disk", question: str, deed: str, doing: str, *, yes: bool) -> None:
    subject = f"{disk.node}: {doing} it"
    if yes or disk.is_external or disk.is_virtual:
        confirm(question, subject, yes=yes)
        return
    _require_somebody(subject)
    typed = click.prompt(
        printable(f"{disk.node} is built in. Type its name ({disk.node.name}) to {deed}"),
        default="",
        show_default=False,
        err=True,
    )
    if printable(typed).strip() not in {disk.node.name, str(disk.node)}:
        raise _not_confirmed(subject)


def _require_somebody(subject: str) -> None:
    """Return if there is a terminal to ask at."""
    if not sys.stdin.isatty():
        raise TargetRefusedError(
            [
                Problem(
                    "not-confirmed",
                    f"{subject} was not confirmed, and nobody is there to ask",
                    "Add --yes to answer the question beforehand.",
                    lifted_by="--yes",
                )
            ]
        )


def _not_confirmed(subject: str) -> TargetRefusedError:
    return TargetRefusedError([Problem("not-confirmed", f"{subject} was not confirmed")])
