"""What lifts a refusal of ``write``, who is named in one, and what changed since the question."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from imagecopies import MakeImage
from loopdev import AttachLoop, attach, detach, shows
from mountlock import no_mounts_of_others
from refusals import (
    assert_refused,
    holding,
    make_device,
    mounted,
    refusals,
    rounded,
    sha256,
    started,
)
from test_cli_terminal import at_terminal

from balenaflash.units import GIB, MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


# What lifts a refusal lifts that one only.


@pytest.mark.needs("root", "e2fsprogs", "util-linux")
def test_all_refusals_are_told_at_once_and_each_option_lifts_its_own(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(16 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-F", disk], check=True)
    node = attach_loop(disk, read_only=True, sector_size=4096)
    attach_loop(node, read_only=True)
    write: list[str | Path] = ["write", "--yes", gpt.path, node, "--max-size", "1M"]
    before = sha256(disk)
    with mounted(node, tmp_path / "point") as point:
        told = refusals(balenaflash, *write)
        assert told == {
            "target-mounted": "--unmount",
            "target-held": None,
            "target-read-only": None,
            "target-too-small": None,
            "target-too-large": "--max-size",
            "target-sector-size": None,
        }
        text = balenaflash(*write)
        assert (text.returncode, text.stdout) == (4, "")
        assert text.stderr.count("balenaflash: ") == len(told)
        for word in (str(point), "sectors of 4096", str(16 * MIB), "--max-size 1G", "--unmount"):
            assert word in text.stderr
        for options, code in (
            (["--unmount"], "target-mounted"),
            (["--max-size", "1G"], "target-too-large"),
        ):
            assert refusals(balenaflash, *write, *options).keys() == told.keys() - {code}
        # Neither root's question nor the flag of another refusal lifts anything.
        for option in ("--allow-internal", "--overwrite"):
            assert refusals(balenaflash, *write, option) == told
        assert point.is_mount()
    assert sha256(disk) == before


def test_a_disk_above_the_limit_is_written_when_the_limit_is_raised(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 256 * GIB + 512)
    node = attach_loop(disk)
    write: list[str | Path] = ["write", "--yes", gpt.path, node]
    assert refusals(balenaflash, *write) == {"target-too-large": "--max-size"}
    assert refusals(balenaflash, *write, "--max-size", "256GiB") == {
        "target-too-large": "--max-size"
    }
    assert disk.stat().st_blocks == 0, "nothing was written to the sparse file"
    hint = balenaflash(*write).stderr.rpartition("add ")[2].split()
    run = balenaflash(*write, *(word.rstrip(".") for word in hint))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("size", ["", "-1", "1.5G", "many", "10 apples"])
def test_a_limit_that_is_no_size_is_wrong_usage(
    size: str, gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    run = balenaflash("write", f"--max-size={size}", gpt.path, tmp_path / "copy")
    assert (run.returncode, run.stdout) == (2, "")
    assert not (tmp_path / "copy").exists()


def test_that_a_disk_is_built_in_is_lifted_and_that_it_is_the_systems_never(
    gpt: BuiltImage, balenaflash: RunBalenaflash
) -> None:
    devices = json.loads(balenaflash("devices", "--json").stdout)["result"]["devices"]
    told = {
        device["node"]: {refusal["code"]: refusal["lifted_by"] for refusal in device["refusals"]}
        for device in devices
    }
    internal = [node for node, codes in told.items() if "target-internal" in codes]
    system = [node for node in internal if "target-system-disk" in told[node]]
    if not system:
        pytest.skip("the running system is on no disk that is built in")
    write: list[str | Path] = ["write", "--dry-run", gpt.path, system[0], "--max-size", "1000T"]
    before = refusals(balenaflash, *write)
    assert before["target-internal"] == "--allow-internal"
    assert before["target-system-disk"] is None
    lifted = refusals(balenaflash, *write, "--allow-internal", "--unmount", "--yes")
    assert lifted.keys() == before.keys() - {"target-internal"}


# Who has it


def test_who_holds_a_disk_open_is_named(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    with started(holding(f"os.open({str(node)!r}, os.O_RDONLY | os.O_EXCL)")) as pid:
        said = assert_refused(balenaflash, gpt, node, disk, {"target-busy"})
    assert f"(process {pid}) has {node} open" in said


@pytest.mark.needs("root", "e2fsprogs", "util-linux")
def test_a_mount_that_only_others_see_is_refused_and_named(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    node = make_device(attach_loop, disk, rounded(gpt.path.stat().st_size))
    subprocess.run(["mkfs.ext4", "-q", "-F", node], check=True)
    point = tmp_path / "point"
    point.mkdir()
    script = f"mount -o ro,noload {node} {point} && echo ready && exec sleep 600"
    with no_mounts_of_others(), started(["unshare", "--mount", "sh", "-c", script]) as pid:
        said = assert_refused(balenaflash, gpt, node, disk, {"target-busy"})
    assert f"(process {pid}) has it mounted at {point}, in a mount namespace of its own" in said


# What was confirmed is what is opened


def test_another_medium_since_the_question_is_refused(gpt: BuiltImage, tmp_path: Path) -> None:
    size = rounded(gpt.path.stat().st_size)
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_bytes(b"\xff" * size)
    node = attach(first)

    def change() -> None:
        detach(node, first)
        # The node that was shown, now over a file of the same size.
        subprocess.run(["losetup", node, second], check=True)

    try:
        status, shown = at_terminal(["write", gpt.path, node], answer="y\n", meanwhile=change)
    finally:
        for path in (first, second):
            if shows(node, path):
                detach(node, path)
    assert status == 4, shown
    assert "is not the disk that was listed: its disk sequence number is" in shown
    for path in (first, second):
        assert set(path.read_bytes()) == {0xFF}


def test_a_disk_that_is_gone_since_the_question_is_refused(gpt: BuiltImage, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"\xff" * rounded(gpt.path.stat().st_size))
    node = attach(disk)

    def unplug() -> None:
        detach(node, disk)

    status, shown = at_terminal(["write", gpt.path, node], answer="y\n", meanwhile=unplug)
    assert status == 4, shown
    assert str(node) in shown
    assert set(disk.read_bytes()) == {0xFF}


@pytest.mark.needs("root", "e2fsprogs", "util-linux")
def test_the_disk_that_the_image_is_read_from_is_refused_whatever_is_unmounted(
    gpt: BuiltImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 2 * rounded(gpt.path.stat().st_size) + 32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
    node = attach_loop(disk)
    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", node, point], check=True)
    try:
        inside = point / "balena.img"
        subprocess.run(["cp", "--sparse=always", gpt.path, inside], check=True)
        write: list[str | Path] = ["write", "--yes", "--unmount"]
        assert refusals(balenaflash, *write, inside, node) == {"target-holds-image": None}
        with inside.open("rb") as stream:
            run = subprocess.run(
                [sys.executable, "-m", "balenaflash", *write, "--json", "-", node],
                stdin=stream,
                capture_output=True,
                env=clean_environment(),
                check=False,
            )
        codes = [error["code"] for error in json.loads(run.stdout)["errors"]]
        assert (run.returncode, codes) == (4, ["target-holds-image"])
        assert point.is_mount()
    finally:
        subprocess.run(["umount", point], check=True)
