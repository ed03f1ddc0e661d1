"""``boot put, rm, mv, mkdir, use-internal``: change the boot partition."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.given_content import complete_file, read_given
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.session import Session, edit_options, with_session
from balenaflash.cli.usage import BOOT_PATH, words_of_command_line

if TYPE_CHECKING:
    from balenaflash.edits.change import Edit
    from balenaflash.source.location import ImageLocation


@click.command()
@click.argument("image", type=IMAGE)
@click.argument(
    "sources", metavar="SRC... [DEST]", nargs=-1, required=True, shell_complete=complete_file
)
@edit_options
@with_session
def put(session: Session, image: "ImageLocation", sources: tuple[str, ...]) -> Answer:
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
    return answer_edits(session, image, [_copy_edit(given, target)])


@click.command("rm")
@click.argument("image", type=IMAGE)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=BOOT_PATH)
@click.option("-r", "--recursive", is_flag=True, help="Remove directories and all they hold.")
@edit_options
@with_session
def remove(
    session: Session, image: "ImageLocation", paths: tuple[str, ...], *, recursive: bool
) -> Answer:
    """Remove the files at PATH from the boot partition of IMAGE.

    PATH may be a pattern, in quotes.

    \b
    Examples:
      balenaflash boot rm balena.img /system-connections/balena-sample.ignore
      balenaflash boot rm -r --dry-run balena.img /overlays
      balenaflash boot rm balena.img '/overlays/*.dtbo' '/**/*.sig'
    """
    from balenaflash.edits.files import Remove

    return answer_edits(session, image, [Remove(path, recursive) for path in paths])


@click.command("mv")
@click.argument("image", type=IMAGE)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=BOOT_PATH)
@click.argument("target", metavar="DEST", type=BOOT_PATH)
@edit_options
@with_session
def move(session: Session, image: "ImageLocation", sources: tuple[str, ...], target: str) -> Answer:
    """Move or rename files and directories in the boot partition of IMAGE.

    DEST is a directory to move them into or, for one SRC, its new path. A file that has that path
    is replaced, a directory only if it is empty. SRC may be a pattern, in quotes.

    \b
    Examples:
      balenaflash boot mv balena.img /grub.cfg_internal /grub.cfg_old
      balenaflash boot mv --dry-run balena.img '/overlays/w1-*.dtbo' /unused/
    """
    from balenaflash.edits.files import Move

    return answer_edits(session, image, [Move(sources, target)])


@click.command("mkdir")
@click.argument("image", type=IMAGE)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=BOOT_PATH)
@click.option("-p", "--parents", is_flag=True, help="Make those above too; existing ones are fine.")
@edit_options
@with_session
def make_directory(
    session: Session, image: "ImageLocation", paths: tuple[str, ...], *, parents: bool
) -> Answer:
    """Make the directory PATH in the boot partition of IMAGE.

    \b
    Examples:
      balenaflash boot mkdir balena.img /system-proxy
      balenaflash boot mkdir -p balena.img /EFI/Linux/drivers
    """
    from balenaflash.edits.files import MakeDirectory

    return answer_edits(session, image, [MakeDirectory(path, parents) for path in paths])


@click.command("use-internal")
@click.argument("image", type=IMAGE)
@click.option(
    "--from", "source", metavar="FILE", type=BOOT_PATH, help="The settings to use, in the image."
)
@click.option(
    "--to", "target", metavar="PATH", type=BOOT_PATH, help="Where the board reads its settings."
)
@click.option("--keep-old", is_flag=True, help="Keep what is replaced as PATH.old.")
@edit_options
@with_session
def use_internal(
    session: Session,
    image: "ImageLocation",
    *,
    source: str | None,
    target: str | None,
    keep_old: bool,
) -> Answer:
    """Let IMAGE start from internal storage, with its own settings for that.

    It is what a balenaOS flasher does as it installs: /grub.cfg_internal is copied to
    /EFI/BOOT/grub.cfg, and to /grub/grub.cfg if there is one; on a BeagleBone it is
    /uEnv.txt_internal to /uEnv.txt. A signature beside the settings goes with them. In the boot
    partition of a flasher itself this is refused, for the flasher would not start any more.

    \b
    Examples:
      balenaflash boot use-internal balena.img
      balenaflash boot use-internal --dry-run --keep-old balena.img
      balenaflash boot use-internal --from /grub.cfg_lab --to /EFI/BOOT/grub.cfg balena.img
    """
    from balenaflash.edits.bootloader import UseInternal

    return answer_edits(session, image, [UseInternal(source, target, keep_old)])


def _copy_edit(sources: Sequence[str], target: str) -> "Edit":
    from balenaflash.edits.copies import CopyIn
    from balenaflash.edits.files import PutFile
    from balenaflash.edits.paths import volume_path

    with words_of_command_line():
        volume_path(target)
    if "-" not in sources:
        return CopyIn(tuple(map(Path, sources)), target)
    if len(sources) > 1 or target.endswith("/"):
        raise click.UsageError("With - as SRC, there is one SRC, and DEST is the path of a file.")
    return PutFile(target, read_given("-"))
