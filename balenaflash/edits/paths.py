"""Paths and patterns of paths in the boot partition, as users write them."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from balenaflash.errors import EditError
from balenaflash.formats.fat.names import fold, split_path
from balenaflash.formats.fat.volume import FatVolume

_WILDCARD = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"


def volume_path(text: str) -> str:
    """``text`` as an absolute path without empty names; a missing leading slash is added.

    Raises:
        EditError: it contains ``..``, or is empty.
    """
    names = [name for name in text.split("/") if name not in {"", "."}]
    if not text or ".." in names:
        fact = "contains '..', which leads out of a directory" if text else "is not a path"
        raise EditError(
            f"{text!r}: {fact}",
            code="path-invalid",
            hint="Write it from the root of the boot partition, such as /EFI/BOOT/grub.cfg.",
        )
    return "/" + "/".join(names)


def parent_of(path: str) -> str:
    """The directory of ``path``, a result of `volume_path`; the root's is the root."""
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    """The last name of ``path``; empty for the root."""
    return path.rpartition("/")[2]


def join(directory: str, name: str) -> str:
    """The path of ``name`` in ``directory``, a result of `volume_path`."""
    return f"{directory.rstrip('/')}/{name}"


def is_pattern(volume: FatVolume, path: str) -> bool:
    """True if ``path`` has wildcards and is not the name of an existing file."""
    return _WILDCARD.search(path) is not None and volume.find(volume_path(path)) is None


def find_matches(volume: FatVolume, path: str) -> tuple[str, ...]:
    """The paths that match a pattern, sorted; else ``path`` itself, which need not exist.

    ``*``, ``?`` and ``[...]`` match within a name, also one with a leading dot. ``**`` in place of
    a name matches any number of directories, and at the end everything below. The matches are
    absolute and spelled as in the volume.

    Raises:
        EditError: nothing matches (``no-such-file``).
        ImageError: a directory is broken.
    """
    if not is_pattern(volume, path):
        return (volume_path(path),)
    pattern = split_path(fold(volume_path(path)))
    found = sorted(
        entry.path for entry in volume.walk() if _matches(split_path(fold(entry.path)), pattern)
    )
    if not found:
        raise EditError(
            f"{path}: matches nothing in the boot partition",
            code="no-such-file",
            hint="List its files: balenaflash boot ls -R IMAGE",
        )
    return tuple(found)


def uppermost(paths: Iterable[str]) -> tuple[str, ...]:
    """``paths`` in order, without duplicates and without those below another one.

    An edit of a directory includes its content, and a pattern such as ``/**`` matches both.
    """
    unique = {fold(path): path for path in paths}
    return tuple(
        path for key, path in unique.items() if not any(above in unique for above in _above(key))
    )


def _above(path: str) -> list[str]:
    names = path.split("/")
    return ["/".join(names[:length]) for length in range(1, len(names))]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if the whole of ``pattern`` matches the whole of ``names``, both folded."""
    if not pattern:
        return not names
    first, *rest = pattern
    if first == _ANY_DEPTH:
        # At the end it matches the content of a directory, and not the directory itself.
        skipped = range(len(names) + 1) if rest else range(1, len(names) + 1)
        return any(_matches(names[skip:], rest) for skip in skipped)
    return bool(names) and fnmatchcase(names[0], first) and _matches(names[1:], rest)
