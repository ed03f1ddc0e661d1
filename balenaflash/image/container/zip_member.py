"""The bytes of one member of a zip file, decoded and checked."""

from dataclasses import dataclass

from balenaflash.errors import ImageError
from balenaflash.extent import KIB
from balenaflash.image.container.decoder import Input, corrupt, cut_short
from balenaflash.image.container.deflate import crc32
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.stream import Engine
from balenaflash.image.container.zip_methods import Method

_PIECE_SIZE = 256 * KIB
"""Bytes decoded in one call at most: they are copied while they are in the processor's cache."""


@dataclass(frozen=True, slots=True)
class MemberSizes:
    """What a member is to be checked by."""

    stored: int
    """Bytes in the zip file."""

    content: int
    """Bytes when decoded."""

    crc: int
    """CRC-32 of the content."""


class MemberDecoder:
    """A member, decoded from its start on, where ``source`` stands.

    Without ``sizes`` the member ends where its method says; what was read behind it is then put
    back, and ``seen`` is what the member turned out to be.
    """

    def __init__(self, source: Input, method: Method, sizes: MemberSizes | None) -> None:
        self._input = source
        self._method = method
        self._engine: Engine | None = method.new_engine()
        self._sizes = sizes
        self._start = source.position
        self._done = 0
        self._crc = 0

    @property
    def seen(self) -> MemberSizes:
        """Sizes and CRC-32 of what was decoded so far."""
        return MemberSizes(self._input.position - self._start, self._done, self._crc)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer) and self._engine is not None:
            if self._engine.eof or self._is_complete(self._engine):
                self._finish(self._engine)
                break
            piece = self._decode(self._engine, min(_PIECE_SIZE, len(buffer) - filled))
            end = filled + len(piece)
            buffer[filled:end] = piece
            self._crc = crc32(piece, self._crc)
            self._done += len(piece)
            filled = end
            if self._sizes is not None and self._done > self._sizes.content:
                raise self._corrupt(f"unpacks to more than the {self._sizes.content} bytes it says")
        return filled

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine = None

    def _is_complete(self, engine: Engine) -> bool:
        """Whether a member whose method marks no end is decoded whole."""
        return self._left() == 0 and engine.needs_input

    def _left(self) -> int | None:
        """Bytes of the member still to be read, as far as that is known."""
        if self._sizes is None:
            return None
        return self._sizes.stored - (self._input.position - self._start)

    def _decode(self, engine: Engine, length: int) -> bytes:
        data = b""
        if engine.needs_input:
            left = self._left()
            wanted = Input.CHUNK_SIZE if left is None else min(left, Input.CHUNK_SIZE)
            data = self._input.read(wanted)
            if not data:
                raise cut_short(self._input.name, Container.ZIP, self._input.position, self._done)
        try:
            return engine.decompress(data, length)
        except self._method.failures as error:
            raise self._corrupt(f"cannot be decoded: {error}") from error

    def _finish(self, engine: Engine) -> None:
        self._engine = None
        self._input.put_back(engine.unused_data)
        if self._sizes is not None and self.seen != self._sizes:
            raise self._corrupt("does not have the size and CRC-32 that it should")

    def _corrupt(self, why: str) -> ImageError:
        return corrupt(self._input.name, Container.ZIP, self._input.position, self._done, why)
