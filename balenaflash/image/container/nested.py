"""An image that is compressed, and packed into a zip file besides; or that comes as a stream."""

from collections.abc import Callable
from dataclasses import dataclass

from balenaflash.image.container.decoder import Compressed, Decoder, Input
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Peeked


@dataclass(frozen=True, slots=True)
class Nested:
    """A member of a zip file, decoded by what its own content asks for."""

    outer: Compressed
    size: int | None
    open_inner: Callable[[], Decoder]

    @property
    def container(self) -> Container:
        """The outer one."""
        return self.outer.container

    @property
    def member(self) -> str | None:
        """Its name in the outer one."""
        return self.outer.member

    @property
    def seekable(self) -> bool:
        """Never."""
        return False

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder from the start; see ``Compressed``."""
        if at:
            raise ValueError(at)
        return self.open_inner()


def look_inside(
    name: str, outer: Compressed, recognise: Callable[[Peeked], Compressed | None], *, again: bool
) -> Compressed:
    """``outer``, or the image that is compressed in its member by what ``recognise`` knows.

    ``again`` is whether ``outer`` can be decoded more than once.

    Raises:
        ImageError: the member's start cannot be decoded.
    """

    def open_member() -> tuple[Peeked, Compressed | None]:
        peeked = Peeked(_MemberOrigin(f"{name} ({outer.member})", outer.open_decoder()))
        return peeked, recognise(peeked)

    def reopen() -> Decoder:
        peeked, inner = open_member()
        return _OriginDecoder(peeked) if inner is None else inner.open_decoder()

    peeked, inner = open_member()
    if not again:
        size = outer.size if inner is None else None
        return Nested(outer, size, inner.open_decoder if inner else lambda: _OriginDecoder(peeked))
    return outer if inner is None else Nested(outer, None, reopen)


class _MemberOrigin:
    """The bytes of a member, as an origin to be read once from the start."""

    size = None
    seekable = False
    is_local = False

    def __init__(self, name: str, decoder: Decoder) -> None:
        self.name = name
        self._decoder = decoder
        self._ended = False

    def read_at(self, offset: int, length: int) -> bytes:
        """The next bytes; ``offset`` is where the last ones ended."""
        del offset
        if self._ended:
            return b""
        buffer = bytearray(length)
        filled = self._decoder.readinto(memoryview(buffer))
        self._ended = filled < length
        return bytes(memoryview(buffer)[:filled])

    def open_file(self) -> None:
        """They are in no file."""


class _OriginDecoder:
    """An origin's own bytes, of which the first were looked at."""

    def __init__(self, origin: Peeked) -> None:
        self._input = Input(origin)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer):
            data = self._input.read(min(Input.CHUNK_SIZE, len(buffer) - filled))
            if not data:
                break
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def close(self) -> None:
        """Nothing is held."""
