"""The file allocation table: which clusters are free, and which follows which."""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from balenaflash.errors import EditError, ImageError
from balenaflash.extent import format_size
from balenaflash.image.fat.layout import FIRST_CLUSTER, FatLayout, FatType

FREE = 0
_NUMBER = {FatType.FAT12: 0xFFF, FatType.FAT16: 0xFFFF, FatType.FAT32: 0x0FFF_FFFF}
"""Bits of an entry that count; the upper four of FAT32's are kept as they are (fatgen103)."""

_RESERVED = 0xF000_0000


class FatTable:
    """The entries of the table, to read and to change.

    ``entries[n]`` is the entry of cluster ``n``. There are ``layout.end_cluster`` of them,
    however many more the last sector of the table has room for.
    """

    def __init__(self, layout: FatLayout, entries: "array[int]", stored: bytes) -> None:
        self.layout = layout
        self.entries = entries
        self._stored = stored
        self.last = _NUMBER[layout.fat_type]
        """The entry this editor ends a chain with."""

        self.least_last = self.last - 7
        """The smallest entry that ends a chain."""

        self.bad = self.last - 8
        """The entry of a cluster that must not be used."""

    @classmethod
    def decode(cls, layout: FatLayout, stored: bytes) -> Self:
        """The table in ``stored``, the bytes of all its sectors."""
        if layout.fat_type is FatType.FAT12:
            return cls(layout, _decode12(stored, layout.end_cluster), stored)
        entries = _unpack(layout, stored)
        if _has_reserved_bits(layout, stored):
            entries = array("I", (entry & ~_RESERVED for entry in entries))
        return cls(layout, entries, stored)

    def encode(self) -> bytes:
        """All sectors of the table; reserved bits and surplus entries as they were decoded."""
        if self.layout.fat_type is FatType.FAT12:
            return _encode12(self.entries, self._stored)
        head = _pack(self.entries)
        if _has_reserved_bits(self.layout, self._stored):
            pairs = zip(self.entries, _unpack(self.layout, self._stored), strict=True)
            head = _pack(array("I", (new | old & _RESERVED for new, old in pairs)))
        return head + self._stored[len(head) :]

    def copy(self) -> Self:
        """A table of its own with the same entries."""
        return type(self)(self.layout, self.entries[:], self._stored)

    def free_count(self) -> int:
        """Number of free clusters."""
        return self.entries.count(FREE) - self.entries[:FIRST_CLUSTER].count(FREE)

    def follow(self, first: int, owner: str) -> list[int]:
        """The chain that begins with cluster ``first``, which belongs to ``owner``.

        Raises:
            ImageError: it leaves the volume, meets a free or bad cluster, or loops.
        """
        chain: list[int] = []
        cluster = first
        while cluster < self.least_last or not chain:
            fault = self._fault_of(cluster, len(chain))
            if fault is not None:
                raise ImageError(
                    f"{owner}: its cluster chain from {first} on {fault}", code="fat-invalid"
                )
            chain.append(cluster)
            cluster = self.entries[cluster]
        return chain

    def resize(self, chain: Sequence[int], count: int, owner: str) -> list[int]:
        """``chain`` made ``count`` clusters long, its end marked.

        The clusters it has are kept, so that few sectors change when a file is rewritten;
        what is added lies in one piece, right behind, where there is room.

        Raises:
            EditError: fewer clusters are free than are missing; nothing was changed.
        """
        added = self._find_free(count - len(chain), chain, owner)
        resized = [*chain[:count], *added]
        for cluster in chain[count:]:
            self.entries[cluster] = FREE
        for cluster, following in zip(resized, [*resized[1:], self.last], strict=False):
            # An end mark of another value is kept: nothing needs to be written for it.
            if following != self.last or self.entries[cluster] < self.least_last:
                self.entries[cluster] = following
        return resized

    def _fault_of(self, cluster: int, length: int) -> str | None:
        if not FIRST_CLUSTER <= cluster < self.layout.end_cluster:
            if cluster == FREE and length:
                return "runs into a free cluster"
            return "runs into a bad cluster" if cluster == self.bad else f"leads to {cluster}"
        return "loops" if length >= self.layout.cluster_count else None

    def _find_free(self, count: int, chain: Sequence[int], owner: str) -> Iterable[int]:
        if count <= 0:
            return ()
        self._require_free(count, owner)
        if chain and self._run_length(chain[-1] + 1, count) == count:
            return range(chain[-1] + 1, chain[-1] + 1 + count)
        scattered: list[int] = []
        for start in self._run_starts():
            length = self._run_length(start, count)
            if length == count:
                return range(start, start + count)
            scattered.extend(range(start, start + length))
        return scattered[:count]

    def _require_free(self, count: int, owner: str) -> None:
        free = self.free_count()
        if count > free:
            needed, left = (format_size(n * self.layout.cluster_size) for n in (count, free))
            raise EditError(
                f"{owner}: no space left: {needed} more needed, {left} free in the boot partition",
                code="no-space",
                hint="Remove files that are not needed first.",
            )

    def _run_starts(self) -> Iterator[int]:
        """First clusters of the runs of free ones, in order."""
        cluster = FIRST_CLUSTER
        while True:
            try:
                cluster = self.entries.index(FREE, cluster)
            except ValueError:
                return
            yield cluster
            cluster += self._run_length(cluster, self.layout.cluster_count)

    def _run_length(self, start: int, limit: int) -> int:
        """How many clusters from ``start`` on are free, counted up to ``limit``."""
        end = min(start + limit, self.layout.end_cluster)
        cluster = start
        while cluster < end and self.entries[cluster] == FREE:
            cluster += 1
        return cluster - start


def _has_reserved_bits(layout: FatLayout, stored: bytes) -> bool:
    """Whether any of FAT32's upper four bits is set, which is the case in no volume seen yet."""
    top_bytes = stored[3 : layout.end_cluster * 4 : 4]
    return layout.fat_type is FatType.FAT32 and max(top_bytes) > _NUMBER[FatType.FAT32] >> 24


def _unpack(layout: FatLayout, stored: bytes) -> "array[int]":
    entries = array("H" if layout.fat_type is FatType.FAT16 else "I")
    entries.frombytes(stored[: layout.end_cluster * entries.itemsize])
    if sys.byteorder == "big":
        entries.byteswap()
    return entries


def _pack(entries: "array[int]") -> bytes:
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def _decode12(stored: bytes, end: int) -> "array[int]":
    """Three bytes hold two entries, the even one in the lower twelve bits (fatgen103)."""
    entries = array("H")
    for cluster in range(end):
        at = cluster * 3 // 2
        pair = stored[at] | stored[at + 1] << 8
        entries.append(pair >> 4 if cluster % 2 else pair & 0xFFF)
    return entries


def _encode12(entries: "array[int]", stored: bytes) -> bytes:
    encoded = bytearray(stored)
    for cluster, entry in enumerate(entries):
        at = cluster * 3 // 2
        if cluster % 2:
            encoded[at] = encoded[at] & 0x0F | (entry & 0xF) << 4
            encoded[at + 1] = entry >> 4
        else:
            encoded[at] = entry & 0xFF
            encoded[at + 1] = encoded[at + 1] & 0xF0 | entry >> 8
    return bytes(encoded)
