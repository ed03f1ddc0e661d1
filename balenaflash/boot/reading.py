"""Look at files of the boot partition, by their paths or by patterns."""

from collections.abc import Iterator

from balenaflash.boot.files import list_directory, read_file, require_entry
from balenaflash.boot.patterns import find_matches, is_pattern, uppermost
from balenaflash.image.fat.volume import FatEntry, FatVolume


def list_files(volume: FatVolume, path: str, *, recursive: bool = False) -> Iterator[FatEntry]:
    """What a pattern matches, sorted; else what the directory at ``path`` holds, or the file.

    ``recursive`` adds what lies below; then nothing is told twice.

    Raises:
        EditError: there is nothing.
        ImageError: a directory is broken.
    """
    if not is_pattern(volume, path):
        yield from list_directory(volume, path, recursive=recursive)
        return
    matches = find_matches(volume, path)
    for match in uppermost(matches) if recursive else matches:
        entry = require_entry(volume, match)
        yield entry
        if recursive and entry.is_directory:
            yield from list_directory(volume, match, recursive=True)


def read_files(volume: FatVolume, path: str) -> dict[str, bytes]:
    """Path and content of the file at ``path``, or of each that a pattern matches.

    Raises:
        EditError: there is none, or it is a directory.
        ImageError: it cannot be read.
    """
    return {match: read_file(volume, match) for match in find_matches(volume, path)}
