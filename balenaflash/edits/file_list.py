"""Files of a Yocto deploy directory, put into the boot partition as the image build does it.

The list is the value of ``BALENA_BOOT_PARTITION_FILES``: ``SOURCE:DESTINATION`` entries separated
by white space, processed in order. The rules are those of ``do_resin_boot_dirgen_and_deploy`` in
meta-balena's ``image-balena.bbclass``, with three exceptions. A destination with ``..`` is refused.
The signature of a file that goes into a directory is put beside it; the build names it ``.sig``,
where nothing finds it. A link to a directory stands for the files of that directory; the build
copies none of them.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.edits.copies import CopyIn
from balenaflash.edits.files import (
    FileChange,
    is_directory,
    join,
    make_directories,
    parent_of,
    volume_path,
)
from balenaflash.edits.given_text import given_text, unreadable, without_mark
from balenaflash.errors import EditError
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.units import MIB, format_size

SIGNATURE_SUFFIX = ".sig"
"""Suffix of the signature of a file, in the same directory."""

_ASSIGNMENT = re.compile(r'\s*(?:BALENA|RESIN)_BOOT_PARTITION_FILES\s*=\s*"([^"]*)"\s*')
"""The output of ``bitbake -e``; in a recipe's own lines are variables that only bitbake expands."""

_MAX_LIST = MIB  # bytes; the longest of balena's own boards has 6 KiB

_HOW_TO_GET = "Get it with: bitbake-getvar -r balena-image --value BALENA_BOOT_PARTITION_FILES"


@dataclass(frozen=True, slots=True)
class FileListEntry:
    """One ``SOURCE:DESTINATION`` entry."""

    source: Path
    """Relative to the deploy directory, or absolute."""

    destination: str
    """Absolute in the boot partition, without a slash at its end."""

    into_directory: bool
    """True if ``destination`` is the directory of the file or files."""

    text: str
    """The entry as it was written."""


@dataclass(frozen=True, slots=True)
class ApplyFileList:
    """Put the files of a list into the boot partition."""

    entries: tuple[FileListEntry, ...]
    deploy_dir: Path
    """The directory of relative sources; links in it are followed, wherever they lead."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        # All sources are checked before the first copy: nothing changes if one is missing.
        copies = [copy for entry in self.entries for copy in self._copies(entry)]
        return tuple(change for source, path in copies for change in _copy(volume, source, path))

    def describe(self) -> str:
        count = "1 entry" if len(self.entries) == 1 else f"{len(self.entries)} entries"
        return f"apply a file list of {count} from {self.deploy_dir}"

    def _copies(self, entry: FileListEntry) -> Iterator[tuple[Path, str]]:
        """Each file of ``entry`` and its path in the boot partition, signatures included."""
        source = self.deploy_dir / entry.source
        mode = _mode_of(source, entry)
        if not stat.S_ISDIR(mode):
            path = entry.destination
            path = join(path, source.name) if entry.into_directory else path
            yield from _with_signature(source, path).items()
            return
        if not entry.into_directory:
            raise EditError(
                f"{entry.text}: {source} is a directory, and {entry.destination} would be a file",
                code="file-list-invalid",
                hint=f"End the destination in a slash: {entry.source}:{entry.destination}/",
            )
        found: dict[Path, str] = {}
        for file in _files_in(source):
            found |= _with_signature(file, join(entry.destination, file.name))
        yield from found.items()


def parse(text: str) -> tuple[FileListEntry, ...]:
    """The entries of a list.

    Lines that begin with ``#`` are comments, a backslash at the end of a line is ignored, and the
    list may be the value of an assignment as ``bitbake -e`` prints it.

    Raises:
        EditError: an entry is not valid, or the list is empty.
    """
    lines = (line.strip() for line in without_mark(text).splitlines())
    value = "\n".join(line.removesuffix("\\") for line in lines if not line.startswith("#"))
    if assignment := _ASSIGNMENT.fullmatch(value):
        value = assignment[1]
    entries = tuple(_parse_entry(word) for word in value.split())
    if not entries:
        raise EditError("the file list has no entries", code="file-list-invalid", hint=_HOW_TO_GET)
    return entries


def read_list(given: str) -> tuple[FileListEntry, ...]:
    """The entries of ``given``: the path of a file with a list, or a list itself.

    Raises:
        EditError: the file cannot be read, or the list is not valid.
    """
    try:
        with Path(given).open("rb") as file:
            content = file.read(_MAX_LIST + 1)
    except (OSError, ValueError) as error:
        # A list is not the name of a file: it may be longer than any, or contain a NUL character.
        if ":" in given:
            return parse(given)
        reason = error.strerror if isinstance(error, OSError) else "no file can have such a name"
        raise EditError(
            f"{given!r}: is neither a list nor a file that can be read: {reason}",
            code="file-list-unreadable",
        ) from error
    if len(content) > _MAX_LIST:
        reason = f"is larger than {format_size(_MAX_LIST)}, so it is not a file list"
        raise EditError(f"{given}: {reason}", code="file-list-invalid")
    return parse(given_text(content, given, code="file-list-invalid"))


def _parse_entry(text: str) -> FileListEntry:
    source, colon, destination = text.partition(":")
    if "${" in text:
        raise _invalid(text, "contains a variable, which only bitbake can expand", _HOW_TO_GET)
    if not text.isprintable():
        raise _invalid(text, "contains characters that no path of a boot partition has")
    if not colon or ":" in destination:
        raise _invalid(text, "is not of the form SOURCE:DESTINATION")
    if not source:
        raise _invalid(text, "has no source before the colon")
    if not destination:
        destination = f"/{source}"
    if not destination.startswith("/"):
        raise _invalid(text, f"has a destination that is not absolute, {destination}")
    path = volume_path(destination)
    into_directory = destination.endswith("/")
    if path == "/" and not into_directory:
        raise _invalid(text, "has a destination without a name")
    return FileListEntry(Path(source), path, into_directory, text)


def _mode_of(source: Path, entry: FileListEntry) -> int:
    try:
        mode = source.stat().st_mode
    except FileNotFoundError as error:
        reason = f"{source} does not exist"
        if source.is_symlink():
            reason = f"{source} is a link to {source.readlink()}, which does not exist"
        raise EditError(f"{entry.text}: {reason}", code="source-missing") from error
    except OSError as error:
        raise unreadable(f"{entry.text}: {source}", error) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise EditError(
            f"{entry.text}: {source} is neither a file nor a directory", code="source-unsupported"
        )
    return mode


def _files_in(directory: Path) -> list[Path]:
    """The regular files directly in ``directory``, without links, as the build selects them."""
    try:
        with os.scandir(directory) as found:
            names = [each.name for each in found if each.is_file(follow_symlinks=False)]
    except OSError as error:
        raise unreadable(str(directory), error) from error
    return [directory / name for name in sorted(names)]


def _with_signature(source: Path, path: str) -> dict[Path, str]:
    """``source`` with ``path``, and its signature, if it has one."""
    signature = source.with_name(source.name + SIGNATURE_SUFFIX)
    copies = {source: path}
    if signature.is_file():
        copies[signature] = path + SIGNATURE_SUFFIX
    return copies


def _copy(volume: FatVolume, source: Path, path: str) -> tuple[FileChange, ...]:
    if is_directory(volume, path):
        raise EditError(
            f"{path}: is a directory in the boot partition; {source} cannot replace it",
            code="is-a-directory",
            hint=f"End the destination in a slash to put the file into it: {path}/",
        )
    made = make_directories(volume, parent_of(path))
    return (*made, *CopyIn((source,), path).apply(volume))


def _invalid(text: str, reason: str, hint: str | None = None) -> EditError:
    return EditError(f"{text!r}: the entry {reason}", code="file-list-invalid", hint=hint)
