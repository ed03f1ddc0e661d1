"""Copy files and directory trees out of the boot partition, as ``cp -r`` would."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.boot.files import require_entry
from balenaflash.boot.patterns import find_matches, is_pattern, uppermost
from balenaflash.errors import EditError, ImageError, WriteError
from balenaflash.image.fat.volume import FatEntry, FatVolume


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file or directory that was copied out."""

    path: str
    """Absolute in the boot partition."""

    target: Path
    """Where it is now."""

    is_directory: bool
    size: int
    """Bytes of the file; 0 for a directory."""


def copy_out(
    volume: FatVolume, path: str, target: str, *, overwrite: bool = False
) -> tuple[CopiedFile, ...]:
    """Copy what is at ``path`` to ``target``, or into it if that is a directory.

    ``path`` may be a pattern, as in ``patterns``; then ``target`` is a directory.

    ``target`` is local; with a slash at its end it means a directory. A directory is merged into
    one of its name that is there. What is at ``target`` is looked at before anything is written.

    Raises:
        EditError: there is nothing at ``path``; or a file is in the way, and is not to be, or
            cannot be, overwritten. Nothing was written.
        ImageError: the image holds a name that no file can have, or cannot be read.
        WriteError: writing failed; some of the files may be there.
    """
    if is_pattern(volume, path) and not Path(target).is_dir():
        raise EditError(f"{target}: no such directory", code="output-unwritable")
    matches = uppermost(find_matches(volume, path))
    copies = tuple(copy for each in matches for copy in _plan(volume, each, target))
    for copy in copies:
        _require_free(copy, overwrite=overwrite)
    _require_distinct(copies)
    for number, copy in enumerate(copies):
        content = None if copy.is_directory else volume.read_file(copy.path)
        try:
            _create(copy.target, content, overwrite=overwrite)
        except OSError as error:
            message = f"{copy.target}: cannot be written: {error.strerror}"
            if number == 0 and not copy.target.exists():
                raise EditError(message, code="output-unwritable") from error
            raise WriteError(message, code="output-unwritable") from error
    return copies


def _plan(volume: FatVolume, path: str, target: str) -> Iterator[CopiedFile]:
    """What is to be copied where, each directory before what it holds."""
    entry = require_entry(volume, path)
    place = Path(target)
    if place.is_dir():
        # The root has no name: what it holds goes straight into the target.
        place = place.resolve() if entry.path == "/" else place / _file_name(entry)
    elif target.endswith("/") and not entry.is_directory:
        raise EditError(f"{target}: no such directory", code="output-unwritable")
    yield from _plan_entry(volume, entry, place)


def _plan_entry(volume: FatVolume, entry: FatEntry, target: Path) -> Iterator[CopiedFile]:
    yield CopiedFile(entry.path, target, entry.is_directory, entry.size)
    if entry.is_directory:
        for child in volume.entries(entry.path):
            yield from _plan_entry(volume, child, target / _file_name(child))


def _file_name(entry: FatEntry) -> str:
    """The entry's name, which never leads out of the directory it is put in."""
    name = entry.name
    if name in {"", ".", ".."} or "\0" in name:
        raise ImageError(f"{entry.path!r}: no local file can have this name", code="name-unsafe")
    return name


def _require_free(copy: CopiedFile, *, overwrite: bool) -> None:
    target = copy.target
    if not os.path.lexists(target):
        return
    if target.is_symlink():
        reason = "is a symbolic link, which is not followed"
    elif copy.is_directory == target.is_dir():
        if copy.is_directory or overwrite:
            return
        reason = "exists already"
    else:
        reason = "is a directory" if target.is_dir() else "is not a directory"
    hint = "Overwrite it with -f, or name another OUT." if reason == "exists already" else None
    raise EditError(f"{target}: {reason}", code="output-exists", hint=hint)


def _require_distinct(copies: tuple[CopiedFile, ...]) -> None:
    """A pattern may match files of one name in several directories."""
    taken: dict[Path, CopiedFile] = {}
    for copy in copies:
        other = taken.setdefault(copy.target, copy)
        if other is not copy and not (copy.is_directory and other.is_directory):
            raise EditError(
                f"{copy.target}: both {other.path} and {copy.path} would be copied there",
                code="output-exists",
                hint="Copy them one by one, or the directory that holds them.",
            )


def _create(path: Path, content: bytes | None, *, overwrite: bool) -> None:
    """A file with ``content``, or without one a directory."""
    if content is None:
        path.mkdir(exist_ok=True)
        return
    # The flags repeat what was looked at before: the directory may have changed since.
    how = os.O_TRUNC if overwrite else os.O_EXCL
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | how
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
