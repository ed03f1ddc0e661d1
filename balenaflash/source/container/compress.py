"""Compress an image: gzip by ISA-L, xz and zstd by their own libraries on all cores.

The same image gives the same compressed bytes: they contain no name and no time.
"""

import gzip
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from isal import isal_zlib

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import Container, usable_cores
from balenaflash.source.container.zstd import zstd
from balenaflash.units import MIB

_SUFFIXES = {".gz": Container.GZIP, ".xz": Container.XZ, ".zst": Container.ZSTD}
"""End of a file name to the container that is written."""

_UNSUPPORTED = frozenset({".bz2", ".zip", ".7z", ".lz4"})
"""Ends of names under which nobody expects an image that is not compressed."""

_GZIP_WBITS = 31  # the largest window, in a gzip container
_ZSTD_LEVEL = 3
_XZ_PRESET = 6
_XZ_STREAM = 24 * MIB  # as `xz -T0 -6` cuts: three times the dictionary


class Reader(Protocol):
    """Bytes in order."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; none at the end."""


class Compressor(Protocol):
    """Compresses an image in order."""

    def compress(self, data: memoryview, /) -> bytes:
        """Compress the next bytes, which may change afterwards; return finished ones, if any."""

    def flush(self) -> bytes:
        """The rest of the compressed bytes, after the last call of `compress`."""


def find_container(path: Path) -> Container | None:
    """The container that the name of ``path`` asks for; ``None`` for a raw image.

    Raises:
        ImageError: that container cannot be written (``container-unsupported``).
    """
    suffix = path.suffix.lower()
    if suffix in _UNSUPPORTED:
        raise ImageError(
            f"{path}: images cannot be written as {suffix}",
            code="container-unsupported",
            hint=f"Name it {' or '.join(path.stem + each for each in _SUFFIXES)}.",
        )
    return _SUFFIXES.get(suffix)


@contextmanager
def open_compressor(container: Container, size: int) -> Iterator[Compressor]:
    """A compressor of ``size`` bytes into a ``container`` that `find_container` returns."""
    match container:
        case Container.GZIP:  # one member, without name and time
            yield isal_zlib.compressobj(isal_zlib.Z_BEST_COMPRESSION, wbits=_GZIP_WBITS)
        case Container.ZSTD:
            yield _new_zstd(size)
        case Container.XZ:
            pool = ThreadPoolExecutor(usable_cores(), "xz")
            try:
                yield _Xz(pool, usable_cores())
            finally:
                pool.shutdown(cancel_futures=True)
        case _:
            raise ValueError(container)


def open_compressed(container: Container, file: BinaryIO) -> Reader:
    """The image in ``file``, which a compressor has made, from its start."""
    return _READERS[container](file)


_READERS: dict[Container, Callable[[BinaryIO], Reader]] = {
    Container.GZIP: lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    Container.XZ: lzma.LZMAFile,
    Container.ZSTD: zstd.ZstdFile,
}

READ_FAILURES = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstd.ZstdError)
"""Exceptions of these readers for damaged content."""


def _new_zstd(size: int) -> Compressor:
    """A compressor into one frame, with its size and a checksum."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: _ZSTD_LEVEL,
        parameter.checksum_flag: 1,
        parameter.nb_workers: usable_cores(),  # their number does not change the bytes
    }
    compressor = zstd.ZstdCompressor(options=options)
    compressor.set_pledged_input_size(size)
    return compressor


class _Xz:
    """A stream for each 24 MiB, made by ``pool`` (xz file format 1.2.1, section 2)."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool = pool
        self._threads = threads
        self._pending: deque[Future[bytes]] = deque()
        self._gathered = bytearray()

    def compress(self, data: memoryview, /) -> bytes:
        self._gathered += data
        while len(self._gathered) >= _XZ_STREAM:
            self._submit(bytes(self._gathered[:_XZ_STREAM]))
            del self._gathered[:_XZ_STREAM]
        # One more than there are threads, so that none waits for the next piece.
        return self._finished(pending=self._threads + 1)

    def flush(self) -> bytes:
        if self._gathered:
            self._submit(bytes(self._gathered))
            self._gathered.clear()
        return self._finished(pending=0)

    def _submit(self, piece: bytes) -> None:
        self._pending.append(
            self._pool.submit(lzma.compress, piece, check=lzma.CHECK_CRC64, preset=_XZ_PRESET)
        )

    def _finished(self, *, pending: int) -> bytes:
        """The oldest streams; at most ``pending`` are left."""
        parts = []
        while len(self._pending) > pending:
            parts.append(self._pending.popleft().result())
        return b"".join(parts)
