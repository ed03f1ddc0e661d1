"""The end of a disk larger than the image: what is left of other tables, and the image's own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from faultdev import MakeFaultDevice, bit_flip, write_error
from imagecopies import MakeImage
from loopdev import AttachLoop
from write_judges import bytes_written, differing_bytes, free_extents

from balenaflash.units import MIB

pytestmark = pytest.mark.needs("fdisk", "gdisk")


def larger(built: BuiltImage) -> int:
    """A size of a whole number of MiB, with room behind the image."""
    return -(-built.path.stat().st_size // MIB) * MIB + 24 * MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture
def disk(gpt: BuiltImage, tmp_path: Path) -> Path:
    """A file full of 0xFF, larger than the image, for a loop device."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * larger(gpt))
    return path


def sound_by_sgdisk_and_sfdisk(disk: Path) -> bool:
    said = subprocess.run(["sgdisk", "--verify", disk], capture_output=True, text=True, check=True)
    sfdisk = subprocess.run(
        ["sfdisk", "--verify", disk], capture_output=True, text=True, check=False
    )
    is_sound = "No problems found" in said.stdout and sfdisk.returncode == 0
    return is_sound and "PMBR size mismatch" not in sfdisk.stdout + sfdisk.stderr


@pytest.mark.parametrize("layout", [Layout.GPT_FAT16, Layout.GPT_BOARD])
def test_the_fixed_table_is_the_one_that_sgdisk_makes(
    layout: Layout,
    image: MakeImage,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
) -> None:
    built = image(layout)
    expected, disk = tmp_path / "expected", tmp_path / "disk"
    subprocess.run(["cp", "--sparse=always", built.path, expected], check=True)
    os.truncate(expected, larger(built))
    subprocess.run(["sgdisk", "--move-second-header", expected], check=True, capture_output=True)
    disk.touch()
    os.truncate(disk, larger(built))
    node = attach_loop(disk)
    run = balenaflash("write", "--yes", "--all", "--fix-gpt", built.path, node)
    assert run.returncode == 0, run.stderr
    assert f"{node}: the backup GPT was moved to the end of the disk" in run.stdout
    assert sound_by_sgdisk_and_sfdisk(disk)
    # sgdisk writes cylinders, heads and sectors anew, which nothing reads: bytes 447 to 453.
    one, other = expected.read_bytes(), disk.read_bytes()
    assert (one[:447], one[450], one[454:]) == (other[:447], other[450], other[454:])


@pytest.mark.parametrize("more", [1, 32, 33, 34, 2048])
def test_a_disk_hardly_larger_gets_its_table_too(
    gpt: BuiltImage,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
    more: int,
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, gpt.path.stat().st_size + more * 512)
    node = attach_loop(disk)
    run = balenaflash("write", "--yes", "--fix-gpt", gpt.path, node)
    assert run.returncode == 0, run.stderr
    assert sound_by_sgdisk_and_sfdisk(disk)
    assert balenaflash("verify", "--fix-gpt", gpt.path, node).returncode == 0


def test_without_the_option_the_backup_stays_where_the_image_has_it(
    gpt: BuiltImage, disk: Path, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    run = balenaflash("write", "--yes", "--json", gpt.path, attach_loop(disk))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["result"]["gpt_moved"] is False
    assert not sound_by_sgdisk_and_sfdisk(disk)
    with disk.open("rb") as file:
        file.seek(gpt.path.stat().st_size)
        assert set(file.read()) == {0xFF}


def test_an_msdos_table_has_no_backup_to_move(
    image: MakeImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT32)
    disk = tmp_path / "disk"
    disk.write_bytes(b"\xff" * larger(built))
    run = balenaflash("write", "--yes", "--fix-gpt", "--json", built.path, attach_loop(disk))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["result"]["gpt_moved"] is False
    assert differing_bytes(built.path, disk, free_extents(built, built.path)) == []


def test_on_a_disk_of_the_same_size_there_is_nothing_to_move(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(gpt.path.stat().st_size))
    run = balenaflash("write", "--yes", "--fix-gpt", "--all", "--json", gpt.path, attach_loop(disk))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["result"]["gpt_moved"] is False
    assert subprocess.run(["cmp", gpt.path, disk], check=False).returncode == 0


def test_a_damaged_primary_table_is_not_moved_and_nothing_is_written(
    gpt: BuiltImage, disk: Path, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    with gpt.path.open("r+b") as file:
        file.seek(512 + 56)  # the disk's GUID, which the checksum covers
        file.write(b"damage")
    run = balenaflash("write", "--yes", "--fix-gpt", "--json", gpt.path, attach_loop(disk))
    assert run.returncode == 3, run.stderr
    assert json.loads(run.stdout)["errors"][0]["code"] == "gpt-damaged"
    assert set(disk.read_bytes()) == {0xFF}


def test_verify_compares_with_what_fixing_leaves(
    gpt: BuiltImage, disk: Path, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    node = attach_loop(disk)
    assert balenaflash("write", "--yes", "--fix-gpt", gpt.path, node).returncode == 0
    assert balenaflash("verify", "--fix-gpt", gpt.path, node).returncode == 0
    run = balenaflash("verify", gpt.path, node)
    assert run.returncode == 6, "the primary header is not that of the image"
    with node.open("r+b", buffering=0) as device:
        device.seek(-512 + 56, os.SEEK_END)
        device.write(b"damage")
        os.fsync(device)
    run = balenaflash("verify", "--fix-gpt", "--json", gpt.path, node)
    assert run.returncode == 6, run.stderr
    message = json.loads(run.stdout)["errors"][0]["message"]
    assert f"bytes from byte {larger(gpt) - 512}" in message


# What other tables have left behind


@pytest.mark.parametrize("distance", [512, 4096])
@pytest.mark.parametrize("fixes", [False, True])
def test_the_backup_of_an_earlier_table_is_wiped_and_nothing_else(
    gpt: BuiltImage,
    disk: Path,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    distance: int,
    fixes: bool,  # noqa: FBT001 - pytest calls it so
) -> None:
    with disk.open("r+b") as file:
        file.seek(-distance, os.SEEK_END)
        file.write(b"EFI PART" + b"\xee" * (distance - 8))
    options = ["--fix-gpt"] if fixes else []
    run = balenaflash("write", "--yes", "--json", *options, gpt.path, attach_loop(disk))
    assert run.returncode == 0, run.stderr
    place = larger(gpt) - distance
    assert json.loads(run.stdout)["result"]["wiped"] == [{"start": place, "size": 512}]
    with disk.open("rb") as file:
        file.seek(gpt.path.stat().st_size)
        behind = file.read()
    if fixes:
        assert sound_by_sgdisk_and_sfdisk(disk)
    else:
        assert b"EFI PART" not in behind
        wiped = len(behind) - distance
        assert behind[wiped : wiped + 512] == bytes(512)
        assert set(behind[:wiped]) == {0xFF}
        assert set(behind[wiped + 512 :]) <= {0xEE}


def test_a_table_of_before_is_not_found_again_by_sgdisk(
    image: MakeImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT32)
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, larger(built))
    subprocess.run(["sgdisk", "--new=1:2048:0", disk], check=True, capture_output=True)
    assert balenaflash("write", "--yes", built.path, attach_loop(disk)).returncode == 0
    said = subprocess.run(["sgdisk", "--verify", disk], capture_output=True, text=True, check=False)
    assert "backup" not in (said.stdout + said.stderr).lower()
    assert "damaged" not in (said.stdout + said.stderr).lower()


def test_a_disk_that_keeps_the_old_backup_ends_in_6(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=larger(gpt))
    device.fill(b"EFI PART".ljust(512, b"\xee"), offset=larger(gpt) - 512)
    device.set(faults=[bit_flip(larger(gpt) - 300)])
    run = balenaflash("write", "--yes", gpt.path, device.node)
    assert (run.returncode, run.stdout) == (6, ""), run.stderr
    assert (
        f"byte {larger(gpt) - 300} (past the image, where the backup of a partition" in run.stderr
    )


def test_a_moved_table_that_reads_back_wrong_ends_in_6(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=larger(gpt))
    device.set(faults=[bit_flip(larger(gpt) - 512 + 56)])
    run = balenaflash("write", "--yes", "--fix-gpt", gpt.path, device.node)
    assert (run.returncode, run.stdout) == (6, ""), run.stderr
    assert f"512 B from byte {larger(gpt) - 512}" in run.stderr


def test_a_disk_that_fails_where_the_table_is_moved_to_ends_in_5_and_does_not_boot(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=larger(gpt))
    end = larger(gpt)
    device.set(faults=[write_error(start=end - 512, end=end)])
    run = balenaflash("write", "--yes", "--fix-gpt", gpt.path, device.node)
    assert (run.returncode, run.stdout) == (5, ""), run.stderr
    assert "it holds part of the image and will not boot" in run.stderr
    assert "safe to remove" not in run.stderr
    assert not any(device.raw(0, MIB))


def test_what_has_its_moved_table_already_is_not_written(
    gpt: BuiltImage, disk: Path, attach_loop: AttachLoop, balenaflash: RunBalenaflash
) -> None:
    node = attach_loop(disk)
    command = ("write", "--yes", "--fix-gpt", "--skip-equal", "--json", gpt.path, node)
    assert balenaflash(*command).returncode == 0
    before = bytes_written(node)
    run = balenaflash(*command)
    assert json.loads(run.stdout)["result"]["bytes_written"] == 0
    assert bytes_written(node) == before
    assert sound_by_sgdisk_and_sfdisk(disk)
