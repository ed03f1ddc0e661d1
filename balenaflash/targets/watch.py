"""Disks as they come, change and go."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from balenaflash.targets.safety import Assessment
from balenaflash.targets.sysfs import DeviceNumber
from balenaflash.targets.udev import DeviceMonitor

_INTERVAL = 1.0
"""Seconds between two looks at the disks without an event: of a mount there is none."""

_SETTLING = 0.2
"""Seconds without an event after which a disk and its partitions have all been told of."""


class Happening(StrEnum):
    """What became of a disk."""

    PRESENT = "present"
    """It was there when watching began."""

    ADDED = "added"
    CHANGED = "changed"
    """Its medium, what is on it, or what it is in use for."""

    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class DiskEvent:
    """A disk, and what became of it."""

    happening: Happening
    assessment: Assessment
    """As it is now; of a disk that was removed, as it was last."""


def watch(look: Callable[[], Sequence[Assessment]], monitor: DeviceMonitor) -> Iterator[DiskEvent]:
    """The disks that ``look`` finds, then without end what becomes of them."""
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
    """Whether another disk has got the number: it hangs elsewhere, or is of another make."""
    return (before.disk.sys_path, before.disk.serial) != (now.disk.sys_path, now.disk.serial)
