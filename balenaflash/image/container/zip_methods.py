"""How members of a zip file may be compressed."""

import bz2
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from balenaflash.image.container.deflate import DEFLATE_FAILURES, new_deflate_engine
from balenaflash.image.container.deflate64 import DEFLATE64_FAILURES, new_deflate64_engine
from balenaflash.image.container.stream import Engine
from balenaflash.image.container.xz import MEMORY_LIMIT, new_xz_engine
from balenaflash.image.container.zstd import ZSTD_FAILURES, new_zstd_engine


@dataclass(frozen=True, slots=True)
class Method:
    """A way to compress a member."""

    new_engine: Callable[[], Engine]

    failures: tuple[type[Exception], ...]
    """What an engine raises for damaged data."""


class _StoredEngine:
    """Passes on what it is given; it has no end of its own."""

    eof = False
    unused_data = b""

    def __init__(self) -> None:
        self._rest = memoryview(b"")

    @property
    def needs_input(self) -> bool:
        return not self._rest

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if not self._rest and len(data) <= max_length:
            return data
        rest = memoryview(bytes(self._rest) + data) if data else self._rest
        self._rest = rest[max_length:]
        return bytes(rest[:max_length])


class _LzmaEngine:
    """LZMA with zip's own header (APPNOTE 6.3.10, section 5.8.8), turned into that of .lzma."""

    _VERSION_SIZE = 4  # bytes: the version of the SDK, and the size of the properties
    _PROPERTIES_SIZE = 5

    def __init__(self, size: int | None = None) -> None:
        """``size`` is that of the content, where its end is not marked."""
        self._engine = lzma.LZMADecompressor(lzma.FORMAT_ALONE, MEMORY_LIMIT)
        self._head: bytes | None = b""
        # Unknown, as .lzma has it.
        self._size = b"\xff" * 8 if size is None else size.to_bytes(8, "little")

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def needs_input(self) -> bool:
        return self._engine.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if self._head is not None:
            self._head += data
            size = self._VERSION_SIZE + self._PROPERTIES_SIZE
            if len(self._head) < size:
                return b""
            if int.from_bytes(self._head[2:4], "little") != self._PROPERTIES_SIZE:
                raise lzma.LZMAError("properties of an unknown size")
            data = self._head[4:size] + self._size + self._head[size:]
            self._head = None
        return self._engine.decompress(data, max_length)


STORED = 0
"""The method of a member that is not compressed."""

DEFLATE64 = 9
LZMA = 14

METHODS = {
    STORED: Method(_StoredEngine, ()),
    8: Method(new_deflate_engine, DEFLATE_FAILURES),
    DEFLATE64: Method(new_deflate64_engine, DEFLATE64_FAILURES),
    12: Method(bz2.BZ2Decompressor, (OSError,)),
    LZMA: Method(_LzmaEngine, (lzma.LZMAError,)),
    93: Method(new_zstd_engine, ZSTD_FAILURES),
    95: Method(new_xz_engine, (lzma.LZMAError,)),
}
"""APPNOTE 6.3.10, section 4.4.5, to what decodes it."""


def lzma_of_size(size: int) -> Method:
    """What decodes LZMA without a mark at its end, of ``size`` bytes when decoded.

    Without the size a decoder goes on into the last bytes and makes up some more.
    """
    return Method(partial(_LzmaEngine, size), (lzma.LZMAError,))
