"""Leave a written disk so that it may be taken out."""

from dataclasses import dataclass

from balenaflash.planning import WritePlan
from balenaflash.target.discovery import Disk
from balenaflash.target.ejecting import eject
from balenaflash.target.settling import SettledDisk, settle


@dataclass(frozen=True, slots=True)
class Ending:
    """How a disk was left: flushed, closed, and looked at by nobody any more."""

    settled: SettledDisk
    ejected: bool
    """Whether it was switched off."""

    stays_on: str | None
    """Why it was not, where that was asked for."""


def end(disk: Disk, plan: WritePlan, *, ejects: bool) -> Ending:
    """Wait until kernel and udev know what is on the disk, then switch it off if asked to.

    The disk was written, read back and closed. Nothing here is a failure of that.
    """
    partitions = (*plan.table.partitions, *plan.logical.values())
    settled = settle(disk, [(each.number, each.extent.start) for each in partitions])
    stays_on = eject(disk) if ejects else None
    return Ending(settled, ejects and stays_on is None, stays_on)
