"""Save an image to a file, raw or compressed, that is there when it is complete and read back."""

import io
import mmap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from balenaflash.errors import InterruptedWriteError, VerificationError
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
from balenaflash.source.undo import forget_record
from balenaflash.targets.file import NewFile, make_file
from balenaflash.units import MIB, Extent, format_size

_CHUNK = 4 * MIB


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image that was saved."""

    path: Path
    """As the user gave it."""

    container: Container | None
    """What it is compressed with; ``None`` for a raw image."""

    size: int
    """Bytes of the image."""

    file_size: int
    """Bytes of the file; of a raw image holes are counted."""

    seconds: float
    """What it took, with the read-back."""


def save_image(
    source: Source,
    out: Path,
    *,
    overwrite: bool,
    mode: int = 0o666,
    progress: Progress,
    stop: Stop,
) -> SavedImage:
    """Make the file ``out``, of ``source``; read back and compared before it gets its name.

    The end of the name says what it is compressed with, if it is. In a raw one, runs of zeros
    are holes.

    Raises:
        ImageError: the image cannot be read, or ``out`` has the name of a container that is not
            written.
        TargetRefusedError: as `make_file`.
        WriteError, InterruptedWriteError: writing failed, or ``stop`` said so.
        VerificationError: what was read back differs. After each of these, what was at ``out``
            is there as it was.
    """
    started = time.monotonic()
    container = find_container(out)
    # What a container says is checked when its end is reached, before ``out`` is made.
    size = source.measure() if source.size is None else source.size
    raw_size = size if container is None else 0
    with make_file(out, size=raw_size, overwrite=overwrite, mode=mode) as file:
        if container is None:
            digests = _write_raw(source, size, file, progress, stop)
            file.begin_read_back()
            stored = io.BufferedReader(_ReadBack(file, size), _CHUNK)
            _compare(file.name, stored, size, digests, progress, stop)
            file_size = size
        else:
            digests, file_size = _write_compressed(source, size, container, file, progress, stop)
            file.begin_read_back()
            stored = io.BufferedReader(_ReadBack(file, file_size), _CHUNK)
            image = open_compressed(container, stored)
            _compare(file.name, image, size, digests, progress, stop)
    forget_record(out)
    return SavedImage(out, container, size, file_size, time.monotonic() - started)


def _write_raw(
    source: Source, size: int, file: NewFile, progress: Progress, stop: Stop
) -> list[bytes]:
    digests = []
    with phase(progress, Phase.WRITE, size):
        for extent, chunk in _chunks(source, size, file.name, stop):
            digests.append(sha256(chunk).digest())
            file.write(extent.start, chunk)
            progress.advance(extent.size)
    source.finish()
    return digests


def _write_compressed(
    source: Source,
    size: int,
    container: Container,
    file: NewFile,
    progress: Progress,
    stop: Stop,
) -> tuple[list[bytes], int]:
    """The digests of the image's chunks, and how many bytes the file has."""
    digests, position = [], 0
    with phase(progress, Phase.WRITE, size), open_compressor(container, size) as compressor:
        for extent, chunk in _chunks(source, size, file.name, stop):
            digests.append(sha256(chunk).digest())
            data = compressor.compress(chunk)
            file.write(position, memoryview(data))
            position += len(data)
            progress.advance(extent.size)
        source.finish()
        data = compressor.flush()
        file.write(position, memoryview(data))
    return digests, position + len(data)


def _chunks(
    source: Source, size: int, name: str, stop: Stop
) -> Iterator[tuple[Extent, memoryview]]:
    """The image in order; a chunk is valid until the next one is asked for."""
    buffer = memoryview(mmap.mmap(-1, _CHUNK))
    for start in range(0, size, _CHUNK):
        if stop():
            raise InterruptedWriteError(
                f"{name}: interrupted after {format_size(start)}; the unfinished file is removed",
                written=start,
            )
        extent = Extent(start, min(start + _CHUNK, size))
        chunk = buffer[: extent.size]
        with source.sequential():
            source.readinto(extent.start, chunk)
        yield extent, chunk


class _ReadBack(io.RawIOBase):
    """What the disk holds of a file, from its start."""

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
    name: str,
    image: Reader,
    size: int,
    digests: list[bytes],
    progress: Progress,
    stop: Stop,
) -> None:
    with phase(progress, Phase.VERIFY, size):
        for number, digest in enumerate(digests):
            if stop():
                raise InterruptedWriteError(
                    f"{name}: interrupted in the read-back; the unfinished file is removed",
                    written=size,
                )
            start = number * _CHUNK
            length = min(_CHUNK, size - start)
            if sha256(_read(name, image, start, length)).digest() != digest:
                raise _differs(name, start, "reads back otherwise than written")
            progress.advance(length)
        if _read(name, image, size, 1):
            raise _differs(name, size, "has more bytes than were written")


def _read(name: str, image: Reader, offset: int, length: int) -> bytes:
    """The next ``length`` bytes, fewer only at the end."""
    data = bytearray()
    try:
        while len(data) < length:
            piece = image.read(length - len(data))
            if not piece:
                break
            data += piece
    except READ_FAILURES as error:
        raise _differs(name, offset, f"cannot be decoded any more ({error})") from error
    return bytes(data)


def _differs(name: str, offset: int, fact: str) -> VerificationError:
    return VerificationError(
        f"{name}: {fact} from byte {offset} of the image on; the file is removed",
        hint="Write it again; if it differs again, the disk is failing.",
    )
