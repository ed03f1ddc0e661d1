"""A structural check of a FAT volume, much as fsck.vfat does it, and the repair of its faults.

The check reads the tables and the directories, never the content of files. No cluster is followed
twice, so its time is bounded on any volume.

Faults that can be repaired without a loss are those left by a power cut, by a card pulled from a
Mac, or by a tool that writes one table only. Every file keeps the content that a driver reads now.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from balenaflash.errors import CodedText, EditError
from balenaflash.formats.fat.directory import (
    DOT,
    DOT_DOT,
    MAX_DIRECTORIES,
    MAX_DIRECTORY,
    DirectoryEntry,
    Fields,
    Scan,
    scan,
)
from balenaflash.formats.fat.layout import (
    FIRST_CLUSTER,
    NOT_UNMOUNTED,
    SLOT_SIZE,
    FatLayout,
    FatType,
)
from balenaflash.formats.fat.names import MAX_PATH, fold, is_storable
from balenaflash.formats.fat.table import FREE, FatTable
from balenaflash.formats.fat.window import Window
from balenaflash.units import KIB, MIB, SECTOR_SIZE, Extent, format_size

_MAX_FAULTS = 100
_MAX_REPAIR = 16 * MIB
"""Bytes that a repair may change. They are kept in memory; an interrupted edit leaves less."""

_SHORT_FORBIDDEN = frozenset(b'"*+,./:;<=>?[\\]|') | frozenset(range(0x20))
_E5_STAND_IN = b"\x05"  # allowed as the first byte of an 8.3 name

_GEOMETRY = slice(11, 64)
"""Bytes of a FAT32 boot sector that the backup must repeat; a mount sets a flag after them."""

_CLEAN = {FatType.FAT12: 0, FatType.FAT16: 0x8000, FatType.FAT32: 0x0800_0000}
"""Bit of the table's second entry: unmounted cleanly (fatgen103, ``ClnShutBitMask``)."""

_PIECE = 64 * KIB
_CLUSTER_HIGH, _CLUSTER_LOW = 20, 26  # bytes of a slot with the halves of its cluster (fatgen103)

MARKED = CodedText("the FAT volume is marked as not unmounted cleanly", code="fat-not-unmounted")
"""Warning about such a volume: the last system that wrote to it may not have finished."""


class Gravity(StrEnum):
    """Effect of a fault on edits."""

    UNSOUND = "unsound"
    """Edits are refused: they could overwrite another file."""

    REPAIRABLE = "repairable"
    """Edits are refused until it is repaired, which loses nothing."""

    HARMLESS = "harmless"
    """An edit cannot make it worse: advice to drivers, leftovers of names."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in the structure of a volume."""

    code: str
    message: str
    """The fact and the place; paths as stored."""

    gravity: Gravity
    repair: str = ""
    """The repair that was made, such as "freed 2 clusters"; empty if there is none."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """A directory that is still to be read."""

    path: str
    """Path as stored, empty for the root."""

    first: int
    """First cluster, 0 for the root."""

    parent: int
    """First cluster of the parent, 0 if that is the root."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """A cluster chain as far as it is sound and its clusters belong to no other entry."""

    first: int
    length: int
    kept: int
    """The last cluster that is needed, 0 for none."""

    stop: int
    """The table entry after the last cluster."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A repair of a chain that is longer than its file."""

    kept: int
    """The new last cluster; 0 for a file without content."""

    first: int
    """First of the clusters to free, 0 for none."""

    slot: int
    """Offset of the file's 8.3 slot in the volume."""


@dataclass(frozen=True, slots=True)
class _Content:
    """The bytes of a directory, and their places in the volume."""

    data: bytes
    places: tuple[Extent, ...]

    def offset_of(self, slot: int) -> int:
        """Offset of a slot in the volume."""
        left = slot * SLOT_SIZE
        for place in self.places:
            if left < place.size:
                return place.start + left
            left -= place.size
        raise ValueError(slot)


class Check:
    """The faults of a volume as it is now, and their repair."""

    def __init__(self, window: Window, layout: FatLayout, table: FatTable) -> None:
        """Check the volume; ``table`` must have been flushed to ``window``.

        Raises:
            ImageError: the image cannot be read.
        """
        self._found: list[Fault] = []
        self._window = window
        self._layout = layout
        self._table = table
        self._claimed = bytearray(layout.end_cluster // 8 + 1)  # a bit a cluster
        self._used = 0  # claimed clusters that are in use by their table entries
        self._directory_bytes = 0
        self._cuts: list[_Cut] = []
        self._first_cut = ""  # path
        self._cut_clusters = 0
        self._links: list[int] = []  # offsets of slots '..' that name the root by its number
        self._lost = 0
        self._no_use = (FREE, table.bad)
        if table[0] < table.last & ~0xFF | 0xF0:  # media byte, then ones
            self._unsound("the first entry of the file allocation table is damaged")
        self._check_tree()
        self._check_repairable()
        self._check_reserved_sectors()
        self.faults = tuple(
            sorted(self._found, key=lambda fault: list(Gravity).index(fault.gravity))
        )
        """All faults; those that forbid an edit come first."""

    def select(self, gravity: Gravity) -> tuple[Fault, ...]:
        """The faults of one gravity."""
        return tuple(fault for fault in self.faults if fault.gravity is gravity)

    def mend(self) -> None:
        """Repair the repairable faults in the window; the volume must not be unsound.

        Raises:
            EditError: the repair would change too much; a part of it is made.
        """
        for copy in self._layout.tables:
            for offset, data in self._differing(copy):
                self._window.write_at(copy.start + offset, data)
                self._require_little()
        for cut in self._cuts:
            self._make_cut(cut)
        for slot in self._links:
            self._clear_cluster(slot)
        if self._lost:
            self._free_lost()
        self._table[1] |= _CLEAN[self._layout.fat_type]
        state = self._layout.state_offset
        flags = self._window.read_at(state, 1)[0]
        self._window.write_at(state, bytes([flags & ~NOT_UNMOUNTED]))
        self._table.flush()
        self._table.write_fsinfo()
        self._require_little()

    def _check_tree(self) -> None:
        waiting = [_Visit("", 0, 0)]
        while waiting:
            if len(self._found) >= _MAX_FAULTS:
                self._unsound(f"{_MAX_FAULTS} faults and more")
                return
            visit = waiting.pop()
            content = self._read(visit)
            found = scan(content.data, wide=self._layout.fat_type is FatType.FAT32)
            self._check_slots(visit, found, content)
            named = [entry for entry in found.entries if entry.fields.is_named]
            self._check_names(visit, named)
            waiting += self._check_entries(visit, named, content)

    def _check_repairable(self) -> None:
        for number, copy in enumerate(self._layout.tables, start=1):
            if any(True for _ in self._differing(copy)):
                used = self._layout.tables.index(self._layout.active_table) + 1
                first = "the first file allocation table" if used == 1 else f"copy {used}, in use,"
                self._repairable(
                    "fat-tables-differ",
                    f"{first} and copy {number} of it differ",
                    f"made copy {number} of the file allocation table equal to copy {used}",
                )
        if self._cuts:
            more = len(self._cuts) - 1
            path = f"{self._first_cut} and {more} more" if more else self._first_cut
            clusters = self._clusters(self._cut_clusters)
            self._repairable(
                "fat-clusters-past-end",
                f"{path}: {clusters} after the end of the content",
                f"freed {clusters} after the content of {path}",
            )
        if self._links:
            links = f"the entry '..' of {_count(len(self._links), 'directory', 'directories')}"
            self._repairable(
                "fat-parent-link",
                f"{links} points to the root by its cluster number",
                f"corrected {links}",
            )
        if all(fault.gravity is not Gravity.UNSOUND for fault in self._found):
            self._lost = self._count_lost()
        if self._lost:
            clusters = self._clusters(self._lost)
            self._repairable(
                "fat-lost-clusters",
                f"{clusters} marked as used without a file (lost clusters)",
                f"freed {clusters} without a file",
            )
        if is_marked(self._window, self._layout, self._table):
            self._repairable(MARKED.code, str(MARKED), "removed the mark of an unclean unmount")

    def _check_reserved_sectors(self) -> None:
        layout, window = self._layout, self._window
        if layout.backup_offset is not None:
            backup = window.read_at(layout.backup_offset, SECTOR_SIZE)
            if backup[_GEOMETRY] != window.read_at(0, SECTOR_SIZE)[_GEOMETRY]:
                self._note("the boot sector and its backup differ")
        if layout.fsinfo_offset is None:
            return
        if not self._table.has_fsinfo:
            self._note("the FSInfo sector has no signature")
            return
        stored, real = self._table.read_fsinfo(), self._table.free_count()
        if stored not in {None, real}:
            self._repairable(
                "fat-free-count",
                f"FSInfo counts {stored} free clusters, but there are {real}",
                "corrected the count of free clusters",
            )

    def _differing(self, copy: Extent) -> Iterator[tuple[int, bytes]]:
        """Pieces of a copy of the table that differ from the one in use: offset, right content."""
        active = self._layout.active_table
        used = -(-self._layout.end_cluster * self._layout.fat_type // 8)
        for offset in range(0, used if copy != active else 0, _PIECE):
            length = min(_PIECE, used - offset)
            right = self._window.read_at(active.start + offset, length)
            if right != self._window.read_at(copy.start + offset, length):
                yield offset, right

    def _count_lost(self) -> int:
        bad = free = 0
        for _, page in self._table.pages():
            free += page.count(FREE)
            bad += page.count(self._table.bad)
        return self._layout.cluster_count - free - bad - self._used

    def _free_lost(self) -> None:
        claimed = self._claimed
        for base, page in self._table.pages():
            if page.count(FREE) + page.count(self._table.bad) == len(page):
                continue
            for cluster, entry in enumerate(page, start=base):
                is_claimed = claimed[cluster >> 3] >> (cluster & 7) & 1
                if entry not in self._no_use and not is_claimed:
                    self._table[cluster] = FREE
            self._require_little()

    def _make_cut(self, cut: _Cut) -> None:
        if cut.kept:
            self._table[cut.kept] = self._table.last
        else:
            self._clear_cluster(cut.slot)
        cluster = cut.first
        while FIRST_CLUSTER <= cluster < self._layout.end_cluster:
            following = self._table[cluster]
            if following != self._table.bad:
                self._table[cluster] = FREE
            cluster = following

    def _clear_cluster(self, slot: int) -> None:
        self._window.write_at(slot + _CLUSTER_LOW, bytes(2))
        if self._layout.fat_type is FatType.FAT32:
            self._window.write_at(slot + _CLUSTER_HIGH, bytes(2))

    def _require_little(self) -> None:
        if self._window.changed_size > _MAX_REPAIR:
            raise EditError(
                f"{self._window.name}: the FAT volume at byte {self._window.extent.start}: "
                f"a repair would change more than {format_size(_MAX_REPAIR)} of it",
                code="volume-unsound",
                hint="Use a fresh image.",
            )

    def _read(self, visit: _Visit) -> _Content:
        layout = self._layout
        if visit.first == 0 and layout.root is not None:
            root = layout.root
            return _Content(self._window.read_at(root.start, root.size), (root,))
        path, first = visit.path or "/", visit.first or layout.root_cluster
        chain = self._claim(first, 0)
        if not chain.length or chain.stop < self._table.least_last:
            self._unsound(f"{path}: its cluster chain {self._end_of_chain(chain)}")
        size = chain.length * layout.cluster_size
        self._directory_bytes += size
        if size > MAX_DIRECTORY or self._directory_bytes > MAX_DIRECTORIES:
            self._unsound(f"{path}: directories of {self._directory_bytes} bytes and more")
            return _Content(b"", ())
        places: list[Extent] = []
        cluster = first
        for _ in range(chain.length):
            start = layout.cluster_offset(cluster)
            places.append(Extent(start, start + layout.cluster_size))
            cluster = self._table[cluster]
        pieces = (self._window.read_at(place.start, place.size) for place in places)
        return _Content(b"".join(pieces), tuple(places))

    def _claim(self, first: int, needed: int) -> _Chain:
        """Follow the chain from ``first`` as far as it is sound and its clusters unclaimed."""
        length = kept = 0
        cluster, end, table, claimed = first, self._layout.end_cluster, self._table, self._claimed
        while FIRST_CLUSTER <= cluster < end and not claimed[cluster >> 3] >> (cluster & 7) & 1:
            claimed[cluster >> 3] |= 1 << (cluster & 7)
            length += 1
            if length == needed:
                kept = cluster
            cluster = table[cluster]
        # A last cluster that has the table entry of a free or bad one is counted as such.
        self._used += length - (length > 0 and cluster in self._no_use)
        return _Chain(first, length, kept, cluster)

    def _end_of_chain(self, chain: _Chain) -> str:
        if chain.stop == FREE:
            return "runs into a free cluster"
        if chain.stop == self._table.bad:
            return "runs into a bad cluster"
        if not FIRST_CLUSTER <= chain.stop < self._layout.end_cluster:
            return f"leads to cluster {chain.stop}, which does not exist"
        cluster = chain.first
        for _ in range(chain.length):
            if cluster == chain.stop:
                return f"loops back to cluster {cluster}"
            cluster = self._table[cluster]
        return f"shares cluster {chain.stop} with another file"

    def _check_slots(self, visit: _Visit, found: Scan, content: _Content) -> None:
        path = visit.path or "/"
        if found.stray:
            self._unsound(f"{path}: {found.stray} slots are in use after the end of the directory")
        if found.orphans:
            self._note(f"{path}: {found.orphans} slots of long names belong to no entry")
        dots = [entry for entry in found.entries if entry.fields.short_name in {DOT, DOT_DOT}]
        parents = {visit.parent, visit.parent or self._layout.root_cluster}
        expected = [(0, DOT, {visit.first}), (1, DOT_DOT, parents)] if visit.first else []
        if len(dots) != len(expected) or not all(map(_is_link, dots, expected)):
            self._unsound(f"{path}: its entries '.' and '..' are wrong or missing")
        elif dots and dots[1].fields.cluster != visit.parent:
            self._links.append(content.offset_of(1))

    def _check_names(self, visit: _Visit, named: list[DirectoryEntry]) -> None:
        """Find names, long or 8.3, that two entries have."""
        seen: dict[str, str] = {}
        for entry in named:
            path = f"{visit.path}/{entry.name}"
            for name in {fold(entry.name), fold(entry.short_name)}:
                if name in seen:
                    self._unsound(f"{path}: has the same name, long or 8.3, as {seen[name]}")
                seen[name] = path
            if not _is_valid_name(entry):
                self._note(f"{path}: its name contains characters that FAT does not allow")

    def _check_entries(
        self, visit: _Visit, named: list[DirectoryEntry], content: _Content
    ) -> list[_Visit]:
        """Check the files, and return the directories that are still to be read."""
        below = []
        for entry in named:
            fields, path = entry.fields, f"{visit.path}/{entry.name}"
            if not fields.is_directory:
                slot = content.offset_of(entry.index + entry.count - 1)
                self._check_file(fields, path, slot)
            elif len(path) > MAX_PATH:
                self._unsound(f"{path[:60]}...: a path of more than {MAX_PATH} characters")
            elif fields.cluster == 0:
                self._unsound(f"{path}: a directory without a cluster")
            else:
                below.append(_Visit(path, fields.cluster, visit.first))
                if fields.size:
                    self._note(f"{path}: a directory with a size")
            if len(self._found) >= _MAX_FAULTS:
                break
        return below

    def _check_file(self, fields: Fields, path: str, slot: int) -> None:
        needed = -(-fields.size // self._layout.cluster_size)
        if fields.cluster == 0 and needed == 0:
            return
        chain = self._claim(fields.cluster, needed)
        is_ended = chain.stop >= self._table.least_last
        if 0 < chain.length < needed and is_ended:
            count = f"{chain.length} clusters, not {needed}"
            self._unsound(f"{path}: {fields.size} bytes, but {count}")
        elif (
            not chain.length
            or FREE < chain.stop < self._layout.end_cluster
            or chain.length < needed
            or (chain.length == needed and chain.stop in self._no_use)
        ):
            self._unsound(f"{path}: its cluster chain {self._end_of_chain(chain)}")
        elif chain.length > needed or not is_ended:
            # All of the content is there. After it, balena-image-fs leaves a chain whose end
            # points nowhere, and a power cut leaves one that the size does not cover yet.
            after = self._table[chain.kept] if chain.kept else fields.cluster
            self._cuts.append(_Cut(chain.kept, after, slot))
            self._first_cut = self._first_cut or path
            self._cut_clusters += chain.length - needed

    def _clusters(self, count: int) -> str:
        size = format_size(count * self._layout.cluster_size)
        return f"{_count(count, 'cluster', 'clusters')} ({size})"

    def _unsound(self, message: str) -> None:
        self._found.append(Fault("fat-unsound", message, Gravity.UNSOUND))

    def _repairable(self, code: str, message: str, repair: str) -> None:
        self._found.append(Fault(code, message, Gravity.REPAIRABLE, repair))

    def _note(self, message: str) -> None:
        self._found.append(Fault("fat-oddity", message, Gravity.HARMLESS))


def is_marked(window: Window, layout: FatLayout, table: FatTable) -> bool:
    """True if the volume is marked as not unmounted, in the table or in the boot sector."""
    clean = _CLEAN[layout.fat_type]
    state = window.read_at(layout.state_offset, 1)[0]
    return table[1] & clean != clean or bool(state & NOT_UNMOUNTED)


def _count(number: int, noun: str, nouns: str) -> str:
    return f"{number} {noun if number == 1 else nouns}"


def _is_link(entry: DirectoryEntry, link: tuple[int, bytes, set[int]]) -> bool:
    """True if an entry is the ``.`` or ``..`` with that index, 8.3 name and cluster."""
    fields, (index, name, clusters) = entry.fields, link
    return (
        entry.index == index
        and fields.short_name == name
        and fields.is_directory
        and fields.cluster in clusters
    )


def _is_valid_name(entry: DirectoryEntry) -> bool:
    short_name = entry.fields.short_name.removeprefix(_E5_STAND_IN)
    if short_name.startswith(b" ") or _SHORT_FORBIDDEN.intersection(short_name):
        return False
    return entry.long_name is None or is_storable(entry.long_name)
