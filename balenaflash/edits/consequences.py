"""Consequences of an edit: warnings about other files, and the difference as text."""

import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from balenaflash.balena.image import FINGERPRINT_PATHS
from balenaflash.edits.file_list import SIGNATURE_SUFFIX
from balenaflash.edits.files import name_of
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
"""Files that a host OS update never replaces: ``BALENA_BOOTFILES_BLACKLIST`` in meta-balena's
``hostapp-update-hooks.bb``. It does not replace any ``grub_extraenv`` either."""

_KEPT = frozenset(map(fold, (*KEPT_BY_UPDATES, *FINGERPRINT_PATHS)))
_KEPT_NAME = fold("grub_extraenv")  # in /EFI/BOOT or in /grub, by board
_NAMED = 5  # paths in a warning; further ones are counted
_LARGEST = MIB  # bytes of a file that is compared line by line; difflib is slow on larger ones
_BETWEEN = "\0"  # separates a line from its masked form; no text contains it


def warnings_for(
    changed: Iterable[str],
    volume: FatVolume,
    *,
    shipped: Collection[str] | None,
    image: Path | None = None,
) -> tuple[str, ...]:
    """Warnings about the consequences of an edit, without the final dot.

    ``changed`` are the absolute paths of the files added, changed or removed, and ``volume`` is the
    edited one. ``shipped`` are the files of the operating system, the result of
    `fingerprint.listed_paths` before the edit; with ``None`` every file may be one of them.
    ``image`` is the edited image file; ``None`` if no file is edited.
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
    """True if a host OS update does not replace the file at ``path``, although it contains one."""
    key = fold(path)
    return key in _KEPT or name_of(key) == _KEPT_NAME


def find_overwritten(paths: Collection[str], shipped: Collection[str] | None) -> list[str]:
    """The ``paths`` that a host OS update replaces; ``shipped`` as in `warnings_for`."""
    return [
        path
        for path in paths
        if not is_kept_by_updates(path) and (shipped is None or fold(path) in shipped)
    ]


def _overwritten(paths: Collection[str], shipped: Collection[str] | None) -> Iterator[str]:
    overwritten = find_overwritten(paths, shipped)
    if overwritten:
        what = "this file" if len(overwritten) == 1 else "these files"
        yield f"{_listed(overwritten)}: a host OS update that ships {what} writes its own version"


def warn_of_low_space(volume: FatVolume) -> Iterator[str]:
    """A warning if a host OS update would not have enough free space."""
    files = (entry for entry in volume.walk() if not entry.is_directory)
    largest = max(files, key=lambda entry: entry.size, default=None)
    if largest is not None and volume.free_bytes < 2 * largest.size:
        yield (
            f"{format_size(volume.free_bytes)} are free in the boot partition; a host OS update "
            f"needs {format_size(2 * largest.size)}, twice the size of its largest file, "
            f"{largest.path}"
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
    # The signature may be beside the image, or beside a link to it.
    signatures = {
        signature.resolve(): signature
        for name in (image, image.resolve())
        # Path.exists() would raise an error for a name that is too long.
        if os.path.exists(signature := name.with_name(name.name + SIGNATURE_SUFFIX))  # noqa: PTH110
    }
    for signature in signatures.values():
        yield f"{signature}: the signed image changed and no longer verifies"


def _listed(paths: list[str]) -> str:
    text = ", ".join(paths[:_NAMED])
    more = len(paths) - _NAMED
    return f"{text} and {more} more" if more > 0 else text


def diff_files(
    before: FatVolume, after: FatVolume, paths: Iterable[str], *, show_secrets: bool = False
) -> tuple[str, ...]:
    """Lines of a unified diff of the files at ``paths``; a sentence for a file that is not text."""
    lines: list[str] = []
    for path in dict.fromkeys(paths):
        contents = _content(before, path), _content(after, path)
        lines += _diff_file(path, *contents, show_secrets=show_secrets)
    return tuple(lines)


def adds_secrets(before: FatVolume, after: FatVolume, paths: Iterable[str]) -> bool:
    """True if one of the files at ``paths`` contains a secret that it did not contain before."""
    return any(
        _secrets_in(path, _content(after, path)) - _secrets_in(path, _content(before, path))
        for path in dict.fromkeys(paths)
    )


def _secrets_in(path: str, content: bytes | None) -> set[str]:
    """The masked lines; for a file that is a secret as a whole, its content."""
    lines = _lines_of(content)
    if lines is None or (lines and _has_secret_name(path)):
        return {repr(content)} if _has_secret_name(path) else set()
    # Without the comma: a new line after a line of JSON adds one.
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
    is_secret = _has_secret_name(path) and not show_secrets
    if is_secret or old_lines is None or new_lines is None:
        sizes = [None if content is None else format_size(len(content)) for content in (old, new)]
        what = f"{sizes[0] or 'nothing'} becomes {sizes[1] or 'nothing'}"
        yield f"{path}: {what}, {'a secret by its name' if is_secret else 'not text'}"
        return
    old_name, new_name = ("/dev/null" if content is None else path for content in (old, new))
    # The unmasked lines are compared: a changed secret is a changed line.
    old_joined, new_joined = (map(_BETWEEN.join, lines) for lines in (old_lines, new_lines))
    for line in difflib.unified_diff(
        list(old_joined), list(new_joined), old_name, new_name, lineterm=""
    ):
        whole, between, shown = line.partition(_BETWEEN)
        yield whole if show_secrets or not between else f"{whole[:1]}{shown}"


def _lines_of(content: bytes | None) -> list[tuple[str, str]] | None:
    """The lines of a file, each with its masked form; ``None`` if it is large or not text."""
    if content is None:
        return []
    return None if len(content) > _LARGEST else shown_lines(content)


def _has_secret_name(path: str) -> bool:
    """True if a file is a secret as a whole, such as ``lab.psk`` or ``chap-secrets``."""
    name = PurePosixPath(path)
    return is_secret_name(name.stem) or is_secret_name(name.suffix.removeprefix("."))
