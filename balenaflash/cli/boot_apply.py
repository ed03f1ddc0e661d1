"""``boot apply``: files of a Yocto deploy directory, as the image build puts them there."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.edit_answer import answer_edits
from balenaflash.cli.given_content import complete_file, read_given_text
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.session import Session, edit_options, with_session
from balenaflash.cli.usage import words_of_command_line

if TYPE_CHECKING:
    from balenaflash.edits.file_list import FileListEntry
    from balenaflash.source.location import ImageLocation


@click.command()
@click.argument("image", type=IMAGE)
@click.option(
    "--files",
    metavar="LIST",
    required=True,
    shell_complete=complete_file,
    help="The list, a file that holds it, or - for standard input.",
)
@click.option(
    "--deploy-dir",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, readable=False, path_type=Path),
    required=True,
    help="What relative sources are relative to, such as tmp/deploy/images/MACHINE.",
)
@edit_options
@with_session
def apply(session: Session, image: "ImageLocation", *, files: str, deploy_dir: Path) -> Answer:
    """Put the files of LIST from the directory DIR into the boot partition of IMAGE.

    LIST is the value of the Yocto variable BALENA_BOOT_PARTITION_FILES: SOURCE:DESTINATION
    entries separated by white space. DESTINATION is absolute; left out, it is /SOURCE; ending
    in a slash, it is a directory. Of a SOURCE that is a directory the files directly in it are
    copied. SOURCE.sig, where there is one, goes beside the file it signs. Lines of LIST that
    begin with # are comments.

    \b
    Examples:
      balenaflash boot apply balena.img --deploy-dir deploy --files "grub.cfg:/EFI/BOOT/grub.cfg"
      balenaflash boot apply balena.img --deploy-dir deploy --files boot-files.txt --dry-run
      bitbake-getvar -r balena-image --value BALENA_BOOT_PARTITION_FILES |
        balenaflash boot apply balena.img --deploy-dir deploy --files -
    """
    from balenaflash.edits.file_list import ApplyFileList

    return answer_edits(session, image, [ApplyFileList(_entries(files), deploy_dir)])


def _entries(files: str) -> "tuple[FileListEntry, ...]":
    from balenaflash.edits.file_list import parse, read_list

    if files == "-":
        return parse(read_given_text("-"))
    if ":" in files and not os.path.exists(files):  # noqa: PTH110 - a list may be longer than a path
        with words_of_command_line():
            return parse(files)
    return read_list(files)
