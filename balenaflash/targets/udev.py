"""udev, by libudev: its properties of block devices, and its events when they come and go.

Without a running udevd both are those of the kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyudev

from balenaflash.errors import ToolMissingError
from balenaflash.targets.sysfs import RUNNING_KERNEL, Kernel, clean_udev_text


@dataclass(frozen=True, slots=True)
class UdevRecord:
    """The properties and links of one device; without udevd only those of the kernel."""

    properties: Mapping[str, str] = field(default_factory=dict)
    links: tuple[Path, ...] = ()

    def read_text(self, *names: str) -> str | None:
        """The first of the properties that has a value, as `clean_udev_text` returns it."""
        for name in names:
            text = clean_udev_text(self.properties.get(name, ""))
            if text is not None:
                return text
        return None


class UdevDatabase(Protocol):
    """A source of devices; tests use that of another machine."""

    def list_disks(self) -> list[Path]:
        """The directories of all whole block devices, below ``/sys/devices``."""

    def read(self, directory: Path) -> UdevRecord:
        """The record of one block device; it is empty if the device is gone."""


class PyudevDatabase:
    """The devices of the running system."""

    def __init__(self) -> None:
        self._context = _open_context()

    def list_disks(self) -> list[Path]:
        devices = self._context.list_devices(subsystem="block", DEVTYPE="disk")
        return [Path(device.sys_path) for device in devices]

    def read(self, directory: Path) -> UdevRecord:
        try:
            device = pyudev.Devices.from_sys_path(self._context, str(directory))
        except pyudev.DeviceNotFoundError:
            return UdevRecord()
        return UdevRecord(dict(device.properties), tuple(sorted(map(Path, device.device_links))))


class DeviceMonitor(Protocol):
    """A source of events of block devices."""

    def wait(self, timeout: float) -> bool:
        """Wait for an event, at most ``timeout`` seconds; True if there was one.

        All waiting events count as one.
        """


class PyudevMonitor:
    """The events of the running system, from now on."""

    def __init__(self, kernel: Kernel = RUNNING_KERNEL) -> None:
        """Listen to udevd, which sends an event after it has examined a device, or the kernel.

        Raises:
            ToolMissingError: libudev is not installed.
        """
        source = "udev" if kernel.has_udevd else "kernel"
        self._monitor = pyudev.Monitor.from_netlink(_open_context(), source=source)
        self._monitor.filter_by("block")
        self._monitor.start()

    def wait(self, timeout: float) -> bool:
        event = self._monitor.poll(timeout)
        happened = event is not None
        while event is not None:
            event = self._monitor.poll(0)
        return happened


def _open_context() -> pyudev.Context:
    try:
        return pyudev.Context()
    except ImportError as error:  # pyudev loads libudev only now
        raise ToolMissingError(
            "libudev, which lists block devices, is not installed",
            hint="On Debian: apt install libudev1",
        ) from error
