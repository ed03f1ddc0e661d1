"""Tables as libparted and our reader see them together, on images sound and spoilt."""

import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import _ped
import pytest
from builders import ENVIRONMENT, BuiltImage, Layout, build_image, run
from commandline import clean_environment
from fakes import MemorySource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagecopies import MakeImage
from tablefiles import (
    OverlaidSource,
    boot_record,
    flip,
    read_at,
    rewrite_primary,
    sfdisk_extents,
    sfdisk_table,
    sign_gpt,
    write_at,
)

from balenaflash.errors import ImageError
from balenaflash.formats.partitions import table
from balenaflash.formats.partitions.model import PartitionKind, PartitionTable, TableSectors
from balenaflash.formats.partitions.table import read_table, read_table_sectors
from balenaflash.source.base import Source, open_source
from balenaflash.units import Extent

MIB = 1 << 20


def table_of(path: Path) -> PartitionTable:
    with open_source(path) as source:
        return read_table(source)


def refusal(path: Path) -> ImageError:
    with open_source(path) as source, pytest.raises(ImageError) as caught:
        read_table(source)
    return caught.value


def extents(table: PartitionTable) -> dict[int, Extent]:
    return {each.number: each.extent for each in table.partitions}


def test_partitions_are_those_asked_of_parted(image: MakeImage) -> None:
    for layout in Layout:
        for flasher in (False, True):
            built = image(layout, flasher=flasher)
            table = table_of(built.path)
            assert extents(table) == {each.number: each.extent for each in built.partitions}
            assert table.kind == layout.table
            assert table.sector_size == 512
            assert table.warnings == ()


@pytest.mark.needs("fdisk")
@pytest.mark.parametrize("layout", Layout)
def test_the_table_is_the_one_that_sfdisk_sees(layout: Layout, image: MakeImage) -> None:
    path = image(layout).path
    table = table_of(path)
    assert extents(table) == sfdisk_extents(path)
    assert table.disk_id == sfdisk_table(path)["id"]


@pytest.mark.parametrize("layout", Layout)
def test_flags_and_names_are_those_that_parted_prints(layout: Layout, image: MakeImage) -> None:
    path = image(layout).path
    # number:start:end:size:filesystem:name:flags;
    printed = run("parted", "-ms", path, "unit", "B", "print").splitlines()[2:]
    expected = {}
    for line in printed:
        number, *_, name, flags = line.removesuffix(";").split(":")
        expected[int(number)] = (name, flags)
    found = {
        each.number: (each.name or "", ", ".join(each.flags)) for each in table_of(path).partitions
    }
    assert found == expected


@pytest.mark.parametrize("layout", [Layout.MSDOS_FAT16, Layout.MSDOS_FAT32])
def test_msdos_partitions_are_primary_extended_or_logical(layout: Layout, image: MakeImage) -> None:
    kinds = {each.number: each.kind for each in table_of(image(layout).path).partitions}
    primary, logical = PartitionKind.PRIMARY, PartitionKind.LOGICAL
    assert kinds == {
        1: primary,
        2: primary,
        3: primary,
        4: PartitionKind.EXTENDED,
        5: logical,
        6: logical,
    }


def spoil_primary_header(path: Path) -> None:
    flip(path, 512 + 16)


def wipe_primary_header(path: Path) -> None:
    write_at(path, 512, bytes(512))


def spoil_primary_array(path: Path) -> None:
    flip(path, 1024 + 56)


def spoil_backup_header(path: Path) -> None:
    flip(path, -512 + 16)


def wipe_backup(path: Path) -> None:
    write_at(path, -33 * 512, bytes(33 * 512))


def spoil_backup_array(path: Path) -> None:
    flip(path, -33 * 512 + 56)


def grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 100 * MIB)


def add_odd_bytes(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x" * 100)


def make_hybrid(path: Path) -> None:
    write_at(path, 446, boot_record((0xEE, 1, 8191), (0x0C, 8192, 81920))[446:])


def rename_in_primary(path: Path) -> None:
    array = bytearray(read_at(path, 1024, 128 * 128))
    array[56] ^= 0x20
    rewrite_primary(path, bytes(array))


@pytest.mark.needs("fdisk")
@pytest.mark.parametrize(
    ("spoil", "warning"),
    [
        (spoil_primary_header, "The primary GPT is damaged"),
        (wipe_primary_header, "The primary GPT is damaged"),
        (spoil_primary_array, "The primary GPT is damaged"),
        (spoil_backup_header, "The backup GPT is damaged"),
        (spoil_backup_array, "The backup GPT is damaged"),
        (wipe_backup, "The backup GPT is damaged"),
        (grow, "The backup GPT lies 100.0 MiB before the end"),
        (rename_in_primary, "The two copies of the GPT differ"),
        (make_hybrid, "The MBR is a hybrid"),
        (add_odd_bytes, None),
    ],
)
def test_a_flaw_that_leaves_the_table_readable_is_a_warning(
    spoil: Callable[[Path], None], warning: str | None, image: MakeImage
) -> None:
    path = image(Layout.GPT_FAT16).path
    expected = sfdisk_extents(path)
    spoil(path)
    table = table_of(path)
    assert extents(table) == expected
    assert [text.startswith(warning or "") for text in table.warnings] == [True] * bool(warning)
    assert "boot" in table.partitions[0].flags  # that is: libparted has read it too


def add_link_without_sectors(path: Path) -> None:
    """libparted 3.5 follows it, meets the first record again, and aborts the process."""
    start = sfdisk_extents(path)[6].start - 64 * 512
    while read_at(path, start + 510, 2) != b"\x55\xaa":
        start -= 512
    write_at(path, start + 462, bytes([0, 0, 0, 173, 0x85, 133, 0, 167]) + bytes(8))


def fill_chs_with_noise(path: Path) -> None:
    for entry in range(446, 510, 16):
        write_at(path, entry + 1, b"\xa7\x15\xf9")
        write_at(path, entry + 5, b"\x3b\xc0\x01")


def claim_usable_sectors_past_the_end(path: Path) -> None:
    """libparted 3.5 crashes on it."""
    write_at(path, 512 + 48, (2**21).to_bytes(8, "little"))
    rewrite_primary(path, read_at(path, 1024, 128 * 128))


@pytest.mark.needs("fdisk")
@pytest.mark.parametrize(
    ("layout", "spoil"),
    [
        (Layout.MSDOS_FAT16, add_link_without_sectors),
        (Layout.MSDOS_FAT16, fill_chs_with_noise),
        (Layout.GPT_FAT16, claim_usable_sectors_past_the_end),
    ],
)
def test_what_ends_libparted_does_not_reach_it(
    layout: Layout, spoil: Callable[[Path], None], image: MakeImage
) -> None:
    path = image(layout).path
    expected = sfdisk_extents(path)
    spoil(path)
    assert extents(table_of(path)) == expected


def spoil_both_headers(path: Path) -> None:
    spoil_primary_header(path)
    spoil_backup_header(path)


def cut_gpt(path: Path) -> None:
    os.truncate(path, 100 * MIB)


def cut_to_8_mib(path: Path) -> None:
    os.truncate(path, 8 * MIB)


def cut_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_in_data(path: Path) -> None:
    os.truncate(path, 125 * MIB)


def loop_records(path: Path) -> None:
    extended = sfdisk_extents(path)[4]
    write_at(path, extended.start + 446 + 16, boot_record((0x05, 0, 1000))[446:462])


def overlap(path: Path) -> None:
    first = int.from_bytes(read_at(path, 446 + 16 + 8, 4), "little")
    write_at(path, 446 + 16 + 8, (first - 20000).to_bytes(4, "little"))


def claim_pc98(path: Path) -> None:
    """libparted then takes the record for a table of NEC's PC-98."""
    write_at(path, 4, b"IPL1")


def fill_with_zeros(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, 10 * MIB)


def fill_with_text(path: Path) -> None:
    path.write_text("This is no image.\n" * 1000)


def fill_with_noise(path: Path) -> None:
    path.write_bytes(os.urandom(509) + b"\0\0\0" + os.urandom(100_000))


def keep_100_bytes(path: Path) -> None:
    os.truncate(path, 100)


def keep_the_boot_partition_only(path: Path) -> None:
    path.write_bytes(read_at(path, 4 * MIB, 40 * MIB))


GPT, MSDOS = Layout.GPT_FAT16, Layout.MSDOS_FAT16


@pytest.mark.needs("fdisk")
@pytest.mark.parametrize(
    ("layout", "spoil", "code", "fact"),
    [
        (GPT, spoil_both_headers, "table-invalid", "neither of its copies"),
        (GPT, cut_gpt, "image-truncated", "33554432 bytes are missing"),
        (GPT, cut_to_8_mib, "image-truncated", "130023424 bytes are missing"),
        (GPT, cut_last_byte, "image-truncated", "1 bytes are missing"),
        (GPT, keep_100_bytes, "table-missing", "no partition table"),
        (GPT, keep_the_boot_partition_only, "table-missing", "is one vfat filesystem"),
        (MSDOS, cut_in_data, "image-truncated", "7340032 bytes are missing"),
        (MSDOS, cut_to_8_mib, "image-truncated", "130023424 bytes are missing"),
        (MSDOS, cut_last_byte, "image-truncated", "1 bytes are missing"),
        (MSDOS, loop_records, "table-invalid", "a second time"),
        (MSDOS, overlap, "table-invalid", "partition 1 and partition 2 overlap"),
        (MSDOS, claim_pc98, "table-invalid", "as msdos, and by libparted as pc98"),
        (MSDOS, fill_with_zeros, "table-missing", "no partition table"),
        (MSDOS, fill_with_text, "table-missing", "no partition table"),
        (MSDOS, fill_with_noise, "table-missing", "no partition table"),
    ],
)
def test_a_table_that_cannot_be_relied_on_is_refused_in_one_line(
    layout: Layout, spoil: Callable[[Path], None], code: str, fact: str, image: MakeImage
) -> None:
    path = image(layout).path
    spoil(path)
    error = refusal(path)
    assert error.code == code
    assert str(error).startswith(f"{path}: ")
    assert fact in str(error)
    assert "\n" not in str(error)


def test_sectors_of_4096_bytes_are_told_by_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "4kn.img"
    path.touch()
    os.truncate(path, 200 * MIB)
    parted = ["parted", "-s", str(path), "unit", "KiB", "mklabel", "gpt"]
    parted += ["mkpart", "resin-boot", "4096", "45056", "mkpart", "resin-rootA", "45056", "69632"]
    environment = {**ENVIRONMENT, "PARTED_SECTOR_SIZE": "4096"}
    subprocess.run(parted, env=environment, check=True, capture_output=True)
    monkeypatch.delenv("PARTED_SECTOR_SIZE", raising=False)
    table = table_of(path)
    assert table.sector_size == 4096
    assert [(each.name, each.extent) for each in table.partitions] == [
        ("resin-boot", Extent(4 * MIB, 44 * MIB)),
        ("resin-rootA", Extent(44 * MIB, 68 * MIB)),
    ]
    assert "PARTED_SECTOR_SIZE" not in os.environ


def test_the_users_own_sector_size_for_parted_does_not_matter(
    image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTED_SECTOR_SIZE", "4096")
    assert table_of(image(Layout.GPT_FAT16).path).sector_size == 512
    assert os.environ["PARTED_SECTOR_SIZE"] == "4096"


@pytest.mark.parametrize("layout", [Layout.MSDOS_FAT16, Layout.GPT_FAT16])
def test_neither_the_image_nor_paths_like_it_are_opened_for_writing(
    layout: Layout, image: MakeImage
) -> None:
    path = image(layout).path
    path.chmod(0o444)
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat()
    for number in range(1, 8):
        # Opening a FIFO for writing waits for a reader: libparted would hang here.
        os.mkfifo(f"{path}{number}")
    script = f"""
from pathlib import Path
from balenaflash.source.base import Source, open_source
from balenaflash.formats.partitions.table import read_table
with open_source(Path({str(path)!r})) as source:
    print(len(read_table(source).partitions))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() in {"5", "6"}
    assert done.stderr == ""
    after = path.stat()
    assert hashlib.sha256(path.read_bytes()).digest() == before[0]
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before[1].st_mtime_ns, before[1].st_ctime_ns)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_behind(
    image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, spoilt = image(Layout.GPT_FAT16).path, image(Layout.MSDOS_FAT16).path
    claim_pc98(spoilt)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    table_of(sound)
    before = open_descriptors()
    for _ in range(5):
        table_of(sound)
        refusal(spoilt)
    assert open_descriptors() == before
    assert list(temporary.iterdir()) == []


def test_no_folder_is_needed_that_a_killed_run_would_leave_behind(
    image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image(Layout.GPT_FAT16).path
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert extents(table_of(path)) == sfdisk_extents(path)


def test_every_exception_of_the_library_is_mapped() -> None:
    raised = {
        value
        for _, value in inspect.getmembers(_ped, inspect.isclass)
        if issubclass(value, Exception)
    }
    assert len(raised) > 10
    assert raised == set(table.LIBPARTED_ERRORS)


@pytest.mark.parametrize("error", table.LIBPARTED_ERRORS)
def test_a_mapped_exception_tells_what_libparted_said(error: type[Exception]) -> None:
    with (
        pytest.raises(ImageError, match="image in memory: libparted cannot") as caught,
        table._errors_mapped(MemorySource(b""), ["It is\n  broken."]),
    ):
        raise error("unused")
    assert str(caught.value).endswith(": It is broken.")
    assert caught.value.code == "table-invalid"


@pytest.fixture(scope="session", params=[Layout.MSDOS_FAT16, Layout.GPT_FAT16])
def pristine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> BuiltImage:
    """An image that no test changes, for tests that read it many times."""
    layout: Layout = request.param
    return build_image(tmp_path_factory.mktemp("pristine") / "image.img", layout)


def signed_again(sectors: tuple[TableSectors, ...], changes: dict[int, bytes]) -> dict[int, bytes]:
    """The changes, and headers of a GPT with checksums that are right for them."""
    spoilt = dict[int, bytes]()
    for part in sectors:
        data = bytearray(part.data)
        for offset, change in changes.items():
            if part.extent.contains(offset):
                start = offset - part.offset
                data[start : start + len(change)] = change
        spoilt[part.offset] = bytes(data[: len(part.data)])
    headers = [part.offset for part in sectors if part.data[:8] == b"EFI PART"]
    arrays = [part.offset for part in sectors if len(part.data) == 128 * 128]
    for header, array in zip(headers, arrays, strict=True):
        spoilt[header] = sign_gpt(spoilt[header], spoilt[array])
    return spoilt


@pytest.mark.needs("dosfstools", "e2fsprogs", "mtools", "parted")
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_spoilt_sector_ends_in_a_table_or_an_image_error(
    pristine: BuiltImage, data: st.DataObject
) -> None:
    with open_source(pristine.path) as source:
        sectors = read_table_sectors(source).sectors
        changes = {}
        for _ in range(data.draw(st.integers(1, 4), label="changes")):
            part = data.draw(st.sampled_from(sectors))
            # Where fields are: the entries of records, headers, the first array entries.
            used = st.integers(446, 511) if len(part.data) == 512 else st.integers(0, 700)
            header = st.integers(0, 100) if part.data[:8] == b"EFI PART" else used
            offset = part.offset + data.draw(header | used, label="offset")
            changes[offset] = data.draw(st.binary(min_size=1, max_size=8), label="bytes")
        if data.draw(st.booleans(), label="checksums made right"):
            changes = signed_again(sectors, changes)
        size = data.draw(st.sampled_from([None, 8 * MIB, 125 * MIB + 3]), label="size")
        spoilt = OverlaidSource(source, changes, size=size)
        outcome = read_or_refuse(spoilt)
        if isinstance(outcome, PartitionTable):
            assert all(each.extent.end <= spoilt.size for each in outcome.partitions)
        else:
            assert outcome in {"table-missing", "table-invalid", "image-truncated"}


def read_or_refuse(source: Source) -> PartitionTable | str:
    """The table, or the code of the one error there may be."""
    try:
        return read_table(source)
    except ImageError as error:
        return error.code
