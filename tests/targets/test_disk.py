"""Opening a disk: exclusive, proved to be the one that was listed, past the page cache."""

import dataclasses
import errno
import fcntl
import hashlib
import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faultdev import MakeFaultDevice, flush_error, read_error, write_error
from loopdev import AttachLoop, attached
from refusals import holding, started

from balenaflash.errors import TargetRefusedError, WriteError
from balenaflash.targets.disks import find_disk
from balenaflash.targets.open_disk import open_disk
from balenaflash.targets.sysfs import Kernel

MIB = 1 << 20

_LOOP_CHANGE_FD = 0x4C06  # linux/loop.h: another file in a read-only loop device


def buffer_of(content: bytes) -> memoryview:
    buffer = memoryview(mmap.mmap(-1, len(content)))
    buffer[:] = content
    return buffer


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"balenaflash").digest(size)


@contextmanager
def refused(code: str, words: str = ":") -> Iterator[None]:
    with pytest.raises(TargetRefusedError, match=words) as caught:
        yield
    assert [problem.code for problem in caught.value.problems] == [code]


@pytest.fixture
def node(tmp_path: Path, attach_loop: AttachLoop) -> Path:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(4 * MIB))
    return attach_loop(backing)


# Writing and reading


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_what_is_written_is_on_the_disk_and_is_read_back(
    tmp_path: Path, attach_loop: AttachLoop, sector_size: int
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(b"\xff" * (4 * MIB))
    content = noise(MIB + sector_size)
    with open_disk(find_disk(attach_loop(backing, sector_size=sector_size))) as medium:
        assert medium.alignment == sector_size
        assert medium.size == 4 * MIB
        medium.write(sector_size, buffer_of(content))
        medium.begin_read_back()
        found = buffer_of(bytes(len(content)))
        medium.readinto(sector_size, found)
        assert found == content
    expected = b"\xff" * sector_size + content
    assert backing.read_bytes() == expected.ljust(4 * MIB, b"\xff")


def test_reading_never_comes_from_the_page_cache(
    fault_device: MakeFaultDevice,
) -> None:
    device = fault_device(size=MIB)
    device.fill(noise(MIB))
    # Somebody else reads the disk through the page cache and keeps it open.
    with device.node.open("rb") as other, open_disk(find_disk(device.node)) as medium:
        assert other.read(MIB) == noise(MIB)
        device.fill(b"changed!", offset=8192)
        found = buffer_of(bytes(4096))
        medium.begin_read_back()
        medium.readinto(8192, found)
        assert bytes(found[:8]) == b"changed!"


def test_half_a_sector_is_a_mistake_of_the_caller(node: Path) -> None:
    with open_disk(find_disk(node)) as medium:
        for offset, length in ((0, 100), (256, 512)):
            with pytest.raises(ValueError, match="whole sectors of 512"):
                medium.write(offset, memoryview(bytes(length)))
            with pytest.raises(ValueError, match="whole sectors of 512"):
                medium.readinto(offset, memoryview(bytearray(length)))


# Who else has it


def test_nobody_else_gets_the_disk_while_it_is_written(node: Path) -> None:
    disk = find_disk(node)
    with open_disk(disk):
        with refused("target-busy"), open_disk(disk):
            pass
        taken = subprocess.run(["mkswap", node], capture_output=True, check=False)
        assert taken.returncode != 0
        assert b"busy" in taken.stderr
    with open_disk(disk):
        pass


@pytest.mark.needs("root")
def test_a_disk_that_another_process_has_open_for_writing_is_refused(node: Path) -> None:
    # As QEMU has the disk of a virtual machine: nobody holds it exclusively, nothing is locked.
    disk = find_disk(node)
    with started(holding(f"os.open({str(node)!r}, os.O_RDWR)")) as pid:
        with refused("target-busy", f"process {pid}"), open_disk(disk, lock_timeout=0.1):
            pass
        with open_disk(disk, for_writing=False):
            pass
    with started(holding(f"os.open({str(node)!r}, os.O_RDONLY)")), open_disk(disk):
        pass


@pytest.mark.needs("e2fsprogs", "root", "util-linux")
def test_a_mounted_disk_cannot_be_opened_for_writing_and_can_be_read(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(4 * MIB))
    subprocess.run(["mkfs.ext4", "-q", backing], check=True)
    node = attach_loop(backing)
    (tmp_path / "point").mkdir()
    subprocess.run(["mount", "-o", "ro,noload", node, tmp_path / "point"], check=True)
    try:
        disk = find_disk(node)
        with refused("target-busy"), open_disk(disk):
            pass
        with open_disk(disk, for_writing=False) as medium:
            found = buffer_of(bytes(4096))
            medium.readinto(0, found)
        # The magic of ext4 at byte 1080, as `blkid --probe` looks for it.
        assert bytes(found[1080:1082]) == b"\x53\xef"
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "point"], check=True)


@pytest.mark.needs("e2fsprogs", "root", "util-linux")
def test_the_disk_cannot_be_mounted_while_it_is_written(node: Path, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", node], check=True)
    (tmp_path / "point").mkdir()
    with open_disk(find_disk(node)):
        command: list[str | Path] = ["mount", node, tmp_path / "point"]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_the_lock_that_udevd_respects_is_held_until_the_end(node: Path) -> None:
    with node.open("rb") as other:
        with open_disk(find_disk(node)), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_short_look_by_udevd_is_waited_for(node: Path) -> None:
    with node.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        timer = threading.Timer(0.3, fcntl.flock, (other, fcntl.LOCK_UN))
        timer.start()
        with open_disk(find_disk(node)):
            pass
        timer.join()


def test_a_lock_that_stays_is_a_refusal(node: Path) -> None:
    with node.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with refused("target-busy"), open_disk(find_disk(node), lock_timeout=0.1):
            pass


def test_two_may_read_at_a_time(node: Path) -> None:
    disk = find_disk(node)
    with open_disk(disk, for_writing=False), open_disk(disk, for_writing=False):
        pass


# Is it the one that was listed


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size": 4 * MIB - 512}, "size"),
        ({"logical_sector_size": 4096}, "sector size"),
        ({"disk_sequence": 0}, "disk sequence number"),
        ({"device_number": (7, 4095)}, "device 7:"),
        ({"sys_path": Path("/sys/devices/virtual/block/loop-control")}, "elsewhere"),
    ],
)
def test_a_disk_that_differs_in_one_fact_is_refused(
    node: Path, change: dict[str, int], word: str
) -> None:
    disk = find_disk(node)
    if change.keys() == {"disk_sequence"} and disk.disk_sequence is None:
        pytest.skip("this kernel has no disk sequence numbers")
    listed = dataclasses.replace(disk, **change)  # type: ignore[arg-type]  # of several types
    for for_writing in (True, False):
        with (
            pytest.raises(TargetRefusedError, match=word) as caught,
            open_disk(listed, for_writing=for_writing),
        ):
            pass
        assert caught.value.problems[0].code == "target-changed"


def test_another_serial_number_is_refused(tmp_path: Path, attach_loop: AttachLoop) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(MIB))
    disk = find_disk(attach_loop(backing))
    # A loop device has no serial number; here a copy of its directory has one.
    directory = tmp_path / "sys/dev/block" / str(disk.device_number)
    directory.mkdir(parents=True)
    (directory / "serial").write_text("B2\n", encoding="ascii")
    kernel = Kernel(sys=tmp_path / "sys")
    listed = dataclasses.replace(disk, sys_path=directory, serial="A1")
    with (
        pytest.raises(TargetRefusedError, match="serial number is B2, not A1"),
        open_disk(listed, kernel=kernel),
    ):
        pass
    with open_disk(dataclasses.replace(listed, serial="B2"), kernel=kernel):
        pass
    with open_disk(dataclasses.replace(listed, serial=None), kernel=kernel):
        pass


def test_another_card_of_the_same_size_in_the_same_place_is_refused(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(bytes(MIB))
    second.write_bytes(bytes(MIB))
    disk = find_disk(attach_loop(first, read_only=True))
    if disk.disk_sequence is None:
        pytest.skip("this kernel has no disk sequence numbers")
    with disk.node.open("rb") as loop, second.open("rb") as other:
        fcntl.ioctl(loop, _LOOP_CHANGE_FD, other.fileno())
    with refused("target-changed"), open_disk(disk, for_writing=False):
        pass


def test_a_disk_that_is_gone_is_missing(tmp_path: Path) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(MIB))
    with attached(backing) as node:
        disk = find_disk(node)
    with pytest.raises(TargetRefusedError) as caught, open_disk(disk):
        pass
    # The node of a detached loop device stays, with size 0; that of a stick goes.
    assert caught.value.problems[0].code in {"target-changed", "target-missing"}
    with refused("target-missing"), open_disk(dataclasses.replace(disk, node=tmp_path / "sdz")):
        pass


def test_a_file_in_place_of_the_node_is_refused(node: Path, tmp_path: Path) -> None:
    impostor = tmp_path / "node"
    impostor.write_bytes(bytes(4 * MIB))
    disk = dataclasses.replace(find_disk(node), node=impostor)
    with refused("target-changed"), open_disk(disk):
        pass


def test_a_read_only_disk_is_refused_for_writing_and_can_be_read(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(MIB))
    disk = find_disk(attach_loop(backing, read_only=True))
    with refused("target-read-only"), open_disk(disk):
        pass
    with open_disk(disk, for_writing=False):
        pass


@pytest.mark.needs("root")
def test_a_user_who_may_not_open_it_is_refused(node: Path) -> None:
    disk = find_disk(node)
    os.seteuid(65534)
    try:
        with refused("target-no-permission"), open_disk(disk):
            pass
    finally:
        os.seteuid(0)


# Faults


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EIO, "reports an error"),
        (errno.ENOSPC, "no room left"),
        (errno.ENODEV, "vanished"),
        (errno.ETIMEDOUT, "does not answer"),
    ],
)
def test_a_write_error_names_the_place_and_what_happened(
    fault_device: MakeFaultDevice, code: int, words: str
) -> None:
    device = fault_device(size=MIB)
    device.set(faults=[write_error(65536, 69632, errno=code)])
    with open_disk(find_disk(device.node)) as medium:
        medium.write(0, buffer_of(bytes(65536)))
        with pytest.raises(WriteError, match=words) as caught:
            medium.write(65536, buffer_of(bytes(65536)))
    assert caught.value.code == "write-failed"
    assert str(device.node) in str(caught.value)
    assert "byte 65536" in str(caught.value)


def test_a_lost_flush_stays_lost(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=MIB)
    device.set(faults=[flush_error(count=1)])
    with open_disk(find_disk(device.node)) as medium:
        medium.write(0, buffer_of(noise(4096)))
        steps: list[Callable[[], None]] = [medium.flush, medium.flush, medium.begin_read_back]
        for step in steps:
            with pytest.raises(WriteError, match="flushing failed"):
                step()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA])
def test_a_read_error_names_the_place(fault_device: MakeFaultDevice, code: int) -> None:
    device = fault_device(size=MIB)
    device.set(faults=[read_error(8192, 12288, errno=code)])
    with open_disk(find_disk(device.node), for_writing=False) as medium:
        medium.readinto(0, buffer_of(bytes(8192)))
        with pytest.raises(WriteError, match="byte 8192 failed: the medium reports") as caught:
            medium.readinto(8192, buffer_of(bytes(4096)))
    assert caught.value.code == "read-back-failed"


def test_a_disk_that_is_pulled_out_is_said_to_have_vanished(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=MIB)
    with open_disk(find_disk(device.node)) as medium:
        medium.write(0, buffer_of(bytes(4096)))
        device.vanish()
        with pytest.raises(WriteError, match="vanished"):
            medium.write(4096, buffer_of(bytes(4096)))
        with pytest.raises(WriteError, match="vanished"):
            medium.readinto(0, buffer_of(bytes(4096)))
        with pytest.raises(WriteError, match="vanished"):
            medium.flush()


def test_the_end_of_the_disk_is_an_error_in_both_directions(node: Path) -> None:
    with open_disk(find_disk(node)) as medium:
        with pytest.raises(WriteError, match=f"byte {4 * MIB} failed: there is no room left"):
            medium.write(4 * MIB - 4096, buffer_of(bytes(8192)))
        with pytest.raises(WriteError, match=f"byte {4 * MIB} failed: it ends there"):
            medium.readinto(4 * MIB - 4096, buffer_of(bytes(8192)))


def test_the_disk_is_released_after_any_failure(node: Path) -> None:
    disk = find_disk(node)
    with pytest.raises(KeyboardInterrupt), open_disk(disk):
        raise KeyboardInterrupt
    with open_disk(disk):
        pass
