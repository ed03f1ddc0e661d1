"""What an edit changes within files, shown as text, with or without secrets."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from balenaflash.boot.secrets import is_secret_name, shown_lines
from balenaflash.extent import MIB, format_size
from balenaflash.image.fat.volume import FatVolume

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
