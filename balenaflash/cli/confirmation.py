"""The question before a disk is erased or changed."""

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


def _confirm(disk: "Disk", question: str, deed: str, doing: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise TargetRefusedError(
            [
                Problem(
                    "not-confirmed",
                    f"{disk.node}: {doing} it was not confirmed, and nobody is there to ask",
                    "Add --yes to answer the question beforehand.",
                    lifted_by="--yes",
                )
            ]
        )
    if disk.is_external or disk.is_virtual:
        agreed = click.confirm(question, default=False, err=True)
    else:
        typed = click.prompt(
            f"{disk.node} is built in. Type its name ({disk.node.name}) to {deed}",
            default="",
            show_default=False,
            err=True,
        )
        agreed = printable(typed).strip() in {disk.node.name, str(disk.node)}
    if not agreed:
        raise TargetRefusedError(
            [Problem("not-confirmed", f"{disk.node}: {doing} it was not confirmed")]
        )
