"""The reader of our own: what it takes, what it refuses, and that it always ends."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import Layout
from fakes import MemorySource
from hypothesis import given
from hypothesis import strategies as st
from imagecopies import MakeImage
from tablefiles import boot_record, read_at, rewrite_primary, sfdisk_partitions, write_at

from balenaflash.errors import ImageError
from balenaflash.formats.partitions.model import PartitionKind
from balenaflash.formats.partitions.table import read_table_sectors
from balenaflash.source.base import open_source
from balenaflash.units import Extent

MIB = 1 << 20
EXTENDED_FIRST, EXTENDED_COUNT = 100, 800


def refusal(content: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_table_sectors(MemorySource(content))
    return caught.value


def with_chain(*records: tuple[int, bytes], size: int = 1000) -> bytes:
    """An image of ``size`` sectors: an extended partition, and records at their sectors."""
    image = bytearray(size * 512)
    image[:512] = boot_record((0x0C, 10, 50), (0x0F, EXTENDED_FIRST, EXTENDED_COUNT))
    for sector, record in records:
        image[sector * 512 : sector * 512 + 512] = record
    return bytes(image)


@pytest.mark.needs("fdisk")
@pytest.mark.parametrize("flasher", [False, True], ids=["raw", "flasher"])
@pytest.mark.parametrize("layout", Layout)
def test_types_names_and_identifiers_are_those_of_sfdisk(
    layout: Layout, *, flasher: bool, image: MakeImage
) -> None:
    built = image(layout, flasher=flasher)
    with open_source(built.path) as source:
        table = read_table_sectors(source).table
    expected = [
        (each["type"], each.get("name"), each.get("uuid")) for each in sfdisk_partitions(built.path)
    ]
    # sfdisk writes an MBR type as "e", we as "0x0e".
    found = [
        (f"{int(each.type_id, 16):x}" if layout.table == "msdos" else each.type_id, *rest)
        for each in table.partitions
        for rest in [(each.name, each.uuid)]
    ]
    assert found == expected


@pytest.mark.parametrize("layout", Layout)
def test_the_sectors_listed_are_all_that_parted_wrote(
    layout: Layout, image: MakeImage, tmp_path: Path
) -> None:
    built = image(layout)
    with open_source(built.path) as source:
        reading = read_table_sectors(source)
    copy = tmp_path / "table-only.img"
    copy.touch()
    os.truncate(copy, built.path.stat().st_size)
    for sectors in reading.sectors:
        write_at(copy, sectors.offset, sectors.data)
    keys = ("number", "start", "size", "type")
    original = [[each[key] for key in keys] for each in sfdisk_partitions(built.path)]
    assert [[each[key] for key in keys] for each in sfdisk_partitions(copy)] == original


def test_a_chain_of_logical_partitions_is_followed_backwards_too() -> None:
    # The second record lies before the first one's partition, as after fdisk's "fix order".
    content = with_chain(
        (100, boot_record((0x83, 500, 100), (0x05, 50, 50))),
        (150, boot_record((0x83, 10, 20))),
    )
    partitions = read_table_sectors(MemorySource(content)).table.partitions
    assert [(each.number, each.kind, each.extent) for each in partitions] == [
        (1, PartitionKind.PRIMARY, Extent(10 * 512, 60 * 512)),
        (2, PartitionKind.EXTENDED, Extent(100 * 512, 900 * 512)),
        (5, PartitionKind.LOGICAL, Extent(600 * 512, 700 * 512)),
        (6, PartitionKind.LOGICAL, Extent(160 * 512, 180 * 512)),
    ]


def test_an_extended_partition_may_be_empty() -> None:
    table = read_table_sectors(MemorySource(with_chain())).table
    assert [each.number for each in table.partitions] == [1, 2]
    assert table.warnings


@pytest.mark.parametrize(
    ("records", "fact"),
    [
        ([(100, boot_record((0x05, 0, 10)))], "at byte 51200 is reached a second time"),
        (
            [(100, boot_record((0x05, 50, 10))), (150, boot_record((0x05, 0, 10)))],
            "at byte 51200 is reached a second time",
        ),
        ([(100, boot_record((0x05, 800, 10)))], "outside the extended partition"),
        ([(100, boot_record((0x05, 2**32 - 1, 10)))], "outside the extended partition"),
        ([(100, boot_record((0x83, 790, 20)))], "a partition outside the extended partition"),
        ([(100, boot_record((0x83, 1, 9), (0x83, 20, 9)))], "more than one"),
        ([(100, boot_record((0x05, 10, 9), (0x05, 20, 9)))], "more than one"),
        ([(100, b"\xa5" * 512)], "is damaged"),
        ([(100, boot_record((0x83, 1, 9), (0x05, 20, 9))), (120, b"\xa5" * 512)], "is damaged"),
        ([(100, boot_record((0x83, 0, 9)))], "overlap"),
        (
            [
                (100, boot_record((0x83, 1, 90), (0x05, 50, 99))),
                (150, boot_record((0x83, 50, 10))),
            ],
            "the partition table overlap",
        ),
    ],
)
def test_a_chain_that_is_none_is_refused(records: list[tuple[int, bytes]], fact: str) -> None:
    error = refusal(with_chain(*records))
    assert error.code == "table-invalid"
    assert fact in str(error)


def test_a_chain_is_not_followed_for_ever() -> None:
    records = [(n, boot_record((0x83, 1, 1), (0x05, n + 2 - 100, 2))) for n in range(100, 800, 2)]
    error = refusal(with_chain(*records))
    assert "number 252 of its chain" in str(error)


@pytest.mark.parametrize(
    ("record", "fact"),
    [
        (boot_record((0x0C, 10, 50), (0x83, 59, 10)), "partition 1 and partition 2 overlap"),
        (boot_record((0x0C, 10, 50), (0x83, 20, 10)), "partition 1 and partition 2 overlap"),
        (boot_record((0x0F, 100, 50), (0x83, 120, 10)), "partition 1 and partition 2 overlap"),
        (boot_record((0x0C, 0, 50)), "the partition table and partition 1 overlap"),
        (boot_record((0x0F, 100, 50), (0x05, 200, 50)), "more than one extended"),
    ],
)
def test_an_msdos_table_that_contradicts_itself_is_refused(record: bytes, fact: str) -> None:
    error = refusal(record + bytes(999 * 512))
    assert error.code == "table-invalid"
    assert fact in str(error)


def test_a_cut_image_is_named_as_such_with_what_is_missing() -> None:
    error = refusal(boot_record((0x0C, 10, 50)) + bytes(40 * 512))
    assert error.code == "image-truncated"
    assert "9728 bytes are missing" in str(error)  # (60 - 41) * 512
    assert error.hint


@pytest.mark.parametrize("sectors", [40, 131, 140, 899])
def test_a_cut_chain_is_a_cut_image(sectors: int) -> None:
    content = with_chain((100, boot_record((0x83, 20, 9), (0x05, 30, 9))))
    assert refusal(content[: sectors * 512]).code == "image-truncated"


@pytest.mark.parametrize(
    "content",
    [b"x", bytes(100), b"Hello\n" * 1000, bytes(512), bytes(MIB), b"\x55\xaa" * 4096],
    ids=["byte", "short", "text", "sector", "zeros", "signatures"],
)
def test_what_is_no_table_is_told_in_one_line(content: bytes) -> None:
    error = refusal(content)
    assert error.code == "table-missing"
    assert str(error) == "image in memory: contains no partition table"


def _entry(array: bytearray, number: int, first: int, last: int) -> None:
    struct.pack_into("<QQ", array, (number - 1) * 128 + 32, first, last)


@pytest.mark.parametrize(
    ("first", "last", "fact"),
    [
        (5000, 4000, "partition 2 ends before it starts"),
        (2, 40, "the partition table and partition 2 overlap"),
        (8192, 9000, "overlap"),
    ],
)
def test_a_gpt_that_contradicts_itself_is_refused(
    first: int, last: int, fact: str, image: MakeImage
) -> None:
    path = image(Layout.GPT_FAT16).path
    array = bytearray(read_at(path, 1024, 128 * 128))
    _entry(array, 2, first, last)
    rewrite_primary(path, bytes(array))
    with open_source(path) as source, pytest.raises(ImageError, match=fact) as caught:
        read_table_sectors(source)
    assert caught.value.code == "table-invalid"


def test_a_gpt_partition_behind_the_end_is_a_cut_image(image: MakeImage) -> None:
    path = image(Layout.GPT_FAT16).path
    array = bytearray(read_at(path, 1024, 128 * 128))
    _entry(array, 2, 90112, 2**40)
    rewrite_primary(path, bytes(array))
    with open_source(path) as source, pytest.raises(ImageError) as caught:
        read_table_sectors(source)
    assert caught.value.code == "image-truncated"


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (12, struct.pack("<I", 91)),  # header size
        (12, struct.pack("<I", 513)),
        (24, struct.pack("<Q", 2)),  # own LBA
        (40, struct.pack("<Q", 2**40)),  # first usable LBA
        (48, struct.pack("<Q", 2**40)),  # last usable LBA
        (72, struct.pack("<Q", 0)),  # LBA of the array
        (72, struct.pack("<Q", 2**63)),
        (80, struct.pack("<I", 0)),  # number of entries
        (80, struct.pack("<I", 2**32 - 1)),
        (84, struct.pack("<I", 0)),  # size of an entry
        (84, struct.pack("<I", 132)),
        (84, struct.pack("<I", 2**31)),
    ],
)
def test_an_absurd_header_with_the_right_checksum_is_a_damaged_one(
    offset: int, value: bytes, image: MakeImage
) -> None:
    path = image(Layout.GPT_FAT16).path
    array = read_at(path, 1024, 128 * 128)
    write_at(path, 512 + offset, value)
    rewrite_primary(path, array)
    with open_source(path) as source:
        table = read_table_sectors(source).table
    assert "The primary GPT is damaged" in table.warnings[0]
    assert len(table.partitions) == 5


ODD_NAMES = [
    ("\x1b[2J\n", "\x1b[2J\n"),
    ("n" * 36, "n" * 36),
    ("\u00e9\U0001f4be", "\u00e9\U0001f4be"),
    ("", ""),
]


@pytest.mark.parametrize(("name", "expected"), ODD_NAMES)
def test_any_name_is_taken_as_it_is(name: str, expected: str, image: MakeImage) -> None:
    path = image(Layout.GPT_FAT16).path
    array = bytearray(read_at(path, 1024, 128 * 128))
    array[56:128] = name.encode("utf-16-le").ljust(72, b"\0")
    rewrite_primary(path, bytes(array))
    with open_source(path) as source:
        assert read_table_sectors(source).table.partitions[0].name == expected


def test_half_a_character_in_a_name_can_still_be_printed(image: MakeImage) -> None:
    path = image(Layout.GPT_FAT16).path
    array = bytearray(read_at(path, 1024, 128 * 128))
    array[56:60] = b"\x00\xd8a\x00"  # a high surrogate, then "a"
    rewrite_primary(path, bytes(array))
    with open_source(path) as source:
        name = read_table_sectors(source).table.partitions[0].name
    assert name is not None
    assert name.encode("utf-8")


entries = st.tuples(
    st.sampled_from([0, 0x05, 0x0C, 0x0F, 0x83, 0x85, 0xEE]),
    st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)),
)
records = st.lists(entries, max_size=4).map(lambda listed: boot_record(*listed))


@given(chain=st.lists(st.tuples(st.integers(0, 63), records), max_size=12), first=records)
def test_any_chain_of_records_ends_in_a_table_or_an_image_error(
    chain: list[tuple[int, bytes]], first: bytes
) -> None:
    image = bytearray(64 * 512)
    for sector, record in [*chain, (0, first)]:
        image[sector * 512 : sector * 512 + 512] = record
    _read_or_refuse(bytes(image))


@given(st.binary(max_size=4096), st.sampled_from([bytes, lambda data: data[:510] + b"\x55\xaa"]))
def test_any_bytes_end_in_a_table_or_an_image_error(
    content: bytes, finish: Callable[[bytes], bytes]
) -> None:
    _read_or_refuse(finish(content))


def _read_or_refuse(content: bytes) -> None:
    try:
        table = read_table_sectors(MemorySource(content)).table
    except ImageError:
        return
    # What is accepted is sound: inside the image, and nothing twice but in the extended one.
    extents = [each.extent for each in table.partitions if each.kind is not PartitionKind.EXTENDED]
    assert all(0 < each.start < each.end <= len(content) for each in extents)
    assert not any(one.overlaps(two) for one in extents for two in extents if one is not two)
