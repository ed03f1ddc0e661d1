"""``udev``: let people write removable disks without root."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from balenaflash.cli.asking import confirm
from balenaflash.cli.options import dry_run_option, yes_option
from balenaflash.cli.output import Answer, say
from balenaflash.cli.session import Group, Session, with_session
from balenaflash.commands.udev import (
    Scope,
    Task,
    carry_out,
    find_packaged,
    find_problems,
    find_scope,
    installation,
    read_files,
    removal,
)
from balenaflash.errors import ConfigError, TargetRefusedError
from balenaflash.targets.disk_names import read_slots


@click.group(cls=Group)
def udev() -> None:
    """Let people write removable disks without root, by rules for udev.

    The rules give access to USB disks and SD cards to the group balenaflash and to the user logged
    in at the machine. USB ports named by `devices name` get links such as /dev/balenaflash/left,
    and the desktop does not mount disks in them.

    \b
    Examples:
      balenaflash udev install --dry-run
      sudo balenaflash udev install
      balenaflash udev check
    """


_root_option = click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("/"),
    help="Work below DIR, for who makes a package: only the files, no group, no reload.",
)


_NAME_A_PORT = "Name one: balenaflash devices name PORT NAME"


@udev.command("install")
@click.option(
    "--slots-only", is_flag=True, help="Give access only to disks in the ports named as slots."
)
@_root_option
@yes_option
@dry_run_option
@with_session
def install(session: Session, *, slots_only: bool, root: Path) -> Answer:
    """Install or update the rules; shows first what it will do.

    Refused if the running system is on a USB disk or an SD card, which the rules would make
    writable too. With --slots-only only the ports named by `devices name` become writable.

    \b
    Examples:
      balenaflash udev install --dry-run
      sudo balenaflash udev install --yes
      sudo balenaflash udev install --slots-only
    """
    slots = read_slots()
    if slots_only and not slots:
        raise ConfigError("no USB port is named", code="slots-none", hint=_NAME_A_PORT)
    actions = installation(root, slots, Scope.SLOTS if slots_only else Scope.ALL)
    return _do(session, actions, "All is installed.")


@udev.command("uninstall")
@_root_option
@yes_option
@dry_run_option
@with_session
def uninstall(session: Session, *, root: Path) -> Answer:
    """Remove the rules that `install` made. The group stays.

    \b
    Examples:
      sudo balenaflash udev uninstall
    """
    answer = _do(session, removal(root), "Nothing is installed.")
    warnings = [f"{path}: stays; remove the package it is of." for path in find_packaged(root)]
    return replace(answer, warnings=warnings)


@udev.command("check")
@with_session
def check(_session: Session) -> Answer:
    """Check that the rules are installed and up to date, and apply to this user.

    The exit status is 0 if nothing is missing, and 4 otherwise.

    \b
    Examples:
      balenaflash udev check
    """
    slots = read_slots()
    problems = list(find_problems(slots))
    if problems:
        raise TargetRefusedError(problems)
    root = Path("/")
    files = read_files(root, slots, find_scope(root))
    paths = [str(each.path) for each in files if each.content is not None]
    return Answer({"files": paths}, [f"{path}: installed and current" for path in paths])


def _do(session: Session, actions: Sequence[Task], nothing: str) -> Answer:
    """Show what is to be done, ask, and do it."""
    result = {"actions": [each.words for each in actions], "dry_run": session.dry_run}
    if not actions:
        return Answer(result, [nothing])
    if session.dry_run:
        return Answer(result, [f"Would {each.words}" for each in actions])
    if not session.quiet:
        for each in actions:
            say(f"Will {each.words}")
    confirm("Go on?", "this", yes=session.yes)
    for each in actions:
        carry_out(each)
    return Answer(result, ["Done."])
