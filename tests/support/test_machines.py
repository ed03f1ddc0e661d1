"""Which disks of real machines are offered, and why the others are not."""

import json
import subprocess
import sys
from pathlib import Path

import machines
import pytest
from commandline import clean_environment
from devicetree import DeviceTree, RecordedUdev

from balenaflash.targets.disks import list_disks
from balenaflash.targets.safety import assess

LOOK = """
import json, os, sys
from pathlib import Path
from shutil import copytree
from balenaflash.targets.safety import assess
from balenaflash.targets.disks import list_disks
from balenaflash.targets.sysfs import Kernel

top, recorded = Path(os.environ["UMOCKDEV_DIR"], "sys"), Path(sys.argv[3])
# umockdev takes a disk whose path has no "block" in it for a character device, as NVMe.
for link in (top / "dev/char").glob("*"):
    if (link.resolve() / "size").exists():
        (top / "dev/block" / link.name).symlink_to(os.readlink(link))
# It knows of devices only.
if (recorded / "fs").exists():
    copytree(recorded / "fs", top / "fs", symlinks=True)
    for link in (top / "fs").glob("btrfs/*/devices/*"):
        place = Path(os.readlink(link)).relative_to(recorded.resolve())
        link.unlink()
        link.symlink_to(Path("/sys") / place)

kernel = Kernel(proc=Path(sys.argv[1]), run=Path(sys.argv[2]))
print(json.dumps({
    disk.node.name: [
        disk.usb_port, disk.serial, disk.size,
        [problem.code for problem in assess(disk, kernel=kernel).problems],
    ]
    for disk in list_disks(kernel)
}))
"""
"""Prints what is found by libudev; mounts are those of another machine."""

UNSEEN = frozenset({"target-missing", "target-no-permission"})
"""umockdev shows no nodes to what asks whether they may be opened."""


@pytest.fixture(params=machines.MACHINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tree(name: str, tmp_path: Path) -> DeviceTree:
    tree = DeviceTree(tmp_path / "machine")
    machines.MACHINES[name].build(tree)
    return tree


def test_the_right_disks_are_offered_and_the_others_refused_for_the_right_reasons(
    name: str, tree: DeviceTree
) -> None:
    found = {
        disk.node.name: frozenset(
            problem.code for problem in assess(disk, kernel=tree.kernel).problems
        )
        for disk in list_disks(tree.kernel, RecordedUdev(tree))
    }
    assert found == machines.MACHINES[name].verdicts


@pytest.mark.needs("umockdev")
def test_libudev_finds_the_same(name: str, tree: DeviceTree, tmp_path: Path) -> None:
    recording = tmp_path / "machine.umockdev"
    recording.write_text(machines.recording(tree))
    run = subprocess.run(
        [
            *("umockdev-run", "-d", recording, "--", sys.executable, "-c", LOOK),
            *(tree.root / name for name in ("proc", "run", "sys")),
        ],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert {
        disk: frozenset(codes) - UNSEEN for disk, (*_facts, codes) in found.items()
    } == machines.MACHINES[name].verdicts
    assert {disk: facts for disk, (*facts, _codes) in found.items()} == {
        disk.node.name: [disk.usb_port, disk.serial, disk.size]
        for disk in list_disks(tree.kernel, RecordedUdev(tree))
    }
