"""``inspect``: its text for people."""

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from balenaflash.balena.signature import SignatureReport, SignatureState
from balenaflash.cli.disk_map import Canvas, MapRow, draw_map
from balenaflash.cli.network import ssid_text
from balenaflash.cli.output import known, printable, size_text, table_lines
from balenaflash.commands.disk_report import DiskReport, PartitionReport
from balenaflash.commands.flasher_steps import FlasherStep
from balenaflash.commands.inspect import BmapReport, CarriedReport, FilesReport, ImageReport
from balenaflash.edits.fingerprint import FingerprintReport
from balenaflash.edits.network import Network


def layout_lines(layout: DiskReport, canvas: Canvas, *, exact: bool) -> list[str]:
    """The map of the disk, and two tables with exact figures."""
    return [
        *draw_map([_map_row(layout, item) for item in layout.partitions], layout.size, canvas),
        "",
        *_partition_lines(layout, exact=exact),
        "",
        *_filesystem_lines(layout, exact=exact),
    ]


def _map_row(layout: DiskReport, item: PartitionReport) -> MapRow:
    fill = None if item.fill is None else item.fill.used_bytes / item.fill.total_bytes
    partition, is_complete = item.partition, layout.table.is_complete
    return MapRow(
        partition.extent, partition.number, _label(item), partition.kind, fill, is_complete
    )


def _label(item: PartitionReport) -> str:
    return item.partition.name or (item.filesystem.label if item.filesystem else None) or ""


def _partition_lines(layout: DiskReport, *, exact: bool) -> list[str]:
    boot_number = layout.boot.partition.number
    rows = []
    for item in layout.partitions:
        partition = item.partition
        rows.append(
            [
                str(partition.number),
                printable(_label(item)),
                size_text(partition.extent.start, exact=exact),
                size_text(partition.extent.size, exact=exact),
                partition.kind.value,
                partition.type_id,
                "boot partition" if partition.number == boot_number else "",
            ]
        )
    heads = ("No", "Label", "Start", "Size", "Kind", "Type", "")
    return table_lines(heads, rows, right=frozenset({0, 2, 3}))


def _filesystem_lines(layout: DiskReport, *, exact: bool) -> list[str]:
    rows = []
    for item in layout.partitions:
        filesystem, fill = item.filesystem, item.fill
        if filesystem is None:
            continue
        sizes = ["unknown", "unknown"]
        if fill is not None:
            sizes = [size_text(size, exact=exact) for size in (fill.used_bytes, fill.free_bytes)]
        label = printable(filesystem.label or "")
        number = str(item.partition.number)
        rows.append([number, filesystem.type, label, filesystem.uuid or "", *sizes])
    unread = [str(item.partition.number) for item in layout.partitions if not item.was_read]
    heads = ("No", "Filesystem", "Label", "UUID", "Used", "Free")
    lines = table_lines(heads, rows, right=frozenset({0, 4, 5}))
    if unread:
        lines.append(
            f"Partition {', '.join(unread)} was not examined: it is too far into the stream."
        )
    return lines


_NAMED = 5  # paths named in a line; others are counted


def files_lines(files: FilesReport | None, *, exact: bool) -> list[str]:
    """Number of files, their comparison with the fingerprint, and the networks."""
    if files is None:
        return ["Files:      unknown"]
    largest = ""
    if files.largest is not None:
        size = size_text(files.largest.size, exact=exact)
        largest = f", the largest {files.largest.path} ({size})"
    lines = [f"Files:      {files.count}{largest}"]
    lines += [f"            {line}" for line in _fingerprint_lines(files.fingerprint)]
    if files.overwritten:
        lines.append(f"            the next host OS update replaces {_named(files.overwritten)}")
    return [*lines, f"Networks:   {_networks_text(files.networks)}"]


def _fingerprint_lines(report: FingerprintReport | None) -> list[str]:
    if report is None:
        return ["no fingerprint"]
    if report.matches:
        return ["all match the fingerprint"]
    lines = [
        f"{what}: {_named(paths)}"
        for what, paths in (
            ("changed", report.differing),
            ("missing", report.missing),
            ("added", report.new),
        )
        if paths
    ]
    if report.differing is None:
        lines.append("not compared with the fingerprint (use --check-files)")
    return lines


def _networks_text(networks: Sequence[Network]) -> str:
    used = [_network_text(each) for each in networks if each.state == "used"]
    others = [each.state.value for each in networks if each.state != "used"]
    counts = [f"{state}: {others.count(state)}" for state in dict.fromkeys(others)]
    return "; ".join([*(used or ["none"]), *counts])


def _network_text(network: Network) -> str:
    ssid = ssid_text(network.ssid)
    return f"{network.name} ({network.type}{'' if ssid is None else f', SSID {ssid}'})"


def bmap_lines(report: BmapReport | None) -> list[str]:
    """The block map beside the image and its comparison; empty without one."""
    if report is None:
        return []
    if report.fault is not None:
        return [f"Block map:  {report.fault}"]
    if report.differing is None:
        fact = "not compared with the image (use --check-bmap)"
    elif report.differing:
        start = report.differing[0].start
        fact = f"the image differs in {len(report.differing)} ranges, the first at byte {start}"
    else:
        fact = "matches the image"
    return [f"Block map:  {report.path}: {fact}"]


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {more} more" if more > 0 else "")


_INDENT = " " * 12
_MIN_WIDTH = 40
_MARKS = {
    "done-by-unwrap": "done by unwrap",
    "needs-board": "needs the board",
    "not-needed": "not needed",
}
"""Words for the states of a step, by the values of `StepState`."""


def signature_lines(report: SignatureReport, title: str = "Signature:  ") -> list[str]:
    """The signature of an image, and its check."""
    if report.path is None:
        return [f"{title}none" if report.reason is None else f"{title}unknown: {report.reason}"]
    lines = [f"{title}{report.path}: {_signature_text(report)}"]
    if report.subject is not None:
        lines.append(f"{_INDENT}certificate: {report.subject}, SHA-256 {report.sha256}")
    if report.odd_time is not None:
        lines.append(f"{_INDENT}the certificate is not valid today: {report.odd_time}")
    return lines


def _signature_text(report: SignatureReport) -> str:
    reason = "" if report.reason is None else f": {report.reason}"
    match report.state:
        case SignatureState.NOT_CHECKED:
            return "not checked (use --check-signature)"
        case SignatureState.SELF_SIGNED:
            return (
                f"self-signed, by {report.certificate.name if report.certificate else ''}, "
                "which anyone who changes the image can replace (use --certificate with your own)"
            )
        case SignatureState.VERIFIED:
            return f"verifies against {report.certificate.name if report.certificate else ''}"
        case SignatureState.WRONG:
            return f"does not verify{reason}"
        case _:
            return f"unknown{reason}"


def carried_lines(carried: CarriedReport | None, *, exact: bool) -> list[str]:
    """The image that a flasher carries, and the disks it would be installed to."""
    if carried is None:
        return []
    flasher, layout = carried.flasher, carried.disk
    size = flasher.image.source.size
    shown = "size unknown" if size is None else size_text(size, exact=exact)
    place = f"partition {flasher.partition.number}"
    lines = ["", f"Carries:    {flasher.image_path} in {place}, {shown}"]
    if layout is not None:
        facts = layout.facts
        lines.append(
            f"{_INDENT}{known(facts.name)} ({known(facts.slug)}, {known(facts.arch)}), "
            f"OS version {known(facts.os_version)}"
        )
    devices = " ".join(carried.devices) or "not named"
    if len(carried.devices) > 1:
        devices = f"the first present of {devices}"
    return [
        *lines,
        *signature_lines(carried.signature, f"{_INDENT}signature: "),
        f"Goes to:    {devices}",
    ]


def step_lines(steps: Sequence[FlasherStep] | None, width: int) -> list[str]:
    """The steps of a flasher on its board, each with its state in an unwrapped image."""
    if steps is None:
        return ["What it does on the board: unknown"]
    lines = ["What it does on the board, and how unwrap handles each step:"]
    columns = max(map(len, _MARKS.values())) + 4
    for step in steps:
        text = step.action if step.meaning is None else f"{step.action} {step.meaning}"
        lines += textwrap.wrap(
            text,
            max(_MIN_WIDTH, width),
            initial_indent=f"  {_MARKS[step.state.value].ljust(columns - 2)}",
            subsequent_indent=" " * columns,
        )
    return lines


def canvas_of_stdout(*, color: bool) -> Canvas:
    """A canvas as wide as the terminal, or 80 columns, in the encoding of stdout."""
    width = shutil.get_terminal_size().columns
    return Canvas(width, sys.stdout.encoding or "ascii", color=color)


def report_lines(report: ImageReport, canvas: Canvas, *, exact: bool) -> list[str]:
    """The report for people, in the width of the canvas where possible."""
    layout, carried = report.disk, report.carried
    lines = [
        *_head_lines(report, exact=exact),
        *carried_lines(carried, exact=exact),
        "",
        *layout_lines(layout, canvas, exact=exact),
        "",
        *_config_lines("config.json", layout.config),
    ]
    if carried is None:
        return lines
    if carried.disk is not None:
        name = carried.flasher.image_name
        lines += ["", f"Inside {name}:", *layout_lines(carried.disk, canvas, exact=exact)]
        lines += ["", *_config_lines(f"config.json of {name}", carried.disk.config)]
    return [*lines, "", *step_lines(carried.steps, canvas.width)]


def _head_lines(report: ImageReport, *, exact: bool) -> list[str]:
    layout = report.disk
    boot, facts, table = layout.boot, layout.facts, layout.table
    number = boot.partition.number
    total = size_text(layout.boot_fill.total_bytes, exact=exact)
    free = size_text(layout.boot_fill.free_bytes, exact=exact)
    size = "size unknown" if layout.size is None else size_text(layout.size, exact=exact)
    size += " by its GPT" if layout.size_by_table else ""
    container = f"{report.container}, {report.member}" if report.member else report.container
    return [
        f"Image:      {report.location}",
        f"Container:  {container}, {size}",
        f"Kind:       {facts.kind.value if facts.kind else 'unknown'} image",
        f"Board:      {known(facts.name)} ({known(facts.slug)}, {known(facts.arch)})",
        f"OS version: {known(facts.os_version)}",
        f"Image name: {known(facts.image_name)}",
        f"Table:      {table.kind}, id {table.disk_id}, sectors of {table.sector_size} bytes",
        f"Boot:       partition {number}, FAT{layout.fat_bits}, {free} of {total} free",
        f"            {boot.reason}",
        *files_lines(report.files, exact=exact),
        *bmap_lines(report.bmap),
        *signature_lines(report.signature),
    ]


def _config_lines(title: str, config: Mapping[str, object] | None) -> Sequence[str]:
    if config is None:
        return [f"{title}: none"]
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return [f"{title}:", *(f"  {line}" for line in text.split("\n"))]
