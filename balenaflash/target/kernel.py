"""Where the kernel tells about its devices, and how it numbers them."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

_DELETED = " (deleted)"  # appended by the kernel to a path that was removed


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

        A node that was removed, or that another mount namespace sees, is looked up by
        its name: devtmpfs calls it as sysfs does, with ``!`` for ``/``.
        """
        path = self._locate(node)
        if not path.is_absolute():
            return None  # the source of a mount may be any text
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

    def _locate(self, node: str) -> Path:
        path = Path(node)
        if path.is_relative_to("/dev"):
            return self.dev / path.relative_to("/dev")
        return path


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        # Absent here, or a file where this user may not look, such as the one below
        # somebody else's loop device. Nodes are where everybody may look.
        return None


RUNNING_KERNEL = Kernel()
"""The kernel this program runs under."""
