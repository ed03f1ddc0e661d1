"""Copy files and directory trees into the boot partition and out of it."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from balenaflash.balena.image import CONFIG_PATH
from balenaflash.durable import FileType, Folder, find_type, open_folder, open_subfolder, write_all
from balenaflash.edits.files import (
    FileChange,
    MakeDirectory,
    find_matches,
    is_directory,
    is_pattern,
    join,
    put_file,
    require_directory,
    require_entry,
    require_room,
    uppermost,
    volume_path,
)
from balenaflash.edits.given_text import unreadable
from balenaflash.edits.network import DIRECTORY
from balenaflash.errors import EditError, ExistsError, ImageError, WriteError, refusal
from balenaflash.formats.fat.names import fold
from balenaflash.formats.fat.volume import FatEntry, FatVolume


@dataclass(frozen=True, slots=True)
class CopyIn:
    """Copy local files, and directories with their content, into the boot partition."""

    sources: tuple[Path, ...]
    """Links are followed, except links of another user to files that are not theirs.

    A directory is merged into an existing directory of the same name.
    """

    target: str
    """The directory to put them in; for a single source also its new path."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        changes: list[FileChange] = []
        for source, path in zip(self.sources, self._paths(volume), strict=True):
            with _open(source, path) as opened:
                for local in _walk(opened, above=()):
                    changes += _copy(volume, local)
        return tuple(changes)

    def describe(self) -> str:
        return f"put {', '.join(map(str, self.sources))} to {self.target}"

    def _paths(self, volume: FatVolume) -> list[str]:
        target = volume_path(self.target)
        if len(self.sources) > 1 or self.target.endswith("/"):
            require_directory(volume, target)
        if not is_directory(volume, target):
            return [target]
        # "." and ".." have no name of their own: their content goes directly into the target.
        names = (source.name.replace("..", "") for source in self.sources)
        return [join(target, name) if name else target for name in names]


@dataclass(frozen=True, slots=True)
class _Local:
    """An open local file or directory, and its path in the boot partition."""

    source: Path
    path: str
    status: os.stat_result
    descriptor: int
    """Refers to it even if its name is changed meanwhile (``O_PATH``)."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def open_path(self) -> Path:
        """A path to the open file or directory."""
        return Path(f"/proc/self/fd/{self.descriptor}")


def _walk(local: _Local, above: tuple[tuple[int, int], ...]) -> Iterator[_Local]:
    """``local``, then its content, by name; ``above`` identifies the directories around it."""
    yield local
    if not local.is_directory:
        return
    identity = (local.status.st_dev, local.status.st_ino)
    if identity in above:
        raise EditError(f"{local.source}: leads back to a directory above it", code="source-loop")
    try:
        names = sorted(each.name for each in local.open_path.iterdir())
    except OSError as error:
        raise unreadable(local.source, error) from error
    for name in names:
        with _open(local.source / name, join(local.path, name), inside=local) as child:
            yield from _walk(child, (*above, identity))


@contextmanager
def _open(source: Path, path: str, inside: _Local | None = None) -> Iterator[_Local]:
    """The file or directory at ``source``, open until the block ends.

    Raises:
        EditError: it cannot be read; or it is a link that another user made to a third user's
            file, whose content they could not read themselves.
    """
    name = str(source) if inside is None else source.name
    folder = None if inside is None else inside.descriptor
    try:
        entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
        descriptor = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise unreadable(source, error) from error
    try:
        status = os.fstat(descriptor)
        is_kept = stat.S_ISLNK(entry.st_mode) or os.path.samestat(entry, status)
        if not is_kept or entry.st_uid not in {0, os.geteuid(), status.st_uid}:
            raise EditError(
                f"{source}: is a link of another user to a file that is neither theirs nor yours",
                code="source-unsafe",
                hint="Copy the file into a folder of your own, and put that copy.",
            )
        yield _Local(source, path, status, descriptor)
    finally:
        os.close(descriptor)


def _copy(volume: FatVolume, local: _Local) -> tuple[FileChange, ...]:
    if local.is_directory:
        if is_directory(volume, local.path):
            return ()
        return MakeDirectory(local.path).apply(volume)
    if not stat.S_ISREG(local.status.st_mode):
        raise EditError(
            f"{local.source}: is neither a file nor a directory", code="source-unsupported"
        )
    before = volume.find(local.path)
    # Checked before it is read: the file may be larger than the memory.
    replaced = before.size if before else 0
    require_room(volume, str(local.source), local.status.st_size, replaced=replaced)
    try:
        content = local.open_path.read_bytes()
    except OSError as error:
        raise unreadable(local.source, error) from error
    return (put_file(volume, local.path, content, _modified(local.status)),)


def _modified(status: os.stat_result) -> datetime | None:
    """The file's own time; ``None`` if ``SOURCE_DATE_EPOCH`` asks for a reproducible one."""
    if os.environ.get("SOURCE_DATE_EPOCH"):
        return None
    return datetime.fromtimestamp(status.st_mtime)  # noqa: DTZ006 -- FAT holds local time


_NETWORKS = fold(f"{DIRECTORY}/")


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file or directory that was copied out of the boot partition."""

    path: str
    """Absolute in the boot partition."""

    top: Path
    """The directory that the user named, or the parent of the path that the user named."""

    names: tuple[str, ...]
    """Its path below ``top``: the names of copied directories, and its own; empty for ``top``."""

    is_directory: bool
    size: int
    """Bytes of the file; 0 for a directory."""

    @property
    def target(self) -> Path:
        """Path of the copy."""
        return self.top.joinpath(*self.names)


def copy_out(
    volume: FatVolume, path: str, target: str, *, overwrite: bool = False
) -> tuple[CopiedFile, ...]:
    """Copy the file or directory at ``path`` to ``target``, or into it if that is a directory.

    ``path`` may be a pattern, as in `find_matches`; then ``target`` must be a directory. ``target``
    is local; with a slash at its end it means a directory. A directory is merged into an existing
    directory of the same name. All targets are checked before the first is written.

    Raises:
        EditError: there is nothing at ``path``; or a file exists already, and ``overwrite`` is not
            set or cannot replace it. Nothing was written.
        ImageError: the image contains a name that no file can have, or cannot be read.
        TargetRefusedError: another process has locked a file that would be overwritten. Nothing
            was written.
        WriteError: writing failed; some of the files may have been written.
    """
    if is_pattern(volume, path) and find_type(Path(target)) is not FileType.DIRECTORY:
        raise EditError(f"{target}: no such directory", code="output-unwritable")
    matches = uppermost(find_matches(volume, path))
    copies = tuple(copy for each in matches for copy in _plan(volume, each, target))
    for copy in copies:
        _require_free(copy, overwrite=overwrite)
        if overwrite and not copy.is_directory:
            _require_unlocked(copy.target)
    _require_distinct(copies)
    for number, copy in enumerate(copies):
        content = None if copy.is_directory else volume.read_file(copy.path)
        try:
            _create(copy, content, overwrite=overwrite)
        except OSError as error:
            unwritable = _unwritable(copy.target, error)
            if number == 0 and find_type(copy.target) is None:
                raise unwritable from error
            raise WriteError(str(unwritable), code=unwritable.code) from error
    return copies


def _unwritable(target: Path, error: OSError) -> EditError:
    return EditError(f"{target}: cannot be written: {error.strerror}", code="output-unwritable")


def _plan(volume: FatVolume, path: str, target: str) -> Iterator[CopiedFile]:
    """The planned copies, each directory before its content."""
    entry = require_entry(volume, path)
    place = Path(target)
    if find_type(place) is FileType.DIRECTORY:
        # The root has no name: its content goes directly into the target.
        names = () if entry.path == "/" else (_file_name(entry),)
        yield from _plan_entry(volume, entry, place, names)
        return
    if target.endswith("/") and not entry.is_directory:
        raise EditError(f"{target}: no such directory", code="output-unwritable")
    yield from _plan_entry(volume, entry, place.parent, (place.name,))


def _plan_entry(
    volume: FatVolume, entry: FatEntry, top: Path, names: tuple[str, ...]
) -> Iterator[CopiedFile]:
    yield CopiedFile(entry.path, top, names, entry.is_directory, entry.size)
    if entry.is_directory:
        for child in volume.entries(entry.path):
            yield from _plan_entry(volume, child, top, (*names, _file_name(child)))


def _file_name(entry: FatEntry) -> str:
    """The entry's name, if it stays inside the directory of the copy."""
    name = entry.name
    if name in {"", ".", ".."} or "\0" in name:
        raise ImageError(f"{entry.path!r}: no local file can have this name", code="name-unsafe")
    return name


def _require_free(copy: CopiedFile, *, overwrite: bool) -> None:
    target = copy.target
    if not copy.names or not os.path.lexists(target):
        return
    found = find_type(target, follow_links=False)
    hint = "Name another OUT."
    if found is FileType.LINK:
        reason = "is a symbolic link, which is not followed"
    elif found is (FileType.DIRECTORY if copy.is_directory else FileType.FILE):
        if copy.is_directory or overwrite:
            return
        reason = "exists already"
        hint = "Overwrite it with --overwrite, or name another OUT."
    elif found is FileType.DIRECTORY:
        reason = "is a directory"
    else:
        reason = f"is not a {'directory' if copy.is_directory else 'file'}"
    raise ExistsError(f"{target}: {reason}", code="output-exists", hint=hint)


def _require_unlocked(target: Path) -> None:
    try:
        with open_folder(target.parent) as folder, folder.locked(target.name):
            pass
    except FileNotFoundError:
        pass  # a directory that is yet to be made
    except BlockingIOError as error:
        hint = "Try again when that has finished, or name another OUT."
        raise refusal("target-locked", f"{target}: {error.strerror}", hint) from error
    except OSError as error:
        raise _unwritable(target, error) from error


def _require_distinct(copies: tuple[CopiedFile, ...]) -> None:
    """Refuse two copies with one target: a pattern may match one name in several directories."""
    taken: dict[Path, CopiedFile] = {}
    for copy in copies:
        other = taken.setdefault(copy.target, copy)
        if other is not copy and not (copy.is_directory and other.is_directory):
            raise EditError(
                f"{copy.target}: both {other.path} and {copy.path} would be copied there",
                code="output-exists",
                hint="Copy them one by one, or copy their common directory.",
            )


def _create(copy: CopiedFile, content: bytes | None, *, overwrite: bool) -> None:
    """Create a file with ``content``; without content, a directory.

    A copied directory may have been replaced by a link since the check, which is not followed.
    """
    if not copy.names:
        return
    *parents, name = copy.names
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder(copy.top))
        for parent in parents:
            descriptor = open_subfolder(folder.descriptor, parent)
            stack.callback(os.close, descriptor)
            folder = Folder(folder.path / parent, descriptor)
        if content is None:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder.descriptor)
            os.close(open_subfolder(folder.descriptor, name))
            return
        # Less the umask; files with keys and passphrases are for the user alone.
        place = fold(copy.path)
        is_secret = place == fold(CONFIG_PATH) or place.startswith(_NETWORKS)
        mode = 0o600 if is_secret else 0o666
        with folder.new_file(name, mode=mode, replace=overwrite) as descriptor:
            write_all(descriptor, content)
