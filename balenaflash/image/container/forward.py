"""Bytes at offsets out of a stream that only runs forward."""

from collections.abc import Callable

HEAD_SIZE = 64 * 1024
"""Bytes from the start that stay readable, for recognition by content."""


class ForwardReader:
    """A stream read in ascending order, with its head kept.

    ``take(limit)`` gives the next 1 to ``limit`` bytes, and ``b""`` at the end only.
    """

    def __init__(self, take: Callable[[int], bytes | memoryview]) -> None:
        self._take = take
        self._head = bytearray()
        self._position = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, fewer only at the end.

        Raises:
            ValueError: ``offset`` is neither in the head nor where the last read ended, which
                no image can cause: it is a mistake of the caller.
        """
        kept = bytes(self._head[offset : offset + length])
        rest = length - len(kept)
        if rest == 0:
            return kept
        if offset + len(kept) != self._position:
            raise ValueError(f"byte {offset} of a stream that has come to {self._position}")
        return kept + self._read_on(rest) if kept else self._read_on(rest)

    def _read_on(self, length: int) -> bytes:
        pieces = []
        while length:
            piece = self._take(length)
            if not piece:
                break
            self._keep_head(piece)
            self._position += len(piece)
            length -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def _keep_head(self, piece: bytes | memoryview) -> None:
        if len(self._head) < HEAD_SIZE:
            self._head += piece[: HEAD_SIZE - len(self._head)]
