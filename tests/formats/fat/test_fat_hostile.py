"""Volumes made to do harm: every outcome is content, or one of our errors, and soon."""

import signal
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from types import FrameType

import pytest
import vfat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balenaflash.errors import BalenaflashError, ImageError
from balenaflash.formats.fat.volume import FatVolume

pytestmark = pytest.mark.needs("dosfstools", "mtools")

SECONDS = 20
KINDS = ("fat12-2m", "fat16-16m", "fat32-40m")

BPB_FIELDS = {
    # name: offset, format (fatgen103, "Boot Sector and BPB Structure")
    "BS_jmpBoot": (0, "B"),
    "BPB_BytsPerSec": (11, "H"),
    "BPB_SecPerClus": (13, "B"),
    "BPB_RsvdSecCnt": (14, "H"),
    "BPB_NumFATs": (16, "B"),
    "BPB_RootEntCnt": (17, "H"),
    "BPB_TotSec16": (19, "H"),
    "BPB_Media": (21, "B"),
    "BPB_FATSz16": (22, "H"),
    "BPB_HiddSec": (28, "L"),
    "BPB_TotSec32": (32, "L"),
    "BPB_FATSz32": (36, "L"),
    "BPB_ExtFlags": (40, "H"),
    "BPB_FSVer": (42, "H"),
    "BPB_RootClus": (44, "L"),
    "BPB_FSInfo": (48, "H"),
    "BPB_BkBootSec": (50, "H"),
    "signature": (510, "H"),
}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """End a test that hangs."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def use(data: bytes) -> None:
    """Read all there is, try every edit; only errors of ours may come of it."""
    try:
        volume = vfat.open_bytes(data)
    except ImageError:
        return
    read_all(volume)
    edits = (
        lambda: volume.write_file("/config.json", b"edited" * 700),
        lambda: volume.write_file("/EFI/BOOT/a new long name.cfg", b"new" * 3000),
        lambda: volume.make_directory("/new"),
        lambda: volume.rename("/EFI/BOOT", "/new/boot"),
        lambda: volume.remove_file("/os-release"),
        volume.changes,
    )
    for edit in edits:
        try:
            edit()
        except BalenaflashError as error:
            str(error).encode()  # can be shown
    read_all(volume)


def read_all(volume: FatVolume) -> None:
    with suppress(ImageError):
        str(volume.label).encode()
        for problem in volume.problems():
            problem.encode()
        for entry in volume.walk():
            assert not set(entry.name) & {"/", "\0", "\x1b", "\n"}
            assert entry.name not in {".", ".."}
            entry.path.encode()
            volume.find(entry.path)
    for path in ("/config.json", "/EFI/BOOT/bootx64.efi", "/a b c.txt"):
        with suppress(BalenaflashError):
            volume.read_file(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", BPB_FIELDS)
def test_an_absurd_boot_sector_is_survived(kind: str, field: str) -> None:
    data = bytearray(vfat.filled(kind)[0])
    offset, form = BPB_FIELDS[field]
    width = 8 * struct.calcsize(f"<{form}")
    stored = struct.unpack_from(f"<{form}", data, offset)[0]
    near = {(stored + step) % (1 << width) for step in (-1, 1, stored)}
    powers = {1 << bit for bit in range(0, width, 3)}
    for value in sorted({0, 3, (1 << width) - 1} | powers | near):
        struct.pack_into(f"<{form}", data, offset, value)
        use(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("BPB_BytsPerSec", 0, "sectors of 0 bytes"),
        ("BPB_BytsPerSec", 513, "sectors of 513 bytes"),
        ("BPB_SecPerClus", 0, "clusters of 0 sectors"),
        ("BPB_SecPerClus", 3, "clusters of 3 sectors"),
        ("BPB_RsvdSecCnt", 0, "no reserved sectors"),
        ("BPB_NumFATs", 0, "0 file allocation tables"),
        ("BPB_NumFATs", 255, "255 file allocation tables"),
        ("BPB_RootEntCnt", 17, "17 root directory entries"),
        ("BPB_TotSec16", 40, "none left for data"),
        ("signature", 0, "not 55 AA"),
    ],
)
def test_an_invalid_boot_sector_is_refused_by_name(
    kind: str, field: str, value: int, fault: str
) -> None:
    data = bytearray(vfat.filled(kind)[0])
    offset, form = BPB_FIELDS[field]
    struct.pack_into(f"<{form}", data, offset, value)
    with pytest.raises(ImageError, match=fault) as refused:
        vfat.open_bytes(bytes(data))
    assert refused.value.code == "fat-invalid"


def test_a_volume_larger_than_its_partition_is_refused() -> None:
    data = bytearray(vfat.filled("fat32-40m")[0])
    struct.pack_into("<L", data, 32, 0xFFFF_FFFF)
    with pytest.raises(ImageError, match=r"2\.0 TiB in a partition of 40\.0 MiB"):
        vfat.open_bytes(bytes(data))


def test_a_table_too_small_for_the_clusters_is_refused() -> None:
    data = bytearray(vfat.filled("fat16-16m")[0])
    struct.pack_into("<H", data, 22, 2)
    with pytest.raises(ImageError, match="entries in the file allocation table"):
        vfat.open_bytes(bytes(data))


@pytest.mark.parametrize("content", [bytes(4096), b"\xff" * 999, b"MZ" * 512, b"#!/bin/sh" * 99])
def test_what_is_no_volume_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match="no valid FAT volume") as refused:
        vfat.open_bytes(content)
    assert refused.value.code == "fat-invalid"


@cache
def regions(kind: str) -> list[tuple[int, int]]:
    """Where a changed byte does most: boot sector, table, root, other directories."""
    volume = vfat.open_bytes(vfat.filled(kind)[0])
    layout = volume._core.layout
    first = layout.tables[0].start
    found = [(0, 90), (first, first + 800 * layout.fat_type // 8)]
    for path in ("/", "/EFI", "/EFI/BOOT", "/overlays", "/splash"):
        directory, _ = volume._open_directory(path)
        extents = volume._directory_extents(directory.first, path)
        found += [(extent.start, min(extent.end, extent.start + 3000)) for extent in extents]
    return found


TELLING_BYTES = st.sampled_from((0, 1, 0x0F, 0x10, 0xE5, 0xFF))
SPOILT = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 1 << 16), TELLING_BYTES | st.integers(0, 255)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(spoilt=SPOILT, mirror=st.booleans())
def test_any_bytes_anywhere_are_survived(
    kind: str, spoilt: list[tuple[int, int, int]], *, mirror: bool
) -> None:
    signal.alarm(SECONDS)
    data = bytearray(vfat.filled(kind)[0])
    places = regions(kind)
    for region, offset, value in spoilt:
        start, end = places[region % len(places)]
        data[start + offset % (end - start)] = value
    if mirror:  # otherwise the copies differ, and nothing is edited
        first, *copies = vfat.open_bytes(vfat.filled(kind)[0])._core.layout.tables
        for copy in copies:
            data[copy.start : copy.end] = data[first.start : first.end]
    use(bytes(data))


def test_a_directory_inside_itself_is_not_followed() -> None:
    data = bytearray(vfat.filled("fat16-16m")[0])
    volume = vfat.open_bytes(bytes(data))
    root, efi = volume._directory(0, "/"), volume._open_directory("/EFI")[0]
    record = efi.find("BOOT")
    assert record is not None
    assert root.find("EFI") is not None
    offset = volume._core.layout.cluster_offset(efi.first) + record.index * 32 + 26
    struct.pack_into("<H", data, offset, efi.first)
    looped = vfat.open_bytes(bytes(data))
    assert any("shares cluster" in problem for problem in looped.problems())
    with pytest.raises(ImageError, match="directory inside itself"):
        list(looped.walk())


def test_names_that_would_climb_out_or_fool_a_terminal_are_not_shown() -> None:
    data = bytearray(vfat.filled("fat16-16m")[0])
    at = data.index("MixedCase".encode("utf-16-le")[:10])
    for hostile in ("../..", "a/b\0\0", "\x1b[2J!"):
        data[at : at + 10] = hostile[:5].encode("utf-16-le")
        volume = vfat.open_bytes(bytes(data))
        shown = {entry.name for entry in volume.walk()}
        assert not any(set(name) & {"/", "\0", "\x1b"} for name in shown)
        read_all(volume)


def test_a_forest_of_directories_is_bounded() -> None:
    """Every slot of a directory a directory, all in one long chain."""
    data = bytearray(vfat.filled("fat32-40m")[0])
    volume = vfat.open_bytes(bytes(data))
    layout = volume._core.layout
    last = layout.end_cluster - 1
    slots = b"".join(
        struct.pack("<11sB8xHLHL", b"D%07d   " % number, 0x10, number >> 16, 0, number & 0xFFFF, 0)
        for number in range(3, last, 7)
    )
    data[layout.data_offset : layout.data_offset + len(slots)] = slots
    entries = (0x0FFF_FFF8, 0x0FFF_FFFF, *range(3, last + 1), 0x0FFF_FFFF)
    chain = struct.pack(f"<{len(entries)}L", *entries)
    for copy in layout.tables:
        data[copy.start : copy.start + len(chain)] = chain
    hostile = vfat.open_bytes(bytes(data))
    assert hostile.problems()
    with pytest.raises(ImageError, match="more than"):
        list(hostile.walk())
