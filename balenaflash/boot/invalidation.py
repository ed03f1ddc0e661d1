"""What an edit of the boot partition makes untrue elsewhere, and what may undo it later."""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from balenaflash.boot.file_list import SIGNATURE_SUFFIX
from balenaflash.boot.paths import name_of
from balenaflash.extent import format_size
from balenaflash.image.balenaos import FINGERPRINT_PATHS
from balenaflash.image.fat.names import fold
from balenaflash.image.fat.volume import FatVolume

KEPT_BY_UPDATES = frozenset(
    {
        "/config.json",
        "/config.txt",
        "/splash/balena-logo.png",
        "/extra_uEnv.txt",
        "/configfs.json",
        "/hw_intfc.conf",
        "/bootenv",
    }
)
"""Files that a host OS update never replaces (``BALENA_BOOTFILES_BLACKLIST`` in meta-balena's
``hostapp-update-hooks.bb``); so it is with any ``grub_extraenv``."""

_KEPT = frozenset(map(fold, (*KEPT_BY_UPDATES, *FINGERPRINT_PATHS)))
_KEPT_NAME = fold("grub_extraenv")  # in /EFI/BOOT or in /grub, by board
_NAMED = 5  # paths named in a warning; the others are counted


def warnings_for(
    changed: Iterable[str],
    volume: FatVolume,
    *,
    shipped: Collection[str] | None,
    image: Path | None = None,
) -> tuple[str, ...]:
    """A sentence for each thing that the user should know of an edit.

    ``changed`` are the absolute paths of the files added, changed or removed; ``volume`` is as
    the edit left it. ``shipped`` are the files of the operating system, folded, as
    ``fingerprint.listed_paths`` told before the edit; with ``None`` every file may be one.
    ``image`` is the image file that the edit is committed to, if it is.
    """
    paths = tuple(dict.fromkeys(changed))
    if not paths:
        return ()
    return (
        *_overwritten(paths, shipped),
        *warn_of_low_space(volume),
        *_broken_signatures(paths, volume),
        *_broken_image_signature(image),
    )


def is_kept_by_updates(path: str) -> bool:
    """Whether a host OS update leaves the file at ``path`` alone though it ships one."""
    key = fold(path)
    return key in _KEPT or name_of(key) == _KEPT_NAME


def find_overwritten(paths: Collection[str], shipped: Collection[str] | None) -> list[str]:
    """Those of ``paths`` that a host OS update replaces; ``shipped`` as in `warnings_for`."""
    return [
        path
        for path in paths
        if not is_kept_by_updates(path) and (shipped is None or fold(path) in shipped)
    ]


def _overwritten(paths: Collection[str], shipped: Collection[str] | None) -> Iterator[str]:
    doomed = find_overwritten(paths, shipped)
    if doomed:
        what = "this file" if len(doomed) == 1 else "these files"
        yield f"{_listed(doomed)}: a host OS update that ships {what} puts its own version there"


def warn_of_low_space(volume: FatVolume) -> Iterator[str]:
    """A sentence if a host OS update would not find the room that it needs."""
    files = (entry for entry in volume.walk() if not entry.is_directory)
    largest = max(files, key=lambda entry: entry.size, default=None)
    if largest is not None and volume.free_bytes < 2 * largest.size:
        yield (
            f"{format_size(volume.free_bytes)} are free in the boot partition; a host OS update "
            f"needs {format_size(2 * largest.size)}, twice its largest file, {largest.path}"
        )


def _broken_signatures(paths: Collection[str], volume: FatVolume) -> Iterator[str]:
    renewed = {fold(path) for path in paths}
    broken = [
        signature.path
        for path in paths
        if fold(path + SIGNATURE_SUFFIX) not in renewed
        and volume.find(path) is not None
        and (signature := volume.find(path + SIGNATURE_SUFFIX)) is not None
    ]
    if broken:
        yield f"{_listed(broken)}: the signed file changed and no longer verifies"


def _broken_image_signature(image: Path | None) -> Iterator[str]:
    if image is None:
        return
    # A link to an image: either name has its own.
    signatures = {
        signature.resolve(): signature
        for name in (image, image.resolve())
        # Not Path.exists(), to which a name that is too long is an error.
        if os.path.exists(signature := name.with_name(name.name + SIGNATURE_SUFFIX))  # noqa: PTH110
    }
    for signature in signatures.values():
        yield f"{signature}: the signed image changed and no longer verifies"


def _listed(paths: list[str]) -> str:
    text = ", ".join(paths[:_NAMED])
    more = len(paths) - _NAMED
    return f"{text} and {more} more" if more > 0 else text
