"""Each kind of disk under real udev: found by each of its names, with the facts others give."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vm.conftest import Media
from vm.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.needs("QEMU")]


class Kind(NamedTuple):
    """A kind of disk that QEMU has."""

    node: str
    link: str
    bus: str
    serial: str
    is_internal: bool


KINDS = [
    Kind("/dev/sda", "usb-QEMU_QEMU_HARDDISK_4C5300A-0:0", "usb", "4C5300A", False),
    Kind("/dev/mmcblk0", "mmc-QEMU__0xdeadbeef", "sd", "0xdeadbeef", False),
    Kind("/dev/nvme0n1", "nvme-QEMU_NVMe_Ctrl_NVME0001", "nvme", "NVME0001", True),
    Kind("/dev/vda", "virtio-VIRT0001", "virtio", "VIRT0001", True),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.bus)


@pytest.fixture(scope="module", autouse=True)
def stick(machine: Machine, media: Media) -> Iterator[None]:
    with machine.plugged(media.new_disk("found"), serial="4C5300A", port=3):
        yield


@pytest.fixture(scope="module")
def listed(machine: Machine) -> dict[str, Any]:
    """What ``devices --json`` says, by node."""
    result = machine.run_balenaflash("devices", "--json")
    assert result.status == 0, result.stderr
    return {disk["node"]: disk for disk in json.loads(result.stdout)["result"]["devices"]}


def test_every_disk_is_listed_and_nothing_else(machine: Machine, listed: dict[str, Any]) -> None:
    names = machine.run("lsblk", "--nodeps", "--noheadings", "--output", "PATH").split()
    assert set(listed) == set(names)
    assert set(listed) == {kind.node for kind in KINDS}


@each_kind
def test_facts_are_those_of_lsblk(machine: Machine, listed: dict[str, Any], kind: Kind) -> None:
    said = machine.run("lsblk", "--bytes", "--output-all", "--json", kind.node)
    (expected,) = json.loads(said)["blockdevices"]
    disk = listed[kind.node]
    assert disk["size"] == expected["size"]
    assert disk["logical_sector_size"] == expected["log-sec"]
    assert disk["physical_sector_size"] == expected["phy-sec"]
    assert disk["removable"] == expected["rm"]
    assert disk["read_only"] == expected["ro"]
    assert disk["rotational"] == expected["rota"]
    assert disk["serial"] == expected["serial"]
    partitions = [
        (part["node"], part["size"], part["label"], part["filesystem"])
        for part in disk["partitions"]
    ]
    assert partitions == [
        (part["path"], part["size"], part["label"], part["fstype"]) for part in expected["children"]
    ]
    assert len(partitions) == 5


@each_kind
def test_facts_are_those_of_udev(machine: Machine, listed: dict[str, Any], kind: Kind) -> None:
    properties = _read_properties(machine, kind.node)
    disk = listed[kind.node]
    assert disk["bus"] == kind.bus
    assert disk["disk_sequence"] == int(properties["DISKSEQ"])
    assert disk["serial"] == properties.get("ID_SERIAL_SHORT", properties["ID_SERIAL"])
    assert disk["wwn"] == properties.get("ID_WWN")
    assert sorted(disk["links"]) == sorted(
        link for link in properties["DEVLINKS"].split() if link.startswith("/dev/disk/")
    )


def test_the_usb_port_is_that_of_udev(machine: Machine, listed: dict[str, Any]) -> None:
    directory = _read_properties(machine, "/dev/sda")["DEVPATH"]
    assert f"/{listed['/dev/sda']['usb_port']}:1.0/" in directory
    # QEMU was told to plug it into port 3.
    assert listed["/dev/sda"]["usb_port"].endswith("-3")


@pytest.mark.parametrize("named_by", ["node", "by-id", "serial"])
def test_found_by_each_name(machine: Machine, media: Media, named_by: str) -> None:
    names = [
        {
            "node": kind.node,
            "by-id": f"/dev/disk/by-id/{kind.link}",
            "serial": f"serial:{kind.serial}",
        }[named_by]
        for kind in KINDS
    ]
    assert find(machine, media, *names) == [kind.node for kind in KINDS]


def test_found_by_its_port(machine: Machine, media: Media) -> None:
    # Port 3 of the second bus: the first one is that of the slower devices.
    assert find(machine, media, "port:2-3") == ["/dev/sda"]


def find(machine: Machine, media: Media, *names: str) -> list[str]:
    """The nodes that ``write`` would write to."""
    options = ("--dry-run", "--json", "--allow-internal")
    result = machine.run_balenaflash("write", *options, media.image, *names)
    assert result.status == 0, result
    return [target["target"] for target in json.loads(result.stdout)["result"]["targets"]]


@each_kind
def test_a_disk_inside_the_machine_is_refused_and_others_are_not(
    listed: dict[str, Any], kind: Kind
) -> None:
    codes = [refusal["code"] for refusal in listed[kind.node]["refusals"]]
    assert codes == (["target-internal"] if kind.is_internal else [])


def _read_properties(machine: Machine, node: str) -> dict[str, str]:
    said = machine.run("udevadm", "info", "--query=property", f"--name={Path(node)}")
    pairs = (line.partition("=") for line in said.splitlines())
    return {name: value for name, _, value in pairs}
