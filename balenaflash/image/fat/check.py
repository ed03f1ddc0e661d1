"""A structural check of a FAT volume, much as fsck.vfat does it: what forbids an edit.

It reads the tables and the directories, never the content of files, and is bounded whatever
the volume says: no cluster is followed twice.
"""

from array import array
from dataclasses import dataclass

from balenaflash.extent import SECTOR_SIZE
from balenaflash.image.fat import fsinfo
from balenaflash.image.fat.directory import (
    DOT,
    DOT_DOT,
    MAX_DIRECTORIES,
    MAX_DIRECTORY,
    Fields,
    Record,
    Scan,
    scan,
)
from balenaflash.image.fat.layout import FIRST_CLUSTER, FatLayout, FatType
from balenaflash.image.fat.names import MAX_PATH, fold, is_storable
from balenaflash.image.fat.table import FREE, FatTable
from balenaflash.image.fat.window import Window

_MAX_FAULTS = 100
_SHORT_FORBIDDEN = frozenset(b'"*+,./:;<=>?[\\]|') | frozenset(range(0x20))
_E5_STAND_IN = b"\x05"  # allowed as the first byte of an 8.3 name

_GEOMETRY = slice(11, 64)
"""Bytes of a FAT32 boot sector that the backup must repeat; behind them a mount sets a flag."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a volume that should not be."""

    message: str
    """What, and where; paths as stored."""

    forbids_edit: bool
    """False for what an edit cannot make worse: advice to drivers, leftovers of names."""


def find_faults(window: Window, layout: FatLayout) -> tuple[Fault, ...]:
    """What is wrong with the volume as ``window`` has it now; what forbids an edit comes first.

    Raises:
        ImageError: the image cannot be read.
    """
    check = _Check(window, layout)
    check.check_tables()
    check.check_tree()
    check.check_unclaimed()
    check.check_reserved_sectors()
    return tuple(sorted(check.faults, key=lambda fault: not fault.forbids_edit))


@dataclass(frozen=True, slots=True)
class _Visit:
    """A directory that is yet to be read."""

    path: str
    """Empty for the root."""

    first: int
    """First cluster, 0 for the root."""

    parent: int
    """First cluster of the parent, 0 if that is the root."""


class _Check:
    def __init__(self, window: Window, layout: FatLayout) -> None:
        self.faults: list[Fault] = []
        self._window = window
        self._layout = layout
        self._copies = [window.read_at(copy.start, copy.size) for copy in layout.tables]
        self._table = FatTable.decode(layout, self._copies[0])
        self._owners = array("I", bytes(4 * layout.end_cluster))  # index in _paths, 0 for none
        self._paths = [""]
        self._claimed = 0
        self._directory_bytes = 0

    def check_tables(self) -> None:
        used = -(-self._layout.end_cluster * self._layout.fat_type // 8)
        for number, copy in enumerate(self._copies[1:], start=2):
            if copy[:used] != self._copies[0][:used]:
                self._forbid(f"the first file allocation table and copy {number} of it differ")
        if self._table.entries[0] < self._table.last & ~0xFF | 0xF0:  # media byte, then ones
            self._forbid("the first entry of the file allocation table is damaged")

    def check_tree(self) -> None:
        waiting = [_Visit("", 0, 0)]
        while waiting and len(self.faults) < _MAX_FAULTS:
            visit = waiting.pop()
            found = scan(self._read(visit), wide=self._layout.fat_type is FatType.FAT32)
            self._check_slots(visit, found)
            self._check_names(visit, found)
            waiting += self._check_entries(visit, found)

    def check_unclaimed(self) -> None:
        entries = self._table.entries[FIRST_CLUSTER:]
        lost = len(entries) - entries.count(FREE) - entries.count(self._table.bad) - self._claimed
        if lost > 0 and not self.faults:  # after a broken chain, the rest of it is lost, too
            self._forbid(f"{lost} clusters are in use by no file (lost clusters)")

    def check_reserved_sectors(self) -> None:
        layout, window = self._layout, self._window
        if layout.backup_offset is not None:
            backup = window.read_at(layout.backup_offset, SECTOR_SIZE)
            if backup[_GEOMETRY] != window.read_at(0, SECTOR_SIZE)[_GEOMETRY]:
                self._note("the boot sector and its backup differ")
        fault = fsinfo.find_fault(window, layout, self._table)
        if fault is not None:
            self._note(fault)

    def _read(self, visit: _Visit) -> bytes:
        layout = self._layout
        if visit.first == 0 and layout.root is not None:
            return self._window.read_at(layout.root.start, layout.root.size)
        path = visit.path or "/"
        chain = self._claim(visit.first or layout.root_cluster, path)
        size = len(chain) * layout.cluster_size
        self._directory_bytes += size
        if size > MAX_DIRECTORY or self._directory_bytes > MAX_DIRECTORIES:
            self._forbid(f"{path}: directories of {self._directory_bytes} bytes and more")
            return b""
        offsets = map(layout.cluster_offset, chain)
        return b"".join(self._window.read_at(offset, layout.cluster_size) for offset in offsets)

    def _claim(self, first: int, path: str) -> list[int]:
        """Follow the chain of ``path`` as far as it is sound and its clusters are unclaimed."""
        self._paths.append(path)
        owner = len(self._paths) - 1
        chain: list[int] = []
        cluster = first
        while FIRST_CLUSTER <= cluster < self._layout.end_cluster and not self._owners[cluster]:
            self._owners[cluster] = owner
            chain.append(cluster)
            cluster = self._table.entries[cluster]
        if not chain or cluster < self._table.least_last:
            self._forbid(f"{path}: its cluster chain {self._end_of_chain(cluster, owner)}")
        self._claimed += len(chain)
        return chain

    def _end_of_chain(self, cluster: int, owner: int) -> str:
        if cluster == FREE:
            return "runs into a free cluster"
        if cluster == self._table.bad:
            return "runs into a bad cluster"
        if not FIRST_CLUSTER <= cluster < self._layout.end_cluster:
            return f"leads to cluster {cluster}, which does not exist"
        if self._owners[cluster] == owner:
            return f"loops back to cluster {cluster}"
        return f"shares cluster {cluster} with {self._paths[self._owners[cluster]]}"

    def _check_slots(self, visit: _Visit, found: Scan) -> None:
        path = visit.path or "/"
        if found.stray:
            self._forbid(f"{path}: {found.stray} slots are in use behind the end of the directory")
        if found.orphans:
            self._note(f"{path}: {found.orphans} slots of long names belong to no entry")
        dots = [record for record in found.records if record.fields.short_name in {DOT, DOT_DOT}]
        if visit.first == 0:
            expected = []
        else:
            parents = {visit.parent, visit.parent or self._layout.root_cluster}
            expected = [(0, DOT, {visit.first}), (1, DOT_DOT, parents)]
        if len(dots) != len(expected) or not all(
            _is_link(dot, *link) for dot, link in zip(dots, expected, strict=False)
        ):
            self._forbid(f"{path}: its entries '.' and '..' are wrong or missing")

    def _check_names(self, visit: _Visit, found: Scan) -> None:
        """No two entries may answer to one name, be it long or 8.3."""
        seen: dict[str, str] = {}
        for record in found.records:
            if record.fields.is_label or record.fields.short_name in {DOT, DOT_DOT}:
                continue
            path = f"{visit.path}/{record.name}"
            for name in {fold(record.name), fold(record.short_name)}:
                if name in seen:
                    self._forbid(f"{path}: has the same name, long or 8.3, as {seen[name]}")
                seen[name] = path
            if not _is_valid_name(record):
                self._note(f"{path}: its name holds characters that FAT does not allow")

    def _check_entries(self, visit: _Visit, found: Scan) -> list[_Visit]:
        """Check the files; the directories to go on with."""
        below = []
        for record in found.records:
            fields, path = record.fields, f"{visit.path}/{record.name}"
            if fields.is_label or fields.short_name in {DOT, DOT_DOT}:
                continue
            if not fields.is_directory:
                self._check_file(fields, path)
            elif len(path) > MAX_PATH:
                self._forbid(f"{path[:60]}...: a path of more than {MAX_PATH} characters")
            elif fields.cluster == 0:
                self._forbid(f"{path}: a directory without a cluster")
            else:
                below.append(_Visit(path, fields.cluster, visit.first))
                if fields.size:
                    self._note(f"{path}: a directory with a size")
            if len(self.faults) >= _MAX_FAULTS:
                break
        return below

    def _check_file(self, fields: Fields, path: str) -> None:
        needed = -(-fields.size // self._layout.cluster_size)
        if fields.cluster == 0 and needed == 0:
            return
        length = len(self._claim(fields.cluster, path))
        if length != needed:
            self._forbid(f"{path}: {fields.size} bytes, but {length} clusters, not {needed}")

    def _forbid(self, message: str) -> None:
        self.faults.append(Fault(message, forbids_edit=True))

    def _note(self, message: str) -> None:
        self.faults.append(Fault(message, forbids_edit=False))


def _is_link(record: Record, index: int, name: bytes, clusters: set[int]) -> bool:
    """Whether a record is the ``.`` or ``..`` that belongs in that slot."""
    fields = record.fields
    return (
        record.index == index
        and fields.short_name == name
        and fields.is_directory
        and fields.cluster in clusters
    )


def _is_valid_name(record: Record) -> bool:
    short_name = record.fields.short_name.removeprefix(_E5_STAND_IN)
    if short_name.startswith(b" ") or _SHORT_FORBIDDEN.intersection(short_name):
        return False
    return record.long_name is None or is_storable(record.long_name)
