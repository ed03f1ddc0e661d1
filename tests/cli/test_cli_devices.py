"""``devices`` as users meet it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import RunBalenaflash, clean_environment
from faultdev import MakeFaultDevice
from loopdev import AttachLoop

from balenaflash.units import MIB


def listed(balenaflash: RunBalenaflash) -> dict[str, dict[str, object]]:
    run = balenaflash("devices", "--json")
    assert run.returncode == 0, run.stderr
    return {item["node"]: item for item in json.loads(run.stdout)["result"]["devices"]}


@pytest.fixture
def node(attach_loop: AttachLoop, tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(48 * MIB))
    return attach_loop(disk)


def test_size_and_sectors_are_those_of_lsblk(node: Path, balenaflash: RunBalenaflash) -> None:
    columns = "SIZE,LOG-SEC,PHY-SEC,RO,ROTA"
    command = ["lsblk", "--json", "--bytes", "--nodeps", "--output", columns, str(node)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    [expected] = json.loads(run.stdout)["blockdevices"]
    found = listed(balenaflash)[str(node)]
    assert found["size"] == expected["size"]
    assert found["logical_sector_size"] == expected["log-sec"]
    assert found["physical_sector_size"] == expected["phy-sec"]
    assert found["read_only"] == expected["ro"]
    assert found["rotational"] == expected["rota"]
    assert found["bus"] == "loop"


def test_every_whole_disk_of_lsblk_is_listed(node: Path, balenaflash: RunBalenaflash) -> None:
    command = ["lsblk", "--json", "--nodeps", "--paths", "--output", "NAME,TYPE,SIZE"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    disks = {
        item["name"]
        for item in json.loads(run.stdout)["blockdevices"]
        if item["type"] in {"disk", "loop"}
        and not item["name"].startswith(("/dev/zram", "/dev/ram"))
    }
    # Others attach and detach loop devices meanwhile; ours and the hardware stay.
    wanted = {name for name in disks if "loop" not in name} | {str(node)}
    assert wanted <= set(listed(balenaflash))


def test_a_loop_device_is_offered_to_nobody_and_a_mounted_one_says_where_it_is_mounted(
    node: Path, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    assert listed(balenaflash)[str(node)]["writable"] is False
    subprocess.run(["mkfs.ext4", "-q", "-F", node], check=True)
    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", node, point], check=True)
    try:
        found = listed(balenaflash)[str(node)]
        shown = balenaflash("devices").stdout
        everything = balenaflash("devices", "--all").stdout
    finally:
        subprocess.run(["umount", point], check=True)
    assert found["writable"] is False
    refusals = found["refusals"]
    assert isinstance(refusals, list)
    assert [refusal["code"] for refusal in refusals] == ["target-mounted", "target-virtual"]
    assert str(node) not in shown
    assert "--all shows why" in shown
    assert f"{node}: is mounted" in everything
    assert str(point) in everything


def test_sizes_are_exact_when_asked_for(node: Path, balenaflash: RunBalenaflash) -> None:
    assert "48.0 MiB" in balenaflash("devices", "--all").stdout
    exact = balenaflash("devices", "--all", "--bytes").stdout
    [line] = [line for line in exact.splitlines() if line.startswith(f"{node} ")]
    assert str(48 * MIB) in line.split()


def test_the_keys_of_a_device_are_these(node: Path, balenaflash: RunBalenaflash) -> None:
    assert list(listed(balenaflash)[str(node)]) == [
        *("node", "size", "logical_sector_size", "physical_sector_size", "bus", "vendor"),
        *("model", "serial", "wwn", "removable", "read_only", "rotational", "disk_sequence"),
        *(
            "usb_port",
            "usb_speed",
            "slot",
            "mmc_cid",
            "links",
            "partitions",
            "uses",
            "writable",
            "refusals",
        ),
    ]


@pytest.mark.needs("root", "util-linux")
def test_a_disk_is_written_by_the_name_that_its_node_has_in_a_container(
    balenaflash: RunBalenaflash, attach_loop: AttachLoop, tmp_path: Path
) -> None:
    image, disk = tmp_path / "sample.img", tmp_path / "disk"
    assert balenaflash("sample", image).returncode == 0
    disk.touch()
    os.truncate(disk, image.stat().st_size)
    number = attach_loop(disk).stat().st_rdev
    # The /dev of a container holds little more than what it was given.
    script = (
        "mount -t tmpfs none /dev && mkdir /dev/shm && mknod -m 666 /dev/null c 1 3 && "
        f"mknod /dev/target b {os.major(number)} {os.minor(number)} && "
        f"{sys.executable} -m balenaflash write --yes --all {image} /dev/target && "
        f"{sys.executable} -m balenaflash verify {image} /dev/target"
    )
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "/dev/target: equal to" in run.stdout
    assert disk.read_bytes() == image.read_bytes()


HANGING = 20.0
"""Seconds after which a command is taken to hang; it needs a fraction of one."""


@pytest.mark.needs("root")
def test_a_loop_device_whose_file_does_not_answer_holds_up_no_other_disk(
    balenaflash: RunBalenaflash,
    attach_loop: AttachLoop,
    fault_device: MakeFaultDevice,
    tmp_path: Path,
) -> None:
    image, disk = tmp_path / "sample.img", tmp_path / "disk"
    assert balenaflash("sample", image).returncode == 0
    disk.touch()
    os.truncate(disk, image.stat().st_size)
    node = attach_loop(disk)
    dead = fault_device(size=MIB)
    # The source of a mount may be any text, also the name of that file.
    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", dead.medium, point], check=True)
    try:
        with dead.hanging():
            devices = balenaflash("devices", "--json", timeout=HANGING)
            write = balenaflash("write", "--yes", image, node, timeout=HANGING)
    finally:
        subprocess.run(["umount", point], check=True)
    assert devices.returncode == 0, devices.stderr
    assert str(dead.node) in devices.stdout
    assert write.returncode == 0, write.stderr
