"""Flashing without root: what the shipped udev rule is for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import balenaflash
from vm.conftest import Media
from vm.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.needs("QEMU")]

USER = "technician"
CHECKOUT = Path(balenaflash.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def image(machine: Machine, media: Media) -> Path:
    """The image in the home of an ordinary user, who may run what root of this machine may."""
    machine.run("useradd", "--create-home", USER)
    for path in {Path(sys.executable), Path(sys.executable).resolve(), CHECKOUT / "any"}:
        machine.run("chmod", "o+x", *path.parents[:-1])
    # The folders of pytest are closed to others.
    copy = Path("/home", USER, media.image.name)
    machine.run("cp", "--sparse=always", media.image, copy)
    return copy


@pytest.fixture
def rule(machine: Machine) -> Iterator[None]:
    """The rule as ``udev install`` leaves it, and a member of its group."""
    result = machine.run_balenaflash("udev", "install", "--yes")
    assert result.status == 0, result
    machine.run("usermod", "--append", "--groups", "balenaflash", USER)
    yield
    result = machine.run_balenaflash("udev", "uninstall", "--yes")
    assert result.status == 0, result


def test_refused_without_the_rule(machine: Machine, media: Media, image: Path) -> None:
    with machine.plugged(media.new_disk("refused"), serial="USER001", port=1) as stick:
        result = machine.run_balenaflash("write", "--yes", image, stick.link, user=USER)
    assert result.status == 4, result
    assert result.stdout == ""
    assert "this user may not read and write it (brw-rw----, group disk)" in " ".join(
        result.stderr.split()
    )


@pytest.mark.usefixtures("rule")
def test_a_stick_is_written_without_root(machine: Machine, media: Media, image: Path) -> None:
    content = media.image.read_bytes()
    backing = media.new_disk("written")
    with backing.open("r+b") as disk:
        disk.write(bytes(len(content)))
    with machine.plugged(backing, serial="USER002", port=1) as stick:
        result = machine.run_balenaflash("write", "--yes", "--all", image, stick.link, user=USER)
        assert result.status == 0, result.stderr
        # Back to what the kernel and udevd make of it: the partitions are there.
        machine.wait_for_node(Path(f"{stick.link}-part5"))
    assert backing.read_bytes()[: len(content)] == content


@pytest.mark.usefixtures("rule")
def test_a_disk_inside_the_machine_stays_roots(machine: Machine, image: Path) -> None:
    machine.run("udevadm", "trigger", "--settle", "--subsystem-match=block")
    said = machine.run("stat", "--format=%n %G", "/dev/mmcblk0", "/dev/nvme0n1", "/dev/vda")
    assert said.splitlines() == [
        "/dev/mmcblk0 balenaflash",
        "/dev/nvme0n1 disk",
        "/dev/vda disk",
    ]
    arguments = ("write", "--yes", "--allow-internal", image, "/dev/vda")
    result = machine.run_balenaflash(*arguments, user=USER)
    assert result.status == 4, result
    assert "/dev/vda: this user may not read and write it" in " ".join(result.stderr.split())
