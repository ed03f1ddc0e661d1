"""Events of disks: added, changed, removed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from balenaflash.targets.safety import Assessment
from balenaflash.targets.sysfs import DeviceNumber
from balenaflash.targets.udev import DeviceMonitor

_INTERVAL = 1.0
"""Seconds between two looks at the disks without an event: a mount causes none."""

_SETTLING = 0.2
"""Seconds without an event after which all events of a disk and its partitions have arrived."""


class Happening(StrEnum):
    """The kind of an event."""

    PRESENT = "present"
    """It was there when watching began."""

    ADDED = "added"
    CHANGED = "changed"
    """Its medium, its content or its uses changed."""

    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class DiskEvent:
    """An event of a disk."""

    happening: Happening
    assessment: Assessment
    """The disk as it is now; a removed disk as it was last."""


def watch(look: Callable[[], Sequence[Assessment]], monitor: DeviceMonitor) -> Iterator[DiskEvent]:
    """An event for each disk that ``look`` returns, then without end events of changes."""
    known: dict[DeviceNumber, Assessment] = {}
    for assessment in look():
        known[assessment.disk.device_number] = assessment
        yield DiskEvent(Happening.PRESENT, assessment)
    while True:
        if monitor.wait(_INTERVAL):
            while monitor.wait(_SETTLING):
                pass
        found = {each.disk.device_number: each for each in look()}
        yield from _compare(known, found)
        known = found


def _compare(
    known: Mapping[DeviceNumber, Assessment], found: Mapping[DeviceNumber, Assessment]
) -> Iterator[DiskEvent]:
    for number, before in known.items():
        now = found.get(number)
        if now is None or _is_another(before, now):
            yield DiskEvent(Happening.REMOVED, before)
    for number, now in found.items():
        last = known.get(number)
        if last is None or _is_another(last, now):
            yield DiskEvent(Happening.ADDED, now)
        elif last != now:
            yield DiskEvent(Happening.CHANGED, now)


def _is_another(before: Assessment, now: Assessment) -> bool:
    """True if another disk has the number: another place, or another serial number."""
    return (before.disk.sys_path, before.disk.serial) != (now.disk.sys_path, now.disk.serial)
