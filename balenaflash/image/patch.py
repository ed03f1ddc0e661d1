"""Changed bytes of an image, and an image seen with them."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import attrgetter

from balenaflash.extent import Extent
from balenaflash.image.source import Source


@dataclass(frozen=True, slots=True, order=True)
class Patch:
    """Bytes that replace as many bytes of an image."""

    offset: int
    """Offset of the first byte, in bytes from the start of the image."""

    data: bytes
    """The new bytes; never empty."""

    @property
    def extent(self) -> Extent:
        """The range of the image it replaces."""
        return Extent(self.offset, self.offset + len(self.data))


def in_order(patches: Iterable[Patch], image_size: int | None) -> tuple[Patch, ...]:
    """``patches`` sorted by offset.

    Raises:
        ValueError: one is empty or outside ``[0, image_size)``, if that is known, or two overlap.
            Patches are made by this program, so that is a bug and no fault of an image.
    """
    ordered = tuple(sorted(patches))
    position = 0
    for patch in ordered:
        is_outside = image_size is not None and patch.extent.end > image_size
        if not patch.data or patch.offset < position or is_outside:
            raise ValueError(f"patch of {len(patch.data)} bytes at {patch.offset} is out of place")
        position = patch.extent.end
    return ordered


class Overlay:
    """An image as it would be with some patches applied; the image itself is not touched."""

    def __init__(self, source: Source, patches: Iterable[Patch]) -> None:
        self._source = source
        self._patches = in_order(patches, source.size)

    @property
    def name(self) -> str:
        """What to call it in messages: the name of the image below."""
        return self._source.name

    @property
    def size(self) -> int | None:
        """Bytes from start to end; patches never change it."""
        return self._source.size

    @property
    def seekable(self) -> bool:
        """As the image below."""
        return self._source.seekable

    def cost(self, offset: int) -> int | None:
        """As the image below."""
        return self._source.cost(offset)

    def fork(self) -> "Overlay | None":
        """The same with a fork of the image below."""
        source = self._source.fork()
        return None if source is None else Overlay(source, self._patches)

    def sequential(self) -> AbstractContextManager[None]:
        """As the image below."""
        return self._source.sequential()

    def finish(self) -> None:
        """As the image below."""
        self._source.finish()

    def measure(self, limit: int | None = None) -> int:
        """As the image below."""
        return self._source.measure(limit)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them; errors as the image's own."""
        content = bytearray(self._source.read(offset, length))
        lay_over(self._patches, offset, memoryview(content))
        return bytes(content)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; errors as the image's own."""
        self._source.readinto(offset, buffer)
        lay_over(self._patches, offset, buffer)


def lay_over(patches: Sequence[Patch], offset: int, buffer: memoryview) -> None:
    """Put ``patches``, which are `in_order`, into ``buffer``, the bytes from ``offset`` on."""
    end = offset + len(buffer)
    # The patch before the first one that starts after `offset` may reach into the range.
    first = max(0, bisect_right(patches, offset, key=attrgetter("offset")) - 1)
    for index in range(first, len(patches)):
        patch = patches[index]
        if patch.offset >= end:
            break
        start, stop = max(patch.offset, offset), min(patch.extent.end, end)
        if start < stop:
            new = memoryview(patch.data)[start - patch.offset : stop - patch.offset]
            buffer[start - offset : stop - offset] = new
