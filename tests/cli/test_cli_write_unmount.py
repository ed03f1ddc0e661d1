"""``write --unmount``: what is mounted of a disk is unmounted, or who is in the way is named."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from imagecopies import MakeImage
from loopdev import AttachLoop
from mountlock import no_copies_of_mounts
from refusals import holding, sha256, started

from balenaflash.errors import TargetRefusedError
from balenaflash.targets.disks import find_disk
from balenaflash.targets.unmount import unmount_all
from balenaflash.units import MIB

pytestmark = pytest.mark.needs("root", "e2fsprogs", "util-linux")


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture
def backing(gpt: BuiltImage, tmp_path: Path) -> Path:
    """A disk with a filesystem and a file in it."""
    folder = tmp_path / "content"
    folder.mkdir()
    (folder / "file").write_text("content")
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, -(-gpt.path.stat().st_size // MIB) * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", folder, path], check=True)
    return path


@pytest.fixture
def node(backing: Path, attach_loop: AttachLoop) -> Path:
    return attach_loop(backing)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator["Mounter"]:
    with no_copies_of_mounts(), ExitStack() as stack:
        yield Mounter(tmp_path, stack)


MAPPED = (
    "import ctypes; file = os.open('{point}/file', os.O_RDONLY);"
    # Readable and private; Python's own mmap keeps a descriptor.
    "ctypes.CDLL(None).mmap(None, 1, 1, 2, file, 0); os.close(file)"
)


class Mounter:
    """Mounts things, and leaves none of it behind."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def __call__(self, *source: str | Path, at: Path | None = None) -> Path:
        point = at or self._folder / "point"
        point.mkdir(exist_ok=True)
        subprocess.run(["mount", *source, point], check=True)
        command: list[str | Path] = ["umount", "--lazy", point]
        self._stack.callback(subprocess.run, command, check=False, capture_output=True)
        return point

    def read_only(self, node: Path, *, at: Path | None = None) -> Path:
        """Without a journal replay: so only the tool could change a byte."""
        return self("-o", "ro,noload", node, at=at)


def is_mounted(node: Path) -> bool:
    said = subprocess.run(["findmnt", "--source", node], capture_output=True, check=False)
    return said.returncode == 0


def test_all_mounts_of_a_disk_are_unmounted_and_it_is_written(
    gpt: BuiltImage, node: Path, mount: Mounter, tmp_path: Path, balenaflash: RunBalenaflash
) -> None:
    points = [mount(node, at=tmp_path / name) for name in ("point", "name with spaces")]
    (points[0] / "inner").mkdir()
    points.append(mount("--bind", points[0], at=points[0] / "inner"))
    run = balenaflash("write", "--yes", "--unmount", gpt.path, node)
    assert run.returncode == 0, run.stderr
    assert not is_mounted(node)
    unmounted = [line for line in run.stderr.splitlines() if line.startswith("Unmounted ")]
    assert unmounted == [f"Unmounted {point}" for point in reversed(points)]
    assert balenaflash("verify", gpt.path, node).returncode == 0


def test_the_question_tells_what_is_mounted_and_no_leaves_it_mounted(
    gpt: BuiltImage, node: Path, backing: Path, mount: Mounter, balenaflash: RunBalenaflash
) -> None:
    point = mount.read_only(node)
    before = sha256(backing)
    run = balenaflash("write", "--unmount", gpt.path, node)
    assert (run.returncode, run.stdout) == (4, "")
    assert f"{node.name} is mounted at {point}" in run.stderr
    assert "unmount what is mounted" in run.stderr
    run = balenaflash("write", "--unmount", "--dry-run", gpt.path, node)
    assert run.returncode == 0, run.stderr
    assert "unmount what is mounted" in run.stdout
    assert point.is_mount()
    assert sha256(backing) == before


@pytest.mark.parametrize(
    ("statement", "deed"),
    [
        ("file = open('{point}/file')", "has {point}/file open"),
        ("os.chdir('{point}')", "works in {point}"),
        (
            MAPPED,
            "has {point}/file open",
        ),
    ],
)
def test_who_is_in_the_way_is_named_and_no_byte_changes(
    statement: str,
    deed: str,
    gpt: BuiltImage,
    node: Path,
    backing: Path,
    mount: Mounter,
    balenaflash: RunBalenaflash,
) -> None:
    point = mount.read_only(node)
    before = sha256(backing)
    with started(holding(statement.format(point=point))) as pid:
        run = balenaflash("write", "--yes", "--unmount", "--json", gpt.path, node)
    assert run.returncode == 4, run.stderr
    [error] = json.loads(run.stdout)["errors"]
    assert error["code"] == "target-mounted"
    assert f"stays mounted at {point}: " in error["message"]
    assert f"(process {pid}) {deed.format(point=point)}" in error["message"]
    assert point.is_mount()
    assert sha256(backing) == before


def test_a_loop_device_over_a_file_on_the_disk_is_named(
    node: Path, mount: Mounter, attach_loop: AttachLoop
) -> None:
    point = mount.read_only(node)
    upper = attach_loop(point / "file", read_only=True)
    try:
        with pytest.raises(TargetRefusedError, match=f"{upper} is a loop device of {point}/file"):
            unmount_all(find_disk(node))
    finally:
        subprocess.run(["losetup", "--detach", upper], check=True)


def test_a_user_who_ends_in_time_is_waited_for(node: Path, mount: Mounter) -> None:
    point = mount.read_only(node)
    with started(holding(f"file = open('{point}/file')")) as pid:
        timer = threading.Timer(0.5, os.kill, (pid, 9))
        timer.start()
        assert unmount_all(find_disk(node)) == (str(point),)
        timer.join()


def test_a_mount_inside_that_is_not_the_disks_stays_and_is_named(
    node: Path, mount: Mounter
) -> None:
    point = mount(node)
    (point / "inner").mkdir()
    inner = mount("-t", "tmpfs", "none", at=point / "inner")
    with pytest.raises(
        TargetRefusedError, match=f"other filesystems are mounted in it, at {inner}"
    ):
        unmount_all(find_disk(node))
    assert inner.is_mount()
    assert is_mounted(node)


def test_a_mount_over_the_disks_own_is_not_unmounted_in_its_place(
    node: Path, mount: Mounter
) -> None:
    point = mount.read_only(node)
    mount("-t", "tmpfs", "none", at=point)
    (point / "precious").touch()
    with pytest.raises(TargetRefusedError, match="another filesystem is mounted over it"):
        unmount_all(find_disk(node))
    assert (point / "precious").exists()


def test_what_stands_on_the_disk_is_not_lifted(
    gpt: BuiltImage,
    node: Path,
    attach_loop: AttachLoop,
    mount: Mounter,
    balenaflash: RunBalenaflash,
) -> None:
    upper = attach_loop(node)
    point = mount.read_only(upper)
    run = balenaflash("write", "--yes", "--unmount", "--json", gpt.path, node)
    codes = [error["code"] for error in json.loads(run.stdout)["errors"]]
    assert (run.returncode, codes) == (4, ["target-held"])
    assert point.is_mount()


def test_the_boot_partition_of_a_mounted_card_is_edited_after_unmounting_it(
    gpt: BuiltImage, attach_loop: AttachLoop, mount: Mounter, balenaflash: RunBalenaflash
) -> None:
    node = attach_loop(gpt.path)
    data = next(each for each in gpt.partitions if each.filesystem == "ext4")
    offset = f"ro,noload,offset={data.extent.start},sizelimit={data.extent.size}"
    point = mount("-t", "ext4", "-o", f"loop,{offset}", node)
    run = balenaflash("boot", "mkdir", "--yes", "--unmount", node, "/new")
    # The loop device that mount made stands on the card; only umount removes it.
    assert run.returncode == 4, run.stderr
    assert "is used by other devices" in run.stderr
    subprocess.run(["umount", point], check=True)
    assert balenaflash("boot", "mkdir", "--yes", "--unmount", node, "/new").returncode == 0


# As an ordinary user


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder where anybody may look, which those of tests are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("has_udisks", [True, False])
def test_an_ordinary_user_asks_udisks_or_is_told_that_it_is_missing(
    has_udisks: bool,  # noqa: FBT001 - pytest calls it so
    node: Path,
    open_folder: Path,
    mount: Mounter,
) -> None:
    point = mount.read_only(node, at=open_folder / "point")
    asked = open_folder / "asked"
    asked.touch()
    asked.chmod(0o666)
    programs = open_folder / "bin"
    programs.mkdir()
    if has_udisks:
        script = programs / "udisksctl"
        script.write_text(f'#!/bin/sh\necho "$@" >> {asked}\necho "Error: no agent" >&2; exit 1\n')
        script.chmod(0o755)
    code = (
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        f"unmount_all(find_disk({str(node)!r}))"
    )
    imports = (
        # Nobody but root may be able to read the interpreter's own files later.
        "import encodings.ascii\n"
        "from balenaflash.targets.disks import find_disk\n"
        "from balenaflash.targets.unmount import unmount_all\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", imports + code],
        env={**clean_environment(), "PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TargetRefusedError" in run.stderr, run.stderr
    assert f"stays mounted at {point}" in run.stderr
    calls = asked.read_text().splitlines()
    expected = f"unmount --no-user-interaction --block-device {node}"
    assert set(calls) == ({expected} if has_udisks else set())
    assert point.is_mount()
