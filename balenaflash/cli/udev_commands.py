"""``udev install``, ``check`` and ``uninstall``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.confirmation import confirm
from balenaflash.cli.session import YES_HELP, Session, dry_run_option, with_session
from balenaflash.errors import TargetRefusedError

if TYPE_CHECKING:
    from balenaflash.udev_setup import Action

_root_option = click.option(
    "--root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("/"),
    help="Work below DIR, for who makes a package: only the files, no group, no reload.",
)
_yes_option = click.option("-y", "--yes", is_flag=True, help=YES_HELP)


@click.command()
@_root_option
@_yes_option
@dry_run_option
@with_session
def install(session: Session, *, root: Path, yes: bool, dry_run: bool) -> Answer:
    """Install the rules, or bring them up to date; shows first what it will do.

    \b
    Examples:
      balenaflash udev install --dry-run
      sudo balenaflash udev install --yes
    """
    from balenaflash.target.slots import read_slots
    from balenaflash.udev_setup import installation

    actions = installation(root, read_slots())
    return _do(session, actions, "All is installed.", yes=yes, dry_run=dry_run)


@click.command()
@_root_option
@_yes_option
@dry_run_option
@with_session
def uninstall(session: Session, *, root: Path, yes: bool, dry_run: bool) -> Answer:
    """Remove the rules that `install` made. The group stays.

    \b
    Examples:
      sudo balenaflash udev uninstall
    """
    from balenaflash.udev_setup import removal

    return _do(session, removal(root), "Nothing is installed.", yes=yes, dry_run=dry_run)


@click.command()
@with_session
def check(_session: Session) -> Answer:
    """Tell whether the rules are installed and up to date, and whether this user profits.

    The exit status is 0 where nothing is missing, and 4 otherwise.

    \b
    Examples:
      balenaflash udev check
    """
    from balenaflash.target.slots import read_slots
    from balenaflash.udev_setup import find_problems, rules_files

    slots = read_slots()
    problems = list(find_problems(slots))
    if problems:
        raise TargetRefusedError(problems)
    paths = [str(each.path) for each in rules_files(Path("/"), slots) if each.content is not None]
    return Answer({"files": paths}, [f"{path}: installed and current" for path in paths])


def _do(
    session: Session, actions: "Sequence[Action]", nothing: str, *, yes: bool, dry_run: bool
) -> Answer:
    """Show what is to be done, ask, and do it."""
    from balenaflash.udev_setup import carry_out

    result = {"actions": [each.words for each in actions], "dry_run": dry_run}
    if not actions:
        return Answer(result, [nothing])
    if dry_run:
        return Answer(result, [f"Would {each.words}" for each in actions])
    _tell(session, (f"Will {each.words}" for each in actions))
    confirm("Go on?", "this", yes=yes)
    for each in actions:
        carry_out(each)
    return Answer(result, ["Done."])


def _tell(session: Session, lines: Iterable[str]) -> None:
    if not session.quiet:
        for line in lines:
            click.echo(line, err=True)
