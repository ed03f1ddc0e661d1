"""Deflate64, which Windows uses in zip files over 2 GiB; read where inflate64 is installed."""

from typing import TYPE_CHECKING

from balenaflash.errors import ImageError

if TYPE_CHECKING:
    from inflate64 import Inflater

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
