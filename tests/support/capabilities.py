"""What a test may need from the machine, and how the kernel answers whether it is there."""

import ctypes
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import loopdev

REQUIRED_IN_CI = frozenset({"loop devices", "FUSE"})
"""Where ``CI=true`` is set, tests that need one of these fail instead of being skipped."""

NEEDED_BY_FIXTURE = {
    "attach_loop": ("loop devices",),
    "fault_device": ("loop devices", "FUSE"),
    "image": ("dosfstools", "e2fsprogs", "mtools", "parted"),
}
"""Fixture name to what each test that uses it needs, without a marker of its own."""

SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian keeps mkfs and friends; not in the PATH of its ordinary users."""

SEVEN_ZIP = "7z" if shutil.which("7z") else "7zz"
"""The program of 7-Zip: Debian 12 calls it 7zz, others 7z."""

_MNT_DETACH = 2  # umount2(2), linux/fs.h
_MS_NOSUID = 2  # mount(2), linux/mount.h
_MS_NODEV = 4
_LOOP_CTL_GET_FREE = 0x4C82  # linux/loop.h


def extend_path() -> None:
    """Let tests, and what they run, find the tools of an administrator by name."""
    present = os.environ.get("PATH", os.defpath).split(os.pathsep)
    missing = [directory for directory in SYSTEM_DIRECTORIES if directory not in present]
    os.environ["PATH"] = os.pathsep.join(present + missing)


@cache
def reason_missing(capability: str) -> str | None:
    """Why ``capability`` is not there, in a few words; ``None`` when it is.

    Raises:
        KeyError: no capability has that name, so a marker is misspelt.
    """
    return _PROBES[capability]()


def _tools(*names: str) -> Callable[[], str | None]:
    def probe() -> str | None:
        absent = [name for name in names if shutil.which(name) is None]
        return f"no program {', '.join(absent)}" if absent else None

    return probe


def _probe_root() -> str | None:
    return "not run by root" if os.geteuid() else None


def _probe_loop_devices() -> str | None:
    """Attach one: containers often have the nodes and not the permission."""
    if not Path("/dev/loop-control").exists():
        return "no /dev/loop-control"
    if shutil.which("losetup") is None:
        return "no program losetup"
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/loop-control: {error.strerror}"
    try:
        fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    except OSError as error:
        return f"no free loop device: {error.strerror}"
    finally:
        os.close(control)
    with tempfile.NamedTemporaryFile() as backing:
        backing.truncate(1 << 20)
        try:
            node = loopdev.attach(Path(backing.name))
        except loopdev.AttachError as error:
            return str(error)
        loopdev.detach(node, Path(backing.name))
    return None


def _probe_fuse() -> str | None:
    """Mount one: root of a user namespace may open /dev/fuse and not mount it here."""
    try:
        channel = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={channel},rootmode=40000,user_id=0,group_id=0".encode()
    try:
        with tempfile.TemporaryDirectory() as directory:
            point = directory.encode()
            if libc.mount(b"probe", point, b"fuse", _MS_NOSUID | _MS_NODEV, options):
                return f"mount: {os.strerror(ctypes.get_errno())}"
            libc.umount2(point, _MNT_DETACH)
    finally:
        os.close(channel)
    return None


SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's own, which has the bindings of its libraries."""


def _probe_libnm() -> str | None:
    if shutil.which(SYSTEM_PYTHON) is None:
        return f"no {SYSTEM_PYTHON}"
    code = "import gi; gi.require_version('NM', '1.0'); from gi.repository import NM"
    run = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, check=False)
    return "no python3-gi with gir1.2-nm-1.0" if run.returncode else None


def _probe_qemu() -> str | None:
    needed = ("qemu-system-x86_64", "apt-get", "dpkg-deb", "cpio", "udevadm", "lsblk", "mount")
    missing = _tools(*needed)()
    return f"{missing}; apt-get install cpio mount qemu-system-x86 udev" if missing else None


_PROBES: dict[str, Callable[[], str | None]] = {
    "root": _probe_root,
    "QEMU": _probe_qemu,
    "loop devices": _probe_loop_devices,
    "FUSE": _probe_fuse,
    "GNU time": _tools("/usr/bin/time"),
    "bash": _tools("bash"),
    "bmaptool": _tools("bmaptool"),
    "compressors": _tools("bzip2", "gzip", "lbzip2", "pigz", "pzstd", "xz", "zstd"),
    "dosfstools": _tools("mkfs.vfat", "fsck.vfat"),
    "e2fsprogs": _tools("mkfs.ext4", "e2fsck", "debugfs"),
    "fish": _tools("fish"),
    "fdisk": _tools("sfdisk"),
    "gdisk": _tools("sgdisk"),
    "jq": _tools("jq"),
    "libnm": _probe_libnm,
    "man": _tools("man"),
    "mtools": _tools("mcopy", "mdir", "mtype"),
    "netpbm": _tools("pnmtopng"),
    "nmcli": _tools("nmcli"),
    "node": _tools("node"),
    "openssl": _tools("openssl"),
    "umockdev": _tools("umockdev-run"),
    "parted": _tools("parted"),
    "zsh": _tools("zsh"),
    "zip tools": _tools(SEVEN_ZIP, "bsdtar", "unzip", "zip"),
    "util-linux": _tools("blkid", "lsblk", "losetup", "mount", "swapon"),
}
