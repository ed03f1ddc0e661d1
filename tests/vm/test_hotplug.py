"""Sticks that are pulled out, exchanged, or mounted by somebody else while they are written."""

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

from vm.conftest import Media
from vm.machine import Machine, Stick
from vm.processes import Process

pytestmark = [pytest.mark.vm, pytest.mark.needs("QEMU")]

MIB = 1 << 20
SLOW = 8 * MIB  # bytes in a second: the image takes 18 s

# mount(8) tells in words of its own why mount(2) refused.
MOUNT_CODE = """
import ctypes, errno, sys
device, point = (word.encode() for word in sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
failed = libc.mount(device, point, b"vfat", 0, None)
print(errno.errorcode[ctypes.get_errno()] if failed else "mounted")
"""


def start_slow_write(machine: Machine, media: Media, stick: Stick, *flags: str) -> Process:
    """Start writing all of the image, and return when a good part has reached the stick."""
    process = machine.start_balenaflash("write", "--yes", "--all", *flags, media.image, stick.link)
    stick.wait_for_bytes(12 * MIB)
    return process


def test_unplugged_while_it_is_written(machine: Machine, media: Media) -> None:
    backing = media.new_disk("unplugged")
    with machine.plugged(backing, serial="PULLED1", port=1, write_rate=SLOW) as stick:
        node = machine.run("readlink", "--canonicalize", stick.link).strip()
        process = start_slow_write(machine, media, stick, "--json", "--progress", "none")
        gone_at = stick.unplug()
        result = process.wait()
    assert result.status == 5
    assert result.ended_at - gone_at < 2.0
    answer = json.loads(result.stdout)
    assert answer["exit_status"] == 5
    (error,) = answer["errors"]
    assert error["code"] == "write-failed"
    # How far it came differs from run to run, and is all that may.
    expected = (
        rf"{node}: writing at byte \d+ failed: the device has vanished; was it unplugged\?; "
        r"\d+\.\d MiB had been written, it holds part of the image and will not boot"
    )
    assert re.fullmatch(expected, error["message"]), error["message"]


def test_exchanged_for_another_while_the_question_stands(machine: Machine, media: Media) -> None:
    first, second = media.new_disk("first"), media.new_disk("second")
    before = hashlib.sha256(second.read_bytes()).hexdigest()
    with machine.plugged(first, serial="FIRST01", port=2) as stick:
        node = machine.run("readlink", "--canonicalize", stick.link).strip()
        process = machine.start_balenaflash("write", media.image, node, terminal=True)
        process.wait_for(f"Erase all of {node}?")
        stick.unplug()
    with machine.plugged(second, serial="SECOND1", port=2) as other:
        assert machine.run("readlink", "--canonicalize", other.link).strip() == node
        process.type("y\n")
        result = process.wait()
    assert result.status == 4, result
    reason = "is not the disk that was listed: its serial number is SECOND1, not FIRST01"
    assert f"{node}: {reason}" in " ".join(result.stdout.split())
    assert hashlib.sha256(second.read_bytes()).hexdigest() == before


def test_put_in_again_while_the_question_stands(machine: Machine, media: Media) -> None:
    """The disk sequence number tells, where everything else is the same."""
    backing = media.new_disk("again")
    with machine.plugged(backing, serial="AGAIN01", port=2) as stick:
        node = machine.run("readlink", "--canonicalize", stick.link).strip()
        process = machine.start_balenaflash("write", media.image, node, terminal=True)
        process.wait_for(f"Erase all of {node}?")
        stick.unplug()
    with machine.plugged(backing, serial="AGAIN01", port=2):
        process.type("y\n")
        result = process.wait()
    assert result.status == 4, result
    assert "its disk sequence number is" in " ".join(result.stdout.split())


def test_nobody_mounts_it_while_it_is_written(machine: Machine, media: Media) -> None:
    backing = media.new_disk("mounted")
    with machine.plugged(backing, serial="MOUNT01", port=4, write_rate=SLOW) as stick:
        partition = Path(f"{stick.link}-part1")
        # The very mount works before, so it is not refused for another reason.
        machine.run("mount", "-t", "vfat", partition, "/mnt")
        machine.run("umount", "/mnt")
        process = start_slow_write(machine, media, stick)
        refused = machine.start(sys.executable, "-c", MOUNT_CODE, partition, "/mnt").wait()
        assert refused.stdout == "EBUSY\n", refused
        result = process.wait()
        assert result.status == 0, result.stderr
        machine.run("udevadm", "settle")
        machine.run("mount", "-t", "vfat", "-o", "ro", partition, "/mnt")
        machine.run("umount", "/mnt")
    # cmp reads the backing file of this machine, not what the guest remembers.
    image = media.image.read_bytes()
    assert backing.read_bytes()[: len(image)] == image
