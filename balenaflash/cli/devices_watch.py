"""``devices --watch``: a line for each disk, and for each event after it."""

from typing import TYPE_CHECKING

from balenaflash.cli.answer import Answer, say, say_json
from balenaflash.cli.devices import device_result, place_of, verdict
from balenaflash.cli.session import Session
from balenaflash.units import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balenaflash.targets.watch import DiskEvent

_SIGNS = {"present": " ", "added": "+", "changed": "*", "removed": "-"}


def tell_events(session: Session, *, everything: bool) -> Answer:
    """Tell of the disks, and of what becomes of them, until a signal ends it.

    Of those that are there at the start and may not be written only with ``everything``, or to
    scripts.
    """
    from balenaflash.targets.disks import list_disks
    from balenaflash.targets.names import read_slots
    from balenaflash.targets.safety import assess_all
    from balenaflash.targets.udev import PyudevMonitor
    from balenaflash.targets.watch import watch

    slots = {port: name for name, port in read_slots().items()}
    events = watch(lambda: assess_all(list_disks()), PyudevMonitor())
    for event in events:
        if session.json:
            say_json(_result(event, slots))
        elif everything or event.assessment.is_writable or event.happening != "present":
            say(_line(event, slots), err=False)
    return Answer({})


def _result(event: "DiskEvent", slots: "Mapping[str, str]") -> dict[str, object]:
    return {"event": event.happening.value, "device": device_result(event.assessment, slots)}


def _line(event: "DiskEvent", slots: "Mapping[str, str]") -> str:
    disk = event.assessment.disk
    model = " ".join(part for part in (disk.vendor, disk.model) if part)
    facts = [str(disk.node), format_size(disk.size), disk.bus.value, model, disk.serial or ""]
    facts.append(place_of(disk, slots))
    now = "gone" if event.happening == "removed" else verdict(event.assessment)
    shown = "  ".join(filter(None, facts))
    return f"{_SIGNS[event.happening.value]} {shown}: {now}"
