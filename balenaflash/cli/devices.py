"""``devices``: the disks of this machine, names for USB ports, and the probe of a disk's size."""

from collections.abc import Mapping

import click

from balenaflash.cli.output import (
    Answer,
    printable,
    problem_result,
    say,
    say_json,
    size_text,
    table_lines,
)
from balenaflash.cli.session import LazyGroup, Session, with_session, words_of_command_line
from balenaflash.errors import refusal
from balenaflash.targets import disk_names
from balenaflash.targets.disk_names import read_slots
from balenaflash.targets.disks import Disk, find_disk, list_disks
from balenaflash.targets.safety import Assessment, assess_all
from balenaflash.targets.sysfs import RUNNING_KERNEL
from balenaflash.targets.udev import PyudevMonitor
from balenaflash.targets.watch import DiskEvent, watch
from balenaflash.units import format_size


@click.group(
    cls=LazyGroup,
    summaries={
        "probe": "Check that TARGET has the capacity that it claims; counterfeit cards do not."
    },
    invoke_without_command=True,
    subcommand_metavar="[COMMAND [ARGS]...]",
)
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Also list refused disks, with the reasons."
)
@click.option("-b", "--bytes", "exact", is_flag=True, help="Print sizes in bytes.")
@click.option(
    "-w",
    "--watch",
    "watches",
    is_flag=True,
    help="Keep running, and report each disk that is added, changed or removed.",
)
@with_session
def devices(session: Session, *, everything: bool, exact: bool, watches: bool) -> Answer:
    """List the disks that `write` accepts; with --all also those it refuses, with the reasons.

    A built-in disk is refused unless `write --allow-internal` is given. A virtual device (loop,
    LVM, md, ZFS volume, nbd) is refused unless `write` names its node: it may belong to a virtual
    machine. --json lists all disks. With --watch each disk, and then each event, is one line of
    JSON.

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
        return tell_events(session, everything=everything)

    assessments = assess_all(list_disks())
    slots = _slots_by_port()
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


@devices.command("name")
@click.argument("port")
@click.argument("name", required=False)
@click.option(
    "--remove", "removes", is_flag=True, help="Remove the slot whose name is given as PORT."
)
@with_session
def name_port(_session: Session, *, port: str, name: str | None, removes: bool) -> Answer:
    """Give the USB port PORT the name of a slot, for `write IMAGE slot:NAME`.

    PORT is a port as `devices` shows it, such as 1-2.3, or the node of a disk that is plugged into
    it. Names are stored in ~/.config/balenaflash/slots.toml or, by root, for all users in
    /etc/balenaflash/slots.toml.

    \b
    Examples:
      balenaflash devices name 1-2.3 left
      balenaflash devices name /dev/sdb right
      balenaflash devices name --remove left
    """
    path = disk_names.own_file()
    if removes:
        if name is not None:
            raise click.UsageError("With --remove there is one argument: the name.")
        disk_names.name_port(path, port, None)
        return Answer(
            {"slot": port, "port": None, "file": str(path)}, [f"{path}: removed slot {port}."]
        )
    if name is None:
        raise click.UsageError("Missing argument 'NAME'.")
    found = _port_of(port)
    with words_of_command_line():
        disk_names.check_name(name)
        disk_names.check_port(found)
    disk_names.name_port(path, name, found)
    line = f"{path}: port {found} is now slot:{name}."
    return Answer({"slot": name, "port": found, "file": str(path)}, [line])


def _port_of(text: str) -> str:
    """The port in ``text``, or the port of the disk whose node it is.

    Raises:
        TargetRefusedError: the disk is missing, or not on USB.
    """
    if not text.startswith("/"):
        return text

    disk = find_disk(text)
    if disk.usb_port is None:
        raise refusal(
            "target-without-port",
            f"{disk.node}: is not in a USB port ({disk.bus})",
            "Only USB ports have names.",
        )
    return disk.usb_port


_NO_UDEVD = "udevd is not running: labels, filesystems and by-* links of disks are unknown."


def verdict(assessment: Assessment) -> str:
    """Reasons against writing a disk, as codes, or "may be written"."""
    return "; ".join(problem.code for problem in assessment.problems) or "may be written"


def _slots_by_port() -> dict[str, str]:
    return {port: name for name, port in read_slots().items()}


def _model(disk: Disk) -> str:
    return " ".join(part for part in (disk.vendor, disk.model) if part)


def place_of(disk: Disk, slots: Mapping[str, str]) -> str:
    """The slot of a disk, otherwise its USB port; ``slots`` has names by port."""
    port = disk.usb_port or ""
    return f"slot:{slots[port]}" if port in slots else f"port:{port}" if port else ""


def _lines(assessments: list[Assessment], slots: Mapping[str, str], *, exact: bool) -> list[str]:
    rows = []
    for item in assessments:
        disk = item.disk
        rows.append(
            [
                str(disk.node),
                size_text(disk.size, exact=exact),
                disk.bus.value,
                printable(_model(disk)),
                printable(disk.serial or ""),
                place_of(disk, slots),
                verdict(item),
            ]
        )
    heads = ("Device", "Size", "Bus", "Model", "Serial", "Place", "")
    lines = table_lines(heads, rows, right=frozenset({1}))
    details = [f"  {problem.message}" for item in assessments for problem in item.problems]
    return [*lines, *([""] if details else []), *details]


def device_result(assessment: Assessment, slots: Mapping[str, str]) -> dict[str, object]:
    """A disk, for scripts; ``slots`` has names by port."""
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


_SIGNS = {"present": " ", "added": "+", "changed": "*", "removed": "-"}


def tell_events(session: Session, *, everything: bool) -> Answer:
    """Report the disks and each event until a signal ends it.

    Disks that are present at the start and refused are reported only with ``everything`` or JSON.
    """
    slots = _slots_by_port()
    for event in watch(lambda: assess_all(list_disks()), PyudevMonitor()):
        if session.json:
            device = device_result(event.assessment, slots)
            say_json({"event": event.happening.value, "device": device})
        elif everything or event.assessment.is_writable or event.happening != "present":
            say(_line(event, slots), err=False)
    return Answer({})


def _line(event: DiskEvent, slots: Mapping[str, str]) -> str:
    disk = event.assessment.disk
    facts = [
        str(disk.node),
        format_size(disk.size),
        disk.bus.value,
        _model(disk),
        disk.serial or "",
    ]
    facts.append(place_of(disk, slots))
    now = "gone" if event.happening == "removed" else verdict(event.assessment)
    shown = "  ".join(filter(None, facts))
    return f"{_SIGNS[event.happening.value]} {shown}: {now}"
