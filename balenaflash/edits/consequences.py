"""Consequences of an edit: what it makes untrue elsewhere, and its difference as text."""

import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from balenaflash.balena.image import FINGERPRINT_PATHS
from balenaflash.edits.file_list import SIGNATURE_SUFFIX
from balenaflash.edits.paths import name_of
from balenaflash.edits.secrets import is_secret_name, shown_lines
from balenaflash.formats.fat.names import fold
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.units import MIB, format_size

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


_LARGEST = MIB
"""Bytes of a file that is still compared line by line; difflib is slow on more."""

_BETWEEN = "\0"
"""Stands between a line and how it is shown; no text has it."""


def diff_files(
    before: FatVolume, after: FatVolume, paths: Iterable[str], *, show_secrets: bool = False
) -> tuple[str, ...]:
    """Lines of a unified diff of the files at ``paths``; a line in words for what is not text."""
    lines: list[str] = []
    for path in dict.fromkeys(paths):
        contents = _content(before, path), _content(after, path)
        lines += _diff_file(path, *contents, show_secrets=show_secrets)
    return tuple(lines)


def adds_secrets(before: FatVolume, after: FatVolume, paths: Iterable[str]) -> bool:
    """Whether one of the files at ``paths`` holds a secret that it did not hold before."""
    return any(
        _secrets_in(path, _content(after, path)) - _secrets_in(path, _content(before, path))
        for path in dict.fromkeys(paths)
    )


def _secrets_in(path: str, content: bytes | None) -> set[str]:
    """The lines that are not shown as they are; of a file that is a secret as a whole, all."""
    lines = _lines_of(content)
    if lines is None or (lines and _has_secret_name(path)):
        return {repr(content)} if _has_secret_name(path) else set()
    # Whatever follows a line of JSON changes how that ends.
    return {line.strip().rstrip(",") for line, shown in lines if line != shown}


def _content(volume: FatVolume, path: str) -> bytes | None:
    entry = volume.find(path)
    return None if entry is None or entry.is_directory else volume.read_file(path)


def _diff_file(
    path: str, old: bytes | None, new: bytes | None, *, show_secrets: bool
) -> Iterator[str]:
    if old == new:
        return
    old_lines, new_lines = _lines_of(old), _lines_of(new)
    fault = None if show_secrets or not _has_secret_name(path) else "a secret by its name"
    if fault or old_lines is None or new_lines is None:
        sizes = [None if content is None else format_size(len(content)) for content in (old, new)]
        what = f"{sizes[0] or 'nothing'} becomes {sizes[1] or 'nothing'}"
        yield f"{path}: {what}, {fault or 'not text'}"
        return
    old_name, new_name = ("/dev/null" if content is None else path for content in (old, new))
    # Compared as they are, so that a secret which changes shows as a line that does.
    for line in difflib.unified_diff(
        _joined(old_lines), _joined(new_lines), old_name, new_name, lineterm=""
    ):
        whole, between, shown = line.partition(_BETWEEN)
        yield whole if show_secrets or not between else f"{whole[:1]}{shown}"


def _joined(lines: list[tuple[str, str]]) -> list[str]:
    return [f"{line}{_BETWEEN}{shown}" for line, shown in lines]


def _lines_of(content: bytes | None) -> list[tuple[str, str]] | None:
    """The lines of a file and how each is shown; ``None`` for what is not text."""
    if content is None:
        return []
    return None if len(content) > _LARGEST else shown_lines(content)


def _has_secret_name(path: str) -> bool:
    """Whether a file is a secret as a whole, such as ``lab.psk`` or ``chap-secrets``."""
    name = PurePosixPath(path)
    return is_secret_name(name.stem) or is_secret_name(name.suffix.removeprefix("."))
