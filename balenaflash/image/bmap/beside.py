"""The block map beside an image, kept true to it through an edit.

bmaptool looks for it by itself: with a map that is no longer true it refuses the image or, where
the map has no checksums, copies it without the blocks that an edit newly used.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import ImageError
from balenaflash.image.bmap.block_map import Bmap, updated
from balenaflash.image.bmap.xml import MAX_FILE_SIZE, parse, serialise
from balenaflash.image.patch import Overlay, Patch
from balenaflash.image.source import Source

STALE_SUFFIX = ".stale"
"""Added to the name of a map that is no longer true, so that bmaptool does not find it."""

_SIGNATURE_SUFFIXES = (".asc", ".sig")
"""Of a detached signature, as bmaptool looks for it."""


@dataclass(frozen=True, slots=True)
class BmapUpdate:
    """What an edit makes of a block map beside its image; to be carried out after the edit."""

    path: Path
    """The file itself, where a link led to it."""

    content: bytes | None
    """The new content; ``None`` where the map cannot be kept."""

    reason: str = ""
    """Why it cannot be kept."""

    move_aside: bool = True
    """Whether a map that cannot be kept is surely this image's, and so may be renamed."""

    def finish(self) -> tuple[str, ...]:
        """Replace the file, or rename it out of bmaptool's sight; whole or not at all.

        The answer is a sentence for each thing that the user should know; nothing is raised, for
        the image is already edited.
        """
        if self.content is None:
            return (self._set_aside(self.reason),)
        try:
            _replace(self.path, self.content)
        except OSError as error:
            return (self._set_aside(f"cannot be brought up to date: {error.strerror}"),)
        return tuple(
            f"{signature}: is the signature of a block map that changed, and no longer verifies"
            for signature in map(self.path.with_name, _signature_names(self.path.name))
            if signature.exists()
        )

    def _set_aside(self, reason: str) -> str:
        if not self.move_aside:
            return f"{self.path}: {reason}; bmaptool --nobmap copies the image without it"
        stale = self.path.with_name(self.path.name + STALE_SUFFIX)
        try:
            self.path.rename(stale)
        except OSError as error:
            return (
                f"{self.path}: {reason}, and cannot be renamed: {error.strerror}; remove it, "
                "for it is no longer true of the image"
            )
        return f"{self.path}: {reason}; it is now {stale.name}"


def find_beside(image: Path) -> Path | None:
    """The block map that bmaptool would take for ``image``, if there is one."""
    return next((path for path in _names_beside(image) if path.is_file()), None)


def read_bmap(path: Path) -> Bmap:
    """The block map in the file at ``path``.

    Raises:
        ImageError: it cannot be read, or is not a valid block map.
    """
    return parse(_read(path), str(path))


def plan_updates(image: Path, before: Source, patches: Sequence[Patch]) -> tuple[BmapUpdate, ...]:
    """What becomes of the block maps beside ``image`` when ``patches`` are applied to it.

    ``before`` is the image without them. Only the ranges they touch are read, and a map is kept
    only if it was true of them: if not, the image was changed by something that left the map
    alone, and may hold data in blocks that the map does not list.

    Raises:
        ImageError: the image cannot be read.
    """
    if not patches or not image.is_file():
        return ()
    # A link to an image: bmaptool, given either name, looks beside that one.
    own_names = {
        path.resolve(): path.name == f"{name.name}.bmap"
        for name in (image, image.resolve())
        for path in _names_beside(name)
        if path.is_file()
    }
    return tuple(
        _plan(path, before, patches, own_name=own_name) for path, own_name in own_names.items()
    )


def _names_beside(image: Path) -> Iterator[Path]:
    """In the order in which bmaptool tries them.

    It goes on to take off what looks like further suffixes, which in a name such as
    ``balena-6.5.31.img`` are none: a map found that way is more likely another image's.
    """
    yield image.with_name(f"{image.name}.bmap")
    if image.suffix:
        yield image.with_suffix(".bmap")


def _plan(path: Path, before: Source, patches: Sequence[Patch], *, own_name: bool) -> BmapUpdate:
    try:
        bmap = read_bmap(path)
    except ImageError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return BmapUpdate(path, None, reason, move_aside=own_name)
    if bmap.image_size != before.size:
        reason = f"is the block map of an image of {bmap.image_size} bytes, not {before.size}"
        return BmapUpdate(path, None, reason, move_aside=own_name)
    extents = [patch.extent for patch in patches]
    new, untrue = updated(bmap, before, Overlay(before, patches), extents)
    if untrue:
        reason = f"was not true of the image before either, at byte {untrue[0].start}"
        return BmapUpdate(path, None, reason, move_aside=own_name)
    return BmapUpdate(path, serialise(new))


def _read(path: Path) -> bytes:
    try:
        # O_NONBLOCK: a FIFO without a writer would otherwise hang here.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ImageError(f"{path}: is not a file", code="bmap-unreadable")
            return file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read: {error.strerror}", code="bmap-unreadable"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of the file at ``path``, its owner and mode kept.

    Raises:
        OSError: the file is as it was, and nothing is left beside it.
    """
    status = path.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if os.geteuid() == 0:
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _signature_names(name: str) -> Iterator[str]:
    return (name + suffix for suffix in _SIGNATURE_SUFFIXES)
