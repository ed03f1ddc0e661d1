"""Whether an image was written, told fast for sparse files."""

import hashlib
import os
from pathlib import Path

from balenaflash.units import MIB, Extent

NOTHING = Extent(0, 0)


def digest(path: Path, *, without: Extent = NOTHING) -> str:
    """A digest of all bytes outside ``without``, and of where the file has holes.

    Filling a hole with zeros changes it, as it should: nothing was to be written there.
    """
    state = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for part in (Extent(0, without.start), Extent(without.end, size)):
            position = part.start
            while (position := _next_data(file.fileno(), position)) < part.end:
                length = min(MIB, part.end - position)
                end = min(position + length, os.lseek(file.fileno(), position, os.SEEK_HOLE))
                state.update(f"{position} {end - position} ".encode())
                state.update(os.pread(file.fileno(), end - position, position))
                position = end
    state.update(f"{size}".encode())
    return state.hexdigest()


def _next_data(descriptor: int, position: int) -> int:
    """Offset of the first byte from ``position`` on that is not in a hole."""
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:  # ENXIO: nothing but a hole follows
        return os.fstat(descriptor).st_size
