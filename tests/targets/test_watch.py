"""Disks as they come, change and go."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import devicetree
import pytest
from commandline import clean_environment
from devicetree import DeviceTree
from loopdev import AttachLoop, attach, detach

from balenaflash.targets.safety import Assessment, assess
from balenaflash.targets.watch import watch

MIB = 1 << 20


class EndOfScriptError(Exception):
    """There is nothing more to be seen."""


class ScriptedMonitor:
    """Tells of one event at each look."""

    def __init__(self) -> None:
        self._is_settled = True

    def wait(self, timeout: float) -> bool:
        assert timeout > 0
        self._is_settled = not self._is_settled
        return not self._is_settled


def events_of(looks: Sequence[Sequence[Assessment]]) -> list[tuple[str, str]]:
    """What is told where each look finds what comes next in ``looks``."""
    left = iter(looks)

    def look() -> Sequence[Assessment]:
        try:
            return next(left)
        except StopIteration as error:
            raise EndOfScriptError from error

    told: list[tuple[str, str]] = []
    events = watch(look, ScriptedMonitor())
    with suppress(EndOfScriptError):
        while True:
            event = next(events)
            told.append((event.happening.value, event.assessment.disk.node.name))
    return told


def assessments(tree: DeviceTree) -> list[Assessment]:
    return [assess(disk, kernel=tree.kernel) for disk in tree.disks().values()]


def test_what_comes_changes_and_goes_is_told_once(tmp_path: Path) -> None:
    tree = DeviceTree(tmp_path / "machine")
    tree.add_disk(devicetree.NVME, "259:0")
    before = assessments(tree)
    stick = tree.add_disk(devicetree.USB_STICK, "8:48")
    with_stick = assessments(tree)
    tree.add_partition(stick, 1, "8:49")
    tree.mount("8:49", "/media/stick", "/dev/sdd1")
    mounted = assessments(tree)
    assert events_of([before, before, with_stick, mounted, mounted, before]) == [
        ("present", "nvme0n1"),
        ("added", "sdd"),
        ("changed", "sdd"),
        ("removed", "sdd"),
    ]


def test_another_disk_with_the_same_number_is_one_gone_and_one_come(tmp_path: Path) -> None:
    looks = []
    for name, path in (("one", devicetree.USB_STICK), ("two", devicetree.USB_BEHIND_HUB)):
        tree = DeviceTree(tmp_path / name)
        tree.add_disk(path, "8:48")
        looks.append(assessments(tree))
    assert events_of(looks) == [("present", "sdd"), ("removed", "sdd"), ("added", "sde")]


@pytest.fixture
def watching() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "balenaflash", "devices", "--watch", "--json"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    yield process
    process.kill()
    process.communicate()


def next_event_of(process: subprocess.Popen[bytes], node: Path) -> str:
    """What is told next of ``node``, within 20 seconds."""
    assert process.stdout is not None
    while select.select([process.stdout], [], [], 20)[0]:
        line = json.loads(process.stdout.readline())
        if line["device"]["node"] == str(node):
            return str(line["event"])
    raise AssertionError("nothing was told")


def test_a_loop_device_is_told_of_as_it_comes_and_goes_and_ctrl_c_ends_it(
    attach_loop: AttachLoop, tmp_path: Path, watching: subprocess.Popen[bytes]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.touch()
        os.truncate(path, 48 * MIB)
    # Whether it was there at the start depends on who was faster; after it watching has begun.
    assert next_event_of(watching, attach_loop(first)) in {"present", "added"}
    node = attach(second)
    try:
        assert next_event_of(watching, node) == "added"
    finally:
        detach(node, second)
    assert next_event_of(watching, node) == "removed"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == -signal.SIGINT
