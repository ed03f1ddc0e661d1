"""A file in an ext4 filesystem as an image of its own."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

from balenaflash.errors import ImageError
from balenaflash.extent import Extent
from balenaflash.image.ext4.entry import Ext4Entry
from balenaflash.image.ext4.volume import Ext4Volume
from balenaflash.image.source import RandomAccess, Source


class Ext4File(RandomAccess):
    """The content of one file, read from the image in place: a ``Source``.

    Where all of it lies is read once, when this is made; 16 bytes of memory for each piece.
    """

    def __init__(self, volume: Ext4Volume, entry: Ext4Entry, name: str) -> None:
        """Take the file ``entry`` of ``volume``, called ``name`` in messages.

        Raises:
            ImageError: it is not a file, is encrypted, damaged, or in too many pieces.
        """
        self._name = name
        self._source = volume.source
        self._partition = volume.extent
        self._entry = entry
        self._content = volume.map_file(entry)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._content.size

    @property
    def seekable(self) -> bool:
        """Whether reading backwards costs no more than forwards: as in the image around it."""
        return self._source.seekable

    def cost(self, offset: int) -> int | None:
        """As the place of the image where that byte of the file lies."""
        for piece, place in self.runs():
            if piece.contains(offset) and place is not None:
                return self._source.cost(place.start + offset - piece.start)
        return 0

    def sequential(self) -> AbstractContextManager[None]:
        """As of the image, if ascending places of the file are ascending places there too."""
        starts = (place.start for _piece, place in self.runs() if place is not None)
        if all(earlier < later for earlier, later in pairwise(starts)):
            return self._source.sequential()
        return nullcontext()

    def fork(self) -> Source | None:
        """The same file in a fork of the image."""
        if self._source.seekable:
            return self
        source = self._source.fork()
        if source is None:
            return None
        return Ext4File(Ext4Volume.open(source, self._partition), self._entry, self._name)

    def finish(self) -> None:
        """Read on to the end of the image."""
        self._source.finish()

    def measure(self, limit: int | None = None) -> int:  # noqa: ARG002 - the size is known
        """The size; a stream is read to its end and checked before."""
        self._source.finish()
        return self.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them.

        Raises:
            ImageError: the file ends before, or the image cannot be read.
        """
        self._require_inside(offset, length)
        return self._content.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, without a copy in between; errors as ``read``."""
        self._require_inside(offset, len(buffer))
        self._content.readinto(offset, buffer)

    def runs(self) -> Iterator[tuple[Extent, Extent | None]]:
        """Each piece of the file in order, and where it lies in the image.

        ``None`` for zeros that are not stored: a hole, or space allocated and never written.
        """
        return self._content.runs()

    def _require_inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ImageError(
                f"{self.name}: ends at byte {self.size},"
                f" but bytes up to {offset + length} are needed",
                code="image-truncated",
            )
