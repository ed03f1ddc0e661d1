"""The block map beside an image, kept true to it through an edit.

bmaptool finds that map by itself. If the map is no longer true, bmaptool refuses the image or,
with a map without checksums, copies it without the blocks that an edit newly used.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from balenaflash.durable import FileType, find_type, open_folder, open_regular_file, replace_file
from balenaflash.errors import ImageError
from balenaflash.source.base import Source
from balenaflash.source.block_map import MAX_FILE_SIZE, Bmap, parse, serialise, updated
from balenaflash.source.layers import Overlay, Patch
from balenaflash.units import Extent

STALE_SUFFIX = ".stale"
"""Suffix added to the name of a map that is no longer true, so that bmaptool does not find it."""

_NAME_MAX = 255  # bytes, linux/limits.h
_SIGNATURE_SUFFIXES = (".asc", ".sig")
"""Suffixes of a detached signature, as bmaptool tries them."""


@dataclass(frozen=True, slots=True)
class BmapUpdate:
    """The change of a block map that an edit of its image needs; to be made after the edit."""

    path: Path
    """Name of the map, in a folder that is not a link.

    The map itself may be a link, which is not followed: any user who may write to the folder
    chooses where it leads.
    """

    content: bytes | None
    """The new content; ``None`` if the map cannot be kept."""

    reason: str = ""
    """Why the map cannot be kept."""

    move_aside: bool = True
    """True if a map that cannot be kept certainly belongs to the image, and may be renamed."""

    def finish(self) -> tuple[str, ...]:
        """Replace the file, whole or not at all, or rename it so that bmaptool does not find it.

        The result is the warnings, a sentence each. Nothing is raised: the image is edited already.
        """
        if self.content is None:
            return (self._set_aside(self.reason),)
        try:
            _replace(self.path, self.content)
        except OSError as error:
            return (self._set_aside(f"cannot be updated: {error.strerror}"),)
        signatures = (f"{self.path}{suffix}" for suffix in _SIGNATURE_SUFFIXES)
        return tuple(
            f"{signature}: is the signature of a block map that has changed, and no longer verifies"
            for signature in signatures
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
                "because it is no longer true of the image"
            )
        return f"{self.path}: {reason}; it is now {stale.name}"


def find_beside(image: Path) -> Path | None:
    """The block map that bmaptool would use for ``image``; ``None`` if there is none."""
    return next((path for path in _names_beside(image) if find_type(path) is FileType.FILE), None)


def read_bmap(path: Path) -> Bmap:
    """The block map in the file at ``path``.

    Raises:
        ImageError: it cannot be read, or is not a valid block map.
    """
    return parse(_read(path), str(path))


def plan_updates(image: Path, before: Source, patches: Sequence[Patch]) -> tuple[BmapUpdate, ...]:
    """The changes of the block maps beside ``image`` if ``patches`` are applied to it.

    ``before`` is the image without them. Only the ranges they touch are read, and a map is kept
    only if it was true of those. If not, the image was changed without its map, and may hold data
    in blocks that the map does not list.

    Raises:
        ImageError: the image cannot be read.
    """
    if not patches or find_type(image) is not FileType.FILE:
        return ()
    found = _find_maps(image)
    files = {path: own for path, own in found.items() if not path.is_symlink()}
    updates = [_plan(path, before, patches, own_name=own) for path, own in files.items()]
    reason = "is a symbolic link, and the block map that it leads to is not changed"
    updates += [
        BmapUpdate(path, None, reason, move_aside=own)
        for path, own in found.items()
        if path not in files and path.resolve() not in files
    ]
    return tuple(updates)


def renew_maps(image: Path, now: Source, replaced: Sequence[Patch] | None) -> bool:
    """Update the block maps beside ``image`` after an edit that was cut off before that.

    ``replaced`` are the bytes that the edit has replaced; with ``None``, after too large an edit,
    no map is kept. The result is False if a map could not be kept.

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
    """True if the map at ``path`` lists all of ``extents``, with the checksums of ``source``."""
    try:
        bmap = parse(_read_beside(path), str(path))
        new, untrue = updated(bmap, source, source, extents)
    except ImageError:
        return False
    return not untrue and new.mapped_blocks == bmap.mapped_blocks


def _find_maps(image: Path) -> dict[Path, bool]:
    """Each map beside ``image``, a file or a link; True if it certainly belongs to the image."""
    found: dict[Path, bool] = {}
    # If the image is a link, bmaptool searches beside whichever name it was given.
    for name in (image, image.resolve()):
        for path in _names_beside(name):
            place = path.parent.resolve() / path.name
            if find_type(place, follow_links=False) in {FileType.LINK, FileType.FILE}:
                found[place] = path.name == f"{name.name}.bmap"
    return found


def _names_beside(image: Path) -> Iterator[Path]:
    """Paths of the block map of ``image``, in the order in which bmaptool tries them.

    bmaptool goes on to remove further suffixes. In a name such as ``balena-6.5.31.img`` these are
    not suffixes, and a map found that way more likely belongs to another image.
    """
    names = [image.with_name(f"{image.name}.bmap")]
    if image.suffix:
        names.append(image.with_suffix(".bmap"))
    yield from (name for name in names if len(os.fsencode(name.name)) <= _NAME_MAX)


def _plan(path: Path, before: Source, patches: Sequence[Patch], *, own_name: bool) -> BmapUpdate:
    not_kept = partial(BmapUpdate, path, None, move_aside=own_name)
    try:
        bmap = parse(_read_beside(path), str(path))
    except ImageError as error:
        return not_kept(str(error).removeprefix(f"{path}: "))
    if bmap.image_size != before.size:
        return not_kept(
            f"is the block map of an image of {bmap.image_size} bytes, not {before.size}"
        )
    extents = [patch.extent for patch in patches]
    new, untrue = updated(bmap, before, Overlay(before, patches), extents)
    if untrue:
        return not_kept(
            f"was not true of the image before the edit either, at byte {untrue[0].start}"
        )
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
    """Replace the content of the file at ``path``; owner and mode are kept.

    Raises:
        OSError: the file is as it was, and nothing is left beside it.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no longer a regular file", str(path))
    owner = (status.st_uid, status.st_gid)
    replace_file(path, content, mode=stat.S_IMODE(status.st_mode), owner=owner)
