"""Blocks of an ext4 filesystem, read from its image by number."""

from balenaflash.errors import ImageError
from balenaflash.image.source import Source

_KEPT = 64
"""Single blocks kept in memory: those of inode tables and descriptors are asked for again."""


class BlockReader:
    """The blocks ``[0, count)`` of the filesystem that starts at byte ``start`` of ``source``."""

    def __init__(self, source: Source, name: str, *, start: int, size: int, count: int) -> None:
        self.source = source
        self.name = name
        self.start = start
        self.size = size
        """Bytes of a block."""

        self.count = count
        self._kept: dict[int, bytes] = {}

    def read(self, block: int) -> bytes:
        """The content of ``block``.

        Raises:
            ImageError: it is not one of the filesystem, or the image cannot be read there.
        """
        kept = self._kept.get(block)
        if kept is None:
            self.require(block, 1)
            kept = self.source.read(self.offset(block), self.size)
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[block] = kept
        return kept

    def holds(self, block: int, count: int) -> bool:
        """Whether ``count`` blocks from ``block`` on are in the filesystem, and not its first."""
        return 0 < block <= self.count - count

    def require(self, block: int, count: int) -> None:
        """Raise ``ImageError`` unless ``holds``."""
        if not self.holds(block, count):
            raise self.broken(f"it refers to block {block}, and has {self.count}")

    def offset(self, block: int) -> int:
        """Where ``block`` starts, in bytes from the start of the image."""
        return self.start + block * self.size

    def broken(self, fault: str) -> ImageError:
        """The error to raise for damage that ``fault`` states."""
        return ImageError(f"{self.name}: {fault}", code="ext4-invalid")

    def unsupported(self, fact: str) -> ImageError:
        """The error to raise for something intact that cannot be read right."""
        return ImageError(f"{self.name}: {fact}", code="ext4-unsupported")
