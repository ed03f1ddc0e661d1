"""A FAT volume of an image, edited in memory, over pyfatfs; the only place that imports it.

pyfatfs 1.1.0 reads the boot sector, knows where a cluster lies and encodes entries. Whatever of
it damages volumes or believes what a hostile one says is replaced in ``_Core`` below, each method
with its reason; names, directories, the table and the choice of clusters are in modules of their
own, which hold no pyfatfs. The faults were found by random edits compared with fsck.vfat and
mtools, and each has a test in ``tests/test_fat_pyfatfs_faults.py``.

Upstream (nathanhi/pyfatfs) has had neither a release nor a commit since March 2024, and knows of
one of them: short names without a ``~N`` tail, its issue 45. So the version is pinned, and a
newer one needs that test file to pass before anything here may go.
"""

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Self

from pyfatfs._exceptions import NotAFatEntryException, PyFATException
from pyfatfs.EightDotThree import EightDotThree
from pyfatfs.FATDirectoryEntry import FATDirectoryEntry, FATLongDirectoryEntry
from pyfatfs.PyFat import PyFat

from balenaflash.errors import ImageError
from balenaflash.formats.fat import table
from balenaflash.formats.fat.check import Check
from balenaflash.formats.fat.directory import Fields
from balenaflash.formats.fat.layout import FatLayout, read_layout
from balenaflash.formats.fat.names import split_long
from balenaflash.formats.fat.table import FatTable
from balenaflash.formats.fat.volume import FatEditor, FatEntry
from balenaflash.formats.fat.window import Window
from balenaflash.source.base import Source
from balenaflash.source.layers import Patch
from balenaflash.source.undo import EditMark
from balenaflash.units import Extent, merge

__all__ = ["FatEntry", "FatVolume"]

_LAST_PART = FATLongDirectoryEntry.LAST_LONG_ENTRY


class FatVolume(FatEditor):
    """The FAT volume in one partition of an image; edits stay in memory until ``changes``."""

    def __init__(self, core: "_Core") -> None:
        super().__init__(core)
        self._core = core
        self.partition_name: str | None = None
        """Name of its partition in the table; ``None`` where the table has no names."""

    @classmethod
    def open(cls, source: Source, extent: Extent) -> Self:
        """The volume in the bytes ``extent`` of ``source``, which must stay open.

        Only the boot sector and the first file allocation table are read now.

        Raises:
            ImageError: there is no valid FAT volume (``fat-invalid``), or the image ends
                before the partition does (``image-truncated``).
        """
        if source.size is not None and extent.end > source.size:
            raise ImageError(
                f"{source.name}: ends at byte {source.size}, inside the partition",
                code="image-truncated",
                hint="The file is probably an incomplete download or copy.",
            )
        window = Window(source, extent)
        return cls(_Core(window, read_layout(window)))

    @property
    def fat_bits(self) -> int:
        """12, 16 or 32."""
        return self._core.layout.fat_type

    @property
    def volume_id(self) -> int:
        """The serial number, shown as ``%04X-%04X`` of its halves; 0 if it has none."""
        return self._core.layout.volume_id

    @property
    def edit_mark(self) -> EditMark:
        """Where an edit of the image is marked that makes the changes so far."""
        window, offset = self._core.window, self._core.layout.state_offset
        before = window.read_original(offset, 1)[0]
        after = window.read_at(offset, 1)[0]
        return EditMark(window.extent.start + offset, before, after)

    @property
    def cluster_size(self) -> int:
        """In bytes."""
        return self._core.layout.cluster_size

    @property
    def total_bytes(self) -> int:
        """Size of all clusters, without tables and a fixed root directory."""
        return self._core.layout.cluster_count * self.cluster_size

    @property
    def free_bytes(self) -> int:
        """Size of all free clusters."""
        return self._core.table.free_count() * self.cluster_size

    def changes(self) -> tuple[Patch, ...]:
        """The sectors of the image that the edits have changed, in order; none for no edit.

        Offsets count from the start of the image.

        Raises:
            EditError: the structure would not be sound after it (``volume-unsound``).
        """
        self._core.flush()
        runs = tuple(self._core.window.changed_runs())
        if runs:
            self._require_no_new_faults()
        start = self._core.window.extent.start
        return tuple(Patch(start + offset, data) for offset, data in runs)


@contextmanager
def _pyfatfs_errors(name: str) -> Iterator[None]:
    """Turn what pyfatfs raises into ``ImageError``, and keep its warnings from the user.

    It is only shown boot sectors that ``read_layout`` has found valid, and entries that we made;
    what it still objects to is an oddity of the volume.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (PyFATException, NotAFatEntryException, struct.error) as error:
        raise ImageError(f"{name}: not a usable FAT volume: {error}", code="fat-invalid") from error


class _Core(PyFat):
    """pyfatfs over a window, without its faults; the ``Storage`` of ``FatTree``."""

    def __init__(self, window: Window, layout: FatLayout) -> None:
        super().__init__()
        self.window = window
        self.layout = layout
        self.image_name = window.name
        self.name = f"{window.name}: the FAT volume at byte {window.extent.start}"
        self._edited = False
        with _pyfatfs_errors(self.name):
            self.set_fp(window)

    def parse_header(self) -> None:
        """Take the FAT type from ``read_layout``.

        pyfatfs counts the clusters before it knows the size of the root directory, and so takes
        a FAT12 volume with a little under 4085 clusters for FAT16.
        """
        super().parse_header()
        self.fat_type = self.layout.fat_type

    def _parse_fat(self) -> None:
        """Leave the tables to ``FatTable``.

        pyfatfs takes the entries that fill up the last sector for clusters too: on a full volume
        it writes behind the partition, into the next one. It also holds all of them in a list,
        clears the upper four bits of FAT32's, and leaves out the last one of some FAT12 tables.
        """
        self.bytes_per_cluster = self.layout.cluster_size
        self.table = FatTable(self.window, self.layout)

    def parse_root_dir(self) -> None:
        """Leave directories to ``Directory``.

        pyfatfs gives up on a directory with one leftover slot of a long name, reads on behind its
        end into deleted entries, and finds names in one case only.
        """

    def _is_dirty(self) -> bool:
        """Say no, for ``set_fp`` only warns; ``Check`` looks at it."""
        return False

    def _mark_dirty(self) -> None:
        """Write nothing on opening."""

    def _mark_clean(self) -> None:
        """Leave the flag to ``Check``."""

    def close(self) -> None:
        """Hold nothing that must be closed; ``__del__`` calls this, and would write."""

    def get_cluster_chain(self, first_cluster: int) -> Iterator[int]:
        """Follow a chain to its end; pyfatfs follows a loop for ever."""
        return self.table.follow(first_cluster, self.name)

    def extents(self, first: int, owner: str, size: int | None = None) -> list[Extent]:
        """Where a chain lies, neighbouring clusters in one piece."""
        clusters = self.table.follow(first, owner)
        if size is not None:
            clusters = islice(clusters, self.calc_num_clusters(size))
        starts = map(self.get_data_cluster_address, clusters)
        return list(merge(Extent(start, start + self.bytes_per_cluster) for start in starts))

    def read(self, extents: Sequence[Extent]) -> bytes:
        """The content of ``extents``, one after the other."""
        return b"".join(self.window.read_at(extent.start, extent.size) for extent in extents)

    def write(self, extents: Sequence[Extent], data: bytes) -> None:
        """Fill ``extents`` with ``data`` and zeros.

        Instead of ``write_data_to_cluster`` and ``update_directory_entry``, which leave the tail
        of a shorter directory as it was, so that deleted entries come back.
        """
        self._edited = True
        left = memoryview(data)
        for extent in extents:
            piece, left = left[: extent.size], left[extent.size :]
            self._write_data_to_address(piece, extent.start)
            rest = extent.size - len(piece)
            self._write_data_to_address(bytes(rest), extent.end - rest)

    def resize(self, first: int, size: int, owner: str) -> int:
        """Give a chain room for ``size`` bytes; its first cluster.

        Instead of ``allocate_bytes`` and ``free_cluster_chain``: with these, a shortened file
        keeps pointing at clusters that the next file gets, "cluster 0" of an empty file is freed
        and with it the table's own mark, and the last free cluster is never found.
        """
        self._edited = True
        return self.table.resize(first, self.calc_num_clusters(size), owner)

    def encode(self, fields: Fields, long_name: str | None) -> bytes:
        """The slots of an entry: those of its long name, then the one with the 8.3 name.

        Instead of ``make_lfn_entry``, which takes no more than 127 characters.
        """
        short_name = EightDotThree()
        with _pyfatfs_errors(self.name):
            short_name.set_byte_name(fields.short_name)
            entry = FATDirectoryEntry(
                DIR_Name=short_name,
                DIR_Attr=fields.attributes,
                DIR_NTRes=fields.case_bits,
                DIR_CrtTimeTenth=fields.created_tenths,
                DIR_CrtTime=fields.created_time,
                DIR_CrtDate=fields.created_date,
                DIR_LstAccessDate=fields.accessed_date,
                DIR_FstClusHI=fields.cluster >> 16,
                DIR_WrtTime=fields.modified_time,
                DIR_WrtDate=fields.modified_date,
                DIR_FstClusLO=fields.cluster & 0xFFFF,
                DIR_FileSize=fields.size,
                lfn_entry=None if long_name is None else _long_entry(long_name, short_name),
            )
            return bytes(entry)

    def check(self) -> Check:
        """What is wrong with the volume as it is now."""
        self.flush()
        return Check(self.window, self.layout, self.table)

    def flush(self) -> None:
        """Write the number of free clusters, if anything was changed."""
        if not self._edited:
            return
        self.table.flush()
        table.refresh(self.window, self.layout, self.table)
        self._edited = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo every change of the block if the block is left by an exception."""
        edited, done = self._edited, False
        try:
            with self.window.transaction():
                yield
                self.table.flush()
            done = True
        finally:
            if not done:
                self.table.forget()
                self._edited = edited


def _long_entry(name: str, short_name: EightDotThree) -> FATLongDirectoryEntry:
    """The slots of a long name, for the entry with that 8.3 name."""
    long_entry = FATLongDirectoryEntry()
    parts = split_long(name)
    for number, part in enumerate(parts, start=1):
        long_entry.add_lfn_entry(
            LDIR_Ord=number if number < len(parts) else number | _LAST_PART,
            LDIR_Name1=part[:10],
            LDIR_Attr=FATDirectoryEntry.ATTR_LONG_NAME,
            LDIR_Type=0,
            LDIR_Chksum=short_name.checksum(),
            LDIR_Name2=part[10:22],
            LDIR_FstClusLO=0,
            LDIR_Name3=part[22:],
        )
    return long_entry
