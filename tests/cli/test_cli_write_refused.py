"""Each refusal of ``write`` end to end: status 4, the reason, and no byte changed."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from imagecopies import MakeImage
from loopdev import AttachLoop
from refusals import assert_refused, make_device, rounded, sha256

from balenaflash.units import MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def test_a_partition_is_refused_and_the_disk_named(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["cp", gpt.path, disk], check=True)
    node = attach_loop(disk)
    # The kernel may lack a parser for partition tables; partx tells it of them.
    subprocess.run(["partx", "--add", node], check=False, capture_output=True)
    part = Path(f"{node}p1")
    try:
        before = sha256(disk)
        run = balenaflash("write", "--yes", gpt.path, part)
        assert (run.returncode, run.stdout) == (4, "")
        assert "is a partition" in run.stderr
        assert str(node) in run.stderr
        assert sha256(disk) == before
    finally:
        subprocess.run(["partx", "--delete", node], check=False, capture_output=True)


def test_a_read_only_disk_is_refused(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"\xff" * rounded(gpt.path.stat().st_size))
    node = attach_loop(disk, read_only=True)
    assert_refused(balenaflash, gpt, node, disk, {"target-read-only"})


def test_a_small_disk_is_refused_with_both_sizes(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, 16 * MIB)
    said = assert_refused(balenaflash, gpt, node, disk, {"target-too-small"})
    assert str(16 * MIB) in said
    assert str(gpt.path.stat().st_size) in said


def test_a_disk_with_sectors_of_another_size_is_refused(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size), sector_size=4096)
    said = assert_refused(balenaflash, gpt, node, disk, {"target-sector-size"})
    assert "sectors of 4096 bytes" in said


def test_a_mounted_disk_is_refused_and_no_byte_of_it_changes(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    subprocess.run(["mkfs.ext4", "-q", "-F", node], check=True)
    point = tmp_path / "mounted"
    point.mkdir()
    # Read-only and without a journal replay, so that only the tool could change it.
    subprocess.run(["mount", "-o", "ro,noload", node, point], check=True)
    try:
        said = assert_refused(balenaflash, gpt, node, disk, {"target-mounted"})
        assert str(point) in said
    finally:
        subprocess.run(["umount", point], check=True)


def test_swap_is_refused(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    subprocess.run(["mkswap", node], check=True, capture_output=True)
    header = disk.read_bytes()[:4096]
    enabled = subprocess.run(["swapon", node], check=False, capture_output=True, text=True)
    if enabled.returncode:
        pytest.skip(f"swapon: {enabled.stderr.strip()}")
    try:
        # The running system needs its swap, and pages out to it when it likes: so only the
        # header, which the kernel does not write, can be compared.
        run = balenaflash("write", "--yes", "--json", gpt.path, node)
        assert run.returncode == 4
        codes = {error["code"] for error in json.loads(run.stdout)["errors"]}
        assert codes == {"target-system-disk", "target-swap"}
        assert disk.read_bytes()[:4096] == header
    finally:
        subprocess.run(["swapoff", node], check=True)


def test_a_disk_under_another_device_is_refused(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    attach_loop(node)  # a loop device over the loop device
    assert_refused(balenaflash, gpt, node, disk, {"target-held"})


def test_the_disk_of_the_running_system_is_refused(
    gpt: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    root = subprocess.run(
        ["findmnt", "--noheadings", "--output", "SOURCE", "--target", "/"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not Path(root).is_block_device():
        pytest.skip(f"the root filesystem is on {root}, no block device")
    parent = subprocess.run(
        ["lsblk", "--noheadings", "--output", "PKNAME", root],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    disk = f"/dev/{parent[0]}" if parent else root
    run = balenaflash("write", "--yes", "--allow-internal", "--json", gpt.path, disk)
    codes = {error["code"] for error in json.loads(run.stdout)["errors"]}
    assert run.returncode == 4
    assert "target-system-disk" in codes


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/dev/no-such-disk", "target-missing"),
        ("/dev/null", "target-not-block-device"),
        ("/dev/disk/../no-such-disk", "target-missing"),
    ],
)
def test_what_is_no_disk_is_refused_and_no_file_is_made_in_its_place(
    gpt: BuiltImage, balenaflash: RunBalenaflash, target: str, code: str
) -> None:
    run = balenaflash("write", "--yes", "--json", gpt.path, target)
    assert run.returncode == 4
    assert [error["code"] for error in json.loads(run.stdout)["errors"]] == [code]
    assert not Path("/dev/no-such-disk").exists()


def test_a_disk_that_somebody_holds_open_is_refused(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    holder = os.open(node, os.O_RDONLY | os.O_EXCL)
    try:
        assert_refused(balenaflash, gpt, node, disk, {"target-busy"})
    finally:
        os.close(holder)
