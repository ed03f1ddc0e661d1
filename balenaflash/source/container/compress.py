"""Compress an image: gzip by ISA-L, xz and zstd by their own libraries on all cores.

The same bytes give the same compressed bytes: no name and no time goes into them.
"""

import gzip
import lzma
import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

from isal import isal_zlib

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import Container
from balenaflash.source.container.zstd import zstd
from balenaflash.units import MIB

SUFFIXES = {".gz": Container.GZIP, ".xz": Container.XZ, ".zst": Container.ZSTD}
"""End of a file name to what it is compressed with."""

_UNSUPPORTED = frozenset({".bz2", ".zip", ".7z", ".lz4"})
"""Ends of names under which nobody expects an image that is not compressed."""

_GZIP_WBITS = 31  # the largest window, in a gzip container
_ZSTD_LEVEL = 3
_XZ_PRESET = 6
_XZ_STREAM = 24 * MIB  # as `xz -T0 -6` cuts: three times the dictionary
_THREADS = os.cpu_count() or 1


class Reader(Protocol):
    """Bytes in order."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; none at the end."""


class Compressor(Protocol):
    """Takes an image in order and gives its compressed form in order."""

    def compress(self, data: memoryview) -> bytes:
        """Take the next bytes, which may change afterwards; what is ready by now, perhaps none."""

    def finish(self) -> bytes:
        """The rest, after all bytes."""

    def close(self) -> None:
        """Give threads back; nothing more is compressed. May be called again."""


def find_container(path: Path) -> Container | None:
    """What a file of that name is compressed with; ``None`` for a raw image.

    Raises:
        ImageError: its name is that of a container that is not written
            (``container-unsupported``).
    """
    suffix = path.suffix.lower()
    if suffix in _UNSUPPORTED:
        raise ImageError(
            f"{path}: images are not written as {suffix}",
            code="container-unsupported",
            hint=f"Name it {' or '.join(path.stem + each for each in SUFFIXES)}.",
        )
    return SUFFIXES.get(suffix)


def new_compressor(container: Container, size: int) -> Compressor:
    """What compresses ``size`` bytes into ``container``, one of those in ``SUFFIXES``."""
    match container:
        case Container.GZIP:
            return _Gzip()
        case Container.XZ:
            return _Xz()
        case Container.ZSTD:
            return _Zstd(size)
        case _:
            raise ValueError(f"images are not compressed into {container}")


def open_compressed(container: Container, file: BinaryIO) -> Reader:
    """The image in ``file``, to be read from its start; for what `new_compressor` has made."""
    match container:
        case Container.GZIP:
            return gzip.GzipFile(fileobj=file, mode="rb")
        case Container.XZ:
            return lzma.LZMAFile(file)
        case Container.ZSTD:
            return zstd.ZstdFile(file)
        case _:
            raise ValueError(f"images are not compressed into {container}")


READ_FAILURES = (
    EOFError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    zstd.ZstdError,
)
"""What reading from `open_compressed` raises for damaged content."""


class _Gzip:
    """One member, without name and time."""

    def __init__(self) -> None:
        self._compressor = isal_zlib.compressobj(isal_zlib.Z_BEST_COMPRESSION, wbits=_GZIP_WBITS)

    def compress(self, data: memoryview) -> bytes:
        return self._compressor.compress(data)

    def finish(self) -> bytes:
        return self._compressor.flush()

    def close(self) -> None:
        """Hold nothing."""


class _Zstd:
    """One frame, with its size and a checksum."""

    def __init__(self, size: int) -> None:
        parameter = zstd.CompressionParameter
        options: dict[int, int] = {
            parameter.compression_level: _ZSTD_LEVEL,
            parameter.checksum_flag: 1,
            parameter.nb_workers: _THREADS,  # how many there are does not change the bytes
        }
        self._compressor = zstd.ZstdCompressor(options=options)
        self._compressor.set_pledged_input_size(size)

    def compress(self, data: memoryview) -> bytes:
        return self._compressor.compress(data)

    def finish(self) -> bytes:
        return self._compressor.flush()

    def close(self) -> None:
        """Hold nothing."""


class _Xz:
    """A stream for each 24 MiB, made by all cores at once (xz file format 1.2.1, section 2)."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, "xz")
        self._pending: deque[Future[bytes]] = deque()
        self._gathered = bytearray()

    def compress(self, data: memoryview) -> bytes:
        self._gathered += data
        while len(self._gathered) >= _XZ_STREAM:
            self._submit(bytes(self._gathered[:_XZ_STREAM]))
            del self._gathered[:_XZ_STREAM]
        # One more than there are cores, so that none waits for the next piece.
        return self._take(until=_THREADS + 1)

    def finish(self) -> bytes:
        if self._gathered:
            self._submit(bytes(self._gathered))
            self._gathered.clear()
        done = self._take(until=0)
        self.close()
        return done

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, piece: bytes) -> None:
        self._pending.append(
            self._pool.submit(lzma.compress, piece, check=lzma.CHECK_CRC64, preset=_XZ_PRESET)
        )

    def _take(self, *, until: int) -> bytes:
        parts = []
        while len(self._pending) > until:
            parts.append(self._pending.popleft().result())
        return b"".join(parts)
