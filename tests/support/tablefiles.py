"""Partition tables spoilt on purpose, and what other tools read from sound ones."""

import json
import struct
import zlib
from pathlib import Path

from builders import run

from balenaflash.source.base import RandomAccess, Source
from balenaflash.units import SECTOR_SIZE, Extent

ENTRIES = 446  # offset of the four entries of a boot record
MIB = 1 << 20


class OverlaidSource(RandomAccess):
    """An image with some bytes replaced; the image itself stays as it is."""

    def __init__(self, base: Source, changes: dict[int, bytes], *, size: int | None = None) -> None:
        self._base = base
        self._changes = changes
        self._size = base.measure() if size is None else size

    @property
    def name(self) -> str:
        return "spoilt.img"

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 <= length <= 2 * MIB, "a table never needs as much"
        assert offset + length <= self._size
        data = bytearray(self._base.read(offset, length))
        for start, change in self._changes.items():
            for index, byte in enumerate(change, start - offset):
                if 0 <= index < length:
                    data[index] = byte
        return bytes(data)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))


def sfdisk_table(path: Path) -> dict[str, object]:
    """What sfdisk says of a table, without its partitions."""
    table: dict[str, object] = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    return table


def sfdisk_partitions(path: Path) -> list[dict[str, object]]:
    """Number, start and size in sectors, type, name and UUID as sfdisk sees them."""
    listed = json.loads(run("sfdisk", "--json", path))["partitiontable"]["partitions"]
    return [{"number": int(each["node"].removeprefix(str(path))), **each} for each in listed]


def sfdisk_extents(path: Path) -> dict[int, Extent]:
    """Partition number to its bytes as sfdisk sees them; sectors of 512 bytes."""
    extents = {}
    for each in sfdisk_partitions(path):
        number, start, size = each["number"], each["start"], each["size"]
        assert isinstance(number, int)
        assert isinstance(start, int)
        assert isinstance(size, int)
        extents[number] = Extent(start * SECTOR_SIZE, (start + size) * SECTOR_SIZE)
    return extents


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Replace bytes of a file; a negative offset counts from its end."""
    with path.open("r+b") as file:
        file.seek(offset, 0 if offset >= 0 else 2)
        file.write(data)


def read_at(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a file; a negative offset counts from its end."""
    with path.open("rb") as file:
        file.seek(offset, 0 if offset >= 0 else 2)
        return file.read(length)


def flip(path: Path, offset: int) -> None:
    """Spoil one byte of a file."""
    write_at(path, offset, bytes([read_at(path, offset, 1)[0] ^ 0xFF]))


def boot_record(*entries: tuple[int, int, int]) -> bytes:
    """A boot record with entries of type, first sector and number of sectors."""
    body = b"".join(
        struct.pack("<B3xB3xII", 0, type_id, first, count) for type_id, first, count in entries
    )
    return bytes(ENTRIES) + body.ljust(64, b"\0") + b"\x55\xaa"


def sign_gpt(header: bytes, array: bytes) -> bytes:
    """A GPT header with both checksums made right for ``array`` (UEFI 2.10, table 5.5)."""
    size = min(max(struct.unpack_from("<I", header, 12)[0], 92), len(header))
    signed = bytearray(header)
    struct.pack_into("<I", signed, 88, zlib.crc32(array))
    struct.pack_into("<I", signed, 16, 0)
    struct.pack_into("<I", signed, 16, zlib.crc32(signed[:size]))
    return bytes(signed)


def rewrite_primary(path: Path, array: bytes) -> None:
    """Put ``array`` and a header that is right for it at the start of a GPT image."""
    write_at(path, 2 * SECTOR_SIZE, array)
    write_at(path, SECTOR_SIZE, sign_gpt(read_at(path, SECTOR_SIZE, SECTOR_SIZE), array))
