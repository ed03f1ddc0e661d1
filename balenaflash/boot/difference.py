"""What an edit changes within files, shown as text and without secrets."""

import difflib
from collections.abc import Iterable

from balenaflash.boot.config_json import masked
from balenaflash.boot.json_text import format_lines, parse_document
from balenaflash.boot.keyfile import masked_lines
from balenaflash.boot.network import DIRECTORY
from balenaflash.errors import ConfigError
from balenaflash.extent import MIB, format_size
from balenaflash.image.balenaos import CONFIG_PATH
from balenaflash.image.fat.names import fold
from balenaflash.image.fat.volume import FatVolume

_LARGEST = MIB
"""Bytes of a file that is still compared line by line; difflib is slow on more."""


def diff_files(before: FatVolume, after: FatVolume, paths: Iterable[str]) -> tuple[str, ...]:
    """Lines of a unified diff of the files at ``paths``; a line in words for what is no text."""
    lines: list[str] = []
    for path in dict.fromkeys(paths):
        lines += _diff_file(path, _content(before, path), _content(after, path))
    return tuple(lines)


def _content(volume: FatVolume, path: str) -> bytes | None:
    entry = volume.find(path)
    return None if entry is None or entry.is_directory else volume.read_file(path)


def _diff_file(path: str, old: bytes | None, new: bytes | None) -> list[str]:
    if old == new:
        return []
    shown = [_shown_lines(path, content) for content in (old, new)]
    if shown[0] is None or shown[1] is None:
        sizes = [None if content is None else format_size(len(content)) for content in (old, new)]
        return [f"{path}: {sizes[0] or 'nothing'} becomes {sizes[1] or 'nothing'}, not text"]
    old_name, new_name = ("/dev/null" if content is None else path for content in (old, new))
    return list(difflib.unified_diff(shown[0], shown[1], old_name, new_name, lineterm=""))


def _shown_lines(path: str, content: bytes | None) -> list[str] | None:
    """The lines to show of a file; ``None`` for what is no text, or could hold a secret."""
    if content is None:
        return []
    if len(content) > _LARGEST:
        return None
    if fold(path) == fold(CONFIG_PATH):
        return _config_lines(content)
    if fold(path).startswith(fold(f"{DIRECTORY}/")):
        return masked_lines(content)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.splitlines()


def _config_lines(content: bytes) -> list[str] | None:
    try:
        return format_lines(masked(parse_document(content, CONFIG_PATH).content))
    except ConfigError:
        return None
