"""Copy local files and directory trees into the boot partition, as ``cp -rL`` would."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from balenaflash.boot.files import (
    FileChange,
    MakeDirectory,
    is_directory,
    put_file,
    require_directory,
    require_room,
)
from balenaflash.boot.paths import join, volume_path
from balenaflash.errors import EditError
from balenaflash.image.fat.volume import FatVolume


@dataclass(frozen=True, slots=True)
class CopyIn:
    """Copy local files, and directories with all they hold, into the boot partition."""

    sources: tuple[Path, ...]
    """Links are followed, but not those of another user to what is not theirs.

    A directory is merged into one of its name that is there.
    """

    target: str
    """The directory to put them in; for a single source also the path it is to have."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        changes: list[FileChange] = []
        for source, path in zip(self.sources, self._paths(volume), strict=True):
            with _open(source, path) as opened:
                for local in _walk(opened, above=()):
                    changes += _copy(volume, local)
        return tuple(changes)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"put {', '.join(map(str, self.sources))} to {self.target}"

    def _paths(self, volume: FatVolume) -> list[str]:
        target = volume_path(self.target)
        if len(self.sources) > 1 or self.target.endswith("/"):
            require_directory(volume, target)
        if not is_directory(volume, target):
            return [target]
        # "." and ".." have no name of their own: what they hold goes straight into the target.
        names = (source.name.replace("..", "") for source in self.sources)
        return [join(target, name) if name else target for name in names]


@dataclass(frozen=True, slots=True)
class _Local:
    """An open local file or directory, and the path it is to have in the boot partition."""

    source: Path
    path: str
    status: os.stat_result
    descriptor: int
    """Stands for it, whatever is done to its name meanwhile (``O_PATH``)."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def place(self) -> Path:
        """A path to what is open."""
        return Path(f"/proc/self/fd/{self.descriptor}")


def _walk(local: _Local, above: tuple[tuple[int, int], ...]) -> Iterator[_Local]:
    """``local``, then what it holds, by name; ``above`` identifies the directories around it."""
    yield local
    if not local.is_directory:
        return
    identity = (local.status.st_dev, local.status.st_ino)
    if identity in above:
        raise EditError(f"{local.source}: leads back to a directory above it", code="source-loop")
    try:
        names = sorted(each.name for each in local.place.iterdir())
    except OSError as error:
        raise _unreadable(local.source, error) from error
    for name in names:
        with _open(local.source / name, join(local.path, name), inside=local) as child:
            yield from _walk(child, (*above, identity))


@contextmanager
def _open(source: Path, path: str, inside: _Local | None = None) -> Iterator[_Local]:
    """The file or directory at ``source``, open until the block ends.

    Raises:
        EditError: it cannot be read, or is a link that another user made and that leads to a file
            of somebody else: what they may not read would come into an image that they may.
    """
    name = str(source) if inside is None else source.name
    folder = None if inside is None else inside.descriptor
    try:
        entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
        descriptor = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise _unreadable(source, error) from error
    try:
        status = os.fstat(descriptor)
        is_kept = stat.S_ISLNK(entry.st_mode) or os.path.samestat(entry, status)
        if not is_kept or entry.st_uid not in {0, os.geteuid(), status.st_uid}:
            raise EditError(
                f"{source}: is a link of another user to what belongs to neither them nor us",
                code="source-unsafe",
                hint="Copy what it leads to into a folder of your own, and put that.",
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
    # Before reading it: the file may be larger than the memory.
    replaced = before.size if before else 0
    require_room(volume, str(local.source), local.status.st_size, replaced=replaced)
    try:
        content = local.place.read_bytes()
    except OSError as error:
        raise _unreadable(local.source, error) from error
    return (put_file(volume, local.path, content, _modified(local.status)),)


def _modified(status: os.stat_result) -> datetime | None:
    """The file's own time, but where ``SOURCE_DATE_EPOCH`` asks for one that builds repeat."""
    if os.environ.get("SOURCE_DATE_EPOCH"):
        return None
    return datetime.fromtimestamp(status.st_mtime)  # noqa: DTZ006 -- FAT holds local time


def _unreadable(source: Path, error: OSError) -> EditError:
    return EditError(f"{source}: cannot be read: {error.strerror}", code="source-unreadable")
