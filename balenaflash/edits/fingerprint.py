"""The boot partition's fingerprint: the MD5 sum of each file, as the image build lists them.

``balenaos.fingerprint`` contains a line of ``md5sum`` for every file, sorted by path, except for
itself and any ``config.json`` (meta-balena, ``image-balena.bbclass``). Paths have no leading slash;
builds of resinOS write one, and name the file ``resinos.fingerprint``.

A line that an edit adds has the mark ``*`` of ``md5sum``, which has no effect on Linux. The mark
distinguishes a file of the user from one of the operating system, which an update may replace.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from balenaflash.balena.image import FINGERPRINT_PATHS
from balenaflash.edits.files import name_of, parent_of
from balenaflash.errors import EditError, ImageError
from balenaflash.formats.fat.names import fold, split_path
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.units import MIB, format_size

_MAX_SIZE = MIB  # bytes of a fingerprint; one of 200 files has 12 KiB
_UNLISTED_NAME = fold("config.json")
_ADDED = b" *"
_LINE = re.compile(rb"([0-9a-fA-F]{32})( [ *])(.+)")
"""Digest, mode mark, path; FAT cannot store a name that ``md5sum`` would escape."""


@dataclass(frozen=True, slots=True)
class FingerprintReport:
    """The comparison of the files in a boot partition with its fingerprint; paths are absolute."""

    path: str
    """Path of the fingerprint."""

    differing: tuple[str, ...] | None
    """Files with changed content; ``None`` if no content was read."""

    missing: tuple[str, ...]
    """Listed files that do not exist."""

    new: tuple[str, ...]
    """Files that are not listed."""

    malformed: tuple[int, ...]
    """Numbers, from 1, of lines that ``md5sum`` would not write; they are ignored."""

    @property
    def matches(self) -> bool | None:
        """True if the files are as in the image when it was built or last edited.

        ``None`` if the content of the files decides, and was not read.
        """
        if self.missing or self.new:
            return False
        return None if self.differing is None else not self.differing


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the fingerprint."""

    raw: bytes
    """The line as in the file, with its line end."""

    digest: str = ""
    path: str | None = None
    """Absolute; ``None`` for a malformed line."""

    before_path: bytes = b"  "
    """The bytes between digest and path, including the slash of an older build."""


def check(volume: FatVolume, *, contents: bool = True) -> FingerprintReport | None:
    """Compare every file with its line; ``None`` if the volume has no fingerprint.

    Names are compared without case, as in FAT. Without ``contents`` only names are compared, which
    is quick.

    Raises:
        ImageError: the fingerprint is too large, or a file's content cannot be read.
    """
    path = _find(volume)
    if path is None:
        return None
    lines = _read(volume, path)
    listed = {fold(line.path): line for line in lines if line.path is not None}
    stored = {fold(file): file for file in _listable(volume, "/")}
    differing = (
        file
        for key, file in stored.items()
        if key in listed and _digest(volume, file) != listed[key].digest
    )
    return FingerprintReport(
        path,
        differing=tuple(differing) if contents else None,
        missing=tuple(f"{line.path}" for key, line in listed.items() if key not in stored),
        new=tuple(file for key, file in stored.items() if key not in listed),
        malformed=tuple(number for number, line in enumerate(lines, 1) if line.path is None),
    )


def build(volume: FatVolume) -> None:
    """Write a fingerprint of all files, as the image build does.

    Raises:
        EditError: there is no room for it.
    """
    files = sorted(_listable(volume, "/"))
    lines = [f"{_digest(volume, file)}  {file.removeprefix('/')}\n" for file in files]
    volume.write_file(FINGERPRINT_PATHS[0], "".join(lines).encode())


def update(volume: FatVolume, touched: Iterable[str]) -> str | None:
    """Update the lines of ``touched`` paths; the result is the fingerprint's path if it changed.

    A touched path is a file that was added, changed or removed, or a directory, which includes its
    content. Every other line stays as it is, malformed ones too. New lines are inserted in the
    order of their paths. A volume without a fingerprint is not changed.

    Raises:
        ImageError: the fingerprint is too large, or a file's content cannot be read.
        EditError: there is no room for the longer file.
    """
    path = _find(volume)
    if path is None:
        return None
    content = b"".join(line.raw for line in _renewed(volume, _read(volume, path), touched))
    if content == volume.read_file(path):
        return None
    volume.write_file(path, content)
    return path


def listed_paths(volume: FatVolume) -> frozenset[str] | None:
    """Absolute paths of the files that the image build has listed, folded by `names.fold`.

    ``None`` if the volume has no fingerprint.

    Raises:
        ImageError: the fingerprint is too large, or cannot be read.
    """
    path = _find(volume)
    if path is None:
        return None
    return frozenset(
        fold(line.path)
        for line in _read(volume, path)
        if line.path is not None and not line.before_path.startswith(_ADDED)
    )


def _find(volume: FatVolume) -> str | None:
    entries = (volume.find(path) for path in FINGERPRINT_PATHS)
    return next((entry.path for entry in entries if entry and not entry.is_directory), None)


def _read(volume: FatVolume, path: str) -> list[_Line]:
    entry = volume.find(path)
    if entry is None or entry.size > _MAX_SIZE:
        raise ImageError(
            f"{path}: is larger than {format_size(_MAX_SIZE)}, so it is not a fingerprint",
            code="fingerprint-too-large",
        )
    return [_parse(line) for line in volume.read_file(path).splitlines(keepends=True)]


def _parse(raw: bytes) -> _Line:
    found = _LINE.fullmatch(raw.rstrip(b"\r\n"))
    if found is None:
        return _Line(raw)
    try:
        text = found[3].decode()
        names = split_path(text)
    except (UnicodeDecodeError, EditError):
        # Not a path of this volume: it contains ``..``, or is too long.
        return _Line(raw)
    slash = b"/" if text.startswith("/") else b""
    return _Line(raw, found[1].decode().lower(), "/" + "/".join(names), found[2] + slash)


def _renewed(volume: FatVolume, lines: list[_Line], touched: Iterable[str]) -> list[_Line]:
    """``lines``, with updated ones for files at and below the ``touched`` paths."""
    paths = {"/" + "/".join(split_path(path)) for path in touched}
    keys = {fold(path) for path in paths}
    waiting = {fold(file): file for path in sorted(paths) for file in _listable(volume, path)}
    current = dict(waiting)
    renewed: list[_Line] = []
    for line in lines:
        key = None if line.path is None else fold(line.path)
        if key is None or keys.isdisjoint(_with_parents(key)):
            renewed.append(line)
        elif key in current:
            digest = _digest(volume, current[key])
            raw = line.raw if digest == line.digest else digest.encode() + line.raw[len(digest) :]
            renewed.append(replace(line, digest=digest, raw=raw))
            waiting.pop(key, None)
    for file in waiting.values():
        _insert(renewed, file, _digest(volume, file))
    return renewed


def _with_parents(path: str) -> Iterator[str]:
    """``path`` and every directory above it, the root included."""
    while path != "/":
        yield path
        path = parent_of(path)
    yield path


def _listable(volume: FatVolume, path: str) -> Iterator[str]:
    """The file at ``path`` or all files below it, except those that no fingerprint lists."""
    entry = volume.find(path)
    if entry is None:
        return
    for found in volume.walk(path) if entry.is_directory else (entry,):
        key = fold(found.path)
        is_listed = name_of(key) != _UNLISTED_NAME and key not in map(fold, FINGERPRINT_PATHS)
        if is_listed and not found.is_directory:
            yield found.path


def _insert(lines: list[_Line], path: str, digest: str) -> None:
    """Insert a line for ``path``, in the format of the others, before the first greater path."""
    key = path.encode()
    index = next(
        (at for at, line in enumerate(lines) if line.path and line.path.encode() > key), len(lines)
    )
    model = next((line for line in lines if line.path is not None), _Line(b""))
    name = key.removeprefix(b"/")
    before = _ADDED + model.before_path[len(_ADDED) :]
    raw = digest.encode() + before + name + b"\n"
    if index and not lines[index - 1].raw.endswith(b"\n"):
        last = lines[index - 1]
        lines[index - 1] = replace(last, raw=last.raw + b"\n")
    lines.insert(index, _Line(raw, digest, path, before))


def _digest(volume: FatVolume, path: str) -> str:
    return hashlib.md5(volume.read_file(path), usedforsecurity=False).hexdigest()
