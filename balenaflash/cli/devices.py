"""``devices``: what could be written, and why the rest may not."""

from typing import TYPE_CHECKING

import click

from balenaflash.cli.answer import Answer, printable, problem_result
from balenaflash.cli.session import Session, with_session
from balenaflash.cli.text import size_text, table_lines

if TYPE_CHECKING:
    from balenaflash.safety import Assessment


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="List refused disks too, with why.")
@click.option("-b", "--bytes", "exact", is_flag=True, help="Print sizes in bytes.")
@with_session
def devices(_session: Session, *, everything: bool, exact: bool) -> Answer:
    """List the disks that `write` accepts, and with --all those it refuses, and why.

    A built-in disk is refused until `write --allow-internal` names it. With --json all disks
    are listed.

    \b
    Examples:
      balenaflash devices
      balenaflash devices --all
      balenaflash devices --json | jq -r '.result.devices[] | select(.writable) .node'
    """
    from balenaflash.safety import assess
    from balenaflash.target.discovery import list_disks

    assessments = [assess(disk) for disk in list_disks()]
    result = {"devices": [_device_result(assessment) for assessment in assessments]}
    shown = [item for item in assessments if everything or item.is_writable]
    lines = _lines(shown, exact=exact) if shown else ["No disk that may be written was found."]
    hidden = len(assessments) - len(shown)
    if hidden:
        lines.append(f"{hidden} more would be refused; --all shows why.")
    return Answer(result, lines)


def _lines(assessments: "list[Assessment]", *, exact: bool) -> list[str]:
    rows = []
    for item in assessments:
        disk = item.disk
        model = " ".join(part for part in (disk.vendor, disk.model) if part)
        verdict = "; ".join(problem.code for problem in item.problems) or "may be written"
        rows.append(
            [
                str(disk.node),
                size_text(disk.size, exact=exact),
                disk.bus.value,
                printable(model),
                printable(disk.serial or ""),
                verdict,
            ]
        )
    heads = ("Device", "Size", "Bus", "Model", "Serial", "")
    lines = table_lines(heads, rows, right=frozenset({1}))
    details = [f"  {problem.message}" for item in assessments for problem in item.problems]
    return [*lines, *([""] if details else []), *details]


def _device_result(assessment: "Assessment") -> dict[str, object]:
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
