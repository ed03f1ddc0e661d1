"""Streams one after another (gzip, xz, bzip2, zstd), and the decoders of deflate and deflate64."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from isal import igzip_lib, isal_zlib

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import (
    Container,
    Decoder,
    Input,
    Origin,
    corrupt,
    cut_short,
    trailing_garbage,
)
from balenaflash.units import KIB

if TYPE_CHECKING:
    from inflate64 import Inflater


_PIECE_SIZE = 256 * KIB
"""Bytes decoded in one call at most: they are copied while they are in the processor's cache."""

_FIRST_STEP = 4 * KIB
"""Bytes put into the engine of a stream that begins: it copies those that the stream leaves."""

_SMALL_STREAM = 4 * KIB
"""Bytes of an image that a stream holds at least. Those of bgzip hold 64 KiB, of pbzip2 900 kB."""

_MAX_SMALL_STREAMS = 100_000
"""Smaller streams in one container: each takes time, and memory where there is an index."""

_ZEROS = re.compile(rb"\0*")


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


def _nothing_unknown(_header: bytes) -> None:
    """The engine understands every stream that it decodes."""


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """A format whose files are streams one after another."""

    container: Container
    magics: tuple[bytes, ...]
    """The first bytes of a stream: one of these, all of the same length."""

    new_engine: Callable[[], Engine]

    failures: tuple[type[Exception], ...]
    """What an engine raises for damaged data."""

    unpack: str
    """The command that decodes such a stream."""

    padding: int | None = 1
    """Zeros may stand behind the last stream, in multiples of this; ``None``: none may."""

    padding_between: bool = False
    """Whether zeros may stand between streams too."""

    header_size: int = 0
    """Bytes of a stream that ``find_unknown`` looks at."""

    find_unknown: Callable[[bytes], str | None] = _nothing_unknown
    """What a stream's first bytes say that its engine does not understand, but may pass over."""

    too_large: str = ""
    """Part of an engine's message for a stream that needs more memory than it may have."""


def not_known(name: str, fact: str) -> ImageError:
    """The error for a stream that says what is not understood."""
    return ImageError(f"{name}: {fact}", code="image-unsupported")


def too_large(name: str, layout: StreamFormat) -> ImageError:
    """The error for a stream that needs more memory than its engine may have."""
    return ImageError(
        f"{name}: needs more memory to be decoded than is allowed",
        code="image-unsupported",
        hint=f"Unpack it first: {layout.unpack} {name}",
    )


class StreamDecoder:
    """The streams of a container, decoded in order from where ``source`` stands.

    A stream begins there or, with ``is_behind``, has ended there. ``done`` is the offset in the
    image of what is decoded first.
    """

    def __init__(
        self, source: Input, layout: StreamFormat, *, is_behind: bool = False, done: int = 0
    ) -> None:
        self._input = source
        self._format = layout
        self._is_behind = is_behind
        self._done = done
        self._engine: Engine | None = None
        self._data = b""
        """What was read last."""
        self._used = 0
        """Bytes of it that are decoded."""
        self._step = _FIRST_STEP
        self._began = done
        """Offset in the image of the stream that is being decoded."""
        self._small = 0
        """Streams so far that hold next to nothing."""
        self._ended = False

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer) and (engine := self._current_engine()) is not None:
            piece = self._decode(engine, min(_PIECE_SIZE, len(buffer) - filled))
            end = filled + len(piece)
            buffer[filled:end] = piece
            self._done += len(piece)
            filled = end
        return filled

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine = None
        self._ended = True

    def _current_engine(self) -> Engine | None:
        """The engine of the stream that is not at its end; ``None`` behind the last one."""
        while not self._ended and (self._engine is None or self._engine.eof):
            if self._engine is not None:
                self._end_stream(self._engine)
            self._engine = self._begin_stream()
            self._ended = self._engine is None
        return self._engine

    def _decode(self, engine: Engine, length: int) -> bytes:
        """Up to ``length`` bytes; none does not mean the end."""
        data = b""
        if engine.needs_input:
            if not self._peek(1):
                raise self._cut_short()
            data = self._data[self._used : self._used + self._step]
            self._used += len(data)
            self._step = min(2 * self._step, Input.CHUNK_SIZE)
        try:
            return engine.decompress(data, length)
        except self._format.failures as error:
            raise self._failed(error) from error

    def _end_stream(self, engine: Engine) -> None:
        """Go back to where the stream ended.

        Raises:
            ImageError: there were too many streams with next to nothing in them.
        """
        self._used -= len(engine.unused_data)
        self._step = _FIRST_STEP
        self._is_behind = True
        self._small += self._done - self._began < _SMALL_STREAM
        self._began = self._done
        if self._small > _MAX_SMALL_STREAMS:
            raise ImageError(
                f"{self._input.name}: has more than {_MAX_SMALL_STREAMS} {self._format.container} "
                f"streams of less than {_SMALL_STREAM} bytes each",
                code="image-unsupported",
                hint="No image is compressed so; if it is one, unpack it first: "
                f"{self._format.unpack} {self._input.name}",
            )

    def _begin_stream(self) -> Engine | None:
        """The engine of the stream that comes next; ``None`` if there is none.

        Raises:
            ImageError: something else comes, or its header says what is not understood.
        """
        if self._is_behind and not self._is_followed():
            return None
        unknown = self._format.find_unknown(self._peek(self._format.header_size))
        if unknown is not None:
            raise not_known(self._input.name, unknown)
        return self._format.new_engine()

    def _is_followed(self) -> bool:
        """Whether another stream follows the one that has ended.

        Raises:
            ImageError: something else follows.
        """
        place, magics = self._place, self._format.magics
        padding = self._skip_zeros() if self._format.padding else 0
        if padding % (self._format.padding or 1):
            raise self._corrupt(f"has {padding} bytes of padding")
        start = self._peek(len(magics[0]))
        if not start:
            return False
        if not padding or self._format.padding_between:
            if start.startswith(magics):
                return True
            if any(magic.startswith(start) for magic in magics):
                raise self._cut_short()
        raise trailing_garbage(self._input.name, self._format.container, place, self._done)

    def _skip_zeros(self) -> int:
        """Go on behind the zeros that come next; how many they are."""
        skipped = 0
        while self._peek(1) == b"\0":
            zeros = _ZEROS.match(self._data, self._used)
            end = self._used if zeros is None else zeros.end()
            skipped += end - self._used
            self._used = end
        return skipped

    def _peek(self, length: int) -> bytes:
        """The next ``length`` bytes, fewer only at the end; they are still to be decoded."""
        while len(self._data) < self._used + length and (more := self._input.read()):
            self._data = self._data[self._used :] + more
            self._used = 0
        return self._data[self._used : self._used + length]

    @property
    def _place(self) -> int:
        """Offset in the container of the next byte to be decoded."""
        return self._input.position - len(self._data) + self._used

    def _cut_short(self) -> ImageError:
        place = self._input.position
        return cut_short(self._input.name, self._format.container, place, self._done)

    def _failed(self, error: Exception) -> ImageError:
        if self._format.too_large and self._format.too_large in str(error):
            return too_large(self._input.name, self._format)
        return self._corrupt(f"cannot be decoded: {error}")

    def _corrupt(self, why: str) -> ImageError:
        return corrupt(self._input.name, self._format.container, self._place, self._done, why)


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


# The stub calls the class an instance.
DEFLATE_FAILURES: tuple[type[Exception], ...] = (igzip_lib.error,)  # type: ignore[assignment]
"""What the engines here raise for damaged data."""

# RFC 1952, section 2.3.1; 2.3.1.2: the reserved flags "must give an error indication", as what
# follows may then mean something else.
_GZIP_HEADER = 4  # bytes that end with the flags
_FLAGS = 3
_RESERVED = 0xE0


def new_deflate_engine() -> Engine:
    """An engine for deflate without header and trailer, as zip has it."""
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)


def crc32(data: bytes, value: int = 0) -> int:
    """The CRC-32 of gzip and zip, ``value`` being that of the bytes before."""
    return isal_zlib.crc32(data, value)


def _new_gzip_engine() -> Engine:
    # With this flag, unlike its neighbours, CRC-32 and length are checked too.
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)


def _find_reserved(header: bytes) -> str | None:
    flags = header[_FLAGS] if len(header) == _GZIP_HEADER else 0
    if not flags & _RESERVED:
        return None
    return f"has gzip flags ({flags:#04x}) that are not known"


GZIP = StreamFormat(
    container=Container.GZIP,
    magics=(b"\x1f\x8b\x08",),  # RFC 1952, section 2.3.1: the magic, and deflate as the method
    new_engine=_new_gzip_engine,
    failures=DEFLATE_FAILURES,
    unpack="gzip -dk",
    header_size=_GZIP_HEADER,
    find_unknown=_find_reserved,
)


_FEED = 128
"""Bytes decoded in one call: the library sets no bound on what comes out, which may be 32 MiB."""

DEFLATE64_FAILURES = (ValueError, RuntimeError)
"""What the engine raises for damaged data."""


class Deflate64Engine:
    """Decodes one deflate64 stream, with the interface of the other engines."""

    def __init__(self, inflater: "Inflater") -> None:
        self._inflater = inflater
        self._input = memoryview(b"")
        self._output = memoryview(b"")

    @property
    def eof(self) -> bool:
        """Whether the stream ended."""
        return bool(self._inflater.eof) and not self._output

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before something goes in."""
        return not self._input and not self._output and not self.eof

    @property
    def unused_data(self) -> bytes:
        """What was put in behind the end, but for what the library itself has read."""
        return bytes(self._input)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most ``max_length`` decoded bytes."""
        if data:
            self._input = memoryview(bytes(self._input) + data)
        while self._input and not self._output and not self._inflater.eof:
            feed, self._input = self._input[:_FEED], self._input[_FEED:]
            self._output = memoryview(self._inflater.inflate(bytes(feed)))
        length = len(self._output) if max_length < 0 else max_length
        piece, self._output = self._output[:length], self._output[length:]
        return bytes(piece)


def new_deflate64_engine() -> Deflate64Engine:
    """An engine for deflate64 as zip has it.

    Raises:
        ImageError: the library is not installed.
    """
    try:
        from inflate64 import Inflater  # noqa: PLC0415 - it need not be installed
    except ImportError as error:
        raise ImageError(
            "deflate64 cannot be decoded: the Python package inflate64 is not installed",
            code="image-unsupported",
            hint="Install it: pip install 'balenaflash[deflate64]'; or unpack the image: unzip",
        ) from error
    return Deflate64Engine(Inflater())
