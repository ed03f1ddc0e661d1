"""``boot put``, ``boot rm``, ``boot mkdir``, ``boot use-internal``: change the boot partition."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.given_content import read_given
from balenaflash.cli.session import Session, dry_run_option, with_session

if TYPE_CHECKING:
    from balenaflash.editing import Edit


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SRC... [DEST]", nargs=-1, required=True)
@dry_run_option
@with_session
def put(_session: Session, image: Path, sources: tuple[str, ...], *, dry_run: bool) -> Answer:
    """Copy the files and directories SRC into the boot partition of IMAGE.

    With one SRC alone it goes to the root directory. Else the last word is DEST: a directory to
    put them in, or for one SRC its new path. SRC may be - for standard input. Directories are
    copied with all they hold, and files that exist are replaced.

    \b
    Examples:
      balenaflash boot put balena.img config.json
      balenaflash boot put balena.img my-logo.png /splash/balena-logo.png
      balenaflash boot put balena.img home.nmconnection lab.nmconnection /system-connections/
      jq '.hostname = "bench-7"' config.json | balenaflash boot put balena.img - /config.json
    """
    *given, target = sources if len(sources) > 1 else (*sources, "/")
    return answer_edits(image, [_copy_edit(given, target)], dry_run=dry_run)


@click.command("rm")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Remove directories and all they hold.")
@dry_run_option
@with_session
def remove(
    _session: Session, image: Path, paths: tuple[str, ...], *, recursive: bool, dry_run: bool
) -> Answer:
    """Remove the files at PATH from the boot partition of IMAGE.

    \b
    Examples:
      balenaflash boot rm balena.img /system-connections/balena-sample.ignore
      balenaflash boot rm -r --dry-run balena.img /overlays
    """
    from balenaflash.boot.files import Remove

    return answer_edits(image, [Remove(path, recursive) for path in paths], dry_run=dry_run)


@click.command("mkdir")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-p", "--parents", is_flag=True, help="Make those above too; existing ones are fine.")
@dry_run_option
@with_session
def make_directory(
    _session: Session, image: Path, paths: tuple[str, ...], *, parents: bool, dry_run: bool
) -> Answer:
    """Make the directory PATH in the boot partition of IMAGE.

    \b
    Examples:
      balenaflash boot mkdir balena.img /system-proxy
      balenaflash boot mkdir -p balena.img /EFI/Linux/drivers
    """
    from balenaflash.boot.files import MakeDirectory

    return answer_edits(image, [MakeDirectory(path, parents) for path in paths], dry_run=dry_run)


@click.command("use-internal")
@click.argument("image", type=click.Path(path_type=Path))
@dry_run_option
@with_session
def use_internal(_session: Session, image: Path, *, dry_run: bool) -> Answer:
    """Let IMAGE start from internal storage: put grub.cfg_internal in the place of grub.cfg.

    It is what a balenaOS flasher does as it installs: /grub.cfg_internal is copied to
    /EFI/BOOT/grub.cfg, with its signature if there is one. In the boot partition of a flasher
    itself this is refused, for the flasher would not start any more.

    \b
    Examples:
      balenaflash boot use-internal balena.img
      balenaflash boot use-internal --dry-run balena.img
    """
    from balenaflash.boot.bootloader import UseInternal

    return answer_edits(image, [UseInternal()], dry_run=dry_run)


def _copy_edit(sources: Sequence[str], target: str) -> "Edit":
    from balenaflash.boot.copy_in import CopyIn
    from balenaflash.boot.files import PutFile

    if "-" not in sources:
        return CopyIn(tuple(map(Path, sources)), target)
    if len(sources) > 1 or target.endswith("/"):
        raise click.UsageError("With - as SRC, there is one SRC, and DEST is the path of a file.")
    return PutFile(target, read_given("-"))
