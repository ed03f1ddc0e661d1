"""Save an image to a new file, raw or compressed, which appears when it is complete and checked."""

import io
import mmap
import time
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from balenaflash.errors import InterruptedWriteError, VerificationError
from balenaflash.flashing.plan import CHUNK_SIZE
from balenaflash.progress import Phase, Progress, Stop, phase
from balenaflash.source.base import Source
from balenaflash.source.container.compress import (
    READ_FAILURES,
    Reader,
    find_container,
    open_compressed,
    open_compressor,
)
from balenaflash.source.container.decoder import Container
from balenaflash.source.undo_record import forget_record
from balenaflash.targets.file import NewFile, make_file
from balenaflash.units import Extent, format_size


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image that was saved."""

    path: Path
    """The path as the user gave it."""

    container: Container | None
    """The format it is compressed in; ``None`` for a raw image."""

    size: int
    """Bytes of the image."""

    file_size: int
    """Bytes of the file, including the holes of a raw image."""

    seconds: float
    """Duration, including the read-back."""


def save_image(
    source: Source,
    out: Path,
    *,
    overwrite: bool,
    mode: int = 0o666,
    progress: Progress,
    stop: Stop,
) -> SavedImage:
    """Save ``source`` as the file ``out``, read back and compared before it gets its name.

    The suffix of the name selects the compression. In a raw file runs of zeros become holes.

    Raises:
        ImageError: the image cannot be read, or ``out`` has the suffix of a container that is not
            written.
        TargetRefusedError: as `make_file`.
        WriteError, InterruptedWriteError: writing failed, or ``stop`` returned true.
        VerificationError: what was read back differs. After each of these errors a file that was
            at ``out`` before is unchanged.
    """
    started = time.monotonic()
    container = find_container(out)
    # What a container says of its content is checked at its end, before ``out`` is made.
    size = source.measure() if source.size is None else source.size
    raw_size = size if container is None else 0
    with make_file(out, size=raw_size, overwrite=overwrite, mode=mode) as file:
        digests, file_size = _write(source, size, container, file, progress, stop)
        file.begin_read_back()
        stored = io.BufferedReader(_StoredFile(file, file_size), CHUNK_SIZE)
        image = stored if container is None else open_compressed(container, stored)
        _compare(file.name, image, size, digests, progress, stop)
    forget_record(out)
    return SavedImage(out, container, size, file_size, time.monotonic() - started)


def _write(
    source: Source,
    size: int,
    container: Container | None,
    file: NewFile,
    progress: Progress,
    stop: Stop,
) -> tuple[list[bytes], int]:
    """Write the image; the SHA-256 of each of its chunks, and the size of the file."""
    digests, position = list[bytes](), 0
    buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
    opened = nullcontext() if container is None else open_compressor(container, size)
    with phase(progress, Phase.WRITE, size), opened as compressor:
        for extent in Extent(0, size).cut(CHUNK_SIZE):
            _stop_if_asked(stop, file.name, f"interrupted after {format_size(extent.start)}")
            chunk = buffer[: extent.size]
            with source.sequential():
                source.readinto(extent.start, chunk)
            digests.append(sha256(chunk).digest())
            data = chunk if compressor is None else memoryview(compressor.compress(chunk))
            file.write(position, data)
            position += len(data)
            progress.advance(extent.size)
        source.finish()
        if compressor is not None:
            data = memoryview(compressor.flush())
            file.write(position, data)
            position += len(data)
    return digests, position


class _StoredFile(io.RawIOBase):
    """The first ``size`` bytes of a file, read from the disk."""

    def __init__(self, file: NewFile, size: int) -> None:
        super().__init__()
        self._file = file
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # typeshed's Buffer is wider
        length = min(len(buffer), self._size - self._position)
        self._file.readinto(self._position, memoryview(buffer)[:length])
        self._position += length
        return length


def _compare(
    name: str, image: Reader, size: int, digests: list[bytes], progress: Progress, stop: Stop
) -> None:
    with phase(progress, Phase.VERIFY, size):
        for extent, digest in zip(Extent(0, size).cut(CHUNK_SIZE), digests, strict=True):
            _stop_if_asked(stop, name, "the read-back was interrupted")
            if sha256(_read(name, image, extent.start, extent.size)).digest() != digest:
                raise _wrong(name, "does not read back as written", extent.start)
            progress.advance(extent.size)
        if _read(name, image, size, 1):
            raise _wrong(name, "has more bytes than were written", size)


def _read(name: str, image: Reader, offset: int, length: int) -> bytes:
    """The next ``length`` bytes, fewer only at the end."""
    data = bytearray()
    try:
        while len(data) < length and (piece := image.read(length - len(data))):
            data += piece
    except READ_FAILURES as error:
        raise _wrong(name, f"cannot be decoded any more ({error})", offset) from error
    return bytes(data)


def _wrong(name: str, fact: str, offset: int) -> VerificationError:
    return VerificationError(
        f"{name}: {fact}, from byte {offset} of the image on; the file is removed",
        hint="Write it again. If it differs again, the disk is failing.",
    )


def _stop_if_asked(stop: Stop, name: str, fact: str) -> None:
    if stop():
        raise InterruptedWriteError(f"{name}: {fact}; the unfinished file is removed")
