"""The block map beside an image, kept true to it through an edit.

bmaptool looks for it by itself: with a map that is no longer true it refuses the image or, where
the map has no checksums, copies it without the blocks that an edit newly used.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from balenaflash.durable import FileType, find_type, open_folder, open_regular_file, replace_file
from balenaflash.errors import ImageError
from balenaflash.source.base import Source
from balenaflash.source.block_map import MAX_FILE_SIZE, Bmap, parse, serialise, updated
from balenaflash.source.layers import Overlay, Patch
from balenaflash.units import Extent

STALE_SUFFIX = ".stale"
"""Added to the name of a map that is no longer true, so that bmaptool does not find it."""

_NAME_MAX = 255  # bytes, linux/limits.h
_SIGNATURE_SUFFIXES = (".asc", ".sig")
"""Of a detached signature, as bmaptool looks for it."""


@dataclass(frozen=True, slots=True)
class BmapUpdate:
    """What an edit makes of a block map beside its image; to be carried out after the edit."""

    path: Path
    """Name of the map in a folder that is no link. It may be a link, which is not followed: whoever
    may write to the folder chooses where it leads."""

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
            if os.path.lexists(signature)
        )

    def _set_aside(self, reason: str) -> str:
        if not self.move_aside:
            return f"{self.path}: {reason}; bmaptool --nobmap copies the image without it"
        stale = self.path.with_name(self.path.name + STALE_SUFFIX)
        try:
            with open_folder(self.path.parent) as folder:
                folder.rename(self.path.name, stale.name)
        except OSError as error:
            return (
                f"{self.path}: {reason}, and cannot be renamed: {error.strerror}; remove it, "
                "for it is no longer true of the image"
            )
        return f"{self.path}: {reason}; it is now {stale.name}"


def find_beside(image: Path) -> Path | None:
    """The block map that bmaptool would take for ``image``, if there is one."""
    return next((path for path in _names_beside(image) if find_type(path) is FileType.FILE), None)


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
    if not patches or find_type(image) is not FileType.FILE:
        return ()
    found = _find_maps(image)
    files = {path: own for path, own in found.items() if not path.is_symlink()}
    updates = [_plan(path, before, patches, own_name=own) for path, own in files.items()]
    reason = "is a symbolic link, and the block map that it leads to is left as it is"
    updates += [
        BmapUpdate(path, None, reason, move_aside=own)
        for path, own in found.items()
        if path not in files and path.resolve() not in files
    ]
    return tuple(updates)


def renew_maps(image: Path, now: Source, replaced: Sequence[Patch] | None) -> bool:
    """Bring the block maps beside ``image`` up to date after an edit that did not come to that.

    ``replaced`` are the bytes that the edit has replaced; with ``None``, of too large an edit, no
    map is kept. The answer is false if there was a map that could not be kept.

    Raises:
        ImageError: the image cannot be read.
    """
    if replaced is None:
        reason = "may not be true of the image any more"
        updates = [BmapUpdate(path, None, reason, own) for path, own in _find_maps(image).items()]
    else:
        patches = [Patch(each.offset, now.read(each.offset, len(each.data))) for each in replaced]
        extents = [each.extent for each in replaced]
        updates = [
            each
            for each in plan_updates(image, Overlay(now, replaced), patches)
            if not _is_true(each.path, now, extents)
        ]
    for update in updates:
        update.finish()
    return all(update.content is not None for update in updates)


def _is_true(path: Path, source: Source, extents: Sequence[Extent]) -> bool:
    """Whether the map at ``path`` lists all of ``extents``, with the checksums of ``source``."""
    try:
        bmap = parse(_read_beside(path), str(path))
        new, untrue = updated(bmap, source, source, extents)
    except ImageError:
        return False
    return not untrue and new.mapped_blocks == bmap.mapped_blocks


def _find_maps(image: Path) -> dict[Path, bool]:
    """Each map beside ``image``, a file or a link, and whether it is surely this image's."""
    found: dict[Path, bool] = {}
    # A link to an image: bmaptool, given either name, looks beside that one.
    for name in (image, image.resolve()):
        for path in _names_beside(name):
            place = path.parent.resolve() / path.name
            if find_type(place, follow_links=False) in {FileType.LINK, FileType.FILE}:
                found[place] = path.name == f"{name.name}.bmap"
    return found


def _names_beside(image: Path) -> Iterator[Path]:
    """In the order in which bmaptool tries them.

    It goes on to take off what looks like further suffixes, which in a name such as
    ``balena-6.5.31.img`` are none: a map found that way is more likely another image's.
    """
    names = [image.with_name(f"{image.name}.bmap")]
    if image.suffix:
        names.append(image.with_suffix(".bmap"))
    yield from (name for name in names if len(os.fsencode(name.name)) <= _NAME_MAX)


def _plan(path: Path, before: Source, patches: Sequence[Patch], *, own_name: bool) -> BmapUpdate:
    try:
        bmap = parse(_read_beside(path), str(path))
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
    with _failures(path), os.fdopen(open_regular_file(path), "rb") as file:
        return file.read(MAX_FILE_SIZE + 1)


def _read_beside(path: Path) -> bytes:
    """The content of a map in a folder that others may write to."""
    with (
        _failures(path),
        open_folder(path.parent) as folder,
        os.fdopen(folder.open_file(path.name), "rb") as file,
    ):
        return file.read(MAX_FILE_SIZE + 1)


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read: {error.strerror}", code="bmap-unreadable"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of the file at ``path``, its owner and mode kept.

    Raises:
        OSError: the file is as it was, and nothing is left beside it.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no longer a regular file", str(path))
    owner = (status.st_uid, status.st_gid)
    replace_file(path, content, mode=stat.S_IMODE(status.st_mode), owner=owner)


def _signature_names(name: str) -> Iterator[str]:
    return (name + suffix for suffix in _SIGNATURE_SUFFIXES)
