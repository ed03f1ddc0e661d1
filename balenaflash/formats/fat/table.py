"""The file allocation table, and FAT32's FSInfo sector with its count of free clusters.

The table of a large volume with small clusters has 64 MiB. So it is read page by page. A changed
page is written to every copy of the table in the window, when it makes room for another page or
on ``flush``.
"""

import re
import struct
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from balenaflash.errors import EditError, ImageError
from balenaflash.formats.fat.layout import FIRST_CLUSTER, FatLayout, FatType
from balenaflash.formats.fat.window import Window
from balenaflash.units import SECTOR_SIZE, format_size

FREE = 0
_NUMBER = {FatType.FAT12: 0xFFF, FatType.FAT16: 0xFFFF, FatType.FAT32: 0x0FFF_FFFF}
"""Bits of an entry that count; the upper four of FAT32's are kept as they are (fatgen103)."""

_RESERVED = 0xF000_0000

_PAGE = 8192
"""Entries of a page. All of FAT12 fit into one, so that three bytes of two are never cut."""

_FREE_ENTRIES = re.compile(rb"\0+")

_MAX_PAGES = 128
"""Pages kept: 4 MiB of FAT32."""

# fatgen103, "FAT32 FSInfo Sector Structure and Backup Boot Sector". Only the first copy of the
# sector is kept up to date, as it asks.
_FSINFO_SIGNATURES = ((0, b"RRaA"), (484, b"rrAa"), (508, b"\0\0\x55\xaa"))
_FSINFO_NUMBERS_AT = 488
_FSINFO_NUMBERS = struct.Struct("<LL")  # free clusters, and the first cluster to look at
_UNKNOWN = 0xFFFF_FFFF


class FatTable:
    """The entries of the table, to read and to change.

    ``table[n]`` is the entry of cluster ``n``. There are ``layout.end_cluster`` entries, even if
    the last sector of the table has room for more.
    """

    def __init__(self, window: Window, layout: FatLayout) -> None:
        self.layout = layout
        self._window = window
        self._pages: OrderedDict[int, array[int]] = OrderedDict()
        self._changed: set[int] = set()
        self._free: int | None = None
        self.last = _NUMBER[layout.fat_type]
        """The entry that this program writes at the end of a chain."""

        self.least_last = self.last - 7
        """The smallest entry that ends a chain."""

        self.bad = self.last - 8
        """The entry of a cluster that must not be used."""

    def __getitem__(self, cluster: int) -> int:
        page = self._pages.get(cluster // _PAGE)
        return (self._load(cluster // _PAGE) if page is None else page)[cluster % _PAGE]

    def __setitem__(self, cluster: int, entry: int) -> None:
        number, index = divmod(cluster, _PAGE)
        page = self._load(number)
        if self._free is not None and cluster >= FIRST_CLUSTER:
            self._free += (entry == FREE) - (page[index] == FREE)
        page[index] = entry
        self._changed.add(number)

    def flush(self) -> None:
        """Write the changed pages to every copy of the table."""
        for number in sorted(self._changed):
            self._store(number)
        self._changed.clear()

    def forget(self) -> None:
        """Drop all pages, changed ones too; they are read again from the window."""
        self._pages.clear()
        self._changed.clear()
        self._free = None

    def free_count(self) -> int:
        """Number of free clusters."""
        if self._free is None:
            self._free = sum(page.count(FREE) for _, page in self.pages())
        return self._free

    def pages(
        self, first: int = FIRST_CLUSTER, end: int | None = None
    ) -> Iterator[tuple[int, "array[int]"]]:
        """The entries ``[first, end)`` in pieces: number of the first cluster, copied entries."""
        end = self.layout.end_cluster if end is None else end
        while first < end:
            number, index = divmod(first, _PAGE)
            piece = self._load(number)[index : index + end - first]
            yield first, piece
            first += len(piece)

    def free_runs(self, first: int = FIRST_CLUSTER, end: int | None = None) -> Iterator[range]:
        """The runs of free clusters in ``[first, end)``, in order."""
        run = range(first, first)
        for base, page in self.pages(first, end):
            for found in _FREE_ENTRIES.finditer(bytes(map(bool, page))):
                if base + found.start() != run.stop:
                    if run:
                        yield run
                    run = range(base + found.start(), base + found.start())
                run = range(run.start, base + found.end())
        if run:
            yield run

    def follow(self, first: int, owner: str) -> Iterator[int]:
        """The chain that begins with cluster ``first``, which belongs to ``owner``.

        Raises:
            ImageError: it leaves the volume, contains a free or bad cluster, or loops.
        """
        cluster, length = first, 0
        while cluster < self.least_last or not length:
            fault = self._fault_of(cluster, length)
            if fault is not None:
                raise ImageError(
                    f"{owner}: its cluster chain from {first} on {fault}", code="fat-invalid"
                )
            yield cluster
            length += 1
            cluster = self[cluster]

    def resize(self, first: int, count: int, owner: str) -> int:
        """Make the chain from ``first`` ``count`` clusters long, and return its first cluster.

        0 stands for no chain. Present clusters are kept, so that few sectors change when a file
        is rewritten. New ones follow them in one piece where there is room.

        Raises:
            EditError: fewer clusters are free than are missing; nothing was changed.
            ImageError: the chain is broken, as in ``follow``.
        """
        length = kept = end = 0
        for cluster in self.follow(first, owner) if first else ():
            length, end = length + 1, cluster
            if length == count:
                kept = cluster
        if length >= count:
            self._free_after(kept, first)
            return first if kept else 0
        added = self._find_free(count - length, end, owner)
        for cluster, following in zip(added, [*added[1:], self.last], strict=True):
            self[cluster] = following
        if end:
            self[end] = added[0]
        return first or added[0]

    def _free_after(self, kept: int, first: int) -> None:
        """Free the clusters of a sound chain after ``kept``; all from ``first`` on if it is 0."""
        cluster = self[kept] if kept else first
        if kept and cluster < self.least_last:
            # An end mark of another value stays, which saves a write.
            self[kept] = self.last
        while FREE < cluster < self.least_last:
            following = self[cluster]
            self[cluster] = FREE
            cluster = following

    def _fault_of(self, cluster: int, length: int) -> str | None:
        if not FIRST_CLUSTER <= cluster < self.layout.end_cluster:
            if cluster == FREE and length:
                return "runs into a free cluster"
            return "runs into a bad cluster" if cluster == self.bad else f"leads to {cluster}"
        return "loops" if length >= self.layout.cluster_count else None

    def _find_free(self, count: int, end: int, owner: str) -> Sequence[int]:
        """``count`` free clusters.

        They follow the cluster ``end`` if that is not 0 and there is room. Otherwise they lie in
        the first run that is long enough, otherwise in several runs.
        """
        free = self.free_count()
        if count > free:
            needed, left = (format_size(n * self.layout.cluster_size) for n in (count, free))
            raise EditError(
                f"{owner}: no space left: {needed} more needed, {left} free in the boot partition",
                code="no-space",
                hint="Remove files that are not needed first.",
            )
        wanted = range(end + 1, end + 1 + count)
        if end and next(self.free_runs(wanted.start, min(wanted.stop, len(self))), None) == wanted:
            return wanted
        scattered: list[int] = []
        for run in self.free_runs():
            if len(run) >= count:
                return run[:count]
            scattered.extend(run[: count - len(scattered)])
        return scattered

    @property
    def has_fsinfo(self) -> bool:
        """True if there is an FSInfo sector with the signatures without which drivers ignore it."""
        offset = self.layout.fsinfo_offset
        if offset is None:
            return False
        sector = self._window.read_at(offset, SECTOR_SIZE)
        return all(sector[at : at + len(mark)] == mark for at, mark in _FSINFO_SIGNATURES)

    def read_fsinfo(self) -> int | None:
        """Number of free clusters in the FSInfo sector, if it is known there."""
        if self.layout.fsinfo_offset is None:
            return None
        at = self.layout.fsinfo_offset + _FSINFO_NUMBERS_AT
        stored: int = _FSINFO_NUMBERS.unpack(self._window.read_at(at, _FSINFO_NUMBERS.size))[0]
        return None if stored == _UNKNOWN else stored

    def write_fsinfo(self) -> None:
        """Update the numbers in the FSInfo sector, unless drivers ignore it."""
        offset = self.layout.fsinfo_offset
        if offset is not None and self.has_fsinfo:
            free = self.free_count()
            first_free = next(self.free_runs()).start if free else _UNKNOWN
            numbers = _FSINFO_NUMBERS.pack(free, first_free)
            self._window.write_at(offset + _FSINFO_NUMBERS_AT, numbers)

    def __len__(self) -> int:
        return self.layout.end_cluster

    def _load(self, number: int) -> "array[int]":
        page = self._pages.get(number)
        if page is not None:
            return page
        if len(self._pages) >= _MAX_PAGES:
            oldest, _ = next(iter(self._pages.items()))
            if oldest in self._changed:
                self._store(oldest)
                self._changed.remove(oldest)
            del self._pages[oldest]
        page = self._decode(number, self._stored(number))
        self._pages[number] = page
        return page

    def _count(self, number: int) -> int:
        """Number of entries of a page; the last page has fewer."""
        return min(_PAGE, len(self) - number * _PAGE)

    def _stored(self, number: int) -> bytes:
        bits = self.layout.fat_type
        start = number * _PAGE * bits // 8
        size = -(-self._count(number) * bits // 8)
        return self._window.read_at(self.layout.active_table.start + start, size)

    def _decode(self, number: int, stored: bytes) -> "array[int]":
        if self.layout.fat_type is FatType.FAT12:
            return _decode12(stored, self._count(number))
        entries = _unpack(self.layout.fat_type, stored)
        if self.layout.fat_type is FatType.FAT32 and _has_reserved_bits(stored):
            entries = array("I", (entry & ~_RESERVED for entry in entries))
        return entries

    def _store(self, number: int) -> None:
        """Write a page to every copy, with the reserved bits of the copy in use."""
        page, stored = self._pages[number], self._stored(number)
        if self.layout.fat_type is FatType.FAT12:
            data = _encode12(page, stored)
        elif self.layout.fat_type is FatType.FAT32 and _has_reserved_bits(stored):
            pairs = zip(page, _unpack(FatType.FAT32, stored), strict=True)
            data = _pack(array("I", (new | old & _RESERVED for new, old in pairs)))
        else:
            data = _pack(page)
        start = number * _PAGE * self.layout.fat_type // 8
        for copy in self.layout.tables:
            self._window.write_at(copy.start + start, data)


def _has_reserved_bits(stored: bytes) -> bool:
    """True if any of FAT32's upper four bits is set; no volume is known that has one."""
    return max(stored[3::4]) > _NUMBER[FatType.FAT32] >> 24


def _unpack(fat_type: FatType, stored: bytes) -> "array[int]":
    entries = array("H" if fat_type is FatType.FAT16 else "I", stored)
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
