"""Places of an image that are asked for, and what is found to lie there."""

from bisect import bisect_left
from collections.abc import Iterable

from balenaflash.extent import Extent

MAX_ENTRIES = 300_000
"""Files and directories of one filesystem that are looked at: some seconds' worth."""


class Claims:
    """Offsets, in bytes from the start of the image, and the owner of each in words."""

    def __init__(self, offsets: Iterable[int]) -> None:
        self._offsets = sorted(set(offsets))
        self._found: dict[int, str] = {}
        self._supposed: dict[int, str] = {}

    def claim(self, extent: Extent, owner: str) -> None:
        """Say that ``extent`` belongs to ``owner``, unless something was said of it before."""
        for offset in self._within(extent):
            self._found.setdefault(offset, owner)

    def suppose(self, extent: Extent, owner: str) -> None:
        """As ``claim``, for want of something more exact that may come later."""
        for offset in self._within(extent):
            self._supposed.setdefault(offset, owner)

    @property
    def pending(self) -> list[int]:
        """The offsets that nothing has claimed, in order."""
        return [offset for offset in self._offsets if offset not in self._found]

    @property
    def is_settled(self) -> bool:
        """Whether every offset is claimed."""
        return len(self._found) == len(self._offsets)

    def owners(self) -> dict[int, str]:
        """The owner of each offset of which one is known."""
        return self._supposed | self._found

    def _within(self, extent: Extent) -> list[int]:
        start = bisect_left(self._offsets, extent.start)
        return self._offsets[start : bisect_left(self._offsets, extent.end, start)]
