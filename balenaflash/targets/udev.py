"""udev, by libudev: what it knows of block devices, and what it tells when they come and go.

Without udevd both are what the kernel says itself.
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
    """What udev has about one device; without udevd just what the kernel announced."""

    properties: Mapping[str, str] = field(default_factory=dict)
    links: tuple[Path, ...] = ()

    def read_text(self, *names: str) -> str | None:
        """The first of the properties that has a value, with escapes undone, fit to print."""
        for name in names:
            text = clean_udev_text(self.properties.get(name, ""))
            if text is not None:
                return text
        return None


class UdevDatabase(Protocol):
    """Where devices are found; another one stands in for another machine."""

    def list_disks(self) -> list[Path]:
        """The directories of all whole block devices, below ``/sys/devices``."""

    def read(self, directory: Path) -> UdevRecord:
        """What is known about one block device; an empty record if it is gone."""


class PyudevDatabase:
    """The devices of the running system, by libudev."""

    def __init__(self) -> None:
        self._context = _open_context()

    def list_disks(self) -> list[Path]:
        """The directories of all whole block devices."""
        devices = self._context.list_devices(subsystem="block", DEVTYPE="disk")
        return [Path(device.sys_path) for device in devices]

    def read(self, directory: Path) -> UdevRecord:
        """What libudev knows about one block device."""
        try:
            device = pyudev.Devices.from_sys_path(self._context, str(directory))
        except pyudev.DeviceNotFoundError:
            return UdevRecord()
        return UdevRecord(dict(device.properties), tuple(sorted(map(Path, device.device_links))))


class DeviceMonitor(Protocol):
    """Tells when block devices come, change and go; another one stands in for a test."""

    def wait(self, timeout: float) -> bool:
        """Wait until something happened, ``timeout`` seconds at most; whether it did."""


class PyudevMonitor:
    """The events of the running system, by libudev."""

    def __init__(self, kernel: Kernel = RUNNING_KERNEL) -> None:
        """Listen from now on: to udevd, which speaks when it has looked at a device, if it runs.

        Raises:
            ToolMissingError: libudev is not installed.
        """
        source = "udev" if kernel.has_udevd else "kernel"
        self._monitor = pyudev.Monitor.from_netlink(_open_context(), source=source)
        self._monitor.filter_by("block")
        self._monitor.start()

    def wait(self, timeout: float) -> bool:
        """Wait for an event; those that are waiting already are taken with it."""
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
