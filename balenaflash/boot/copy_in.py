"""Copy local files and directory trees into the boot partition, as ``cp -rL`` would."""

import os
import stat
from collections.abc import Iterator
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
    """Links are followed; a directory is merged into one of its name that is there."""

    target: str
    """The directory to put them in; for a single source also the path it is to have."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        changes: list[FileChange] = []
        for source, path in zip(self.sources, self._paths(volume), strict=True):
            for local in _walk(source, path, above=()):
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
    """A local file or directory, and the path it is to have in the boot partition."""

    source: Path
    path: str
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def _walk(source: Path, path: str, above: tuple[tuple[int, int], ...]) -> Iterator[_Local]:
    """``source``, then what it holds, by name; ``above`` identifies the directories around it."""
    try:
        local = _Local(source, path, source.stat())
        yield local
        if not local.is_directory:
            return
        identity = (local.status.st_dev, local.status.st_ino)
        if identity in above:
            raise EditError(f"{source}: leads back to a directory above it", code="source-loop")
        children = sorted(source.iterdir())
    except OSError as error:
        raise _unreadable(source, error) from error
    for child in children:
        yield from _walk(child, join(path, child.name), (*above, identity))


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
        content = local.source.read_bytes()
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
