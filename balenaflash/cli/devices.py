"""``devices``: what could be written, and why the rest may not."""

from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, printable, problem_result
from balenaflash.cli.lazy import LazyGroup
from balenaflash.cli.session import Session, with_session
from balenaflash.cli.text import size_text, table_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balenaflash.targets.disks import Disk
    from balenaflash.targets.safety import Assessment


@click.group(
    cls=LazyGroup,
    places={"name": "devices_name:name_port", "probe": "devices_probe:probe"},
    invoke_without_command=True,
    subcommand_metavar="[COMMAND [ARGS]...]",
)
@click.option("-a", "--all", "everything", is_flag=True, help="List refused disks too, with why.")
@click.option("-b", "--bytes", "exact", is_flag=True, help="Print sizes in bytes.")
@click.option(
    "-w",
    "--watch",
    "watches",
    is_flag=True,
    help="Go on, and tell of each disk that comes, changes and goes, until interrupted.",
)
@with_session
def devices(session: Session, *, everything: bool, exact: bool, watches: bool) -> Answer:
    """List the disks that `write` accepts, and with --all those it refuses, and why.

    A built-in disk is refused until `write --allow-internal` names it, and a virtual device (loop,
    LVM, md, ZFS volume, nbd) until `write` names its node: it may be a virtual machine's. With
    --json all disks are listed; with --watch too, each on a line of its own as it is now, and each
    event after it.

    \b
    Examples:
      balenaflash devices
      balenaflash devices --all
      balenaflash devices --watch
      balenaflash devices name 1-2.3 left
      balenaflash devices probe --destructive /dev/sdX
      balenaflash devices --json | jq -r '.result.devices[] | select(.writable) .node'
    """
    if click.get_current_context().invoked_subcommand is not None:
        return Answer({})
    if watches:
        from balenaflash.cli.devices_watch import tell_events

        return tell_events(session, everything=everything)
    from balenaflash.targets.disks import list_disks
    from balenaflash.targets.names import read_slots
    from balenaflash.targets.safety import assess_all
    from balenaflash.targets.sysfs import RUNNING_KERNEL

    assessments = assess_all(list_disks())
    slots = {port: name for name, port in read_slots().items()}
    result = {
        "devices": [device_result(assessment, slots) for assessment in assessments],
        "udevd": RUNNING_KERNEL.has_udevd,
    }
    shown = [item for item in assessments if everything or item.is_writable]
    lines = (
        _lines(shown, slots, exact=exact) if shown else ["No disk that may be written was found."]
    )
    hidden = len(assessments) - len(shown)
    if hidden:
        lines.append(f"{hidden} more would be refused; --all shows why.")
    warnings = () if RUNNING_KERNEL.has_udevd else (_NO_UDEVD,)
    return Answer(result, lines, warnings)


_NO_UDEVD = "udevd does not run: labels and filesystems of disks are not known, nor are by-* links."


def verdict(assessment: "Assessment") -> str:
    """Whether it may be written, in a few words."""
    return "; ".join(problem.code for problem in assessment.problems) or "may be written"


def place_of(disk: "Disk", slots: "Mapping[str, str]") -> str:
    """The slot that it is in, or else the USB port; ``slots`` has names by port."""
    port = disk.usb_port or ""
    return f"slot:{slots[port]}" if port in slots else f"port:{port}" if port else ""


def _lines(
    assessments: "list[Assessment]", slots: "Mapping[str, str]", *, exact: bool
) -> list[str]:
    rows = []
    for item in assessments:
        disk = item.disk
        model = " ".join(part for part in (disk.vendor, disk.model) if part)
        rows.append(
            [
                str(disk.node),
                size_text(disk.size, exact=exact),
                disk.bus.value,
                printable(model),
                printable(disk.serial or ""),
                place_of(disk, slots),
                verdict(item),
            ]
        )
    heads = ("Device", "Size", "Bus", "Model", "Serial", "Place", "")
    lines = table_lines(heads, rows, right=frozenset({1}))
    details = [f"  {problem.message}" for item in assessments for problem in item.problems]
    return [*lines, *([""] if details else []), *details]


def device_result(assessment: "Assessment", slots: "Mapping[str, str]") -> dict[str, object]:
    """What scripts get of a disk; ``slots`` has names by port."""
    disk = assessment.disk
    return {
        "node": str(disk.node),
        "size": disk.size,
        "logical_sector_size": disk.logical_sector_size,
        "physical_sector_size": disk.physical_sector_size,
        "bus": disk.bus.value,
        "vendor": disk.vendor,
        "model": disk.model,
        "serial": disk.serial,
        "wwn": disk.wwn,
        "removable": disk.removable,
        "read_only": disk.read_only,
        "rotational": disk.rotational,
        "disk_sequence": disk.disk_sequence,
        "usb_port": disk.usb_port,
        "usb_speed": disk.usb_speed,
        "slot": slots.get(disk.usb_port or ""),
        "mmc_cid": disk.mmc_cid,
        "links": [str(link) for link in disk.links],
        "partitions": [
            {
                "node": str(part.node),
                "number": part.number,
                "size": part.size,
                "label": part.label,
                "filesystem": part.filesystem,
            }
            for part in disk.partitions
        ],
        "uses": [
            {"kind": use.kind.value, "device": use.device, "detail": use.detail}
            for use in assessment.uses
        ],
        "writable": assessment.is_writable,
        "refusals": [problem_result(problem) for problem in assessment.problems],
    }
