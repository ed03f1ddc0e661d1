"""Streams one after another, decoded from the start: gzip, xz, bzip2 and zstd alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.extent import KIB
from balenaflash.image.container.decoder import (
    Decoder,
    Input,
    corrupt,
    cut_short,
    trailing_garbage,
)
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin

_PIECE_SIZE = 256 * KIB
"""Bytes decoded in one call at most: they are copied while they are in the processor's cache."""


class Engine(Protocol):
    """What decodes one stream; the interface of ``lzma``, ``bz2``, ``igzip_lib`` and ``zstd``."""

    @property
    def eof(self) -> bool:
        """Whether the stream ended, its checksums verified."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before something goes in."""

    @property
    def unused_data(self) -> bytes:
        """What was put in behind the end of the stream."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most ``max_length`` decoded bytes; what is left of ``data`` is kept."""


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """A format whose files are streams one after another."""

    container: Container
    magics: tuple[bytes, ...]
    """The first bytes of a stream: one of these, all of the same length."""

    new_engine: Callable[[], Engine]

    failures: tuple[type[Exception], ...]
    """What an engine raises for damaged data."""

    padding: int | None = 1
    """Zeros may stand between and behind streams, in multiples of this; ``None``: none may."""

    too_large: str = ""
    """Part of an engine's message for a stream that needs more memory than it may have."""

    unpack: str = ""
    """The command that decodes such a stream."""


def too_large(name: str, layout: StreamFormat) -> ImageError:
    """The error for a stream that needs more memory than its engine may have."""
    return ImageError(
        f"{name}: needs more memory to be decoded than is allowed",
        code="image-unsupported",
        hint=f"Unpack it first: {layout.unpack} {name}",
    )


class StreamDecoder:
    """The streams of a container, decoded in order from where ``source`` stands."""

    def __init__(self, source: Input, layout: StreamFormat) -> None:
        self._input = source
        self._format = layout
        self._engine: Engine | None = layout.new_engine()
        self._pending = b""
        """What was read and is still to be put into the engine."""
        self._done = 0

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer) and self._engine is not None:
            if self._engine.eof:
                self._engine = self._next_engine(self._engine.unused_data)
                continue
            piece = self._decode(self._engine, min(_PIECE_SIZE, len(buffer) - filled))
            end = filled + len(piece)
            buffer[filled:end] = piece
            self._done += len(piece)
            filled = end
        return filled

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine = None

    def _decode(self, engine: Engine, length: int) -> bytes:
        """Up to ``length`` bytes; none does not mean the end."""
        data, self._pending = self._pending, b""
        if not data and engine.needs_input:
            data = self._input.read()
            if not data:
                place = self._input.position
                raise cut_short(self._input.name, self._format.container, place, self._done)
        try:
            return engine.decompress(data, length)
        except self._format.failures as error:
            raise self._failed(error) from error

    def _next_engine(self, data: bytes) -> Engine | None:
        """The engine of the stream that follows in ``data``; ``None`` at the end."""
        data, padding = self._behind_padding(data)
        if padding % (self._format.padding or 1):
            raise self._corrupt(f"has {padding} bytes of padding")
        if not data:
            return None
        while len(data) < len(self._format.magics[0]) and (more := self._input.read()):
            data += more
        if not data.startswith(self._format.magics):
            place = self._input.position - len(data)
            raise trailing_garbage(self._input.name, self._format.container, place, self._done)
        self._pending = data
        return self._format.new_engine()

    def _behind_padding(self, data: bytes) -> tuple[bytes, int]:
        """What follows the zeros that stand next, and how many they are."""
        padding = 0
        while True:
            rest = data.lstrip(b"\0") if self._format.padding else data
            padding += len(data) - len(rest)
            if rest:
                return rest, padding
            data = self._input.read()
            if not data:
                return b"", padding

    def _failed(self, error: Exception) -> ImageError:
        if self._format.too_large and self._format.too_large in str(error):
            return too_large(self._input.name, self._format)
        return self._corrupt(f"cannot be decoded: {error}")

    def _corrupt(self, why: str) -> ImageError:
        name, place = self._input.name, self._input.position
        return corrupt(name, self._format.container, place, self._done, why)


@dataclass(frozen=True, slots=True)
class CompressedStreams:
    """An image in one or more streams, which can only be decoded from the start."""

    origin: Origin
    layout: StreamFormat
    size: int | None = None

    @property
    def container(self) -> Container:
        """What it is compressed with."""
        return self.layout.container

    @property
    def member(self) -> None:
        """There are no members."""

    @property
    def seekable(self) -> bool:
        """Never: what comes before a byte has to be decoded first."""
        return False

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder from the start; see ``Compressed``."""
        if at:
            raise ValueError(at)
        return StreamDecoder(Input(self.origin), self.layout)
