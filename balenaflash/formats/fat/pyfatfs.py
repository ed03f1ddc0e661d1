"""The core of a FAT volume over pyfatfs; the only module that imports it.

pyfatfs 1.1.0 reads the boot sector, computes the offset of a cluster and encodes entries. It sees
no more of the volume than a copy of the boot sector, so that it cannot write to the volume. Every
other part of it damages volumes or trusts a hostile one, and is replaced by ``Core`` or by the
modules beside this one. Its faults were found by random edits that were compared with fsck.vfat
and mtools, and each has a test in ``tests/formats/fat/test_fat_pyfatfs_faults.py``.

Upstream (nathanhi/pyfatfs) has had no release and no commit since March 2024, and has a report of
one fault only: short names without a ``~N`` tail, its issue 45. So the version is pinned. With a
newer version, that test file must pass before anything here is removed.
"""

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from itertools import islice

from pyfatfs._exceptions import NotAFatEntryException, PyFATException
from pyfatfs.EightDotThree import EightDotThree
from pyfatfs.FATDirectoryEntry import FATDirectoryEntry, FATLongDirectoryEntry
from pyfatfs.PyFat import PyFat

from balenaflash.errors import ImageError
from balenaflash.formats.fat.directory import Fields
from balenaflash.formats.fat.fsck import Check
from balenaflash.formats.fat.layout import FatLayout
from balenaflash.formats.fat.names import split_long
from balenaflash.formats.fat.table import FatTable
from balenaflash.formats.fat.window import Window
from balenaflash.units import SECTOR_SIZE, Extent, merge

_LAST_PART = FATLongDirectoryEntry.LAST_LONG_ENTRY


@contextmanager
def _pyfatfs_errors(name: str) -> Iterator[None]:
    """Turn errors of pyfatfs into ``ImageError``, and drop its warnings.

    pyfatfs only sees boot sectors that ``read_layout`` has accepted, and entries of our own; what
    it still refuses is an oddity of the volume.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (PyFATException, NotAFatEntryException, struct.error) as error:
        raise ImageError(f"{name}: not a usable FAT volume: {error}", code="fat-invalid") from error


class Core(PyFat):
    """Clusters, entries and transactions of the FAT volume in a window."""

    def __init__(self, window: Window, layout: FatLayout) -> None:
        super().__init__()
        self.window = window
        self.layout = layout
        self.table = FatTable(window, layout)
        self.name = f"{window.name}: the FAT volume at byte {window.extent.start}"
        self._edited = False
        self._check: Check | None = None
        boot_sector = BytesIO(window.read_at(0, SECTOR_SIZE))
        with _pyfatfs_errors(self.name):
            self.set_fp(BufferedReader(boot_sector))

    def _parse_fat(self) -> None:
        """Leave the tables to ``FatTable``.

        pyfatfs also takes the entries that fill up the last sector for clusters: on a full volume
        it writes past the end of the partition. It keeps all entries in a list, clears the upper
        four bits of FAT32's, omits the last entry of some FAT12 tables, and takes a FAT12 volume
        with a little under 4085 clusters for FAT16.
        """
        self.bytes_per_cluster = self.layout.cluster_size

    def parse_root_dir(self) -> None:
        """Leave directories to ``Directory``.

        pyfatfs fails on a directory with one leftover slot of a long name, reads past the end mark
        into deleted entries, and finds names in one case only.
        """

    def _is_dirty(self) -> bool:
        """Return false: ``set_fp`` would only warn, and ``Check`` looks at the flag."""
        return False

    def extents(self, first: int, owner: str, size: int | None = None) -> list[Extent]:
        """Extents of the chain from cluster ``first``, in order; errors as ``FatTable.follow``.

        Neighbouring clusters are one extent. With ``size``, the chain is followed only as far as
        so many bytes need, as Linux reads a file.
        """
        clusters = self.table.follow(first, owner)
        if size is not None:
            clusters = islice(clusters, self.calc_num_clusters(size))
        starts = map(self.get_data_cluster_address, clusters)
        return list(merge(Extent(start, start + self.bytes_per_cluster) for start in starts))

    def read(self, extents: Sequence[Extent]) -> bytes:
        """The content of ``extents``, one after the other."""
        return b"".join(self.window.read_at(extent.start, extent.size) for extent in extents)

    def write(self, extents: Sequence[Extent], data: bytes) -> None:
        """Fill ``extents`` with ``data``, and the rest with zeros.

        pyfatfs's ``write_data_to_cluster`` and ``update_directory_entry`` keep the old tail of a
        directory that got shorter, so that deleted entries come back.
        """
        self._edited = True
        left = memoryview(data)
        for extent in extents:
            piece, left = left[: extent.size], left[extent.size :]
            self.window.write_at(extent.start, piece)
            rest = extent.size - len(piece)
            self.window.write_at(extent.end - rest, bytes(rest))

    def resize(self, first: int, size: int, owner: str) -> int:
        """Make room for ``size`` bytes in the chain from ``first``, and return its first cluster.

        0 stands for no chain. Errors as ``FatTable.resize``.

        With pyfatfs's ``allocate_bytes`` and ``free_cluster_chain``, a shortened file keeps
        clusters that the next file gets too, "cluster 0" of an empty file is freed and with it the
        table's own mark, and the last free cluster is never found.
        """
        self._edited = True
        return self.table.resize(first, self.calc_num_clusters(size), owner)

    def encode(self, fields: Fields, long_name: str | None) -> bytes:
        """The slots of an entry: those of its long name, then the one with the 8.3 name.

        pyfatfs's ``make_lfn_entry`` accepts no more than 127 characters.
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
        """A check of the volume as it is now, made once after each change; errors as ``Check``."""
        self.flush()
        if self._check is None:
            self._check = Check(self.window, self.layout, self.table)
        return self._check

    def flush(self) -> None:
        """Write the table and the number of free clusters, if anything was changed."""
        if self._edited:
            self.table.flush()
            self.table.write_fsinfo()
            self._edited = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo every change of the block if the block is left by an exception."""
        edited = self._edited
        self._check = None
        try:
            with self.window.transaction():
                yield
                self.table.flush()
        except BaseException:
            self.table.forget()
            self._edited = edited
            raise


def _long_entry(name: str, short_name: EightDotThree) -> FATLongDirectoryEntry:
    """The slots of a long name, for the entry with the 8.3 name ``short_name``."""
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
