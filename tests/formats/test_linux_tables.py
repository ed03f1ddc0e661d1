"""Odd tables, read as Linux reads them; where Linux or another tool reads otherwise, a warning.

What Linux does is in ``block/partitions/efi.c`` and ``msdos.c``; sfdisk, which reads all of these
as Linux does or more, is the judge of the partitions.
"""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import run
from commandline import RunBalenaflash
from tablefiles import boot_record, read_at, sfdisk_extents, sfdisk_table, sign_gpt, write_at

from balenaflash.errors import ImageError
from balenaflash.formats.partitions.model import PartitionTable
from balenaflash.formats.partitions.table import read_table
from balenaflash.source.base import open_source

pytestmark = pytest.mark.needs("fdisk", "gdisk", "parted")

MIB = 1 << 20
SIZE = 16 * MIB
LAST = SIZE // 512 - 1
FIRST = 8192  # sector of the boot partition


def table_of(path: Path) -> PartitionTable:
    with open_source(path) as source:
        return read_table(source)


def found(path: Path) -> dict[int, tuple[int, int]]:
    return {each.number: (each.extent.start, each.extent.end) for each in table_of(path).partitions}


def by_sfdisk(path: Path) -> dict[int, tuple[int, int]]:
    return {number: (each.start, each.end) for number, each in sfdisk_extents(path).items()}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    path = tmp_path / "image.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def gpt(empty: Path) -> Path:
    """Two partitions, the second one up to the last usable sector."""
    command = ["sgdisk", "-a1", f"-n1:{FIRST}:16383", "-c1:resin-boot", "-n2:16384:0", str(empty)]
    subprocess.run(command, check=True, capture_output=True)
    return empty


def change_headers(path: Path, change: Callable[[bytearray], None], *lbas: int) -> None:
    array = read_at(path, 1024, 128 * 128)
    for lba in lbas:
        header = bytearray(read_at(path, lba * 512, 512))
        change(header)
        write_at(path, lba * 512, sign_gpt(bytes(header), array))


def put_field(offset: int, kind: str, value: int) -> Callable[[bytearray], None]:
    return lambda header: struct.pack_into(kind, header, offset, value)


def protect(*entries: tuple[int, int, int]) -> Callable[[Path], None]:
    return lambda path: write_at(path, 446, boot_record(*entries)[446:])


def spoil_boot_indicator(path: Path) -> None:
    write_at(path, 446, b"\x7f")


def narrow_usable_range(path: Path) -> None:
    change_headers(path, put_field(48, "<Q", LAST - 100), 1, LAST)


def begin_usable_range_in_the_array(path: Path) -> None:
    change_headers(path, put_field(40, "<Q", 3), 1, LAST)


def name_a_backup_behind_the_end(path: Path) -> None:
    change_headers(path, put_field(32, "<Q", LAST + 5000), 1)


def name_no_backup(path: Path) -> None:
    change_headers(path, put_field(32, "<Q", 0), 1)


def stretch_entries(size: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        array = read_at(path, 1024, 128 * 128)
        count = 16384 // size
        wide = b"".join(
            array[start : start + 128].ljust(size, b"\0") for start in range(0, count * 128, 128)
        )
        for lba, array_lba in ((1, 2), (LAST, LAST - 32)):
            header = bytearray(read_at(path, lba * 512, 512))
            struct.pack_into("<II", header, 80, count, size)
            write_at(path, lba * 512, sign_gpt(bytes(header), wide))
            write_at(path, array_lba * 512, wide)

    return spoil


HYBRID = protect((0xEE, 1, 0), (0x0C, 24576, 4096))


@pytest.mark.parametrize(
    ("spoil", "warning"),
    [
        (protect((0xEE, 1, 0)), None),
        (HYBRID, "The MBR is a hybrid"),
        (protect((0x0C, FIRST, 8192), (0, 0, 0), (0xEE, 1, 8191)), "The MBR is a hybrid"),
        (spoil_boot_indicator, None),
        (protect((0xEE, 63, LAST - 63)), "Linux does not read this GPT: the protective entry"),
        (narrow_usable_range, "Partition 2 lies outside the range"),
        (begin_usable_range_in_the_array, None),
        (name_a_backup_behind_the_end, f"The primary GPT names sector {LAST + 5000}"),
        (name_no_backup, "The backup GPT is damaged"),
        (stretch_entries(136), "Linux does not read this GPT: its entries have 136 bytes"),
        (stretch_entries(200), "Linux does not read this GPT: its entries have 200 bytes"),
        (stretch_entries(256), "Linux does not read this GPT: its entries have 256 bytes"),
        (stretch_entries(4096), "Linux does not read this GPT: its entries have 4096 bytes"),
    ],
)
def test_an_odd_gpt_is_read_as_one(
    spoil: Callable[[Path], None], warning: str | None, gpt: Path
) -> None:
    expected = by_sfdisk(gpt)
    spoil(gpt)
    assert sfdisk_table(gpt)["label"] == "gpt"
    assert by_sfdisk(gpt) == expected
    table = table_of(gpt)
    assert table.kind == "gpt"
    assert found(gpt) == expected
    assert [text.startswith(warning or "") for text in table.warnings] == [True] * bool(warning)


@pytest.mark.needs("dosfstools", "mtools")
def test_a_protective_entry_without_a_size_keeps_the_hybrid_entry_from_being_edited(
    gpt: Path, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    """By both entries there is a FAT called resin-boot; that of the GPT is the right one."""
    protect((0xEE, 1, 0), (0x0C, 20480, 4096))(gpt)
    for sector, sectors, text in ((FIRST, 8192, "real"), (20480, 4096, "decoy")):
        fat, file = tmp_path / "fat", tmp_path / "file"
        fat.write_bytes(bytes(sectors * 512))
        file.write_text(text)
        subprocess.run(["mkfs.vfat", "-n", "resin-boot", fat], check=True, capture_output=True)
        subprocess.run(["mcopy", "-i", fat, file, "::which"], check=True)
        write_at(gpt, sector * 512, fat.read_bytes())
    assert balenaflash("boot", "cat", gpt, "/which").stdout == "real"
    decoy = read_at(gpt, 20480 * 512, 4096 * 512)
    assert balenaflash("boot", "put", gpt, tmp_path / "file", "/new").returncode == 0
    assert read_at(gpt, 20480 * 512, 4096 * 512) == decoy


@pytest.mark.parametrize("count", [60, 61, 70, 251])
def test_as_many_logical_partitions_are_read_as_linux_numbers(count: int, empty: Path) -> None:
    write_at(empty, 0, boot_record((0x0C, 64, 128), (0x0F, 1024, 30000)))
    for index in range(count):
        link = [(0x05, (index + 1) * 64, 64)] if index < count - 1 else []
        write_at(empty, (1024 + index * 64) * 512, boot_record((0x83, 32, 32), *link))
    # sfdisk holds 60 partitions, libblkid 255.
    listed = run("partx", "--show", "--bytes", "--noheadings", "-o", "NR,START,SECTORS", empty)
    expected = {}
    for line in listed.splitlines():
        number, start, sectors = map(int, line.split())
        expected[number] = (start * 512, (start + sectors) * 512)
    logical = {number: extent for number, extent in found(empty).items() if number > 4}
    assert logical == {number: extent for number, extent in expected.items() if number > 4}
    assert len(logical) == count
    warnings = table_of(empty).warnings
    assert [f"{count} logical partitions" in text for text in warnings] == [True] * (count > 60)


def test_zeros_in_place_of_the_last_extended_record_end_the_chain(empty: Path) -> None:
    write_at(empty, 0, boot_record((0x0C, 64, 128), (0x0F, 1024, 30000)))
    write_at(empty, 1024 * 512, boot_record((0x83, 32, 32), (0x05, 64, 64)))
    assert found(empty) == by_sfdisk(empty)
    assert 5 in found(empty)
    assert "contains only zeros" in table_of(empty).warnings[0]


@pytest.mark.needs("dosfstools")
@pytest.mark.parametrize("bits", ["16", "32"])
def test_boot_code_that_is_that_of_a_fat_does_not_hide_the_partitions(
    bits: str, empty: Path, tmp_path: Path
) -> None:
    """parted takes the whole image for one filesystem, blkid too; Linux and sfdisk do not."""
    whole = tmp_path / "whole"
    whole.touch()
    os.truncate(whole, 64 * MIB)
    subprocess.run(["mkfs.vfat", "-F", bits, whole], check=True, capture_output=True)
    write_at(empty, 0, whole.read_bytes()[:446] + boot_record((0x0C, 64, 128))[446:])
    assert found(empty) == by_sfdisk(empty) == {1: (64 * 512, 192 * 512)}
    assert "also the boot sector of a FAT" in table_of(empty).warnings[0]


def test_an_entry_without_a_type_that_linux_shows_is_warned_of(empty: Path) -> None:
    write_at(empty, 0, boot_record((0x0C, 64, 128), (0, 512, 64)))
    assert set(by_sfdisk(empty)) == {1, 2}
    assert set(found(empty)) == {1}
    assert "Entry 2 of the boot record has no type" in table_of(empty).warnings[0]


def cut_off_the_backup(path: Path) -> None:
    name_a_backup_behind_the_end(path)
    os.truncate(path, SIZE - 512)


TABLE_INVALID = "table-invalid"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (cut_off_the_backup, "image-truncated"),
        (lambda path: change_headers(path, put_field(48, "<Q", LAST + 9), 1, LAST), TABLE_INVALID),
        (stretch_entries(132), TABLE_INVALID),
    ],
)
def test_what_nobody_can_read_stays_refused(
    spoil: Callable[[Path], None], code: str, gpt: Path
) -> None:
    spoil(gpt)
    with open_source(gpt) as source, pytest.raises(ImageError) as caught:
        read_table(source)
    assert caught.value.code == code
