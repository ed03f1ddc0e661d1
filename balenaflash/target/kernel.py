"""Where the kernel tells about its devices, and how it numbers them."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

_DELETED = " (deleted)"  # appended by the kernel to a path that was removed
_SHARED_MEMORY = "shm"  # below /dev, a place for files of all users, shm_overview(7)


class DeviceNumber(NamedTuple):
    """The number that names a device to the kernel, whatever its node is called."""

    major: int
    minor: int

    @classmethod
    def from_raw(cls, raw: int) -> Self:
        """The number in ``st_dev`` or ``st_rdev``."""
        return cls(os.major(raw), os.minor(raw))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The number in the form of sysfs and mountinfo, such as ``8:1``."""
        major, minor = text.split(":")
        return cls(int(major), int(minor))

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The directories through which a kernel shows its devices.

    The defaults are those of the running system. A recorded tree of another
    machine is given as other directories.
    """

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    run: Path = Path("/run")

    @property
    def has_udevd(self) -> bool:
        """Whether udevd runs: its control socket exists (libudev asks the same way)."""
        return (self.run / "udev/control").exists()

    def find_directory(self, number: DeviceNumber) -> Path | None:
        """The directory of a block device under ``sys/devices``; ``None`` if there is none."""
        directory = self.sys / "dev/block" / str(number)
        return directory.resolve() if directory.exists() else None

    def find_number(self, node: str) -> DeviceNumber | None:
        """The number of the block device that ``node`` names; ``None`` if it names none.

        ``node`` is what the kernel reports: the source of a mount, a swap area, the file of a
        loop device. Such a file may be on a network that does not answer, and who looks at it
        can then not be killed. So only a path below ``/dev`` is looked at.

        A node that was removed, or that another mount namespace sees, is looked up by
        its name: devtmpfs calls it as sysfs does, with ``!`` for ``/``.
        """
        path = self.locate_node(node)
        if path is None:
            return None
        status = _stat(path)
        if status is not None and stat.S_ISBLK(status.st_mode):
            return DeviceNumber.from_raw(status.st_rdev)
        path = Path(os.path.realpath(path))
        if not path.is_relative_to(self.dev):
            return None
        name = str(path.relative_to(self.dev)).removesuffix(_DELETED).replace("/", "!")
        try:
            text = (self.sys / "class/block" / name / "dev").read_text(encoding="ascii")
        except (FileNotFoundError, NotADirectoryError):
            return None  # not a block device, or one that is gone
        return DeviceNumber.parse(text)

    def find_node(self, usual: Path, number: DeviceNumber) -> Path:
        """The node of the block device ``number``: ``usual``, or one that a container renamed.

        It is ``usual`` also where there is no node of that number.
        """
        status = _stat(usual)
        if status is not None and (not stat.S_ISBLK(status.st_mode) or _is_of(status, number)):
            return usual
        with os.scandir(self.dev) as entries:
            # No link: whatever it leads to has a node of its own, or is not below /dev.
            found = [entry for entry in entries if not entry.is_symlink() and not entry.is_dir()]
        paths = (Path(entry.path) for entry in sorted(found, key=lambda entry: entry.name))
        return next((path for path in paths if self.is_node_of(path, number)), usual)

    def is_node_of(self, path: Path, number: DeviceNumber) -> bool:
        """Whether ``path`` is, or leads to, a node of the block device ``number``."""
        status = _stat(path)
        return status is not None and stat.S_ISBLK(status.st_mode) and _is_of(status, number)

    def locate_node(self, node: str) -> Path | None:
        """Where ``node`` is if it is a node below ``/dev``; ``None`` if it is elsewhere."""
        path = Path(os.path.normpath(node))
        for dev in (Path("/dev"), self.dev):
            if path.is_relative_to(dev):
                name = path.relative_to(dev)
                return None if name.parts[:1] == (_SHARED_MEMORY,) else self.dev / name
        return None


def _is_of(status: os.stat_result, number: DeviceNumber) -> bool:
    return DeviceNumber.from_raw(status.st_rdev) == number


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None  # absent here, or where this user may not look


RUNNING_KERNEL = Kernel()
"""The kernel this program runs under."""
