"""``write`` and ``verify`` as users meet them, onto real block devices and files."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from boot_volume import extract, file_tree
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from faultdev import MakeFaultDevice, bit_flip, write_error
from imagecopies import MakeImage
from loopdev import AttachLoop

from balenaflash.units import MIB

LAYOUTS = list(Layout)
KINDS = ("data", "zero", "free")


def make_device(attach_loop: AttachLoop, path: Path, size: int, *, sector_size: int = 512) -> Path:
    """A loop device full of 0xFF."""
    path.write_bytes(b"\xff" * size)
    return attach_loop(path, sector_size=sector_size)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_bytes(first: Path, second: Path, size: int, *, skip: int = 0) -> int:
    command: list[str | Path] = ["cmp", "--bytes", str(size)]
    command += ["--ignore-initial", str(skip), first, second]
    return subprocess.run(command, check=False).returncode


def rounded(size: int) -> int:
    return -(-size // MIB) * MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_written_device_equals_the_image(
    layout: Layout,
    image: MakeImage,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
) -> None:
    built = image(layout)
    size = built.path.stat().st_size
    node = make_device(attach_loop, tmp_path / "disk", rounded(size) + 8 * MIB)
    run = balenaflash("write", "--yes", "--all", built.path, node)
    assert run.returncode == 0, run.stderr
    assert "read back equal" in run.stdout
    assert compare_bytes(built.path, node, size) == 0
    with node.open("rb") as device:
        device.seek(rounded(size))
        assert set(device.read()) == {0xFF}, "bytes behind the image are left alone"
    run = balenaflash("verify", "--all", built.path, node)
    assert run.returncode == 0, run.stderr
    assert "equal" in run.stdout


def test_verify_names_the_byte_and_the_partition_that_differ(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    node = make_device(attach_loop, tmp_path / "disk", rounded(gpt.path.stat().st_size))
    assert balenaflash("write", "--yes", gpt.path, node).returncode == 0
    place = gpt.boot_extent.start + 12_345
    with node.open("r+b", buffering=0) as device:
        device.seek(place)
        before = device.read(1)
        device.seek(place)
        device.write(bytes([before[0] ^ 1]))
        os.fsync(device)
    run = balenaflash("verify", gpt.path, node)
    assert run.returncode == 6
    assert run.stdout == ""
    assert f"differs from the image at byte {place} (partition 1 (resin-boot)" in run.stderr
    assert "it may start with a wrong image" in run.stderr
    run = balenaflash("verify", "--json", gpt.path, node)
    envelope = json.loads(run.stdout)
    assert (run.returncode, envelope["exit_status"], envelope["status"]) == (6, 6, "error")
    assert envelope["errors"][0]["code"] == "verification-failed"


def test_a_write_to_a_new_file_needs_neither_question_nor_root(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.img"
    run = balenaflash("write", gpt.path, copy)
    assert run.returncode == 0, run.stderr
    assert compare_bytes(gpt.path, copy, gpt.path.stat().st_size) == 0
    assert copy.stat().st_size == gpt.path.stat().st_size
    assert copy.stat().st_blocks * 512 < copy.stat().st_size / 2, "holes stay holes"
    run = balenaflash("write", gpt.path, copy)
    assert (run.returncode, run.stdout) == (4, "")
    assert "--overwrite" in run.stderr
    assert balenaflash("write", "--overwrite", gpt.path, copy).returncode == 0


def test_the_image_itself_is_no_target(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    before = sha256(gpt.path)
    (tmp_path / "link").symlink_to(gpt.path)
    run = balenaflash("write", "--overwrite", gpt.path, tmp_path / "link")
    assert (run.returncode, run.stdout) == (4, "")
    assert "is the image itself" in run.stderr
    assert sha256(gpt.path) == before


def test_dry_run_shows_the_plan_and_writes_nothing(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    before = sha256(disk)
    run = balenaflash("write", "--dry-run", "--json", gpt.path, node)
    result = json.loads(run.stdout)["result"]
    assert run.returncode == 0
    assert result["dry_run"] is True
    assert result["image_size"] == gpt.path.stat().st_size
    numbers = [each["partition"] for each in result["plan"]]
    assert numbers == [*(each.number for each in gpt.partitions), None]
    for each, partition in zip(result["plan"], gpt.partitions, strict=False):
        assert sum(each.get(kind, 0) for kind in KINDS) == partition.extent.size
    counted = sum(each.get(kind, 0) for each in result["plan"] for kind in KINDS)
    assert counted == gpt.path.stat().st_size
    assert [each["target"] for each in result["targets"]] == [str(node)]
    assert sha256(disk) == before
    assert balenaflash("write", "--dry-run", gpt.path, tmp_path / "new.img").returncode == 0
    assert not (tmp_path / "new.img").exists()


def test_without_yes_and_terminal_nothing_is_written(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    before = sha256(disk)
    run = balenaflash("write", gpt.path, node)
    assert (run.returncode, run.stdout) == (4, "")
    assert "not confirmed" in run.stderr
    assert "--yes" in run.stderr
    assert sha256(disk) == before


# Failures while writing.


def test_a_device_that_fails_ends_in_5_and_cannot_boot(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=rounded(gpt.path.stat().st_size))
    place = gpt.partitions[2].extent.start + 1024  # a superblock
    device.set(faults=[write_error(start=place, end=place + 512)])
    run = balenaflash("write", "--yes", gpt.path, device.node)
    assert (run.returncode, run.stdout) == (5, ""), run.stderr
    assert str(device.node) in run.stderr
    assert "had been written, it holds part of the image and will not boot" in run.stderr
    assert not any(device.raw(0, MIB))


def test_a_device_that_spoils_a_bit_ends_in_6(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=rounded(gpt.path.stat().st_size))
    place = gpt.boot_extent.start + 4096
    device.set(faults=[bit_flip(place)])
    run = balenaflash("write", "--yes", gpt.path, device.node)
    assert (run.returncode, run.stdout) == (6, ""), run.stderr
    assert f"at byte {place} (partition 1" in run.stderr


def test_a_counterfeit_device_never_passes(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    size = rounded(gpt.path.stat().st_size)
    device = fault_device(size=size)
    device.set(real_size=size // 4)
    run = balenaflash("write", "--yes", gpt.path, device.node)
    assert run.returncode == 6, run.stderr


@pytest.mark.needs("root")
def test_a_full_filesystem_ends_in_5_and_leaves_no_file(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    with limited_filesystem(tmp_path / "small", MIB) as small:
        run = balenaflash("write", gpt.path, small / "copy.img")
        assert run.returncode in {4, 5}, run.stderr
        assert run.stdout == ""
        assert list(small.iterdir()) == []


@contextmanager
def limited_filesystem(point: Path, size: int) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_write_says_what_the_target_holds_and_dies_by_the_signal(
    gpt: BuiltImage, fault_device: MakeFaultDevice, number: signal.Signals
) -> None:
    device = fault_device(size=rounded(gpt.path.stat().st_size))
    device.set(write_bps=MIB)
    process = subprocess.Popen(
        [sys.executable, "-m", "balenaflash", "write", "--yes", gpt.path, device.node],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
        text=True,
    )
    deadline = time.monotonic() + 30
    while device.stats().bytes_written < 2 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert process.returncode == -number
    assert out == ""
    assert "Interrupted" in said
    assert "it holds part of the image and will not boot" in said
    assert not any(device.raw(0, MIB))


@pytest.mark.needs("GNU time")
def test_memory_stays_flat_however_large_the_image(gpt: BuiltImage, tmp_path: Path) -> None:
    large = tmp_path / "large.img"
    subprocess.run(["cp", "--sparse=always", gpt.path, large], check=True)
    os.truncate(large, 4 * 1024 * MIB)
    # sgdisk moves the backup table to the new end, as the image would have it.
    subprocess.run(["sgdisk", "--move-second-header", large], check=True, capture_output=True)
    measured = tmp_path / "time"
    command = ["/usr/bin/time", "--format=%M", f"--output={measured}", sys.executable, "-m"]
    subprocess.run(
        [*command, "balenaflash", "write", "--quiet", large, tmp_path / "copy.img"],
        check=True,
        env=clean_environment(),
        capture_output=True,
    )
    assert int(measured.read_text()) < 150 * 1024


# With a recipe: its edits are made in what is written, and the image stays as it is.


@pytest.mark.parametrize("layout", [Layout.GPT_BOARD, Layout.MSDOS_FAT32])
def test_a_recipe_changes_what_is_written_and_not_the_image(
    layout: Layout,
    image: MakeImage,
    attach_loop: AttachLoop,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
) -> None:
    built, copy = image(layout), image(layout)
    recipe = write_recipe(tmp_path)
    size, before = built.path.stat().st_size, sha256(built.path)
    node = make_device(attach_loop, tmp_path / "disk", rounded(size))
    options = ("--recipe", recipe, "--var", "bench=9")

    run = balenaflash("write", "--yes", "--all", "--json", built.path, node, *options)

    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)["result"]["recipe"]
    assert (told["file"], told["name"]) == (str(recipe), "bench")
    changes = {change["path"]: change["action"] for change in told["changes"]}
    assert changes["/config.json"] == "replaced"
    assert changes["/lab/large"] == "created"
    assert sha256(built.path) == before
    # Outside of the boot partition the device is the image, within it what `edit` makes of it.
    boot = built.boot_extent
    assert compare_bytes(built.path, node, boot.start) == 0
    assert compare_bytes(built.path, node, size - boot.end, skip=boot.end) == 0
    assert balenaflash("edit", copy.path, *options).returncode == 0
    found = file_tree(extract(replace(built, path=node), tmp_path / "written"))
    assert found == file_tree(extract(copy, tmp_path / "edited"))
    assert found["/lab/large"] == bytes(300_000)
    assert json.loads(found["/config.json"])["hostname"] == "bench-9"

    # Time has passed: a time stamp of the run itself would be another one now.
    time.sleep(2.1)
    (tmp_path / "large").touch()
    run = balenaflash("verify", built.path, node, *options)
    assert run.returncode == 0, run.stderr
    assert f"equal to {built.path} with the edits of {recipe}" in run.stdout
    for others in ((), ("--recipe", recipe, "--var", "bench=8")):
        run = balenaflash("verify", built.path, node, *others)
        assert (run.returncode, run.stdout) == (6, "")
        assert "resin-boot" in run.stderr or layout.table == "msdos"
    assert sha256(built.path) == before


def test_a_dry_run_with_a_recipe_tells_the_edits_and_writes_nothing(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    recipe, before = write_recipe(tmp_path), sha256(gpt.path)
    command = ("write", "--dry-run", gpt.path, tmp_path / "copy.img", "--recipe", recipe)
    run = balenaflash(*command, "--var", "bench=9")
    assert run.returncode == 0, run.stderr
    assert "created /lab/large (300000 bytes)" in run.stdout
    assert not (tmp_path / "copy.img").exists()
    assert sha256(gpt.path) == before


def test_the_time_of_what_a_recipe_changes_can_be_set(
    image: MakeImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    first, second = image(Layout.GPT_FAT16), image(Layout.GPT_FAT16)
    options = ("--recipe", write_recipe(tmp_path), "--var", "bench=9")
    epoch = {"SOURCE_DATE_EPOCH": "1600000000"}
    written = tmp_path / "written.img"
    assert balenaflash("write", first.path, written, *options, environment=epoch).returncode == 0
    assert balenaflash("edit", second.path, *options, environment=epoch).returncode == 0
    assert compare_bytes(written, second.path, second.path.stat().st_size) == 0


def write_recipe(folder: Path) -> Path:
    """A recipe that makes and changes files and directories, and all that it names."""
    (folder / "large").write_bytes(bytes(300_000))
    recipe = folder / "bench.toml"
    recipe.write_text(
        """
        name = "bench"
        [[step]]
        mkdir = "/lab"
        [[step]]
        put = "large"
        to = "/lab/"
        [[step]]
        rm = "/overlays"
        recursive = true
        [[step]]
        config-set = "hostname=bench-${bench}"
        """
    )
    return recipe
