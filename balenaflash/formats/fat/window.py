"""A view of a part of an image that is edited in memory; the image itself is not changed."""

from collections.abc import Iterator
from contextlib import contextmanager

from balenaflash.source.base import Source
from balenaflash.units import SECTOR_SIZE, Extent

_PAGE = 4096  # bytes kept for a changed byte; a multiple of the sector


class Window:
    """A copy-on-write view of ``extent``: reads come from the image, writes stay in memory.

    Offsets count from the start of the extent. Only pages whose content differs from the image's
    are kept.
    """

    def __init__(self, source: Source, extent: Extent) -> None:
        self._source = source
        self.extent = extent
        self._pages: dict[int, bytes] = {}
        self._before: dict[int, bytes | None] | None = None

    @property
    def name(self) -> str:
        """Name of the image in messages."""
        return self._source.name

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.extent.size

    @property
    def changed_size(self) -> int:
        """Bytes of all pages that are kept because of a change."""
        return len(self._pages) * _PAGE

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)`` as they are now.

        Raises:
            ImageError: the image cannot be read there.
            ValueError: the range is not inside the window.
        """
        self._require_inside(offset, length)
        buffer = memoryview(bytearray(length))
        unread = 0  # everything in the buffer before this position is filled
        for page, position, piece in _pages_of(offset, length):
            held = self._pages.get(page)
            if held is None:
                continue
            self._read_source(offset + unread, buffer[unread:position])
            start = offset + position - page * _PAGE
            buffer[position : position + piece] = held[start : start + piece]
            unread = position + piece
        self._read_source(offset + unread, buffer[unread:])
        return bytes(buffer)

    def read_original(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)`` of the image; errors as ``read_at``."""
        self._require_inside(offset, length)
        return self._source.read(self.extent.start + offset, length)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Replace the bytes from ``offset`` on.

        Raises:
            ImageError: the rest of a page cannot be read; some of ``data`` may be in place.
            ValueError: the range is not inside the window; nothing was written.
        """
        self._require_inside(offset, len(data))
        for page, position, piece in _pages_of(offset, len(data)):
            old = self._page(page)
            start = offset + position - page * _PAGE
            new = b"".join((old[:start], data[position : position + piece], old[start + piece :]))
            if new == old:
                continue
            if self._before is not None:
                self._before.setdefault(page, self._pages.get(page))
            self._pages[page] = new

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo every write of the block if the block is left by an exception."""
        before: dict[int, bytes | None] = {}
        self._before = before
        try:
            yield
        except BaseException:
            for page, content in before.items():
                if content is None:
                    del self._pages[page]
                else:
                    self._pages[page] = content
            raise
        finally:
            self._before = None

    def changed_runs(self) -> Iterator[tuple[int, bytes]]:
        """Offset and content of each run of sectors that differ from the image's, in order."""
        start = end = 0
        pieces: list[bytes] = []
        for offset, piece in self._changed_pieces():
            if pieces and offset != end:
                yield start, b"".join(pieces)
                pieces = []
            if not pieces:
                start = offset
            pieces.append(piece)
            end = offset + len(piece)
        if pieces:
            yield start, b"".join(pieces)

    def _page(self, page: int) -> bytes:
        held = self._pages.get(page)
        if held is not None:
            return held
        offset = page * _PAGE
        return self._source.read(self.extent.start + offset, min(_PAGE, self.size - offset))

    def _changed_pieces(self) -> Iterator[tuple[int, bytes]]:
        """Changed sectors; a page in which all sectors have changed is one piece, not copied."""
        for page in sorted(self._pages):
            new, offset = self._pages[page], page * _PAGE
            old = self._source.read(self.extent.start + offset, len(new))
            sectors = [
                start
                for start in range(0, len(new), SECTOR_SIZE)
                if new[start : start + SECTOR_SIZE] != old[start : start + SECTOR_SIZE]
            ]
            if len(sectors) * SECTOR_SIZE >= len(new):
                yield offset, new
            else:
                for start in sectors:
                    yield offset + start, new[start : start + SECTOR_SIZE]

    def _read_source(self, offset: int, buffer: memoryview) -> None:
        if buffer:
            self._source.readinto(self.extent.start + offset, buffer)

    def _require_inside(self, offset: int, length: int) -> None:
        # A bug of the caller, never of the image.
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"[{offset}, {offset + length}) is not within {self.size} bytes")


def _pages_of(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Number of each page in the range, and start in the range and length of its piece."""
    position = 0
    while position < length:
        page, start = divmod(offset + position, _PAGE)
        piece = min(_PAGE - start, length - position)
        yield page, position, piece
        position += piece
