"""``boot``: the files of the boot partition."""

import base64
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balenaflash.cli.arguments import (
    IMAGE,
    complete_file,
    read_given,
    read_given_text,
)
from balenaflash.cli.changes import answer_edits
from balenaflash.cli.options import edit_options, member_option
from balenaflash.cli.output import Answer
from balenaflash.cli.session import Group, Session, with_session, words_of_command_line
from balenaflash.commands.edit import open_image
from balenaflash.edits.bootloader import UseInternal
from balenaflash.edits.copies import CopyIn, copy_out
from balenaflash.edits.file_list import ApplyFileList, FileListEntry, parse, read_list
from balenaflash.edits.files import (
    MakeDirectory,
    Move,
    PutFile,
    Remove,
    RepairVolume,
    is_pattern,
    read_files,
    volume_path,
)
from balenaflash.edits.files import list_files as list_boot_files
from balenaflash.edits.splash import SetSplash
from balenaflash.errors import ImageError, Problem, SeveralProblemsError
from balenaflash.formats.fat.fsck import Fault, Gravity
from balenaflash.formats.fat.volume import FatEntry
from balenaflash.source.location import ImageLocation

if TYPE_CHECKING:
    _PathType = click.ParamType[str]
else:
    _PathType = click.ParamType  # generic since click 8.4


class BootPath(_PathType):
    """A path in the boot partition, or a pattern of some."""

    name = "path"

    def convert(
        self,
        value: str,
        param: click.Parameter | None,  # noqa: ARG002 - click's interface
        ctx: click.Context | None,  # noqa: ARG002 - click's interface
    ) -> str:
        """``value`` as it is.

        Raises:
            WrongUsageError: no image can hold such a path.
        """
        with words_of_command_line():
            volume_path(value)
        return value


BOOT_PATH = BootPath()
"""The type to give to ``click.argument("path", ...)``."""


@click.group(cls=Group)
def boot() -> None:
    """Look at and change the boot partition of an image.

    A PATH is a path in the boot partition, with or without a leading slash. In a pattern * and ?
    match within a name and ** matches any number of directories, in upper or lower case; quote
    it. IMAGE may also be a block device, such as a flashed card. An edit is made completely or not
    at all, even if the power fails.

    \b
    Examples:
      balenaflash boot ls -l balena.img
      balenaflash boot put balena.img config.json
      balenaflash boot use-internal balena.img
    """


@boot.command("ls")
@click.argument("image", type=IMAGE)
@click.argument("path", default="/", type=BOOT_PATH)
@click.option("-l", "--long", is_flag=True, help="Also print sizes in bytes and times.")
@click.option("-R", "--recursive", is_flag=True, help="Also list what directories hold.")
@member_option
@with_session
def list_files(
    session: Session, image: ImageLocation, path: str, *, long: bool, recursive: bool
) -> Answer:
    """List the files at PATH in the boot partition of IMAGE.

    PATH may be a quoted pattern; then the matches are listed, without the content of directories.

    \b
    Examples:
      balenaflash boot ls balena.img
      balenaflash boot ls -l balena.img '/overlays/*.dtbo'
      balenaflash boot ls -lR balena.img /EFI
      balenaflash boot ls --json balena.img | jq -r '.result.entries[].path'
    """
    with open_image(image, member=session.member) as opened:
        entries = tuple(list_boot_files(opened.files, path, recursive=recursive))
        whole_path = recursive or is_pattern(opened.files, path)
        warnings = opened.warnings
    result = {
        "image": str(image),
        "path": path,
        "entries": [
            {
                "path": entry.path,
                "name": entry.name,
                "type": "directory" if entry.is_directory else "file",
                "size": entry.size,
                "modified": entry.modified.isoformat() if entry.modified else None,
            }
            for entry in entries
        ],
    }
    names = [_shown_name(entry, whole_path=whole_path) for entry in entries]
    lines = _long_lines(entries, names) if long else names
    return Answer(result, lines, warnings)


@boot.command("cat")
@click.argument("image", type=IMAGE)
@click.argument("path", type=BOOT_PATH)
@member_option
@with_session
def cat(session: Session, image: ImageLocation, path: str) -> Answer:
    """Print the file at PATH in the boot partition of IMAGE, byte for byte.

    PATH may be a quoted pattern; then all files that match are printed, sorted by name.

    \b
    Examples:
      balenaflash boot cat balena.img config.json | jq .deviceType
      balenaflash boot cat balena.img /EFI/BOOT/grub.cfg
    """
    with open_image(image, member=session.member) as opened:
        files = read_files(opened.files, path)
        warnings = opened.warnings
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


@boot.command("get")
@click.argument("image", type=IMAGE)
@click.argument("path", type=BOOT_PATH)
@click.argument("out", default=".", shell_complete=complete_file)
@click.option("-f", "--overwrite", is_flag=True, help="Replace files where they exist.")
@click.option("--force", is_flag=True, hidden=True)  # the name of earlier versions
@member_option
@with_session
def take(
    session: Session, image: ImageLocation, path: str, out: str, *, overwrite: bool, force: bool
) -> Answer:
    """Copy the file or directory at PATH in the boot partition of IMAGE to OUT.

    OUT is the new name or an existing directory; the default is the current directory. A directory
    is copied with all its content. PATH may be a quoted pattern.

    \b
    Examples:
      balenaflash boot get balena.img config.json
      balenaflash boot get balena.img /EFI/BOOT/grub.cfg old-grub.cfg
      balenaflash boot get --overwrite balena.img / boot-files/
      balenaflash boot get balena.img '/system-connections/*' networks/
    """
    with open_image(image, member=session.member) as opened:
        copies = copy_out(opened.files, path, out, overwrite=overwrite or force)
        warnings = opened.warnings
    result = {
        "image": str(image),
        "path": path,
        "files": [
            {
                "path": copy.path,
                "target": str(copy.target),
                "type": "directory" if copy.is_directory else "file",
                "size": copy.size,
            }
            for copy in copies
        ],
    }
    lines = [
        f"copied {copy.path} to {copy.target} ({copy.size} bytes)"
        for copy in copies
        if not copy.is_directory
    ]
    return Answer(result, lines, warnings)


def _shown_name(entry: FatEntry, *, whole_path: bool) -> str:
    name = entry.path if whole_path else entry.name
    return f"{name}/" if entry.is_directory else name


def _long_lines(entries: Sequence[FatEntry], names: Sequence[str]) -> list[str]:
    width = max((len(str(entry.size)) for entry in entries), default=0)
    return [
        f"{entry.size:>{width}}  {entry.modified or 'unknown'!s:<19}  {name}"
        for entry, name in zip(entries, names, strict=True)
    ]


def _as_text(content: bytes) -> tuple[str, str]:
    """The encoding of ``content`` in JSON, and its text in that encoding."""
    try:
        return "utf-8", content.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(content).decode()


@boot.command("put")
@click.argument("image", type=IMAGE)
@click.argument(
    "sources", metavar="SRC... [DEST]", nargs=-1, required=True, shell_complete=complete_file
)
@edit_options
@with_session
def put(session: Session, image: ImageLocation, sources: tuple[str, ...]) -> Answer:
    """Copy the files and directories SRC into the boot partition of IMAGE.

    A single SRC without DEST goes to the root directory. DEST is a directory or, for one SRC, its
    new path. SRC may be - for standard input. Directories are copied with all their content, and
    existing files are replaced.

    \b
    Examples:
      balenaflash boot put balena.img config.json
      balenaflash boot put balena.img my-logo.png /splash/balena-logo.png
      balenaflash boot put balena.img home.nmconnection lab.nmconnection /system-connections/
      jq '.hostname = "bench-7"' config.json | balenaflash boot put balena.img - /config.json
    """
    *given, target = sources if len(sources) > 1 else (*sources, "/")
    with words_of_command_line():
        volume_path(target)
    if "-" not in given:
        return answer_edits(session, image, [CopyIn(tuple(map(Path, given)), target)])
    if len(given) > 1 or target.endswith("/"):
        raise click.UsageError("With - as SRC, there is one SRC, and DEST is the path of a file.")
    return answer_edits(session, image, [PutFile(target, read_given("-"))])


@boot.command("rm")
@click.argument("image", type=IMAGE)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=BOOT_PATH)
@click.option("-r", "--recursive", is_flag=True, help="Remove directories and all they hold.")
@edit_options
@with_session
def remove(
    session: Session, image: ImageLocation, paths: tuple[str, ...], *, recursive: bool
) -> Answer:
    """Remove the files at PATH from the boot partition of IMAGE.

    PATH may be a quoted pattern.

    \b
    Examples:
      balenaflash boot rm balena.img /system-connections/balena-sample.ignore
      balenaflash boot rm -r --dry-run balena.img /overlays
      balenaflash boot rm balena.img '/overlays/*.dtbo' '/**/*.sig'
    """
    return answer_edits(session, image, [Remove(path, recursive) for path in paths])


@boot.command("mv")
@click.argument("image", type=IMAGE)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=BOOT_PATH)
@click.argument("target", metavar="DEST", type=BOOT_PATH)
@edit_options
@with_session
def move(session: Session, image: ImageLocation, sources: tuple[str, ...], target: str) -> Answer:
    """Move or rename files and directories in the boot partition of IMAGE.

    DEST is a directory to move them into or, for one SRC, its new path. An existing file is
    replaced, an existing directory only if it is empty. SRC may be a quoted pattern.

    \b
    Examples:
      balenaflash boot mv balena.img /grub.cfg_internal /grub.cfg_old
      balenaflash boot mv --dry-run balena.img '/overlays/w1-*.dtbo' /unused/
    """
    return answer_edits(session, image, [Move(sources, target)])


@boot.command("mkdir")
@click.argument("image", type=IMAGE)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=BOOT_PATH)
@click.option("-p", "--parents", is_flag=True, help="Make those above too; existing ones are fine.")
@edit_options
@with_session
def make_directory(
    session: Session, image: ImageLocation, paths: tuple[str, ...], *, parents: bool
) -> Answer:
    """Make the directory PATH in the boot partition of IMAGE.

    \b
    Examples:
      balenaflash boot mkdir balena.img /system-proxy
      balenaflash boot mkdir -p balena.img /EFI/Linux/drivers
    """
    return answer_edits(session, image, [MakeDirectory(path, parents) for path in paths])


@boot.command("use-internal")
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
    image: ImageLocation,
    *,
    source: str | None,
    target: str | None,
    keep_old: bool,
) -> Answer:
    """Make IMAGE boot from internal storage, with its settings for that.

    This is what a balenaOS flasher does when it installs: it copies /grub.cfg_internal to
    /EFI/BOOT/grub.cfg, and to /grub/grub.cfg if that exists; on a BeagleBone it copies
    /uEnv.txt_internal to /uEnv.txt. A signature beside the settings is copied too. It is refused
    in the boot partition of a flasher, which could not start any more.

    \b
    Examples:
      balenaflash boot use-internal balena.img
      balenaflash boot use-internal --dry-run --keep-old balena.img
      balenaflash boot use-internal --from /grub.cfg_lab --to /EFI/BOOT/grub.cfg balena.img
    """
    return answer_edits(session, image, [UseInternal(source, target, keep_old)])


@boot.command("apply")
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
def apply(session: Session, image: ImageLocation, *, files: str, deploy_dir: Path) -> Answer:
    """Put the files of LIST from the directory DIR into the boot partition of IMAGE.

    LIST is the value of the Yocto variable BALENA_BOOT_PARTITION_FILES: SOURCE:DESTINATION
    entries separated by white space. DESTINATION is absolute; the default is /SOURCE; with a
    trailing slash it is a directory. If SOURCE is a directory, the files directly in it are
    copied. SOURCE.sig, if it exists, is copied beside the file it signs. Lines of LIST that begin
    with # are comments.

    \b
    Examples:
      balenaflash boot apply balena.img --deploy-dir deploy --files "grub.cfg:/EFI/BOOT/grub.cfg"
      balenaflash boot apply balena.img --deploy-dir deploy --files boot-files.txt --dry-run
      bitbake-getvar -r balena-image --value BALENA_BOOT_PARTITION_FILES |
        balenaflash boot apply balena.img --deploy-dir deploy --files -
    """
    return answer_edits(session, image, [ApplyFileList(_entries(files), deploy_dir)])


def _entries(files: str) -> tuple[FileListEntry, ...]:
    if files == "-":
        return parse(read_given_text("-"))
    if ":" in files and not os.path.exists(files):  # noqa: PTH110 - a list may be longer than a path
        with words_of_command_line():
            return parse(files)
    return read_list(files)


@boot.command("splash")
@click.argument("image", type=IMAGE)
@click.argument("logo", metavar="LOGO.png", shell_complete=complete_file)
@edit_options
@with_session
def splash(session: Session, image: ImageLocation, logo: str) -> Answer:
    """Show the PNG image LOGO while boards start from IMAGE; - is standard input.

    It is copied to /splash/balena-logo.png, or to /splash/resin-logo.png in older images. A board
    scales it to its screen, on a white background.

    \b
    Examples:
      balenaflash boot splash balena.img logo.png
      rsvg-convert -h 1080 logo.svg | balenaflash boot splash balena.img -
    """
    return answer_edits(session, image, [SetSplash(logo, read_given(logo))])


class DamagedError(SeveralProblemsError, ImageError):
    """The boot partition is damaged; the most serious fault is first. Nothing was written."""


@boot.command("check")
@click.argument("image", type=IMAGE)
@click.option("--repair", is_flag=True, help="Repair what can be repaired without a loss.")
@member_option
@edit_options
@with_session
def check(session: Session, image: ImageLocation, *, repair: bool) -> Answer:
    """Check the filesystem of the boot partition of IMAGE.

    The exit status is 3 if there is a fault. Faults left by a power cut, by a card pulled too early
    or by `balena os configure` can be repaired without loss: every file keeps its content. Every
    edit makes such a repair too. Faults that cannot be repaired, such as two files that share a
    cluster, are only reported.

    \b
    Examples:
      balenaflash boot check balena.img
      balenaflash boot check --json /dev/sdX | jq '.result.faults[]'
      balenaflash boot check --repair --dry-run balena.img
      balenaflash boot check --repair balena.img
      balenaflash boot check --repair balena.img.gz --output repaired.img
    """
    if repair and session.no_repair:
        raise click.UsageError("--repair and --no-repair contradict each other.")
    if repair:
        answer = answer_edits(session, image, [RepairVolume()])
        lines = answer.lines if answer.result["repairs"] else [f"{image}: nothing to repair"]
        return replace(answer, result={**answer.result, "sound": True}, lines=lines)
    if session.output is not None:
        raise click.UsageError("--output needs --repair.")

    with open_image(image, member=session.member) as opened:
        faults = opened.files.faults()
        number = opened.boot.partition.number
        # The faults are the result.
        warnings = [*opened.layout_warnings, *opened.mark_warnings]
    problems = _problems(image, number, faults)
    lines = [
        f"{image}: partition {number}: {fault.message}; an edit does not mind"
        for fault in faults
        if fault.code == "fat-oddity"
    ]
    if not problems:
        lines.append(f"{image}: the filesystem of partition {number} is sound")
    result = {
        "image": str(image),
        "partition": number,
        "sound": not problems,
        "faults": [
            {
                "code": fault.code,
                "message": fault.message,
                "gravity": fault.gravity.value,
                "repairable": bool(fault.repair),
            }
            for fault in faults
        ],
    }
    failures = [DamagedError(problems)] if problems else []
    return Answer(result, lines, warnings, failures=failures)


def _problems(image: ImageLocation, number: int, faults: Sequence[Fault]) -> list[Problem]:
    """The faults that prevent an edit; the last one has the hint."""
    found = [fault for fault in faults if fault.gravity is not Gravity.HARMLESS]
    if any(fault.gravity is Gravity.UNSOUND for fault in found):
        hint = "It cannot be repaired without a loss. Take a fresh image."
    else:
        hint = f"To repair it: balenaflash boot check --repair {shlex.quote(str(image))}"
    return [
        Problem(
            fault.code,
            f"{image}: partition {number}: {fault.message}",
            hint if fault is found[-1] else None,
        )
        for fault in found
    ]
