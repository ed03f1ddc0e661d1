"""``boot ls``, ``boot cat``, ``boot get``: look at the boot partition."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.given_content import complete_file
from balenaflash.cli.image_argument import IMAGE
from balenaflash.cli.image_options import member_option
from balenaflash.cli.session import Session, with_session
from balenaflash.cli.usage import BOOT_PATH

if TYPE_CHECKING:
    from balenaflash.edits.copies import CopiedFile
    from balenaflash.formats.fat.pyfatfs import FatEntry
    from balenaflash.source.location import ImageLocation


@click.command("ls")
@click.argument("image", type=IMAGE)
@click.argument("path", default="/", type=BOOT_PATH)
@click.option("-l", "--long", is_flag=True, help="Also print sizes in bytes and times.")
@click.option("-R", "--recursive", is_flag=True, help="Also list what directories hold.")
@member_option
@with_session
def list_files(
    session: Session, image: "ImageLocation", path: str, *, long: bool, recursive: bool
) -> Answer:
    """List the files at PATH in the boot partition of IMAGE.

    PATH may be a pattern, in quotes; then what matches is listed, and not what directories hold.

    \b
    Examples:
      balenaflash boot ls balena.img
      balenaflash boot ls -l balena.img '/overlays/*.dtbo'
      balenaflash boot ls -lR balena.img /EFI
      balenaflash boot ls --json balena.img | jq -r '.result.entries[].path'
    """
    from balenaflash.commands.edit import open_boot_volume
    from balenaflash.edits.files import list_files as list_boot_files
    from balenaflash.edits.paths import is_pattern

    with open_boot_volume(image, member=session.member) as boot:
        entries = tuple(list_boot_files(boot.files, path, recursive=recursive))
        whole_path = recursive or is_pattern(boot.files, path)
        warnings = boot.warnings
    result = {
        "image": str(image),
        "path": path,
        "entries": [_entry_result(entry) for entry in entries],
    }
    names = [_shown_name(entry, whole_path=whole_path) for entry in entries]
    lines = _long_lines(entries, names) if long else names
    return Answer(result, lines, warnings)


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("path", type=BOOT_PATH)
@member_option
@with_session
def cat(session: Session, image: "ImageLocation", path: str) -> Answer:
    """Print the file at PATH in the boot partition of IMAGE, byte for byte.

    PATH may be a pattern, in quotes; then all files that match are printed, by name.

    \b
    Examples:
      balenaflash boot cat balena.img config.json | jq .deviceType
      balenaflash boot cat balena.img /EFI/BOOT/grub.cfg
    """
    from balenaflash.commands.edit import open_boot_volume
    from balenaflash.edits.files import read_files

    with open_boot_volume(image, member=session.member) as boot:
        files = read_files(boot.files, path)
        warnings = boot.warnings
    content = b"".join(files.values())
    encoding, text = _as_text(content)
    result = {
        "image": str(image),
        "path": path,
        "matches": list(files),
        "size": len(content),
        "encoding": encoding,
        "content": text,
    }
    return Answer(result, warnings=warnings, content=content)


@click.command("get")
@click.argument("image", type=IMAGE)
@click.argument("path", type=BOOT_PATH)
@click.argument("out", default=".", shell_complete=complete_file)
@click.option("-f", "--overwrite", is_flag=True, help="Replace files where they exist.")
@click.option("--force", is_flag=True, hidden=True)  # the name of earlier versions
@member_option
@with_session
def take(
    session: Session, image: "ImageLocation", path: str, out: str, *, overwrite: bool, force: bool
) -> Answer:
    """Copy the file or directory at PATH in the boot partition of IMAGE to OUT.

    OUT is the new name, or a directory to put it in; without it, the current one. A directory is
    copied with all it holds. PATH may be a pattern, in quotes.

    \b
    Examples:
      balenaflash boot get balena.img config.json
      balenaflash boot get balena.img /EFI/BOOT/grub.cfg old-grub.cfg
      balenaflash boot get --overwrite balena.img / boot-files/
      balenaflash boot get balena.img '/system-connections/*' networks/
    """
    from balenaflash.commands.edit import open_boot_volume
    from balenaflash.edits.copies import copy_out

    with open_boot_volume(image, member=session.member) as boot:
        copies = copy_out(boot.files, path, out, overwrite=overwrite or force)
        warnings = boot.warnings
    result = {
        "image": str(image),
        "path": path,
        "files": [_copy_result(copy) for copy in copies],
    }
    lines = [
        f"copied {copy.path} to {copy.target} ({copy.size} bytes)"
        for copy in copies
        if not copy.is_directory
    ]
    return Answer(result, lines, warnings)


def _entry_result(entry: "FatEntry") -> dict[str, object]:
    return {
        "path": entry.path,
        "name": entry.name,
        "type": "directory" if entry.is_directory else "file",
        "size": entry.size,
        "modified": entry.modified.isoformat() if entry.modified else None,
    }


def _copy_result(copy: "CopiedFile") -> dict[str, object]:
    return {
        "path": copy.path,
        "target": str(copy.target),
        "type": "directory" if copy.is_directory else "file",
        "size": copy.size,
    }


def _shown_name(entry: "FatEntry", *, whole_path: bool) -> str:
    name = entry.path if whole_path else entry.name
    return f"{name}/" if entry.is_directory else name


def _long_lines(entries: Sequence["FatEntry"], names: Sequence[str]) -> list[str]:
    width = max((len(str(entry.size)) for entry in entries), default=0)
    return [
        f"{entry.size:>{width}}  {entry.modified or 'unknown'!s:<19}  {name}"
        for entry, name in zip(entries, names, strict=True)
    ]


def _as_text(content: bytes) -> tuple[str, str]:
    """How ``content`` is told in JSON, and so told."""
    try:
        return "utf-8", content.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(content).decode()
