"""Sticks that come and go: told as it happens, set free before, switched off after."""

import json
import signal
from pathlib import Path

import pytest

from vm.conftest import Media
from vm.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.needs("QEMU")]


def test_each_change_is_told(machine: Machine, media: Media) -> None:
    watching = machine.start_balenaflash("devices", "--watch")
    watching.wait_for("/dev/mmcblk0", stream="stdout")
    with machine.plugged(media.new_disk("watched"), serial="WATCH01", port=2) as stick:
        node = machine.run("readlink", "--canonicalize", stick.link).strip()
        stick_line = f"{node}  256.0 MiB  usb  QEMU QEMU HARDDISK  WATCH01  port:2-2"
        watching.wait_for(f"+ {stick_line}: may be written\n", stream="stdout")
        machine.run("mount", "-t", "vfat", f"{node}1", "/mnt")
        watching.wait_for(f"* {stick_line}: target-mounted\n", stream="stdout")
        machine.run("umount", "/mnt")
        watching.wait_for(f"* {stick_line}: may be written\n", stream="stdout")
    watching.wait_for(f"- {stick_line}: gone\n", stream="stdout")
    watching.send_signal(signal.SIGINT)
    assert watching.wait().status == -signal.SIGINT


def test_a_mounted_stick_is_unmounted_written_and_switched_off(
    machine: Machine, media: Media
) -> None:
    backing = media.new_disk("ejected")
    with machine.plugged(backing, serial="EJECT01", port=5) as stick:
        machine.run("mount", "-t", "vfat", Path(f"{stick.link}-part1"), "/mnt")
        device = Path("/sys/bus/usb/devices/2-5")
        machine.run("test", "-e", device)
        options = ("--yes", "--json", "--progress", "none", "--all", "--unmount", "--eject")
        result = machine.run_balenaflash("write", *options, media.image, stick.link)
        assert result.status == 0, result
        (target,) = json.loads(result.stdout)["result"]["targets"]
        assert target["ejected"] is True
        assert machine.start("test", "-e", device).wait().status == 1
        assert machine.start("mountpoint", "--quiet", "/mnt").wait().status != 0
    image = media.image.read_bytes()
    assert backing.read_bytes()[: len(image)] == image
