"""A file or block device whose every byte stays what it was when its sum was computed."""

import hashlib

from balenaflash.extent import KIB
from balenaflash.image.container.running_digest import RunningDigest
from balenaflash.image.source import FileSource, RandomAccess
from balenaflash.image.steady import changed

_BLOCK = 64 * KIB
_DIGEST_SIZE = 32
_PIECE = 16 * _BLOCK  # read at a time


class SealedSource(RandomAccess):
    """What a file or block device held when it was hashed from start to end.

    A digest of each 64 KiB is kept, 32 bytes, and whatever is read later is compared with it. So
    nobody who may write to the file can have other bytes used than those of the sum.
    """

    def __init__(self, source: FileSource) -> None:
        """Read all of ``source``.

        Raises:
            ImageError: it cannot be read.
        """
        self._source = source
        self._digests = bytearray()
        self.sha256 = self._hash_all()
        """SHA-256 of all of it."""

    @property
    def name(self) -> str:
        """As the file."""
        return self._source.name

    @property
    def size(self) -> int:
        """As the file."""
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them, and as they were hashed.

        Raises:
            ImageError: they are others (``image-changed``); or as `FileSource.read`.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            return self._source.read(offset, length)  # which says what is wrong with that
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; errors as ``read``."""
        end = offset + len(buffer)
        start = offset // _BLOCK * _BLOCK
        stop = min(-(-end // _BLOCK) * _BLOCK, self.size)
        if (start, stop) == (offset, end):
            self._read_blocks(start, buffer)
        elif stop > start:
            blocks = memoryview(bytearray(stop - start))
            self._read_blocks(start, blocks)
            buffer[:] = blocks[offset - start : end - start]

    def _read_blocks(self, start: int, buffer: memoryview) -> None:
        self._source.readinto(start, buffer)
        place = start // _BLOCK * _DIGEST_SIZE
        digests = b"".join(_digests(buffer))
        if digests != self._digests[place : place + len(digests)]:
            raise changed(self.name)

    def _hash_all(self) -> bytes:
        running = RunningDigest()
        try:
            for start in range(0, self.size, _PIECE):
                piece = self._source.read(start, min(_PIECE, self.size - start))
                running.update(piece)
                self._digests += b"".join(_digests(memoryview(piece)))
            return bytes.fromhex(running.hexdigest())
        finally:
            running.close()


def _digests(blocks: memoryview) -> list[bytes]:
    # Faster than SHA-256 where the processor has no instructions for that.
    return [
        hashlib.blake2b(blocks[start : start + _BLOCK], digest_size=_DIGEST_SIZE).digest()
        for start in range(0, len(blocks), _BLOCK)
    ]


class SealedOrigin:
    """A container in a sealed file."""

    seekable = True
    is_local = True

    def __init__(self, source: SealedSource) -> None:
        self._source = source

    @property
    def name(self) -> str:
        """The file's."""
        return self._source.name

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._source.size

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; fewer only at the end."""
        return self._source.read(offset, max(0, min(length, self.size - offset)))

    def open_file(self) -> None:
        """A program that read it by itself would read what nobody compares."""
