"""Formats of streams one after another (gzip, xz, bzip2, zstd); gzip and deflate by ISA-L."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from isal import igzip_lib, isal_zlib

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import (
    CHUNK_SIZE,
    Compressed,
    Container,
    Input,
    Origin,
    Pieces,
    PiecesDecoder,
    corrupt,
    cut_short,
    shell_name,
    trailing_garbage,
    unsupported,
)
from balenaflash.units import KIB

_FIRST_STEP = 4 * KIB
"""Bytes put into the engine of a new stream: it copies those that are not part of the stream."""

_SMALL_STREAM = 4 * KIB
"""Bytes of an image that a usual stream holds at least: 64 KiB by bgzip, 900 kB by pbzip2."""

_MAX_SMALL_STREAMS = 100_000
"""Smaller streams in one container: each takes time, and memory if there is an index."""


class Engine(Protocol):
    """Decoder of one stream; the interface of ``lzma``, ``bz2``, ``igzip_lib`` and ``zstd``."""

    @property
    def eof(self) -> bool:
        """True if the stream ended and its checksums were verified."""

    @property
    def needs_input(self) -> bool:
        """True if nothing more can be decoded without more input."""

    @property
    def unused_data(self) -> bytes:
        """Input after the end of the stream."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most ``max_length`` decoded bytes; the rest of ``data`` is kept."""


def engine_pieces(engine: Engine, stored: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces that ``engine`` decodes from ``stored`` until one of the two ends."""
    while not engine.eof:
        data = b""
        if engine.needs_input and not (data := next(stored, b"")):
            return
        if piece := engine.decompress(data, CHUNK_SIZE):
            yield piece


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """A format whose files are streams one after another."""

    container: Container
    magics: tuple[bytes, ...]
    """First bytes of a stream: one of these, all of the same length."""

    new_engine: Callable[[], Engine]

    failures: tuple[type[Exception], ...]
    """Exceptions of an engine for damaged data."""

    unpack: str
    """Command that decodes a file of this format."""

    padding: int | None = 1
    """Zeros after the last stream are allowed in multiples of this; ``None``: not at all."""

    padding_between: bool = False
    """True if zeros are allowed between streams too."""

    header_size: int = 0
    """Bytes of a stream that ``find_unknown`` needs."""

    find_unknown: Callable[[bytes], str | None] = lambda _header: None
    """Describes a feature in a stream's header that the engine would ignore."""

    too_large: str = ""
    """Part of an engine's message for a stream that needs more memory than allowed."""

    def failure(self, name: str, place: int, image_place: int, error: Exception) -> ImageError:
        """The refusal for an ``error`` of the engine near byte ``place`` of the container."""
        if self.too_large and self.too_large in str(error):
            hint = f"Unpack it first: {self.unpack} {shell_name(name)}"
            return unsupported(name, "needs more memory to be decoded than is allowed", hint)
        why = f"cannot be decoded: {error}"
        return corrupt(name, self.container, place, image_place, why)


def stream_pieces(
    source: Input, stream_format: StreamFormat, done: int = 0, *, after_stream: bool = False
) -> Pieces:
    """The image in the streams from the position of ``source`` to the end.

    A stream begins there or, with ``after_stream``, has ended there. ``done`` is the offset in the
    image of the first piece.
    """
    name, container = source.name, stream_format.container
    small = 0
    while not after_stream or _is_followed(source, stream_format, done):
        after_stream, began = True, done
        unknown = stream_format.find_unknown(source.peek(stream_format.header_size))
        if unknown is not None:
            raise unsupported(name, unknown)
        engine = stream_format.new_engine()
        try:
            for piece in engine_pieces(engine, _growing_steps(source)):
                done += len(piece)
                yield piece
        except stream_format.failures as error:
            raise stream_format.failure(name, source.position, done, error) from error
        if not engine.eof:
            raise cut_short(name, container, source.position, done)
        source.put_back(engine.unused_data)
        small += done - began < _SMALL_STREAM
        if small > _MAX_SMALL_STREAMS:
            raise unsupported(
                name,
                f"has more than {_MAX_SMALL_STREAMS} {container} streams of less than "
                f"{_SMALL_STREAM} bytes each, unlike any image",
                f"If it is an image, unpack it first: {stream_format.unpack} {shell_name(name)}",
            )


def _growing_steps(source: Input) -> Iterator[bytes]:
    step = _FIRST_STEP
    # Whole chunks are read from the origin, whatever the step.
    while source.peek(1):
        yield source.read(step)
        step = min(2 * step, CHUNK_SIZE)


def _is_followed(source: Input, stream_format: StreamFormat, done: int) -> bool:
    """True if another stream follows the one that has ended.

    Raises:
        ImageError: other data follows.
    """
    name, container, magics = source.name, stream_format.container, stream_format.magics
    end = source.position
    padding = _skip_zeros(source) if stream_format.padding else 0
    if padding % (stream_format.padding or 1):
        raise corrupt(name, container, source.position, done, f"has {padding} bytes of padding")
    start = source.peek(len(magics[0]))
    if not start:
        return False
    if not padding or stream_format.padding_between:
        if start.startswith(magics):
            return True
        if any(magic.startswith(start) for magic in magics):
            raise cut_short(name, container, source.position + len(start), done)
    raise trailing_garbage(name, container, end, done)


def _skip_zeros(source: Input) -> int:
    """Read the zeros that come next, and return their number."""
    start = source.position
    while source.peek(1) == b"\0":
        source.put_back(source.read(_FIRST_STEP).lstrip(b"\0"))
    return source.position - start


def streams_of(origin: Origin, stream_format: StreamFormat, size: int | None = None) -> Compressed:
    """The image in the streams of ``origin``, which can only be decoded from the start."""

    def open_decoder(_at: int) -> PiecesDecoder:
        return PiecesDecoder(stream_pieces(Input(origin), stream_format))

    return Compressed(stream_format.container, open_decoder, size)


# The stub calls the class an instance.
DEFLATE_FAILURES: tuple[type[Exception], ...] = (igzip_lib.error,)  # type: ignore[assignment]
"""Exceptions of the engines here for damaged data."""

# RFC 1952, section 2.3.1; 2.3.1.2: the reserved flags "must give an error indication", as what
# follows may then mean something else.
_GZIP_HEADER = 4  # bytes that end with the flags
_RESERVED = 0xE0


def new_deflate_engine() -> Engine:
    """An engine for deflate without header and trailer, as in zip files."""
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)


def crc32(data: bytes, value: int = 0) -> int:
    """The CRC-32 of gzip and zip after ``data``; ``value`` is the CRC-32 before."""
    return isal_zlib.crc32(data, value)


def _new_gzip_engine() -> Engine:
    # With this flag, unlike its neighbours, CRC-32 and length are checked too.
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)


def _find_reserved_flags(header: bytes) -> str | None:
    if len(header) < _GZIP_HEADER or not header[-1] & _RESERVED:
        return None
    return f"has unknown gzip flags ({header[-1]:#04x})"


GZIP = StreamFormat(
    container=Container.GZIP,
    magics=(b"\x1f\x8b\x08",),  # RFC 1952, section 2.3.1: the magic, and deflate as the method
    new_engine=_new_gzip_engine,
    failures=DEFLATE_FAILURES,
    unpack="gzip -dk",
    header_size=_GZIP_HEADER,
    find_unknown=_find_reserved_flags,
)
