"""Images with one damaged copy of their GPT, written to disks: no damaged copy is ever spread."""

import gzip
import json
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from loopdev import AttachLoop
from tablefiles import boot_record, flip, read_at, sfdisk_extents, sign_gpt, write_at

from balenaflash.units import MIB

pytestmark = pytest.mark.needs("fdisk", "gdisk")


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture
def disk(gpt: BuiltImage, tmp_path: Path) -> Path:
    """A file for a loop device, 24 MiB larger than the image."""
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, gpt.path.stat().st_size + 24 * MIB)
    return path


def put_boot_loader_over_entries(path: Path) -> None:
    """Allwinner's eGON at 8 KiB, as in armbian/build#10647."""
    write_at(path, 8192, b"\x0a\x00\x00\xeaeGON.BT0" + bytes(range(200)))


def damage_entries(path: Path) -> None:
    flip(path, 1024 + 56)


def damage_header(path: Path) -> None:
    flip(path, 512 + 56)


def damage_backup_header(path: Path) -> None:
    flip(path, -512 + 56)


def damage_backup_entries(path: Path) -> None:
    flip(path, -33 * 512 + 56)


PRIMARY = [put_boot_loader_over_entries, damage_entries, damage_header]
BACKUP = [damage_backup_header, damage_backup_entries]


def is_sound(path: Path, lba: int) -> bool:
    """Whether the copy with its header at ``lba`` has two right checksums (UEFI 2.10, 5.3.2)."""
    header = bytearray(read_at(path, lba * 512, 512))
    size, crc = struct.unpack_from("<II", header, 12)
    array, count, each, entries_crc = struct.unpack_from("<QIII", header, 72)
    header[16:20] = bytes(4)
    return (
        header[:8] == b"EFI PART"
        and zlib.crc32(header[:size]) == crc
        and zlib.crc32(read_at(path, array * 512, count * each)) == entries_crc
    )


def sgdisk_finds_no_problem(path: Path) -> bool:
    said = subprocess.run(["sgdisk", "--verify", path], capture_output=True, text=True, check=True)
    return "No problems found" in said.stdout and "ERROR" not in said.stdout + said.stderr


@pytest.mark.parametrize("spoil", PRIMARY)
def test_a_damaged_primary_copy_is_not_copied_to_the_end_of_the_disk(
    spoil: Callable[[Path], None],
    gpt: BuiltImage,
    disk: Path,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
) -> None:
    spoil(gpt.path)
    node = attach_loop(disk)
    for command in ("write", "verify"):
        options = ["--yes"] if command == "write" else []
        run = balenaflash(command, *options, "--fix-gpt", "--json", gpt.path, node)
        assert run.returncode == 3, run.stderr
        assert json.loads(run.stdout)["errors"][0]["code"] == "gpt-damaged"
    assert not any(disk.read_bytes()), "nothing is written"


@pytest.mark.parametrize("spoil", BACKUP)
@pytest.mark.parametrize("more", [0, 24 * MIB])
def test_fixing_leaves_two_sound_copies_where_the_primary_is_sound(
    spoil: Callable[[Path], None],
    more: int,
    gpt: BuiltImage,
    disk: Path,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
) -> None:
    spoil(gpt.path)
    os.truncate(disk, gpt.path.stat().st_size + more)
    node = attach_loop(disk)
    run = balenaflash("write", "--yes", "--fix-gpt", gpt.path, node)
    assert run.returncode == 0, run.stderr
    assert is_sound(disk, 1)
    assert is_sound(disk, disk.stat().st_size // 512 - 1)
    assert sgdisk_finds_no_problem(disk)
    assert balenaflash("verify", "--fix-gpt", gpt.path, node).returncode == 0


@pytest.mark.parametrize("spoil", [damage_entries, damage_header, damage_backup_header])
def test_writing_and_verifying_warn_of_what_inspect_warns_of(
    spoil: Callable[[Path], None],
    gpt: BuiltImage,
    disk: Path,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
) -> None:
    spoil(gpt.path)
    node = attach_loop(disk)
    runs = [
        balenaflash("inspect", "--json", gpt.path),
        balenaflash("boot", "ls", "--json", gpt.path),
        balenaflash("write", "--yes", "--dry-run", "--json", gpt.path, node),
        balenaflash("write", "--yes", "--json", gpt.path, node),
        balenaflash("verify", "--json", gpt.path, node),
    ]
    assert [run.returncode for run in runs] == [0] * len(runs), [run.stderr for run in runs]
    warned = [json.loads(run.stdout)["result"]["warnings"] for run in runs]
    expected = "backup GPT is damaged" if spoil in BACKUP else "primary GPT is damaged"
    assert [any(expected in text for text in texts) for texts in warned] == [True] * len(runs)


def test_the_warning_is_on_the_screen_before_the_question(
    gpt: BuiltImage, disk: Path, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    damage_entries(gpt.path)
    run = balenaflash("write", gpt.path, attach_loop(disk))
    assert run.returncode == 4
    assert "Warning: The primary GPT is damaged (its entries)" in run.stderr


def test_a_larger_card_is_read_by_the_backup_that_a_sound_header_names(
    gpt: BuiltImage, disk: Path, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    expected = sfdisk_extents(gpt.path)
    put_boot_loader_over_entries(gpt.path)
    node = attach_loop(disk)
    assert balenaflash("write", "--yes", gpt.path, node).returncode == 0
    run = balenaflash("inspect", "--json", node)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)["result"]
    found = {each["number"]: (each["start"], each["size"]) for each in result["partitions"]}
    assert found == {number: (each.start, each.size) for number, each in expected.items()}
    assert "The primary GPT is damaged (its entries)" in result["warnings"][0]
    assert "24.0 MiB before the end" in result["warnings"][1]


def test_the_backup_of_another_table_at_the_end_is_not_taken_for_the_missing_one(
    gpt: BuiltImage, image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    other = image(Layout.GPT_BOARD).path
    size = max(other.stat().st_size, gpt.path.stat().st_size)
    damage_entries(gpt.path)
    damage_backup_header(gpt.path)
    os.truncate(gpt.path, size + 24 * MIB)
    os.truncate(other, size + 24 * MIB)
    subprocess.run(["sgdisk", "--move-second-header", other], check=True, capture_output=True)
    write_at(gpt.path, -33 * 512, read_at(other, -33 * 512, 33 * 512))
    run = balenaflash("inspect", gpt.path)
    assert run.returncode == 3
    assert "neither of its copies is intact" in run.stderr


@pytest.mark.parametrize("spoil", [damage_entries, damage_header])
def test_a_stream_with_a_damaged_primary_copy_is_refused_with_the_way_out(
    spoil: Callable[[Path], None], gpt: BuiltImage, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    spoil(gpt.path)
    packed = tmp_path / "image.gz"
    packed.write_bytes(gzip.compress(gpt.path.read_bytes(), 1))
    run = balenaflash("inspect", packed)
    assert (run.returncode, run.stdout) == (3, "")
    assert "its primary GPT is damaged, and the backup is out of reach" in run.stderr
    assert "decompress it to a file" in run.stderr


def test_a_backup_is_not_moved_over_a_partition(
    gpt: BuiltImage, disk: Path, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    """The partition ends where the image does, and the disk has one sector more."""
    last = gpt.path.stat().st_size // 512 - 1
    array = bytearray(read_at(gpt.path, 1024, 128 * 128))
    struct.pack_into("<Q", array, 4 * 128 + 40, last)
    write_at(gpt.path, 1024, bytes(array))
    header = bytearray(read_at(gpt.path, 512, 512))
    struct.pack_into("<Q", header, 32, last + 1)  # the place of the backup
    write_at(gpt.path, 512, sign_gpt(bytes(header), bytes(array)))
    os.truncate(gpt.path, gpt.path.stat().st_size + 512)
    os.truncate(disk, gpt.path.stat().st_size)
    run = balenaflash("write", "--yes", "--fix-gpt", "--json", gpt.path, attach_loop(disk))
    assert run.returncode == 3, run.stderr
    assert json.loads(run.stdout)["errors"][0]["code"] == "gpt-no-room"
    assert not any(disk.read_bytes()), "nothing is written"


def stream_of_disk(path: Path, sectors: int) -> Path:
    """A gzip of 2 KiB whose GPT, sound in itself, is that of a disk with so many sectors."""
    names = "resin-boot".encode("utf-16-le").ljust(72, b"\0")
    array = struct.pack("<16s16sQQQ", b"A" * 16, b"B" * 16, 2048, 4095, 0) + names
    array = array.ljust(128 * 128, b"\0")
    fields = (1, sectors - 1, 34, sectors - 34, b"C" * 16, 2, 128, 128, 0)
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
    record = boot_record((0xEE, 1, 0xFFFFFFFF))
    head = record + sign_gpt(header.ljust(512, b"\0"), array) + array
    path.write_bytes(gzip.compress(head.ljust(2 * MIB, b"\0")))
    return path


@pytest.mark.parametrize("sectors", [2**60, 2**52])
@pytest.mark.parametrize("command", ["inspect", "boot", "write"])
def test_a_stream_whose_table_is_absurdly_large_is_refused(
    sectors: int, command: str, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    image = stream_of_disk(tmp_path / "image.gz", sectors)
    words = {"boot": ["boot", "ls"]}.get(command, [command])
    targets = [tmp_path / "copy.img"] if command == "write" else []
    run = balenaflash(*words, image, *targets)
    assert (run.returncode, run.stdout) == (3, ""), run.stderr
    assert "Traceback" not in run.stderr
